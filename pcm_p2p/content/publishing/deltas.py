"""Which deltas a release gets, and what they add to its manifest. Pure.

A run gets a delta from each base that has not all of its chunks. The chunks that deltas start from form the base zone of the
table; where the table would become too long, the oldest base goes without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import UNSET

from pcm_p2p.content.manifest import BASE_BYTES_MAX, CHUNKS_MAX, Base, Layout, Manifest, Segment
from pcm_p2p.content.publishing.matching import Matcher, Side
from pcm_p2p.ids import ChunkId, SegmentId

LAYOUT_PIECE_BYTES_MAX = 1 << 20
"""Choice: the largest chunk of the default chunker."""


@dataclass(frozen=True, slots=True)
class Pile:
    """Chunks in table order, and where the bytes of each are: ``files`` refers to ``paths``."""

    chunks: Sequence[ChunkId]
    sizes: Sequence[int]
    files: Sequence[int]
    offsets: Sequence[int]
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """A delta to be made: of which base, for which run, from which chunks of the base's table."""

    of: int
    run: int
    base: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeltaBlob:
    """A delta that was made: its id, its size in bytes, whether it takes a gzip to decode it (``delta.needs_gzip``)."""

    segment: SegmentId
    size: int
    needs_gzip: bool = False


@dataclass(frozen=True, slots=True)
class Packed:
    """Id and size in bytes of each run's full segment, and the deltas that are worth it.

    ``why_not_gzip``: why no delta looks into gzip members; empty if they do, or if there was none to make.
    """

    full: tuple[tuple[SegmentId, int], ...]
    deltas: dict[Delta, DeltaBlob]
    why_not_gzip: str = ""


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """A layout as it is published: ``row`` without its place, the chunks that it is cut into, the blob of its segment."""

    row: Layout
    chunks: tuple[tuple[ChunkId, int], ...]
    segment: SegmentId
    size: int


@dataclass(frozen=True, slots=True)
class Zones:
    """What a manifest says of bases: its fields by these names, and all segments."""

    segments: tuple[Segment, ...]
    bases: tuple[Base, ...]
    aid_ids: tuple[ChunkId, ...]
    aid_sizes: tuple[int, ...]
    layouts: tuple[Layout, ...]


def plan_deltas(
    new: Side,
    chunks: Sequence[ChunkId],
    runs: Sequence[tuple[int, int]],
    of: int,
    base: Side,
    base_chunks: Sequence[ChunkId],
    *,
    installable: bool = False,
) -> list[Delta]:
    """The deltas from base ``of``: none for runs that it has already, nor for those with which it has nothing in common.

    ``installable``: the base has layouts. Then a run that it has already gets a delta too, of some bytes, which nobody fetches:
    it tells devices that have the base installed, and not cached, what is worth making of their files.
    """
    position_of = {chunk: position for position, chunk in enumerate(base_chunks)}
    matcher = Matcher(new, base)
    deltas = list[Delta]()
    for number, (first, count) in enumerate(runs):
        run = range(first, first + count)
        unchanged = [position_of[chunks[at]] for at in run if chunks[at] in position_of]
        if len(unchanged) == count:
            if installable and sum(new.sizes[at] for at in run) <= BASE_BYTES_MAX:
                deltas.append(Delta(of, number, tuple(dict.fromkeys(unchanged))))
            continue
        if found := matcher.base_of(slices_of(new, run), unchanged):
            deltas.append(Delta(of, number, tuple(found)))
    return deltas


def slices_of(side: Side, positions: Iterable[int]) -> list[tuple[int, int]]:
    """(offset, size) of the first occurrence of each chunk; those that follow each other as one."""
    joined: list[tuple[int, int]] = []
    for position in positions:
        offset, size = side.offsets[side.first_places[position]], side.sizes[position]
        if joined and sum(joined[-1]) == offset:
            joined[-1] = joined[-1][0], joined[-1][1] + size
        else:
            joined.append((offset, size))
    return joined


def that_fit(
    deltas: Sequence[Delta], chunks: Sequence[ChunkId], bases: Sequence[Sequence[ChunkId]], layout_chunks: Sequence[int]
) -> int:
    """Of how many bases, newest first, the chunks fit in the table.

    ``layout_chunks``: how many chunks the layouts of each base are.
    """
    table, layouts = set(chunks), 0
    for of, base in enumerate(bases):
        table.update(base[position] for delta in deltas if delta.of == of for position in delta.base)
        layouts += layout_chunks[of]
        if len(table) + layouts > CHUNKS_MAX:
            return of
    return len(bases)


def lay_out(
    chunks: Sequence[ChunkId],
    runs: Sequence[tuple[int, int]],
    packed: Packed,
    bases: Sequence[Manifest],
    piles: Sequence[Pile],
    layouts: Mapping[int, Sequence[PackedLayout]],
) -> Zones:
    """The zones behind the release zone, and the segments. Bases that have no part in it are left out."""
    known = set(chunks)
    useful = [
        of
        for of, base in enumerate(bases)
        if any(delta.of == of for delta in packed.deltas) or not known.isdisjoint(base.chunks)
    ]
    place_of = {chunk: position for position, chunk in enumerate(chunks)}
    aid_ids, aid_sizes = list[ChunkId](), list[int]()
    segments = [
        Segment(id=bytes(segment), size=size, kind="full", first=first, count=count)
        for (first, count), (segment, size) in zip(runs, packed.full, strict=True)
    ]
    for delta, blob in packed.deltas.items():
        pile = piles[delta.of]
        for position in delta.base:
            if pile.chunks[position] not in place_of:
                place_of[pile.chunks[position]] = len(chunks) + len(aid_ids)
                aid_ids.append(pile.chunks[position])
                aid_sizes.append(pile.sizes[position])
        first, count = runs[delta.run]
        base = tuple(place_of[pile.chunks[position]] for position in delta.base)
        segments.append(
            Segment(
                id=bytes(blob.segment),
                size=blob.size,
                kind="delta",
                first=first,
                count=count,
                base=base,
                of=useful.index(delta.of),
                needs="gzip" if blob.needs_gzip else UNSET,
            )
        )
    rows = list[Layout]()
    for of in useful:
        for layout in layouts.get(of, ()):
            # Two bases with the same artifact have the same layout, and a chunk has one place in the table.
            ids = [chunk for chunk, _ in layout.chunks]
            if len(set(ids)) < len(ids) or any(chunk in place_of for chunk in ids):
                continue
            first = len(chunks) + len(aid_ids)
            for chunk, size in layout.chunks:
                place_of[chunk] = len(chunks) + len(aid_ids)
                aid_ids.append(chunk)
                aid_sizes.append(size)
            count = len(chunks) + len(aid_ids) - first
            rows.append(_placed(layout.row, useful.index(of), first, count))
            segments.append(
                Segment(id=bytes(layout.segment), size=layout.size, kind="layout", first=first, count=count)
            )
    return Zones(
        tuple(segments),
        tuple(Base(bases[of].version, bytes(bases[of].manifest_id)) for of in useful),
        tuple(aid_ids),
        tuple(aid_sizes),
        tuple(rows),
    )


def _placed(row: Layout, of: int, first: int, count: int) -> Layout:
    return Layout(
        of, row.artifact, row.form, row.stored_sha256, first, count, row.package, row.package_version, row.architecture
    )


def office_bytes(manifest: Manifest, version: str | None = None, chunks: Sequence[ChunkId] = ()) -> int:
    """What an office fetches that has all of ``chunks``, those of the base release ``version``, or nothing: segment bytes."""
    known, total = set(chunks), 0
    of = next((of for of, base in enumerate(manifest.bases) if base.version == version), -1)
    for index, segment in manifest.full_segments():
        if all(manifest.chunks[position] in known for position in segment.positions):
            continue
        deltas = (manifest.segments[at] for at in manifest.deltas.get(index, ()))
        total += min([segment.size, *(delta.size for delta in deltas if delta.of == of)])
    return total
