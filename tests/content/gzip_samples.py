"""Gzip members for tests, made by zlib, whose bytes are others than those of the program; and programs that are no gzip."""

from __future__ import annotations

import zlib
from pathlib import Path

_FLAGS = {1: 4, 9: 2}


def zlib_pack(plain: bytes | memoryview, level: int) -> bytes:
    """A ``Pack`` without a process."""
    packer = zlib.compressobj(level, wbits=-15)
    trailer = zlib.crc32(plain).to_bytes(4, "little") + len(plain).to_bytes(4, "little")
    return packer.compress(plain) + packer.flush() + trailer


def member(plain: bytes, level: int = 9, *, name: bytes = b"", extra: bytes = b"", comment: bytes = b"") -> bytes:
    """A whole member; ``zlib_pack`` makes its body again."""
    flags = 4 * bool(extra) | 8 * bool(name) | 16 * bool(comment)
    header = b"\x1f\x8b\x08" + bytes([flags, 0, 0, 0, 0, _FLAGS.get(level, 0), 3])
    header += (len(extra).to_bytes(2, "little") + extra if extra else b"") + (name + b"\0" if name else b"")
    return header + (comment + b"\0" if comment else b"") + zlib_pack(plain, level)


def program(folder: Path, script: str) -> Path:
    """An executable ``gzip`` in ``folder`` that runs these lines of a shell."""
    path = folder / "gzip"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path
