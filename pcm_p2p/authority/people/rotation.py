"""People who come and go: the keys and the threshold of one role, before and after. Pure.

The same for root, targets and the online roles, which root names, and for delegated roles, which targets name. What cannot work
is refused before anybody signs: a threshold above the number of keys, one person with two keys in a role (who could then meet a
threshold of two alone), the last key gone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from securesystemslib.signer import Key  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.metadata import Root  # type: ignore[attr-defined]

from pcm_p2p.errors import InputError
from pcm_p2p.shown_text import shown
from pcm_p2p.trust.lint import owner_of


@dataclass(frozen=True)
class Holders:
    """Who may sign for ``role``, and how many of them must."""

    role: str
    keys: tuple[Key, ...]
    threshold: int

    @classmethod
    def of_root(cls, root: Root, role: str) -> Self:
        """What ``root`` says of one of its four roles."""
        found = root.roles[role]
        return cls(role, tuple(root.keys[keyid] for keyid in found.keyids if keyid in root.keys), found.threshold)

    @property
    def owners(self) -> tuple[str, ...]:
        return tuple(owner_of(key) for key in self.keys)

    def key_of(self, owner: str) -> Key:
        """The key of a person. Raises ``InputError`` that names who there is."""
        found = [key for key in self.keys if owner_of(key) == owner]
        if not found:
            names = ", ".join(sorted(shown(name) for name in self.owners)) or "nobody"
            raise InputError(f"{shown(owner)} holds no key for {self.role}; {names} do", remedy="Check the name.")
        return found[0]

    def with_key(self, key: Key) -> Self:
        """One person more. Raises ``InputError`` if the key or its owner is there already."""
        if any(key.keyid == one.keyid for one in self.keys):
            raise InputError(
                f"this key of {owner_of(key)} signs for {self.role} already", remedy="Nothing is to be done."
            )
        if owner_of(key) in self.owners:
            raise InputError(
                f"{owner_of(key)} holds a key for {self.role} already, and would count twice",
                remedy="Replace it: 'pcm-p2p key rotate'.",
            )
        return replace(self, keys=(*self.keys, key))

    def without(self, owner: str) -> Self:
        """One person less. Raises ``InputError`` if the threshold could not be met any more."""
        self.key_of(owner)
        return replace(self, keys=tuple(key for key in self.keys if owner_of(key) != owner))._possible()

    def replaced(self, owner: str, key: Key) -> Self:
        """``owner``'s new key in place of the old one, and of others under that name. Raises ``InputError`` for another person's
        key, one that is there, or if the threshold could not be met any more."""
        gone = self.key_of(owner)
        if owner_of(key) != owner:
            raise InputError(
                f"the new key is of {owner_of(key)}, not of {owner}",
                remedy=f"Let {owner} make it, or use 'pcm-p2p key remove' and 'pcm-p2p key add'.",
            )
        if any(key.keyid == one.keyid for one in self.keys):
            raise InputError(
                f"this key of {owner} signs for {self.role} already", remedy="Make a new one: 'pcm-p2p key new'."
            )
        kept = (one for one in self.keys if one is gone or owner_of(one) != owner)
        return replace(self, keys=tuple(key if one is gone else one for one in kept))._possible()

    def with_threshold(self, threshold: int) -> Self:
        """Raises ``InputError`` if so many keys are not there."""
        return replace(self, threshold=threshold)._possible()

    def _possible(self) -> Self:
        if not 1 <= self.threshold <= len(self.keys):
            raise InputError(
                f"{self.role} would need {self.threshold} of {len(self.keys)} keys",
                remedy="Add a person first, or let fewer be enough ('key remove' takes --threshold too).",
            )
        return self

    def put_into(self, root: Root) -> None:
        """Make ``root`` say this of the role. Keys that no role uses any more go."""
        root.roles[self.role].keyids = [key.keyid for key in self.keys]
        root.roles[self.role].threshold = self.threshold
        root.keys.update((key.keyid, key) for key in self.keys)
        used = {keyid for role in root.roles.values() for keyid in role.keyids}
        for keyid in sorted(root.keys.keys() - used):
            del root.keys[keyid]
