"""Desired: what one device should be at one moment, and what of it may be changed now.

``decide`` folds the trusted policies, the activation, the device and the moment into a ``Desired``. It is the only
place that makes an ``Authorisation``, and the transaction of ``apply`` takes nothing else: the rule "nothing is changed
until a signed activation permits it" is held here, and again where the change is made.

Precedence where policies disagree: the rank of who signed (see ``precedence``), higher policy version, higher policy id, then the
later assignment in the document. The loser is reported as a conflict, never merged. Policies that assign the same version with
the same resources agree; the strongest of their modes counts, and one that may change something now suffices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final, Literal

import msgspec

from pcm_p2p.policy.activation import Activation, why_inactive
from pcm_p2p.policy.document import AnyCheck, Assignment, Mode, Policy, Transfer
from pcm_p2p.policy.precedence import FROZEN, STRENGTH, Standing
from pcm_p2p.policy.resource import Resource, ServiceResource
from pcm_p2p.policy.selector import DeviceFacts, matches

Freshness = Literal["fresh", "stale", "frozen"]


class Change(msgspec.Struct, frozen=True):
    """One unit of change: all of ``resources`` or none. ``subject`` is a release name, or ``check:<policy>/<check>``."""

    subject: str
    version: str
    resources: tuple[Resource, ...]

    @property
    def title(self) -> str:
        return f"{self.subject} {self.version}"


class AssignedRelease(msgspec.Struct, frozen=True):
    """A release that belongs on this device. ``why_not`` is empty when it may be applied now, else one sentence."""

    name: str
    version: str
    resources: tuple[Resource, ...]
    policy_id: str
    policy_version: int
    mode: Mode
    why_not: str

    @property
    def fetch(self) -> bool:
        """Whether its bytes should be brought here: observe moves nothing."""
        return self.mode != "observe"

    @property
    def change(self) -> Change:
        return Change(self.name, self.version, self.resources)


class AssignedCheck(msgspec.Struct, frozen=True):
    """A check that this device runs. ``remedy`` is what to apply when it fails; None when it must not be, and never unasked."""

    policy_id: str
    policy_version: int
    mode: Mode
    check: AnyCheck
    remedy: Change | None


class Authorisation:
    """The permission to make certain changes. Only ``decide`` makes one, and it names each change."""

    __slots__ = ("_permitted", "granted_at")

    def __init__(self, permitted: frozenset[Change], granted_at: datetime, *, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("an Authorisation comes out of policy.desired.decide and nowhere else")
        self._permitted: Final = permitted
        self.granted_at: Final = granted_at

    def permits(self, change: Change) -> bool:
        return change in self._permitted

    def __len__(self) -> int:
        return len(self._permitted)


_SEAL: Final = object()


class Desired(msgspec.Struct, frozen=True):
    """The decision. ``changes_allowed`` and ``why_not`` are the device's; a release has its own ``why_not`` as well."""

    releases: tuple[AssignedRelease, ...]
    checks: tuple[AssignedCheck, ...]
    transfer: Transfer
    changes_allowed: bool
    why_not: str
    conflicts: tuple[str, ...]
    authorisation: Authorisation

    def release(self, name: str) -> AssignedRelease | None:
        return next((release for release in self.releases if release.name == name), None)


Halted = Callable[[str, str], str]
"""Why a release (name, version) must not be applied now, in one sentence; of ``("", "")``: why nothing must be. Empty: it may."""


def nothing_halted(release: str, version: str) -> str:  # noqa: ARG001 - the shape of Halted
    return ""


def decide(
    policies: Iterable[Policy],
    activation: Activation | None,
    device: DeviceFacts,
    now: datetime,
    freshness: Freshness,
    standing: Mapping[str, Standing] | None = None,
    halted: Halted = nothing_halted,
) -> Desired:
    """Decide for ``device`` at ``now`` (with offset). The order of ``policies`` does not matter. ``standing`` is by policy id, as
    ``precedence.weigh`` gives it; a policy that it does not name is the fleet's, as fresh as ``freshness``. What is ``halted`` is
    brought here and not applied."""
    inactive = halted("", "") or why_inactive(activation, device, now)
    why_not = inactive or (FROZEN if freshness == "frozen" else "")
    of_fleet = Standing(why_not=why_not)

    def stands(policy: Policy) -> Standing:
        return (standing or {}).get(policy.id, of_fleet)

    def precedes(policy: Policy) -> tuple[int, int, str]:
        return stands(policy).rank, policy.version, policy.id

    def prevented(policy: Policy) -> str:
        return inactive or stands(policy).why_not

    newest = {policy.id: policy for policy in sorted(policies, key=precedes)}  # of two editions, the later one
    applying = sorted((policy for policy in newest.values() if matches(policy.applies_to, device)), key=precedes)
    conflicts: list[str] = []
    releases = _settle_places(_choose(applying, device, conflicts), prevented, halted, conflicts)
    checks = tuple(
        AssignedCheck(
            policy.id,
            policy.version,
            policy.mode,
            check,
            Change(f"check:{policy.id}/{check.id}", str(policy.version), check.remedy())
            if check.remediate and policy.mode == "enforce" and not prevented(policy)
            else None,
        )
        for policy in applying
        for check in policy.checks
    )
    permitted = [release.change for release in releases if not release.why_not]
    permitted += [check.remedy for check in checks if check.remedy is not None]
    return Desired(
        releases=releases,
        checks=checks,
        transfer=_strictest(policy.transfer for policy in applying),
        changes_allowed=not why_not,
        why_not=why_not,
        conflicts=tuple(conflicts),
        authorisation=Authorisation(frozenset(permitted), now, seal=_SEAL),
    )


_Chosen = tuple[Assignment, Mode, tuple[Policy, ...]]
"""An assignment, the strongest mode of the policies that agree on it, and those policies, the one that counts first."""


def _choose(applying: list[Policy], device: DeviceFacts, conflicts: list[str]) -> list[_Chosen]:
    """One assignment for each release, strongest policy first; ``applying`` is weakest first."""
    rivals: dict[str, list[tuple[Policy, Assignment]]] = {}
    for policy in applying:
        for assignment in policy.assignments:
            if matches(assignment.to, device):
                rivals.setdefault(assignment.release, []).append((policy, assignment))
    strength = {policy.id: place for place, policy in enumerate(applying)}
    chosen: list[_Chosen] = []
    for name, candidates in rivals.items():
        winner, assignment = candidates[-1]
        mode, agreeing = winner.mode, [winner]
        for policy, other in candidates[:-1]:
            if (other.version, other.resources) == (assignment.version, assignment.resources):
                mode = max(mode, policy.mode, key=STRENGTH.__getitem__)
                agreeing.append(policy)
            else:
                conflicts.append(
                    f"Release {name}: policy {winner.id} assigns {assignment.version} and wins over policy {policy.id}, "
                    f"which assigns {other.version}{' otherwise' if other.version == assignment.version else ''}."
                )
        chosen.append((assignment, mode, tuple(agreeing)))
    return sorted(chosen, key=lambda row: (strength[row[2][0].id], row[0].release), reverse=True)


def _settle_places(
    chosen: list[_Chosen], prevented: Callable[[Policy], str], halted: Halted, conflicts: list[str]
) -> tuple[AssignedRelease, ...]:
    """A place on the device has one master: a release that wants a place which a stronger one holds is not applied."""
    held: dict[str, tuple[Resource, str]] = {}
    releases = []
    for assignment, mode, (policy, *others) in chosen:
        # One that may enforce it now suffices: what it asks for is what the others ask for, too.
        reasons = [prevented(one) for one in (policy, *others) if one.mode == mode]
        reason = halted(assignment.release, assignment.version) or ("" if "" in reasons else reasons[0])
        if mode != "enforce":
            reason = f"Policy {policy.id} is in mode {mode}, which changes nothing."
        elif rival := _rival(assignment, held):
            reason = rival
            conflicts.append(f"Release {assignment.release}: {reason}")
        else:
            for resource in assignment.resources:
                held.setdefault(resource.key, (resource, assignment.release))
        releases.append(
            AssignedRelease(
                assignment.release, assignment.version, assignment.resources, policy.id, policy.version, mode, reason
            )
        )
    return tuple(sorted(releases, key=lambda release: release.name))


def _rival(assignment: Assignment, held: dict[str, tuple[Resource, str]]) -> str:
    for resource in assignment.resources:
        holder = held.get(resource.key)
        if holder is not None and _fight(holder[0], resource):
            return f"{resource.key} is already managed by release {holder[1]}."
    return ""


def _fight(one: Resource, other: Resource) -> bool:
    if isinstance(one, ServiceResource) and isinstance(other, ServiceResource):
        wants = ((one.enabled, other.enabled), (one.active, other.active))
        return any(a is not None and b is not None and a != b for a, b in wants)
    return True


def _strictest(limits: Iterable[Transfer]) -> Transfer:
    """The lowest limit of each kind; 0 and None are "no limit"."""
    rows = [msgspec.structs.asdict(limit) for limit in limits]
    names = [field.name for field in msgspec.structs.fields(Transfer)]
    return Transfer(**{name: min((row[name] for row in rows if row[name]), default=None) for name in names})
