"""The reporter: facts × checks → findings → a sealed report in the outbox, on change and at intervals.

A report is the whole picture, so several reasons that come close together make one. It is made after each assessment, when a
release changes state and when the trusted view changes; otherwise at every assessment interval. Findings are kept in
``findings.json`` so that what a probe once decided stays beside a later attempt that could not (compliance/__init__).
"""

from __future__ import annotations

import contextlib
import logging
import math
import platform
import socket
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

import msgspec
import trio

from pcm_p2p import __version__
from pcm_p2p.compliance.carry import Carrier
from pcm_p2p.compliance.finding import Finding, clip
from pcm_p2p.compliance.inspection import Inspector
from pcm_p2p.compliance.report import (
    CLONES_MAX,
    PROBLEMS_MAX,
    SCHEMA,
    ForkSeen,
    Platform,
    PolicyInForce,
    ReleaseStatus,
    ReportBody,
    Transfer,
    Trust,
)
from pcm_p2p.content.manifest import Manifest
from pcm_p2p.daemon.meter import Meter, ReleaseBytes
from pcm_p2p.daemon.steward import ReleaseWork, Steward
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import PcmError
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.desired import Change
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.evidence import Fork

log = logging.getLogger(__name__)

TOGETHER_S = 2.0
"""Choice: reasons that come within this make one report."""
RETRY_S = 30.0


class Reporter:
    """The only writer of findings and the only caller of ``Carrier.report``."""

    def __init__(
        self,
        steward: Steward,
        client: TrustClient,
        carrier: Carrier,
        inspector: Inspector,
        meter: Meter,
        me: DeviceId,
        site: str,
        findings_file: Path,
        *,
        interval_s: float,
        now: Callable[[], datetime],
        remedy: Callable[[Change], Awaitable[None]],
        learn: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        self._steward = steward
        self._client = client
        self._carrier = carrier
        self._inspector = inspector
        self._meter = meter
        self._me = me
        self._site = site
        self._file = findings_file
        self._interval_s = interval_s
        self._now = now
        self._remedy = remedy
        self._learn = learn
        self._wake = trio.Event()
        self._assess_wanted = True
        self._assessing = trio.Lock()
        inspector.remember(self._load())
        self.clones: Callable[[], tuple[str, ...]] = tuple
        self.forks: Callable[[], tuple[Fork, ...]] = tuple
        self.why_not: Callable[[], str] = str
        self.problem = ""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The latest, in the order of the checks."""
        return self._inspector.findings

    def poke(self, *, assess: bool) -> None:
        """Report soon; with ``assess`` run the checks first."""
        self._assess_wanted |= assess
        self._wake.set()

    async def run(self) -> None:
        """Report until cancelled."""
        assess_at, retry_at = trio.current_time(), math.inf
        while True:
            with trio.move_on_at(min(assess_at, retry_at)):
                await self._wake.wait()
            await trio.sleep(TOGETHER_S)
            self._wake = trio.Event()
            if self._client.view is None:
                assess_at = math.inf
                continue
            if self._assess_wanted or trio.current_time() >= assess_at:
                self._assess_wanted = False
                assess_at = trio.current_time() + self._interval_s
                await self.assess()
            retry_at = math.inf if await self._report() else trio.current_time() + RETRY_S

    async def assess(self) -> tuple[Finding, ...]:
        """Run every assigned check now, remedy what may be remedied and look again; returns all findings."""
        async with self._assessing:
            await self._learn()
            desired = self._steward.desired
            checks = desired.checks if desired is not None else ()
            findings = await self._inspector.inspect(checks)
            failed = {(finding.policy, finding.check) for finding in findings if finding.state == "fail"}
            remedies = [
                check.remedy
                for check in checks
                if check.remedy is not None and (check.policy_id, check.check.id) in failed
            ]
            for remedy in remedies:
                await self._remedy(remedy)
            if remedies:
                await self._inspector.inspect(checks)
            await trio.to_thread.run_sync(self._save)
            return self.findings

    async def _report(self) -> bool:
        if why_not := self.why_not():
            self.problem = why_not
            return False
        try:
            await self._carrier.report(self.body())
        except PcmError as error:
            if error.message != self.problem:
                log.warning("no report could be made: %s", error)
            self.problem = error.message
            return False
        self.problem = ""
        return True

    def body(self) -> ReportBody:
        """The whole picture at this moment."""
        totals, view = self._meter.totals(), self._client.view
        digest = self._client.digest()
        return ReportBody(
            schema=SCHEMA,
            device=self._me.hex(),
            site=self._site,
            hostname=socket.gethostname()[:64],
            created_ms=self._now_ms(),
            agent_version=__version__,
            platform=_platform(),
            trust=Trust(
                digest.root,
                digest.timestamp,
                digest.snapshot,
                digest.targets,
                self._client.freshness() if view is not None else "none",
            ),
            policies=tuple(PolicyInForce(policy.id, policy.version, policy.mode) for policy in self._steward.policies),
            releases=tuple(
                _release(work, totals.releases.get(work.key, ReleaseBytes())) for work in self._steward.works.values()
            ),
            findings=self.findings,
            transfer=Transfer(totals.wan_in_bytes, totals.lan_in_bytes, totals.lan_out_bytes),
            clones=self.clones()[:CLONES_MAX],
            problems=tuple(clip(problem) for problem in self._steward.problems[:PROBLEMS_MAX]),
            forks=tuple(ForkSeen(fork.role, fork.version, fork.digests, fork.seen_ms) for fork in self.forks()),
        )

    def _load(self) -> tuple[Finding, ...]:
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            return msgspec.json.decode(self._file.read_bytes(), type=tuple[Finding, ...])
        return ()

    def _save(self) -> None:
        try:
            write_atomic(self._file, msgspec.json.encode(self.findings), mode=0o600)
        except OSError as error:
            log.warning("findings cannot be kept: %s", error)

    def _now_ms(self) -> int:
        return math.floor(self._now().timestamp() * 1_000)


def _release(work: ReleaseWork, moved: ReleaseBytes) -> ReleaseStatus:
    manifest = work.manifest
    return ReleaseStatus(
        name=work.assigned.name,
        version=work.assigned.version,
        state=work.state,
        since_ms=work.since_ms,
        detail=work.detail[:500],
        size_bytes=sum(artifact.delivered_size for artifact in manifest.artifacts) if manifest is not None else 0,
        needed_bytes=moved.needed_bytes or full_bytes(manifest),
        wan_in_bytes=moved.wan_in_bytes,
        lan_in_bytes=moved.lan_in_bytes,
    )


def full_bytes(manifest: Manifest | None) -> int:
    """What an office without any base pays; 0 if that is not known."""
    return sum(segment.size for _, segment in manifest.full_segments()) if manifest is not None else 0


def _platform() -> Platform:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    return Platform(release.get("ID", platform.system().lower()), release.get("VERSION_ID", ""), platform.machine())


def counts(findings: tuple[Finding, ...]) -> dict[str, int]:
    """Findings by state, every state named: none is folded into a kinder one."""
    table = {"pass": 0, "fail": 0, "error": 0, "not_run": 0, "not_applicable": 0, "manual": 0}
    for finding in findings:
        table[finding.state] += 1
    return table
