"""The messages of this room for one manifest, to and from their events. Core; the only place where their fields are checked.

``read_untrusted`` checks lengths, ranges and counts against the manifest; what it returns fits the chunk table. Unused
bits of a bit field must be zero: two nodes that count chunks differently would otherwise agree by accident.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId, ManifestId
from pcm_p2p.swarm.events import ClaimHeard, FailureHeard, PeerDropped, PeerGained, PeerHolds
from pcm_p2p.wire.messages import Claim, ClaimedSegment, Drop, Have, Holdings, Message, SegmentFailed

POSITIONS_A_MESSAGE_MAX = 4_096
"""Of ``Have`` and ``Drop`` (wire.messages)."""
SEGMENTS_A_CLAIM_MAX = 256
REASON_LENGTH_MAX = 200

Announcement = Holdings | Have | Drop | Claim | SegmentFailed


def holdings_message(
    manifest: ManifestId, chunk_count: int, bits: int, *, keeps: bool = False, lacks_gzip: bool = False
) -> Holdings:
    packed = bits.to_bytes((chunk_count + 7) // 8, "little")
    return Holdings(manifest=bytes(manifest), chunk_count=chunk_count, bits=packed, keeps=keeps, lacks_gzip=lacks_gzip)


def have_messages(manifest: ManifestId, positions: Iterable[int]) -> Iterator[Have]:
    for part in _parts(positions):
        yield Have(manifest=bytes(manifest), positions=part)


def drop_messages(manifest: ManifestId, positions: Iterable[int]) -> Iterator[Drop]:
    for part in _parts(positions):
        yield Drop(manifest=bytes(manifest), positions=part)


def claim_message(
    manifest: ManifestId, claimant: DeviceId, lease_ms: int, segments: tuple[ClaimedSegment, ...], *, hops: int = 1
) -> Claim:
    return Claim(
        manifest=bytes(manifest),
        claimant=bytes(claimant),
        hops=hops,
        lease_ms=lease_ms,
        segments=segments[:SEGMENTS_A_CLAIM_MAX],
    )


def failure_message(manifest: ManifestId, index: int, reason: str, wait_ms: int) -> SegmentFailed:
    return SegmentFailed(manifest=bytes(manifest), index=index, reason=printable(reason), wait_ms=wait_ms)


def manifest_named_untrusted(message: Message) -> ManifestId | None:
    """The manifest that an announcement is about; None for messages that are none of ours."""
    return ManifestId(message.manifest) if isinstance(message, Announcement) else None


def read_untrusted(
    device: DeviceId, message: Message, manifest: Manifest
) -> PeerHolds | PeerGained | PeerDropped | ClaimHeard | FailureHeard:
    """An announcement of ``device`` about ``manifest`` as an event; raises ``UntrustedBytes``, naming what does not fit."""
    chunk_count, segment_count = len(manifest.table_sizes), len(manifest.segments)
    match message:
        case Holdings():
            if message.chunk_count != chunk_count or len(message.bits) != (chunk_count + 7) // 8:
                raise UntrustedBytes(f"holdings over {message.chunk_count} chunks; the manifest has {chunk_count}")
            bits = int.from_bytes(message.bits, "little")
            if bits >> chunk_count:
                raise UntrustedBytes("holdings name chunks past the end of the table")
            return PeerHolds(device, bits, message.keeps, message.lacks_gzip)
        case Have():
            return PeerGained(device, _positions(message.positions, chunk_count))
        case Drop():
            return PeerDropped(device, _positions(message.positions, chunk_count))
        case Claim():
            indexes = [segment.index for segment in message.segments]
            if any(index >= segment_count for index in indexes) or len(set(indexes)) != len(indexes):
                raise UntrustedBytes("a claim names a segment twice, or one that the manifest does not have")
            claimant = DeviceId(message.claimant)
            if message.hops == 1 and claimant != device:
                raise UntrustedBytes("a first-hand claim in the name of another device")
            return ClaimHeard(device, claimant, message.hops, message.lease_ms, message.segments)
        case SegmentFailed():
            if message.index >= segment_count:
                raise UntrustedBytes(f"segment {message.index} of {segment_count} does not exist")
            return FailureHeard(device, message.index, printable(message.reason), message.wait_ms)
        case _:
            raise UntrustedBytes(f"{type(message).__name__} is not an announcement")


def printable(text: str) -> str:
    """What somebody wrote, fit for a terminal: no control characters, of bounded length."""
    return "".join(character if character.isprintable() else "?" for character in text[:REASON_LENGTH_MAX])


def _positions(positions: tuple[int, ...], chunk_count: int) -> tuple[int, ...]:
    if any(position >= chunk_count for position in positions):
        raise UntrustedBytes("a position is past the end of the chunk table")
    return positions


def _parts(positions: Iterable[int]) -> Iterator[tuple[int, ...]]:
    every = tuple(positions)
    for start in range(0, len(every), POSITIONS_A_MESSAGE_MAX):
        yield every[start : start + POSITIONS_A_MESSAGE_MAX]
