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

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    TargetFile,
    Targets,
)

from pcm_p2p.authority import keyfile
from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.fleet_documents import FleetDocuments
from pcm_p2p.authority.founding import (
    ROOT_LIFETIME,
    TARGETS_LIFETIME,
    Passphrase,
    ask,
    check_people,
    first_root,
    online_preset,
    whole_seconds,
)
from pcm_p2p.authority.immutable_file import place_immutable
from pcm_p2p.authority.proposal import Proposal, Signatures, propose_root, propose_targets, signatures_of
from pcm_p2p.authority.release_list import (
    COUNTERS,
    Release,
    counters_gone,
    highest_counters,
    releases_of,
    same_but_for_counter,
)
from pcm_p2p.content.manifest import Manifest, Segment, decode_untrusted
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, TrustError, UntrustedBytes
from pcm_p2p.ids import SegmentId
from pcm_p2p.trust.fleet_document import decode_fleet_document, starting_document
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
from pcm_p2p.trust.lint import lint_root, lint_targets


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


class FleetFolder(FleetDocuments):
    """See the module. ``wall_clock`` decides the expiry of what is staged."""

    def __init__(self, path: Path, facts: _Facts, wall_clock: Callable[[], datetime]) -> None:
        super().__init__(path)
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
        check_people(owners, root_threshold, targets_threshold)
        facts = _Facts("pcm.fleet-folder/1", secrets.token_hex(16), name)
        folder = cls(path, facts, wall_clock)
        document = starting_document(facts.fleet, name).encode()
        decode_fleet_document(document, "fleet name")
        for part in ("keys", "ca", "enrolment"):
            (path / part).mkdir(mode=0o700, parents=True)
        for part in ("repository/metadata", "repository/targets", "segments", "proposal"):
            (path / part).mkdir(parents=True)
        root = first_root(
            path / "keys",
            facts.fleet,
            owners,
            root_threshold,
            targets_threshold,
            passphrase,
            preset=preset,
            now=wall_clock(),
        )
        write_atomic(folder.metadata / "1.root.json", root.to_bytes())
        FleetCA.create(
            path / "ca",
            facts.fleet,
            ask(passphrase, "ca"),
            now=wall_clock(),
            owner=re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:64] or "fleet",
            preset=online_preset(preset),
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

    def read_target(self, path: str) -> bytes:
        """A staged or published target. Raises ``InputError`` if there is none at ``path``."""
        info = self._working_targets().targets.get(path)
        if info is None:
            raise InputError("is not staged or published", path=path)
        return self._read_target(path, info)

    def policies(self) -> dict[str, tuple[bytes, ...]]:
        """Documents of all policies by target path: what is staged and, where it is another one, what is published."""
        found: dict[str, tuple[bytes, ...]] = {}
        published = self.targets()
        for targets in (self._working_targets(), *((published.signed,) if published is not None else ())):
            for path, info in sorted(targets.targets.items()):
                if path.startswith("policies/"):
                    document = self._read_target(path, info)
                    found[path] = tuple(dict.fromkeys((*found.get(path, ()), document)))
        return found

    def manifest(self, release: Release) -> Manifest:
        """The manifest of a staged or published release. Raises ``InputError`` if there is no such release."""
        return decode_untrusted(self.read_target(release.path))

    def releases(self) -> tuple[Release, ...]:
        """Staged and published releases, by name and counter."""
        published = self.targets()
        return releases_of(self._working_targets(), published.signed if published is not None else None)

    def next_counter(self, release: str) -> int:
        """One above the highest counter that release ever had: devices never go to a lower one."""
        return 1 + max(highest_counters(self._working_targets()).get(release, 0), self._published_counter(release))

    def _published_counter(self, release: str) -> int:
        published = self.targets()
        return 0 if published is None else highest_counters(published.signed).get(release, 0)

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
        if any(known.path == path for known in self.releases()):
            if same_but_for_counter(decode_untrusted(self.read_target(path)), manifest):
                return path
            raise InputError(f"{manifest.title} exists with other content", remedy="Give it a new version number.")
        if manifest.counter < (least := self.next_counter(manifest.release)):
            raise InputError(
                f"{manifest.title} has the counter {manifest.counter}; the next of this release is {least}",
                remedy="Add the release again.",
            )
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
        if path == INDEX or path.startswith("releases/"):
            raise InputError("is made by staging releases and policies", path=path, remedy="Use 'pcm-p2p release add'.")
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
        if path == INDEX:
            raise InputError("is made by staging releases and policies", path=path)
        if path not in self._working_targets().targets:
            raise InputError("is not staged or published", path=path)
        self._stage({path: None})

    def renew_targets(self) -> None:
        """Propose what is published (or proposed) with a new lifetime, to be signed anew before it expires."""
        self._stage({}, renew=True)

    def propose_root(self, edit: Callable[[Root], None]) -> None:
        """Propose a root one version up, made by ``edit`` from the present one, with a new lifetime. Drops signatures.

        Where it takes targets keys away that the published targets need, these are proposed to be signed anew.
        """
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
            published = self.targets()
            if published is not None and not signatures_of(proposed, "targets", published).complete:
                self._stage_locked({}, renew=True)

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

    def signatures_missing(self) -> tuple[Signatures, ...]:
        """The thresholds that the proposals do not meet yet."""
        return tuple(one for proposal in self.proposals() for one in proposal.signatures if not one.complete)

    # Inside

    def _working_targets(self) -> Targets:
        """A copy of what is proposed, else of what is published, else empty."""
        base = self.proposed_targets() or self.targets()
        if base is not None:
            return Targets.from_dict(base.signed.to_dict())
        return Targets(version=1, expires=whole_seconds(self.wall_clock()))

    def _stage(
        self,
        files: dict[str, bytes | None],
        custom: dict[str, dict[str, Any]] | None = None,
        *,
        renew: bool = False,
    ) -> None:
        with self.locked():
            self._stage_locked(files, custom, renew=renew)

    def _stage_locked(
        self,
        files: dict[str, bytes | None],
        custom: dict[str, dict[str, Any]] | None = None,
        *,
        renew: bool = False,
    ) -> None:
        working, proposed, published = self._working_targets(), self.proposed_targets(), self.targets()
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
        gone = counters_gone(published.signed if published is not None else None, working)
        working.targets[INDEX] = self._store_target(INDEX, index.encoded(), {COUNTERS: gone} if gone else None)
        if proposed is not None and working.targets == proposed.signed.targets and not renew:
            return  # nothing new: the signatures on it stay
        working.version = 1 + (published.signed.version if published is not None else 0)
        working.expires = whole_seconds(self.wall_clock() + TARGETS_LIFETIME)
        complaints = lint_targets(working)
        if complaints:
            raise InputError(complaints[0])
        if published is not None and working.targets == published.signed.targets and not renew:
            self.remove_proposal("targets")
            return
        write_atomic(self.path / "proposal" / "targets.json", Metadata(working).to_bytes())

    def _read_target(self, path: str, info: TargetFile) -> bytes:
        file = self.path / "repository" / target_file(path, info.hashes["sha256"])
        try:
            return file.read_bytes()
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", path=file) from None

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


def _refuse(complaints: tuple[str, ...]) -> None:
    if complaints:
        raise TrustError(f"refused to go on: {'; '.join(complaints)}")
