"""Services: what ``systemctl show`` says of a unit. Only the running system has an answer; without one nothing is guessed.

``enabled`` follows ``systemctl is-enabled``: also units that are started through others (static, indirect, alias, generated).
``systemctl`` is a subprocess; ``run`` is the seam for tests.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence

from pcm_p2p.compliance.facts.observation import CannotTell, Observation

ANSWER_TIMEOUT_S = 5.0
"""Choice: systemd answers in milliseconds; one that does not is broken."""
ANSWER_SIZE_BYTES_MAX = 64 << 10

Run = Callable[[Sequence[str], float], tuple[int, str, str]]
"""(argv, timeout_s) to exit status, standard output and standard error. Raises ``CannotTell``."""

_ENABLED = frozenset({"enabled", "enabled-runtime", "static", "alias", "indirect", "generated"})


def observe(run: Run, unit: str) -> Observation:
    """Raises ``CannotTell`` with what systemctl said."""
    status, answer, complaint = run(
        ("systemctl", "--no-pager", "show", "--property=LoadState,UnitFileState,ActiveState", "--", unit),
        ANSWER_TIMEOUT_S,
    )
    fields = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
    if status != 0 or not fields.get("LoadState"):
        said = " ".join(complaint.split())[:200] or f"exit status {status}"
        raise CannotTell(f"systemctl cannot answer: {said}")
    load, file, active = fields["LoadState"], fields.get("UnitFileState", ""), fields.get("ActiveState", "")
    if load in ("error", "bad-setting"):
        raise CannotTell(f"{unit}: systemd cannot load it ({load})")
    if load == "not-found":
        return {"exists": False, "enabled": None, "active": None, "masked": None}
    return {
        "exists": True,
        "enabled": file in _ENABLED,
        "active": active in ("active", "reloading", "refreshing"),
        "masked": load == "masked" or file.startswith("masked"),
    }


def run_command(argv: Sequence[str], timeout_s: float) -> tuple[int, str, str]:
    """Run without a shell, terminal or inherited environment. Blocking: for worker threads."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": ""}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=environment,
                timeout=timeout_s,
                check=False,
            )
        except FileNotFoundError:
            raise CannotTell(f"there is no {argv[0]} on this system") from None
        except subprocess.TimeoutExpired:
            raise CannotTell(f"{argv[0]} did not answer within {timeout_s:g} s") from None
        except OSError as error:
            raise CannotTell(f"{argv[0]} cannot be started: {error.strerror}") from None
        output.seek(0)
        errors.seek(0)
        answer, complaint = (file.read(ANSWER_SIZE_BYTES_MAX).decode("utf-8", "replace") for file in (output, errors))
    return done.returncode, answer, complaint
