"""Rules of ownership one by one, on the core alone."""

from __future__ import annotations

import random

import pytest

from pcm_p2p.ids import DeviceId, ManifestId
from pcm_p2p.swarm import rendezvous
from pcm_p2p.swarm.claims import LEASE_MS_FIRST, LEASE_MS_MAX, QUIET_MS
from pcm_p2p.swarm.events import (
    AbortSegment,
    Broadcast,
    ClaimHeard,
    Effect,
    FailureHeard,
    Paused,
    PeerDown,
    PeerUp,
    Resumed,
    SegmentDone,
    SegmentFailedHere,
    SegmentProgress,
    Send,
    StartSegment,
    Tick,
)
from pcm_p2p.swarm.holdings import OfficeHoldings
from pcm_p2p.swarm.ownership import Ownership
from pcm_p2p.swarm.prices import SegmentRun
from pcm_p2p.swarm.settling import MEET_MS, SETTLE_MS_MAX
from pcm_p2p.swarm.troubles import REST_MS_MAX
from pcm_p2p.swarm.turns import LADDER_MS, Slots
from pcm_p2p.wire.messages import Claim, ClaimedSegment, SegmentFailed

ME, YOU, THIRD = (DeviceId(bytes([number]) * 16) for number in (1, 2, 3))
MANIFEST = ManifestId(bytes(32))
SETTLED_MS = 60_000


def runs(count: int = 4) -> list[SegmentRun]:
    """Segments of two chunks each."""
    return [SegmentRun(index, bytes([index]) * 32, 0b11 << 2 * index) for index in range(count)]


class Office:
    """An ownership with its holdings, and the time."""

    def __init__(self, *, peers: tuple[DeviceId, ...] = (YOU,), weight: int = 8, count: int = 4) -> None:
        self.holdings = OfficeHoldings(2 * count)
        self.slots = Slots()
        self.now_ms = SETTLED_MS
        self.core = Ownership(
            ME,
            weight,
            MANIFEST,
            runs(count),
            self.holdings,
            self.slots,
            random.Random(1),
            settle_ms=3_000,
            started_ms=0,
            roster_changed_ms=0,
            now_ms=self.now_ms,
        )
        for peer in peers:
            self.core.meet(peer, 8)
            self.holdings.peer_holds(peer, 0)
        self.now_ms += MEET_MS

    def tick(self, ms: int = 0) -> list[Effect]:
        self.now_ms += ms
        return self.core.handle(Tick(), self.now_ms)

    def pass_time(self, ms: int, step_ms: int = 100) -> list[Effect]:
        """All effects while nothing happens but time."""
        effects: list[Effect] = []
        for _ in range(0, ms, step_ms):
            effects += self.tick(step_ms)
        return effects

    def hear(
        self, claimant: DeviceId, *segments: tuple[int, int], lease_ms: int = 5_000, hops: int = 1
    ) -> list[Effect]:
        claimed = tuple(ClaimedSegment(index, done_pct) for index, done_pct in segments)
        return self.core.handle(ClaimHeard(claimant, claimant, hops, lease_ms, claimed), self.now_ms)

    def start_mine(self) -> int:
        """Let time pass until a segment is started; returns its index."""
        effects = self.pass_time(1_000)
        return next(effect.index for effect in effects if isinstance(effect, StartSegment))


def starts(effects: list[Effect]) -> list[int]:
    return [effect.index for effect in effects if isinstance(effect, StartSegment)]


def aborts(effects: list[Effect]) -> list[int]:
    return [effect.index for effect in effects if isinstance(effect, AbortSegment)]


def claims(effects: list[Effect]) -> list[Claim]:
    return [effect.message for effect in effects if isinstance(effect, Broadcast) and isinstance(effect.message, Claim)]


def owner_of(index: int, peers: tuple[DeviceId, ...] = (ME, YOU)) -> DeviceId:
    return rendezvous.ranking(dict.fromkeys(peers, 8), runs()[index].key)[0]


def test_two_devices_own_every_segment_between_them() -> None:
    mine = [index for index in range(4) if owner_of(index) == ME]
    assert 0 < len(mine) < 4
    office = Office()
    assert set(starts(office.pass_time(200))) <= set(mine)


def test_a_device_without_neighbours_waits_for_ten_seconds_from_its_start() -> None:
    core = Ownership(
        ME, 8, MANIFEST, runs(), OfficeHoldings(8), Slots(), random.Random(1),
        settle_ms=3_000, started_ms=1_000, roster_changed_ms=1_000, now_ms=2_000,
    )  # fmt: skip
    assert starts(core.handle(Tick(), 1_000 + SETTLE_MS_MAX - 1)) == []
    assert "looking for neighbours" in core.waiting(5_000)
    assert core.next_ms <= 2_000 + SETTLE_MS_MAX
    started = [index for ms in range(0, 300, 50) for index in starts(core.handle(Tick(), 2_000 + SETTLE_MS_MAX + ms))]
    assert len(started) == 2


def test_a_roster_that_keeps_changing_is_waited_for_but_not_for_ever() -> None:
    core = Ownership(
        ME, 8, MANIFEST, runs(), OfficeHoldings(8), Slots(), random.Random(1),
        settle_ms=3_000, started_ms=0, roster_changed_ms=0, now_ms=0,
    )  # fmt: skip
    for second in range(10):
        peer = DeviceId(bytes([9, second]) * 8)
        assert starts(core.handle(PeerUp(peer, 8), second * 1_000)) == []
    started = [index for ms in range(10_000, 10_300, 50) for index in starts(core.handle(Tick(), ms))]
    assert started


def test_a_claim_keeps_others_away_whatever_their_rank() -> None:
    office = Office()
    office.hear(YOU, *((index, 1) for index in range(4)))
    assert starts(office.pass_time(1_000)) == []
    assert "fetches it" in office.core.waiting_for(0, office.now_ms)


def test_a_claim_is_announced_at_once_renewed_each_second_and_withdrawn() -> None:
    office = Office()
    index = office.start_mine()
    renewals = claims(office.pass_time(5_000))
    assert 4 <= len(renewals) <= 6
    assert all(index in [segment.index for segment in claim.segments] for claim in renewals)
    effects = office.core.handle(SegmentDone(index), office.now_ms)
    last = claims(effects)[-1]
    assert index not in [segment.index for segment in last.segments]


def test_a_neighbour_that_wants_it_later_is_told_what_i_fetch() -> None:
    office = Office()
    assert office.core.tell(THIRD, office.now_ms) == []
    index = office.start_mine()
    [told] = office.core.tell(THIRD, office.now_ms)
    assert isinstance(told, Send)
    assert isinstance(told.message, Claim)
    assert index in [segment.index for segment in told.message.segments]


def test_a_newcomer_is_told_what_i_fetch() -> None:
    office = Office()
    index = office.start_mine()
    effects = office.core.handle(PeerUp(THIRD, 8), office.now_ms)
    told = [effect for effect in effects if isinstance(effect, Send)]
    assert [effect.device for effect in told] == [THIRD]
    assert isinstance(told[0].message, Claim)
    assert index in [segment.index for segment in told[0].message.segments]


@pytest.mark.parametrize(
    ("my_pct", "your_pct", "aborted"), [(30, 60, True), (60, 30, False), (30, 39, None), (5, 5, None), (99, 20, False)]
)
def test_of_crossed_claims_the_one_ahead_goes_on(my_pct: int, your_pct: int, aborted: bool | None) -> None:
    office = Office()
    index = office.start_mine()
    office.core.handle(SegmentProgress(index, my_pct), office.now_ms)
    effects = office.hear(YOU, (index, your_pct))
    key = runs()[index].key
    expected = rendezvous.cost(YOU, key) < rendezvous.cost(ME, key) if aborted is None else aborted
    assert (index in aborts(effects)) == expected


def test_never_do_both_abort() -> None:
    """Each sees the other's progress as it was, which is never more than it is."""
    rng = random.Random(3)
    one, two = (
        Ownership(
            device, 8, MANIFEST, runs(), OfficeHoldings(8), Slots(), rng,
            settle_ms=3_000, started_ms=0, roster_changed_ms=0, now_ms=0,
        )
        for device in (ME, YOU)
    )  # fmt: skip
    for _ in range(2_000):
        mine, yours = rng.randrange(100), rng.randrange(100)
        mine_told, yours_told = mine - min(mine, rng.randrange(30)), yours - min(yours, rng.randrange(30))
        lose_one = one._loses(0, mine, YOU, yours_told)
        lose_two = two._loses(0, yours, ME, mine_told)
        assert not (lose_one and lose_two)


def test_a_segment_being_decoded_is_not_aborted() -> None:
    office = Office()
    index = office.start_mine()
    office.core.handle(SegmentProgress(index, 100), office.now_ms)
    office.holdings.peer_holds(YOU, office.holdings.full)
    office.holdings.proven.add(YOU)
    assert index not in aborts(office.pass_time(2_000))


def test_holdings_abort_a_fetch_once_the_holder_has_delivered() -> None:
    office = Office()
    index = office.start_mine()
    office.holdings.peer_holds(YOU, office.holdings.full)
    assert aborts(office.pass_time(2_000)) == [], "a boast stops nothing"
    office.holdings.proven.add(YOU)
    assert index in aborts(office.pass_time(2_000))
    assert office.slots.taken == 0


def test_nothing_is_started_that_a_neighbour_says_it_holds() -> None:
    office = Office()
    office.holdings.peer_holds(YOU, office.holdings.full)
    assert starts(office.pass_time(60_000, 1_000)) == []


def test_claims_that_are_not_renewed_lapse() -> None:
    office = Office()
    office.hear(YOU, *((index, 1) for index in range(4)))
    assert starts(office.pass_time(QUIET_MS - 1_000)) == []
    assert starts(office.pass_time(3_000)) != []


def test_a_claim_without_progress_lapses_and_counts_again_only_with_progress() -> None:
    office = Office(count=1)
    for _ in range(LEASE_MS_FIRST // 1_000 + 2):
        effects = office.hear(YOU, (0, 0)) + office.tick(1_000)
        if starts(effects):
            break
    assert office.core.claimants(0) == {}
    office.hear(YOU, (0, 0))
    assert office.core.claimants(0) == {}
    office.hear(YOU, (0, 1))
    assert office.core.claimants(0) == {YOU: 1}


def test_a_liar_cannot_ask_for_more_patience_than_the_ceiling() -> None:
    office = Office(count=1)
    office.core.meet(THIRD, 8)
    waited_ms = 0
    while not starts(office.hear(YOU, (0, 1), lease_ms=2**32 - 1) + office.tick(1_000)):
        waited_ms += 1_000
        assert waited_ms <= LEASE_MS_MAX + 2 * LADDER_MS


def test_two_lapses_are_weight_0_for_ten_minutes() -> None:
    office = Office()
    office.hear(YOU, (0, 1), (1, 1))
    office.pass_time(QUIET_MS + 1_000)
    office.hear(YOU, (2, 50), (3, 50))
    assert office.core.claimants(2) == {}
    office.pass_time(600_000, 10_000)
    office.hear(YOU, (2, 60), (3, 60))
    assert office.core.claimants(2) == {YOU: 60}


def test_a_session_that_ends_opens_its_claims_at_once() -> None:
    office = Office()
    office.hear(YOU, *((index, 50) for index in range(4)))
    office.holdings.peer_left(YOU)
    effects = office.core.handle(PeerDown(YOU), office.now_ms) + office.pass_time(200)
    assert starts(effects) != []


def test_an_idle_fetcher_steals_from_a_busy_owner_soon_and_from_a_silent_one_late() -> None:
    yours = [index for index in range(4) if owner_of(index) == YOU]
    office = Office()
    for index in range(4):
        if owner_of(index) == ME:
            office.holdings.gain(runs()[index].bits)
    assert starts(office.pass_time(LADDER_MS - 200)) == []
    assert starts(office.pass_time(1_000)) != []
    busy = Office()
    for index in range(4):
        if owner_of(index) == ME:
            busy.holdings.gain(runs()[index].bits)
    busy.hear(YOU, (yours[0], 10))
    assert set(starts(busy.pass_time(400))) <= set(yours[1:])


def test_a_failure_is_told_rests_the_segment_and_lets_others_go_first() -> None:
    office = Office()
    index = office.start_mine()
    effects = office.core.handle(SegmentFailedHere(index, "answers 503", 1_000, whole_origin=True), office.now_ms)
    told = [effect.message for effect in effects if isinstance(effect, Broadcast)]
    assert isinstance(told[0], SegmentFailed)
    assert told[0].reason == "answers 503"
    assert isinstance(told[1], Claim), "the claim ends after the failure is told"
    assert "503" in office.core.waiting(office.now_ms)
    assert starts(office.pass_time(told[0].wait_ms - 200)) == [], "the whole origin rests"


def test_failures_of_others_count_only_for_what_they_claimed_and_only_so_long() -> None:
    office = Office(count=1)
    office.core.handle(FailureHeard(YOU, 0, "made up", 2**31), office.now_ms)
    assert starts(office.pass_time(LADDER_MS + 1_000)) == [0]
    other = Office(count=1)
    other.hear(YOU, (0, 1))
    other.core.handle(FailureHeard(YOU, 0, "answers 404", 2**31), other.now_ms)
    assert starts(other.pass_time(1_000)) == []
    assert "answers 404" in other.core.waiting(other.now_ms)
    assert starts(other.pass_time(REST_MS_MAX + 1_000, 1_000)) == [0]


def test_a_paused_device_drops_its_segments_and_starts_none() -> None:
    office = Office()
    index = office.start_mine()
    effects = office.core.handle(Paused("paused: disk full"), office.now_ms)
    assert index in aborts(effects)
    assert claims(effects)[-1].segments == ()
    assert starts(office.pass_time(10_000)) == []
    assert office.core.waiting(office.now_ms) == "paused: disk full"
    assert starts(office.core.handle(Resumed(), office.now_ms) + office.pass_time(1_000)) != []


def test_weight_0_starts_nothing_and_says_why() -> None:
    office = Office(weight=0, peers=())
    assert starts(office.pass_time(60_000, 1_000)) == []
    assert "wan_weight" in office.core.waiting(office.now_ms)


def test_slots_are_shared_over_manifests() -> None:
    office = Office(peers=())
    office.slots.taken = 1
    assert len(starts(office.pass_time(500))) == 1
    assert office.slots.taken == 2


def test_a_part_on_disk_is_gone_on_with_first_and_claimed_with_its_progress() -> None:
    theirs = next(index for index in range(4) if owner_of(index) == YOU)
    core = Ownership(
        ME, 8, MANIFEST, runs(), OfficeHoldings(8), Slots(), random.Random(1),
        settle_ms=3_000, started_ms=0, roster_changed_ms=0, now_ms=SETTLED_MS, partial_pct={theirs: 40},
    )  # fmt: skip
    effects = core.handle(Tick(), SETTLED_MS)
    assert starts(effects)[0] == theirs
    assert ClaimedSegment(theirs, 40) in claims(effects)[-1].segments


def test_a_claim_heard_first_hand_is_relayed_once_and_only_when_it_changes() -> None:
    office = Office(peers=(YOU, THIRD))
    relayed = claims(office.hear(YOU, (0, 1)))
    assert [claim.hops for claim in relayed] == [0]
    assert claims(office.hear(YOU, (0, 2))) == []
    assert len(claims(office.hear(YOU, (0, 2), (1, 0)))) == 1
    stranger = DeviceId(bytes([7]) * 16)
    second_hand = ClaimHeard(THIRD, stranger, 0, 5_000, (ClaimedSegment(2, 1),))
    assert claims(office.core.handle(second_hand, office.now_ms)) == []
    assert office.core.claimants(2) == {stranger: 1}


def test_who_relays_claims_that_nobody_keeps_is_suspended() -> None:
    office = Office(peers=(YOU, THIRD))
    for number in range(2):
        ghost = DeviceId(bytes([50 + number]) * 16)
        office.core.handle(ClaimHeard(THIRD, ghost, 0, 5_000, (ClaimedSegment(number, 1),)), office.now_ms)
    office.pass_time(62_000, 1_000)
    ghost = DeviceId(bytes([60]) * 16)
    office.core.handle(ClaimHeard(THIRD, ghost, 0, 5_000, (ClaimedSegment(2, 1),)), office.now_ms)
    assert ghost not in office.core.claimants(2)


def test_a_device_that_stalls_stops_asking_for_patience() -> None:
    office = Office(peers=())
    index = office.start_mine()
    for _ in range(20):
        office.tick(1_000)
        office.core.handle(SegmentProgress(index, 0), office.now_ms)
    assert claims(office.pass_time(1_100))[-1].lease_ms > 60_000, "slow, but moving"
    assert claims(office.pass_time(5_000))[-1].lease_ms == 5_000
