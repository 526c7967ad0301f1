"""The chunk store in memory, with the verbs of ``store.ChunkStore``: for tests and simulations. Held to the same test suite."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import Self

from pcm_p2p.content.chunk import Chunk, open_sealed_untrusted, seal
from pcm_p2p.content.store import StoreStatistics
from pcm_p2p.errors import DiskFull, UntrustedBytes
from pcm_p2p.ids import ChunkId


class MemoryStore:
    """As ``ChunkStore``; ``quota_bytes_max`` 0 is no quota. ``spoil`` puts rot where a disk would."""

    def __init__(self, quota_bytes_max: int = 0) -> None:
        self._quota = quota_bytes_max
        self._lock = threading.RLock()
        self._sealed: OrderedDict[ChunkId, bytes] = OrderedDict()
        self._wanted: frozenset[ChunkId] = frozenset()
        self._removed: dict[ChunkId, None] = {}
        self._full = False
        self._stored = self._evicted = self._rotten = self._misses = 0

    def open(self) -> Self:
        return self

    def has(self, chunk: ChunkId) -> bool:
        with self._lock:
            return chunk in self._sealed

    def ids(self) -> list[ChunkId]:
        with self._lock:
            return list(self._sealed)

    def get(self, chunk: ChunkId) -> Chunk | None:
        found = self._read(chunk)
        return found and found[0]

    def get_sealed(self, chunk: ChunkId) -> bytes | None:
        found = self._read(chunk)
        return found and found[1]

    def put(self, chunk: Chunk) -> bool:
        with self._lock:
            if chunk.id in self._sealed:
                self._sealed.move_to_end(chunk.id)
                return False
            self._write(chunk.id, seal(chunk))
            return True

    def put_sealed(self, chunk: ChunkId, sealed: bytes) -> Chunk:
        opened = open_sealed_untrusted(chunk, sealed)
        with self._lock:
            if chunk not in self._sealed:
                self._write(chunk, sealed)
        return opened

    def set_wanted(self, chunks: Collection[ChunkId]) -> None:
        with self._lock:
            self._wanted = frozenset(chunks)

    def remove(self, chunk: ChunkId) -> None:
        with self._lock:
            self._sealed.pop(chunk, None)

    def take_removed(self) -> list[ChunkId]:
        with self._lock:
            removed = list(self._removed)
            self._removed.clear()
            return removed

    def statistics(self) -> StoreStatistics:
        with self._lock:
            return StoreStatistics(
                state="full" if self._full else "ok",
                chunks=len(self._sealed),
                bytes=sum(map(len, self._sealed.values())),
                quota_bytes_max=self._quota,
                wanted=len(self._wanted),
                stored=self._stored,
                evicted=self._evicted,
                rotten=self._rotten,
                misses=self._misses,
            )

    def spoil(self, chunk: ChunkId) -> None:
        """Change the last byte of what is kept: the next read finds it rotten."""
        with self._lock:
            sealed = self._sealed[chunk]
            self._sealed[chunk] = sealed[:-1] + bytes([sealed[-1] ^ 1])

    def _read(self, chunk: ChunkId) -> tuple[Chunk, bytes] | None:
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
                del self._sealed[chunk]
                self._removed[chunk] = None
                return None
            self._sealed.move_to_end(chunk)
            return opened, sealed

    def _write(self, chunk: ChunkId, sealed: bytes) -> None:
        idle = [held for held in self._sealed if held not in self._wanted]
        excess = sum(map(len, self._sealed.values())) + len(sealed) - self._quota if self._quota else 0
        if excess > sum(len(self._sealed[held]) for held in idle):
            self._full = True
            raise DiskFull("no room for another chunk: the quota is used up by chunks that are wanted")
        for held in idle:
            if excess <= 0:
                break
            excess -= len(self._sealed.pop(held))
            self._removed[held] = None
            self._evicted += 1
        self._sealed[chunk] = sealed
        self._removed.pop(chunk, None)
        self._stored += 1
        self._full = False
