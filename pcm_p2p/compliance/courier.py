"""Courier: which waiting record goes to whom, and when to look for a collector. A core: events in, effects out.

Plan
- A device that reaches a collector hands everything it holds to it, own records first, oldest first.
- One that does not asks its neighbours at the site. Those that say they have a route come first, and one of them is enough:
  a record goes to the next only after ``resend_ms`` without an acknowledgement. Where nobody has a route, an *own* record is
  given to up to ``copies_max`` neighbours, which carry it until they meet a route (research/gossip-scale.md 1.6: beyond four
  copies nothing is gained). What is carried for others is handed on to a neighbour with a route only.
- Nothing is offered twice to the same neighbour within ``resend_ms`` or ``recopy_ms`` (request skipping), which counts from
  its arrival for whoever gave it and for its author.
- An acknowledgement goes back along the way the record came and to where copies went, so that each carrier can let go. Who
  forgot that way in a restart is asked: after ``recopy_ms`` a carrier offers the record to its author, who answers with the
  acknowledgement, or notices that its own state was rolled back.

Which of several neighbours: one that was not asked yet, then the one asked longest ago; among equals by rendezvous hash of
author and neighbour, so that a site spreads its load without talking about it.

``handle(event, now_ms)`` takes a monotonic clock. At most one ``Put`` is under way per target; its outcome must come back as
``Answered`` or ``PutFailed``. ``wake_at_ms`` says when to send a ``Tick``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from blake3 import blake3

from pcm_p2p.compliance.carriage import (
    Answered,
    CollectorDown,
    CollectorsKnown,
    CollectorUp,
    Dial,
    Effect,
    Event,
    Gone,
    HandAcks,
    HangUp,
    PeerDown,
    PeerRoute,
    PeerUp,
    Put,
    PutFailed,
    SayRoute,
    Stored,
    Tick,
)
from pcm_p2p.compliance.parcel import Parcel
from pcm_p2p.ids import DeviceId

RECORDS_AT_ONCE_MAX = 64
"""``RecordsPut`` carries no more."""
PEERS_MAX = 512
"""As many as a roster holds. Of those who are away: an acknowledgement that is forgotten is asked for again by offering the
record, a route is said again."""


@dataclass(frozen=True, slots=True)
class CourierLimits:
    """``interval_ms`` comes from the daemon's [collectors] table; the rest are choices.

    ``resend_ms``: an acknowledgement takes one upload by a carrier; after this the next neighbour is tried.
    ``recopy_ms``: the same for a copy that was left with a neighbour without a route.
    ``refused_ms``: whoever refused a record is not asked again before this.
    ``idle_ms``: an upload session without anything to send is closed after this.
    ``back_off_ms_min/max``: after a failed hand-over, doubled each time.
    ``say_again_ms``: a route is told to all neighbours again, in case a session began between two tellings.
    ``put_bytes_max``: what a 64 kbit/s uplink moves within the silence that a session endures (15 s).
    """

    direct: bool = True
    interval_ms: int = 60_000
    copies_max: int = 4
    resend_ms: int = 120_000
    recopy_ms: int = 3_600_000
    refused_ms: int = 600_000
    idle_ms: int = 30_000
    back_off_ms_min: int = 2_000
    back_off_ms_max: int = 300_000
    say_again_ms: int = 600_000
    put_bytes_max: int = 96 << 10


class _State(Enum):
    GOING = "going"
    TAKEN = "taken"
    REFUSED = "refused"


@dataclass(slots=True)
class _Offer:
    """``until_ms``: how long the answer counts; while it is going it has no end."""

    state: _State
    until_ms: int = 0

    def counts(self, now_ms: int) -> bool:
        return self.state is _State.GOING or now_ms < self.until_ms


@dataclass(slots=True)
class _Waiting:
    parcel: Parcel
    offers: dict[DeviceId, _Offer] = field(default_factory=dict)

    def may_go_to(self, target: DeviceId, now_ms: int) -> bool:
        offer = self.offers.get(target)
        return offer is None or not offer.counts(now_ms)

    def with_(self, now_ms: int) -> list[DeviceId]:
        """Who has it, or is getting it, as far as that still counts."""
        return [
            target
            for target, offer in self.offers.items()
            if offer.state is not _State.REFUSED and offer.counts(now_ms)
        ]


@dataclass(slots=True)
class _Target:
    """``routed``: it says that it reaches a collector, or is one."""

    routed: bool = False
    busy: bool = False
    failures: int = 0
    not_before_ms: int = 0

    def ready(self, now_ms: int) -> bool:
        return not self.busy and now_ms >= self.not_before_ms


class Courier:
    """Decides; sends nothing and knows no clock. ``rng`` spreads retries. ``reachable``: a collector answered me lately."""

    def __init__(self, me: DeviceId, rng: Random, limits: CourierLimits | None = None) -> None:
        self._me = me
        self._rng = rng
        self._limits = limits or CourierLimits()
        self._waiting: dict[bytes, _Waiting] = {}
        self._peers: dict[DeviceId, _Target] = {}
        self._routes_of_strangers: dict[DeviceId, bool] = {}
        self._owed: dict[DeviceId, dict[DeviceId, None]] = {}
        self._collectors: tuple[DeviceId, ...] = ()
        self._dialling: DeviceId | None = None
        self._uplink: DeviceId | None = None
        self._uplink_state = _Target(routed=True)
        self._dial_failures = 0
        self._dial_not_before_ms = 0
        self._idle_since_ms: int | None = None
        self._say_again_ms = 0
        self.reachable = False
        self.wake_at_ms: int | None = None

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Fold one event into the state and return what the shell shall do."""
        effects = self._fold(event, now_ms)
        if self.reachable and self._peers and now_ms >= self._say_again_ms:
            self._say_again_ms = now_ms + self._limits.say_again_ms
            effects.append(SayRoute(True))
        effects += self._use_uplink(now_ms) if self._uplink is not None else self._look_for_a_way(now_ms)
        self.wake_at_ms = self._next_wake(now_ms)
        return effects

    @property
    def route(self) -> str:
        """For people: how reports leave this device at present."""
        if self.reachable:
            return "direct"
        routed = sum(peer.routed for peer in self._peers.values())
        return f"through {routed} neighbour{'s' if routed != 1 else ''}" if routed else "none"

    def _fold(self, event: Event, now_ms: int) -> list[Effect]:
        match event:
            case Stored(parcels):
                for parcel in parcels:
                    self._waiting.setdefault(parcel.hash, self._known_at_its_source(parcel, now_ms))
            case Gone(hashes, advanced):
                return self._gone(hashes, advanced)
            case CollectorsKnown(collectors):
                if collectors != self._collectors:
                    self._collectors, self._dial_failures, self._dial_not_before_ms = collectors, 0, now_ms
            case CollectorUp(collector):
                self._dialling, self._uplink, self._idle_since_ms = None, collector, None
                self._uplink_state = _Target(routed=True)
            case CollectorDown(collector):
                return self._collector_down(collector, now_ms)
            case PeerUp(peer):
                self._peers[peer] = _Target(routed=self._routes_of_strangers.pop(peer, False))
                return [SayRoute(self.reachable, peer), *self._pay(peer)]
            case PeerDown(peer):
                self._peers.pop(peer, None)
                self._routes_of_strangers.pop(peer, None)
            case PeerRoute(peer, reachable):
                self._peer_route(peer, reachable, now_ms)
            case Answered(target, hashes, taken):
                return self._answered(target, hashes, taken, now_ms)
            case PutFailed(target, hashes):
                self._put_failed(target, hashes, now_ms)
            case Tick():
                pass
        return []

    def _known_at_its_source(self, parcel: Parcel, now_ms: int) -> _Waiting:
        if parcel.received_from is None:
            return _Waiting(parcel)
        until_ms = now_ms + self._limits.recopy_ms
        return _Waiting(
            parcel,
            {source: _Offer(_State.TAKEN, until_ms) for source in (parcel.received_from, parcel.key.device)},
        )

    def _gone(self, hashes: tuple[bytes, ...], advanced: tuple[DeviceId, ...]) -> list[Effect]:
        news = frozenset(advanced)
        for gone in hashes:
            waiting = self._waiting.pop(gone, None)
            if waiting is None or waiting.parcel.key.device not in news:
                continue
            author = waiting.parcel.key.device
            for peer in (*waiting.offers, author):
                if peer != self._me and peer not in self._collectors:
                    self._owed.setdefault(peer, {})[author] = None
        while len(self._owed) > PEERS_MAX:
            del self._owed[next(iter(self._owed))]
        return [effect for peer in [*self._owed] if peer in self._peers for effect in self._pay(peer)]

    def _pay(self, peer: DeviceId) -> list[Effect]:
        authors = self._owed.pop(peer, None)
        return [HandAcks(peer, tuple(authors))] if authors else []

    def _collector_down(self, collector: DeviceId, now_ms: int) -> list[Effect]:
        if self._dialling == collector:
            self._dialling = None
        elif self._uplink == collector:
            self._uplink = None
        else:
            return []
        self._dial_failures += 1
        if self._dial_failures < len(self._collectors):
            return []  # the next one at once
        interval_ms = self._limits.interval_ms
        self._dial_not_before_ms = now_ms + interval_ms * 3 // 4 + self._rng.randrange(interval_ms // 2 + 1)
        return self._now_reachable(False, now_ms)

    def _now_reachable(self, reachable: bool, now_ms: int) -> list[Effect]:
        if reachable == self.reachable:
            return []
        self.reachable = reachable
        self._say_again_ms = now_ms + self._limits.say_again_ms
        return [SayRoute(reachable)]

    def _peer_route(self, peer: DeviceId, reachable: bool, now_ms: int) -> None:
        if peer not in self._peers:  # its word was quicker than the news of its session
            if len(self._routes_of_strangers) < PEERS_MAX:
                self._routes_of_strangers[peer] = reachable
            return
        self._peers[peer].routed = reachable
        if reachable:  # it uploads what it holds at once, so its acknowledgement is due sooner
            for waiting in self._waiting.values():
                if (offer := waiting.offers.get(peer)) is not None:
                    offer.until_ms = min(offer.until_ms, now_ms + self._limits.resend_ms)

    def _answered(
        self, target: DeviceId, hashes: tuple[bytes, ...], taken: tuple[bool, ...], now_ms: int
    ) -> list[Effect]:
        state = self._target(target)
        if state is not None:
            state.busy, state.failures, state.not_before_ms = False, 0, 0
        routed = target in self._collectors or (state is not None and state.routed)
        taken_ms = self._limits.resend_ms if routed else self._limits.recopy_ms
        for offered, was_taken in zip(hashes, taken, strict=True):
            if (waiting := self._waiting.get(offered)) is not None:
                waiting.offers[target] = (
                    _Offer(_State.TAKEN, now_ms + taken_ms)
                    if was_taken
                    else _Offer(_State.REFUSED, now_ms + self._limits.refused_ms)
                )
        if target not in self._collectors:
            return []
        self._dial_failures = 0
        return self._now_reachable(True, now_ms)

    def _put_failed(self, target: DeviceId, hashes: tuple[bytes, ...], now_ms: int) -> None:
        for offered in hashes:
            if (waiting := self._waiting.get(offered)) is not None:
                waiting.offers.pop(target, None)
        if (state := self._target(target)) is not None:
            wait_ms = min(self._limits.back_off_ms_min << min(state.failures, 16), self._limits.back_off_ms_max)
            state.busy = False
            state.failures += 1
            state.not_before_ms = now_ms + wait_ms // 2 + self._rng.randrange(wait_ms // 2 + 1)

    def _target(self, target: DeviceId) -> _Target | None:
        return self._uplink_state if target == self._uplink else self._peers.get(target)

    def _use_uplink(self, now_ms: int) -> list[Effect]:
        assert self._uplink is not None
        collector, state = self._uplink, self._uplink_state
        if not state.ready(now_ms):
            return []
        own_first = sorted(self._waiting.values(), key=lambda waiting: waiting.parcel.received_from is not None)
        if put := self._put(collector, state, own_first, now_ms, to_collector=True):
            self._idle_since_ms = None
            return put
        if self._idle_since_ms is None:
            self._idle_since_ms = now_ms
        if now_ms - self._idle_since_ms < self._limits.idle_ms:
            return []
        self._uplink = None
        return [HangUp(collector)]

    def _look_for_a_way(self, now_ms: int) -> list[Effect]:
        if not self._waiting:
            return []
        effects: list[Effect] = []
        may_dial = self._limits.direct and bool(self._collectors)
        if may_dial and self._dialling is None and now_ms >= self._dial_not_before_ms and self._has_news(now_ms):
            self._dialling = self._collectors[self._dial_failures % len(self._collectors)]
            effects.append(Dial(self._dialling))
        cut_off = not may_dial or self._dial_failures >= len(self._collectors)
        return effects + self._use_neighbours(now_ms) if cut_off else effects

    def _has_news(self, now_ms: int) -> bool:
        """Whether there is something that the collectors have not just refused or taken without acknowledging."""
        return any(
            waiting.may_go_to(collector, now_ms) for waiting in self._waiting.values() for collector in self._collectors
        )

    def _use_neighbours(self, now_ms: int) -> list[Effect]:
        ready = [peer for peer, state in self._peers.items() if state.ready(now_ms)]
        routed = [peer for peer, state in self._peers.items() if state.routed]
        wanted: dict[DeviceId, list[_Waiting]] = {}
        for waiting in self._waiting.values() if ready else ():
            held_by = waiting.with_(now_ms)
            if routed:
                # One neighbour with a route is enough, while it has time to deliver.
                candidates = (
                    [] if any(peer in routed for peer in held_by) else [peer for peer in ready if peer in routed]
                )
            elif waiting.parcel.received_from is None:
                candidates = ready if len(held_by) < self._limits.copies_max else []
            else:
                candidates = [peer for peer in ready if peer == waiting.parcel.key.device]
            target = self._best(waiting, candidates, now_ms)
            if target is not None:
                wanted.setdefault(target, []).append(waiting)
        return [
            effect
            for peer, records in wanted.items()
            for effect in self._put(peer, self._peers[peer], records, now_ms, to_collector=False)
        ]

    def _best(self, waiting: _Waiting, candidates: list[DeviceId], now_ms: int) -> DeviceId | None:
        """Whoever was never asked before whoever was asked longest ago: one that takes and never delivers is no dead end."""
        author = waiting.parcel.key.device

        def rank(peer: DeviceId) -> tuple[int, bytes, DeviceId]:
            offer = waiting.offers.get(peer)
            return -offer.until_ms if offer is not None else 1, blake3(author + peer).digest(8), peer

        return max((peer for peer in candidates if waiting.may_go_to(peer, now_ms)), key=rank, default=None)

    def _put(
        self, target: DeviceId, state: _Target, candidates: Iterable[_Waiting], now_ms: int, *, to_collector: bool
    ) -> list[Effect]:
        batch: list[bytes] = []
        size_bytes = 0
        for waiting in candidates:
            if not waiting.may_go_to(target, now_ms):
                continue
            size_bytes += waiting.parcel.size_bytes
            if batch and (size_bytes > self._limits.put_bytes_max or len(batch) >= RECORDS_AT_ONCE_MAX):
                break
            batch.append(waiting.parcel.hash)
            waiting.offers[target] = _Offer(_State.GOING)
        if not batch:
            return []
        state.busy = True
        return [Put(target, tuple(batch), to_collector)]

    def _next_wake(self, now_ms: int) -> int | None:
        times = [state.not_before_ms for state in (self._uplink_state, *self._peers.values())]
        if self._uplink is not None and self._idle_since_ms is not None:
            times.append(self._idle_since_ms + self._limits.idle_ms)
        if self.reachable and self._peers:
            times.append(self._say_again_ms)
        if self._waiting:
            times.append(self._dial_not_before_ms)
            times += [offer.until_ms for waiting in self._waiting.values() for offer in waiting.offers.values()]
        return min((time_ms for time_ms in times if time_ms > now_ms), default=None)
