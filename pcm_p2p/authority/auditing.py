"""Verifying an audit log offline: the fleet folder's own against what it publishes, or the one in an origin tree.

In a folder everything is at hand: the log, the log that is embedded in the published targets, every published document, and the
signed bytes of proposals that were dropped. A tree holds what was published: the embedded log is judged alone, and entries over
documents that were never published are counted as not kept.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp  # type: ignore[attr-defined]

from pcm_p2p.authority.audit_journal import AuditJournal
from pcm_p2p.authority.audit_log import LOG_BYTES_MAX, Evidence, Verdict, is_volume, joined, verify
from pcm_p2p.authority.audit_record import documents_below
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.errors import InputError, StorageError
from pcm_p2p.trust.index import target_file


def verify_folder(folder: FleetFolder) -> Verdict:
    """The log of a fleet folder. Raises ``InputError`` if nothing was ever logged, ``StorageError`` for damaged documents."""
    journal = AuditJournal(folder.path, folder.wall_clock)
    embedded = _embedded(folder.path / "repository")
    if not journal.begun and embedded is None:
        raise InputError("has no audit log yet", path=folder.path, remedy="It begins with the next signature.")
    evidence = evidence_below(folder.metadata)
    evidence.payloads = journal.documents()
    for role in folder.roles():
        proposed = folder.proposed(role)
        if proposed is not None:
            evidence.payloads[hashlib.sha256(proposed.signed_bytes).hexdigest()] = proposed.signed_bytes
            if role == "root":
                evidence.roots.setdefault(proposed.signed.version, proposed)
            elif role == "targets":
                evidence.targets.setdefault(proposed.signed.version, proposed)
    return verify(journal.read(), evidence, embedded)


def verify_tree(origin: Path) -> Verdict:
    """The log embedded in an origin tree: a folder, or a copy of what a web server serves. Raises as ``verify_folder``.

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
    newest = _newest_targets(origin)
    assert newest is not None, "it embeds the log"
    evidence.published = [
        (role, document)
        for role, document in evidence.published
        if not _may_be_younger(role, document, newest.signed.version, evidence, log)
    ]
    return verify(log, evidence)


def _may_be_younger(role: str, document: Metadata[Any], newest: int, evidence: Evidence, log: bytes) -> bool:
    """Whether ``document`` may have been signed after the log was embedded in targets ``newest``.

    Its own signatures were, and snapshots that name it. Of other roles: those of which the log knows nothing as new.
    """
    if role == "targets":
        return bool(document.signed.version == newest)
    if role == "snapshot":
        return bool(document.signed.meta["targets.json"].version >= newest)
    return not any(
        name == role
        and other.signed.version >= document.signed.version
        and hashlib.sha256(other.signed_bytes).hexdigest().encode() in log
        for name, other in evidence.published
    )


def evidence_below(metadata: Path) -> Evidence:
    """All signed documents of a tree. Raises ``StorageError``."""
    evidence = Evidence({})
    for role, document in documents_below(metadata):
        evidence.published.append((role, document))
        if isinstance(document.signed, Root):
            evidence.roots[document.signed.version] = document
        elif role == "targets":
            evidence.targets[document.signed.version] = document
    return evidence


def _newest_targets(tree: Path) -> Metadata[Targets] | None:
    """What the tree's timestamp refers to. Raises ``StorageError``."""
    metadata = tree / "metadata"
    file = metadata / "timestamp.json"
    try:
        if not file.exists():
            return None
        timestamp = Metadata[Timestamp].from_bytes(file.read_bytes())
        file = metadata / f"{timestamp.signed.snapshot_meta.version}.snapshot.json"
        snapshot = Metadata[Snapshot].from_bytes(file.read_bytes())
        file = metadata / f"{snapshot.signed.meta['targets.json'].version}.targets.json"
        return Metadata[Targets].from_bytes(file.read_bytes())
    except (OSError, RepositoryError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise StorageError(f"{file} cannot be read: {error}", remedy="Restore it from its backup.") from None


def _embedded(tree: Path) -> bytes | None:
    """The log that the newest targets publish, each volume checked against its hash. Raises ``StorageError``."""
    targets = _newest_targets(tree)
    if targets is None:
        return None
    volumes: dict[str, bytes] = {}
    for path, info in targets.signed.targets.items():
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
