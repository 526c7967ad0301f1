"""What a delta does with gzip members: unpack those of its base, patch, pack those of its output again. Pure, but for ``Pack``.

A changelog that grew by a line is new as a whole once it is packed. So members that old and new have not in common are unpacked
on both sides before they are compared. The publisher packs each one of the new side again and compares: what the program
``gzip`` does not make the same, byte for byte, stays as it is. Over eleven Debian updates that was none.

The *head* says so to the endpoint. It lies before the patch: ``MAGIC``, its length (u32, little-endian), a ``Head`` in
MessagePack. Spans are told by what lies between them, so that they are in order and apart whatever the numbers are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from blake3 import blake3

from pcm_p2p.content.delta.gzip_members import PLAIN_BYTES_MAX, GzipMember, find_members, inflate_untrusted
from pcm_p2p.content.manifest import BASE_BYTES_MAX, SEGMENT_OUTPUT_BYTES_MAX
from pcm_p2p.errors import UntrustedBytes

MAGIC = b"PCMGZIP\0"
SPANS_MAX = 1024
"""Choice: on each side. Packing starts a process for each, which takes 2 ms."""
HEAD_BYTES_MAX = 64 << 10
"""Twice what ``SPANS_MAX`` spans of the largest numbers take."""
_LENGTH_BYTES = 4
_LEVELS = {2: 9, 0: 6, 4: 1}
"""What is likely to have made a member, by its ``effort``: the program says 2 of level 9, 4 of 1, and 0 of those between,
of which 6 is what it takes by itself."""
_GAIN_SHARE = 128
"""Choice: members that are less than this part of the delta are not worth a second one."""


class CannotPack(Exception):
    """There is no program ``gzip`` here that packs as it should; the message says why."""


Pack = Callable[[bytes | memoryview, int], bytes]
"""Gives what ``gzip -n -LEVEL`` makes of bytes, without the header. Raises ``CannotPack`` and nothing else."""


class BaseSpan(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``skip`` bytes behind the span before: ``packed_bytes`` of stream and trailer, in whose place ``plain_bytes`` are put."""

    skip: Annotated[int, msgspec.Meta(ge=0, le=BASE_BYTES_MAX)]
    packed_bytes: Annotated[int, msgspec.Meta(ge=9, le=BASE_BYTES_MAX)]
    plain_bytes: Annotated[int, msgspec.Meta(ge=1, le=PLAIN_BYTES_MAX)]


class OutputSpan(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``skip`` bytes behind the span before: ``plain_bytes`` of what the patch yields, to be packed at ``level``."""

    skip: Annotated[int, msgspec.Meta(ge=0, le=SEGMENT_OUTPUT_BYTES_MAX)]
    plain_bytes: Annotated[int, msgspec.Meta(ge=1, le=PLAIN_BYTES_MAX)]
    level: Annotated[int, msgspec.Meta(ge=1, le=9)]


class Head(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    base: Annotated[tuple[BaseSpan, ...], msgspec.Meta(max_length=SPANS_MAX)]
    output: Annotated[tuple[OutputSpan, ...], msgspec.Meta(min_length=1, max_length=SPANS_MAX)]

    @property
    def output_plain_bytes(self) -> int:
        """What is packed again, together."""
        return sum(span.plain_bytes for span in self.output)


_decoder = msgspec.msgpack.Decoder(Head)


def encode_head(head: Head) -> bytes:
    packed = msgspec.msgpack.encode(head)
    return MAGIC + len(packed).to_bytes(_LENGTH_BYTES, "little") + packed


def decode_head_untrusted(content: bytes) -> tuple[Head, int]:
    """The head of ``content`` and where the patch begins. Raises ``UntrustedBytes`` and nothing else.

    Of either side the spans hold at most ``PLAIN_BYTES_MAX`` together.
    """
    begin = len(MAGIC) + _LENGTH_BYTES
    size = int.from_bytes(content[len(MAGIC) : begin], "little")
    if not content.startswith(MAGIC) or not 1 <= size <= min(HEAD_BYTES_MAX, len(content) - begin):
        raise UntrustedBytes(f"delta: its head of {size} bytes is cut short, or none of at most {HEAD_BYTES_MAX}")
    try:
        head = _decoder.decode(memoryview(content)[begin : begin + size])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"delta: its head does not fit its schema: {error}") from None
    for side, spans in (("base", head.base), ("output", head.output)):
        if (total := sum(span.plain_bytes for span in spans)) > PLAIN_BYTES_MAX:
            raise UntrustedBytes(f"delta: its {side} unpacks to {total} bytes; at most {PLAIN_BYTES_MAX} are unpacked")
    return head, begin + size


def unpack_base_untrusted(base: bytes, spans: Sequence[BaseSpan]) -> bytes:
    """``base`` with what its spans hold in their place. Raises ``UntrustedBytes`` and nothing else."""
    view, at, parts = memoryview(base), 0, list[bytes | memoryview]()
    for span in spans:
        begin = at + span.skip
        parts.append(view[at:begin])
        at = begin + span.packed_bytes
        if at > len(base):
            raise UntrustedBytes(f"delta: a gzip member of its base ends at {at}, behind the {len(base)} bytes of it")
        parts.append(inflate_untrusted(view[begin:at], span.plain_bytes))
    return b"".join((*parts, view[at:]))


def pack_output_untrusted(plain: bytes, spans: Sequence[OutputSpan], output_bytes: int, pack: Pack) -> bytes:
    """``plain`` with its spans packed, which are to be ``output_bytes``. Raises ``UntrustedBytes``, and what ``pack`` raises."""
    view, at, parts, size = memoryview(plain), 0, list[bytes | memoryview](), 0
    for span in spans:
        begin, end = at + span.skip, at + span.skip + span.plain_bytes
        if end > len(plain):
            raise UntrustedBytes(
                f"delta: what is to be packed ends at {end}, behind the {len(plain)} bytes of the output"
            )
        parts += (view[at:begin], pack(view[begin:end], span.level))
        size, at = size + len(parts[-2]) + len(parts[-1]), end
        if size > output_bytes:
            break
    size += len(plain) - at
    if size != output_bytes:
        raise UntrustedBytes(f"a delta yields another number of bytes than the {output_bytes} of its chunks")
    return b"".join((*parts, view[at:]))


@dataclass(frozen=True, slots=True)
class Unpacking:
    """Members that base and output have not in common, and both sides without them."""

    head: Head
    base: bytes
    output: bytes


def plan_unpacking(base: bytes, output: bytes, delta_bytes: int, pack: Pack) -> Unpacking | None:
    """What to unpack for a delta that has ``delta_bytes`` without that; None if nothing is worth it, or can be packed again.

    Raises ``CannotPack``. Deterministic: the largest members come first where there are too many.
    """
    of_base, of_output = _named(base), _named(output)
    new = _largest(member for name, member in of_output if name not in dict(of_base))
    if not new or _GAIN_SHARE * sum(member.end - member.begin for member in new) < delta_bytes:
        return None
    tried = [(member, _level_of(output, member, pack)) for member in new]
    packable = {member: level for member, level in tried if level}
    if not packable:
        return None
    old = _spans_of(_largest(member for name, member in of_base if name not in dict(of_output)))
    spans = _spans_of(list(packable))
    again = [
        OutputSpan(span.skip, span.plain_bytes, level) for span, level in zip(spans, packable.values(), strict=True)
    ]
    head = Head(tuple(old), tuple(again))
    return Unpacking(head, unpack_base_untrusted(base, old), unpack_base_untrusted(output, spans))


def _named(data: bytes) -> list[tuple[bytes, GzipMember]]:
    """The members of ``data`` with a hash of each."""
    view = memoryview(data)
    return [(blake3(view[member.begin : member.end]).digest(), member) for member in find_members(data)]


def _largest(members: Iterable[GzipMember]) -> list[GzipMember]:
    """In order, as many as a head may have."""
    chosen, left = list[GzipMember](), PLAIN_BYTES_MAX
    for member in sorted(members, key=lambda member: (member.begin - member.end, member.begin)):
        if member.plain_bytes <= left and len(chosen) < SPANS_MAX:
            chosen.append(member)
            left -= member.plain_bytes
    return sorted(chosen, key=lambda member: member.begin)


def _spans_of(members: Sequence[GzipMember]) -> list[BaseSpan]:
    ends = (0, *(member.end for member in members))
    return [
        BaseSpan(member.begin - end, member.end - member.begin, member.plain_bytes)
        for end, member in zip(ends, members, strict=False)
    ]


def _level_of(data: bytes, member: GzipMember, pack: Pack) -> int:
    """At which level ``member`` is made again, byte for byte; 0 if at none."""
    packed = data[member.begin : member.end]
    level = _LEVELS.get(member.effort, 0)
    return level if level and pack(inflate_untrusted(packed, member.plain_bytes), level) == packed else 0
