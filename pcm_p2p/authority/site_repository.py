"""Founding the repository with which a site acts alone, and listing its root in the fleet's targets.

The site's folder is worked with like a fleet's: ``policy put``, ``release add``, ``sign``, ``publish``, key rotation. It is made
where its keys are to stay, in the office; what goes to the fleet is its first root. Another root there (a new folder with new
keys) is how the fleet takes the site out of wrong hands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.authority.audit import record as audit_record
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.people.founders import Founders
from pcm_p2p.authority.people.founding import Passphrase, first_root, is_signed
from pcm_p2p.authority.proposal import signatures_of
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.authority.site_folder import NAME, SiteFacts, site_of
from pcm_p2p.authority.staging import system_clock
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.trust.delegation import TARGETS, site_role
from pcm_p2p.trust.index import site_root_path
from pcm_p2p.trust.lint import owner_of
from pcm_p2p.trust.site_root import PREFIX, SITE_FIELD, decode_site_root_untrusted, repository_id


def found_site(
    path: Path,
    fleet_id: str,
    site: str,
    founders: Founders,
    passphrase: Passphrase,
    *,
    preset: keyfile.Preset = "moderate",
    wall_clock: Callable[[], datetime] = system_clock,
) -> FleetFolder:
    """Make the folder of ``site`` in the fleet with this id. Root 1 is signed with the keys made here; keys that were carried
    here sign it as they sign a proposal.

    Raises ``InputError`` if the folder is taken, the site's name cannot be used, or the thresholds cannot be met.
    """
    refuse_taken(path)
    founders.check()
    try:
        site_role(site)
    except UntrustedBytes as error:
        raise InputError(error.message) from None
    for part in ("keys", "enrolment"):
        (path / part).mkdir(mode=0o700, parents=True)
    for part in ("repository/metadata", "repository/targets", "segments", "proposal"):
        (path / part).mkdir(parents=True)
    own_id = repository_id(fleet_id, site)
    root = first_root(
        path / "keys", own_id, founders, passphrase, preset=preset, now=wall_clock(), fields={SITE_FIELD: site}
    )
    seconds = int(wall_clock().timestamp())
    write_atomic(path / NAME, msgspec.json.encode(SiteFacts("pcm.site-folder/1", fleet_id, site, seconds)))
    facts = {"schema": "pcm.fleet-folder/1", "fleet": own_id, "name": f"site {site}"}
    write_atomic(path / "fleet.json", msgspec.json.encode(facts))
    folder = FleetFolder.open(path, wall_clock=wall_clock)
    audit_record.record(folder, "sign", "root", root, root.signatures, (root.signed,))
    first = folder.metadata / "1.root.json" if is_signed(root) else path / "proposal" / "root.json"
    write_atomic(first, root.to_bytes())
    return folder


def refuse_taken(path: Path) -> None:
    """Raises ``InputError`` if no site can be founded at ``path``, before anybody was asked for anything."""
    if (path / "fleet.json").exists() or (path / "keys").exists():
        raise InputError("holds a fleet or a site already", path=path, remedy="Choose another folder.")


def signed_root(folder: FleetFolder) -> bytes:
    """The newest root of a site's folder, to be listed by the fleet. Raises ``InputError`` if the folder is a fleet's own, and
    ``TrustError`` with names while signatures are missing."""
    if site_of(folder.path) is None:
        raise InputError("is the folder of a fleet, not of a site", path=folder.path)
    if any(folder.metadata.glob("*.root.json")):
        return folder.root_bytes()
    proposed = Metadata[Root].from_bytes((folder.path / "proposal" / "root.json").read_bytes())
    if is_signed(proposed):
        return proposed.to_bytes()
    raise TrustError(
        f"the first root of the site is not signed: {signatures_of(proposed.signed, 'root', proposed).line()}",
        remedy=f"Let them sign with 'pcm-p2p sign --key FILE --fleet {folder.path}', then repeat this command.",
    )


def list_site_root(fleet: FleetFolder, site: str, root: bytes) -> str:
    """Propose that devices of ``site`` trust the repository that begins with this root; returns its target path.

    Raises ``InputError`` if it is not the root of that site of this fleet, or cannot be believed by itself.
    """
    try:
        decode_site_root_untrusted(root, fleet.fleet_id, site)
    except UntrustedBytes as error:
        raise InputError(
            error.message, remedy="Make it with 'pcm-p2p site autonomous' for this site of this fleet."
        ) from None
    return fleet.stage_file(site_root_path(site), root)


@dataclass(frozen=True)
class ListedRoot:
    """A site that acts alone, as the fleet lists it: the people who hold its root keys, and whether that is published yet.

    ``held``: who holds keys there, by role; ``threshold``: how many root keys make another root."""

    site: str
    version: int
    sha256: str
    people: tuple[str, ...]
    published: bool
    held: Mapping[str, tuple[str, ...]]
    threshold: int


def listed_roots(fleet: FleetFolder) -> tuple[ListedRoot, ...]:
    """The roots of sites that are proposed, else published, by site. Raises ``StorageError`` if one does not read any more."""
    published = fleet.targets()
    found = []
    for path, info in sorted(fleet.working(TARGETS).targets.items()):
        folder, _, name = path.rpartition("/")
        if name == "root.json" and folder.startswith(PREFIX):
            site, data = folder.removeprefix(PREFIX), fleet.files.read(path, info)
            try:
                root = decode_site_root_untrusted(data, fleet.fleet_id, site).signed
            except UntrustedBytes as error:
                raise StorageError(
                    f"{path}: {error.message}", remedy="List the site's root anew: 'pcm-p2p site autonomous'."
                ) from None
            people = _people(root, "root")
            there = published is not None and published.signed.targets.get(path) == info
            held = {role: _people(root, role) for role in ("root", TARGETS)}
            threshold = root.roles["root"].threshold
            found.append(ListedRoot(site, root.version, info.hashes["sha256"], people, there, held, threshold))
    return tuple(found)


def _people(root: Root, role: str) -> tuple[str, ...]:
    return tuple(sorted(owner_of(root.keys[keyid]) for keyid in root.roles[role].keyids))
