"""Virtual time that knows of threads: it jumps when everybody waits for the clock, and never while a thread is at work.

trio's own clock takes a task that waits for a thread for one that waits in vain, and jumps to the next deadline. How much of an
hour then goes by while a file is read depends on how busy the machine is.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pcm_p2p.sidecar import Sidecar


def clock_that_waits_for_threads(patch: pytest.MonkeyPatch) -> MockClock:
    """A clock with autojump that stands still while a thread of trio, or the asyncio thread, does what a task waits for.

    A thread that itself waits for the loop (``trio.from_thread.run``) does not hold the clock meanwhile.
    """
    clock, under_way = MockClock(autojump_threshold=0), 0

    def count(change: int) -> None:
        nonlocal under_way
        under_way += change
        clock.autojump_threshold = math.inf if under_way else 0

    def held(run: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def wait(*args: Any, **options: Any) -> Any:
            count(1)
            try:
                return await run(*args, **options)
            finally:
                count(-1)

        return wait

    def let_go(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(function: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
            async def in_the_loop(*args: Any) -> Any:
                count(-1)
                try:
                    return await function(*args)
                finally:
                    count(1)

            return run(in_the_loop, *args, **options)

        return call

    patch.setattr(trio.to_thread, "run_sync", held(trio.to_thread.run_sync))
    patch.setattr(trio.from_thread, "run", let_go(trio.from_thread.run))
    patch.setattr(Sidecar, "run", held(Sidecar.run))
    return clock
