"""What went wrong with each segment of one manifest: who failed or lapsed how often, until when it rests, and why. Core.

Rules 5 and 7 of ``ownership``: who failed comes last for that segment, and a failure at the origin makes it rest for a time that
doubles with each one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pcm_p2p.ids import DeviceId

REST_MS_FIRST, REST_MS_MAX = 2_000, 30_000  # choice; a neighbour cannot make a segment rest longer


@dataclass(slots=True)
class _Trouble:
    failures: dict[DeviceId, int] = field(default_factory=dict)
    rest_until_ms: int = 0
    reason: str = ""


class Troubles:
    """Failures by segment index."""

    def __init__(self) -> None:
        self._of: dict[int, _Trouble] = {}

    def lapsed(self, index: int, device: DeviceId) -> None:
        """Its claim ended without result; nothing rests for that."""
        self._count(index, device)

    def failed(self, index: int, device: DeviceId, reason: str, wait_ms: int, now_ms: int) -> int:
        """The origin did not deliver to ``device``; returns for how long the segment rests (``wait_ms`` was asked for)."""
        times = sum(self.failures(index).values())
        trouble = self._count(index, device)
        wait_ms = min(max(wait_ms, REST_MS_FIRST << min(times, 10)), REST_MS_MAX)
        trouble.rest_until_ms, trouble.reason = max(trouble.rest_until_ms, now_ms + wait_ms), reason
        return wait_ms

    def failures(self, index: int) -> Mapping[DeviceId, int]:
        trouble = self._of.get(index)
        return trouble.failures if trouble else {}

    def rests_until_ms(self, index: int) -> int:
        trouble = self._of.get(index)
        return trouble.rest_until_ms if trouble else 0

    def reason(self, index: int) -> str:
        """What was last said about it; empty if nothing went wrong."""
        trouble = self._of.get(index)
        return trouble.reason if trouble else ""

    def _count(self, index: int, device: DeviceId) -> _Trouble:
        trouble = self._of.setdefault(index, _Trouble())
        trouble.failures[device] = trouble.failures.get(device, 0) + 1
        return trouble
