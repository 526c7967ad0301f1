"""Layouts: how the stored form of a package or an archive is made of the files that installing it leaves on a device.

The admin's machine makes one for each base artifact. A device that has that version installed, and none of its chunks, then
makes base chunks out of its files (``installed``), so that an office whose caches are empty still pays for a delta only.

What of a stored form is a file piece
- deb: regular files of data.tar, below the root where dpkg installs them; members of control.tar, which dpkg keeps in
  ``var/lib/dpkg/info``: md5sums do not compress, and are half of what is left of a package of many files.
- tar: regular files, below the folder into which the archive is unpacked.

Everything else is in the layout as it is: headers, padding, what is smaller than ``FILE_BYTES_MIN``, and small conffiles, because
those are the files that people edit.

Measured, as it crosses the WAN (xz): kernel image of 4,045 files and 411 MB 64 kB, openjdk 23 kB, postgresql 23 kB, git 14 kB,
python's library 7 kB, samba-libs 4 kB. Making that of the kernel image takes a second.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pcm_p2p.content.forms.deb import ArMember, ar_members
from pcm_p2p.content.manifest import Form
from pcm_p2p.content.pieces import (
    PIECES_MAX,
    REST_BYTES_MAX,
    FilePiece,
    Piece,
    decode_layout_untrusted,
    encode_layout,
    is_below,
)
from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import ChunkId

FILE_BYTES_MIN = 256
"""Choice: below it a path costs about as much as the bytes do, compressed."""
CONFFILE_BYTES_MAX = 16 << 10
"""Choice: up to here a conffile is in the layout; few are larger."""
CONTROL_BYTES_MAX = 1 << 20
SHARE_MAX = 0.5
"""Choice: where the layout is more than half of the stored form, the full segments are the better way."""
INFO = b"var/lib/dpkg/info"

_BROKEN = (tarfile.TarError, ValueError, EOFError, OverflowError, LookupError, RecursionError)


class _File(NamedTuple):
    """``size_bytes`` bytes at byte ``at`` of the stored form are the file ``path``."""

    at: int
    size_bytes: int
    path: bytes


def make_layout(stored: Path, form: Form, chunk_ids: Sequence[ChunkId], chunk_sizes: Sequence[int]) -> bytes | None:
    """The layout of the stored form at ``stored``, whose chunks are these, in order; None where it does not pay.

    The same stored form gives the same bytes. Time and memory are bounded (``REST_BYTES_MAX``), whatever the file holds: what
    cannot be read as members is taken as it is. Raises ``InputError`` if the file cannot be read.
    """
    try:
        with stored.open("rb") as file:
            size_bytes = file.seek(0, io.SEEK_END)
            if size_bytes != sum(chunk_sizes) or not size_bytes:
                return None
            files = _files(file, stored, form)
            covered = sum(each.size_bytes for each in files)
            if not files or size_bytes - covered > REST_BYTES_MAX:
                return None
            pieces = list(_pieces(file, files, size_bytes))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=stored) from None
    encoded = encode_layout(pieces, chunk_ids, chunk_sizes)
    if len(encoded) > SHARE_MAX * size_bytes:
        return None
    try:
        decode_layout_untrusted(encoded)
    except UntrustedBytes:
        return None  # more than a device would read
    return encoded


def package_of(stored: Path) -> tuple[str, str, str]:
    """Name, version and architecture of the Debian package, as dpkg's database spells them. Raises ``InputError``."""
    try:
        with stored.open("rb") as file:
            control = _control(file, stored)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=stored) from None
    fields = control.fields
    if not all(fields.get(name) for name in ("package", "version", "architecture")):
        raise InputError("its control file names no package, version or architecture", path=stored)
    return fields["package"], fields["version"], fields["architecture"]


def _files(file: BinaryIO, source: Path, form: Form) -> list[_File]:
    """Rising, none of them overlapping another."""
    if form == "deb":
        found = _deb_files(file, source)
    elif form in ("tar", "exact"):
        found = _tar_files(file, 0, file.seek(0, io.SEEK_END))
    else:
        return []
    files, end = list[_File](), 0
    for each in found:
        if each.at >= end and each.size_bytes >= FILE_BYTES_MIN and is_below(each.path):
            files.append(each)
            end = each.at + each.size_bytes
            if len(files) > PIECES_MAX:
                return []
    return files


def _deb_files(file: BinaryIO, source: Path) -> Iterator[_File]:
    control = _control(file, source)
    package, architecture = control.fields.get("package", ""), control.fields.get("architecture", "")
    qualified = f"{package}:{architecture}" if control.fields.get("multi-arch") == "same" else package
    for at, size, name in control.members:
        # The control file itself goes into dpkg's status, in words of dpkg's own.
        if name != b"control" and b"/" not in name:
            yield _File(at, size, INFO + b"/" + qualified.encode() + b"." + name)
    for each in _tar_files(file, control.data.at, control.data.size_bytes):
        if each.path not in control.conffiles or each.size_bytes > CONFFILE_BYTES_MAX:
            yield each


class _Control(NamedTuple):
    fields: dict[str, str]
    conffiles: frozenset[bytes]
    members: list[_File]
    data: ArMember


def _control(file: BinaryIO, source: Path) -> _Control:
    """What control.tar says, and where data.tar lies. Raises ``InputError``, ``OSError``."""
    members = {member.name: member for member in ar_members(file, source)}
    if "control.tar" not in members or "data.tar" not in members:
        raise InputError("is not the stored form of a Debian package", path=source)
    place = members["control.tar"]
    found = [*_tar_files(file, place.at, place.size_bytes)]
    texts = {
        each.path: _read(file, each).decode("utf-8", "replace")
        for each in found
        if each.path in (b"control", b"conffiles") and each.size_bytes <= CONTROL_BYTES_MAX
    }
    lines = [line.partition(":") for line in texts.get(b"control", "").splitlines() if not line.startswith((" ", "\t"))]
    fields = {key.lower(): value.strip() for key, _, value in lines}
    # Flags may stand before the path (deb-conffiles(5)).
    conffiles = {line.rpartition(" ")[2].strip("/").encode() for line in texts.get(b"conffiles", "").splitlines()}
    return _Control(fields, frozenset(conffiles), found, members["data.tar"])


def _tar_files(file: BinaryIO, at: int, size_bytes: int) -> Iterator[_File]:
    """The regular files of the tar at byte ``at``, up to where it cannot be read any more."""
    try:
        section: Any = _Section(file, at, size_bytes)  # typeshed wants the verbs for writing too
        with tarfile.open(fileobj=section, mode="r:", encoding="utf-8", errors="surrogateescape") as tape:
            while (item := tape.next()) is not None:
                tape.members.clear()  # type: ignore[attr-defined]  # it keeps them all otherwise
                if item.isreg() and not item.issparse() and 0 < item.size <= size_bytes - item.offset_data:
                    yield _File(at + item.offset_data, item.size, _plain(item.name))
    except _BROKEN:
        return


def _plain(name: str) -> bytes:
    while name.startswith("./"):
        name = name[2:]
    return name.encode("utf-8", "surrogateescape")


def _pieces(file: BinaryIO, files: list[_File], size_bytes: int) -> Iterator[Piece]:
    """The files and what is between them, in order and without gaps."""
    end = 0
    for each in (*files, _File(size_bytes, 0, b"")):
        if each.at > end:
            yield _read(file, _File(end, each.at - end, b""))
        if each.size_bytes:
            yield FilePiece(each.path, each.size_bytes)
        end = each.at + each.size_bytes


def _read(file: BinaryIO, place: _File) -> bytes:
    file.seek(place.at)
    return file.read(place.size_bytes)


class _Section:
    """A part of a file as a file of its own, for ``tarfile``."""

    def __init__(self, file: BinaryIO, begin: int, size_bytes: int) -> None:
        self._file, self._begin, self._size, self._at = file, begin, size_bytes, 0

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> int:
        self._at = at
        return at

    def read(self, size_bytes: int) -> bytes:
        """Raises ``ValueError`` for what is no header: ``tarfile`` believes the size of a header's continuation."""
        if size_bytes > CONTROL_BYTES_MAX:
            raise ValueError("a header is too large")
        self._file.seek(self._begin + self._at)
        data = self._file.read(max(0, min(size_bytes, self._size - self._at)))
        self._at += len(data)
        return data
