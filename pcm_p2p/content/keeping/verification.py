"""Verifying a whole store: every chunk is read, unpacked and hashed, one after the other, beside everything else.

In a thread of its own, since on Linux a priority is that of a thread and those of a pool are lent to others afterwards. Memory
is that of one chunk, and nothing of what is read stays in the page cache.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import Literal, Protocol

from pcm_p2p.content.decoding.worker import step_back
from pcm_p2p.content.keeping.store import StoreStatistics
from pcm_p2p.ids import ChunkId

SCAN_POLL_S = 0.1


class VerifiedStore(Protocol):
    """The part of ``store.ChunkStore`` that is used here."""

    def ids(self) -> list[ChunkId]: ...
    def has(self, chunk: ChunkId, /) -> bool: ...
    def verify(self, chunk: ChunkId, /) -> bool: ...
    def statistics(self) -> StoreStatistics: ...


@dataclass(frozen=True, slots=True)
class VerificationProgress:
    """``chunks_done`` of ``chunks_total`` were read; ``rotten`` of them were not good and are deleted. What left the store
    meanwhile is neither."""

    state: Literal["idle", "running", "done", "stopped"]
    chunks_total: int = 0
    chunks_done: int = 0
    rotten: int = 0


class Verification:
    """One at a time. All methods may be called from any thread."""

    def __init__(self, store: VerifiedStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._progress = VerificationProgress("idle")

    def start(self) -> VerificationProgress:
        """Begin, unless one is under way."""
        with self._lock:
            if self._progress.state != "running":
                self._stop = threading.Event()
                self._progress = VerificationProgress("running")
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="store verification", daemon=True
                )
                self._thread.start()
            return self._progress

    def stop(self) -> VerificationProgress:
        """End after the chunk in hand, and wait for that."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        return self._progress

    def progress(self) -> VerificationProgress:
        return self._progress

    def _run(self, stop: threading.Event) -> None:
        if sys.platform == "linux":
            step_back()
        while not self._store.statistics().scanned and not stop.is_set():
            stop.wait(SCAN_POLL_S)
        chunks, rotten = self._store.ids(), 0
        for done, chunk in enumerate(chunks):
            self._progress = VerificationProgress("running", len(chunks), done, rotten)
            if stop.is_set():
                self._progress = VerificationProgress("stopped", len(chunks), done, rotten)
                return
            # One that left before it was read is no finding.
            if self._store.has(chunk):
                before = self._store.statistics().rotten
                rotten += not self._store.verify(chunk) and self._store.statistics().rotten > before
        self._progress = VerificationProgress("done", len(chunks), len(chunks), rotten)
