"""The one asyncio thread of a process, for the two libraries that need asyncio: zeroconf and aiosqlite.

Everything else runs on trio. The two worlds meet in two calls:

- ``await sidecar.run(function, *args)`` (from trio) runs a coroutine function in the asyncio thread **to its end**. A trio
  cancellation is delivered after that end, never in the middle, so a transaction always has a known outcome
  (research/gossip-scale.md 6.4: an abandoned wait commits behind the caller's back).
- ``sidecar.tell(function, *args)`` (from the asyncio thread) runs a plain function soon in the trio thread.

Since a wait is not cut short by cancellation, what is run here must be bounded by itself: either the function sets its own
limits, or the caller passes ``timeout_s``, after which the asyncio task is cancelled and ``TimeoutError`` raised.

Why a thread of its own: trio-asyncio replaces event-loop construction process-wide, which breaks closing zeroconf, and it
does not run on Python 3.14; guest mode makes each trio checkpoint three times as dear (research/gossip-scale.md 6.3).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STOP_TIMEOUT_S = 5.0
"""Choice: how long tasks that were left over may take to end once they are cancelled at shutdown."""


class Sidecar:
    """A running asyncio event loop in a thread. Made by ``open_sidecar``; usable from the trio run that opened it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, token: trio.lowlevel.TrioToken) -> None:
        self._loop = loop
        self._token = token

    async def run(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts, timeout_s: float | None = None) -> T:
        """Run ``await function(*args)`` in the asyncio thread and return its result, or raise what it raised.

        A cancellation of the calling task is held back until the function has ended; the result is then returned and the
        cancellation arrives at the caller's next checkpoint, as with ``trio.to_thread.run_sync``.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        ended = trio.Event()
        outcome: list[T] = []
        failure: list[BaseException] = []

        async def perform() -> None:
            try:
                async with asyncio.timeout(timeout_s):
                    outcome.append(await function(*args))
            except asyncio.CancelledError:
                failure.append(trio.ClosedResourceError("the asyncio side-car was stopped"))
                raise
            except BaseException as error:  # carried to the caller, who decides
                failure.append(error)
            finally:
                self.tell(ended.set)

        coroutine = perform()
        try:
            asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise trio.ClosedResourceError("the asyncio side-car was stopped") from None
        with trio.CancelScope(shield=True):
            await ended.wait()
        if failure:
            try:
                raise failure[0]
            finally:
                failure.clear()  # an exception that refers to its own frame is freed late
        return outcome[0]

    def tell(self, function: Callable[[*Ts], Any], *args: *Ts) -> None:
        """From the asyncio thread: run ``function(*args)`` soon in the trio thread. Nothing happens if trio has ended."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, *args)


@contextlib.asynccontextmanager
async def open_sidecar() -> AsyncIterator[Sidecar]:
    """Start the asyncio thread; at the end cancel what still runs there, wait for it, and join the thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_serve, args=(loop,), name="asyncio side-car", daemon=True)
    thread.start()
    try:
        yield Sidecar(loop, trio.lowlevel.current_trio_token())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(thread.join)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left_over = asyncio.all_tasks(loop)
        for task in left_over:
            task.cancel()
        if left_over:
            loop.run_until_complete(asyncio.wait(left_over, timeout=STOP_TIMEOUT_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
