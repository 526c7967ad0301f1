"""Which base chunks this device makes out of its installed files, and when. Core.

Asked for are base chunks that nobody in the office has and for want of which it would fetch full segments (``missing``). Rules:

1. One base release at a time: the one whose deltas save most, after the price of the layouts that have to be fetched to read it.
   Where that is nothing, nothing is done.
2. Many devices may have the package. By rendezvous order over the site, rank r begins after r × ``RANK_MS`` (at most
   ``RANK_MS_MAX``, within which the office waits: ``prices.BASE_GRACE_MS``), and not while chunks turn up that it has not made.
3. Whoever has begun takes the deltas in table order, beginning at a place that follows from its rank, one delta at a time in
   batches. Each batch leaves out what has turned up meanwhile, so that several that began share the work.
4. A chunk that cannot be made here (edited, excluded, gone) rules out the deltas that need it: others may have better luck, and
   parts of a base are of no use. Nothing is made twice: what was made and is missing again found no room in the store.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.holdings import bits_of, positions_of
from pcm_p2p.swarm.rendezvous import ranking

RANK_MS = 200  # choice: a claim of the layout is everywhere within it
RANK_MS_MAX = 2_000
QUIET_MS = 2_000
"""Choice: whoever rebuilds shows a batch several times a second; after this it has stopped."""
BATCH_BYTES = 4 << 20
"""Choice: some 20 ms of reading and sealing, so that what neighbours announce meanwhile is heeded."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to make, until that changes."""


@dataclass(frozen=True, slots=True)
class Wait:
    until_ms: int


@dataclass(frozen=True, slots=True)
class GetLayouts:
    """These of the manifest's ``layouts`` are needed in the store."""

    layouts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MakeChunks:
    """Chunks at these positions of the table are to be made by means of these layouts."""

    layouts: tuple[int, ...]
    positions: tuple[int, ...]


Step = Rest | Wait | GetLayouts | MakeChunks


class _Delta(NamedTuple):
    """``base`` is a bit field; ``saves``: what the blob of the full segment has more, in bytes."""

    base: int
    saves: int


class Rebuilding:
    """One manifest on one device."""

    def __init__(self, manifest: Manifest, me: DeviceId) -> None:
        self._manifest, self._me = manifest, me
        self._deltas: dict[int, list[_Delta]] = {}
        for full, deltas in sorted(manifest.deltas.items()):
            for delta in (manifest.segments[index] for index in deltas):
                saves = manifest.segments[full].size - delta.size
                self._deltas.setdefault(delta.of, []).append(_Delta(bits_of(delta.base), saves))
        self._prices = [segment.size for _, segment in manifest.layout_segments()]
        self._made = self._useless = 0
        self._missing: dict[int, int] = {}
        self._first_ms: int | None = None
        self._moved_ms = 0
        self._begun = False

    def made(self, positions: Collection[int]) -> None:
        """These chunks are in the store now; the fetcher's picture of what is missing may be older."""
        self._made |= bits_of(positions)

    def failed(self, positions: Collection[int]) -> None:
        """These chunks cannot be made here."""
        self._useless |= bits_of(positions)

    def step(
        self,
        now_ms: int,
        missing: Mapping[int, Collection[int]],
        installed: Collection[int],
        ready: Collection[int],
        site: Collection[DeviceId],
    ) -> Step:
        """What to do next.

        ``missing``: positions of base chunks, by base release; ``installed``: those of the manifest's ``layouts`` whose files
        are here; ``ready``: those that are in the store; ``site``: the other devices.
        """
        before, self._missing = self._missing, {of: bits_of(missing[of]) & ~self._made for of in sorted(missing)}
        if any(bits & ~self._missing.get(of, 0) for of, bits in before.items()):
            self._moved_ms = now_ms
        best = self._best(installed, ready)
        if best is None:
            self._first_ms, self._begun = None, False
            return Rest()
        of, layouts = best
        rank = self._rank(site)
        if not self._begun:
            if self._first_ms is None:
                self._first_ms, self._moved_ms = now_ms, now_ms - QUIET_MS
            begin_ms = max(self._first_ms + min(rank * RANK_MS, RANK_MS_MAX), self._moved_ms + QUIET_MS)
            if now_ms < begin_ms:
                return Wait(begin_ms)
            self._begun = True
        absent = tuple(layout for layout in layouts if layout not in ready)
        if absent:
            return GetLayouts(absent)
        return MakeChunks(layouts, self._batch(of, rank * len(self._deltas[of]) // (len(site) + 1)))

    def _best(self, installed: Collection[int], ready: Collection[int]) -> tuple[int, tuple[int, ...]] | None:
        """The base release to rebuild from, and its layouts that are of use here."""
        best, best_saved = None, 0
        for of in self._missing:
            layouts = tuple(
                index for index, layout in enumerate(self._manifest.layouts) if layout.of == of and index in installed
            )
            saved = sum(delta.saves for _, delta in self._wanted(of))
            saved -= sum(self._prices[layout] for layout in layouts if layout not in ready)
            if layouts and saved > best_saved:
                best, best_saved = (of, layouts), saved
        return best

    def _wanted(self, of: int) -> list[tuple[int, _Delta]]:
        """Deltas that lack something, all of which may be made here, with their number among those of the base release."""
        missing = self._missing[of]
        return [
            (number, delta)
            for number, delta in enumerate(self._deltas.get(of, ()))
            if delta.base & missing and not delta.base & missing & self._useless
        ]

    def _batch(self, of: int, begin: int) -> tuple[int, ...]:
        """What the first delta from ``begin`` on lacks, or the beginning of it."""
        count = len(self._deltas[of])
        _, delta = min(self._wanted(of), key=lambda each: (each[0] - begin) % count)
        positions: list[int] = []
        size_bytes = 0
        for position in positions_of(delta.base & self._missing[of]):
            positions.append(position)
            size_bytes += self._manifest.table_sizes[position]
            if size_bytes >= BATCH_BYTES:
                break
        return tuple(positions)

    def _rank(self, site: Collection[DeviceId]) -> int:
        order = ranking(dict.fromkeys((*site, self._me), 1), bytes(self._manifest.manifest_id))
        return order.index(self._me)
