"""One run that this device fetches over the WAN: how far it is, and what patience it asks of the others. Core."""

from __future__ import annotations

from dataclasses import dataclass

from pcm_p2p.swarm.claims import LEASE_MS_MAX, LEASE_MS_MIN
from pcm_p2p.swarm.holdings import OfficeHoldings
from pcm_p2p.swarm.prices import Way

MOVED_MS = 3_000  # choice: without a byte for so long I do not ask for patience any more
BASE_STALL_MS = 15_000  # choice: a request to a neighbour that is alive is answered within it
BASE_LEASE_MS = 2 * BASE_STALL_MS
"""What the claim of a delta asks for whose blob is here and whose base is not: its progress stands still meanwhile."""


@dataclass(slots=True)
class RunFetch:
    """``done_pct`` percent of the blob of ``way`` are here; it last moved at ``moved_ms``. ``changes``: how often the way was
    changed. ``base_left``: how many base chunks I lack, which last changed at ``base_moved_ms``."""

    way: Way
    started_ms: int
    moved_ms: int
    done_pct: int
    changes: int = 0
    base_left: int = 0
    base_moved_ms: int = 0

    def progress(self, done_pct: int, now_ms: int) -> None:
        self.done_pct, self.moved_ms = done_pct, now_ms

    def look_at_base(self, holdings: OfficeHoldings, now_ms: int) -> None:
        left = (self.way.base & ~holdings.mine).bit_count()
        if left != self.base_left:
            self.base_left, self.base_moved_ms = left, now_ms

    def is_decoding(self, holdings: OfficeHoldings) -> bool:
        """Whether all that it needs is here."""
        return self.done_pct >= 100 and not self.way.base & ~holdings.mine

    def stalls(self, now_ms: int) -> bool:
        """Whether the blob is here, and neighbours do not deliver the base."""
        quiet_ms = now_ms - max(self.base_moved_ms, self.moved_ms)
        return self.done_pct >= 100 and self.base_left > 0 and quiet_ms >= BASE_STALL_MS

    def lease_ms(self, now_ms: int) -> int:
        lease_ms = LEASE_MS_MIN
        if now_ms - self.moved_ms <= MOVED_MS:
            lease_ms = 4 * (now_ms - self.started_ms) // max(self.done_pct, 1)
        if self.done_pct >= 100 and self.base_left:
            lease_ms = BASE_LEASE_MS
        return min(max(lease_ms, LEASE_MS_MIN), LEASE_MS_MAX)
