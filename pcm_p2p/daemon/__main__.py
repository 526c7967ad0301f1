"""``python -m pcm_p2p.daemon``: the daemon's process, without what only the command line, publishers or signers use.

``pcm-p2p daemon`` replaces its process by this one: typer and rich cost 3.5 MB resident that a daemon of weeks never uses again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pcm_p2p.errors import PcmError


def main() -> int:
    """Parse, run, and return the exit status (``pcm_p2p.errors``)."""
    parser = argparse.ArgumentParser(prog="python -m pcm_p2p.daemon", description="Run one endpoint's daemon.")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--json-log", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    chosen = parser.parse_args()
    # Here, so that what stands below was said before securesystemslib is loaded.
    from pcm_p2p.daemon.service import run_daemon

    try:
        run_daemon(chosen.state, json_log=chosen.json_log, verbose=chosen.verbose)
    except PcmError as error:
        return _tell(error)
    except BaseExceptionGroup as group:
        inner: BaseException = group
        while isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        if not isinstance(inner, PcmError):
            raise
        return _tell(inner)
    return 0


def _tell(error: PcmError) -> int:
    sys.stderr.write(f"pcm-p2p: {error.message}\n" + (f"  {error.remedy}\n" if error.remedy else ""))
    return error.exit_status


if __name__ == "__main__":
    # securesystemslib looks whether it could use a hardware token and keeps what it finds: pkcs11 and asn1crypto are 2.2 MB
    # resident, and a daemon signs with no token. Marked absent, which is a case that it provides for.
    sys.modules["pkcs11"] = None  # type: ignore[assignment]  # the import system's own word for "not there"
    sys.exit(main())
