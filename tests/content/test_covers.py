"""Patches whose covers reach farther: they do the same, and take less where tables have moved."""

from __future__ import annotations

import lzma
import random
import struct
import time

import hdiffpatch
import pytest
from content_samples import noise, text
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.content.delta.covers import MAGIC, Cover, covers_of, longer, patch_with


def patch_of(base: bytes, output: bytes) -> bytes:
    patch: bytes = hdiffpatch.diff(base, output, "none", validate=False)
    return patch


def with_longer_covers(patch: bytes, base: bytes, output: bytes) -> bytes:
    return patch_with(longer(covers_of(patch, len(base), len(output)), base, output), base, output)


def packed_bytes(patch: bytes) -> int:
    return len(lzma.compress(patch, check=lzma.CHECK_NONE))


def unwinding(count: int, moved: int) -> bytes:
    """As in ``.eh_frame_hdr``: pairs of addresses of four bytes, whose lower two have moved."""
    rng = random.Random(1)
    return b"".join(
        struct.pack("<2I", 0x400000 + 48 * at + rng.randrange(32) + moved, 0x80000 + 20 * at + moved)
        for at in range(count)
    )


def test_a_table_in_which_every_address_moved_is_covered_from_both_ends() -> None:
    """Covers that end where the table begins, and begin somewhere in it, as the library leaves them now and then."""
    base, output = (noise(20_000) + unwinding(8_000, moved) + noise(20_000, 2) for moved in (0, 0x1230))
    end = len(output) - 20_000
    short = patch_with([Cover(0, 0, 20_000), Cover(end, end, 20_000)], base, output)
    assert hdiffpatch.apply(base, short) == output
    patch = with_longer_covers(short, base, output)
    assert hdiffpatch.apply(base, patch) == output
    assert packed_bytes(patch) < packed_bytes(short) / 5
    assert packed_bytes(patch) < 1.05 * packed_bytes(patch_of(base, output))
    inserted = output[:50_000] + noise(3000, 7) + output[50_000:]
    both = patch_with([Cover(0, 0, 20_000), Cover(end, end + 3000, 20_000)], base, inserted)
    again = with_longer_covers(both, base, inserted)
    assert hdiffpatch.apply(base, again) == inserted
    assert packed_bytes(again) < packed_bytes(patch) + 3400, "what is new between the two, and hardly more"


edits = st.lists(
    st.tuples(st.integers(0, 60_000), st.integers(0, 6_000), st.binary(max_size=300), st.integers(0, 40)), max_size=10
)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 60_000), edits)
def test_any_output_comes_back(base_bytes: int, parts: list[tuple[int, int, bytes, int]]) -> None:
    """Parts of the base, some with a byte in so many changed, and new bytes between them."""
    base, rng = text(base_bytes), random.Random(base_bytes)
    output = bytearray()
    for at, size, new, every in parts:
        part = bytearray(base[at : at + size])
        for place in range(0, len(part), every) if every else ():
            part[place] = rng.randrange(256)
        output += part + new
    patch = with_longer_covers(patch_of(base, bytes(output)), base, bytes(output))
    assert hdiffpatch.apply(base, patch) == bytes(output)


@pytest.mark.parametrize(
    ("base", "output"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"", noise(5000), id="no base"),
        pytest.param(noise(5000), b"", id="no output"),
        pytest.param(noise(5000), noise(5000), id="no change"),
        pytest.param(noise(5000), noise(5000, 2), id="nothing in common"),
        pytest.param(bytes(70_000), b"\xff" * 70_000, id="long runs"),
        pytest.param(noise(9000), noise(9000)[4000:] + noise(9000)[:4000], id="parts in another order"),
        pytest.param(noise(9000)[100:], noise(9000), id="something before it"),
        pytest.param(noise(9000), noise(9000)[:-100], id="something less at its end"),
    ],
)
def test_the_ends_of_the_range(base: bytes, output: bytes) -> None:
    patch = with_longer_covers(patch_of(base, output), base, output)
    assert patch.startswith(MAGIC)
    assert hdiffpatch.apply(base, patch) == output


def test_a_patch_of_another_form_is_an_error() -> None:
    base, output = noise(5000), noise(4000) + b"new" + noise(1000, 2)
    patch = patch_of(base, output)
    for other in (b"", b"BSDIFF40", patch[:12], MAGIC + b"\xff" * 500, patch_of(base, output + b"x")):
        with pytest.raises((ValueError, IndexError)):
            covers_of(other, len(base), len(output))


def test_what_has_nothing_in_common_costs_a_moment() -> None:
    base, output = noise(1 << 20), noise(1 << 20, 2)
    patch, begun = patch_of(base, output), time.process_time()
    assert len(with_longer_covers(patch, base, output)) <= len(patch) + 64
    assert time.process_time() - begun < 3
