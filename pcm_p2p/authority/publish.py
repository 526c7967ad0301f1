"""From a signed proposal to an origin tree, so that whoever reads it at any moment sees something whole.

Two commits, each one atomic replacement of a ``timestamp.json``:

1. in the fleet folder: signed root, targets and delegated documents, then snapshot, then timestamp. What the timestamp refers to
   is published;
2. in the origin tree: segments, targets, targets metadata, snapshot, root, and the timestamp last. Everything but the timestamp
   is named by hash or version and never changes, so a reader of the old timestamp goes on undisturbed.

Killed anywhere, the tree verifies as before or as after, and publishing again completes it. (Between a root that changes online
keys and the timestamp by the new ones, readers find nothing newer: that is why these two are written last, in this order.) The
tree never goes back: a folder that was restored from a backup is behind the tree, and is refused, as is the tree of another
fleet.

Documents of delegated roles are taken in without any signature of the centre. The snapshot names the newest of each, and goes on
naming the last one of a role that was revoked: python-tuf takes a name that disappears for an attack (specification 5.5.5).
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from pcm_p2p.authority.audit import record as audit_record
from pcm_p2p.authority.audit.journal import AuditJournal
from pcm_p2p.authority.delegating import delegated_roles
from pcm_p2p.authority.halting import refuse_halts
from pcm_p2p.authority.immutable_file import place_immutable
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.people.changes import online_key_file
from pcm_p2p.authority.people.founding import SNAPSHOT_LIFETIME, TIMESTAMP_LIFETIME, Passphrase, ask, whole_seconds
from pcm_p2p.authority.proposal import signatures_of
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.authority.site_policy import policy_complaints
from pcm_p2p.authority.staging import complaints_about
from pcm_p2p.authority.target_files import is_intact
from pcm_p2p.content.manifest import decode_untrusted
from pcm_p2p.durable import sweep_temporaries, write_atomic
from pcm_p2p.errors import InputError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.lock_file import held
from pcm_p2p.trust.delegation import HALT, TARGETS, index_of
from pcm_p2p.trust.floor import Versions
from pcm_p2p.trust.index import decode_index_untrusted, target_file
from pcm_p2p.trust.lint import ISSUED_FIELD, lint_snapshot, lint_timestamp

ROOT_WARNING_DAYS = 180
TARGETS_WARNING_DAYS = 90
DELEGATED_WARNING_DAYS = 30
"""research/trust.md 4.2: root is a matter of months for people; targets is re-signed with each release, a site's more often."""


@dataclass(frozen=True)
class OnlineKeys:
    """The publisher's two keys, opened. A long-running publisher keeps this and forgets the passphrase."""

    snapshot: CryptoSigner
    timestamp: CryptoSigner

    @classmethod
    def open(cls, folder: FleetFolder, passphrase: Passphrase, *, proposed: bool = False) -> OnlineKeys:
        """The keys that root names; ``proposed``: those of the proposed root, where there is one, for publishing it.

        Raises ``InputError`` or ``TrustError`` as ``keyfile.load`` does.
        """

        def one(role: str) -> CryptoSigner:
            file = online_key_file(folder, role, proposed=proposed)
            return keyfile.load(file, ask(passphrase, file.stem)).signer()

        return cls(one("snapshot"), one("timestamp"))


@dataclass(frozen=True)
class Published:
    """What the tree holds now, what was added to it, and what the admin should know. ``delegated``: versions by role."""

    versions: Versions
    expires: datetime
    segments_added: int
    segment_bytes_added: int
    targets_added: int
    remarks: tuple[str, ...]
    delegated: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Documents:
    """What people signed and is to be published."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    delegated: Mapping[str, Metadata[Targets]]

    def lists(self) -> Iterator[Metadata[Targets]]:
        """Documents that list targets."""
        yield self.targets
        yield from self.delegated.values()

    def named(self) -> Iterator[tuple[str, Metadata[Targets]]]:
        yield TARGETS, self.targets
        yield from self.delegated.items()


def publish(folder: FleetFolder, origin: Path, keys: OnlineKeys, *, only: Collection[str] | None = None) -> Published:
    """Publish the proposals, if any, and bring the tree at ``origin`` up to the fleet folder.

    ``only`` names the roles whose proposals are taken in; the others stay proposals. Raises ``TrustError`` while signatures
    are missing (it names the people), when a rule is broken, when another publisher is at work, or when the tree is ahead of
    this folder; ``StorageError`` if a blob is gone.
    """
    with folder.locked(), _tree_locked(origin):
        _refuse_tree_of_others(folder, origin)
        taken = [role for role in folder.roles() if only is None or role in only]
        documents = _commit_people(folder, origin, taken)
        _commit_online(folder, keys, documents)
        for role in taken:
            folder.remove_proposal(role)
        return _follow(folder, origin, content=True)


def refresh_online(folder: FleetFolder, origin: Path, keys: OnlineKeys) -> Published:
    """Sign the timestamp anew, and the snapshot in the second half of its life; proposals stay proposals.

    Raises ``InputError`` if nothing was ever published, else as ``publish``.
    """
    with folder.locked(), _tree_locked(origin):
        _refuse_tree_of_others(folder, origin)
        if folder.targets() is None:
            raise InputError("has published nothing yet", path=folder.path, remedy="Run 'pcm-p2p publish' first.")
        documents = _published(folder)
        _refuse_other_signers(documents)
        _commit_online(folder, keys, documents)
        # Metadata that lists targets is placed after everything it names: where it is, nothing else is missing.
        placed = all(
            (origin / "metadata" / f"{document.signed.version}.{role}.json").exists()
            for role, document in documents.named()
        )
        return _follow(folder, origin, content=not placed)


def _published(folder: FleetFolder) -> _Documents:
    targets = folder.targets()
    assert targets is not None, "a timestamp refers to a snapshot, and that to targets"
    return _Documents(folder.root(), targets, _delegated(folder, targets, ()))


def _delegated(folder: FleetFolder, targets: Metadata[Targets], taken: Collection[str]) -> dict[str, Metadata[Targets]]:
    """Documents of the roles that ``targets`` delegates; of those ``taken`` the proposed one, if there is one."""
    roles = delegated_roles(targets.signed)
    proposed = {role: found for role in roles if role in taken and (found := folder.proposed_of(role)) is not None}
    documents = {**folder.delegated_among(roles), **proposed}
    return {role: documents[role] for role in roles if role in documents}


def _commit_people(folder: FleetFolder, origin: Path, taken: Collection[str]) -> _Documents:
    """Fold signed proposals into the fleet folder. They count only once a timestamp refers to them."""
    proposed = {role: found for role in taken if (found := folder.proposed(role)) is not None}
    missing = folder.signatures_missing(taken)
    if missing:
        remedy = "Let them sign with 'pcm-p2p sign --key FILE'."
        if ready := [role for role in folder.ready_alone() if role in taken]:
            options = " ".join(f"--only {role}" for role in ready)
            remedy += f" What is complete waits for nobody: 'pcm-p2p publish {options}'."
        lines = [one.line() for one in missing]
        raise TrustError(f"signatures are missing: {lines[0]}" if len(lines) == 1 else _listed(lines), remedy=remedy)
    targets = proposed.get(TARGETS) or folder.targets()
    if targets is None:
        raise InputError("has nothing to publish", path=folder.path, remedy="Stage and sign a change first.")
    documents = _Documents(proposed.get("root") or folder.root(), targets, _delegated(folder, targets, taken))
    if orphans := [role for role in proposed if role not in ("root", TARGETS, *documents.delegated)]:
        raise TrustError(
            f"refused to publish: nobody is delegated to sign for {', '.join(orphans)} yet",
            remedy="Let the targets that delegate be signed, and publish both together.",
        )
    now = folder.wall_clock()
    signed: list[tuple[str, Metadata[Any]]] = [("root", documents.root), *documents.named()]
    for role, document in signed:
        if role in proposed or role in ("root", TARGETS):
            _refuse(complaints_about(role, document.signed, folder.fleet_id))
            _refuse_expired(role, document, now)
        if role in proposed:
            _refuse_gap(folder, role, document)
            _refuse_damaged(folder, role, document)
            _refuse_without_blobs(folder, origin, role, document)
        if role in proposed and role != "root":
            # Signed elsewhere, or before the fleet said less, it was judged by something else or by nothing.
            _refuse(
                policy_complaints(folder, role, document.signed),
                remedy=f"Let it be proposed anew, and drop this with 'pcm-p2p proposal discard --role {role}'.",
            )
    if HALT in proposed:
        refuse_halts(folder, proposed[HALT].signed, documents.root.signed, targets.signed)
    for role, document in documents.delegated.items():
        if role in proposed:
            _refuse_index(folder, role, document.signed)
    _refuse_other_signers(documents)
    # Root last: once it is here, it counts.
    for role in reversed([role for role in folder.roles() if role in proposed]):
        file = folder.metadata / f"{proposed[role].signed.version}.{role}.json"
        write_atomic(file, proposed[role].to_bytes())
        AuditJournal(folder.path, folder.wall_clock).forget_document(proposed[role].signed_bytes)
    return documents


def _listed(lines: list[str]) -> str:
    return "\n  ".join(("signatures are missing:", *lines))


def _refuse_expired(role: str, document: Metadata[Any], now: datetime) -> None:
    if document.signed.is_expired(now):
        raise TrustError(
            f"refused to publish: {role} expired on {document.signed.expires:%Y-%m-%d}",
            remedy="Propose it anew and let its holders sign.",
        )


def _refuse_index(folder: FleetFolder, role: str, targets: Targets) -> None:
    """A document that devices could not use, since its own index does not fit it: one that was not made by this tool."""
    path = index_of(role)
    try:
        info = targets.targets.get(path)
        if info is None:
            raise UntrustedBytes(f"{path} is missing")
        index = decode_index_untrusted(folder.files.read(path, info), role)
        unsigned = sorted({*index.policies, *index.releases, *index.halts} - targets.targets.keys())
        if unsigned:
            raise UntrustedBytes(f"{path} lists {unsigned[0]}, which is not signed")
        if index.fleet != folder.fleet_id:
            raise UntrustedBytes(f"{path} is of fleet {index.fleet[:8]}")
    except UntrustedBytes as error:
        raise TrustError(f"refused to publish: {role}: {error.message}", remedy="Stage and sign it anew.") from None


def _refuse_gap(folder: FleetFolder, role: str, document: Metadata[Any]) -> None:
    """A proposal is the next version and no other: a leap to the last possible one would end a role for ever."""
    before = folder.document(role)
    version = before.signed.version if before is not None else 0
    if document.signed.version != version + 1:
        raise TrustError(
            f"refused to publish: {role} version {document.signed.version} does not follow {version}",
            remedy="Propose the change anew on top of what is published.",
        )


def _refuse_damaged(folder: FleetFolder, role: str, document: Metadata[Any]) -> None:
    """Raises ``InputError`` or ``StorageError`` for a new file that is not as it was signed: devices would refuse all of it."""
    before = folder.document(role)
    known: Mapping[str, Any] = getattr(before.signed, "targets", {}) if before is not None else {}
    for path, info in getattr(document.signed, "targets", {}).items():
        if known.get(path) != info:
            folder.files.read(path, info)


_BLOB_REMEDY = "Import what 'pcm-p2p proposal export --with-segments' writes where it was made, or add it again."


def _refuse_without_blobs(folder: FleetFolder, origin: Path, role: str, document: Metadata[Any]) -> None:
    """Raises ``StorageError`` for a new release whose blobs are nowhere, or not what the manifest names: once committed, nothing
    more could be published, and devices would refuse what they get."""
    before = folder.document(role)
    known: Mapping[str, Any] = getattr(before.signed, "targets", {}) if before is not None else {}
    for path, info in getattr(document.signed, "targets", {}).items():
        if not path.endswith(".manifest") or known.get(path) == info:
            continue
        try:
            manifest = decode_untrusted(folder.files.read(path, info))
        except UntrustedBytes as error:
            raise TrustError(f"refused to publish: {path}: {error.message}", remedy="Add the release again.") from None
        names = {one.segment_id.hex() for one in manifest.segments}
        places = [(folder.segments / name[:2] / name, origin / "segments" / name[:2] / name) for name in sorted(names)]
        absent = [place for place, placed in places if not (place.exists() or placed.exists())]
        if absent:
            raise StorageError(
                f"{path}: {len(absent)} of its {len(names)} segments are not here, such as {absent[0]}",
                remedy=_BLOB_REMEDY,
            )
        served = (placed if placed.exists() else place for place, placed in places)
        if damaged := next((file for file in served if not is_intact(file)), None):
            raise StorageError(f"{path}: {damaged} is damaged", remedy=f"Remove it. {_BLOB_REMEDY}")


def _refuse_other_signers(documents: _Documents) -> None:
    for role, document in documents.named():
        delegator = documents.root.signed if role == TARGETS else documents.targets.signed
        standing = signatures_of(delegator, role, document)
        if not standing.complete:
            raise TrustError(
                f"{role} is not signed by the holders that {delegator.type} names: {standing.line()}",
                remedy="Propose it anew, let them sign with 'pcm-p2p sign --key FILE', and publish both together.",
            )


def _commit_online(folder: FleetFolder, keys: OnlineKeys, documents: _Documents) -> None:
    """Snapshot, then timestamp: its atomic replacement commits. Nothing to do: only a newer timestamp."""
    now = whole_seconds(folder.wall_clock())
    root = documents.root.signed
    for role, signer in (("snapshot", keys.snapshot), ("timestamp", keys.timestamp)):
        if signer.public_key.keyid not in root.roles[role].keyids:
            raise TrustError(f"root does not name this {role} key", remedy="Use the key files of this fleet folder.")
    snapshot, timestamp = folder.snapshot(), folder.timestamp()
    # Of roles that were revoked, too: what a snapshot named once, it names for ever.
    named = dict(snapshot.signed.meta) if snapshot is not None else {}
    for role, document in documents.named():
        meta = MetaFile.from_data(document.signed.version, document.to_bytes(), ["sha256"])
        if (before := named.get(f"{role}.json")) is not None and meta.version < before.version:
            raise TrustError(
                f"refused to publish {role} version {meta.version}: version {before.version} was published before",
                remedy="Use the fleet folder that published last; a restored backup must not go back.",
            )
        named[f"{role}.json"] = meta
    if snapshot is None or _snapshot_is_due(snapshot, named, root, now):
        version = 1 + (snapshot.signed.version if snapshot is not None else 0)
        snapshot = Metadata(Snapshot(version=version, expires=now + SNAPSHOT_LIFETIME, meta=named))
        _refuse(lint_snapshot(snapshot.signed))
        snapshot.sign(keys.snapshot)
        audit_record.record(folder, "online", "snapshot", snapshot, snapshot.signatures, (root,))
        write_atomic(folder.metadata / f"{version}.snapshot.json", snapshot.to_bytes())
    meta = MetaFile.from_data(snapshot.signed.version, snapshot.to_bytes(), ["sha256"])
    fresh = Metadata(
        Timestamp(
            version=1 + (timestamp.signed.version if timestamp is not None else 0),
            expires=now + TIMESTAMP_LIFETIME,
            snapshot_meta=meta,
            unrecognized_fields={ISSUED_FIELD: now.isoformat()},
        )
    )
    _refuse(lint_timestamp(fresh.signed))
    fresh.sign(keys.timestamp)
    audit_record.record(folder, "online", "timestamp", fresh, fresh.signatures, (root,))
    write_atomic(folder.metadata / "timestamp.json", fresh.to_bytes())


def _snapshot_is_due(snapshot: Metadata[Snapshot], named: Mapping[str, MetaFile], root: Root, now: datetime) -> bool:
    if snapshot.signed.meta != named or snapshot.signed.expires - now < SNAPSHOT_LIFETIME / 2:
        return True
    try:
        root.verify_delegate("snapshot", snapshot.signed_bytes, snapshot.signatures)
    except RepositoryError:
        return True  # its key was rotated
    return False


def _follow(folder: FleetFolder, origin: Path, *, content: bool) -> Published:
    """Bring the tree up to the fleet folder; ``content`` false: metadata only, all else is there since ``publish``."""
    timestamp, snapshot, documents = folder.timestamp(), folder.snapshot(), _published(folder)
    assert timestamp is not None, "a commit precedes"
    assert snapshot is not None, "a timestamp refers to a snapshot"
    root, targets = documents.root, documents.targets
    segments = segment_bytes = added = 0
    if content:
        for name in _segment_files(folder, documents):
            source, place = folder.segments / name, origin / "segments" / name
            if not place.exists():
                if source.exists() and not is_intact(source):
                    raise StorageError(f"{source} is damaged", remedy=f"Remove it. {_BLOB_REMEDY}")
                segments, segment_bytes = segments + 1, segment_bytes + _place(source, place)
        for document in documents.lists():
            for path, info in document.signed.targets.items():
                name = target_file(path, info.hashes["sha256"])
                if not (origin / name).exists():
                    if (folder.path / "repository" / name).exists():
                        folder.files.read(path, info)  # whole, or devices would refuse all of the tree
                    _place(folder.path / "repository" / name, origin / name)
                    added += 1
    names = [f"{document.signed.version}.{role}.json" for role, document in documents.named()]
    names += [f"{snapshot.signed.version}.snapshot.json"]
    names += [f"{version}.root.json" for version in range(1, root.signed.version + 1)]
    for name in names:
        place = origin / "metadata" / name
        if not place.exists() and (folder.metadata / name).exists():
            _place(folder.metadata / name, place)
    (origin / "metadata").mkdir(parents=True, exist_ok=True)
    write_atomic(origin / "metadata" / "timestamp.json", timestamp.to_bytes())
    versions = Versions(root.signed.version, timestamp.signed.version, snapshot.signed.version, targets.signed.version)
    expires = min(document.signed.expires for document in (root, timestamp, snapshot, targets))
    remarks = tuple(_remarks(folder.wall_clock(), documents))
    delegated = {role: document.signed.version for role, document in documents.delegated.items()}
    return Published(versions, expires, segments, segment_bytes, added, remarks, delegated)


def _remarks(now: datetime, documents: _Documents) -> Iterator[str]:
    effect = "devices install nothing until a new one is signed"
    rows: list[tuple[str, Metadata[Any], int, str]] = [
        ("root", documents.root, ROOT_WARNING_DAYS, effect),
        ("targets", documents.targets, TARGETS_WARNING_DAYS, effect),
    ]
    rows += [
        (role, document, DELEGATED_WARNING_DAYS, "devices keep to its last documents and take nothing new from it")
        for role, document in documents.delegated.items()
    ]
    for what, document, warning_days, effect in rows:
        days = (document.signed.expires - now).days
        if days < 0:
            yield f"{what} expired on {document.signed.expires:%Y-%m-%d}: {effect}"
        elif days < warning_days:
            yield f"{what} expires in {days} days, on {document.signed.expires:%Y-%m-%d}: its holders must sign a new one"


def _place(source: Path, place: Path) -> int:
    try:
        size = source.stat().st_size
        place_immutable(source, place)
    except FileNotFoundError:
        raise StorageError(f"{source} is gone", remedy="Restore the fleet folder, or add the release again.") from None
    return size


def _segment_files(folder: FleetFolder, documents: _Documents) -> Iterator[str]:
    """``ab/<hex>`` of every segment that a published manifest names, each once."""
    seen: set[str] = set()
    for path, info in (item for document in documents.lists() for item in document.signed.targets.items()):
        if path.endswith(".manifest"):
            file = folder.path / "repository" / target_file(path, info.hashes["sha256"])
            try:
                manifest = decode_untrusted(file.read_bytes())
            except (OSError, UntrustedBytes) as error:
                raise StorageError(
                    f"{file} cannot be read: {error}", remedy="Restore the fleet folder, or add the release again."
                ) from None
            for segment in manifest.segments:
                name = segment.segment_id.hex()
                if name not in seen:
                    seen.add(name)
                    yield f"{name[:2]}/{name}"


def _refuse_tree_of_others(folder: FleetFolder, origin: Path) -> None:
    """Everything in the tree was in this folder first. What is not comes from a later copy of it, or from another fleet."""
    timestamp = origin / "metadata" / "timestamp.json"
    referred = [path.name for path in (origin / "metadata").glob("*.root.json")]
    if timestamp.exists():
        try:
            theirs = Metadata[Timestamp].from_bytes(timestamp.read_bytes())
        except (OSError, RepositoryError, TypeError, ValueError) as error:
            raise TrustError(
                f"{timestamp} cannot be read: {error}", remedy="Remove it if the tree is to be published anew."
            ) from None
        ours = folder.timestamp()
        version = ours.signed.version if ours is not None else 0
        if theirs.signed.version > version:
            raise TrustError(
                f"the tree has timestamp {theirs.signed.version}, this folder {version}:"
                " it is older than what was published",
                remedy="Use the fleet folder that published last; a restored backup must not go back.",
            )
        if ours is not None and theirs.signed.version == version and theirs.signed_bytes != ours.signed_bytes:
            raise _other_history(timestamp)
        referred.append(f"{theirs.signed.snapshot_meta.version}.snapshot.json")
    for name in referred:
        placed, kept = origin / "metadata" / name, folder.metadata / name
        if placed.exists() and (not kept.exists() or kept.read_bytes() != placed.read_bytes()):
            raise _other_history(placed)


def _other_history(file: Path) -> TrustError:
    return TrustError(
        f"{file} is not what this folder published: the tree belongs to another fleet, or to another copy of this folder",
        remedy="Publish to another tree, or use the fleet folder that published last.",
    )


@contextlib.contextmanager
def _tree_locked(origin: Path) -> Iterator[None]:
    origin.mkdir(parents=True, exist_ok=True)
    busy = TrustError(f"another publisher is at work on {origin}", remedy="Wait until it has finished.")
    with held(origin / ".publish.lock", busy):
        sweep_temporaries(origin / "metadata")
        yield


def _refuse(complaints: tuple[str, ...], *, remedy: str | None = None) -> None:
    if complaints:
        raise TrustError(f"refused to publish: {'; '.join(complaints)}", remedy=remedy)
