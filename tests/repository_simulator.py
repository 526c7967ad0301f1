"""A fleet that publishes into a folder, a clock that is set by hand, and carriers of its tree that can lie.

``RepositorySimulator`` is the honest side (real key files with a cheap derivation, real folders). ``TreeSource`` serves the
origin folder, or a copy of the tree in memory, faithfully or not. ``stolen`` and ``signed_targets`` make what thieves and
careless authorities could sign.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trio
from blake3 import blake3
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.publish import OnlineKeys, Published, publish, refresh_online
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.content.manifest import Artifact, ChunkerParameters, Manifest, Segment
from pcm_p2p.trust.client import Attempt, TrustClient
from pcm_p2p.trust.updater import SourceMissing

PASSPHRASE = "correct horse"
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

Tree = dict[str, bytes]


class Clock:
    """The wall clock of everyone in a test."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **parts: float) -> None:
        self.now += timedelta(**parts)


@dataclass
class TreeSource:
    """A ``MetadataSource`` over a folder or a tree in memory.

    ``replaced`` serves other bytes, ``missing`` paths are not there, ``before`` is awaited ahead of each answer (a delay, a
    cancellation, a deadline that passes). ``requests`` lists what was asked, in order.
    """

    tree: Path | Mapping[str, bytes]
    name: str = "carrier"
    replaced: dict[str, bytes] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    before: Callable[[str], Awaitable[None]] | None = None
    unbounded: bool = False
    requests: list[str] = field(default_factory=list)

    async def fetch(self, path: str, size_bytes_max: int) -> bytes:
        self.requests.append(path)
        if self.before is not None:
            await self.before(path)
        if self.unbounded and path != "metadata/2.root.json":
            return b" " * (size_bytes_max + 1)
        if path in self.replaced:
            return self.replaced[path]
        data = read_tree(self.tree, path)
        if data is None or path in self.missing:
            raise SourceMissing(path)
        return data


def read_tree(tree: Path | Mapping[str, bytes], path: str) -> bytes | None:
    if isinstance(tree, Path):
        file = tree / path
        return file.read_bytes() if file.is_file() else None
    return tree.get(path)


class RepositorySimulator:
    """A fleet with one published policy. ``owners`` each hold a root and a targets key."""

    def __init__(
        self,
        folder: Path,
        *,
        owners: tuple[str, ...] = ("alice",),
        root_threshold: int = 1,
        targets_threshold: int = 1,
        clock: Clock | None = None,
    ) -> None:
        self.folder = folder
        self.owners = owners
        self.clock = clock or Clock()
        self.fleet = FleetFolder.init(
            folder / "fleet",
            name="Simulated",
            passphrase=PASSPHRASE,
            owners=owners,
            root_threshold=root_threshold,
            targets_threshold=targets_threshold,
            preset="lab",
            wall_clock=self.clock,
        )
        self.origin = folder / "origin"
        self.keys = OnlineKeys.open(self.fleet, PASSPHRASE)
        self.publish_policy("first")

    def copied_to(self, folder: Path) -> RepositorySimulator:
        """The same fleet in another place, at the time it began."""
        shutil.copytree(self.folder / "fleet", folder / "fleet")
        shutil.copytree(self.folder / "origin", folder / "origin")
        return self.opened(folder, Clock())

    def opened(self, folder: Path, clock: Clock) -> RepositorySimulator:
        """The copy of this fleet that lies in ``folder``."""
        copy = RepositorySimulator.__new__(RepositorySimulator)
        copy.folder, copy.owners, copy.clock, copy.keys = folder, self.owners, clock, self.keys
        copy.fleet = FleetFolder.open(folder / "fleet", wall_clock=clock)
        copy.origin = folder / "origin"
        return copy

    # The honest side

    def key_path(self, role: str, owner: str) -> Path:
        return self.fleet.path / "keys" / f"{role}-{owner}.key"

    def sign(self, *owners: str, role: str = "targets") -> None:
        for owner in owners or self.owners:
            self.fleet.sign(self.key_path(role, owner), PASSPHRASE)

    def publish(self) -> Published:
        return publish(self.fleet, self.origin, self.keys)

    def publish_policy(self, name: str, text: str = "version = 1\n") -> Published:
        self.fleet.stage_policy(name, text.encode())
        self.sign()
        return self.publish()

    def refresh(self) -> Published:
        return refresh_online(self.fleet, self.origin, self.keys)

    def sign_root(self, edit: Callable[[Root], None]) -> None:
        """Propose a root and sign it, and whatever targets are proposed."""
        self.fleet.propose_root(edit)
        self.sign(role="root")
        if self.fleet.proposed_targets() is not None:
            self.sign()

    def publish_root(self, edit: Callable[[Root], None]) -> None:
        self.sign_root(edit)
        self.publish()

    def rotate_online_keys(self) -> None:
        self.propose_online_keys()
        self.publish()

    def propose_online_keys(self) -> None:
        """New snapshot and timestamp keys, named by a new root, signed and not published."""
        made = {role: self._new_online_key(role) for role in ("snapshot", "timestamp")}

        def edit(root: Root) -> None:
            for role, key in made.items():
                for keyid in list(root.roles[role].keyids):
                    root.revoke_key(keyid, role)
                root.add_key(key.key, role)

        self.keys = OnlineKeys(made["snapshot"].signer(), made["timestamp"].signer())
        self.sign_root(edit)

    def _new_online_key(self, role: Any) -> keyfile.KeyFile:
        number = len(list((self.fleet.path / "keys").iterdir()))
        path = self.fleet.path / "keys" / f"{role}-{number}.key"
        return keyfile.create(path, PASSPHRASE, role, "publisher", preset="lab")

    # Delegations

    def delegate(self, role: str, *owners: str, threshold: int = 1) -> None:
        """Propose ``role`` with a key for each owner (made where absent), sign and publish. Sites may observe."""
        keys = [self.delegate_key(role, owner).key for owner in owners]
        self.fleet.delegate(role, keys, threshold)
        self.fleet.stage_file("fleet/allowances.toml", b'schema = "pcm.allowances/1"\n[default]\n')
        self.sign()
        if self.fleet.proposed_of(role) is not None:
            self.sign(*owners, role=role)
        self.publish()

    def delegate_key(self, role: str, owner: str) -> keyfile.PublicKeyFile:
        path = self.key_path(role, owner)
        return (
            keyfile.read_public(path) if path.exists() else keyfile.create(path, PASSPHRASE, role, owner, preset="lab")
        )

    def publish_site_policy(self, site: str, name: str, *owners: str, version: int = 1) -> None:
        """A site's own policy, signed by its own keys alone."""
        role = f"site-{site}"
        self.fleet.stage_policy(name, site_policy(site, name, version), role)
        self.sign(*owners, role=role)
        self.publish()

    def delegated(self, role: str) -> Metadata[Targets]:
        document = self.fleet.delegated(role)
        assert document is not None
        return document

    def tree(self) -> Tree:
        """The origin tree of this moment."""
        return {
            file.relative_to(self.origin).as_posix(): file.read_bytes()
            for file in self.origin.rglob("*")
            if file.is_file() and not file.name.startswith(".")
        }

    def source(self, **lies: Any) -> TreeSource:
        return TreeSource(self.origin, **lies)

    def client(self, **options: Any) -> TrustClient:
        """A device that pins root version 1."""
        options.setdefault("wall_clock", self.clock)
        return TrustClient(self.folder / "device", self.fleet.root_bytes(1), self.fleet.fleet_id, **options)

    # What thieves and careless people sign

    def signer(self, role: str, owner: str = "alice") -> Any:
        return keyfile.load(self.key_path(role, owner), PASSPHRASE).signer()

    def newest_targets(self) -> Metadata[Targets]:
        targets = self.fleet.targets()
        assert targets is not None
        return targets

    def signed_targets(
        self, edit: Callable[[Targets], None], *, owners: Iterable[str] | None = None, version_step: int = 1
    ) -> Metadata[Targets]:
        """The published targets after ``edit``, signed by ``owners`` with none of our rules in the way."""
        targets = self.newest_targets().signed
        targets.version += version_step
        edit(targets)
        document = Metadata(targets)
        for owner in self.owners if owners is None else owners:
            document.sign(self.signer("targets", owner), append=True)
        return document

    def signed_delegated(
        self,
        role: str,
        edit: Callable[[Targets], None],
        *owners: str,
        version_step: int = 1,
        keys_of: str | None = None,
    ) -> Metadata[Targets]:
        """The published document of ``role`` after ``edit``, signed by ``owners`` with keys of it (or ``keys_of``)."""
        targets = self.delegated(role).signed
        targets.version += version_step
        edit(targets)
        document = Metadata(targets)
        for owner in owners:
            document.sign(self.signer(keys_of or role, owner), append=True)
        return document

    def stolen(
        self,
        *,
        targets: Metadata[Targets] | bytes | None = None,
        timestamp_version: int | None = None,
        snapshot_version: int | None = None,
        lifetime: timedelta = timedelta(days=7),
        issued: datetime | None = None,
        keys: OnlineKeys | None = None,
        delegated: Mapping[str, Metadata[Targets]] | None = None,
        snapshot_edit: Callable[[Snapshot], None] | None = None,
        timestamp_edit: Callable[[Timestamp], None] | None = None,
    ) -> Tree:
        """The tree as who holds the online keys could make it: any signed targets, any versions, any times."""
        keys, tree = keys or self.keys, self.tree()
        timestamp, snapshot = self.fleet.timestamp(), self.fleet.snapshot()
        assert timestamp is not None
        assert snapshot is not None
        body = targets.to_bytes() if isinstance(targets, Metadata) else targets
        if body is None:
            body = self.newest_targets().to_bytes()
        version = int(json.loads(body)["signed"]["version"])
        tree[f"metadata/{version}.targets.json"] = body
        number = snapshot.signed.version + 1 if snapshot_version is None else snapshot_version
        expires = self.clock.now + lifetime
        meta = {**snapshot.signed.meta, "targets.json": MetaFile.from_data(version, body, ["sha256"])}
        for role, document in (delegated or {}).items():
            data = document.to_bytes()
            tree[f"metadata/{document.signed.version}.{role}.json"] = data
            meta[f"{role}.json"] = MetaFile.from_data(document.signed.version, data, ["sha256"])
        forged_snapshot = Metadata(Snapshot(version=number, expires=expires, meta=meta))
        if snapshot_edit is not None:
            snapshot_edit(forged_snapshot.signed)
        forged_snapshot.sign(keys.snapshot)
        tree[f"metadata/{number}.snapshot.json"] = forged_snapshot.to_bytes()
        forged = Metadata(
            Timestamp(
                version=timestamp.signed.version + 1 if timestamp_version is None else timestamp_version,
                expires=expires,
                snapshot_meta=MetaFile.from_data(number, forged_snapshot.to_bytes(), ["sha256"]),
                unrecognized_fields={"x-pcm-issued": (issued or self.clock.now).isoformat()},
            )
        )
        if timestamp_edit is not None:
            timestamp_edit(forged.signed)
        forged.sign(keys.timestamp)
        tree["metadata/timestamp.json"] = forged.to_bytes()
        return tree


def site_policy(site: str, name: str, version: int = 1) -> bytes:
    """A policy that any site may set, since it only observes."""
    return f'schema = "pcm.policy/1"\nid = "{site}-{name}"\nversion = {version}\n'.encode()


def with_target(tree: Tree, document: Metadata[Targets], path: str, data: bytes) -> Tree:
    """``tree`` with the bytes of a target of ``document`` beside it, under every hash that it is named by."""
    folder, slash, name = path.rpartition("/")
    hashes = document.signed.targets[path].hashes.values()
    return {**tree, **{f"targets/{folder}{slash}{digest}.{name}": data for digest in hashes}}


def small_manifest(
    release: str = "tool", version: str = "1.0", counter: int = 1, seed: bytes = b"x"
) -> tuple[Manifest, bytes]:
    """A release of one chunk, and its segment's blob."""
    chunk, blob = seed * 100, b"blob of " + seed + version.encode()
    artifact = Artifact(
        "tool.bin", "exact", 100, hashlib.sha256(chunk).digest(), 100, hashlib.sha256(chunk).digest(), bytes(4)
    )
    segment = Segment(blake3(blob).digest(), len(blob), "full", 0, 1)
    manifest = Manifest(
        "pcm.manifest/1",
        release,
        version,
        counter,
        ChunkerParameters("fastcdc", 64, 100, 1_000),
        (artifact,),
        blake3(chunk).digest(),
        (100).to_bytes(4, "little"),
        (segment,),
    )
    return manifest, blob


def put_segment(folder: Path, manifest: Manifest, blob: bytes) -> Path:
    """Write the blob of ``small_manifest`` below ``folder`` as releases are cut, a file of its own; returns ``folder``."""
    name = manifest.segments[0].id.hex()
    (folder / name[:2]).mkdir(parents=True, exist_ok=True)
    (folder / name[:2] / name).unlink(missing_ok=True)
    (folder / name[:2] / name).write_bytes(blob)
    return folder


def attempt(client: TrustClient, source: TreeSource) -> Attempt:
    """One attempt in an event loop of its own."""
    return trio.run(client.attempt, source)


STEPS = ("fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir", "symlink")


def killed_before(step: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in a child process that SIGKILL hits just before its ``step``-th operation on files; whether it did.

    A child that ends by itself had fewer steps. One that raises fails the test.
    """
    child = os.fork()
    if child == 0:
        gc.freeze()  # a collection would write to every page that is shared with the parent, which copies it
        _die_at(step)
        try:
            work()
        except BaseException:  # the child's whole story is its status
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, -signal.SIGKILL}, f"the child failed with {status}"
    return status != 0


@contextmanager
def full_disk_from(step: int) -> Iterator[list[str]]:
    """The disk is full from the ``step``-th operation on that needs room; yields the names of those that failed."""
    left, failed = step, list[str]()

    def counted(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                failed.append(name)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left -= 1
            return operation(*arguments, **options)

        return run

    names = [name for name in STEPS if name not in ("unlink", "rmdir")]
    before = {name: getattr(os, name) for name in names}
    for name in names:
        setattr(os, name, counted(name, before[name]))
    try:
        yield failed
    finally:
        for name in names:
            setattr(os, name, before[name])


def _die_at(step: int) -> None:
    left = step

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return operation(*arguments, **options)

        return run

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
