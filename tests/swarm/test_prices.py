"""Prices: which way of a run is taken, on the core alone; and what ownership makes of it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation import make_manifest

from pcm_p2p.ids import DeviceId, ManifestId
from pcm_p2p.swarm.claims import LEASE_MS_DECODE, LEASE_MS_FIRST, RESTARTS_MAX, Claims
from pcm_p2p.swarm.events import (
    AbortSegment,
    BaseRefused,
    Broadcast,
    ClaimHeard,
    Effect,
    Event,
    FailureHeard,
    SegmentFailedHere,
    SegmentProgress,
    StartSegment,
    Tick,
)
from pcm_p2p.swarm.fetching import BASE_LEASE_MS, BASE_STALL_MS
from pcm_p2p.swarm.holdings import OfficeHoldings, bits_of, positions_of
from pcm_p2p.swarm.ownership import Ownership
from pcm_p2p.swarm.prices import (
    BASE_GRACE_MS,
    BASE_MOVED_MS,
    BASE_WAIT_MS,
    BASE_WAIT_MS_MAX,
    FAILED_ELSEWHERE,
    SWITCHES_MAX,
    Grace,
    Prices,
    SegmentRun,
    Way,
    runs_of,
)
from pcm_p2p.swarm.settling import SETTLE_MS_MAX
from pcm_p2p.swarm.troubles import Troubles
from pcm_p2p.swarm.turns import Slots, Turns
from pcm_p2p.wire.messages import Claim, ClaimedSegment, SegmentFailed

ME, YOU, THIRD = (DeviceId(bytes([number]) * 16) for number in (1, 2, 3))
MANIFEST = ManifestId(bytes(32))
# Positions: 0 and 1 are the run's chunks, 2 to 5 base chunks, 6 a layout.
NEAR, FAR, FULL = Way(1, 100, 0b001100, 0), Way(2, 300, 0b110000, 1), Way(0, 1_000)
RUN = SegmentRun(0, bytes(32), 0b11, (NEAR, FAR, FULL))
AIDS = 0b1111100


def prices_of(*runs: SegmentRun, mine: int = 0, lan: int = 0, partial: dict[int, int] | None = None) -> Prices:
    holdings = OfficeHoldings(7, mine)
    holdings.peer_holds(YOU, lan)
    return Prices(runs or (RUN,), holdings, partial)


@pytest.mark.parametrize(
    ("mine", "lan", "partial", "best"),
    [
        (0, 0, {}, FULL),
        (0b001100, 0, {}, NEAR),
        (0, 0b001100, {}, NEAR),
        (0b001000, 0b000100, {}, NEAR),
        (0b001000, 0, {}, FULL),
        (0b110000, 0, {}, FAR),
        (0b111100, 0, {}, NEAR),
        (0b111100, 0, {2: 70}, FAR),
        (0b111100, 0, {0: 95}, FULL),
        (0b111100, 0, {0: 90}, NEAR),
    ],
    ids=[
        "nothing",
        "mine",
        "a neighbour's",
        "both together",
        "a hole",
        "the farther one",
        "both",
        "a part of the farther one",
        "most of the full one",
        "as much left: the smaller blob",
    ],
)
def test_the_way_with_the_fewest_bytes_left_is_best(mine: int, lan: int, partial: dict[int, int], best: Way) -> None:
    assert prices_of(mine=mine, lan=lan, partial=partial).best(0) is best


def test_a_delta_that_failed_here_is_not_tried_again() -> None:
    prices = prices_of(mine=0b111100)
    prices.fail(NEAR.segment, "it does not decode")
    assert prices.best(0) is FAR
    assert prices.why_not(NEAR.segment) == "it does not decode"
    prices.fail(FAR.segment, "nor does this")
    assert prices.best(0) is FULL


def test_one_neighbour_cannot_talk_a_delta_away_and_two_can() -> None:
    prices = prices_of(mine=0b111100)
    for _ in range(FAILED_ELSEWHERE + 3):
        prices.failed_elsewhere(YOU, NEAR.segment)
    assert prices.best(0) is NEAR
    prices.failed_elsewhere(THIRD, NEAR.segment)
    assert prices.best(0) is FAR
    for device in (YOU, THIRD):
        prices.failed_elsewhere(device, FULL.segment)
    assert prices.why_not(FULL.segment) == ""


def test_another_way_has_to_be_much_cheaper_than_what_is_left() -> None:
    prices = prices_of(mine=0b111100)
    assert prices.cheaper(0, FULL, 0) is NEAR
    assert prices.cheaper(0, FULL, 79) is NEAR
    assert prices.cheaper(0, FULL, 81) is None
    assert prices.cheaper(0, NEAR, 0) is None
    assert prices.cheaper(0, FAR, 30) is NEAR


def test_the_bill_of_a_run_that_is_here_stays_what_it_was() -> None:
    holdings = OfficeHoldings(7)
    prices = Prices([RUN], holdings)
    assert prices.needed_bytes() == FULL.size_bytes
    holdings.peer_holds(YOU, NEAR.base)
    assert prices.needed_bytes() == NEAR.size_bytes
    holdings.gain(RUN.bits)
    holdings.peer_left(YOU)
    assert prices.needed_bytes() == NEAR.size_bytes


def test_what_the_office_lacks_of_a_base_is_asked_for_while_it_matters() -> None:
    near, far = (Way(way.segment, way.size_bytes, way.base, way.of, rebuildable=True) for way in (NEAR, FAR))
    run = SegmentRun(0, bytes(32), 0b11, (near, far, FULL))
    holdings = OfficeHoldings(7, 0b000100)
    prices = Prices([run], holdings)
    assert prices.bases_missing() == {0: 0b001000, 1: 0b110000}
    prices.fail(far.segment, "no use")
    assert prices.bases_missing() == {0: 0b001000}
    holdings.peer_holds(YOU, 0b001000)
    assert prices.bases_missing() == {}
    holdings.peer_left(YOU)
    holdings.gain(0b11)
    assert prices.bases_missing() == {}, "the run is here"
    assert prices_of().bases_missing() == {}, "there is no layout"


def test_the_runs_of_a_manifest_name_their_ways() -> None:
    manifest = make_manifest(40 << 20, deltas=(0.1, 0.03), layouts=True)
    runs = runs_of(manifest)
    fulls, layouts = list(manifest.full_segments()), list(manifest.layout_segments())
    assert [run.index for run in runs] == [index for index, _ in (*fulls, *layouts)]
    assert [run.aid for run in runs] == [False] * len(fulls) + [True] * len(layouts)
    for run in runs[: len(fulls)]:
        assert [way.of for way in run.ways] == [1, 0, -1], "smallest blob first"
        for way in run.ways:
            segment = manifest.segments[way.segment]
            assert (tuple(positions_of(run.bits)), segment.size) == (tuple(segment.positions), way.size_bytes)
            assert way.base == bits_of(segment.base)
            assert way.rebuildable == (way.of >= 0)
    assert [positions_of(run.bits).__next__() for run in runs[len(fulls) :]] == [row.first for row in manifest.layouts]


positions = st.integers(0, 23)
ways = st.lists(st.tuples(st.sets(positions, min_size=1, max_size=6), st.integers(1, 900)), max_size=4)


@given(
    ways=ways,
    mine=st.sets(positions),
    lan=st.sets(positions),
    failed=st.sets(st.integers(1, 4)),
    partial=st.dictionaries(st.integers(0, 4), st.integers(0, 99)),
)
def test_no_usable_way_is_ever_cheaper_than_the_one_taken(
    ways: list[tuple[set[int], int]], mine: set[int], lan: set[int], failed: set[int], partial: dict[int, int]
) -> None:
    full = Way(0, 1_000)
    deltas = [Way(at + 1, size, bits_of(base), at) for at, (base, size) in enumerate(ways)]
    holdings = OfficeHoldings(24, bits_of(mine))
    holdings.peer_holds(YOU, bits_of(lan))
    prices = Prices([SegmentRun(0, bytes(32), 1, (*deltas, full))], holdings, partial)
    for segment in failed:
        prices.fail(segment, "failed")
    left = {way.segment: way.size_bytes * (100 - partial.get(way.segment, 0)) // 100 for way in (*deltas, full)}
    usable = [0] + [
        way.segment
        for way, (base, _) in zip(deltas, ways, strict=True)
        if base <= mine | lan and way.segment not in failed
    ]
    best = prices.best(0)
    assert best.segment in usable
    assert left[best.segment] == min(left[segment] for segment in usable)
    assert all((prices.why_not(segment) == "") == (segment in usable) for segment in left)
    other = prices.cheaper(0, full, 50)
    assert other is None or 2 * prices.left_bytes(other) <= 500


def test_grace_ends_soon_without_signs_and_goes_on_while_chunks_turn_up() -> None:
    holdings = OfficeHoldings(7)
    grace = Grace(AIDS, holdings)
    assert grace.until_ms(1_000, signs=False, now_ms=1_000) == 1_000 + BASE_GRACE_MS
    assert grace.until_ms(1_000, signs=True, now_ms=2_000) == 1_000 + BASE_WAIT_MS
    holdings.peer_holds(YOU, 0b100)
    assert grace.until_ms(1_000, signs=True, now_ms=20_000) == 20_000 + BASE_MOVED_MS
    holdings.peer_holds(YOU, 0b011)
    assert grace.until_ms(1_000, signs=True, now_ms=23_000) == 20_000 + BASE_MOVED_MS, (
        "chunks of the release say nothing"
    )
    holdings.peer_holds(YOU, 0b1111100)
    assert grace.until_ms(1_000, signs=True, now_ms=119_000) == 1_000 + BASE_WAIT_MS_MAX


class Office:
    """An ownership of one run, alone with a neighbour that may hold bases; and the time."""

    def __init__(self, *, lan: int = 0, runs: tuple[SegmentRun, ...] = (RUN,)) -> None:
        self.holdings = OfficeHoldings(7, 0, 0b11)
        self.now_ms = 60_000
        self.core = Ownership(
            ME, 8, MANIFEST, runs, self.holdings, Slots(), random.Random(1),
            settle_ms=3_000, started_ms=0, roster_changed_ms=0, now_ms=self.now_ms, aids=AIDS,
        )  # fmt: skip
        self.core.meet(YOU, 0)
        self.holdings.peer_holds(YOU, lan)
        self.now_ms += SETTLE_MS_MAX

    def handle(self, event: Event) -> list[Effect]:
        return self.core.handle(event, self.now_ms)

    def pass_time(self, ms: int, step_ms: int = 100) -> list[Effect]:
        effects: list[Effect] = []
        for _ in range(0, ms, step_ms):
            self.now_ms += step_ms
            effects += self.handle(Tick())
        return effects


def moves(effects: list[Effect]) -> list[str]:
    """Starts and aborts, in order: "by 1", "abort"."""
    named = [effect for effect in effects if isinstance(effect, (StartSegment, AbortSegment))]
    return [f"by {effect.use}" if isinstance(effect, StartSegment) else "abort" for effect in named]


def test_the_owner_starts_the_cheapest_way() -> None:
    office = Office(lan=NEAR.base | FAR.base)
    assert moves(office.pass_time(300)) == ["by 1"]
    assert office.core.bases_in_use == NEAR.base


def test_a_base_that_turns_up_changes_a_full_segment_that_has_hardly_begun() -> None:
    office = Office()
    assert moves(office.pass_time(300)) == ["by 0"]
    office.handle(SegmentProgress(0, 40))
    office.holdings.peer_holds(YOU, NEAR.base)
    assert moves(office.pass_time(1_100)) == ["abort", "by 1"]
    assert office.core.fetching == {0: 0}


def test_a_base_that_turns_up_late_changes_nothing() -> None:
    office = Office()
    office.pass_time(300)
    office.handle(SegmentProgress(0, 85))
    office.holdings.peer_holds(YOU, NEAR.base)
    assert moves(office.pass_time(1_100)) == []


def test_a_base_that_goes_gives_way_to_the_next_and_what_is_here_of_it_is_kept() -> None:
    office = Office(lan=NEAR.base | FAR.base)
    office.pass_time(300)
    office.handle(SegmentProgress(0, 60))
    office.holdings.peer_holds(YOU, FAR.base)
    assert moves(office.pass_time(100)) == ["abort", "by 2"]
    office.holdings.peer_holds(YOU, NEAR.base | FAR.base)
    assert moves(office.pass_time(1_100)) == ["abort", "by 1"]
    assert office.core.fetching == {0: 60}


def test_neighbours_that_come_and_go_do_not_change_the_way_for_ever() -> None:
    office = Office()
    seen = office.pass_time(300)
    for number in range(40):
        office.holdings.peer_holds(YOU, 0 if number % 2 else NEAR.base)
        seen += office.pass_time(1_100)
    assert moves(seen).count("abort") <= SWITCHES_MAX + 1
    assert moves(seen)[-1] == "by 0"


def test_a_base_that_is_not_delivered_is_given_up_after_a_while() -> None:
    office = Office(lan=NEAR.base)
    office.pass_time(300)
    office.handle(SegmentProgress(0, 100))
    assert moves(office.pass_time(BASE_STALL_MS - 1_000)) == []
    office.holdings.gain(0b000100)
    assert moves(office.pass_time(BASE_STALL_MS - 1_000)) == [], "something came"
    seen = office.pass_time(2_000)
    assert moves(seen) == ["abort", "by 0"]
    assert office.core.being_decoded == 0


def test_a_claim_asks_for_patience_while_the_base_is_on_its_way() -> None:
    office = Office(lan=NEAR.base)
    office.pass_time(300)
    office.handle(SegmentProgress(0, 100))
    claims = [one.message for one in office.pass_time(5_000) if isinstance(one, Broadcast)]
    assert {claim.lease_ms for claim in claims if isinstance(claim, Claim)} == {BASE_LEASE_MS}


def test_the_chunks_of_a_delta_are_left_to_the_decoder_once_its_base_is_here() -> None:
    office = Office(lan=NEAR.base)
    office.pass_time(300)
    office.handle(SegmentProgress(0, 100))
    assert office.core.being_decoded == 0
    office.holdings.gain(NEAR.base)
    assert office.core.being_decoded == RUN.bits
    office.holdings.peer_left(YOU)
    assert moves(office.pass_time(60_000)) == [], "nothing is needed any more but time"


def test_a_delta_that_does_not_decode_gives_way_at_once_under_the_same_claim() -> None:
    office = Office(lan=NEAR.base)
    office.pass_time(300)
    effects = office.handle(SegmentFailedHere(0, "does not decode", 0, whole_origin=False, bad_blob=True))
    assert moves(effects) == ["by 0"]
    said = [one.message for one in effects if isinstance(one, Broadcast)]
    assert [message.index for message in said if isinstance(message, SegmentFailed)] == [NEAR.segment]
    assert [[each.index for each in message.segments] for message in said if isinstance(message, Claim)] == [[0]]


def test_a_delta_that_every_mirror_gets_wrong_rests_and_is_then_fetched_full() -> None:
    office = Office(lan=NEAR.base)
    office.pass_time(300)
    assert moves(office.handle(SegmentFailedHere(0, "wrong bytes", 4_000, whole_origin=True, bad_blob=True))) == []
    assert moves(office.pass_time(3_000)) == []
    assert moves(office.pass_time(2_000)) == ["by 0"]


def test_an_origin_that_is_down_leaves_the_delta_the_best_way() -> None:
    office = Office(lan=NEAR.base)
    office.pass_time(300)
    office.handle(SegmentFailedHere(0, "503", 2_000, whole_origin=True))
    assert moves(office.pass_time(3_000)) == ["by 1"]


def test_a_store_without_room_for_a_base_goes_on_without() -> None:
    office = Office(lan=NEAR.base | FAR.base)
    office.pass_time(300)
    assert moves(office.handle(BaseRefused("no room"))) == ["abort", "by 0"]


def test_word_of_a_broken_delta_from_two_neighbours_is_believed() -> None:
    office = Office(lan=NEAR.base)
    for device in (YOU, THIRD):
        office.handle(FailureHeard(device, NEAR.segment, "does not decode", 0))
    assert moves(office.pass_time(300)) == ["by 0"]


REBUILDABLE = (
    SegmentRun(0, bytes(32), 0b11, (Way(1, 100, 0b1100, 0, rebuildable=True), FULL)),
    SegmentRun(3, bytes([3]) * 32, 0b1000000, (Way(3, 10),), aid=True),
)


def test_a_full_segment_waits_a_little_for_a_base_that_may_be_rebuilt() -> None:
    office = Office(runs=REBUILDABLE)
    assert moves(office.pass_time(BASE_GRACE_MS - 200)) == []
    assert "rebuild" in office.core.waiting(office.now_ms)
    assert moves(office.pass_time(1_500)) == ["by 0"]


def test_it_waits_longer_when_a_neighbour_fetches_the_layout_and_takes_the_delta_when_the_base_is_there() -> None:
    office = Office(runs=REBUILDABLE)
    office.handle(ClaimHeard(YOU, YOU, 1, 5_000, (ClaimedSegment(3, 0),)))
    assert moves(office.pass_time(BASE_GRACE_MS + 1_500)) == []
    office.holdings.peer_holds(YOU, 0b1001100)
    assert moves(office.pass_time(1_500)) == ["by 1"]


def test_a_layout_is_fetched_by_who_wants_it_beside_everything_else() -> None:
    office = Office(runs=REBUILDABLE)
    office.pass_time(BASE_GRACE_MS + 1_500)
    assert office.core.fetching == {0: 0}
    office.holdings.wanted |= 0b1000000
    assert moves(office.pass_time(1_200)) == ["by 3"]
    office.holdings.wanted &= ~0b1000000
    assert moves(office.pass_time(1_200)) == ["abort"]


def test_progress_that_goes_back_starts_a_claim_anew_a_few_times() -> None:
    claims = Claims()

    def hear(done_pct: int, now_ms: int) -> None:
        claims.hear(ClaimHeard(YOU, YOU, 1, 1_000, (ClaimedSegment(0, done_pct),)), {0}, now_ms)

    now_ms = 0
    for _ in range(RESTARTS_MAX):
        hear(100, now_ms)
        now_ms += LEASE_MS_DECODE - 1
        hear(0, now_ms)
        now_ms += LEASE_MS_FIRST - 1
        hear(0, now_ms)
        assert claims.expire(now_ms) == []
        assert claims.of(0) == {YOU: 0}
    hear(100, now_ms)
    hear(0, now_ms)
    assert claims.of(0) == {YOU: 100}, "that was once too often"


# Deltas that need gzip

GZIPPED = Way(1, 100, 0b001100, 0, needs_gzip=True)
OF_GZIP = SegmentRun(0, bytes(32), 0b11, (GZIPPED, FAR, FULL))


@pytest.mark.parametrize(
    ("why_not", "others", "office", "best", "of_office"),
    [
        ("", False, 0b111100, GZIPPED, GZIPPED),
        ("there is none", False, 0b111100, FAR, FAR),
        ("there is none", True, 0b111100, FAR, GZIPPED),
        ("there is none", False, 0b001100, FULL, FULL),
        ("there is none", True, 0b001100, FULL, GZIPPED),
        ("there is none", True, 0b110000, FAR, FAR),
    ],
    ids=[
        "I have it",
        "nobody has it",
        "a neighbour has it",
        "nobody has it and there is no other delta",
        "a neighbour has it and there is no other delta",
        "a neighbour has it and nobody the base",
    ],
)
def test_a_delta_that_needs_gzip_is_for_whoever_has_it(
    why_not: str, others: bool, office: int, best: Way, of_office: Way
) -> None:
    holdings = OfficeHoldings(7, office)
    prices = Prices([OF_GZIP], holdings, why_not_gzip=why_not)
    prices.others_have_gzip = others
    assert (prices.best(0), prices.best_of_office(0)) == (best, of_office)
    assert prices.needed_bytes() == of_office.size_bytes, "what the office pays"
    if why_not and office & GZIPPED.base:
        assert prices.why_not(GZIPPED.segment) == "it needs gzip, and there is none"
        assert prices.why_not(FULL.segment) == ""


@pytest.mark.parametrize("others", [False, True])
def test_a_base_is_not_rebuilt_for_a_delta_that_nobody_can_use(others: bool) -> None:
    gzipped = Way(1, 100, 0b001100, 0, rebuildable=True, needs_gzip=True)
    prices = Prices([SegmentRun(0, bytes(32), 0b11, (gzipped, FULL))], OfficeHoldings(7), why_not_gzip="there is none")
    prices.others_have_gzip = others
    assert prices.may_be_rebuilt(0) == others
    assert prices.bases_missing() == ({0: 0b001100} if others else {})


def test_who_lacks_gzip_comes_last_for_its_runs_and_waits_while_others_are_busy() -> None:
    candidates = {ME: 8, YOU: 8, THIRD: 8}
    troubles = Troubles()
    plain = Turns(ME, MANIFEST, candidates, set(), troubles).order(RUN)
    for lacking in candidates:
        turns = Turns(ME, MANIFEST, candidates, set(), troubles, {lacking}, {0})
        assert turns.order(RUN) == [*(each for each in plain if each != lacking), lacking]
        assert Turns(ME, MANIFEST, candidates, set(), troubles, {lacking}, set()).order(RUN) == plain
    for busy, lacking, leaves in (
        ({YOU}, {ME}, True),
        ({YOU}, {ME, YOU}, False),
        (set(), {ME}, False),
        ({YOU}, {THIRD}, False),
        ({YOU}, {ME, THIRD}, True),
    ):
        assert Turns(ME, MANIFEST, candidates, busy, troubles, lacking, {0}).leaves(RUN) == leaves
        assert not Turns(ME, MANIFEST, candidates, busy, troubles, lacking, set()).leaves(RUN)
    troubles.failed(0, YOU, "it does not decode", 0, 0)
    assert not Turns(ME, MANIFEST, candidates, {YOU}, troubles, {ME}, {0}).leaves(RUN), "it has tried already"
