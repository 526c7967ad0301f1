"""What every chunk store does: the one on disk and the one in memory are held to the same tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from content_samples import chunks_of, noise
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pcm_p2p.content.chunk import Chunk, seal
from pcm_p2p.content.memory_store import MemoryStore
from pcm_p2p.content.store import ChunkStore, DiskSpace
from pcm_p2p.errors import DiskFull, UntrustedBytes
from pcm_p2p.ids import ChunkId

Store = ChunkStore | MemoryStore
Make = Callable[[int], Store]


def roomy(_folder: Path) -> DiskSpace:
    return DiskSpace(1 << 40, 1 << 40)


@pytest.fixture(params=["disk", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    def build(quota_bytes_max: int = 0) -> Store:
        if request.param == "memory":
            return MemoryStore(quota_bytes_max).open()
        return ChunkStore(tmp_path / "store", quota_bytes_max, space=roomy).open()

    return build


def test_what_is_put_is_there_once(make: Make) -> None:
    store, (one, other) = make(0), chunks_of(100, 200)
    assert store.put(one) is True
    assert store.put(one) is False
    assert store.has(one.id)
    assert not store.has(other.id)
    assert store.get(one.id) == one
    assert store.get_sealed(one.id) == seal(one)
    assert store.ids() == [one.id]
    facts = store.statistics()
    assert (facts.state, facts.chunks, facts.stored, facts.misses) == ("ok", 1, 1, 0)
    assert facts.bytes == len(seal(one))


def test_what_is_not_there_is_a_miss(make: Make) -> None:
    store = make(0)
    assert store.get(ChunkId.of(b"x")) is None
    assert store.get_sealed(ChunkId.of(b"x")) is None
    assert store.statistics().misses == 2
    assert store.take_removed() == []


def test_what_a_neighbour_sends_is_checked_before_it_is_kept(make: Make) -> None:
    store, (one, other) = make(0), chunks_of(100, 200)
    assert store.put_sealed(one.id, seal(one)) == one
    assert store.put_sealed(one.id, seal(one)) == one
    with pytest.raises(UntrustedBytes):
        store.put_sealed(other.id, seal(one))
    with pytest.raises(UntrustedBytes):
        store.put_sealed(other.id, b"noise")
    assert store.ids() == [one.id]


def test_the_least_recently_used_goes_first_and_wanted_ones_stay(make: Make) -> None:
    chunks = chunks_of(1000, 1000, 1000, 1000, 1000)
    size = len(seal(chunks[0]))
    store = make(3 * size)
    store.set_wanted({chunks[0].id})
    for chunk in chunks[:3]:
        store.put(chunk)
    assert store.get(chunks[1].id)
    store.put(chunks[3])
    assert store.take_removed() == [chunks[2].id]
    store.put(chunks[4])
    assert set(store.ids()) == {chunks[0].id, chunks[3].id, chunks[4].id}
    assert store.take_removed() == [chunks[1].id]
    assert store.statistics().evicted == 2


def test_a_store_full_of_wanted_chunks_says_so_and_stays_as_it_is(make: Make) -> None:
    one, other, third = chunks_of(1000, 1000, 1000)
    store = make(2 * len(seal(one)))
    store.set_wanted({one.id, other.id})
    store.put(one)
    store.put(other)
    with pytest.raises(DiskFull):
        store.put(third)
    assert store.statistics().state == "full"
    assert set(store.ids()) == {one.id, other.id}
    assert store.get(one.id) == one
    assert store.take_removed() == []
    store.set_wanted({other.id})
    assert store.put(third)
    assert store.statistics().state == "ok"
    assert store.take_removed() == [one.id]


def test_removing_is_no_news(make: Make) -> None:
    store, (one,) = make(0), chunks_of(100)
    store.put(one)
    store.remove(one.id)
    store.remove(one.id)
    assert not store.has(one.id)
    assert store.take_removed() == []
    assert store.statistics().bytes == 0
    assert store.put(one) is True


def test_what_came_back_was_not_removed(make: Make) -> None:
    one, other = chunks_of(1000, 1000)
    store = make(len(seal(one)))
    store.put(one)
    store.put(other)
    store.put(one)
    assert store.take_removed() == [other.id]


class AnyOrderOfVerbs(RuleBasedStateMachine):
    """Disk and memory agree on everything after any sequence of verbs; the quota holds; wanted chunks stay."""

    CHUNKS = tuple(Chunk.of(noise(size, seed=size)) for size in (100, 300, 500, 700, 900, 1100))
    QUOTA = 2000
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.scratch = tempfile.TemporaryDirectory()
        self.now = 1_000_000.0
        self.disk = self.reopen()
        self.memory = MemoryStore(self.QUOTA)

    def reopen(self) -> ChunkStore:
        return ChunkStore(Path(self.scratch.name), self.QUOTA, clock=self.tick, space=roomy).open()

    def tick(self) -> float:
        self.now += 1000.0
        return self.now

    def teardown(self) -> None:
        self.scratch.cleanup()

    def both(self, act: Callable[[Store], object]) -> None:
        outcomes = []
        for store in (self.disk, self.memory):
            try:
                outcomes.append(act(store))
            except DiskFull:
                outcomes.append("full")
        assert outcomes[0] == outcomes[1]

    @rule(number=st.integers(0, 5))
    def put(self, number: int) -> None:
        self.both(lambda store: store.put(self.CHUNKS[number]))

    @rule(number=st.integers(0, 5))
    def get(self, number: int) -> None:
        self.both(lambda store: store.get(self.CHUNKS[number].id))

    @rule(number=st.integers(0, 5))
    def remove(self, number: int) -> None:
        self.both(lambda store: store.remove(self.CHUNKS[number].id))

    @rule(numbers=st.sets(st.integers(0, 5), max_size=3))
    def want(self, numbers: set[int]) -> None:
        self.both(lambda store: store.set_wanted({self.CHUNKS[number].id for number in numbers}))

    @rule()
    def take(self) -> None:
        self.both(lambda store: set(store.take_removed()))

    @invariant()
    def agree(self) -> None:
        assert set(self.disk.ids()) == set(self.memory.ids())
        mine, theirs = self.disk.statistics(), self.memory.statistics()
        assert mine == theirs
        assert mine.bytes <= self.QUOTA


TestAnyOrderOfVerbs = AnyOrderOfVerbs.TestCase
TestAnyOrderOfVerbs.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
