"""The spreader: digests over sessions, attempts one at a time, on virtual time with sessions in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from random import Random
from typing import Any

import trio
import trio.testing
from neighbourhood import device_id

from pcm_p2p.errors import TransferError
from pcm_p2p.gossip.peer import PeerDown, PeerInfo, PeerUp
from pcm_p2p.gossip.spread import REPAIR_MS, Ending
from pcm_p2p.gossip.spreader import ATTEMPT_TIMEOUT_S, Spreader
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.messages import Digest, Message
from pcm_p2p.wire.session import SessionClosed

ONE, TWO = device_id(1), device_id(2)


def digest(timestamp: int, content: int = 0) -> Digest:
    return Digest(1, timestamp, timestamp, timestamp, bytes([content]) * 32)


class FakeSessions:
    """What the spreader needs of the overlay, in memory."""

    def __init__(self) -> None:
        self.sent: list[tuple[DeviceId | None, Message]] = []
        self.gone: set[DeviceId] = set()
        self._handler: Callable[[DeviceId, Any], Awaitable[None]]
        self._watcher: Callable[[PeerUp | PeerDown], Awaitable[None]]

    def register(self, message_type: type[Message], handler: Callable[[DeviceId, Any], Awaitable[None]], /) -> None:
        self._handler = handler

    def watch(self, watcher: Callable[[PeerUp | PeerDown], Awaitable[None]], /) -> None:
        self._watcher = watcher

    async def send(self, device: DeviceId, message: Message, /) -> None:
        if device in self.gone:
            raise SessionClosed("gone")
        self.sent.append((device, message))

    async def broadcast(self, message: Message, except_: Collection[DeviceId] = (), /) -> None:
        self.sent.append((None, message))

    async def arrive(self, device: DeviceId, digest: Digest | None = None) -> None:
        await self._watcher(PeerUp(PeerInfo(device, "10.0.0.1", "berlin", "device", 8, True, "test", None)))
        if digest is not None:
            await self._handler(device, digest)

    async def leave(self, device: DeviceId) -> None:
        await self._watcher(PeerDown(device, "gone"))


async def test_newer_metadata_of_a_peer_is_pulled_and_announced(autojump_clock: trio.testing.MockClock) -> None:
    sessions = FakeSessions()

    async def attempt(device: DeviceId) -> Ending:
        await spreader.own_changed(digest(2))
        return "good"

    spreader = Spreader(sessions, digest(1), attempt, rng=Random(1))
    async with trio.open_nursery() as nursery:
        await nursery.start(spreader.run)
        await sessions.arrive(ONE, digest(2))
        assert spreader.newest_heard() == 2
        await trio.testing.wait_all_tasks_blocked()
        assert sessions.sent == [(ONE, digest(1)), (None, digest(2))]
        nursery.cancel_scope.cancel()


async def test_attempts_that_hang_or_fail_end_and_the_next_peer_has_its_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sessions, asked = FakeSessions(), list[tuple[float, DeviceId]]()
    begun = trio.current_time()

    async def attempt(device: DeviceId) -> Ending:
        asked.append((trio.current_time() - begun, device))
        if len(asked) == 1:
            await trio.sleep_forever()
        raise TransferError("went away")

    spreader = Spreader(sessions, digest(1), attempt, rng=Random(1))
    async with trio.open_nursery() as nursery:
        await nursery.start(spreader.run)
        await sessions.arrive(ONE, digest(2))
        await sessions.arrive(TWO, digest(2))
        await trio.sleep(ATTEMPT_TIMEOUT_S + 1.5)
        assert [device for _, device in asked] == [ONE, TWO]
        assert asked[1][0] == ATTEMPT_TIMEOUT_S
        nursery.cancel_scope.cancel()


async def test_a_fork_is_attempted_for_evidence_while_nothing_else_waits_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sessions, asked = FakeSessions(), list[DeviceId]()

    async def attempt(device: DeviceId) -> Ending:
        asked.append(device)
        return "bad"

    spreader = Spreader(sessions, digest(5), attempt, rng=Random(1))
    async with trio.open_nursery() as nursery:
        await nursery.start(spreader.run)
        await sessions.arrive(ONE, digest(5, content=1))
        await sessions.arrive(TWO, digest(6))
        await trio.testing.wait_all_tasks_blocked()
        assert asked == [ONE, TWO]
        nursery.cancel_scope.cancel()


async def test_a_thousand_forks_are_a_few_attempts(autojump_clock: trio.testing.MockClock) -> None:
    sessions, asked = FakeSessions(), list[DeviceId]()

    async def attempt(device: DeviceId) -> Ending:
        asked.append(device)
        return "bad"

    spreader = Spreader(sessions, digest(5), attempt, rng=Random(1))
    for number in range(1_000):
        await sessions.arrive(device_id(number), digest(5, content=1))
    await sessions.arrive(device_id(2_000), digest(6))
    async with trio.open_nursery() as nursery:
        await nursery.start(spreader.run)
        await trio.testing.wait_all_tasks_blocked()
        assert len(asked) <= 20
        assert asked[-1] == device_id(2_000)
        nursery.cancel_scope.cancel()


async def test_repair_survives_a_peer_whose_session_has_just_ended(autojump_clock: trio.testing.MockClock) -> None:
    sessions = FakeSessions()

    async def attempt(device: DeviceId) -> Ending:
        raise AssertionError("nothing is newer")

    spreader = Spreader(sessions, digest(1), attempt, rng=Random(1))
    async with trio.open_nursery() as nursery:
        await nursery.start(spreader.run)
        await sessions.arrive(ONE)
        sessions.gone.add(ONE)
        await trio.sleep(3 * REPAIR_MS / 1_000)
        await sessions.leave(ONE)
        await sessions.arrive(TWO)
        await trio.sleep(3 * REPAIR_MS / 1_000)
        assert (TWO, digest(1)) in sessions.sent[2:]
        nursery.cancel_scope.cancel()
