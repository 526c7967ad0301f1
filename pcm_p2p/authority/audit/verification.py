"""Verifying an audit log offline: the fleet folder's own against what it publishes, or the one in an origin tree.

In a folder everything is at hand: the log, the log that is embedded in the published targets, every published document, and the
signed bytes of proposals that were dropped. A tree holds what was published: the embedded log is judged alone, and entries over
documents that were never published are counted as not kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp  # type: ignore[attr-defined]

from pcm_p2p.authority.audit.journal import AuditJournal
from pcm_p2p.authority.audit.log import LOG_BYTES_MAX, Evidence, Verdict, is_volume, joined, verify
from pcm_p2p.authority.audit.record import documents_below
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.errors import InputError, StorageError
from pcm_p2p.trust.index import target_file


@dataclass(frozen=True)
class Audited:
    """A verdict, and the root that it stands on: version and SHA-256 of the newest, for people to compare; 0 before the first."""

    verdict: Verdict
    root_version: int
    root_sha256: str


def verify_folder(folder: FleetFolder, root: Path | None = None) -> Audited:
    """The log of a fleet folder; ``root`` is a root document that is known to be right, from another place.

    Raises ``InputError`` if nothing was ever logged, ``StorageError`` for damaged documents.
    """
    journal = AuditJournal(folder.path, folder.wall_clock)
    embedded = _embedded(folder.path / "repository")
    if not journal.begun and embedded is None:
        raise InputError("has no audit log yet", path=folder.path, remedy="It begins with the next signature.")
    evidence = evidence_below(folder.metadata)
    evidence.payloads = journal.documents()
    evidence.current = _current(folder.path / "repository")
    if folder.first_root_waits():
        evidence.chain = None
    for role in folder.roles():
        proposed = folder.proposed(role)
        if proposed is not None:
            evidence.payloads[hashlib.sha256(proposed.signed_bytes).hexdigest()] = proposed.signed_bytes
            if role == "root":
                evidence.roots.setdefault(proposed.signed.version, proposed)
            elif role == "targets":
                evidence.targets.setdefault(proposed.signed.version, proposed)
    return _audited(verify(journal.read(), evidence, embedded), evidence, root)


def verify_tree(origin: Path, root: Path | None = None) -> Audited:
    """The log embedded in an origin tree: a folder, or a copy of what a web server serves. As ``verify_folder``.

    Signatures that were made after the newest targets were proposed are not in it yet: those on the newest targets (and what is
    published with them) are no fault, and neither are younger online signatures.
    """
    if not (origin / "metadata" / "timestamp.json").exists():
        raise InputError(
            "holds no published tree", path=origin, remedy="Pass the folder that 'pcm-p2p publish --to' wrote."
        )
    log = _embedded(origin)
    if log is None:
        raise InputError("holds no audit log", path=origin, remedy="It is published with the next targets.")
    evidence = evidence_below(origin / "metadata")
    evidence.current = _current(origin)
    newest = evidence.current[2][1].signed.version
    judged = list(evidence.published)
    evidence.published = [one for one in judged if not _may_be_younger(*one, newest, evidence, log)]
    return _audited(verify(log, evidence), evidence, root)


def _audited(verdict: Verdict, evidence: Evidence, known: Path | None) -> Audited:
    chain = evidence.chain or {}
    newest = max(chain, default=0)
    digest = hashlib.sha256(chain[newest].signed_bytes).hexdigest() if newest else ""
    if known is not None and (why := _why_other(chain, known)):
        verdict = replace(verdict, complaints=(why, *verdict.complaints))
    return Audited(verdict, newest, digest)


def _why_other(chain: Mapping[int, Metadata[Root]], known: Path) -> str:
    """Whether the chain does not hold the root in the file ``known``. Raises ``InputError`` if that is no root."""
    try:
        root = Metadata[Root].from_bytes(known.read_bytes())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=known, remedy="Check the path.") from None
    except (RepositoryError, TypeError, ValueError):
        raise InputError("is no root document", path=known, remedy="Pass a root.json of this fleet.") from None
    if not isinstance(root.signed, Root):
        raise InputError("is no root document", path=known, remedy="Pass a root.json of this fleet.")
    there = chain.get(root.signed.version)
    if there is not None and there.signed_bytes == root.signed_bytes:
        return ""
    return f"root {root.signed.version} is not the one in {known}: these are the keys of somebody else"


def _may_be_younger(role: str, document: Metadata[Any], newest: int, evidence: Evidence, log: bytes) -> bool:
    """Whether ``document`` may have been signed after the log was embedded in targets ``newest``.

    Its own signatures were, and snapshots that name it. Of other roles, and of snapshots that name the targets before it (a halt
    was published while it waited for signatures): those of which the log knows nothing as new.
    """
    if role == "targets":
        return bool(document.signed.version == newest)
    if role == "snapshot":
        named = document.signed.meta["targets.json"].version
        if named != newest - 1:
            return bool(named >= newest)
    return not any(
        name == role
        and other.signed.version >= document.signed.version
        and hashlib.sha256(other.signed_bytes).hexdigest().encode() in log
        for name, other in evidence.published
    )


def evidence_below(metadata: Path) -> Evidence:
    """All signed documents of a tree. Raises ``StorageError``."""
    evidence = Evidence({}, chain={})
    for role, document in documents_below(metadata):
        evidence.published.append((role, document))
        if isinstance(document.signed, Root):
            evidence.roots[document.signed.version] = document
            assert evidence.chain is not None, "given above"
            evidence.chain[document.signed.version] = document
        elif role == "targets":
            evidence.targets[document.signed.version] = document
    return evidence


def _current(tree: Path) -> list[tuple[str, Metadata[Any]]]:
    """What the tree's timestamp refers to: timestamp, snapshot, targets; nothing before the first. Raises ``StorageError``."""
    metadata = tree / "metadata"
    file = metadata / "timestamp.json"
    try:
        if not file.exists():
            return []
        timestamp = Metadata[Timestamp].from_bytes(file.read_bytes())
        file = metadata / f"{timestamp.signed.snapshot_meta.version}.snapshot.json"
        snapshot = Metadata[Snapshot].from_bytes(file.read_bytes())
        file = metadata / f"{snapshot.signed.meta['targets.json'].version}.targets.json"
        targets = Metadata[Targets].from_bytes(file.read_bytes())
    except (OSError, RepositoryError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise StorageError(f"{file} cannot be read: {error}", remedy="Restore it from its backup.") from None
    return [("timestamp", timestamp), ("snapshot", snapshot), ("targets", targets)]


def _embedded(tree: Path) -> bytes | None:
    """The log that the newest targets publish, each volume checked against its hash. Raises ``StorageError``."""
    volumes: dict[str, bytes] = {}
    for path, info in [item for _, one in _current(tree)[2:] for item in one.signed.targets.items()]:
        if not is_volume(path):
            continue
        file = tree / target_file(path, info.hashes["sha256"])
        try:
            data = file.read_bytes()
        except OSError as error:
            raise StorageError(
                f"{file} cannot be read: {error.strerror}", remedy="Restore it from its backup."
            ) from None
        if len(data) > LOG_BYTES_MAX or hashlib.sha256(data).hexdigest() != info.hashes["sha256"]:
            raise StorageError(f"{file} is not what was signed: the published log was altered")
        volumes[path] = data
    return joined(volumes) if volumes else None
