"""One trial: stage a copy of what is trusted, let python-tuf verify what a source has, fetch what is new, check what TUF does
not. Blocking, for one worker thread; nothing outside the staging folder changes except the chain of roots, which only grows.

Steps, in this order::

    stage    metadata of the current generation and the newest known roots are copied into ``staging/cache``
    refresh  ``tuf.ngclient.Updater`` walks root → timestamp → snapshot → targets with files from the source
    lint     fleet id, keys, hashes, names: what a correct signature does not prove (``lint``)
    floor    no version below what was accepted before, whatever the cache said
    targets  index, standing documents, policies, wanted manifests: taken over from the current generation where equal,
             else fetched; each is verified by length and SHA-256 by python-tuf
    state    ``state.json`` of the new generation

``_trusted_set.reference_time`` is the one private touch of the library: it has no clock argument (research/trust.md 1.4).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp  # type: ignore[attr-defined]
from tuf.ngclient import Updater, UpdaterConfig  # type: ignore[attr-defined]
from tuf.ngclient.fetcher import FetcherInterface

from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import PcmError, TransferError, UntrustedBytes
from pcm_p2p.trust.floor import Floor, Versions
from pcm_p2p.trust.index import (
    INDEX,
    METADATA_SIZE_BYTES_MAX,
    STANDING,
    Index,
    check_target_path,
    decode_index_untrusted,
    size_bytes_max_of,
    target_file,
    target_size_bytes_max,
)
from pcm_p2p.trust.lint import lint_root, lint_targets
from pcm_p2p.trust.view import Kept, State, TrustedView

Kind = Literal["good", "unchanged", "expired", "bad", "incomplete", "older"]

Wanted = Callable[[Index, Mapping[str, bytes]], Collection[str]]
"""Which releases of the index to fetch, given the index and the bytes of all policies and standing documents by path."""

_BASE = "pcm:///"
_ROOTS_MAX = 256
_EVIDENCE_FILES_MAX = 32


class SourceMissing(TransferError):
    """The source does not have the file (HTTP 404, or a peer's "missing")."""


class SourceFailed(TransferError):
    """The source did not deliver: absent, slow, broken, refusing."""


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
    _offered: dict[str, bytes] = field(default_factory=dict)

    def run(self) -> Accepted:
        """Verify what the source has. Raises ``Refusal``, or ``OSError`` when this device's own disk fails."""
        self._prepare()
        try:
            return self._run()
        except ExpiredMetadataError as error:
            raise Refusal("expired", str(error)) from None
        except BadVersionNumberError as error:
            offered = self._offered_timestamp()
            older = self.current is not None and offered is not None and offered < self.current.versions.timestamp
            raise Refusal("older" if older else "bad", str(error)) from None
        except DownloadError as error:
            raise Refusal("incomplete", str(error)) from None
        except (RepositoryError, UntrustedBytes, TypeError, ValueError) as error:
            raise Refusal("bad", str(error) or type(error).__name__) from None
        finally:
            self._keep_roots()

    # Steps

    def _prepare(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)
        cache = self.staging / "cache"
        cache.mkdir(mode=0o700, parents=True)
        (self.staging / "metadata").mkdir()
        (self.staging / "targets").mkdir()
        if self.current is not None:
            for role in ("timestamp", "snapshot", "targets"):
                shutil.copyfile(self.current.folder / "metadata" / f"{role}.json", cache / f"{role}.json")

    def _run(self) -> Accepted:
        cache = self.staging / "cache"
        updater = Updater(
            str(cache),
            _BASE + "metadata/",
            str(self.staging / "downloads"),
            _BASE + "targets/",
            fetcher=_Fetcher(self._fetch),
            config=UpdaterConfig(
                max_root_rotations=_ROOTS_MAX,
                root_max_length=METADATA_SIZE_BYTES_MAX["root"],
                timestamp_max_length=METADATA_SIZE_BYTES_MAX["timestamp"],
                snapshot_max_length=METADATA_SIZE_BYTES_MAX["snapshot"],
                targets_max_length=METADATA_SIZE_BYTES_MAX["targets"],
                prefix_targets_with_hash=True,
            ),
            bootstrap=self._newest_root(),
        )
        updater._trusted_set.reference_time = self.reference_time
        updater.refresh()
        root = Metadata[Root].from_file(str(cache / "root.json")).signed
        timestamp = Metadata[Timestamp].from_file(str(cache / "timestamp.json"))
        snapshot = Metadata[Snapshot].from_file(str(cache / "snapshot.json"))
        targets = Metadata[Targets].from_file(str(cache / "targets.json"))
        self._lint(root, targets.signed)
        versions = Versions(root.version, timestamp.signed.version, snapshot.signed.version, targets.signed.version)
        digest = hashlib.sha256(timestamp.signed_bytes).hexdigest()
        floor = self._check_floor(root, versions, digest, timestamp)
        if self._is_current(versions, digest):
            assert self.current is not None
            return Accepted(self.current.state, floor, unchanged=True)
        kept = self._bring_targets(updater)
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
            metadata=self._take_metadata(cache),
            kept=kept,
        )
        raised = floor.raised(
            versions,
            timestamp_signers=state.timestamp_signers,
            snapshot_signers=state.snapshot_signers,
            now_ms=_ms(self.now),
            issued_ms=_issued_ms(timestamp.signed),
            expires_ms=_ms(timestamp.signed.expires),
        )
        for leftover in ("cache", "downloads"):
            shutil.rmtree(self.staging / leftover, ignore_errors=True)
        return Accepted(state, raised)

    def _lint(self, root: Root, targets: Targets) -> None:
        complaints = (*lint_root(root, self.fleet), *lint_targets(targets))
        if complaints:
            raise Refusal("bad", "; ".join(complaints))

    def _check_floor(self, root: Root, versions: Versions, digest: str, timestamp: Metadata[Timestamp]) -> Floor:
        """The floor that this root still believes; raises if something is below it, or beside what is trusted."""
        floor = self.floor.under(frozenset(root.roles["timestamp"].keyids), frozenset(root.roles["snapshot"].keyids))
        if below := floor.below(versions):
            raise Refusal("older" if versions.timestamp < floor.timestamp else "bad", below)
        current = self.current
        if (
            current is not None
            and versions.timestamp == current.versions.timestamp
            and digest != current.state.timestamp_sha256
        ):
            self._keep_evidence(f"timestamp-{versions.timestamp}-{digest[:16]}.json", timestamp.to_bytes())
            raise Refusal(
                "bad", f"another timestamp with version {versions.timestamp} than the trusted one (kept as evidence)"
            )
        return floor

    def _is_current(self, versions: Versions, digest: str) -> bool:
        current = self.current
        return (
            current is not None
            and current.versions == versions
            and current.state.timestamp_sha256 == digest
            and current.whole()
        )

    def _bring_targets(self, updater: Updater) -> dict[str, Kept]:
        kept: dict[str, Kept] = {}
        documents: dict[str, bytes] = {}
        index = decode_index_untrusted(self._bring(updater, INDEX, kept, required=True))
        if index.fleet != self.fleet:
            raise Refusal("bad", f"the index is of fleet {index.fleet[:8]}, not {self.fleet[:8]}")
        for path in (*STANDING, *index.policies):
            data = self._bring(updater, path, kept, required=path in index.policies)
            if path in kept:
                documents[path] = data
        listed = set(index.releases)
        for path in sorted(listed.intersection(self.wanted(index, documents))):
            self._bring(updater, path, kept, required=True)
        return kept

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

    def _take_metadata(self, cache: Path) -> dict[str, str]:
        """The verified documents into the generation; SHA-256 by name."""
        digests = {}
        for role in ("timestamp", "snapshot", "targets"):
            data = (cache / f"{role}.json").read_bytes()
            name = f"metadata/{role}.json"
            (self.staging / name).write_bytes(data)
            digests[name] = hashlib.sha256(data).hexdigest()
        return digests

    # Roots: an append-only chain, kept even when a trial fails, since each was signed by the one before

    def _newest_root(self) -> bytes:
        versions = sorted(_root_versions(self.roots))
        with contextlib.suppress(OSError, RepositoryError, IndexError, TypeError, ValueError):
            data = (self.roots / f"{versions[-1]}.root.json").read_bytes()
            Metadata[Root].from_bytes(data)
            return data
        return self.bootstrap

    def _keep_roots(self) -> None:
        known = _root_versions(self.roots)
        history = self.staging / "cache" / "root_history"
        for version in sorted(_root_versions(history) - known):
            write_atomic(self.roots / f"{version}.root.json", (history / f"{version}.root.json").read_bytes())

    # The source

    def _fetch(self, path: str) -> bytes:
        data = self.get(path, size_bytes_max_of(path))
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

    def _keep_evidence(self, name: str, theirs: bytes) -> None:
        """Both sides of a fork, for people; the folder is bounded."""
        with contextlib.suppress(OSError):
            self.evidence.mkdir(mode=0o700, exist_ok=True)
            if len(list(self.evidence.iterdir())) + 2 > _EVIDENCE_FILES_MAX:
                return
            write_atomic(self.evidence / name, theirs)
            if self.current is not None:
                ours = self.current.folder / "metadata" / "timestamp.json"
                trusted = f"timestamp-{self.current.versions.timestamp}-{self.current.state.timestamp_sha256[:16]}.json"
                write_atomic(self.evidence / trusted, ours.read_bytes())


class _Fetcher(FetcherInterface):
    """The network of python-tuf. Returns whole files, so nothing can fail inside the iterator that it reads."""

    def __init__(self, get: Callable[[str], bytes]) -> None:
        self._get = get

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = url.removeprefix(_BASE)
        try:
            return iter((self._get(path),))
        except SourceMissing as error:
            raise DownloadHTTPError(str(error), 404) from None
        except PcmError as error:
            raise DownloadError(f"{path}: {error.message}") from None


def _root_versions(folder: Path) -> set[int]:
    with contextlib.suppress(OSError):
        return {
            int(name.removesuffix(".root.json"))
            for name in os.listdir(folder)  # noqa: PTH208 - names only
            if name.endswith(".root.json") and name.removesuffix(".root.json").isdigit()
        }
    return set()


def _signers(root: Root, role: str, document: Metadata[Any]) -> tuple[str, ...]:
    """Ids of the role's keys whose signatures are on the document, sorted."""
    result = root.get_verification_result(role, document.signed_bytes, document.signatures)
    return tuple(sorted(result.signed))


def _issued_ms(timestamp: Timestamp) -> int:
    """The signed moment of issue, if the publisher gave one that reads; 0 otherwise."""
    text = timestamp.unrecognized_fields.get("x-pcm-issued")
    with contextlib.suppress(TypeError, ValueError):
        moment = datetime.fromisoformat(text)  # type: ignore[arg-type]
        return _ms(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))
    return 0


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000)
