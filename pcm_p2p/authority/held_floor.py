"""The fleet's floor in the folder of a site that acts alone: the file ``fleet.floor``, and the site's policies judged by it.

Judged is what a proposal brings, against the published document of the same folder: what devices would set aside is refused in
staging, signing and publishing. What is published already may be signed anew: halts, lifting them, other keys, a longer life and
taking a policy away never wait for the fleet. Without a floor nothing new can be judged, and no new policy is signed.

The fleet may say less by now than what is held here, which cannot be known offline: devices judge again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.fleet_floor import SIZE_BYTES_MAX, FleetFloor, decode_floor_untrusted, policies_in, why_not_after
from pcm_p2p.authority.site_folder import SiteFacts, site_of
from pcm_p2p.authority.site_judgement import brings_policies
from pcm_p2p.authority.staging import StagingArea
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.shown_text import cut, shown
from pcm_p2p.trust.delegation import TARGETS
from pcm_p2p.trust.site_root import SITE_FIELD, repository_id

NAME = "fleet.floor"


def acts_alone(folder: StagingArea) -> bool:
    """Whether the folder is of a site that acts alone: by ``site.json``, or where that is gone, by what a root of it says."""
    return site_of(folder.path) is not None or _site_in_roots(folder) is not None


def site_here(folder: StagingArea) -> SiteFacts:
    """Which site the folder is of. Raises ``InputError`` if it is a fleet's own, ``TrustError`` if ``site.json`` was altered or
    is gone."""
    facts = site_of(folder.path)
    if facts is None and (site := _site_in_roots(folder)) is not None:
        raise TrustError(
            f"{folder.path / 'site.json'} is gone, and the roots in this folder are of site {cut(shown(site), 64)}",
            remedy="Restore it from a backup of the folder.",
        )
    if facts is None:
        raise InputError(
            "is the folder of a fleet, not of a site that acts alone",
            path=folder.path,
            remedy="Name the folder that 'pcm-p2p site found' made.",
        )
    if repository_id(facts.fleet, facts.site) != folder.fleet_id:
        raise TrustError(
            f"{folder.path / 'site.json'} names another site or fleet than the root of this folder",
            remedy="Restore it from a backup of the folder.",
        )
    return facts


def held_floor(folder: StagingArea) -> FleetFloor | None:
    """What was taken over last; ``None`` if nothing was. It is verified each time that it is read.

    Raises ``InputError`` if the folder is a fleet's own or the file cannot be read, ``TrustError`` if it was altered.
    """
    facts, file = site_here(folder), folder.path / NAME
    try:
        with file.open("rb") as opened:
            data = opened.read(SIZE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=file, remedy="Check the path, and who may read it."
        ) from None
    try:
        floor = decode_floor_untrusted(data)
        if (floor.fleet, floor.site) != (facts.fleet, facts.site):
            raise UntrustedBytes(f"floor: it is of site {floor.site} of fleet {floor.fleet[:8]}")
    except UntrustedBytes as error:
        raise TrustError(
            f"{file} cannot be believed: {error.message}",
            remedy="Remove it, and take the floor over anew with 'pcm-p2p site floor'; compare the root's digest.",
        ) from None
    return floor


def keep_floor(folder: StagingArea, floor: FleetFloor) -> bool:
    """Put ``floor`` in the place of what is held, durably and at once; false if that says the same already.

    Raises ``TrustError`` if it does not go forward, ``StorageError`` if it cannot be written.
    """
    with folder.locked():
        held = held_floor(folder)
        if held is not None:
            if held.document == floor.document:
                return False
            if why := why_not_after(held, floor):
                raise TrustError(
                    f"refused, for it is not newer than what is held: {why}",
                    remedy="Take it from a newer copy; what is held stays.",
                )
        try:
            write_atomic(folder.path / NAME, floor.document.encoded())
        except OSError as error:
            raise StorageError(
                f"{folder.path / NAME} cannot be written: {error.strerror}", remedy="Free space; what is held stays."
            ) from None
    return True


def needed_floor(folder: StagingArea) -> FleetFloor:
    """``held_floor``, for who brings a policy. Raises ``InputError`` if none is held."""
    floor = held_floor(folder)
    if floor is None:
        raise no_floor(site_here(folder).site, folder.path)
    return floor


def no_floor(site: str, path: object) -> InputError:
    return InputError(
        f"what the fleet lets site {site} set is not held here, so that no new policy can be judged",
        path=str(path),
        remedy="Take it over: 'pcm-p2p site floor --state STATE' of a device of the office, or '--from TREE --root ROOT'.",
    )


def complaints_alone(folder: StagingArea, targets: Targets) -> tuple[str, ...]:
    """What devices would set aside of the policies that these targets of a site's folder bring; see the module.

    Raises ``InputError`` where they bring any and no floor is held.
    """
    published = folder.targets()
    before = policies_in(published.signed) if published is not None else {}
    after = policies_in(targets)
    if not brings_policies(before, after):
        return ()
    return needed_floor(folder).complaints(_read(folder, before), _read(folder, after))


def set_aside_alone(folder: StagingArea) -> tuple[str, ...]:
    """Policies of a site's folder, as proposed, else as published, that devices would set aside by the floor that is held.

    One sentence each, for who takes a floor over, or signs. Nothing for a fleet's own folder, and where no floor is held; one
    about a floor that was altered, which keeps nobody from signing what brings no policy.
    """
    try:
        if not acts_alone(folder) or (floor := held_floor(folder)) is None:
            return ()
    except TrustError as error:
        return (error.message,)
    published = folder.targets()
    known = policies_in(published.signed) if published is not None else {}
    working = policies_in(folder.working(TARGETS))
    return tuple(
        f"{reasons[0]}; devices set it aside ({'published' if known.get(path) == working[path] else 'proposed'})"
        for path, reasons in sorted(floor.set_aside(_read(folder, working)).items())
    )


def _site_in_roots(folder: StagingArea) -> str | None:
    """Any of them: a later root could leave it out."""
    for file in (*sorted(folder.metadata.glob("*.root.json")), folder.path / "proposal" / "root.json"):
        with contextlib.suppress(OSError, RepositoryError, TypeError, ValueError):
            named = Metadata[Root].from_bytes(file.read_bytes()).signed.unrecognized_fields.get(SITE_FIELD)
            if named is not None:
                return str(named)
    return None


def _read(folder: StagingArea, listed: Mapping[str, TargetFile]) -> dict[str, bytes]:
    return {path: folder.files.read(path, info) for path, info in listed.items()}
