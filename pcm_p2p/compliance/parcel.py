"""Parcel: a stored record as those see it who decide about it, and what a transaction of the outbox did. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pcm_p2p.compliance.record import RecordKey
from pcm_p2p.ids import DeviceId


@dataclass(frozen=True, slots=True)
class Parcel:
    """``received_from`` is None for own ones."""

    hash: bytes
    key: RecordKey
    size_bytes: int
    received_from: DeviceId | None = None


class Kept(Enum):
    """What became of a record that somebody handed over."""

    KEPT = "kept"
    KNOWN = "known"
    ACKNOWLEDGED = "acknowledged"
    FULL = "full"

    @property
    def taken(self) -> bool:
        """Whether whoever handed it over may count it as safe here (or beyond)."""
        return self is not Kept.FULL


@dataclass(frozen=True, slots=True)
class Changed:
    """What a transaction did to the stored records. ``advanced``: authors of whom more is acknowledged than before."""

    added: tuple[Parcel, ...] = ()
    removed: tuple[bytes, ...] = ()
    advanced: tuple[DeviceId, ...] = ()
    new_epoch: int | None = None

    def then(self, second: Changed) -> Changed:
        """Both, in this order."""
        return Changed(
            added=self.added + second.added,
            removed=self.removed + second.removed,
            advanced=self.advanced + second.advanced,
            new_epoch=second.new_epoch or self.new_epoch,
        )
