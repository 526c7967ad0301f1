"""Deltas: an output from its base and nothing else, and hostile blobs give nothing more, at no price worth naming."""

from __future__ import annotations

import lzma
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import hdiffpatch
import pytest
from content_samples import noise, text, xz_with_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.content.delta.blob import decode_delta_untrusted, encode_delta
from pcm_p2p.errors import UntrustedBytes

BASE = text(200_000)
OUTPUT = BASE[:50_000] + noise(3000) + BASE[60_000:] + BASE[:1000]
BLOB = encode_delta(BASE, OUTPUT)


def packed(patch: bytes, **options: Any) -> bytes:
    return lzma.compress(patch, **({"format": lzma.FORMAT_XZ, "check": lzma.CHECK_NONE} | options))


PATCH = lzma.decompress(BLOB)


def test_a_delta_gives_the_output_and_carries_only_what_is_new() -> None:
    assert decode_delta_untrusted(BLOB, BASE, len(OUTPUT)) == OUTPUT
    assert len(BLOB) < 3500
    assert encode_delta(BASE, OUTPUT) == BLOB, "the same bytes make the same blob"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 3000), st.binary(max_size=40)), max_size=12),
    st.integers(1, 40_000),
    st.booleans(),
)
def test_any_output_comes_back_from_any_base(
    edits: list[tuple[int, int, bytes]], base_bytes: int, thorough: bool
) -> None:
    base = BASE[:base_bytes]
    output = b"".join(base[at : at + length] + new for at, length, new in edits) or b"\0"
    blob = encode_delta(base, output, thorough=thorough)
    assert decode_delta_untrusted(blob, base, len(output)) == output
    assert len(blob) <= len(encode_delta(base, output)), "thorough is never larger"


@pytest.mark.parametrize(
    ("base", "output"),
    [
        pytest.param(b"b", b"o", id="one byte"),
        pytest.param(BASE, BASE, id="no change"),
        pytest.param(BASE, noise(50_000), id="nothing in common"),
        pytest.param(b"\0" * 100_000, b"\0" * 99_999, id="zeros"),
        pytest.param(noise(1000), noise(1000) * 300, id="the base again and again"),
    ],
)
def test_the_ends_of_the_range(base: bytes, output: bytes) -> None:
    assert decode_delta_untrusted(encode_delta(base, output), base, len(output)) == output


def recompiled(kinds: int = 60, functions: int = 2500) -> tuple[bytes, bytes]:
    """Functions, and the same when addresses in them have moved: at places, and by amounts, that each kind of function has."""
    rng = random.Random(1)
    moves = []
    for _ in range(kinds):
        move = bytearray(rng.randrange(60, 300))
        for at in rng.sample(range(len(move)), len(move) // 20):
            move[at] = rng.randrange(1, 256)
        moves.append(bytes(move))
    moved = b"".join(rng.choices(moves, k=functions))
    base = rng.randbytes(len(moved))
    return base, bytes((old + by) & 0xFF for old, by in zip(base, moved, strict=True))


def test_a_thorough_delta_finds_changes_that_repeat_with_their_distances() -> None:
    base, output = recompiled()
    blob = encode_delta(base, output, thorough=True)
    assert decode_delta_untrusted(blob, base, len(output)) == output
    assert len(blob) < 0.75 * len(encode_delta(base, output))
    assert encode_delta(base, output, thorough=True) == blob, "the same bytes make the same blob"


def test_a_delta_of_bytes_that_share_nothing_is_hardly_more_than_them() -> None:
    assert len(encode_delta(noise(300_000), noise(300_000, seed=2))) < 301_000


def _stating(size: int) -> bytes:
    """The patch with another size of its output in its head."""
    digits, left = [size & 0x7F], size >> 7
    while left:
        digits.insert(0, left & 0x7F | 0x80)
        left >>= 7
    end = 9 + next(number for number, byte in enumerate(PATCH[9:]) if not byte & 0x80) + 1
    return PATCH[:9] + bytes(digits) + PATCH[end:]


@pytest.mark.parametrize(
    ("blob", "why"),
    [
        pytest.param(b"", "not one xz stream", id="empty"),
        pytest.param(BLOB[:-1], "not one xz stream", id="cut short by a byte"),
        pytest.param(BLOB[: len(BLOB) // 2], "not one xz stream", id="half"),
        pytest.param(BLOB + b"\0", "not one xz stream", id="byte behind it"),
        pytest.param(BLOB + BLOB, "not one xz stream", id="twice"),
        pytest.param(PATCH, "delta: ", id="a bare patch"),
        pytest.param(packed(PATCH, format=lzma.FORMAT_ALONE, check=-1), "delta: ", id="lzma without its container"),
        pytest.param(packed(PATCH[:-1]), "failed", id="patch cut short"),
        pytest.param(packed(PATCH + b"\0"), "failed", id="byte behind the patch"),
        pytest.param(packed(b""), "not a patch", id="no patch"),
        pytest.param(packed(noise(500)), "not a patch", id="noise for a patch"),
        pytest.param(packed(PATCH[:9] + b"\xff" * 40), "states no size", id="a number without an end"),
        pytest.param(packed(PATCH[:9]), "states no size", id="a head and nothing else"),
        pytest.param(packed(_stating(len(OUTPUT) - 1)), "states 193999 bytes", id="a byte less"),
        pytest.param(packed(_stating(1 << 50)), "states 1125899906842624 bytes", id="a pebibyte"),
        pytest.param(packed(b"\0" * (64 << 20)), "at most", id="bomb"),
        pytest.param(xz_with_dictionary(PATCH, 36), "emory", id="a dictionary of a gigabyte"),
        pytest.param(
            packed(hdiffpatch.diff(BASE, OUTPUT, hdiffpatch.ZStdConfig())),
            "without compression inside",
            id="zstd inside",
        ),
    ],
)
def test_hostile_blobs_are_refused(blob: bytes, why: str) -> None:
    with pytest.raises(UntrustedBytes, match=why):
        decode_delta_untrusted(blob, BASE, len(OUTPUT))


def test_a_swapped_blob_is_refused_or_gives_bytes_that_are_none_of_the_chunks() -> None:
    """Its own output comes out only if size and base fit by chance; then the chunks' ids tell."""
    other = encode_delta(BASE, OUTPUT[:-1])
    with pytest.raises(UntrustedBytes, match="states 193999 bytes of output; its chunks have 194000"):
        decode_delta_untrusted(other, BASE, len(OUTPUT))
    same_size = encode_delta(BASE, OUTPUT[:-1] + b"!")
    assert decode_delta_untrusted(same_size, BASE, len(OUTPUT)) != OUTPUT


def test_a_wrong_base_is_refused_or_gives_bytes_that_are_none_of_the_chunks() -> None:
    for wrong in (BASE[:-1], BASE + b"\0", b""):
        with pytest.raises(UntrustedBytes):
            decode_delta_untrusted(BLOB, wrong, len(OUTPUT))
    assert decode_delta_untrusted(BLOB, bytes(len(BASE)), len(OUTPUT)) != OUTPUT


def test_changed_patches_raise_nothing_else() -> None:
    rng, base = random.Random(5), BASE[:5000]
    output = base[:2000] + noise(200) + base[1500:]
    patch = lzma.decompress(encode_delta(base, output))
    for _ in range(1500):
        spoilt = bytearray(patch)
        for _ in range(rng.randrange(1, 4)):
            spoilt[rng.randrange(rng.choice((30, 60, len(spoilt))))] = rng.randrange(256)
        try:
            assert len(decode_delta_untrusted(packed(bytes(spoilt), preset=0), base, len(output))) == len(output)
        except UntrustedBytes:
            continue


_PEAK = """
import lzma, resource, sys
from pathlib import Path
from pcm_p2p.content.delta.blob import decode_delta_untrusted
from pcm_p2p.errors import UntrustedBytes
base = Path(sys.argv[1]).read_bytes()
def peak():
    return next(int(line.split()[1]) >> 10 for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
before = peak()
for path in sys.argv[2:]:
    try:
        decode_delta_untrusted(Path(path).read_bytes(), base, 2 << 20)
        sys.exit("was not refused: " + path)
    except UntrustedBytes:
        pass
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
def test_bombs_do_not_take_more_memory_than_an_honest_delta(tmp_path: Path) -> None:
    """A kilobyte of patch that copies a base of 1 MiB 160 times, zeros, and a header that asks for 4 GiB."""
    base = noise(1 << 20)
    bombs = {
        "copies": encode_delta(base, base * 160),
        "zeros": lzma.compress(bytes(160 << 20), preset=0),
        "dictionary": xz_with_dictionary(encode_delta(base, base * 2), 40),
    }
    for name, bomb in bombs.items():
        assert len(bomb) < 2 << 20
        (tmp_path / name).write_bytes(bomb)
    (tmp_path / "base").write_bytes(base)
    command = [sys.executable, "-c", _PEAK, str(tmp_path / "base"), *(str(tmp_path / name) for name in bombs)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 60, "MiB"
