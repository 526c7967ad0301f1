"""Verifying a whole store beside everything else: what is found, and how it ends."""

from __future__ import annotations

import threading

from content_samples import chunks_of

from pcm_p2p.content.keeping.memory_store import MemoryStore
from pcm_p2p.content.keeping.verification import Verification, VerificationProgress
from pcm_p2p.ids import ChunkId


class Gated(MemoryStore):
    """A store whose chunks are read one at a time, when they may be."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.may = threading.Semaphore(0), threading.Semaphore(0)

    def verify(self, chunk: ChunkId) -> bool:
        self.reached.release()
        assert self.may.acquire(timeout=120)
        return super().verify(chunk)


def ended(verification: Verification) -> VerificationProgress:
    assert verification._thread is not None
    verification._thread.join(10)
    return verification.progress()


def test_what_is_rotten_is_counted_and_what_left_is_not() -> None:
    store = Gated()
    chunks = chunks_of(100, 200, 300, 400)
    for chunk in chunks:
        store.put(chunk)
    store.scan()
    store.spoil(chunks[1].id)
    verification = Verification(store)
    assert verification.progress().state == "idle"
    assert verification.start().state == "running"
    store.reached.acquire()
    store.remove(chunks[2].id)
    store.may.release(4)
    assert ended(verification) == VerificationProgress("done", 4, 4, 1)
    assert set(store.ids()) == {chunks[0].id, chunks[3].id}


def test_starting_twice_is_one_verification_and_it_ends_when_told() -> None:
    store = Gated()
    for chunk in chunks_of(100, 200, 300):
        store.put(chunk)
    store.scan()
    verification = Verification(store)
    verification.start()
    store.reached.acquire()
    verification.start()
    store.may.release()
    store.reached.acquire()
    assert verification.progress() == VerificationProgress("running", 3, 1, 0)
    stopper = threading.Thread(target=verification.stop)
    stopper.start()
    while not verification._stop.is_set():
        pass
    store.may.release()
    stopper.join(10)
    assert verification.progress() == VerificationProgress("stopped", 3, 2, 0)
    store.may.release(9)
    verification.start()
    assert ended(verification).state == "done"


def test_it_waits_until_the_index_is_read() -> None:
    store = MemoryStore()
    verification = Verification(store)
    verification.start()
    (chunk,) = chunks_of(100)
    store.put(chunk)
    store.scan()
    assert ended(verification) == VerificationProgress("done", 1, 1, 0)
