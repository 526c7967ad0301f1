"""Everything the archive knows about one device: verdicts with evidence, releases, timeline, and how complete its stream is."""

# ruff: noqa: S608 - the SQL is put together from constants of this room; values are always bound
from __future__ import annotations

import msgspec

from pcm_p2p.collector.fleet import FLEET, DeviceState, Progress, structs
from pcm_p2p.collector.snapshot import Snapshot
from pcm_p2p.collector.timeline import Event, device_timeline


class Verdict(msgspec.Struct, frozen=True):
    """One check's finding with its evidence; see ``pcm_p2p.compliance.finding``."""

    policy: str
    policy_version: int
    check: str
    state: str
    severity: str
    title: str
    expected: str
    actual: str
    message: str
    decided: str
    decided_at_ms: int
    last_attempt_ms: int


class ReleaseOnDevice(msgspec.Struct, frozen=True):
    name: str
    version: str
    state: str
    progress: Progress
    since_ms: int
    detail: str
    size_bytes: int
    wan_in_bytes: int
    lan_in_bytes: int


class PolicyOnDevice(msgspec.Struct, frozen=True):
    policy: str
    version: int
    mode: str


class ForkOnDevice(msgspec.Struct, frozen=True):
    """``digests``: SHA-256 of the signed parts, with a space between."""

    role: str
    version: int
    digests: str
    seen_ms: int


class Stream(msgspec.Struct, frozen=True):
    """Reports of one epoch: all up to ``contiguous`` are here; up to ``highest`` ``missing`` are not yet."""

    epoch: int
    contiguous: int
    highest: int
    missing: int


class Device(msgspec.Struct, frozen=True):
    """``revoked_ms``: since when the device is revoked (0: it is not); ``revoked_refused`` counts its reports that were
    refused since. ``clone_witnesses``: how many devices saw two devices with this identity. ``skew_ms``: how far the device's
    clock ran ahead of ours when its last report came (0 if it did not)."""

    as_of_ms: int
    device: str
    hostname: str
    site: str
    state: DeviceState
    agent_version: str
    os: str
    arch: str
    created_ms: int
    received_ms: int
    reported_ms: int
    skew_ms: int
    carrier: str
    trust_state: str
    trust_reason: str
    trust_versions: dict[str, int]
    counts: dict[str, int]
    wan_in_bytes: int
    lan_in_bytes: int
    lan_out_bytes: int
    findings: list[Verdict]
    releases: list[ReleaseOnDevice]
    policies: list[PolicyOnDevice]
    timeline: list[Event]
    streams: list[Stream]
    conflicts: int
    seen_by: str
    first_seen_ms: int
    forks: list[ForkOnDevice]
    problems: list[str]
    revoked_ms: int = 0
    revoked_reason: str = ""
    revoked_refused: int = 0
    clone_witnesses: int = 0


def device(snapshot: Snapshot, device_id: str) -> Device | None:
    """The device with this hexadecimal id, or ``None`` if nobody ever saw it."""
    values = {"device": device_id}
    found = snapshot.rows(f"WITH {FLEET} SELECT * FROM fleet WHERE device = :device", values)
    if not found:
        return None
    row = dict(found[0])
    told = snapshot.rows("SELECT * FROM device WHERE device = :device", values)
    latest = dict(told[0]) if told else {}
    sighting = snapshot.rows("SELECT seen_by, first_seen_ms FROM sighting WHERE device = :device", values)
    usage = snapshot.rows(
        "SELECT wan, lan_in, lan_out FROM usage WHERE device = :device AND name = '' ORDER BY epoch DESC, seq DESC LIMIT 1",
        values,
    )
    wan, lan_in, lan_out = usage[0] if usage else (0, 0, 0)
    revoked = snapshot.rows("SELECT since_ms, reason, refused FROM revoked WHERE device = :device", values)
    ((conflicts,),) = snapshot.rows("SELECT count(*) FROM conflict WHERE device = :device", values)
    ((clone_witnesses,),) = snapshot.rows("SELECT count(*) FROM clone WHERE subject = :device", values)
    return Device(
        as_of_ms=snapshot.as_of_ms,
        device=device_id,
        hostname=row["hostname"],
        site=row["site"],
        state=row["state"],
        agent_version=row["agent_version"],
        os=f"{row['os']} {row['os_version']}".strip(),
        arch=row["arch"],
        created_ms=row["created_ms"],
        received_ms=row["received_ms"],
        reported_ms=row["reported_ms"],
        skew_ms=max(0, row["created_ms"] - row["received_ms"]),
        carrier=row["carrier"],
        trust_state=row["trust_state"],
        trust_reason=latest.get("trust_reason", ""),
        trust_versions={role: latest.get(f"trust_{role}", 0) for role in ("root", "timestamp", "snapshot", "targets")},
        counts={
            "pass": row["passed"],
            "fail": row["failed"],
            "error": row["errors"],
            "not_run": row["not_run"],
            "not_applicable": row["not_applicable"],
            "manual": row["manual"],
        },
        wan_in_bytes=wan,
        lan_in_bytes=lan_in,
        lan_out_bytes=lan_out,
        findings=_findings(snapshot, device_id),
        releases=structs(
            snapshot.rows(
                f"WITH {FLEET} SELECT name, version, state, progress, since_ms, detail, size_bytes, wan_in_bytes, "
                "lan_in_bytes FROM assigned WHERE device = :device ORDER BY since_ms DESC, name, version",
                values,
            ),
            ReleaseOnDevice,
        ),
        policies=structs(
            snapshot.rows(
                "SELECT policy, version, mode FROM device_policy WHERE device = :device ORDER BY policy", values
            ),
            PolicyOnDevice,
        ),
        timeline=device_timeline(snapshot, device_id),
        streams=structs(
            snapshot.rows(
                "SELECT epoch, contiguous, highest, highest - contiguous - (SELECT count(*) FROM report r "
                "WHERE r.device = stream.device AND r.epoch = stream.epoch AND r.seq > contiguous) AS missing "
                "FROM stream WHERE device = :device ORDER BY epoch DESC",
                values,
            ),
            Stream,
        ),
        conflicts=conflicts,
        seen_by=sighting[0]["seen_by"] if sighting else "",
        first_seen_ms=sighting[0]["first_seen_ms"] if sighting else 0,
        forks=structs(
            snapshot.rows(
                "SELECT role, version, digests, seen_ms FROM fork WHERE device = :device ORDER BY role, version", values
            ),
            ForkOnDevice,
        ),
        problems=[
            str(row["said"])
            for row in snapshot.rows("SELECT said FROM problem WHERE device = :device ORDER BY place", values)
        ],
        revoked_ms=revoked[0]["since_ms"] if revoked else 0,
        revoked_reason=revoked[0]["reason"] if revoked else "",
        revoked_refused=revoked[0]["refused"] if revoked else 0,
        clone_witnesses=clone_witnesses,
    )


def _findings(snapshot: Snapshot, device_id: str) -> list[Verdict]:
    return structs(
        snapshot.rows(
            'SELECT policy, policy_version, check_id AS "check", state, severity, title, expected, actual, message, decided, '
            "decided_at_ms, last_attempt_ms FROM finding WHERE device = :device ORDER BY "
            "CASE state WHEN 'fail' THEN 0 WHEN 'error' THEN 1 WHEN 'not_run' THEN 2 WHEN 'manual' THEN 3 WHEN 'pass' THEN 4 "
            "ELSE 5 END, CASE severity WHEN 'critical' THEN 0 WHEN 'high' THEN 1 WHEN 'medium' THEN 2 ELSE 3 END, "
            "policy, check_id",
            {"device": device_id},
        ),
        Verdict,
    )
