"""The fleet on one page: coverage, compliance, patch progress, savings, what changed and what needs a person."""

# ruff: noqa: S608 - the SQL is put together from constants of this room; values are always bound
from __future__ import annotations

import msgspec

from pcm_p2p.collector.fleet import ATTENTION, COVERAGE, DEVICE_STATES, FLEET, DeviceFilter, count, counts_by, structs
from pcm_p2p.collector.releases import ReleaseProgress, releases
from pcm_p2p.collector.savings import Bytes, totals, totals_by_site
from pcm_p2p.collector.snapshot import Snapshot
from pcm_p2p.collector.timeline import FleetEvent, fleet_timeline

RELEASES_MAX = 8
CHECKS_MAX = 8
EVENTS_MAX = 8


class CheckCount(msgspec.Struct, frozen=True):
    """A check that does not pass somewhere, counted over devices with a fresh report. ``asked``: devices that have it."""

    policy: str
    check: str
    title: str
    severity: str
    failed: int
    undecided: int
    asked: int


class SiteCount(msgspec.Struct, frozen=True):
    """``states`` has every device state; they add up to ``devices``."""

    site: str
    devices: int
    states: dict[str, int]
    bytes: Bytes


class Overview(msgspec.Struct, frozen=True):
    """``states`` and ``coverage`` have every value, those of nobody too, and each adds up to ``devices``. ``troubled`` and
    ``under_way``: devices with at least one release in that progress. ``trust``: devices per trust state among those that
    report. ``attention``: devices for each key of ``fleet.ATTENTION``."""

    as_of_ms: int
    stale_after_ms: int
    devices: int
    states: dict[str, int]
    coverage: dict[str, int]
    troubled: int
    under_way: int
    sites: list[SiteCount]
    releases: list[ReleaseProgress]
    checks: list[CheckCount]
    savings: Bytes
    amplification: float | None
    trust: dict[str, int]
    attention: dict[str, int]
    events: list[FleetEvent]
    reported_ms: int


def overview(snapshot: Snapshot) -> Overview:
    """The overview of everything that the archive holds."""
    everything = DeviceFilter()
    saved = totals(snapshot)
    ((reported_ms,),) = snapshot.rows("SELECT coalesce(max(received_ms), 0) FROM device")
    return Overview(
        as_of_ms=snapshot.as_of_ms,
        stale_after_ms=snapshot.stale_after_ms,
        devices=count(snapshot, everything),
        states=dict.fromkeys(map(str, DEVICE_STATES), 0) | counts_by(snapshot, "state", everything),
        coverage={kind: count(snapshot, DeviceFilter(coverage=kind)) for kind in COVERAGE},
        troubled=count(snapshot, DeviceFilter(progress="in_trouble")),
        under_way=count(snapshot, DeviceFilter(progress="under_way")),
        sites=_sites(snapshot),
        releases=releases(snapshot, limit=RELEASES_MAX).releases,
        checks=_checks(snapshot),
        savings=saved,
        amplification=saved.amplification,
        trust=counts_by(snapshot, "trust_state", DeviceFilter(coverage="reporting")),
        attention={kind: count(snapshot, DeviceFilter(attention=kind)) for kind in ATTENTION},
        events=fleet_timeline(snapshot, limit=EVENTS_MAX),
        reported_ms=int(reported_ms),
    )


def _sites(snapshot: Snapshot) -> list[SiteCount]:
    moved = totals_by_site(snapshot)
    sites: dict[str, dict[str, int]] = {}
    for site, state, number in snapshot.rows(
        f"WITH {FLEET} SELECT site, state, count(*) FROM fleet GROUP BY site, state ORDER BY site"
    ):
        sites.setdefault(str(site), dict.fromkeys(DEVICE_STATES, 0))[str(state)] = int(number)
    return [SiteCount(site, sum(states.values()), states, moved.get(site, Bytes())) for site, states in sites.items()]


def _checks(snapshot: Snapshot) -> list[CheckCount]:
    rows = snapshot.rows(
        f'WITH {FLEET} SELECT policy, check_id AS "check", max(f.title) AS title, max(severity) AS severity, '
        "sum(f.state = 'fail') AS failed, sum(f.state IN ('error', 'not_run')) AS undecided, "
        "sum(f.state <> 'not_applicable') AS asked "
        "FROM finding f JOIN fleet USING (device) WHERE fleet.state NOT IN ('stale', 'revoked') GROUP BY policy, check_id "
        "HAVING failed + undecided > 0 ORDER BY CASE max(severity) WHEN 'critical' THEN 0 WHEN 'high' THEN 1 "
        "WHEN 'medium' THEN 2 ELSE 3 END, failed DESC, undecided DESC, policy, check_id LIMIT :limit",
        {"limit": CHECKS_MAX},
    )
    return structs(rows, CheckCount)
