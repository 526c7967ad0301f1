"""The cooperative cache's core: who keeps what, what is surplus, what is handed over; and a whole office of it."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import make_manifest

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm import rendezvous
from pcm_p2p.swarm.holdings import bits_of, positions_of
from pcm_p2p.swarm.keepers import (
    COPIES_MAX,
    GROUP_CHUNKS_AVG,
    GROUP_CHUNKS_MAX,
    UPTIME_PRESUMED,
    Keepers,
    copies_for,
    groups_of,
)
from pcm_p2p.swarm.keeping import (
    Keeping,
    KeepPlan,
    Ripening,
    chunks_to_drop,
    count_copies,
    handover_messages,
    read_handover_untrusted,
)

RNG = random.Random(3)
DEVICES = [DeviceId(RNG.randbytes(16)) for _ in range(30)]
KEYS = [RNG.randbytes(32) for _ in range(2_000)]
MANIFEST = make_manifest(400 << 20)
COUNT = len(MANIFEST.chunks)
ALL = (1 << COUNT) - 1
HOUR_MS = 3_600_000
SMALL = make_manifest(50 << 20)


def copies(shares: Mapping[DeviceId, int], count: int = len(KEYS)) -> list[int]:
    return count_copies(count, shares.values())


# Who keeps what


@pytest.mark.parametrize(
    ("uptimes", "number"),
    [
        ([16] * 20, 3),
        ([UPTIME_PRESUMED] * 20, 3),
        ([12] * 20, 4),
        ([8] * 20, 7),
        ([5] * 20, COPIES_MAX),
        ([1] * 20, COPIES_MAX),
        ([16, 16, 1, 1], 3),
        ([1, 1, 1, 16, 16, 16], 5),
        ([16], 1),
        ([1, 1], 2),
        ([], 0),
    ],
)
def test_copies_grow_where_keepers_are_often_off(uptimes: list[int], number: int) -> None:
    assert copies_for(uptimes, 3) == number


def test_an_admin_may_ask_for_more_copies_than_uptime_does() -> None:
    assert copies_for([16] * 20, 12) == 12


@given(st.dictionaries(st.sampled_from(DEVICES), st.integers(0, 20), max_size=12), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_every_group_has_its_copies_and_they_are_the_first_of_the_rendezvous_order(
    uptimes: dict[DeviceId, int], number: int
) -> None:
    shares = Keepers(KEYS, number).shares(uptimes)
    assert shares.keys() == uptimes.keys()
    weights = {device: min(uptime, 16) or UPTIME_PRESUMED for device, uptime in uptimes.items()}
    for key, group in groups_of(KEYS):
        order = rendezvous.ranking(weights, key)
        enough = copies_for([weights[device] for device in order], number)
        assert {device for device, bits in shares.items() if bits & group} == set(order[:enough])
        assert {device for device, bits in shares.items() if bits & group == group} == set(order[:enough])
        assert enough >= min(number, len(uptimes))


@given(st.lists(st.binary(min_size=1, max_size=2), max_size=700))
@settings(max_examples=30, deadline=None)
def test_groups_are_runs_that_cover_the_table_once(keys: list[bytes]) -> None:
    reached = 0
    for name, bits in groups_of(keys):
        positions = list(positions_of(bits))
        assert positions == list(range(reached, reached + len(positions)))
        assert 1 <= len(positions) <= GROUP_CHUNKS_MAX
        assert name == min(keys[position] for position in positions)
        reached += len(positions)
    assert reached == len(keys)


def test_groups_have_about_the_chunks_of_a_segment() -> None:
    keys = [RNG.randbytes(32) for _ in range(20_000)]
    assert len(groups_of(keys)) == pytest.approx(len(keys) / GROUP_CHUNKS_AVG, rel=0.25)


def test_what_two_releases_share_has_the_same_keepers_in_both() -> None:
    changed = [RNG.randbytes(32) if 700 <= position < 760 else key for position, key in enumerate(KEYS)]
    one, two = (Keepers(keys).shares(dict.fromkeys(DEVICES[:20], 13)) for keys in (KEYS, changed))
    moved = sum((one[device] ^ two[device]).bit_count() for device in DEVICES[:20])
    assert moved <= 2 * 3 * 3 * GROUP_CHUNKS_MAX


def test_with_five_of_twenty_devices_off_the_base_of_a_delta_is_nearly_always_whole() -> None:
    rng, whole = random.Random(7), 0
    for _ in range(40):
        keys = [rng.randbytes(32) for _ in range(200)]
        shares = Keepers(keys).shares(dict.fromkeys(DEVICES[:20], 13))
        for _ in range(20):
            present = 0
            for device in rng.sample(DEVICES[:20], 15):
                present |= shares[device]
            whole += present == (1 << 200) - 1
    assert whole / 800 > 0.9


@given(st.permutations(DEVICES[:6]), st.lists(st.integers(1, 16), min_size=6, max_size=6))
@settings(max_examples=20, deadline=None)
def test_the_answer_does_not_depend_on_the_order_or_the_history_of_the_facts(
    order: list[DeviceId], uptimes: list[int]
) -> None:
    facts = dict(zip(DEVICES[:6], uptimes, strict=True))
    fresh = Keepers(KEYS).shares(facts)
    used = Keepers(KEYS)
    used.shares(dict.fromkeys(DEVICES[3:9], 5))
    assert used.shares({device: facts[device] for device in order}) == fresh


def test_a_device_that_goes_moves_nothing_but_its_own_share() -> None:
    keepers = Keepers(KEYS)
    before = dict(keepers.shares(dict.fromkeys(DEVICES[:20], 13)))
    after = keepers.shares(dict.fromkeys(DEVICES[1:20], 13))
    for device in DEVICES[1:20]:
        assert before[device] & ~after[device] == 0, "nobody is relieved"
        assert after[device] & ~before[device] & ~before[DEVICES[0]] == 0, "only what the lost device kept is moved"
    assert before[DEVICES[0]]
    assert copies(before) == copies(after) == [3] * len(KEYS)


def test_shares_follow_uptime() -> None:
    uptimes = {**dict.fromkeys(DEVICES[:10], 16), **dict.fromkeys(DEVICES[10:20], 4)}
    shares = Keepers(KEYS).shares(uptimes)
    often = sum(shares[device].bit_count() for device in DEVICES[:10])
    seldom = sum(shares[device].bit_count() for device in DEVICES[10:20])
    assert often > 2 * seldom > 0


def test_what_is_known_of_devices_that_went_does_not_grow_for_ever() -> None:
    keepers = Keepers(KEYS)
    rng = random.Random(1)
    for _ in range(100):
        keepers.shares({DeviceId(rng.randbytes(16)): 8})
    assert len(keepers._draws) <= 9


def test_golden_shares() -> None:
    """Other releases on other platforms must compute the same; a change of these is a change of the protocol."""
    rng = random.Random(9)
    keys = [rng.randbytes(32) for _ in range(1_024)]
    shares = Keepers(keys, 2).shares({DeviceId(bytes([number]) * 16): 4 * number for number in range(1, 5)})
    groups = [bits & -bits for _, bits in groups_of(keys)]
    assert [
        sum((1 << place) * bool(bits & first) for place, first in enumerate(groups)) for bits in shares.values()
    ] == GOLDEN


# What I do about it


class Desk:
    """One device's keeping, with neighbours of which all is known."""

    def __init__(self, others: Mapping[DeviceId, int], *, mine: int = 0, surplus_ms: int = HOUR_MS) -> None:
        self.others, self.mine = dict(others), mine
        self.keeping = Keeping(DEVICES[0], 13, MANIFEST, random.Random(1), surplus_ms=surplus_ms)

    def at(self, now_ms: int, *, needed: bool = False) -> KeepPlan:
        return self.keeping.decide(self.mine, self.others, {}, now_ms, needed=needed)


def test_a_keeper_fetches_its_share_when_a_reboot_would_be_over() -> None:
    desk = Desk(dict.fromkeys(DEVICES[1:10], ALL))
    plan = desk.at(0)
    assert (plan.fetch, plan.surplus, plan.last) == (0, 0, 0)
    assert 0 < plan.share.bit_count() < COUNT / 2
    assert plan.next_ms is not None
    assert 60_000 <= plan.next_ms <= 90_000
    assert desk.at(plan.next_ms - 1).fetch == 0
    assert desk.at(plan.next_ms).fetch == plan.share
    desk.mine = plan.share
    assert desk.at(plan.next_ms + 1).fetch == 0


def test_what_nobody_holds_is_not_asked_for() -> None:
    desk = Desk(dict.fromkeys(DEVICES[1:10], 0))
    desk.at(0)
    assert desk.at(HOUR_MS).fetch == 0


def test_a_copy_that_every_keeper_has_is_let_go_after_its_grace() -> None:
    desk = Desk(dict.fromkeys(DEVICES[1:10], ALL), mine=ALL)
    plan = desk.at(0)
    assert plan.surplus == ALL & ~plan.share
    assert (plan.drop, plan.next_ms) == (0, HOUR_MS)
    assert desk.at(HOUR_MS, needed=True).drop == 0, "a neighbour is still fetching the release"
    assert desk.at(HOUR_MS).drop == plan.surplus


def test_a_copy_that_one_keeper_lacks_is_no_surplus() -> None:
    desk = Desk(dict.fromkeys(DEVICES[1:10], ALL), mine=ALL, surplus_ms=0)
    share = desk.at(0).share
    keeper = next(device for device in DEVICES[1:10])
    desk.others[keeper] = 0
    kept_there = Keepers(MANIFEST.chunks).shares(dict.fromkeys(DEVICES[:10], 13))[keeper]
    assert desk.at(0).drop == ALL & ~share & ~kept_there


def test_the_grace_begins_anew_when_the_copy_was_of_use_meanwhile() -> None:
    desk = Desk(dict.fromkeys(DEVICES[1:10], ALL), mine=ALL)
    desk.at(0)
    gone = desk.others.pop(DEVICES[1])
    more = desk.at(HOUR_MS - 1).share
    desk.others[DEVICES[1]] = gone
    plan = desk.at(HOUR_MS)
    assert plan.surplus & more, "I was a keeper in between"
    assert plan.drop == plan.surplus & ~more


def test_the_last_copy_is_told_from_others() -> None:
    desk = Desk({DEVICES[1]: ALL & ~0b101, DEVICES[2]: ALL & ~0b1001}, mine=0b1101)
    assert desk.at(0).last == 0b1
    desk.others.clear()
    plan = desk.at(1)
    assert (plan.last, plan.share, plan.surplus) == (0b1101, ALL, 0)


def test_what_is_handed_over_is_fetched_at_once() -> None:
    desk = Desk({DEVICES[1]: 0b11, **dict.fromkeys(DEVICES[2:10], 0)})
    desk.keeping.take_over(0b110)
    plan = desk.at(0)
    assert (plan.fetch, plan.urgent) == (0b10, 0b10), "what the neighbour has not is not asked for"
    desk.mine = 0b10
    assert desk.at(1).fetch == 0


def test_last_copies_go_to_the_next_in_rank() -> None:
    others = dict.fromkeys(DEVICES[1:10], ALL & ~0b1110)
    keeping = Keeping(DEVICES[0], 13, MANIFEST, random.Random(1), surplus_ms=HOUR_MS)
    first, second = (keeping.heirs(ALL, others, {}, rank) for rank in (0, 1))
    weights = dict.fromkeys(DEVICES[1:10], 13)
    (name, _), *_ = groups_of(MANIFEST.chunks)
    order = rendezvous.ranking(weights, name)
    assert first == {order[0]: 0b1110}
    assert second == {order[1]: 0b1110}
    assert keeping.heirs(ALL, {}, {}) == {}


def test_a_handover_is_cut_to_messages_and_read_back() -> None:
    bits = bits_of(range(0, COUNT, 2))
    messages = list(handover_messages(MANIFEST.manifest_id, bits))
    assert [read_handover_untrusted(message, MANIFEST) for message in messages] == [bits]
    (long,) = {len(list(handover_messages(MANIFEST.manifest_id, (1 << 10_000) - 1)))}
    assert long == 3
    (beyond,) = handover_messages(MANIFEST.manifest_id, 1 << COUNT)
    with pytest.raises(UntrustedBytes, match="past the end"):
        read_handover_untrusted(beyond, MANIFEST)


def test_a_chunk_of_two_releases_goes_when_both_let_it_go() -> None:
    going, staying = KeepPlan(drop=0b111), KeepPlan(drop=0b101)
    chunks = MANIFEST.chunks
    assert chunks_to_drop([(MANIFEST, 0b111, going)], ()) == list(chunks[:3])
    assert chunks_to_drop([(MANIFEST, 0b111, going), (MANIFEST, 0b111, staying)], ()) == [chunks[0], chunks[2]]
    assert chunks_to_drop([(MANIFEST, 0b111, going)], {chunks[1]}) == [chunks[0], chunks[2]]
    assert chunks_to_drop([], ()) == []


@given(st.lists(st.integers(0, 255), max_size=9))
def test_copies_are_counted(holders: list[int]) -> None:
    counts = [sum(bits >> position & 1 for bits in holders) for position in range(8)]
    assert count_copies(8, holders) == counts


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 30)), max_size=20))
def test_bits_are_ripe_after_an_unbroken_wait(looks: list[tuple[int, int]]) -> None:
    ripening, since, now = Ripening(50), dict[int, int](), 0
    for bits, passed in looks:
        now += passed
        since = {position: since.get(position, now) for position in positions_of(bits)}
        ripe = ripening.look(bits, now)
        assert ripe == bits_of(position for position, at in since.items() if now - at >= 50)
        waiting = [at + 50 for at in since.values() if at + 50 > now]
        assert ripening.next_ms(now) == min(waiting, default=None)


# A whole office


class Cache:
    """Devices in steps of a second; what one announces is heard by all at the next step. Bytes are not moved.

    A device asks for one chunk at a time, which takes a step, as the fetcher's background requests do.
    """

    def __init__(self, count: int, manifest: Manifest, *, seed: int = 0, surplus_ms: int = 600_000) -> None:
        self.rng = random.Random(seed)
        self.manifest, self.surplus_ms = manifest, surplus_ms
        self.now_ms = 0
        self.moved = 0
        self.held: dict[DeviceId, int] = {}
        self.up: dict[DeviceId, Keeping] = {}
        for device in DEVICES[:count]:
            self.held[device] = (1 << len(manifest.chunks)) - 1
            self.start(device)

    def start(self, device: DeviceId) -> None:
        self.up[device] = Keeping(device, 13, self.manifest, self.rng, surplus_ms=self.surplus_ms)

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_ms += 1_000
            said = {device: self.held[device] for device in self.up}
            for device, keeping in self.up.items():
                others = {other: bits for other, bits in said.items() if other != device}
                plan = keeping.decide(said[device], others, {}, self.now_ms, needed=False)
                self.held[device] &= ~plan.drop
                if plan.fetch:
                    self.moved += 1
                    self.held[device] |= plan.fetch & -plan.fetch

    def crash(self, device: DeviceId) -> None:
        del self.up[device]

    def leave(self, device: DeviceId) -> None:
        """As on SIGTERM: hand over, wait until neighbours have it or ten seconds are over."""
        said = {other: self.held[other] for other in self.up if other != device}
        for heir, bits in self.up[device].heirs(self.held[device], said, {}).items():
            self.up[heir].take_over(bits)
        for _ in range(10):
            if not self.heirs_lack(device):
                break
            self.run(1)
        self.crash(device)

    def heirs_lack(self, device: DeviceId) -> int:
        elsewhere = 0
        for other in self.up:
            elsewhere |= self.held[other] if other != device else 0
        return self.held[device] & ~elsewhere

    @property
    def bytes_held(self) -> int:
        counts = count_copies(len(self.manifest.chunks), (self.held[device] for device in self.up))
        return sum(count * size for count, size in zip(counts, self.manifest.sizes, strict=True))

    @property
    def fewest(self) -> int:
        return min(count_copies(len(self.manifest.chunks), (self.held[device] for device in self.up)))


@pytest.fixture(name="office", scope="module")
def _office() -> Cache:
    office = Cache(20, SMALL)
    office.run(700)
    return office


def test_twenty_devices_keep_three_copies_and_not_twenty(office: Cache) -> None:
    assert office.bytes_held <= 1.2 * 3 * sum(SMALL.sizes)
    assert (office.fewest, office.moved) == (3, 0)


def trimmed(seed: int) -> Cache:
    office = Cache(20, SMALL, seed=seed, surplus_ms=0)
    office.run(3)
    assert office.fewest == 3
    return office


@pytest.mark.parametrize("seed", range(3))
def test_every_chunk_survives_five_devices_that_leave_or_crash_one_after_the_other(seed: int) -> None:
    office, lost = trimmed(seed), 0
    for number, device in enumerate(random.Random(seed).sample(DEVICES[:20], 5)):
        lost += office.held[device].bit_count()
        if number % 2:
            office.leave(device)
        else:
            office.crash(device)
        office.run(240)
        assert office.fewest == 3, "repaired"
    assert office.bytes_held <= 1.2 * 3 * sum(SMALL.sizes)
    assert office.moved <= lost, "each chunk of a lost share moved once"


def test_all_but_one_leave_in_order_and_the_last_one_has_everything() -> None:
    manifest = make_manifest(6 << 20)
    office = Cache(6, manifest, surplus_ms=0)
    office.run(3)
    for device in DEVICES[:5]:
        office.leave(device)
        assert office.fewest >= 1
    assert office.held[DEVICES[5]] == (1 << len(manifest.chunks)) - 1


def test_a_reboot_moves_nothing() -> None:
    office = trimmed(1)
    office.crash(DEVICES[4])
    office.run(45)
    office.start(DEVICES[4])
    office.run(200)
    assert office.moved == 0


@pytest.mark.parametrize("period_s", [30, 200])
def test_a_device_that_comes_and_goes_costs_its_share_at_most_once(period_s: int) -> None:
    office = Cache(20, SMALL)
    office.run(700)
    share = office.held[DEVICES[4]].bit_count()
    for _ in range(1_000 // (2 * period_s)):
        office.crash(DEVICES[4])
        office.run(period_s)
        office.start(DEVICES[4])
        office.run(period_s)
    assert office.moved <= share
    assert office.fewest >= 3


GOLDEN = [51251, 1875055, 2097151, 2097151]
