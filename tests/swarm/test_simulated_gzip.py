"""Offices in which some deltas need gzip and some devices have none: what the WAN is asked for, and that nobody waits in vain."""

from __future__ import annotations

import pytest
from simulation import US, Node, Office, Rules, base_bits, make_manifest

from pcm_p2p.content.manifest import Manifest

SLOW = Rules(wan_bytes_per_s=200_000)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """An update of 64 MiB in five runs: full segments 25 MB, deltas 2 MB, of which every second one needs gzip."""
    made = make_manifest(64 << 20, chunk_bytes=512 << 10, deltas=(0.03,), gzip=True)
    assert sum(segment.needs_gzip for segment in made.segments) in (2, 3)
    return made


def office_of(manifest: Manifest, count: int, lacking: int, rules: Rules | None = None, *, seed: int = 0) -> Office:
    """The first ones lack gzip. The last one has the base."""
    office = Office(count, manifest, rules, seed=seed)
    for node in office.nodes[:lacking]:
        node.lacks_gzip = True
    office.nodes[-1].disk |= base_bits(manifest)
    return office


def bytes_for(manifest: Manifest, *, gzip: bool) -> int:
    """What an office pays that has the base: deltas, and full segments where there is no gzip for a delta."""
    deltas = {segment.first: segment for segment in manifest.segments if segment.kind == "delta"}
    return sum(
        full.size if deltas[full.first].needs_gzip and not gzip else deltas[full.first].size
        for _, full in manifest.full_segments()
    )


@pytest.mark.parametrize(
    ("count", "lacking", "rules"),
    [(2, 1, Rules()), (2, 1, SLOW), (6, 1, SLOW), (6, 5, Rules()), (6, 5, SLOW), (16, 15, SLOW)],
)
@pytest.mark.parametrize("seed", range(2))
def test_one_device_with_gzip_is_enough_for_everybody(
    manifest: Manifest, count: int, lacking: int, rules: Rules, seed: int
) -> None:
    office = office_of(manifest, count, lacking, rules, seed=seed)
    office.run()
    assert office.finished
    assert office.wan_bytes <= 1.001 * bytes_for(manifest, gzip=True)
    assert not office.locality_breaches
    assert office.done_s <= 25 + office.delta_bytes() / office.rules.wan_bytes_per_s


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (2, 0), (6, 0)])
def test_an_office_without_gzip_fetches_full_segments_where_it_takes_one_and_deltas_elsewhere(
    manifest: Manifest, count: int, seed: int
) -> None:
    office = office_of(manifest, count, count, seed=seed)
    office.run()
    assert office.finished
    assert office.wan_bytes <= 1.001 * bytes_for(manifest, gzip=False)
    assert not office.locality_breaches


@pytest.mark.parametrize("seed", range(3))
def test_who_lacks_gzip_has_the_base_and_its_neighbour_the_gzip(manifest: Manifest, seed: int) -> None:
    office = office_of(manifest, 4, 3, seed=seed)
    office.nodes[-1].disk, office.nodes[0].disk = 0, base_bits(manifest)
    office.run()
    assert office.finished
    assert office.wan_bytes <= 1.001 * bytes_for(manifest, gzip=True)


def only_gzip(office: Office) -> Node:
    return next(node for node in office.nodes if not node.lacks_gzip)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("nature", ["stalling", "firewalled", "boasting", "gone"])
def test_a_device_with_gzip_that_does_not_deliver_holds_up_nobody(manifest: Manifest, nature: str, seed: int) -> None:
    office = office_of(manifest, 6, 5, seed=seed)
    office.nodes[0].disk |= base_bits(manifest)
    able = only_gzip(office)
    if nature == "gone":
        office.after(6 * US, office.leave, able)
    else:
        able.nature = nature
    office.run(600)
    assert all(node.done_us >= 0 for node in office.nodes if node is not able)
    assert office.wan_bytes <= 1.2 * bytes_for(manifest, gzip=False)


def test_a_device_with_gzip_that_keeps_off_the_wan_is_not_waited_for(manifest: Manifest) -> None:
    office = office_of(manifest, 4, 3)
    only_gzip(office).weight = 0
    office.run()
    assert office.finished
    assert office.wan_bytes <= 1.001 * bytes_for(manifest, gzip=False)
    assert office.done_s <= 25


def test_an_office_fetches_the_same_way_where_everybody_has_gzip(manifest: Manifest) -> None:
    """The order of owners is then the one that it is for all segments."""
    traces = []
    for gzip in (False, True):
        made = make_manifest(64 << 20, chunk_bytes=512 << 10, deltas=(0.03,), gzip=gzip)
        office = office_of(made, 6, 0)
        office.run()
        traces.append([(at, who, what) for at, who, what in office.trace if what.startswith("start")])
    assert traces[0] == traces[1]
