"""Long stretches that a run and its base have in common: copied as they are, and kept away from HDiffPatch. Pure.

Most of its time goes into sorting all suffixes of the base, whether the run has anything new there or not. So what both sides
have in common in a row of 16 KiB or more is taken out of both, and only the *rest* is compared. Measured on a busy machine, CPU
time in seconds a MB of output: git 0.217 to 0.093, samba-libs 0.133 to 0.044, openjdk 0.220 to 0.127; deltas have
0.8 % fewer to 0.6 % more bytes. Where half of a run or more is recompiled code the delta is what it was, and looking for them
takes 0.08 s. A run of 16 MiB from a base of 48, half of it stretches, is decoded in 160 MB resident.

The *list* of stretches says so to the endpoint. It lies before the patch: ``MAGIC``, its length (u32, little-endian), the list
in MessagePack. Stretches are told by what lies between them in the run, so that they are in order and apart whatever the numbers
are. In the base they may lie in any order and more than once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from pyfastcdc import FastCDC

from pcm_p2p.errors import UntrustedBytes

MAGIC = b"PCMSAME\0"
STRETCH_BYTES_MIN = 16 << 10
"""Measured: from 4 KiB deltas grow by up to 1 %, since neighbours of what is new are no base any more; from 64 KiB a tenth more
is left to compare."""
STRETCHES_MAX = 4096
"""Twice what a run of 16 MiB with as many bytes of unpacked members can have."""
LIST_BYTES_MAX = 80 << 10
"""What ``STRETCHES_MAX`` stretches of the largest numbers take."""
BASE_BYTES_MIN = 1 << 20
"""Below that the library takes less than a tenth of a second, and the list would be felt."""
_SHARE_MIN = 2
"""Choice: less than half of the run is not worth the memory that an endpoint needs to put it back."""
_PIECE_BYTES = 1 << 10
"""Choice: so finely both sides are cut to find what is the same."""
_PIECE_BYTES_MAX = 8 << 10
_BYTES_MAX = 1 << 30
"""Beyond all offsets; arithmetic on offsets stays small."""
_LENGTH_BYTES = 4


class Stretch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``skip`` bytes behind the stretch before: ``size`` bytes that the base has.

    ``shift``: how far they lie, in the base, from where they would be if as much had been skipped there.
    """

    skip: Annotated[int, msgspec.Meta(ge=0, le=_BYTES_MAX)]
    shift: Annotated[int, msgspec.Meta(ge=-_BYTES_MAX, le=_BYTES_MAX)]
    size: Annotated[int, msgspec.Meta(ge=1, le=_BYTES_MAX)]


_decoder = msgspec.msgpack.Decoder(Annotated[tuple[Stretch, ...], msgspec.Meta(min_length=1, max_length=STRETCHES_MAX)])


def find_stretches(base: bytes, output: bytes) -> tuple[Stretch, ...]:
    """What ``output`` has in common with ``base``, or nothing if that is little.

    Deterministic; linear time (some 500 MB a second, both sides together).
    """
    if len(base) < BASE_BYTES_MIN:
        return ()
    first: dict[bytes, int] = {}
    for at, piece in _pieces(base):
        first.setdefault(piece, at)
    found: list[tuple[int, int, int]] = []
    base_at = output_at = size = 0
    for at, piece in _pieces(output):
        end = base_at + size
        if size and base[end : end + len(piece)] == piece:
            size += len(piece)
            continue
        _add(found, base_at, output_at, size)
        base_at, output_at, size = first.get(piece, -1), at, len(piece)
        if base_at < 0:
            size = 0
    _add(found, base_at, output_at, size)
    if sum(size for _, _, size in found) * _SHARE_MIN < len(output):
        return ()
    stretches, base_end, output_end = list[Stretch](), 0, 0
    for number, place in enumerate(found[:STRETCHES_MAX]):
        limit = found[number + 1][1] if number + 1 < len(found) else len(output)
        base_at, output_at, size = _stretched(base, output, *place, output_end, limit)
        skip = output_at - output_end
        stretches.append(Stretch(skip, base_at - base_end - skip, size))
        base_end, output_end = base_at + size, output_at + size
    return tuple(stretches)


def _stretched(
    base: bytes, output: bytes, base_at: int, output_at: int, size: int, begin: int, limit: int
) -> tuple[int, int, int]:
    """A stretch as long as it goes, from ``begin`` to ``limit`` in the output at most.

    What is left between two stretches has no base where that went into another one: so not a byte more than needed is left.
    """
    room = min(_PIECE_BYTES_MAX, base_at, output_at - begin)
    more = _same(base[base_at - room : base_at], output[output_at - room : output_at], "little")
    base_at, output_at, size = base_at - more, output_at - more, size + more
    base_end, output_end = base_at + size, output_at + size
    room = min(_PIECE_BYTES_MAX, len(base) - base_end, limit - output_end)
    return (
        base_at,
        output_at,
        size + _same(base[base_end : base_end + room], output[output_end : output_end + room], "big"),
    )


def _same(a: bytes, b: bytes, order: Literal["little", "big"]) -> int:
    """How many bytes of two that are equally long are the same, at the end (little) or the beginning (big)."""
    return len(a) - ((int.from_bytes(a, order) ^ int.from_bytes(b, order)).bit_length() + 7) // 8


def _add(found: list[tuple[int, int, int]], base_at: int, output_at: int, size: int) -> None:
    if size >= STRETCH_BYTES_MIN:
        found.append((base_at, output_at, size))


def _pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    cutter = FastCDC(_PIECE_BYTES, min_size=_PIECE_BYTES // 4, max_size=_PIECE_BYTES_MAX, normalized_chunking=1)
    for piece in cutter.cut_buf(data) if data else ():
        yield piece.offset, bytes(piece.data)


def encode_list(stretches: Sequence[Stretch]) -> bytes:
    """What ``decode_list_untrusted`` reads; nothing for no stretches."""
    packed = msgspec.msgpack.encode(stretches)
    return MAGIC + len(packed).to_bytes(_LENGTH_BYTES, "little") + packed if stretches else b""


def decode_list_untrusted(content: bytes) -> tuple[tuple[Stretch, ...], int]:
    """The stretches before the patch in ``content``, and where that begins. Raises ``UntrustedBytes`` and nothing else."""
    if not content.startswith(MAGIC):
        return (), 0
    begin = len(MAGIC) + _LENGTH_BYTES
    size = int.from_bytes(content[len(MAGIC) : begin], "little")
    if not 1 <= size <= min(LIST_BYTES_MAX, len(content) - begin):
        raise UntrustedBytes(f"delta: its list of {size} bytes is cut short, or none of at most {LIST_BYTES_MAX}")
    try:
        stretches = _decoder.decode(memoryview(content)[begin : begin + size])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"delta: its list of stretches does not fit its schema: {error}") from None
    return stretches, begin + size


def common_bytes(stretches: Sequence[Stretch]) -> int:
    return sum(stretch.size for stretch in stretches)


def rest_of_output(output: bytes, stretches: Sequence[Stretch]) -> bytes:
    """``output`` without its stretches."""
    return _without(output, [(at, size) for _, at, size in _places(stretches)])


def rest_of_base_untrusted(base: bytes, stretches: Sequence[Stretch]) -> bytes:
    """``base`` without its stretches. Raises ``UntrustedBytes`` for a stretch outside of it, and nothing else."""
    places = sorted((at, size) for at, _, size in _places(stretches))
    for at, size in places:
        if at < 0 or at + size > len(base):
            raise UntrustedBytes(
                f"delta: a stretch of {size} bytes from {at} is not within the {len(base)} of the base"
            )
    return _without(base, places)


def put_back_untrusted(rest: bytes, base: bytes, stretches: Sequence[Stretch]) -> bytes:
    """The run of which ``rest`` is left. The stretches lie within ``base``. Raises ``UntrustedBytes`` and nothing else."""
    view, of_base, at, parts = memoryview(rest), memoryview(base), 0, list[memoryview]()
    for stretch, (base_at, _, size) in zip(stretches, _places(stretches), strict=True):
        parts += (view[at : at + stretch.skip], of_base[base_at : base_at + size])
        at += stretch.skip
        if at > len(rest):
            raise UntrustedBytes(f"delta: a stretch lies behind {at} bytes, of which the patch yields {len(rest)}")
    return b"".join((*parts, view[at:]))


def _places(stretches: Sequence[Stretch]) -> Iterator[tuple[int, int, int]]:
    """Offset in the base, offset in the run, size."""
    base_at = output_at = 0
    for stretch in stretches:
        base_at += stretch.skip + stretch.shift
        output_at += stretch.skip
        yield base_at, output_at, stretch.size
        base_at += stretch.size
        output_at += stretch.size


def _without(data: bytes, places: Sequence[tuple[int, int]]) -> bytes:
    """``data`` without what lies at ``places``, which rise and may overlap; not copied if there are none."""
    if not places:
        return data
    view, end, parts = memoryview(data), 0, list[memoryview]()
    for at, size in places:
        if at > end:
            parts.append(view[end:at])
        end = max(end, at + size)
    return b"".join((*parts, view[end:]))
