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
GROWTH_BYTES_MIN = 12 << 20
"""Choice: trimming for less is not worth the walk over the heap; an idle daemon breathes by a few MB."""
STATM = Path("/proc/self/statm")


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
    """Look now and then, and trim when the process has grown since it was trimmed last; until cancelled."""
    work = trimmer()
    if work is None:
        return
    floor = 0
    while True:
        await trio.sleep(interval_s)
        if resident_bytes() > floor + GROWTH_BYTES_MIN:
            await trio.to_thread.run_sync(work)
            floor = resident_bytes()
