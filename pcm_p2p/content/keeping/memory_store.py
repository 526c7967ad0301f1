"""The chunk store in memory, with the verbs of ``store.ChunkStore``: for tests and simulations. Held to the same test suite."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Iterable
from typing import Self

from pcm_p2p.content.chunk import Chunk, open_sealed_untrusted, seal
from pcm_p2p.content.keeping.inventory import KEPT, LAST, SURPLUS, Inventory, Share
from pcm_p2p.content.keeping.store import ROOM_BYTES, StoreStatistics
from pcm_p2p.errors import DiskFull, UntrustedBytes
from pcm_p2p.ids import ChunkId


class MemoryStore:
    """As ``ChunkStore``; ``quota_bytes_max`` 0 is no quota. ``spoil`` puts rot where a disk would."""

    def __init__(self, quota_bytes_max: int = 0) -> None:
        self._quota = quota_bytes_max
        self._lock = threading.RLock()
        self._clock = itertools.count(1)
        self._sealed: dict[ChunkId, bytes] = {}
        self._here = Inventory()
        self._removed: dict[ChunkId, None] = {}
        self._scanned = self._full = False
        self._stored = self._evicted = self._trimmed = self._rotten = self._misses = 0

    def open(self) -> Self:
        return self

    def close(self) -> None:
        """Nothing is under way."""

    def scan(self) -> Self:
        self._scanned = True
        return self

    def has(self, chunk: ChunkId) -> bool:
        with self._lock:
            return chunk in self._here

    def ids(self) -> list[ChunkId]:
        with self._lock:
            return self._here.ids()

    def get(self, chunk: ChunkId) -> Chunk | None:
        found = self._read(chunk)
        return found and found[0]

    def get_sealed(self, chunk: ChunkId) -> bytes | None:
        found = self._read(chunk)
        return found and found[1]

    def verify(self, chunk: ChunkId) -> bool:
        return self._read(chunk, use=False) is not None

    def put(self, chunk: Chunk) -> bool:
        with self._lock:
            return not self._stays(chunk.id) and self._write(chunk.id, seal(chunk))

    def put_sealed(self, chunk: ChunkId, sealed: bytes) -> Chunk:
        opened = open_sealed_untrusted(chunk, sealed)
        with self._lock:
            if not self._stays(chunk):
                self._write(chunk, sealed)
        return opened

    def set_wanted(self, chunks: Collection[ChunkId]) -> None:
        with self._lock:
            self._here.set_wanted(chunks)

    def set_tiers(self, kept: Collection[ChunkId], last: Collection[ChunkId]) -> None:
        with self._lock:
            self._here.set_tiers(kept, last)

    def remove(self, chunk: ChunkId) -> None:
        with self._lock:
            self._forget(chunk)

    def trim(self, chunks: Iterable[ChunkId]) -> int:
        with self._lock:
            going = [chunk for chunk in dict.fromkeys(chunks) if self._here.is_idle(chunk)]
            for chunk in going:
                self._forget(chunk)
            self._trimmed += len(going)
            return len(going)

    def take_removed(self) -> list[ChunkId]:
        with self._lock:
            removed = list(self._removed)
            self._removed.clear()
            return removed

    def take_leaving(self) -> list[ChunkId]:
        with self._lock:
            for chunk in self._here.leaving():
                self._forget(chunk)
                self._evicted += 1
            if not self._scanned or not self._quota:
                return []
            return self._here.leave(self._here.bytes + min(ROOM_BYTES, self._quota // 16) - self._quota)

    def surplus_above(self, size_bytes_max: int) -> list[ChunkId]:
        with self._lock:
            return self._here.surplus_above(size_bytes_max)

    @property
    def tiers_known(self) -> bool:
        return self._here.tiers_known

    def share_of(self, chunks: Collection[ChunkId]) -> Share:
        with self._lock:
            return self._here.share_of(chunks)

    def statistics(self) -> StoreStatistics:
        with self._lock:
            here = self._here
            return StoreStatistics(
                state="full" if self._full else "ok",
                scanned=self._scanned,
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

    def spoil(self, chunk: ChunkId) -> None:
        """Change the last byte of what is kept: the next read finds it rotten."""
        with self._lock:
            sealed = self._sealed[chunk]
            self._sealed[chunk] = sealed[:-1] + bytes([sealed[-1] ^ 1])

    def _read(self, chunk: ChunkId, *, use: bool = True) -> tuple[Chunk, bytes] | None:
        with self._lock:
            sealed = self._sealed.get(chunk)
            if sealed is None:
                self._misses += 1
                return None
            try:
                opened = open_sealed_untrusted(chunk, sealed)
            except UntrustedBytes:
                self._misses += 1
                self._rotten += 1
                self._forget(chunk)
                self._removed[chunk] = None
                return None
            if use:
                self._here.use(chunk, next(self._clock))
            return opened, sealed

    def _stays(self, chunk: ChunkId) -> bool:
        if self._here.use(chunk, next(self._clock)) is None:
            return False
        self._here.stay(chunk)
        return True

    def _write(self, chunk: ChunkId, sealed: bytes) -> bool:
        excess = self._here.bytes + len(sealed) - self._quota if self._quota else 0
        if excess > self._here.idle_bytes:
            self._full = True
            raise DiskFull("no room for another chunk: the quota is used up by chunks that are wanted")
        while excess > 0:
            first = self._here.first_out()
            assert first is not None
            if not self._here.is_leaving(first):
                self._removed[first] = None
            excess -= len(self._sealed[first])
            self._forget(first)
            self._evicted += 1
        self._sealed[chunk] = sealed
        self._here.add(chunk, len(sealed), next(self._clock))
        self._removed.pop(chunk, None)
        self._stored += 1
        self._full = False
        return True

    def _forget(self, chunk: ChunkId) -> None:
        self._here.forget(chunk)
        self._sealed.pop(chunk, None)
