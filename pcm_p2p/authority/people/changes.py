"""Changes of people: who may sign for a role, proposed for all who have to agree.

For root, targets and the online roles that is a new root, which needs the old threshold and the new one; for delegated roles new
targets. Documents whose signatures would no longer do are proposed to be signed anew, and who may halt follows by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from tuf.api.metadata import Root  # type: ignore[attr-defined]

from pcm_p2p.authority import delegating
from pcm_p2p.authority.delegating import Delegator
from pcm_p2p.authority.fleet_documents import FleetDocuments
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.keys.public_key import PublicKey
from pcm_p2p.authority.people.rotation import Holders
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.errors import InputError
from pcm_p2p.trust.delegation import HALT, title_of

OF_ROOT = ("root", "targets", "snapshot", "timestamp")
Change = Callable[[Holders], Holders]


def holders_of(folder: FleetDocuments, role: str, *, proposed: bool = True) -> Holders:
    """Who signs for ``role``, as proposed or as published. Raises ``InputError`` if there is no such role."""
    delegator = folder.delegator(role, proposed=proposed)
    found = holders_in(delegator, role) if delegator is not None else None
    if found is None:
        roles = ", ".join(("root", "targets", "snapshot", "timestamp", *folder.roles()[2:]))
        raise InputError(f"there is no role {role}", path=folder.path, remedy=f"There are: {roles}.")
    return found


def holders_in(delegator: Delegator, role: str) -> Holders | None:
    """Who signs for ``role`` by what one document says; ``None`` if it does not name the role."""
    if isinstance(delegator, Root):
        return Holders.of_root(delegator, role) if role in delegator.roles else None
    named = delegating.holders(delegator, role)
    return Holders(role, *named) if named is not None else None


def all_holders(folder: FleetDocuments, *, proposed: bool = True) -> tuple[Holders, ...]:
    """Every role but ``halt``, whose keys are those of the others."""
    found = []
    for role in (*OF_ROOT, *folder.roles()[2:]):
        delegator = folder.delegator(role, proposed=proposed)
        holders = holders_in(delegator, role) if delegator is not None and role != HALT else None
        if holders is not None:
            found.append(holders)
    return tuple(found)


def change_holders(folder: FleetFolder, changes: Iterable[tuple[str, Change]]) -> None:
    """Propose all ``changes``, those of root's roles as one new root. Raises ``InputError`` before anything is proposed."""
    pending = [(holders_of(folder, role), change) for role, change in changes]
    for holders, _ in pending:
        if holders.role == HALT:
            raise InputError("who may halt follows from who signs for the other roles", remedy="Change one of these.")
    after = [change(holders) for holders, change in pending]
    of_root = [holders for holders in after if holders.role in OF_ROOT]
    if of_root:

        def edit(root: Root) -> None:
            for holders in of_root:
                holders.put_into(root)

        folder.propose_root(edit)
    for holders in after:
        if holders.role not in OF_ROOT:
            folder.delegate(holders.role, holders.keys, holders.threshold)


def roles_of(folder: FleetDocuments, owner: str) -> tuple[str, ...]:
    """The roles for which a person holds a key, as things are proposed. Raises ``InputError`` that names who there is."""
    found = all_holders(folder)
    roles = tuple(holders.role for holders in found if owner in holders.owners)
    if not roles:
        names = ", ".join(sorted({name for holders in found for name in holders.owners}))
        raise InputError(f"{owner} holds no key of this fleet; {names} do", path=folder.path, remedy="Check the name.")
    return roles


def key_for(role: str, keys: Iterable[PublicKey], owner: str) -> PublicKey | None:
    """The one of the carried public keys that was made for this role. Raises ``InputError`` if it is somebody else's."""
    for key in keys:
        if key.role == role:
            if key.owner != owner:
                raise InputError(
                    f"the new key for {title_of(role)} is of {key.owner}, not of {owner}", remedy="Check the file."
                )
            return key
    return None


def online_key_file(folder: FleetFolder, role: str, *, proposed: bool) -> Path:
    """The key file of an online role that root names: after a rotation there are several.

    ``proposed``: as the proposed root says, for publishing it. Where none fits, the plain name, which says so when it is opened.
    """
    keyids = {key.keyid for key in holders_of(folder, role, proposed=proposed).keys}
    plain = folder.path / "keys" / f"{role}.key"
    for file in (plain, *sorted((folder.path / "keys").glob(f"{role}-*.key"))):
        if file.exists() and keyfile.read_public(file).keyid in keyids:
            return file
    return plain


def new_online_key_file(folder: FleetFolder, role: str) -> Path:
    """Where the next key of an online role goes; key files are never replaced."""
    number = 2
    while (file := folder.path / "keys" / f"{role}-{number}.key").exists():
        number += 1
    return file
