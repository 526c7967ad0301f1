"""Frames: how messages and bulk bytes share one stream. Sans I/O: bytes in, frames out, and the reverse.

::

    frame   = u32 length (big-endian, of what follows) | u8 kind | body
    control = kind 0 | MessagePack of one message (``messages``)
    bulk    = kind 1 | u8 flags (1: last piece of this answer) | u32 request | piece of the answer

An answer of any size travels as pieces, so that a control frame never waits behind more than one piece. A sender cuts at
``BULK_PIECE_SIZE_BYTES``; a receiver takes up to ``BULK_PIECE_SIZE_BYTES_MAX``: the cut may change within the protocol.

A decoder never holds more than one frame and what was fed last; a length above the ceiling of its kind is refused when its
fifth byte arrives, before anything is buffered for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import msgspec

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.wire.messages import AnyMessage, Message

CONTROL_SIZE_BYTES_MAX = 1 << 20
"""Choice: the largest message is ``RecordsPut`` with one record of 256 KiB or a batch of small ones; a full roster is 60 KiB."""
BULK_PIECE_SIZE_BYTES = 64 << 10
"""Choice: half a millisecond of a gigabit link; bench/session.py shows what larger pieces would gain."""
BULK_PIECE_SIZE_BYTES_MAX = 256 << 10

_KIND_CONTROL = 0
_KIND_BULK = 1
_FLAG_LAST = 1
_HEAD = struct.Struct(">IB")
_BULK_HEAD = struct.Struct(">IBBI")
_BULK_EXTRA = _BULK_HEAD.size - _HEAD.size


@dataclass(frozen=True, slots=True)
class ControlFrame:
    """One encoded message; ``decode_message_untrusted`` gives it its type."""

    body: bytes


@dataclass(frozen=True, slots=True)
class BulkFrame:
    """One piece of the answer to ``request``; ``last`` ends the answer."""

    request: int
    data: bytes
    last: bool


Frame = ControlFrame | BulkFrame


def encode_control(message: Message) -> bytes:
    """A message as a complete frame. Raises ``ValueError`` if it is larger than a receiver would take."""
    body = _encoder.encode(message)
    if len(body) > CONTROL_SIZE_BYTES_MAX:
        raise ValueError(
            f"{type(message).__name__} has {len(body)} bytes; at most {CONTROL_SIZE_BYTES_MAX} fit a frame"
        )
    return _HEAD.pack(1 + len(body), _KIND_CONTROL) + body


def encode_bulk(request: int, data: bytes | memoryview, *, last: bool) -> bytes:
    """A piece of at most ``BULK_PIECE_SIZE_BYTES_MAX`` as a complete frame."""
    if len(data) > BULK_PIECE_SIZE_BYTES_MAX:
        raise ValueError(f"a piece of {len(data)} bytes does not fit a frame")
    return b"".join((_BULK_HEAD.pack(1 + _BULK_EXTRA + len(data), _KIND_BULK, int(last), request), data))


class FrameDecoder:
    """Turns a stream of bytes, cut anywhere, into frames. After an error it refuses everything: the stream is lost."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._broken = False

    def feed_untrusted(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Take the next bytes; return the frames that are complete now. Raises ``UntrustedBytes`` and nothing else."""
        if self._broken:
            raise UntrustedBytes("bytes after a broken frame")
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start = 0
        try:
            while len(buffer) - start >= _HEAD.size:
                length, kind = _HEAD.unpack_from(buffer, start)
                _check_length(length, kind)
                end = start + _HEAD.size + length - 1
                if len(buffer) < end:
                    break
                with memoryview(buffer) as view, view[start:end] as frame:
                    frames.append(_frame(kind, frame))
                start = end
        except UntrustedBytes:
            self._broken = True
            self._buffer = bytearray()
            raise
        if start:
            del buffer[:start]
        return frames

    @property
    def in_the_middle(self) -> bool:
        """Whether the bytes so far end inside a frame: an end of the stream here is a truncation."""
        return bool(self._buffer)


def _check_length(length: int, kind: int) -> None:
    if kind == _KIND_CONTROL:
        if not 2 <= length <= 1 + CONTROL_SIZE_BYTES_MAX:
            raise UntrustedBytes(f"a control frame of {length} bytes is refused")
    elif kind == _KIND_BULK:
        if not 1 + _BULK_EXTRA <= length <= 1 + _BULK_EXTRA + BULK_PIECE_SIZE_BYTES_MAX:
            raise UntrustedBytes(f"a bulk frame of {length} bytes is refused")
    else:
        raise UntrustedBytes(f"a frame of kind {kind} is not known")


def _frame(kind: int, view: memoryview) -> Frame:
    if kind == _KIND_CONTROL:
        return ControlFrame(bytes(view[_HEAD.size :]))
    _, _, flags, request = _BULK_HEAD.unpack_from(view)
    if flags & ~_FLAG_LAST:
        raise UntrustedBytes(f"bulk flags {flags:#x} are not known")
    return BulkFrame(request, bytes(view[_BULK_HEAD.size :]), bool(flags & _FLAG_LAST))


def _plain(value: object) -> bytes:
    """Typed ids are byte strings to every reader but this encoder."""
    if isinstance(value, bytes):
        return bytes(value)
    raise TypeError(f"{type(value).__name__} cannot be sent")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def decode_message_untrusted(body: bytes) -> AnyMessage:
    """The body of a control frame to its message; raises ``UntrustedBytes`` and nothing else."""
    if len(body) > CONTROL_SIZE_BYTES_MAX:
        raise UntrustedBytes(f"a message of {len(body)} bytes is refused")
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"message does not fit its schema: {error}") from None
