"""The fleet as rows: which devices there are, which of them a filter means, and how many.

``FLEET`` is the one place where a device gets its state. Every count on a page and every list behind it is ``FLEET`` with a
``where`` built by ``DeviceFilter``, so a count and its list cannot disagree.
"""

# ruff: noqa: S608 - the SQL is put together from constants of this module; values are always bound
from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeVar
from urllib.parse import urlencode

import msgspec

from pcm_p2p.collector.snapshot import Snapshot

DeviceState = Literal["compliant", "failing", "undecided", "unchecked", "stale", "unknown", "revoked"]
DEVICE_STATES: tuple[DeviceState, ...] = (
    "compliant",
    "failing",
    "undecided",
    "unchecked",
    "stale",
    "unknown",
    "revoked",
)
Progress = Literal["installed", "under_way", "in_trouble", "stale"]
PROGRESS: tuple[Progress, ...] = ("installed", "under_way", "in_trouble", "stale")
Coverage = Literal["reporting", "stale", "unknown", "revoked"]
COVERAGE: tuple[Coverage, ...] = ("reporting", "stale", "unknown", "revoked")

FLEET = """
fleet AS (
    SELECT device, site, hostname, agent_version, os, os_version, arch, created_ms, received_ms, reported_ms, carrier,
        trust_state, passed, failed, errors, not_run, not_applicable, manual,
        CASE WHEN device IN (SELECT device FROM revoked) THEN 'revoked'
             WHEN reported_ms < :fresh_from_ms THEN 'stale'
             WHEN failed > 0 THEN 'failing'
             WHEN errors + not_run > 0 THEN 'undecided'
             WHEN passed > 0 THEN 'compliant'
             ELSE 'unchecked' END AS state
    FROM device
    UNION ALL
    SELECT device, site, '', '', '', '', '', 0, 0, 0, '', '', 0, 0, 0, 0, 0, 0,
        CASE WHEN device IN (SELECT device FROM revoked) THEN 'revoked' ELSE 'unknown' END
    FROM sighting WHERE NOT EXISTS (SELECT 1 FROM device d WHERE d.device = sighting.device)
),
assigned AS (
    SELECT f.device, f.site, f.hostname, r.name, r.version, r.state, r.since_ms, r.detail,
        f.reported_ms, r.size_bytes, r.needed_bytes, r.wan_in_bytes, r.lan_in_bytes,
        CASE WHEN f.state IN ('stale', 'revoked') THEN 'stale'
             WHEN r.state = 'applied' THEN 'installed'
             WHEN r.state IN ('failed', 'rolled_back', 'parked') THEN 'in_trouble'
             ELSE 'under_way' END AS progress
    FROM release r JOIN fleet f USING (device)
)
"""
"""Common table expressions ``fleet`` (one row a device) and ``assigned`` (one row a device and release)."""

ATTENTION = {
    "conflict": "device IN (SELECT device FROM conflict)",
    "clone": "device IN (SELECT subject FROM clone)",
    "fork": "device IN (SELECT device FROM fork)",
    "gap": "device IN (SELECT device FROM stream WHERE highest > contiguous)",
    "clock": "created_ms > received_ms + 300000",
}
"""What needs a person: two different reports under one number, an identity that two devices use, proof of metadata that was
signed twice, a stream that misses a report, a clock five minutes ahead."""

RESULTS = {"undecided": "state IN ('error', 'not_run')", "asked": "state <> 'not_applicable'"}
"""Results that are several states of a finding."""

_BY_NAME = "CASE WHEN hostname = '' THEN device ELSE hostname END, device"
SORTS = {
    "name": _BY_NAME,
    "site": f"site, {_BY_NAME}",
    "state": "CASE state WHEN 'failing' THEN 0 WHEN 'undecided' THEN 1 WHEN 'unknown' THEN 2 WHEN 'stale' THEN 3 "
    f"WHEN 'unchecked' THEN 4 WHEN 'revoked' THEN 6 ELSE 5 END, failed DESC, {_BY_NAME}",
    "reported": "reported_ms DESC, device",
}


class DeviceFilter(msgspec.Struct, frozen=True):
    """Which devices; empty text is no restriction.

    ``release`` is ``name@version``, ``check`` is ``policy/check``, ``result`` a finding's state or a key of ``RESULTS`` (with
    ``check``, or of any check without), ``attention`` a key of ``ATTENTION``, ``q`` part of a host name, device id or site.
    """

    site: str = ""
    state: str = ""
    coverage: str = ""
    release: str = ""
    progress: str = ""
    check: str = ""
    result: str = ""
    trust: str = ""
    attention: str = ""
    q: str = ""

    def query(self, **changes: str) -> str:
        """This filter, changed, as the query part of an address."""
        values = {**msgspec.structs.asdict(self), **changes}
        return urlencode({key: value for key, value in values.items() if value})

    def where(self) -> tuple[str, dict[str, object]]:
        """SQL for ``fleet`` and its values."""
        clauses = ["1"]
        if self.site:
            clauses.append("site = :site")
        if self.state:
            clauses.append("state = :state")
        if self.attention:
            clauses.append(ATTENTION.get(self.attention, "0"))
        if self.trust:
            clauses.append("trust_state = :trust")
        if self.coverage == "reporting":
            clauses.append("state NOT IN ('stale', 'unknown', 'revoked')")
        elif self.coverage:
            clauses.append("state = :coverage")
        if self.release or self.progress:
            inner = "SELECT device FROM assigned WHERE 1"
            inner += " AND name = :name AND version = :version" if self.release else ""
            inner += " AND progress = :progress" if self.progress else ""
            clauses.append(f"device IN ({inner})")
        if self.check or self.result:
            inner = "SELECT device FROM finding WHERE 1"
            inner += " AND policy = :policy AND check_id = :check_id" if self.check else ""
            inner += f" AND {RESULTS.get(self.result, 'state = :result')}" if self.result else ""
            clauses.append(f"device IN ({inner})")
        if self.q:
            like = "LIKE :like ESCAPE '!'"
            clauses.append(f"(hostname {like} OR device {like} OR site {like})")
        name, _, version = self.release.rpartition("@")
        policy, _, check_id = self.check.partition("/")
        escaped = self.q.replace("!", "!!").replace("%", "!%").replace("_", "!_")
        values: dict[str, object] = {
            **msgspec.structs.asdict(self),
            "name": name, "version": version, "policy": policy, "check_id": check_id, "like": f"%{escaped}%",
        }  # fmt: skip
        return " AND ".join(clauses), values


class DeviceRow(msgspec.Struct, frozen=True):
    """One line of the device list. ``reported_ms`` 0: never. ``releases_installed`` of ``releases`` assigned."""

    device: str
    hostname: str
    site: str
    state: DeviceState
    passed: int
    failed: int
    undecided: int
    releases: int
    releases_installed: int
    trust_state: str
    agent_version: str
    os: str
    reported_ms: int
    carrier: str


class DeviceList(msgspec.Struct, frozen=True):
    as_of_ms: int
    total: int
    offset: int
    devices: list[DeviceRow]


def devices(
    snapshot: Snapshot, chosen: DeviceFilter, *, sort: str = "state", limit: int = 100, offset: int = 0
) -> DeviceList:
    """The devices that ``chosen`` means, and how many they are in all."""
    where, values = chosen.where()
    rows = snapshot.rows(
        f"WITH {FLEET} SELECT device, hostname, site, state, passed, failed, errors + not_run AS undecided, "
        "(SELECT count(*) FROM release r WHERE r.device = fleet.device) AS releases, "
        "(SELECT count(*) FROM release r WHERE r.device = fleet.device AND r.state = 'applied') AS releases_installed, "
        "trust_state, agent_version, trim(os || ' ' || os_version) AS os, reported_ms, carrier "
        f"FROM fleet WHERE {where} ORDER BY {SORTS.get(sort, SORTS['state'])} LIMIT :limit OFFSET :offset",
        {**values, "limit": limit, "offset": offset},
    )
    return DeviceList(snapshot.as_of_ms, count(snapshot, chosen), offset, structs(rows, DeviceRow))


def count(snapshot: Snapshot, chosen: DeviceFilter) -> int:
    """How many devices ``chosen`` means."""
    where, values = chosen.where()
    ((total,),) = snapshot.rows(f"WITH {FLEET} SELECT count(*) FROM fleet WHERE {where}", values)
    return int(total)


def counts_by(
    snapshot: Snapshot, column: Literal["state", "site", "trust_state"], chosen: DeviceFilter
) -> dict[str, int]:
    """How many devices of ``chosen`` have each value of ``column``; values that nobody has are absent."""
    where, values = chosen.where()
    rows = snapshot.rows(
        f"WITH {FLEET} SELECT {column}, count(*) FROM fleet WHERE {where} GROUP BY {column} ORDER BY {column}", values
    )
    return {str(value): int(number) for value, number in rows}


Row = TypeVar("Row", bound=msgspec.Struct)


def structs(rows: Iterable[Any], kind: type[Row]) -> list[Row]:
    """Rows of a query whose columns are named like the fields of ``kind``."""
    return [kind(**dict(row)) for row in rows]
