"""Full segments as xz streams: more effort never makes them larger, and what the data is like decides how it is packed."""

from __future__ import annotations

import base64
import lzma
import random

from content_samples import noise, text

from pcm_p2p.content.manifest import SEGMENT_OUTPUT_BYTES_MAX
from pcm_p2p.content.segment import encode_full, unpack_blob_untrusted
from pcm_p2p.content.xz_packing import LEVEL_XZ, xz_stream


def test_a_higher_level_is_never_larger_on_what_compresses() -> None:
    data = text(600_000)
    steps = [len(encode_full([data], level)) for level in (3, LEVEL_XZ - 1, LEVEL_XZ, 15, 17, 19)]
    assert steps == sorted(steps, reverse=True), "and where zstd ends xz begins with less"
    assert steps[2] < steps[1]
    assert encode_full([data], 14) == encode_full([data], LEVEL_XZ)
    assert encode_full([data], 16) == encode_full([data], 15)
    assert encode_full([data], 21) == encode_full([data], 19)


def test_segments_of_code_are_filtered_and_others_not() -> None:
    """The filter pays where calls reach the same function from many places, and costs where there is no code."""
    code = _x86_code(400_000)
    for data, filtered in ((code, True), (text(400_000), False), (noise(400_000), False), (b"\0" * 9, False)):
        blob = xz_stream(data, 19)
        assert blob == _xz(data, filtered=filtered, preset=6)
        assert unpack_blob_untrusted(blob, len(data)) == data
    plain = lzma.compress(code, check=lzma.CHECK_NONE, preset=6)
    assert len(xz_stream(code, 19)) < 0.9 * len(plain)


def test_copies_of_a_program_are_not_filtered_because_they_would_be_copies_no_more() -> None:
    code = _x86_code(700_000, between=30)
    copies = code + text(40_000) + code
    blob = xz_stream(copies, 19)
    assert blob == _xz(copies, filtered=False, preset=6)
    assert len(blob) < len(_xz(copies, filtered=True, preset=6))
    assert xz_stream(code, 19) == _xz(code, filtered=True, preset=6), "while one alone is"


def test_a_quick_level_searches_longer_where_that_finds_more() -> None:
    code = _x86_code(400_000)
    short, longer = ({"preset": 6, "mf": lzma.MF_HC4, "nice_len": n, "depth": depth} for n, depth in ((24, 2), (32, 8)))
    for data, filtered, options in (
        (code, True, short),
        (base64.b64encode(text(300_000)), False, longer),
        (noise(600_000) * 2, False, longer),
    ):
        assert xz_stream(data, 16) == _xz(data, filtered=filtered, **options)


def _x86_code(size_bytes: int, between: int = 3) -> bytes:
    """Calls of 200 functions, with so many other bytes before each."""
    rng = random.Random(7)
    targets, code = [rng.randrange(1 << 24) for _ in range(200)], bytearray()
    while len(code) < size_bytes:
        code += rng.randbytes(between) + b"\xe8"
        code += ((rng.choice(targets) - len(code) - 4) % (1 << 32)).to_bytes(4, "little")
    return bytes(code)


def _xz(data: bytes, *, filtered: bool, **options: int) -> bytes:
    packer = {"id": lzma.FILTER_LZMA2, **options, "dict_size": SEGMENT_OUTPUT_BYTES_MAX}
    filters = [{"id": lzma.FILTER_X86}] if filtered else []
    return lzma.compress(data, check=lzma.CHECK_NONE, filters=[*filters, packer])
