"""Identifiers: fixed-length byte strings with one textual form each. Strings and loose bytes do not travel.

=============  =====  ========================================================================
type           bytes  what it is
=============  =====  ========================================================================
``DeviceId``   16     first half of SHA-256 over the device's raw Ed25519 public key
``ChunkId``    32     BLAKE3 of the chunk's bytes
``SegmentId``  32     BLAKE3 of the segment's blob
``ManifestId`` 32     BLAKE3 of the manifest's encoded bytes
=============  =====  ========================================================================

``ids`` also holds the two kinds of name that come from outside and end up in paths: ``check_name`` for names of releases,
versions, artifacts, sites and policies, and ``RelativePath`` for places inside an archive or below a root.
"""

from __future__ import annotations

import hashlib
import re
from typing import ClassVar, Self

from blake3 import blake3

from pcm_p2p.errors import UntrustedBytes


class _FixedBytes(bytes):
    """A byte string whose length is part of its type."""

    size_bytes: ClassVar[int]
    __slots__ = ()

    def __new__(cls, value: bytes) -> Self:
        if len(value) != cls.size_bytes:
            raise UntrustedBytes(f"{cls.__name__} is {cls.size_bytes} bytes, not {len(value)}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the hexadecimal form; raises ``UntrustedBytes`` on anything else."""
        if len(text) != 2 * cls.size_bytes or not re.fullmatch(r"[0-9a-f]+", text):
            raise UntrustedBytes(
                f"{cls.__name__} is {2 * cls.size_bytes} lower-case hexadecimal digits, not {text[:80]!r}"
            )
        return cls(bytes.fromhex(text))

    @property
    def short(self) -> str:
        """The first 8 hexadecimal digits: for people, never for comparison."""
        return self.hex()[:8]

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.short}…)"


class DeviceId(_FixedBytes):
    size_bytes = 16
    __slots__ = ()

    @classmethod
    def of_public_key(cls, raw_ed25519: bytes) -> Self:
        """The id of the device that holds this raw 32-byte Ed25519 public key."""
        return cls(hashlib.sha256(raw_ed25519).digest()[:16])


class _Blake3Id(_FixedBytes):
    size_bytes = 32
    __slots__ = ()

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Self:
        return cls(blake3(data).digest())


class ChunkId(_Blake3Id):
    __slots__ = ()


class SegmentId(_Blake3Id):
    __slots__ = ()


class ManifestId(_Blake3Id):
    __slots__ = ()


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~:=@-]{0,127}")


def check_name(text: str, what: str = "name") -> str:
    """Return ``text`` if it is safe as one path component and one TUF target component, else raise ``UntrustedBytes``.

    Letters, digits and ``. _ + ~ : = @ -``, starting with a letter or digit, at most 128 characters: the alphabet of
    Debian package file names, which rules out ``..``, separators, NUL, blanks and leading dashes.
    """
    if not _NAME.fullmatch(text) or ".." in text:
        raise UntrustedBytes(
            f"{what} {text[:80]!r} may hold letters, digits and . _ + ~ : = @ - only, start with a letter or digit, "
            "and have at most 128 characters"
        )
    return text


class RelativePath(str):
    """A path below a root that cannot climb out of it: no empty, ``.`` or ``..`` part, not absolute, no NUL, ``/`` only."""

    __slots__ = ()

    def __new__(cls, value: str) -> Self:
        parts = value.split("/")
        if (
            not value
            or len(value) > 4096
            or "\0" in value
            or "\\" in value
            or any(part in ("", ".", "..") for part in parts)
        ):
            raise UntrustedBytes(f"{value[:80]!r} is not a relative path that stays below its root")
        return super().__new__(cls, value)
