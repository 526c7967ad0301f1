"""Matching: where a run of the new release comes from, within bounds, and the same every time."""

from __future__ import annotations

import random
from array import array

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcm_p2p.content.forms.member import Member
from pcm_p2p.content.publishing.matching import BLOCK_BYTES, SMALL_BYTES_MAX, Anchors, Matcher, Side

KIB = 1 << 10
CHUNK = 64 * KIB


def side(*members: tuple[str, int], chunk: int = CHUNK, anchors: dict[int, int] | None = None) -> Side:
    """Members of these sizes, behind each other, in chunks of one size; ``anchors``: key by offset."""
    tiles, at = [], 0
    for path, size in members:
        tiles.append(Member(path, at, size))
        at += size
    offsets = list(range(0, at, chunk))
    known = sorted((anchors or {}).items())
    return Side(
        tiles,
        Anchors(array("Q", [offset for offset, _ in known]), array("Q", [key for _, key in known])),
        offsets,
        list(range(len(offsets))),
        [min(chunk, at - offset) for offset in offsets],
    )


def chunks(base: Side, begin: int, end: int) -> set[int]:
    return set(base.places_within(begin, end))


def test_a_small_file_is_made_from_the_file_with_its_path() -> None:
    new = side(("a", CHUNK), ("b", CHUNK))
    base = side(("x", 100 * CHUNK), ("b", CHUNK), ("y", 100 * CHUNK))
    found = Matcher(new, base).base_of([(CHUNK, CHUNK)], base_bytes_max=CHUNK)
    assert found == [100]


def test_paths_that_differ_in_numbers_meet_in_order() -> None:
    new = side(("lib-2.1/a", CHUNK), ("lib-2.2/a", CHUNK), ("lib-3.0/a", CHUNK))
    base = side(("lib-1.1/a", CHUNK), ("lib-1.2/a", CHUNK))
    matcher = Matcher(new, base)
    assert [matcher.base_of([(at * CHUNK, CHUNK)], base_bytes_max=CHUNK) for at in range(3)] == [[0], [1], [1]]


def test_a_file_that_is_new_does_not_shift_those_with_numbers_in_their_names() -> None:
    new = side(*((f"modules/6.1.0-56/ads{number}.ko", CHUNK) for number in (1, 2, 3, 4)))
    base = side(*((f"modules/6.1.0-55/ads{number}.ko", CHUNK) for number in (1, 3, 4)))
    matcher = Matcher(new, base)
    found = [matcher.base_of([(at * CHUNK, CHUNK)], base_bytes_max=CHUNK) for at in range(4)]
    assert [found[at] for at in (0, 2, 3)] == [[0], [1], [2]]


def test_an_exact_path_goes_before_one_that_differs_in_numbers() -> None:
    new, base = side(("a1", CHUNK), ("a2", CHUNK)), side(("a2", CHUNK), ("a0", CHUNK))
    matcher = Matcher(new, base)
    assert matcher.base_of([(CHUNK, CHUNK)], base_bytes_max=CHUNK) == [0]
    assert matcher.base_of([(0, CHUNK)], base_bytes_max=CHUNK) == [1]


def test_a_large_file_is_followed_by_its_anchors() -> None:
    size, shift = 64 * SMALL_BYTES_MAX, 20 * BLOCK_BYTES
    new = side(("big", size), anchors={at: at for at in range(size // 2, size // 2 + BLOCK_BYTES, 512)})
    base = side(("big", size), anchors={at + shift: at for at in range(size // 2, size // 2 + BLOCK_BYTES, 512)})
    matcher = Matcher(new, base)
    wanted = chunks(base, size // 2 + shift, size // 2 + shift + BLOCK_BYTES)
    assert set(matcher.base_of([(size // 2, BLOCK_BYTES)], base_bytes_max=3 * BLOCK_BYTES)) >= wanted
    beside = chunks(base, size // 2 + shift + BLOCK_BYTES, size // 2 + shift + 2 * BLOCK_BYTES)
    found = matcher.base_of([(size // 2 + BLOCK_BYTES, BLOCK_BYTES)], base_bytes_max=3 * BLOCK_BYTES)
    assert set(found) >= beside, "a block without anchors moves with its neighbour"


def test_a_large_file_without_anchors_is_taken_in_proportion() -> None:
    new, base = side(("big", 32 << 20)), side(("big", 64 << 20))
    found = Matcher(new, base).base_of([(16 << 20, 1 << 20)], base_bytes_max=1 << 20)
    assert set(found) <= chunks(base, (32 << 20) - CHUNK, (34 << 20) + CHUNK)


def test_a_file_of_another_name_is_found_by_its_anchors() -> None:
    new = side(("renamed", 4 * SMALL_BYTES_MAX), anchors={at: at for at in range(0, 2 << 20, 4_096)})
    base = side(("other", 8 << 20), ("old", 2 << 20), anchors={(8 << 20) + at: at for at in range(0, 2 << 20, 4_096)})
    found = Matcher(new, base).base_of([(0, CHUNK)], base_bytes_max=2 * CHUNK)
    assert set(found) & chunks(base, 8 << 20, (8 << 20) + CHUNK)


def test_an_anchor_that_is_everywhere_is_no_anchor() -> None:
    new = side(("new", SMALL_BYTES_MAX), anchors=dict.fromkeys(range(0, SMALL_BYTES_MAX, 512), 7))
    base = side(("old", 8 << 20), anchors=dict.fromkeys(range(0, 8 << 20, 512), 7))
    assert Matcher(new, base).base_of([(0, SMALL_BYTES_MAX)]) == []


def test_unchanged_chunks_are_in_the_base_wherever_they_are() -> None:
    new, base = side(("a", CHUNK)), side(("a", CHUNK), ("x", 200 * CHUNK))
    assert set(Matcher(new, base).base_of([(0, CHUNK)], [150], base_bytes_max=2 * CHUNK)) == {0, 150}


def test_nothing_comes_of_nothing() -> None:
    assert Matcher(side(), side()).base_of([]) == []
    assert Matcher(side(("a", CHUNK)), side()).base_of([(0, CHUNK)]) == []
    assert Matcher(side(("a", CHUNK)), side(("b", CHUNK))).base_of([(0, CHUNK)]) == []


_members = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c-1.0", "c-1.1", "d"]), st.integers(1, 3 * SMALL_BYTES_MAX)), max_size=6
)


@st.composite
def sides(draw: st.DrawFn) -> Side:
    members = draw(_members)
    total = sum(size for _, size in members)
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    offsets = [rng.randrange(total) for _ in range(rng.randrange(200))] if total else []
    return side(*members, anchors={offset: rng.randrange(1, 60) for offset in offsets})


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(new=sides(), base=sides(), limit=st.integers(0, 6 * SMALL_BYTES_MAX), data=st.data())
def test_a_base_is_bounded_distinct_in_order_and_the_same_every_time(
    new: Side, base: Side, limit: int, data: st.DataObject
) -> None:
    total = sum(member.size for member in new.members)
    begin = data.draw(st.integers(0, total))
    slices = [(begin, data.draw(st.integers(0, total - begin)))]
    unchanged = data.draw(st.lists(st.sampled_from(base.positions), unique=True)) if base.positions else []
    found = Matcher(new, base).base_of(slices, unchanged, limit)
    assert found == sorted(set(found))
    assert sum(base.sizes[position] for position in found) <= limit
    assert found == Matcher(new, base).base_of(slices, unchanged, limit)
    for number in range(len(new.members)):
        member = new.members[number]
        first, end = Matcher(new, base).counterpart(number, member.offset, member.offset + member.size)
        assert 0 <= first <= end <= sum(one.size for one in base.members)
