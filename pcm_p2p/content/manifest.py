"""Manifest: the signed description of one release. Pure data; decoding checks everything that arithmetic can check.

A manifest has one *chunk table*: the distinct chunks of the release in order of first appearance. Everything else refers to
positions in it: artifacts list positions, segments cover runs of positions, have-maps on the wire are bit fields over it.

Encoding: MessagePack of the structs below (map keys are the field names), at most ``SIZE_BYTES_MAX``. The bytes are a TUF
target, so their SHA-256 is signed; ``ManifestId`` is their BLAKE3 and names the manifest on the wire.

Invariants that ``decode_untrusted`` enforces, each with its own message:

- names are single path components (``ids.check_name``); artifact names are distinct;
- chunk ids are distinct; chunk sizes are 1 … ``CHUNK_SIZE_BYTES_MAX``; at most ``CHUNKS_MAX`` chunks;
- each artifact's positions are inside the table and its sizes add up to ``stored_size``; every chunk is used;
- the full segments tile the chunk table: in order, without gap or overlap; each yields at most ``SEGMENT_OUTPUT_BYTES_MAX``
  (or exactly one chunk) and its blob is no larger than its output plus ``SEGMENT_OVERHEAD_BYTES_MAX``.

Delta segments (``base`` not empty) have their place here: kind ``delta``, a run like a full one, and the ids of the base
chunks in the order in which they are joined. A delta comes on top of the full segments, which always tile the table alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from typing import Literal

import msgspec

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import ChunkId, ManifestId, SegmentId, check_name

SCHEMA = "pcm.manifest/1"
SIZE_BYTES_MAX = 8 << 20
"""Choice: a 1 TiB release at the largest chunk size needs 40 MB; releases of that size are cut into several."""
CHUNKS_MAX = 65_536
CHUNK_SIZE_BYTES_MAX = 4 << 20
"""Choice: four times the ceiling of the default chunker, so that larger artifacts may use larger chunks (DESIGN.md 6)."""
SEGMENT_OUTPUT_BYTES_MAX = 16 << 20
"""DESIGN.md 6: up to 16 MiB of output a segment."""
SEGMENT_OVERHEAD_BYTES_MAX = 64 << 10
ARTIFACTS_MAX = 4_096

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
    """A blob at the origin that yields chunks ``first … first+count-1`` of the table. ``size`` is the blob's, in bytes."""

    id: bytes
    size: int
    kind: Literal["full", "delta"]
    first: int
    count: int
    base: tuple[bytes, ...] = ()

    @property
    def segment_id(self) -> SegmentId:
        return SegmentId(self.id)

    @property
    def positions(self) -> range:
        return range(self.first, self.first + self.count)


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

    @cached_property
    def sizes(self) -> memoryview:
        """Chunk sizes in bytes, by position."""
        return memoryview(self.chunk_sizes).cast("I")

    @cached_property
    def chunks(self) -> tuple[ChunkId, ...]:
        """Chunk ids by position."""
        return tuple(ChunkId(self.chunk_ids[at : at + 32]) for at in range(0, len(self.chunk_ids), 32))

    @cached_property
    def position_of(self) -> dict[ChunkId, int]:
        return {chunk: position for position, chunk in enumerate(self.chunks)}

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

    def artifact(self, name: str) -> Artifact | None:
        return next((artifact for artifact in self.artifacts if artifact.name == name), None)


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
    if manifest.schema != SCHEMA:
        raise UntrustedBytes(f"manifest schema is {manifest.schema[:40]!r}; this version reads {SCHEMA!r}")
    check_name(manifest.release, "release")
    check_name(manifest.version, "version")
    if not 0 <= manifest.counter < 1 << 63:
        raise UntrustedBytes("manifest counter is out of range")
    _check_table(manifest)
    _check_artifacts(manifest)
    _check_segments(manifest)


def _check_table(manifest: Manifest) -> None:
    count, rest = divmod(len(manifest.chunk_ids), 32)
    if rest or len(manifest.chunk_sizes) != 4 * count:
        raise UntrustedBytes("chunk ids and chunk sizes do not describe the same number of chunks")
    if count > CHUNKS_MAX:
        raise UntrustedBytes(f"manifest lists {count} chunks; at most {CHUNKS_MAX} are read")
    if len(set(manifest.chunks)) != count:
        raise UntrustedBytes("a chunk is listed twice in the chunk table")
    if any(not 1 <= size <= CHUNK_SIZE_BYTES_MAX for size in manifest.sizes):
        raise UntrustedBytes(f"a chunk size is outside 1 … {CHUNK_SIZE_BYTES_MAX} bytes")


def _check_artifacts(manifest: Manifest) -> None:
    if not 1 <= len(manifest.artifacts) <= ARTIFACTS_MAX:
        raise UntrustedBytes(f"a release has 1 … {ARTIFACTS_MAX} artifacts, not {len(manifest.artifacts)}")
    names = [check_name(artifact.name, "artifact") for artifact in manifest.artifacts]
    if len(set(names)) != len(names):
        raise UntrustedBytes("two artifacts have the same name")
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
    sizes, reached = manifest.sizes, 0
    # Prefix sums: segments may overlap (deltas do), so adding up each one's sizes could be made to cost the square.
    ends = list(accumulate(sizes, initial=0))
    if len(manifest.segments) > 4 * CHUNKS_MAX:
        raise UntrustedBytes("manifest lists too many segments")
    for segment in manifest.segments:
        if len(segment.id) != 32 or any(len(chunk) != 32 for chunk in segment.base):
            raise UntrustedBytes("a segment or base id does not have 32 bytes")
        if not (segment.first >= 0 and segment.count >= 1 and segment.first + segment.count <= len(sizes)):
            raise UntrustedBytes("a segment covers chunks outside the table")
        output = ends[segment.first + segment.count] - ends[segment.first]
        if output > SEGMENT_OUTPUT_BYTES_MAX and segment.count > 1:
            raise UntrustedBytes(f"a segment yields {output} bytes; at most {SEGMENT_OUTPUT_BYTES_MAX} are allowed")
        if not 1 <= segment.size <= output + SEGMENT_OVERHEAD_BYTES_MAX:
            raise UntrustedBytes(f"a segment of {segment.size} bytes for {output} bytes of output is refused")
        if segment.kind == "full":
            if segment.base:
                raise UntrustedBytes("a full segment has no base")
            if segment.first != reached:
                raise UntrustedBytes("the full segments do not tile the chunk table")
            reached = segment.first + segment.count
        elif not segment.base or len(segment.base) > CHUNKS_MAX:
            raise UntrustedBytes("a delta segment names its base chunks")
    if reached != len(sizes):
        raise UntrustedBytes("the full segments do not tile the chunk table")
