"""Processes of one run: started, watched, and ended whatever happens to the lab; nothing else is ever signalled.

Each child leads a session and process group of its own, so that Ctrl-C in the terminal reaches the lab alone and the lab ends
its children in order, and so that a child's own children can be found. Three nets, each for what the one before cannot catch:

1. leaving ``open_processes`` (also by Ctrl-C, SIGTERM, an error): SIGTERM to every child, ``GRACE_S``, SIGKILL to its group;
2. the lab is killed: the kernel sends each child SIGTERM (parent-death signal, armed by ``launcher``);
3. a child does not listen, or left children behind: ``guard`` ends the groups that the lab had told it of.

The group of an ended child is ended before the child is reaped: until then its number cannot belong to anybody else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from pcm_p2p.errors import PcmError
from pcm_p2p.lab import guard, launcher

GRACE_S = 10.0
"""Choice: a daemon closes its sessions and database within a second; ten are for a loaded machine."""
KILLED_S = 5.0


class LabError(PcmError):
    """The lab itself cannot go on: a program is missing, did not start, or ended before its time."""

    meaning = "the lab cannot go on"


class Process:
    """A child. ``wait_ended`` may be awaited by several tasks; ``exit_status`` is negative for a signal, None while it runs."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.pid = popen.pid
        self.log = log
        self.exit_status: int | None = None
        self._popen = popen
        self._ended = trio.Event()

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    async def wait_ended(self) -> int:
        await self._ended.wait()
        assert self.exit_status is not None
        return self.exit_status

    def signal(self, number: int) -> None:
        """Send a signal to the process itself; nothing happens if it has ended."""
        if self.alive:
            os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and to what it started."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def last_lines(self, count: int = 12) -> str:
        """The end of the log, for an error message."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8_192))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
        return ""


class Processes:
    """See ``open_processes``."""

    def __init__(self, nursery: trio.Nursery, logs: Path) -> None:
        self._nursery = nursery
        self._logs = logs
        self._running: dict[int, Process] = {}
        self._runs = 0
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def running(self) -> tuple[Process, ...]:
        return tuple(self._running.values())

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        namespace: int | None = None,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        output: Path | None = None,
    ) -> Process:
        """Start a child and return at once. ``namespace`` is a file descriptor of a network namespace.

        Standard error is appended to ``<logs>/<name>.log``; standard output too, unless ``output`` names a file.
        """
        log = self._logs / f"{name.replace('/', '-')}.log"
        place = "-" if namespace is None else f"/proc/{os.getpid()}/fd/{namespace}"
        prefix = [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), place]
        with log.open("ab") as errors, (output or log).open("ab") as facts:
            # The parent-death signal follows the thread that forks: this must be the main one, which lives longest.
            popen = subprocess.Popen(
                [*prefix, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=facts,
                stderr=errors,
                cwd=folder,
                env=None if environment is None else {**os.environ, **environment},
                start_new_session=True,
            )
        process = Process(name, popen, log)
        self._running[process.pid] = process
        self._tell_guard(f"+{process.pid}\n")
        self._nursery.start_soon(self._watch, process)
        return process

    async def run(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        timeout_s: float,
        namespace: int | None = None,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> bytes:
        """Run a command to its end and return its standard output. Raises ``LabError`` with the end of its messages."""
        self._runs += 1
        output = self._logs / f".output-{self._runs}"
        process = self.start(name, command, namespace=namespace, folder=folder, environment=environment, output=output)
        try:
            with trio.move_on_after(timeout_s):
                status = await process.wait_ended()
                if status == 0:
                    return output.read_bytes()
                raise LabError(_failure(name, command, f"ended with status {status}", process))
            raise LabError(_failure(name, command, f"did not end within {timeout_s:g} s", process))
        finally:
            with trio.CancelScope(shield=True):
                await self.stop(process)
            output.unlink(missing_ok=True)

    async def stop(self, process: Process, *, grace_s: float = GRACE_S) -> None:
        """End ``process`` in order; SIGKILL to its group after ``grace_s``. Does nothing if it has ended."""
        process.signal(signal.SIGTERM)
        process.signal_group(signal.SIGCONT)
        with trio.move_on_after(grace_s):
            await process.wait_ended()
        process.signal_group(signal.SIGKILL)
        with trio.move_on_after(KILLED_S):
            await process.wait_ended()

    async def stop_all(self) -> None:
        """End everything that runs, at the same time."""
        async with trio.open_nursery() as nursery:
            for process in self.running:
                nursery.start_soon(self.stop, process)

    async def _watch(self, process: Process) -> None:
        descriptor = os.pidfd_open(process.pid)
        try:
            with trio.CancelScope(shield=True):  # ends with the process, and that is seen to by stop_all
                await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self._tell_guard(f"-{process.pid}\n")
        del self._running[process.pid]
        process.exit_status = process._popen.wait()
        process._ended.set()

    def _tell_guard(self, line: str) -> None:
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):
            self._guard.stdin.write(line.encode())
            self._guard.stdin.flush()

    async def _close(self) -> None:
        await self.stop_all()
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):
            self._guard.stdin.close()
        await trio.to_thread.run_sync(self._guard.wait)


@asynccontextmanager
async def open_processes(logs: Path) -> AsyncIterator[Processes]:
    """The processes of one run; all of them have ended when this is left. ``logs`` gets a file for each name."""
    await trio.Path(logs).mkdir(parents=True, exist_ok=True)
    async with trio.open_nursery() as nursery:
        processes = Processes(nursery, logs)
        try:
            yield processes
        finally:
            with trio.CancelScope(shield=True):
                await processes._close()


def _failure(name: str, command: Sequence[str | Path], what: str, process: Process) -> str:
    said = process.last_lines()
    text = f"{name} {what} ({' '.join(map(str, command))[:300]})"
    return f"{text}; its last words:\n{said}" if said else text
