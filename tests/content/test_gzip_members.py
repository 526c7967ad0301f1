"""Gzip members in other bytes: all that are whole and true are found, nothing else is, and looking is bounded."""

from __future__ import annotations

import gzip
import time

import pytest
from content_samples import noise, text
from gzip_samples import member
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.content.delta import gzip_members
from pcm_p2p.content.delta.gzip_members import PLAIN_BYTES_MAX, find_members, inflate_untrusted, unpacked
from pcm_p2p.errors import UntrustedBytes

PLAIN = text(20_000)
MEMBER = member(PLAIN)


def plains(data: bytes) -> list[bytes]:
    return [inflate_untrusted(data[each.begin : each.end], each.plain_bytes) for each in find_members(data)]


@pytest.mark.parametrize(
    "packed",
    [
        MEMBER,
        member(PLAIN, name=b"changelog"),
        member(PLAIN, extra=b"12345"),
        member(PLAIN, comment=b"hello"),
        member(PLAIN, name=b"a", extra=b"b", comment=b"c"),
        gzip.compress(PLAIN, 6, mtime=9),
    ],
    ids=["plain", "name", "extra field", "comment", "everything", "the standard library's"],
)
def test_members_with_any_header_are_found_between_other_bytes(packed: bytes) -> None:
    data = noise(500) + packed + noise(500, 2) + packed + packed
    assert plains(data) == [PLAIN] * 3
    first = find_members(data)[0]
    assert (data[500 : first.begin], first.end) == (packed[: first.begin - 500], 500 + len(packed))
    assert unpacked(data).count(PLAIN) == 3


@pytest.mark.parametrize(("level", "effort"), [(9, 2), (6, 0), (1, 4)])
def test_the_header_tells_how_hard_it_was_packed(level: int, effort: int) -> None:
    assert [each.effort for each in find_members(member(PLAIN, level))] == [effort]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x1f\x8b\x08", id="three bytes"),
        pytest.param(MEMBER[:10], id="a header"),
        pytest.param(MEMBER[:-1], id="a byte short"),
        pytest.param(MEMBER[:4000], id="half"),
        pytest.param(MEMBER[:-8] + bytes(8), id="wrong check"),
        pytest.param(MEMBER[:-4] + b"\1\0\0\0", id="wrong size"),
        pytest.param(b"\x1f\x8b\x08\xe0" + MEMBER[4:], id="flags that nobody knows"),
        pytest.param(
            b"\x1f\x8b\x08\x08" + MEMBER[4:10] + b"n" * 70_000 + b"\0" + MEMBER[10:], id="a name without an end"
        ),
        pytest.param(member(noise(100)), id="too small to be worth a process"),
        pytest.param(member(b""), id="empty"),
        pytest.param(noise(100_000), id="noise"),
    ],
)
def test_what_is_no_member_is_left_alone(data: bytes) -> None:
    assert find_members(data) == []
    assert unpacked(data) == data
    assert plains(data + MEMBER) == [PLAIN], "and hides nothing behind it"


def test_a_bomb_is_left_alone_and_what_follows_it_is_found() -> None:
    bomb = member(bytes(PLAIN_BYTES_MAX + 1))
    assert len(bomb) < 20_000
    assert plains(bomb + MEMBER) == [PLAIN]
    assert plains(member(bytes(PLAIN_BYTES_MAX)) + MEMBER) == [bytes(PLAIN_BYTES_MAX), PLAIN]


def test_many_bombs_and_many_headers_cost_no_more_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip_members, "INFLATED_BYTES_MAX", 3 << 20)
    begun = time.process_time()
    bombs = member(bytes(1 << 20)) * 2000
    assert len(find_members(bombs)) == 2, "the third does not fit with what the headers count"
    assert find_members(MEMBER[:10] * 100_000) == []
    assert time.process_time() - begun < 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 3000), st.sampled_from((1, 6, 9))), max_size=6))
def test_any_mixture_is_unpacked_where_members_are(parts: list[tuple[bytes, int, int]]) -> None:
    """Other bytes are without the two that a member begins with."""
    data, expected = b"", b""
    for drawn, size, level in parts:
        between, plain = drawn.replace(b"\x1f\x8b", b"\x1f\x8c"), noise(size, size)
        packed = member(plain, level)
        data += between + packed
        expected += between + (packed[:10] + plain if len(packed) - 10 >= gzip_members.PACKED_BYTES_MIN else packed)
    assert unpacked(data) == expected


@pytest.mark.parametrize(
    ("packed", "size", "why"),
    [
        (MEMBER[10:], len(PLAIN) - 1, "not one stream"),
        (MEMBER[10:], len(PLAIN) + 1, "not one stream"),
        (MEMBER[10:-20], len(PLAIN), "not one stream"),
        (MEMBER[10:] + b"more", len(PLAIN), "not one stream"),
        (MEMBER[11:], len(PLAIN), "inflate|not one stream"),
        (noise(500), 700, "inflate|not one stream"),
        (b"", 1, "not one stream"),
        (member(bytes(8 << 20))[10:], 10, "not one stream"),
    ],
    ids=["less", "more", "cut short", "bytes behind it", "shifted", "noise", "nothing", "bomb"],
)
def test_a_stream_that_lies_is_refused(packed: bytes, size: int, why: str) -> None:
    with pytest.raises(UntrustedBytes, match=why):
        inflate_untrusted(packed, size)
