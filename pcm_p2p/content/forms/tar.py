"""Compressed tar: its stored form is the tar. Members are not looked at; unpacking and its dangers belong to the device."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from pcm_p2p.content.forms.decompression import BLOCK_SIZE_BYTES, compression_of, decompressed, too_large
from pcm_p2p.errors import InputError

_HEADER_SIZE_BYTES = 512


def is_tar_header(block: bytes) -> bool:
    """Does ``block`` begin with a tar header? Its checksum says so, in every dialect of tar."""
    if len(block) < _HEADER_SIZE_BYTES:
        return False
    header = block[:_HEADER_SIZE_BYTES]
    try:
        stated = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    return stated == sum(header[:148]) + 8 * ord(" ") + sum(header[156:])


def is_compressed_tar(source: Path) -> bool:
    """Is ``source`` compressed, and is what it unpacks to a tar? Looks at its beginning only. Raises ``OSError``."""
    with source.open("rb") as file:
        compression = compression_of(file.read(16))
        if compression is None:
            return False
        file.seek(0)
        head = b""
        try:
            # The bound is no limit on the file: only its first blocks are unpacked.
            for block in decompressed(file.read, compression, size_bytes_max=1 << 62, path=source):
                head += block
                if len(head) >= _HEADER_SIZE_BYTES:
                    break
        except InputError:
            return False
    return is_tar_header(head)


def write_tar(source: Path, file: BinaryIO, size_bytes_max: int) -> None:
    """Write the tar in ``source``, compressed or not, to ``file``. Raises ``InputError`` or ``OSError``."""
    with source.open("rb") as packed:
        compression = compression_of(packed.read(16))
        packed.seek(0)
        if compression is None:
            blocks = iter(lambda: packed.read(BLOCK_SIZE_BYTES), b"")
        else:
            blocks = decompressed(packed.read, compression, size_bytes_max=size_bytes_max, path=source)
        head, size_bytes = b"", 0
        for block in blocks:
            size_bytes += len(block)
            if size_bytes > size_bytes_max:
                raise too_large(source, size_bytes_max)
            if len(head) < _HEADER_SIZE_BYTES:
                head += block[:_HEADER_SIZE_BYTES]
            file.write(block)
        if not is_tar_header(head):
            raise InputError("is not a tar", path=source, remedy="Release it with '--form exact'.")
