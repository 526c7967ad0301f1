"""Chunks and their sealed form: what goes in comes out, and nothing else does."""

from __future__ import annotations

import contextlib
import random

import pytest
import zstandard
from content_samples import noise, text
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.content.chunk import SEALED_SIZE_BYTES_MAX, Chunk, open_sealed_untrusted, seal
from pcm_p2p.content.manifest import CHUNK_SIZE_BYTES_MAX
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import ChunkId


@pytest.mark.parametrize("data", [b"x", b"\0" * 100_000, noise(70_000), text(300_000), noise(CHUNK_SIZE_BYTES_MAX)])
def test_a_sealed_chunk_opens_to_itself_and_fits_the_bound(data: bytes) -> None:
    chunk = Chunk.of(data)
    sealed = seal(chunk)
    assert len(sealed) <= SEALED_SIZE_BYTES_MAX
    assert open_sealed_untrusted(chunk.id, sealed) == chunk


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=2000))
def test_sealing_round_trips(data: bytes) -> None:
    chunk = Chunk.of(memoryview(data))
    assert open_sealed_untrusted(chunk.id, seal(chunk)).data == data


def test_another_chunk_under_this_name_is_refused() -> None:
    with pytest.raises(UntrustedBytes, match="said to be chunk"):
        open_sealed_untrusted(ChunkId.of(b"wanted"), seal(Chunk.of(b"delivered")))
    with pytest.raises(UntrustedBytes, match="said to be chunk"):
        Chunk.verified(ChunkId.of(b"wanted"), b"delivered")


def _frame(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(level=3, **options).compress(data)


def _lying_frame(stated: int, content: bytes) -> bytes:
    """A frame whose header states another size than its one raw block has."""
    block = (len(content) << 3 | 1).to_bytes(3, "little") + content
    return b"\x28\xb5\x2f\xfd\xa0" + stated.to_bytes(4, "little") + block


def _bomb(stated: int, blocks: int) -> bytes:
    """Four bytes of frame for each 128 KiB of zeros."""
    out = b"\x28\xb5\x2f\xfd\xa0" + stated.to_bytes(4, "little")
    for number in range(blocks):
        out += ((128 << 10) << 3 | 1 << 1 | (number == blocks - 1)).to_bytes(3, "little") + b"\0"
    return out


@pytest.mark.parametrize(
    ("sealed", "why"),
    [
        pytest.param(b"", ".", id="empty"),
        pytest.param(b"plain bytes", ".", id="no frame"),
        pytest.param(_frame(b"good", write_content_size=False), "states no size", id="no size stated"),
        pytest.param(_frame(b""), "states no size", id="empty frame"),
        pytest.param(_frame(b"good")[:-1], ".", id="cut short"),
        pytest.param(_frame(b"good") + b"x", ".", id="bytes behind the frame"),
        pytest.param(_frame(b"good") + _frame(b"more"), ".", id="a second frame"),
        pytest.param(
            _frame(b"\0" * (CHUNK_SIZE_BYTES_MAX + 1)), "states no size, or one outside", id="larger than a chunk"
        ),
        pytest.param(_lying_frame(1 << 31, b"good"), "outside", id="states two gigabytes"),
        pytest.param(_lying_frame(3, b"good"), ".", id="more than stated"),
        pytest.param(_lying_frame(5, b"good"), ".", id="less than stated"),
        pytest.param(_bomb(CHUNK_SIZE_BYTES_MAX, 4096), ".", id="bomb behind an honest header"),
        pytest.param(b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"good", ".", id="skippable frame"),
        pytest.param(noise(SEALED_SIZE_BYTES_MAX + 1), "too many", id="more bytes than any sealed chunk has"),
    ],
)
def test_hostile_sealed_chunks_are_refused(sealed: bytes, why: str) -> None:
    with pytest.raises(UntrustedBytes, match=why):
        open_sealed_untrusted(ChunkId.of(b"good"), sealed)


def test_a_smaller_bound_is_kept() -> None:
    chunk = Chunk.of(text(5000))
    with pytest.raises(UntrustedBytes, match="outside 1 … 4999"):
        open_sealed_untrusted(chunk.id, seal(chunk), 4999)
    assert open_sealed_untrusted(chunk.id, seal(chunk), 5000) == chunk


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    for sealed in (data, b"\x28\xb5\x2f\xfd" + data):
        with pytest.raises(UntrustedBytes):
            open_sealed_untrusted(ChunkId.of(b"never there"), sealed)


def test_a_changed_byte_is_refused_or_harmless() -> None:
    chunk = Chunk.of(text(2000))
    sealed, rng = seal(chunk), random.Random(5)
    for _ in range(200):
        spoilt = bytearray(sealed)
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        with contextlib.suppress(UntrustedBytes):
            assert open_sealed_untrusted(chunk.id, bytes(spoilt)) == chunk
