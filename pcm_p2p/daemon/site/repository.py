"""The repository with which this device's own site acts alone: a second trusted set beside the fleet's, fed within the office.

It begins with the root that the fleet lists as ``sites/<site>/root.json`` and is followed like the fleet's own: a ``TrustClient``
with a folder of its own below ``site-trust/``, a ``Follower`` for where the tree can be read at first hand (the folder of the
device on which the site's authority publishes, or a web server in the office), and a ``Spread`` that speaks ``SiteDigest`` to the
devices of the site. Files are asked of neighbours as ``sites/<site>/…``. None of this needs the WAN.

The fleet keeps the upper hand. Where it lists another root, what was trusted of the site is dropped, and old keys of the site are
worth nothing; where it lists none, the site's repository does not count any more. A root that the site's own chain has led to
already changes nothing (``site_folder``).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

import trio

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.daemon.documents import SiteWord, decode_manifest_untrusted, own_releases
from pcm_p2p.daemon.follower import Follower
from pcm_p2p.daemon.site.folder import trusted_folder
from pcm_p2p.errors import InputError, PcmError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.gossip.peer import PeerDown, PeerInfo, PeerUp
from pcm_p2p.gossip.spreader import Spreader
from pcm_p2p.ids import DeviceId, ManifestId
from pcm_p2p.policy.document import Policy, decode_policy
from pcm_p2p.trust.client import MetadataSource, TrustClient
from pcm_p2p.trust.delegation import HALT
from pcm_p2p.trust.evidence import Evidence, Fork
from pcm_p2p.trust.index import LIFTED, Index, check_tree_path, release_places, site_root_path
from pcm_p2p.trust.site_root import PREFIX, decode_site_root_untrusted, repository_id
from pcm_p2p.trust.updater import SourceFailed, SourceMissing
from pcm_p2p.wire.messages import PROTOCOL_SITE_DIGEST, Digest, Message, SiteDigest
from pcm_p2p.wire.session import Session

log = logging.getLogger(__name__)

MANIFESTS_MAX = 256
"""Choice: with them a device can serve neighbours that another policy speaks about; at 2 MB each, the usual limit, 512 MB."""
LOOK_S = 2.0
"""Choice: who publishes at a desk sees it taken up at once; one ``stat`` costs nothing."""
LOOK_S_MAX = 60.0
RETRY_S = 60.0
"""Choice: a disk that is full or read-only is no shorter matter."""


class Overlay(Protocol):
    """What is used here of the sessions."""

    def peers(self) -> list[PeerInfo]: ...
    def session_with(self, device: DeviceId, /) -> Session | None: ...
    def register(self, message_type: type[Message], handler: Callable[[DeviceId, Any], Awaitable[None]], /) -> None: ...
    def watch(self, watcher: Callable[[PeerUp | PeerDown], Awaitable[None]], /) -> None: ...
    async def send(self, device: DeviceId, message: Message, /) -> None: ...


class SiteRepository:
    """Make it before the overlay runs; ``run`` it in a nursery. ``fleet`` is the client of the fleet's own metadata. ``tree`` is
    the folder and ``origin`` the web server in the office, where there is one; ``neighbour`` gives a neighbour as a source of
    files below a prefix. ``on_change`` is awaited when ``word`` says something else."""

    def __init__(
        self,
        folder: Path,
        site: str,
        me: DeviceId,
        fleet: TrustClient,
        overlay: Overlay,
        neighbour: Callable[[DeviceId, str], MetadataSource],
        *,
        tree: Path | None,
        origin: MetadataSource | None,
        poll_s: float,
        settle_s: float,
        wall_s: Callable[[], float],
        rng: Random,
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self._folder, self._site, self._me, self._fleet = folder, site, me, fleet
        self._overlay, self._neighbour = overlay, neighbour
        self._tree, self._origin = tree, origin
        self._poll_s, self._settle_s, self._wall_s, self._rng = poll_s, settle_s, wall_s, rng
        self._on_change = on_change
        self._prefix = f"{PREFIX}{site}/"
        self._fleet_changed = trio.Event()
        self._running: _Running | None = None
        self.problem = ""
        self._unpublished = ""
        overlay.register(SiteDigest, self._digest_heard)
        overlay.watch(self._peer_changed)

    # What others ask

    @property
    def client(self) -> TrustClient | None:
        """The trusted set of the site; None while the fleet lists no root for it."""
        return self._running.client if self._running is not None else None

    def word(self) -> SiteWord | None:
        """What the site's repository says; None if it says nothing (yet)."""
        client = self.client
        if client is None or client.view is None:
            return None
        return SiteWord(self._site, client.view, client.freshness() == "frozen")

    def policies(self) -> tuple[Policy, ...]:
        """The policies that read, for who has to know early which releases they name."""
        word = self.word()
        return tuple(_policies(word)) if word is not None else ()

    def lacks_of_the_fleets(self) -> bool:
        """Whether the site's policies name a release of the fleet whose manifest is not here. Blocking."""
        view = self._fleet.view
        if view is None:
            return False
        try:
            places = release_places(one.path for one in view.listing().releases)
        except PcmError:
            return False  # fetched again with the next attempt, and then looked at
        named = {(one.release, one.version) for policy in self.policies() for one in policy.assignments}
        return any(path not in view.kept for release in named for path in places.get(release, ()))

    def manifests(self) -> Mapping[ManifestId, Manifest]:
        """The site's own releases whose manifests are here and read. Blocking."""
        word, found = self.word(), dict[ManifestId, Manifest]()
        if word is not None:
            for path in self._own_releases(word):
                with contextlib.suppress(StorageError, UntrustedBytes):
                    manifest = decode_manifest_untrusted(word.view.read(path), path)
                    found[manifest.manifest_id] = manifest
        return found

    def _own_releases(self, word: SiteWord) -> list[str]:
        with contextlib.suppress(StorageError, UntrustedBytes):
            return [path for path in own_releases(self._site, word.view.index()) if path in word.view.kept]
        return []

    def serve(self, path: str) -> bytes | None:
        """A file of the site's tree for a peer, by its path with the site's prefix; None if it is not here. Blocking."""
        client = self.client
        if client is None or not path.startswith(self._prefix):
            return None
        return client.serve(path.removeprefix(self._prefix))

    def forks(self) -> tuple[Fork, ...]:
        """What the site's keys are proved to have signed twice."""
        return self._running.evidence.forks() if self._running is not None else ()

    def facts(self) -> dict[str, Any]:
        """For people: whether there is one, how fresh, which versions, and what is wrong."""
        client = self.client
        digest = client.digest() if client is not None else None
        running = self._running
        return {
            "state": "none" if client is None or client.view is None else client.freshness(),
            "root": digest.root if digest is not None else 0,
            "timestamp": digest.timestamp if digest is not None else 0,
            "snapshot": digest.snapshot if digest is not None else 0,
            "targets": digest.targets if digest is not None else 0,
            "reason": self.problem
            or (running.follower.last_problem if running is not None else "")
            or self._unpublished,
        }

    # Life

    def fleet_changed(self) -> None:
        """The fleet's trusted view is another one: look whether it lists another root for the site."""
        self._fleet_changed.set()

    async def run(self) -> None:
        """Follow the site's repository for as long as the fleet lists a root for it, until cancelled."""
        root: bytes | None = None
        while True:
            self._fleet_changed = trio.Event()
            listed = await trio.to_thread.run_sync(self._listed_root, root)
            if listed is None:
                # What was trusted stays on the disk, unheard: a site that is listed again goes on where it was, and not before.
                root = None
                await self._fleet_changed.wait()
                continue
            root = listed
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._live, root)
                while await trio.to_thread.run_sync(self._listed_root, root) == root:
                    await self._fleet_changed.wait()
                    self._fleet_changed = trio.Event()
                nursery.cancel_scope.cancel()
            await self._on_change()

    def _listed_root(self, present: bytes | None) -> bytes | None:
        """The root that the fleet lists now. One that cannot be believed is as good as none; ``present`` stays where the disk of
        this device is at fault. Blocking."""
        view = self._fleet.view
        try:
            path = site_root_path(self._site)
            if view is None or path not in view.kept:
                self.problem = ""
                return None
            data = view.read(path)
            decode_site_root_untrusted(data, self._fleet.fleet_id, self._site)
        except StorageError as error:
            log.error("the root of the site's repository cannot be read: %s", error)
            return present
        except UntrustedBytes as error:
            self.problem = error.message
            log.error("the site's repository does not count: %s", error)
            return None
        self.problem = ""
        return data

    async def _live(self, root: bytes) -> None:
        """One trusted set, from its root on, until cancelled."""
        repository = repository_id(self._fleet.fleet_id, self._site)
        while True:
            try:
                folder = await trio.to_thread.run_sync(trusted_folder, self._folder, root)
                client = TrustClient(
                    folder,
                    root,
                    repository,
                    wall_clock=self._fleet.now,
                    wanted=_Wanted(self._site),
                    standing=(LIFTED,),
                    roles=lambda role: role == HALT,
                )
                await trio.to_thread.run_sync(client.open)
                break
            except (OSError, TrustError, StorageError) as error:
                self.problem = f"the repository of site {self._site} cannot be followed: {error}"
                log.error("%s", self.problem)
                await trio.sleep(RETRY_S)
        self.problem = ""
        try:
            await self._follow(client)
        finally:
            self._running = None
            client.close()

    async def _follow(self, client: TrustClient) -> None:
        sessions = _SiteSessions(self._overlay, self._site)
        spreader: Spreader | None = None

        async def changed(digest: Digest) -> None:
            if spreader is not None:
                await spreader.own_changed(digest)
            await self._on_change()

        follower = Follower(
            client,
            self._me,
            _NoRanks(self._neighbour, self._prefix),
            self._origin,
            weight=1,
            poll_s=self._poll_s,
            settle_s=self._settle_s,
            wall_s=self._wall_s,
            on_change=changed,
        )
        spreader = Spreader(sessions, follower.digest(), follower.ask_neighbour, rng=self._rng)
        self._running = _Running(client, follower, sessions, Evidence(client.folder / "evidence"))
        log.info("the repository of site %s is followed", self._site)
        await self._on_change()
        async with trio.open_nursery() as nursery:
            await nursery.start(spreader.run)
            for peer in self._overlay.peers():
                await sessions.peer_changed(PeerUp(peer))
            nursery.start_soon(follower.run)
            if self._tree is not None:
                nursery.start_soon(self._watch_tree, follower, FolderSource(self._tree))

    async def _watch_tree(self, follower: Follower, source: FolderSource) -> None:
        """Take up what is published into the folder on this device, soon after its timestamp is written, which comes last."""
        taken: object = None
        pause_s = LOOK_S
        while True:
            stamp = await trio.to_thread.run_sync(source.stamp)
            self._unpublished = "" if stamp is not None else f"nothing is published in {self._tree} ([site] repository)"
            if stamp is not None and stamp != taken:
                if await follower.ask(source) in ("good", "unchanged"):
                    taken, pause_s = stamp, LOOK_S
                else:
                    pause_s = min(LOOK_S_MAX, 2 * pause_s)
            await trio.sleep(pause_s)

    # Sessions

    async def _digest_heard(self, device: DeviceId, message: SiteDigest) -> None:
        if self._running is not None and message.site == self._site:
            digest = Digest(
                message.root, message.timestamp, message.snapshot, message.targets, message.timestamp_sha256
            )
            await self._running.sessions.digest_heard(device, digest)

    async def _peer_changed(self, event: PeerUp | PeerDown) -> None:
        if self._running is not None:
            await self._running.sessions.peer_changed(event)


@dataclass(frozen=True)
class _Running:
    client: TrustClient
    follower: Follower
    sessions: _SiteSessions
    evidence: Evidence


class _SiteSessions:
    """The sessions as ``gossip.spreader`` wants them, with a voice of their own: digests go as ``SiteDigest``, and only to
    devices of the site that know the message."""

    def __init__(self, overlay: Overlay, site: str) -> None:
        self._overlay, self._site = overlay, site
        self._handler: Callable[[DeviceId, Any], Awaitable[None]] | None = None
        self._watcher: Callable[[PeerUp | PeerDown], Awaitable[None]] | None = None
        self._present: set[DeviceId] = set()

    def register(self, message_type: type[Message], handler: Callable[[DeviceId, Any], Awaitable[None]], /) -> None:
        assert message_type is Digest
        self._handler = handler

    def watch(self, watcher: Callable[[PeerUp | PeerDown], Awaitable[None]], /) -> None:
        self._watcher = watcher

    async def send(self, device: DeviceId, message: Message, /) -> None:
        assert isinstance(message, Digest)
        if device in self._present:
            await self._overlay.send(
                device,
                SiteDigest(
                    self._site,
                    message.root,
                    message.timestamp,
                    message.snapshot,
                    message.targets,
                    message.timestamp_sha256,
                ),
            )

    async def broadcast(self, message: Message, except_: Collection[DeviceId] = (), /) -> None:
        for device in sorted(self._present - set(except_)):
            with contextlib.suppress(PcmError):  # its session ended meanwhile
                await self.send(device, message)

    async def digest_heard(self, device: DeviceId, digest: Digest) -> None:
        if self._handler is not None and device in self._present:
            await self._handler(device, digest)

    async def peer_changed(self, event: PeerUp | PeerDown) -> None:
        if isinstance(event, PeerUp):
            session = self._overlay.session_with(event.peer.device_id)
            speaks = session is not None and session.peer_hello.protocol >= PROTOCOL_SITE_DIGEST
            if not (event.peer.same_site and event.peer.role != "collector" and speaks):
                return
            self._present.add(event.peer.device_id)
        else:
            self._present.discard(event.device_id)
        if self._watcher is not None:
            await self._watcher(event)


class _NoRanks:
    """Neighbours for a follower that asks its own source whenever it is due: that source is in the office."""

    def __init__(self, neighbour: Callable[[DeviceId, str], MetadataSource], prefix: str) -> None:
        self._neighbour, self._prefix = neighbour, prefix

    def site_peers(self) -> Mapping[DeviceId, int]:
        return {}

    def metadata_source(self, device: DeviceId) -> MetadataSource:
        return self._neighbour(device, self._prefix)


class _Wanted:
    """Which manifests to keep of the site's repository: those that its policies name, then others, up to ``MANIFESTS_MAX``."""

    def __init__(self, site: str) -> None:
        self._site = site

    def __call__(self, index: Index, documents: Mapping[str, bytes]) -> Collection[str]:
        named = set[str]()
        for path in index.policies:
            with contextlib.suppress(InputError, KeyError):
                policy = decode_policy(documents[path], path)
                named.update(f"/{one.release}@{one.version}.manifest" for one in policy.assignments)
        own = own_releases(self._site, index)
        own_first = sorted(own, key=lambda path: f"/{path.rpartition('/')[2]}" not in named)
        return own_first[:MANIFESTS_MAX]


class FolderSource:
    """An origin tree in a folder of this machine, as a source of metadata. Believed in nothing, like any other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = str(folder)

    def stamp(self) -> object:
        """Changes with every publication; None while there is none. Blocking."""
        try:
            status = (self._folder / "metadata" / "timestamp.json").stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size

    async def fetch(self, path: str, size_bytes_max: int) -> bytes:
        check_tree_path(path)
        return await trio.to_thread.run_sync(self._read, path, size_bytes_max)

    def _read(self, path: str, size_bytes_max: int) -> bytes:
        try:
            descriptor = os.open(self._folder / path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                return file.read(size_bytes_max + 1)
        except FileNotFoundError:
            raise SourceMissing(f"{self._folder} has no {path}") from None
        except OSError as error:
            raise SourceFailed(f"{self._folder / path} cannot be read: {error.strerror}") from None


def _policies(word: SiteWord) -> Iterable[Policy]:
    with contextlib.suppress(StorageError, UntrustedBytes):
        for path in word.view.index().policies:
            with contextlib.suppress(InputError):
                yield decode_policy(word.view.read(path), path)
