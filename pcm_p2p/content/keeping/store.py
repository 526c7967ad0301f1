"""Chunks on disk: the rules of the store. Its files are in ``chunk_folder``, what leaves first is decided by ``inventory``.

The folder is the truth. The index (id → size, last use) is in memory: no second record that could disagree with the files
after a crash. ``open`` does not wait for it. ``scan`` reads it, one ``stat`` a chunk, folder by folder; until that has ended
an id that is not in the index is looked up on disk, so that nothing is fetched twice. Measured: 80 000 chunks take 1.7 s of a
core.

What is on disk is never believed: ``get`` and ``get_sealed`` unpack and hash what they read, so that a rotten file is a miss
of ours and never a reproach of a neighbour. A file that fails (flipped, torn, gone, a bad sector) is deleted, counted, and
reported by ``take_removed``. Reading raises nothing.

Quota: chunks that nobody wants go first, surplus copies before those that this device keeps for the office, last copies of the
office last; wanted ones stay. With no quota given it is ``min(20 % of what is free, 20 GiB)``, and a tenth of the disk stays
free. Last use is kept as the file's mtime.

Neighbours are to hear that a chunk goes before it is gone. So a little room is made in advance: ``take_leaving`` names what
leaves next, and deletes what it named the time before. Only when more is stored in between than ``ROOM_BYTES`` is a chunk evicted
unannounced; ``take_removed`` tells of it afterwards.

All methods may be called from any thread. None of them waits for anything but the disk.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pcm_p2p.content.chunk import Chunk, open_sealed_untrusted, seal
from pcm_p2p.content.keeping.chunk_folder import ChunkFolder, DiskSpace, Found, disk_space, write_new_file
from pcm_p2p.content.keeping.inventory import KEPT, LAST, SURPLUS, Inventory, Share
from pcm_p2p.errors import DiskFull, StorageError, UntrustedBytes
from pcm_p2p.ids import ChunkId

log = logging.getLogger(__name__)

QUOTA_SHARE_OF_FREE = 0.20
QUOTA_BYTES_CEILING = 20 << 30
DISK_SHARE_KEPT_FREE = 0.10
ROOM_BYTES = 64 << 20
"""Choice: what arrives over a LAN of 100 Mbit/s in five seconds. A sixteenth of the quota where that is less."""
TOUCH_INTERVAL_S = 600.0
"""Choice: the order of eviction survives a restart to within ten minutes, for one ``utime`` a chunk in that time."""
REMOVED_MAX = 1 << 18
"""Bound of the list that ``take_removed`` empties: four of the largest manifests."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_OF_THIS_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)
"""Errors that say nothing about the file: it is missed, and stays."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """``full`` since the last put was refused for want of room. Counters are since ``open``; sizes in bytes, as sealed.

    ``wanted`` counts what is to stay, here or not; the bytes are those that are here, each in one of four places. Until
    ``scanned`` they are those that are known.
    """

    state: Literal["ok", "full"]
    scanned: bool
    chunks: int
    bytes: int
    quota_bytes_max: int
    wanted: int
    wanted_bytes: int
    kept_bytes: int
    last_bytes: int
    surplus_bytes: int
    stored: int
    evicted: int
    trimmed: int
    rotten: int
    misses: int


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
        self._folder = ChunkFolder(folder)
        self._place = folder
        self._quota_asked = quota_bytes_max
        self._quota = quota_bytes_max or QUOTA_BYTES_CEILING
        self._kept_free = 0
        self._clock = clock
        self._space = space
        self._lock = threading.Lock()
        self._here = Inventory()
        self._removed: dict[ChunkId, None] = {}
        # While the index is being read: what left since, and must not come back from a listing that is older.
        self._gone: set[ChunkId] | None = set()
        self._closed = False
        self._promised = 0
        self._full = False
        self._stored = self._evicted = self._trimmed = self._rotten = self._misses = 0

    def open(self) -> Self:
        """Make the folders and sweep what a killed process left. Raises ``StorageError``."""
        try:
            self._folder.prepare()
            if not self._quota_asked:
                self._kept_free = int(self._space(self._folder.chunks).total * DISK_SHARE_KEPT_FREE)
        except OSError as error:
            raise StorageError(f"the chunk store {self._place} cannot be opened: {error.strerror}") from error
        return self

    def close(self) -> None:
        """Make a ``scan`` that is under way end soon."""
        self._closed = True

    def scan(self) -> Self:
        """Read the index, to its end or until ``close``. What cannot be read is not here, and the log says so."""
        try:
            for folder in self._folder.folders():
                if self._closed:
                    return self
                self._scan_folder(folder)
            self._settle_quota()
        except OSError as error:
            log.warning("the chunk store %s cannot be looked through: %s", self._place, error.strerror)
        with self._lock:
            self._gone = None
            self._here.sort()
        return self

    def _scan_folder(self, folder: Path) -> None:
        try:
            found = list(self._folder.files(folder))
        except OSError as error:
            log.warning("the chunks in %s cannot be had: %s", folder, error.strerror)
            return
        with self._lock:
            for each in found:
                self._adopt(each)

    def _adopt(self, found: Found) -> bool:
        """Take a file into the index, or out of the folder if it is of no use. With the lock. Whether it is held now."""
        if found.chunk in self._here and found.path == self._folder.path(found.chunk):
            return True
        if not found.usable:
            with contextlib.suppress(OSError):
                found.path.unlink()
            return False
        if self._gone is None or found.chunk in self._gone:
            return False
        self._here.add(found.chunk, found.size_bytes, found.used_s)
        return True

    def _settle_quota(self) -> None:
        if not self._quota_asked:
            free = self._space(self._folder.chunks).free
            with self._lock:
                # What the store holds already counts as free, or the quota would shrink with every restart.
                share = int((free + self._here.bytes) * QUOTA_SHARE_OF_FREE)
                self._quota = min(share, QUOTA_BYTES_CEILING)

    # What is there

    def has(self, chunk: ChunkId) -> bool:
        with self._lock:
            if chunk in self._here:
                return True
            if self._gone is None or chunk in self._gone:
                return False
        found = self._folder.find(chunk)
        if found is None:
            return False
        with self._lock:
            return self._adopt(found)

    def ids(self) -> list[ChunkId]:
        """Those in the index."""
        with self._lock:
            return self._here.ids()

    def get(self, chunk: ChunkId) -> Chunk | None:
        """The chunk, verified; None if it is not here, or was not fit to be read."""
        found = self._read(chunk)
        return found and found[0]

    def get_sealed(self, chunk: ChunkId) -> bytes | None:
        """The sealed form, verified like ``get``."""
        found = self._read(chunk)
        return found and found[1]

    def verify(self, chunk: ChunkId) -> bool:
        """Whether it is here and good, which does not count as a use. One that is rotten goes, as when it is read."""
        return self._read(chunk, use=False) is not None

    @property
    def tiers_known(self) -> bool:
        """Whether anybody has said what is kept; before that all that is not wanted counts as surplus."""
        return self._here.tiers_known

    def share_of(self, chunks: Collection[ChunkId]) -> Share:
        """How many of these are here, each counted once, and their bytes."""
        with self._lock:
            return self._here.share_of(chunks)

    def statistics(self) -> StoreStatistics:
        with self._lock:
            here = self._here
            return StoreStatistics(
                state="full" if self._full else "ok",
                scanned=self._gone is None,
                chunks=len(here),
                bytes=here.bytes,
                quota_bytes_max=self._quota,
                wanted=len(here.wanted),
                wanted_bytes=here.bytes - here.idle_bytes,
                kept_bytes=here.tier_bytes(KEPT),
                last_bytes=here.tier_bytes(LAST),
                surplus_bytes=here.tier_bytes(SURPLUS),
                stored=self._stored,
                evicted=self._evicted,
                trimmed=self._trimmed,
                rotten=self._rotten,
                misses=self._misses,
            )

    # What changes it

    def put(self, chunk: Chunk) -> bool:
        """Keep ``chunk``; False if it is here already. Raises ``DiskFull`` or ``StorageError``; nothing changed then."""
        if self._stays(chunk.id):
            return False
        return self._write(chunk.id, seal(chunk))

    def put_sealed(self, chunk: ChunkId, sealed: bytes) -> Chunk:
        """Verify what a neighbour sent, keep it as it came, and return the chunk.

        Raises ``UntrustedBytes``, ``DiskFull`` or ``StorageError``; nothing changed then.
        """
        opened = open_sealed_untrusted(chunk, sealed)
        if not self._stays(chunk):
            self._write(chunk, sealed)
        return opened

    def _stays(self, chunk: ChunkId) -> bool:
        """Whether it is here; then it counts as used, and does not leave if it was about to."""
        if not self.has(chunk):
            return False
        self._use(chunk)
        with self._lock:
            self._here.stay(chunk)
        return True

    def set_wanted(self, chunks: Collection[ChunkId]) -> None:
        """From now on exactly these are never evicted."""
        with self._lock:
            self._here.set_wanted(chunks)

    def set_tiers(self, kept: Collection[ChunkId], last: Collection[ChunkId]) -> None:
        """From now on, of what is not wanted, ``kept`` leaves after everything else and ``last`` after that."""
        with self._lock:
            self._here.set_tiers(kept, last)

    def remove(self, chunk: ChunkId) -> None:
        """Forget the chunk and delete its file. It is not reported by ``take_removed``. Raises ``StorageError``."""
        with self._lock:
            self._delete(chunk)

    def trim(self, chunks: Iterable[ChunkId]) -> int:
        """Delete those of ``chunks`` that are here and not wanted; how many. The caller has told neighbours, so they are not
        reported by ``take_removed``. Raises ``StorageError``; some may be gone then."""
        trimmed = 0
        for chunk in filter(self.has, chunks):
            with self._lock:
                if self._here.is_idle(chunk):
                    self._delete(chunk)
                    trimmed += 1
                    self._trimmed += 1
        return trimmed

    # What leaves

    def take_removed(self) -> list[ChunkId]:
        """Chunks that left the store by themselves, unannounced (evicted, rotten), since the last call and did not come back."""
        with self._lock:
            removed = list(self._removed)
            self._removed.clear()
        return removed

    def take_leaving(self) -> list[ChunkId]:
        """Chunks that leave next, to be announced as gone at once. They are still served until the next call, which deletes
        those that were not stored again or wanted in between. Raises ``StorageError``."""
        with self._lock:
            for chunk in self._here.leaving():
                self._delete(chunk)
                self._evicted += 1
            if self._gone is not None:
                return []
            room = min(ROOM_BYTES, self._quota // 16)
            return self._here.leave(self._excess(room))

    def surplus_above(self, size_bytes_max: int) -> list[ChunkId]:
        """The surplus copies that have to go for the store to have at most so many bytes; fewer if there are not enough."""
        with self._lock:
            return self._here.surplus_above(size_bytes_max)

    # Reading

    def _read(self, chunk: ChunkId, *, use: bool = True) -> tuple[Chunk, bytes] | None:
        if not self.has(chunk):
            with self._lock:
                self._misses += 1
            return None
        inode = 0
        try:
            sealed, inode = self._folder.read(chunk, forget=not use)
            opened = open_sealed_untrusted(chunk, sealed)
        except (OSError, UntrustedBytes) as error:
            if isinstance(error, OSError) and error.errno in _OF_THIS_PROCESS:
                log.warning("chunk %s cannot be read at present: %s", chunk.short, error.strerror)
                with self._lock:
                    self._misses += 1
            else:
                self._drop_rotten(chunk, inode, error)
            return None
        if use:
            self._use(chunk)
        return opened, sealed

    def _drop_rotten(self, chunk: ChunkId, inode: int, why: Exception) -> None:
        with self._lock:
            self._misses += 1
            if chunk not in self._here:
                return  # evicted while it was being read
            with contextlib.suppress(OSError):
                absent = isinstance(why, FileNotFoundError)
                if (absent and self._folder.find(chunk)) or (inode and self._folder.inode(chunk) != inode):
                    return  # evicted and put again while it was being read
            log.warning("chunk %s is not fit to be read and is deleted: %s", chunk.short, why)
            self._rotten += 1
            self._forget(chunk)
            self._report(chunk)
            with contextlib.suppress(OSError):
                self._folder.delete(chunk)

    def _use(self, chunk: ChunkId) -> None:
        now = self._clock()
        with self._lock:
            held = self._here.use(chunk, now)
            touch = held is not None and abs(now - held.touched_s) >= TOUCH_INTERVAL_S
            if held is not None and touch:
                held.touched_s = now
        if touch:
            with contextlib.suppress(OSError):
                self._folder.touch(chunk, now)

    # Writing

    def _write(self, chunk: ChunkId, sealed: bytes) -> bool:
        size = len(sealed)
        with self._lock:
            self._make_room(size)
            self._promised += size
        temporary = self._folder.new_path(chunk)
        try:
            self._write_file(temporary, sealed)
            now = self._clock()
            with self._lock:
                if chunk in self._here:
                    temporary.unlink()
                    return False
                self._folder.put_in_place(temporary, chunk, now)
                self._here.add(chunk, size, now)
                self._removed.pop(chunk, None)
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
                    while attempt == 1 and self._here.idle_bytes and freed < len(sealed):
                        freed += self._evict_one()
                    if not freed:
                        raise self._no_room(f"the disk has no room for {len(sealed)} bytes") from error

    def _make_room(self, size: int) -> None:
        """Evict until ``size`` bytes fit; nothing is evicted if that would not be enough. With the lock. Raises ``DiskFull``."""
        excess = self._excess(size)
        if excess > self._here.idle_bytes:
            if self._here.bytes + self._promised + size - self._quota > self._here.idle_bytes:
                raise self._no_room(f"the quota of {self._quota} bytes is used up by chunks that are wanted")
            raise self._no_room(f"{self._kept_free} bytes of the disk are to stay free")
        # Freed bytes are counted, not measured again: a file system may give them back later.
        while excess > 0:
            excess -= self._evict_one()

    def _excess(self, size: int) -> int:
        """By how many bytes ``size`` more would be too many. With the lock. Raises ``StorageError``."""
        excess = self._here.bytes + self._promised + size - self._quota
        if self._kept_free:
            try:
                free = self._space(self._folder.chunks).free
            except OSError as error:
                raise StorageError(f"the chunk store cannot be measured: {error.strerror}") from error
            excess = max(excess, self._kept_free + self._promised + size - free)
        return excess

    def _no_room(self, why: str) -> DiskFull:
        self._full = True
        return DiskFull(f"no room for another chunk: {why}")

    def _evict_one(self) -> int:
        """Delete the idle chunk that leaves first; its size. With the lock, and with something idle. Raises ``StorageError``."""
        chunk = self._here.first_out()
        assert chunk is not None
        size, announced = self._here.size_bytes(chunk), self._here.is_leaving(chunk)
        self._delete(chunk)
        self._evicted += 1
        if not announced:
            self._report(chunk)
        return size

    def _delete(self, chunk: ChunkId) -> None:
        """With the lock. Raises ``StorageError``, the chunk being held still."""
        try:
            self._folder.delete(chunk)
        except OSError as error:
            raise StorageError(f"chunk {chunk.short}… cannot be deleted: {error.strerror}") from error
        self._forget(chunk)

    def _forget(self, chunk: ChunkId) -> None:
        self._here.forget(chunk)
        if self._gone is not None:
            self._gone.add(chunk)

    def _report(self, chunk: ChunkId) -> None:
        self._removed[chunk] = None
        if len(self._removed) > REMOVED_MAX:
            del self._removed[next(iter(self._removed))]
