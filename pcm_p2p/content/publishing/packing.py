"""Segments are made here: which blobs are there already, which are to be made, and which deltas are worth it.

Full segments come first, then deltas, so that all processes are busy to the end and the sizes to compare with are known early.
What is finished is noted, so that a publisher that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from pcm_p2p.content.decoding.gzip_program import find_gzip
from pcm_p2p.content.delta.blob import needs_gzip
from pcm_p2p.content.delta.repacking import CannotPack
from pcm_p2p.content.publishing.compressor import Crew, Job, Made, Piece, Unpack, Unpacked, do
from pcm_p2p.content.publishing.deltas import Delta, DeltaBlob, Packed, Pile
from pcm_p2p.content.publishing.workplace import Workplace, delta_recipe_of, recipe_of
from pcm_p2p.ids import SegmentId

DELTA_SHARE_PERCENT = 60
"""A delta above this share of its full segment is not published (DESIGN.md 6): the base has to be brought together for it."""


PROCESSES_MAX = 8
"""Choice: each takes 250 to 390 MB while it makes deltas (levels 16 and 19), and a release seldom has more segments at once."""


def processes_here() -> int:
    """A worker for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, PROCESSES_MAX)


class Workshop:
    """Does jobs, in ``processes`` worker processes or, if that is 0, in this one; they start with the first job."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._crew: Crew | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, jobs: Iterable[Job | Unpack]) -> Iterator[Made | Unpacked]:
        """The answers as they come, in any order. Raises what ``compressor.do`` raises."""
        if self._processes < 1:
            workspace = bytearray()
            for job in jobs:
                yield do(job, workspace)
            return
        waiting = iter(jobs)
        begin = next(waiting, None)
        if begin is None:
            return  # with nothing to do there is nobody to start
        if self._crew is None:
            self._crew = self._stack.enter_context(Crew(self._processes))
        yield from self._crew.run(chain((begin,), waiting))


class Packing:
    """The segments of one release. ``tell`` gets bytes and segments done."""

    def __init__(
        self,
        new: Pile,
        runs: Sequence[tuple[int, int]],
        bases: Sequence[Pile],
        deltas: Sequence[Delta],
        place: Workplace,
        level: int,
        tell: Callable[[int, int], None],
    ) -> None:
        self._new, self._runs, self._bases, self._deltas = new, runs, bases, deltas
        self._place, self._level, self._tell = place, level, tell
        self._full: dict[int, tuple[SegmentId, int]] = {}
        self._worth: dict[Delta, DeltaBlob] = {}
        self._waiting: dict[int, list[tuple[Delta, Made]]] = {}
        self._recipes: dict[int, bytes] = {}
        self._done_bytes = self._done_segments = 0
        self._gzip = self._why_not_gzip = ""
        try:
            self._gzip = find_gzip().path if deltas else ""
        except CannotPack as error:
            self._why_not_gzip = str(error)

    def run(self, workshop: Workshop) -> Packed:
        """Make what is missing. Raises ``InputError``, ``StorageError``, ``DiskFull``."""
        for answer in workshop.run(chain(self._full_jobs(), self._delta_jobs())):
            assert isinstance(answer, Made), "that is what these jobs are answered with"
            if answer.number < len(self._runs):
                segment = SegmentId(answer.segment)
                self._place.note(self._recipes.pop(answer.number), segment)
                self._finish_full(answer.number, segment, answer.size)
            else:
                delta = self._deltas[answer.number - len(self._runs)]
                self._waiting.setdefault(delta.run, []).append((delta, answer))
                self._settle(delta.run)
                self._count(delta.run)
        return Packed(
            tuple(self._full[number] for number in range(len(self._runs))),
            {delta: self._worth[delta] for delta in self._deltas if delta in self._worth},
            self._why_not_gzip,
        )

    def _full_jobs(self) -> Iterator[Job]:
        """What is still to be done, as it is asked for: descriptions of all segments at once would be large."""
        for number, positions in enumerate(map(_positions, self._runs)):
            recipe = recipe_of([self._new.chunks[at] for at in positions], self._level)
            if found := self._place.find(recipe):
                self._finish_full(number, *found)
                continue
            self._recipes[number] = recipe
            yield self._job(number, self._new.paths, _pieces(self._new, positions))

    def _delta_jobs(self) -> Iterator[Job]:
        for number, delta in enumerate(self._deltas, len(self._runs)):
            base, positions = self._bases[delta.of], _positions(self._runs[delta.run])
            recipe = delta_recipe_of(
                [self._new.chunks[at] for at in positions],
                [base.chunks[at] for at in delta.base],
                self._level,
                with_gzip=bool(self._gzip),
            )
            if found := self._place.find(recipe):
                self._worth[delta] = DeltaBlob(*found, needs_gzip(self._place.blob_path(found[0]).read_bytes()))
                self._count(delta.run)
            elif self._place.is_large(recipe):
                self._count(delta.run)
            else:
                self._recipes[number] = recipe
                paths = self._new.paths + base.paths
                from_base = _pieces(base, delta.base, len(self._new.paths))
                yield self._job(number, paths, _pieces(self._new, positions), from_base)

    def _job(self, number: int, files: tuple[str, ...], pieces: tuple[Piece, ...], base: tuple[Piece, ...] = ()) -> Job:
        folders = str(self._place.segments), str(self._place.temporary)
        return Job(number, files, pieces, self._level, *folders, base, self._gzip if base else "")

    def _finish_full(self, number: int, segment: SegmentId, size: int) -> None:
        self._full[number] = segment, size
        self._settle(number)
        self._count(number)

    def _settle(self, run: int) -> None:
        """Keep or drop the deltas of ``run``, once it is known what the full segment takes."""
        if run not in self._full:
            return
        for delta, made in self._waiting.pop(run, ()):
            recipe = self._recipes.pop(len(self._runs) + self._deltas.index(delta))
            if made.path and 100 * made.size <= DELTA_SHARE_PERCENT * self._full[run][1]:
                segment = SegmentId(made.segment)
                self._place.keep(Path(made.path), segment)
                self._place.note(recipe, segment)
                self._worth[delta] = DeltaBlob(segment, made.size, made.needs_gzip)
            else:
                self._place.note_large(recipe)
                if made.path:
                    Path(made.path).unlink(missing_ok=True)

    def _count(self, run: int) -> None:
        self._done_bytes += sum(self._new.sizes[at] for at in _positions(self._runs[run]))
        self._done_segments += 1
        self._tell(self._done_bytes, self._done_segments)


def _positions(run: tuple[int, int]) -> range:
    first, count = run
    return range(first, first + count)


def _pieces(pile: Pile, positions: Iterable[int], shift: int = 0) -> tuple[Piece, ...]:
    return tuple(
        Piece(pile.files[at] + shift, pile.offsets[at], pile.sizes[at], bytes(pile.chunks[at])) for at in positions
    )
