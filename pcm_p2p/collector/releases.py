"""Releases: which devices have one, which wait, and why. All numbers are counts over ``fleet.FLEET``'s ``assigned`` rows."""

# ruff: noqa: S608 - the SQL is put together from constants of this room; values are always bound
from __future__ import annotations

import msgspec

from pcm_p2p.collector.fleet import FLEET, PROGRESS, Progress, structs
from pcm_p2p.collector.snapshot import Snapshot

ROWS_MAX = 1_000
"""Choice: rows of one release on one page; the device list pages through all of them."""


class ReleaseProgress(msgspec.Struct, frozen=True):
    """How far one release is. ``counts`` has every progress; they add up to ``devices``, the devices that are to have it."""

    name: str
    version: str
    size_bytes: int
    needed_bytes: int
    first_ms: int
    last_ms: int
    devices: int
    counts: dict[str, int]


class ReleaseList(msgspec.Struct, frozen=True):
    as_of_ms: int
    releases: list[ReleaseProgress]


class ReleaseRow(msgspec.Struct, frozen=True):
    """One device of a release; ``detail`` is the device's own word for what it waits for."""

    device: str
    hostname: str
    site: str
    progress: Progress
    state: str
    since_ms: int
    detail: str
    reported_ms: int
    wan_in_bytes: int
    lan_in_bytes: int


class Reason(msgspec.Struct, frozen=True):
    """How many devices give the same reason for not having the release."""

    state: str
    progress: Progress
    detail: str
    devices: int


class Release(msgspec.Struct, frozen=True):
    """``sites``: counts per site. ``elsewhere``: devices of the fleet whose last report does not mention the release at all
    (not assigned to them, or they have not heard of it yet)."""

    as_of_ms: int
    progress: ReleaseProgress
    sites: dict[str, dict[str, int]]
    reasons: list[Reason]
    rows: list[ReleaseRow]
    elsewhere: int


def releases(snapshot: Snapshot, *, limit: int = 200) -> ReleaseList:
    """Every release that a device mentions, the latest first."""
    return ReleaseList(snapshot.as_of_ms, _progress(snapshot, "1", {"limit": limit}))


def release(
    snapshot: Snapshot, name: str, version: str, *, site: str = "", progress: str = "", reason: str = ""
) -> Release | None:
    """One release, or ``None`` if no device mentions it. ``site``, ``progress`` and ``reason`` (a row's ``detail``) narrow
    ``rows``; the first two narrow ``reasons`` as well."""
    values = {
        "name": name, "version": version, "site": site, "progress": progress, "reason": reason, "limit": ROWS_MAX,
    }  # fmt: skip
    this = "name = :name AND version = :version"
    found = _progress(snapshot, this, values)
    if not found:
        return None
    narrowed = this + (" AND site = :site" if site else "") + (" AND progress = :progress" if progress else "")
    of_reason = " AND detail = :reason AND progress IN ('under_way', 'in_trouble')" if reason else ""
    sites: dict[str, dict[str, int]] = {}
    for where, kind, number in snapshot.rows(
        f"WITH {FLEET} SELECT site, progress, count(*) FROM assigned WHERE {this} GROUP BY site, progress ORDER BY site",
        values,
    ):
        sites.setdefault(str(where), dict.fromkeys(PROGRESS, 0))[str(kind)] = int(number)
    ((elsewhere,),) = snapshot.rows(
        f"WITH {FLEET} SELECT count(*) FROM fleet WHERE device NOT IN (SELECT device FROM assigned WHERE {this})",
        values,
    )
    return Release(
        as_of_ms=snapshot.as_of_ms,
        progress=found[0],
        sites=sites,
        reasons=structs(
            snapshot.rows(
                f"WITH {FLEET} SELECT state, progress, detail, count(*) AS devices FROM assigned "
                f"WHERE {narrowed} AND progress IN ('under_way', 'in_trouble') GROUP BY state, progress, detail "
                "ORDER BY progress, devices DESC, state, detail LIMIT 50",
                values,
            ),
            Reason,
        ),
        rows=structs(
            snapshot.rows(
                f"WITH {FLEET} SELECT device, hostname, site, progress, state, since_ms, detail, reported_ms, wan_in_bytes, "
                f"lan_in_bytes FROM assigned WHERE {narrowed}{of_reason} ORDER BY CASE progress WHEN 'in_trouble' THEN 0 "
                "WHEN 'under_way' THEN 1 WHEN 'stale' THEN 2 ELSE 3 END, site, hostname, device LIMIT :limit",
                values,
            ),
            ReleaseRow,
        ),
        elsewhere=int(elsewhere),
    )


def _progress(snapshot: Snapshot, where: str, values: dict[str, object]) -> list[ReleaseProgress]:
    columns = ", ".join(f"sum(progress = '{kind}') AS {kind}" for kind in PROGRESS)
    return [
        ReleaseProgress(
            name=row["name"],
            version=row["version"],
            size_bytes=row["size_bytes"],
            needed_bytes=row["needed_bytes"],
            first_ms=row["first_ms"],
            last_ms=row["last_ms"],
            devices=row["devices"],
            counts={kind: int(row[kind]) for kind in PROGRESS},
        )
        for row in snapshot.rows(
            f"WITH {FLEET} SELECT name, version, max(size_bytes) AS size_bytes, max(needed_bytes) AS needed_bytes, "
            f"min(since_ms) AS first_ms, max(since_ms) AS last_ms, count(*) AS devices, {columns} "
            f"FROM assigned WHERE {where} GROUP BY name, version ORDER BY last_ms DESC, name, version DESC LIMIT :limit",
            values,
        )
    ]
