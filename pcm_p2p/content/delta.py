"""Deltas: blobs that yield a run of chunks from base bytes that somebody in the office has.

A blob is a patch of HDiffPatch (format HDIFF13, its streams uncompressed) in one xz stream.

Why xz around and not zstd inside, as HDiffPatch offers: over eight pairs of Debian packages it takes 4 … 11 % fewer bytes
(mariadb 24.6 against 26.8 % of the package, libreoffice 7.7 against 8.4 %), and unpacking keeps 60 … 1000 MB/s of output.
``pb=0``, because patches are not aligned to four bytes, is another 0.7 %.
"""

from __future__ import annotations

import lzma

import hdiffpatch

from pcm_p2p.content.segment import unpack_xz_untrusted
from pcm_p2p.errors import UntrustedBytes

_MAGIC = b"HDIFF13&\0"
"""Behind the ``&`` stands the compressor of the streams inside: none. The library would take others, with memory of their own."""
_NUMBER_BYTES_MAX = 10
_PATCH_OVERHEAD_BYTES_MAX = 1 << 20
"""A patch that shares nothing with its base is its output and a few bytes; more than that is no patch."""


def encode_delta(base: bytes, output: bytes) -> bytes:
    """The blob that makes ``output`` of ``base``. The same bytes give the same blob with the same libraries.

    Memory: about nine times the base. Raises ``hdiffpatch.HDiffPatchError`` if the library's own trial fails.
    """
    patch = hdiffpatch.diff(base, output, "none", validate=False)
    packer = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "pb": 0, "dict_size": max(4096, len(patch))}
    # No check of its own: the blob is named by its hash, and so is every chunk that it yields.
    return lzma.compress(patch, format=lzma.FORMAT_XZ, check=lzma.CHECK_NONE, filters=[packer])


def decode_delta_untrusted(blob: bytes, base: bytes, output_bytes: int) -> bytes:
    """The ``output_bytes`` bytes that ``blob`` makes of ``base``. Raises ``UntrustedBytes`` and nothing else.

    Bytes whose length is right may still be wrong: chunks are verified one by one by the caller.
    """
    patch = unpack_xz_untrusted(blob, output_bytes + _PATCH_OVERHEAD_BYTES_MAX, "delta")
    # Before the library sees it: it would allocate and write whatever the patch states, and 500 bytes can copy a base for ever.
    if (stated := _output_bytes_untrusted(patch)) != output_bytes:
        raise UntrustedBytes(f"a delta states {stated} bytes of output; its chunks have {output_bytes}")
    try:
        output: bytes = hdiffpatch.apply(base, patch)
    except (hdiffpatch.HDiffPatchError, MemoryError, ValueError, OverflowError) as error:
        raise UntrustedBytes(f"delta: {error}") from None
    if len(output) != output_bytes:
        raise UntrustedBytes(f"a delta yields {len(output)} bytes; its chunks have {output_bytes}")
    return output


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
