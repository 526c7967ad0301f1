"""What devices of a site would set aside of its policies, and why, in sentences. Pure: the rules are those of ``policy``.

The tool knows the site and no device. Two policies that speak about some devices each meet there unless they plainly do not
(``policy.precedence.may_meet``); a device that has the labels of both judges by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pcm_p2p.errors import InputError
from pcm_p2p.policy.allowance import Allowances, why_beyond
from pcm_p2p.policy.document import Policy, decode_policy
from pcm_p2p.policy.precedence import Measure, may_meet, surely_covers, why_looser

ALLOW = "Change the policy, or let the fleet allow it with 'pcm-p2p policy allow'."


def why_refused(policy: Policy, site: str, allowances: Allowances | None, floor: Sequence[Policy]) -> tuple[str, ...]:
    """Each sentence says why devices of ``site`` would set the policy aside; ``floor`` are the policies of higher rank."""
    looser = why_looser(policy, floor, may_meet(site), covers=surely_covers(site))
    return (*why_beyond(policy, site, allowances), *looser)


def refuse_beyond(
    policy: Policy,
    site: str,
    allowances: Allowances | None,
    floor: Sequence[Policy],
    name: str,
    *,
    remedy: str = ALLOW,
) -> None:
    """Raises ``InputError`` with all reasons if devices of ``site`` would set the policy aside; ``name`` is the file's."""
    reasons = why_refused(policy, site, allowances, floor)
    if reasons:
        raise InputError(f"is beyond what site {site} may set: {'; '.join(reasons)}", path=name, remedy=remedy)


def complaints_of(
    site: str, policies: Iterable[Policy], allowances: Allowances | None, floor: Sequence[Policy]
) -> tuple[str, ...]:
    """What devices would set aside of all policies of a site; ``floor`` are those of higher rank."""
    return tuple(reason for _, reasons in _judged(site, policies, allowances, floor) for reason in reasons)


def complaints_by_path(
    site: str, documents: Mapping[str, bytes], allowances: Allowances | None, floor: Sequence[Policy]
) -> dict[str, tuple[str, ...]]:
    """What devices would set aside of all policies of a site, by target path, with the sentences; ``documents`` are the policies
    by target path. One that does not read is among them."""
    found, policies = dict[str, tuple[str, ...]](), dict[int, str]()
    decoded = []
    for path, data in sorted(documents.items()):
        try:
            decoded.append(decode_policy(data, path))
            policies[id(decoded[-1])] = path
        except InputError as error:
            found[path] = (error.message,)
    for policy, reasons in _judged(site, decoded, allowances, floor):
        if reasons:
            found[policies[id(policy)]] = reasons
    return found


def complaints_anew(
    site: str,
    before: Mapping[str, bytes],
    after: Mapping[str, bytes],
    allowances: Allowances | None,
    floor: Sequence[Policy],
) -> tuple[str, ...]:
    """What devices would set aside of the policies in ``after``, and do not set aside of those in ``before`` already.

    So what is published can be signed anew, with a halt lifted or a lost key replaced, though the fleet allows less by now.
    """
    known = complaints_by_path(site, before, allowances, floor)
    return tuple(
        reason
        for path, reasons in complaints_by_path(site, after, allowances, floor).items()
        if path not in known or before[path] != after[path]
        for reason in reasons
    )


def brings_policies(before: Mapping[str, object], after: Mapping[str, object]) -> bool:
    """Whether ``after`` has a policy that ``before`` has not, or has with other bytes; both by target path."""
    return any(before.get(path) != one for path, one in after.items())


def _judged(
    site: str, policies: Iterable[Policy], allowances: Allowances | None, floor: Sequence[Policy]
) -> list[tuple[Policy, tuple[str, ...]]]:
    """In the order in which devices count them."""
    measure = Measure()
    return [
        (
            policy,
            tuple(
                f"policy {policy.id} of site {site}: {reason}"
                for reason in (*measure.why_too_much(policy), *why_refused(policy, site, allowances, floor))
            ),
        )
        for policy in sorted(policies, key=lambda one: (one.id, one.version))
    ]
