"""The shell around exchanges: timers, chunk requests, segment tasks, and what people are told about them.

Wiring (the daemon does it): ``peer_up`` and ``peer_down`` for sessions with devices of my site, ``on_message`` for their
``Holdings``, ``Have``, ``Drop``, ``Claim`` and ``SegmentFailed``. ``want`` a manifest and it gets complete; it keeps
being announced and repaired until ``unwant``. All methods are to be called in the trio thread; ``run`` owns every task.

Who can rebuild base chunks from installed files looks at ``bases_missing`` whenever ``wait_bases_changed`` returns, asks for a
layout with ``want_layout``, and tells what it stored with ``gained``.

Effects are performed in order: messages go into one queue that one task empties, requests and segments become tasks.
Storing happens in worker threads, a few at once, decoding in the decoder's process. Nothing here waits for ever: chunk requests
have a deadline that follows their size, the origin client and the decoder have their own, and a base that does not come is
given up by ownership.

When the disk is full everything that would store is paused, with the reason in ``progress``; after ``RETRY_STORE_S`` it is
tried again.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping

import trio

from pcm_p2p.content.decoding.job import SegmentDecoder
from pcm_p2p.content.manifest import Manifest
from pcm_p2p.errors import StorageError
from pcm_p2p.ids import ChunkId, DeviceId, ManifestId
from pcm_p2p.swarm.announcements import manifest_named_untrusted
from pcm_p2p.swarm.announcer import Announcer
from pcm_p2p.swarm.chunk_fetch import fetch_chunk
from pcm_p2p.swarm.conduct import Conduct
from pcm_p2p.swarm.events import (
    AbortSegment,
    Banned,
    BaseRefused,
    Blame,
    Broadcast,
    ChunkArrived,
    ChunkFailed,
    Effect,
    Event,
    Gained,
    Lost,
    Paused,
    PeerDown,
    PeerUp,
    RequestChunk,
    Resumed,
    SegmentDone,
    Send,
    StartSegment,
    Tick,
)
from pcm_p2p.swarm.exchange import Exchange
from pcm_p2p.swarm.holdings import OfficeHoldings, bits_of, positions_of
from pcm_p2p.swarm.parts import discard_parts, look_at_parts
from pcm_p2p.swarm.peers import Peers, Store
from pcm_p2p.swarm.picker import Budget
from pcm_p2p.swarm.segment_fetch import SegmentFetch, SegmentSource
from pcm_p2p.swarm.transfer import FetchProgress, Transfer, WhyRow
from pcm_p2p.swarm.turns import Slots
from pcm_p2p.swarm.workers import Workers
from pcm_p2p.wire.messages import Message

RETRY_STORE_S = 15.0
STORE_WATCH_S = 5.0

_log = logging.getLogger(__name__)


class Fetcher:
    """``weight``: my wish to fetch over the WAN (0 never … 16), the same that my ``Hello`` says."""

    def __init__(
        self,
        store: Store,
        peers: Peers,
        origin: SegmentSource,
        me: DeviceId,
        *,
        decoder: SegmentDecoder,
        weight: int = 8,
        settle_s: float = 3.0,
        rng: random.Random | None = None,
        workers: Workers | None = None,
    ) -> None:
        self._store, self._peers, self._origin, self._decoder, self._me = store, peers, origin, decoder, me
        self._weight, self._settle_ms = weight, int(settle_s * 1000)
        self._rng = rng or random.Random()  # noqa: S311 - breaks ties, guards nothing
        self._workers = workers or Workers()
        self._conduct, self._slots, self._budget = Conduct(), Slots(), Budget()
        self._site: dict[DeviceId, int] = {}
        self._transfers: dict[ManifestId, Transfer] = {}
        self._blamed: dict[DeviceId, str] = {}
        self._announcer = Announcer(peers)
        self._nursery: trio.Nursery | None = None
        self._started_ms = self._roster_changed_ms = 0
        self._sleeps_until_ms = 0
        self._wake = trio.Event()
        self._paused = ""
        self._lan_bytes = self._wan_bytes = 0
        self._bases_changed = trio.Event()

    # -- what others call -----------------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._started_ms = self._roster_changed_ms = _now_ms()
            nursery.start_soon(self._announcer.run)
            nursery.start_soon(self._watch_store)
            for transfer in list(self._transfers.values()):
                self._begin(transfer)
            task_status.started()
            try:
                await self._keep_time()
            finally:
                self._nursery = None

    async def want(self, manifest: Manifest, *, lan_only: bool = False) -> None:
        """Get it complete and keep it so. Returns once it is known what is here; wanting it twice changes nothing. ``lan_only``:
        this device has no way to the origin of this release, and leaves its segments to others."""
        transfer = self._transfers.get(manifest.manifest_id) or await self._open(
            manifest, keeps=False, lan_only=lan_only
        )
        if transfer.keeps:
            transfer.keeps = False
            if transfer.exchange is not None and self._nursery is not None:
                self._perform(transfer, transfer.exchange.want(_now_ms()))
            transfer.changed()

    async def keep(self, manifest: Manifest) -> None:
        """The release is in place: go on announcing what is here of it, fetch nothing but what ``take_copies`` says. A manifest
        that was wanted is not any more."""
        transfer = self._transfers.get(manifest.manifest_id) or await self._open(manifest, keeps=True)
        if not transfer.keeps:
            transfer.keeps = True
            self.take_copies(manifest.manifest_id, 0)
            transfer.changed()

    def take_copies(self, manifest: ManifestId, bits: int, *, urgent: bool = False) -> None:
        """From now on fetch these chunks of a kept manifest from neighbours, one at a time unless ``urgent``."""
        transfer = self._transfers.get(manifest)
        if transfer is not None and transfer.keeps and transfer.exchange is not None and self._nursery is not None:
            self._perform(transfer, transfer.exchange.keep(bits, _now_ms(), urgent=urgent))

    async def _open(self, manifest: Manifest, *, keeps: bool, lan_only: bool = False) -> Transfer:
        held = await self._workers.run(self._look, manifest)
        partial_pct = await look_at_parts(self._origin, manifest, held)
        known = self._transfers.get(manifest.manifest_id)
        if known is not None:
            return known
        transfer = self._transfers[manifest.manifest_id] = Transfer(
            manifest, held, partial_pct, keeps=keeps, lan_only=lan_only
        )
        if self._nursery is not None:
            self._begin(transfer)
        return transfer

    def unwant(self, manifest: ManifestId) -> None:
        """Stop fetching and announcing it. Chunks and parts of segments stay."""
        transfer = self._transfers.pop(manifest, None)
        if transfer is None:
            return
        if transfer.exchange is not None:
            # Ends its segments and says so; frees the shared slots and the shared budget.
            self._event(transfer, Paused("no longer wanted"))
            for device in self._site:
                transfer.exchange.picker.peer_left(device)
        transfer.closed = True
        transfer.changed()

    @property
    def wanted(self) -> Mapping[ManifestId, Manifest]:
        return {key: transfer.manifest for key, transfer in self._transfers.items() if not transfer.keeps}

    @property
    def kept(self) -> Mapping[ManifestId, Manifest]:
        return {key: transfer.manifest for key, transfer in self._transfers.items() if transfer.keeps}

    def office(self, manifest: ManifestId) -> OfficeHoldings | None:
        """Who holds what of a wanted or kept manifest; to be read only. None before ``run``, and for other manifests."""
        transfer = self._transfers.get(manifest)
        return transfer.exchange.holdings if transfer is not None and transfer.exchange is not None else None

    def peer_up(self, device: DeviceId, weight: int) -> None:
        """A session with a device of my site."""
        self._site[device] = weight
        self._roster_changed_ms = _now_ms()
        self._each(PeerUp(device, weight))

    def peer_down(self, device: DeviceId) -> None:
        self._site.pop(device, None)
        self._roster_changed_ms = _now_ms()
        self._each(PeerDown(device))

    async def on_message(self, device: DeviceId, message: Message) -> None:
        """An announcement of a neighbour; those about manifests that I do not want are passed over."""
        manifest = manifest_named_untrusted(message)
        transfer = self._transfers.get(manifest) if manifest is not None else None
        if transfer is not None and transfer.exchange is not None and self._nursery is not None:
            self._perform(transfer, transfer.exchange.receive_untrusted(device, message, _now_ms()))
            for other in list(self._transfers.values()):
                lending = other.lending(transfer.manifest)
                bits = transfer.exchange.holdings.peers.get(device)
                if lending is not None and bits is not None:
                    heard = lending.heard(device, message, bits)
                    if heard is not None:
                        self._event(other, heard)

    def lost(self, chunks: Iterable[ChunkId]) -> None:
        """Chunks that were found absent or rotten: they are fetched again where they are wanted."""
        gone = [chunk for chunk in chunks if not self._store.has(chunk)]
        for transfer in list(self._transfers.values()):
            positions = transfer.positions_of(gone)
            if positions:
                self._event(transfer, Lost(positions))

    def let_go(self, chunks: Iterable[ChunkId]) -> None:
        """These are about to be deleted from the store: neighbours are told first."""
        leaving = list(chunks)
        for transfer in list(self._transfers.values()):
            positions = transfer.positions_of(leaving)
            if positions:
                self._event(transfer, Lost(positions))

    def gained(self, manifest: ManifestId, chunks: Iterable[ChunkId]) -> None:
        """Chunks that somebody else put into the store. Nothing happens if the manifest is not wanted any more."""
        transfer = self._transfers.get(manifest)
        if transfer is not None:
            self._event(transfer, Gained(transfer.positions_of(chunks)))

    def bases_missing(self, manifest: ManifestId) -> dict[int, tuple[int, ...]]:
        """By base release (a place in ``Manifest.bases``): positions that nobody in the office has, and that would spare it a
        full segment. Empty until the roster is settled, and when nothing of the kind is missing. Raises ``KeyError``."""
        exchange = self._transfers[manifest].exchange
        missing = exchange.bases_missing() if exchange is not None else {}
        return {of: tuple(positions_of(bits)) for of, bits in missing.items()}

    async def wait_bases_changed(self) -> None:
        """Return when ``bases_missing`` has changed for any manifest."""
        await self._bases_changed.wait()

    def want_layout(self, manifest: ManifestId, layout: int) -> None:
        """Fetch this one of the manifest's ``layouts``, from neighbours or over the WAN. Raises ``KeyError``."""
        transfer = self._transfers[manifest]
        if transfer.exchange is not None and self._nursery is not None:
            self._perform(transfer, transfer.exchange.want_layout(layout, _now_ms()))

    def drop_layout(self, manifest: ManifestId, layout: int) -> None:
        """It is not wanted any more; its chunks stay in the store."""
        transfer = self._transfers.get(manifest)
        if transfer is not None and transfer.exchange is not None and self._nursery is not None:
            self._perform(transfer, transfer.exchange.drop_layout(layout, _now_ms()))

    async def wait_layout(self, manifest: ManifestId, layout: int) -> None:
        """Return when the chunks of a layout are in the store. Raises ``KeyError`` if the manifest is not wanted (any more)."""
        row = self._transfers[manifest].manifest.layouts[layout]
        await self._transfers[manifest].wait_for(((1 << row.count) - 1) << row.first)

    async def wait_complete(self, manifest: ManifestId) -> None:
        """Return when every chunk is in the store. Raises ``KeyError`` if it is not, or no longer, wanted."""
        while not self._transfers[manifest].complete:
            await self._transfers[manifest].has_changed.wait()

    def progress(self, manifest: ManifestId) -> FetchProgress:
        """Raises ``KeyError`` for a manifest that is not wanted."""
        return self._transfers[manifest].progress(_now_ms())

    def why(self, manifest: ManifestId) -> list[WhyRow]:
        """One row a segment: where it came from, or comes from, or what it waits for. Raises ``KeyError``."""
        return self._transfers[manifest].why(self._me, _now_ms())

    @property
    def lan_in_bytes(self) -> int:
        """Sealed bytes that neighbours sent since the start, good or not."""
        return self._lan_bytes

    @property
    def wan_in_bytes(self) -> int:
        """Segment bytes from the origin since the start, retries included."""
        return self._wan_bytes

    @property
    def why_not_gzip(self) -> str:
        """As ``SegmentDecoder.why_not_gzip``."""
        return self._decoder.why_not_gzip

    @property
    def blamed(self) -> Mapping[DeviceId, str]:
        """Devices banned since the start, and why."""
        return dict(self._blamed)

    # -- events in, effects out -----------------------------------------------------------------------------------------------

    def _begin(self, transfer: Transfer) -> None:
        now_ms = _now_ms()
        transfer.exchange = exchange = Exchange(
            transfer.manifest,
            transfer.held,
            self._me,
            weight=0 if transfer.lan_only else self._weight,
            conduct=self._conduct,
            slots=self._slots,
            budget=self._budget,
            rng=self._rng,
            settle_ms=self._settle_ms,
            started_ms=self._started_ms,
            roster_changed_ms=self._roster_changed_ms,
            now_ms=now_ms,
            partial_pct=transfer.partial_pct,
            keeps=transfer.keeps,
            why_not_gzip=self._decoder.why_not_gzip,
        )
        for device, weight in self._site.items():
            exchange.meet(device, weight, now_ms)
        self._perform(transfer, exchange.begin())
        for base in list(self._transfers.values()):
            lending = transfer.lending(base.manifest)
            if lending is not None and base.exchange is not None:
                for device, bits in list(base.exchange.holdings.peers.items()):
                    self._event(transfer, lending.holds(device, bits))
        self._event(transfer, Paused(self._paused) if self._paused else Tick())

    def _each(self, event: Event) -> None:
        for transfer in list(self._transfers.values()):
            self._event(transfer, event)

    def _event(self, transfer: Transfer, event: Event) -> None:
        if transfer.exchange is not None and not transfer.closed and self._nursery is not None:
            self._perform(transfer, transfer.exchange.handle(event, _now_ms()))

    def _perform(self, transfer: Transfer, effects: list[Effect]) -> None:
        exchange, nursery = transfer.exchange, self._nursery
        assert exchange is not None
        assert nursery is not None
        for effect in effects:
            match effect:
                case RequestChunk():
                    nursery.start_soon(self._request, transfer, effect.device, effect.position)
                case StartSegment():
                    kind = transfer.manifest.segments[effect.use].kind
                    _log.info("%s: segment %d is mine to fetch (%s)", transfer.manifest.title, effect.index, kind)
                    scope = transfer.scopes[effect.index] = trio.CancelScope()
                    nursery.start_soon(self._fetch_segment, transfer, effect, scope)
                case AbortSegment():
                    _log.info("%s: segment %d aborted: %s", transfer.manifest.title, effect.index, effect.reason)
                    aborted = transfer.scopes.pop(effect.index, None)
                    if aborted is not None:
                        aborted.cancel()
                case Send() | Broadcast():
                    self._announcer.say(effect)
                case Blame():
                    _log.warning("device %s is banned: it %s", effect.device, effect.reason)
                    self._blamed[effect.device] = effect.reason
                    nursery.start_soon(self._ban, effect.device)
        was_complete = transfer.was_complete
        if transfer.note(_now_ms()):
            self._bases_changed.set()
            self._bases_changed = trio.Event()
        if transfer.was_complete and not was_complete:
            nursery.start_soon(discard_parts, self._origin, transfer.manifest)
        if exchange.next_ms < self._sleeps_until_ms:
            self._wake.set()

    async def _ban(self, device: DeviceId) -> None:
        """In a task of its own: the exchange that blamed is in the middle of an event."""
        self._each(Banned(device))
        await trio.lowlevel.checkpoint()

    async def _keep_time(self) -> None:
        while True:
            now_ms = _now_ms()
            for transfer in list(self._transfers.values()):
                if transfer.exchange is not None and transfer.exchange.next_ms <= now_ms:
                    self._event(transfer, Tick())
            due = [transfer.exchange.next_ms for transfer in self._transfers.values() if transfer.exchange is not None]
            self._wake = trio.Event()
            self._sleeps_until_ms = min(due, default=now_ms + 60_000)
            # At least a ms, and to the end of it: waking a fraction early would spin.
            with trio.move_on_after(max(1, self._sleeps_until_ms - now_ms) / 1000):
                await self._wake.wait()

    # -- chunks from neighbours -----------------------------------------------------------------------------------------------

    async def _request(self, transfer: Transfer, device: DeviceId, position: int) -> None:
        def on_bytes(size_bytes: int) -> None:
            self._lan_bytes += size_bytes
            transfer.lan_bytes += size_bytes

        chunk, size = transfer.manifest.table_chunks[position], transfer.manifest.table_sizes[position]
        try:
            why = await fetch_chunk(
                self._peers,
                self._store,
                self._workers,
                device,
                chunk,
                size,
                connected=lambda: device in self._site,
                on_bytes=on_bytes,
            )
        except StorageError as error:
            why = "gone"
            if position < len(transfer.manifest.sizes):
                self._pause(error.message)
            else:
                self._event(transfer, BaseRefused(error.message))
        if why is not None:
            self._event(transfer, ChunkFailed(device, position, why))
            return
        transfer.came_from(position, device)
        self._event(transfer, ChunkArrived(device, position))
        self._share(transfer, chunk, device)

    def _share(self, transfer: Transfer, chunk: ChunkId, source: DeviceId) -> None:
        """Another manifest may want the same chunk."""
        for other in list(self._transfers.values()):
            if other is not transfer:
                for position in other.positions_of((chunk,)):
                    other.came_from(position, source)
                    self._event(other, Gained((position,)))

    # -- segments from the origin ---------------------------------------------------------------------------------------------

    async def _fetch_segment(self, transfer: Transfer, start: StartSegment, scope: trio.CancelScope) -> None:
        def on_event(event: Event) -> None:
            if not scope.cancel_called:
                self._event(transfer, event)

        def on_bytes(new_bytes: int) -> None:
            self._wan_bytes += new_bytes
            transfer.wan_bytes += new_bytes

        def on_chunk(position: int) -> None:
            transfer.came_from(position, self._me)
            self._event(transfer, Gained((position,)))
            self._share(transfer, transfer.manifest.table_chunks[position], self._me)

        fetch = SegmentFetch(
            transfer,
            start,
            self._origin,
            self._decoder,
            self._store,
            self._workers,
            on_event=on_event,
            on_chunk=on_chunk,
            on_bytes=on_bytes,
            on_lost=self.lost,
        )
        with scope:
            try:
                ended = await fetch.run()
            except StorageError as error:
                self._pause(error.message)
                return
            if not scope.cancel_called:
                transfer.scopes.pop(start.index, None)
                if isinstance(ended, SegmentDone):
                    transfer.fetched[start.index] = start.use
                self._event(transfer, ended)

    # -- the store ------------------------------------------------------------------------------------------------------------

    def _look(self, manifest: Manifest) -> int:
        return bits_of(position for position, chunk in enumerate(manifest.table_chunks) if self._store.has(chunk))

    def _pause(self, reason: str) -> None:
        if self._paused or self._nursery is None:
            return
        _log.error("fetching pauses: %s", reason)
        self._paused = f"paused: {reason}"
        self._nursery.start_soon(self._resume_later)
        self._each(Paused(self._paused))

    async def _resume_later(self) -> None:
        await trio.sleep(RETRY_STORE_S)
        self._paused = ""
        self._each(Resumed())

    async def _watch_store(self) -> None:
        """What the store evicted or found rotten is told to neighbours, and fetched again where it is wanted."""
        while True:
            await trio.sleep(STORE_WATCH_S)
            removed = list(self._store.take_removed())
            if removed:
                self.lost(removed)


def _now_ms() -> int:
    return int(trio.current_time() * 1000)
