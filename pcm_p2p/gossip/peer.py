"""A peer as other rooms see it: a device with a live session, and the news that one came or went."""

from __future__ import annotations

from dataclasses import dataclass

from pcm_p2p.ids import DeviceId


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer with a live session. ``same_site`` says whether its bytes are cheap; ``weight`` is its wish to use the WAN;
    ``uptime`` how many sixteenths of the time it says it is up (0: it speaks protocol 1, which does not say)."""

    device_id: DeviceId
    host: str
    site: str
    role: str
    weight: int
    same_site: bool
    agent: str
    round_trip_s: float | None
    uptime: int = 0


@dataclass(frozen=True, slots=True)
class PeerUp:
    peer: PeerInfo


@dataclass(frozen=True, slots=True)
class PeerDown:
    device_id: DeviceId
    reason: str
