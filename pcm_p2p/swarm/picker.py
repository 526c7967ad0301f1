"""Which chunk of one manifest I ask which neighbour for. Core.

- *Local rarest first, random ties*: a chunk that fewer neighbours have goes first, so that everybody soon has something
  that others lack (random first costs 1.34 of the bound instead of 1.09; research/gossip-scale.md 1.4).
- *Pipelines*: ``PIPELINE`` requests a neighbour, ``PIPELINE_FEW`` while few neighbours have anything for me; and a budget
  of bytes asked for over all manifests, which is what bounds memory.
- *Hedging and endgame are the same, and on the LAN only*: when a neighbour has room and nothing is left to ask for, a
  request that is old enough is repeated there, at most twice in all. The WAN never hedges.
- A neighbour that says *busy* rests, doubling; one that says *missing* has that bit cleared. Bans are ``conduct``'s.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.events import ChunkFailure, RequestChunk
from pcm_p2p.swarm.holdings import OfficeHoldings

PIPELINE = 2  # measured: gossip-scale.md 1.4
PIPELINE_FEW, FEW_HOLDERS = 6, 3  # choice: one holder alone needs more requests to fill a link
BYTES_ASKED_MAX = 16 << 20  # choice: half of what Syncthing keeps pending; the daemon stays below 200 MB
ASKED_TWICE_MAX = 2
ASKED_MAX = 1 << 20  # no bound of its own: pipelines and the budget are
HEDGE_MS_MIN, HEDGE_MS_FIRST = 50, 1_000  # distribution.md 3: max(50 ms, p90); first: before anything is measured
REST_MS_FIRST, REST_MS_MAX = 25, 1_000  # choice


class Budget:
    """Bytes asked for and not yet stored, over all manifests of a daemon."""

    def __init__(self, bytes_max: int = BYTES_ASKED_MAX) -> None:
        self.bytes_max = bytes_max
        self.bytes_asked = 0

    def has_room(self, size_bytes: int) -> bool:
        return self.bytes_asked == 0 or self.bytes_asked + size_bytes <= self.bytes_max


@dataclass(slots=True)
class _Peer:
    asked: dict[int, int] = field(default_factory=dict)
    """Position to when it was asked for, in ms."""
    rest_until_ms: int = 0
    rest_ms: int = 0


class Picker:
    """``next_ms`` is when to ask again without any event: a neighbour's rest ends, or a request may be hedged. ``asked_max`` is
    how many requests may be on their way at once."""

    def __init__(self, holdings: OfficeHoldings, sizes: Sequence[int], budget: Budget, rng: random.Random) -> None:
        self._holdings, self._sizes, self._budget, self._rng = holdings, sizes, budget, rng
        self._peers: dict[DeviceId, _Peer] = {}
        # In the order of first asking; the hedge walks from the oldest.
        self._askers: dict[int, list[DeviceId]] = {}
        self._asked_bits = 0
        self._took_ms = 0
        self._turn = 0
        self.next_ms: int | None = None
        self.asked_max = ASKED_MAX

    @property
    def asked(self) -> int:
        """How many requests are on their way."""
        return sum(len(askers) for askers in self._askers.values())

    def arrived(self, device: DeviceId, position: int, now_ms: int) -> None:
        sent_ms = self._answered(device, position)
        if sent_ms is None:
            return
        took_ms = now_ms - sent_ms
        # Fast rise and slow fall: close to a high percentile without keeping samples.
        self._took_ms += (took_ms - self._took_ms) // (2 if took_ms > self._took_ms else 16)
        self._peers[device].rest_ms = 0

    def failed(self, device: DeviceId, position: int, why: ChunkFailure, now_ms: int) -> None:
        if self._answered(device, position) is None:
            return
        if why in ("missing", "wrong"):
            self._holdings.peer_drops(device, 1 << position)
        if why in ("busy", "slow", "error"):
            peer = self._peers[device]
            peer.rest_ms = min(max(2 * peer.rest_ms, REST_MS_FIRST), REST_MS_MAX)
            peer.rest_until_ms = now_ms + peer.rest_ms + self._rng.randrange(peer.rest_ms)

    def peer_left(self, device: DeviceId) -> None:
        """Forget it and what it was asked for; answers that still come are stored by the shell and do not matter here."""
        peer = self._peers.get(device)
        if peer is not None:
            for position in list(peer.asked):
                self._answered(device, position)
            del self._peers[device]

    def next_requests(self, now_ms: int, skip: int = 0) -> list[RequestChunk]:
        """What to ask for at this time. ``skip``: positions that are on their way by another path (my segment being decoded)."""
        self.next_ms = None
        holdings = self._holdings
        wanted = holdings.missing & holdings.lan & ~skip
        if not wanted or not (wanted & ~self._asked_bits or self._may_hedge(now_ms)):
            return []
        requests: list[RequestChunk] = []
        useful = [device for device, bits in holdings.peers.items() if bits & wanted]
        limit = PIPELINE_FEW if len(useful) <= FEW_HOLDERS else PIPELINE
        self._turn += 1
        start = self._turn % len(useful)
        free = [device for device in useful[start:] + useful[:start] if self._is_free(device, limit, now_ms)]
        while free:
            still_free = []
            for device in free:
                position = self._rarest(device, wanted & ~self._asked_bits)
                if position is None:
                    position = self._hedge(device, wanted, now_ms)
                if position is None:
                    continue
                if self.asked >= self.asked_max:
                    return requests
                if not self._budget.has_room(self._sizes[position]):
                    # Another manifest's answers may make room without an event here.
                    self._look_again(now_ms + REST_MS_FIRST)
                    return requests
                self._ask(device, position, now_ms)
                requests.append(RequestChunk(device, position))
                if self._is_free(device, limit, now_ms):
                    still_free.append(device)
            free = still_free
        return requests

    def _is_free(self, device: DeviceId, limit: int, now_ms: int) -> bool:
        peer = self._peers.setdefault(device, _Peer())
        if peer.rest_until_ms > now_ms:
            self._look_again(peer.rest_until_ms)
            return False
        return len(peer.asked) < limit

    def _rarest(self, device: DeviceId, wanted: int) -> int | None:
        wanted &= self._holdings.peers[device]
        if not wanted:
            return None
        for row in self._holdings.by_count[1:]:
            choice = row & wanted
            if choice:
                # A random place, then the next chunk at or above it: nearly even, and a handful of operations.
                shift = self._rng.randrange(choice.bit_length())
                above = choice >> shift
                return shift + (above & -above).bit_length() - 1
        return None

    def _may_hedge(self, now_ms: int) -> bool:
        """Whether any request is old enough; else notes when the oldest will be."""
        for position, askers in self._askers.items():
            if len(askers) < ASKED_TWICE_MAX:
                due_ms = self._peers[askers[0]].asked[position] + self._hedge_ms
                if now_ms < due_ms:
                    self._look_again(due_ms)
                return now_ms >= due_ms
        return False

    def _hedge(self, device: DeviceId, wanted: int, now_ms: int) -> int | None:
        """The oldest request that is old enough and that this neighbour could answer too."""
        candidates = wanted & self._asked_bits & self._holdings.peers[device]
        if not candidates or not self._may_hedge(now_ms):
            return None
        for position, askers in self._askers.items():
            if len(askers) >= ASKED_TWICE_MAX:
                continue
            if now_ms < self._peers[askers[0]].asked[position] + self._hedge_ms:
                return None
            if device not in askers and candidates >> position & 1:
                return position
        return None

    @property
    def _hedge_ms(self) -> int:
        return max(HEDGE_MS_MIN, 2 * self._took_ms) if self._took_ms else HEDGE_MS_FIRST

    def _look_again(self, at_ms: int) -> None:
        self.next_ms = at_ms if self.next_ms is None else min(self.next_ms, at_ms)

    def _ask(self, device: DeviceId, position: int, now_ms: int) -> None:
        self._peers[device].asked[position] = now_ms
        self._askers.setdefault(position, []).append(device)
        self._asked_bits |= 1 << position
        self._budget.bytes_asked += self._sizes[position]

    def _answered(self, device: DeviceId, position: int) -> int | None:
        peer = self._peers.get(device)
        sent_ms = peer.asked.pop(position, None) if peer else None
        if sent_ms is None:
            return None
        self._budget.bytes_asked -= self._sizes[position]
        askers = self._askers[position]
        askers.remove(device)
        if not askers:
            del self._askers[position]
            self._asked_bits &= ~(1 << position)
        return sent_ms
