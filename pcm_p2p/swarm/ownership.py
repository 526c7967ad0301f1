"""Which run of one manifest I fetch over the WAN, and when; by which of its ways is ``prices``'s to say. Core.

Two stages, both by rendezvous hashing over the *candidates* (me, and neighbours that announced holdings of this manifest
and whose weight is not 0): at most ``FETCHERS_MAX`` fetchers for the manifest, and for each segment an order among them,
then among the rest. Rank 0 is the owner. All devices compute the same, as far as they know the same; claims mend the
difference.

Rules (after research/gossip-scale.md 1.5, where the figures come from; what differs says why):

1. Nothing starts before the roster is settled: quiet for ``settle_ms``, or ``SETTLE_MS_MAX`` after it was looked at
   first. A device without any neighbour always waits for the latter, counted from the start of its daemon: at a
   simultaneous start all are alone for a moment. With neighbours, ``MEET_MS`` pass after the manifest became wanted:
   whoever wanted it earlier renews its claims within that time, and whoever wants it now has announced its holdings.
2. A segment is *needed* while the office lacks one of its chunks. It is never fetched otherwise, and a fetch of it is
   aborted when neighbours that have delivered before have come to hold the rest. A boast alone stops nothing.
3. The owner claims after a jitter. Claims are renewed each second and after every change; a live claim of anybody
   keeps all others away, whatever their rank, so that late joiners with another view change nothing.
4. When two claim the same segment (claims crossed), one aborts: who is ``AHEAD_PCT`` or more behind, else who comes
   later in the unweighted order. Both compute it from the pair alone, and progress only grows, so never both abort.
   (The research has a limit at half of the segment; comparing progress wastes less.) Who has a part of an open
   segment on disk starts it first, and claims it with that progress.
5. A claim lapses when its renewals stop, when its progress stops for its lease, or when the session ends. The segment
   is then open, and the lapsed device comes last for it; its claim counts again when it has made progress. After two
   lapses a device has weight 0 for ten minutes (``claims``).
6. An idle fetcher steals: rank r takes an unclaimed segment after r × ``STEAL_MS`` if its owner is busy with another
   one, and after r × ``LADDER_MS`` if the owner is silent. Outside the fetchers the latter holds always.
7. A failure at the origin is told to all: the segment rests for a time that doubles with each failure, and who failed
   comes last for it, so that one device behind a broken firewall does not hold it and an outage does not bring N ×
   retries.
8. The owner fetches the cheapest usable way, and changes it as neighbours come and go (``prices`` rule 3). A delta that does
   not decode here, or whose base neighbours do not deliver within ``BASE_STALL_MS``, gives way to the full segment at once,
   by the same owner under the same claim.
9. Where the cheapest way takes gzip, who lacks it comes last, waits while those who have it are busy, and takes the full segment
   when there is nobody left for the delta.
10. A layout is fetched by who wants it, out of turn and beside the others: it is small, and full segments wait for it.

A device fetches ``SEGMENTS_MAX`` segments at once while there are few fetchers, else one: small pieces in flight are
what a crash costs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pcm_p2p.ids import DeviceId, ManifestId
from pcm_p2p.swarm import rendezvous
from pcm_p2p.swarm.agenda import Agenda
from pcm_p2p.swarm.announcements import claim_message, failure_message
from pcm_p2p.swarm.claims import LEASE_MS_MIN, Claims
from pcm_p2p.swarm.events import (
    AbortSegment,
    Banned,
    BaseRefused,
    Broadcast,
    ClaimHeard,
    Effect,
    Event,
    FailureHeard,
    Paused,
    PeerDown,
    PeerUp,
    Resumed,
    SegmentDone,
    SegmentFailedHere,
    SegmentProgress,
    Send,
    StartSegment,
)
from pcm_p2p.swarm.fetching import RunFetch
from pcm_p2p.swarm.holdings import OfficeHoldings
from pcm_p2p.swarm.prices import SWITCHES_MAX, Grace, Prices, SegmentRun, Way
from pcm_p2p.swarm.settling import Settling
from pcm_p2p.swarm.troubles import Troubles
from pcm_p2p.swarm.turns import Slots, Turns
from pcm_p2p.wire.messages import Claim, ClaimedSegment

HURRY_MS = 50  # choice
RENEW_MS = 1_000  # gossip-scale.md 1.5
AHEAD_PCT = 10  # choice: claims are a second old at most


class Ownership:
    """Fold events, get effects; ``next_ms`` says when to call with ``Tick`` at the latest.

    ``started_ms``: when the daemon started; ``roster_changed_ms``: when a neighbour last came or went. ``holdings`` is
    shared with the exchange, which has updated it before an event arrives here. ``partial_pct``: segments of which a
    part is on disk already. ``aids``: the bits of the base and layout zones.
    """

    def __init__(
        self,
        me: DeviceId,
        weight: int,
        manifest: ManifestId,
        segments: Sequence[SegmentRun],
        holdings: OfficeHoldings,
        slots: Slots,
        rng: random.Random,
        *,
        settle_ms: int,
        started_ms: int,
        roster_changed_ms: int,
        now_ms: int,
        partial_pct: Mapping[int, int] = MappingProxyType({}),
        aids: int = 0,
        why_not_gzip: str = "",
    ) -> None:
        self._me, self._weight, self._manifest = me, weight, manifest
        self._segments = {segment.index: segment for segment in segments}
        self._holdings, self._slots = holdings, slots
        self.prices = Prices(segments, holdings, partial_pct, why_not_gzip=why_not_gzip)
        self._lacks_gzip = bool(why_not_gzip)
        self._grace = Grace(aids, holdings)
        self._settling = Settling(
            settle_ms=settle_ms, started_ms=started_ms, created_ms=now_ms, roster_changed_ms=roster_changed_ms
        )
        self._site: dict[DeviceId, int] = {}
        self._claims = Claims()
        self._mine: dict[int, RunFetch] = {}
        self._troubles = Troubles()
        self._agenda = Agenda(me, segments, self._troubles, rng)
        self.passive = False
        """Fetch nothing over the WAN: the release is in place, and only copies of it are kept."""
        self._paused = ""
        self._origin_rests_until_ms = 0
        self._origin_reason = ""
        self._claimed_ms = now_ms
        self.next_ms: int = now_ms

    def meet(self, device: DeviceId, weight: int) -> None:
        """A neighbour that was there before this manifest: it does not unsettle the roster."""
        self._site[device] = weight

    def hurry(self, now_ms: int) -> None:
        """Neighbours gained chunks: look soon whether my fetches are still needed, but not at each announcement."""
        if self._mine:
            self.next_ms = min(self.next_ms, now_ms + HURRY_MS)

    def tell(self, device: DeviceId, now_ms: int) -> list[Effect]:
        """My claim for a neighbour that cannot have heard it yet; nothing if I fetch nothing."""
        return [Send(device, self._claim(now_ms))] if self._mine else []

    # -- events ---------------------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        changed = False
        match event:
            case PeerUp():
                self._site[event.device] = event.weight
                self._settling.roster_changed_ms = now_ms
                effects.extend(self.tell(event.device, now_ms))
            case PeerDown() | Banned():
                if self._site.pop(event.device, None) is not None:
                    self._settling.roster_changed_ms = now_ms
                self._agenda.opened(self._claims.forget(event.device), now_ms)
            case Paused():
                self._paused = event.reason
                changed = bool(self._mine)
                effects.extend(self._abort(index, event.reason) for index in list(self._mine))
            case Resumed():
                self._paused = ""
            case ClaimHeard():
                effects.extend(self._claim_heard(event, now_ms))
            case FailureHeard():
                self.prices.failed_elsewhere(event.device, event.index)
                if event.device in self._claims.of(event.index):
                    self._troubles.failed(event.index, event.device, event.reason, event.wait_ms, now_ms)
                    if self._claims.drop(event.index, event.device):
                        self._agenda.opened([event.index], now_ms)
            case BaseRefused():
                self.prices.refuse_bases(event.reason)
            case SegmentProgress():
                mine = self._mine.get(event.index)
                if mine is not None:
                    mine.progress(event.done_pct, now_ms)
                if now_ms < self.next_ms:
                    return []
            case SegmentDone():
                changed = self._finish(event.index)
            case SegmentFailedHere():
                failed = self._failed_here(event, now_ms)
                changed = bool(failed)
                effects.extend(failed)
            case _:
                pass
        effects.extend(self._decide(now_ms, changed=changed))
        return effects

    def _claim_heard(self, event: ClaimHeard, now_ms: int) -> list[Effect]:
        if event.claimant == self._me or (event.device != event.claimant and event.claimant in self._site):
            return []  # its own word comes over its own session
        self._agenda.opened(self._claims.hear(event, self._segments, now_ms), now_ms)
        if not self._claims.to_relay(event, len(self._site)):
            return []
        relayed = claim_message(self._manifest, event.claimant, event.lease_ms, event.segments, hops=0)
        return [Broadcast(relayed, besides=event.claimant)]

    def _failed_here(self, event: SegmentFailedHere, now_ms: int) -> list[Effect]:
        mine = self._mine.get(event.index)
        if mine is None:
            return []
        effects: list[Effect] = []
        if event.bad_blob:
            mine.done_pct = 0
        if event.bad_blob and mine.way.of >= 0:
            self.prices.fail(mine.way.segment, event.reason)
            effects.append(Broadcast(failure_message(self._manifest, mine.way.segment, event.reason, 0)))
            if not event.whole_origin:
                return [*effects, self._change(event.index, self.prices.best(event.index), now_ms)]
        self._finish(event.index)
        wait_ms = self._troubles.failed(event.index, self._me, event.reason, event.wait_ms, now_ms)
        self._agenda.opened([event.index], now_ms)
        if event.whole_origin:
            self._origin_rests_until_ms, self._origin_reason = now_ms + wait_ms, event.reason
        return [*effects, Broadcast(failure_message(self._manifest, event.index, event.reason, wait_ms))]

    def _finish(self, index: int) -> bool:
        mine = self._mine.pop(index, None)
        if mine is None:
            return False
        self.prices.keep_part(mine.way.segment, mine.done_pct)
        if not self._segments[index].aid:
            self._slots.taken -= 1
        return True

    def _change(self, index: int, way: Way, now_ms: int) -> StartSegment:
        """Go on with another blob for the same run."""
        mine = self._mine[index]
        self.prices.keep_part(mine.way.segment, mine.done_pct)
        done_pct = self.prices.partial_pct(way.segment)
        self._mine[index] = RunFetch(way, now_ms, now_ms, done_pct, mine.changes + 1, base_moved_ms=now_ms)
        return StartSegment(index, way.segment)

    def _abort(self, index: int, reason: str) -> Effect:
        self._finish(index)
        return AbortSegment(index, reason)

    # -- decision -------------------------------------------------------------------------------------------------------------

    def _decide(self, now_ms: int, *, changed: bool) -> list[Effect]:
        effects: list[Effect] = []
        self._expire(now_ms)
        if self._lacks_gzip:
            others = self._candidates(now_ms).keys() - {self._me}
            self.prices.others_have_gzip = bool(others - self._holdings.lacking_gzip)
        for index in list(self._mine):
            reason = self._abort_reason(index)
            if reason:
                effects.append(self._abort(index, reason))
                changed = True
                continue
            way, reason = self._other_way(index, now_ms)
            if way is not None:
                effects += (AbortSegment(index, reason), self._change(index, way, now_ms))
                changed = True
        times = [now_ms + RENEW_MS] if self._mine or self._claims else []
        if self._may_start(now_ms, times):
            started = self._start(now_ms, times)
            effects.extend(started)
            changed = changed or bool(started)
        if changed or (self._mine and now_ms - self._claimed_ms >= RENEW_MS):
            self._claimed_ms = now_ms
            effects.append(Broadcast(self._claim(now_ms)))
        self.next_ms = min(times, default=now_ms + 60_000)
        return effects

    def _expire(self, now_ms: int) -> None:
        for index, device, opened in self._claims.expire(now_ms):
            self._troubles.lapsed(index, device)
            if opened:
                self._agenda.opened([index], now_ms)

    def _abort_reason(self, index: int) -> str:
        mine, bits = self._mine[index], self._segments[index].bits
        if mine.is_decoding(self._holdings):
            return ""
        if not bits & self._holdings.wanted:
            return "it is not wanted any more"
        if not bits & ~(self._holdings.mine | self._holdings.proven_lan()):
            return "neighbours hold it now"
        for device, done_pct in self._claims.of(index).items():
            if self._loses(index, mine.done_pct, device, done_pct):
                return f"{device.short} fetches it too and goes first"
        return ""

    def _other_way(self, index: int, now_ms: int) -> tuple[Way | None, str]:
        """The way to change to from the present one, and why; None if that goes on."""
        mine = self._mine[index]
        mine.look_at_base(self._holdings, now_ms)
        if mine.stalls(now_ms):
            self.prices.fail(mine.way.segment, "neighbours do not deliver its base")
        if not self.prices.usable(mine.way):
            return self.prices.best(index), self.prices.why_not(mine.way.segment)
        if mine.done_pct < 100 and mine.changes < SWITCHES_MAX:
            return self.prices.cheaper(index, mine.way, mine.done_pct), "another way has become cheaper"
        return None, ""

    def _loses(self, index: int, my_pct: int, other: DeviceId, other_pct: int) -> bool:
        if abs(other_pct - my_pct) >= AHEAD_PCT:
            return other_pct > my_pct
        key = self._segments[index].key
        return (rendezvous.cost(other, key), other) < (rendezvous.cost(self._me, key), self._me)

    def _needed(self, index: int) -> bool:
        return bool(self._segments[index].bits & self._holdings.wanted & ~self._holdings.office)

    def _may_start(self, now_ms: int, times: list[int]) -> bool:
        """Whether a segment may be started at all; else puts into ``times`` when to look again."""
        alone = not self._site
        if self._settling.look(now_ms, alone=alone):
            self._agenda.begin_anew()
        if self._settling.since_ms is None:
            times.append(self._settling.due_ms(alone=alone))
            return False
        if self._paused or self.passive or self._weight == 0 or not self._holdings.missing:
            return False
        if now_ms < self._origin_rests_until_ms:
            times.append(self._origin_rests_until_ms)
            return False
        return True

    def _start(self, now_ms: int, times: list[int]) -> list[Effect]:
        open_now = [
            segment
            for segment in self._segments.values()
            if segment.index not in self._claims and segment.index not in self._mine and self._needed(segment.index)
        ]
        grace_ms = self._grace_ms(now_ms)
        if now_ms < grace_ms:
            waiting = {segment.index for segment in open_now if self.prices.may_be_rebuilt(segment.index)}
            open_now = [segment for segment in open_now if segment.index not in waiting]
            if waiting:
                times.append(min(grace_ms, now_ms + RENEW_MS))
        lacking = self._holdings.lacking_gzip | ({self._me} if self._lacks_gzip else set())
        for_gzip = {run.index for run in open_now if lacking and self.prices.best_of_office(run.index).needs_gzip}
        candidates, busy = self._candidates(now_ms), self._claims.busy()
        turns = Turns(self._me, self._manifest, candidates, busy, self._troubles, lacking, for_gzip)
        effects: list[Effect] = []
        for rank, index in self._agenda.ready(open_now, turns, self._goes_on, now_ms, times):
            if not self._segments[index].aid:
                if self._has_enough(turns.limit) or (rank > 0 and self._mine):
                    times.append(now_ms + RENEW_MS)
                    break
                self._slots.taken += 1
            way = self.prices.best(index)
            done_pct = self.prices.partial_pct(way.segment)
            self._mine[index] = RunFetch(way, now_ms, now_ms, done_pct, base_moved_ms=now_ms)
            effects.append(StartSegment(index, way.segment))
        return effects

    def _has_enough(self, limit: int) -> bool:
        mine = sum(not self._segments[index].aid for index in self._mine)
        return mine >= limit or self._slots.taken >= self._slots.count

    def _grace_ms(self, now_ms: int) -> int:
        """Until when full segments wait for a base that is being rebuilt."""
        assert self._settling.since_ms is not None
        aids = [run for run in self._segments.values() if run.aid]
        if not aids:
            return 0
        known = self._holdings.office
        signs = any(run.bits & known or run.index in self._claims or run.index in self._mine for run in aids)
        return self._grace.until_ms(self._settling.since_ms, signs=signs, now_ms=now_ms)

    def _candidates(self, now_ms: int) -> dict[DeviceId, int]:
        """Weights of all who may fetch; me among them (the caller has seen to it that my weight is not 0)."""
        candidates = {
            device: weight
            for device, weight in self._site.items()
            if weight > 0
            and device in self._holdings.peers
            and device not in self._holdings.keeping
            and device not in self._holdings.lending
            and not self._claims.suspended(device, now_ms)
        }
        candidates[self._me] = self._weight
        return candidates

    def _goes_on(self, segment: SegmentRun, owner: DeviceId) -> bool:
        """I have a part of it, can use the cheapest way, and have not failed more often than who would be its owner."""
        if self._lacks_gzip and self.prices.best_of_office(segment.index).needs_gzip:
            return False
        failures = self._troubles.failures(segment.index)
        has_part = self.prices.partial_pct(self.prices.best(segment.index).segment) > 0
        return has_part and failures.get(self._me, 0) <= failures.get(owner, 0)

    # -- claims and words -----------------------------------------------------------------------------------------------------

    def _claim(self, now_ms: int) -> Claim:
        lease_ms = max((mine.lease_ms(now_ms) for mine in self._mine.values()), default=LEASE_MS_MIN)
        segments = tuple(ClaimedSegment(index=index, done_pct=mine.done_pct) for index, mine in self._mine.items())
        return claim_message(self._manifest, self._me, lease_ms, segments)

    @property
    def settled(self) -> bool:
        return self._settling.since_ms is not None

    @property
    def bases_in_use(self) -> int:
        """The base chunks of the deltas that I fetch."""
        bits = 0
        for mine in self._mine.values():
            bits |= mine.way.base
        return bits

    @property
    def being_decoded(self) -> int:
        """The chunks of my segments that come out of a decoder soon: not to be asked of neighbours."""
        bits = 0
        for index, mine in self._mine.items():
            if mine.is_decoding(self._holdings):
                bits |= self._segments[index].bits
        return bits

    def way(self, index: int) -> Way | None:
        """How I fetch this run; None if I do not."""
        mine = self._mine.get(index)
        return mine.way if mine is not None else None

    @property
    def fetching(self) -> dict[int, int]:
        """My segments and how many percent of each are here."""
        return {index: mine.done_pct for index, mine in self._mine.items()}

    def claimants(self, index: int) -> dict[DeviceId, int]:
        """Neighbours that fetch this segment, and how far they say they are (percent)."""
        return self._claims.of(index)

    def waiting_for(self, index: int, now_ms: int) -> str:
        """Why I am not fetching this needed segment; empty when nothing speaks against it."""
        if self._paused:
            return self._paused
        claims = self.claimants(index)
        if claims:
            device, done_pct = next(iter(claims.items()))
            return f"neighbour {device.short} fetches it ({done_pct} %)"
        reason = self._troubles.reason(index)
        if reason and self._needed(index):
            wait_ms = max(self._troubles.rests_until_ms(index), self._origin_rests_until_ms) - now_ms
            return f"{reason}; next try {f'in {_seconds(wait_ms)} s' if wait_ms > 0 else 'is due'}"
        if now_ms < self._origin_rests_until_ms:
            return f"{self._origin_reason}; next try in {_seconds(self._origin_rests_until_ms - now_ms)} s"
        if self._weight == 0:
            return (
                "this device does not ask the origin of this release ([limits] wan_weight = 0, or it has no way to it); "
                "waiting for a neighbour that does"
            )
        if self._settling.since_ms is None:
            wait_ms = self._settling.due_ms(alone=not self._site) - now_ms
            return f"looking for neighbours first, {_seconds(wait_ms)} s more" if wait_ms > 0 else ""
        if self._lacks_gzip and self.prices.best_of_office(index).needs_gzip:
            return "it is left to neighbours that have gzip, for whom a delta is cheaper"
        if self.prices.may_be_rebuilt(index) and now_ms < self._grace_ms(now_ms):
            return "a neighbour may rebuild its base from installed files, which is cheaper"
        return ""

    def waiting(self, now_ms: int) -> str:
        """The first reason that holds for any segment that the office lacks and I am not fetching."""
        for index in self._segments:
            if index not in self._mine and self._needed(index):
                reason = self.waiting_for(index, now_ms)
                if reason:
                    return reason
        return self._paused


def _seconds(wait_ms: int) -> int:
    return -(-wait_ms // 1000)
