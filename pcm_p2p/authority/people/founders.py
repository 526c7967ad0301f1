"""The people who found a fleet: whose keys are made here, whose were carried here, and how many of them must sign. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pcm_p2p.authority.keys.public_key import PublicKey
from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import check_name

TITLES: Final = {"root": "root", "targets": "release"}
"""As the options call the two roles of people: ``--root-key``, ``--release-threshold``."""


@dataclass(frozen=True)
class Founders:
    """``owners`` get a root and a targets key on this machine. ``root_keys`` and ``targets_keys`` were made elsewhere."""

    owners: tuple[str, ...] = ()
    root_keys: tuple[PublicKey, ...] = ()
    targets_keys: tuple[PublicKey, ...] = ()
    root_threshold: int = 1
    targets_threshold: int = 1

    def carried(self, role: str) -> tuple[PublicKey, ...]:
        return self.root_keys if role == "root" else self.targets_keys

    def names(self, role: str) -> tuple[str, ...]:
        """Who will hold a key of ``role``, ``root`` or ``targets``."""
        return (*self.owners, *(key.owner for key in self.carried(role)))

    def threshold(self, role: str) -> int:
        return self.root_threshold if role == "root" else self.targets_threshold

    def check(self) -> None:
        """Raises ``InputError`` unless people can be told apart, each key has one place, and thresholds can be met."""
        self.check_people()
        for role, title in TITLES.items():
            if not self.names(role):
                raise InputError(
                    f"nobody holds a {title} key; at least one person must",
                    remedy=f"Name people with --owner, or pass --{title}-key FILE for each.",
                )
            if not 1 <= self.threshold(role) <= len(self.names(role)):
                raise InputError(
                    f"{title} threshold {self.threshold(role)} needs that many owners; there are {len(self.names(role))}",
                    remedy="Name more people, or lower the threshold.",
                )

    def check_people(self) -> None:
        """As ``check``, while people are still being named: thresholds are not looked at."""
        for owner in self.owners:
            try:
                check_name(owner, "owner")
            except UntrustedBytes as error:
                raise InputError(error.message, remedy="Use letters, digits and '-'; it becomes a file name.") from None
        for role, title in TITLES.items():
            _refuse_strangers(self.carried(role), role, title)
            _refuse_equal_names(self.names(role), title)
        _refuse_equal_keys((*self.root_keys, *self.targets_keys))

    def remarks(self) -> tuple[str, ...]:
        """What the people should know about their choice before they live with it."""
        said = []
        for role, title in TITLES.items():
            people, threshold = len(self.names(role)), self.threshold(role)
            if threshold == 1:
                said.append(f"one {title} key is enough to sign: whoever steals one decides alone")
            if threshold == people > 1:
                said.append(f"all {people} {title} keys must sign: one that is lost or away stops you")
        return tuple(said)


def suggested_threshold(people: int) -> int:
    """How many should sign: two where there are three or more people, so that neither a thief nor an absence decides alone.

    With two people any threshold gives up one of the two; one is suggested, since a lost key would otherwise end the fleet.
    """
    return 2 if people >= 3 else 1


def _refuse_strangers(keys: Iterable[PublicKey], role: str, title: str) -> None:
    for key in keys:
        if key.role != role:
            raise InputError(
                f"the key of {key.owner} is for {key.role}, not for {role}",
                key=f"{title}-key",
                remedy=f"Pass the file of the key that was made with --role {role}.",
            )


def _refuse_equal_names(names: tuple[str, ...], title: str) -> None:
    folded = [name.casefold() for name in names]
    for number, name in enumerate(folded):
        if name in folded[:number]:
            raise InputError(
                f"owners must be different people: {names[number]} would hold two {title} keys",
                remedy="Give each person once; two keys of one person would count as two people.",
            )


def _refuse_equal_keys(keys: tuple[PublicKey, ...]) -> None:
    seen: dict[str, PublicKey] = {}
    for key in keys:
        other = seen.setdefault(key.keyid, key)
        if other is not key:
            raise InputError(
                f"one key was given twice, as the {other.role} key of {other.owner} and the {key.role} key of {key.owner}",
                remedy="Each person makes a key of their own for each role.",
            )
