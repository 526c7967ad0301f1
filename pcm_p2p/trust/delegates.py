"""The delegated roles in a trial. Each is brought by itself, so that what is wrong with one keeps a device from nothing else.

A role's document is taken if python-tuf verifies it against the trusted delegation and snapshot, lint has no complaint, its
version is not below its floor, it is no fork of the one that is trusted, it drops no halt, and its index and policies are all
there. If not, the document that was trusted before stays in force with everything it named, as long as the present delegation
still believes its signatures; the reason is kept beside it. An expired document is the same case: nothing new is learnt from that
role, and what was known goes on.

Entries outside a role's folder are never looked at: what is read is named by the role's own index and looked up by python-tuf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets  # type: ignore[attr-defined]
from tuf.ngclient import Updater  # type: ignore[attr-defined]

from pcm_p2p.errors import PcmError, UntrustedBytes
from pcm_p2p.trust.delegation import HALT, index_of, role_of_path
from pcm_p2p.trust.floor import Floor, RoleFloor
from pcm_p2p.trust.halt import Lifted, dropped
from pcm_p2p.trust.index import Index, decode_index_untrusted, target_file
from pcm_p2p.trust.lint import lint_delegated, lint_version
from pcm_p2p.trust.updater import ANSWERED
from pcm_p2p.trust.view import Delegate, Kept, TrustedView


class Bring(Protocol):
    """One target into the staged generation; its bytes. Raises ``ANSWERED`` or ``Unusable``."""

    def __call__(self, path: str, kept: dict[str, Kept]) -> bytes: ...


class Unusable(Exception):
    """A document of a role cannot be taken. The text is for people."""


@dataclass
class Taken:
    """A role of the new generation. ``fresh``: as the snapshot lists it; else the one that was trusted before."""

    document: Metadata[Targets]
    index: Index
    fresh: bool
    kept: dict[str, Kept] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)


class Delegates:
    """See the module. One object a trial; ``take`` for each role, then ``taken`` and ``delegates`` say what came of it."""

    def __init__(
        self,
        staging: Path,
        updater: Updater,
        targets: Targets,
        snapshot: Snapshot,
        *,
        current: TrustedView | None,
        floor: Floor,
        fleet: str,
        reference_time: datetime,
        lifted: Lifted,
        bring: Bring,
        keep_evidence: Callable[[str, Metadata[Any]], None],
    ) -> None:
        self._staging = staging
        self._updater = updater
        self._targets = targets
        self._snapshot = snapshot
        self._current = current
        self._floor = floor
        self._fleet = fleet
        self._reference_time = reference_time
        self._lifted = lifted
        self._bring = bring
        self._keep_evidence = keep_evidence
        self._silent = ""
        self.taken: dict[str, Taken] = {}
        self.delegates: dict[str, Delegate] = {}
        self.floors: dict[str, RoleFloor] = {}

    def take(self, roles: Iterable[str]) -> None:
        """Bring these roles, one after the other. Raises ``OSError`` only, when this device's own disk fails."""
        for role in roles:
            self._take(role)

    def drop(self, role: str, problem: str) -> None:
        """Something that the role named is not to be had: say so; the next attempt asks again."""
        before = self.delegates[role]
        self.delegates[role] = msgspec.structs.replace(before, problem=before.problem or problem)

    def bring(self, path: str, kept: dict[str, Kept]) -> None:
        """A release manifest of a role that was taken. Raises ``ANSWERED``, or ``Unusable`` if it is not to be had any more."""
        role = role_of_path(path)
        if self.taken[role].fresh:
            self._bring(path, kept)
        elif not self._carry_over(path, kept):
            raise Unusable(f"{path} is not here, and nothing new is taken from it")

    # One role

    def _take(self, role: str) -> None:
        meta = self._snapshot.meta.get(f"{role}.json")
        listed, ours = (meta.version if meta is not None else 0), self._ours(role)
        problem, failed = "", True
        try:
            if meta is None:
                if self._floor.role(role, self._keyids(role)):
                    raise Unusable("the snapshot names it no longer")
                return  # delegated, and nothing published yet
            self.taken[role] = self._fetched(role, meta, ours)
            failed = False
        except Unusable as error:
            problem = str(error)
        except ANSWERED as error:
            problem = self._words(error)
        if failed and ours is not None:
            self._fall_back(role, ours)
        taken = self.taken.get(role)
        if taken is None:
            self.delegates[role] = Delegate(0, listed, problem=problem)
            return
        version, signers = taken.document.signed.version, self._signers(role, taken.document)
        expires_ms = int(taken.document.signed.expires.timestamp() * 1_000)
        self.delegates[role] = Delegate(version, listed, expires_ms, signers, problem)
        self.floors[role] = RoleFloor(version, signers)
        data = self._bytes_of(role, taken)
        (self._staging / "metadata" / f"{role}.json").write_bytes(data)

    def _fetched(self, role: str, meta: MetaFile, ours: Metadata[Targets] | None) -> Taken:
        """The document that the snapshot lists, with its index and policies or halts."""
        if ours is not None and ours.signed.version == meta.version and ours.signed.is_expired(self._reference_time):
            raise Unusable("")  # what is listed is what is held; ``TrustedView.problems`` tells of its end
        if self._silent and (ours is None or ours.signed.version != meta.version):
            raise Unusable(self._silent)
        self._updater.get_targetinfo(index_of(role))  # loads and verifies the document of the role
        document = Metadata[Targets].from_file(str(self._staging / "cache" / f"{role}.json"))
        self._check(role, document, ours)
        kept: dict[str, Kept] = {}
        index = decode_index_untrusted(self._bring(index_of(role), kept), role)
        if index.fleet != self._fleet:
            raise Unusable(f"its index is of fleet {index.fleet[:8]}")
        documents = {path: self._bring(path, kept) for path in (*index.policies, *index.halts)}
        if role == HALT:
            self._check_halts(kept)
        return Taken(document, index, fresh=True, kept=kept, documents=documents)

    def _check(self, role: str, document: Metadata[Targets], ours: Metadata[Targets] | None) -> None:
        complaints = (*lint_version(document.signed), *lint_delegated(document.signed, role))
        if complaints:
            raise Unusable("; ".join(complaints[:4]))
        version, floor = document.signed.version, self._floor.role(role, self._keyids(role))
        if version < floor:
            raise Unusable(f"version {version} is below {floor}, which was accepted before")
        if ours is None or version != ours.signed.version or floor < version:
            return
        if document.signed_bytes != ours.signed_bytes:
            self._keep_evidence(role, document)
            raise Unusable(f"another document with version {version} than the trusted one (kept as evidence)")

    def _check_halts(self, kept: dict[str, Kept]) -> None:
        current = self._current
        known = {} if current is None else {path: one.sha256 for path, one in current.kept.items() if _is_halt(path)}
        offered = {path: one.sha256 for path, one in kept.items() if _is_halt(path)}
        gone = dropped(
            {path[6:-5]: sha256 for path, sha256 in known.items()},
            {path[6:-5]: sha256 for path, sha256 in offered.items()},
            self._lifted,
        )
        if gone:
            raise Unusable(f"version {self._listed(HALT)} drops the halt {gone[0][:8]}, which nobody lifted")

    def _fall_back(self, role: str, ours: Metadata[Targets]) -> None:
        """What was trusted before, with all that it named and that is still whole."""
        kept: dict[str, Kept] = {}
        assert self._current is not None, "ours is of the current view"
        try:
            if not self._carry_over(index_of(role), kept):
                return
            index = self._current.index(role)
            documents = {
                path: self._current.read(path)
                for path in (*index.policies, *index.halts)
                if self._carry_over(path, kept)
            }
        except PcmError:
            return  # the disk lost it: as if there had been nothing
        self.taken[role] = Taken(ours, index, fresh=False, kept=kept, documents=documents)

    def _carry_over(self, path: str, kept: dict[str, Kept]) -> bool:
        """A file of the current generation into the new one."""
        if self._current is None or (found := self._current.kept.get(path)) is None:
            return False
        try:
            data = self._current.read(path)
        except PcmError:
            return False
        place = self._staging / target_file(path, found.sha256)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        kept[path] = found
        return True

    # What is known of a role

    def _ours(self, role: str) -> Metadata[Targets] | None:
        """The document that is trusted, if the present delegation still believes its signatures."""
        data = self._current.metadata(f"metadata/{role}.json") if self._current is not None else None
        if data is None:
            return None
        try:
            document = Metadata[Targets].from_bytes(data)
            self._targets.verify_delegate(role, document.signed_bytes, document.signatures)
        except (RepositoryError, TypeError, ValueError):
            return None
        return document

    def _bytes_of(self, role: str, taken: Taken) -> bytes:
        if taken.fresh:
            return (self._staging / "cache" / f"{role}.json").read_bytes()
        data = self._current.metadata(f"metadata/{role}.json") if self._current is not None else None
        assert data is not None, "it was read from there"
        return data

    def _keyids(self, role: str) -> frozenset[str]:
        delegations = self._targets.delegations
        found = (delegations.roles or {}).get(role) if delegations is not None else None
        return frozenset(found.keyids) if found is not None else frozenset()

    def _signers(self, role: str, document: Metadata[Targets]) -> tuple[str, ...]:
        result = self._targets.get_verification_result(role, document.signed_bytes, document.signatures)
        return tuple(sorted(result.signed))

    def _listed(self, role: str) -> int:
        meta = self._snapshot.meta.get(f"{role}.json")
        return int(meta.version) if meta is not None else 0

    def _words(self, error: Exception) -> str:
        if isinstance(error, ExpiredMetadataError):
            return "its newest document expired; what was known before stays in force"
        if isinstance(error, DownloadHTTPError):
            return "the source does not have it"
        if isinstance(error, DownloadLengthMismatchError):
            return "what was delivered is longer than what was signed"
        if isinstance(error, DownloadError):
            # Whoever lets one file wait lets the next one wait, too: the attempt has one deadline for all.
            self._silent = "was not delivered"
            return "was not delivered"
        return (error.message if isinstance(error, UntrustedBytes) else str(error)) or type(error).__name__


def _is_halt(path: str) -> bool:
    return role_of_path(path) == HALT and path != index_of(HALT)
