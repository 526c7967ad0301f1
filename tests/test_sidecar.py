"""The asyncio side-car: known outcomes, whatever happens on the trio side."""

from __future__ import annotations

import asyncio
import threading

import pytest
import trio
import trio.testing

from pcm_p2p.sidecar import open_sidecar


async def test_runs_in_another_thread_and_returns_the_result() -> None:
    async def where(number: int) -> tuple[int, str]:
        return number, threading.current_thread().name

    async with open_sidecar() as sidecar:
        assert await sidecar.run(where, 7) == (7, "asyncio side-car")


async def test_an_exception_travels_to_the_caller() -> None:
    async def fail() -> None:
        raise ValueError("in asyncio")

    async with open_sidecar() as sidecar:
        with pytest.raises(ValueError, match="in asyncio"):
            await sidecar.run(fail)


async def test_a_cancelled_caller_waits_for_the_end_and_then_is_cancelled() -> None:
    steps: list[str] = []

    async def work(begun: trio.Event, go_on: asyncio.Event) -> None:
        sidecar.tell(begun.set)
        await go_on.wait()
        steps.append("committed")

    async def call(begun: trio.Event, go_on: asyncio.Event) -> None:
        with trio.CancelScope() as scope:
            begun_scope.append(scope)
            await sidecar.run(work, begun, go_on)
            steps.append("returned")
            await trio.lowlevel.checkpoint()
            steps.append("never reached")

    async with open_sidecar() as sidecar, trio.open_nursery() as nursery:
        begun_scope: list[trio.CancelScope] = []
        begun, go_on = trio.Event(), asyncio.Event()
        nursery.start_soon(call, begun, go_on)
        await begun.wait()
        begun_scope[0].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert steps == []

        async def release() -> None:
            go_on.set()

        await sidecar.run(release)
    assert steps == ["committed", "returned"]


async def test_a_time_limit_cancels_the_asyncio_side() -> None:
    ended: list[str] = []

    async def stuck() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    async with open_sidecar() as sidecar:
        with pytest.raises(TimeoutError):
            await sidecar.run(stuck, timeout_s=0.01)
    assert ended == ["cleaned up"]


async def test_closing_ends_what_still_runs_and_joins_the_thread() -> None:
    ended: list[str] = []

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def start() -> None:
        tasks.append(asyncio.get_running_loop().create_task(background()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    async with open_sidecar() as sidecar:
        await sidecar.run(start)
    assert ended == ["cancelled"]
    assert not any(thread.name == "asyncio side-car" for thread in threading.enumerate())


async def test_after_closing_a_call_says_so() -> None:
    async def nothing() -> None: ...

    async with open_sidecar() as sidecar:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await sidecar.run(nothing)


def test_telling_a_trio_that_has_ended_is_silent() -> None:
    async def main() -> object:
        async with open_sidecar() as sidecar:
            return sidecar

    sidecar = trio.run(main)
    sidecar.tell(print, "nobody is there")  # type: ignore[attr-defined]
