"""The next update of an office whose cache holds three copies of the release before, while five of its twenty devices are off."""

from __future__ import annotations

import random

import pytest
from simulation import Office, base_bits, make_manifest

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.holdings import positions_of
from pcm_p2p.swarm.keepers import Keepers

SEEDS = range(5)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """An update of 32 MiB against one base: full segments 13 MB, deltas 1 MB."""
    return make_manifest(32 << 20, deltas=(0.03,))


def kept(manifest: Manifest, devices: list[DeviceId]) -> dict[DeviceId, int]:
    """Who keeps what of the base, as bits over the table of the update."""
    places = list(positions_of(base_bits(manifest)))
    shares = Keepers([manifest.table_chunks[place] for place in places]).shares(dict.fromkeys(devices, 13))
    return {device: sum(1 << places[at] for at in positions_of(bits)) for device, bits in shares.items()}


def office_without(manifest: Manifest, count: int, seed: int) -> Office:
    """What is there of twenty devices that shared the base among them, when ``count`` are off."""
    office = Office(20 - count, manifest, seed=seed)
    rng = random.Random(seed)
    off = [DeviceId(rng.randbytes(16)) for _ in range(count)]
    shares = kept(manifest, [*off, *(node.device for node in office.nodes)])
    for node in office.nodes:
        node.disk = shares[node.device]
    return office


def test_three_copies_are_three_copies(manifest: Manifest) -> None:
    shares = kept(manifest, [DeviceId(random.Random(1).randbytes(15) + bytes([place])) for place in range(20)])
    assert sum(bits.bit_count() for bits in shares.values()) == 3 * base_bits(manifest).bit_count()


def test_the_next_update_costs_its_deltas_while_five_of_twenty_devices_are_off(manifest: Manifest) -> None:
    broken = 0
    for seed in SEEDS:
        office = office_without(manifest, 5, seed)
        held = 0
        for node in office.nodes:
            held |= node.disk
        lost = base_bits(manifest) & ~held
        broken += bool(lost)
        hit = {one.first for one in manifest.segments if any(lost >> place & 1 for place in one.base)}
        full = sum(one.size for _, one in manifest.full_segments() if one.first in hit)
        office.run()
        assert office.finished
        assert office.wan_bytes <= 1.03 * office.delta_bytes() + full, "no more than what is lost is paid in full"
        assert not office.locality_breaches
    assert broken <= 1, "by keepers for each chunk, some of it would be lost nearly always"
