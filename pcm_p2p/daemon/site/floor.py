"""The fleet's floor for a site that acts alone, taken over from who has it: a published tree, an origin, a device of the office.

All of it is verified as a device verifies it, by a trust client that begins with the root that is held (or pinned) and lives for
one attempt; what is below the held floor is not taken (``why_not_after``). Expiry is the one thing that is not judged: while the
WAN is down for weeks, what the fleet said last is all that there is (``FleetFloor.overdue`` says how old it is).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import trio

from pcm_p2p.authority.fleet_floor import (
    FleetFloor,
    FloorDocument,
    FloorTarget,
    decode_floor_untrusted,
    first_root_untrusted,
    why_not_after,
)
from pcm_p2p.authority.site_folder import SiteFacts
from pcm_p2p.errors import InputError, StorageError, TransferError, TrustError, UntrustedBytes
from pcm_p2p.trust.client import MetadataSource, TrustClient
from pcm_p2p.trust.delegation import TARGETS, index_of, site_role
from pcm_p2p.trust.index import ALLOWANCES, INDEX, Index, check_tree_path, metadata_version
from pcm_p2p.trust.root_chain import root_versions
from pcm_p2p.trust.updater import SourceFailed, SourceMissing
from pcm_p2p.trust.view import TrustedView, trusted_view

_BEGINNING = datetime.fromtimestamp(0, UTC)
"""What the clock of that client says. Nothing has expired by then."""


class StateSource:
    """What the device with this state folder trusts, as a source of metadata; its daemon may be running. Believed in nothing.

    Raises ``InputError`` if it trusts nothing yet.
    """

    def __init__(self, state: Path) -> None:
        try:
            (state / "trust" / "current").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            view = None
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}",
                path=state,
                key="--state",
                remedy="Run it as who may read that folder.",
            ) from None
        else:
            view = trusted_view(state / "trust")
        if view is None:
            raise InputError(
                "trusts nothing yet, or is no state folder of a device",
                path=state,
                key="--state",
                remedy="Name that of a device of the office, such as /var/lib/pcm-p2p, once it has read the fleet's metadata.",
            )
        self._view = view
        self._roots = state / "trust" / "roots"
        self.name = str(state)

    async def fetch(self, path: str, size_bytes_max: int) -> bytes:
        check_tree_path(path)
        return await trio.to_thread.run_sync(self._read, path, size_bytes_max)

    def _read(self, path: str, size_bytes_max: int) -> bytes:
        wanted, file = metadata_version(path), self._view.folder / path
        if wanted is not None:
            role, version = wanted
            if role not in ("root", "timestamp") and version != self._view.version_of(role):
                raise SourceMissing(f"{self.name} has no {path}")
            folder = self._view.folder / "metadata"
            file = self._roots / f"{version}.root.json" if role == "root" else folder / f"{role}.json"
        try:
            with file.open("rb") as opened:
                return opened.read(size_bytes_max + 1)
        except FileNotFoundError:
            raise SourceMissing(f"{self.name} has no {path}") from None
        except OSError as error:
            raise SourceFailed(f"{file} cannot be read: {error.strerror}") from None


def pinned_by(state: Path) -> bytes:
    """The root that the device with this state folder pinned when it was enrolled. Raises ``InputError``."""
    file = state / "identity" / "root.json"
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}",
            path=file,
            remedy="Pass --root: the fleet's first root, as its authority handed it to you.",
        ) from None


async def bring_floor(
    facts: SiteFacts,
    held: FleetFloor | None,
    source: MetadataSource,
    root: bytes | None,
    *,
    wall_clock: Callable[[], datetime],
) -> FleetFloor:
    """What ``source`` has of the fleet for the site, verified, and not below ``held``. ``root`` is pinned: needed where nothing
    is held; where something is, the held root must follow from it.

    Raises ``InputError`` if the root is missing or another fleet's, ``TrustError`` if what the source has cannot be believed or
    is older than what is held, ``TransferError`` if it did not deliver.
    """
    if root is None and held is None:
        raise InputError(
            "--root is missing",
            remedy="Give the fleet's first root, as its authority handed it to you; later it follows from what is held.",
        )
    try:
        pinned = root if root is not None else held.document.roots[-1]  # type: ignore[union-attr]  # asked for above
        first_root_untrusted(pinned, facts.fleet)
    except UntrustedBytes as error:
        raise InputError(
            f"is no root of fleet {facts.fleet[:8]}: {error.message}",
            key="--root",
            remedy="It is metadata/1.root.json of the tree of the fleet whose id 'pcm-p2p site found' was given.",
        ) from None
    before = held.document.roots[:-1] if root is None and held is not None else ()
    with tempfile.TemporaryDirectory() as scratch:
        client = TrustClient(
            Path(scratch) / "trust",
            pinned,
            facts.fleet,
            wall_clock=lambda: _BEGINNING,
            wanted=_no_releases,
            standing=(ALLOWANCES,),
            roles=lambda role: role == site_role(facts.site),
        )
        await trio.to_thread.run_sync(client.open)
        try:
            view = await _attempt(client, source, facts)
            document = await trio.to_thread.run_sync(_document, client.folder, view, facts, before)
        finally:
            client.close()
    same = held is not None and held.versions.targets == view.versions.targets
    taken_ms = held.document.taken_ms if held is not None and same else int(wall_clock().timestamp() * 1_000)
    try:
        floor = decode_floor_untrusted(msgspec.structs.replace(document, taken_ms=taken_ms).encoded())
    except UntrustedBytes as error:
        raise TrustError(f"{source.name} cannot be believed: {error.message}") from None
    if held is not None and (why := why_not_after(held, floor)):
        raise _older(source, why)
    return floor


async def _attempt(client: TrustClient, source: MetadataSource, facts: SiteFacts) -> TrustedView:
    attempt = await client.attempt(source)
    if attempt.kind == "incomplete":
        raise TransferError(
            f"{source.name} did not deliver: {attempt.reason}", remedy="Run it again, or take another source."
        )
    if attempt.kind == "older":
        raise _older(source, attempt.reason)
    if attempt.kind != "good" or attempt.view is None:
        raise TrustError(
            f"{source.name} cannot be believed: {attempt.reason or attempt.kind}",
            remedy="Take it from another source; what is held stays.",
        )
    role = site_role(facts.site)
    delegate = attempt.view.state.delegated.get(role)
    if delegate is not None and not delegate.settled:
        raise TrustError(
            f"{source.name} cannot be believed about {role}: {delegate.problem or 'its newest document is not there'}",
            remedy="What the site's delegated role signs stands above the site's own repository: it has to be whole.",
        )
    return attempt.view


def _older(source: MetadataSource, why: str) -> TrustError:
    return TrustError(
        f"{source.name} is older than what is held here: {why}", remedy="Take it from a newer copy; what is held stays."
    )


def _document(folder: Path, view: TrustedView, facts: SiteFacts, before: tuple[bytes, ...]) -> FloorDocument:
    """What the client trusts now, as one document, with the older roots in front. Raises ``StorageError``."""
    roots = [
        (folder / "roots" / f"{version}.root.json").read_bytes() for version in sorted(root_versions(folder / "roots"))
    ]
    role = site_role(facts.site)
    roles = [one for one in (TARGETS, role) if one in view.roles()]
    paths = [INDEX if one == TARGETS else index_of(one) for one in roles]
    paths += [path for one in roles for path in view.index(one).policies]
    paths += [ALLOWANCES] if ALLOWANCES in view.kept else []
    documents = {name: view.metadata(f"metadata/{name}.json") for name in ("timestamp", "snapshot", *roles)}
    if any(data is None for data in documents.values()):
        raise StorageError(f"{view.folder} is damaged", remedy="Run it again.")
    found = {name: data or b"" for name, data in documents.items()}
    return FloorDocument(
        facts.fleet,
        facts.site,
        0,
        (*before, *roots),
        found["timestamp"],
        found["snapshot"],
        found[TARGETS],
        found.get(role, b""),
        tuple(FloorTarget(path, view.read(path)) for path in sorted(paths)),
    )


def _no_releases(index: Index, documents: Mapping[str, bytes]) -> Collection[str]:  # noqa: ARG001 - the shape of Wanted
    return ()
