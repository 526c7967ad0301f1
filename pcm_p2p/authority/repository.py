"""An authority's fleet folder: staging changes into a proposal, collecting signatures on it, and the key files of the roles.

::

    fleet.json                     what this folder is: fleet id and name
    fleet.toml                     the fleet document, edited by people
    keys/{root,targets}-<owner>.key, snapshot.key, timestamp.key
    ca/                            the fleet's certificate authority
    repository/metadata, /targets  what was published, and staged targets (named by hash, so staging changes nothing)
    segments/ab/<hex>              blobs of releases
    proposal/<role>.json           what would be published next, with the signatures so far; roles as in ``fleet_documents``
    audit/                         every signing act, see ``audit_journal``
    enrolment/                     tokens and the desk

Staging makes or extends the proposed document of one role, one version above the published one, with a new index, and drops
signatures: people sign what they saw. Nothing becomes visible to devices before ``publish``. What a site or team stages is its
own document, which its own keys sign; to delegate to it is a change of ``targets``.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
from tuf.api.metadata import Key, Metadata, Root, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority import ca_folder, delegating
from pcm_p2p.authority.audit import record as audit_record
from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.halt_difference import NO_HALTS
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.keys.public_key import PublicKey
from pcm_p2p.authority.keys.signing_key import open_signing_key
from pcm_p2p.authority.people.founders import Founders
from pcm_p2p.authority.people.founding import (
    ROOT_LIFETIME,
    Passphrase,
    ask,
    first_root,
    is_signed,
    online_preset,
    whole_seconds,
)
from pcm_p2p.authority.proposal import Proposal, Signatures, propose_root, propose_targets, sha256_of, signatures_of
from pcm_p2p.authority.release_list import (
    Release,
    highest_counters,
    releases_of,
    same_but_for_counter,
)
from pcm_p2p.authority.site_folder import counters_above
from pcm_p2p.authority.site_policy import policy_complaints
from pcm_p2p.authority.staging import StagingArea, complaints_about, halts_behind, keyids_of, system_clock
from pcm_p2p.content.manifest import Manifest, decode_untrusted
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, TrustError, UntrustedBytes
from pcm_p2p.shown_text import shown as as_text
from pcm_p2p.trust.delegation import HALT, TARGETS, index_of, kind_of, role_of_path, title_of
from pcm_p2p.trust.fleet_document import decode_fleet_document, starting_document
from pcm_p2p.trust.index import (
    AUTHORITIES,
    FLEET_DOCUMENT,
    check_target_path,
    policy_path,
    release_path,
    target_size_bytes_max,
)
from pcm_p2p.trust.lint import lint_root, owner_of


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


class FleetFolder(StagingArea):
    """See the module. ``wall_clock`` decides the expiry of what is staged."""

    def __init__(self, path: Path, facts: _Facts, wall_clock: Callable[[], datetime]) -> None:
        super().__init__(path, facts.fleet, wall_clock)
        self.name = facts.name

    @classmethod
    def init(
        cls,
        path: Path,
        *,
        name: str,
        passphrase: Passphrase,
        owners: tuple[str, ...] = ("admin",),
        root_keys: tuple[PublicKey, ...] = (),
        targets_keys: tuple[PublicKey, ...] = (),
        root_threshold: int = 1,
        targets_threshold: int = 1,
        preset: keyfile.Preset = "moderate",
        wall_clock: Callable[[], datetime] = system_clock,
    ) -> FleetFolder:
        """Make a fleet: each owner gets a root and a targets key, root version 1 is signed by all of them.

        ``root_keys`` and ``targets_keys`` were made elsewhere. Where their signatures are needed to meet the threshold, the first
        root is proposed, and nothing can be published before they are there.

        Raises ``InputError`` if the folder holds a fleet already or the thresholds cannot be met. An interrupted ``init``
        left no ``fleet.json``, and is begun again after its folder was removed.
        """
        cls.refuse_existing(path)
        founders = Founders(owners, root_keys, targets_keys, root_threshold, targets_threshold)
        founders.check()
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
            founders,
            passphrase,
            preset=preset,
            now=wall_clock(),
        )
        audit_record.record(folder, "sign", "root", root, root.signatures, (root.signed,))
        first = folder.metadata / "1.root.json" if is_signed(root) else path / "proposal" / "root.json"
        write_atomic(first, root.to_bytes())
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
    def adopt(
        cls, path: Path, fleet_id: str, name: str, *, wall_clock: Callable[[], datetime] = system_clock
    ) -> FleetFolder:
        """The folder at ``path`` for a fleet that was founded elsewhere, with no key in it; what is there already stays.

        The caller puts in what is published. Raises ``InputError`` if the folder is another fleet's.
        """
        for part in ("keys", "ca", "enrolment"):
            (path / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in ("repository/metadata", "repository/targets", "segments", "proposal"):
            (path / part).mkdir(parents=True, exist_ok=True)
        if not (path / "fleet.json").exists():
            write_atomic(path / "fleet.json", msgspec.json.encode(_Facts("pcm.fleet-folder/1", fleet_id, name)))
        folder = cls.open(path, wall_clock=wall_clock)
        if folder.fleet_id != fleet_id:
            raise InputError(f"is of fleet {folder.fleet_id[:8]}, not {fleet_id[:8]}", path=path)
        return folder

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Raises ``InputError`` if a fleet cannot be made at ``path``, before anybody was asked for anything."""
        if (path / "fleet.json").exists() or (path / "keys").exists():
            raise InputError("holds a fleet already", path=path, remedy="Choose another folder.")

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
        """Where staged blobs lie; ``content.publishing.ingest`` may write here directly."""
        return self.path / "segments"

    def read_target(self, path: str) -> bytes:
        """A staged or published target. Raises ``InputError`` if there is none at ``path``."""
        info = self.working(role_of_path(path)).targets.get(path)
        if info is None:
            raise InputError("is not staged or published", path=path)
        return self.files.read(path, info)

    def policies(self) -> dict[str, tuple[bytes, ...]]:
        """Documents of all policies by target path: what is staged and, where it is another one, what is published."""
        found: dict[str, tuple[bytes, ...]] = {}
        for targets in self._all_targets(self.roles()[1:]):
            for path, info in sorted(targets.targets.items()):
                if path.startswith("policies/") and path.endswith(".toml"):
                    document = self.files.read(path, info)
                    found[path] = tuple(dict.fromkeys((*found.get(path, ()), document)))
        return found

    def manifest(self, release: Release) -> Manifest:
        """The manifest of a staged or published release. Raises ``InputError`` if there is no such release."""
        return decode_untrusted(self.read_target(release.path))

    def releases(self) -> tuple[Release, ...]:
        """Staged and published releases of the fleet and of its teams, by name and counter."""
        found: list[Release] = []
        for role in self._releasing():
            published = self.document(role)
            found += releases_of(self.working(role), published.signed if published is not None else None)
        return tuple(sorted(found, key=lambda release: (release.name, release.counter)))

    def next_counter(self, release: str) -> int:
        """One above the highest counter that release ever had: devices never go to a lower one."""
        known = (highest_counters(one).get(release, 0) for one in self._all_targets(self._releasing()))
        return 1 + max((counters_above(self.path), *known))

    def _releasing(self) -> tuple[str, ...]:
        """The roles that may release: the fleet's own and the teams."""
        return tuple(role for role in self.roles()[1:] if role == TARGETS or role.startswith("team-"))

    def _all_targets(self, roles: Iterable[str]) -> Iterator[Targets]:
        """Of these roles, which list targets: what is proposed, and what is published."""
        for role in roles:
            yield self.working(role)
            if (published := self.document(role)) is not None:
                yield published.signed

    # Staging

    def stage_release(self, manifest: Manifest, segments: Path, role: str = TARGETS) -> str:
        """Stage a release; ``segments`` is the folder with ``ab/<hex>`` blobs, each checked. Returns its target path.

        ``role`` is ``targets`` for the fleet's own releases, or a team's. Raises ``InputError`` if a blob is absent or wrong,
        the version exists with other content, the counter is not above those before, or the name belongs to another role.
        """
        decode_untrusted(manifest.encoded)
        try:
            kind = kind_of(role)
            path = release_path(manifest.release, manifest.version, kind[1] if kind is not None else None)
        except UntrustedBytes as error:
            raise InputError(error.message) from None
        known = self.releases()
        if any(one.path == path for one in known):
            if same_but_for_counter(decode_untrusted(self.read_target(path)), manifest):
                return path
            raise InputError(f"{manifest.title} exists with other content", remedy="Give it a new version number.")
        for one in known:
            if one.name == manifest.release and role_of_path(one.path) != role:
                raise InputError(
                    f"{manifest.release} is released by {title_of(role_of_path(one.path))}",
                    remedy="Give the release another name: devices tell releases apart by name and version.",
                )
        if manifest.counter < (least := self.next_counter(manifest.release)):
            raise InputError(
                f"{manifest.title} has the counter {manifest.counter}; the next of this release is {least}",
                remedy="Add the release again.",
            )
        for segment in manifest.segments:
            self.files.bring_segment(segment, segments)
        facts = {"release": manifest.release, "version": manifest.version, "counter": manifest.counter}
        self.stage(role, {path: manifest.encoded}, custom={path: facts})
        return path

    def stage_policy(self, policy: str, document: bytes, role: str = TARGETS) -> str:
        """Stage a policy that the caller has checked, the fleet's or a site's; returns its target path. Raises ``InputError``."""
        try:
            kind = kind_of(role)
            path = policy_path(policy, kind[1] if kind is not None else None)
        except UntrustedBytes as error:
            raise InputError(error.message) from None
        return self.stage_file(path, document, role)

    def stage_file(self, path: str, data: bytes, role: str = TARGETS) -> str:
        """Stage any other target, such as ``fleet/activation.toml``. Raises ``InputError`` for a bad path or size."""
        try:
            check_target_path(path)
        except UntrustedBytes as error:
            raise InputError(error.message) from None
        if path == index_of(role_of_path(path)) or path.startswith("releases/"):
            raise InputError("is made by staging releases and policies", path=path, remedy="Use 'pcm-p2p release add'.")
        if role_of_path(path) != role:
            raise InputError(f"is not for {title_of(role)} to sign", path=path)
        if len(data) > target_size_bytes_max(path):
            raise InputError(f"has {len(data)} bytes; at most {target_size_bytes_max(path)} are published", path=path)
        self.stage(role, {path: data})
        return path

    def stage_fleet_document(self) -> str:
        """Stage ``fleet.toml`` and the authority's certificate as they are in this folder. Raises ``InputError``."""
        file = self.path / "fleet.toml"
        try:
            data = file.read_bytes()
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}", path=file, remedy="Check the path, and who may read it."
            ) from None
        document = decode_fleet_document(data, file)
        if document.fleet.id != self.fleet_id:
            raise InputError(
                f"is not this fleet, which is {self.fleet_id}", path=file, key="fleet.id", remedy="Correct the id."
            )
        self.stage(TARGETS, {FLEET_DOCUMENT: data, AUTHORITIES: ca_folder.believed_pem(self.path / "ca")})
        return FLEET_DOCUMENT

    def unstage(self, path: str) -> None:
        """Propose that ``path`` is no longer published. Raises ``InputError`` if it is not there."""
        role = role_of_path(path)
        if path == index_of(role):
            raise InputError("is made by staging releases and policies", path=path)
        if path not in self.working(role).targets:
            raise InputError("is not staged or published", path=path)
        self.stage(role, {path: None})

    def renew(self, role: str = TARGETS) -> None:
        """Propose what is published (or proposed) with a new lifetime, to be signed anew before it expires."""
        self.stage(role, {}, renew=True)

    def renew_targets(self) -> None:
        """``renew`` of the top-level targets."""
        self.renew(TARGETS)

    def delegate(self, role: str, keys: Iterable[Key], threshold: int) -> None:
        """Propose that these keys sign for ``role``, in place of those that did. Raises ``InputError``.

        Where the published document of the role lacks signatures of the new keys, it is proposed to be signed anew.
        """
        keys = tuple(keys)
        names = [owner_of(key).casefold() for key in {key.keyid: key for key in keys}.values()]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise InputError(
                f"{as_text(twice)} would hold two keys of {title_of(role)}",
                remedy="Give each person once; two keys of one person would count as two people.",
            )
        with self.locked():
            self.stage_locked(TARGETS, {}, edit=lambda targets: delegating.delegate(targets, role, keys, threshold))
            self.renew_unsigned()

    def revoke(self, role: str) -> None:
        """Propose that nobody signs for ``role`` any more. Raises ``InputError`` if nobody does."""
        with self.locked():
            self.stage_locked(TARGETS, {}, edit=lambda targets: delegating.revoke(targets, role))
            self.remove_proposal(role)

    def halt_keys(self) -> tuple[Key, ...]:
        """Who may halt, as things are proposed: all who sign for people (``delegating``). In step with every staged change."""
        root, targets = self.delegator("root"), self.delegator(HALT)
        assert isinstance(root, Root)
        return delegating.halt_keys(root, targets) if isinstance(targets, Targets) else ()

    def propose_root(self, edit: Callable[[Root], None]) -> None:
        """Propose a root one version up, made by ``edit`` from the present one, with a new lifetime. Drops signatures.

        Where it takes targets keys away that the published targets need, these are proposed to be signed anew.
        """
        with self.locked():
            if self.first_root_waits():
                raise InputError(
                    "the first root is not signed and published yet, and cannot be replaced",
                    path=self.path,
                    remedy="Let its holders sign it, or begin anew in another folder.",
                )
            root = self.root().signed
            # On top of what is proposed already: two changes before a publication are one new root.
            proposed = Root.from_dict((self.proposed_root() or self.root()).signed.to_dict())
            edit(proposed)
            proposed.version = root.version + 1
            proposed.expires = whole_seconds(self.wall_clock() + ROOT_LIFETIME)
            complaints = lint_root(proposed, self.fleet_id)
            if complaints:
                raise InputError(complaints[0], remedy="Correct the change of root.")
            write_atomic(self.path / "proposal" / "root.json", Metadata(proposed).to_bytes())
            published = self.targets()
            if published is not None or self.proposed_targets() is not None:
                # Also where the same people may sign still: who may halt follows from root.
                incomplete = published is not None and not signatures_of(proposed, TARGETS, published).complete
                self.stage_locked(TARGETS, {}, renew=incomplete)
                self.renew_unsigned()

    def discard(self, *roles: str) -> None:
        """Drop the proposals of ``roles`` with their signatures; without any, all of them.

        A first root that waits for signatures stays: the folder is nothing without it.
        """
        with self.locked():
            for role in roles or reversed(self.roles()):
                if role != "root" or not self.first_root_waits():
                    self.remove_proposal(role)

    # Signing

    def proposals(self) -> tuple[Proposal, ...]:
        """What would change, in the order of ``roles``; empty when there is nothing to sign."""
        found: list[Proposal] = []
        for role in self.roles():
            proposed, published = self.proposed(role), self.document(role)
            if proposed is None:
                continue
            if role == "root":
                found.append(propose_root(published.signed if published is not None else None, proposed))
            elif (delegator := self._names(role)) is not None:
                halts = halts_behind(self, published, proposed) if role == TARGETS else NO_HALTS
                found.append(propose_targets(delegator, published, proposed, role, halts))
        return tuple(found)

    def sign(self, key: Path | str, passphrase: str, *, shown: Collection[str] | None = None) -> tuple[SignResult, ...]:
        """Add the signature of one key (file or token) to every proposal that this key may sign.

        ``shown``: SHA-256 of the signed bytes that the person has read; nothing else is signed, whoever changes the folder
        meanwhile. Raises ``InputError`` when nothing is proposed or the key holds no role in it, ``TrustError`` as
        ``open_signing_key``, when what is proposed breaks a rule, or is not what was shown.
        """
        opened = open_signing_key(key, passphrase)
        with self.locked():
            proposed = {role: found for role in self.roles() if (found := self.proposed(role)) is not None}
            if not proposed:
                raise InputError("nothing is proposed", path=self.path, remedy="Stage a change first.")
            signed: list[SignResult] = []
            mine = {
                role: document
                for role, document in proposed.items()
                if any(opened.keyid in keyids_of(one, role) for one in self.all_namers(role))
            }
            if shown is not None and not {sha256_of(document) for document in mine.values()} <= set(shown):
                raise TrustError(
                    f"{self.path}: what is proposed was changed while you read it",
                    remedy="Run it again, and read what is proposed now.",
                )
            for role, document in mine.items():
                refuse(complaints_about(role, document.signed, self.fleet_id))
                refuse(
                    policy_complaints(self, role, document.signed),
                    remedy="Put a policy in its place that keeps to it ('pcm-p2p policy put'), or let the fleet allow it.",
                )
                document.sign(opened.signer, append=True)
                audit_record.record(self, "sign", role, document, [opened.keyid], self.all_namers(role))
                write_atomic(self.path / "proposal" / f"{role}.json", document.to_bytes())
                standing = tuple(signatures_of(one, role, document) for one in self.namers(role))
                signed.append(SignResult(role, int(document.signed.version), opened.owner, standing))
            if not signed:
                raise InputError(
                    f"the {opened.role} key of {opened.owner} has no part in what is proposed",
                    path=key,
                    remedy="Sign with a key that 'pcm-p2p sign' names.",
                )
            return tuple(signed)

    def ready_alone(self) -> tuple[str, ...]:
        """Roles whose proposal has its signatures and rests on nothing else that is proposed: they can go before others."""
        if self.targets() is None:
            return ()
        return tuple(
            role
            for role in self.roles()
            if self.proposed(role) is not None and self.namers(role, (role,)) and not self.signatures_missing((role,))
        )

    def signatures_missing(self, only: Collection[str] | None = None) -> tuple[Signatures, ...]:
        """The thresholds that the proposals do not meet yet, as if those of ``only`` were published and no others."""
        return tuple(
            standing
            for role in self.roles()
            if (only is None or role in only) and (document := self.proposed(role)) is not None
            for one in self.namers(role, only)
            if not (standing := signatures_of(one, role, document)).complete
        )


def refuse(complaints: tuple[str, ...], *, remedy: str | None = None) -> None:
    if complaints:
        raise TrustError(f"refused to go on: {'; '.join(complaints)}", remedy=remedy)
