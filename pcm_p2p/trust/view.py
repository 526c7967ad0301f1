"""What a device trusts at present: one *generation* on its own disk, complete, verified once, never changed.

``generations/<n>/`` holds ``metadata/{timestamp,snapshot,targets}.json`` as verified, ``targets/<folder>/<sha256>.<name>`` and
``state.json``, which repeats versions, expiry and the SHA-256 of every file, so that a torn file is found out. A view does
not ask whether it is fresh before it answers: what was accepted stays readable, and ``freshness`` says how old it is.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from pcm_p2p.errors import StorageError, TrustError, UntrustedBytes
from pcm_p2p.trust.floor import Versions
from pcm_p2p.trust.index import INDEX, Index, check_target_path, decode_index_untrusted, target_file

Freshness = Literal["fresh", "stale", "frozen"]

GRACE = timedelta(days=21)
"""DESIGN.md 7: stale for 21 days after expiry, then frozen."""
METADATA_FILES = ("metadata/timestamp.json", "metadata/snapshot.json", "metadata/targets.json")

_Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A target that is on the disk of this device."""

    length: int
    sha256: _Sha256


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``state.json`` of a generation. Times in ms since 1970."""

    schema: Literal["pcm.trusted/1"]
    fleet: str
    root: int
    timestamp: int
    snapshot: int
    targets: int
    timestamp_sha256: _Sha256
    expires_ms: int
    accepted_ms: int
    timestamp_signers: tuple[str, ...]
    snapshot_signers: tuple[str, ...]
    metadata: dict[str, _Sha256]
    kept: dict[str, Kept]


@dataclass(frozen=True)
class TrustedView:
    """The trusted set. Read the client's ``view`` anew after each attempt: two acceptances later, files of this one go."""

    folder: Path
    state: State

    @classmethod
    def load(cls, folder: Path) -> TrustedView:
        """Read a generation. Raises ``StorageError`` if its state or metadata is torn; targets are checked when read."""
        try:
            state = msgspec.json.decode((folder / "state.json").read_bytes(), type=State)
            for path in state.kept:
                check_target_path(path)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, UntrustedBytes) as error:
            raise StorageError(f"{folder} is damaged: {error}") from None
        view = cls(folder, state)
        for name in METADATA_FILES:
            if view.metadata(name) is None:
                raise StorageError(f"{folder / name} is damaged")
        return view

    @property
    def versions(self) -> Versions:
        return Versions(self.state.root, self.state.timestamp, self.state.snapshot, self.state.targets)

    @property
    def timestamp_sha256(self) -> bytes:
        """SHA-256 of the signed part of the timestamp: equal for all who trust the same state."""
        return bytes.fromhex(self.state.timestamp_sha256)

    @property
    def expires(self) -> datetime:
        """When the first of the four top-level documents expires."""
        return datetime.fromtimestamp(self.state.expires_ms / 1_000, UTC)

    @property
    def fleet_id(self) -> str:
        return self.state.fleet

    @property
    def kept(self) -> Mapping[str, Kept]:
        return self.state.kept

    def paths(self) -> tuple[str, ...]:
        """Target paths that can be read here, sorted."""
        return tuple(sorted(self.state.kept))

    def index(self) -> Index:
        """The signed list of what is published (more than is kept here). Raises ``StorageError`` if it is damaged."""
        return decode_index_untrusted(self.read(INDEX))

    def file_of(self, path: str) -> Path:
        """The file of a kept target; its bytes are checked by ``read`` only. Raises ``TrustError`` if it is not kept."""
        kept = self.state.kept.get(path)
        if kept is None:
            raise TrustError(f"{path} is not among the trusted targets of this device")
        return self.folder / target_file(path, kept.sha256)

    def read(self, path: str) -> bytes:
        """The bytes of a kept target, hashed again. Raises ``TrustError`` if it is not kept.

        A damaged file is removed, so that the next attempt fetches it again, and raises ``StorageError``.
        """
        file, kept = self.file_of(path), self.state.kept[path]
        try:
            data = file.read_bytes()
        except OSError as error:
            raise StorageError(f"{file} cannot be read: {error.strerror}") from None
        if len(data) != kept.length or hashlib.sha256(data).hexdigest() != kept.sha256:
            with contextlib.suppress(OSError):
                file.unlink()
            raise StorageError(f"{file} was damaged and removed", remedy="It is fetched again with the next attempt.")
        return data

    def whole(self) -> bool:
        """Whether the metadata is as verified and every kept target there with its length; what is not is fetched again."""
        with contextlib.suppress(OSError):
            return all(self.file_of(path).stat().st_size == kept.length for path, kept in self.kept.items()) and all(
                self.metadata(name) is not None for name in METADATA_FILES
            )
        return False

    def metadata(self, name: str) -> bytes | None:
        """The bytes of one of ``METADATA_FILES`` as they were verified; ``None`` if the file is damaged or absent."""
        with contextlib.suppress(OSError):
            data = (self.folder / name).read_bytes()
            if hashlib.sha256(data).hexdigest() == self.state.metadata.get(name):
                return data
        return None

    def freshness(self, now: datetime) -> Freshness:
        """fresh until ``expires``; stale (enforce, accept newer) for ``GRACE``; then frozen (enforce, install nothing new)."""
        overdue = now - self.expires
        if overdue < timedelta():
            return "fresh"
        return "stale" if overdue < GRACE else "frozen"
