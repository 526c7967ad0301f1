"""Beacon: whether this device should announce itself by mDNS. A core of pure functions.

Only ``BEACONS`` devices of a segment register; all others browse and learn the rest from rosters. With 120 devices that are
8 registrations instead of 120, a quarter of the delivered bytes, and a full contact list in 1.6 s instead of 14 s
(research/gossip-scale.md 6.2). Who they are follows from rendezvous hashing over the known devices, so nobody asks anybody; as
long as views differ, a few more or fewer register, which does no harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pcm_p2p.ids import DeviceId

BEACONS = 8
SLACK = 4
"""Choice: a beacon stays one until it falls behind rank 12, so that one newcomer does not move two registrations."""


def group_tag(fleet: str) -> str:
    """What an announcement says of the fleet: enough to skip strangers, not enough to name it to one who does not know."""
    return hashlib.sha256(fleet.encode()).hexdigest()[:8]


def rank(own: DeviceId, others: Iterable[DeviceId], tag: str) -> int:
    """How many of ``others`` come before ``own`` in this segment's order; 0 is the first."""
    own_score = _score(own, tag)
    return sum(1 for other in others if other != own and _score(other, tag) > own_score)


def should_announce(own: DeviceId, others: Iterable[DeviceId], tag: str, *, announced: bool) -> bool:
    """Whether to be registered now; ``announced`` is whether it is already."""
    return rank(own, others, tag) < (BEACONS + SLACK if announced else BEACONS)


def _score(device: DeviceId, tag: str) -> bytes:
    """Ordered by the hash first; the id breaks the tie that will not happen."""
    return hashlib.blake2b(device + tag.encode(), digest_size=8).digest() + device
