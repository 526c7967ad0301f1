"""Cut points that move with the content: FastCDC 2020, so that an insertion changes the chunks around it and no others.

The cut points are part of what makes two releases share chunks, so they must not change between versions of this program: a
golden vector in the tests holds them. Parameters travel in the manifest for people to read; devices never cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol, cast

from pyfastcdc import BinaryStreamReader, FastCDC

from pcm_p2p.content.manifest import CHUNK_SIZE_BYTES_MAX, ChunkerParameters
from pcm_p2p.errors import PcmError

ALGORITHM = "fastcdc2020/nc1"
_NORMALIZED_CHUNKING: Literal[1] = 1
"""The level of normalisation of the reference implementations; part of ``ALGORITHM``."""
_KIB = 1 << 10
_SMALL = (64 * _KIB, 256 * _KIB, 1024 * _KIB)
"""Choice: small enough that a rebuilt package shares most of its chunks, large enough that 1 GiB has a table of 4096."""
_GROW_ABOVE_BYTES = 1 << 30


class Reader(Protocol):
    """A binary file opened for reading, or anything that fills a buffer the way ``readinto`` does (0 is the end)."""

    def readinto(self, buffer: memoryview, /) -> int: ...


class ChunkerNotCompiled(PcmError):
    """The pure-Python cutter gives the same cut points, three hundred times slower; nobody wants to find out by waiting."""

    remedy = "Install the pyfastcdc wheel of this platform; bootstrap/venv does."


def parameters_for(size_bytes: int) -> ChunkerParameters:
    """Parameters for a release whose stored forms have ``size_bytes`` together.

    64 KiB / 256 KiB / 1 MiB up to 1 GiB. Above, all three double for each doubling of the size until the largest chunk has
    ``CHUNK_SIZE_BYTES_MAX``; the table then has at most about 4096 chunks up to 4 GiB and grows with the size from there.
    """
    smallest, average, largest = _SMALL
    ceiling = _GROW_ABOVE_BYTES
    while size_bytes > ceiling and 2 * largest <= CHUNK_SIZE_BYTES_MAX:
        smallest, average, largest, ceiling = 2 * smallest, 2 * average, 2 * largest, 2 * ceiling
    return ChunkerParameters(
        algorithm=ALGORITHM, size_bytes_min=smallest, size_bytes_avg=average, size_bytes_max=largest
    )


def cut(reader: Reader, parameters: ChunkerParameters) -> Iterator[memoryview]:
    """The chunks of ``reader`` in order, in memory of twice the largest chunk.

    Each view is valid until the next one is asked for. An empty reader yields nothing. Raises ``ChunkerNotCompiled``, and
    what the reader raises.
    """
    if not FastCDC.__module__.startswith("pyfastcdc.cy"):
        raise ChunkerNotCompiled("the compiled build of pyfastcdc is not in use")
    if parameters.algorithm != ALGORITHM:
        raise ValueError(f"cannot cut with {parameters.algorithm!r}")
    cutter = FastCDC(
        parameters.size_bytes_avg,
        min_size=parameters.size_bytes_min,
        max_size=parameters.size_bytes_max,
        normalized_chunking=_NORMALIZED_CHUNKING,
    )
    # Its own protocol names the argument, which no caller of readinto does.
    for piece in cutter.cut_stream(cast(BinaryStreamReader, reader)):
        yield piece.data
