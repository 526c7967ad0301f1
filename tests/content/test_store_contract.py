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
from pcm_p2p.content.keeping.chunk_folder import DiskSpace
from pcm_p2p.content.keeping.memory_store import MemoryStore
from pcm_p2p.content.keeping.store import ChunkStore
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
            return MemoryStore(quota_bytes_max).open().scan()
        return ChunkStore(tmp_path / "store", quota_bytes_max, space=roomy).open().scan()

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


def test_surplus_copies_go_first_and_last_copies_last(make: Make) -> None:
    chunks = chunks_of(*[1000] * 8)
    last, other_last, kept, surplus, other_surplus, *new = (chunk.id for chunk in chunks)
    size = len(seal(chunks[0]))
    store = make(5 * size)
    store.set_tiers({kept, last}, {last, other_last})
    for chunk in chunks[:5]:
        store.put(chunk)
    store.get(surplus)
    facts = store.statistics()
    assert (facts.last_bytes, facts.kept_bytes, facts.surplus_bytes) == (2 * size, size, 2 * size)
    assert facts.wanted_bytes == 0
    left = []
    for number in range(3):
        store.set_wanted(new[: number + 1])
        store.put(chunks[5 + number])
        left += store.take_removed()
    assert left == [other_surplus, surplus, kept]
    facts = store.statistics()
    assert (facts.last_bytes, facts.kept_bytes, facts.surplus_bytes) == (2 * size, 0, 0)
    assert facts.wanted_bytes == 3 * size


def test_tiers_change_with_what_the_others_have(make: Make) -> None:
    one, other, new = chunks_of(1000, 1000, 1000)
    store = make(2 * len(seal(one)))
    store.put(one)
    store.put(other)
    store.set_tiers(set(), {one.id})
    store.set_tiers({other.id}, set())
    store.put(new)
    assert store.take_removed() == [one.id]


def test_what_leaves_is_named_before_it_goes(make: Make) -> None:
    chunks = chunks_of(*[1000] * 16)
    store = make(16 * len(seal(chunks[0])))  # a sixteenth of which is to be free
    for chunk in chunks:
        store.put(chunk)
    assert store.take_leaving() == [chunks[0].id]
    assert store.get(chunks[0].id) == chunks[0], "whoever asked for it before still gets it"
    assert store.take_leaving() == []
    assert not store.has(chunks[0].id)
    assert store.take_removed() == [], "what was announced is no news"
    (new,) = chunks_of(1000, seed=2)
    store.put(new)
    assert store.take_removed() == []
    assert store.take_leaving() == [chunks[1].id]
    assert store.statistics().evicted == 1


def test_in_need_of_room_what_was_named_goes_first_and_the_rest_is_told_afterwards(make: Make) -> None:
    chunks = chunks_of(*[1000] * 16)
    store = make(16 * len(seal(chunks[0])))
    for chunk in chunks:
        store.put(chunk)
    assert store.take_leaving() == [chunks[0].id]
    store.get(chunks[0].id)
    first, second = chunks_of(1000, 1000, seed=2)
    store.put(first)
    assert not store.has(chunks[0].id)
    assert store.take_removed() == []
    store.put(second)
    assert store.take_removed() == [chunks[1].id]


@pytest.mark.parametrize("how", ["stored again", "wanted"])
def test_what_is_asked_for_again_does_not_leave(make: Make, how: str) -> None:
    chunks = chunks_of(*[1000] * 16)
    store = make(16 * len(seal(chunks[0])))
    for chunk in chunks:
        store.put(chunk)
    assert store.take_leaving() == [chunks[0].id]
    if how == "wanted":
        store.set_wanted({chunks[0].id})
    else:
        store.put(chunks[0])
    assert store.take_leaving() == [chunks[1].id]
    assert store.has(chunks[0].id)


def test_nothing_leaves_a_store_with_room(make: Make) -> None:
    store, (one, other) = make(1 << 20), chunks_of(1000, 1000)
    store.put(one)
    store.put(other)
    assert store.take_leaving() == []
    assert store.take_leaving() == []
    assert set(store.ids()) == {one.id, other.id}


def test_trimming_takes_what_is_idle(make: Make) -> None:
    wanted, kept, surplus, absent = chunks_of(100, 100, 100, 100)
    store = make(0)
    for chunk in (wanted, kept, surplus):
        store.put(chunk)
    store.set_wanted({wanted.id})
    store.set_tiers({kept.id}, set())
    assert store.trim([chunk.id for chunk in (wanted, kept, surplus, absent, surplus)]) == 2
    assert store.ids() == [wanted.id]
    assert store.take_removed() == [], "who trims has told the others"
    facts = store.statistics()
    assert (facts.trimmed, facts.evicted) == (2, 0)


def test_surplus_is_named_down_to_a_size(make: Make) -> None:
    chunks = chunks_of(*[1000] * 4)
    size, (kept, first, second, third) = len(seal(chunks[0])), (chunk.id for chunk in chunks)
    store = make(0)
    for chunk in chunks:
        store.put(chunk)
    store.set_tiers({kept}, set())
    assert store.surplus_above(4 * size) == []
    assert store.surplus_above(3 * size + 1) == [first]
    assert store.surplus_above(2 * size) == [first, second]
    assert store.surplus_above(0) == [first, second, third]
    assert len(store.ids()) == 4


def test_the_share_of_a_release_counts_each_chunk_once(make: Make) -> None:
    one, other, absent = chunks_of(1000, 2000, 3000)
    store = make(0)
    store.put(one)
    store.put(other)
    assert store.share_of([one.id, absent.id, one.id]) == (1, len(seal(one)))
    assert not store.tiers_known
    store.set_tiers((), ())
    assert store.tiers_known


def test_verifying_is_no_use_of_a_chunk(make: Make) -> None:
    one, other, new = chunks_of(1000, 1000, 1000)
    store = make(2 * len(seal(one)))
    store.put(one)
    store.put(other)
    assert store.verify(one.id)
    assert not store.verify(new.id)
    store.put(new)
    assert store.take_removed() == [one.id]


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
        self.memory = MemoryStore(self.QUOTA).scan()

    def reopen(self) -> ChunkStore:
        return ChunkStore(Path(self.scratch.name), self.QUOTA, clock=self.tick, space=roomy).open().scan()

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

    @rule(kept=st.sets(st.integers(0, 5), max_size=4), last=st.sets(st.integers(0, 5), max_size=2))
    def tiers(self, kept: set[int], last: set[int]) -> None:
        sides = [{self.CHUNKS[number].id for number in numbers} for numbers in (kept, last)]
        self.both(lambda store: store.set_tiers(*sides))

    @rule(numbers=st.lists(st.integers(0, 5), max_size=3))
    def trim(self, numbers: list[int]) -> None:
        self.both(lambda store: store.trim([self.CHUNKS[number].id for number in numbers]))

    @rule(size_bytes_max=st.integers(0, 2000))
    def surplus(self, size_bytes_max: int) -> None:
        self.both(lambda store: store.surplus_above(size_bytes_max))

    @rule()
    def leaving(self) -> None:
        self.both(lambda store: store.take_leaving())

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
