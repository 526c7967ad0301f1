"""``python -m pcm_p2p.collector.console``: the console as a process of its own. Its users and their goals: the package's page."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import trio

from pcm_p2p.collector.console.app import create_app
from pcm_p2p.collector.console.login import Gate
from pcm_p2p.collector.console.password import load_password
from pcm_p2p.collector.console.serve import serve
from pcm_p2p.collector.console.state import Console
from pcm_p2p.collector.snapshot import STALE_AFTER_MS
from pcm_p2p.errors import PcmError


def main() -> int:
    """Parse, serve, and return the exit status (``pcm_p2p.errors``)."""
    chosen = _arguments()
    try:
        trio.run(_run, chosen)
    except PcmError as error:
        return _tell(error)
    except BaseExceptionGroup as errors:
        expected, others = errors.split(PcmError)
        if others is not None or expected is None:
            raise
        return _tell(expected)
    return 0


def _tell(error: BaseException) -> int:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, PcmError):
        raise error
    print(f"error: {error}\n{error.remedy}".rstrip(), file=sys.stderr)
    return error.exit_status


async def _run(chosen: argparse.Namespace) -> None:
    password = load_password(chosen.password_file)
    if password.fresh is not None:
        print(f"Password of the console (shown once): {password.fresh}", file=sys.stderr, flush=True)
    gate = Gate(password, secure=chosen.certificate is not None)
    console = Console(chosen.archive, gate, stale_after_ms=round(chosen.stale_after * 3_600_000))
    ended = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, ended)
        if chosen.until_stdin_closes:
            nursery.start_soon(_end_with_parent, ended)
        await serve(
            create_app(console),
            chosen.listen,
            ended=ended,
            port_file=chosen.port_file,
            certificate=chosen.certificate,
            key=chosen.key,
            ready=lambda address: print(f"Console at {address}/", file=sys.stderr, flush=True),
        )
        nursery.cancel_scope.cancel()


async def _end_on_signal(ended: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            ended.set()


async def _end_with_parent(ended: trio.Event) -> None:
    """The collector holds the other end of standard input: however it ends, this ends with it."""
    async with trio.lowlevel.FdStream(os.dup(0)) as lifeline:
        while await lifeline.receive_some():
            pass
    ended.set()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pcm_p2p.collector.console",
        description="The fleet in a browser: reads the collector's archive, changes nothing.",
    )
    parser.add_argument("--archive", type=Path, required=True, help="the collector's archive (SQLite)")
    parser.add_argument(
        "--listen", default="127.0.0.1:8744", metavar="HOST:PORT", help="default: %(default)s; port 0: any"
    )
    parser.add_argument(
        "--password-file",
        type=Path,
        required=True,
        help="holds the password's hash; made, and the password shown once, if absent",
    )
    parser.add_argument("--port-file", type=Path, help="gets HOST:PORT when connections are accepted")
    parser.add_argument("--certificate", type=Path, help="PEM; with --key the console speaks HTTPS")
    parser.add_argument("--key", type=Path, help="PEM, not encrypted")
    parser.add_argument(
        "--stale-after", type=float, default=STALE_AFTER_MS / 3_600_000, metavar="HOURS", help="default: %(default).0f"
    )
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when standard input is closed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
