"""Manifest: the signed description of one release. Pure data; decoding checks everything that arithmetic can check.

A manifest has one *table* of chunks; everything else refers to positions in it: artifacts list positions, segments cover runs
of positions, have-maps on the wire are bit fields over it. The table has three zones, in this order:

=============  =====================================================  ==========================================================
zone           its chunks                                             who needs them
=============  =====================================================  ==========================================================
release        ``chunk_ids``: the distinct chunks of the release,     every device that wants the release
               in order of first appearance
base           the begin of ``aid_ids``: chunks of earlier releases   whoever applies a delta; what is in the release too has its
               that deltas start from                                 place there only
layout         the rest of ``aid_ids``: the *layouts*, which tell     a device that has a base release installed, while nobody in
               how a base artifact is made of files that are          the office has the chunks of it
               installed (``layout``)
=============  =====================================================  ==========================================================

Encoding: MessagePack of the structs below (map keys are the field names), at most ``SIZE_BYTES_MAX``. The bytes are a TUF
target, so their SHA-256 is signed; ``ManifestId`` is their BLAKE3 and names the manifest on the wire. Manifests of schema
``pcm.manifest/1`` (no aids, full segments only) are still read: devices keep some to roll back to.

Invariants that ``decode_untrusted`` enforces, each with its own message:

- names are single path components (``ids.check_name``); artifact names are distinct;
- chunk ids are distinct over the table; sizes are 1 … ``CHUNK_SIZE_BYTES_MAX``; at most ``CHUNKS_MAX`` chunks in the table;
- each artifact's positions are in the release zone and its sizes add up to ``stored_size``; every chunk is used;
- the *full* segments tile the release zone: in order, without gap or overlap; each yields at most ``SEGMENT_OUTPUT_BYTES_MAX``
  (or exactly one chunk) and its blob is no larger than its output plus ``SEGMENT_OVERHEAD_BYTES_MAX``;
- a *delta* segment yields what one of the full segments yields, in fewer bytes; its base is known: distinct positions before the
  layout zone, at most ``BASE_BYTES_MAX`` together; there is at most one delta for a run and a base release; no other segment
  *needs* a program of the device;
- the *layout* segments tile the layout zone, one for each of ``layouts``; every chunk of the base zone is in the base of a delta.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from typing import Literal

import msgspec

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import ChunkId, ManifestId, SegmentId, check_name

SCHEMA = "pcm.manifest/2"
SCHEMAS_READ = ("pcm.manifest/1", SCHEMA)
SIZE_BYTES_MAX = 8 << 20
"""Choice: a 1 TiB release at the largest chunk size needs 40 MB; releases of that size are cut into several."""
CHUNKS_MAX = 65_536
CHUNK_SIZE_BYTES_MAX = 4 << 20
"""Choice: four times the ceiling of the default chunker, so that larger artifacts may use larger chunks (DESIGN.md 6)."""
SEGMENT_OUTPUT_BYTES_MAX = 16 << 20
"""DESIGN.md 6: up to 16 MiB of output a segment."""
SEGMENT_OVERHEAD_BYTES_MAX = 64 << 10
BASE_BYTES_MAX = 48 << 20
"""Measured: a run of 16 MiB finds what it needs in the matching 16 MiB of the base and 4 MiB on either side (postgresql: 25.1 %
with 4 MiB, 25.2 % with 8); what is more serves runs of many files. With it a decoder stays far below 256 MB."""
BASES_MAX = 8
ARTIFACTS_MAX = 4_096

_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
"""Windows: with any ending, devices in every folder."""

Form = Literal["deb", "tar", "zip", "exact"]


class ChunkerParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the table was cut. ``algorithm`` names the cut-point function; sizes in bytes."""

    algorithm: str
    size_bytes_min: int
    size_bytes_avg: int
    size_bytes_max: int


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the release: what was delivered to the admin, and the stored form that devices assemble.

    ``positions`` is packed little-endian u32: places in the chunk table, in order; joined they are the stored form.
    """

    name: str
    form: Form
    delivered_size: int
    delivered_sha256: bytes
    stored_size: int
    stored_sha256: bytes
    positions: bytes

    def chunk_positions(self) -> memoryview:
        """The positions as a sequence of ints (a view; no copy)."""
        return memoryview(self.positions).cast("I")


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A blob at the origin that yields chunks ``first … first+count-1`` of the table. ``size`` is the blob's, in bytes.

    ``base``: for a delta, the positions of its base chunks in the order in which they are joined; ``of``: which of the
    manifest's ``bases`` they come from; ``needs``: the program without which a device cannot decode it (``repacking``), and
    nothing at all, not even in the encoding, where it needs none.
    """

    id: bytes
    size: int
    kind: Literal["full", "delta", "layout"]
    first: int
    count: int
    base: tuple[int, ...] = ()
    of: int = 0
    needs: Literal["gzip"] | msgspec.UnsetType = msgspec.UNSET

    @property
    def needs_gzip(self) -> bool:
        return self.needs == "gzip"

    @property
    def segment_id(self) -> SegmentId:
        return SegmentId(self.id)

    @property
    def positions(self) -> range:
        return range(self.first, self.first + self.count)


class Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An earlier release that deltas start from; ``manifest`` is the id of its manifest."""

    version: str
    manifest: bytes


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the stored form of a base artifact is made of installed files: chunks ``first … first+count-1`` joined (``layout``).

    ``of``: which of ``bases``; ``artifact``, ``form`` and ``stored_sha256``: the artifact in it. ``package``,
    ``package_version`` and ``architecture`` name the Debian package, and are empty for other forms.
    """

    of: int
    artifact: str
    form: Form
    stored_sha256: bytes
    first: int
    count: int
    package: str = ""
    package_version: str = ""
    architecture: str = ""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """One release. ``chunk_ids`` is packed 32-byte BLAKE3, ``chunk_sizes`` packed little-endian u32, both in table order.

    ``counter`` grows with each release of the same name: a device never goes to a lower one (Uptane's release counter).
    """

    schema: str
    release: str
    version: str
    counter: int
    chunker: ChunkerParameters
    artifacts: tuple[Artifact, ...]
    chunk_ids: bytes
    chunk_sizes: bytes
    segments: tuple[Segment, ...]
    bases: tuple[Base, ...] = ()
    aid_ids: bytes = b""
    aid_sizes: bytes = b""
    layouts: tuple[Layout, ...] = ()

    @cached_property
    def sizes(self) -> memoryview:
        """Chunk sizes of the release in bytes, by position."""
        return memoryview(self.chunk_sizes).cast("I")

    @cached_property
    def chunks(self) -> tuple[ChunkId, ...]:
        """Chunk ids of the release, by position."""
        return _ids(self.chunk_ids)

    @cached_property
    def table_sizes(self) -> memoryview:
        """Chunk sizes in bytes, by position, over all zones of the table."""
        return memoryview(self.chunk_sizes + self.aid_sizes).cast("I")

    @cached_property
    def table_chunks(self) -> tuple[ChunkId, ...]:
        """Chunk ids by position, over all zones of the table."""
        return self.chunks + _ids(self.aid_ids)

    @cached_property
    def layout_first(self) -> int:
        """Where the layout zone begins: the length of the table if there is none."""
        return min((layout.first for layout in self.layouts), default=len(self.table_sizes))

    @cached_property
    def position_of(self) -> dict[ChunkId, int]:
        """Positions by chunk id, over all zones of the table."""
        return {chunk: position for position, chunk in enumerate(self.table_chunks)}

    @cached_property
    def encoded(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @cached_property
    def manifest_id(self) -> ManifestId:
        return ManifestId.of(self.encoded)

    @property
    def title(self) -> str:
        return f"{self.release} {self.version}"

    def full_segments(self) -> Iterator[tuple[int, Segment]]:
        """The full segments with their index in ``segments``, in table order."""
        return ((index, segment) for index, segment in enumerate(self.segments) if segment.kind == "full")

    @cached_property
    def deltas(self) -> dict[int, tuple[int, ...]]:
        """For each full segment that has any: the deltas that yield the same (all are places in ``segments``), smallest first."""
        full = {(segment.first, segment.count): index for index, segment in self.full_segments()}
        found: dict[int, list[int]] = {}
        for index, segment in enumerate(self.segments):
            if segment.kind == "delta":
                found.setdefault(full[segment.first, segment.count], []).append(index)
        return {
            place: tuple(sorted(indexes, key=lambda index: (self.segments[index].size, index)))
            for place, indexes in found.items()
        }

    def layout_segments(self) -> Iterator[tuple[int, Segment]]:
        """The layout segments with their index in ``segments``, in the order of ``layouts``."""
        return ((index, segment) for index, segment in enumerate(self.segments) if segment.kind == "layout")

    def artifact(self, name: str) -> Artifact | None:
        return next((artifact for artifact in self.artifacts if artifact.name == name), None)


def _ids(packed: bytes) -> tuple[ChunkId, ...]:
    return tuple(ChunkId(packed[at : at + 32]) for at in range(0, len(packed), 32))


_decoder = msgspec.msgpack.Decoder(Manifest)


def decode_untrusted(data: bytes) -> Manifest:
    """Bytes to a manifest that keeps every invariant above; raises ``UntrustedBytes`` and nothing else."""
    if len(data) > SIZE_BYTES_MAX:
        raise UntrustedBytes(f"manifest has {len(data)} bytes; at most {SIZE_BYTES_MAX} are read")
    try:
        manifest = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Bad UTF-8 is reported as UnicodeDecodeError, which is not a msgspec.DecodeError.
        raise UntrustedBytes(f"manifest does not fit its schema: {error}") from None
    _check(manifest)
    # The id is over the bytes as received, which need not be the bytes that encoding again would give.
    manifest.__dict__["encoded"] = bytes(data)
    return manifest


def _check(manifest: Manifest) -> None:
    if manifest.schema not in SCHEMAS_READ:
        raise UntrustedBytes(
            f"manifest schema is {manifest.schema[:40]!r}; this version reads {' and '.join(SCHEMAS_READ)}"
        )
    check_name(manifest.release, "release")
    check_name(manifest.version, "version")
    if not 0 <= manifest.counter < 1 << 63:
        raise UntrustedBytes("manifest counter is out of range")
    _check_table(manifest)
    _check_artifacts(manifest)
    _check_segments(manifest)


def _check_table(manifest: Manifest) -> None:
    count = 0
    for ids, sizes in ((manifest.chunk_ids, manifest.chunk_sizes), (manifest.aid_ids, manifest.aid_sizes)):
        number, rest = divmod(len(ids), 32)
        if rest or len(sizes) != 4 * number:
            raise UntrustedBytes("chunk ids and chunk sizes do not describe the same number of chunks")
        count += number
    if count > CHUNKS_MAX:
        raise UntrustedBytes(f"manifest lists {count} chunks; at most {CHUNKS_MAX} are read")
    if len(set(manifest.table_chunks)) != count:
        raise UntrustedBytes("a chunk is listed twice in the chunk table")
    if any(not 1 <= size <= CHUNK_SIZE_BYTES_MAX for size in manifest.table_sizes):
        raise UntrustedBytes(f"a chunk size is outside 1 … {CHUNK_SIZE_BYTES_MAX} bytes")


def check_artifact_name(name: str) -> str:
    """Return ``name`` if it is safe, and the same file on every system, else raise ``UntrustedBytes``."""
    check_name(name, "artifact")
    if _RESERVED.fullmatch(name) or name.endswith("."):
        raise UntrustedBytes(f"artifact {name[:80]!r} has a name that some systems keep for devices, or shorten")
    return name


def _check_artifacts(manifest: Manifest) -> None:
    if not 1 <= len(manifest.artifacts) <= ARTIFACTS_MAX:
        raise UntrustedBytes(f"a release has 1 … {ARTIFACTS_MAX} artifacts, not {len(manifest.artifacts)}")
    names = [check_artifact_name(artifact.name) for artifact in manifest.artifacts]
    if len({name.casefold() for name in names}) != len(names):
        raise UntrustedBytes("two artifacts have the same name, or names that differ in upper and lower case only")
    sizes, used = manifest.sizes, set[int]()
    for artifact in manifest.artifacts:
        if len(artifact.delivered_sha256) != 32 or len(artifact.stored_sha256) != 32:
            raise UntrustedBytes(f"artifact {artifact.name}: a SHA-256 has 32 bytes")
        if len(artifact.positions) % 4 or len(artifact.positions) > 16 * CHUNKS_MAX:
            raise UntrustedBytes(f"artifact {artifact.name}: positions are at most {4 * CHUNKS_MAX} u32")
        positions = artifact.chunk_positions()
        if any(position >= len(sizes) for position in positions):
            raise UntrustedBytes(f"artifact {artifact.name} refers to a chunk outside the table")
        if sum(sizes[position] for position in positions) != artifact.stored_size or artifact.delivered_size < 0:
            raise UntrustedBytes(f"artifact {artifact.name}: its chunks do not add up to its size")
        used.update(positions)
    if len(used) != len(sizes):
        raise UntrustedBytes("the chunk table lists chunks that no artifact uses")


def _check_segments(manifest: Manifest) -> None:
    sizes, release_end = manifest.table_sizes, len(manifest.sizes)
    # Prefix sums: segments overlap, so adding up each one's sizes could be made to cost the square.
    ends = list(accumulate(sizes, initial=0))
    if len(manifest.segments) > 4 * CHUNKS_MAX:
        raise UntrustedBytes("manifest lists too many segments")
    for segment in manifest.segments:
        if len(segment.id) != 32:
            raise UntrustedBytes("a segment id does not have 32 bytes")
        if not (segment.first >= 0 and segment.count >= 1 and segment.first + segment.count <= len(sizes)):
            raise UntrustedBytes("a segment covers chunks outside the table")
        output = ends[segment.first + segment.count] - ends[segment.first]
        if output > SEGMENT_OUTPUT_BYTES_MAX and segment.count > 1:
            raise UntrustedBytes(f"a segment yields {output} bytes; at most {SEGMENT_OUTPUT_BYTES_MAX} are allowed")
        if not 1 <= segment.size <= output + SEGMENT_OVERHEAD_BYTES_MAX:
            raise UntrustedBytes(f"a segment of {segment.size} bytes for {output} bytes of output is refused")
        if segment.kind != "delta" and (segment.base or segment.of or segment.needs_gzip):
            raise UntrustedBytes(f"a {segment.kind} segment has no base, and needs no program")
    if _tiled(manifest, "full", 0) != release_end:
        raise UntrustedBytes("the full segments do not tile the chunk table")
    # Layouts first: where their zone begins is where the one of the bases ends.
    _check_layouts(manifest)
    _check_deltas(manifest)


def _tiled(manifest: Manifest, kind: str, reached: int) -> int:
    """How far the segments of ``kind`` reach from position ``reached``; -1 if there is a gap or an overlap."""
    for segment in manifest.segments:
        if segment.kind == kind:
            if segment.first != reached:
                return -1
            reached += segment.count
    return reached


def _check_deltas(manifest: Manifest) -> None:
    if len(manifest.bases) > BASES_MAX:
        raise UntrustedBytes(f"manifest names {len(manifest.bases)} base releases; at most {BASES_MAX} are read")
    for base in manifest.bases:
        check_name(base.version, "version")
        if len(base.manifest) != 32:
            raise UntrustedBytes("a base manifest's id does not have 32 bytes")
    runs = {(segment.first, segment.count): segment.size for _, segment in manifest.full_segments()}
    sizes, release_end, layout_first = manifest.table_sizes, len(manifest.sizes), manifest.layout_first
    used, seen = set[int](), set[tuple[int, int]]()
    for segment in manifest.segments:
        if segment.kind != "delta":
            continue
        full_size = runs.get((segment.first, segment.count))
        if full_size is None:
            raise UntrustedBytes("a delta segment does not yield what a full segment yields")
        if segment.size >= full_size:
            raise UntrustedBytes("a delta segment is not smaller than the full one")
        if not 0 <= segment.of < len(manifest.bases) or (segment.first, segment.of) in seen:
            raise UntrustedBytes(
                "a delta segment is of a base release that is unknown, or has a delta for this run already"
            )
        # The bound on the count comes first: every chunk has a byte at least, so no base that fits is longer.
        if not 1 <= len(segment.base) <= min(layout_first, BASE_BYTES_MAX):
            raise UntrustedBytes("a delta segment names its base chunks")
        if any(not 0 <= position < layout_first for position in segment.base):
            raise UntrustedBytes("a delta segment starts from a chunk that is no base")
        if len(set(segment.base)) != len(segment.base):
            raise UntrustedBytes("a delta segment names a base chunk twice")
        if sum(sizes[position] for position in segment.base) > BASE_BYTES_MAX:
            raise UntrustedBytes(f"a delta segment starts from more than {BASE_BYTES_MAX} bytes")
        seen.add((segment.first, segment.of))
        used.update(segment.base)
    if any(position not in used for position in range(release_end, layout_first)):
        raise UntrustedBytes("the chunk table lists base chunks that no delta uses")


def _check_layouts(manifest: Manifest) -> None:
    runs = [(segment.first, segment.count) for _, segment in manifest.layout_segments()]
    if [(layout.first, layout.count) for layout in manifest.layouts] != runs:
        raise UntrustedBytes("layouts and layout segments do not match")
    if not len(manifest.sizes) <= manifest.layout_first:
        raise UntrustedBytes("a layout is in the release zone of the table")
    if _tiled(manifest, "layout", manifest.layout_first) != len(manifest.table_sizes):
        raise UntrustedBytes("the layout segments do not tile the layout zone")
    for layout in manifest.layouts:
        check_name(layout.artifact, "artifact")
        if not 0 <= layout.of < len(manifest.bases):
            raise UntrustedBytes("a layout is of a base release that is unknown")
        if len(layout.stored_sha256) != 32:
            raise UntrustedBytes("a SHA-256 has 32 bytes")
