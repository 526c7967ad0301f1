"""Precedence: whose word counts where several speak. The fleet, then a site's delegated role, then the site's own repository.

The rule is one for all ranks: **whoever stands lower may add and tighten, never loosen.** A policy that would loosen what a
stronger one says about the same device is set aside as a whole, with the reason; the others go on as if it were not there. So
the question "which of the two wins" does not come up between ranks, and ``desired.decide`` settles it within one rank only.

Loosening, judged against the policies of higher rank that speak about the same device:

- having the id of one of them, since findings and editions are told apart by it;
- assigning a release that one of them assigns, in another version, with other resources, or in a milder mode;
- changing a place that one of them manages or checks: a path, a folder around it or below it, a service, a package.

The ceiling of ``allowance`` comes first. What remains of a site's policy speaks for devices of that site, whatever its selectors
say. Activation, halts and freshness of the fleet bind a site's policies like its own; with ``when_frozen`` the site's own
repository may go on while the fleet is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pcm_p2p.policy.allowance import Allowances, resources_of, why_beyond
from pcm_p2p.policy.document import (
    Assignment,
    Check,
    FileCheck,
    FileContentCheck,
    Mode,
    MountCheck,
    PackageCheck,
    Policy,
    ServiceCheck,
    SysctlCheck,
)
from pcm_p2p.policy.resource import ArchiveResource, FileResource, PackageResource, Resource
from pcm_p2p.policy.selector import DeviceFacts, Selector, matches

Speaker = Literal["fleet", "site role", "site repository"]
Freshness = Literal["fresh", "stale", "frozen"]

RANK: dict[Speaker, int] = {"site repository": 0, "site role": 1, "fleet": 2}
STRENGTH: dict[Mode, int] = {"observe": 0, "notify": 1, "enforce": 2}

FROZEN = "The policy could not be refreshed for too long (frozen), so nothing new is installed."
_SYSCTL_FOLDERS = (
    "/etc/sysctl.d/",
    "/run/sysctl.d/",
    "/usr/lib/sysctl.d/",
    "/usr/local/lib/sysctl.d/",
    "/lib/sysctl.d/",
)


@dataclass(frozen=True)
class Spoken:
    """One policy and who signed it. ``frozen``: what its signer says has not been refreshed for too long. ``site``: whose, where
    a site's role signed it; devices of other sites do not hear it."""

    policy: Policy
    speaker: Speaker = "fleet"
    frozen: bool = False
    site: str = ""


@dataclass(frozen=True)
class Standing:
    """How a policy stands in the decision: its rank, and why what it asks for must not be changed now (empty: it may)."""

    rank: int = RANK["fleet"]
    why_not: str = ""


@dataclass(frozen=True)
class Weighed:
    """The policies that count for a device, how they stand (by id), and why others do not."""

    policies: tuple[Policy, ...]
    standing: Mapping[str, Standing]
    problems: tuple[str, ...]


def weigh(
    spoken: Iterable[Spoken], allowances: Allowances | None, device: DeviceFacts, fleet_freshness: Freshness
) -> Weighed:
    """What counts on ``device``. The order of ``spoken`` does not matter; site policies must be of the device's own site."""
    everyone = tuple(spoken)
    standing: dict[str, Standing] = {}
    counting: list[Policy] = []
    problems: list[str] = []
    allowance = allowances.of(device.site) if allowances is not None else None

    def both_speak(one: Selector, other: Selector) -> bool:
        return matches(one, device) and matches(other, device)

    for speaker in sorted(RANK, key=RANK.__getitem__, reverse=True):
        floor = tuple(counting)
        for one in everyone:
            if one.speaker != speaker:
                continue
            policy = one.policy
            if speaker != "fleet":
                reasons = (*why_beyond(policy, device.site, allowances), *why_looser(policy, floor, both_speak))
                if reasons:
                    problems.append(set_aside(policy, device.site, reasons))
                    continue
            silent = fleet_freshness == "frozen" and not (
                speaker == "site repository" and allowance is not None and allowance.when_frozen
            )
            standing[policy.id] = Standing(RANK[speaker], FROZEN if silent or one.frozen else "")
            counting.append(policy)
    return Weighed(tuple(counting), standing, tuple(sorted(problems)))


def set_aside(policy: Policy, site: str, reasons: Sequence[str]) -> str:
    """The sentence for people about a policy that does not count."""
    more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
    return f"policy {policy.id} of site {site} is set aside: {'; '.join(reasons[:3])}{more}"


def may_meet(site: str) -> Callable[[Selector, Selector], bool]:
    """Whether two selectors can name one device of ``site``, for who has no device at hand. A device of both labels is possible,
    and left to that device to judge."""

    def meet(one: Selector, other: Selector) -> bool:
        if any(selector.sites and site not in selector.sites for selector in (one, other)):
            return False
        for given, wanted in ((one.devices, other.devices), (one.labels, other.labels)):
            if given and wanted and not set(given) & set(wanted):
                return False
        return True

    return meet


def why_looser(policy: Policy, floor: Sequence[Policy], meet: Callable[[Selector, Selector], bool]) -> tuple[str, ...]:
    """Each sentence says how ``policy`` would loosen one of ``floor``; ``meet`` says whether two selectors name one device."""
    ordered = sorted(floor, key=lambda one: (one.id, one.version))
    return tuple(reason for stronger in ordered for reason in _looser(policy, stronger, meet))


def _looser(policy: Policy, stronger: Policy, meet: Callable[[Selector, Selector], bool]) -> Iterator[str]:
    if policy.id == stronger.id:
        yield "a policy of higher rank has this id"
    if not meet(policy.applies_to, stronger.applies_to):
        return
    fixed = [assignment for assignment in stronger.assignments if meet(policy.applies_to, assignment.to)]
    asked = [
        mine for mine in policy.assignments if meet(mine.to, policy.applies_to) and meet(mine.to, stronger.applies_to)
    ]
    for mine in asked:
        for theirs in fixed:
            if mine.release != theirs.release or not meet(mine.to, theirs.to):
                continue
            if mine.version != theirs.version:
                yield f"it assigns {mine.release} {mine.version}, and policy {stronger.id} assigns {theirs.version}"
            elif mine.resources != theirs.resources:
                yield f"it makes something else of {mine.release} {mine.version} than policy {stronger.id}"
            elif STRENGTH[policy.mode] < STRENGTH[stronger.mode]:
                yield f"its mode is {policy.mode}, and policy {stronger.id} assigns {mine.release} with {stronger.mode}"
    same = [(theirs.release, theirs.version, theirs.resources) for theirs in fixed]
    rest = {f"release {mine.release}" for mine in asked if (mine.release, mine.version, mine.resources) not in same}
    held = list(_held(stronger, fixed))
    for asker, resource in resources_of(policy):
        if asker.startswith("release ") and asker not in rest:
            continue
        holder = next((holder for holder, place in held if _touches(resource, asker, place)), "")
        if holder:
            yield f"{asker} changes {_words(_place(resource))}, which {holder} of policy {stronger.id} holds"


# Places: what of a device a resource changes, or a check looks at

_Kind = Literal["path", "tree", "unit", "package", "sysctl"]
_Place = tuple[_Kind, str]


def _held(stronger: Policy, fixed: Iterable[Assignment]) -> Iterator[tuple[str, _Place]]:
    """The places that a policy manages or checks, each with what does so."""
    releases = {f"release {assignment.release}" for assignment in fixed}
    for asker, resource in resources_of(stronger):
        if asker.startswith("check ") or asker in releases:
            yield asker, _place(resource)
            if isinstance(resource, ArchiveResource):
                yield asker, ("path", f"{resource.path}/{resource.link}")
    for check in stronger.checks:
        yield from ((f"check {check.id}", place) for place in _looked_at(check))


def _looked_at(check: Check) -> Iterator[_Place]:
    match check:
        case FileCheck() | FileContentCheck():
            yield "path", check.path
        case MountCheck():
            yield "path", check.path
            yield "path", "/etc/fstab"
        case ServiceCheck():
            yield "unit", check.name
        case SysctlCheck():
            yield "sysctl", check.key.replace("/", ".")
            yield "path", "/etc/sysctl.conf"
        case PackageCheck():
            yield "package", check.name


def _place(resource: Resource) -> _Place:
    match resource:
        case FileResource():
            return "path", resource.path
        case ArchiveResource():
            return "tree", f"{resource.path}/{resource.name}"
        case PackageResource():
            return "package", resource.artifact.partition("_")[0]
        case _:
            return "unit", resource.name


def _touches(resource: Resource, asker: str, held: _Place) -> bool:
    """Whether a change of ``resource`` reaches what is held."""
    kind, name = _place(resource)
    held_kind, held_name = held
    match resource:
        case PackageResource():
            return held_kind == "package" and name == held_name
        case FileResource() if held_kind == "sysctl":
            mine = f"{_SYSCTL_FOLDERS[0]}90-pcm_p2p-"
            if asker.startswith("check ") and name.startswith(mine):  # the remedy of a sysctl check sets one key
                return name == f"{mine}{held_name}.conf"
            return name.startswith(_SYSCTL_FOLDERS)
        case FileResource() if held_kind == "path":
            return name == held_name or held_name.startswith(f"{name}/")
        case FileResource() if held_kind == "tree":
            return name == held_name or _below_version(name, held_name) or held_name.startswith(f"{name}/")
        case ArchiveResource() if held_kind == "path":
            link = f"{resource.path}/{resource.link}"
            return held_name == link or held_name.startswith(f"{link}/") or _below_version(held_name, name)
        case ArchiveResource() if held_kind == "tree":
            return name == held_name or _below_version(name, held_name) or _below_version(held_name, name)
    return kind == held_kind == "unit" and name == held_name and _says_state(resource)


def _below_version(path: str, tree: str) -> bool:
    """Whether ``path`` is in a folder ``<tree>-<some version>``, or is that folder."""
    return path.startswith((f"{tree}-", f"{tree}/"))


def _says_state(resource: Resource) -> bool:
    """Whether a service resource asks for a state. To restart it with the release loosens nothing."""
    return getattr(resource, "enabled", None) is not None or getattr(resource, "active", None) is not None


def _words(place: _Place) -> str:
    kind, name = place
    return f"package {name}" if kind == "package" else name
