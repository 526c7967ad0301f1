"""zip: its stored form is a zip with the same members in the same order, not compressed.

Names, times, attributes, comments and extra fields stay; the bytes depend on nothing but the source. Only files called
``.zip`` are taken for one: wheels, jars and office documents are zips too, and others go by the hash of the whole file.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, BinaryIO

from pcm_p2p.content.forms.decompression import BLOCK_SIZE_BYTES, too_large
from pcm_p2p.errors import InputError

_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
_END = b"PK\x05\x06"
_END_SIZE_BYTES = 22
_END64 = b"PK\x06\x06"
_END64_AND_LOCATOR_SIZE_BYTES = 56 + 20
_COMMENT_SIZE_BYTES_MAX = 0xFFFF
DIRECTORY_SIZE_BYTES_MAX = 64 << 20
"""The directory is read as a whole."""
MEMBERS_MAX = 1 << 18
"""Measured: so many take 200 MiB and ten seconds here, a million 730 MiB and more than a minute."""
_ENTRY = b"PK\x01\x02"
_ENTRY_SIZE_BYTES = 46
_LOCAL_SIZE_BYTES = 30
_ZIP64 = 0x0001
_UNIX_TIMES = 0x5455
_ENCRYPTED = 0x1
_BAD = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    struct.error,
    zlib.error,
    OverflowError,
)


SUFFIXES = frozenset({".zip", ".whl", ".jar", ".war", ".ear", ".egg"})
"""The zip family whose readers take stored members and whose signatures, if any, are over members. Containers that are signed
as a whole (.apk, .nupkg, office documents) stay exact, as does everything that is not known."""


def is_zip(source: Path) -> bool:
    """Raises ``OSError``."""
    if source.suffix.lower() not in SUFFIXES:
        return False
    with source.open("rb") as file:
        return file.read(4) in _MAGICS


def write_zip(source: Path, file: BinaryIO, size_bytes_max: int) -> None:
    """Write the stored form of ``source`` to ``file``, which can be sought. Raises ``InputError`` or ``OSError``."""
    with source.open("rb") as packed:
        _check_directory(packed, source)
        try:
            with zipfile.ZipFile(packed) as archive, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as stored:
                stored.comment = archive.comment
                members = archive.infolist()
                _check(members, source, size_bytes_max)
                room_bytes = size_bytes_max
                for member in members:
                    room_bytes -= _copy(archive, member, stored, room_bytes, source)
        except _BAD as error:
            raise InputError(f"cannot be read as a zip: {error}", path=source) from None


def _check_directory(packed: BinaryIO, source: Path) -> None:
    """Bound what reading the directory will cost, before ``zipfile`` reads it."""
    end = packed.seek(0, 2)
    packed.seek(max(0, end - _END_SIZE_BYTES - _COMMENT_SIZE_BYTES_MAX))
    tail = packed.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_SIZE_BYTES:
        raise InputError("has no directory at its end, hence is no zip, or not all of one", path=source)
    size_bytes = int.from_bytes(tail[at + 12 : at + 16], "little")
    directory_end = end - len(tail) + at
    packed.seek(max(0, directory_end - _END64_AND_LOCATOR_SIZE_BYTES))
    long_end = packed.read(_END64_AND_LOCATOR_SIZE_BYTES)
    if long_end.startswith(_END64):
        size_bytes = int.from_bytes(long_end[40:48], "little")
        directory_end -= _END64_AND_LOCATOR_SIZE_BYTES
    if size_bytes > DIRECTORY_SIZE_BYTES_MAX:
        raise InputError(
            f"its directory has more than {DIRECTORY_SIZE_BYTES_MAX} bytes",
            path=source,
            remedy="Release it with '--form exact'.",
        )
    packed.seek(max(0, directory_end - size_bytes))
    if _has_too_many(packed.read(size_bytes)):
        raise InputError(f"has more than {MEMBERS_MAX} members", path=source, remedy="Release it with '--form exact'.")
    packed.seek(0)


def _has_too_many(directory: bytes) -> bool:
    """Whether ``zipfile`` would find more than ``MEMBERS_MAX``: it goes from entry to entry and believes no count."""
    at = 0
    for _ in range(MEMBERS_MAX):
        if directory[at : at + 4] != _ENTRY or at + _ENTRY_SIZE_BYTES > len(directory):
            return False
        at += _ENTRY_SIZE_BYTES + sum(struct.unpack_from("<3H", directory, at + 28))
    return at < len(directory)


def _check(members: list[zipfile.ZipInfo], source: Path, size_bytes_max: int) -> None:
    names = set[str]()
    for member in members:
        name = member.filename
        if name in names:
            raise InputError(f"member {name!r} occurs twice", path=source)
        names.add(name)
        if name != member.orig_filename:
            raise InputError(f"member {member.orig_filename!r} has a name that readers cut short", path=source)
        if member.flag_bits & _ENCRYPTED:
            raise InputError(f"member {name!r} is encrypted", path=source, remedy="Release it with '--form exact'.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
            raise InputError(
                f"member {name!r} is compressed by method {member.compress_type}, which is not unpacked here",
                path=source,
                remedy="Release it with '--form exact'.",
            )
    if sum(member.file_size for member in members) > size_bytes_max:
        raise too_large(source, size_bytes_max)
    end, before = 0, ""
    for member in sorted(members, key=lambda one: one.header_offset):
        # The bomb of many members that unpack the same bytes: its sizes are true, and the archive is tiny.
        if member.header_offset < end:
            raise InputError(f"members {before!r} and {member.filename!r} share bytes", path=source)
        end, before = member.header_offset + _LOCAL_SIZE_BYTES + member.compress_size, member.filename


def _copy(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, stored: zipfile.ZipFile, room_bytes: int, source: Path
) -> int:
    """Copy one member; its size in bytes."""
    copy = zipfile.ZipInfo(member.filename, member.date_time)
    copy.compress_type = zipfile.ZIP_STORED
    copy.external_attr, copy.internal_attr = member.external_attr, member.internal_attr
    copy.create_system, copy.comment = member.create_system, member.comment
    copy.extra = _extra(member.extra)
    copy.file_size = member.file_size  # lets ``zipfile`` see whether the long form is needed
    size_bytes = 0
    with archive.open(member) as content, stored.open(copy, "w") as target:
        while block := _read(content, member, source):
            size_bytes += len(block)
            if size_bytes > min(room_bytes, member.file_size):
                raise InputError(f"member {member.filename!r} is larger than it states", path=source)
            target.write(block)
    if size_bytes != member.file_size:
        raise InputError(
            f"member {member.filename!r} states {member.file_size} bytes and has {size_bytes}", path=source
        )
    return size_bytes


def _read(content: IO[bytes], member: zipfile.ZipInfo, source: Path) -> bytes:
    try:
        return content.read(BLOCK_SIZE_BYTES)
    except OSError as error:
        if error.errno is not None:
            raise
        # What bzip2 says about bad data is an OSError without a number.
        raise InputError(f"member {member.filename!r} cannot be unpacked: {error}", path=source) from None


def _extra(extra: bytes) -> bytes:
    """Extra fields for a header of the copy.

    Without the long sizes, which ``zipfile`` writes itself where they are needed; Unix times with the modification time
    only, because the directory holds no other and the same field is written before the member too.
    """
    kept = b""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[: 4 + size], extra[4 + size :]
        if kind == _UNIX_TIMES and size >= 5 and field[4] & 1:
            kept += struct.pack("<HHB", kind, 5, 1) + field[5:9]
        elif kind not in (_ZIP64, _UNIX_TIMES):
            kept += field
    return kept
