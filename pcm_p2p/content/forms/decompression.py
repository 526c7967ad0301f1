"""gzip, bzip2, xz, lzma and zstd as streams whose output and memory are bounded.

A decompressor here never trusts what a header promises: it hands out blocks, counts them, and stops at the bound. A stream
that ends early, or is followed by something else, is refused, because a stored form must be all of what was delivered.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

import zstandard

from pcm_p2p.errors import InputError

Compression = Literal["gzip", "bzip2", "xz", "lzma", "zstd"]

BLOCK_SIZE_BYTES = 1 << 20
"""Largest block of output handed out (zstd: larger for one that expands a thousandfold)."""
MEMORY_BYTES_MAX = 128 << 20
"""``xz -9`` needs 65 MiB to unpack, ``zstd --long`` 128 MiB; what asks for more is refused."""
_FEED_BYTES = 64 << 10
"""What a decoder does not come to is copied once a member: with a whole block at a time, a file of nothing but empty members took
six seconds a MiB."""
_ZSTD_FEED_BYTES = 1 << 10
"""zstd unpacks all it is fed; four bytes give at most 128 KiB, so this bounds one step to 32 MiB."""

_MAGICS: tuple[tuple[bytes, Compression], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Gzip:
    """``zlib`` in the shape of ``bz2`` and ``lzma``: it keeps what it did not come to."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


class _Zstd:
    def __init__(self) -> None:
        self._decoder = zstandard.ZstdDecompressor(max_window_size=MEMORY_BYTES_MAX).decompressobj()
        self._kept = b""

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._kept

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data + self._kept

    def decompress(self, data: bytes, _max_length: int, /) -> bytes:
        fed = self._kept + data
        self._kept = fed[_ZSTD_FEED_BYTES:]
        return self._decoder.decompress(fed[:_ZSTD_FEED_BYTES])


def _decoder(compression: Compression) -> _Decoder:
    match compression:
        case "gzip":
            return _Gzip()
        case "bzip2":
            return bz2.BZ2Decompressor()
        case "xz":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_BYTES_MAX)
        case "lzma":
            return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MEMORY_BYTES_MAX)
        case "zstd":
            return _Zstd()


def compression_of(head: bytes) -> Compression | None:
    """What the first bytes of a file say; None: nothing that is known here. (Bare lzma has no magic and is never guessed.)"""
    return next((name for magic, name in _MAGICS if head.startswith(magic)), None)


class _Input:
    """What ``read`` gives in small pieces, of which the end can be given back."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read, self._block, self._at = read, b"", 0

    def take(self) -> bytes:
        """The next piece; b"" is the end."""
        if self._at == len(self._block):
            self._block, self._at = self._read(BLOCK_SIZE_BYTES), 0
        piece = self._block[self._at : self._at + _FEED_BYTES]
        self._at += len(piece)
        return piece

    def give_back(self, size_bytes: int) -> None:
        """The last so many bytes of the piece that was taken last."""
        self._at -= size_bytes

    def skip_zeros(self) -> bool:
        """Go to the next byte that is not zero; False if there is none."""
        while piece := self.take():
            if left := piece.lstrip(b"\0"):
                self.give_back(len(left))
                return True
        return False


def decompressed(
    read: Callable[[int], bytes], compression: Compression, *, size_bytes_max: int, path: Path
) -> Iterator[bytes]:
    """The content of ``read(n)`` (b"" is the end) in blocks, over all members of the stream.

    ``path`` is only named. Raises ``InputError``: broken, cut short, followed by other bytes, more than ``size_bytes_max``
    of output, or in need of more than ``MEMORY_BYTES_MAX``.
    """
    source, output_bytes, members = _Input(read), 0, 0
    # Tapes and signing tools pad with zeros; xz and gzip both say that this is no error.
    while not members or source.skip_zeros():
        decoder = _decoder(compression)
        while not decoder.eof:
            piece = b""
            if decoder.needs_input:
                piece = source.take()
                if not piece:
                    raise InputError(f"the {compression} data ends early", path=path)
            try:
                output = decoder.decompress(piece, BLOCK_SIZE_BYTES)
            except (
                OSError,
                EOFError,
                ValueError,
                zlib.error,
                lzma.LZMAError,
                zstandard.ZstdError,
                MemoryError,
            ) as error:
                behind = ", behind a part that is whole" if members else ""
                raise InputError(f"the {compression} data{behind} cannot be unpacked: {error}", path=path) from None
            output_bytes += len(output)
            if output_bytes > size_bytes_max:
                raise too_large(path, size_bytes_max)
            if output:
                yield output
        source.give_back(len(decoder.unused_data))
        members += 1


def too_large(path: Path, size_bytes_max: int) -> InputError:
    return InputError(
        f"unpacks to more than {size_bytes_max} bytes",
        path=path,
        remedy="Release it with '--form exact', which distributes it as it is, if it is meant to be that large.",
    )
