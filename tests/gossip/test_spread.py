"""Spread: news reaches everybody in a few hops, claims are checked once, liars are left alone, forks are evidence."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbourhood import device_id

from pcm_p2p.gossip.spread import (
    NOTHING,
    PENALTY_MS_MAX,
    PENALTY_MS_MIN,
    REPAIR_MS,
    Attempt,
    AttemptEnded,
    DigestHeard,
    Ending,
    Event,
    Fork,
    OwnChanged,
    PeerArrived,
    PeerLeft,
    SendDigest,
    Spread,
    Tick,
)
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.messages import Digest

ONE, TWO, THREE = device_id(1), device_id(2), device_id(3)


def digest(timestamp: int, *, root: int = 1, content: int = 0) -> Digest:
    return Digest(root, timestamp, timestamp, timestamp, bytes([content]) * 32)


def spread(timestamp: int = 1, *peers: DeviceId) -> Spread:
    core = Spread(digest(timestamp), Random(1))
    for peer in peers:
        core.handle(PeerArrived(peer), 0)
    return core


def test_a_new_peer_is_told_what_i_trust() -> None:
    assert spread(3).handle(PeerArrived(ONE), 0) == [SendDigest(digest(3), ONE)]


def test_something_newer_is_attempted_with_the_peer_that_claims_the_newest() -> None:
    core = spread(1, ONE, TWO)
    assert core.handle(DigestHeard(ONE, digest(2)), 0) == [Attempt(ONE)]
    assert core.handle(DigestHeard(TWO, digest(3)), 0) == [], "one attempt at a time"
    core.handle(OwnChanged(digest(2)), 10)
    assert core.handle(AttemptEnded(ONE, "good"), 10) == [Attempt(TWO)]


def test_what_i_come_to_trust_is_told_to_all_at_once_and_only_once() -> None:
    core = spread(1, ONE, TWO)
    assert core.handle(OwnChanged(digest(2)), 0) == [SendDigest(digest(2))]
    assert core.handle(OwnChanged(digest(2)), 0) == []


def test_a_peer_that_is_behind_is_told_and_one_that_is_equal_is_not() -> None:
    core = spread(5, ONE)
    assert core.handle(DigestHeard(ONE, digest(4)), 0) == [SendDigest(digest(5), ONE)]
    assert core.handle(DigestHeard(ONE, digest(5)), 0) == []


def test_two_that_are_each_ahead_in_one_role_do_not_answer_each_other_for_ever() -> None:
    one, two = Spread(digest(5, root=2), Random(1)), Spread(digest(6, root=1), Random(2))
    one.handle(PeerArrived(TWO), 0)
    two.handle(PeerArrived(ONE), 0)
    assert one.handle(DigestHeard(TWO, two.own), 0) == [Attempt(TWO)]
    assert two.handle(DigestHeard(ONE, one.own), 0) == [Attempt(ONE)]


def test_the_same_version_with_another_hash_is_a_fork_and_reported_once_per_version() -> None:
    core = spread(5, ONE)
    other = digest(5, content=1)
    assert core.handle(DigestHeard(ONE, other), 0) == [Fork(ONE, other)]
    assert core.handle(DigestHeard(ONE, other), 1) == []
    core.handle(PeerLeft(ONE), 2)
    core.handle(PeerArrived(ONE), 3)
    assert core.handle(DigestHeard(ONE, other), 4) == [], "reconnecting does not make it news"


def test_a_device_without_metadata_sees_no_fork_in_another_without() -> None:
    core = Spread(NOTHING, Random(1))
    core.handle(PeerArrived(ONE), 0)
    assert core.handle(DigestHeard(ONE, Digest(0, 0, 0, 0, b"x" * 32)), 0) == []


def attempts(core: Spread, ending: Ending, duration_ms: int, tick_ms: int) -> list[int]:
    """When a peer that keeps claiming something newer is attempted, each attempt ending the same way."""
    found: list[int] = []
    now_ms = 0
    core.handle(PeerArrived(ONE), 0)
    effects = core.handle(DigestHeard(ONE, digest(99)), 0)
    while now_ms < duration_ms:
        for effect in effects:
            if isinstance(effect, Attempt):
                found.append(now_ms)
                core.handle(AttemptEnded(effect.device, ending), now_ms)
        now_ms += tick_ms
        effects = core.handle(Tick(), now_ms)
    return found


@pytest.mark.parametrize("ending", ["bad", "unchanged", "older", "expired"])
def test_a_claim_that_does_not_come_true_costs_ever_longer_penalties(ending: Ending) -> None:
    times = attempts(spread(), ending, 20 * 3_600_000, 30_000)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] == PENALTY_MS_MIN
    assert gaps[-1] == PENALTY_MS_MAX
    assert len(times) < 30


def test_a_peer_that_was_too_slow_is_tried_again_soon() -> None:
    times = attempts(spread(), "incomplete", 60_000, 1_000)
    assert 4 <= len(times) <= 8


def test_a_boast_above_what_a_peer_gave_is_not_attempted_without_pause() -> None:
    core = spread(1, ONE)
    core.handle(DigestHeard(ONE, digest(99)), 0)
    core.handle(OwnChanged(digest(2)), 0)
    assert core.handle(AttemptEnded(ONE, "good"), 0) == []


def test_a_penalty_outlives_the_session() -> None:
    core = spread(1, ONE)
    core.handle(DigestHeard(ONE, digest(2)), 0)
    core.handle(AttemptEnded(ONE, "bad"), 0)
    core.handle(PeerLeft(ONE), 1)
    core.handle(PeerArrived(ONE), 2)
    assert core.handle(DigestHeard(ONE, digest(2)), 3) == []
    assert core.handle(Tick(), PENALTY_MS_MIN + 1)[-1:] == [Attempt(ONE)]


def test_a_liar_does_not_keep_the_honest_from_being_asked() -> None:
    core = spread(1, ONE, TWO)
    core.handle(DigestHeard(ONE, digest(99)), 0)
    core.handle(DigestHeard(TWO, digest(2)), 0)
    assert core.handle(AttemptEnded(ONE, "bad"), 0) == [Attempt(TWO)]


def test_repair_tells_one_peer_now_and_then() -> None:
    core = spread(4, ONE, TWO, THREE)
    told = [effect for now_ms in range(0, 20 * REPAIR_MS, 1_000) for effect in core.handle(Tick(), now_ms)]
    assert 13 <= len(told) <= 27
    assert {effect.to for effect in told if isinstance(effect, SendDigest)} == {ONE, TWO, THREE}


def test_a_release_that_one_learns_of_reaches_all_in_a_few_hops() -> None:
    """20 devices, each with 5 neighbours; an attempt succeeds if the peer really has it. Counted in rounds of messages."""
    rng = Random(7)
    devices = [device_id(number) for number in range(20)]
    cores = {device: Spread(digest(1), Random(number)) for number, device in enumerate(devices)}
    neighbours = {device: set[DeviceId]() for device in devices}
    for index, device in enumerate(devices):
        for other in (devices[(index + 1) % 20], *rng.sample(devices, 2)):
            if other != device:
                neighbours[device].add(other)
                neighbours[other].add(device)
    queue: list[tuple[DeviceId, Event]] = []

    def perform(device: DeviceId, event: Event) -> None:
        for effect in cores[device].handle(event, 0):
            if isinstance(effect, SendDigest):
                told = [effect.to] if effect.to else sorted(neighbours[device])
                queue.extend((peer, DigestHeard(device, effect.digest)) for peer in told)
            elif isinstance(effect, Attempt):
                queue.append((device, OwnChanged(cores[effect.device].own)))
                queue.append((device, AttemptEnded(effect.device, "good")))

    for device in devices:
        for peer in sorted(neighbours[device]):
            perform(device, PeerArrived(peer))
    queue.clear()
    perform(devices[0], OwnChanged(digest(2)))
    rounds = 0
    while queue:
        rounds += 1
        batch, queue[:] = list(queue), []
        for device, event in batch:
            perform(device, event)
    assert {core.own.timestamp for core in cores.values()} == {2}
    assert rounds <= 12


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_at_most_one_attempt_is_ever_under_way(data: st.DataObject) -> None:
    core, now_ms, attempting = spread(), 0, None
    for _ in range(data.draw(st.integers(1, 40))):
        now_ms += data.draw(st.sampled_from([0, 1_000, 40_000]))
        device = device_id(data.draw(st.integers(1, 3)))
        kind = data.draw(st.integers(0, 5))
        event: Event = Tick()
        if kind == 0:
            event = PeerArrived(device)
        elif kind == 1:
            event = PeerLeft(device)
        elif kind == 2:
            version = data.draw(st.integers(0, 4))
            event = DigestHeard(device, digest(version, content=data.draw(st.integers(0, 1))))
        elif kind == 3:
            event = OwnChanged(digest(max(core.own.timestamp, data.draw(st.integers(0, 4)))))
        elif kind == 4 and attempting is not None:
            endings: list[Ending] = ["good", "bad", "incomplete", "unchanged"]
            event, attempting = AttemptEnded(attempting, data.draw(st.sampled_from(endings))), None
        for effect in core.handle(event, now_ms):
            if isinstance(effect, Attempt):
                assert attempting is None
                attempting = effect.device
        assert core.attempting == attempting
