"""Frames and messages: one golden table read in three ways, ceilings, and noise."""

from __future__ import annotations

import contextlib
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import ChunkId, DeviceId
from pcm_p2p.wire.framing import (
    BULK_PIECE_SIZE_BYTES_MAX,
    CONTROL_SIZE_BYTES_MAX,
    BulkFrame,
    ControlFrame,
    Frame,
    FrameDecoder,
    decode_message_untrusted,
    encode_bulk,
    encode_control,
)
from pcm_p2p.wire.messages import (
    AcksPut,
    Bye,
    ChunkGet,
    Claim,
    ClaimedSegment,
    Digest,
    Drop,
    FileGet,
    Handover,
    Have,
    Hello,
    Holdings,
    Message,
    Ping,
    Pong,
    RecordsPut,
    Refused,
    Roster,
    RosterEntry,
    Route,
    SegmentFailed,
    SiteDigest,
)

ID16, ID32 = bytes(range(16)), bytes(range(32))
MESSAGES: list[Message] = [
    Hello(1, "0" * 32, "berlin", "device", 8741, 1_700_000_000, 8, "pcm_p2p 0.1.0"),
    Hello(2, "0" * 32, "berlin", "device", 8741, 1_700_000_000, 8, "pcm_p2p 0.2.0", 13),
    Hello(3, "0" * 32, "berlin", "device", 8741, 1_700_000_000, 8, "pcm_p2p 0.3.0", 13, ID16),
    Ping(0),
    Pong(0xFFFF_FFFF),
    Roster(()),
    Roster((RosterEntry(ID16, "10.0.0.5", 8741, 7, 3, "berlin", 16),)),
    Digest(1, 2, 3, 4, ID32),
    Holdings(ID32, 9, b"\xff\x01"),
    Holdings(ID32, 9, b"\xff\x01", keeps=True),
    Holdings(ID32, 9, b"\xff\x01", lacks_gzip=True),
    Have(ID32, (0, 1, 4_000_000_000)),
    Drop(ID32, ()),
    Claim(ID32, ID16, 1, 5_000, (ClaimedSegment(3, 100),)),
    SegmentFailed(ID32, 3, "404", 60_000),
    Route(True),
    Handover(ID32, (0, 65_535)),
    SiteDigest("berlin", 1, 2, 3, 4, ID32),
    ChunkGet(1, ID32),
    FileGet(2, "metadata/timestamp.json"),
    RecordsPut(3, (b"record", b"")),
    AcksPut((b"ack",)),
    Refused(4, "busy"),
    Bye("leaving"),
]
GOLDEN: list[tuple[bytes, Frame]] = [
    (bytes.fromhex("00000004 00 920207"), ControlFrame(b"\x92\x02\x07")),
    (bytes.fromhex("00000008 01 00 0000000a 6869"), BulkFrame(10, b"hi", False)),
    (bytes.fromhex("00000006 01 01 00000001"), BulkFrame(1, b"", True)),
]


@pytest.mark.parametrize(("encoded", "frame"), GOLDEN)
def test_golden_frames_are_written_as_they_are_read(encoded: bytes, frame: Frame) -> None:
    assert FrameDecoder().feed_untrusted(encoded) == [frame]
    if isinstance(frame, BulkFrame):
        assert encode_bulk(frame.request, frame.data, last=frame.last) == encoded
    else:
        assert encode_control(decode_message_untrusted(frame.body)) == encoded


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_survives_the_wire_whole_bytewise_and_with_a_tail(message: Message) -> None:
    encoded = encode_control(message)
    tail = encode_bulk(7, b"tail", last=True)

    whole = FrameDecoder().feed_untrusted(encoded)

    bytewise = FrameDecoder()
    one_by_one = [frame for byte in encoded for frame in bytewise.feed_untrusted(bytes([byte]))]
    assert not bytewise.in_the_middle

    tailed = FrameDecoder().feed_untrusted(encoded + tail[:5]), FrameDecoder().feed_untrusted(encoded + tail)

    assert whole == one_by_one == tailed[0] == tailed[1][:1]
    assert tailed[1][1:] == [BulkFrame(7, b"tail", True)]
    [frame] = whole
    assert isinstance(frame, ControlFrame)
    assert decode_message_untrusted(frame.body) == message


def test_typed_ids_are_sent_as_their_bytes() -> None:
    assert encode_control(ChunkGet(1, ChunkId(ID32))) == encode_control(ChunkGet(1, ID32))
    assert encode_control(Claim(ID32, DeviceId(ID16), 0, 1, ())) == encode_control(Claim(ID32, ID16, 0, 1, ()))


@given(cuts=st.lists(st.integers(0, 400), max_size=12), sizes=st.lists(st.integers(0, 90), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_frames_do_not_depend_on_how_the_stream_was_cut(cuts: list[int], sizes: list[int]) -> None:
    frames = [BulkFrame(number, bytes([number]) * size, number % 2 == 0) for number, size in enumerate(sizes)]
    stream = b"".join(encode_bulk(frame.request, frame.data, last=frame.last) for frame in frames)
    decoder, read, last = FrameDecoder(), list[Frame](), 0
    for cut in [*sorted(min(cut, len(stream)) for cut in cuts), len(stream)]:
        read += decoder.feed_untrusted(stream[last:cut])
        last = cut
    assert read == frames
    assert not decoder.in_the_middle


@pytest.mark.parametrize(
    "head",
    [
        struct.pack(">IB", 2 + CONTROL_SIZE_BYTES_MAX, 0),
        struct.pack(">IB", 7 + BULK_PIECE_SIZE_BYTES_MAX, 1),
        struct.pack(">IB", 0xFFFF_FFFF, 1),
        struct.pack(">IB", 0, 0),
        struct.pack(">IB", 1, 0),
        struct.pack(">IB", 5, 1),
        struct.pack(">IB", 10, 2),
    ],
)
def test_a_length_outside_its_bounds_is_refused_at_the_fifth_byte(head: bytes) -> None:
    decoder = FrameDecoder()
    assert decoder.feed_untrusted(head[:4]) == []
    with pytest.raises(UntrustedBytes):
        decoder.feed_untrusted(head[4:])
    with pytest.raises(UntrustedBytes, match="after a broken frame"):
        decoder.feed_untrusted(encode_control(Ping(1)))


def test_unknown_bulk_flags_are_refused() -> None:
    frame = bytearray(encode_bulk(1, b"x", last=True))
    frame[5] = 3
    with pytest.raises(UntrustedBytes):
        FrameDecoder().feed_untrusted(frame)


def test_what_a_receiver_would_refuse_is_not_sent() -> None:
    with pytest.raises(ValueError, match="fit a frame"):
        encode_control(RecordsPut(1, (bytes(CONTROL_SIZE_BYTES_MAX),)))
    with pytest.raises(ValueError, match="fit a frame"):
        encode_bulk(1, bytes(BULK_PIECE_SIZE_BYTES_MAX + 1), last=True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([99, 1]),
        msgspec.msgpack.encode([2]),
        msgspec.msgpack.encode([2, -1]),
        msgspec.msgpack.encode([2, 1 << 32]),
        msgspec.msgpack.encode(["Ping", 1]),
        msgspec.msgpack.encode([16, 1, bytes(31)]),
        msgspec.msgpack.encode([32, "x" * 257]),
        msgspec.msgpack.encode([4, [[ID16, "h", 1, 1, 4, "s", 0]]]),
        msgspec.msgpack.encode([4, [[ID16, "h", 1, 1, 0, "s", 0]] * 513]),
        msgspec.msgpack.encode([32, b"\xff\xfe"]),
        b"\x92\x20\xa2\xff\xfe",  # a text that is not UTF-8
        msgspec.msgpack.encode([2, 1]) + b"\x00",
        b"\x92\x20" + b"\x91" * 5_000 + b"\x01",
        bytes(CONTROL_SIZE_BYTES_MAX + 1),
    ],
)
def test_messages_that_do_not_fit_their_schema_are_refused(body: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        decode_message_untrusted(body)


def test_fields_that_a_newer_version_appended_are_ignored() -> None:
    assert decode_message_untrusted(msgspec.msgpack.encode([2, 7, "new", [1, 2]])) == Ping(7)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_noise_gives_messages_or_untrusted_bytes_and_nothing_else(noise: bytes) -> None:
    with contextlib.suppress(UntrustedBytes):
        assert isinstance(decode_message_untrusted(noise), Message)


@given(st.lists(st.binary(max_size=40), max_size=10))
@settings(max_examples=200, deadline=None)
def test_noise_gives_frames_or_untrusted_bytes_and_never_hoards(pieces: list[bytes]) -> None:
    decoder = FrameDecoder()
    try:
        for piece in pieces:
            decoder.feed_untrusted(piece)
    except UntrustedBytes:
        assert not decoder.in_the_middle
