"""One manifest on one device: folds events through holdings, ownership, picker and conduct. Core.

The fetcher's shell and the simulation drive this class and nothing below it. An event goes in with the time; effects come
out, in the order in which they are to be done: announcements leave before the claim that they settle, so that nobody sees
a segment unclaimed and unheld in between.

What is *wanted* of the table: the release zone; the base chunks of the deltas that I fetch, until they are decoded; and layouts
that somebody here asks for (``want_layout``). All that I hold is announced, wanted or not.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.announcements import drop_messages, have_messages, holdings_message, read_untrusted
from pcm_p2p.swarm.conduct import Conduct
from pcm_p2p.swarm.events import (
    Banned,
    Blame,
    Broadcast,
    ChunkArrived,
    ChunkFailed,
    ChunkFailure,
    Effect,
    Event,
    Gained,
    Lost,
    Paused,
    PeerDown,
    PeerDropped,
    PeerGained,
    PeerHolds,
    PeerLends,
    PeerUp,
    Resumed,
    SegmentDone,
    SegmentFailedHere,
    Send,
    Tick,
)
from pcm_p2p.swarm.holdings import OfficeHoldings, bits_of, positions_of
from pcm_p2p.swarm.ownership import Ownership
from pcm_p2p.swarm.picker import ASKED_MAX, Budget, Picker
from pcm_p2p.swarm.prices import runs_of
from pcm_p2p.swarm.turns import Slots
from pcm_p2p.wire.messages import Message

HAVE_MS = 10  # measured: DESIGN.md 8; a second of delay doubles the completion time
REPAIR_MS = 60_000  # choice: all my holdings once a minute while incomplete, should an announcement have been lost

_BLAME: dict[ChunkFailure, str] = {
    "wrong": "sent bytes that are not the chunk",
    "slow": "does not deliver what it says it holds",
    "missing": "says it holds chunks that it has not",
    "error": "fails to serve",
}
_LEAVES_OWNERSHIP_ALONE = (ChunkArrived, PeerGained, Gained)


class Exchange:
    """``held`` are the chunks already in the store (a bit field), ``partial_pct`` the segments with a part on disk.

    ``next_ms`` is when a ``Tick`` is due at the latest. Times: see ``Ownership``. ``keeps``: the release is in place, and only
    copies of it are kept (``keep``); otherwise everything is wanted. ``why_not_gzip``: as ``decoding.SegmentDecoder``.
    """

    def __init__(
        self,
        manifest: Manifest,
        held: int,
        me: DeviceId,
        *,
        weight: int,
        conduct: Conduct,
        slots: Slots,
        budget: Budget,
        rng: random.Random,
        settle_ms: int,
        started_ms: int,
        roster_changed_ms: int,
        now_ms: int,
        partial_pct: Mapping[int, int] = MappingProxyType({}),
        keeps: bool = False,
        why_not_gzip: str = "",
    ) -> None:
        self.manifest = manifest
        self._lacks_gzip = bool(why_not_gzip)
        self.release = (1 << len(manifest.sizes)) - 1
        """The bits of the release zone."""
        self.holdings = OfficeHoldings(len(manifest.table_sizes), held, self.release)
        self.paused = ""
        self.keeps = keeps
        self._copies = 0
        self._layouts: dict[int, int] = {}
        self._id = manifest.manifest_id
        self._conduct = conduct
        self.ownership = Ownership(
            me,
            weight,
            self._id,
            runs_of(manifest),
            self.holdings,
            slots,
            rng,
            settle_ms=settle_ms,
            started_ms=started_ms,
            roster_changed_ms=roster_changed_ms,
            now_ms=now_ms,
            partial_pct=partial_pct,
            aids=self.holdings.full & ~self.release,
            why_not_gzip=why_not_gzip,
        )
        self.ownership.passive = keeps
        self._want()
        self.picker = Picker(self.holdings, manifest.table_sizes, budget, rng)
        self._site: set[DeviceId] = set()
        self._unsaid = 0
        self._say_ms: int | None = None
        self._repair_ms = now_ms + REPAIR_MS
        self.next_ms: int = now_ms

    @property
    def complete(self) -> bool:
        return not self.release & ~self.holdings.mine

    def keep(self, copies: int, now_ms: int, *, urgent: bool = False) -> list[Effect]:
        """The release is in place: nothing of it is fetched over the WAN, and from neighbours just ``copies`` (a bit field), one
        at a time unless it is ``urgent``."""
        began, copies, asked_max = not self.keeps, copies & self.release, ASKED_MAX if urgent else 1
        if not began and (copies, asked_max) == (self._copies, self.picker.asked_max):
            return []
        self._copies, self.picker.asked_max = copies, asked_max
        self.keeps = self.ownership.passive = True
        for device in sorted(self.holdings.lending):
            self.holdings.peer_left(device)
        self._want()
        return ([Broadcast(self._holdings_message())] if began else []) + self.handle(Tick(), now_ms)

    def want(self, now_ms: int) -> list[Effect]:
        """Everything is wanted (again)."""
        if not self.keeps:
            return []
        self.keeps = self.ownership.passive = False
        self.picker.asked_max = ASKED_MAX
        self._want()
        return [Broadcast(self._holdings_message()), *self.handle(Tick(), now_ms)]

    def want_layout(self, layout: int, now_ms: int) -> list[Effect]:
        """Fetch this one of the manifest's ``layouts`` too, from neighbours or over the WAN."""
        if layout in self._layouts:
            return []
        row = self.manifest.layouts[layout]
        self._layouts[layout] = ((1 << row.count) - 1) << row.first
        self._want()
        return self.handle(Tick(), now_ms)

    def drop_layout(self, layout: int, now_ms: int) -> list[Effect]:
        """It is not wanted any more; what is here of it stays."""
        if self._layouts.pop(layout, None) is None:
            return []
        self._want()
        return self.handle(Tick(), now_ms)

    def has_layout(self, layout: int) -> bool:
        row = self.manifest.layouts[layout]
        return not ((1 << row.count) - 1) << row.first & ~self.holdings.mine

    def bases_missing(self) -> dict[int, int]:
        """Base chunks that nobody in the office has and that would make a full segment needless, by base release (bit fields).

        Empty until the roster is settled.
        """
        return self.ownership.prices.bases_missing() if self.ownership.settled and not self.keeps else {}

    def meet(self, device: DeviceId, weight: int, now_ms: int) -> None:
        """A neighbour whose session was up before the manifest became wanted; ``begin`` tells it what I hold."""
        if not self._conduct.banned(device, now_ms):
            self._site.add(device)
            self.ownership.meet(device, weight)

    def begin(self) -> list[Effect]:
        """What to say when the manifest becomes wanted: all I hold, to all."""
        return [Broadcast(self._holdings_message())]

    def receive_untrusted(self, device: DeviceId, message: Message, now_ms: int) -> list[Effect]:
        """A message of a neighbour about this manifest. Nonsense costs the neighbour a strike and changes nothing."""
        if device not in self._site or self._conduct.banned(device, now_ms):
            return []
        try:
            event = read_untrusted(device, message, self.manifest)
        except UntrustedBytes as error:
            banned = self._conduct.failed(device, "wrong", now_ms)
            return [Blame(device, f"announces nonsense: {error.message}")] if banned else []
        return self.handle(event, now_ms)

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        pick = True
        match event:
            case PeerUp():
                if self._conduct.banned(event.device, now_ms):
                    return []
                self._site.add(event.device)
                effects.append(Send(event.device, self._holdings_message()))
            case PeerDown() | Banned():
                self._site.discard(event.device)
                self.holdings.peer_left(event.device)
                self.picker.peer_left(event.device)
            case PeerHolds():
                if event.device not in self.holdings.peers or event.device in self.holdings.lending:
                    # It began to want the manifest after I told it: tell it again.
                    effects.append(Send(event.device, self._holdings_message()))
                    effects.extend(self.ownership.tell(event.device, now_ms))
                self.holdings.lending.discard(event.device)
                self.holdings.peer_holds(event.device, event.bits)
                if event.keeps:
                    self.holdings.keeping.add(event.device)
                else:
                    self.holdings.keeping.discard(event.device)
                if event.lacks_gzip:
                    self.holdings.lacking_gzip.add(event.device)
                else:
                    self.holdings.lacking_gzip.discard(event.device)
            case PeerGained():
                gained = bits_of(event.positions)
                self.holdings.peer_gains(event.device, gained)
                self.ownership.hurry(now_ms)
                pick = bool(gained & self.holdings.missing)
            case PeerLends():
                if event.device in self._site and not self.keeps:
                    self.holdings.peer_lends(event.device, event.among, event.bits)
            case PeerDropped():
                self.holdings.peer_drops(event.device, bits_of(event.positions))
            case Gained():
                self._gain(bits_of(event.positions), now_ms)
            case ChunkArrived():
                self.picker.arrived(event.device, event.position, now_ms)
                self._conduct.delivered(event.device)
                if event.device in self.holdings.peers:
                    self.holdings.proven.add(event.device)
                self._gain(1 << event.position, now_ms)
            case ChunkFailed():
                self.picker.failed(event.device, event.position, event.why, now_ms)
                if event.why == "missing" and event.device in self.holdings.lending:
                    # It let go of the old release, which is its own affair: nothing more is asked of it.
                    self.holdings.peer_left(event.device)
                elif self._conduct.failed(event.device, event.why, now_ms):
                    effects.append(Blame(event.device, _BLAME.get(event.why, "does not serve")))
            case Lost():
                gone = self.holdings.lose(bits_of(event.positions))
                self._unsaid &= ~gone
                effects.extend(Broadcast(message) for message in drop_messages(self._id, positions_of(gone)))
            case SegmentDone() | SegmentFailedHere():
                effects.extend(self._say())
            case Paused():
                self.paused = event.reason
            case Resumed():
                self.paused = ""
            case _:
                pass
        if self._say_ms is not None and now_ms >= self._say_ms:
            effects.extend(self._say())
        if now_ms >= self._repair_ms:
            self._repair_ms = now_ms + REPAIR_MS
            if self.holdings.missing:
                effects.append(Broadcast(self._holdings_message()))
        if not isinstance(event, _LEAVES_OWNERSHIP_ALONE) or now_ms >= self.ownership.next_ms:
            effects.extend(self.ownership.handle(event, now_ms))
            self._want()
        picker_due = self.picker.next_ms is not None and now_ms >= self.picker.next_ms
        if self.paused:
            self.picker.next_ms = None
        elif pick or picker_due:
            effects.extend(self.picker.next_requests(now_ms, self.ownership.being_decoded))
        self.next_ms = min(
            self.ownership.next_ms,
            *(at_ms for at_ms in (self._say_ms, self.picker.next_ms) if at_ms is not None),
            *((self._repair_ms,) if self.holdings.missing else ()),
            now_ms + REPAIR_MS,
        )
        return effects

    def _gain(self, bits: int, now_ms: int) -> None:
        new = self.holdings.gain(bits)
        if new:
            self._unsaid |= new
            if self._say_ms is None:
                self._say_ms = now_ms + HAVE_MS

    def _say(self) -> list[Effect]:
        unsaid, self._unsaid, self._say_ms = self._unsaid, 0, None
        return [Broadcast(message) for message in have_messages(self._id, positions_of(unsaid))]

    def _want(self) -> None:
        wanted = self._copies if self.keeps else self.release | self.ownership.bases_in_use
        for bits in self._layouts.values():
            wanted |= bits
        self.holdings.wanted = wanted

    def _holdings_message(self) -> Message:
        count, bits = self.holdings.chunk_count, self.holdings.mine
        return holdings_message(self._id, count, bits, keeps=self.keeps, lacks_gzip=self._lacks_gzip)
