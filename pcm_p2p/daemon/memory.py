"""Gives freed memory back to the system, so that a daemon that moved a large artifact becomes small again.

glibc keeps what was freed for the next allocation; after 400 MB of chunks that is 60 to 90 MB which nobody uses again for weeks
(measured: 127 and 159 MB resident before, see bench/daemon.py). ``malloc_trim`` returns it in milliseconds. On another C library
there is nothing to call, and nothing is done.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from pathlib import Path

import trio

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 20.0
GROWTH_BYTES_MIN = 4 << 20
"""Choice: trimming for less is not worth the walk over the heap; an idle daemon breathes by one or two MB."""
GAIN_BYTES_MIN = 1 << 20
"""Choice: a trim that gave back this much was in the middle of something, and is followed by another one."""
LOOKS_MAX = 15
"""Choice: at least every five minutes. What was in use when it was trimmed last may have been freed since, and that does not
show in the resident memory: measured as 4 … 7 MB that stayed for ever after a transfer."""
STATM = Path("/proc/self/statm")


class Trimming:
    """When to trim, from what is resident at each look. Holds no memory but three numbers; decides, and touches nothing."""

    def __init__(self) -> None:
        self._floor_bytes = 0
        self._gain_bytes = 0
        self._looks = 0

    def is_due(self, resident: int) -> bool:
        """Called at each look: it has grown, the last trim gained, or it has been long."""
        self._looks += 1
        return (
            resident >= self._floor_bytes + GROWTH_BYTES_MIN
            or self._gain_bytes >= GAIN_BYTES_MIN
            or self._looks >= LOOKS_MAX
        )

    def trimmed(self, before: int, after: int) -> None:
        self._gain_bytes, self._floor_bytes, self._looks = before - after, after, 0


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        return int(STATM.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def trimmer() -> Callable[[], object] | None:
    """What gives memory back on this system, or None."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None

    return lambda: trim(0)


async def keep_small(interval_s: float = LOOK_INTERVAL_S) -> None:
    """Look now and then, and trim when it is due; until cancelled."""
    work = trimmer()
    if work is None:
        return
    trimming = Trimming()
    while True:
        await trio.sleep(interval_s)
        if trimming.is_due(before := resident_bytes()):
            await trio.to_thread.run_sync(work)
            trimming.trimmed(before, resident_bytes())
