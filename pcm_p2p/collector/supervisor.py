"""Keeps the console running as a process of its own: whatever a browser does to it, reports go on being taken.

The console's standard input is held open from here and never written to: when this process ends, however it ends, the console
reads the end of it and stops. It is started again after it ended, after a wait that doubles up to a minute.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

BACK_OFF_S_MIN = 1.0
BACK_OFF_S_MAX = 60.0
STEADY_S = 60.0
"""Choice: a console that ran this long was well; the next wait is the shortest again."""
STOP_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConsoleSettings:
    """``listen`` is ``host:port``; the files are those of ``python -m pcm_p2p.collector.console``."""

    archive: Path
    listen: str
    password_file: Path
    port_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def command(self) -> list[str]:
        """The command line of the console's process."""
        words = [sys.executable, "-m", "pcm_p2p.collector.console", "--until-stdin-closes"]
        for name in ("archive", "listen", "password_file", "port_file", "certificate", "key"):
            value = getattr(self, name)
            if value is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
        return words


async def supervise(command: Sequence[str]) -> None:
    """Run ``command`` for ever, again and again; end it when cancelled. Its output goes where ours goes."""
    wait_s = BACK_OFF_S_MIN
    while True:
        started_s = trio.current_time()
        status = await _run_once(command)
        if trio.current_time() - started_s >= STEADY_S:
            wait_s = BACK_OFF_S_MIN
        _log.error("the console ended with status %d; starting it again in %.0f s", status, wait_s)
        await trio.sleep(wait_s)
        wait_s = min(2 * wait_s, BACK_OFF_S_MAX)


async def _run_once(command: Sequence[str]) -> int:
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE)
    try:
        return await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            await _stop(process)


async def _stop(process: trio.Process) -> None:
    if process.stdin is not None:
        await process.stdin.aclose()
    if process.returncode is None:
        process.terminate()
        with trio.move_on_after(STOP_S):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
