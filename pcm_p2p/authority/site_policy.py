"""A site's policies as the tool sees them: what devices would set aside is refused before it is signed.

Judged are the policies in the document of a ``site-<site>`` role, against the allowances and the policies of the fleet that are
in the same folder: as proposed, else as published; and those of a site that acts alone, against the floor that its folder holds
(``held_floor``). A device judges again, by what is published when it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tuf.api.metadata import Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.held_floor import acts_alone, complaints_alone, set_aside_alone
from pcm_p2p.authority.site_judgement import complaints_of, why_refused
from pcm_p2p.authority.staging import StagingArea
from pcm_p2p.errors import InputError
from pcm_p2p.policy.allowance import Allowances, decode_allowances
from pcm_p2p.policy.document import Policy, decode_policy
from pcm_p2p.trust.delegation import TARGETS, kind_of
from pcm_p2p.trust.index import ALLOWANCES


def allowances_of(folder: StagingArea) -> Allowances | None:
    """What the fleet lets sites set, as proposed, else as published. Raises ``InputError`` if that does not read."""
    info = folder.working(TARGETS).targets.get(ALLOWANCES)
    return None if info is None else decode_allowances(folder.files.read(ALLOWANCES, info), ALLOWANCES)


def fleet_policies(folder: StagingArea) -> tuple[Policy, ...]:
    """The fleet's own policies, as proposed, else as published. One that does not read is passed over, as devices do."""
    return tuple(_policies(folder, folder.working(TARGETS), passing_over=True))


def site_policies(folder: StagingArea) -> Iterator[tuple[str, Policy]]:
    """The policies of all delegated sites with the site of each, as proposed, else as published."""
    for role in folder.roles():
        kind = kind_of(role)
        if kind is not None and kind[0] == "site":
            yield from ((kind[1], policy) for policy in _policies(folder, folder.working(role)))


def policy_complaints(folder: StagingArea, role: str, targets: Targets) -> tuple[str, ...]:
    """What devices would set aside of a document that a site is about to sign; nothing for other roles.

    Raises ``InputError`` where a site's own folder brings a policy and holds nothing to judge it by.
    """
    if role == TARGETS and acts_alone(folder):
        return complaints_alone(folder, targets)
    kind = kind_of(role)
    if kind is None or kind[0] != "site":
        return ()
    return complaints_of(kind[1], _policies(folder, targets), allowances_of(folder), fleet_policies(folder))


def targets_set_aside(folder: StagingArea, role: str) -> dict[str, str]:
    """Paths of the policies in the working document of a site's role that devices would set aside, with the first reason each."""
    kind = kind_of(role)
    if kind is None or kind[0] != "site":
        return {}
    allowances, floor, found = allowances_of(folder), fleet_policies(folder), dict[str, str]()
    for path, info in sorted(folder.working(role).targets.items()):
        if path.startswith("policies/") and path.endswith(".toml"):
            try:
                reasons = why_refused(decode_policy(folder.files.read(path, info), path), kind[1], allowances, floor)
            except InputError as error:
                reasons = (error.message,)
            if reasons:
                found[path] = reasons[0]
    return found


def set_aside_by_change(folder: StagingArea) -> tuple[str, ...]:
    """Policies of sites that do not fit what the fleet has proposed, for its signers to know. One sentence each.

    In a site's own folder: those that do not fit the floor that it holds.
    """
    if acts_alone(folder):
        return set_aside_alone(folder)
    allowances, floor = allowances_of(folder), fleet_policies(folder)
    return tuple(
        f"policy {policy.id} of site {site} would be set aside: {reasons[0]}"
        for site, policy in site_policies(folder)
        if (reasons := why_refused(policy, site, allowances, floor))
    )


def _policies(folder: StagingArea, targets: Targets, *, passing_over: bool = False) -> Iterable[Policy]:
    for path, info in sorted(targets.targets.items()):
        if path.startswith("policies/") and path.endswith(".toml"):
            data = folder.files.read(path, info)
            try:
                yield decode_policy(data, path)
            except InputError:
                if not passing_over:
                    raise
