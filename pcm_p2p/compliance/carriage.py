"""Carriage: what the courier hears (events) and what it wants done (effects). Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from pcm_p2p.compliance.parcel import Parcel
from pcm_p2p.ids import DeviceId


@dataclass(frozen=True, slots=True)
class Stored:
    """The outbox holds these now (at start: all of them)."""

    parcels: tuple[Parcel, ...]


@dataclass(frozen=True, slots=True)
class Gone:
    """The outbox no longer holds these. ``advanced``: authors of whom more is acknowledged than before."""

    hashes: tuple[bytes, ...]
    advanced: tuple[DeviceId, ...] = ()


@dataclass(frozen=True, slots=True)
class CollectorsKnown:
    """The collectors of the fleet document, in its order."""

    collectors: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class CollectorUp:
    collector: DeviceId


@dataclass(frozen=True, slots=True)
class CollectorDown:
    """A dial failed, or a session ended by itself."""

    collector: DeviceId


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A session with a device of my site."""

    peer: DeviceId


@dataclass(frozen=True, slots=True)
class PeerDown:
    peer: DeviceId


@dataclass(frozen=True, slots=True)
class PeerRoute:
    """What a neighbour said of its route to a collector."""

    peer: DeviceId
    reachable: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """A ``Put`` came back; ``taken`` stands beside ``hashes``. What was acknowledged comes as ``Gone`` before."""

    target: DeviceId
    hashes: tuple[bytes, ...]
    taken: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class PutFailed:
    """A ``Put`` did not come back in time, or the session is gone. Whether anything was taken is not known."""

    target: DeviceId
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    pass


Event = (
    Stored
    | Gone
    | CollectorsKnown
    | CollectorUp
    | CollectorDown
    | PeerUp
    | PeerDown
    | PeerRoute
    | Answered
    | PutFailed
    | Tick
)


@dataclass(frozen=True, slots=True)
class Dial:
    collector: DeviceId


@dataclass(frozen=True, slots=True)
class HangUp:
    collector: DeviceId


@dataclass(frozen=True, slots=True)
class Put:
    """Hand these over to the collector's session or to a neighbour."""

    target: DeviceId
    hashes: tuple[bytes, ...]
    to_collector: bool


@dataclass(frozen=True, slots=True)
class SayRoute:
    """Tell one neighbour, or all (``peer`` None), whether I reach a collector."""

    reachable: bool
    peer: DeviceId | None = None


@dataclass(frozen=True, slots=True)
class HandAcks:
    """Give a neighbour what collectors signed about these authors."""

    peer: DeviceId
    authors: tuple[DeviceId, ...]


Effect = Dial | HangUp | Put | SayRoute | HandAcks
