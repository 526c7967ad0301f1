"""When the roster of an office is settled enough for the first byte over the WAN. Core; rule 1 of ``ownership``."""

from __future__ import annotations

SETTLE_MS_MAX = 10_000  # gossip-scale.md 1.5: a peer counts as settled after 10 s
MEET_MS = 1_500
"""Renewal of claims and half a second. Measured in a lab of six: 0 costs 6 % of duplicate WAN bytes when a release spreads."""


class Settling:
    """Settled once is settled for good. ``since_ms`` is when it was found to be so; None before.

    ``started_ms``: when the daemon started; ``created_ms``: when the manifest became wanted; ``roster_changed_ms``: when a
    neighbour last came or went; ``settle_ms``: for how long the roster is to be quiet.
    """

    def __init__(self, *, settle_ms: int, started_ms: int, created_ms: int, roster_changed_ms: int) -> None:
        self._settle_ms, self._started_ms, self._created_ms = settle_ms, started_ms, created_ms
        self.roster_changed_ms = roster_changed_ms
        self.since_ms: int | None = None

    def due_ms(self, *, alone: bool) -> int:
        """When the roster is settled, if it stays as it is."""
        if alone:
            quiet_ms = self._started_ms + SETTLE_MS_MAX
        else:
            quiet_ms = max(self.roster_changed_ms + self._settle_ms, self._created_ms + MEET_MS)
        return min(quiet_ms, max(self._created_ms, self._started_ms) + SETTLE_MS_MAX)

    def look(self, now_ms: int, *, alone: bool) -> bool:
        """Whether it has just become settled."""
        if self.since_ms is None and now_ms >= self.due_ms(alone=alone):
            self.since_ms = now_ms
            return True
        return False
