"""Segments: which chunks travel together over the WAN, and the blobs of full segments.

A blob holds the chunks of its run, joined, as one zstd frame or one xz stream; its first bytes tell which. Both are unpacked
against the sum of the chunk sizes in the manifest, which bounds the output before a byte of it is kept.

Why two: xz is slower to unpack (20 … 50 MB/s of output against some hundred) and a weak link does not notice. Over nine Debian
packages zstd 19 gave 105 … 111 % of the package as delivered, xz 89 … 101 % (``xz_packing``).
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Iterator, Sequence

import zstandard

from pcm_p2p.content.chunk import Chunk, unpack_frame_untrusted
from pcm_p2p.content.manifest import CHUNK_SIZE_BYTES_MAX, SEGMENT_OUTPUT_BYTES_MAX
from pcm_p2p.content.xz_packing import LEVEL_XZ, xz_stream
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import ChunkId

LEVEL_STORED = 0
"""The level at which nothing is compressed: for files that do not get smaller, and to measure everything else."""
LEVEL_THOROUGH = 17
"""From here on deltas are made as small as they get, below as quickly as possible: ``delta.blob``."""
XZ_MAGIC = b"\xfd7zXZ\0"
XZ_MEMORY_BYTES_MAX = 96 << 20
"""What unpacking may take: a dictionary of 16 MiB needs 17."""
_MAGIC = 0xFD2FB528
_BLOCK_SIZE_BYTES_MAX = 128 << 10
"""RFC 8878, 3.1.1.2.4."""


def plan_runs(sizes: Sequence[int], output_bytes_max: int = SEGMENT_OUTPUT_BYTES_MAX) -> list[tuple[int, int]]:
    """Runs ``(first, count)`` that tile ``sizes`` in order, each of at most ``output_bytes_max`` bytes together.

    Greedy, in linear time: the next run begins where a chunk would not fit any more.
    """
    runs: list[tuple[int, int]] = []
    first = output = 0
    for position, size in enumerate(sizes):
        if output + size > output_bytes_max and position > first:
            runs.append((first, position - first))
            first, output = position, 0
        output += size
    if first < len(sizes):
        runs.append((first, len(sizes) - first))
    return runs


def encode_full(chunks: Iterable[bytes], level: int) -> bytes:
    """The blob of these chunks, at ``level`` 1 … 22, or uncompressed at ``LEVEL_STORED``.

    The same chunks at the same level give the same blob with the same libraries (zstd; from ``LEVEL_XZ`` also liblzma).
    """
    return encode_joined(b"".join(chunks), level)


def encode_joined(data: bytes | memoryview, level: int) -> bytes:
    """``encode_full`` of chunks that lie behind each other already."""
    if level == LEVEL_STORED:
        return _stored_frame(data)
    if level >= LEVEL_XZ:
        return xz_stream(data, level)
    return zstandard.ZstdCompressor(level=level).compress(data)


def _stored_frame(data: bytes | memoryview) -> bytes:
    """A zstd frame of raw blocks (RFC 8878, 3.1.1): at memory speed, and with no other decoder than all segments have."""
    view = memoryview(data)
    # Descriptor 0xA0: four-byte content size, single segment (no window), no checksum, no dictionary.
    parts: list[bytes | memoryview] = [_MAGIC.to_bytes(4, "little"), b"\xa0", len(data).to_bytes(4, "little")]
    for at in range(0, len(data), _BLOCK_SIZE_BYTES_MAX):
        block = view[at : at + _BLOCK_SIZE_BYTES_MAX]
        last = at + len(block) == len(data)
        parts += ((len(block) << 3 | last).to_bytes(3, "little"), block)
    return b"".join(parts)


def decode_full_untrusted(blob: bytes, chunk_ids: Sequence[ChunkId], chunk_sizes: Sequence[int]) -> Iterator[Chunk]:
    """The chunks in ``blob``, each verified when it is yielded.

    Memory: the blob and its output. Raises ``UntrustedBytes`` and nothing else: output that is missing or left over, bytes
    behind the frame, a chunk that is not what its id says. Chunks yielded before that are good.
    """
    output = sum(chunk_sizes)
    if len(chunk_ids) != len(chunk_sizes) or not chunk_ids:
        raise UntrustedBytes(f"a segment of {len(chunk_ids)} chunks and {len(chunk_sizes)} sizes")
    if output > (SEGMENT_OUTPUT_BYTES_MAX if len(chunk_ids) > 1 else CHUNK_SIZE_BYTES_MAX):
        raise UntrustedBytes(f"a segment yields {output} bytes; at most {SEGMENT_OUTPUT_BYTES_MAX} are allowed")
    data = unpack_blob_untrusted(blob, output)
    if len(data) != output:
        raise UntrustedBytes(f"a segment yields {len(data)} bytes; its chunks have {output}")
    view, at = memoryview(data), 0
    for chunk, size in zip(chunk_ids, chunk_sizes, strict=True):
        yield Chunk.verified(chunk, bytes(view[at : at + size]))
        at += size


def unpack_blob_untrusted(blob: bytes, output_bytes: int) -> bytes:
    """The ``output_bytes`` bytes in the blob of a full or layout segment. Raises ``UntrustedBytes`` and nothing else."""
    if blob.startswith(XZ_MAGIC):
        return unpack_xz_untrusted(blob, output_bytes, "segment")
    return unpack_frame_untrusted(blob, output_bytes, "segment")


def unpack_xz_untrusted(stream: bytes, size_bytes_max: int, what: str) -> bytes:
    """The content of exactly one xz stream, of at most ``size_bytes_max`` bytes. ``what`` names the bytes in messages.

    Refused with ``UntrustedBytes``: more output, an early end, bytes behind the stream, a dictionary that needs too much memory.
    """
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES_MAX)
    try:
        data = decoder.decompress(stream, size_bytes_max + 1)
        if len(data) == size_bytes_max and not decoder.eof:
            data += decoder.decompress(b"", 1)  # all is out, and the end of the stream not yet read
    except (lzma.LZMAError, EOFError, MemoryError, ValueError) as error:
        raise UntrustedBytes(f"{what}: {error}") from None
    if len(data) > size_bytes_max or not decoder.eof or decoder.unused_data:
        raise UntrustedBytes(f"{what}: is not one xz stream of at most {size_bytes_max} bytes")
    return data
