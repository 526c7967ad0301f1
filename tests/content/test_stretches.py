"""What base and output have in common in long stretches is copied, and only the rest is compared. Lists that lie are refused."""

from __future__ import annotations

import lzma
import random
import time
from typing import Any

import hdiffpatch
import msgspec
import pytest
from content_samples import noise, text
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.content.delta import decode_delta_untrusted, encode_delta
from pcm_p2p.content.stretches import (
    BASE_BYTES_MIN,
    LIST_BYTES_MAX,
    MAGIC,
    STRETCH_BYTES_MIN,
    STRETCHES_MAX,
    Stretch,
    common_bytes,
    decode_list_untrusted,
    encode_list,
    find_stretches,
    put_back_untrusted,
    rest_of_base_untrusted,
    rest_of_output,
)
from pcm_p2p.errors import UntrustedBytes

KIB = 1 << 10
BASE = text(BASE_BYTES_MIN + 200 * KIB)
OUTPUT = BASE[: 400 * KIB] + noise(3000) + BASE[700 * KIB :] + BASE[100 * KIB : 300 * KIB]
BLOB = encode_delta(BASE, OUTPUT)
CONTENT = lzma.decompress(BLOB)
STRETCHES, PATCH_BEGIN = decode_list_untrusted(CONTENT)
PATCH = CONTENT[PATCH_BEGIN:]


def blob_of(stretches: Any, patch: bytes = PATCH) -> bytes:
    """A blob with any list."""
    packed = msgspec.msgpack.encode(stretches)
    return _xz(MAGIC + len(packed).to_bytes(4, "little") + packed + patch)


def _xz(content: bytes) -> bytes:
    return lzma.compress(content, check=lzma.CHECK_NONE, preset=0)


def test_a_delta_gives_the_output_of_stretches_and_of_a_patch_to_the_rest() -> None:
    assert decode_delta_untrusted(BLOB, BASE, len(OUTPUT)) == OUTPUT
    assert len(BLOB) < 3200
    assert encode_delta(BASE, OUTPUT) == BLOB, "the same bytes make the same blob"
    assert len(OUTPUT) - common_bytes(STRETCHES) == 3000, (
        "stretches end where the bytes differ, not where they were cut"
    )


def test_what_occurs_twice_or_elsewhere_is_found_where_it_is() -> None:
    rest = rest_of_output(OUTPUT, STRETCHES)
    assert len(STRETCHES) == 3, "before the new bytes, behind them, and a piece of the first part again"
    assert all(stretch.size >= STRETCH_BYTES_MIN for stretch in STRETCHES)
    assert STRETCHES[2].shift < 0
    assert put_back_untrusted(rest, BASE, STRETCHES) == OUTPUT
    assert len(rest_of_base_untrusted(BASE, STRETCHES)) < 340 * KIB, "what lies twice in the output is taken out once"


@pytest.mark.parametrize(
    ("base", "output"),
    [
        pytest.param(BASE, noise(100 * KIB), id="nothing in common"),
        pytest.param(BASE, noise(100 * KIB) + BASE[: 10 * KIB], id="a tenth in common"),
        pytest.param(BASE[: BASE_BYTES_MIN - 1], BASE[: BASE_BYTES_MIN - 1], id="a small base"),
        pytest.param(BASE, b"", id="nothing at all"),
    ],
)
def test_where_little_is_to_be_had_the_delta_is_a_patch_as_ever(base: bytes, output: bytes) -> None:
    assert find_stretches(base, output) == ()
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
    blob = encode_delta(base, output)
    assert lzma.decompress(blob).startswith(MAGIC)
    assert decode_delta_untrusted(blob, base, len(output)) == output


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(BASE)), st.integers(0, 200 * KIB), st.binary(max_size=40)), max_size=12))
def test_any_output_comes_back_from_its_stretches_and_its_rest(edits: list[tuple[int, int, bytes]]) -> None:
    output = b"".join(BASE[at : at + size] + new for at, size, new in edits)
    stretches = find_stretches(BASE, output)
    content = encode_list(stretches) + b"patch"
    assert decode_list_untrusted(content) == (stretches, len(content) - len(b"patch"))
    rest_of_base_untrusted(BASE, stretches)
    assert put_back_untrusted(rest_of_output(output, stretches), BASE, stretches) == output


def test_the_longest_list_of_the_largest_numbers_may_be_read() -> None:
    longest = [Stretch(1 << 30, -(1 << 30), 1 << 30)] * STRETCHES_MAX
    assert len(encode_list(longest)) <= LIST_BYTES_MAX
    assert decode_list_untrusted(encode_list(longest))[0] == tuple(longest)


REST = hdiffpatch.diff(b"", noise(1000), "none")


@pytest.mark.parametrize(
    ("blob", "why"),
    [
        pytest.param(_xz(MAGIC), "cut short", id="no length"),
        pytest.param(_xz(MAGIC + (0).to_bytes(4, "little") + PATCH), "cut short", id="no list"),
        pytest.param(_xz(MAGIC + (1 << 31).to_bytes(4, "little") + PATCH), "at most", id="a length of two gigabytes"),
        pytest.param(_xz(CONTENT[: PATCH_BEGIN - 1]), "cut short", id="a list cut short"),
        pytest.param(_xz(CONTENT[:PATCH_BEGIN]), "is not a patch", id="no patch"),
        pytest.param(blob_of([]), "schema", id="an empty list"),
        pytest.param(blob_of([(0, 0, 1)] * (STRETCHES_MAX + 1)), "schema", id="too many"),
        pytest.param(blob_of("stretches"), "schema", id="a word"),
        pytest.param(blob_of([(0, 0)]), "schema", id="a field short"),
        pytest.param(blob_of([(0, 0, 1, 1)]), "schema", id="a field more"),
        pytest.param(blob_of([(-1, 0, 1)]), "schema", id="back over what was written"),
        pytest.param(blob_of([(0, 0, 0)]), "schema", id="of nothing"),
        pytest.param(blob_of([(0, 1 << 31, 1)]), "schema", id="beyond all numbers"),
        pytest.param(blob_of([(0, -1, 1000)]), "not within", id="before the base"),
        pytest.param(blob_of([(0, len(BASE), 1)]), "not within", id="behind the base"),
        pytest.param(blob_of([(0, 1, len(BASE))]), "not within", id="over its end"),
        pytest.param(blob_of([(0, 0, 1 << 20)] + [(0, -(1 << 20), 1 << 20)] * 4000), "states", id="4 GB of copies"),
        pytest.param(blob_of([(0, 0, 1)], CONTENT), "is not a patch", id="a list in a list"),
        pytest.param(blob_of([(0, 0, len(OUTPUT))], REST), "states", id="more than the chunks have"),
        pytest.param(blob_of([(0, 0, 10)], REST), "states", id="less than the chunks have"),
    ],
)
def test_lists_that_lie_are_refused_at_no_price(blob: bytes, why: str) -> None:
    base = BASE + noise(600 * KIB)
    assert len(base) > len(OUTPUT)
    begun = time.process_time()
    with pytest.raises(UntrustedBytes, match=why):
        decode_delta_untrusted(blob, base if why == "states" else BASE, len(OUTPUT))
    assert time.process_time() - begun < 1


def test_a_stretch_behind_what_the_patch_yields_is_refused() -> None:
    with pytest.raises(UntrustedBytes, match="behind 1001 bytes, of which the patch yields 1000"):
        put_back_untrusted(noise(1000), BASE, [Stretch(1001, -1001, 10)])


def test_any_bytes_for_a_list_are_refused_or_read() -> None:
    rng = random.Random(1)
    for _ in range(150):
        content = bytearray(CONTENT)
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(PATCH_BEGIN)] = rng.randrange(256)
        try:
            output = decode_delta_untrusted(_xz(bytes(content)), BASE, len(OUTPUT))
        except UntrustedBytes:
            continue
        assert len(output) == len(OUTPUT)
