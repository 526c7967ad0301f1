"""Fills a demonstration archive: about forty devices in three offices, a week of history, every state that the pages know.

    python tests/collector/seed_archive.py ARCHIVE [--reports N]

All of it follows from fixed seeds, and every row goes in through ``Archive.take``, like the real thing.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import trio

from pcm_p2p.collector.archive import Archive, Opened, Seen
from pcm_p2p.collector.schema import MIGRATIONS
from pcm_p2p.compliance.finding import Finding
from pcm_p2p.compliance.report import Platform, PolicyInForce, ReleaseStatus, ReportBody, Transfer, Trust
from pcm_p2p.database import open_database
from pcm_p2p.ids import DeviceId
from pcm_p2p.sidecar import open_sidecar

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
MIB = 1 << 20
SITES = {"muc-headquarters": 19, "lis-branch": 13, "nbo-satellite": 9}
ODD = {
    3: "failing", 7: "stale", 9: "undecided", 12: "parked", 16: "failing", 18: "unchecked",
    21: "carried", 22: "carried", 24: "failing", 26: "stale", 29: "clone", 31: "gap",
    33: "carried", 35: "stale", 37: "frozen", 38: "undecided", 40: "clock",
}  # fmt: skip
"""What is special about some devices; all others are as they should be."""
SILENT = ("lis-branch", "nbo-satellite", "nbo-satellite")
"""Sites of devices that neighbours have seen and that never reported."""


@dataclass(frozen=True)
class DemoRelease:
    name: str
    version: str
    size_bytes: int
    needed_bytes: int
    published_hours_ago: float
    share: float = 1.0


RELEASES = (
    DemoRelease("openjdk-17-jre-headless", "17.0.21+10-1~deb12u1", 43 * MIB, 42 * MIB, 150),
    DemoRelease("libreoffice-core", "7.4.7-1+deb12u14", 34 * MIB, 33 * MIB, 96, 0.7),
    DemoRelease("office-baseline", "2026.11", 320 << 10, 290 << 10, 48),
    DemoRelease("postgresql-15", "15.20-0+deb12u1", 17 * MIB, 16 * MIB, 30, 0.4),
    DemoRelease("firefox-esr", "140.5.0esr-1~deb12u1", 62 * MIB, 61 * MIB, 3.2),
)


@dataclass(frozen=True)
class DemoCheck:
    policy: str
    check: str
    severity: str
    title: str
    expected: str
    wrong: str
    share: float


CHECKS = (
    DemoCheck("org-baseline", "ssh-root-login", "high", "SSH root login is off",
              "PermitRootLogin no", "PermitRootLogin yes", 0.2),
    DemoCheck("org-baseline", "openssl-version", "critical", "OpenSSL has the fix for DSA-6015",
              "openssl >= 3.0.17-1~deb12u3", "3.0.16-1~deb12u1", 1.0),
    DemoCheck("org-baseline", "kernel-kptr", "medium", "Kernel pointers are hidden",
              "kernel.kptr_restrict = 2", "kernel.kptr_restrict = 0", 0.5),
    DemoCheck("org-baseline", "tmp-noexec", "medium", "/tmp is mounted noexec",
              "options include noexec,nosuid", "rw,nosuid,relatime", 0.3),
    DemoCheck("org-baseline", "cups-off", "low", "Print service is off where unused",
              "cups.service disabled, inactive", "cups.service enabled, active", 0.4),
    DemoCheck("org-baseline", "shadow-mode", "high", "/etc/shadow is private",
              "mode at most 0640, owner root", "mode 0644, owner root", 0.1),
    DemoCheck("org-baseline", "password-age", "low", "Passwords expire after a year",
              "PASS_MAX_DAYS 365", "PASS_MAX_DAYS 99999", 0.0),
    DemoCheck("workstations", "screen-lock", "medium", "Screen locks after ten minutes",
              "idle-delay=600", "idle-delay=0", 0.2),
    DemoCheck("workstations", "firefox-current", "high", "Firefox ESR is current",
              "firefox-esr >= 140.5.0esr-1~deb12u1", "140.4.0esr-1~deb12u1", 0.0),
)  # fmt: skip


@dataclass(frozen=True)
class DemoDevice:
    number: int
    site: str
    hostname: str
    device: DeviceId
    behaviour: str


def demo_id(name: str) -> DeviceId:
    return DeviceId.of_public_key(hashlib.sha256(name.encode()).digest())


@cache
def fleet() -> tuple[DemoDevice, ...]:
    """Every device that reports."""
    kinds = ("desk", "desk", "desk", "note", "srv")
    found: list[DemoDevice] = []
    for site, number in SITES.items():
        for index in range(number):
            n = len(found)
            hostname = f"{site[:3]}-{kinds[index % 5]}-{index + 1:02d}"
            found.append(DemoDevice(n, site, hostname, demo_id(f"demo {n}"), ODD.get(n, "good")))
    return tuple(found)


def reports(one: DemoDevice, now_ms: int, count: int) -> Iterator[Opened]:
    """The device's reports, oldest first: dense around each release, as a daemon reports when something changes."""
    rng = random.Random(one.number)
    last_ms = now_ms - rng.randrange(MINUTE_MS, HOUR_MS)
    if one.behaviour == "stale":
        last_ms = now_ms - rng.choice((9, 31, 70)) * HOUR_MS
    moments = {now_ms - 160 * HOUR_MS + index * 160 * HOUR_MS // count for index in range(count)}
    for release in RELEASES:
        start_ms = now_ms - int(release.published_hours_ago * HOUR_MS)
        moments |= {start_ms + rng.randrange(4, 12) * MINUTE_MS, start_ms + rng.randrange(25, 90) * MINUTE_MS}
    times = [*sorted(moment for moment in moments if moment < last_ms), last_ms]
    previous, epoch = bytes(32), now_ms // 1_000 - 700_000 + one.number
    carrier, late_ms = (str(fleet()[20].device), 40 * MINUTE_MS) if one.behaviour == "carried" else ("", 2_000)
    if one.behaviour == "clock":
        late_ms = -9 * MINUTE_MS
    for seq, at_ms in enumerate(times, start=1):
        body = report_body(one, at_ms, now_ms)
        record_hash = hashlib.sha256(f"{one.number}/{seq}".encode()).digest()
        if not (one.behaviour == "gap" and seq == len(times) - 2):
            yield Opened(one.device, epoch, seq, record_hash, previous, carrier, at_ms + late_ms, body)
        if one.behaviour == "clone" and seq == len(times):
            yield Opened(one.device, epoch, seq, hashlib.sha256(b"clone").digest(), previous, "", at_ms + 9_000, body)
        previous = record_hash


def report_body(one: DemoDevice, at_ms: int, now_ms: int) -> ReportBody:
    """What ``one`` says at ``at_ms``."""
    rng = random.Random(one.number * 7)
    releases = []
    for release in RELEASES:
        took_ms, luck = rng.randrange(6, 60) * MINUTE_MS, rng.random()
        published_ms = now_ms - int(release.published_hours_ago * HOUR_MS)
        if is_assigned(one, release) and at_ms >= published_ms:
            releases.append(_release(one, release, at_ms, published_ms, took_ms, luck))
    wan = sum(release.wan_in_bytes for release in releases)
    lan = sum(release.lan_in_bytes for release in releases)
    targets = 40 + sum(at_ms > now_ms - release.published_hours_ago * HOUR_MS for release in RELEASES)
    trust = Trust(3, targets + 210, targets + 3, targets, "fresh", "")
    if one.behaviour == "frozen":
        trust = Trust(3, 214, 41, 41, "frozen", "timestamp expired 23 days ago; nothing new is installed")
    policies = (PolicyInForce("org-baseline", 42, "enforce"), PolicyInForce("workstations", 7, "observe"))
    debian = bool(one.number % 6)
    return ReportBody(
        schema="pcm.report/1",
        device=str(one.device),
        site=one.site,
        hostname=one.hostname,
        created_ms=at_ms,
        agent_version="0.1.0",
        platform=Platform("debian" if debian else "ubuntu", "12" if debian else "24.04", "x86_64"),
        trust=trust,
        policies=() if one.behaviour == "unchecked" else policies,
        releases=tuple(releases),
        findings=tuple(_findings(one, at_ms, now_ms, releases)),
        transfer=Transfer(wan + 180_000, lan, lan * rng.randrange(40, 160) // 100),
    )


def is_assigned(one: DemoDevice, release: DemoRelease) -> bool:
    return random.Random(f"{one.number} {release.name}").random() < release.share


@cache
def fetchers(site: str, release: DemoRelease) -> tuple[int, ...]:
    """Who fetches segments at a site: a few of its devices; the others take chunks from them."""
    able = [
        one.number
        for one in fleet()
        if one.site == site and one.behaviour not in ("frozen", "stale") and is_assigned(one, release)
    ]
    random.Random(release.name).shuffle(able)
    return tuple(able[:5])


def _release(
    one: DemoDevice, release: DemoRelease, at_ms: int, published_ms: int, took_ms: int, luck: float
) -> ReleaseStatus:
    took_ms *= 3 if one.site == "nbo-satellite" else 1
    done = min(1.0, (at_ms - published_ms) / took_ms)
    who = fetchers(one.site, release)
    share = int(release.needed_bytes / len(who) * (1.03 if luck > 0.8 else 1.0)) if one.number in who else 0
    wan, lan = int(share * done), int(max(0, release.needed_bytes - share) * done)
    state: Any = "applied"
    detail, since_ms = "", published_ms + took_ms + 90_000
    if one.behaviour == "frozen":
        state, detail, since_ms, wan, lan = "waiting", "trusted metadata is frozen", published_ms + MINUTE_MS, 0, 0
    elif done < 1.0:
        state, since_ms = "fetching", published_ms + MINUTE_MS
        detail = f"{done:.0%} of chunks; 3 neighbours, 1 segment from the origin"
    elif release.name == "firefox-esr" and luck < 0.25:
        state, detail = "waiting", "dpkg is locked by unattended-upgrades (pid 8127)"
        since_ms = published_ms + took_ms
    elif one.behaviour == "parked" and release.name == "openjdk-17-jre-headless":
        state, detail = "parked", "dpkg: post-installation script returned 1 (5 attempts)"
    elif release.name == "postgresql-15" and luck < 0.12:
        state, detail = "rolled_back", "health check failed: postgresql.service not active after 60 s"
    return ReleaseStatus(
        release.name, release.version, state, min(since_ms, at_ms), detail,
        release.size_bytes, release.needed_bytes, wan, lan,
    )  # fmt: skip


def _findings(one: DemoDevice, at_ms: int, now_ms: int, releases: list[ReleaseStatus]) -> Iterator[Finding]:
    rng = random.Random(one.number * 31)
    firefox = next((release.state for release in releases if release.name == "firefox-esr"), "")
    for check in () if one.behaviour == "unchecked" else CHECKS:
        state: Any = "pass"
        actual, message = check.expected, ""
        drift_ms, unlucky = now_ms - rng.randrange(8, 60) * HOUR_MS, rng.random() < check.share
        if one.behaviour == "failing" and unlucky and at_ms > drift_ms:
            state, actual, message = "fail", check.wrong, f"found {check.wrong}"
        elif one.behaviour == "undecided" and check.check == "kernel-kptr":
            state, actual, message = "error", "", "/proc/sys/kernel/kptr_restrict: Permission denied"
        elif one.behaviour == "undecided" and check.check == "tmp-noexec":
            state, actual, message = "not_run", "", "time budget of 10 s used up"
        elif check.check == "cups-off" and "srv" in one.hostname:
            state, actual = "not_applicable", "cups is not installed"
        elif check.check == "firefox-current" and firefox != "applied":
            state, actual = "not_applicable", "firefox-esr is not installed"
        decided: Any = "pass" if state in ("error", "not_run") else state
        yield Finding(
            policy=check.policy,
            policy_version=42 if check.policy == "org-baseline" else 7,
            check=check.check,
            state=state,
            severity=check.severity,
            title=check.title,
            expected=check.expected,
            actual=actual,
            message=message,
            decided=decided,
            decided_at_ms=at_ms - 4_000 if decided == state else drift_ms,
            last_attempt_ms=at_ms - 4_000,
        )


async def seed(path: Path, *, now_ms: int, reports_each: int = 6) -> None:
    """Make the archive at ``path``."""
    async with open_sidecar() as sidecar, open_database(sidecar, path, MIGRATIONS) as database:
        archive = Archive(database)
        for one in fleet():
            await archive.take(list(reports(one, now_ms, reports_each)))
        silent = [Seen(demo_id(f"silent {number}"), site) for number, site in enumerate(SILENT)]
        await archive.seen(silent, by=fleet()[0].device, now_ms=now_ms - 5 * HOUR_MS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill a demonstration archive.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--reports", type=int, default=30)
    chosen = parser.parse_args()

    async def work() -> None:
        await seed(chosen.archive, now_ms=time.time_ns() // 1_000_000, reports_each=chosen.reports)

    trio.run(work)


if __name__ == "__main__":
    main()
