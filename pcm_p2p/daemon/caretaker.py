"""The caretaker: this device's part of the cooperative cache. A shell around ``swarm.keeping``.

The steward says what is wanted (being fetched, or waiting to be applied) and what is kept (the current and the previous release
of each name). The caretaker looks at every kept release at intervals and when a neighbour comes or goes, and

- tells the fetcher which copies to take from neighbours;
- tells the store the order of eviction: surplus copies first, what this device is a keeper of next, last copies last; what is
  wanted, or needed to go back, stays;
- lets surplus copies go when their time is over: neighbours are told, then the file is deleted. The same for chunks of no
  release that this device has to do with, after one to two such times;
- before the device leaves, hands over what only it holds, and waits until neighbours have it or a deadline is over.

**Roll-back.** A change needs the package that it replaces, and the copies of that may have been let go: to keep all of them on
all devices would be no cache. So from the moment a release is wanted, the chunks of the installed package that it replaces are
gathered from neighbours, and held until the change has ended. What nobody has then is not waited for: such a change is made, as
it would be for a package that was installed by hand, and cannot be rolled back to that package; the log says so.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.errors import StorageError, UntrustedBytes
from pcm_p2p.ids import ChunkId, DeviceId, ManifestId
from pcm_p2p.swarm.fetcher import Fetcher
from pcm_p2p.swarm.holdings import OfficeHoldings, positions_of
from pcm_p2p.swarm.keepers import COPIES
from pcm_p2p.swarm.keeping import (
    Keeping,
    KeepPlan,
    chunks_to_drop,
    count_copies,
    handover_messages,
    read_handover_untrusted,
)
from pcm_p2p.wire.messages import Handover, Message

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""Choice: nothing here is in a hurry but a handover, which wakes it."""
NOTICE_S = 2.0
"""Choice: between telling neighbours and deleting, so that what they have asked for is still served."""
ROOM_S = 5.0
"""Choice: how often the store is asked what it evicts next; it makes room for some seconds of fetching in advance."""
POLL_S = 0.1
GATHER_S = 60.0
"""Choice: gathering began with the fetch of the new release, so it is seldom waited for at all."""
ALONE_S = 5.0
"""Choice: sessions come up within that."""

Send = Callable[[DeviceId, Message], Awaitable[None]]


class CacheStore(Protocol):
    """The part of ``content.keeping.store.ChunkStore`` that is used here."""

    def ids(self) -> list[ChunkId]: ...
    def set_wanted(self, chunks: Collection[ChunkId], /) -> None: ...
    def set_tiers(self, kept: Collection[ChunkId], last: Collection[ChunkId], /) -> None: ...
    def trim(self, chunks: Collection[ChunkId], /) -> object: ...
    def take_leaving(self) -> Iterable[ChunkId]: ...


@dataclass(frozen=True, slots=True)
class ReleaseCopies:
    """How many devices of the site hold each chunk of a release, this one included, as far as they say; bytes as unpacked."""

    release: str
    version: str
    copies_min: int
    copies_median: int
    mine_bytes: int
    office_bytes: int


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """``mine_bytes`` and ``office_bytes`` count a chunk of several releases once; ``copies`` is what is aimed at."""

    copies: int
    mine_bytes: int
    office_bytes: int
    releases: tuple[ReleaseCopies, ...]


@dataclass(slots=True)
class _Care:
    """A kept release: ``plan`` followed from ``facts``."""

    keeping: Keeping
    plan: KeepPlan = field(default_factory=KeepPlan)
    facts: tuple[object, ...] = ()


class Caretaker:
    """``uptime``: my class in Hello. ``send`` says something to a neighbour. ``copies``, ``surplus_s`` and ``handover_s``: see
    ``config.Store``."""

    def __init__(
        self,
        fetcher: Fetcher,
        store: CacheStore,
        send: Send,
        me: DeviceId,
        uptime: int,
        rng: random.Random,
        *,
        copies: int = COPIES,
        surplus_s: float = 3_600.0,
        handover_s: float = 10.0,
    ) -> None:
        self._fetcher, self._store, self._send, self._rng = fetcher, store, send, rng
        self._me, self._uptime = me, uptime
        self._copies, self._surplus_ms, self._handover_s = copies, int(1_000 * surplus_s), handover_s
        self._uptimes: dict[DeviceId, int] = {}
        self._cares: dict[ManifestId, _Care] = {}
        self._wanted: dict[ManifestId, Manifest] = {}
        self._gathering: dict[ManifestId, int] = {}
        self._needed: frozenset[ChunkId] = frozenset()
        self._in_use: frozenset[ChunkId] = frozenset()
        self._tended = False
        self._tiers: tuple[frozenset[ChunkId], frozenset[ChunkId]] | None = None
        self._strays: set[ChunkId] = set()
        self._strays_ms = 0
        self._wake = trio.Event()

    # What others tell

    async def tend(
        self,
        wanted: Mapping[ManifestId, Manifest],
        kept: Sequence[Manifest],
        gather: Sequence[tuple[Manifest, int]] = (),
    ) -> None:
        """From now on exactly ``kept`` are kept, those not that are ``wanted``; ``gather`` are the chunks (bits) of kept ones
        that a change under way needs to go back."""
        keep = {manifest.manifest_id: manifest for manifest in kept if manifest.manifest_id not in wanted}
        before = self._needed
        self._wanted = dict(wanted)
        self._gathering = {manifest.manifest_id: bits for manifest, bits in gather if manifest.manifest_id in keep}
        needed = {chunk for manifest in wanted.values() for chunk in manifest.chunks}
        needed.update(manifest.chunks[position] for manifest, bits in gather for position in positions_of(bits))
        self._needed = frozenset(needed)
        # Base chunks too: they may have been taken for a delta a moment ago.
        self._in_use = self._needed.union(*(manifest.table_chunks for manifest in wanted.values()))
        if self._needed != before or not self._tended:
            await trio.to_thread.run_sync(self._store.set_wanted, self._needed)
        for gone in [manifest_id for manifest_id in self._cares if manifest_id not in keep]:
            del self._cares[gone]
            if gone not in wanted:
                self._fetcher.unwant(gone)
        for manifest_id, manifest in keep.items():
            if manifest_id not in self._cares:
                self._cares[manifest_id] = _Care(
                    Keeping(
                        self._me, self._uptime, manifest, self._rng, copies=self._copies, surplus_ms=self._surplus_ms
                    )
                )
                await self._fetcher.keep(manifest)
        self._tended = True
        self._wake.set()

    def peer_up(self, device: DeviceId, uptime: int) -> None:
        """A session with a device of my site; ``uptime`` as in its Hello."""
        self._uptimes[device] = uptime
        self._wake.set()

    def peer_down(self, device: DeviceId) -> None:
        self._uptimes.pop(device, None)
        self._wake.set()

    async def on_handover(self, device: DeviceId, message: Handover) -> None:
        """A neighbour is about to leave. What it names of a release that is kept here is taken over from it."""
        care = self._cares.get(ManifestId(message.manifest))
        if care is None or device not in self._uptimes:
            return
        try:
            care.keeping.take_over(read_handover_untrusted(message, care.keeping.manifest))
            care.facts = ()
        except UntrustedBytes as error:
            log.warning("device %s hands over nonsense: %s", device.short, error.message)
        self._wake.set()
        await trio.lowlevel.checkpoint()

    # The loop

    async def run(self) -> None:
        """Look at intervals and when something changed, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._make_room)
            while True:
                self._wake = trio.Event()
                try:
                    await self._look()
                except StorageError as error:
                    log.warning("the cache cannot be tended: %s", error.message)
                with trio.move_on_after(LOOK_S):
                    await self._wake.wait()

    async def _make_room(self) -> None:
        """Tell neighbours what the store is about to evict."""
        while True:
            try:
                leaving = await trio.to_thread.run_sync(self._store.take_leaving)
            except StorageError as error:
                log.warning("no room can be made in the store: %s", error.message)
            else:
                self._fetcher.let_go(leaving)
            await trio.sleep(ROOM_S)

    async def _look(self) -> None:
        now_ms = int(1_000 * trio.current_time())
        changed = False
        for manifest_id, care in list(self._cares.items()):
            holdings = self._fetcher.office(manifest_id)
            if holdings is not None:
                changed |= await self._decide(care, holdings, now_ms)
                self._take(manifest_id, care, holdings)
        if changed:
            await self._set_tiers()
        if self._tended:
            await self._let_go(now_ms)

    async def _decide(self, care: _Care, holdings: OfficeHoldings, now_ms: int) -> bool:
        """Whether the plan is another one now."""
        mine, others, uptimes = holdings.mine, dict(holdings.peers), dict(self._uptimes)
        fetching = any(
            device not in holdings.keeping and (1 << len(care.keeping.manifest.chunks)) - 1 & ~bits
            for device, bits in others.items()
        )
        facts = (mine, others, uptimes, fetching)
        due_ms = care.plan.next_ms
        if facts == care.facts and (due_ms is None or now_ms < due_ms):
            return False
        care.facts = facts

        def decide() -> KeepPlan:
            return care.keeping.decide(mine, others, uptimes, now_ms, needed=fetching)

        # In a thread: with new neighbours the largest manifest takes half a second.
        before, care.plan = care.plan, await trio.to_thread.run_sync(decide)
        return (before.share, before.last) != (care.plan.share, care.plan.last)

    def _take(self, manifest_id: ManifestId, care: _Care, holdings: OfficeHoldings) -> None:
        gathered = self._gathering.get(manifest_id, 0) & ~holdings.mine
        urgent = bool(care.plan.urgent or gathered)
        self._fetcher.take_copies(manifest_id, care.plan.fetch | gathered, urgent=urgent)

    async def _set_tiers(self) -> None:
        kept: set[ChunkId] = set()
        last: set[ChunkId] = set()
        for care in self._cares.values():
            chunks = care.keeping.manifest.chunks
            kept.update(chunks[position] for position in positions_of(care.plan.share))
            last.update(chunks[position] for position in positions_of(care.plan.last))
        tiers = frozenset(kept), frozenset(last)
        if tiers != self._tiers:
            self._tiers = tiers
            await trio.to_thread.run_sync(self._store.set_tiers, *tiers)

    async def _let_go(self, now_ms: int) -> None:
        plans = []
        for manifest_id, care in self._cares.items():
            holdings = self._fetcher.office(manifest_id)
            plans.append((care.keeping.manifest, holdings.mine if holdings is not None else 0, care.plan))
        going = chunks_to_drop(plans, self._in_use) + await self._strays_due(now_ms)
        if not going:
            return
        self._fetcher.let_go(going)
        await trio.sleep(NOTICE_S)
        going = [chunk for chunk in going if chunk not in self._in_use]
        await trio.to_thread.run_sync(self._store.trim, going)
        log.info("%d chunks were let go: others keep them, or nobody needs them", len(going))

    async def _strays_due(self, now_ms: int) -> list[ChunkId]:
        """Chunks of no release that is wanted or kept, at this look and at the one ``surplus_s`` ago."""
        if now_ms - self._strays_ms < self._surplus_ms:
            return []
        self._strays_ms = now_ms
        listed = {chunk for manifest in self._wanted.values() for chunk in manifest.table_chunks}
        listed.update(chunk for care in self._cares.values() for chunk in care.keeping.manifest.table_chunks)
        every = await trio.to_thread.run_sync(self._store.ids)
        before, self._strays = self._strays, {chunk for chunk in every if chunk not in listed}
        return [chunk for chunk in every if chunk in before and chunk in self._strays]

    # Going back

    async def gathered(self, release: str) -> bool:
        """Wait until what a change of ``release`` needs to go back is here; False when it cannot be had."""
        start_s = trio.current_time()
        with trio.move_on_after(GATHER_S):
            while True:
                missing = reachable = 0
                for manifest_id, bits in self._gathering.items():
                    if self._cares[manifest_id].keeping.manifest.release != release:
                        continue
                    holdings = self._fetcher.office(manifest_id)
                    lacking = bits & ~holdings.mine if holdings is not None else bits
                    missing |= lacking
                    reachable |= lacking & holdings.lan if holdings is not None else 0
                if not missing:
                    return True
                if not reachable and trio.current_time() - start_s >= ALONE_S:
                    return False
                self._wake.set()
                await trio.sleep(POLL_S)
        return False

    # Leaving

    async def hand_over(self) -> None:
        """Before Bye: ask neighbours to take what only this device holds, and wait for it, ``handover_s`` at most."""
        if self._handover_s <= 0:
            return
        for rank in (0, 1):
            await self._ask_heirs(rank)
            with trio.move_on_after(self._handover_s / 2):
                await self._until_handed_over()
                return
        left = sum(bits.bit_count() for bits in self._only_here().values())
        if left:
            log.warning("%d chunks that no neighbour has leave the office with this device", left)

    async def _until_handed_over(self) -> None:
        while True:
            if not self._only_here():
                return
            await trio.sleep(POLL_S)

    async def _ask_heirs(self, rank: int) -> None:
        for manifest_id, care in self._cares.items():
            holdings = self._fetcher.office(manifest_id)
            if holdings is None:
                continue
            # A device that does not say its uptime does not know the message either.
            others = {device: bits for device, bits in holdings.peers.items() if self._uptimes.get(device)}
            mine = holdings.mine & ~holdings.lan
            for heir, bits in care.keeping.heirs(mine, others, self._uptimes, rank).items():
                for message in handover_messages(manifest_id, bits):
                    await self._send(heir, message)

    def _only_here(self) -> dict[ManifestId, int]:
        """Chunks that only I hold and that a neighbour could take: of releases kept here, or that it is fetching."""
        found = {}
        kept = {manifest_id: care.keeping.manifest for manifest_id, care in self._cares.items()}
        for manifest_id, manifest in {**self._wanted, **kept}.items():
            holdings = self._fetcher.office(manifest_id)
            if holdings is None or not any(self._can_take(manifest_id, device, holdings) for device in holdings.peers):
                continue
            only = holdings.mine & ~holdings.lan & (1 << len(manifest.chunks)) - 1
            if only:
                found[manifest_id] = only
        return found

    def _can_take(self, manifest_id: ManifestId, device: DeviceId, holdings: OfficeHoldings) -> bool:
        if device in holdings.lending:
            return False
        return device not in holdings.keeping or (manifest_id in self._cares and bool(self._uptimes.get(device)))

    # What people ask

    def figures(self) -> CacheFigures:
        """Of the releases that are wanted or kept here."""
        releases = []
        sizes: dict[ChunkId, int] = {}
        copies: dict[ChunkId, int] = {}
        mine: set[ChunkId] = set()
        for manifest_id, manifest in {**self._fetcher.wanted, **self._fetcher.kept}.items():
            holdings = self._fetcher.office(manifest_id)
            if holdings is None:
                continue
            holders = [holdings.mine, *holdings.peers.values()]
            counts = count_copies(len(manifest.chunks), holders)
            held = [position for position in positions_of(holdings.mine) if position < len(manifest.chunks)]
            for chunk, size, count in zip(manifest.chunks, manifest.sizes, counts, strict=True):
                sizes[chunk], copies[chunk] = size, max(copies.get(chunk, 0), count)
            mine.update(manifest.chunks[position] for position in held)
            releases.append(
                ReleaseCopies(
                    manifest.release,
                    manifest.version,
                    min(counts, default=0),
                    sorted(counts)[(len(counts) - 1) // 2] if counts else 0,
                    sum(manifest.sizes[position] for position in held),
                    sum(size * count for size, count in zip(manifest.sizes, counts, strict=True)),
                )
            )
        return CacheFigures(
            self._copies,
            sum(sizes[chunk] for chunk in mine),
            sum(size * copies[chunk] for chunk, size in sizes.items()),
            tuple(releases),
        )
