"""What base and output have in common in long stretches is copied, and only the rest is compared; the patch is one as ever."""

from __future__ import annotations

import lzma

import hdiffpatch
import pytest
from content_samples import noise, text
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.content.delta.blob import decode_delta_untrusted, encode_delta
from pcm_p2p.content.delta.covers import Cover, covers_of, patch_with
from pcm_p2p.content.delta.stretches import (
    BASE_BYTES_MIN,
    STRETCH_BYTES_MIN,
    find_stretches,
    rest_of_base,
    rest_of_output,
    with_stretches,
)

KIB = 1 << 10
BASE = text(BASE_BYTES_MIN + 200 * KIB)
OUTPUT = BASE[: 400 * KIB] + noise(3000) + BASE[700 * KIB :] + BASE[100 * KIB : 300 * KIB]
STRETCHES = find_stretches(BASE, OUTPUT)


def whole(base: bytes, output: bytes) -> list[Cover]:
    """The covers of stretches and rest together."""
    stretches = find_stretches(base, output)
    of_base, of_output = rest_of_base(base, stretches), rest_of_output(output, stretches)
    covers = covers_of(hdiffpatch.diff(of_base, of_output, "none"), len(of_base), len(of_output))
    return with_stretches(covers, stretches, len(base), len(output))


def test_a_delta_of_stretches_and_of_a_patch_to_the_rest_is_a_patch_of_the_whole() -> None:
    blob = encode_delta(BASE, OUTPUT)
    assert hdiffpatch.apply(BASE, lzma.decompress(blob)) == OUTPUT
    assert len(blob) < 3200
    assert encode_delta(BASE, OUTPUT) == blob, "the same bytes make the same blob"
    assert len(rest_of_output(OUTPUT, STRETCHES)) == 3000, (
        "stretches end where the bytes differ, not where they were cut"
    )


def test_what_occurs_twice_or_elsewhere_is_found_where_it_is() -> None:
    assert len(STRETCHES) == 3, "before the new bytes, behind them, and a piece of the first part again"
    for one in STRETCHES:
        assert one.size >= STRETCH_BYTES_MIN
        assert OUTPUT[one.output : one.output + one.size] == BASE[one.base : one.base + one.size]
    assert STRETCHES[2].base < STRETCHES[1].base
    assert len(rest_of_base(BASE, STRETCHES)) < 340 * KIB, "what lies twice in the output is taken out once"


@pytest.mark.parametrize(
    ("base", "output"),
    [
        pytest.param(BASE, noise(100 * KIB), id="nothing in common"),
        pytest.param(BASE, noise(100 * KIB) + BASE[: 10 * KIB], id="a tenth in common"),
        pytest.param(BASE[: BASE_BYTES_MIN - 1], BASE[: BASE_BYTES_MIN - 1], id="a small base"),
        pytest.param(BASE, b"", id="nothing at all"),
    ],
)
def test_where_little_is_to_be_had_the_library_sees_all(base: bytes, output: bytes) -> None:
    assert find_stretches(base, output) == ()
    assert (rest_of_base(base, ()), rest_of_output(output, ())) == (base, output)
    if output:
        assert lzma.decompress(encode_delta(base, output)) == hdiffpatch.diff(base, output, "none")


@pytest.mark.parametrize(
    ("base", "output"),
    [
        pytest.param(BASE, BASE, id="no change"),
        pytest.param(BASE, BASE[: STRETCH_BYTES_MIN * 4], id="the beginning alone"),
        pytest.param(BASE, BASE[700 * KIB :] + BASE[: 700 * KIB], id="halves changed places"),
        pytest.param(BASE, BASE * 2 + BASE[:99], id="three times"),
        pytest.param(bytes(BASE_BYTES_MIN), bytes(BASE_BYTES_MIN * 2), id="zeros"),
        pytest.param(BASE + bytes(100 * KIB), bytes(300 * KIB) + BASE, id="more zeros than before"),
    ],
)
def test_the_ends_of_the_range(base: bytes, output: bytes) -> None:
    assert find_stretches(base, output)
    assert hdiffpatch.apply(base, patch_with(whole(base, output), base, output)) == output
    assert decode_delta_untrusted(encode_delta(base, output), base, len(output)) == output


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, len(BASE)), st.integers(0, 200 * KIB), st.binary(max_size=40)), max_size=12))
def test_any_output_comes_back_of_the_covers_of_its_stretches_and_its_rest(edits: list[tuple[int, int, bytes]]) -> None:
    output = b"".join(BASE[at : at + size] + new for at, size, new in edits)
    covers = whole(BASE, output)
    ends = [0, *(cover.output + cover.size for cover in covers)]
    assert all(end <= cover.output for end, cover in zip(ends, covers, strict=False)), "in order, and apart"
    assert hdiffpatch.apply(BASE, patch_with(covers, BASE, output)) == output


def test_a_cover_over_a_place_where_something_was_taken_out_becomes_two() -> None:
    taken = [Cover(base=100, output=50, size=30)]
    assert with_stretches([Cover(10, 0, 60)], taken, 200, 100) == [
        Cover(10, 0, 50),
        Cover(100, 50, 30),
        Cover(60, 80, 10),
    ]
    assert with_stretches([Cover(90, 0, 20)], taken, 200, 100) == [Cover(90, 0, 10), Cover(130, 10, 10), *taken]


def test_what_follows_a_stretch_on_both_sides_is_one_cover_with_it() -> None:
    assert with_stretches([Cover(100, 50, 20)], [Cover(100, 50, 30)], 200, 100) == [Cover(100, 50, 50)]


def test_covers_that_reach_over_the_end_are_an_error() -> None:
    with pytest.raises(ValueError, match="over the end"):
        with_stretches([Cover(150, 0, 30)], [Cover(100, 50, 30)], 200, 100)
