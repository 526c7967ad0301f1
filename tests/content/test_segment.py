"""Segments: runs tile the table, blobs give back exactly their chunks, and hostile blobs give nothing more."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from content_samples import chunks_of, noise, text, xz_with_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.manifest import CHUNK_SIZE_BYTES_MAX, SEGMENT_OUTPUT_BYTES_MAX, SEGMENT_OVERHEAD_BYTES_MAX
from pcm_p2p.content.segment import (
    XZ_MAGIC,
    decode_full_untrusted,
    encode_full,
    plan_runs,
    unpack_blob_untrusted,
)
from pcm_p2p.content.xz_packing import LEVEL_XZ
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


@pytest.mark.parametrize("level", [0, 1, 12, 13, 17, 19, 22])
def test_a_segment_gives_back_its_chunks(level: int) -> None:
    chunks = [*chunks_of(1, 70_000, 300_000), Chunk.of(text(500_000)), Chunk.of(b"\0" * 200_000)]
    blob = encode_full((chunk.data for chunk in chunks), level)
    assert blob == encode_full((chunk.data for chunk in chunks), level), "the same chunks make the same blob"
    assert blob.startswith(XZ_MAGIC) == (level >= LEVEL_XZ)
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


def test_an_xz_segment_that_does_not_compress_fits_too() -> None:
    """Sixteen times as much in a manifest; here one, because it takes a second each."""
    blob = encode_full([noise(1 << 20)], LEVEL_XZ)
    assert len(blob) - (1 << 20) <= SEGMENT_OVERHEAD_BYTES_MAX // 16


CHUNKS = chunks_of(1000, 2000, 3000)
BLOB = encode_full((chunk.data for chunk in CHUNKS), 3)
DATA = b"".join(chunk.data for chunk in CHUNKS)
XZ = encode_full([DATA], LEVEL_XZ)


def _xz(data: bytes, **options: Any) -> bytes:
    return lzma.compress(data, **({"format": lzma.FORMAT_XZ, "check": lzma.CHECK_NONE} | options))


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
        pytest.param(XZ[:-1], id="xz cut short"),
        pytest.param(XZ[:-30], id="xz without its end"),
        pytest.param(XZ[:12], id="xz head"),
        pytest.param(XZ_MAGIC, id="xz magic"),
        pytest.param(XZ_MAGIC + noise(5000), id="xz magic and noise"),
        pytest.param(XZ + b"\0", id="byte behind xz"),
        pytest.param(XZ + b"\0\0\0\0", id="padding behind xz"),
        pytest.param(XZ + XZ, id="xz twice"),
        pytest.param(_xz(DATA[:3000]) + _xz(DATA[3000:]), id="xz in two streams"),
        pytest.param(_xz(DATA[:-1]), id="xz output missing"),
        pytest.param(_xz(DATA + b"x"), id="xz output left over"),
        pytest.param(_xz(DATA[:-1] + bytes([DATA[-1] ^ 1])), id="xz of other bytes"),
        pytest.param(_xz(b""), id="xz of nothing"),
        pytest.param(_xz(b"\0" * (64 << 20), preset=0), id="xz bomb"),
        pytest.param(_xz(DATA, format=lzma.FORMAT_ALONE, check=-1), id="lzma without its container"),
        pytest.param(xz_with_dictionary(DATA, 36), id="xz that wants a gigabyte"),
        pytest.param(xz_with_dictionary(DATA, 40), id="xz that wants four"),
        pytest.param(xz_with_dictionary(DATA, 41), id="xz with a dictionary that does not exist"),
        pytest.param(gzip.compress(DATA), id="gzip"),
    ],
)
def test_hostile_blobs_are_refused(blob: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        _decode(blob, CHUNKS)


def test_what_an_xz_header_asks_for_is_refused_by_name_or_given() -> None:
    """A dictionary of 64 MiB is within what unpacking may take; the next sizes are not."""
    assert unpack_blob_untrusted(xz_with_dictionary(DATA, 28), len(DATA)) == DATA
    for code in (30, 36, 40):
        with pytest.raises(UntrustedBytes, match=r"[Mm]emory"):
            unpack_blob_untrusted(xz_with_dictionary(DATA, code), len(DATA))


def test_a_segment_without_a_single_byte_to_spare_is_read_to_its_end() -> None:
    """The output is complete before the stream is: what follows must still be its end and nothing else."""
    for size in (1, 4096, 1 << 16):
        data = noise(size)
        blob = _xz(data)
        assert unpack_blob_untrusted(blob, size) == data
        for spoilt in (blob[:-1], blob[:-12], blob + b"Y"):
            with pytest.raises(UntrustedBytes):
                unpack_blob_untrusted(spoilt, size)


@pytest.mark.parametrize("pack", [XZ, BLOB, encode_full([DATA], 0)], ids=["xz", "zstd", "stored"])
def test_changed_blobs_raise_nothing_else(pack: bytes) -> None:
    rng = random.Random(4)
    for _ in range(400):
        spoilt = bytearray(pack)
        for _ in range(rng.randrange(1, 4)):
            spoilt[rng.randrange(rng.choice((40, len(spoilt))))] = rng.randrange(256)
        with contextlib.suppress(UntrustedBytes):
            assert _decode(bytes(spoilt), CHUNKS) == CHUNKS


_PEAK = """
import sys
from pathlib import Path
from pcm_p2p.content.segment import unpack_blob_untrusted
from pcm_p2p.errors import UntrustedBytes
def peak():
    return next(int(line.split()[1]) >> 10 for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
before = peak()
for path in sys.argv[1:]:
    try:
        unpack_blob_untrusted(Path(path).read_bytes(), 1 << 20)
        sys.exit("was not refused: " + path)
    except UntrustedBytes:
        pass
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
def test_bombs_do_not_take_more_memory_than_the_bound(tmp_path: Path) -> None:
    bombs = {
        "xz": _xz(b"\0" * (200 << 20), preset=0),
        "zstd": zstandard.ZstdCompressor().compress(b"\0" * (200 << 20)),
        "zstd-without-size": zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * (200 << 20)),
        "dictionary": xz_with_dictionary(DATA, 40),
    }
    for name, bomb in bombs.items():
        (tmp_path / name).write_bytes(bomb)
    command = [sys.executable, "-c", _PEAK, *(str(tmp_path / name) for name in bombs)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 40, "MiB"


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
