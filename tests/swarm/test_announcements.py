"""What neighbours announce: there and back, and noise."""

from __future__ import annotations

import contextlib
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import make_manifest

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.announcements import (
    claim_message,
    drop_messages,
    failure_message,
    have_messages,
    holdings_message,
    manifest_named_untrusted,
    read_untrusted,
)
from pcm_p2p.swarm.conduct import Conduct
from pcm_p2p.swarm.events import ClaimHeard, FailureHeard, PeerDropped, PeerGained, PeerHolds, PeerUp
from pcm_p2p.swarm.exchange import Exchange
from pcm_p2p.swarm.picker import Budget
from pcm_p2p.swarm.turns import Slots
from pcm_p2p.wire.messages import AnyMessage, Claim, ClaimedSegment, Drop, Have, Holdings, Message, Ping, SegmentFailed

MANIFEST = make_manifest(40 << 20)
ID = MANIFEST.manifest_id
COUNT = len(MANIFEST.sizes)
YOU, OTHER = DeviceId(bytes([2]) * 16), DeviceId(bytes([3]) * 16)


def over_the_wire(message: Message) -> Message:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=AnyMessage)


def test_each_message_comes_back_as_its_event() -> None:
    claimed = (ClaimedSegment(0, 5), ClaimedSegment(1, 100))
    table = [
        (holdings_message(ID, COUNT, 0b1011), PeerHolds(YOU, 0b1011)),
        (holdings_message(ID, COUNT, 1, keeps=True), PeerHolds(YOU, 1, keeps=True)),
        (holdings_message(ID, COUNT, 1, lacks_gzip=True), PeerHolds(YOU, 1, lacks_gzip=True)),
        (next(have_messages(ID, [3, 1])), PeerGained(YOU, (3, 1))),
        (next(drop_messages(ID, [7])), PeerDropped(YOU, (7,))),
        (claim_message(ID, YOU, 5_000, claimed), ClaimHeard(YOU, YOU, 1, 5_000, claimed)),
        (claim_message(ID, OTHER, 5_000, claimed, hops=0), ClaimHeard(YOU, OTHER, 0, 5_000, claimed)),
        (failure_message(ID, 1, "answers 404", 2_000), FailureHeard(YOU, 1, "answers 404", 2_000)),
    ]
    for message, event in table:
        received = over_the_wire(message)
        assert manifest_named_untrusted(received) == ID
        assert read_untrusted(YOU, received, MANIFEST) == event
    assert manifest_named_untrusted(Ping(1)) is None


def test_announcements_are_over_all_zones_of_the_table() -> None:
    manifest = make_manifest(8 << 20, deltas=(0.1,), layouts=True)
    count = len(manifest.table_sizes)
    assert count > len(manifest.sizes)
    everything = (1 << count) - 1
    assert read_untrusted(YOU, holdings_message(ID, count, everything), manifest) == PeerHolds(YOU, everything)
    assert read_untrusted(YOU, next(have_messages(ID, [count - 1])), manifest) == PeerGained(YOU, (count - 1,))
    for message in (holdings_message(ID, len(manifest.sizes), 0), next(have_messages(ID, [count]))):
        with pytest.raises(UntrustedBytes):
            read_untrusted(YOU, message, manifest)


def test_long_lists_are_cut_into_messages_that_fit() -> None:
    messages = [over_the_wire(message) for message in have_messages(ID, range(10_000))]
    assert [len(message.positions) for message in messages if isinstance(message, Have)] == [4_096, 4_096, 1_808]
    many = tuple(ClaimedSegment(index, 0) for index in range(300))
    assert len(claim_message(ID, YOU, 1, many).segments) == 256
    over_the_wire(failure_message(ID, 0, "x" * 5_000, 1))


@pytest.mark.parametrize(
    "message",
    [
        Holdings(ID, COUNT + 1, bytes((COUNT + 8) // 8)),
        Holdings(ID, COUNT, b""),
        Holdings(ID, COUNT, b"\xff" * ((COUNT + 7) // 8)),
        Have(ID, (COUNT,)),
        Drop(ID, (2**32 - 1,)),
        Claim(ID, YOU, 1, 1, (ClaimedSegment(99, 1),)),
        Claim(ID, YOU, 1, 1, (ClaimedSegment(0, 1), ClaimedSegment(0, 2))),
        Claim(ID, OTHER, 1, 1, ()),
        SegmentFailed(ID, 99, "x", 1),
        Ping(1),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_does_not_fit_the_manifest_is_refused(message: Message) -> None:
    assert COUNT % 8, "the last case of holdings needs unused bits"
    with pytest.raises(UntrustedBytes):
        read_untrusted(YOU, message, MANIFEST)


def test_reasons_of_others_are_fit_for_a_terminal() -> None:
    event = read_untrusted(YOU, SegmentFailed(ID, 0, "\x1b[31mred\n" + "x" * 240, 1), MANIFEST)
    assert isinstance(event, FailureHeard)
    assert "\x1b" not in event.reason
    assert "\n" not in event.reason
    assert len(event.reason) <= 200


positions = st.lists(st.integers(0, 2**32 - 1), max_size=8).map(tuple)
segments = st.lists(st.builds(ClaimedSegment, st.integers(0, 5), st.integers(0, 100)), max_size=4).map(tuple)
noise = st.one_of(
    st.builds(Holdings, st.just(bytes(ID)), st.integers(0, COUNT + 2), st.binary(max_size=COUNT // 8 + 2)),
    st.builds(Have, st.just(bytes(ID)), positions),
    st.builds(Have, st.just(bytes(ID)), st.lists(st.integers(0, COUNT - 1), max_size=8).map(tuple)),
    st.builds(Drop, st.just(bytes(ID)), st.lists(st.integers(0, COUNT - 1), max_size=8).map(tuple)),
    st.builds(
        Claim,
        st.just(bytes(ID)),
        st.binary(min_size=16, max_size=16),
        st.integers(0, 1),
        st.integers(0, 2**32 - 1),
        segments,
    ),
    st.builds(Claim, st.just(bytes(ID)), st.just(bytes(YOU)), st.just(1), st.integers(0, 2**32 - 1), segments),
    st.builds(SegmentFailed, st.just(bytes(ID)), st.integers(0, 5), st.text(max_size=20), st.integers(0, 2**32 - 1)),
)


@settings(max_examples=200)
@given(noise)
def test_noise_is_an_event_or_untrusted_bytes(message: Message) -> None:
    with contextlib.suppress(UntrustedBytes):
        read_untrusted(YOU, message, MANIFEST)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 30_000), noise), max_size=40))
def test_an_exchange_survives_any_announcements_and_stays_bounded(steps: list[tuple[int, Message]]) -> None:
    exchange = Exchange(
        MANIFEST, 0, DeviceId(bytes(16)), weight=8, conduct=Conduct(), slots=Slots(), budget=Budget(), rng=random.Random(1),
        settle_ms=3_000, started_ms=0, roster_changed_ms=0, now_ms=0,
    )  # fmt: skip
    now_ms = 0
    exchange.handle(PeerUp(YOU, 8), now_ms)
    for wait_ms, message in steps:
        now_ms += wait_ms
        effects = exchange.receive_untrusted(YOU, message, now_ms)
        assert len(effects) < 50
        assert exchange.next_ms <= now_ms + 60_000
    assert exchange.receive_untrusted(OTHER, holdings_message(ID, COUNT, 1), now_ms) == [], "a stranger is not heard"
