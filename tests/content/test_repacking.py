"""Deltas that look into gzip members: the head, both transforms, and heads that lie."""

from __future__ import annotations

import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import hdiffpatch
import msgspec
import pytest
from content_samples import noise, text
from gzip_samples import member, zlib_pack
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.content.delta.blob import decode_delta_untrusted, encode_delta, encode_smallest_delta, needs_gzip
from pcm_p2p.content.delta.gzip_members import PLAIN_BYTES_MAX, inflate_untrusted
from pcm_p2p.content.delta.repacking import (
    HEAD_BYTES_MAX,
    MAGIC,
    SPANS_MAX,
    BaseSpan,
    CannotPack,
    Head,
    OutputSpan,
    decode_head_untrusted,
    encode_head,
    plan_unpacking,
)
from pcm_p2p.errors import UntrustedBytes

OLD_LOG, NEW_LOG = text(60_000), b"one line more\n" + text(60_000)
OLD, NEW = member(OLD_LOG), member(NEW_LOG)
BASE = noise(3000) + OLD + noise(3000, 2)
OUTPUT = noise(2900) + NEW + noise(3000, 2)
BLOB = encode_smallest_delta(BASE, OUTPUT, zlib_pack)
CONTENT = lzma.decompress(BLOB)
HEAD, PATCH_BEGIN = decode_head_untrusted(CONTENT)
PATCH = CONTENT[PATCH_BEGIN:]
(BASE_SPAN,), (OUTPUT_SPAN,) = HEAD.base, HEAD.output


def never(_plain: bytes | memoryview, _level: int) -> bytes:
    raise AssertionError("nothing is packed before the head is believed")


def packed(content: bytes) -> bytes:
    return lzma.compress(content, check=lzma.CHECK_NONE, preset=0)


def blob_of(base: list[Any], output: list[Any], patch: bytes = PATCH) -> bytes:
    """A blob with any numbers in its head."""
    head = msgspec.msgpack.encode((base, output))
    return packed(MAGIC + len(head).to_bytes(4, "little") + head + patch)


def test_a_changelog_that_grew_by_a_line_costs_the_line() -> None:
    assert decode_delta_untrusted(BLOB, BASE, len(OUTPUT), zlib_pack) == OUTPUT
    assert needs_gzip(BLOB)
    assert len(BLOB) < 500
    assert len(encode_delta(BASE, OUTPUT)) > 15_000
    assert encode_smallest_delta(BASE, OUTPUT, zlib_pack) == BLOB, "the same bytes make the same blob"
    assert BaseSpan(3010, len(OLD) - 10, len(OLD_LOG)) == BASE_SPAN
    assert OutputSpan(2910, len(NEW_LOG), 9) == OUTPUT_SPAN


def test_a_delta_of_members_that_need_gzip_is_not_decoded_without_one() -> None:
    with pytest.raises(CannotPack, match="no gzip"):
        decode_delta_untrusted(BLOB, BASE, len(OUTPUT))


@pytest.mark.parametrize(
    ("base", "output"),
    [
        pytest.param(noise(5000), noise(4000) + b"x", id="no members"),
        pytest.param(noise(500) + OLD, OLD + noise(700), id="the same member"),
        pytest.param(noise(9), member(noise(600)) + noise(200_000, 5), id="a member that is next to nothing"),
        pytest.param(OLD, NEW[:-8] + bytes(8), id="a member that is broken"),
        pytest.param(OLD[5000:], noise(100) + NEW[:-3], id="members that lie across the edges"),
    ],
)  # fmt: skip
def test_all_other_deltas_are_what_they_were(base: bytes, output: bytes) -> None:
    assert encode_smallest_delta(base, output, zlib_pack) == encode_delta(base, output)
    assert encode_smallest_delta(BASE, OUTPUT, None) == encode_delta(BASE, OUTPUT)


def test_what_cannot_be_packed_again_stays_as_it_is() -> None:
    """Somebody else's packer: the second member is left alone, the first is not."""
    foreign = member(text(30_000, 3), 9)[:10] + zlib_pack(text(30_000, 3), 1)
    output = OUTPUT + foreign
    unpacking = plan_unpacking(BASE, output, 1000, zlib_pack)
    assert unpacking is not None
    assert unpacking.head.output == HEAD.output
    assert unpacking.output.endswith(foreign)
    blob = encode_smallest_delta(BASE, output, zlib_pack)
    assert decode_delta_untrusted(blob, BASE, len(output), zlib_pack) == output
    assert encode_smallest_delta(OLD, foreign, zlib_pack) == encode_delta(OLD, foreign)


def test_the_largest_members_come_first_where_there_are_too_many() -> None:
    members = [member(noise(1000 + number, number)) for number in range(SPANS_MAX + 40)]
    unpacking = plan_unpacking(b"", b"".join(members), 1, zlib_pack)
    assert unpacking is not None
    assert [span.plain_bytes for span in unpacking.head.output] == list(range(1040, 1000 + len(members)))
    large = [member(bytes([number]) * (6 << 20)) for number in range(1, 4)]
    unpacking = plan_unpacking(b"", b"".join(large), 1, zlib_pack)
    assert unpacking is not None
    assert unpacking.head.output_plain_bytes == 12 << 20 <= PLAIN_BYTES_MAX


parts = st.lists(
    st.one_of(
        st.tuples(st.just(0), st.integers(0, 2000), st.integers(1, 6)),
        st.tuples(st.sampled_from((1, 6, 9)), st.integers(0, 8000), st.integers(1, 6)),
    ),
    max_size=8,
)


def joined(mixture: list[tuple[int, int, int]]) -> bytes:
    return b"".join(member(text(size, seed), level) if level else noise(size, seed) for level, size, seed in mixture)


@settings(max_examples=60, deadline=None)
@given(parts, parts, st.integers(0, 3000), st.integers(0, 3000))
def test_any_mixture_of_members_and_other_bytes_comes_back(
    old: list[tuple[int, int, int]], new: list[tuple[int, int, int]], cut: int, cut_end: int
) -> None:
    """Cut at both ends, as runs are."""
    base, output = joined(old)[cut:], joined([*new, *old])[cut_end:-7] or b"o"
    unpacking = plan_unpacking(base, output, 0, zlib_pack)
    if unpacking is not None:
        patch = hdiffpatch.diff(unpacking.base, unpacking.output, "none", validate=False)
        blob = packed(encode_head(unpacking.head) + patch)
        assert decode_delta_untrusted(blob, base, len(output), zlib_pack) == output
    blob = encode_smallest_delta(base, output, zlib_pack)
    assert decode_delta_untrusted(blob, base, len(output), zlib_pack) == output
    assert len(blob) <= len(encode_delta(base, output))


# Heads that lie

GOOD_BASE, GOOD_OUTPUT = [list(msgspec.structs.astuple(BASE_SPAN))], [list(msgspec.structs.astuple(OUTPUT_SPAN))]


def test_the_good_head_in_the_tables_below_is_good() -> None:
    assert decode_delta_untrusted(blob_of(GOOD_BASE, GOOD_OUTPUT), BASE, len(OUTPUT), zlib_pack) == OUTPUT


@pytest.mark.parametrize(
    ("blob", "why"),
    [
        pytest.param(packed(MAGIC), "cut short", id="no length"),
        pytest.param(packed(MAGIC + bytes(4)), "cut short", id="no head"),
        pytest.param(packed(MAGIC + b"\xff\xff\xff\xff" + PATCH), "cut short", id="a head of 4 GiB"),
        pytest.param(packed(MAGIC + (HEAD_BYTES_MAX + 1).to_bytes(4, "little") + bytes(70_000)), "cut short", id="too long"),
        pytest.param(packed(CONTENT[: PATCH_BEGIN - 1]), "cut short", id="cut within the head"),
        pytest.param(packed(CONTENT[:PATCH_BEGIN]), "not a patch", id="no patch"),
        pytest.param(packed(MAGIC + b"\5\0\0\0hello" + PATCH), "schema", id="no MessagePack"),
        pytest.param(blob_of([], []), "schema", id="nothing to be packed"),
        pytest.param(blob_of([[0, 100]], GOOD_OUTPUT), "schema", id="a number short"),
        pytest.param(blob_of([[0, 100, 10, 9]], GOOD_OUTPUT), "schema", id="a number more"),
        pytest.param(blob_of([[-1, 100, 10]], GOOD_OUTPUT), "schema", id="overlapping: a negative skip"),
        pytest.param(blob_of([[0, -100, 10]], GOOD_OUTPUT), "schema", id="a negative size"),
        pytest.param(blob_of([[0, 100, 0]], GOOD_OUTPUT), "schema", id="unpacks to nothing"),
        pytest.param(blob_of([["0", 100, 10]], GOOD_OUTPUT), "schema", id="text for a number"),
        pytest.param(blob_of([[1 << 60, 100, 10]], GOOD_OUTPUT), "schema", id="an exbibyte"),
        pytest.param(blob_of([[0, 100, PLAIN_BYTES_MAX + 1]], GOOD_OUTPUT), "schema", id="unpacks to too much"),
        pytest.param(blob_of([[0, 100, PLAIN_BYTES_MAX]] * 2, GOOD_OUTPUT), "at most", id="too much together"),
        pytest.param(blob_of(GOOD_BASE, [[0, PLAIN_BYTES_MAX, 9]] * 2), "at most", id="too much to pack together"),
        pytest.param(blob_of(GOOD_BASE, [[0, 100, 0]]), "schema", id="level 0"),
        pytest.param(blob_of(GOOD_BASE, [[0, 100, 10]]), "schema", id="level 10"),
        pytest.param(blob_of([[0, 100, 10]] * (SPANS_MAX + 1), GOOD_OUTPUT), "schema", id="too many in the base"),
        pytest.param(blob_of(GOOD_BASE, [[0, 1, 9]] * (SPANS_MAX + 1)), "schema", id="too many to pack"),
        pytest.param(blob_of(GOOD_BASE, [[0, 1, 9]] * 1_000_000), "cut short", id="a million"),
        pytest.param(blob_of([[0, len(BASE) + 1, 10]], GOOD_OUTPUT), "behind", id="ends behind the base"),
        pytest.param(blob_of([[len(BASE), 9, 10]], GOOD_OUTPUT), "behind", id="begins behind the base"),
        pytest.param(blob_of([[0, 100, 10]], GOOD_OUTPUT), "inflate|stream", id="no member in the base"),
        pytest.param(blob_of([[3010, len(OLD) - 10, 10]], GOOD_OUTPUT), "stream", id="another size than the member's"),
        pytest.param(blob_of([], GOOD_OUTPUT), "failed", id="a patch for another base"),
        pytest.param(blob_of(GOOD_BASE, [[0, 9, 9]]), "states", id="a patch with more output than that"),
    ],
)  # fmt: skip
def test_a_hostile_head_is_refused_before_anything_is_packed(blob: bytes, why: str) -> None:
    with pytest.raises(UntrustedBytes, match=why):
        decode_delta_untrusted(blob, BASE, len(OUTPUT), never)


@pytest.mark.parametrize(
    "output",
    [
        pytest.param([[2910, len(NEW_LOG) + 3100, 9]], id="behind the output"),
        pytest.param([[len(OUTPUT) * 4, len(NEW_LOG), 9]], id="begins behind the output"),
        pytest.param([[0, len(NEW_LOG), 1]], id="elsewhere, at another level"),
        pytest.param([[2910, len(NEW_LOG) - 1, 9], [0, 1, 9]], id="in two parts"),
    ],
)
def test_a_head_that_packs_what_it_should_not_is_refused(output: list[Any]) -> None:
    with pytest.raises(UntrustedBytes):
        decode_delta_untrusted(blob_of(GOOD_BASE, output), BASE, len(OUTPUT), zlib_pack)


def test_a_packer_that_packs_otherwise_gives_another_size_or_none_of_the_chunks() -> None:
    with pytest.raises(UntrustedBytes, match="another number of bytes"):
        decode_delta_untrusted(BLOB, BASE, len(OUTPUT), lambda plain, _level: zlib_pack(plain, 1))
    wrong = decode_delta_untrusted(BLOB, BASE, len(OUTPUT), lambda _plain, _level: bytes(len(NEW) - 10))
    assert wrong != OUTPUT


def test_a_packer_that_fails_is_told_apart_from_a_blob_that_lies() -> None:
    def fails(_plain: bytes | memoryview, _level: int) -> bytes:
        raise CannotPack("broken")

    with pytest.raises(CannotPack, match="broken"):
        decode_delta_untrusted(BLOB, BASE, len(OUTPUT), fails)
    with pytest.raises(CannotPack, match="broken"):
        encode_smallest_delta(BASE, OUTPUT, fails)


_PEAK = """
import sys
from pathlib import Path
from gzip_samples import zlib_pack
from pcm_p2p.content.delta.blob import decode_delta_untrusted
from pcm_p2p.errors import UntrustedBytes
base = Path(sys.argv[1]).read_bytes()
def peak():
    return next(int(line.split()[1]) >> 10 for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
before = peak()
for path in sys.argv[2:]:
    try:
        decode_delta_untrusted(Path(path).read_bytes(), base, 1 << 20, zlib_pack)
        sys.exit("was not refused: " + path)
    except UntrustedBytes:
        pass
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
def test_bombs_in_members_do_not_take_more_memory_than_is_bounded(tmp_path: Path) -> None:
    """One megabyte of base that inflates to a gigabyte; a patch that states as much; a stream of zeros."""
    bomb = member(bytes(15 << 20))
    base = bomb * 60
    span = [10, len(bomb) - 10, 15 << 20]
    copies = hdiffpatch.diff(bytes(1 << 20), bytes(24 << 20), "none", validate=False)
    blobs = {
        "all of them": blob_of([span] * 60, [[0, 1, 9]]),
        "one, told smaller": blob_of([[10, len(bomb) - 10, 100]], [[0, 1, 9]]),
        "one, all over": blob_of([[10, len(base) - 10, 15 << 20]], [[0, 1, 9]]),
        "the patch": blob_of([], [[0, PLAIN_BYTES_MAX, 9]], copies),
        "the stream": packed(MAGIC + bytes(100 << 20)),
    }
    for name, blob in blobs.items():
        (tmp_path / name).write_bytes(blob)
    (tmp_path / "base").write_bytes(base)
    command = [sys.executable, "-c", _PEAK, str(tmp_path / "base"), *(str(tmp_path / name) for name in blobs)]
    environment = {"PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 110, "MiB"


def test_the_head_of_the_tests_is_what_is_published() -> None:
    assert inflate_untrusted(NEW[10:], OUTPUT_SPAN.plain_bytes) == NEW_LOG
    assert encode_head(Head(HEAD.base, HEAD.output)) == CONTENT[:PATCH_BEGIN]
