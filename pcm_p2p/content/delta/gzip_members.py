"""The gzip members (RFC 1952) that lie in other bytes: where they are, and what is in them. Pure.

A member is a header, a deflate stream and eight bytes of trailer. Only one that inflates to what its trailer says is found, so
that three bytes which look like a header cost a look and nothing else.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from pcm_p2p.errors import UntrustedBytes

PACKED_BYTES_MIN = 512
"""Choice: below that starting a process at the endpoint costs more than the bytes that it saves."""
PLAIN_BYTES_MAX = 16 << 20
"""Choice: as much as a run of chunks. The largest changelog among eleven Debian packages has 5 MB (the kernel's)."""
INFLATED_BYTES_MAX = 4 * PLAIN_BYTES_MAX
"""What a search may inflate, whatever comes of it: a quarter of a second. What looks like members behind that is left alone."""
_MAGIC = b"\x1f\x8b\x08"
_HEADER_BYTES, _HEADER_BYTES_MAX = 10, 64 << 10
_TRAILER_BYTES = 8
_LOOK_BYTES = 1 << 10
"""What a look costs at least, as bytes inflated: data may be made of nothing but headers."""
_STEP_BYTES, _PIECE_BYTES = 64 << 10, 1 << 20
_CRC_FLAG, _EXTRA_FLAG, _NAME_FLAG, _COMMENT_FLAG, _FLAGS_KNOWN = 2, 4, 8, 16, 0x1F


@dataclass(frozen=True, slots=True)
class GzipMember:
    """Its stream and trailer are bytes ``begin`` … ``end - 1`` and hold ``plain_bytes``; the header lies before them.

    ``effort``: what the header says of the level (XFL): 2 the highest, 4 the lowest, 0 one of those between.
    """

    begin: int
    end: int
    plain_bytes: int
    effort: int


def find_members(data: bytes) -> list[GzipMember]:
    """The members in ``data`` in order. Those in others are not looked for, nor those below ``PACKED_BYTES_MIN``."""
    found, at, left = list[GzipMember](), 0, INFLATED_BYTES_MAX
    while left > 0 and (at := data.find(_MAGIC, at)) >= 0:
        begin = _stream_of(data, at)
        end, plain_bytes, good = _inflated(data, begin, min(left, PLAIN_BYTES_MAX)) if begin else (0, 0, False)
        left -= plain_bytes + _LOOK_BYTES
        if not good:
            at += 1
            continue
        if end - begin >= PACKED_BYTES_MIN:
            found.append(GzipMember(begin, end, plain_bytes, data[at + 8]))
        at = end
    return found


def inflate_untrusted(packed: bytes | memoryview, plain_bytes: int) -> bytes:
    """The ``plain_bytes`` bytes in a stream with its trailer, which is not looked at. Raises ``UntrustedBytes`` only."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(packed[:-_TRAILER_BYTES], plain_bytes + 1)
    except (zlib.error, MemoryError, ValueError, OverflowError) as error:
        raise UntrustedBytes(f"a gzip member does not inflate: {error}") from None
    if len(plain) != plain_bytes or not inflater.eof or inflater.unused_data:
        raise UntrustedBytes(f"a gzip member is not one stream of {plain_bytes} bytes")
    return plain


def unpacked(data: bytes) -> bytes:
    """``data`` with what its members hold in their place."""
    parts, at = list[bytes | memoryview](), 0
    for member in find_members(data):
        parts += (data[at : member.begin], inflate_untrusted(data[member.begin : member.end], member.plain_bytes))
        at = member.end
    return b"".join((*parts, data[at:])) if parts else data


def _stream_of(data: bytes, at: int) -> int:
    """Where the stream of a header at ``at`` begins; 0 if that is no header."""
    header = data[at : at + _HEADER_BYTES]
    if len(header) < _HEADER_BYTES or header[3] & ~_FLAGS_KNOWN:
        return 0
    flags, begin = header[3], at + _HEADER_BYTES
    if flags & _EXTRA_FLAG:
        begin += 2 + int.from_bytes(data[begin : begin + 2], "little")
    for flag in (_NAME_FLAG, _COMMENT_FLAG):
        if flags & flag:
            zero = data.find(b"\0", begin, at + _HEADER_BYTES_MAX)
            if zero < 0:
                return 0
            begin = zero + 1
    return begin + 2 * bool(flags & _CRC_FLAG)


def _inflated(data: bytes, begin: int, plain_bytes_max: int) -> tuple[int, int, bool]:
    """Where the member ends whose stream begins at ``begin``, how many bytes were inflated, and whether they are what it says."""
    inflater, view, at = zlib.decompressobj(-zlib.MAX_WBITS), memoryview(data), begin
    size, check = 0, 0
    try:
        while not inflater.eof and size <= plain_bytes_max:
            # In small steps: the inflater copies what it does not use.
            given: bytes | memoryview = inflater.unconsumed_tail
            if not given:
                given, at = view[at : at + _STEP_BYTES], at + _STEP_BYTES
            if not given:
                return 0, size, False
            piece = inflater.decompress(given, _PIECE_BYTES)
            size, check = size + len(piece), zlib.crc32(piece, check)
    except zlib.error:
        return 0, size, False
    end = min(at, len(data)) - len(inflater.unused_data) + _TRAILER_BYTES
    if not inflater.eof or not 0 < size <= plain_bytes_max or end > len(data):
        return 0, size, False
    stated = data[end - _TRAILER_BYTES : end]
    return end, size, stated == check.to_bytes(4, "little") + size.to_bytes(4, "little")
