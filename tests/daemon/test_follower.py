"""Who asks the origin for metadata and when, in virtual time; and what is told of refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from pcm_p2p.daemon.follower import BACK_OFF_S_MAX, FIRST_WAIT_S, HEAL_S, Follower
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust.client import Attempt, MetadataDigest, MetadataSource, TrustClient
from pcm_p2p.wire.messages import Digest

POLL_S = 100.0
ORIGIN = cast(MetadataSource, SimpleNamespace(name="origin"))
VIEW = cast(Any, object())


def device(number: int) -> DeviceId:
    return DeviceId(bytes([number]) * 16)


@dataclass
class Client:
    """Answers attempts with ``kinds`` in turn, the last one for ever; a good one brings ``VIEW``."""

    view: Any = VIEW
    kinds: list[str] = field(default_factory=lambda: ["unchanged"])
    reason: str = ""
    settled: bool = True
    at: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    async def attempt(self, source: MetadataSource) -> Attempt:
        self.at.append(trio.current_time())
        self.sources.append(source.name)
        kind: Any = self.kinds.pop(0) if len(self.kinds) > 1 else self.kinds[0]
        if kind == "good":
            self.view = cast(Any, object())
        return Attempt(kind, source.name, "" if kind in ("good", "unchanged") else self.reason, self.view)

    def digest(self) -> MetadataDigest:
        return MetadataDigest(1, 2, 3, 4, bytes(32))


class Neighbours:
    def __init__(self, weights: Mapping[DeviceId, int]) -> None:
        self.weights = weights

    def site_peers(self) -> Mapping[DeviceId, int]:
        return self.weights

    def metadata_source(self, device: DeviceId) -> MetadataSource:
        return cast(MetadataSource, SimpleNamespace(name=device.hex()))


@dataclass
class Told:
    digests: list[Digest] = field(default_factory=list)

    async def __call__(self, digest: Digest) -> None:
        self.digests.append(digest)


def follower(client: Client, number: int = 0, size: int = 1, **changes: Any) -> Follower:
    """Member ``number`` of an office of ``size``, all of the same weight."""
    weights = {device(other): 8 for other in range(size) if other != number}
    options: dict[str, Any] = {
        "weight": 8,
        "poll_s": POLL_S,
        "settle_s": 3.0,
        "wall_s": trio.current_time,
        "on_change": Told(),
        **changes,
    }
    return Follower(cast(TrustClient, client), device(number), Neighbours(weights), ORIGIN, **options)


async def run_for(seconds: float, *followers: Follower) -> None:
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for one in followers:
                nursery.start_soon(one.run)


async def test_an_office_asks_the_origin_once_a_period(autojump_clock: MockClock) -> None:
    clients = [Client() for _ in range(6)]
    start = trio.current_time()
    await run_for(20 * POLL_S - start % POLL_S, *(follower(client, number, 6) for number, client in enumerate(clients)))
    periods = sorted(int(at // POLL_S) for client in clients for at in client.at)
    assert len(periods) == len(set(periods)), "never two of them in one period"
    assert len(periods) >= 19
    assert sum(bool(client.at) for client in clients) >= 4, "and it is not always the same one"


async def test_who_may_not_use_the_wan_never_asks_while_others_can(autojump_clock: MockClock) -> None:
    metered = Client()
    await run_for(10 * POLL_S, follower(metered, 0, 3, weight=0))
    assert metered.at == []


async def test_without_metadata_the_ranks_ask_one_after_the_other(autojump_clock: MockClock) -> None:
    clients = [Client(view=None, kinds=["incomplete"]) for _ in range(4)]
    start = trio.current_time()
    await run_for(4 * FIRST_WAIT_S + 3.0 - 0.5, *(follower(one, number, 4) for number, one in enumerate(clients)))
    first = sorted(client.at[0] - start for client in clients)
    assert [round((at - 3.0) / FIRST_WAIT_S) for at in first] == [0, 1, 2, 3]


async def test_an_origin_that_fails_is_asked_less_and_less(autojump_clock: MockClock) -> None:
    client = Client(view=None, kinds=["incomplete"], reason="does not answer")
    one = follower(client)
    await run_for(3_000, one)
    gaps = [round(later - sooner) for sooner, later in zip(client.at, client.at[1:], strict=False)]
    assert gaps[:8] == [2, 4, 8, 16, 32, 64, 128, 256]
    assert set(gaps[8:]) == {int(BACK_OFF_S_MAX)}
    assert one.last_problem == "origin: does not answer"


@pytest.mark.parametrize("kind", ["bad", "expired", "older", "incomplete"])
async def test_a_refusal_of_the_origin_is_told_with_its_reason_until_all_is_well(
    kind: str, autojump_clock: MockClock
) -> None:
    told = Told()
    client = Client(kinds=[kind, "good", "unchanged"], reason="why")
    one = follower(client, on_change=told)
    await run_for(4.0, one)
    assert one.last_problem == "origin: why"
    assert told.digests == []
    assert client.view is VIEW, "what was good before stays"
    await run_for(POLL_S, one)
    assert one.last_problem == ""
    assert told.digests == [Digest(1, 2, 3, 4, bytes(32))]


async def test_a_neighbour_that_lags_is_no_problem_and_one_that_lies_is(autojump_clock: MockClock) -> None:
    client = Client(kinds=["older", "bad"], reason="signed by nobody")
    one = follower(client)
    assert await one.ask_neighbour(device(7)) == "older"
    assert one.last_problem == ""
    assert await one.ask_neighbour(device(7)) == "bad"
    assert one.last_problem == f"{device(7).short}: signed by nobody"
    assert client.sources == [device(7).hex()] * 2


async def test_without_an_origin_nobody_is_asked(autojump_clock: MockClock) -> None:
    client = Client(view=None)
    lonely = Follower(
        cast(TrustClient, client),
        device(0),
        Neighbours({}),
        None,
        weight=8,
        poll_s=1.0,
        settle_s=0.0,
        wall_s=trio.current_time,
        on_change=Told(),
    )
    await run_for(1_000, lonely)
    assert client.at == []


async def test_what_is_missing_of_a_role_is_asked_of_one_source_after_the_other(autojump_clock: MockClock) -> None:
    """All of them claim the same versions, so no digest tells who has it."""
    client = Client(settled=False)
    one = follower(client, number=2, size=3, poll_s=1e9)  # never this device's turn to poll
    one._polled_period = 0
    with trio.move_on_after(5 * HEAL_S + 1):
        await one.run()
    assert client.sources == [device(0).hex(), device(1).hex(), "origin", device(0).hex()]
    assert client.at == [20.0, 40.0, 60.0, 100.0], "slower after each round in vain"
    client.settled = True
    with trio.move_on_after(4 * HEAL_S + 1):
        await one.run()
    assert len(client.sources) == 4, "nothing is missing: nobody is asked"


@pytest.mark.parametrize(
    ("kinds", "asked"),
    [
        (["good"], 1),
        (["incomplete", "unchanged"], 2),
        (["incomplete", "incomplete", "good"], 3),
        (["incomplete"], 4),
    ],
)
async def test_what_is_newly_wanted_is_asked_of_neighbours_first_and_of_the_origin_last(
    kinds: list[str], asked: int
) -> None:
    client = Client(kinds=kinds)
    await follower(client, 0, 4).seek(lambda: True)
    assert client.sources == [device(1).hex(), device(2).hex(), device(3).hex(), "origin"][:asked]


async def test_nobody_is_asked_when_nothing_is_lacking() -> None:
    client = Client()
    await follower(client, 0, 4).seek(lambda: False)
    assert client.sources == []


async def test_one_search_at_a_time_and_one_that_waits(autojump_clock: MockClock) -> None:
    """Each edition of a site begins one. A neighbour that answers nobody makes each of them take a minute."""

    class Slow(Client):
        async def attempt(self, source: MetadataSource) -> Attempt:
            await trio.sleep(60.0)
            return await super().attempt(source)

    client = Slow(kinds=["incomplete"])
    one = follower(client, 0, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.seek, lambda: True)
        await trio.sleep(1.0)
        for _ in range(50):
            nursery.start_soon(one.seek, lambda: True)
    assert len(client.at) == 2
    await one.seek(lambda: True)
    assert len(client.at) == 3
