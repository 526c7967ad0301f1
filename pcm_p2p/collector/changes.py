"""What changed between two consecutive reports of a device: the rows of its timeline. A core.

===========  ==================  ================================  =====================================
kind         subject             before, after                     detail
===========  ==================  ================================  =====================================
first        (empty)             (empty), agent version            what the report holds, counted
release      name@version        state, state (absent: empty)      the device's words for it
finding      policy/check        state, state (absent: empty)      the finding's message
policy       policy id           version mode, version mode        (empty)
trust        (empty)             state, state                      the device's reason
agent        (empty)             version, version                  (empty)
site         (empty)             site, site                        (empty)
===========  ==================  ================================  =====================================

Times are the device's own clock throughout, so two rows of one timeline never contradict each other by clock.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

from pcm_p2p.compliance.report import ReportBody

Kind = Literal["first", "release", "finding", "policy", "trust", "agent", "site"]


class Change(msgspec.Struct, frozen=True):
    at_ms: int
    kind: Kind
    subject: str
    before: str
    after: str
    detail: str


def changes(before: ReportBody | None, after: ReportBody) -> list[Change]:
    """What ``after`` says that ``before`` did not: releases, findings, policies, then the device; subjects sorted."""
    if before is None:
        return [Change(after.created_ms, "first", "", "", after.agent_version, _contents(after))]
    found = [*_releases(before, after), *_findings(before, after), *_policies(before, after)]
    at_ms = after.created_ms
    if before.trust.state != after.trust.state:
        found.append(Change(at_ms, "trust", "", before.trust.state, after.trust.state, after.trust.reason))
    if before.agent_version != after.agent_version:
        found.append(Change(at_ms, "agent", "", before.agent_version, after.agent_version, ""))
    if before.site != after.site:
        found.append(Change(at_ms, "site", "", before.site, after.site, ""))
    return found


def _releases(before: ReportBody, after: ReportBody) -> list[Change]:
    old = {f"{release.name}@{release.version}": release for release in before.releases}
    new = {f"{release.name}@{release.version}": release for release in after.releases}
    found = []
    for subject in sorted(old.keys() | new.keys()):
        was = old[subject].state if subject in old else ""
        now = new.get(subject)
        if now is None:
            found.append(Change(after.created_ms, "release", subject, was, "", "no longer assigned"))
        elif was != now.state:
            at_ms = now.since_ms or after.created_ms
            found.append(Change(at_ms, "release", subject, was, now.state, now.detail))
    return found


def _findings(before: ReportBody, after: ReportBody) -> list[Change]:
    old = {f"{finding.policy}/{finding.check}": finding for finding in before.findings}
    new = {f"{finding.policy}/{finding.check}": finding for finding in after.findings}
    found = []
    for subject in sorted(old.keys() | new.keys()):
        was = old[subject].state if subject in old else ""
        now = new.get(subject)
        if now is None:
            found.append(Change(after.created_ms, "finding", subject, was, "", "no longer checked"))
        elif was != now.state:
            at_ms = now.last_attempt_ms or after.created_ms
            found.append(Change(at_ms, "finding", subject, was, now.state, now.message))
    return found


def _policies(before: ReportBody, after: ReportBody) -> list[Change]:
    old = {policy.id: f"{policy.version} {policy.mode}" for policy in before.policies}
    new = {policy.id: f"{policy.version} {policy.mode}" for policy in after.policies}
    return [
        Change(after.created_ms, "policy", subject, old.get(subject, ""), new.get(subject, ""), "")
        for subject in sorted(old.keys() | new.keys())
        if old.get(subject) != new.get(subject)
    ]


def _contents(body: ReportBody) -> str:
    states = Counter(finding.state for finding in body.findings)
    counted = ", ".join(f"{states[state]} {state.replace('_', ' ')}" for state in sorted(states)) or "none decided"
    return f"{len(body.releases)} releases, {len(body.findings)} checks: {counted}"
