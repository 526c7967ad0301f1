"""Cut points: the same for ever, whatever way the bytes arrive, and local to a change."""

from __future__ import annotations

import hashlib
import io

import pytest
from content_samples import noise, text

from pcm_p2p.content.manifest import CHUNK_SIZE_BYTES_MAX, CHUNKS_MAX
from pcm_p2p.content.publishing import chunker
from pcm_p2p.content.publishing.chunker import ALGORITHM, ChunkerNotCompiled, cut, parameters_for

SAMPLE = noise(3_000_000, seed=20) + b"\0" * 1_500_000 + text(2_000_000, seed=21)


class Dribble(io.RawIOBase):
    """A reader that hands out odd amounts."""

    def __init__(self, data: bytes, step: int) -> None:
        self._file, self._step = io.BytesIO(data), step

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._file.readinto(memoryview(buffer)[: self._step])


def sizes_of(data: bytes) -> list[int]:
    return [len(piece) for piece in cut(io.BytesIO(data), parameters_for(len(data)))]


def test_the_cut_points_are_those_of_all_releases_so_far() -> None:
    """If this fails, a new version of this program shares no chunks with releases made by the old one."""
    assert hashlib.sha256(SAMPLE).hexdigest()[:16] == "1b8bc9bd74b24d8a", "the sample itself changed"
    assert sizes_of(SAMPLE) == [
        309720,
        463990,
        377364,
        270634,
        440428,
        264997,
        170145,
        262792,
        359618,
        1048576,
        823099,
        134438,
        729026,
        321629,
        523544,
    ]


@pytest.mark.parametrize("step", [1021, 65_536, 1 << 20, 1 << 30])
def test_cut_points_do_not_depend_on_how_the_bytes_arrive(step: int) -> None:
    pieces = [bytes(piece) for piece in cut(Dribble(SAMPLE, step), parameters_for(len(SAMPLE)))]
    assert [len(piece) for piece in pieces] == sizes_of(SAMPLE)
    assert b"".join(pieces) == SAMPLE


@pytest.mark.parametrize("size", [0, 1, 63, 65_536, 65_537, 1 << 20])
def test_small_files_are_cut_into_themselves(size: int) -> None:
    data = noise(size)
    assert b"".join(bytes(piece) for piece in cut(io.BytesIO(data), parameters_for(size))) == data


def test_an_insertion_changes_the_chunks_around_it_only() -> None:
    data = noise(8_000_000, seed=3)
    before = {bytes(piece) for piece in cut(io.BytesIO(data), parameters_for(len(data)))}
    changed = data[:4_000_000] + b"an insertion" + data[4_000_000:]
    after = {bytes(piece) for piece in cut(io.BytesIO(changed), parameters_for(len(data)))}
    assert 1 <= len(after - before) <= 3


@pytest.mark.parametrize("size", [0, 1, 1 << 30, (1 << 30) + 1, 1 << 31, (1 << 31) + 1, 16 << 30, 64 << 30])
def test_parameters_stay_in_bounds_and_the_table_too(size: int) -> None:
    parameters = parameters_for(size)
    assert parameters.algorithm == ALGORITHM
    assert parameters.size_bytes_max <= CHUNK_SIZE_BYTES_MAX
    assert parameters.size_bytes_min * 4 == parameters.size_bytes_avg == parameters.size_bytes_max // 4
    assert size / parameters.size_bytes_avg <= (4096 if size <= 4 << 30 else CHUNKS_MAX)


def test_the_slow_cutter_is_refused_instead_of_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyfastcdc.py import FastCDC as Slow

    monkeypatch.setattr(chunker, "FastCDC", Slow)
    with pytest.raises(ChunkerNotCompiled):
        next(cut(io.BytesIO(b"x"), parameters_for(1)))
