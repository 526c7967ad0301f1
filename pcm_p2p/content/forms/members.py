"""The members of a stored form, so that a file in the new version meets the same file in the old one.

Members tile the stored form: each reaches from its own header to the header of the next, directories, links and the structure
of the container belong to the member before. Reading is tolerant and bounded: whatever is not understood, and everything
beyond ``MEMBERS_MAX``, is part of the last member. It decides how small a delta is, never what it yields.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from pcm_p2p.content.forms.deb import MAGIC as AR_MAGIC
from pcm_p2p.content.forms.member import Member
from pcm_p2p.content.manifest import Form
from pcm_p2p.errors import InputError

MEMBERS_MAX = 65_536
"""Choice: 20 MB of Python objects. Kernel images have 4,000 members, documentation packages 20,000."""
_PATH_SIZE_MAX = 1_024
_BLOCK = 512
_AR_HEADER = 60
_EXTENDED_SIZE_BYTES_MAX = 1 << 20
_REGULAR = frozenset(b"\0" + b"07")
_PAX_PATH = re.compile(rb"(?:\A|\n)\d+ path=([^\n]*)\n")
_PAX_SIZE = re.compile(rb"(?:\A|\n)\d+ size=(\d{1,15})\n")
_ZIP_LOCAL, _ZIP_DIRECTORY = b"PK\x03\x04", b"PK\x01\x02"


def members(path: Path, form: Form, begin: int = 0, end: int | None = None) -> list[Member]:
    """The members of the stored form in bytes ``begin`` … ``end - 1`` of ``path``, in order, without gaps.

    Offsets count from ``begin``; an empty stored form has no members. Raises ``InputError``.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            end = size if end is None else min(end, size)
            if begin >= end:
                return []
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return list(_tiled(_begins(data, form, begin, end), begin, end))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", path=path) from None


def _tiled(begins: Iterator[tuple[str, int]], begin: int, end: int) -> Iterator[Member]:
    path, at, count = "", begin, 0
    for next_path, following in begins:
        if not at <= following < end:
            break
        if following > at:
            yield Member(path, at - begin, following - at)
            count += 1
        path, at = next_path[:_PATH_SIZE_MAX], following
        if count == MEMBERS_MAX - 1:
            path = ""
            break
    yield Member(path, at - begin, end - at)


def _begins(data: mmap.mmap, form: Form, begin: int, end: int) -> Iterator[tuple[str, int]]:
    """Path and first byte of each member."""
    if form == "deb":
        return _begins_of_deb(data, begin, end)
    if form == "zip":
        return _begins_of_zip(data, begin, end)
    # A tar that was delivered without compression is its own stored form.
    if form == "tar" or data[begin + 257 : begin + 262] == b"ustar":
        return _begins_of_tar(data, begin, end, "")
    return iter(())


def _begins_of_deb(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[str, int]]:
    at = begin + len(AR_MAGIC)
    while at + _AR_HEADER <= end:
        name = _text(data[at : at + 16]).rstrip(" ").removesuffix("/")
        digits = data[at + 48 : at + 58].rstrip(b" ")
        if not digits.isdigit():
            return
        content = at + _AR_HEADER
        yield name, at
        at = content + int(digits)
        if name in ("control.tar", "data.tar"):
            yield from _begins_of_tar(data, content, min(at, end), "control.tar/" if name == "control.tar" else "")
        at += (at - begin) % 2


def _begins_of_tar(data: mmap.mmap, at: int, end: int, prefix: str) -> Iterator[tuple[str, int]]:
    begin, long_path, long_size = at, b"", -1
    while at + _BLOCK <= end:
        header = data[at : at + _BLOCK]
        size = _tar_size(header[124:136])
        if size is None or not header[0]:
            return
        kind, content = header[156], at + _BLOCK
        at = content + -(-size // _BLOCK) * _BLOCK
        if kind in b"LxKg":
            extended = data[content : content + min(size, _EXTENDED_SIZE_BYTES_MAX)]
            if kind == ord("L"):
                long_path = extended.rstrip(b"\0")
            elif kind == ord("x"):
                if found := _PAX_PATH.search(extended):
                    long_path = found[1]
                if found := _PAX_SIZE.search(extended):
                    long_size = int(found[1])
            continue
        if long_size >= 0:
            at = content + -(-long_size // _BLOCK) * _BLOCK
        if kind in _REGULAR:
            yield prefix + _text(long_path or _tar_path(header)).removeprefix("./"), begin
        begin, long_path, long_size = at, b"", -1


def _tar_path(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        return header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _tar_size(field: bytes) -> int | None:
    if field[0] == 0x80:
        return int.from_bytes(field[4:], "big")
    digits = field.strip(b" \0")
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None


def _begins_of_zip(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[str, int]]:
    while at < end and data[at : at + 4] == _ZIP_LOCAL:
        header = data[at : at + 30]
        if len(header) < 30:
            return
        size, name_size, extra_size = (int.from_bytes(header[a:b], "little") for a, b in ((18, 22), (26, 28), (28, 30)))
        name_end = at + 30 + name_size
        yield _text(data[at + 30 : name_end]), at
        if size == 0xFFFFFFFF:
            size = _zip_long_size(data[name_end : name_end + extra_size])
        at = name_end + extra_size + size
    if data[at : at + 4] == _ZIP_DIRECTORY:
        yield "", at


def _zip_long_size(extra: bytes) -> int:
    """The packed size in the field of long sizes (APPNOTE 4.5.3); 0 if it is not there."""
    while len(extra) >= 4:
        kind, size = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        if kind == 1 and size >= 16:
            return int.from_bytes(extra[12:20], "little")
        extra = extra[4 + size :]
    return 0


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
