"""The floor: versions and a moment below which nothing is accepted again, whatever became of the files.

python-tuf compares with what is in its cache; if that is zeroed, torn or rolled back, an old version would be news again. The
floor is kept apart (``floor.json``), only rises, and falls only with cause: where root takes an online key away, what that key
alone had proved is no longer believed, or a thief's fast-forward would lock the fleet out for ever (TUF specification 5.3.11,
"fast-forward attack recovery").

Delegated roles have a floor each, under the same rule: it is of no more use once the delegation takes away a key that was behind
it, and it falls with the snapshot's, which is what names the versions of delegated documents.

``time_ms`` is the latest moment that a signed document proved: acceptance by the wall clock, or the signed ``x-pcm-issued`` of a
timestamp, never beyond the first expiry among the documents that came with it. Clocks that say 1970 are thereby harmless, and a
thief of the timestamp's key makes a device stale at worst: root and targets end when the people who signed them said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import msgspec

Version = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
Moment = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_000)]
"""ms since 1970, to the end of the year 9999: beyond it no clock goes, and a file that says more is damaged."""


class Versions(NamedTuple):
    """Of the four top-level roles; 0: none."""

    root: int
    timestamp: int
    snapshot: int
    targets: int


NOTHING = Versions(0, 0, 0, 0)


class RoleFloor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a delegated role: the version that was accepted, and the ids of the keys behind it."""

    version: Version
    signers: tuple[str, ...] = ()


class Floor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``*_signers``: ids of the keys whose signatures stand behind the versions of that role (and the time)."""

    root: Version = 0
    timestamp: Version = 0
    snapshot: Version = 0
    targets: Version = 0
    time_ms: Moment = 0
    timestamp_signers: tuple[str, ...] = ()
    snapshot_signers: tuple[str, ...] = ()
    delegated: dict[str, RoleFloor] = {}

    @property
    def versions(self) -> Versions:
        return Versions(self.root, self.timestamp, self.snapshot, self.targets)

    def raised(
        self,
        versions: Versions,
        *,
        timestamp_signers: tuple[str, ...],
        snapshot_signers: tuple[str, ...],
        now_ms: int,
        issued_ms: int,
        expires_ms: int,
        delegated: Mapping[str, RoleFloor] | None = None,
    ) -> Floor:
        """After accepting ``versions``. ``now_ms`` is the device's clock (0: unknown), ``issued_ms`` what was signed."""
        proved_ms = min(max(now_ms, issued_ms), expires_ms)
        return Floor(
            max(self.root, versions.root),
            max(self.timestamp, versions.timestamp),
            max(self.snapshot, versions.snapshot),
            max(self.targets, versions.targets),
            max(self.time_ms, proved_ms),
            timestamp_signers,
            snapshot_signers,
            {**self.delegated, **(delegated or {})},
        )

    def role(self, role: str, keyids: frozenset[str]) -> int:
        """The version of a delegated role below which nothing is accepted, where these keys may sign for it now."""
        floor = self.delegated.get(role)
        return floor.version if floor is not None and set(floor.signers) <= keyids else 0

    def or_higher(self, other: Floor) -> Floor:
        """The higher of both, each role with the signers of the side that is higher (``other``'s where both are equal)."""
        timestamp = other if other.timestamp >= self.timestamp else self
        snapshot = other if (other.snapshot, other.targets) >= (self.snapshot, self.targets) else self
        return Floor(
            max(self.root, other.root),
            timestamp.timestamp,
            snapshot.snapshot,
            max(self.targets, other.targets),
            max(self.time_ms, other.time_ms),
            timestamp.timestamp_signers,
            snapshot.snapshot_signers,
            {
                role: max((one for one in (self.delegated.get(role), other.delegated.get(role)) if one), key=_version)
                for role in sorted({*self.delegated, *other.delegated})
            },
        )

    def under(self, timestamp_keys: frozenset[str], snapshot_keys: frozenset[str]) -> Floor:
        """What is left when only these online keys are believed.

        A timestamp key that went takes the timestamp's floor and the time with it. A snapshot key that went takes the floors of
        snapshot, targets and delegated roles with it, and the timestamp's, since that had to refer to it.
        """
        timestamp_gone = not set(self.timestamp_signers) <= timestamp_keys
        snapshot_gone = not set(self.snapshot_signers) <= snapshot_keys
        floor = self
        if timestamp_gone or snapshot_gone:
            floor = msgspec.structs.replace(floor, timestamp=0, timestamp_signers=())
        if timestamp_gone:
            floor = msgspec.structs.replace(floor, time_ms=0)
        if snapshot_gone:
            floor = msgspec.structs.replace(floor, snapshot=0, targets=0, snapshot_signers=(), delegated={})
        return floor

    def below(self, versions: Versions) -> str:
        """Which role of ``versions`` is below the floor, in words; empty if none is."""
        for role in Versions._fields:
            floor, offered = getattr(self, role), getattr(versions, role)
            if offered < floor:
                return f"{role} version {offered} is below {floor}, which was accepted before"
        return ""


def _version(floor: RoleFloor) -> int:
    return floor.version


class SavedFloor(Floor, frozen=True, forbid_unknown_fields=True):
    """As it rests in ``floor.json``. ``fleet``: whose versions these are; empty in files of versions that did not say so."""

    fleet: str = ""

    @classmethod
    def of(cls, floor: Floor, fleet: str) -> SavedFloor:
        return cls(**{**msgspec.structs.asdict(floor), "fleet": fleet})
