"""The covers of a patch, reaching farther: between two matches of HDiffPatch there is often one more, with many small changes.

A patch (HDIFF13) consists of *covers*, each a part of the output that is like a part of the base; of the differences between the
two, for the whole output, as runs; and of the *gaps* between covers as they are. The library ends a cover where too few bytes in
a row are the same, as in tables of addresses that have all moved. Here each gap is compared with what the base has behind the
cover before and before the cover behind it, and given to these as far as a third of the bytes is the same. The patch is written
anew, in the same format, for the same library to apply.

Measured, parts of 4 … 8 MiB, bytes of the compressed patch: libreoffice 0.55 and 1.003, qemu-system-x86 0.76, 0.78 and 0.96 of
what they were, for 45 … 80 ms of a core a megabyte.

The differences are mostly zeros, and how these are written decides how well the patch compresses. As runs, which is what the
library does, the patch is short, and quickly compressed. *Spread*, with zeros between the others as they are, what repeats
stands in one place with the distances between its parts, and a compressor that searches long enough finds it: runs of 16 MiB
of qemu 449 to 420 kB, of libreoffice 607 to 565 and 158 to 136, of postgresql 1.17 to 1.15 MB, for seven to thirteen
times the time of compressing. Applying it is two to three times as fast. Very small deltas lose by it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

MAGIC = b"HDIFF13&\0"
GAP_BYTES_MIN = 8
"""Choice: a shorter one is not worth the two numbers of a cover."""
_BLOCK_BYTES = 64
"""Choice: the step in which a gap is given to its neighbours."""
_ALIKE_PERCENT = 35
"""Choice: of an address that moved two of four bytes are the same, or one. 20 and 50 make less than a 500th of a difference."""
_STEP_BYTES = 64 << 10
_ZEROS, _ONES, _LITERAL = 0, 1, 3
_RUN = re.compile(rb"(\0+)|(\xff+)|[^\0\xff]+")
SPREAD_ZEROS_MIN = 1024
"""Measured: from 256 deltas of qemu and libreoffice have 0.5 to 0.7 % more bytes; above, no fewer, and the patch gets longer."""
_SPREAD_ZEROS = re.compile(rb"\0{%d,}" % SPREAD_ZEROS_MIN)
_KINDS = {1: _ZEROS, 2: _ONES, None: _LITERAL}
_SHORT = 32
_HEAD_NUMBERS = 11


class Cover(NamedTuple):
    """``size`` bytes of the output from ``output`` are like those of the base from ``base``."""

    base: int
    output: int
    size: int


def covers_of(patch: bytes, base_bytes: int, output_bytes: int) -> list[Cover]:
    """The covers of a patch without compression inside. Raises ``ValueError`` or ``IndexError`` if it is none of these sizes."""
    if not patch.startswith(MAGIC):
        raise ValueError("not a patch of the known form")
    numbers, at = list[int](), len(MAGIC)
    for _ in range(_HEAD_NUMBERS):
        number, _, at = _number(patch, at, 0)
        numbers.append(number)
    if numbers[:2] != [output_bytes, base_bytes]:
        raise ValueError("a patch for other bytes")
    covers, end_base, end_output, end = list[Cover](), 0, 0, at + numbers[3]
    for _ in range(numbers[2]):
        distance, is_before, at = _number(patch, at, 1)
        gap, _, at = _number(patch, at, 0)
        size, _, at = _number(patch, at, 0)
        cover = Cover(end_base - distance if is_before else end_base + distance, end_output + gap, size)
        covers.append(cover)
        end_base, end_output = cover.base + size, cover.output + size
    if at != end or end_output > output_bytes:
        raise ValueError("its covers end elsewhere than it says")
    return covers


def _number(data: bytes, at: int, tag_bits: int) -> tuple[int, int, int]:
    """A number, the tag before it, and where it ends: seven bits a byte, high ones first, behind the tag in the first byte."""
    room = 7 - tag_bits
    tag, number, more = data[at] >> room + 1, data[at] & (1 << room) - 1, data[at] >> room & 1
    while more:
        at += 1
        number, more = number << 7 | data[at] & 0x7F, data[at] >> 7
    return number, tag, at + 1


def _encoded_number(number: int, tag: int = 0, tag_bits: int = 0) -> bytes:
    room, low = 7 - tag_bits, list[int]()
    while number >> room:
        low.insert(0, number & 0x7F | (0x80 if low else 0))
        number >>= 7
    return bytes([tag << room + 1 | (1 << room if low else 0) | number, *low])


def longer(covers: Sequence[Cover], base: bytes, output: bytes) -> list[Cover]:
    """The covers, each longer by what of the gaps beside it is like the base there."""
    bounded = [Cover(0, 0, 0), *covers, Cover(len(base), len(output), 0)]
    begins, ends = [cover.output for cover in bounded], [cover.output + cover.size for cover in bounded]
    for number, (before, behind) in enumerate(pairwise(bounded)):
        begin, end = before.output + before.size, behind.output
        if end - begin >= GAP_BYTES_MIN:
            shifts = before.base - before.output, behind.base - behind.output
            ends[number], begins[number + 1] = _split(output, base, begin, end, shifts)
    return [
        Cover(cover.base - cover.output + begin, begin, end - begin)
        for cover, begin, end in zip(bounded, begins, ends, strict=True)
        if end > begin
    ]


def _split(output: bytes, base: bytes, begin: int, end: int, shifts: tuple[int, int]) -> tuple[int, int]:
    """How far the cover before a gap reaches into it, and from where on the one behind it, so that most is alike."""
    edges = [*range(begin, end, _BLOCK_BYTES), end]
    forward, backward = ([_score(output, base, *edge, shift) for edge in pairwise(edges)] for shift in shifts)
    after = [0]
    for score in reversed(backward):
        after.append(after[-1] + score)
    after.reverse()
    best, best_split, reached, first, first_at = 0, (begin, end), 0, 0, begin
    for number, edge in enumerate(edges):
        if reached > first:
            first, first_at = reached, edge
        if first + after[number] > best:
            best, best_split = first + after[number], (first_at, edge)
        if number < len(forward):
            reached += forward[number]
    return best_split


def _score(output: bytes, base: bytes, begin: int, end: int, shift: int) -> int:
    """Above 0 if enough bytes are alike."""
    if begin + shift < 0 or end + shift > len(base):
        return -(1 << 40)
    mine, its = (int.from_bytes(data, "little") for data in (output[begin:end], base[begin + shift : end + shift]))
    alike = (mine ^ its).to_bytes(end - begin, "little").count(0)
    return 100 * alike - _ALIKE_PERCENT * (end - begin)


def patch_with(covers: Sequence[Cover], base: bytes, output: bytes, *, spread: bool = False) -> bytes:
    """The patch with these covers, which lie in order in the output and not over each other.

    ``spread``: with zeros between differences as they are, see above.
    """
    head, gaps, differences = list[bytes](), list[bytes](), bytearray(len(output))
    end_base = end_output = 0
    for cover in covers:
        distance = cover.base - end_base
        head += (
            _encoded_number(abs(distance), int(distance < 0), 1),
            _encoded_number(cover.output - end_output),
            _encoded_number(cover.size),
        )
        gaps.append(output[end_output : cover.output])
        end_base, end_output = cover.base + cover.size, cover.output + cover.size
        for at in range(0, cover.size, _STEP_BYTES):
            step = min(_STEP_BYTES, cover.size - at)
            begin = cover.output + at
            ours, its = output[begin : begin + step], base[cover.base + at : cover.base + at + step]
            if ours != its:
                differences[begin : begin + step] = _difference(ours, its)
    gaps.append(output[end_output:])
    runs = (_spread_runs if spread else _runs)(bytes(differences))
    parts = (b"".join(head), *runs, b"".join(gaps))
    # Behind the size of each part stands the one that it would have compressed.
    numbers = [len(output), len(base), len(covers), *(number for part in parts[:-1] for number in (len(part), 0))]
    return MAGIC + b"".join(map(_encoded_number, (*numbers, len(parts[-1]), 0))) + b"".join(parts)


def _difference(ours: bytes, its: bytes) -> bytes:
    """Byte by byte, modulo 256, of equally long parts: as one large number, whose upper bits are kept from borrowing."""
    high = int.from_bytes(b"\x80" * len(ours), "little")
    one, two = int.from_bytes(ours, "little"), int.from_bytes(its, "little")
    return (((one | high) - (two & ~high)) ^ ((one ^ ~two) & high)).to_bytes(len(ours), "little")


def _runs(data: bytes) -> tuple[bytes, bytes]:
    """``data`` as runs: their lengths less one with the kind as tag, and the bytes of those that are not of zeros or ones.

    There are runs of any one byte in the format too; xz finds those by itself.
    """
    short = {kind: [_encoded_number(length, kind, 2) for length in range(_SHORT)] for kind in (_ZEROS, _ONES, _LITERAL)}
    lengths, values = bytearray(), bytearray()
    for match in _RUN.finditer(data):
        length, kind = match.end() - match.start() - 1, _KINDS[match.lastindex]
        lengths += short[kind][length] if length < _SHORT else _encoded_number(length, kind, 2)
        if kind == _LITERAL:
            values += match.group()
    return bytes(lengths), bytes(values)


def _spread_runs(data: bytes) -> tuple[bytes, bytes]:
    """``_runs`` in which only long runs of zeros are told from the rest."""
    lengths, values, end = list[bytes](), list[bytes](), 0
    for match in (*_SPREAD_ZEROS.finditer(data), None):
        begin = match.start() if match else len(data)
        if begin > end:
            lengths.append(_encoded_number(begin - end - 1, _LITERAL, 2))
            values.append(data[end:begin])
        if match:
            end = match.end()
            lengths.append(_encoded_number(end - begin - 1, _ZEROS, 2))
    return b"".join(lengths), b"".join(values)
