"""Delivered files to a manifest and segment blobs: what the admin's machine does once per release.

Three passes, none of which holds an artifact in memory: *unpacking* (the stored form, where it is another file than the one
delivered), *cutting* (chunks, their ids, the hash of the whole) and *compressing* (segments, by worker processes, which read
the chunks again and check their ids, so a file that changes meanwhile is noticed).

Stopping it at any point loses the pass in hand at most: segments that are finished are found again by their recipe.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Literal

import msgspec

from pcm_p2p.content.chunker import cut, parameters_for
from pcm_p2p.content.compressor import Crew, Job, Made, Piece, make
from pcm_p2p.content.manifest import (
    CHUNKS_MAX,
    SCHEMA,
    Artifact,
    ChunkerParameters,
    Form,
    Manifest,
    Segment,
    decode_untrusted,
)
from pcm_p2p.content.segment import LEVEL_STORED, plan_runs
from pcm_p2p.content.stored_form import detect, write_stored
from pcm_p2p.content.workplace import Workplace, recipe_of
from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import ChunkId, SegmentId, check_name

LEVEL_MAX = 22
_TELL_BYTES = 8 << 20
"""Progress is told about every so many bytes: a hundred times a second at most."""


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """Where an ingest is. Bytes count within the phase; ``artifact`` is empty while segments are compressed."""

    phase: Literal["unpacking", "cutting", "compressing"]
    artifact: str
    bytes_done: int
    bytes_total: int
    segments_done: int = 0
    segments_total: int = 0


@dataclass(frozen=True, slots=True)
class Ingested:
    """``delivered`` files, their ``stored`` forms, and ``unique``: the stored forms with each chunk counted once."""

    manifest: Manifest
    segments_folder: Path
    delivered_bytes: int
    stored_bytes: int
    unique_bytes: int


@dataclass(slots=True)
class _Source:
    """One artifact on its way: ``path`` is what is cut, the delivered file itself if that is its stored form."""

    name: str
    form: Form
    path: Path
    delivered_size: int
    stored_size: int
    delivered_sha256: bytes = b""
    stored_sha256: bytes = b""
    positions: array[int] = field(default_factory=lambda: array("L"))


@dataclass(slots=True)
class _Table:
    """Distinct chunks in order of first appearance, and the place in the sources where each was seen."""

    position_of: dict[ChunkId, int] = field(default_factory=dict)
    sizes: array[int] = field(default_factory=lambda: array("L"))
    files: array[int] = field(default_factory=lambda: array("L"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))


Progress = Callable[[IngestProgress], None]


def ingest(
    files: Sequence[Path],
    *,
    release: str,
    version: str,
    counter: int,
    work: Path,
    level: int = 19,
    form: Form | Literal["auto"] = "auto",
    processes: int = 2,
    progress: Progress | None = None,
) -> Ingested:
    """Make ``release`` ``version`` of ``files``; blobs go to ``work/segments/ab/<id>``, and those there stay.

    ``level`` 0 does not compress; ``processes`` 0 compresses in this process. Raises ``InputError`` naming the file and what
    is wrong with it, ``DiskFull``, ``StorageError``.
    """
    if not LEVEL_STORED <= level <= LEVEL_MAX:
        raise InputError(f"compression level {level} is outside {LEVEL_STORED} … {LEVEL_MAX}")
    tell = progress or (lambda _: None)
    _check_names(files, release, version)
    with Workplace(work) as place:
        sources = _unpack(files, form, place, tell)
        parameters = parameters_for(sum(source.stored_size for source in sources))
        table = _cut(sources, parameters, tell)
        segments = _compress(sources, table, place, level, processes, tell)
    manifest = Manifest(
        schema=SCHEMA,
        release=release,
        version=version,
        counter=counter,
        chunker=parameters,
        artifacts=tuple(
            Artifact(
                name=source.name,
                form=source.form,
                delivered_size=source.delivered_size,
                delivered_sha256=source.delivered_sha256,
                stored_size=source.stored_size,
                stored_sha256=source.stored_sha256,
                positions=_packed(source.positions),
            )
            for source in sources
        ),
        chunk_ids=b"".join(table.position_of),
        chunk_sizes=_packed(table.sizes),
        segments=tuple(segments),
    )
    try:
        # What devices will refuse is refused here, by the same judge.
        manifest = decode_untrusted(msgspec.msgpack.encode(manifest))
    except UntrustedBytes as error:
        raise InputError(f"{release} {version} cannot be described: {error}", remedy="Release it in parts.") from error
    return Ingested(
        manifest=manifest,
        segments_folder=place.segments,
        delivered_bytes=sum(source.delivered_size for source in sources),
        stored_bytes=sum(source.stored_size for source in sources),
        unique_bytes=sum(table.sizes),
    )


def _packed(numbers: array[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def _check_names(files: Sequence[Path], release: str, version: str) -> None:
    if not files:
        raise InputError("a release has at least one file")
    seen: dict[str, Path] = {}
    try:
        check_name(release, "release")
        check_name(version, "version")
        for path in files:
            check_name(path.name, "file name")
            if path.name in seen:
                raise InputError(f"has the same name as {seen[path.name]}", path=path, remedy="Rename one of them.")
            seen[path.name] = path
    except UntrustedBytes as error:
        raise InputError(error.message, remedy="Rename it.") from None


def _unpack(files: Sequence[Path], form: Form | Literal["auto"], place: Workplace, tell: Progress) -> list[_Source]:
    total = sum(_facts(path).st_size for path in files)
    sources, done = list[_Source](), 0
    for number, path in enumerate(files):
        before = _facts(path)
        kind: Form = detect(path) if form == "auto" else form
        tell(IngestProgress("unpacking", path.name, done, total))
        source = _Source(path.name, kind, path.absolute(), before.st_size, before.st_size)
        if kind != "exact":
            source.delivered_sha256 = _sha256(path)
            source.path = place.stored / f"{number:04d}"
            write_stored(path, kind, source.path)
            source.stored_size = source.path.stat().st_size
            after = _facts(path)
            if (before.st_ino, before.st_size, before.st_mtime_ns) != (after.st_ino, after.st_size, after.st_mtime_ns):
                raise _changed(path)
        sources.append(source)
        done += before.st_size
        tell(IngestProgress("unpacking", path.name, done, total))
    return sources


def _facts(path: Path) -> os.stat_result:
    try:
        facts = path.stat()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from None
    if not stat.S_ISREG(facts.st_mode):
        raise InputError("is not a file", path=path)
    return facts


def _sha256(path: Path) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from None


def _changed(path: Path) -> InputError:
    return InputError("changed while it was being read", path=path, remedy="Run the command again.")


def _cut(sources: Sequence[_Source], parameters: ChunkerParameters, tell: Progress) -> _Table:
    table, total, before = _Table(), sum(source.stored_size for source in sources), 0
    for number, source in enumerate(sources):
        tell(IngestProgress("cutting", source.name, before, total))
        try:
            with source.path.open("rb", buffering=0) as file:
                for offset in _cut_one(file, number, source, parameters, table):
                    tell(IngestProgress("cutting", source.name, before + offset, total))
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", path=source.path) from None
        before += source.stored_size
        tell(IngestProgress("cutting", source.name, before, total))
    return table


def _cut_one(file: FileIO, number: int, source: _Source, parameters: ChunkerParameters, table: _Table) -> Iterator[int]:
    """Cut one file into the table; yields how far it is, now and then."""
    sha256, offset, told = hashlib.sha256(), 0, 0
    for piece in cut(file, parameters):
        chunk = ChunkId.of(piece)
        sha256.update(piece)
        position = table.position_of.setdefault(chunk, len(table.sizes))
        if position == len(table.sizes):
            if position == CHUNKS_MAX:
                raise InputError(
                    f"the release has more than {CHUNKS_MAX} chunks", path=source.path, remedy="Release it in parts."
                )
            table.sizes.append(len(piece))
            table.files.append(number)
            table.offsets.append(offset)
        source.positions.append(position)
        offset += len(piece)
        if offset - told >= _TELL_BYTES:
            told = offset
            yield offset
    if offset != source.stored_size:
        raise _changed(source.path)
    source.stored_sha256 = sha256.digest()
    source.delivered_sha256 = source.delivered_sha256 or source.stored_sha256


def _compress(
    sources: Sequence[_Source], table: _Table, place: Workplace, level: int, processes: int, tell: Progress
) -> list[Segment]:
    ids, runs = list(table.position_of), plan_runs(table.sizes)
    files = tuple(str(source.path) for source in sources)
    total, done_bytes = sum(table.sizes), 0
    made: dict[int, tuple[SegmentId, int]] = {}
    recipes: dict[int, bytes] = {}

    def finish(number: int, segment: SegmentId, size: int) -> None:
        nonlocal done_bytes
        made[number] = segment, size
        first, count = runs[number]
        done_bytes += sum(table.sizes[first : first + count])
        tell(IngestProgress("compressing", "", done_bytes, total, len(made), len(runs)))

    def jobs() -> Iterator[Job]:
        """What is still to be done, as it is asked for: descriptions of all segments at once would be large."""
        for number, (first, count) in enumerate(runs):
            recipe = recipe_of(ids[first : first + count], level)
            if found := place.find(recipe):
                finish(number, *found)
                continue
            recipes[number] = recipe
            pieces = tuple(
                Piece(table.files[at], table.offsets[at], table.sizes[at], bytes(ids[at]))
                for at in range(first, first + count)
            )
            yield Job(number, files, pieces, level, str(place.segments), str(place.temporary))

    tell(IngestProgress("compressing", "", 0, total, 0, len(runs)))
    for answer in _made(jobs(), level, processes):
        segment = SegmentId(answer.segment)
        place.note(recipes.pop(answer.number), segment)
        finish(answer.number, segment, answer.size)
    return [
        Segment(id=bytes(made[number][0]), size=made[number][1], kind="full", first=first, count=count)
        for number, (first, count) in enumerate(runs)
    ]


def _made(jobs: Iterator[Job], level: int, processes: int) -> Iterator[Made]:
    # Without compression the disk sets the pace, and with nothing to do there is nobody to start.
    if processes < 1 or level == LEVEL_STORED:
        workspace = bytearray()
        for job in jobs:
            yield make(job, workspace)
        return
    begin = next(jobs, None)
    if begin is None:
        return
    with Crew(processes) as crew:
        yield from crew.run(_chain(begin, jobs))


def _chain(begin: Job, rest: Iterator[Job]) -> Iterator[Job]:
    yield begin
    yield from rest
