"""Chunks on disk: ``chunks/ab/<64 hex digits>`` holds the sealed chunk of that name, ``temporary/`` what is being written.

The folder is the truth. The index (id → size, last use) is in memory, made by ``scandir`` when the store opens: no second
record that could disagree with the files after a crash. It costs one ``stat`` a chunk, under a second for 80 000 chunks.

What is on disk is never believed: ``get`` and ``get_sealed`` unpack and hash what they read, so that a rotten file is a miss
of ours and never a reproach of a neighbour. A file that fails is deleted, counted, and reported by ``take_removed``.

Quota: chunks that nobody wants go first, least recently used first; wanted ones stay. With no quota given it is
``min(20 % of what is free, 20 GiB)``, and a tenth of the disk stays free. Last use is kept as the file's mtime.

All methods may be called from any thread. None of them waits for anything but the disk.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pcm_p2p.content.chunk import SEALED_SIZE_BYTES_MAX, Chunk, open_sealed_untrusted, seal
from pcm_p2p.errors import DiskFull, StorageError, UntrustedBytes
from pcm_p2p.ids import ChunkId

log = logging.getLogger(__name__)

QUOTA_SHARE_OF_FREE = 0.20
QUOTA_BYTES_CEILING = 20 << 30
DISK_SHARE_KEPT_FREE = 0.10
TOUCH_INTERVAL_S = 600.0
"""Choice: the order of eviction survives a restart to within ten minutes, for one ``utime`` a chunk in that time."""
REMOVED_MAX = 1 << 18
"""Bound of the list that ``take_removed`` empties: four of the largest manifests."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class DiskSpace(NamedTuple):
    """Bytes of the file system, and those of them that this process may still use."""

    total: int
    free: int


def disk_space(folder: Path) -> DiskSpace:
    """What the file system of ``folder`` has. Raises ``OSError``."""
    figures = os.statvfs(folder)
    return DiskSpace(figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize)


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """``full`` since the last put was refused for want of room. Counters are since ``open``; sizes in bytes, as sealed."""

    state: Literal["ok", "full"]
    chunks: int
    bytes: int
    quota_bytes_max: int
    wanted: int
    stored: int
    evicted: int
    rotten: int
    misses: int


@dataclass(slots=True)
class _Held:
    size_bytes: int
    used_s: float
    touched_s: float


class ChunkStore:
    """The chunks of one device. ``open`` before anything else; one process a folder (the daemon's lock sees to that).

    ``clock`` gives seconds since the epoch; ``space`` what the disk has.
    """

    def __init__(
        self,
        folder: Path,
        quota_bytes_max: int = 0,
        *,
        clock: Callable[[], float] = time.time,
        space: Callable[[Path], DiskSpace] = disk_space,
    ) -> None:
        self._chunks = folder / "chunks"
        self._temporary = folder / "temporary"
        self._quota_asked = quota_bytes_max
        self._quota = quota_bytes_max
        self._kept_free = 0
        self._clock = clock
        self._space = space
        self._lock = threading.Lock()
        self._names = itertools.count()
        self._held: dict[ChunkId, _Held] = {}
        self._idle: OrderedDict[ChunkId, None] = OrderedDict()
        self._wanted: frozenset[ChunkId] = frozenset()
        self._removed: dict[ChunkId, None] = {}
        self._bytes = 0
        self._idle_bytes = 0
        self._promised = 0
        self._full = False
        self._stored = self._evicted = self._rotten = self._misses = 0

    def open(self) -> Self:
        """Make the folders, sweep what a killed process left, read the index. Raises ``StorageError``."""
        try:
            self._chunks.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._temporary.mkdir(mode=0o700, exist_ok=True)
            for left in os.scandir(self._temporary):
                with contextlib.suppress(IsADirectoryError):
                    Path(left.path).unlink()
            self._read_index()
            space = self._space(self._chunks)
        except OSError as error:
            raise StorageError(f"the chunk store {self._chunks.parent} cannot be opened: {error.strerror}") from error
        if not self._quota_asked:
            # What the store holds already counts as free, or the quota would shrink with every restart.
            share = int((space.free + self._bytes) * QUOTA_SHARE_OF_FREE)
            self._quota = min(share, QUOTA_BYTES_CEILING)
            self._kept_free = int(space.total * DISK_SHARE_KEPT_FREE)
        return self

    def _read_index(self) -> None:
        found: list[tuple[float, ChunkId, int]] = []
        for folder in os.scandir(self._chunks):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(folder.path):
                try:
                    chunk = ChunkId.parse(entry.name)
                except UntrustedBytes:
                    continue
                facts = entry.stat(follow_symlinks=False)
                usable = entry.is_file(follow_symlinks=False) and 0 < facts.st_size <= SEALED_SIZE_BYTES_MAX
                if usable and entry.name.startswith(folder.name):
                    found.append((facts.st_mtime, chunk, facts.st_size))
                elif not entry.is_dir(follow_symlinks=False):
                    Path(entry.path).unlink()
        found.sort()
        self._held = {chunk: _Held(size, used_s, used_s) for used_s, chunk, size in found}
        self._idle = OrderedDict.fromkeys(self._held)
        self._bytes = self._idle_bytes = sum(size for _, _, size in found)

    # What is there

    def has(self, chunk: ChunkId) -> bool:
        with self._lock:
            return chunk in self._held

    def ids(self) -> list[ChunkId]:
        with self._lock:
            return list(self._held)

    def get(self, chunk: ChunkId) -> Chunk | None:
        """The chunk, verified; None if it is not here, or was not fit to be read. Raises ``StorageError``."""
        found = self._read(chunk)
        return found and found[0]

    def get_sealed(self, chunk: ChunkId) -> bytes | None:
        """The sealed form, verified like ``get``. Raises ``StorageError``."""
        found = self._read(chunk)
        return found and found[1]

    def statistics(self) -> StoreStatistics:
        with self._lock:
            return StoreStatistics(
                state="full" if self._full else "ok",
                chunks=len(self._held),
                bytes=self._bytes,
                quota_bytes_max=self._quota,
                wanted=len(self._wanted),
                stored=self._stored,
                evicted=self._evicted,
                rotten=self._rotten,
                misses=self._misses,
            )

    # What changes it

    def put(self, chunk: Chunk) -> bool:
        """Keep ``chunk``; False if it is here already. Raises ``DiskFull`` or ``StorageError``; nothing changed then."""
        if self.has(chunk.id):
            self._use(chunk.id)
            return False
        return self._write(chunk.id, seal(chunk))

    def put_sealed(self, chunk: ChunkId, sealed: bytes) -> Chunk:
        """Verify what a neighbour sent, keep it as it came, and return the chunk.

        Raises ``UntrustedBytes``, ``DiskFull`` or ``StorageError``; nothing changed then.
        """
        opened = open_sealed_untrusted(chunk, sealed)
        if not self.has(chunk):
            self._write(chunk, sealed)
        return opened

    def set_wanted(self, chunks: Collection[ChunkId]) -> None:
        """From now on exactly these are never evicted."""
        wanted = frozenset(chunks)
        with self._lock:
            self._wanted = wanted
            idle = [(held.used_s, chunk) for chunk, held in self._held.items() if chunk not in wanted]
            idle.sort()
            self._idle = OrderedDict.fromkeys(chunk for _, chunk in idle)
            self._idle_bytes = sum(self._held[chunk].size_bytes for chunk in self._idle)

    def remove(self, chunk: ChunkId) -> None:
        """Forget the chunk and delete its file. It is not reported by ``take_removed``. Raises ``StorageError``."""
        with self._lock:
            self._delete(chunk)

    def take_removed(self) -> list[ChunkId]:
        """Chunks that left the store by themselves (evicted, rotten) since the last call and did not come back."""
        with self._lock:
            removed = list(self._removed)
            self._removed.clear()
        return removed

    # Reading

    def _read(self, chunk: ChunkId) -> tuple[Chunk, bytes] | None:
        if not self.has(chunk):
            with self._lock:
                self._misses += 1
            return None
        path, inode = self._path(chunk), 0
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                inode = os.fstat(descriptor).st_ino
                sealed = _read_at_most(file.read, SEALED_SIZE_BYTES_MAX + 1)
            opened = open_sealed_untrusted(chunk, sealed)
        except (OSError, UntrustedBytes) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR):
                raise StorageError(f"chunk {chunk.short}… cannot be read: {error.strerror}") from error
            self._drop_rotten(chunk, inode, error)
            return None
        self._use(chunk)
        return opened, sealed

    def _drop_rotten(self, chunk: ChunkId, inode: int, why: Exception) -> None:
        with self._lock:
            self._misses += 1
            if chunk not in self._held:
                return  # evicted while it was being read
            with contextlib.suppress(OSError):
                if inode and os.lstat(self._path(chunk)).st_ino != inode:
                    return  # evicted and put again while it was being read
            log.warning("chunk %s is not fit to be read and is deleted: %s", chunk.short, why)
            self._rotten += 1
            self._forget(chunk)
            self._report(chunk)
            with contextlib.suppress(OSError):
                self._path(chunk).unlink()

    def _use(self, chunk: ChunkId) -> None:
        now = self._clock()
        with self._lock:
            held = self._held.get(chunk)
            if held is None:
                return
            held.used_s = now
            if chunk in self._idle:
                self._idle.move_to_end(chunk)
            touch = abs(now - held.touched_s) >= TOUCH_INTERVAL_S
            if touch:
                held.touched_s = now
        if touch:
            with contextlib.suppress(OSError):
                os.utime(self._path(chunk), (now, now))

    # Writing

    def _write(self, chunk: ChunkId, sealed: bytes) -> bool:
        size = len(sealed)
        with self._lock:
            self._make_room(size)
            self._promised += size
        temporary = self._temporary / f"{chunk.short}-{next(self._names)}"
        try:
            self._write_file(temporary, sealed)
            now = self._clock()
            with self._lock:
                if chunk in self._held:
                    temporary.unlink()
                    return False
                os.utime(temporary, (now, now))
                self._name(temporary, self._path(chunk))
                self._held[chunk] = _Held(size, now, now)
                if chunk not in self._wanted:
                    self._idle[chunk] = None
                    self._idle_bytes += size
                self._removed.pop(chunk, None)
                self._bytes += size
                self._stored += 1
                self._full = False
            return True
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise StorageError(f"chunk {chunk.short}… cannot be stored: {error.strerror}") from error
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        finally:
            with self._lock:
                self._promised -= size

    @staticmethod
    def _name(temporary: Path, path: Path) -> None:
        try:
            temporary.rename(path)
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            temporary.rename(path)

    def _write_file(self, path: Path, sealed: bytes) -> None:
        """Write, making room once if the disk has less than it said. Raises ``DiskFull`` or ``OSError``."""
        for attempt in (1, 2):
            try:
                write_new_file(path, sealed)
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                with contextlib.suppress(OSError):
                    path.unlink()
                with self._lock:
                    freed = 0
                    while attempt == 1 and self._idle and freed < len(sealed):
                        freed += self._evict_one()
                    if not freed:
                        raise self._no_room(f"the disk has no room for {len(sealed)} bytes") from error

    def _make_room(self, size: int) -> None:
        """Evict until ``size`` bytes fit; nothing is evicted if that would not be enough. With the lock. Raises ``DiskFull``."""
        excess = self._bytes + self._promised + size - self._quota
        if excess > self._idle_bytes:
            raise self._no_room(f"the quota of {self._quota} bytes is used up by chunks that are wanted")
        if self._kept_free:
            try:
                free = self._space(self._chunks).free
            except OSError as error:
                raise StorageError(f"the chunk store cannot be measured: {error.strerror}") from error
            missing = self._kept_free + self._promised + size - free
            if missing > self._idle_bytes:
                raise self._no_room(f"{self._kept_free} bytes of the disk are to stay free")
            excess = max(excess, missing)
        # Freed bytes are counted, not measured again: a file system may give them back later.
        while excess > 0:
            excess -= self._evict_one()

    def _no_room(self, why: str) -> DiskFull:
        self._full = True
        return DiskFull(f"no room for another chunk: {why}")

    def _evict_one(self) -> int:
        """Delete the idle chunk that was used least recently; its size. With the lock."""
        chunk = next(iter(self._idle))
        size = self._held[chunk].size_bytes
        self._delete(chunk)
        self._evicted += 1
        self._report(chunk)
        return size

    def _delete(self, chunk: ChunkId) -> None:
        """With the lock. Raises ``StorageError``, the chunk being held still."""
        try:
            self._path(chunk).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"chunk {chunk.short}… cannot be deleted: {error.strerror}") from error
        self._forget(chunk)

    def _forget(self, chunk: ChunkId) -> None:
        held = self._held.pop(chunk, None)
        if held is None:
            return
        self._bytes -= held.size_bytes
        if chunk in self._idle:
            del self._idle[chunk]
            self._idle_bytes -= held.size_bytes

    def _report(self, chunk: ChunkId) -> None:
        self._removed[chunk] = None
        if len(self._removed) > REMOVED_MAX:
            del self._removed[next(iter(self._removed))]

    def _path(self, chunk: ChunkId) -> Path:
        name = chunk.hex()
        return self._chunks / name[:2] / name


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
