"""Spread: what is newer, and where. A core: digests go in, attempts and announcements come out.

A digest says which versions of the four top-level roles a device trusts, and the hash of its timestamp. Two speeds: whoever comes
to trust something newer tells all its sessions at once (**eager**), and every device tells one random peer now and then
(**repair**), which heals whatever was lost. Documents themselves are pulled, verified by ``trust``, and only then announced: a
device never passes on a claim.

Versions are claims of a peer until its documents were verified. Hence:

- one attempt at a time, with the peer that claims the newest; ties at random, so that one peer does not serve all;
- a peer whose claim did not come true (bad, or nothing newer after all) is left alone for ``PENALTY_MS_MIN``, doubling to
  ``PENALTY_MS_MAX``; a peer that was merely too slow or went away, for ``RETRY_MS_MIN``, doubling;
- the same timestamp version with another hash is a fork: reported once per peer and version, so that the caller fetches the
  other document as evidence. It is never adopted by this core.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.messages import Digest

REPAIR_MS = 30_000
"""research/gossip-scale.md 1.3: 30 s, plus or minus half."""
PENALTY_MS_MIN = 30_000
PENALTY_MS_MAX = 3_600_000
"""Choice: a liar costs one attempt an hour."""
RETRY_MS_MIN = 2_000
RETRY_MS_MAX = 60_000
NOTHING = Digest(0, 0, 0, 0, bytes(32))
"""The digest of a device that trusts no metadata yet."""

Ending = Literal["good", "unchanged", "older", "expired", "bad", "incomplete"]
"""How an attempt ended, in the words of ``trust.client.Attempt.kind``."""


@dataclass(frozen=True, slots=True)
class PeerArrived:
    device: DeviceId


@dataclass(frozen=True, slots=True)
class PeerLeft:
    device: DeviceId


@dataclass(frozen=True, slots=True)
class DigestHeard:
    device: DeviceId
    digest: Digest


@dataclass(frozen=True, slots=True)
class OwnChanged:
    """I trust this now (after an attempt with a peer or the origin, or at the start)."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    device: DeviceId
    ending: Ending


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; about once a second."""


Event = PeerArrived | PeerLeft | DigestHeard | OwnChanged | AttemptEnded | Tick


@dataclass(frozen=True, slots=True)
class Attempt:
    """Pull and verify the metadata of this peer; answer with ``AttemptEnded`` (after ``OwnChanged``, if it was good)."""

    device: DeviceId


@dataclass(frozen=True, slots=True)
class SendDigest:
    """Send my digest to ``to``, or to all sessions."""

    digest: Digest
    to: DeviceId | None = None


@dataclass(frozen=True, slots=True)
class Fork:
    """This peer trusts another document under a version that I trust too. Attempt it for evidence; no ending is expected."""

    device: DeviceId
    digest: Digest


Effect = Attempt | SendDigest | Fork


@dataclass(slots=True)
class _Peer:
    digest: Digest | None = None
    not_before_ms: int = 0
    penalties: int = 0
    retries: int = 0
    forked: int = 0


class Spread:
    """Call ``handle`` for every event; perform the effects in order."""

    def __init__(self, own: Digest, rng: Random) -> None:
        self.own = own
        self.attempting: DeviceId | None = None
        self._rng = rng
        self._peers: dict[DeviceId, _Peer] = {}
        self._absent: dict[DeviceId, _Peer] = {}
        self._repair_ms: int | None = None

    def newest_heard(self) -> int:
        """The highest timestamp version that a present peer claims; 0 if none does."""
        return max((peer.digest.timestamp for peer in self._peers.values() if peer.digest is not None), default=0)

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        match event:
            case PeerArrived(device):
                # What is held against a peer outlives its session: reconnecting is no absolution.
                self._peers[device] = peer = self._absent.pop(device, None) or _Peer()
                peer.digest = None
                effects.append(SendDigest(self.own, device))
            case PeerLeft(device):
                self._left(device)
            case DigestHeard(device, digest) if device in self._peers:
                effects += self._heard(device, digest)
            case OwnChanged(digest) if digest != self.own:
                self.own = digest
                effects.append(SendDigest(digest))
            case AttemptEnded(device, ending):
                self._attempt_ended(device, ending, now_ms)
            case Tick():
                effects += self._repair(now_ms)
            case _:
                pass
        effects += self._attempt(now_ms)
        return effects

    def _left(self, device: DeviceId) -> None:
        peer = self._peers.pop(device, None)
        if peer is not None and (peer.not_before_ms or peer.forked):
            self._absent[device] = peer
            while len(self._absent) > 1_024:
                del self._absent[next(iter(self._absent))]

    def _heard(self, device: DeviceId, digest: Digest) -> list[Effect]:
        peer = self._peers[device]
        peer.digest = digest
        same_version = digest.timestamp == self.own.timestamp and digest.root == self.own.root and digest.timestamp > 0
        if same_version and digest.timestamp_sha256 != self.own.timestamp_sha256 and peer.forked != digest.timestamp:
            peer.forked = digest.timestamp
            return [Fork(device, digest)]
        # Two devices can each be ahead in one role; both attempt then, and answering would never end.
        if _is_newer(self.own, digest) and not _is_newer(digest, self.own):
            return [SendDigest(self.own, device)]
        return []

    def _attempt_ended(self, device: DeviceId, ending: Ending, now_ms: int) -> None:
        if self.attempting == device:
            self.attempting = None
        peer = self._peers.get(device) or self._absent.get(device)
        if peer is None:
            return
        if ending == "good":
            peer.penalties = peer.retries = peer.not_before_ms = 0
            if peer.digest is not None and _is_newer(peer.digest, self.own):
                # It was good and still claims more than it gave: it may have moved on meanwhile, or it boasts.
                peer.not_before_ms = now_ms + RETRY_MS_MIN
        elif ending == "incomplete":
            wait_ms = min(RETRY_MS_MIN << min(peer.retries, 20), RETRY_MS_MAX)
            peer.retries += 1
            peer.not_before_ms = now_ms + wait_ms * self._rng.randint(75, 125) // 100
        else:
            peer.not_before_ms = now_ms + min(PENALTY_MS_MIN << min(peer.penalties, 20), PENALTY_MS_MAX)
            peer.penalties += 1

    def _attempt(self, now_ms: int) -> list[Effect]:
        if self.attempting is not None:
            return []
        claims = [
            (peer.digest.root, peer.digest.timestamp, device)
            for device, peer in sorted(self._peers.items())
            if peer.digest is not None and _is_newer(peer.digest, self.own) and peer.not_before_ms <= now_ms
        ]
        if not claims:
            return []
        newest = max((timestamp, root) for root, timestamp, _ in claims)
        device = self._rng.choice([device for root, timestamp, device in claims if (timestamp, root) == newest])
        self.attempting = device
        return [Attempt(device)]

    def _repair(self, now_ms: int) -> list[Effect]:
        if self._repair_ms is not None and now_ms < self._repair_ms:
            return []
        first = self._repair_ms is None
        self._repair_ms = now_ms + REPAIR_MS * self._rng.randint(50, 150) // 100
        if first or not self._peers or self.own == NOTHING:
            return []
        return [SendDigest(self.own, self._rng.choice(sorted(self._peers)))]


def _is_newer(one: Digest, other: Digest) -> bool:
    """Whether ``one`` claims something that ``other`` does not have: a newer timestamp, or a newer root."""
    return one.timestamp > other.timestamp or one.root > other.root
