"""Deltas: blobs that yield a run of chunks from base bytes that somebody in the office has.

A blob is a patch of HDiffPatch (format HDIFF13, its streams uncompressed) in one xz stream. A head before the patch says which
gzip members are unpacked first, and packed again afterwards (``repacking``); most deltas have none. The covers of the patch are
HDiffPatch's where it was asked, those of ``stretches`` where it was not, and made longer where that is worth it (``covers``).

Why xz around and not zstd inside, as HDiffPatch offers: over eight pairs of Debian packages it takes 4 … 11 % fewer bytes
(mariadb 24.6 against 26.8 % of the package, libreoffice 7.7 against 8.4 %), and unpacking keeps 60 … 1000 MB/s of output.
``pb=0``, because patches are not aligned to four bytes, is another 0.7 %.
"""

from __future__ import annotations

import contextlib
import lzma
from collections.abc import Sequence
from dataclasses import dataclass

import hdiffpatch
import zstandard

from pcm_p2p.content.delta.covers import Cover, covers_of, longer, patch_with
from pcm_p2p.content.delta.gzip_members import PLAIN_BYTES_MAX
from pcm_p2p.content.delta.repacking import (
    HEAD_BYTES_MAX,
    MAGIC,
    CannotPack,
    Pack,
    decode_head_untrusted,
    encode_head,
    pack_output_untrusted,
    plan_unpacking,
    unpack_base_untrusted,
)
from pcm_p2p.content.delta.stretches import find_stretches, rest_of_base, rest_of_output, with_stretches
from pcm_p2p.content.segment import unpack_xz_untrusted
from pcm_p2p.errors import UntrustedBytes

_MAGIC = b"HDIFF13&\0"
"""Behind the ``&`` stands the compressor of the streams inside: none. The library would take others, with memory of their own."""
_NUMBER_BYTES_MAX = 10
_PATCH_OVERHEAD_BYTES_MAX = 1 << 20
"""A patch that shares nothing with its base is its output and a few bytes; more than that is no patch."""


def encode_delta(base: bytes, output: bytes, *, thorough: bool = False) -> bytes:
    """The blob that makes ``output`` of ``base``. The same bytes give the same blob with the same libraries.

    ``thorough``: 1 to 14 % smaller on large programs for some ten times the time of compressing, see ``covers``.
    Memory: about nine times the base; thorough, also twelve times the output. Raises ``hdiffpatch.HDiffPatchError`` if the
    library's own trial fails.
    """
    return _finished(_draft(b"", base, output, thorough), thorough)


def encode_smallest_delta(base: bytes, output: bytes, pack: Pack | None, *, thorough: bool = False) -> bytes:
    """``encode_delta``, or the same with gzip members unpacked if that is smaller: see ``needs_gzip``.

    Raises what that raises, and ``CannotPack`` if ``pack`` does.
    """
    draft = _draft(b"", base, output, thorough)
    if pack is not None and (unpacking := plan_unpacking(base, output, len(draft.blob), pack)):
        other = _draft(encode_head(unpacking.head), unpacking.base, unpacking.output, thorough)
        draft = min(draft, other, key=lambda one: len(one.blob))
    return _finished(draft, thorough)


def needs_gzip(blob: bytes) -> bool:
    """Whether this blob, which was made here, is decoded with a ``Pack`` only."""
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(blob, len(MAGIC)) == MAGIC


@dataclass(frozen=True, slots=True)
class _Draft:
    """A blob, and what its patch was made with; no covers where the library's patch is taken as it is."""

    blob: bytes
    head: bytes
    base: bytes
    output: bytes
    covers: Sequence[Cover] = ()


def _draft(head: bytes, base: bytes, output: bytes, thorough: bool) -> _Draft:
    stretches = find_stretches(base, output)
    of_base, of_output = rest_of_base(base, stretches), rest_of_output(output, stretches)
    found: bytes = hdiffpatch.diff(of_base, of_output, "none", validate=False)
    covers, patches = list[Cover](), dict[bytes, Sequence[Cover]]()
    # What does not read is a patch of another version of the library, perhaps: then as it is.
    with contextlib.suppress(ValueError, IndexError):
        covers = with_stretches(covers_of(found, len(of_base), len(of_output)), stretches, len(base), len(output))
        further = longer(covers, base, output)
        # Writing a patch takes half as long as packing it: if it is to be quick, only the one that is most often the smaller.
        if stretches and (thorough or further == covers):
            patches[patch_with(covers, base, output)] = covers
        if further != covers:
            patches[patch_with(further, base, output)] = further
    if not stretches:
        patches = {found: covers, **patches}
    # What the library makes of them counts, not what was meant; and how small they are: gaps that compress well are better left
    # alone.
    working = [patch for patch in patches if _makes(patch, base, output)]
    if not working:
        return _Draft(_packed(head + hdiffpatch.diff(base, output, "none")), head, base, output)
    patch = min(working, key=_size_about) if len(working) > 1 else working[0]
    return _Draft(_packed(head + patch), head, base, output, patches[patch])


def _finished(draft: _Draft, thorough: bool) -> bytes:
    if not thorough or not draft.covers:
        return draft.blob
    patch = patch_with(draft.covers, draft.base, draft.output, spread=True)
    if not _makes(patch, draft.base, draft.output):
        return draft.blob
    return min(draft.blob, _packed(draft.head + patch), key=len)


def _makes(patch: bytes, base: bytes, output: bytes) -> bool:
    try:
        return bool(hdiffpatch.apply(base, patch) == output)
    except hdiffpatch.HDiffPatchError:
        return False


def _size_about(patch: bytes) -> int:
    """To tell which of two is the smaller one. Measured on 27 runs: 0.05 % more bytes than packing both, in half the time."""
    return len(zstandard.ZstdCompressor(level=3).compress(patch))


def _packed(content: bytes) -> bytes:
    dictionary_bytes = max(4096, len(content))
    packer = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "pb": 0, "dict_size": dictionary_bytes}
    # No check of its own: the blob is named by its hash, and so is every chunk that it yields.
    return lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_NONE, filters=[packer])


def decode_delta_untrusted(blob: bytes, base: bytes, output_bytes: int, pack: Pack | None = None) -> bytes:
    """The ``output_bytes`` bytes that ``blob`` makes of ``base``. Raises ``UntrustedBytes``; ``CannotPack`` if it takes a
    ``pack`` and that is missing or raises it; and nothing else.

    Bytes whose length is right may still be wrong: chunks are verified one by one by the caller.
    """
    content_bytes_max = output_bytes + PLAIN_BYTES_MAX + HEAD_BYTES_MAX + _PATCH_OVERHEAD_BYTES_MAX
    content = unpack_xz_untrusted(blob, content_bytes_max, "delta")
    if not content.startswith(MAGIC):
        return _patched_untrusted(content, base, output_bytes, output_bytes)
    head, begin = decode_head_untrusted(content)
    base, content = unpack_base_untrusted(base, head.base), content[begin:]
    plain = _patched_untrusted(content, base, head.output_plain_bytes, output_bytes + head.output_plain_bytes)
    del base, content  # what is packed now needs the room
    return pack_output_untrusted(plain, head.output, output_bytes, pack or _refuse)


def _patched_untrusted(patch: bytes, base: bytes, output_bytes_min: int, output_bytes_max: int) -> bytes:
    # Before the library sees it: it would allocate and write whatever the patch states, and 500 bytes can copy a base for ever.
    stated = _output_bytes_untrusted(patch)
    if not output_bytes_min <= stated <= output_bytes_max:
        raise UntrustedBytes(f"a delta states {stated} bytes of output; its chunks have {output_bytes_max}")
    try:
        output: bytes = hdiffpatch.apply(base, patch)
    except (hdiffpatch.HDiffPatchError, MemoryError, ValueError, OverflowError) as error:
        raise UntrustedBytes(f"delta: {error}") from None
    if len(output) != stated:
        raise UntrustedBytes(f"a delta yields {len(output)} bytes; its chunks have {stated}")
    return output


def _refuse(_plain: bytes | memoryview, _level: int) -> bytes:
    raise CannotPack("there is no gzip to decode it with")


def _output_bytes_untrusted(patch: bytes) -> int:
    """The size of the output as the head of a patch states it: behind the magic, seven bits a byte, high ones first."""
    if not patch.startswith(_MAGIC):
        raise UntrustedBytes("delta: is not a patch without compression inside")
    stated = 0
    for byte in patch[len(_MAGIC) : len(_MAGIC) + _NUMBER_BYTES_MAX]:
        stated = stated << 7 | byte & 0x7F
        if not byte & 0x80:
            return stated
    raise UntrustedBytes("delta: states no size of its output")
