"""One wanted manifest in the fetcher: its exchange, its tasks' cancel scopes, its counters, and what people are told."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.ids import ChunkId, DeviceId, ManifestId
from pcm_p2p.swarm.exchange import Exchange
from pcm_p2p.swarm.holdings import positions_of
from pcm_p2p.swarm.lending import Lending, is_base

RATE_WINDOW_MS = 10_000
RATE_SAMPLE_MS = 500
BASES_MS = 500  # choice: who rebuilds a base takes seconds


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """``bytes_*`` are of the release's chunks (uncompressed); ``lan_bytes`` and ``wan_bytes`` as received, retries and base
    chunks included. ``needed_bytes``: what the office pays over the WAN by the present plan (``prices.Prices``).

    ``fetching``: my segments on the WAN and how many percent of each are here; ``requests``: chunks on their way from
    neighbours. ``waiting``: why nothing moves, empty when something does. ``rate_bytes_per_s`` is over the last ten
    seconds, of chunks; ``eta_s`` follows from it.
    """

    chunks_total: int
    chunks_have: int
    bytes_total: int
    bytes_have: int
    lan_bytes: int
    wan_bytes: int
    needed_bytes: int
    fetching: tuple[tuple[int, int], ...]
    requests: int
    waiting: str
    rate_bytes_per_s: int
    eta_s: float | None

    @property
    def complete(self) -> bool:
        return self.chunks_have == self.chunks_total


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to have a run over the WAN. ``name``: "delta from <version>" or "full"; ``size_bytes``: of its blob; ``why_not``:
    what speaks against it, empty if it is usable."""

    name: str
    size_bytes: int
    why_not: str


@dataclass(frozen=True, slots=True)
class WhyRow:
    """``size_bytes``: of the run's chunks; ``source``: installed/store, lan:<short id>, wan:<short id of who fetches or fetched
    it>, in place (some were let go since), or waiting; ``alternatives``: cheapest first."""

    segment: int
    size_bytes: int
    source: str
    reason: str
    alternatives: tuple[Alternative, ...]


class Transfer:
    """``held`` are the chunks that the store had at the start (a bit field); ``partial_pct`` segments partly on disk; ``keeps``:
    only copies of it are kept, since the release is in place; ``lan_only``: its segments are left to others."""

    def __init__(
        self,
        manifest: Manifest,
        held: int,
        partial_pct: dict[int, int],
        *,
        keeps: bool = False,
        lan_only: bool = False,
    ) -> None:
        self.manifest, self.held, self.partial_pct = manifest, held, partial_pct
        self.keeps, self.lan_only = keeps, lan_only
        self.exchange: Exchange | None = None
        self.scopes: dict[int, trio.CancelScope] = {}
        self.fetched: dict[int, int] = {}
        """Runs that I fetched, and by which of the segments."""
        self.closed = False
        self.lan_bytes = self.wan_bytes = 0
        self.has_changed = trio.Event()
        self._bases_missing: dict[int, int] = {}
        self._release = (1 << len(manifest.sizes)) - 1
        self.was_complete = self.complete
        self._has_gained = trio.Event()
        self._seen_mine = held
        self._bases_due_ms = 0
        self._sources: dict[int, DeviceId] = {}
        self._lendings: dict[ManifestId, Lending] = {}
        self._bytes_total = sum(manifest.sizes)
        self._counted_mine, self._counted_bytes = 0, 0
        self._samples: deque[tuple[int, int]] = deque(maxlen=RATE_WINDOW_MS // RATE_SAMPLE_MS + 1)

    @property
    def mine(self) -> int:
        return self.held if self.exchange is None else self.exchange.holdings.mine

    @property
    def complete(self) -> bool:
        return not self._release & ~self.mine

    def changed(self) -> None:
        """Let everybody look again who waits for anything."""
        for event in (self.has_changed, self._has_gained):
            event.set()
        self.has_changed, self._has_gained = trio.Event(), trio.Event()

    async def wait_for(self, bits: int) -> None:
        """Return when these chunks are in my store. Raises ``KeyError`` when the manifest is not wanted any more."""
        while bits & ~self.mine:
            if self.closed:
                raise KeyError(self.manifest.manifest_id)
            await self._has_gained.wait()

    def note(self, now_ms: int) -> bool:
        """After each event: wake waiters, sample the rate. True if other bases are missing than at the last look."""
        complete, mine = self.complete, self.mine
        if complete != self.was_complete:
            self.was_complete = complete
            self.changed()
        elif mine != self._seen_mine:
            self._has_gained.set()
            self._has_gained = trio.Event()
        self._seen_mine = mine
        if not self._samples or now_ms - self._samples[-1][0] >= RATE_SAMPLE_MS:
            self._samples.append((now_ms, self._bytes_have()))
        exchange = self.exchange
        if (
            self.manifest.layouts
            and exchange is not None
            and exchange.ownership.settled
            and now_ms >= self._bases_due_ms
        ):
            before, self._bases_missing = self._bases_missing, exchange.bases_missing()
            self._bases_due_ms = now_ms + BASES_MS
            return before != self._bases_missing
        return False

    def lending(self, base: Manifest) -> Lending | None:
        """How to read announcements about ``base``, if deltas of this manifest start from it and it is being fetched."""
        if self.keeps or not is_base(base, self.manifest):
            return None
        if base.manifest_id not in self._lendings:
            self._lendings[base.manifest_id] = Lending(base, self.manifest)
        return self._lendings[base.manifest_id]

    def came_from(self, position: int, device: DeviceId) -> None:
        self._sources[position] = device

    def positions_of(self, chunks: Iterable[ChunkId]) -> tuple[int, ...]:
        places = self.manifest.position_of
        return tuple(places[chunk] for chunk in chunks if chunk in places)

    def progress(self, now_ms: int) -> FetchProgress:
        exchange, bytes_have = self.exchange, self._bytes_have()
        recent = [sample for sample in self._samples if now_ms - sample[0] <= RATE_WINDOW_MS]
        rate = 0
        if recent and now_ms > recent[0][0] and not self.complete:
            rate = max(0, bytes_have - recent[0][1]) * 1000 // (now_ms - recent[0][0])
        fetching = tuple(exchange.ownership.fetching.items()) if exchange else ()
        requests = exchange.picker.asked if exchange else 0
        waiting = ""
        if not self.complete and not fetching and not requests:
            waiting = self._waiting(now_ms)
        return FetchProgress(
            chunks_total=len(self.manifest.sizes),
            chunks_have=(self._release & self.mine).bit_count(),
            bytes_total=self._bytes_total,
            bytes_have=bytes_have,
            lan_bytes=self.lan_bytes,
            wan_bytes=self.wan_bytes,
            needed_bytes=self.needed_bytes,
            fetching=fetching,
            requests=requests,
            waiting=waiting,
            rate_bytes_per_s=rate,
            eta_s=(self._bytes_total - bytes_have) / rate if rate else None,
        )

    @property
    def needed_bytes(self) -> int:
        """What the office pays over the WAN by the present plan; before that begins, what the full segments have."""
        if self.exchange is None:
            return sum(segment.size for _, segment in self.manifest.full_segments())
        return self.exchange.ownership.prices.needed_bytes()

    def _waiting(self, now_ms: int) -> str:
        exchange = self.exchange
        if exchange is None:
            return "not started"
        if self.keeps:
            return "in place; copies are kept for the office"
        reason = exchange.paused or exchange.ownership.waiting(now_ms)
        if reason:
            return reason
        if exchange.holdings.missing & exchange.holdings.lan:
            return "neighbours that hold the rest are busy"
        return "the owner of the next segment is about to start"

    def why(self, me: DeviceId, now_ms: int) -> list[WhyRow]:
        """A row for each run of the release."""
        rows = []
        for index, segment in self.manifest.full_segments():
            source, reason = self._why(index, me, now_ms)
            size = sum(self.manifest.sizes[segment.first : segment.first + segment.count])
            rows.append(WhyRow(index, size, source, reason, self._alternatives(index)))
        return rows

    def _alternatives(self, index: int) -> tuple[Alternative, ...]:
        rows = []
        for place in (*self.manifest.deltas.get(index, ()), index):
            segment, why_not = self.manifest.segments[place], ""
            name = f"delta from {self.manifest.bases[segment.of].version}" if segment.kind == "delta" else "full"
            if self.exchange is not None:
                why_not = self.exchange.ownership.prices.why_not(place)
            rows.append(Alternative(name, segment.size, why_not))
        return tuple(rows)

    def _why(self, index: int, me: DeviceId, now_ms: int) -> tuple[str, str]:
        segment, mine, exchange = self.manifest.segments[index], self.mine, self.exchange
        missing = [position for position in segment.positions if not mine >> position & 1]
        if not missing:
            return self._why_here(index, me)
        count = f"{segment.count - len(missing)} of {segment.count} chunks here"
        if self.keeps:
            return "installed/store", f"{count}; the release is in place, and copies are kept for the office"
        if self.keeps:
            return "in place", f"{count}; the rest is not needed any more"
        if exchange is None:
            return "waiting", f"{count}; not started"
        fetching = exchange.ownership.fetching.get(index)
        if fetching is not None:
            return f"wan:{me.short}", f"{count}; this device fetches it{self._how(exchange, index)}"
        claims = exchange.ownership.claimants(index)
        if claims:
            device, done_pct = next(iter(claims.items()))
            return f"wan:{device.short}", f"{count}; neighbour {device.short} fetches it ({done_pct} %)"
        holders = Counter(device for position in missing for device in exchange.holdings.holders(position))
        if all(exchange.holdings.lan >> position & 1 for position in missing) and not exchange.paused:
            device, _ = holders.most_common(1)[0]
            return f"lan:{device.short}", f"{count}; the rest comes from neighbours"
        reason = exchange.ownership.waiting_for(index, now_ms) or "its owner is about to start"
        return "waiting", f"{count}; {reason}"

    def _how(self, exchange: Exchange, index: int) -> str:
        """Which blob, and how far it is; of a delta whose blob is here, how much of its base is not."""
        way, done_pct = exchange.ownership.way(index), exchange.ownership.fetching[index]
        lacking = (way.base & ~exchange.holdings.mine).bit_count() if way is not None else 0
        base = f", {lacking} base chunks to come from neighbours" if lacking else ""
        return f"{self._as_delta(way.segment if way is not None else None)} ({done_pct} %{base})"

    def _as_delta(self, place: int | None) -> str:
        segment = self.manifest.segments[place] if place is not None else None
        if segment is None or segment.kind != "delta":
            return ""
        return f" as a delta from {self.manifest.bases[segment.of].version}"

    def _why_here(self, index: int, me: DeviceId) -> tuple[str, str]:
        segment = self.manifest.segments[index]
        sources = Counter(self._sources[position] for position in segment.positions if position in self._sources)
        if not sources:
            return "installed/store", f"all {segment.count} chunks were in the store"
        device, _ = sources.most_common(1)[0]
        if device == me:
            return f"wan:{me.short}", f"this device fetched it for the office{self._as_delta(self.fetched.get(index))}"
        others = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
        return f"lan:{device.short}", f"from {device.short}{others}"

    def _bytes_have(self) -> int:
        """Counted by difference: most calls find a few new chunks."""
        mine, sizes = self.mine & self._release, self.manifest.sizes
        gained, lost = mine & ~self._counted_mine, self._counted_mine & ~mine
        self._counted_bytes += sum(sizes[position] for position in positions_of(gained))
        self._counted_bytes -= sum(sizes[position] for position in positions_of(lost))
        self._counted_mine = mine
        return self._counted_bytes
