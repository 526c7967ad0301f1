"""The documents in an authority's fleet folder: what is published, what is proposed, and the lock for changing either."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp  # type: ignore[attr-defined]

from pcm_p2p.durable import fsync_folder
from pcm_p2p.errors import StorageError, TrustError
from pcm_p2p.lock_file import held

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

    # Changing

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time; raises ``TrustError`` at once if there is another."""
        busy = TrustError(f"{self.path} is being changed by another process", remedy="Wait until it has finished.")
        with held(self.path / ".lock", busy):
            yield

    def remove_proposal(self, role: Literal["root", "targets"]) -> None:
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
