"""Full segments as xz streams: what the packer is told, by level and by what the data is like.

Over nine Debian packages preset 6 gave 96 … 101 % of the package as delivered, and with its filter for x86 code 89 … 99 % where
that helps, at about the speed of zstd 19, which gave 105 … 111 % (``bench/delta.py``). Bytes and CPU time in shares of preset 6,
over a run of 16 MiB each of libreoffice, mariadb and libpython3.11-stdlib with the filter; of zstd a run of libreoffice and one
of postgresql:

========================  ============  =========  =======================================
xz                        bytes         CPU time   level
========================  ============  =========  =======================================
preset 9, all effort      99.97 %       1.2        22: a dictionary beyond the run is of no use, nor is effort
preset 6                  100 %         1          19 … 21, the default
preset 5                  100.2 … 101   0.9 … 1.1
preset 6, nice 48, 12     101 … 102     0.9 … 1.1
preset 6, nice 32, 8      102 … 104     0.7 … 1    17 and 18
preset 4                  102 … 106     0.8 … 1
preset 6, HC4, 32, 8      101 … 108     0.5        15 and 16 for what is text or repeats far away
preset 6, HC4, 32, 4      102 … 110     0.4
preset 6, HC4, 24, 2      104 … 112     0.35       15 and 16 for the rest
preset 3                  107 … 109     0.4 … 0.8
preset 1                  107 … 116     0.3        13 and 14; 101 … 114 % of packages as delivered
zstd 19, 16, 12           108 … 124     1, .6, .1  as xz is better from 13 on, zstd serves up to 12
========================  ============  =========  =======================================

Levels 15 and 16 are to be quick without being large. A short search costs most where it would have found most: text
(libpython3.11-stdlib, 112 % of the package) and copies that are megabytes away (git, 110 %), so these get a longer one, and
the worst of eleven packages is 107 % (the kernel). For copies the filter is left out at every level: two runs of git have 7 %
more with it.
"""

from __future__ import annotations

import lzma
from typing import Any

import zstandard

from pcm_p2p.content.manifest import SEGMENT_OUTPUT_BYTES_MAX

LEVEL_XZ = 13
"""From here on blobs are xz streams, below they are zstd frames of that level."""
_QUICK = {"preset": 6, "mf": lzma.MF_HC4, "nice_len": 24, "depth": 2}
_SEARCHING = {"preset": 6, "mf": lzma.MF_HC4, "nice_len": 32, "depth": 8}
_OPTIONS: tuple[tuple[int, dict[str, int]], ...] = (
    (22, {"preset": 9 | lzma.PRESET_EXTREME}),
    (19, {"preset": 6}),
    (17, {"preset": 6, "nice_len": 32, "depth": 8}),
    (15, _QUICK),
    (LEVEL_XZ, {"preset": 1}),
)
"""What the packer is told from which level on: see the table above."""
_SAMPLE_PIECES = 16
_SAMPLE_PIECE_BYTES = 64 << 10
_SAMPLE_STEP_BYTES_MIN = 256 << 10
"""Choice: a sixteenth of a whole run; in 42 runs the filter did to it what it did to an eighth, within 1.6 %."""
_PRINTABLE = bytes(range(32, 127)) + b"\t\n\r"
_TEXT_SHARE_MIN = 0.65
"""Measured: 0.67 … 0.73 where most is source code and documentation, 0.15 … 0.62 in 59 runs of programs and classes."""
_FAR_SHARE_MAX = 0.7
"""Measured: 0.45 … 0.53 where one program is there many times (git, mariadb), 0.75 … 1.12 in 39 other runs."""
_FAR = zstandard.ZstdCompressionParameters.from_level(1, window_log=24, enable_ldm=True)


def xz_stream(data: bytes | memoryview, level: int) -> bytes:
    """``data`` at ``level`` ``LEVEL_XZ`` … 22. The same bytes give the same stream with the same libraries."""
    options = next(options for least, options in _OPTIONS if level >= least)
    sample, far = _sample(data), _repeats_far(data)
    if options is _QUICK and (far or _is_text(sample)):
        options = _SEARCHING
    packer: dict[str, Any] = {"id": lzma.FILTER_LZMA2, **options, "dict_size": SEGMENT_OUTPUT_BYTES_MAX}
    # The filter tells a call by where it leads, counted from the beginning: copies of a program differ behind it.
    filters = [{"id": lzma.FILTER_X86}, packer] if not far and _has_x86_code(sample) else [packer]
    # No check of its own: the blob is named by its hash, and so is every chunk in it.
    return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_NONE, filters=filters)


def _sample(data: bytes | memoryview) -> bytes:
    """Some of ``data``, from all of it."""
    view, step = memoryview(data), max(_SAMPLE_STEP_BYTES_MIN, len(data) // _SAMPLE_PIECES)
    return b"".join(view[at : at + _SAMPLE_PIECE_BYTES] for at in range(0, len(view), step))


def _repeats_far(data: bytes | memoryview) -> bool:
    """Whether much of ``data`` is there again, half a megabyte away or more: zstd at its quickest, with and without looking for
    that."""
    near = zstandard.ZstdCompressor(level=1).compress(data)
    return len(zstandard.ZstdCompressor(compression_params=_FAR).compress(data)) < _FAR_SHARE_MAX * len(near)


def _is_text(sample: bytes) -> bool:
    return len(sample.translate(None, _PRINTABLE)) < (1 - _TEXT_SHARE_MIN) * len(sample)


def _has_x86_code(sample: bytes) -> bool:
    """Whether the filter for x86 code makes it smaller, at a level that costs little."""
    packer: dict[str, Any] = {"id": lzma.FILTER_LZMA2, "preset": 0}
    plain, filtered = (
        len(lzma.compress(sample, format=lzma.FORMAT_RAW, filters=filters))
        for filters in ([packer], [{"id": lzma.FILTER_X86}, packer])
    )
    return filtered < plain
