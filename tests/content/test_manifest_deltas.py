"""The manifest decoder on deltas and layouts: what they may refer to, and what checking them may cost."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from content_samples import chunks_of, release_of, with_delta

from pcm_p2p.content.manifest import BASE_BYTES_MAX, BASES_MAX, CHUNK_SIZE_BYTES_MAX, CHUNKS_MAX, decode_untrusted
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import ChunkId

CHUNKS = chunks_of(1000, 2000, 3000)
BASE = chunks_of(900, 1100, seed=2)
LAYOUT = chunks_of(50, seed=3)
GOOD = with_delta(release_of(CHUNKS, first=[0, 1, 2]), CHUNKS, BASE, LAYOUT)
"""Positions 0 … 2 are of the release, 3 and 4 of its base, 5 of the layout zone; the delta starts from 3, 4 and 0."""
FULL, DELTA, LAYOUT_SEGMENT = 0, 1, 2

Change = Callable[[dict[str, Any]], object]


def u32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def tree_of(*changes: Change) -> dict[str, Any]:
    tree: dict[str, Any] = msgspec.msgpack.decode(GOOD.encoded)
    for change in changes:
        change(tree)
    return tree


def decoded(*changes: Change) -> Any:
    return decode_untrusted(msgspec.msgpack.encode(tree_of(*changes)))


def top(**fields: object) -> Change:
    return lambda tree: tree.update(fields)


def segment(index: int, **fields: object) -> Change:
    return lambda tree: tree["segments"][index].update(fields)


def more(index: int, **fields: object) -> Change:
    """One more segment, like the one at ``index`` but for ``fields``."""
    return lambda tree: tree["segments"].append({**tree["segments"][index], "id": b"x" * 32, **fields})


def layout(**fields: object) -> Change:
    return lambda tree: tree["layouts"][0].update(fields)


def base(**fields: object) -> Change:
    return lambda tree: tree["bases"][0].update(fields)


def without(index: int) -> Change:
    return lambda tree: tree["segments"].pop(index)


def aids(tree: dict[str, Any], *sizes: int) -> None:
    """Base and layout zone with chunks of these sizes."""
    tree["aid_sizes"] = u32(*sizes)
    tree["aid_ids"] = b"".join((number + 1).to_bytes(32, "big") for number in range(len(sizes)))


def test_the_table_has_three_zones() -> None:
    assert list(GOOD.table_sizes) == [1000, 2000, 3000, 900, 1100, 50]
    assert GOOD.table_chunks == tuple(chunk.id for chunk in (*CHUNKS, *BASE, *LAYOUT))
    assert GOOD.chunks == GOOD.table_chunks[:3]
    assert list(GOOD.sizes) == [1000, 2000, 3000]
    assert GOOD.layout_first == 5
    assert GOOD.position_of[LAYOUT[0].id] == 5


def test_a_run_knows_its_deltas_smallest_first() -> None:
    assert GOOD.deltas == {FULL: (DELTA,)}
    two = [{"version": version, "manifest": version.encode() * 32} for version in "01"]
    size = GOOD.segments[DELTA].size
    assert decoded(top(bases=two), more(DELTA, of=1, size=size - 1)).deltas == {FULL: (3, DELTA)}
    assert decoded(top(bases=two), more(DELTA, of=1, size=size)).deltas == {FULL: (DELTA, 3)}
    assert [index for index, _ in GOOD.full_segments()] == [FULL]
    assert [index for index, _ in GOOD.layout_segments()] == [LAYOUT_SEGMENT]


def test_segments_may_come_in_any_order_of_kinds() -> None:
    manifest = decoded(lambda tree: tree["segments"].reverse())
    assert manifest.deltas == {2: (1,)}
    assert next(manifest.full_segments())[0] == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        # the table
        (top(aid_ids=b"x" * 95), "same number"),
        (top(aid_sizes=u32(900, 1100)), "same number"),
        (lambda tree: aids(tree, 900, 0, 50), "chunk size"),
        (lambda tree: aids(tree, 900, CHUNK_SIZE_BYTES_MAX + 1, 50), "chunk size"),
        (lambda tree: tree.update(aid_ids=tree["chunk_ids"][:32] + tree["aid_ids"][32:]), "twice"),
        (lambda tree: tree.update(aid_ids=tree["aid_ids"][:32] * 2 + tree["aid_ids"][64:]), "twice"),
        (lambda tree: aids(tree, *[1] * CHUNKS_MAX), f"at most {CHUNKS_MAX} are read"),
        (lambda tree: tree["artifacts"][0].update(positions=u32(0, 1, 3), stored_size=3900), "outside the table"),
        # full segments stay in the release zone
        (segment(FULL, count=4), "tile|outside"),
        (more(FULL, first=3, count=1), "tile"),
        # bases
        (base(version="../0"), "version"),
        (base(manifest=b"m" * 31), "32 bytes"),
        (lambda tree: tree["bases"].extend(tree["bases"] * BASES_MAX), f"at most {BASES_MAX} are read"),
        (top(bases=[]), "unknown"),
        # deltas
        (segment(DELTA, count=2), "does not yield what a full segment yields"),
        (segment(DELTA, first=1, count=2), "does not yield what a full segment yields"),
        (segment(DELTA, first=5, count=1), "does not yield what a full segment yields"),
        (lambda tree: tree["segments"][DELTA].update(size=tree["segments"][FULL]["size"]), "not smaller"),
        (segment(DELTA, size=0), "refused"),
        (segment(DELTA, id=b""), "32 bytes"),
        (segment(DELTA, of=1), "unknown"),
        (segment(DELTA, of=-1), "unknown"),
        (more(DELTA), "has a delta for this run already"),
        (segment(DELTA, base=[]), "names its base chunks"),
        (segment(DELTA, base=[3, 4, -1]), "no base"),
        (segment(DELTA, base=[3, 4, 5]), "no base"),
        (segment(DELTA, base=[3, 4, 6]), "no base"),
        (segment(DELTA, base=[3, 4, 1 << 63]), "no base"),
        (segment(DELTA, base=[3, 4, 3]), "names a base chunk twice"),
        (segment(DELTA, base=[3, 0]), "base chunks that no delta uses"),
        (without(DELTA), "base chunks that no delta uses"),
        (segment(DELTA, base=[b"x" * 32]), "schema"),
        # layouts
        (top(layouts=[]), "do not match"),
        (without(LAYOUT_SEGMENT), "do not match"),
        (layout(count=2), "do not match"),
        (layout(first=4), "do not match"),
        (layout(first=1 << 62), "do not match"),
        (layout(first=-1), "do not match"),
        (lambda tree: tree["layouts"].append(tree["layouts"][0]), "do not match"),
        (segment(LAYOUT_SEGMENT, base=[3]), "a layout segment has no base"),
        (segment(LAYOUT_SEGMENT, of=1), "a layout segment has no base"),
        (layout(of=1), "unknown"),
        (layout(of=-1), "unknown"),
        (layout(artifact="a/b"), "artifact"),
        (layout(stored_sha256=b"s" * 31), "SHA-256"),
        (layout(form="rpm"), "schema"),
    ],
)
def test_each_invariant_is_enforced(change: Change, why: str) -> None:
    with pytest.raises(UntrustedBytes, match=why):
        decoded(change)


def test_a_layout_is_never_in_the_release_or_base_zone() -> None:
    with pytest.raises(UntrustedBytes, match="release zone"):
        decoded(layout(first=2, count=4), segment(LAYOUT_SEGMENT, first=2, count=4))
    with pytest.raises(UntrustedBytes, match="starts from a chunk that is no base"):
        decoded(layout(first=4, count=2), segment(LAYOUT_SEGMENT, first=4, count=2))


def test_layouts_tile_their_zone() -> None:
    tree = tree_of(lambda tree: aids(tree, 900, 1100, 50, 60, 70))
    for places, sound in (
        ([(5, 1), (6, 2)], True),
        ([(5, 2), (7, 1)], True),
        ([(5, 1), (6, 1)], False),
        ([(5, 2), (6, 2)], False),
        ([(6, 2), (5, 1)], False),
        ([(5, 1), (7, 1)], False),
    ):
        tree["layouts"] = [{**tree["layouts"][0], "first": first, "count": count} for first, count in places]
        one = tree["segments"][LAYOUT_SEGMENT]
        tree["segments"][LAYOUT_SEGMENT:] = [{**one, "first": first, "count": count} for first, count in places]
        data = msgspec.msgpack.encode(tree)
        if sound:
            assert len(decode_untrusted(data).layouts) == 2
        else:
            with pytest.raises(UntrustedBytes, match="tile"):
                decode_untrusted(data)


def test_layouts_that_promise_a_zone_behind_the_table_do_not_let_a_delta_refer_there() -> None:
    with pytest.raises(UntrustedBytes):
        decoded(layout(first=1000), segment(DELTA, base=[3, 4, 999]))


def test_the_bytes_of_a_base_are_bounded() -> None:
    count = BASE_BYTES_MAX // CHUNK_SIZE_BYTES_MAX

    def with_base(*sizes: int) -> Any:
        end = 3 + len(sizes)
        return decoded(
            lambda tree: aids(tree, *sizes, 50),
            layout(first=end),
            segment(LAYOUT_SEGMENT, first=end),
            segment(DELTA, base=list(range(3, end))),
        )

    assert len(with_base(*[CHUNK_SIZE_BYTES_MAX] * count).segments[DELTA].base) == count
    with pytest.raises(UntrustedBytes, match="more than"):
        with_base(*[CHUNK_SIZE_BYTES_MAX] * count, 1)


_HOSTILE = """
import resource, sys, msgspec
from pathlib import Path
from pcm_p2p.content.manifest import decode_untrusted
from pcm_p2p.errors import UntrustedBytes
data = Path(sys.argv[1]).read_bytes()
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
try:
    print("read", len(decode_untrusted(data).segments))
except UntrustedBytes as error:
    print("refused", error)
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


def _wide() -> dict[str, Any]:
    """A release of 30,000 chunks of one byte in as many segments, for which deltas are then written."""
    count = 30_000
    tree = tree_of()
    tree["chunk_ids"] = b"".join((number + 1).to_bytes(32, "big") for number in range(count))
    tree["chunk_sizes"], tree["aid_ids"], tree["aid_sizes"], tree["layouts"] = u32(*[1] * count), b"", b"", []
    tree["artifacts"] = [{**tree["artifacts"][0], "positions": u32(*range(count)), "stored_size": count}]
    return tree


def _one_run_with_many_deltas(tree: dict[str, Any]) -> None:
    """Each over the whole table: sizes added up anew for each of them would take minutes."""
    wide = {**tree["segments"][DELTA], "first": 0, "count": 30_000, "size": 1, "base": [0]}
    tree["segments"] = [{**wide, "kind": "full", "size": 10, "base": []}, *[wide] * 40_000]


def _deltas_with_wide_bases(tree: dict[str, Any]) -> None:
    """As many positions as the size of a manifest lets through."""
    wide = {"id": b"d" * 32, "size": 1, "kind": "delta", "count": 1000, "of": 0, "base": list(range(30_000))}
    full = {"id": b"f" * 32, "size": 10, "kind": "full", "count": 1000}
    tree["segments"] = [{**full, "first": at} for at in range(0, 30_000, 1000)]
    tree["segments"] += [{**wide, "first": at} for at in range(0, 30_000, 1000)]


def _one_base_chunk_again_and_again(tree: dict[str, Any]) -> None:
    tree["segments"] = [
        {"id": b"f" * 32, "size": 10, "kind": "full", "first": 0, "count": 30_000},
        {"id": b"d" * 32, "size": 1, "kind": "delta", "first": 0, "count": 30_000, "base": [0] * 5_000_000},
    ]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
@pytest.mark.parametrize(
    ("spoil", "answer"),
    [
        (_one_run_with_many_deltas, "refused a delta segment is of a base release that is unknown, or has"),
        (_deltas_with_wide_bases, "read 60"),
        (_one_base_chunk_again_and_again, "refused a delta segment names"),
    ],
)
def test_hostile_manifests_cost_little(spoil: Callable[[dict[str, Any]], None], answer: str, tmp_path: Path) -> None:
    tree = _wide()
    spoil(tree)
    (tmp_path / "manifest").write_bytes(msgspec.msgpack.encode(tree))
    command = [sys.executable, "-c", _HOSTILE, str(tmp_path / "manifest")]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    said, peak_kib = result.stdout.splitlines()
    assert said.startswith(answer)
    assert int(peak_kib) >> 10 < 400


def test_changed_bytes_are_refused_or_still_a_sound_manifest() -> None:
    rng, sound = random.Random(12), 0
    for _ in range(500):
        spoilt = bytearray(GOOD.encoded)
        for _ in range(rng.randrange(1, 4)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        try:
            manifest = decode_untrusted(bytes(spoilt))
        except UntrustedBytes:
            continue
        sound += 1
        for places in manifest.deltas.values():
            for place in places:
                base_chunks = [manifest.table_chunks[position] for position in manifest.segments[place].base]
                assert all(isinstance(chunk, ChunkId) for chunk in base_chunks)
        assert manifest.layout_first >= len(manifest.chunks)
    assert sound > 50
