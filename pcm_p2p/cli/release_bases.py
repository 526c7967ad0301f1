"""Which earlier releases a new one gets deltas from, unless the admin says so: those that devices have."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pcm_p2p.errors import InputError

if TYPE_CHECKING:
    from pcm_p2p.authority.release_list import Release
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.content.publishing.bases import BaseRelease

BASES_DEFAULT = 3
"""DESIGN.md 6: against the last three releases in use."""


class _InUse(msgspec.Struct, frozen=True):
    """A release as the console's ``/api/releases`` has it; ``devices``: how many are to have it or have it."""

    name: str
    version: str
    devices: int = 1


class _Reported(msgspec.Struct, frozen=True):
    releases: tuple[_InUse, ...]


def chosen_bases(
    folder: FleetFolder, name: str, version: str, asked: Sequence[str], in_use: Path | None
) -> list[BaseRelease]:
    """The bases for ``name`` ``version``: those ``asked`` for, which must exist, else the latest that devices have.

    Where the version exists already they are those that it has, so that adding it again changes nothing. Raises ``InputError``.
    """
    from pcm_p2p.content.publishing.bases import BaseRelease

    known = [release for release in folder.releases() if release.name == name]
    others = {release.version: release for release in known if release.version != version}
    for one in asked:
        if one not in others:
            there = ", ".join(others) or "none"
            raise InputError(
                f"--base {one}: {name} {one} is no earlier release of this fleet", remedy=f"There is {name}: {there}."
            )
    if asked:
        chosen = [others[one] for one in dict.fromkeys(asked)]
    elif again := next((release for release in known if release.version == version), None):
        before = {base.version for base in folder.manifest(again).bases}
        chosen = [release for release in others.values() if release.version in before]
    else:
        chosen = _latest(
            list(others.values()), _assigned(folder, name) | (_reported(in_use, name) if in_use else set())
        )
    return [BaseRelease(folder.manifest(release), folder.segments, bool(asked)) for release in chosen]


def _latest(releases: Sequence[Release], in_use: Collection[str]) -> list[Release]:
    by_counter = sorted(releases, key=lambda release: release.counter)
    return ([release for release in by_counter if release.version in in_use] or by_counter)[-BASES_DEFAULT:]


def _assigned(folder: FleetFolder, name: str) -> set[str]:
    """Versions of ``name`` that a staged or published policy assigns."""
    from pcm_p2p.policy.document import decode_policy

    return {
        assignment.version
        for path, documents in folder.policies().items()
        for document in documents
        for assignment in decode_policy(document, path).assignments
        if assignment.release == name
    }


def _reported(path: Path, name: str) -> set[str]:
    """Versions of ``name`` in what was saved of the console's ``/api/releases``. Raises ``InputError``."""
    try:
        reported = msgspec.json.decode(path.read_bytes(), type=_Reported)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=path, remedy="Check the path, and who may read it."
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"is not what the console says of releases: {error}", path=path, remedy="Save its /api/releases."
        ) from None
    return {one.version for one in reported.releases if one.name == name and one.devices > 0}
