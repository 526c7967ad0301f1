"""By which of its ways a run is fetched over the WAN, and what each would cost. Core.

Price order: installed bytes < LAN chunks < WAN delta < WAN full. The first two are not decided here: what the office has is
never fetched over the WAN (``ownership`` rule 2), and what a device rebuilds from installed files is in the office then. Left is
the choice among the deltas and the full segment of a run:

1. A delta is *usable* while the office (my store, or a neighbour by its word) has all of its base, and until it has failed: here,
   or at ``FAILED_ELSEWHERE`` neighbours. One liar cannot make an office fetch full segments; a broken blob costs two tries.
2. The usable way with the fewest bytes left wins, counting what a partial file has of it already; ties go to the smaller blob.
3. A fetch goes on as it began, unless another way costs at most 1 / ``CHEAPER`` of what is left of it (a base came back while the
   full segment has just begun), at most ``SWITCHES_MAX`` times; or unless its own way is not usable any more. Partial files
   stay, so that going back costs nothing twice.
4. A run whose deltas lack a base that could be rebuilt from installed files waits with its full segment (``Grace``).
5. A delta that needs gzip is usable for whoever has one; who has none leaves its run to them (``turns``) while there are any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.holdings import OfficeHoldings, bits_of

CHEAPER = 2  # choice: less is not worth a new connection
SWITCHES_MAX = 4  # choice: neighbours that come and go make no more of it
FAILED_ELSEWHERE = 2  # choice
BASE_GRACE_MS = 3_000  # choice: who has the base installed asks for the layout within it
BASE_WAIT_MS, BASE_MOVED_MS, BASE_WAIT_MS_MAX = 20_000, 5_000, 120_000
"""Choice: rebuilding 400 MB takes some ten seconds; as long as base chunks turn up it is waited for, up to two minutes."""


@dataclass(frozen=True, slots=True)
class Way:
    """One blob that yields a run: its place in the manifest's segments and its size.

    Of a delta also ``base``, the bits of its base chunks, and ``of``, which of the manifest's base releases they are from;
    ``rebuildable`` if there is a layout of that release; ``needs_gzip`` if it takes one to decode it.
    """

    segment: int
    size_bytes: int
    base: int = 0
    of: int = -1
    rebuildable: bool = False
    needs_gzip: bool = False


@dataclass(frozen=True, slots=True)
class SegmentRun:
    """A run as this room sees it: the index of the full or layout segment that covers it, that one's id as hash key, its chunks
    as a bit field, and its ways, smallest blob first. An *aid* is a layout: needed and fetched only by who wants it."""

    index: int
    key: bytes
    bits: int
    ways: tuple[Way, ...] = ()
    aid: bool = False

    def __post_init__(self) -> None:
        if not self.ways:
            object.__setattr__(self, "ways", (Way(self.index, 1),))


def runs_of(manifest: Manifest) -> list[SegmentRun]:
    """All runs of a manifest: those of the full segments, then the layouts."""
    layouts = {layout.of for layout in manifest.layouts}
    runs = []
    for index, segment in (*manifest.full_segments(), *manifest.layout_segments()):
        deltas = [(place, manifest.segments[place]) for place in manifest.deltas.get(index, ())]
        ways = [
            Way(place, one.size, bits_of(one.base), one.of, one.of in layouts, one.needs_gzip) for place, one in deltas
        ]
        bits = ((1 << segment.count) - 1) << segment.first
        ways.append(Way(index, segment.size))
        runs.append(SegmentRun(index, bytes(segment.id), bits, tuple(ways), segment.kind == "layout"))
    return runs


class Prices:
    """The ways of all runs of one manifest. ``partial_pct``: how much of a blob is on disk, by its place in the segments.

    ``holdings`` is shared with the exchange, which keeps it. ``why_not_gzip``: why deltas that need gzip are of no use to me.
    """

    def __init__(
        self,
        runs: Sequence[SegmentRun],
        holdings: OfficeHoldings,
        partial_pct: Mapping[int, int] | None = None,
        *,
        why_not_gzip: str = "",
    ) -> None:
        self._why_not_gzip = why_not_gzip
        self._needs_gzip = {way.segment for run in runs for way in run.ways if way.needs_gzip}
        self.others_have_gzip = False
        """Among those who may fetch."""
        self._runs = {run.index: run for run in runs}
        self._bases = {way.segment: way.base for run in runs for way in run.ways if way.of >= 0}
        self._holdings = holdings
        self._partial_pct = dict(partial_pct or {})
        self._failed: dict[int, str] = {}
        self._failed_elsewhere: dict[int, set[DeviceId]] = {}
        self._bill: dict[int, int] = {}

    # -- facts ----------------------------------------------------------------------------------------------------------------

    def partial_pct(self, segment: int) -> int:
        """How much of this blob is on disk, at most 99."""
        return self._partial_pct.get(segment, 0)

    def keep_part(self, segment: int, done_pct: int) -> None:
        self._partial_pct[segment] = min(done_pct, 99)

    def fail(self, segment: int, reason: str) -> None:
        """This delta is of no use here."""
        self._failed[segment] = reason

    def refuse_bases(self, reason: str) -> None:
        """Deltas whose base is not in my store are of no use here: it has no room for that."""
        for segment, base in self._bases.items():
            if base & ~self._holdings.mine:
                self._failed.setdefault(segment, reason)

    def failed_elsewhere(self, device: DeviceId, segment: int) -> None:
        """A neighbour says so of a blob; of a full segment it means nothing here."""
        if segment in self._bases:
            devices = self._failed_elsewhere.setdefault(segment, set())
            devices.add(device)
            if len(devices) >= FAILED_ELSEWHERE:
                self._failed.setdefault(segment, f"{len(devices)} neighbours could not use it")

    # -- the choice -----------------------------------------------------------------------------------------------------------

    def usable(self, way: Way) -> bool:
        """By me."""
        return not (way.needs_gzip and self._why_not_gzip) and self._usable_by_somebody(way)

    def _usable_by_somebody(self, way: Way) -> bool:
        return self._is_of_use(way) and not way.base & ~self._holdings.office

    def _is_of_use(self, way: Way) -> bool:
        """To somebody in the office, once its base is there."""
        gzip = not way.needs_gzip or not self._why_not_gzip or self.others_have_gzip
        return gzip and way.segment not in self._failed

    def left_bytes(self, way: Way) -> int:
        """What of its blob is not on disk yet."""
        return way.size_bytes * (100 - self.partial_pct(way.segment)) // 100

    def best(self, index: int) -> Way:
        """The usable way of this run with the fewest bytes left; the full segment is always usable."""
        usable = [way for way in self._runs[index].ways if way.of < 0 or self.usable(way)]
        return min(usable, key=self.left_bytes)

    def best_of_office(self, index: int) -> Way:
        """The same, for whoever has gzip."""
        usable = [way for way in self._runs[index].ways if way.of < 0 or self._usable_by_somebody(way)]
        return min(usable, key=self.left_bytes)

    def cheaper(self, index: int, way: Way, done_pct: int) -> Way | None:
        """A way to change to from ``way``, of which ``done_pct`` percent are here."""
        best = self.best(index)
        left_bytes = way.size_bytes * (100 - done_pct) // 100
        return best if best is not way and CHEAPER * self.left_bytes(best) <= left_bytes else None

    def may_be_rebuilt(self, index: int) -> bool:
        """Whether only the full segment is usable, and the base of a delta could come from installed files."""
        ways = self._runs[index].ways
        return self.best_of_office(index).of < 0 and any(way.rebuildable and self._is_of_use(way) for way in ways)

    def bases_missing(self) -> dict[int, int]:
        """Base chunks that nobody in the office has, by base release, of the runs that wait for one (``may_be_rebuilt``)."""
        missing: dict[int, int] = {}
        office = self._holdings.office
        for run in self._runs.values():
            if run.aid or not run.bits & ~office or not self.may_be_rebuilt(run.index):
                continue
            for way in run.ways:
                if way.rebuildable and self._is_of_use(way):
                    missing[way.of] = missing.get(way.of, 0) | way.base & ~office
        return {of: missing[of] for of in sorted(missing)}

    # -- what people are told -------------------------------------------------------------------------------------------------

    def needed_bytes(self) -> int:
        """What the office pays by the present plan: of each run the blob of the cheapest usable way.

        A run that the office has keeps the price that it had when it was last needed; if it never was, the present one counts.
        """
        total, office = 0, self._holdings.office
        for run in self._runs.values():
            if run.aid:
                continue
            is_needed, price = run.bits & ~office, self._bill.get(run.index)
            if is_needed or price is None:
                price = min(way.size_bytes for way in run.ways if way.of < 0 or self._usable_by_somebody(way))
            if is_needed:
                self._bill[run.index] = price
            total += price
        return total

    def why_not(self, segment: int) -> str:
        """What speaks against a blob, by its place in the segments; empty if it is usable."""
        if segment in self._failed:
            return self._failed[segment]
        if segment in self._needs_gzip and self._why_not_gzip:
            return f"it needs gzip, and {self._why_not_gzip}"
        base = self._bases.get(segment, 0)
        lacking = (base & ~self._holdings.office).bit_count()
        return f"the office lacks {lacking} of its {base.bit_count()} base chunks" if lacking else ""


class Grace:
    """How long full segments wait for bases that are being rebuilt from installed files, somewhere in the office.

    Waited for are ``BASE_GRACE_MS`` after the roster settled; ``BASE_WAIT_MS`` while there are signs that somebody rebuilds (a
    layout is claimed or held); and on, while new base chunks turn up, until ``BASE_WAIT_MS_MAX``. ``aids`` are the bits of the
    base and layout zones.
    """

    def __init__(self, aids: int, holdings: OfficeHoldings) -> None:
        self._aids, self._holdings = aids, holdings
        self._seen = self._moved_ms = 0

    def until_ms(self, settled_ms: int, *, signs: bool, now_ms: int) -> int:
        """Until when to wait at least, as far as is known now; at or before ``now_ms``: no longer."""
        seen = self._holdings.office & self._aids
        if seen & ~self._seen:
            self._seen, self._moved_ms = self._seen | seen, now_ms
        if not signs:
            return settled_ms + BASE_GRACE_MS
        moving_ms = min(self._moved_ms + BASE_MOVED_MS, settled_ms + BASE_WAIT_MS_MAX)
        return max(settled_ms + BASE_WAIT_MS, moving_ms)
