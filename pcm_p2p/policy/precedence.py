"""Precedence: whose word counts where several speak. The fleet, then a site's delegated role, then the site's own repository.

The rule is one for all ranks: **whoever stands lower may add and tighten, never loosen.** A policy that would loosen what a
stronger one says about the same device is set aside as a whole, with the reason; the others go on as if it were not there. So
the question "which of the two wins" does not come up between ranks, and ``desired.decide`` settles it within one rank only.

Loosening, judged against the policies of higher rank that speak about the same device:

- having the id of one of them, since findings and editions are told apart by it;
- assigning a release that one of them assigns, in another version, with other resources, or in a milder mode;
- changing a place that one of them manages or checks (``places``).

The ceiling of ``allowance`` comes first. What remains of a site's policy speaks for devices of that site, whatever its selectors
say. Activation, halts and freshness of the fleet bind a site's policies like its own; with ``when_frozen`` the site's own
repository may go on while the fleet is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pcm_p2p.policy.allowance import Allowances, resources_of, why_beyond
from pcm_p2p.policy.document import Assignment, Mode, Policy
from pcm_p2p.policy.places import Held, words_of
from pcm_p2p.policy.resource import Resource
from pcm_p2p.policy.selector import DeviceFacts, Selector, matches

Speaker = Literal["fleet", "site role", "site repository"]
Freshness = Literal["fresh", "stale", "frozen"]

RANK: dict[Speaker, int] = {"site repository": 0, "site role": 1, "fleet": 2}
STRENGTH: dict[Mode, int] = {"observe": 0, "notify": 1, "enforce": 2}

FROZEN = "The policy is out of date (frozen), so nothing new is installed."
POLICIES_MAX, ASSIGNMENTS_MAX, CHANGES_MAX, CHECKS_MAX = 32, 256, 1_024, 1_024
"""Choice, for each signer of a site: a quarter of the releases that a device works on, a sixteenth of a report's findings."""


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

    held: dict[int, Held] = {}
    for speaker in sorted(RANK, key=RANK.__getitem__, reverse=True):
        floor, measure = tuple(counting), Measure()
        for one in sorted(everyone, key=lambda one: (one.policy.id, one.policy.version)):
            if one.speaker != speaker:
                continue
            policy = one.policy
            if speaker != "fleet":
                reasons = measure.why_too_much(policy) or (
                    *why_beyond(policy, device.site, allowances),
                    *why_looser(policy, floor, both_speak, held),
                )
                if reasons:
                    problems.append(set_aside(policy, device.site, reasons))
                    continue
            silent = fleet_freshness == "frozen" and not (
                speaker == "site repository" and allowance is not None and allowance.when_frozen
            )
            standing[policy.id] = Standing(RANK[speaker], FROZEN if silent or one.frozen else "")
            counting.append(policy)
    return Weighed(tuple(counting), standing, tuple(sorted(problems)))


class Measure:
    """How much of a site counts. Policies of a site are weighed against the fleet's at each turn, their checks run and reported
    beside the fleet's, their releases worked on beside the fleet's: none of that may crowd out what the fleet asks."""

    def __init__(self) -> None:
        self._policies = self._assignments = self._changes = self._checks = 0

    def why_too_much(self, policy: Policy) -> tuple[str, ...]:
        """Count a policy in; says why not if it is too much."""
        sums = (
            ("policies", POLICIES_MAX, self._policies + 1),
            ("assignments", ASSIGNMENTS_MAX, self._assignments + len(policy.assignments)),
            ("changes", CHANGES_MAX, self._changes + sum(1 for _ in resources_of(policy))),
            ("checks", CHECKS_MAX, self._checks + len(policy.checks)),
        )
        for what, most, found in sums:
            if found > most:
                return (f"with it the site would ask for {found} {what}, and at most {most} count",)
        self._policies, self._assignments, self._changes, self._checks = (found for _, _, found in sums)
        return ()


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


def surely_covers(site: str) -> Callable[[Selector, Selector], bool]:
    """Whether the first of two selectors names each device of ``site`` that the second names, for who has no device at hand."""

    def covers(one: Selector, other: Selector) -> bool:
        if one.sites and site not in one.sites:
            return False
        pairs = ((one.devices, other.devices), (one.labels, other.labels))
        return all(not wanted or (bool(given) and set(given) <= set(wanted)) for wanted, given in pairs)

    return covers


def _on_one_device(one: Selector, other: Selector) -> bool:  # noqa: ARG001 - the shape of ``surely_covers``
    """Of two selectors that name one and the same device, each covers it."""
    return True


def why_looser(
    policy: Policy,
    floor: Sequence[Policy],
    meet: Callable[[Selector, Selector], bool],
    held: MutableMapping[int, Held] | None = None,
    covers: Callable[[Selector, Selector], bool] = _on_one_device,
) -> tuple[str, ...]:
    """Each sentence says how ``policy`` would loosen one of ``floor``; ``meet`` says whether two selectors name one device.
    ``held`` remembers the places of ``floor`` from one call to the next, where ``meet`` speaks of one and the same device. Where
    it speaks of all devices of a site, ``covers`` says whether one selector names each of them that another names."""
    ordered = sorted(floor, key=lambda one: (one.id, one.version))
    known = held if held is not None else {}
    changes = list(resources_of(policy))
    return tuple(reason for stronger in ordered for reason in _looser(policy, changes, stronger, meet, covers, known))


def _looser(
    policy: Policy,
    changes: Sequence[tuple[str, Resource]],
    stronger: Policy,
    meet: Callable[[Selector, Selector], bool],
    covers: Callable[[Selector, Selector], bool],
    known: MutableMapping[int, Held],
) -> Iterator[str]:
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
    in_the_way: dict[str, list[Assignment]] = {}
    for mine in asked:
        same = [one for one in fixed if _says_the_same(mine, one)]
        if any(covers(one.to, whom) for one in same for whom in (mine.to, policy.applies_to, stronger.applies_to)):
            continue
        # Where the stronger policy asks for the same, it counts there; what of that policy stands elsewhere is in the way.
        others = [one for one in fixed if one not in same and not any(covers(each.to, one.to) for each in same)]
        in_the_way.setdefault(f"release {mine.release}", []).extend(others if same else fixed)
    if id(stronger) not in known:
        known[id(stronger)] = Held(stronger, fixed)
    for asker, resource in changes:
        if asker.startswith("release ") and asker not in in_the_way:
            continue
        assignments = in_the_way.get(asker, fixed)
        held = known[id(stronger)] if len(assignments) >= len(fixed) else Held(stronger, assignments)
        if holder := held.holder_of(resource, asker):
            yield f"{asker} changes {words_of(resource)}, which {holder} of policy {stronger.id} holds"


def _says_the_same(one: Assignment, other: Assignment) -> bool:
    return (one.release, one.version, one.resources) == (other.release, other.version, other.resources)
