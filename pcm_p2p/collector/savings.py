"""Swarm savings: bytes over the WAN and on the LAN against what plain downloads would have cost.

==============  =================================================================================================
wan             payload that devices received from the origin for releases, retries included
lan_in          payload that devices received from neighbours instead
plain           size as delivered of each release, once for each device that has all of it and got it in this fleet
needed          what one site must fetch once for a release; summed over the sites that moved bytes of it
amplification   wan ÷ needed: 1.0 is perfect, the number of devices is what plain downloads make it
saved           plain − wan
==============  =================================================================================================

While a release is under way its ``wan`` is ahead of its ``plain``: a download is counted as spared only when it is complete.
"""

# ruff: noqa: S608 - the SQL is put together from constants of this module; values are always bound
from __future__ import annotations

from typing import Any

import msgspec

from pcm_p2p.collector.fleet import structs
from pcm_p2p.collector.schema import BUCKET_S
from pcm_p2p.collector.snapshot import Snapshot

DEVICE_ROWS_MAX = 500
POINTS_MAX = 240
"""Choice: more points than this cannot be told apart in the chart's width."""
BUCKETS_S = (10, 30, 60, 300, 900, 3_600, 21_600, 86_400, 604_800)

_WAN, _LAN_IN, _PLAIN, _NEEDED = (
    f"CAST(total({column}) AS INTEGER)" for column in ("wan", "lan_in", "plain", "needed")
)
"""Sums that end at 63 bits, where ``sum`` would end the page: the false figures of one report suffice for that."""
_MOST = (1 << 63) - 1
_HERE = "(:site = '' OR site = :site) AND (:name = '' OR (name = :name AND version = :version))"
_CELL = f"""
cell AS (
    SELECT site, name, version, {_WAN} AS wan, {_LAN_IN} AS lan_in, {_PLAIN} AS plain,
        CASE WHEN {_WAN} + {_LAN_IN} > 0 THEN max(needed_bytes) ELSE 0 END AS needed
    FROM moved WHERE {_HERE} GROUP BY site, name, version
    HAVING {_WAN} + {_LAN_IN} + {_PLAIN} > 0
)
"""
"""``cell``: one row per site and release. Every figure below is a sum over these, or over the rows of ``moved`` in them."""


class Bytes(msgspec.Struct, frozen=True):
    """Sums over some part of the ledger; meanings in the module's table."""

    wan: int = 0
    lan_in: int = 0
    plain: int = 0
    needed: int = 0

    @property
    def saved(self) -> int:
        return self.plain - self.wan

    @property
    def amplification(self) -> float | None:
        return self.wan / self.needed if self.needed else None


class SiteBytes(msgspec.Struct, frozen=True):
    site: str
    releases: int
    bytes: Bytes


class ReleaseBytes(msgspec.Struct, frozen=True):
    name: str
    version: str
    sites: int
    bytes: Bytes


class DeviceBytes(msgspec.Struct, frozen=True):
    device: str
    hostname: str
    site: str
    wan: int
    lan_in: int
    plain: int


class Series(msgspec.Struct, frozen=True):
    """Running sums; ``at_s[i]`` is the end of a bucket, in seconds since 1970, or the moment of reading for the last."""

    at_s: list[int]
    wan: list[int]
    lan_in: list[int]
    plain: list[int]


class Savings(msgspec.Struct, frozen=True):
    as_of_ms: int
    site: str
    release: str
    total: Bytes
    amplification: float | None
    by_site: list[SiteBytes]
    by_release: list[ReleaseBytes]
    devices: list[DeviceBytes]
    devices_total: int
    series: Series


def savings(snapshot: Snapshot, *, site: str = "", release: str = "") -> Savings:
    """All of it, of one site, of one release (``name@version``), or of one release at one site."""
    name, _, version = release.rpartition("@")
    values: dict[str, object] = {"site": site, "name": name, "version": version, "limit": DEVICE_ROWS_MAX}
    total = _total(snapshot, values)
    devices = snapshot.rows(
        f"SELECT m.*, coalesce(d.hostname, '') AS hostname FROM (SELECT device, site, {_WAN} AS wan, "
        f"{_LAN_IN} AS lan_in, {_PLAIN} AS plain, count(*) OVER () AS total FROM moved WHERE {_HERE} "
        f"GROUP BY device, site HAVING {_WAN} + {_LAN_IN} + {_PLAIN} > 0 ORDER BY {_WAN} DESC, device LIMIT :limit) m "
        "LEFT JOIN device d ON d.device = m.device ORDER BY wan DESC, hostname, m.device",
        values,
    )
    return Savings(
        as_of_ms=snapshot.as_of_ms,
        site=site,
        release=release,
        total=total,
        amplification=total.amplification,
        by_site=[
            SiteBytes(row["site"], row["releases"], _bytes(row))
            for row in snapshot.rows(
                f"WITH {_CELL} SELECT site, count(*) AS releases, {_WAN} AS wan, {_LAN_IN} AS lan_in, "
                f"{_PLAIN} AS plain, {_NEEDED} AS needed FROM cell GROUP BY site ORDER BY {_PLAIN} - {_WAN} DESC, site",
                values,
            )
        ],
        by_release=[
            ReleaseBytes(row["name"], row["version"], row["sites"], _bytes(row))
            for row in snapshot.rows(
                f"WITH {_CELL} SELECT name, version, count(*) AS sites, {_WAN} AS wan, {_LAN_IN} AS lan_in, "
                f"{_PLAIN} AS plain, {_NEEDED} AS needed FROM cell GROUP BY name, version "
                f"ORDER BY {_PLAIN} - {_WAN} DESC, name, version",
                values,
            )
        ],
        devices=structs([{key: row[key] for key in DeviceBytes.__struct_fields__} for row in devices], DeviceBytes),
        devices_total=devices[0]["total"] if devices else 0,
        series=_series(snapshot, values),
    )


def totals(snapshot: Snapshot) -> Bytes:
    """The sums over the whole fleet."""
    return _total(snapshot, {"site": "", "name": "", "version": ""})


def totals_by_site(snapshot: Snapshot) -> dict[str, Bytes]:
    """The sums of each site."""
    rows = snapshot.rows(
        f"WITH {_CELL} SELECT site, {_WAN} AS wan, {_LAN_IN} AS lan_in, {_PLAIN} AS plain, {_NEEDED} AS needed "
        "FROM cell GROUP BY site",
        {"site": "", "name": "", "version": ""},
    )
    return {str(row["site"]): _bytes(row) for row in rows}


def _total(snapshot: Snapshot, values: dict[str, object]) -> Bytes:
    (row,) = snapshot.rows(
        f"WITH {_CELL} SELECT {_WAN} AS wan, {_LAN_IN} AS lan_in, {_PLAIN} AS plain, {_NEEDED} AS needed FROM cell",
        values,
    )
    return _bytes(row)


def _bytes(row: Any) -> Bytes:
    return Bytes(row["wan"], row["lan_in"], row["plain"], row["needed"])


def _series(snapshot: Snapshot, values: dict[str, object]) -> Series:
    moved = f"moved_in_time WHERE {_HERE} AND (wan <> 0 OR lan_in <> 0 OR plain <> 0)"
    ((first, last),) = snapshot.rows(f"SELECT min(bucket), max(bucket) FROM {moved}", values)
    if first is None:
        return Series([], [], [], [])
    span_s, as_of_s = (last - first) * BUCKET_S, snapshot.as_of_ms // 1_000
    bucket_s = next((size for size in BUCKETS_S if span_s // size < POINTS_MAX), BUCKETS_S[-1])
    series = Series([first * BUCKET_S // bucket_s * bucket_s], [0], [0], [0])
    for bucket, wan, lan_in, plain in snapshot.rows(
        f"SELECT bucket / :each AS wide, {_WAN}, {_LAN_IN}, {_PLAIN} FROM {moved} GROUP BY wide ORDER BY wide",
        {**values, "each": bucket_s // BUCKET_S},
    ):
        # The bucket that is not over yet ends now; times must grow all the same.
        series.at_s.append(max(min((bucket + 1) * bucket_s, as_of_s), series.at_s[-1] + 1))
        series.wan.append(min(series.wan[-1] + wan, _MOST))
        series.lan_in.append(min(series.lan_in[-1] + lan_in, _MOST))
        series.plain.append(min(series.plain[-1] + plain, _MOST))
    if as_of_s > series.at_s[-1]:
        series.at_s.append(as_of_s)
        for sums in (series.wan, series.lan_in, series.plain):
            sums.append(sums[-1])
    return series
