"""From a signed proposal to an origin tree, so that whoever reads it at any moment sees something whole.

Two commits, each one atomic replacement of a ``timestamp.json``:

1. in the fleet folder: signed root and targets, then snapshot, then timestamp. What the timestamp refers to is published;
2. in the origin tree: segments, targets, targets metadata, snapshot, root, and the timestamp last. Everything but the timestamp
   is named by hash or version and never changes, so a reader of the old timestamp goes on undisturbed.

Killed anywhere, the tree verifies as before or as after, and publishing again completes it. (Between a root that changes online
keys and the timestamp by the new ones, readers find nothing newer: that is why these two are written last, in this order.) The
tree never goes back: a folder that was restored from a backup is behind the tree, and is refused, as is the tree of another
fleet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

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

from pcm_p2p.authority import keyfile
from pcm_p2p.authority.founding import SNAPSHOT_LIFETIME, TIMESTAMP_LIFETIME, Passphrase, ask, whole_seconds
from pcm_p2p.authority.immutable_file import place_immutable
from pcm_p2p.authority.proposal import signatures_of
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.content.manifest import decode_untrusted
from pcm_p2p.durable import sweep_temporaries, write_atomic
from pcm_p2p.errors import InputError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.lock_file import held
from pcm_p2p.trust.floor import Versions
from pcm_p2p.trust.index import target_file
from pcm_p2p.trust.lint import ISSUED_FIELD, lint_root, lint_snapshot, lint_targets, lint_timestamp

ROOT_WARNING_DAYS = 180
TARGETS_WARNING_DAYS = 90
"""research/trust.md 4.2: root is a matter of months for people; targets is re-signed with each release."""


@dataclass(frozen=True)
class OnlineKeys:
    """The publisher's two keys, opened. A long-running publisher keeps this and forgets the passphrase."""

    snapshot: CryptoSigner
    timestamp: CryptoSigner

    @classmethod
    def open(cls, folder: FleetFolder, passphrase: Passphrase) -> OnlineKeys:
        """Raises ``InputError`` or ``TrustError`` as ``keyfile.load`` does."""

        def one(role: str) -> CryptoSigner:
            return keyfile.load(folder.path / "keys" / f"{role}.key", ask(passphrase, role)).signer()

        return cls(one("snapshot"), one("timestamp"))


@dataclass(frozen=True)
class Published:
    """What the tree holds now, what was added to it, and what the admin should know."""

    versions: Versions
    expires: datetime
    segments_added: int
    segment_bytes_added: int
    targets_added: int
    remarks: tuple[str, ...]


def publish(folder: FleetFolder, origin: Path, keys: OnlineKeys) -> Published:
    """Publish the proposals, if any, and bring the tree at ``origin`` up to the fleet folder.

    Raises ``TrustError`` while signatures are missing (it names the people), when a rule is broken, when another publisher
    is at work, or when the tree is ahead of this folder; ``StorageError`` if a blob is gone.
    """
    with folder.locked(), _tree_locked(origin):
        _refuse_tree_of_others(folder, origin)
        root, targets = _commit_people(folder)
        _commit_online(folder, keys, root, targets)
        folder.remove_proposal("root")
        folder.remove_proposal("targets")
        return _follow(folder, origin, content=True)


def refresh_online(folder: FleetFolder, origin: Path, keys: OnlineKeys) -> Published:
    """Sign the timestamp anew, and the snapshot in the second half of its life; proposals stay proposals.

    Raises ``InputError`` if nothing was ever published, else as ``publish``.
    """
    with folder.locked(), _tree_locked(origin):
        _refuse_tree_of_others(folder, origin)
        root, targets = folder.root(), folder.targets()
        if targets is None:
            raise InputError("has published nothing yet", path=folder.path, remedy="Run 'pcm-p2p publish' first.")
        _refuse_other_signers(root, targets)
        _commit_online(folder, keys, root, targets)
        # Targets metadata is placed after everything it names: where it is, nothing else is missing.
        placed = (origin / "metadata" / f"{targets.signed.version}.targets.json").exists()
        return _follow(folder, origin, content=not placed)


def _commit_people(folder: FleetFolder) -> tuple[Metadata[Root], Metadata[Targets]]:
    """Fold signed proposals into the fleet folder. They count only once a timestamp refers to them."""
    missing = folder.signatures_missing()
    if missing:
        raise TrustError(
            "signatures are missing: " + "; ".join(one.line() for one in missing),
            remedy="Let them sign with 'pcm-p2p sign --key FILE'.",
        )
    proposed_root, proposed_targets = folder.proposed_root(), folder.proposed_targets()
    root, targets = proposed_root or folder.root(), proposed_targets or folder.targets()
    if targets is None:
        raise InputError("has nothing to publish", path=folder.path, remedy="Stage and sign a change first.")
    _refuse(lint_root(root.signed, folder.fleet_id))
    _refuse(lint_targets(targets.signed))
    _refuse_other_signers(root, targets)
    now = folder.wall_clock()
    for what, document in (("root", root), ("targets", targets)):
        if document.signed.is_expired(now):
            raise TrustError(
                f"refused to publish: {what} expired on {document.signed.expires:%Y-%m-%d}",
                remedy="Propose it anew and let its holders sign.",
            )
    # Root last: once it is here, it counts.
    if proposed_targets is not None:
        write_atomic(folder.metadata / f"{proposed_targets.signed.version}.targets.json", proposed_targets.to_bytes())
    if proposed_root is not None:
        write_atomic(folder.metadata / f"{proposed_root.signed.version}.root.json", proposed_root.to_bytes())
    return root, targets


def _refuse_other_signers(root: Metadata[Root], targets: Metadata[Targets]) -> None:
    standing = signatures_of(root.signed, "targets", targets)
    if not standing.complete:
        raise TrustError(
            f"the targets are not signed by the holders that root names: {standing.line()}",
            remedy="Propose the targets anew and let them sign with 'pcm-p2p sign --key FILE'.",
        )


def _commit_online(folder: FleetFolder, keys: OnlineKeys, root: Metadata[Root], targets: Metadata[Targets]) -> None:
    """Snapshot, then timestamp: its atomic replacement commits. Nothing to do: only a newer timestamp."""
    now = whole_seconds(folder.wall_clock())
    for role, signer in (("snapshot", keys.snapshot), ("timestamp", keys.timestamp)):
        if signer.public_key.keyid not in root.signed.roles[role].keyids:
            raise TrustError(f"root does not name this {role} key", remedy="Use the key files of this fleet folder.")
    snapshot, timestamp = folder.snapshot(), folder.timestamp()
    if snapshot is None or _snapshot_is_due(snapshot, targets, root, now):
        version = 1 + (snapshot.signed.version if snapshot is not None else 0)
        meta = MetaFile.from_data(targets.signed.version, targets.to_bytes(), ["sha256"])
        snapshot = Metadata(Snapshot(version=version, expires=now + SNAPSHOT_LIFETIME, meta={"targets.json": meta}))
        _refuse(lint_snapshot(snapshot.signed))
        snapshot.sign(keys.snapshot)
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
    write_atomic(folder.metadata / "timestamp.json", fresh.to_bytes())


def _snapshot_is_due(
    snapshot: Metadata[Snapshot], targets: Metadata[Targets], root: Metadata[Root], now: datetime
) -> bool:
    if snapshot.signed.meta["targets.json"] != MetaFile.from_data(
        targets.signed.version, targets.to_bytes(), ["sha256"]
    ):
        return True
    if snapshot.signed.expires - now < SNAPSHOT_LIFETIME / 2:
        return True
    try:
        root.signed.verify_delegate("snapshot", snapshot.signed_bytes, snapshot.signatures)
    except RepositoryError:
        return True  # its key was rotated
    return False


def _follow(folder: FleetFolder, origin: Path, *, content: bool) -> Published:
    """Bring the tree up to the fleet folder; ``content`` false: metadata only, all else is there since ``publish``."""
    timestamp, snapshot, targets = folder.timestamp(), folder.snapshot(), folder.targets()
    assert timestamp is not None, "a commit precedes"
    assert snapshot is not None, "a timestamp refers to a snapshot"
    assert targets is not None, "a snapshot refers to targets"
    root = folder.root()
    segments = segment_bytes = added = 0
    if content:
        for name in _segment_files(folder, targets.signed):
            source, place = folder.segments / name, origin / "segments" / name
            if not place.exists():
                segments, segment_bytes = segments + 1, segment_bytes + _place(source, place)
        for path, info in targets.signed.targets.items():
            name = target_file(path, info.hashes["sha256"])
            if not (origin / name).exists():
                _place(folder.path / "repository" / name, origin / name)
                added += 1
    names = [f"{targets.signed.version}.targets.json", f"{snapshot.signed.version}.snapshot.json"]
    names += [f"{version}.root.json" for version in range(1, root.signed.version + 1)]
    for name in names:
        place = origin / "metadata" / name
        if not place.exists() and (folder.metadata / name).exists():
            _place(folder.metadata / name, place)
    (origin / "metadata").mkdir(parents=True, exist_ok=True)
    write_atomic(origin / "metadata" / "timestamp.json", timestamp.to_bytes())
    versions = Versions(root.signed.version, timestamp.signed.version, snapshot.signed.version, targets.signed.version)
    expires = min(document.signed.expires for document in (root, timestamp, snapshot, targets))
    return Published(versions, expires, segments, segment_bytes, added, tuple(_remarks(folder, root, targets)))


def _remarks(folder: FleetFolder, root: Metadata[Root], targets: Metadata[Targets]) -> Iterator[str]:
    now = folder.wall_clock()
    for what, document, warning_days in (
        ("root", root, ROOT_WARNING_DAYS),
        ("targets", targets, TARGETS_WARNING_DAYS),
    ):
        days = (document.signed.expires - now).days
        if days < 0:
            yield f"{what} expired on {document.signed.expires:%Y-%m-%d}: devices install nothing until a new one is signed"
        elif days < warning_days:
            yield f"{what} expires in {days} days, on {document.signed.expires:%Y-%m-%d}: its holders must sign a new one"


def _place(source: Path, place: Path) -> int:
    try:
        size = source.stat().st_size
        place_immutable(source, place)
    except FileNotFoundError:
        raise StorageError(f"{source} is gone", remedy="Restore the fleet folder, or add the release again.") from None
    return size


def _segment_files(folder: FleetFolder, targets: Targets) -> Iterator[str]:
    """``ab/<hex>`` of every segment that a published manifest names, each once."""
    seen: set[str] = set()
    for path, info in targets.targets.items():
        if path.startswith("releases/"):
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


def _refuse(complaints: tuple[str, ...]) -> None:
    if complaints:
        raise TrustError(f"refused to publish: {'; '.join(complaints)}")
