"""Strikes of neighbours that serve badly, and the ban that follows. One book for all manifests of a daemon. Core.

Wrong bytes can only be the sender's fault: the session is authenticated and an honest seeder verifies before it serves.
They are never forgiven. Slowness and refusals may be bad luck, so a good delivery takes one point back. Two deliveries of
wrong bytes are a ban (research/distribution.md 3: two strikes); what follows from the other points is a choice.
"""

from __future__ import annotations

from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.events import ChunkFailure

POINTS: dict[ChunkFailure, int] = {"wrong": 8, "slow": 3, "missing": 1, "error": 2, "busy": 0, "gone": 0}
POINTS_MAX = 16
BAN_MS = 3_600_000
"""Choice: reconnecting does not lift a ban; an hour does, since a device may have been repaired."""
_DEVICES_MAX = 1_024


class Conduct:
    def __init__(self) -> None:
        self._wrong: dict[DeviceId, int] = {}
        self._luck: dict[DeviceId, int] = {}
        self._banned_until_ms: dict[DeviceId, int] = {}

    def delivered(self, device: DeviceId) -> None:
        if self._luck.get(device, 0) > 0:
            self._luck[device] -= 1

    def failed(self, device: DeviceId, why: ChunkFailure, now_ms: int) -> bool:
        """Write it down; true when this failure brought the ban."""
        if self.banned(device, now_ms):
            return False
        book = self._wrong if why == "wrong" else self._luck
        if device not in book and len(book) >= _DEVICES_MAX:
            book.pop(next(iter(book)))
        book[device] = book.get(device, 0) + POINTS[why]
        if self._wrong.get(device, 0) + self._luck.get(device, 0) < POINTS_MAX:
            return False
        self._banned_until_ms[device] = now_ms + BAN_MS
        self._wrong.pop(device, None)
        self._luck.pop(device, None)
        return True

    def banned(self, device: DeviceId, now_ms: int) -> bool:
        until_ms = self._banned_until_ms.get(device)
        if until_ms is None:
            return False
        if now_ms >= until_ms:
            del self._banned_until_ms[device]
            return False
        return True
