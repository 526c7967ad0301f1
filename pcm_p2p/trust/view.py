"""What a device trusts at present: one *generation* on its own disk, complete, verified once, never changed.

``generations/<n>/`` holds ``metadata/{root,timestamp,snapshot,targets,<role>}.json`` as verified,
``targets/<folder>/<sha256>.<name>`` and ``state.json``, which repeats versions, expiry and the SHA-256 of every file, so that
a torn file is found out. A view does not ask whether it is fresh before it answers: what was accepted stays readable, and
``freshness`` says how old it is.

Delegated roles stand beside the four top-level documents: each with the version that is held, and the one that the snapshot
lists. Where the two differ, the role's last good documents stay in force, and ``problems`` says why.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from tuf.api.metadata import Metadata, Root, Targets  # type: ignore[attr-defined]

from pcm_p2p.errors import StorageError, TrustError, UntrustedBytes
from pcm_p2p.trust.delegation import HALT, TARGETS, index_of, title_of
from pcm_p2p.trust.floor import Moment, Version, Versions
from pcm_p2p.trust.halt import (
    NOTHING_LIFTED,
    Halt,
    Holders,
    InForce,
    Lifted,
    decode_halt_untrusted,
    decode_lifted_untrusted,
    in_force,
)
from pcm_p2p.trust.index import LIFTED, Index, check_target_path, decode_index_untrusted, target_file

Freshness = Literal["fresh", "stale", "frozen"]

GRACE = timedelta(days=21)
"""DESIGN.md 7: stale for 21 days after expiry, then frozen."""
METADATA_FILES = ("metadata/timestamp.json", "metadata/snapshot.json", "metadata/targets.json")

_Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A target that is on the disk of this device."""

    length: int
    sha256: _Sha256


class Delegate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A delegated role: the version that is held (0: none), the one that the snapshot lists (0: none), its end in ms since
    1970, and the ids of the keys that signed."""

    version: Version
    listed: Version
    expires_ms: Moment = 0
    signers: tuple[str, ...] = ()
    problem: str = ""

    @property
    def settled(self) -> bool:
        """Whether what is listed is what is held: asking again would bring nothing else."""
        return self.version == self.listed and not self.problem


class Listed(NamedTuple):
    """A published target, and the role that signed it."""

    path: str
    role: str


@dataclass(frozen=True)
class Listing:
    """What all roles publish, the fleet's own first, then each delegated role by name."""

    policies: tuple[Listed, ...] = ()
    releases: tuple[Listed, ...] = ()

    def index(self, fleet_id: str) -> Index:
        """The same as one index, for whoever chooses by path; the role of a path is told by its name."""
        return Index(
            "pcm.index/1",
            fleet_id,
            tuple(one.path for one in self.policies),
            tuple(one.path for one in self.releases),
        )


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``state.json`` of a generation. Times in ms since 1970."""

    schema: Literal["pcm.trusted/1"]
    fleet: str
    root: int
    timestamp: int
    snapshot: int
    targets: int
    timestamp_sha256: _Sha256
    expires_ms: Moment
    accepted_ms: Moment
    timestamp_signers: tuple[str, ...]
    snapshot_signers: tuple[str, ...]
    metadata: dict[str, _Sha256]
    kept: dict[str, Kept]
    delegated: dict[str, Delegate] = {}


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

    def version_of(self, role: str) -> int:
        """The version that is held of a role, top-level or delegated; 0: none."""
        if role in Versions._fields:
            return int(getattr(self.state, role))
        delegate = self.state.delegated.get(role)
        return delegate.version if delegate is not None else 0

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

    def index(self, role: str = TARGETS) -> Index:
        """What a role publishes (more than is kept here). Raises ``StorageError`` if it is damaged, ``TrustError`` if absent."""
        return decode_index_untrusted(self.read(index_of(role)), role)

    def roles(self) -> tuple[str, ...]:
        """Roles whose documents are held: ``targets``, then the delegated ones by name."""
        return (TARGETS, *sorted(role for role, delegate in self.state.delegated.items() if delegate.version))

    def listing(self) -> Listing:
        """What all held roles publish. Raises as ``index``."""
        indexes = {role: self.index(role) for role in self.roles()}
        return Listing(
            tuple(Listed(path, role) for role, index in indexes.items() for path in index.policies),
            tuple(Listed(path, role) for role, index in indexes.items() for path in index.releases),
        )

    def problems(self, now: datetime) -> tuple[str, ...]:
        """What is wrong with delegated roles: each a sentence that names site or team."""
        found = []
        for role, delegate in sorted(self.state.delegated.items()):
            problem = delegate.problem
            if not problem and delegate.version and delegate.expires_ms <= now.timestamp() * 1_000:
                end = datetime.fromtimestamp(delegate.expires_ms / 1_000, UTC)
                problem = (
                    f"what it signed expired on {end:%Y-%m-%d}; it stays in force, and nothing new is taken from it"
                )
            if problem:
                found.append(f"{title_of(role)}: {problem}")
        return tuple(found)

    def is_frozen(self, role: str, now: datetime) -> bool:
        """Whether what a delegated role signed expired longer than ``GRACE`` ago."""
        delegate = self.state.delegated.get(role)
        return delegate is not None and now - datetime.fromtimestamp(delegate.expires_ms / 1_000, UTC) >= GRACE

    @property
    def settled(self) -> bool:
        """Whether every delegated role that concerns this device is held as it is listed."""
        return all(delegate.settled for delegate in self.state.delegated.values())

    @property
    def halts_known(self) -> bool:
        """Whether the newest list of halts is held: while it is not, nothing new may be applied."""
        halt = self.state.delegated.get(HALT)
        return halt is None or halt.settled

    def halts(self) -> tuple[InForce, ...]:
        """The halts that count, oldest first. Raises ``StorageError`` where the disk lost a document that is kept."""
        if not (self.state.delegated.get(HALT) or Delegate(0, 0)).version:
            return ()
        halts: list[Halt] = []
        for path in self.index(HALT).halts:
            with contextlib.suppress(UntrustedBytes):  # one that does not read was nobody's order
                halts.append(decode_halt_untrusted(self.read(path), path))
        return in_force(halts, self._holders(), self.lifted(), self.fleet_id)

    def lifted(self) -> Lifted:
        """The halts that a threshold lifted. One that does not read lifts nothing."""
        if LIFTED in self.kept:
            with contextlib.suppress(UntrustedBytes):
                return decode_lifted_untrusted(self.read(LIFTED))
        return NOTHING_LIFTED

    def _holders(self) -> Holders:
        root, targets = self.metadata("metadata/root.json"), self.metadata("metadata/targets.json")
        if root is None or targets is None:
            raise StorageError(
                f"{self.folder} is damaged: it lost the keys that halts are checked with",
                remedy="It is fetched again with the next attempt.",
            )
        return Holders.of(Metadata[Root].from_bytes(root).signed, Metadata[Targets].from_bytes(targets).signed)

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
                self.metadata(name) is not None
                for name in (*METADATA_FILES, *self.state.metadata, "metadata/root.json")
            )
        return False

    def metadata(self, name: str) -> bytes | None:
        """The bytes of ``metadata/<role>.json`` as they were verified; ``None`` if the file is damaged or absent."""
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


def trusted_view(folder: Path) -> TrustedView | None:
    """What the trust client with this folder trusts, for who only reads, also while it is open; ``None`` if there is nothing."""
    with contextlib.suppress(OSError, UnicodeDecodeError, ValueError, StorageError):
        number = int((folder / "current").read_text("ascii"))
        return TrustedView.load(folder / "generations" / str(number))
    return None
