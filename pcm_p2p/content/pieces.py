"""Pieces: what a stored form is made of, in order: bytes that a layout brings along, and whole files that are installed.

Encoding (a *layout*): MessagePack of the struct below, at most ``LAYOUT_BYTES_MAX``, cut into chunks of the layout zone by the
publisher. Its bytes are named by the hashes in a signed manifest; they are checked here all the same, because it names places
on the device that are then read. Nothing is believed because of a layout: what is read has to hash to the chunk's id.

A layout crosses the WAN, so it says nothing twice. Zeros, of which tars are full, are numbers. Path and size of a file are not
said where the tar header before it says them, nor is the checksum of that header. Together that makes the compressed layout of a
kernel image 38 % smaller.

A layout also says how the stored form was cut, since a device that installed the base by hand has no manifest of it: the size
of each chunk and the first byte of its id. Nearly always that singles out a chunk; what is left of doubt, hashing settles.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
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
REST_BYTES_MAX = 16 << 20
"""Of what is not in files, unpacked. Choice: three quarters of headers and padding are zeros."""
PATH_BYTES_MAX = 4_096
"""Linux PATH_MAX."""

_HEADER_BYTES = 512
_CHECKSUM = slice(148, 156)
_SIZE = slice(124, 136)
_ZEROS = re.compile(rb"\0{16,}")
_Encoded = bytes | int | tuple[bytes, int] | None
"""Bytes; so many zero bytes; the file that the tar header before it describes; or a file by its path and its size in bytes."""


class _Document(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``chunk_sizes`` is packed little-endian u32 with the bytes of all numbers sorted by significance, ``chunk_marks`` the first
    byte of each id, in order."""

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


Piece = bytes | FilePiece


class Pieces:
    """A stored form by its pieces; joined they are the stored form, and so are its chunks. ``marks``: the first bytes of ids."""

    def __init__(self, pieces: Sequence[Piece], chunk_sizes: Sequence[int], marks: bytes) -> None:
        self.pieces = tuple(pieces)
        self._ends = list(accumulate(_size(piece) for piece in pieces))
        self.size_bytes = self._ends[-1] if self._ends else 0
        self._places: dict[tuple[int, int], list[int]] = {}
        at = 0
        for size, mark in zip(chunk_sizes, marks, strict=True):
            self._places.setdefault((size, mark), []).append(at)
            at += size

    def places(self, chunk: ChunkId, size_bytes: int) -> tuple[int, ...]:
        """Where in the stored form the chunk may lie: usually one place, none if it is not of this stored form."""
        return tuple(self._places.get((size_bytes, chunk[0]), ()))

    def between(self, at: int, size_bytes: int) -> Iterator[bytes | FileRange]:
        """The pieces of bytes ``at … at + size_bytes - 1``, which lie in the stored form."""
        index, end = bisect_right(self._ends, at), at + size_bytes
        while at < end:
            piece = self.pieces[index]
            inside = at - (self._ends[index] - _size(piece))
            size = min(end, self._ends[index]) - at
            yield FileRange(piece, inside, size) if isinstance(piece, FilePiece) else piece[inside : inside + size]
            at, index = at + size, index + 1


def encode_layout(pieces: Sequence[Piece], chunk_ids: Sequence[ChunkId], chunk_sizes: Sequence[int]) -> bytes:
    """The layout of a stored form. The same pieces give the same bytes. Nothing is checked; the decoder does that."""
    encoded: list[_Encoded] = []
    for number, piece in enumerate(pieces):
        if isinstance(piece, FilePiece):
            told = number > 0 and _described(pieces[number - 1]) == piece
            encoded.append(None if told else (piece.path, piece.size_bytes))
            continue
        tells = number + 1 < len(pieces) and _described(piece) == pieces[number + 1]
        encoded += _without_zeros(_with_checksum(piece, b" " * 8) if tells else piece)
    packed = b"".join(size.to_bytes(4, "little") for size in chunk_sizes)
    sizes = b"".join(packed[byte::4] for byte in range(4))
    return msgspec.msgpack.encode(_Document(SCHEMA, sizes, bytes(chunk[0] for chunk in chunk_ids), tuple(encoded)))


def _described(header: Piece) -> FilePiece | None:
    """The file that the tar header at the end of these bytes describes, if it is one whose checksum need not be said."""
    block = header[-_HEADER_BYTES:] if isinstance(header, bytes) else b""
    if len(block) < _HEADER_BYTES or block[_CHECKSUM] != _checksum(block):
        return None
    return _file_of(block)


def _file_of(block: bytes) -> FilePiece | None:
    """Path and size in a tar header, as far as the oldest dialect says them (what is longer stands in headers before it)."""
    name, digits = block[:100].rstrip(b"\0"), block[_SIZE].strip(b" \0")
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].rstrip(b"\0")):
        name = prefix + b"/" + name
    while name.startswith(b"./"):
        name = name[2:]
    return FilePiece(name, int(digits, 8)) if re.fullmatch(rb"[0-7]{1,12}", digits) else None


def _checksum(block: bytes) -> bytes:
    """As GNU tar and dpkg write it: six octal digits, NUL, blank."""
    total = sum(block[: _CHECKSUM.start]) + 8 * ord(" ") + sum(block[_CHECKSUM.stop :])
    return b"%06o\0 " % total


def _with_checksum(data: bytes, checksum: bytes) -> bytes:
    """``data``, which ends with a header, with this checksum in it."""
    at = len(data) - _HEADER_BYTES
    return data[: at + _CHECKSUM.start] + checksum + data[at + _CHECKSUM.stop :]


def _without_zeros(data: bytes) -> Iterator[bytes | int]:
    at = 0
    for zeros in _ZEROS.finditer(data):
        if zeros.start() > at:
            yield data[at : zeros.start()]
        yield len(zeros[0])
        at = zeros.end()
    if at < len(data):
        yield data[at:]


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
    sizes, count = document.chunk_sizes, len(document.chunk_marks)
    if len(sizes) != 4 * count or count > 4 * CHUNKS_MAX:
        raise UntrustedBytes("layout: sizes and marks of chunks do not match")
    chunk_sizes = [int.from_bytes(sizes[at::count], "little") for at in range(count)]
    if any(not 1 <= size <= CHUNK_SIZE_BYTES_MAX for size in chunk_sizes):
        raise UntrustedBytes(f"layout: a chunk size is outside 1 … {CHUNK_SIZE_BYTES_MAX} bytes")
    pieces = _pieces_untrusted(document.pieces)
    for piece in pieces:
        if isinstance(piece, FilePiece) and not (is_below(piece.path) and piece.size_bytes > 0):
            raise UntrustedBytes(f"layout: {piece.path[:80]!r} is empty, or no path that stays below its root")
    if sum(_size(piece) for piece in pieces) != sum(chunk_sizes):
        raise UntrustedBytes("layout: the pieces do not add up to the chunks")
    return Pieces(pieces, chunk_sizes, document.chunk_marks)


def _pieces_untrusted(encoded: tuple[_Encoded, ...]) -> list[Piece]:
    """Runs of bytes and zeros joined, checksums put back. Raises ``UntrustedBytes``."""
    pieces: list[Piece] = []
    literal, rest_bytes = bytearray(), 0
    for each in encoded:
        if isinstance(each, bytes | int):
            rest_bytes += each if isinstance(each, int) else len(each)
            if rest_bytes > REST_BYTES_MAX or (isinstance(each, int) and each < 0):
                raise UntrustedBytes(f"layout: more than {REST_BYTES_MAX} bytes are not in files")
            literal += bytes(each)  # of a number: so many zeros
            continue
        if each is None:
            block = bytes(literal[-_HEADER_BYTES:])
            file = _file_of(block) if len(block) == _HEADER_BYTES else None
            if file is None:
                raise UntrustedBytes("layout: a file that no header describes")
            literal[-_HEADER_BYTES:] = _with_checksum(block, _checksum(block))
        else:
            file = FilePiece(*each)
        if literal:
            pieces.append(bytes(literal))
            literal = bytearray()
        pieces.append(file)
    if literal:
        pieces.append(bytes(literal))
    return pieces


def is_below(path: bytes) -> bool:
    """Is ``path`` relative, without ``.``, ``..`` and empty parts?"""
    return (
        0 < len(path) <= PATH_BYTES_MAX
        and b"\0" not in path
        and all(part not in (b"", b".", b"..") for part in path.split(b"/"))
    )


def _size(piece: Piece) -> int:
    return piece.size_bytes if isinstance(piece, FilePiece) else len(piece)
