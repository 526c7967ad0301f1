"""Archive members: a hostile tar or zip unpacked below one open folder, or refused.

The archive was signed, but it was made elsewhere by many hands, so every member is judged: plain relative paths, no
devices, links only to places inside, nothing through a link, nothing twice, and no more bytes than allowed. Links are
made after everything else, so that no member can pass through one.

Why a link that is accepted stays inside: its target is relative, ``..`` stands only at its beginning and no more often
than the link is deep. The folder of a link is a real folder (parents are walked without following), so the ``..`` are
what they seem; the names after them are real entries, or links of which the same holds.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from pcm_p2p.apply.root import COPY_BYTES, Root
from pcm_p2p.errors import ApplyError, UntrustedBytes
from pcm_p2p.ids import RelativePath

MEMBERS_MAX = 1_000_000
"""Choice: several times the largest source tree in Debian (linux, 80,000 files)."""
HEADERS_BYTES_MAX = 1 << 20
"""Choice: the longest path there can be, twice, and a hundred extended attributes."""
LINK_TARGET_CHARACTERS_MAX = 4_096
"""Linux PATH_MAX."""

_BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError,
    KeyError, IndexError, NotImplementedError, RuntimeError, OverflowError, RecursionError,
)  # fmt: skip


class Member(msgspec.Struct, frozen=True):
    """One entry. ``target`` of a hard link is a path within the archive, of a link relative to its own folder."""

    path: RelativePath
    kind: Literal["file", "folder", "link", "hard_link"]
    mode: int
    size_bytes: int
    target: str = ""


def unpack_untrusted(archive: IO[bytes], folder: Path, *, unpacked_bytes_max: int) -> int:
    """Unpack ``archive`` (tar in any compression, or zip) into the empty ``folder``; returns the bytes written.

    Files belong to the caller; modes lose set-user bits and write permission for others. Raises ``UntrustedBytes`` for an
    archive that is refused and ``OSError`` for the disk; in both cases ``folder`` holds an unspecified part of it.
    """
    unpacking = _Unpacking(Root(folder, flush=False), unpacked_bytes_max)
    try:
        if zipfile.is_zipfile(archive):
            archive.seek(0)
            with zipfile.ZipFile(archive) as container:
                for info in container.infolist():
                    unpacking.take(*_of_zip(container, info))
        else:
            archive.seek(0)
            with _Tape.open(fileobj=archive, mode="r:*") as tape:
                while (item := _next_item(tape)) is not None:
                    if (member := _of_tar(item)) is not None:
                        unpacking.take(member, partial(_open_tar, tape, item))
        unpacking.make_links()
    except UntrustedBytes:
        raise
    except _BROKEN as error:
        raise UntrustedBytes(f"the archive is damaged or of no known kind: {error}") from None
    except OSError as error:
        if error.errno is None:  # gzip and bz2 say so of their stream; a disk gives a number
            raise UntrustedBytes(f"the archive is damaged: {error}") from None
        raise
    return unpacking.written_bytes


class _Tape(tarfile.TarFile):
    """A tar whose headers are bounded: ``tarfile`` reads as much as a header says it goes on for, and keeps all of it.

    Measured: an archive of 14 MB with one extended header of 3 GiB of zeros took 3.1 GB of memory.
    """

    @classmethod
    def taropen(cls, name: Any, mode: Any = "r", fileobj: Any = None, **options: Any) -> Any:
        """What ``tarfile`` calls for the bare tar and for what it has unpacked."""
        bounded: Any = _Bounded(fileobj)  # typeshed wants the verbs for writing too
        return super().taropen(name, mode, bounded, **options)


class _Bounded:
    """A stream of which no more than ``HEADERS_BYTES_MAX`` is read for the headers of one member."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left: int | None = HEADERS_BYTES_MAX
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def begin_headers(self) -> None:
        self._left = HEADERS_BYTES_MAX

    def end_headers(self) -> None:
        self._left = None

    def read(self, size_bytes: int) -> bytes:
        if self._left is not None:
            self._left -= size_bytes
            if self._left < 0:
                raise UntrustedBytes(f"the archive has a member with more than {HEADERS_BYTES_MAX} bytes of headers")
        return self._stream.read(size_bytes)


def _next_item(tape: tarfile.TarFile) -> tarfile.TarInfo | None:
    stream: Any = tape.fileobj
    stream.begin_headers()
    item = tape.next()
    stream.end_headers()
    tape.members.clear()  # type: ignore[attr-defined]  # it keeps them all otherwise: a kilobyte a member
    return item


class _Unpacking:
    """The state of one unpacking: what was written, and the links that come last."""

    def __init__(self, root: Root, unpacked_bytes_max: int) -> None:
        self._root = root
        self._bytes_max = unpacked_bytes_max
        self.written_bytes = 0
        self._members = 0
        self._files: set[str] = set()
        self._links: list[Member] = []

    def take(self, member: Member, open_bytes: Callable[[], IO[bytes] | None]) -> None:
        self._members += 1
        if self._members > MEMBERS_MAX:
            raise UntrustedBytes(f"the archive has more than {MEMBERS_MAX} members")
        if self.written_bytes + member.size_bytes > self._bytes_max:
            raise UntrustedBytes(f"the archive unpacks to more than {self._bytes_max} bytes")
        if member.kind == "folder":
            with self._inside(member), self._root.folder(member.path, make=True):
                return
        if member.kind == "link":
            _check_target(member)
            self._links.append(member)
            return
        with self._inside(member), self._root.parent(member.path, make=True) as (folder, name):
            if member.kind == "hard_link":
                self._make_hard_link(member, folder, name)
            else:
                self._write(member, folder, name, open_bytes)
            self._files.add(member.path)

    def make_links(self) -> None:
        for link in self._links:
            with self._inside(link), self._root.parent(link.path, make=True) as (folder, name):
                os.symlink(link.target, name, dir_fd=folder)

    def _write(self, member: Member, folder: int, name: str, open_bytes: Callable[[], IO[bytes] | None]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb") as target:
            source = open_bytes()
            if source is None:
                raise UntrustedBytes(f"{member.path[:80]!r} has no bytes")
            with source:
                while block := source.read(COPY_BYTES):
                    self.written_bytes += len(block)
                    if self.written_bytes > self._bytes_max:
                        raise UntrustedBytes(f"the archive unpacks to more than {self._bytes_max} bytes")
                    target.write(block)
            os.fchmod(target.fileno(), member.mode & 0o755 | 0o600)

    def _make_hard_link(self, member: Member, folder: int, name: str) -> None:
        target = RelativePath(_plain(member.target))
        if target not in self._files:
            raise UntrustedBytes(f"{member.path[:80]!r} is a hard link to something that is not an earlier file")
        with self._root.parent(target) as (target_folder, target_name):
            os.link(target_name, name, src_dir_fd=target_folder, dst_dir_fd=folder, follow_symlinks=False)

    @contextlib.contextmanager
    def _inside(self, member: Member) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise UntrustedBytes(f"{member.path[:80]!r} stands twice in the archive") from None
        except (NotADirectoryError, IsADirectoryError, FileNotFoundError):
            raise UntrustedBytes(f"{member.path[:80]!r} passes through something that is no folder") from None
        except ApplyError as error:
            raise UntrustedBytes(f"{member.path[:80]!r}: {error}") from None


def _check_target(member: Member) -> None:
    parts = member.target.split("/")
    ups = next((count for count, part in enumerate(parts) if part != ".."), len(parts))
    climbs = ups > member.path.count("/") or ".." in parts[ups:]
    if (
        not member.target
        or len(member.target) > LINK_TARGET_CHARACTERS_MAX
        or parts[0] == ""
        or "\0" in member.target
        or climbs
    ):
        raise UntrustedBytes(f"{member.path[:80]!r} is a link to {member.target[:80]!r}, which may lead outside")


def _plain(name: str) -> str:
    while name.startswith("./"):
        name = name[2:]
    return name.rstrip("/")


def _open_tar(tape: tarfile.TarFile, item: tarfile.TarInfo) -> IO[bytes] | None:
    return tape.extractfile(item)


def _of_tar(item: tarfile.TarInfo) -> Member | None:
    name = _plain(item.name)
    if name in ("", ".") and item.isdir():
        return None
    path = RelativePath(name)
    if item.isreg():
        return Member(path, "file", item.mode, item.size)
    if item.isdir():
        return Member(path, "folder", item.mode, 0)
    if item.issym():
        return Member(path, "link", 0, 0, item.linkname)
    if item.islnk():
        return Member(path, "hard_link", 0, 0, item.linkname)
    raise UntrustedBytes(f"{name[:80]!r} is a device, pipe or something else that does not belong into an archive")


def _of_zip(container: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[Member, Callable[[], IO[bytes] | None]]:
    path = RelativePath(_plain(info.filename))
    mode = info.external_attr >> 16 if info.create_system == 3 else 0
    if info.flag_bits & 1:
        raise UntrustedBytes(f"{path[:80]!r} is encrypted")

    def open_bytes() -> IO[bytes]:
        return container.open(info)

    if info.is_dir():
        return Member(path, "folder", mode, 0), open_bytes
    if stat.S_ISLNK(mode):
        with container.open(info) as source:
            target = source.read(LINK_TARGET_CHARACTERS_MAX + 1).decode("utf-8", "surrogateescape")
        return Member(path, "link", 0, 0, target), open_bytes
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise UntrustedBytes(f"{path[:80]!r} is a device, pipe or something else that does not belong into an archive")
    return Member(path, "file", mode or 0o644, info.file_size), open_bytes
