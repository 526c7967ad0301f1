"""The fleet's floor for a site that acts alone, signed in memory: a fleet that says whatever a test wants it to say.

``Fleet`` holds keys of its own and makes the documents of one moment after the other. ``hold`` puts a floor into a site's folder
as who takes it over does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.metadata import (  # type: ignore[attr-defined]
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from pcm_p2p.authority.fleet_floor import FleetFloor, FloorDocument, FloorTarget, decode_floor_untrusted
from pcm_p2p.authority.held_floor import keep_floor, site_here
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.trust.delegation import index_of, pattern_of, site_role
from pcm_p2p.trust.index import ALLOWANCES, INDEX, Index, target_file

FLEET = "ab" * 16
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
EVERYTHING = b"""
schema = "pcm.allowances/1"
[default]
modes = ["observe", "notify", "enforce"]
releases = ["*"]
resources = ["package", "archive", "file", "service"]
paths = ["/"]
services = ["*"]
checks = ["package", "file", "file_content", "sysctl", "service", "mount"]
remediate = true
transfer_min = { wan_in_bytes_per_s = 1000, lan_in_bytes_per_s = 1000, lan_out_bytes_per_s = 1000 }
"""
ROLES = ("root", "timestamp", "snapshot", "targets")


@dataclass
class Fleet:
    """A fleet with one key a role. ``version`` of targets, snapshot and timestamp goes up with each ``says``."""

    fleet: str = FLEET
    version: int = 0
    now: datetime = NOW
    keys: dict[str, CryptoSigner] = field(
        default_factory=lambda: {role: CryptoSigner.generate_ed25519() for role in (*ROLES, "site")}
    )
    roots: list[Metadata[Root]] = field(default_factory=list)

    def __post_init__(self) -> None:
        root = Root(version=1, expires=self.now + timedelta(days=700), consistent_snapshot=True)
        root.unrecognized_fields["x-pcm-fleet"] = self.fleet
        for role in ROLES:
            root.add_key(self.keys[role].public_key, role)
        self._sign_root(root, self.keys["root"])

    def _sign_root(self, root: Root, *signers: CryptoSigner) -> None:
        document = Metadata(root)
        for signer in signers:
            document.sign(signer, append=True)
        self.roots.append(document)

    def rotate(self, *roles: str) -> None:
        """Other keys for these roles, in one new root."""
        before, root = self.keys["root"], deepcopy(self.roots[-1].signed)
        root.version += 1
        for role in roles:
            root.revoke_key(self.keys[role].public_key.keyid, role)
            self.keys[role] = CryptoSigner.generate_ed25519()
            root.add_key(self.keys[role].public_key, role)
        self._sign_root(root, *dict.fromkeys((before, self.keys["root"])))

    def says(
        self,
        policies: Mapping[str, bytes] | None = None,
        *,
        allowances: bytes | None = EVERYTHING,
        site: str = "berlin",
        of_role: Mapping[str, bytes] | None = None,
        files: Mapping[str, bytes] | None = None,
        version: int | None = None,
    ) -> FloorDocument:
        """What it publishes next, and a site takes over: its policies by id, and those that the site's role signs."""
        self.version = self.version + 1 if version is None else version
        role, named = site_role(site), {f"policies/{name}.toml": data for name, data in (policies or {}).items()}
        if allowances is not None:
            named[ALLOWANCES] = allowances
        named |= dict(files or {})
        targets = self._listed(named, INDEX)
        read = dict(named)
        read[INDEX] = self._index(named)
        meta, documents = dict[str, MetaFile](), {"role": b""}
        if of_role is not None:
            own = {f"policies/{site}/{name}.toml": data for name, data in of_role.items()}
            key = self.keys["site"].public_key
            keys = {key.keyid: key}
            named_role = DelegatedRole(role, [key.keyid], 1, terminating=True, paths=[pattern_of(role)])
            targets.delegations = Delegations(keys, {role: named_role})
            delegated = self._signed(self._listed(own, index_of(role)), "site")
            documents["role"] = delegated
            meta[f"{role}.json"] = MetaFile.from_data(self.version, delegated, ["sha256"])
            read |= {**own, index_of(role): self._index(own)}
        documents["targets"] = self._signed(targets, "targets")
        meta["targets.json"] = MetaFile.from_data(self.version, documents["targets"], ["sha256"])
        documents |= self.above(meta)
        return FloorDocument(
            self.fleet,
            site,
            int(self.now.timestamp() * 1_000),
            tuple(root.to_bytes() for root in self.roots),
            files=tuple(FloorTarget(path, data) for path, data in sorted(read.items())),
            **documents,
        )

    def above(self, meta: dict[str, MetaFile]) -> dict[str, bytes]:
        """Snapshot and timestamp that name these documents."""
        snapshot = Snapshot(version=self.version, expires=self.now + timedelta(days=30), meta=meta)
        documents = {"snapshot": self._signed(snapshot, "snapshot")}
        timestamp = Timestamp(
            version=self.version,
            expires=self.now + timedelta(days=7),
            snapshot_meta=MetaFile.from_data(self.version, documents["snapshot"], ["sha256"]),
            unrecognized_fields={"x-pcm-issued": self.now.isoformat()},
        )
        return {**documents, "timestamp": self._signed(timestamp, "timestamp")}

    def _index(self, files: Iterable[str]) -> bytes:
        listed = tuple(sorted(path for path in files if path.startswith("policies/")))
        return Index("pcm.index/1", self.fleet, listed).encoded()

    def _listed(self, files: Mapping[str, bytes], index: str) -> Targets:
        targets = Targets(version=self.version, expires=self.now + timedelta(days=300))
        for path, data in {**files, index: self._index(files)}.items():
            targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        return targets

    def _signed(self, signed: Any, role: str) -> bytes:
        document = Metadata(signed)
        document.sign(self.keys[role])
        return document.to_bytes()


def floor(document: FloorDocument) -> FleetFloor:
    return decode_floor_untrusted(document.encoded())


def tree_of(document: FloorDocument) -> dict[str, bytes]:
    """The published tree in which these documents and files stand."""
    read = floor(document)
    tree = {f"metadata/{one.signed.version}.root.json": one.to_bytes() for one in read.roots}
    tree["metadata/timestamp.json"] = document.timestamp
    tree[f"metadata/{read.versions.snapshot}.snapshot.json"] = document.snapshot
    tree[f"metadata/{read.versions.targets}.targets.json"] = document.targets
    listed = dict(read.targets.signed.targets)
    if read.role is not None:
        listed |= read.role.signed.targets
        tree[f"metadata/{read.role.signed.version}.{site_role(read.site)}.json"] = document.role
    for one in document.files:
        tree[target_file(one.path, listed[one.path].hashes["sha256"])] = one.data
    return tree


def hold(
    folder: FleetFolder, allowances: bytes = EVERYTHING, policies: Mapping[str, bytes] | None = None
) -> FleetFloor:
    """Let the site's folder hold what a fleet with its id says: by default, that the site may set anything."""
    facts = site_here(folder)
    said = floor(Fleet(facts.fleet).says(policies, allowances=allowances, site=facts.site))
    keep_floor(folder, said)
    return said


def written(tree: Mapping[str, bytes], folder: Path) -> Path:
    """The tree in a folder, as it is published."""
    for path, data in tree.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder
