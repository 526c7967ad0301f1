"""Decoding a segment: what goes in, what comes out, and the two ways in which it fails. The work itself is in ``decoder``.

A blob is named by its hash in the signed manifest and is checked against it before it is decoded, so no blob that a stranger
made reaches a decoder. What comes out is believed no more for that: every chunk is verified on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.delta.repacking import Pack
from pcm_p2p.content.manifest import BASE_BYTES_MAX, SEGMENT_OUTPUT_BYTES_MAX, Manifest, Segment
from pcm_p2p.content.segment import unpack_blob_untrusted
from pcm_p2p.errors import TransferError, UntrustedBytes
from pcm_p2p.ids import ChunkId

Kind = Literal["full", "delta", "layout"]
BaseSource = Callable[[ChunkId], Chunk | None]
"""Gives a base chunk, verified (``ChunkStore.get``); None if it is not here or was not fit to be read."""
OnChunk = Callable[[int, Chunk], None]
"""Takes a chunk of the output with its position in the table. Positions rise. What it raises ends the decoding."""


class BaseMissing(TransferError):
    """Base chunks of a delta are not in the store, or were found rotten. ``positions``: their places in the table, rising."""

    remedy = "The daemon fetches them from neighbours, or the full segment from the origin, by itself."

    def __init__(self, title: str, positions: Sequence[int]) -> None:
        super().__init__(f"{title}: {len(positions)} base chunks are missing, the first at position {min(positions)}")
        self.positions = tuple(sorted(positions))


class DecodeFailed(TransferError):
    """A blob did not become chunks.

    ``wrong``: the blob is the one that was published and does not yield its chunks, which is so on every device. Otherwise it
    is this device: its copy of the blob changed, or the worker crashed, hung or ran out of memory.
    """

    remedy = "The daemon takes the full segment instead, or tries again later, by itself."

    def __init__(self, reason: str, *, wrong: bool) -> None:
        super().__init__(f"a segment could not be decoded: {reason}")
        self.reason = reason
        self.wrong = wrong


class SegmentDecoder(Protocol):
    """What ``decoder.Decoder`` does, and ``decoder.InlineDecoder`` where time is virtual."""

    @property
    def why_not_gzip(self) -> str:
        """Why segments that need gzip cannot be decoded here; empty if they can."""

    async def decode(
        self, segment: Segment, manifest: Manifest, blob_path: Path, base: BaseSource, on_chunk: OnChunk, /
    ) -> None:
        """Hand over the chunks of ``segment`` one by one, each verified. ``base`` and ``on_chunk`` may be called in a thread.

        Chunks handed over before a failure are good. Raises ``BaseMissing``, ``DecodeFailed``, and what the two raise.
        """


def decode_blob_untrusted(kind: Kind, blob: bytes, base: bytes, output_bytes: int, pack: Pack | None = None) -> bytes:
    """The ``output_bytes`` bytes in ``blob``; ``base`` is empty but for a delta. Raises ``UntrustedBytes``, and ``CannotPack``
    for a delta that needs gzip, if ``pack`` does or there is none."""
    if not 1 <= output_bytes <= SEGMENT_OUTPUT_BYTES_MAX or len(base) > BASE_BYTES_MAX:
        raise UntrustedBytes(f"a segment yields {output_bytes} bytes from {len(base)}, which is out of bounds")
    # Here, since the daemon needs this module's words and decodes in another process: HDiffPatch would be 1 MB resident in it.
    from pcm_p2p.content.delta.blob import decode_delta_untrusted

    output = (
        decode_delta_untrusted(blob, base, output_bytes, pack)
        if kind == "delta"
        else unpack_blob_untrusted(blob, output_bytes)
    )
    if len(output) != output_bytes:
        raise UntrustedBytes(f"a segment yields {len(output)} bytes; its chunks have {output_bytes}")
    return output
