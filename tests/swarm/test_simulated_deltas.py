"""Offices in virtual time that have a base, or part of one, or somebody who could rebuild one: what the WAN is asked for."""

from __future__ import annotations

import pytest
from simulation import US, Node, Office, Rules, base_bits, make_manifest

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.swarm.prices import BASE_WAIT_MS

SLOW = Rules(wan_bytes_per_s=500_000)
SETTLING_S = 12
"""Of a simultaneous start; with the last segments' way over the LAN."""


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """An update of 64 MiB against one base: full segments 25 MB, deltas 2 MB."""
    return make_manifest(64 << 20, chunk_bytes=512 << 10, deltas=(0.03,))


@pytest.fixture(scope="module")
def rebuildable() -> Manifest:
    return make_manifest(64 << 20, chunk_bytes=512 << 10, deltas=(0.03,), layouts=True)


def give_base(office: Office, *nodes: Node, of: int = 0) -> None:
    for node in nodes:
        node.disk |= base_bits(office.manifest, of)


def largest_delta(office: Office) -> int:
    return max(segment.size for segment in office.manifest.segments if segment.kind == "delta")


def layout_bytes(office: Office) -> int:
    return sum(segment.size for _, segment in office.manifest.layout_segments())


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (2, 0), (6, 0), (6, 1), (20, 0), (20, 1)])
def test_one_base_in_the_office_is_enough_for_everybody(manifest: Manifest, count: int, seed: int) -> None:
    office = Office(count, manifest, seed=seed)
    give_base(office, office.nodes[-1])
    office.run()
    assert office.finished
    assert office.wan_bytes <= 1.001 * office.delta_bytes()
    assert not office.locality_breaches
    assert office.done_s <= SETTLING_S + 10


def test_a_base_that_lies_in_pieces_all_over_the_office_is_a_base(manifest: Manifest) -> None:
    office = Office(6, manifest)
    for number, node in enumerate(office.nodes):
        node.disk = base_bits(manifest) & int.from_bytes(
            bytes([1 << number | 0xC0]) * (len(manifest.table_sizes) // 8 + 1)
        )
    office.run()
    assert office.finished
    assert office.wan_bytes <= 1.001 * office.delta_bytes()


@pytest.mark.parametrize("seed", range(2))
def test_without_a_base_the_office_pays_for_the_full_segments_once(manifest: Manifest, seed: int) -> None:
    office = Office(20, manifest, seed=seed)
    office.run()
    assert office.finished
    assert office.amplification <= 1.001
    assert not any(office.manifest.segments[use].kind == "delta" for use in office.wan_by_segment)


def test_a_base_with_a_hole_costs_one_full_segment(manifest: Manifest) -> None:
    office = Office(6, manifest)
    delta = next(segment for segment in manifest.segments if segment.kind == "delta")
    full = next(segment for _, segment in manifest.full_segments() if segment.first == delta.first)
    give_base(office, office.nodes[0])
    office.nodes[0].disk &= ~(1 << delta.base[1])
    office.run()
    assert office.finished
    assert office.wan_bytes <= 1.001 * (office.delta_bytes() - delta.size + full.size)


@pytest.mark.parametrize("seed", range(3))
def test_an_owner_that_crashes_costs_a_part_of_a_delta(seed: int) -> None:
    office = Office(12, make_manifest(256 << 20, chunk_bytes=1 << 20, deltas=(0.03,)), SLOW, seed=seed)
    give_base(office, office.nodes[0], office.nodes[1])
    crashed: list[Node] = []

    def crash() -> None:
        crashed.append(next(node for node in office.nodes[2:] if node.wan_bytes))
        office.leave(crashed[0])

    office.after(8 * US, crash)
    office.run()
    assert office.finished
    assert crashed[0].partial, "it was at it"
    assert office.delta_bytes() < office.wan_bytes <= 1.10 * office.delta_bytes()


@pytest.mark.parametrize("seed", range(3))
def test_the_base_leaves_before_anything_starts(manifest: Manifest, seed: int) -> None:
    office = Office(6, manifest, seed=seed)
    give_base(office, office.nodes[0])
    office.after(2 * US, office.leave, office.nodes[0])
    office.run()
    assert office.finished
    assert office.amplification <= 1.001


@pytest.mark.parametrize("seed", range(3))
def test_the_base_leaves_while_deltas_are_fetched(manifest: Manifest, seed: int) -> None:
    """What had come over the LAN by then is used; the rest is fetched full, by the same owners."""
    office = Office(6, manifest, Rules(wan_bytes_per_s=500_000, upload_bytes_per_s=4_000_000), seed=seed)
    give_base(office, office.nodes[0])
    office.after(8 * US, office.leave, office.nodes[0])
    office.run()
    assert office.finished
    assert office.delta_bytes() < office.wan_bytes <= office.needed_bytes + office.delta_bytes()
    assert not office.locality_breaches


@pytest.mark.parametrize("seed", range(3))
def test_a_base_that_comes_late_saves_what_has_not_been_fetched(manifest: Manifest, seed: int) -> None:
    office = Office(6, manifest, SLOW, seed=seed)
    late = office.nodes[0]
    give_base(office, late)
    office.after(1 * US, office.crash, late)
    office.after(12 * US, office.start, late)
    office.run()
    assert office.finished
    # Five seconds of a 500 kB/s link went into full segments before it came, and a few more until all had met it.
    assert office.wan_bytes <= office.delta_bytes() + 10 * 500_000
    assert not office.locality_breaches


@pytest.mark.parametrize("seed", range(2))
def test_a_delta_that_does_not_decode_is_tried_once_and_replaced_by_its_owner(manifest: Manifest, seed: int) -> None:
    office = Office(6, manifest, seed=seed)
    give_base(office, office.nodes[0])
    place, bad = next((place, one) for place, one in enumerate(manifest.segments) if one.kind == "delta")
    full = next(segment for _, segment in manifest.full_segments() if segment.first == bad.first)
    office.broken.add(place)
    office.run()
    assert office.finished
    assert office.wan_bytes <= 1.001 * (office.delta_bytes() + full.size)
    starters = {device for _, device, what in office.trace if what.endswith(f"by {place}")}
    assert len(starters) == 1
    assert starters == {
        device for _, device, what in office.trace if what.endswith(f"by {manifest.segments.index(full)}")
    }


def test_the_cheaper_of_two_bases_is_used_for_each_run() -> None:
    manifest = make_manifest(64 << 20, deltas=(0.03, 0.10))
    office = Office(6, manifest)
    give_base(office, office.nodes[0], of=1)
    near = next(segment for segment in manifest.segments if segment.kind == "delta" and segment.of == 0)
    office.nodes[1].disk |= sum(1 << position for position in near.base)
    office.run()
    assert office.finished
    far = next(one for one in manifest.segments if one.kind == "delta" and one.of == 1 and one.first == near.first)
    assert office.wan_bytes <= 1.001 * (office.delta_bytes(1) - far.size + near.size)


@pytest.mark.parametrize("seed", range(3))
def test_a_neighbour_that_lies_about_a_base_costs_seconds_and_the_deltas(manifest: Manifest, seed: int) -> None:
    office = Office(6, manifest, seed=seed)
    office.nodes[0].nature = "hollow"
    office.run()
    assert office.finished
    assert office.wan_bytes <= office.needed_bytes + office.delta_bytes()
    assert office.done_s <= office.needed_bytes / office.rules.wan_bytes_per_s + SETTLING_S + 10
    assert {device for node in office.nodes[1:] for device, _ in node.blamed} == {office.nodes[0].device}


@pytest.mark.parametrize("count", [2, 20])
def test_an_installed_base_is_rebuilt_and_spares_the_full_segments(rebuildable: Manifest, count: int) -> None:
    office = Office(count, rebuildable)
    office.nodes[0].installed = (0,)
    office.run()
    assert office.finished
    assert office.wan_bytes <= 1.001 * (office.delta_bytes() + layout_bytes(office))
    assert office.done_s <= SETTLING_S + 20


def test_layouts_are_fetched_by_nobody_who_has_no_use_for_them(rebuildable: Manifest) -> None:
    office = Office(6, rebuildable)
    office.run()
    assert office.finished
    assert office.amplification <= 1.001
    assert office.done_s <= office.needed_bytes / office.rules.wan_bytes_per_s + SETTLING_S + 4


def test_rebuilding_that_does_not_get_on_is_not_waited_for(rebuildable: Manifest) -> None:
    rules = Rules(rebuild_us_a_chunk=3_600 * US)
    office = Office(6, rebuildable, rules)
    office.nodes[0].installed = (0,)
    office.run()
    assert office.finished
    assert office.wan_bytes <= 1.001 * (office.needed_bytes + layout_bytes(office))
    waited_s = BASE_WAIT_MS // 1000
    assert office.done_s <= office.needed_bytes / rules.wan_bytes_per_s + SETTLING_S + waited_s


def test_slow_rebuilding_is_waited_for_as_long_as_it_gets_on(rebuildable: Manifest) -> None:
    rules = Rules(rebuild_us_a_chunk=200_000)
    office = Office(6, rebuildable, rules)
    office.nodes[0].installed = (0,)
    office.run()
    assert office.finished
    assert office.done_s > BASE_WAIT_MS // 1000 + 10
    assert office.wan_bytes <= 1.001 * (office.delta_bytes() + layout_bytes(office))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "rules",
    [
        Rules(start_ms=(0, 20_000)),
        Rules(latency_ms=(100, 300)),
        Rules(claim_loss=0.1),
        Rules(wan_bytes_per_s=50_000),
        Rules(decode_us_a_chunk=100_000),
        Rules(upload_bytes_per_s=2_000_000),
    ],
    ids=["late starts", "slow control", "lost claims", "slow WAN", "slow disks", "slow LAN"],
)
def test_rough_circumstances_cost_two_deltas_at_most(manifest: Manifest, rules: Rules, seed: int) -> None:
    office = Office(6, manifest, rules, seed=seed)
    give_base(office, *office.nodes)
    office.run()
    assert office.finished
    # A delta is here before word of it has gone round, so that crossed claims are not found out in time.
    assert office.wan_bytes <= office.delta_bytes() + 2 * largest_delta(office)
    assert not office.locality_breaches


@pytest.mark.parametrize("seed", range(3))
def test_islands_that_have_not_met_yet_pay_once_each(manifest: Manifest, seed: int) -> None:
    """Sessions take up to eight seconds to come up, and a small delta is here before they do."""
    office = Office(6, manifest, Rules(meet_ms=(50, 8_000)), seed=seed)
    give_base(office, *office.nodes)
    office.run()
    assert office.finished
    assert office.wan_bytes <= 2 * office.delta_bytes()
    assert not office.locality_breaches


def test_the_same_seed_gives_the_same_run(rebuildable: Manifest) -> None:
    offices = [Office(6, rebuildable, Rules(claim_loss=0.2), seed=7) for _ in range(2)]
    for office in offices:
        office.nodes[2].installed = (0,)
        office.run()
    one, two = offices
    assert one.trace == two.trace
    assert (one.messages, one.now_us, one.wan_bytes) == (two.messages, two.now_us, two.wan_bytes)
