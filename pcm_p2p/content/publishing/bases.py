"""Base releases on the admin's machine: their stored forms made again of their segments, and the layouts of these.

A base needs its manifest and the blobs of its full segments, nothing that was delivered. All of its artifacts are joined in
one file; chunks of zeros are holes in it. A base whose blobs are gone or damaged is unusable, which costs its deltas only.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pcm_p2p.content.manifest import Artifact, Layout, Manifest
from pcm_p2p.content.publishing.compressor import Made, Unpack, Unpacked
from pcm_p2p.content.publishing.deltas import LAYOUT_PIECE_BYTES_MAX, PackedLayout, Pile
from pcm_p2p.content.publishing.layout import make_layout, package_of
from pcm_p2p.content.publishing.packing import Workshop
from pcm_p2p.content.publishing.sides import Stored
from pcm_p2p.content.publishing.workplace import Workplace, blob_path, storage_error
from pcm_p2p.content.segment import encode_full
from pcm_p2p.errors import InputError
from pcm_p2p.ids import ChunkId, SegmentId


@dataclass(frozen=True, slots=True)
class BaseRelease:
    """An earlier release that deltas may start from. ``segments`` is the folder of its blobs."""

    manifest: Manifest
    segments: Path
    required: bool = False
    """Asked for by name: that it cannot be used is an error then."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A base whose bytes are there: ``pile`` says where its chunks are, ``artifacts`` where its stored forms are."""

    manifest: Manifest
    pile: Pile
    artifacts: tuple[Stored, ...]


@dataclass(frozen=True, slots=True)
class LayoutOf:
    """The layout of a base artifact. The last three are of its Debian package, and empty for other forms."""

    artifact: Artifact
    data: bytes
    package: str = ""
    package_version: str = ""
    architecture: str = ""


class Unusable(Exception):
    """Why a base cannot be used."""


def rebuild(base: BaseRelease, file: Path, workshop: Workshop, tell: Callable[[int], None]) -> Rebuilt:
    """Write the stored forms of ``base`` to ``file``; ``tell`` gets the bytes unpacked so far.

    Raises ``Unusable``, and ``StorageError`` or ``DiskFull`` for ``file``.
    """
    manifest = base.manifest
    offsets: list[list[int]] = [[] for _ in manifest.sizes]
    artifacts, at = list[Stored](), 0
    for artifact in manifest.artifacts:
        artifacts.append(Stored(artifact.name, artifact.form, file, at, artifact.stored_size))
        for position in artifact.chunk_positions():
            offsets[position].append(at)
            at += manifest.sizes[position]
    try:
        with file.open("xb") as created:
            created.truncate(at)
    except OSError as error:
        raise storage_error(f"{file} cannot be created", error) from error
    done = 0
    runs = dict(manifest.full_segments())
    jobs = (
        Unpack(
            index,
            str(blob_path(base.segments, segment.segment_id)),
            str(file),
            tuple((bytes(manifest.chunks[at]), manifest.sizes[at]) for at in segment.positions),
            tuple(tuple(offsets[at]) for at in segment.positions),
        )
        for index, segment in runs.items()
    )
    for answer in workshop.run(jobs):
        if not isinstance(answer, Unpacked) or answer.problem:
            raise Unusable("" if isinstance(answer, Made) else answer.problem)
        done += sum(manifest.sizes[at] for at in runs[answer.number].positions)
        tell(done)
    pile = Pile(
        chunks=manifest.chunks,
        sizes=manifest.sizes,
        files=array("B", bytes(len(offsets))),
        offsets=array("Q", (places[0] for places in offsets)),
        paths=(str(file),),
    )
    return Rebuilt(manifest, pile, tuple(artifacts))


def layouts_of(rebuilt: Rebuilt, place: Workplace) -> Iterator[LayoutOf]:
    """The layouts of those artifacts that can have one. Raises ``StorageError``."""
    sizes = rebuilt.manifest.sizes
    for artifact, stored in zip(rebuilt.manifest.artifacts, rebuilt.artifacts, strict=True):
        if artifact.form not in ("deb", "tar"):
            continue
        alone = place.stored / "layout"
        try:
            stored.copy_to(alone)
            positions = artifact.chunk_positions()
            chunks = [rebuilt.manifest.chunks[at] for at in positions]
            data = make_layout(alone, artifact.form, chunks, [sizes[at] for at in positions])
            if data is not None:
                yield LayoutOf(artifact, data, *(package_of(alone) if artifact.form == "deb" else ()))
        except InputError:
            continue  # a stored form that cannot be read as what it is has no layout
        finally:
            alone.unlink(missing_ok=True)


def pack_layout(of: int, layout: LayoutOf, place: Workplace, level: int) -> PackedLayout:
    """The blob of a layout, kept among the segments. Raises ``StorageError``."""
    step = LAYOUT_PIECE_BYTES_MAX
    chunks = [layout.data[at : at + step] for at in range(0, len(layout.data), step)]
    blob = encode_full(chunks, level)
    segment = SegmentId.of(blob)
    temporary = place.temporary / f"layout-{segment.short}"
    try:
        temporary.write_bytes(blob)
    except OSError as error:
        raise storage_error(f"segment {segment.short}… cannot be written", error) from error
    place.keep(temporary, segment)
    artifact = layout.artifact
    row = Layout(
        of,
        artifact.name,
        artifact.form,
        artifact.stored_sha256,
        0,
        len(chunks),
        layout.package,
        layout.package_version,
        layout.architecture,
    )
    return PackedLayout(row, tuple((ChunkId.of(chunk), len(chunk)) for chunk in chunks), segment, len(blob))
