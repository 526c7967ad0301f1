"""What neighbours say they fetch over the WAN, and how far they are to be believed. Core; rule 5 of ``ownership``.

A claim is *live* until it lapses: no renewal for ``QUIET_MS``, or no progress for its lease. The lease is what the claimant
asks for, within bounds of our own. A claim that lapsed counts again when it shows more progress than it had; after
``LAPSES_MAX`` lapses in ``LAPSE_MEMORY_MS`` nothing that came from that device counts for as long. Who passes on claims
that nobody keeps is as bad as who makes them, so lapses are written down for the device that a claim was heard from.

Progress that goes back is a claimant that goes on with another blob for the same run (a delta instead of the full segment, or
the other way round): its clocks start anew, ``RESTARTS_MAX`` times.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.events import ClaimHeard

QUIET_MS = 5_000  # five renewals
RELAYED_QUIET_MS = 60_000  # choice: where sessions form a full mesh only changes are relayed
LEASE_MS_MIN, LEASE_MS_MAX = 5_000, 120_000  # gossip-scale.md 1.5 rule 4; the ceiling is what a liar can cost, once
LEASE_MS_FIRST = 12_000  # connecting may take 10 s
LEASE_MS_DECODE = 20_000  # choice: a busy laptop
LAPSES_MAX, LAPSE_MEMORY_MS = 2, 600_000  # gossip-scale.md 1.5 rule 8
RESTARTS_MAX = 6  # choice: two more than an honest device makes (prices.SWITCHES_MAX)
RELAY_FROM_PEERS = 20  # DESIGN.md 8: about 20 sessions; below that everybody hears a claim first-hand


@dataclass(slots=True)
class _Claim:
    done_pct: int
    heard_ms: int
    progressed_ms: int
    lease_ms: int
    source: DeviceId
    first_hand: bool
    restarts: int = 0

    def lapsed(self, now_ms: int) -> bool:
        if not self.first_hand:
            return now_ms - self.heard_ms > RELAYED_QUIET_MS
        if now_ms - self.heard_ms > QUIET_MS:
            return True
        shortest_ms = LEASE_MS_MIN
        if self.done_pct in (0, 100):
            shortest_ms = LEASE_MS_FIRST if self.done_pct == 0 else LEASE_MS_DECODE
        return now_ms - self.progressed_ms > min(max(self.lease_ms, shortest_ms), LEASE_MS_MAX)


class Claims:
    """Live claims of neighbours by segment. Methods that end claims return the segments that nobody claims any more."""

    def __init__(self) -> None:
        self._live: dict[int, dict[DeviceId, _Claim]] = {}
        self._lapsed_pct: dict[tuple[int, DeviceId], int] = {}
        self._lapses: dict[DeviceId, list[int]] = {}
        self._relayed: dict[DeviceId, frozenset[int]] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._live

    def __bool__(self) -> bool:
        return bool(self._live)

    def of(self, index: int) -> dict[DeviceId, int]:
        """Who fetches this segment, and how far they say they are (percent)."""
        return {device: claim.done_pct for device, claim in self._live.get(index, {}).items()}

    def busy(self) -> set[DeviceId]:
        """Who fetches anything; for membership tests, its order means nothing."""
        return {device for claims in self._live.values() for device in claims}

    def hear(self, event: ClaimHeard, segments: Container[int], now_ms: int) -> list[int]:
        """All that ``event.claimant`` fetches now; claims of it that are not in there end."""
        claimant, first_hand = event.claimant, event.device == event.claimant
        heard = {segment.index: segment.done_pct for segment in event.segments if segment.index in segments}
        opened = [index for index in list(self._live) if index not in heard and self.drop(index, claimant)]
        if self.suspended(event.device, now_ms):
            return opened
        for index, done_pct in heard.items():
            if done_pct <= self._lapsed_pct.get((index, claimant), -1):
                continue
            claims = self._live.setdefault(index, {})
            claim = claims.get(claimant)
            if claim is None:
                claims[claimant] = _Claim(done_pct, now_ms, now_ms, event.lease_ms, event.device, first_hand)
                continue
            if done_pct > claim.done_pct:
                claim.done_pct, claim.progressed_ms = done_pct, now_ms
            elif done_pct < claim.done_pct and first_hand and claim.restarts < RESTARTS_MAX:
                claim.done_pct, claim.progressed_ms, claim.restarts = done_pct, now_ms, claim.restarts + 1
            claim.heard_ms, claim.lease_ms = now_ms, event.lease_ms
            claim.source, claim.first_hand = event.device, first_hand
        return opened

    def to_relay(self, event: ClaimHeard, neighbours: int) -> bool:
        """Whether to pass it on once: first-hand, and news (or where sessions are no full mesh, every time)."""
        if event.hops != 1 or event.device != event.claimant:
            return False
        indexes = frozenset(segment.index for segment in event.segments)
        if neighbours < RELAY_FROM_PEERS and self._relayed.get(event.claimant, frozenset()) == indexes:
            return False
        self._relayed[event.claimant] = indexes
        return True

    def drop(self, index: int, device: DeviceId) -> bool:
        """End one claim; true if the segment is open then, and was not before."""
        claims = self._live.get(index, {})
        if claims.pop(device, None) is None or claims:
            return False
        del self._live[index]
        return True

    def forget(self, device: DeviceId) -> list[int]:
        """Its session ended, or it was banned."""
        self._relayed.pop(device, None)
        for key in [key for key in self._lapsed_pct if key[1] == device]:
            del self._lapsed_pct[key]
        return [index for index in list(self._live) if self.drop(index, device)]

    def expire(self, now_ms: int) -> list[tuple[int, DeviceId, bool]]:
        """End what lapsed: the segment, whose claim it was, and whether the segment is open now."""
        ended: list[tuple[int, DeviceId, bool]] = []
        for index, claims in list(self._live.items()):
            for device, claim in list(claims.items()):
                if not claim.lapsed(now_ms):
                    continue
                self._lapsed_pct[index, device] = claim.done_pct
                lapses = self._lapses.setdefault(claim.source, [])
                lapses.append(now_ms)
                del lapses[:-LAPSES_MAX]
                ended.append((index, device, self.drop(index, device)))
        return ended

    def suspended(self, device: DeviceId, now_ms: int) -> bool:
        """Whether it has let claims lapse too often to be counted on."""
        lapses = self._lapses.get(device, [])
        return len(lapses) >= LAPSES_MAX and now_ms - lapses[0] < LAPSE_MEMORY_MS
