"""Where store writes and decoding happen: worker threads, bounded. A seam, so that virtual time need not wait for threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import trio

Result = TypeVar("Result")

THREADS_MAX = 3
"""Choice: one for each of the two segments, one for chunks from neighbours; zstd and BLAKE3 release the interpreter lock."""


class Workers:
    def __init__(self, threads_max: int = THREADS_MAX) -> None:
        self._limiter = trio.CapacityLimiter(threads_max)

    async def run(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call it in a thread and wait for its end, also when cancelled."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)

    def tell(self, function: Callable[..., object], *args: Any) -> None:
        """From within such a function: call ``function`` in the trio thread, and wait for that."""
        trio.from_thread.run_sync(function, *args)
