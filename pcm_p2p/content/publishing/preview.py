"""What an update will cost, before it is published: a release made in a folder of its own, and where its bytes go.

How bytes are attributed: a segment belongs to all members that its run has bytes of, so each gets a share of it, by an estimate
of its own. For a full segment that is the size of the member's part at zstd level 1; for a delta the size of those pieces of
it, some 256 bytes each, that the old member does not have, at the same level; where the delta looks into gzip members, of what
they hold. Shares are rounded so that their sum is the
segment's size: over all members the sums are those of the segments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import zstandard
from pyfastcdc import FastCDC

from pcm_p2p.content.delta.gzip_members import unpacked
from pcm_p2p.content.forms.members import members
from pcm_p2p.content.manifest import Form, Manifest
from pcm_p2p.content.publishing.bases import BaseRelease, Unusable, rebuild
from pcm_p2p.content.publishing.deltas import slices_of
from pcm_p2p.content.publishing.ingest import Ingested, IngestProgress, Workpiece, ingest
from pcm_p2p.content.publishing.matching import Matcher, Side
from pcm_p2p.content.publishing.packing import Workshop
from pcm_p2p.content.publishing.sides import Stored, side_of, step_for
from pcm_p2p.content.segment import LEVEL_STORED
from pcm_p2p.errors import InputError

_LEVEL = 1
_PIECE_BYTES = 256
_OLD_BYTES_MAX = 24 << 20
_Seen = Callable[[bytes], bytes]
_SAME = 1
"""The estimate of a part that did not change: next to nothing."""


@dataclass(frozen=True, slots=True)
class MemberCost:
    """What a member of the container adds; all sizes in bytes."""

    path: str
    stored_bytes: int
    full_bytes: int
    delta_bytes: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What a release would cost. ``members``: the most expensive delta first."""

    delivered_bytes: int
    stored_bytes: int
    full_segment_bytes: int
    delta_segment_bytes: int
    office_with_base_bytes: int
    office_without_base_bytes: int
    seconds: float
    members: tuple[MemberCost, ...]
    why_not_gzip: str = ""
    """As ``ingest.Ingested``."""


@dataclass(frozen=True, slots=True)
class FilesToCompare:
    """A version as it was delivered."""

    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class ReleaseToCompare:
    """A version as it was released: its manifest, and the folder of its blobs."""

    manifest: Manifest
    segments: Path


Version = FilesToCompare | ReleaseToCompare


def preview(
    old: Version,
    new: Version,
    *,
    work: Path,
    level: int = 19,
    form: Form | Literal["auto"] = "auto",
    processes: int = 2,
    progress: Callable[[IngestProgress], None] | None = None,
) -> Preview:
    """Make ``new`` with deltas from ``old`` in the empty folder ``work``, and tell what came of it.

    ``seconds`` is the time that takes, with comparing. Raises what ``ingest`` raises.
    """
    begun = time.monotonic()
    if isinstance(old, FilesToCompare):
        made = ingest(
            old.files,
            release="old",
            version="old",
            counter=1,
            work=work / "old",
            level=LEVEL_STORED,
            form=form,
            processes=0,
        )
        old = ReleaseToCompare(made.manifest, made.segments_folder)
    delivered_bytes = None
    if isinstance(new, ReleaseToCompare):
        delivered_bytes = sum(artifact.delivered_size for artifact in new.manifest.artifacts)
        new = FilesToCompare(_files_of(new, work / "files", processes))
    costs = _Costs()
    ingested = ingest(
        new.files,
        release="new",
        version="new",
        counter=old.manifest.counter + 1,
        work=work / "new",
        level=level,
        form=form,
        processes=processes,
        bases=[BaseRelease(old.manifest, old.segments, required=True)],
        progress=progress,
        inspect=costs.attribute,
    )
    return _preview(ingested, costs, delivered_bytes, time.monotonic() - begun)


def _preview(ingested: Ingested, costs: _Costs, delivered_bytes: int | None, seconds: float) -> Preview:
    manifest = ingested.manifest
    return Preview(
        delivered_bytes=ingested.delivered_bytes if delivered_bytes is None else delivered_bytes,
        stored_bytes=ingested.stored_bytes,
        full_segment_bytes=sum(segment.size for _, segment in manifest.full_segments()),
        delta_segment_bytes=sum(segment.size for segment in manifest.segments if segment.kind == "delta"),
        office_with_base_bytes=ingested.offices[0][1],
        office_without_base_bytes=sum(segment.size for _, segment in manifest.full_segments()),
        seconds=round(seconds, 3),
        members=costs.members(),
        why_not_gzip=ingested.why_not_gzip,
    )


def _files_of(release: ReleaseToCompare, folder: Path, processes: int) -> tuple[Path, ...]:
    """The stored forms of a release as files with the names of its artifacts. Raises ``InputError``."""
    folder.mkdir()
    with Workshop(processes) as workshop:
        try:
            rebuilt = rebuild(
                BaseRelease(release.manifest, release.segments), folder / ".joined", workshop, lambda _: None
            )
        except Unusable as error:
            raise InputError(f"{release.manifest.title} cannot be read: {error}") from None
    files = []
    for artifact in rebuilt.artifacts:
        files.append(folder / artifact.name)
        artifact.copy_to(files[-1])
    return tuple(files)


@dataclass(slots=True)
class _Costs:
    """Bytes by member, as they are attributed."""

    stored: dict[str, int] = field(default_factory=dict)
    full: dict[str, int] = field(default_factory=dict)
    delta: dict[str, int] = field(default_factory=dict)

    def members(self) -> tuple[MemberCost, ...]:
        rows = [
            MemberCost(path, size, self.full.get(path, 0), self.delta.get(path, 0))
            for path, size in self.stored.items()
        ]
        return tuple(sorted(rows, key=lambda row: (-row.delta_bytes, -row.full_bytes, row.path)))

    def attribute(self, piece: Workpiece) -> None:
        """Give each member its shares of all segments. There is one base at most."""
        step = step_for([sum(artifact.size for artifact in piece.artifacts)])
        new = side_of(piece.artifacts, piece.pile, piece.positions, step)
        paths = _paths(piece.artifacts)
        for path, member in zip(paths, new.members, strict=True):
            self.stored[path] = self.stored.get(path, 0) + member.size
        reader = _Reader(piece.artifacts)
        base = _Base(piece, new) if piece.comparison.rebuilt else None
        deltas = {delta.run: blob for delta, blob in piece.packed.deltas.items()}
        for run, (first, count) in enumerate(piece.runs):
            parts = list(_parts(new, slices_of(new, range(first, first + count))))
            data = [reader.read(begin, end - begin) for _, begin, end in parts]
            owners = [paths[number] for number, _, _ in parts]
            _share(self.full, owners, piece.packed.full[run][1], [_packed_size(part) for part in data])
            if base is not None and run in deltas:
                seen: _Seen = unpacked if deltas[run].needs_gzip else bytes
                estimates = [base.estimate(*part, one, seen) for part, one in zip(parts, data, strict=True)]
                _share(self.delta, owners, deltas[run].size, estimates)


class _Base:
    """The old version, as far as estimates need it."""

    def __init__(self, piece: Workpiece, new: Side) -> None:
        rebuilt = piece.comparison.rebuilt[0]
        positions = [artifact.chunk_positions() for artifact in rebuilt.manifest.artifacts]
        step = step_for([sum(artifact.size for artifact in each) for each in (piece.artifacts, rebuilt.artifacts)])
        if step != step_for([sum(artifact.size for artifact in piece.artifacts)]):
            new = side_of(piece.artifacts, piece.pile, piece.positions, step)
        self._matcher = Matcher(new, side_of(rebuilt.artifacts, rebuilt.pile, positions, step))
        self._reader = _Reader(rebuilt.artifacts)

    def estimate(self, number: int, begin: int, end: int, data: bytes, seen: _Seen) -> int:
        """What the bytes ``begin`` … ``end - 1`` of member ``number`` add to a delta, both versions as they are ``seen``."""
        old_begin, old_end = self._matcher.counterpart(number, begin, end)
        old = self._reader.read(old_begin, min(old_end - old_begin, _OLD_BYTES_MAX))
        if not old:
            return _packed_size(seen(data))
        known = set(_pieces(seen(old)))
        novel = [piece for piece in _pieces(seen(data)) if piece not in known]
        return _packed_size(b"".join(novel)) if novel else _SAME


class _Reader:
    """Stored forms, joined."""

    def __init__(self, artifacts: Sequence[Stored]) -> None:
        self._artifacts = artifacts

    def read(self, offset: int, size: int) -> bytes:
        parts, at = list[bytes](), 0
        for artifact in self._artifacts:
            begin, end = max(offset, at), min(offset + size, at + artifact.size)
            if begin < end:
                try:
                    with artifact.path.open("rb") as file:
                        file.seek(artifact.begin + begin - at)
                        parts.append(file.read(end - begin))
                except OSError as error:
                    raise InputError(f"cannot be read: {error.strerror}", path=artifact.path) from None
            at += artifact.size
        return b"".join(parts)


def _paths(artifacts: Sequence[Stored]) -> list[str]:
    """What people call each member: its path, with the artifact's name before it if there are several of these."""
    found = []
    for artifact in artifacts:
        for member in members(artifact.path, artifact.form, artifact.begin, artifact.begin + artifact.size):
            inside = "/".join(filter(None, (artifact.name if len(artifacts) > 1 else "", member.path)))
            found.append(inside or artifact.name)
    return found


def _parts(new: Side, slices: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Member and its first and last byte (exclusive), for all members that have bytes in the slices."""
    parts = []
    for offset, size in slices:
        for number in new.members_within(offset, offset + size):
            member = new.members[number]
            parts.append((number, max(offset, member.offset), min(offset + size, member.offset + member.size)))
    return parts


def _pieces(data: bytes) -> Iterator[bytes]:
    cutter = FastCDC(_PIECE_BYTES, min_size=_PIECE_BYTES // 4, max_size=_PIECE_BYTES * 4, normalized_chunking=1)
    return (bytes(piece.data) for piece in cutter.cut_buf(data))


def _packed_size(data: bytes) -> int:
    return len(zstandard.ZstdCompressor(level=_LEVEL).compress(data))


def _share(costs: dict[str, int], owners: Sequence[str], size: int, weights: Sequence[int]) -> None:
    """Add ``size`` to the costs of the owners in proportion to the weights; nothing is lost by rounding."""
    total, seen, given = sum(weights), 0, 0
    for owner, weight in zip(owners, weights, strict=True):
        seen += weight
        upto = size * seen // total
        costs[owner] = costs.get(owner, 0) + upto - given
        given = upto
