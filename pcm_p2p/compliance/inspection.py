"""Inspection: runs a device's checks, each alone with its deadline, and keeps what was decided before. Shell.

Probes block, so each runs in a worker thread, one after the other. One that hangs (a dead network mount) costs its own check,
which becomes ``not_run``; its thread is left behind and holds its place until the kernel lets go. When ``WORKERS_MAX`` hang,
the remaining checks are ``not_run`` at once instead of after their deadline each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from pcm_p2p.compliance.assessment import Verdict, assess, conclude
from pcm_p2p.compliance.facts.observation import Observation
from pcm_p2p.compliance.facts.prober import CHECK_TIMEOUT_S
from pcm_p2p.compliance.finding import Finding
from pcm_p2p.policy.desired import AssignedCheck
from pcm_p2p.policy.document import AnyCheck

WORKERS_MAX = 2
"""Choice: one that works and one that may hang."""
GRACE_S = 1.0
"""A probe notices its own deadline; this much later its thread is given up."""


class Probes(Protocol):
    """What sees the device (``facts.prober.Prober``)."""

    def observe(self, check: AnyCheck, timeout_s: float) -> Observation: ...


class Inspector:
    """Holds the latest finding of each check. ``wall_clock_ms()`` is milliseconds since 1970."""

    def __init__(
        self, probes: Probes, wall_clock_ms: Callable[[], int], *, check_timeout_s: float = CHECK_TIMEOUT_S
    ) -> None:
        self._probes = probes
        self._wall_clock_ms = wall_clock_ms
        self._check_timeout_s = check_timeout_s
        self._workers = trio.CapacityLimiter(WORKERS_MAX)
        self._findings: dict[tuple[str, str], Finding] = {}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The latest of each check that was in the last ``inspect``, in its order."""
        return tuple(self._findings.values())

    def remember(self, findings: Sequence[Finding]) -> None:
        """Take over what an earlier run of the daemon had found."""
        self._findings = {(finding.policy, finding.check): finding for finding in findings}

    async def inspect(self, checks: Sequence[AssignedCheck]) -> tuple[Finding, ...]:
        """Run all ``checks`` and return their findings in the same order. Findings of other checks are forgotten.

        Cancelled halfway, it has changed nothing.
        """
        found: dict[tuple[str, str], Finding] = {}
        for assigned in checks:
            key = assigned.policy_id, assigned.check.id
            verdict = await self._verdict(assigned.check)
            found[key] = conclude(assigned, verdict, self._findings.get(key), self._wall_clock_ms())
        self._findings = found
        return self.findings

    async def _verdict(self, check: AnyCheck) -> Verdict:
        if not self._workers.available_tokens:
            return Verdict("not_run", "", "", "earlier probes hang, so this one was not started")
        with trio.move_on_after(self._check_timeout_s + GRACE_S):
            observation = await trio.to_thread.run_sync(
                self._probes.observe, check, self._check_timeout_s, abandon_on_cancel=True, limiter=self._workers
            )
            return assess(check, observation)
        return Verdict("not_run", "", "", f"the probe did not answer within {self._check_timeout_s:g} s")
