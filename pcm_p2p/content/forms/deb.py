"""Debian packages: their stored form is the same package with its two tars uncompressed, which dpkg installs as it is.

A .deb is an ar archive: ``debian-binary``, ``control.tar…``, ``data.tar…``, in this order, and members of other tools whose
names begin with an underscore (deb(5)). Such members are usually signatures over the compressed tars, which the stored form
would break: ``is_deb`` says no to a package that has one, and it is distributed exactly as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pcm_p2p.content.forms.decompression import BLOCK_SIZE_BYTES, Compression, decompressed, too_large
from pcm_p2p.errors import InputError

MAGIC = b"!<arch>\n"
_HEADER_SIZE_BYTES = 60
_SIZE_AT = slice(48, 58)
_SIZE_BYTES_MAX = 10**10 - 1
"""What ten decimal digits of an ar header can say."""
_MEMBERS_MAX = 16
_SUFFIXES: dict[str, Compression | None] = {
    "": None,
    ".gz": "gzip",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".lzma": "lzma",
    ".zst": "zstd",
}
_TAR = re.compile(r"(control|data)\.tar(\.[a-z0-9]+)?")


@dataclass(frozen=True, slots=True)
class ArMember:
    name: str
    header: bytes
    at: int
    size_bytes: int


def is_deb(source: Path) -> bool:
    """Is ``source`` a Debian package without members of other tools? Raises ``OSError``."""
    with source.open("rb") as file:
        try:
            names = [member.name for member in ar_members(file, source)]
        except InputError:
            file.seek(0)
            # A broken package is still a package: saying so lets write_deb tell what is wrong with it.
            return file.read(len(MAGIC) + 13) == MAGIC + b"debian-binary"
    return names[:1] == ["debian-binary"] and not any(name.startswith("_") for name in names)


def write_deb(source: Path, file: BinaryIO, size_bytes_max: int) -> None:
    """Write the stored form of ``source`` to ``file``, which can be sought. Raises ``InputError`` or ``OSError``."""
    with source.open("rb") as package:
        members = list(ar_members(package, source))
        _check(members, source)
        file.write(MAGIC)
        written = len(MAGIC)
        for member in members:
            written += _write_member(package, member, file, size_bytes_max - written, source)


def ar_members(package: BinaryIO, source: Path) -> Iterator[ArMember]:
    """The members as their headers state them, each inside the file. Raises ``InputError``."""
    end = package.seek(0, 2)
    package.seek(0)
    if package.read(len(MAGIC)) != MAGIC:
        raise InputError("is not an ar archive, hence not a Debian package", path=source)
    at, names = len(MAGIC), set[str]()
    while at < end:
        package.seek(at)
        header = package.read(_HEADER_SIZE_BYTES)
        if len(header) < _HEADER_SIZE_BYTES or header[58:] != b"`\n":
            raise InputError(f"the ar header at byte {at} is broken", path=source)
        name = header[:16].decode("ascii", "replace").rstrip(" ").removesuffix("/")
        digits = header[_SIZE_AT].rstrip(b" ")
        if not digits.isdigit() or at + _HEADER_SIZE_BYTES + int(digits) > end:
            raise InputError(f"member {name!r} states a size that does not fit the file", path=source)
        if name in names:
            raise InputError(f"member {name!r} occurs twice", path=source)
        names.add(name)
        if len(names) > _MEMBERS_MAX:
            raise InputError(f"has more than {_MEMBERS_MAX} members", path=source)
        yield ArMember(name, header, at + _HEADER_SIZE_BYTES, int(digits))
        at += _HEADER_SIZE_BYTES + int(digits)
        at += at % 2


def _check(members: list[ArMember], source: Path) -> None:
    parts = [member.name.split(".tar")[0] for member in members if not member.name.startswith("_")]
    if parts != ["debian-binary", "control", "data"] or members[0].name != "debian-binary":
        found = ", ".join(repr(member.name) for member in members)
        raise InputError(
            f"a Debian package has debian-binary, one control.tar and one data.tar, in this order; this one has {found}",
            path=source,
        )
    for member in members:
        tar = _TAR.fullmatch(member.name)
        if tar and (tar[2] or "") not in _SUFFIXES:
            raise InputError(f"member {member.name!r} is compressed in a way that is not known here", path=source)
        if not tar and member.name != "debian-binary" and not member.name.startswith("_"):
            raise InputError(f"member {member.name!r} does not belong into a Debian package", path=source)


def _write_member(package: BinaryIO, member: ArMember, file: BinaryIO, room_bytes: int, source: Path) -> int:
    """Write one member, uncompressed if it is a tar; how many bytes were written."""
    package.seek(member.at)
    left = member.size_bytes

    def read(size_bytes: int) -> bytes:
        nonlocal left
        data = package.read(min(size_bytes, left))
        left -= len(data)
        return data

    name, compression = member.name, None
    if tar := _TAR.fullmatch(member.name):
        name, compression = f"{tar[1]}.tar", _SUFFIXES[tar[2] or ""]
    room_bytes = min(room_bytes - _HEADER_SIZE_BYTES - 1, _SIZE_BYTES_MAX)
    begun = file.tell()
    file.write(member.header)  # the place; name and size are known at the end
    size_bytes = 0
    if compression is None:
        blocks = iter(lambda: read(BLOCK_SIZE_BYTES), b"")
    else:
        blocks = decompressed(read, compression, size_bytes_max=room_bytes, path=source)
    for block in blocks:
        size_bytes += len(block)
        if size_bytes > room_bytes:
            raise too_large(source, room_bytes)
        file.write(block)
    if size_bytes % 2:
        file.write(b"\n")
    ended = file.tell()
    file.seek(begun)
    # Date, owner and mode of the member stay as they are: the stored form is a function of the package alone.
    file.write(name.encode().ljust(16) + member.header[16:48] + str(size_bytes).encode().ljust(10) + b"`\n")
    file.seek(ended)
    return ended - begun
