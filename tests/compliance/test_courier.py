"""The courier, event by event: who is asked, in which order, and when again."""

from __future__ import annotations

import random

import pytest
from compliance_world import FakeDevice

from pcm_p2p.compliance.carriage import (
    Answered,
    CollectorDown,
    CollectorsKnown,
    CollectorUp,
    Dial,
    Effect,
    Event,
    Gone,
    HandAcks,
    HangUp,
    PeerDown,
    PeerRoute,
    PeerUp,
    Put,
    PutFailed,
    SayRoute,
    Stored,
    Tick,
)
from pcm_p2p.compliance.courier import RECORDS_AT_ONCE_MAX, Courier, CourierLimits
from pcm_p2p.compliance.parcel import Parcel
from pcm_p2p.compliance.record import RecordKey
from pcm_p2p.ids import DeviceId

ME, AUTHOR = FakeDevice("me").id, FakeDevice("author").id
PEERS = [FakeDevice(f"peer {number}").id for number in range(6)]
FIRST, SECOND = FakeDevice("first collector").id, FakeDevice("second collector").id
CUT_OFF = CourierLimits(direct=False)
MINUTE, HOUR = 60_000, 3_600_000


def parcel(seq: int = 1, author: DeviceId = ME, received_from: DeviceId | None = None, size: int = 1_000) -> Parcel:
    return Parcel(bytes([seq]) + bytes(author)[:8], RecordKey(author, 1, seq), size, received_from)


class Play:
    """A courier with a clock that the test sets."""

    def __init__(self, limits: CourierLimits | None = None, seed: int = 1) -> None:
        self.courier = Courier(ME, random.Random(seed), limits)
        self.now_ms = 0

    def __call__(self, *events: Event) -> list[Effect]:
        return [effect for event in events for effect in self.courier.handle(event, self.now_ms)]

    def after(self, wait_ms: int) -> list[Effect]:
        self.now_ms += wait_ms
        return self(Tick())


def puts(effects: list[Effect]) -> list[Put]:
    return [effect for effect in effects if isinstance(effect, Put)]


def connected(play: Play, *parcels: Parcel) -> list[Effect]:
    play(CollectorsKnown((FIRST,)), Stored(parcels))
    return play(CollectorUp(FIRST))


def test_without_anything_to_send_nobody_is_dialled() -> None:
    play = Play()
    assert play(CollectorsKnown((FIRST,))) == []
    assert play(Stored((parcel(),))) == [Dial(FIRST)]
    assert play(Stored((parcel(2),))) == [], "one dial at a time"


def test_a_collector_gets_own_records_before_those_of_others() -> None:
    carried, own = parcel(1, AUTHOR, PEERS[0]), parcel(1)
    (put,) = puts(connected(Play(), carried, own))
    assert put == Put(FIRST, (own.hash, carried.hash), to_collector=True)


def test_a_hand_over_is_bounded_and_one_at_a_time() -> None:
    play = Play()
    many = tuple(parcel(seq, size=500) for seq in range(1, 101))
    (put,) = puts(connected(play, *many))
    assert len(put.hashes) == RECORDS_AT_ONCE_MAX
    assert play(Stored((parcel(200),))) == []
    (rest,) = puts(play(Gone(put.hashes, (ME,)), Answered(FIRST, put.hashes, (True,) * 64)))
    assert rest.hashes == (*(one.hash for one in many[64:]), parcel(200).hash)


def test_a_hand_over_is_bounded_in_bytes_but_a_large_record_goes_alone() -> None:
    play = Play()
    (put,) = puts(connected(play, parcel(1, size=90_000), parcel(2, size=90_000), parcel(3, size=250_000)))
    assert put.hashes == (parcel(1).hash,)
    (put,) = puts(play(Gone(put.hashes, (ME,)), Answered(FIRST, put.hashes, (True,))))
    (put,) = puts(play(Gone(put.hashes, (ME,)), Answered(FIRST, put.hashes, (True,))))
    assert put.hashes == (parcel(3).hash,)


def test_the_route_is_told_once_a_collector_answered_and_again_when_it_is_lost() -> None:
    play = Play()
    play(PeerUp(PEERS[0]))
    (put,) = puts(connected(play, parcel()))
    assert SayRoute(True) in play(Gone(put.hashes, (ME,)), Answered(FIRST, put.hashes, (True,)))
    assert play.courier.route == "direct"
    assert play(PeerUp(PEERS[1])) == [SayRoute(True, PEERS[1])]
    play(Stored((parcel(2),)))
    effects = play(CollectorDown(FIRST))
    assert SayRoute(False) in effects
    assert play.courier.route == "none"


def test_a_connection_without_an_answer_is_no_route() -> None:
    """A refused client sees a successful handshake (mutual TLS 1.3)."""
    play = Play()
    (put,) = puts(connected(play, parcel()))
    assert not play.courier.reachable
    assert SayRoute(True) not in play(PutFailed(FIRST, put.hashes), CollectorDown(FIRST))


def test_an_idle_upload_session_is_closed_and_the_route_is_kept() -> None:
    play = Play()
    (put,) = puts(connected(play, parcel()))
    assert play(Gone(put.hashes, (ME,)), Answered(FIRST, put.hashes, (True,))) == [SayRoute(True)]
    assert play.courier.wake_at_ms == 30_000
    assert play.after(29_999) == []
    assert play.after(1) == [HangUp(FIRST)]
    assert play.courier.reachable
    assert play(Stored((parcel(2),))) == [Dial(FIRST)]


def test_the_next_collector_is_tried_at_once_and_all_of_them_again_later() -> None:
    play = Play()
    play(CollectorsKnown((FIRST, SECOND)), Stored((parcel(),)))
    assert play(CollectorDown(FIRST)) == [Dial(SECOND)]
    assert play(CollectorDown(SECOND)) == []
    assert play.courier.wake_at_ms is not None
    assert 45_000 <= play.courier.wake_at_ms <= 75_000, "the interval, with jitter"
    assert play.after(44_999) == []
    assert play.after(31_000) == [Dial(FIRST)]


def test_a_collector_that_closes_every_session_is_not_dialled_in_a_loop() -> None:
    play = Play()
    play(CollectorsKnown((FIRST,)), Stored((parcel(),)))
    dials = 0
    for _ in range(100):
        effects = play(CollectorUp(FIRST))
        (put,) = puts(effects) or [None]
        if put is not None:
            effects = play(CollectorDown(FIRST), PutFailed(FIRST, put.hashes))
        dials += Dial(FIRST) in effects
    assert dials == 0


def test_what_a_collector_refuses_does_not_hold_up_the_rest() -> None:
    play = Play()
    (put,) = puts(connected(play, parcel(1), parcel(2)))
    play(Gone((parcel(2).hash,), (ME,)), Answered(FIRST, put.hashes, (False, True)))
    (put,) = puts(play(Stored((parcel(3),))))
    assert put.hashes == (parcel(3).hash,)
    play(Gone(put.hashes, (ME,)), Answered(FIRST, put.hashes, (True,)))
    play.after(MINUTE)
    assert play.after(10 * MINUTE) == [Dial(FIRST)], "and is offered again later"


def test_a_record_that_is_taken_but_not_acknowledged_is_offered_again() -> None:
    play = Play()
    (put,) = puts(connected(play, parcel()))
    play(Answered(FIRST, put.hashes, (True,)))
    assert puts(play.after(119_000)) == []
    play(CollectorUp(FIRST))
    assert puts(play.after(1_000)) == [put]


def test_while_a_dial_is_under_way_neighbours_are_left_in_peace() -> None:
    play = Play()
    play(PeerUp(PEERS[0]), PeerRoute(PEERS[0], True), CollectorsKnown((FIRST,)))
    assert play(Stored((parcel(),))) == [Dial(FIRST)]
    assert puts(play(CollectorDown(FIRST))) == [Put(PEERS[0], (parcel().hash,), to_collector=False)]


def test_one_neighbour_with_a_route_is_enough() -> None:
    play = Play(CUT_OFF)
    for peer in PEERS:
        play(PeerUp(peer))
    play(PeerRoute(PEERS[2], True), PeerRoute(PEERS[4], True))
    (put,) = puts(play(Stored((parcel(),))))
    assert put.target in (PEERS[2], PEERS[4])
    assert puts(play(Answered(put.target, put.hashes, (True,)))) == []
    assert play.courier.route == "through 2 neighbours"
    (second,) = puts(play.after(120_000))
    assert {put.target, second.target} == {PEERS[2], PEERS[4]}, "no acknowledgement: the other one"


def test_without_any_route_four_neighbours_keep_a_copy_each() -> None:
    play = Play(CUT_OFF)
    for peer in PEERS:
        play(PeerUp(peer))
    (put,) = puts(play(Stored((parcel(),))))
    targets = []
    while put is not None:
        targets.append(put.target)
        put = next(iter(puts(play(Answered(put.target, put.hashes, (True,))))), None)  # type: ignore[assignment]
    assert len(set(targets)) == len(targets) == 4
    assert puts(play.after(HOUR - 1)) == []
    assert len(puts(play.after(1))) == 1, "copies may have been lost with their holders"


def test_records_of_others_are_handed_on_to_a_route_only() -> None:
    play = Play(CUT_OFF)
    play(PeerUp(PEERS[0]), PeerUp(PEERS[1]), PeerUp(PEERS[2]))
    assert puts(play(Stored((parcel(1, AUTHOR, PEERS[0]),)))) == []
    assert puts(play(PeerRoute(PEERS[2], True))) == [Put(PEERS[2], (parcel(1, AUTHOR).hash,), to_collector=False)]


@pytest.mark.parametrize("source", [PEERS[0], AUTHOR], ids=["its giver", "its author"])
def test_a_record_is_not_offered_back_to(source: DeviceId) -> None:
    play = Play(CUT_OFF)
    play(PeerUp(source))
    assert (
        puts(
            play(
                Stored((parcel(1, AUTHOR, PEERS[0]),)),
            )
        )
        == []
    )
    assert puts(play.after(MINUTE)) == []


def test_a_carrier_that_hears_nothing_asks_the_author_after_an_hour() -> None:
    play = Play(CUT_OFF)
    play(PeerUp(AUTHOR), PeerUp(PEERS[0]))
    assert puts(play(Stored((parcel(1, AUTHOR, PEERS[0]),)))) == []
    (put,) = puts(play.after(HOUR))
    assert put.target == AUTHOR
    assert puts(play(Answered(AUTHOR, put.hashes, (True,)))) == []


def test_a_neighbour_that_refuses_is_passed_over() -> None:
    play = Play(CUT_OFF)
    play(PeerUp(PEERS[0]), PeerUp(PEERS[1]))
    (put,) = puts(play(Stored((parcel(),))))
    (other,) = puts(play(Answered(put.target, put.hashes, (False,))))
    assert other.target != put.target
    assert puts(play(Answered(other.target, other.hashes, (True,)))) == []
    assert [one.target for one in puts(play.after(10 * MINUTE))] == [put.target]


def test_a_neighbour_that_fails_is_left_alone_for_longer_each_time() -> None:
    play = Play(CUT_OFF)
    play(PeerUp(PEERS[0]))
    (put,) = puts(play(Stored((parcel(),))))
    waits = []
    for _ in range(12):
        assert puts(play(PutFailed(put.target, put.hashes))) == []
        assert play.courier.wake_at_ms is not None
        waits.append(play.courier.wake_at_ms - play.now_ms)
        (put,) = puts(play.after(waits[-1]))
    assert 1_000 <= waits[0] <= 2_000
    assert 150_000 <= waits[-1] <= 300_000


def test_a_hand_over_that_fails_goes_to_the_next_neighbour() -> None:
    play = Play(CUT_OFF)
    play(PeerUp(PEERS[0]), PeerUp(PEERS[1]), PeerRoute(PEERS[0], True), PeerRoute(PEERS[1], True))
    (put,) = puts(play(Stored((parcel(),))))
    (other,) = puts(play(PutFailed(put.target, put.hashes)))
    assert other.target != put.target


def test_an_acknowledgement_goes_back_along_the_way_of_the_record() -> None:
    play = Play()
    play(PeerUp(PEERS[0]))
    carried = parcel(1, AUTHOR, PEERS[0])
    connected(play, carried)
    assert HandAcks(PEERS[0], (AUTHOR,)) in play(Gone((carried.hash,), (AUTHOR,)))
    assert HandAcks(AUTHOR, (AUTHOR,)) in play(PeerUp(AUTHOR)), "to those who were away when they come back"
    assert play(PeerDown(AUTHOR), PeerUp(AUTHOR)) == [SayRoute(False, AUTHOR)], "once"


def test_those_who_hold_a_copy_of_mine_hear_of_its_acknowledgement() -> None:
    play = Play(CUT_OFF)
    play(PeerUp(PEERS[0]))
    (put,) = puts(play(Stored((parcel(),))))
    play(Answered(PEERS[0], put.hashes, (True,)))
    assert play(Gone(put.hashes, (ME,))) == [HandAcks(PEERS[0], (ME,))]


def test_what_expires_or_is_numbered_anew_is_nobodys_news() -> None:
    play = Play(CUT_OFF)
    play(PeerUp(PEERS[0]), Stored((parcel(1, AUTHOR, PEERS[0]),)))
    assert play(Gone((parcel(1, AUTHOR).hash,))) == []


def test_authors_choose_different_neighbours() -> None:
    chosen = set()
    for number in range(30):
        me = FakeDevice(f"device {number}").id
        courier = Courier(me, random.Random(1), CUT_OFF)
        for peer in PEERS:
            courier.handle(PeerUp(peer), 0)
            courier.handle(PeerRoute(peer, True), 0)
        chosen.add(puts(courier.handle(Stored((parcel(1, me),)), 0))[0].target)
    assert len(chosen) >= 5


def test_a_route_is_told_again_and_one_told_before_its_session_is_remembered() -> None:
    play = Play()
    play(PeerUp(PEERS[0]))
    (put,) = puts(connected(play, parcel()))
    play(Gone(put.hashes, (ME,)), Answered(FIRST, put.hashes, (True,)))
    play.after(30_000)
    assert play.courier.wake_at_ms == 600_000
    assert play.after(570_000) == [SayRoute(True)]
    early = Play(CUT_OFF)
    early(PeerRoute(PEERS[0], True), PeerUp(PEERS[0]))
    assert early.courier.route == "through 1 neighbour"
    early(PeerDown(PEERS[0]), PeerUp(PEERS[0]))
    assert early.courier.route == "none", "a new session says it anew"


def test_a_courier_is_deterministic() -> None:
    def trace() -> list[Effect]:
        play = Play(CUT_OFF, seed=3)
        effects = [effect for peer in PEERS for effect in play(PeerUp(peer))]
        effects += play(Stored(tuple(parcel(seq) for seq in range(1, 20))))
        effects += play(PutFailed(PEERS[0], (parcel(1).hash,)))
        return effects + play.after(5_000)

    assert trace() == trace()
