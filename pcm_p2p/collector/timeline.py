"""What changed, latest first: everything on one device, and what is worth a look in the whole fleet."""

# ruff: noqa: S608 - the SQL is put together from constants of this module; values are always bound
from __future__ import annotations

import msgspec

from pcm_p2p.collector.fleet import structs
from pcm_p2p.collector.snapshot import Snapshot

ROWS_MAX = 200
"""Choice: what a person scrolls through; the archive keeps more."""
LOOKED_AT_MAX = 2_000
"""Choice: how many changes of the fleet are looked through for one page."""
NAMES_MAX = 3

_NOTABLE = (
    "(kind IN ('policy', 'trust', 'agent', 'site') "
    "OR (kind = 'release' AND after IN ('applied', 'failed', 'rolled_back', 'parked')) "
    "OR (kind = 'finding' AND (after IN ('fail', 'error', 'not_run') OR before IN ('fail', 'error', 'not_run'))))"
)
"""Ends and failures; not each step on the way, and not checks that begin to apply and pass."""


class Event(msgspec.Struct, frozen=True):
    """A row of a device's timeline; ``kind``, ``before`` and ``after`` as in ``changes``."""

    at_ms: int
    kind: str
    subject: str
    before: str
    after: str
    detail: str


class Named(msgspec.Struct, frozen=True):
    device: str
    hostname: str


class FleetEvent(msgspec.Struct, frozen=True):
    """The same change on one or more devices within a day: the latest ``named``, and whether there are ``more``."""

    at_ms: int
    kind: str
    subject: str
    before: str
    after: str
    detail: str
    named: list[Named]
    more: bool


def device_timeline(snapshot: Snapshot, device: str, *, limit: int = ROWS_MAX) -> list[Event]:
    """All that changed on one device, latest first."""
    return structs(
        snapshot.rows(
            "SELECT at_ms, kind, subject, before, after, detail FROM change WHERE device = :device "
            "ORDER BY at_ms DESC, epoch DESC, seq DESC, ordinal DESC LIMIT :limit",
            {"device": device, "limit": limit},
        ),
        Event,
    )


def fleet_timeline(snapshot: Snapshot, *, limit: int) -> list[FleetEvent]:
    """What is worth a look in the fleet, latest first; the same thing on several devices is one row a day."""
    found: dict[tuple[str, str, str, int], FleetEvent] = {}
    for row in snapshot.rows(
        "SELECT change.device, coalesce(d.hostname, '') AS hostname, at_ms, kind, subject, before, after, detail "
        f"FROM change LEFT JOIN device d ON d.device = change.device WHERE {_NOTABLE} "
        "ORDER BY at_ms DESC, change.device LIMIT :limit",
        {"limit": LOOKED_AT_MAX},
    ):
        key = (row["kind"], row["subject"], row["after"], row["at_ms"] // 86_400_000)
        named = Named(row["device"], row["hostname"])
        event = found.get(key)
        if event is None:
            if len(found) == limit:
                break
            found[key] = FleetEvent(
                at_ms=row["at_ms"],
                kind=row["kind"],
                subject=row["subject"],
                before=row["before"],
                after=row["after"],
                detail=row["detail"],
                named=[named],
                more=False,
            )
        elif named not in event.named:
            names = [*event.named, named]
            found[key] = msgspec.structs.replace(event, named=names[:NAMES_MAX], more=len(names) > NAMES_MAX)
    return list(found.values())
