"""Who makes which base chunks of installed files: the first in order, what saves most, nothing twice, and never for nothing."""

from __future__ import annotations

import struct
from random import Random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.content.manifest import (
    SCHEMA,
    Artifact,
    Base,
    ChunkerParameters,
    Layout,
    Manifest,
    Segment,
    decode_untrusted,
)
from pcm_p2p.ids import ChunkId, DeviceId
from pcm_p2p.swarm.rebuilding import (
    QUIET_MS,
    RANK_MS,
    RANK_MS_MAX,
    GetLayouts,
    MakeChunks,
    Rebuilding,
    Rest,
    Wait,
)
from pcm_p2p.swarm.rendezvous import ranking

MIB = 1 << 20
FULL_BYTES, LAYOUT_BYTES = 1_000_000, 50_000


def release(
    runs: int = 3, bases: tuple[int, ...] = (100_000,), layout_bytes: int = LAYOUT_BYTES, artifacts: int = 1
) -> Manifest:
    """``runs`` of four chunks; for each base release a delta of so many bytes for each run, from four chunks of its own; a layout
    for each artifact of each base release."""
    release_end = 4 * runs
    layout_first = release_end * (1 + len(bases))
    count = layout_first + artifacts * len(bases)
    ids = [ChunkId.of(b"%d" % position) for position in range(count)]
    sizes = [MIB] * layout_first + [4 * MIB] * (count - layout_first)
    full = [Segment(bytes(32), FULL_BYTES, "full", 4 * run, 4) for run in range(runs)]
    deltas = [
        Segment(bytes(32), size, "delta", 4 * run, 4, tuple(range(at, at + 4)), of)
        for of, size in enumerate(bases)
        for run in range(runs)
        for at in (release_end * (1 + of) + 4 * run,)
    ]
    layouts = [Segment(bytes(32), layout_bytes, "layout", at, 1) for at in range(layout_first, count)]
    positions = struct.pack(f"<{release_end}I", *range(release_end))
    manifest = Manifest(
        schema=SCHEMA,
        release="sample",
        version="2",
        counter=2,
        chunker=ChunkerParameters("fastcdc2020/nc1", 65536, 262144, 1048576),
        artifacts=(Artifact("a", "exact", 0, bytes(32), release_end * MIB, bytes(32), positions),),
        chunk_ids=b"".join(ids[:release_end]),
        chunk_sizes=struct.pack(f"<{release_end}I", *sizes[:release_end]),
        segments=(*full, *deltas, *layouts),
        bases=tuple(Base(str(of), bytes(32)) for of in range(len(bases))),
        aid_ids=b"".join(ids[release_end:]),
        aid_sizes=struct.pack(f"<{count - release_end}I", *sizes[release_end:]),
        layouts=tuple(
            Layout(number // artifacts, "a", "deb", bytes(32), layout_first + number, 1, "a", str(number), "all")
            for number in range(artifacts * len(bases))
        ),
    )
    return decode_untrusted(msgspec.msgpack.encode(manifest))


ME, *OTHERS = (DeviceId(bytes([number] * 16)) for number in range(1, 6))
EVERY = {0: tuple(range(12, 24))}
"""All base chunks of ``release()``."""


def in_order(manifest: Manifest) -> list[DeviceId]:
    return ranking(dict.fromkeys((ME, *OTHERS), 1), bytes(manifest.manifest_id))


def others(device: DeviceId) -> list[DeviceId]:
    return [other for other in (ME, *OTHERS) if other != device]


def test_a_device_alone_gets_the_layout_and_makes_one_delta_after_the_other() -> None:
    rebuilding = Rebuilding(release(), ME)
    assert rebuilding.step(0, EVERY, [0], [], []) == GetLayouts((0,))
    assert rebuilding.step(10, EVERY, [0], [], []) == GetLayouts((0,))
    made: list[int] = []
    for _ in range(3):
        step = rebuilding.step(20, {0: [at for at in EVERY[0] if at not in made]}, [0], [0], [])
        assert isinstance(step, MakeChunks)
        assert step.layouts == (0,)
        assert len(step.positions) == 4, "a batch is bounded in bytes"
        made += step.positions
        rebuilding.made(step.positions)
    assert made == list(EVERY[0])
    assert rebuilding.step(30, {}, [0], [0], []) == Rest()


def test_only_what_is_missing_is_made() -> None:
    rebuilding = Rebuilding(release(), ME)
    assert rebuilding.step(0, {0: (14, 17)}, [0], [0], []) == MakeChunks((0,), (14,))
    rebuilding.made((14,))
    assert rebuilding.step(0, {0: (17,)}, [0], [0], []) == MakeChunks((0,), (17,))


def test_nothing_is_made_where_it_saves_nothing() -> None:
    for missing, installed, manifest in (
        ({}, [0], release()),
        (EVERY, [], release()),
        (EVERY, [0], release(layout_bytes=3 * 900_000)),
        ({0: (12,)}, [0], release(layout_bytes=900_000)),
    ):
        assert Rebuilding(manifest, ME).step(0, missing, installed, [], []) == Rest()
    # What is here already has no price any more.
    assert Rebuilding(release(layout_bytes=900_000), ME).step(0, {0: (12,)}, [0], [0], []) == MakeChunks((0,), (12,))


def test_the_base_that_saves_most_is_made() -> None:
    manifest = release(bases=(300_000, 100_000, 200_000))
    missing = {of: tuple(range(12 * (1 + of), 12 * (2 + of))) for of in range(3)}
    assert Rebuilding(manifest, ME).step(0, missing, [0, 1, 2], [], []) == GetLayouts((1,))
    assert Rebuilding(manifest, ME).step(0, missing, [0, 2], [], []) == GetLayouts((2,))
    # The layout that is here tips the scale.
    assert isinstance(Rebuilding(release(bases=(110_000, 100_000)), ME).step(0, missing, [0, 1], [0], []), MakeChunks)


def test_a_base_of_several_artifacts_is_made_of_those_that_are_installed() -> None:
    rebuilding = Rebuilding(release(artifacts=3), ME)
    assert rebuilding.step(0, EVERY, [0, 2], [2], []) == GetLayouts((0,))
    assert rebuilding.step(0, EVERY, [0, 2], [0, 2], []) == MakeChunks((0, 2), (12, 13, 14, 15))


def test_devices_begin_in_order() -> None:
    manifest = release()
    for rank, device in enumerate(in_order(manifest)):
        rebuilding, begins_ms = Rebuilding(manifest, device), 5_000 + min(rank * RANK_MS, RANK_MS_MAX)
        if rank:
            assert rebuilding.step(5_000, EVERY, [0], [], others(device)) == Wait(begins_ms)
        assert rebuilding.step(begins_ms, EVERY, [0], [], others(device)) == GetLayouts((0,))


def test_who_comes_later_waits_while_others_make_chunks() -> None:
    manifest = release()
    last = in_order(manifest)[-1]
    rebuilding, missing, now_ms = Rebuilding(manifest, last), list(EVERY[0]), 0
    assert isinstance(rebuilding.step(0, {0: missing}, [0], [], others(last)), Wait)
    for _ in range(6):
        now_ms += QUIET_MS - 100
        missing = missing[1:]
        assert rebuilding.step(now_ms, {0: missing}, [0], [], others(last)) == Wait(now_ms + QUIET_MS)
    # The other one has stopped.
    assert rebuilding.step(now_ms + QUIET_MS, {0: missing}, [0], [], others(last)) == GetLayouts((0,))


def test_devices_that_have_begun_share_the_deltas() -> None:
    manifest = release(runs=5)
    missing = {0: tuple(range(20, 40))}
    begun = []
    for device in in_order(manifest):
        rebuilding = Rebuilding(manifest, device)
        rebuilding.step(0, missing, [0], [0], others(device))
        step = rebuilding.step(RANK_MS_MAX, missing, [0], [0], others(device))
        assert isinstance(step, MakeChunks)
        begun.append(step.positions[0])
    assert begun == [20, 24, 28, 32, 36]


def test_a_chunk_that_cannot_be_made_rules_out_its_delta_and_no_other() -> None:
    rebuilding = Rebuilding(release(), ME)
    rebuilding.failed((17,))
    steps = []
    missing = set(EVERY[0])
    while not isinstance(step := rebuilding.step(0, {0: sorted(missing)}, [0], [0], []), Rest):
        assert isinstance(step, MakeChunks)
        rebuilding.made(step.positions)
        missing -= set(step.positions)
        steps += step.positions
    assert steps == [12, 13, 14, 15, 20, 21, 22, 23]
    # Somebody else made that one: the rest of its delta is worth making.
    assert rebuilding.step(0, {0: (16, 18, 19)}, [0], [0], []) == MakeChunks((0,), (16, 18, 19))


def test_nothing_is_made_twice() -> None:
    rebuilding = Rebuilding(release(), ME)
    assert rebuilding.step(0, EVERY, [0], [0], []) == MakeChunks((0,), (12, 13, 14, 15))
    rebuilding.made((12, 13))
    assert rebuilding.step(0, EVERY, [0], [0], []) == MakeChunks((0,), (14, 15))
    rebuilding.made(EVERY[0])
    assert rebuilding.step(0, EVERY, [0], [0], []) == Rest()


@settings(max_examples=40, deadline=None)
@given(
    devices=st.integers(1, 5),
    runs=st.integers(1, 6),
    edited=st.lists(st.sets(st.integers(0, 23), max_size=4), min_size=5, max_size=5),
    seed=st.integers(0, 1 << 32),
)
def test_an_office_makes_all_that_one_of_it_can_make(
    devices: int, runs: int, edited: list[set[int]], seed: int
) -> None:
    """Devices with edits of their own, which hear of each other late."""
    manifest, rng = release(runs=runs), Random(seed)
    base = range(4 * runs, 8 * runs)
    names = [ME, *OTHERS][:devices]
    useless = {name: {4 * runs + at for at in edited[number] if at < 4 * runs} for number, name in enumerate(names)}
    rebuildings = {name: Rebuilding(manifest, name) for name in names}
    ready: dict[DeviceId, list[int]] = {name: [] for name in names}
    heard = {name: set(base) for name in names}
    missing, made, now_ms = set(base), 0, 0
    while now_ms < 20_000:
        now_ms += 100
        for name in names:
            if rng.random() < 0.5:
                heard[name] = set(missing)
            others = [other for other in names if other != name]
            step = rebuildings[name].step(now_ms, {0: sorted(heard[name])}, [0], ready[name], others)
            if isinstance(step, GetLayouts):
                ready[name] = [0]
            elif isinstance(step, MakeChunks):
                assert set(step.positions) <= heard[name]
                good = []
                for position in step.positions:
                    if position in useless[name]:
                        rebuildings[name].failed((position,))
                        break
                    good.append(position)
                assert good or useless[name] & set(step.positions), "a step gets somewhere"
                made += len(good)
                missing -= set(good)
                rebuildings[name].made(good)
    for run in range(runs):
        delta = set(base[4 * run : 4 * run + 4])
        if any(not delta & useless[name] for name in names):
            assert not delta & missing
    assert made <= devices * len(base)
