"""Segments: runs tile the table, blobs give back exactly their chunks, and hostile blobs give nothing more."""

from __future__ import annotations

import contextlib
import random

import pytest
import zstandard
from content_samples import chunks_of, noise, text
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.manifest import CHUNK_SIZE_BYTES_MAX, SEGMENT_OUTPUT_BYTES_MAX, SEGMENT_OVERHEAD_BYTES_MAX
from pcm_p2p.content.segment import decode_full_untrusted, encode_full, plan_runs
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import ChunkId


@settings(deadline=None)
@given(st.lists(st.integers(1, CHUNK_SIZE_BYTES_MAX), max_size=300))
def test_runs_tile_the_table_within_the_bound_and_are_as_long_as_they_can_be(sizes: list[int]) -> None:
    runs, reached = plan_runs(sizes), 0
    for first, count in runs:
        assert first == reached
        assert count >= 1
        reached += count
        output = sum(sizes[first:reached])
        assert output <= SEGMENT_OUTPUT_BYTES_MAX
        assert reached == len(sizes) or output + sizes[reached] > SEGMENT_OUTPUT_BYTES_MAX
    assert reached == len(sizes)


def _decode(blob: bytes, chunks: list[Chunk]) -> list[Chunk]:
    return list(decode_full_untrusted(blob, [one.id for one in chunks], [len(one.data) for one in chunks]))


@pytest.mark.parametrize("level", [0, 1, 19, 22])
def test_a_segment_gives_back_its_chunks(level: int) -> None:
    chunks = [*chunks_of(1, 70_000, 300_000), Chunk.of(text(500_000)), Chunk.of(b"\0" * 200_000)]
    blob = encode_full((chunk.data for chunk in chunks), level)
    assert blob == encode_full((chunk.data for chunk in chunks), level), "the same chunks make the same blob"
    assert _decode(blob, chunks) == chunks


@pytest.mark.parametrize("size", [1, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, 256 << 10])
def test_the_stored_frame_is_a_zstd_frame_for_everybody(size: int) -> None:
    data = noise(size)
    blob = encode_full([data], 0)
    assert zstandard.ZstdDecompressor().decompress(blob) == data
    assert len(blob) - size < 64


def test_a_full_segment_that_does_not_compress_fits_what_manifests_allow() -> None:
    chunk = chunks_of(*[CHUNK_SIZE_BYTES_MAX] * 4)
    for level in (0, 1):
        blob = encode_full((one.data for one in chunk), level)
        assert len(blob) <= SEGMENT_OUTPUT_BYTES_MAX + SEGMENT_OVERHEAD_BYTES_MAX
        assert _decode(blob, chunk) == chunk


def test_chunks_before_a_wrong_one_are_good_and_come_first() -> None:
    good, wrong, behind = chunks_of(1000, 2000, 3000)
    blob = encode_full((good.data, noise(2000, seed=99), behind.data), 3)
    decoded = decode_full_untrusted(blob, [good.id, wrong.id, behind.id], [1000, 2000, 3000])
    assert next(decoded) == good
    with pytest.raises(UntrustedBytes, match="said to be chunk"):
        next(decoded)


CHUNKS = chunks_of(1000, 2000, 3000)
BLOB = encode_full((chunk.data for chunk in CHUNKS), 3)


@pytest.mark.parametrize(
    "blob",
    [
        pytest.param(b"", id="empty"),
        pytest.param(BLOB[:-1], id="cut short"),
        pytest.param(BLOB + b"\0", id="byte behind it"),
        pytest.param(BLOB + BLOB, id="twice"),
        pytest.param(encode_full((chunk.data for chunk in CHUNKS[:2]), 3), id="output missing"),
        pytest.param(encode_full([*(chunk.data for chunk in CHUNKS), b"x"], 3), id="output left over"),
        pytest.param(zstandard.ZstdCompressor().compress(b"\0" * (64 << 20)), id="bomb"),
        pytest.param(noise(2 << 20), id="larger than its output"),
    ],
)
def test_hostile_blobs_are_refused(blob: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        _decode(blob, CHUNKS)


@pytest.mark.parametrize(
    ("ids", "sizes"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([CHUNKS[0].id], [1000, 2000], id="more sizes than ids"),
        pytest.param([CHUNKS[0].id], [CHUNK_SIZE_BYTES_MAX + 1], id="one chunk too large"),
        pytest.param([CHUNKS[0].id] * 5, [CHUNK_SIZE_BYTES_MAX] * 5, id="together too large"),
        pytest.param([CHUNKS[0].id, CHUNKS[1].id, CHUNKS[2].id], [1000, 2000, 2999], id="sizes do not add up"),
        pytest.param([CHUNKS[0].id, CHUNKS[1].id, CHUNKS[2].id], [1001, 1999, 3000], id="sizes shifted"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(ids: list[ChunkId], sizes: list[int]) -> None:
    with pytest.raises(UntrustedBytes):
        list(decode_full_untrusted(BLOB, ids, sizes))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_noise_is_refused(data: bytes) -> None:
    for blob in (data, b"\x28\xb5\x2f\xfd" + data):
        with pytest.raises(UntrustedBytes):
            _decode(blob, CHUNKS)


def test_a_changed_byte_never_yields_a_wrong_chunk() -> None:
    rng = random.Random(7)
    for _ in range(200):
        spoilt = bytearray(BLOB)
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        with contextlib.suppress(UntrustedBytes):
            assert _decode(bytes(spoilt), CHUNKS) == CHUNKS
