"""Delivered files to a manifest and segment blobs: what the admin's machine does once per release.

Passes, none of which holds an artifact in memory: *unpacking* (the stored form, where it is another file than the one
delivered), *cutting* (chunks, their ids, the hash of the whole), *rebuilding* and *matching* (the stored forms of earlier
releases, and which of their chunks each run resembles), and *compressing* (segments, by worker processes, which read the
chunks again and check their ids, so a file that changes meanwhile is noticed).

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

from pcm_p2p.content.forms.stored_form import detect, write_stored
from pcm_p2p.content.manifest import (
    BASES_MAX,
    CHUNKS_MAX,
    SCHEMA,
    Artifact,
    ChunkerParameters,
    Form,
    Manifest,
    check_artifact_name,
    decode_untrusted,
)
from pcm_p2p.content.publishing.bases import BaseRelease
from pcm_p2p.content.publishing.chunker import cut, parameters_for
from pcm_p2p.content.publishing.comparison import Comparison, Skipped, compare
from pcm_p2p.content.publishing.deltas import Delta, Packed, Pile, lay_out, office_bytes
from pcm_p2p.content.publishing.packing import Packing, Workshop
from pcm_p2p.content.publishing.sides import Stored
from pcm_p2p.content.publishing.workplace import Workplace
from pcm_p2p.content.segment import LEVEL_STORED, plan_runs
from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import ChunkId, check_name

LEVEL_MAX = 22
_TELL_BYTES = 8 << 20
"""Progress is told about every so many bytes: a hundred times a second at most."""


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """Where an ingest is. Bytes count within the phase, bases while ``matching``; segments count full ones and deltas.

    ``artifact`` is empty while segments are compressed, and the title of the base in the two phases before.
    """

    phase: Literal["unpacking", "cutting", "rebuilding", "matching", "compressing"]
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
    offices: tuple[tuple[str, int], ...] = ()
    """For each base, newest first: its version, and what an office fetches that has it."""
    skipped: tuple[Skipped, ...] = ()
    why_not_gzip: str = ""
    """Why no delta looks into gzip members; empty if they do, or if there was none to make."""


@dataclass(frozen=True, slots=True)
class Workpiece:
    """A release in the making: its stored forms and the chunks of each, the table, the runs, the bases, what was made of it."""

    artifacts: Sequence[Stored]
    positions: Sequence[Sequence[int]]
    pile: Pile
    runs: Sequence[tuple[int, int]]
    comparison: Comparison
    packed: Packed


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
    bases: Sequence[BaseRelease] = (),
    progress: Progress | None = None,
    inspect: Callable[[Workpiece], None] | None = None,
) -> Ingested:
    """Make ``release`` ``version`` of ``files``; blobs go to ``work/segments/ab/<id>``, and those there stay.

    ``level`` 0 does not compress full segments; ``processes`` 0 compresses in this process. Deltas are made from each of
    ``bases``; one whose blobs are gone is skipped, unless it is ``required``. The same input gives the same manifest and blobs,
    whatever is there already and however many processes work. ``inspect`` is called when all is done and the stored forms are
    still there. Raises ``InputError`` naming the file and what is wrong with it,
    ``DiskFull``, ``StorageError``.
    """
    if len(bases) > BASES_MAX:
        raise InputError(f"{len(bases)} base releases were given; at most {BASES_MAX} are used")
    if not LEVEL_STORED <= level <= LEVEL_MAX:
        raise InputError(f"compression level {level} is outside {LEVEL_STORED} … {LEVEL_MAX}")
    tell = progress or (lambda _: None)
    _check_names(files, release, version)
    newest_first = sorted(bases, key=lambda base: -base.manifest.counter)
    with Workplace(work) as place, Workshop(0 if level == LEVEL_STORED and not bases else processes) as workshop:
        sources = _unpack(files, form, place, tell)
        parameters = parameters_for(sum(source.stored_size for source in sources))
        table = _cut(sources, parameters, tell)
        pile, runs = _pile(sources, table), plan_runs(table.sizes)
        artifacts = [Stored(source.name, source.form, source.path, 0, source.stored_size) for source in sources]
        positions = [source.positions for source in sources]
        found = compare(
            newest_first,
            artifacts,
            positions,
            pile,
            runs,
            place,
            workshop,
            level,
            lambda phase, title, done, total: tell(IngestProgress(phase, title, done, total)),
        )
        piles = [one.pile for one in found.rebuilt]
        packed = _pack(pile, runs, piles, found.deltas, place, level, workshop, tell)
        if inspect is not None:
            inspect(Workpiece(artifacts, positions, pile, runs, found, packed))
    manifests = [one.manifest for one in found.rebuilt]
    zones = lay_out(pile.chunks, runs, packed, manifests, piles, found.layouts)
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
        chunk_ids=b"".join(pile.chunks),
        chunk_sizes=_packed(table.sizes),
        segments=zones.segments,
        bases=zones.bases,
        aid_ids=b"".join(zones.aid_ids),
        aid_sizes=_packed(zones.aid_sizes),
        layouts=zones.layouts,
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
        offices=tuple((base.version, office_bytes(manifest, base.version, base.chunks)) for base in manifests),
        skipped=tuple(found.skipped),
        why_not_gzip=packed.why_not_gzip,
    )


def _pack(
    pile: Pile,
    runs: Sequence[tuple[int, int]],
    bases: Sequence[Pile],
    deltas: Sequence[Delta],
    place: Workplace,
    level: int,
    workshop: Workshop,
    tell: Progress,
) -> Packed:
    run_sizes = [sum(pile.sizes[at] for at in range(first, first + count)) for first, count in runs]
    total_bytes = sum(run_sizes) + sum(run_sizes[delta.run] for delta in deltas)
    total = len(runs) + len(deltas)

    def count(bytes_done: int, segments_done: int) -> None:
        tell(IngestProgress("compressing", "", bytes_done, total_bytes, segments_done, total))

    count(0, 0)
    return Packing(pile, runs, bases, deltas, place, level, count).run(workshop)


def _packed(numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def artifact_name(path: Path) -> str:
    """What a delivered file is called in the release: its own name, with the colon for which ``apt-get download`` writes %3a."""
    return path.name.replace("%3a", ":")


def _check_names(files: Sequence[Path], release: str, version: str) -> None:
    if not files:
        raise InputError("a release has at least one file")
    seen: dict[str, Path] = {}
    try:
        check_name(release, "release")
        check_name(version, "version")
        for path in files:
            name = check_artifact_name(check_name(artifact_name(path), "file name")).casefold()
            if name in seen:
                raise InputError(
                    f"has the same name as {seen[name]}, on systems that do not tell upper from lower case at least",
                    path=path,
                    remedy="Rename one of them.",
                )
            seen[name] = path
    except UntrustedBytes as error:
        raise InputError(error.message, remedy="Rename it.") from None


def _unpack(files: Sequence[Path], form: Form | Literal["auto"], place: Workplace, tell: Progress) -> list[_Source]:
    total = sum(_facts(path).st_size for path in files)
    sources, done = list[_Source](), 0
    for number, path in enumerate(files):
        before = _facts(path)
        kind: Form = detect(path) if form == "auto" else form
        tell(IngestProgress("unpacking", path.name, done, total))
        source = _Source(artifact_name(path), kind, path.absolute(), before.st_size, before.st_size)
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
        raise InputError(
            f"cannot be read: {error.strerror}", path=path, remedy="Check the path, and who may read it."
        ) from None
    if not stat.S_ISREG(facts.st_mode):
        raise InputError("is not a file", path=path, remedy="Name files; a folder is packed first.")
    return facts


def _sha256(path: Path) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=path, remedy="Check the path, and who may read it."
        ) from None


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
            raise InputError(
                f"cannot be read: {error.strerror}", path=source.path, remedy="Check the path, and who may read it."
            ) from None
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


def _pile(sources: Sequence[_Source], table: _Table) -> Pile:
    paths = tuple(str(source.path) for source in sources)
    return Pile(list(table.position_of), table.sizes, table.files, table.offsets, paths)
