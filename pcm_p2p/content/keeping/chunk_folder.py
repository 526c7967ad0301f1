"""The files of a chunk store: ``chunks/ab/<64 hex digits>``, and ``temporary/`` for what is being written. No rules, no counts.

A file gets its name by ``rename`` when it is whole. It is not flushed: what a power cut tears fails its hash later.
All methods raise ``OSError`` and nothing else unless they say so.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pcm_p2p.content.chunk import SEALED_SIZE_BYTES_MAX
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import ChunkId


class DiskSpace(NamedTuple):
    """Bytes of the file system, and those of them that this process may still use."""

    total: int
    free: int


def disk_space(folder: Path) -> DiskSpace:
    """What the file system of ``folder`` has. Raises ``OSError``."""
    figures = os.statvfs(folder)
    return DiskSpace(figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize)


class Found(NamedTuple):
    """A file of the name of a chunk. ``usable``: it lies where it belongs and has a size that a sealed chunk may have."""

    chunk: ChunkId
    path: Path
    size_bytes: int
    used_s: float
    usable: bool


class ReadChunk(NamedTuple):
    """``inode`` tells this file from one that came in its place."""

    sealed: bytes
    inode: int


class ChunkFolder:
    """``prepare`` before anything else. All methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.chunks = folder / "chunks"
        self._temporary = folder / "temporary"
        self._names = itertools.count()

    def prepare(self) -> None:
        """Make the folders and sweep what a killed process left."""
        self.chunks.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._temporary.mkdir(mode=0o700, exist_ok=True)
        for left in os.scandir(self._temporary):
            with contextlib.suppress(IsADirectoryError):
                Path(left.path).unlink()

    def path(self, chunk: ChunkId) -> Path:
        name = chunk.hex()
        return self.chunks / name[:2] / name

    # Looking

    def find(self, chunk: ChunkId) -> Found | None:
        """The file of ``chunk``, by one ``stat``; None if there is none that is usable. Raises nothing."""
        path = self.path(chunk)
        try:
            facts = path.lstat()
        except OSError:
            return None
        found = _found(chunk, path, facts)
        return found if found.usable else None

    def folders(self) -> list[Path]:
        """At most 256 of them, each with its share of the files."""
        with os.scandir(self.chunks) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))

    def files(self, folder: Path) -> Iterator[Found]:
        """What of ``folder`` has the name of a chunk; other people's files are passed over."""
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(UntrustedBytes, FileNotFoundError):
                    chunk = ChunkId.parse(entry.name)
                    if not entry.is_dir(follow_symlinks=False):
                        yield _found(chunk, Path(entry.path), entry.stat(follow_symlinks=False))

    def inode(self, chunk: ChunkId) -> int:
        return self.path(chunk).lstat().st_ino

    # Reading and writing

    def read(self, chunk: ChunkId, *, forget: bool = False) -> ReadChunk:
        """At most one byte more than the file or a sealed chunk may have. ``forget``: leave nothing of it in the page cache."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(self.path(chunk), flags), "rb", buffering=0) as file:
            facts = os.fstat(file.fileno())
            # A read makes room for all that it may bring: for the largest chunk that takes longer than reading this one.
            sealed = _read_at_most(file.read, min(facts.st_size, SEALED_SIZE_BYTES_MAX) + 1)
            if forget and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return ReadChunk(sealed, facts.st_ino)

    def new_path(self, chunk: ChunkId) -> Path:
        """Where to write ``chunk`` before it gets its name."""
        return self._temporary / f"{chunk.short}-{next(self._names)}"

    def put_in_place(self, temporary: Path, chunk: ChunkId, used_s: float) -> None:
        os.utime(temporary, (used_s, used_s))
        path = self.path(chunk)
        try:
            temporary.rename(path)
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            temporary.rename(path)

    def touch(self, chunk: ChunkId, used_s: float) -> None:
        os.utime(self.path(chunk), (used_s, used_s), follow_symlinks=False)

    def delete(self, chunk: ChunkId) -> None:
        self.path(chunk).unlink(missing_ok=True)


def _found(chunk: ChunkId, path: Path, facts: os.stat_result) -> Found:
    fits = stat.S_ISREG(facts.st_mode) and 0 < facts.st_size <= SEALED_SIZE_BYTES_MAX
    return Found(chunk, path, facts.st_size, facts.st_mtime, fits and path.name[:2] == path.parent.name)


def write_new_file(path: Path, data: bytes) -> None:
    """Create ``path`` with ``data``, not flushed. Raises ``OSError``; a part may be there then."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]


def _read_at_most(read: Callable[[int], bytes | None], size_bytes_max: int) -> bytes:
    """Up to so many bytes, until the end of the file: one read is nearly always enough."""
    data = read(size_bytes_max) or b""
    while data and len(data) < size_bytes_max:
        more = read(size_bytes_max - len(data))
        if not more:
            break
        data += more
    return data
