"""Which mirror of the origin to ask next. Core: order, back-off, blame.

Mirrors are tried in the order in which they were given. One that failed rests for a time that doubles, or for as long as
its ``Retry-After`` says; one that delivered wrong bytes rests for ``WRONG_REST_MS``, and longer each time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

REST_MS_FIRST, REST_MS_MAX = 1_000, 60_000  # choice; the ceiling bounds how late a repaired origin is noticed
RETRY_AFTER_MS_MAX = 3_600_000  # choice: a header cannot switch an origin off for longer
WRONG_REST_MS = 600_000  # distribution.md 3: a mirror with a bad hash is dropped; it may be repaired


@dataclass(slots=True)
class Mirror:
    """``reason`` is why it rests, for people."""

    url: str
    failures: int = 0
    wrong: int = 0
    rest_until_ms: int = 0
    reason: str = ""


class Mirrors:
    def __init__(self, urls: Sequence[str], rng: random.Random) -> None:
        self.all = [Mirror(url.rstrip("/")) for url in urls]
        self._rng = rng

    def choose(self, now_ms: int, *, from_place: int = 0) -> Mirror | None:
        """The first mirror, at or after ``from_place``, that does not rest."""
        return next((mirror for mirror in self.all[from_place:] if mirror.rest_until_ms <= now_ms), None)

    def wait_ms(self, now_ms: int) -> int:
        """How long until one of them may be asked; without mirrors, the longest rest."""
        return max(0, min((mirror.rest_until_ms - now_ms for mirror in self.all), default=REST_MS_MAX))

    @property
    def reason(self) -> str:
        """Why the mirror that comes back first rests."""
        resting = [mirror for mirror in self.all if mirror.reason]
        return min(resting, key=lambda mirror: mirror.rest_until_ms).reason if resting else ""

    def worked(self, mirror: Mirror) -> None:
        mirror.failures, mirror.rest_until_ms, mirror.reason = 0, 0, ""

    def failed(self, mirror: Mirror, reason: str, now_ms: int, *, retry_after_ms: int = 0) -> None:
        """Let it rest. Up to a quarter is added by chance, so that a fleet does not come back in step."""
        rest_ms = min(REST_MS_FIRST << min(mirror.failures, 16), REST_MS_MAX)
        rest_ms += self._rng.randrange(1 + rest_ms // 4)
        mirror.failures += 1
        mirror.reason = reason
        mirror.rest_until_ms = now_ms + max(rest_ms, min(retry_after_ms, RETRY_AFTER_MS_MAX))

    def delivered_wrong(self, mirror: Mirror, reason: str, now_ms: int) -> None:
        mirror.wrong += 1
        mirror.reason = reason
        mirror.rest_until_ms = now_ms + min(WRONG_REST_MS * mirror.wrong, 6 * WRONG_REST_MS)
