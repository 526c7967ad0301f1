"""A device under three kinds of fire: a carrier that changes files, a signer whose documents are signed and strange, and a disk.

Input: one byte that chooses the document, then the document (carrier: as served; signer: its signed part in JSON; disk: a file of
the device's own state). All drive ``TrustClient`` as the daemon does. What must hold besides the absence of crashes is checked
here, with ``AssertionError``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, get_args

import msgspec
import trio
from repository_simulator import RepositorySimulator, Tree, TreeSource
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import Metadata, MetaFile

from pcm_p2p.authority.carry.bundle import BundledDocument, BundleDocument, BundledTarget, decode_bundle_untrusted
from pcm_p2p.authority.difference import difference
from pcm_p2p.errors import StorageError, TrustError, UntrustedBytes
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.site_root import decode_site_root_untrusted, repository_id
from pcm_p2p.trust.updater import Kind

SITE = "site-berlin"
FILES = (
    *("metadata/2.root.json", "metadata/timestamp.json", ".snapshot.json", ".targets.json", f".{SITE}.json"),
    *(".index.json", "policies/second.toml", "policies/berlin/second.toml", "fleet/fleet.toml"),
)
"""Of the newest state: whole paths, or how the newest one ends."""
STORED = (
    "floor.json",
    "current",
    "generations/1/state.json",
    "generations/1/metadata/targets.json",
    "roots/1.root.json",
)
SIGNED = ("root", "timestamp", "snapshot", "targets", SITE)
KINDS = frozenset(get_args(Kind))


class Device:
    """Trusts version 1 of a fleet that has published version 2, and forgets every success."""

    def __init__(self) -> None:
        # Nothing here survives the process, and a flush costs more than everything else.
        os.fsync = lambda descriptor: None  # type: ignore[assignment]
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.fleet = RepositorySimulator(self.folder)
        self.fleet.delegate(SITE, "bob")
        self.fleet.publish_site_policy("berlin", "first", "bob")
        with self.fleet.client() as client:
            assert trio.run(client.attempt, self.fleet.source()).kind == "good"
        shutil.copytree(self.folder / "device", self.folder / "saved")
        self.fleet.publish_policy("second")
        self.fleet.publish_site_policy("berlin", "second", "bob")
        self.fleet.publish_root(lambda root: None)
        self.tree = self.fleet.tree()
        self.genuine = self._genuine()
        self.client: TrustClient = self.fleet.client()
        self.client.open()
        self.first = self.client.digest()

    def _genuine(self) -> set[bytes]:
        """Everything that anybody of the fleet ever signed: targets as they are, documents by their signed part."""
        found = {data for path, data in self.tree.items() if path.startswith("targets/")}
        for path, data in self.tree.items():
            if path.startswith("metadata/"):
                found.add(Metadata[Any].from_bytes(data).signed_bytes)
        return found

    def close(self) -> None:
        self.client.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, file: str) -> str:
        """Where the tree carries ``file`` of ``FILES``, in its newest version."""
        folder, slash, name = file.rpartition("/")
        if file in self.tree:
            return file
        if slash:
            return next(
                path for path in self.tree if path.startswith(f"targets/{folder}/") and path.endswith(f".{name}")
            )
        documents = [path for path in self.tree if path.endswith(file)]
        if file == ".index.json":
            newest = self.fleet.newest_targets().signed.targets["index.json"].hashes["sha256"]
            return f"targets/{newest}.index.json"
        return max(documents, key=lambda path: int(path.split("/")[1].split(".")[0]))

    def offer(self, tree: Tree, *, genuine: bool = False) -> None:
        """One attempt. What was trusted stays trusted unless it is good; ``genuine``: good can only be what the fleet signed."""
        result = trio.run(self.client.attempt, TreeSource(tree))
        assert result.kind in KINDS, result
        assert self.client.view is not None, "the last known good is gone"
        if result.kind == "good":
            self._check_whole(genuine)
            self._forget()
        elif self.client.digest()[1:] != self.first[1:]:  # the chain of roots may grow
            raise AssertionError(f"{result.kind}, and something else is trusted")
        if any((self.folder / "device" / "roots").glob("[2-9].root.json")):
            self._forget()

    def _check_whole(self, genuine: bool) -> None:
        view = self.client.view
        assert view is not None
        contents = [view.read(path) for path in view.paths()]
        if not genuine:
            return
        assert self.genuine.issuperset(contents), "a changed target was accepted"
        for role in ("timestamp", "snapshot", "targets", SITE):
            data = view.metadata(f"metadata/{role}.json")
            assert data is not None
            assert Metadata[Any].from_bytes(data).signed_bytes in self.genuine, f"a changed {role} was accepted"

    def _forget(self) -> None:
        self.client.close()
        shutil.rmtree(self.folder / "device")
        shutil.copytree(self.folder / "saved", self.folder / "device")
        self.client = self.fleet.client()
        self.client.open()


@cache
def device() -> Device:
    return Device()


def carried(data: bytes) -> None:
    """A carrier serves ``data[1:]`` in place of one file. Only a document with the genuine signed part can be accepted."""
    here = device()
    path = here.path(FILES[data[0] % len(FILES)] if data else FILES[0])
    here.offer({**here.tree, path: data[1:]}, genuine=True)


def carried_samples() -> list[bytes]:
    return [bytes([number]) + device().tree[device().path(file)] for number, file in enumerate(FILES)]


def signed(data: bytes) -> None:
    """Whoever holds the keys signs the document in ``data[1:]``: refused or usable, never half of it."""
    here = device()
    role = SIGNED[data[0] % len(SIGNED)] if data else "timestamp"
    try:
        document = json.loads(data[1:])
        body = _signed_by(document, role)
    except (ValueError, TypeError, RecursionError, AttributeError, FormatError):
        return  # not to be signed canonically: what a carrier could serve is the other decoder's business
    here.offer(_tree_with(role, document, body))


def signed_samples() -> list[bytes]:
    ends = ("metadata/2.root.json", "metadata/timestamp.json", ".snapshot.json", ".targets.json", f".{SITE}.json")
    documents = [json.loads(device().tree[device().path(end)])["signed"] for end in ends]
    return [bytes([number]) + json.dumps(document).encode() for number, document in enumerate(documents)]


def stored(data: bytes) -> None:
    """A rotten or altered disk: the device starts, says how fresh it is, and learns again from an honest source."""
    here = device()
    here.client.close()
    file = here.folder / "device" / STORED[data[0] % len(STORED) if data else 0]
    file.write_bytes(data[1:])
    try:
        with here.fleet.client() as client:
            client.freshness()
            client.digest()
            if client.view is not None:
                client.view.whole()
                with contextlib.suppress(StorageError, TrustError):  # said, and fetched again
                    client.view.listing()
            # A file that says what no honest one says may keep the device from going on, but not from saying so.
            assert trio.run(client.attempt, here.fleet.source()).kind in KINDS
    finally:
        here._forget()


def stored_samples() -> list[bytes]:
    saved = device().folder / "saved"
    return [bytes([number]) + (saved / name).read_bytes() for number, name in enumerate(STORED)]


def site_root(data: bytes) -> None:
    """What the fleet lists as the beginning of a site's own repository: as it is, and signed by its keys."""
    site_root_untrusted(data)
    try:
        body = _signed_by(json.loads(data)["signed"], "root")
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError, FormatError):
        return
    site_root_untrusted(body)


def site_root_untrusted(data: bytes) -> None:
    with contextlib.suppress(UntrustedBytes):
        decode_site_root_untrusted(data, device().fleet.fleet.fleet_id, "berlin")


def site_root_samples() -> list[bytes]:
    fleet = device().fleet
    root = json.loads(fleet.fleet.root_bytes(1))["signed"]
    root["x-pcm-fleet"], root["x-pcm-site"] = repository_id(fleet.fleet.fleet_id, "berlin"), "berlin"
    return [_signed_by(root, "root")]


def proposed(data: bytes) -> None:
    """A proposal that was carried here: read, and shown to whoever is asked to sign it."""
    here = device().fleet.fleet
    try:
        parts = json.loads(data)
        roots = tuple(json.dumps(each).encode() for each in parts["roots"])
        documents = {
            when: tuple(BundledDocument(role, json.dumps(each).encode()) for role, each in parts[when].items())
            for when in ("published", "proposed")
        }
        targets = tuple(BundledTarget(path, each.encode()) for path, each in parts["targets"].items())
        body = msgspec.msgpack.encode(
            BundleDocument(here.fleet_id, "x", roots, documents["published"], documents["proposed"], targets)
        )
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        return  # the envelope of this file
    with contextlib.suppress(UntrustedBytes):
        bundle = decode_bundle_untrusted(body)
        for role, document in bundle.proposed.items():
            before = bundle.root if role == "root" else bundle.published.get(role)
            shown = difference(before.signed if before is not None else None, document.signed, bundle.content)
            for line in shown.lines(full=True):
                assert line.isprintable(), f"the screen can be painted: {line!r}"
            json.dumps(shown.as_json())


def proposed_samples() -> list[bytes]:
    fleet = device().fleet
    targets = fleet.newest_targets().to_dict()
    changed = fleet.signed_targets(lambda targets: targets.targets.pop("policies/second.toml")).to_dict()
    roots = [json.loads(fleet.fleet.root_bytes(number)) for number in (1, 2)]
    root = json.loads(fleet.fleet.root_bytes(2))
    root["signed"]["version"] = 3
    parts = {"roots": roots, "published": {"targets": targets}, "targets": {"policies/second.toml": "version = 1\n"}}
    return [
        json.dumps({**parts, "proposed": {"targets": changed}}).encode(),
        json.dumps({**parts, "proposed": {"root": root}, "targets": {}}).encode(),
    ]


def _signed_by(document: Any, role: str) -> bytes:
    """``document`` with a signature over its canonical form, as its bytes on a server."""
    fleet = device().fleet
    signer = {
        "timestamp": fleet.keys.timestamp, "snapshot": fleet.keys.snapshot,
        "root": _key("root"), "targets": _key("targets"), SITE: _key(SITE, "bob"),
    }[role]  # fmt: skip
    signature = signer.sign(str(encode_canonical(document)).encode()).to_dict()
    return json.dumps({"signatures": [signature], "signed": document}).encode()


@cache
def _key(role: str, owner: str = "alice") -> Any:
    return device().fleet.signer(role, owner)


def _tree_with(role: str, document: Any, body: bytes) -> Tree:
    """The tree in which everything above ``document`` names it, all signed."""
    here = device()
    version = document.get("version") if isinstance(document, dict) else None
    if role == "root":
        return {**here.tree, "metadata/2.root.json": body}
    if role == "timestamp":
        return {**here.tree, "metadata/timestamp.json": body}
    number = version if isinstance(version, int) and 0 < version < 10**9 else 9
    try:
        if role == "targets":
            return here.fleet.stolen(targets=body)
        if role == SITE:
            meta = MetaFile.from_data(number, body, ["sha256"])
            tree = here.fleet.stolen(snapshot_edit=lambda snapshot: snapshot.meta.update({f"{SITE}.json": meta}))
            return {**tree, f"metadata/{number}.{SITE}.json": body}
        tree = here.fleet.stolen(snapshot_version=number)
    except (ValueError, TypeError, KeyError):
        return {**here.tree, f"metadata/{number}.{role}.json": body}
    return {**tree, f"metadata/{number}.snapshot.json": body, "metadata/timestamp.json": _naming(number, body)}


def _naming(number: int, body: bytes) -> bytes:
    """A timestamp, signed, that names this snapshot."""
    here = device()
    timestamp = json.loads(here.tree["metadata/timestamp.json"])["signed"]
    timestamp["version"] += 1
    timestamp["meta"] = {"snapshot.json": _meta(number, body)}
    return _signed_by(timestamp, "timestamp")


def _meta(number: int, body: bytes) -> dict[str, Any]:
    return {"version": number, "length": len(body), "hashes": {"sha256": hashlib.sha256(body).hexdigest()}}
