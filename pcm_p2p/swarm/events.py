"""What happens to an exchange (events) and what it wants done (effects). Plain frozen values; times are integers in ms.

Events come from the shell or the simulator; effects go back to it. ``position`` is a place in the manifest's chunk
table, ``bits`` a bit field over it (bit ``i`` is position ``i``), ``index`` a place in its list of segments: that of the full
or layout segment which covers a run names the run, whatever blob is fetched for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.messages import ClaimedSegment, Message

ChunkFailure = Literal["missing", "busy", "slow", "gone", "wrong", "error"]
"""Why a neighbour did not deliver: it says it has it no more; it is full; it took too long; the session ended; the bytes
are not the chunk; anything else."""


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A session with a device of my site is up; ``weight`` is its wish to fetch over the WAN (0 never … 16)."""

    device: DeviceId
    weight: int


@dataclass(frozen=True, slots=True)
class PeerDown:
    device: DeviceId


@dataclass(frozen=True, slots=True)
class PeerHolds:
    """All that ``device`` holds of this manifest; replaces what was known. ``keeps``: it has the release in place, keeps copies
    of some chunks, and fetches nothing of it over the WAN. ``lacks_gzip``: it cannot decode segments that need gzip."""

    device: DeviceId
    bits: int
    keeps: bool = False
    lacks_gzip: bool = False


@dataclass(frozen=True, slots=True)
class PeerGained:
    device: DeviceId
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PeerDropped:
    device: DeviceId
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PeerLends:
    """Of the chunks ``among``, ``device`` holds just ``bits``, as it says about another manifest (``lending``)."""

    device: DeviceId
    among: int
    bits: int


@dataclass(frozen=True, slots=True)
class ClaimHeard:
    """``device`` is who sent it to me; ``claimant`` who fetches. ``hops`` 1: may be relayed once more."""

    device: DeviceId
    claimant: DeviceId
    hops: int
    lease_ms: int
    segments: tuple[ClaimedSegment, ...]


@dataclass(frozen=True, slots=True)
class FailureHeard:
    """``index`` names a run that ``device`` fetched, or a delta that it could not use (it goes on with the full segment)."""

    device: DeviceId
    index: int
    reason: str
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Gained:
    """Chunks that are in my store now."""

    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """Chunks that turned out to be absent or rotten, or were evicted."""

    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChunkArrived:
    """A requested chunk was verified and stored."""

    device: DeviceId
    position: int


@dataclass(frozen=True, slots=True)
class ChunkFailed:
    device: DeviceId
    position: int
    why: ChunkFailure


@dataclass(frozen=True, slots=True)
class BaseRefused:
    """My store has no room for base chunks; for the release itself it may have, since that goes first."""

    reason: str


@dataclass(frozen=True, slots=True)
class SegmentProgress:
    """``done_pct`` of the blob is here; 100 means that no WAN byte can be saved any more: it is being decoded, or waits for
    the rest of its base."""

    index: int
    done_pct: int


@dataclass(frozen=True, slots=True)
class SegmentDone:
    """All chunks of the segment are in my store."""

    index: int


@dataclass(frozen=True, slots=True)
class SegmentFailedHere:
    """The origin did not deliver to me, or what it delivered does not decode. ``whole_origin``: it would not deliver another
    segment either. ``bad_blob``: this blob is not to be tried again here, if the run can be had in another way."""

    index: int
    reason: str
    wait_ms: int
    whole_origin: bool
    bad_blob: bool = False


@dataclass(frozen=True, slots=True)
class Banned:
    """``device`` misbehaved (in any manifest): what it claims and holds does not count any more."""

    device: DeviceId


@dataclass(frozen=True, slots=True)
class Paused:
    """I cannot store anything at present (disk full)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    pass


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has come to ``next_ms``."""


Event = (
    PeerUp
    | PeerDown
    | PeerHolds
    | PeerGained
    | PeerDropped
    | PeerLends
    | ClaimHeard
    | FailureHeard
    | Gained
    | Lost
    | ChunkArrived
    | ChunkFailed
    | BaseRefused
    | SegmentProgress
    | SegmentDone
    | SegmentFailedHere
    | Banned
    | Paused
    | Resumed
    | Tick
)


@dataclass(frozen=True, slots=True)
class RequestChunk:
    """Ask ``device`` for a chunk; answer with ``ChunkArrived`` or ``ChunkFailed``."""

    device: DeviceId
    position: int


@dataclass(frozen=True, slots=True)
class StartSegment:
    """Fetch a blob for the run ``index`` from the origin; ``use`` is its place in the manifest's segments.

    Answer with ``SegmentProgress`` and ``SegmentDone`` or ``SegmentFailedHere``. A delta is decoded when its blob is here and
    its base is in my store: the picker fetches what is missing of that meanwhile.
    """

    index: int
    use: int


@dataclass(frozen=True, slots=True)
class AbortSegment:
    """Stop fetching it (its partial blob may stay on disk); no answer is wanted."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Send:
    device: DeviceId
    message: Message


@dataclass(frozen=True, slots=True)
class Broadcast:
    """To every device of my site with a session, but for ``besides``."""

    message: Message
    besides: DeviceId | None = None


@dataclass(frozen=True, slots=True)
class Blame:
    """``device`` is banned: log it by its id, feed ``Banned`` to all exchanges."""

    device: DeviceId
    reason: str


Effect = RequestChunk | StartSegment | AbortSegment | Send | Broadcast | Blame
