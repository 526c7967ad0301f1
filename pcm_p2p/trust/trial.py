"""One trial: stage a copy of what is trusted, let python-tuf verify what a source has, fetch what is new, check what TUF does
not. Blocking, for one worker thread; nothing outside the staging folder changes except the chain of roots, which only grows.

Steps, in this order::

    stage    metadata of the current generation and the newest known roots are copied into ``staging/cache``
    refresh  ``tuf.ngclient.Updater`` walks root → timestamp → snapshot → targets with files from the source
    lint     fleet id, keys, hashes, names: what a correct signature does not prove (``lint``)
    floor    no version below what was accepted before, whatever the cache said
    forks    no other document with a version that is trusted already
    targets  index, standing documents, policies, wanted manifests: taken over from the current generation where equal,
             else fetched; each is verified by length and SHA-256 by python-tuf
    roles    the delegated ones that concern this device, each by itself (``delegates``)
    state    ``state.json`` of the new generation
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.api.exceptions import (
    BadVersionNumberError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp  # type: ignore[attr-defined]
from tuf.ngclient import Updater  # type: ignore[attr-defined]

from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import PcmError, UntrustedBytes
from pcm_p2p.trust.delegates import Delegates, Unusable
from pcm_p2p.trust.delegation import TARGETS, every_role, role_of_path
from pcm_p2p.trust.evidence import Place, keep_fork
from pcm_p2p.trust.floor import Floor, Versions
from pcm_p2p.trust.halt import NOTHING_LIFTED, Lifted, decode_lifted_untrusted
from pcm_p2p.trust.index import (
    INDEX,
    LIFTED,
    STANDING,
    Index,
    check_target_path,
    decode_index_untrusted,
    size_bytes_max_of,
    target_file,
    target_size_bytes_max,
)
from pcm_p2p.trust.lint import lint_root, lint_snapshot, lint_targets, lint_timestamp, lint_version
from pcm_p2p.trust.root_chain import bare, newest_root, root_versions
from pcm_p2p.trust.updater import ANSWERED, Kind, new_updater, verdict
from pcm_p2p.trust.view import Kept, State, TrustedView

Wanted = Callable[[Index, Mapping[str, bytes]], Collection[str]]
"""Which releases of the index to fetch, given what all roles list as one index, and the bytes of all policies, halts and standing
documents by path."""


class Refusal(Exception):
    """The trial ended without anything to take over. ``kind`` says who is to blame, ``reason`` is for people."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind: Kind = kind
        self.reason = reason


@dataclass(frozen=True)
class Accepted:
    """What the staged generation is. ``unchanged``: the source has what is trusted already."""

    state: State
    floor: Floor
    unchanged: bool = False
    remark: str = ""


def all_releases(index: Index, documents: Mapping[str, bytes]) -> Collection[str]:  # noqa: ARG001 - the shape of Wanted
    """Fetch every manifest: collectors and relays."""
    return index.releases


@dataclass
class Trial:
    """``get(path, size_bytes_max)`` brings one file of the tree; ``reference_time`` is what expiry is compared with."""

    staging: Path
    roots: Path
    evidence: Path
    bootstrap: bytes
    fleet: str
    now: datetime
    reference_time: datetime
    current: TrustedView | None
    floor: Floor
    get: Callable[[str, int], bytes]
    wanted: Wanted = all_releases
    standing: tuple[str, ...] = STANDING
    roles: Callable[[str], bool] = every_role
    _offered: dict[str, bytes] = field(default_factory=dict)

    def run(self) -> Accepted:
        """Verify what the source has. Raises ``Refusal``, or ``OSError`` when this device's own disk fails."""
        self._prepare()
        try:
            return self._run()
        except BadVersionNumberError as error:
            offered = self._offered_timestamp()
            older = self.current is not None and offered is not None and offered < self.current.versions.timestamp
            raise Refusal("older" if older else "bad", str(error)) from None
        except UnsignedMetadataError as error:
            raise Refusal("older" if self._was_signed_before() else "bad", str(error)) from None
        except ANSWERED as error:
            raise Refusal(*verdict(error)) from None
        finally:
            self._keep_roots()

    # Steps

    def _prepare(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)
        cache = self.staging / "cache"
        cache.mkdir(mode=0o700, parents=True)
        (self.staging / "metadata").mkdir()
        (self.staging / "targets").mkdir()
        for role in (
            "timestamp",
            "snapshot",
            "targets",
            *(self.current.state.delegated if self.current is not None else ()),
        ):
            # A damaged file is as good as none: the floor stands without it.
            if self.current is not None and (data := self.current.metadata(f"metadata/{role}.json")) is not None:
                (cache / f"{role}.json").write_bytes(data)

    def _run(self) -> Accepted:
        cache = self.staging / "cache"
        updater = new_updater(
            cache,
            self.staging / "downloads",
            self._fetch,
            bootstrap=newest_root(self.roots, self.bootstrap),
            reference_time=self.reference_time,
        )
        updater.refresh()
        root = Metadata[Root].from_file(str(cache / "root.json")).signed
        timestamp = Metadata[Timestamp].from_file(str(cache / "timestamp.json"))
        snapshot = Metadata[Snapshot].from_file(str(cache / "snapshot.json"))
        targets = Metadata[Targets].from_file(str(cache / "targets.json"))
        self._lint(timestamp.signed, snapshot.signed, targets.signed)
        versions = Versions(root.version, timestamp.signed.version, snapshot.signed.version, targets.signed.version)
        digest = hashlib.sha256(timestamp.signed_bytes).hexdigest()
        floor = self._check_floor(root, versions)
        self._check_forks(floor, {"timestamp": timestamp, "snapshot": snapshot, "targets": targets})
        roles = self._roles_of(targets.signed, snapshot.signed)
        if self._is_current(versions, digest, roles):
            assert self.current is not None
            return Accepted(self.current.state, floor, unchanged=True)
        kept, delegates = self._bring_targets(updater, targets.signed, snapshot.signed, floor, roles)
        if self._is_same(versions, digest, kept, delegates):
            assert self.current is not None
            return Accepted(self.current.state, floor, unchanged=True)
        expires = min(document.expires for document in (root, timestamp.signed, snapshot.signed, targets.signed))
        state = State(
            schema="pcm.trusted/1",
            fleet=self.fleet,
            root=versions.root,
            timestamp=versions.timestamp,
            snapshot=versions.snapshot,
            targets=versions.targets,
            timestamp_sha256=digest,
            expires_ms=_ms(expires),
            accepted_ms=_ms(self.now),
            timestamp_signers=_signers(root, "timestamp", timestamp),
            snapshot_signers=_signers(root, "snapshot", snapshot),
            metadata=self._take_metadata(cache, root, delegates),
            kept=kept,
            delegated=delegates.delegates,
        )
        raised = floor.raised(
            versions,
            timestamp_signers=state.timestamp_signers,
            snapshot_signers=state.snapshot_signers,
            now_ms=_ms(self.now),
            issued_ms=_issued_ms(timestamp.signed),
            expires_ms=_ms(expires),
            delegated=delegates.floors,
        )
        self._keep_roots()
        for leftover in ("cache", "downloads"):
            shutil.rmtree(self.staging / leftover, ignore_errors=True)
        remark = "; ".join(f"{role}: {one.problem}" for role, one in sorted(state.delegated.items()) if one.problem)
        return Accepted(state, raised, remark=remark)

    def _lint(self, timestamp: Timestamp, snapshot: Snapshot, targets: Targets) -> None:
        """Every root on the way, too: what is accepted is kept and handed to others."""
        complaints = [complaint for _, root in self._new_roots() for complaint in lint_root(root, self.fleet)]
        for document in (timestamp, snapshot, targets):
            complaints += lint_version(document)
        complaints += (*lint_timestamp(timestamp), *lint_snapshot(snapshot), *lint_targets(targets))
        if complaints:
            raise Refusal("bad", "; ".join(complaints[:8]))

    def _check_floor(self, root: Root, versions: Versions) -> Floor:
        """The floor that this root still believes; raises if something is below it."""
        floor = self.floor.under(frozenset(root.roles["timestamp"].keyids), frozenset(root.roles["snapshot"].keyids))
        if below := floor.below(versions):
            raise Refusal("older" if versions.timestamp < floor.timestamp else "bad", below)
        return floor

    def _check_forks(self, floor: Floor, verified: Mapping[str, Metadata[Any]]) -> None:
        """Raises if the source has another document than the trusted one with the same version.

        python-tuf goes on with its own copy where versions are equal, so the timestamp is compared as it was offered
        (its signature was verified before the versions), and the snapshot with what the timestamp says of it.
        """
        offered = Metadata[Timestamp].from_bytes(self._offered["metadata/timestamp.json"])
        self._refuse_fork(floor, "timestamp", offered)
        for role in ("snapshot", "targets"):
            self._refuse_fork(floor, role, verified[role])
        timestamp, snapshot = verified["timestamp"], self.staging / "cache" / "snapshot.json"
        try:
            timestamp.signed.snapshot_meta.verify_length_and_hashes(snapshot.read_bytes())
        except LengthOrHashMismatchError:
            version = timestamp.signed.snapshot_meta.version
            self._keep_evidence("snapshot", offered, version)
            raise Refusal(
                "bad", f"names another snapshot with version {version} than the trusted one (kept as evidence)"
            ) from None

    def _refuse_fork(self, floor: Floor, role: str, theirs: Metadata[Any]) -> None:
        """Not where the floor of that role sank below the trusted version: its keys went, and it may be replaced."""
        current = self.current
        if current is None or theirs.signed.version != getattr(current.versions, role):
            return
        ours = current.metadata(f"metadata/{role}.json")
        if ours is None or getattr(floor, role) < theirs.signed.version:
            return
        if Metadata[Any].from_bytes(ours).signed_bytes != theirs.signed_bytes:
            self._keep_evidence(role, theirs)
            raise Refusal(
                "bad", f"another {role} with version {theirs.signed.version} than the trusted one (kept as evidence)"
            )

    def _roles_of(self, targets: Targets, snapshot: Snapshot) -> tuple[str, ...]:
        """The delegated roles that concern this device, sorted: those that published, and those that once did."""
        named = (targets.delegations.roles or {}) if targets.delegations is not None else {}
        return tuple(
            role
            for role in sorted(named)
            if self.roles(role) and (f"{role}.json" in snapshot.meta or role in self.floor.delegated)
        )

    def _is_same(self, versions: Versions, digest: str, kept: dict[str, Kept], delegates: Delegates) -> bool:
        """Whether asking again brought nothing that was not there."""
        current = self.current
        return (
            current is not None
            and current.versions == versions
            and current.state.timestamp_sha256 == digest
            and current.state.kept == kept
            and current.state.delegated == delegates.delegates
            and current.whole()
        )

    def _is_current(self, versions: Versions, digest: str, roles: tuple[str, ...]) -> bool:
        current = self.current
        return (
            current is not None
            and current.versions == versions
            and current.state.timestamp_sha256 == digest
            and set(current.state.delegated) == set(roles)
            and current.settled
            and current.whole()
            and self._has_wanted(current)
        )

    def _has_wanted(self, current: TrustedView) -> bool:
        """Whether what is wanted today is kept: a device that was given another label needs other manifests."""
        try:
            index = current.listing().index(self.fleet)
            documents = {path: current.read(path) for path in (*self.standing, *index.policies) if path in current.kept}
        except PcmError:
            return False
        return all(path in current.kept for path in self._choose(index, documents))

    def _choose(self, index: Index, documents: Mapping[str, bytes]) -> list[str]:
        try:
            return sorted(set(index.releases).intersection(self.wanted(index, documents)))
        except PcmError as error:
            raise Refusal("incomplete", f"this device cannot tell what it needs: {error.message}") from None

    def _bring_targets(
        self, updater: Updater, targets: Targets, snapshot: Snapshot, floor: Floor, roles: tuple[str, ...]
    ) -> tuple[dict[str, Kept], Delegates]:
        kept: dict[str, Kept] = {}
        documents: dict[str, bytes] = {}
        index = decode_index_untrusted(self._bring(updater, INDEX, kept, required=True))
        if index.fleet != self.fleet:
            raise Refusal("bad", f"the index is of fleet {index.fleet[:8]}, not {self.fleet[:8]}")
        for path in (*self.standing, *index.policies):
            data = self._bring(updater, path, kept, required=path in index.policies)
            if path in kept:
                documents[path] = data
        delegates = Delegates(
            self.staging,
            updater,
            targets,
            snapshot,
            current=self.current,
            floor=floor,
            fleet=self.fleet,
            reference_time=self.reference_time,
            lifted=_lifted(documents),
            bring=lambda path, into: self._bring_delegated(updater, path, into),
            keep_evidence=self._keep_evidence,
        )
        delegates.take(roles)
        policies, releases = list(index.policies), list(index.releases)
        for _, taken in sorted(delegates.taken.items()):
            kept |= taken.kept
            documents |= taken.documents
            policies += taken.index.policies
            releases += taken.index.releases
        everything = Index("pcm.index/1", self.fleet, tuple(policies), tuple(releases))
        for path in self._choose(everything, documents):
            if (role := role_of_path(path)) == TARGETS:
                self._bring(updater, path, kept, required=True)
                continue
            try:
                delegates.bring(path, kept)
            except (*ANSWERED, Unusable) as error:
                delegates.drop(role, f"{path} could not be had: {error}")
        return kept, delegates

    def _bring_delegated(self, updater: Updater, path: str, kept: dict[str, Kept]) -> bytes:
        try:
            return self._bring(updater, path, kept, required=True)
        except Refusal as refusal:
            raise Unusable(refusal.reason) from None

    def _bring(self, updater: Updater, path: str, kept: dict[str, Kept], *, required: bool) -> bytes:
        """One target into the staged generation; its bytes. Absent and not required: empty bytes, not kept."""
        check_target_path(path)
        info = updater.get_targetinfo(path)
        if info is None:
            if required:
                raise Refusal("bad", f"{path} is listed and not signed")
            return b""
        sha256 = info.hashes.get("sha256", "")
        if info.length > target_size_bytes_max(path):
            raise Refusal("bad", f"{path} has {info.length} bytes; at most {target_size_bytes_max(path)} are read")
        place = self.staging / target_file(path, sha256)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not self._take_over(path, sha256, info.length, place):
            updater.download_target(info, str(place))
        data = place.read_bytes()
        kept[path] = Kept(len(data), sha256)
        return data

    def _take_over(self, path: str, sha256: str, length: int, place: Path) -> bool:
        """Use the file of the current generation if it is the same and still whole."""
        if self.current is None or self.current.kept.get(path) != Kept(length, sha256):
            return False
        try:
            data = self.current.read(path)
        except PcmError:
            return False
        place.write_bytes(data)
        return True

    def _take_metadata(self, cache: Path, root: Root, delegates: Delegates) -> dict[str, str]:
        """The verified documents into the generation; SHA-256 by name."""
        digests = {}
        for role in delegates.taken:
            name = f"metadata/{role}.json"
            digests[name] = hashlib.sha256((self.staging / name).read_bytes()).hexdigest()
        for role in ("root", "timestamp", "snapshot", "targets"):
            data = (cache / f"{role}.json").read_bytes()
            if role == "timestamp":
                data = bare(Metadata[Timestamp].from_bytes(data), root.roles[role].keyids)
            name = f"metadata/{role}.json"
            (self.staging / name).write_bytes(data)
            digests[name] = hashlib.sha256(data).hexdigest()
        return digests

    # Roots: an append-only chain, kept even when a trial fails, since each was signed by the one before

    def _new_roots(self) -> Iterator[tuple[bytes, Root]]:
        """Roots that python-tuf verified and that are not kept yet, in order."""
        history = self.staging / "cache" / "root_history"
        for version in sorted(root_versions(history) - root_versions(self.roots)):
            data = (history / f"{version}.root.json").read_bytes()
            yield data, Metadata[Root].from_bytes(data).signed

    def _keep_roots(self) -> None:
        """Up to the first that breaks a rule: a root of another fleet that shares our keys would shut us out for ever."""
        for data, root in self._new_roots():
            if lint_root(root, self.fleet):
                return
            document = Metadata[Root].from_bytes(data)
            before = Metadata[Root].from_bytes(newest_root(self.roots, self.bootstrap)).signed
            keyids = (*before.roles["root"].keyids, *root.roles["root"].keyids)
            write_atomic(self.roots / f"{root.version}.root.json", bare(document, keyids))

    # The source

    def _fetch(self, path: str, size_bytes_max: int) -> bytes:
        data = self.get(path, max(1, min(size_bytes_max, size_bytes_max_of(path))))
        if path == "metadata/timestamp.json":
            self._offered[path] = data
        return data

    def _offered_timestamp(self) -> int | None:
        data = self._offered.get("metadata/timestamp.json")
        if data is None:
            return None
        try:
            return int(Metadata[Timestamp].from_bytes(data).signed.version)
        except (RepositoryError, TypeError, ValueError):
            return None

    def _was_signed_before(self) -> bool:
        """Whether the offered timestamp is by keys that a newer root took away.

        An honest peer can have the newer root and nothing yet that was signed under it.
        """
        if (data := self._offered.get("metadata/timestamp.json")) is None:
            return False
        roots: dict[int, Root] = {}
        for folder in (self.roots, self.staging / "cache" / "root_history"):
            for version in root_versions(folder):
                with contextlib.suppress(OSError, RepositoryError, TypeError, ValueError):
                    roots[version] = Metadata[Root].from_file(str(folder / f"{version}.root.json")).signed
        with contextlib.suppress(RepositoryError, TypeError, ValueError):
            offered = Metadata[Timestamp].from_bytes(data)
            believed = {
                version
                for version, root in roots.items()
                if root.get_verification_result("timestamp", offered.signed_bytes, offered.signatures).verified
            }
            return bool(believed) and max(roots) not in believed
        return False

    def _keep_evidence(self, role: str, theirs: Metadata[Any], version: int | None = None) -> None:
        """Both sides of a fork. Of the snapshot, the timestamps that name two with this ``version``."""
        name = "timestamp" if isinstance(theirs.signed, Timestamp) else role
        ours = self.current.metadata(f"metadata/{name}.json") if self.current is not None else None
        if ours is not None:
            place = Place(role, theirs.signed.version if version is None else version)
            keep_fork(self.evidence, place, (Metadata[Any].from_bytes(ours), theirs))


def _lifted(documents: Mapping[str, bytes]) -> Lifted:
    with contextlib.suppress(UntrustedBytes, KeyError):
        return decode_lifted_untrusted(documents[LIFTED])
    return NOTHING_LIFTED


def _signers(root: Root, role: str, document: Metadata[Any]) -> tuple[str, ...]:
    """Ids of the role's keys whose signatures are on the document, sorted."""
    result = root.get_verification_result(role, document.signed_bytes, document.signatures)
    return tuple(sorted(result.signed))


def _issued_ms(timestamp: Timestamp) -> int:
    """The signed moment of issue, if the publisher gave one that reads; 0 otherwise."""
    text = timestamp.unrecognized_fields.get("x-pcm-issued")
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        moment = datetime.fromisoformat(text)  # type: ignore[arg-type]
        return _ms(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))
    return 0


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000)
