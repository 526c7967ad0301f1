"""An authority's fleet folder: staging changes into a proposal, collecting signatures on it, and the key files of the roles.

::

    fleet.json                     what this folder is: fleet id and name
    fleet.toml                     the fleet document, edited by people
    keys/{root,targets}-<owner>.key, snapshot.key, timestamp.key
    ca/                            the fleet's certificate authority
    repository/metadata, /targets  what was published, and staged targets (named by hash, so staging changes nothing)
    segments/ab/<hex>              blobs of releases
    proposal/{root,targets}.json   what would be published next, with the signatures so far
    enrolment/                     tokens and the desk

Staging makes or extends the proposed ``targets`` document, one version above the published one, with a new ``index.json``, and
drops signatures: people sign what they saw. Nothing becomes visible to devices before ``publish``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from pcm_p2p.content.manifest import Manifest, Segment, decode_untrusted
from pcm_p2p.durable import fsync_folder, write_atomic
from pcm_p2p.errors import InputError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.ids import SegmentId
from pcm_p2p.trust import keyfile
from pcm_p2p.trust.fleet_document import decode_fleet_document, starting_document
from pcm_p2p.trust.identity import FleetCA
from pcm_p2p.trust.index import (
    AUTHORITIES,
    FLEET_DOCUMENT,
    INDEX,
    Index,
    check_target_path,
    policy_path,
    release_path,
    target_file,
    target_size_bytes_max,
)
from pcm_p2p.trust.lint import FLEET_FIELD, lint_root, lint_targets
from pcm_p2p.trust.proposal import Proposal, Signatures, propose_root, propose_targets, signatures_of

ROOT_LIFETIME = timedelta(days=730)
TARGETS_LIFETIME = timedelta(days=365)
SNAPSHOT_LIFETIME = timedelta(days=30)
TIMESTAMP_LIFETIME = timedelta(days=7)
"""research/trust.md 4.2."""

Passphrase = str | Callable[[str], str]
"""One for all keys, or a function from the key file's stem (``root-alice``, ``snapshot``, ``ca``) to its passphrase."""

_T = TypeVar("_T", Root, Timestamp, Snapshot, Targets)
_ROOT_FILE = re.compile(r"([1-9][0-9]{0,9})\.root\.json")


def system_clock() -> datetime:
    return datetime.now(UTC)


class _Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Literal["pcm.fleet-folder/1"]
    fleet: str
    name: str


@dataclass(frozen=True)
class SignResult:
    """One signature more: which document, whose key, and how that document stands now."""

    role: str
    version: int
    owner: str
    signatures: tuple[Signatures, ...]

    @property
    def complete(self) -> bool:
        return all(signatures.complete for signatures in self.signatures)


@dataclass(frozen=True)
class Release:
    """A release among the staged or published targets."""

    name: str
    version: str
    counter: int
    path: str
    published: bool


class FleetFolder:
    """See the module. ``wall_clock`` decides the expiry of what is staged."""

    def __init__(self, path: Path, facts: _Facts, wall_clock: Callable[[], datetime]) -> None:
        self.path = path
        self.fleet_id = facts.fleet
        self.name = facts.name
        self.wall_clock = wall_clock

    @classmethod
    def init(
        cls,
        path: Path,
        *,
        name: str,
        passphrase: Passphrase,
        owners: tuple[str, ...] = ("admin",),
        root_threshold: int = 1,
        targets_threshold: int = 1,
        preset: keyfile.Preset = "moderate",
        wall_clock: Callable[[], datetime] = system_clock,
    ) -> FleetFolder:
        """Make a fleet: each owner gets a root and a targets key, root version 1 is signed by all of them.

        Raises ``InputError`` if the folder holds a fleet already or the thresholds cannot be met. An interrupted ``init``
        left no ``fleet.json``, and is begun again after its folder was removed.
        """
        if (path / "fleet.json").exists() or (path / "keys").exists():
            raise InputError("holds a fleet already", path=path, remedy="Choose another folder.")
        if len(set(owners)) != len(owners) or not owners:
            raise InputError("owners must be different people, at least one", remedy="Give each --owner once.")
        for what, threshold in (("root", root_threshold), ("targets", targets_threshold)):
            if not 1 <= threshold <= len(owners):
                raise InputError(
                    f"{what} threshold {threshold} needs that many owners; there are {len(owners)}",
                    remedy="Name more people with --owner, or lower the threshold.",
                )
        facts = _Facts("pcm.fleet-folder/1", secrets.token_hex(16), name)
        folder = cls(path, facts, wall_clock)
        document = starting_document(facts.fleet, name).encode()
        decode_fleet_document(document, "fleet name")
        for part in ("keys", "ca", "enrolment"):
            (path / part).mkdir(mode=0o700, parents=True)
        for part in ("repository/metadata", "repository/targets", "segments", "proposal"):
            (path / part).mkdir(parents=True)
        folder._first_root(owners, root_threshold, targets_threshold, passphrase, preset)
        FleetCA.create(
            path / "ca",
            facts.fleet,
            _ask(passphrase, "ca"),
            now=wall_clock(),
            owner=_owner(name),
            preset=_online(preset),
        )
        write_atomic(path / "fleet.toml", document)
        write_atomic(path / "fleet.json", msgspec.json.encode(facts))
        folder.stage_fleet_document()
        return folder

    @classmethod
    def open(cls, path: Path, *, wall_clock: Callable[[], datetime] = system_clock) -> FleetFolder:
        """Raises ``InputError`` if ``path`` is not a fleet folder."""
        try:
            facts = msgspec.json.decode((path / "fleet.json").read_bytes(), type=_Facts)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            raise InputError("is not a fleet folder", path=path, remedy="Make one with 'pcm-p2p fleet init'.") from None
        return cls(path, facts, wall_clock)

    # What there is

    @property
    def segments(self) -> Path:
        """Where staged blobs lie; ``content.ingest`` may write here directly."""
        return self.path / "segments"

    @property
    def metadata(self) -> Path:
        return self.path / "repository" / "metadata"

    def root(self) -> Metadata[Root]:
        """The newest root."""
        versions = [
            int(match.group(1)) for path in self.metadata.iterdir() if (match := _ROOT_FILE.fullmatch(path.name))
        ]
        if not versions:
            raise StorageError(f"{self.metadata} holds no root", remedy="Restore the fleet folder from its backup.")
        return self._read(self.metadata / f"{max(versions)}.root.json", Root)

    def root_bytes(self, version: int | None = None) -> bytes:
        """A published root as it is in the tree, the newest by default: what enrolment pins."""
        number = self.root().signed.version if version is None else version
        return (self.metadata / f"{number}.root.json").read_bytes()

    def timestamp(self) -> Metadata[Timestamp] | None:
        """The published timestamp; ``None`` before the first publishing."""
        path = self.metadata / "timestamp.json"
        return self._read(path, Timestamp) if path.exists() else None

    def snapshot(self) -> Metadata[Snapshot] | None:
        timestamp = self.timestamp()
        if timestamp is None:
            return None
        return self._read(self.metadata / f"{timestamp.signed.snapshot_meta.version}.snapshot.json", Snapshot)

    def targets(self) -> Metadata[Targets] | None:
        snapshot = self.snapshot()
        if snapshot is None:
            return None
        return self._read(self.metadata / f"{snapshot.signed.meta['targets.json'].version}.targets.json", Targets)

    def proposed_targets(self) -> Metadata[Targets] | None:
        """The proposal, unless it was published already (a crash between the two steps leaves it behind)."""
        proposed, published = self._proposed("targets", Targets), self.targets()
        if proposed is None or (published is not None and proposed.signed.version <= published.signed.version):
            return None
        return proposed

    def proposed_root(self) -> Metadata[Root] | None:
        proposed = self._proposed("root", Root)
        return None if proposed is None or proposed.signed.version <= self.root().signed.version else proposed

    def read_target(self, path: str) -> bytes:
        """A staged or published target. Raises ``InputError`` if there is none at ``path``."""
        info = self._working_targets().targets.get(path)
        if info is None:
            raise InputError("is not staged or published", path=path)
        return (self.path / "repository" / target_file(path, info.hashes["sha256"])).read_bytes()

    def releases(self) -> tuple[Release, ...]:
        """Staged and published releases, by name and counter."""
        published = self.targets()
        found = []
        for path, info in self._working_targets().targets.items():
            facts = info.custom or {}
            if path.startswith("releases/"):
                there = published is not None and published.signed.targets.get(path) == info
                found.append(Release(facts["release"], facts["version"], facts["counter"], path, there))
        return tuple(sorted(found, key=lambda release: (release.name, release.counter)))

    def next_counter(self, release: str) -> int:
        """One above the highest counter of that release: devices never go to a lower one."""
        return 1 + max((known.counter for known in self.releases() if known.name == release), default=0)

    # Staging

    def stage_release(self, manifest: Manifest, segments: Path) -> str:
        """Stage a release; ``segments`` is the folder with ``ab/<hex>`` blobs, each checked. Returns its target path.

        Raises ``InputError`` if a blob is absent or wrong, the version exists with other content, or the counter is not
        above those before.
        """
        decode_untrusted(manifest.encoded)
        try:
            path = release_path(manifest.release, manifest.version)
        except UntrustedBytes as error:
            raise InputError(error.message) from None
        for known in self.releases():
            if known.path == path:
                if _same_content(decode_untrusted(self.read_target(path)), manifest):
                    return path
                raise InputError(f"{manifest.title} exists with other content", remedy="Give it a new version number.")
            if known.name == manifest.release and known.counter >= manifest.counter:
                raise InputError(f"counter {manifest.counter} is not above that of {known.name} {known.version}")
        for segment in manifest.segments:
            self._bring_segment(segment, segments)
        facts = {"release": manifest.release, "version": manifest.version, "counter": manifest.counter}
        self._stage({path: manifest.encoded}, custom={path: facts})
        return path

    def stage_policy(self, policy: str, document: bytes) -> str:
        """Stage a policy that the caller has checked; returns its target path. Raises ``InputError`` for a bad id."""
        try:
            path = policy_path(policy)
        except UntrustedBytes as error:
            raise InputError(error.message) from None
        return self.stage_file(path, document)

    def stage_file(self, path: str, data: bytes) -> str:
        """Stage any other target, such as ``fleet/activation.toml``. Raises ``InputError`` for a bad path or size."""
        try:
            check_target_path(path)
        except UntrustedBytes as error:
            raise InputError(error.message) from None
        if len(data) > target_size_bytes_max(path):
            raise InputError(f"has {len(data)} bytes; at most {target_size_bytes_max(path)} are published", path=path)
        self._stage({path: data})
        return path

    def stage_fleet_document(self) -> str:
        """Stage ``fleet.toml`` and the authority's certificate as they are in this folder. Raises ``InputError``."""
        file = self.path / "fleet.toml"
        try:
            data = file.read_bytes()
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", path=file) from None
        document = decode_fleet_document(data, file)
        if document.fleet.id != self.fleet_id:
            raise InputError(
                f"is not this fleet, which is {self.fleet_id}", path=file, key="fleet.id", remedy="Correct the id."
            )
        self._stage({FLEET_DOCUMENT: data, AUTHORITIES: (self.path / "ca" / "ca.pem").read_bytes()})
        return FLEET_DOCUMENT

    def unstage(self, path: str) -> None:
        """Propose that ``path`` is no longer published. Raises ``InputError`` if it is not there."""
        if path not in self._working_targets().targets:
            raise InputError("is not staged or published", path=path)
        self._stage({path: None})

    def propose_root(self, edit: Callable[[Root], None]) -> None:
        """Propose a root one version up, made by ``edit`` from the present one, with a new lifetime. Drops signatures."""
        with self.locked():
            root = self.root().signed
            proposed = Root.from_dict(root.to_dict())
            edit(proposed)
            proposed.version = root.version + 1
            proposed.expires = whole_seconds(self.wall_clock() + ROOT_LIFETIME)
            complaints = lint_root(proposed, self.fleet_id)
            if complaints:
                raise InputError(complaints[0], remedy="Correct the change of root.")
            write_atomic(self.path / "proposal" / "root.json", Metadata(proposed).to_bytes())

    def discard(self) -> None:
        """Drop both proposals with their signatures."""
        with self.locked():
            self.remove_proposal("root")
            self.remove_proposal("targets")

    # Signing

    def proposals(self) -> tuple[Proposal, ...]:
        """What would change, root before targets; empty when there is nothing to sign."""
        found: list[Proposal] = []
        root, published = self.root().signed, self.targets()
        proposed_root, proposed_targets = self.proposed_root(), self.proposed_targets()
        if proposed_root is not None:
            found.append(propose_root(root, proposed_root))
            root = proposed_root.signed
        if proposed_targets is not None:
            found.append(propose_targets(root, published.signed if published else None, proposed_targets))
        return tuple(found)

    def sign(self, key: Path, passphrase: str) -> tuple[SignResult, ...]:
        """Add the signature of one key file to every proposal that this key may sign.

        Raises ``InputError`` when nothing is proposed or the key holds no role in it, ``TrustError`` as ``keyfile.load``,
        or when what is proposed breaks a rule.
        """
        opened = keyfile.load(key, passphrase)
        with self.locked():
            root, proposed_root, proposed_targets = self.root().signed, self.proposed_root(), self.proposed_targets()
            if proposed_root is None and proposed_targets is None:
                raise InputError("nothing is proposed", path=self.path, remedy="Stage a change first.")
            signed: list[SignResult] = []
            if proposed_root is not None:
                _refuse(lint_root(proposed_root.signed, self.fleet_id))
                holders = {*root.roles["root"].keyids, *proposed_root.signed.roles["root"].keyids}
                if opened.keyid in holders:
                    result = self._add_signature("root", proposed_root, opened)
                    standing = (
                        signatures_of(root, "root", proposed_root),
                        signatures_of(proposed_root.signed, "root", proposed_root),
                    )
                    signed.append(SignResult("root", result, opened.owner, standing))
                root = proposed_root.signed
            if proposed_targets is not None:
                _refuse(lint_targets(proposed_targets.signed))
                if opened.keyid in root.roles["targets"].keyids:
                    result = self._add_signature("targets", proposed_targets, opened)
                    standing_one = signatures_of(root, "targets", proposed_targets)
                    signed.append(SignResult("targets", result, opened.owner, (standing_one,)))
            if not signed:
                raise InputError(
                    f"the {opened.role} key of {opened.owner} has no part in what is proposed",
                    path=key,
                    remedy="Sign with a key that 'pcm-p2p sign' names.",
                )
            return tuple(signed)

    def _add_signature(self, role: Literal["root", "targets"], document: Metadata[Any], key: keyfile.KeyFile) -> int:
        document.sign(key.signer(), append=True)
        write_atomic(self.path / "proposal" / f"{role}.json", document.to_bytes())
        return int(document.signed.version)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time; raises ``TrustError`` at once if there is another."""
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise TrustError(
                    f"{self.path} is being changed by another process", remedy="Wait until it has finished."
                ) from None
            yield
        finally:
            os.close(descriptor)

    def signatures_missing(self) -> tuple[Signatures, ...]:
        """The thresholds that the proposals do not meet yet."""
        return tuple(one for proposal in self.proposals() for one in proposal.signatures if not one.complete)

    def remove_proposal(self, role: Literal["root", "targets"]) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.path / "proposal" / f"{role}.json").unlink()
        fsync_folder(self.path / "proposal")

    # Inside

    def _working_targets(self) -> Targets:
        """A copy of what is proposed, else of what is published, else empty."""
        base = self.proposed_targets() or self.targets()
        if base is not None:
            return Targets.from_dict(base.signed.to_dict())
        return Targets(version=1, expires=whole_seconds(self.wall_clock()))

    def _stage(self, files: dict[str, bytes | None], custom: dict[str, dict[str, Any]] | None = None) -> None:
        with self.locked():
            working = self._working_targets()
            for path, data in files.items():
                if data is None:
                    working.targets.pop(path, None)
                else:
                    working.targets[path] = self._store_target(path, data, (custom or {}).get(path))
            index = Index(
                "pcm.index/1",
                self.fleet_id,
                policies=tuple(sorted(path for path in working.targets if path.startswith("policies/"))),
                releases=tuple(sorted(path for path in working.targets if path.startswith("releases/"))),
            )
            working.targets[INDEX] = self._store_target(INDEX, index.encoded(), None)
            published = self.targets()
            working.version = 1 + (published.signed.version if published is not None else 0)
            working.expires = whole_seconds(self.wall_clock() + TARGETS_LIFETIME)
            complaints = lint_targets(working)
            if complaints:
                raise InputError(complaints[0])
            if published is not None and working.targets == published.signed.targets:
                self.remove_proposal("targets")
                return
            write_atomic(self.path / "proposal" / "targets.json", Metadata(working).to_bytes())

    def _store_target(self, path: str, data: bytes, custom: dict[str, Any] | None) -> TargetFile:
        info = TargetFile.from_data(path, data, ["sha256"])
        if custom:
            info.unrecognized_fields["custom"] = custom
        file = self.path / "repository" / target_file(path, info.hashes["sha256"])
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_atomic(file, data)
        return info

    def _bring_segment(self, segment: Segment, segments: Path) -> None:
        name = segment.segment_id.hex()
        source, kept = segments / name[:2] / name, self.segments / name[:2] / name
        if not source.exists() and kept.exists():
            source = kept
        try:
            data = source.read_bytes()
        except OSError as error:
            raise InputError(f"segment {name[:8]} cannot be read: {error.strerror}", path=source) from None
        if len(data) != segment.size or SegmentId.of(data) != segment.segment_id:
            raise InputError(
                f"segment {name[:8]} is damaged", path=source, remedy="Remove it and add the release again."
            )
        if source != kept and not kept.exists():
            place_immutable(source, kept)

    def _first_root(
        self,
        owners: tuple[str, ...],
        root_threshold: int,
        targets_threshold: int,
        passphrase: Passphrase,
        preset: keyfile.Preset,
    ) -> None:
        keys = self.path / "keys"

        def make(role: Literal["root", "targets"], owner: str) -> keyfile.KeyFile:
            stem = f"{role}-{owner}"
            return keyfile.create(keys / f"{stem}.key", _ask(passphrase, stem), role, owner, preset=preset)

        def make_online(role: Literal["snapshot", "timestamp"]) -> keyfile.KeyFile:
            # The publisher is no person: its keys are opened at each start of an unattended service.
            return keyfile.create(
                keys / f"{role}.key", _ask(passphrase, role), role, "publisher", preset=_online(preset)
            )

        holders: dict[str, list[keyfile.KeyFile]] = {
            "root": [make("root", owner) for owner in owners],
            "targets": [make("targets", owner) for owner in owners],
            "snapshot": [make_online("snapshot")],
            "timestamp": [make_online("timestamp")],
        }
        thresholds = {"root": root_threshold, "targets": targets_threshold, "snapshot": 1, "timestamp": 1}
        root = Root(
            version=1,
            expires=whole_seconds(self.wall_clock() + ROOT_LIFETIME),
            keys={key.keyid: key.key for role in holders.values() for key in role},
            roles={role: Role([key.keyid for key in members], thresholds[role]) for role, members in holders.items()},
            consistent_snapshot=True,
            unrecognized_fields={FLEET_FIELD: self.fleet_id},
        )
        _refuse(lint_root(root, self.fleet_id))
        document = Metadata(root)
        for key in holders["root"]:
            document.sign(key.signer(), append=True)
        write_atomic(self.metadata / "1.root.json", document.to_bytes())

    def _proposed(self, role: str, kind: type[_T]) -> Metadata[_T] | None:
        path = self.path / "proposal" / f"{role}.json"
        return self._read(path, kind) if path.exists() else None

    def _read(self, path: Path, kind: type[_T]) -> Metadata[_T]:
        try:
            document = Metadata[_T].from_bytes(path.read_bytes())
        except (OSError, RepositoryError, TypeError, ValueError) as error:
            raise StorageError(
                f"{path} cannot be read: {error}", remedy="Restore the fleet folder from its backup."
            ) from None
        if not isinstance(document.signed, kind):
            raise StorageError(f"{path} is not a {kind.__name__.lower()} document")
        return document


def place_immutable(source: Path, destination: Path) -> None:
    """Make ``destination`` the same file as ``source``, or a copy on another file system; durable, never half there."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            with temporary.open("rb") as copy:
                os.fsync(copy.fileno())
        temporary.replace(destination)
    finally:
        # Renaming one link onto another of the same file leaves both: POSIX makes that a no-op.
        temporary.unlink(missing_ok=True)
    fsync_folder(destination.parent)


def whole_seconds(moment: datetime) -> datetime:
    """TUF writes no fractions of a second."""
    return moment.astimezone(UTC).replace(microsecond=0)


def _same_content(known: Manifest, offered: Manifest) -> bool:
    """Equal but for the counter, which the tool gave."""
    return msgspec.structs.replace(known, counter=0) == msgspec.structs.replace(offered, counter=0)


def _refuse(complaints: tuple[str, ...]) -> None:
    if complaints:
        raise TrustError(f"refused to go on: {'; '.join(complaints)}")


def _ask(passphrase: Passphrase, stem: str) -> str:
    return passphrase if isinstance(passphrase, str) else passphrase(stem)


def _online(preset: keyfile.Preset) -> keyfile.Preset:
    return "lab" if preset == "lab" else "interactive"


def _owner(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:64] or "fleet"
