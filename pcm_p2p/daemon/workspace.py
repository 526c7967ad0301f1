"""A fleet folder to sign in, made from a published tree: for people of a site or team, who hold their own key and no other.

What is in it was verified as a device verifies it, from a root that the person pinned: the folder keeps a trust client of its own
(``trust/``), so that it goes forward only when it is brought up to date. It holds no key of the fleet; what is staged and signed
here is carried to whoever publishes ('pcm-p2p proposal export').
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trio
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.config import Origin
from pcm_p2p.daemon.neighbours import OriginSource
from pcm_p2p.daemon.site.repository import FolderSource
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, PcmError, StorageError, TransferError, TrustError
from pcm_p2p.swarm.origin import OriginClient
from pcm_p2p.trust.client import MetadataSource, TrustClient
from pcm_p2p.trust.fleet_document import decode_fleet_document
from pcm_p2p.trust.floor import Versions
from pcm_p2p.trust.index import AUTHORITIES, FLEET_DOCUMENT, check_target_path, target_file, target_size_bytes_max
from pcm_p2p.trust.lint import FLEET_FIELD
from pcm_p2p.trust.view import TrustedView

_ROOT_FILE = re.compile(r"[1-9][0-9]{0,9}\.root\.json")


@dataclass(frozen=True)
class Workspace:
    """What was brought. ``problems``: what of sites and teams could not be had or is out of date.

    ``overtaken``: roles of which another version was published than what was proposed here, which counts no more.
    """

    folder: FleetFolder
    versions: Versions
    problems: tuple[str, ...]
    overtaken: tuple[str, ...] = ()


async def bring_workspace(
    path: Path, source: MetadataSource, root: bytes | None, *, wall_clock: Callable[[], datetime]
) -> Workspace:
    """Make the folder at ``path``, or bring one up to date; ``root`` is pinned, and needed the first time.

    Raises ``InputError`` if ``path`` is something else or the root is missing or unreadable, ``TrustError`` if what the source
    has cannot be believed or is older than what is here, ``TransferError`` if it did not deliver.
    """
    pinned = await trio.to_thread.run_sync(_pinned, path, root)
    fleet_id = _fleet_of(pinned)
    client = TrustClient(path / "trust", pinned, fleet_id, wall_clock=wall_clock)
    await trio.to_thread.run_sync(client.open)
    try:
        attempt = await client.attempt(source)
        view = attempt.view
        if attempt.kind == "incomplete":
            raise TransferError(f"{source.name} did not deliver: {attempt.reason}")
        if attempt.kind not in ("good", "unchanged") or view is None:
            raise TrustError(f"{source.name} cannot be believed: {attempt.reason or attempt.kind}")
        others = await _bring_others(source, view)
        folder, overtaken = await trio.to_thread.run_sync(_place, path, view, others, wall_clock)
        return Workspace(folder, view.versions, view.problems(wall_clock()), overtaken)
    finally:
        client.close()


@contextlib.asynccontextmanager
async def open_tree(place: str) -> AsyncIterator[MetadataSource]:
    """The published tree at ``place``, a folder or an http(s) address, as a source. Raises ``InputError`` if it is neither."""
    if place.startswith(("http://", "https://")):
        with tempfile.TemporaryDirectory() as partial:
            async with OriginClient([place.rstrip("/")], Origin(), Path(partial)) as origin:
                yield OriginSource(origin)
        return
    if not await trio.Path(place).is_dir():
        raise InputError(
            "is no folder and no http address",
            path=place,
            key="--from",
            remedy="Name the folder that 'pcm-p2p publish --to' wrote, or the URL at which it is served.",
        )
    yield FolderSource(Path(place))


def _pinned(path: Path, root: bytes | None) -> bytes:
    kept = path / "trust" / "pinned.json"
    if kept.exists() and (path / "fleet.json").exists():
        before = kept.read_bytes()
        if root is not None and root != before:
            raise InputError("follows another root", path=path, remedy="Leave --root out, or choose another folder.")
        return before
    if path.exists() and any(part.name != "trust" for part in path.iterdir()):
        raise InputError("is not a workspace", path=path, remedy="Choose a folder that is not there yet.")
    if root is None:
        raise InputError("--root is missing", remedy="Give the fleet's first root, as its authority handed it to you.")
    _fleet_of(root)
    shutil.rmtree(kept.parent, ignore_errors=True)  # of a first time that came to nothing
    kept.parent.mkdir(mode=0o700, parents=True)
    write_atomic(kept, root)
    return root


def _fleet_of(root: bytes) -> str:
    try:
        fleet = Metadata[Root].from_bytes(root).signed.unrecognized_fields.get(FLEET_FIELD)
    except (RepositoryError, TypeError, ValueError, AttributeError):
        fleet = None
    if not isinstance(fleet, str):
        raise InputError(
            "is not the root of a fleet", key="--root", remedy="It is metadata/1.root.json of the fleet's tree."
        )
    return fleet


async def _bring_others(source: MetadataSource, view: TrustedView) -> dict[str, bytes]:
    """Targets of the fleet that no device reads, such as the audit log: by path in the tree, each as it was signed."""
    data = view.metadata("metadata/targets.json")
    if data is None:
        raise StorageError(f"{view.folder} is damaged", remedy="Run it again.")
    found = {}
    for path, info in sorted(Metadata[Targets].from_bytes(data).signed.targets.items()):
        if path in view.kept:
            continue
        check_target_path(path)
        name, sha256 = target_file(path, info.hashes["sha256"]), info.hashes["sha256"]
        try:
            got = await source.fetch(name, min(info.length, target_size_bytes_max(path)))
        except PcmError as error:
            raise TransferError(f"{source.name} did not deliver {path}: {error.message}") from None
        if len(got) != info.length or hashlib.sha256(got).hexdigest() != sha256:
            raise TrustError(f"{source.name} has other bytes for {path} than what was signed")
        found[name] = got
    return found


def _place(
    path: Path, view: TrustedView, others: dict[str, bytes], wall_clock: Callable[[], datetime]
) -> tuple[FleetFolder, tuple[str, ...]]:
    """From the trusted generation into the form of a fleet folder, the timestamp last; and what it overtook of the proposals."""
    document = decode_fleet_document(view.read(FLEET_DOCUMENT), FLEET_DOCUMENT)
    folder = FleetFolder.adopt(path, view.fleet_id, document.fleet.name, wall_clock=wall_clock)
    with folder.locked():
        waiting = _waiting(folder)
        for name, data in others.items():
            _write(path / "repository" / name, data)
        for target in view.kept:
            _write(path / "repository" / target_file(target, view.kept[target].sha256), view.read(target))
        for file in (path / "trust" / "roots").iterdir():
            if _ROOT_FILE.fullmatch(file.name):
                _write(folder.metadata / file.name, file.read_bytes())
        for role in ("snapshot", "targets", *view.state.delegated, "timestamp"):
            data_of = view.metadata(f"metadata/{role}.json")
            if data_of is not None:
                name = "timestamp.json" if role == "timestamp" else f"{view.version_of(role)}.{role}.json"
                write_atomic(folder.metadata / name, data_of)
        write_atomic(path / "fleet.toml", view.read(FLEET_DOCUMENT))
        if AUTHORITIES in view.kept:
            write_atomic(path / "ca" / "ca.pem", view.read(AUTHORITIES))
        still = _waiting(folder)
        overtaken = []
        for role, signed in waiting.items():
            if role not in still:
                # Else the next change here would begin with it.
                folder.remove_proposal(role)
                published = folder.document(role)
                if published is None or published.signed_bytes != signed:
                    overtaken.append(role)
    shutil.rmtree(path / "trust" / "staging", ignore_errors=True)
    return folder, tuple(overtaken)


def _waiting(folder: FleetFolder) -> dict[str, bytes]:
    """The signed bytes of what is proposed, by role."""
    if folder.timestamp() is None:
        return {}
    return {role: found.signed_bytes for role in folder.roles() if (found := folder.proposed(role)) is not None}


def _write(file: Path, data: bytes) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, data)
