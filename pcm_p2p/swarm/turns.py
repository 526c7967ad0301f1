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
    """``candidates``: the weights of all who may fetch, me among them; ``busy``: who fetches something at present.

    ``for_gzip``: the runs whose cheapest way takes gzip; those of ``lacking`` it come last there.
    """

    def __init__(
        self,
        me: DeviceId,
        manifest: ManifestId,
        candidates: Mapping[DeviceId, int],
        busy: Set[DeviceId],
        troubles: Troubles,
        lacking: Set[DeviceId] = frozenset(),
        for_gzip: Set[int] = frozenset(),
    ) -> None:
        self._me, self._candidates, self._busy, self._troubles = me, candidates, busy, troubles
        self._lacking, self._for_gzip = lacking, for_gzip
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
                segment.index in self._for_gzip and device in self._lacking,
                device not in self._fetchers,
                rendezvous.cost(device, segment.key, self._candidates[device]),
                device,
            ),
        )

    def leaves(self, segment: SegmentRun) -> bool:
        """I lack gzip for it, and who does not is busy: that costs the office less than the full segment."""
        if self._me not in self._lacking or segment.index not in self._for_gzip:
            return False
        failures = self._troubles.failures(segment.index)
        able = self._busy & self._candidates.keys() - self._lacking
        return any(failures.get(device, 0) <= failures.get(self._me, 0) for device in able)

    def wait_ms(self, order: list[DeviceId]) -> int:
        """How long my rank waits while nobody claims the segment."""
        steals = self._me in self._fetchers and order[0] in self._busy
        return order.index(self._me) * (STEAL_MS if steals else LADDER_MS)
