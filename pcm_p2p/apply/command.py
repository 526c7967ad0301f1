"""Commands: a subprocess without shell, terminal or inherited environment, and with a deadline. Blocking: for worker threads.

Output goes to an unnamed file, not to a pipe: a daemon that a maintainer script starts keeps its standard output open, and
waiting for the end of a pipe would wait for that daemon.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from pcm_p2p.errors import ApplyError

OUTPUT_BYTES_MAX = 4 << 20
"""Choice: no question asked here has a longer answer; of more only the beginning is read."""
TERMINATE_S = 10.0
"""Choice: what a command gets to end by itself after its deadline."""

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",  # dpkg refuses to start where it cannot see /sbin/ldconfig
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
    "NEEDRESTART_SUSPEND": "1",  # its hook asks questions, also inside a private root (research/compliance.md 4)
    "UCF_FORCE_CONFFOLD": "1",
}


class Completed(msgspec.Struct, frozen=True):
    """How a command ended: exit ``status`` (negative: the signal), and what it said, as text and as it was."""

    status: int
    output: bytes
    errors: str

    @property
    def text(self) -> str:
        return self.output.decode("utf-8", "replace")

    @property
    def complaint(self) -> str:
        """The last lines it wrote to standard error, for a message to a person."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return " / ".join(lines[-4:])[:800] or f"exit status {self.status}"


Runner = Callable[[Sequence[str], float], Completed]
"""``(argv, timeout_s) → Completed``: the seam through which providers reach programs."""


def run(argv: Sequence[str], timeout_s: float, *, extra: Mapping[str, str] | None = None) -> Completed:
    """Run ``argv`` to its end. Raises ``ApplyError`` when it cannot be started or passes ``timeout_s``."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env={**ENVIRONMENT, **(extra or {})},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise ApplyError(
                f"{Path(argv[0]).name} cannot be started: {error.strerror}", remedy=f"Install {Path(argv[0]).name}."
            ) from None
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _end(process)
            raise ApplyError(
                f"{Path(argv[0]).name} did not end within {timeout_s:.0f} s and was ended: {_read(errors)[-400:]!r}"
            ) from None
        return Completed(status, _read(output), _read(errors).decode("utf-8", "replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Terminate the whole session that ``process`` leads, and kill it if it does not listen."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, ending)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERMINATE_S)
            return


def _read(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(OUTPUT_BYTES_MAX)
