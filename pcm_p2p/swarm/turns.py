"""Whose turn it is: the order of the candidates for each segment at one moment, and how long each rank waits. Core.

Rules 3 and 6 of ``ownership``, which makes one of these for each decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from pcm_p2p.ids import DeviceId, ManifestId
from pcm_p2p.swarm import rendezvous
from pcm_p2p.swarm.prices import SegmentRun
from pcm_p2p.swarm.troubles import Troubles

FETCHERS_MAX = 8  # measured: research/gossip-scale.md 1.5
SEGMENTS_MAX = 2
FEW_FETCHERS = 3  # choice
STEAL_MS = 500  # choice: claims cross an office in a few ms, and a busy one in some hundred
LADDER_MS = 5_000  # gossip-scale.md 1.5 rule 4: the shortest lease


class Slots:
    """How many segments the daemon fetches over the WAN at once, over all manifests."""

    def __init__(self, count: int = SEGMENTS_MAX) -> None:
        self.count = count
        self.taken = 0


class Turns:
    """``candidates``: the weights of all who may fetch, me among them; ``busy``: who fetches something at present."""

    def __init__(
        self,
        me: DeviceId,
        manifest: ManifestId,
        candidates: Mapping[DeviceId, int],
        busy: Set[DeviceId],
        troubles: Troubles,
    ) -> None:
        self._me, self._candidates, self._busy, self._troubles = me, candidates, busy, troubles
        self._fetchers = set(rendezvous.ranking(candidates, manifest)[:FETCHERS_MAX])

    @property
    def limit(self) -> int:
        """How many segments one device fetches at once."""
        return SEGMENTS_MAX if len(self._fetchers) <= FEW_FETCHERS else 1

    def order(self, segment: SegmentRun) -> list[DeviceId]:
        """All candidates, the owner first. A layout is its fetcher's own business."""
        if segment.aid:
            return [self._me]
        failures = self._troubles.failures(segment.index)
        return sorted(
            self._candidates,
            key=lambda device: (
                failures.get(device, 0),
                device not in self._fetchers,
                rendezvous.cost(device, segment.key, self._candidates[device]),
                device,
            ),
        )

    def wait_ms(self, order: list[DeviceId]) -> int:
        """How long my rank waits while nobody claims the segment."""
        steals = self._me in self._fetchers and order[0] in self._busy
        return order.index(self._me) * (STEAL_MS if steals else LADDER_MS)
