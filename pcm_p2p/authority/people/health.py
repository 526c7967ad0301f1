"""The state of a fleet's authority, from its folder: what expires when, whose signatures are missing, which keys never signed."""

from __future__ import annotations

from collections.abc import Iterator

from pcm_p2p.authority import ca_folder
from pcm_p2p.authority.audit.journal import AuditJournal
from pcm_p2p.authority.audit.log import read_chain
from pcm_p2p.authority.held_floor import acts_alone, held_floor, set_aside_alone
from pcm_p2p.authority.keys.key_test_file import untested
from pcm_p2p.authority.people.changes import OF_ROOT, all_holders
from pcm_p2p.authority.people.expiry import (
    Finding,
    Level,
    of_double_roles,
    of_floor,
    of_people,
    of_publisher,
    of_thresholds,
    of_untested,
)
from pcm_p2p.authority.people.founding import SNAPSHOT_LIFETIME, TIMESTAMP_LIFETIME
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.errors import TrustError


def check(folder: FleetFolder) -> tuple[Finding, ...]:
    """Everything that is worth a line, documents first. Raises ``StorageError`` for damaged ones."""
    return (*_expiry(folder), *_floor(folder), *_proposals(folder), *_people(folder))


def _expiry(folder: FleetFolder) -> Iterator[Finding]:
    now = folder.wall_clock()
    if folder.first_root_waits():
        yield Finding("root", Level.warn, "the first root waits for signatures, and nothing can be published before")
    for role in folder.roles():
        document = folder.document(role)
        if document is not None:
            yield of_people(role, document.signed.expires, now)
    for role, lifetime in (("snapshot", SNAPSHOT_LIFETIME), ("timestamp", TIMESTAMP_LIFETIME)):
        document = folder.document(role)
        if document is not None:
            yield of_publisher(role, document.signed.expires, now, lifetime)
    if folder.timestamp() is None:
        yield Finding("timestamp", Level.note, "nothing was published yet")
    authority = folder.path / "ca" / "ca.pem"
    if authority.exists():
        # The desk's own certificate ends with its authority's.
        yield of_people("ca", ca_folder.certifying(folder.path / "ca").not_valid_after_utc, now)


def _floor(folder: FleetFolder) -> Iterator[Finding]:
    """In the folder of a site that acts alone: what is held of the fleet."""
    if not acts_alone(folder):
        return
    try:
        floor = held_floor(folder)
    except TrustError as error:
        yield Finding("floor", Level.critical, error.message)
        return
    if floor is None:
        what = "nothing is held of what the fleet lets the site set, and no new policy is signed: 'pcm-p2p site floor'"
        yield Finding("floor", Level.warn, what)
        return
    now = folder.wall_clock()
    yield of_floor(floor.overdue(now), floor.expires, now)
    for sentence in set_aside_alone(folder):
        yield Finding("floor", Level.warn, sentence)


def _proposals(folder: FleetFolder) -> Iterator[Finding]:
    for proposal in folder.proposals():
        missing = [standing.line() for standing in proposal.signatures if not standing.complete]
        what = f"{proposal.role} {proposal.version_after}"
        if missing:
            yield Finding(what, Level.warn, f"proposed, and not published: {'; '.join(missing)}")
        else:
            yield Finding(what, Level.warn, "signed, and not published: 'pcm-p2p publish'")


def _people(folder: FleetFolder) -> Iterator[Finding]:
    holders = all_holders(folder, proposed=False)
    people = [one for one in holders if one.role in ("root", "targets")]
    yield from of_thresholds(people)
    yield from of_double_roles(people)
    # A key that signed an earlier version was found to work, too; the publisher's are used daily.
    entries, _ = read_chain(AuditJournal(folder.path, folder.wall_clock).read())
    used = {entry.keyid for entry in entries}
    yield from of_untested(
        (one.role, one.owner) for one in untested(folder) if one.role not in OF_ROOT[2:] and one.keyid not in used
    )
