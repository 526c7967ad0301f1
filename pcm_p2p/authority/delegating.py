"""Delegations as the top-level targets carry them: who may sign for a site or a team, and who may halt. Pure.

``halt`` is delegated to every key of root, of targets and of every delegated role, one of them being enough: whoever can bring a
change to devices can stop one. Which halt counts for whom is decided by the key that signed it (``trust.halt``).
"""

from __future__ import annotations

from collections.abc import Iterable

from tuf.api.metadata import DelegatedRole, Delegations, Key, Root, Targets  # type: ignore[attr-defined]

from pcm_p2p.errors import InputError
from pcm_p2p.trust.delegation import HALT, pattern_of, title_of

Delegator = Root | Targets
"""Who names the keys of a role: root for the top-level ones, targets for the others."""


def delegated_roles(targets: Targets | None) -> tuple[str, ...]:
    """Names of the delegated roles, sorted."""
    if targets is None or targets.delegations is None:
        return ()
    return tuple(sorted(targets.delegations.roles or {}))


def holders(targets: Targets, role: str) -> tuple[tuple[Key, ...], int] | None:
    """Keys and threshold of a delegated role; ``None`` if it is not delegated."""
    delegations = targets.delegations
    if delegations is None or (found := (delegations.roles or {}).get(role)) is None:
        return None
    return tuple(delegations.keys[keyid] for keyid in found.keyids if keyid in delegations.keys), found.threshold


def delegate(targets: Targets, role: str, keys: Iterable[Key], threshold: int) -> None:
    """Give ``role`` its folder and these keys, in place of those that it had. Raises ``InputError``."""
    known = {key.keyid: key for key in keys}
    if not 1 <= threshold <= len(known):
        raise InputError(
            f"a threshold of {threshold} needs that many keys; {title_of(role)} has {len(known)}",
            remedy="Name more keys with --key, or lower --threshold.",
        )
    given = {name: found for name in delegated_roles(targets) if (found := holders(targets, name)) is not None}
    given[role] = (tuple(known.values()), threshold)
    _set(targets, given)


def revoke(targets: Targets, role: str) -> None:
    """Take a delegation away: nothing that the role signed counts any more. Raises ``InputError`` if there is none."""
    given = {name: found for name in delegated_roles(targets) if (found := holders(targets, name)) is not None}
    if given.pop(role, None) is None:
        raise InputError(
            f"{title_of(role)} has no delegation", remedy="See 'pcm-p2p site show' for those that there are."
        )
    _set(targets, given)


def halt_keys(root: Root, targets: Targets) -> tuple[Key, ...]:
    """Everybody who may sign for people, by key id: holders of root and targets keys and of all delegated roles."""
    keyids = {keyid for role in ("root", "targets") for keyid in root.roles[role].keyids}
    found = {keyid: root.keys[keyid] for keyid in keyids if keyid in root.keys}
    for role in delegated_roles(targets):
        if role != HALT and (given := holders(targets, role)) is not None:
            found.update((key.keyid, key) for key in given[0])
    return tuple(found[keyid] for keyid in sorted(found))


def delegate_halt(root: Root, targets: Targets) -> None:
    """Bring the holders of ``halt`` up to those of all other roles."""
    keys = halt_keys(root, targets)
    if keys:
        delegate(targets, HALT, keys, 1)


def _set(targets: Targets, given: dict[str, tuple[tuple[Key, ...], int]]) -> None:
    targets.delegations = Delegations(
        {key.keyid: key for _, (keys, _) in sorted(given.items()) for key in sorted(keys, key=lambda one: one.keyid)},
        {
            name: DelegatedRole(
                name, [key.keyid for key in keys], threshold, terminating=True, paths=[pattern_of(name)]
            )
            for name, (keys, threshold) in sorted(given.items())
        },
    )
