"""The documents in an authority's fleet folder: what is published, what is proposed, and the lock for changing either.

Roles are named as in the metadata: ``root``, ``targets``, and the delegated ones (``site-berlin``, ``team-web``, ``halt``).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp  # type: ignore[attr-defined]

from pcm_p2p.authority.delegating import Delegator, delegated_roles
from pcm_p2p.durable import fsync_folder
from pcm_p2p.errors import StorageError, TrustError
from pcm_p2p.lock_file import held
from pcm_p2p.trust.delegation import kind_of

_T = TypeVar("_T", Root, Timestamp, Snapshot, Targets)
_ROOT_FILE = re.compile(r"([1-9][0-9]{0,9})\.root\.json")


class FleetDocuments:
    """See the module. Published is what ``timestamp.json`` refers to, and the newest root."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def metadata(self) -> Path:
        return self.path / "repository" / "metadata"

    def root(self) -> Metadata[Root]:
        """The newest root. A first root that waits for signatures is proposed, and stands here too: there is no other."""
        version = self._root_version()
        if version:
            return self._read(self.metadata / f"{version}.root.json", Root)
        first = self._proposed("root", Root)
        if first is None or first.signed.version != 1:
            raise StorageError(f"{self.metadata} holds no root", remedy="Restore the fleet folder from its backup.")
        return first

    def first_root_waits(self) -> bool:
        """Whether this fleet's first root is not signed by enough of its holders yet, or not published since."""
        return self._root_version() == 0

    def _root_version(self) -> int:
        """Of the newest root that is no proposal; 0 before the first."""
        names = (_ROOT_FILE.fullmatch(path.name) for path in self.metadata.iterdir())
        return max((int(match.group(1)) for match in names if match), default=0)

    def root_bytes(self, version: int | None = None) -> bytes:
        """A published root as it is in the tree, the newest by default: what enrolment pins.

        Raises ``TrustError`` before the first root is signed: it is not final.
        """
        number = self._root_version() if version is None else version
        if not self._root_version():
            raise TrustError(
                "the first root of this fleet is not signed and published yet",
                remedy="Let its holders sign with 'pcm-p2p sign --key FILE', then run 'pcm-p2p publish'.",
            )
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

    def delegated(self, role: str) -> Metadata[Targets] | None:
        """The published document of a delegated role; ``None`` before its first, and where nobody is delegated."""
        return self.delegated_among([role]).get(role)

    def delegated_among(self, roles: Iterable[str]) -> dict[str, Metadata[Targets]]:
        """The published documents of these delegated roles, as far as there are any, by role."""
        snapshot = self.snapshot()
        named = snapshot.signed.meta if snapshot is not None else {}
        found = {role: named.get(f"{role}.json") for role in roles if kind_of(role) is not None}
        return {
            role: self._read(self.metadata / f"{meta.version}.{role}.json", Targets)
            for role, meta in found.items()
            if meta is not None
        }

    def document(self, role: str) -> Metadata[Any] | None:
        """What is published of ``role``, top-level or delegated; ``None`` before the first publishing."""
        match role:
            case "root":
                return None if self.first_root_waits() else self.root()
            case "timestamp":
                return self.timestamp()
            case "snapshot":
                return self.snapshot()
            case "targets":
                return self.targets()
            case _:
                return self.delegated(role)

    def proposed_targets(self) -> Metadata[Targets] | None:
        """The proposal, unless it was published already (a crash between the two steps leaves it behind)."""
        return self.proposed_of("targets")

    def proposed_of(self, role: str) -> Metadata[Targets] | None:
        """The proposal of ``targets`` or of a delegated role, unless it was published already."""
        proposed = self._proposed(role, Targets)
        if proposed is None:
            return None  # which is seen without reading what is published: fleets have hundreds of roles
        published = self.document(role)
        return proposed if published is None or proposed.signed.version > published.signed.version else None

    def proposed_root(self) -> Metadata[Root] | None:
        proposed = self._proposed("root", Root)
        return None if proposed is None or proposed.signed.version <= self._root_version() else proposed

    def proposed(self, role: str) -> Metadata[Any] | None:
        """What is proposed for ``role``; ``None`` where nothing is."""
        return self.proposed_root() if role == "root" else self.proposed_of(role)

    def roles(self) -> tuple[str, ...]:
        """Roles that people sign, in the order in which one rests on the other: root, targets, delegated ones by name.

        Delegated are those of the proposed targets, where there are any, and of the published ones.
        """
        published, proposed = self.targets(), self.proposed_targets()
        names = {name for one in (published, proposed) if one is not None for name in delegated_roles(one.signed)}
        return ("root", "targets", *sorted(names))

    def delegator(self, role: str, *, proposed: bool = True) -> Delegator | None:
        """Who names the keys of ``role``: root or targets, as proposed where there is a proposal, else as published.

        ``None`` for a delegated role while nothing was ever published or proposed.
        """
        if role in ("root", "targets", "snapshot", "timestamp"):
            return ((self.proposed_root() if proposed else None) or self.root()).signed
        targets = (self.proposed_targets() if proposed else None) or self.targets()
        return targets.signed if targets is not None else None

    # Changing

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time; raises ``TrustError`` at once if there is another."""
        busy = TrustError(f"{self.path} is being changed by another process", remedy="Wait until it has finished.")
        with held(self.path / ".lock", busy):
            yield

    def remove_proposal(self, role: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.path / "proposal" / f"{role}.json").unlink()
        fsync_folder(self.path / "proposal")

    # Inside

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
