"""Pieces: what a stored form is made of, in order: bytes that a layout brings along, and whole files that are installed.

Encoding (a *layout*): MessagePack of the struct below, at most ``LAYOUT_BYTES_MAX``, cut into chunks of the layout zone by the
publisher. Its bytes are named by the hashes in a signed manifest; they are checked here all the same, because it names places
on the device that are then read. Nothing is believed because of a layout: what is read has to hash to the chunk's id.

A layout also says how the stored form was cut, since a device that installed the base by hand has no manifest of it: the size
of each chunk and the first two bytes of its id. Together they single out a chunk; what is left of doubt, hashing settles.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

import msgspec

from pcm_p2p.content.manifest import CHUNK_SIZE_BYTES_MAX, CHUNKS_MAX
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import ChunkId

SCHEMA = "pcm.layout/1"
LAYOUT_BYTES_MAX = 4 << 20
"""Choice: what is larger describes more files than are read back in the time that a fetch may wait."""
PIECES_MAX = 1 << 18
PATH_BYTES_MAX = 4_096
"""Linux PATH_MAX."""
MARK_BYTES = 2

_Encoded = bytes | int | tuple[bytes, int]
"""Bytes; so many zero bytes, of which tars are full; or a file: its path and its size in bytes."""


class _Document(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``chunk_sizes`` is packed little-endian u32, ``chunk_marks`` the first ``MARK_BYTES`` of each id, in order."""

    schema: str
    chunk_sizes: bytes
    chunk_marks: bytes
    pieces: Annotated[tuple[_Encoded, ...], msgspec.Meta(max_length=PIECES_MAX)]


@dataclass(frozen=True, slots=True)
class FilePiece:
    """A whole file of ``size_bytes`` at ``path``: relative to the root of a package, or to the folder of an archive."""

    path: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes ``at … at + size_bytes - 1`` of a file."""

    file: FilePiece
    at: int
    size_bytes: int


Piece = bytes | int | FilePiece
"""Bytes, so many zero bytes, or a file."""


class Pieces:
    """A stored form by its pieces; joined they are the stored form, and so are its chunks."""

    def __init__(self, pieces: Sequence[Piece], chunk_sizes: Sequence[int], chunk_marks: Sequence[bytes]) -> None:
        self.pieces = tuple(pieces)
        self._ends = list(accumulate(_size(piece) for piece in pieces))
        self.size_bytes = self._ends[-1] if self._ends else 0
        self._places: dict[tuple[int, bytes], list[int]] = {}
        at = 0
        for size, mark in zip(chunk_sizes, chunk_marks, strict=True):
            self._places.setdefault((size, mark), []).append(at)
            at += size

    def places(self, chunk: ChunkId, size_bytes: int) -> tuple[int, ...]:
        """Where in the stored form the chunk may lie: usually one place, none if it is not of this stored form."""
        return tuple(self._places.get((size_bytes, chunk[:MARK_BYTES]), ()))

    def between(self, at: int, size_bytes: int) -> Iterator[bytes | FileRange]:
        """The pieces of bytes ``at … at + size_bytes - 1``, which lie in the stored form."""
        index, end = bisect_right(self._ends, at), at + size_bytes
        while at < end:
            piece = self.pieces[index]
            inside = at - (self._ends[index] - _size(piece))
            size = min(end, self._ends[index]) - at
            if isinstance(piece, FilePiece):
                yield FileRange(piece, inside, size)
            else:
                yield piece[inside : inside + size] if isinstance(piece, bytes) else bytes(size)
            at, index = at + size, index + 1


def encode_layout(pieces: Iterable[Piece], chunk_ids: Iterable[ChunkId], chunk_sizes: Iterable[int]) -> bytes:
    """The layout of a stored form. Nothing is checked; the decoder does that."""
    encoded = tuple((piece.path, piece.size_bytes) if isinstance(piece, FilePiece) else piece for piece in pieces)
    sizes = b"".join(size.to_bytes(4, "little") for size in chunk_sizes)
    marks = b"".join(chunk[:MARK_BYTES] for chunk in chunk_ids)
    return msgspec.msgpack.encode(_Document(SCHEMA, sizes, marks, encoded))


_decoder = msgspec.msgpack.Decoder(_Document)


def decode_layout_untrusted(data: bytes) -> Pieces:
    """Bytes to pieces whose paths cannot climb and which add up to the chunks; raises ``UntrustedBytes`` and nothing else."""
    if len(data) > LAYOUT_BYTES_MAX:
        raise UntrustedBytes(f"layout has {len(data)} bytes; at most {LAYOUT_BYTES_MAX} are read")
    try:
        document = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"layout does not fit its schema: {error}") from None
    if document.schema != SCHEMA:
        raise UntrustedBytes(f"layout schema is {document.schema[:40]!r}; this version reads {SCHEMA}")
    sizes, marks = document.chunk_sizes, document.chunk_marks
    count = len(marks) // MARK_BYTES
    if len(sizes) != 4 * count or len(marks) != MARK_BYTES * count or count > 4 * CHUNKS_MAX:
        raise UntrustedBytes("layout: sizes and marks of chunks do not match")
    chunk_sizes = [int.from_bytes(sizes[at : at + 4], "little") for at in range(0, len(sizes), 4)]
    if any(not 1 <= size <= CHUNK_SIZE_BYTES_MAX for size in chunk_sizes):
        raise UntrustedBytes(f"layout: a chunk size is outside 1 … {CHUNK_SIZE_BYTES_MAX} bytes")
    pieces = [FilePiece(*piece) if isinstance(piece, tuple) else piece for piece in document.pieces]
    if any(_size(piece) < 1 for piece in pieces):
        raise UntrustedBytes("layout: a piece is empty")
    if sum(_size(piece) for piece in pieces) != sum(chunk_sizes):
        raise UntrustedBytes("layout: the pieces do not add up to the chunks")
    for piece in pieces:
        if isinstance(piece, FilePiece) and not is_below(piece.path):
            raise UntrustedBytes(f"layout: {piece.path[:80]!r} is not a path that stays below its root")
    return Pieces(pieces, chunk_sizes, [marks[at : at + MARK_BYTES] for at in range(0, len(marks), MARK_BYTES)])


def is_below(path: bytes) -> bool:
    """Is ``path`` relative, without ``.``, ``..`` and empty parts?"""
    return (
        0 < len(path) <= PATH_BYTES_MAX
        and b"\0" not in path
        and all(part not in (b"", b".", b"..") for part in path.split(b"/"))
    )


def _size(piece: Piece) -> int:
    if isinstance(piece, FilePiece):
        return piece.size_bytes
    return piece if isinstance(piece, int) else len(piece)
