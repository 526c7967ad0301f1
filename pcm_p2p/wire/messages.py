"""Every message between nodes, as a frozen class; the tag is the type's number on the wire.

Encoding: MessagePack arrays ``[tag, field, …]`` in field order (new optional fields go last). A control frame carries one
message; answers to requests come back as bulk frames (``framing``), or as ``Refused``. Ids travel as raw bytes and are made
typed (``DeviceId(…)``) by the room that uses them; lengths are bounded here.

====  ===================  ==============================================================================
tag   message              who sends it, and what follows
====  ===================  ==============================================================================
1     Hello                both sides, first frame of a session; anything else before it ends the session
2, 3  Ping, Pong           either, when idle; Pong repeats the nonce
4     Roster               either; who else is here
5     Digest               either, at session start and on every newer timestamp: what metadata I trust
6     Holdings             either; which chunks of a manifest I hold (bit field over its chunk table)
7     Have                 either; chunks that I have got since
8     Drop                 either; chunks that I am about to evict
9     Claim                an owner, each second: the segments it is fetching over the WAN
10    SegmentFailed        an owner: the origin did not deliver this segment; do not retry before ``wait_ms``
11    Route                either; whether I can reach a collector at present
12    Handover             who is about to leave: take these chunks of a manifest, nobody else has them
13    SiteDigest           as Digest, for the site's own repository; only within the site it names
16    ChunkGet             request: one chunk, answered by its sealed form
17    FileGet              request: one file of the trusted metadata or targets, answered by its bytes
18    RecordsPut           request: take these report records, answered by an encoded ``RecordsTaken``
19    AcksPut              either; collector acknowledgements for devices that may be near you
31    Refused              answer to a request: no, and why
32    Bye                  either, before closing on purpose
====  ===================  ==============================================================================
"""

from __future__ import annotations

from typing import Annotated

import msgspec

PROTOCOL = 4
"""2 has Handover, the uptime in Hello, and who only keeps a manifest in Holdings. 3 has SiteDigest, and the instance in Hello.
4 has who lacks gzip in Holdings."""
PROTOCOL_SITE_DIGEST = 3
"""The first that has SiteDigest: to a peer that speaks less it would be a protocol error."""
PROTOCOL_MIN = 1
"""The oldest that this version talks to."""

Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Text = Annotated[str, msgspec.Meta(max_length=256)]
TreePath = Annotated[str, msgspec.Meta(max_length=400)]
"""A file of a tree has at most 256 characters; ``sites/<site>/`` before it at most 135."""
U32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
U63 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 63)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages."""


class Hello(Message, frozen=True, tag=1):
    """``port`` is where I listen (0: nowhere); ``incarnation`` grows at each start and is persisted; ``weight`` is my wish
    to fetch over the WAN (0 never … 16); ``role`` is device, collector or relay. Of role and ``site`` the certificate is what
    counts, of the latter where it says one. ``uptime`` is how many sixteenths of the time I have been up lately (0: unknown);
    ``instance`` is drawn at each start of the process, so that two processes with one identity can be told apart (all zero:
    unknown)."""

    protocol: U32
    fleet: Text
    site: Text
    role: Text
    port: Port
    incarnation: U32
    weight: U32
    agent: Text
    uptime: U32 = 0
    instance: Bytes16 = bytes(16)


class Ping(Message, frozen=True, tag=2):
    nonce: U32


class Pong(Message, frozen=True, tag=3):
    nonce: U32


class RosterEntry(msgspec.Struct, frozen=True, array_like=True):
    device: Bytes16
    host: Text
    port: Port
    incarnation: U32
    status: Annotated[int, msgspec.Meta(ge=0, le=3)]
    site: Text
    weight: U32


class Roster(Message, frozen=True, tag=4):
    entries: Annotated[tuple[RosterEntry, ...], msgspec.Meta(max_length=512)]


class Digest(Message, frozen=True, tag=5):
    """Versions of the four top-level roles that I trust, and SHA-256 of my timestamp's signed bytes."""

    root: U32
    timestamp: U32
    snapshot: U32
    targets: U32
    timestamp_sha256: Bytes32


class Holdings(Message, frozen=True, tag=6):
    """Bit ``i`` of ``bits`` (least significant first) is chunk ``i`` of the manifest's table. ``keeps``: I have the release in
    place and keep copies for the office; I fetch nothing of it over the WAN. ``lacks_gzip``: I cannot decode segments that need
    gzip."""

    manifest: Bytes32
    chunk_count: Annotated[int, msgspec.Meta(ge=0, le=65_536)]
    bits: Annotated[bytes, msgspec.Meta(max_length=8_192)]
    keeps: bool = False
    lacks_gzip: bool = False


class Have(Message, frozen=True, tag=7):
    manifest: Bytes32
    positions: Annotated[tuple[U32, ...], msgspec.Meta(max_length=4_096)]


class Drop(Message, frozen=True, tag=8):
    manifest: Bytes32
    positions: Annotated[tuple[U32, ...], msgspec.Meta(max_length=4_096)]


class ClaimedSegment(msgspec.Struct, frozen=True, array_like=True):
    index: U32
    done_pct: Annotated[int, msgspec.Meta(ge=0, le=100)]


class Claim(Message, frozen=True, tag=9):
    """All segments of ``manifest`` that ``claimant`` is fetching now (none: it stopped). Relayed once, by ``hops`` = 1."""

    manifest: Bytes32
    claimant: Bytes16
    hops: Annotated[int, msgspec.Meta(ge=0, le=1)]
    lease_ms: U32
    segments: Annotated[tuple[ClaimedSegment, ...], msgspec.Meta(max_length=256)]


class SegmentFailed(Message, frozen=True, tag=10):
    manifest: Bytes32
    index: U32
    reason: Text
    wait_ms: U32


class Route(Message, frozen=True, tag=11):
    collector_reachable: bool


class Handover(Message, frozen=True, tag=12):
    manifest: Bytes32
    positions: Annotated[tuple[U32, ...], msgspec.Meta(max_length=4_096)]


class SiteDigest(Message, frozen=True, tag=13):
    """What I trust of the repository with which ``site`` acts alone; the fields of ``Digest``, of that repository."""

    site: Text
    root: U32
    timestamp: U32
    snapshot: U32
    targets: U32
    timestamp_sha256: Bytes32


class ChunkGet(Message, frozen=True, tag=16):
    request: U32
    chunk: Bytes32


class FileGet(Message, frozen=True, tag=17):
    """``path`` is of the fleet's tree, or ``sites/<site>/`` and a path of that site's tree (peers that speak 3)."""

    request: U32
    path: TreePath


class RecordsPut(Message, frozen=True, tag=18):
    request: U32
    records: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=64)]


class RecordsTaken(msgspec.Struct, frozen=True, array_like=True):
    """Answer to ``RecordsPut``: per record, whether it was taken (kept durably, or known already); and acknowledgements."""

    taken: tuple[bool, ...]
    acks: tuple[bytes, ...] = ()


class AcksPut(Message, frozen=True, tag=19):
    acks: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=64)]


class Refused(Message, frozen=True, tag=31):
    """``reason`` is one of: missing, busy, limit, denied, error."""

    request: U32
    reason: Text


class Bye(Message, frozen=True, tag=32):
    reason: Text


AnyMessage = (
    Hello
    | Ping
    | Pong
    | Roster
    | Digest
    | Holdings
    | Have
    | Drop
    | Claim
    | SegmentFailed
    | Route
    | Handover
    | SiteDigest
    | ChunkGet
    | FileGet
    | RecordsPut
    | AcksPut
    | Refused
    | Bye
)
