"""The trust client of a device: one attempt a source, staged, verified by python-tuf, swapped in durably.

The last known good view never depends on an attempt, on freshness or on the network: it is replaced by a better one, or it
stays. Nothing here ends the daemon because of what a source delivered.

Folder (of the daemon, mode 0700)::

    current                 name of the trusted generation; replaced atomically, which is the swap
    generations/<n>/        see ``view``; the trusted one and the one before it are kept
    roots/N.root.json       the chain of roots from the pinned one on, append-only
    floor.json              versions and time below which nothing is accepted again, see ``floor``
    evidence/               pairs of documents that prove a fork, see ``evidence``
    staging/                the attempt under way; removed at the next

A crash leaves the old pointer or the new one. A generation that does not load (power cut, bad sector) is passed over for the
one before it, and the floor still refuses anything older than what was accepted. While a view below the floor is all there is
(the newest generation was lost, or the folder was set back), this device is frozen: it goes on with what it has, and installs
nothing of an old version.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import msgspec
import trio
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.durable import fsync_folder, sweep_temporaries, write_atomic
from pcm_p2p.errors import StorageError, TrustError, UntrustedBytes
from pcm_p2p.trust.delegation import every_role
from pcm_p2p.trust.floor import Floor, RoleFloor, SavedFloor
from pcm_p2p.trust.index import STANDING, check_tree_path, metadata_version
from pcm_p2p.trust.lint import lint_root
from pcm_p2p.trust.root_chain import newest_root, root_versions
from pcm_p2p.trust.trial import (
    Refusal,
    Trial,
    Wanted,
    all_releases,
)
from pcm_p2p.trust.updater import Kind, SourceFailed
from pcm_p2p.trust.view import GRACE, Freshness, State, TrustedView

log = logging.getLogger(__name__)

FILE_TIMEOUT_S = 60.0
"""Choice: the largest document (8 MiB) at 140 kB/s; sources that know their rate give up earlier."""
ATTEMPT_TIMEOUT_S = 600.0
"""Choice: the bound when a source delivers each file just in time."""


class MetadataSource(Protocol):
    """Someone who serves the tree: a peer, a mirror, the origin. Believed in nothing."""

    @property
    def name(self) -> str:
        """Device id in hexadecimal, or URL: for blame and for people."""
        ...

    async def fetch(self, path: str, size_bytes_max: int) -> bytes:
        """The bytes of ``metadata/…`` or ``targets/…``, at most ``size_bytes_max``.

        Raises ``SourceMissing`` if it has no such file, ``SourceFailed`` (or another ``PcmError``) if it did not deliver.
        """
        ...


@dataclass(frozen=True)
class Attempt:
    """How an attempt ended.

    ==========  ==========================================================================
    good        newer state accepted; ``view`` is the new one
    unchanged   the source has what this device has
    older       the source lags behind; no blame
    expired     what it has is out of date; no blame
    incomplete  it did not deliver all of it (or this disk did not take it); no blame
    bad         it delivered what no honest carrier of this fleet can have: blame it
    ==========  ==========================================================================

    ``view`` is what is trusted afterwards, whatever the kind; ``None`` only before the first good attempt.
    """

    kind: Kind
    source: str
    reason: str
    view: TrustedView | None


class MetadataDigest(NamedTuple):
    """The fields of ``wire.messages.Digest``, in order."""

    root: int
    timestamp: int
    snapshot: int
    targets: int
    timestamp_sha256: bytes


class TrustClient:
    """See the module. ``wall_clock`` returns aware UTC time and may be wrong: it is never believed below the floor. ``standing``
    are the targets outside the index that this device reads when they are there, ``roles`` tells the delegated roles that concern
    it."""

    def __init__(
        self,
        folder: Path,
        bootstrap_root: bytes,
        fleet_id: str,
        *,
        wall_clock: Callable[[], datetime],
        wanted: Wanted = all_releases,
        standing: tuple[str, ...] = STANDING,
        roles: Callable[[str], bool] = every_role,
        file_timeout_s: float = FILE_TIMEOUT_S,
        attempt_timeout_s: float = ATTEMPT_TIMEOUT_S,
    ) -> None:
        self.folder = folder
        self.fleet_id = fleet_id
        self._bootstrap = bootstrap_root
        self._wall_clock = wall_clock
        self._wanted = wanted
        self._standing = standing
        self._roles = roles
        self._file_timeout_s = file_timeout_s
        self._attempt_timeout_s = attempt_timeout_s
        self._view: TrustedView | None = None
        self._floor = Floor()
        self._behind = ""
        self._lock_descriptor: int | None = None
        self._one_attempt = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._counts: Counter[str] = Counter()

    def open(self) -> None:
        """Take the folder and load the last known good view. Blocking, a few ms.

        Raises ``TrustError`` if the pinned root is not of this fleet or another process has the folder open, and
        ``StorageError`` if the folder cannot be written.
        """
        try:
            for name in ("generations", "roots"):
                (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock()
            for folder in (self.folder, self.folder / "roots", self.folder / "evidence"):
                sweep_temporaries(folder)
            self._check_bootstrap()
            self._check_roots()
            self._view = self._load_view()
        except OSError as error:
            self.close()
            raise StorageError(f"{self.folder} cannot be used: {error.strerror}") from None
        except TrustError:
            self.close()
            raise
        self._floor = self._load_floor()
        self._behind = self._why_behind()
        if self._behind:
            log.error(
                "trust: what is left in %s is old: %s; nothing new is installed before it is healed",
                self.folder,
                self._behind,
            )

    def close(self) -> None:
        """Give the folder back. Safe to call twice."""
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def view(self) -> TrustedView | None:
        """The last known good; ``None`` before the first good attempt of this device's life."""
        return self._view

    @property
    def settled(self) -> bool:
        """Whether nothing is missing of what the trusted metadata lists for this device."""
        return self._view is None or self._view.settled

    def now(self) -> datetime:
        """The wall clock, but never before the latest moment that a signed document proved."""
        return max(self._wall_clock(), datetime.fromtimestamp(self._floor.time_ms / 1_000, UTC))

    def wall_clock(self) -> datetime:
        """What the clock of this device says, for what online keys must not move: certificates are no documents of theirs."""
        return self._wall_clock()

    def freshness(self) -> Freshness:
        """Of the view at ``now()``; a device without a view, or with one that is older than what it once accepted, is frozen."""
        return "frozen" if self._view is None or self._behind else self._view.freshness(self.now())

    @property
    def behind(self) -> str:
        """Why the view is older than what this device accepted before, in words; empty if it is not."""
        return self._behind

    def digest(self) -> MetadataDigest:
        """What to tell peers; all zero before the first good attempt."""
        if self._view is None:
            return MetadataDigest(0, 0, 0, 0, bytes(32))
        return MetadataDigest(*self._view.versions, self._view.timestamp_sha256)

    def statistics(self) -> Mapping[str, int]:
        """Attempts by kind since ``open``."""
        return dict(self._counts)

    async def attempt(self, source: MetadataSource) -> Attempt:
        """Try to learn something newer from ``source``; one attempt at a time, within deadlines.

        Returns how it ended and never raises for what the source did. On cancellation nothing has changed.
        """
        async with self._one_attempt:
            kind, reason = await self._attempt(source)
            if kind == "expired" and self._floor_sank():
                # The source brought a root that takes a key away, and with it the time which that key had proved.
                kind, reason = await self._attempt(source)
        self._counts[kind] += 1
        if kind in ("good", "bad"):
            level = logging.INFO if kind == "good" else logging.WARNING
            log.log(level, "trust: %s from %s%s", kind, source.name, f": {reason}" if reason else "")
        return Attempt(kind, source.name, reason, self._view)

    async def _attempt(self, source: MetadataSource) -> tuple[Kind, str]:
        with trio.move_on_after(self._attempt_timeout_s):
            return await trio.to_thread.run_sync(self._attempt_in_thread, source, limiter=self._limiter)
        return "incomplete", f"did not deliver everything within {self._attempt_timeout_s:g} s"

    def _attempt_in_thread(self, source: MetadataSource) -> tuple[Kind, str]:
        now = self.now()
        outdated = self._view is not None and now >= self._view.expires
        trial = Trial(
            staging=self.folder / "staging",
            roots=self.folder / "roots",
            evidence=self.folder / "evidence",
            bootstrap=self._bootstrap,
            fleet=self.fleet_id,
            now=now,
            # Whoever is out of date himself is better off with something newer that is out of date, too.
            reference_time=now - GRACE if outdated else now,
            current=self._view,
            floor=self._floor,
            get=lambda path, size_bytes_max: trio.from_thread.run(self._get, source, path, size_bytes_max),
            wanted=self._wanted,
            standing=self._standing,
            roles=self._roles,
        )
        try:
            accepted = trial.run()
            if accepted.unchanged:
                return "unchanged", ""
            self._swap(trial.staging, accepted.state, accepted.floor)
        except Refusal as refusal:
            return refusal.kind, refusal.reason
        except OSError as error:
            return "incomplete", f"this device could not keep it: {error}"
        return "good", accepted.remark

    async def _get(self, source: MetadataSource, path: str, size_bytes_max: int) -> bytes:
        with trio.move_on_after(self._file_timeout_s):
            data = await source.fetch(path, size_bytes_max)
            if len(data) > size_bytes_max:
                raise SourceFailed(f"sent {len(data)} bytes for {path}; at most {size_bytes_max} are read")
            return data
        raise SourceFailed(f"did not deliver {path} within {self._file_timeout_s:g} s")

    def _swap(self, staging: Path, state: State, floor: Floor) -> None:
        """Make the staged state the trusted one: flush it, move it in, then turn the pointer."""
        write_atomic(staging / "state.json", msgspec.json.encode(state))
        for folder, _, names in os.walk(staging):
            for name in names:
                _fsync_file(Path(folder) / name)
            fsync_folder(Path(folder))
        generations = self.folder / "generations"
        number = max((int(path.name) for path in generations.iterdir() if path.name.isdigit()), default=0) + 1
        generation = generations / str(number)
        staging.rename(generation)
        try:
            fsync_folder(generations)
            write_atomic(self.folder / "current", b"%d\n" % number)
        except OSError:
            if self._pointer() != number:
                shutil.rmtree(generation, ignore_errors=True)
            raise
        before, self._view = self._view, TrustedView(generation, state)
        self._floor, self._behind = floor, ""
        try:
            write_atomic(self.folder / "floor.json", msgspec.json.encode(SavedFloor.of(floor, self.fleet_id)))
        except OSError as error:
            log.error("trust: the floor could not be saved, and is raised by the view at the next start: %s", error)
        keep = {generation.name, before.folder.name if before else ""}
        for path in generations.iterdir():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)

    def _pointer(self) -> int | None:
        """The generation that ``current`` names; ``None`` if it does not read."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = (self.folder / "current").read_text("ascii").strip()
            return int(text) if text.isdigit() else None
        return None

    def serve(self, path: str) -> bytes | None:
        """The bytes of a file of the tree for a peer, or ``None``: not a name of the tree, or not here. Blocking.

        Hashed again on the way: a rotten disk must not get this device blamed as a liar.
        """
        try:
            check_tree_path(path)
        except UntrustedBytes:
            return None
        view, wanted = self._view, metadata_version(path)
        if wanted is not None and wanted[0] == "root":
            return _read_or_none(self.folder / "roots" / f"{wanted[1]}.root.json")
        if view is None:
            return None
        if wanted is not None:
            role, version = wanted
            if role != "timestamp" and version != view.version_of(role):
                return None
            return view.metadata(f"metadata/{role}.json")
        data = _read_or_none(view.folder / path)
        if data is None or not path.rpartition("/")[2].startswith(hashlib.sha256(data).hexdigest() + "."):
            return None
        return data

    def _floor_sank(self) -> bool:
        """Lower the floor by what the newest kept root no longer believes; whether that gave time back."""
        under = self._floor.under(*self._online_keys())
        if under.time_ms == self._floor.time_ms:
            return False
        self._floor = under
        return True

    def _online_keys(self) -> tuple[frozenset[str], frozenset[str]]:
        """Ids of the timestamp and snapshot keys that the newest kept root names."""
        root = Metadata[Root].from_bytes(newest_root(self.folder / "roots", self._bootstrap)).signed
        return frozenset(root.roles["timestamp"].keyids), frozenset(root.roles["snapshot"].keyids)

    def _lock(self) -> None:
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise TrustError(
                f"{self.folder} is in use by another process", remedy="Stop the other daemon, or use another --state."
            ) from None
        self._lock_descriptor = descriptor

    def _check_bootstrap(self) -> None:
        try:
            document = Metadata[Root].from_bytes(self._bootstrap)
            document.signed.verify_delegate("root", document.signed_bytes, document.signatures)
        except (RepositoryError, TypeError, ValueError) as error:
            raise TrustError(
                f"the pinned root cannot be believed: {error}", remedy="Enrol this device again."
            ) from None
        complaints = lint_root(document.signed, self.fleet_id)
        if complaints:
            raise TrustError(f"the pinned root cannot be believed: {complaints[0]}", remedy="Enrol this device again.")
        pinned = self.folder / "roots" / f"{document.signed.version}.root.json"
        if _read_or_none(pinned) != self._bootstrap:
            write_atomic(pinned, self._bootstrap)

    def _check_roots(self) -> None:
        """Follow the chain from the pinned root on; what does not hold is removed, so that it is fetched again."""
        trusted = Metadata[Root].from_bytes(self._bootstrap).signed
        for version in sorted(root_versions(self.folder / "roots")):
            if version <= trusted.version:
                continue
            file = self.folder / "roots" / f"{version}.root.json"
            try:
                document = Metadata[Root].from_bytes(file.read_bytes())
                if version != trusted.version + 1 or document.signed.version != version:
                    raise ValueError(f"version {document.signed.version} does not follow {trusted.version}")
                for root in (trusted, document.signed):
                    root.verify_delegate("root", document.signed_bytes, document.signatures)
            except (OSError, RepositoryError, TypeError, ValueError) as error:
                log.error("trust: %s does not hold and is fetched again: %s", file, error)
                file.unlink(missing_ok=True)
                continue
            trusted = document.signed

    def _load_floor(self) -> Floor:
        """The higher of the saved floor and what the view proves by itself, as far as the newest root believes either.

        ``floor.json`` may be lost, or of before the view: it is written after the pointer.
        """
        floor, of_view = Floor(), Floor()
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            saved = msgspec.json.decode((self.folder / "floor.json").read_bytes(), type=SavedFloor)
            if saved.fleet in ("", self.fleet_id):  # else this disk was enrolled in another fleet before
                floor = saved
        if self._view is not None:
            state = self._view.state
            of_view = of_view.raised(
                self._view.versions,
                timestamp_signers=state.timestamp_signers,
                snapshot_signers=state.snapshot_signers,
                now_ms=0,
                issued_ms=state.accepted_ms,
                expires_ms=state.expires_ms,
                delegated={
                    role: RoleFloor(one.version, one.signers) for role, one in state.delegated.items() if one.version
                },
            )
        timestamp_keys, snapshot_keys = self._online_keys()
        return floor.under(timestamp_keys, snapshot_keys).or_higher(of_view.under(timestamp_keys, snapshot_keys))

    def _why_behind(self) -> str:
        """Which role of the view is below the floor, as far as the view's own root believes that."""
        if self._view is None:
            return ""
        data = self._view.metadata("metadata/root.json") or newest_root(self.folder / "roots", self._bootstrap)
        root = Metadata[Root].from_bytes(data).signed
        keys = (frozenset(root.roles[role].keyids) for role in ("timestamp", "snapshot"))
        return self._floor.under(*keys).below(self._view.versions)

    def _load_view(self) -> TrustedView | None:
        """The generation that ``current`` names; if it does not load, the newest other one that does."""
        generations = self.folder / "generations"
        names = sorted((path.name for path in generations.iterdir() if path.name.isdigit()), key=int, reverse=True)
        pointed = self._pointer()
        if pointed is not None:
            # A generation above the pointer was moved in, and its swap never committed.
            names = [name for name in names if int(name) <= pointed]
        for name in names:
            try:
                view = TrustedView.load(generations / name)
            except StorageError as error:
                log.error("trust: %s; the one before it is used", error)
                continue
            if view.fleet_id == self.fleet_id:
                return view
        return None


def _read_or_none(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
