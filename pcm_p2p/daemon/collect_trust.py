"""What a collector believes: the fleet's metadata, learned from the origin and from the devices that call on it.

A collector without it would take reports of revoked devices, and of devices that a retired authority certified. It keeps no
releases and serves nobody: of the targets it needs the standing ones alone. News come as a device's do: each visitor says its
digest when it connects, and who claims something newer is asked for it on the session that it opened (``gossip.spread`` decides
whom, and holds lies against them); the origin is polled beside that, for fleets whose devices all report through carriers.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from random import Random
from typing import Any

import trio

from pcm_p2p.collector.archive import Archive, Revocation
from pcm_p2p.config import Origin
from pcm_p2p.daemon.admission import Admission
from pcm_p2p.daemon.follower import Follower
from pcm_p2p.errors import StorageError, TransferError
from pcm_p2p.gossip.peer import PeerDown, PeerInfo, PeerUp
from pcm_p2p.gossip.spreader import Spreader
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust.client import MetadataSource, TrustClient
from pcm_p2p.trust.deny import Revoked
from pcm_p2p.trust.identity import PeerIdentity
from pcm_p2p.trust.updater import SourceFailed, SourceMissing
from pcm_p2p.wire.messages import Digest, FileGet, Message
from pcm_p2p.wire.session import PeerRefused, Session

log = logging.getLogger(__name__)

FETCH_TIMEOUT_S = 15.0
COUNT_INTERVAL_S = 5.0
"""Choice: how late the console learns that reports of revoked devices were refused."""


class Visitors:
    """The devices with a session here, as ``Spreader`` and ``Follower`` want to see neighbours. One session each counts."""

    def __init__(self) -> None:
        self._sessions: dict[DeviceId, Session] = {}
        self._handler: Callable[[DeviceId, Any], Awaitable[None]] | None = None
        self._watcher: Callable[[PeerUp | PeerDown], Awaitable[None]] | None = None

    # For collector.Collector

    async def came(self, session: Session) -> None:
        known = session.device in self._sessions
        self._sessions[session.device] = session
        if not known and self._watcher is not None:
            await self._watcher(PeerUp(_peer_info(session)))

    async def went(self, session: Session) -> None:
        if self._sessions.get(session.device) is session:
            del self._sessions[session.device]
            if self._watcher is not None:
                await self._watcher(PeerDown(session.device, session.closed_reason))

    async def said(self, session: Session, message: Message) -> None:
        if isinstance(message, Digest) and self._handler is not None:
            await self._handler(session.device, message)

    # For gossip.spreader

    def register(self, message_type: type[Message], handler: Callable[[DeviceId, Any], Awaitable[None]], /) -> None:
        assert message_type is Digest, "nothing else is heard here"
        self._handler = handler

    def watch(self, watcher: Callable[[PeerUp | PeerDown], Awaitable[None]], /) -> None:
        self._watcher = watcher

    async def send(self, device: DeviceId, message: Message, /) -> None:
        if (session := self._sessions.get(device)) is not None:
            await session.send(message)

    async def broadcast(self, message: Message, except_: Collection[DeviceId] = (), /) -> None:
        """Nobody: a collector serves no metadata, so its news are of no use to others."""

    # For daemon.follower

    def site_peers(self) -> Mapping[DeviceId, int]:
        """None: the collector polls the origin for itself alone."""
        return {}

    def metadata_source(self, device: DeviceId) -> MetadataSource:
        return _Visitor(device, self._sessions.get(device))


class _Visitor:
    """A device that called on the collector, as a source of metadata."""

    def __init__(self, device: DeviceId, session: Session | None) -> None:
        self.name = device.hex()
        self._session = session

    async def fetch(self, path: str, size_bytes_max: int) -> bytes:
        if self._session is None:
            raise SourceFailed("its session has ended")
        try:
            return await self._session.fetch(lambda number: FileGet(number, path), size_bytes_max, FETCH_TIMEOUT_S)
        except PeerRefused as error:
            if error.reason == "missing":
                raise SourceMissing(f"{self._session.device.short} has no {path}") from None
            raise SourceFailed(f"{self._session.device.short} refused {path}: {error.reason[:40]}") from None
        except TransferError as error:
            raise SourceFailed(error.message) from None


class CollectorTrust:
    """``run`` in a nursery. ``origin`` None: none is configured."""

    def __init__(
        self,
        me: DeviceId,
        client: TrustClient,
        admission: Admission,
        archive: Archive,
        origin: MetadataSource | None,
        settings: Origin,
    ) -> None:
        self.visitors = Visitors()
        self._admission = admission
        self._archive = archive
        self._on_change: Callable[[], None] = lambda: None
        self._refused: Counter[DeviceId] = Counter()
        self.follower = Follower(
            client,
            me,
            self.visitors,
            origin,
            weight=1,
            poll_s=settings.poll_s,
            settle_s=0.0,
            wall_s=time.time,
            on_change=self._changed,
        )
        rng = Random(secrets.randbits(64))  # noqa: S311 - ties and jitter
        self._spreader = Spreader(self.visitors, self.follower.digest(), self.follower.ask_neighbour, rng=rng)

    async def run(
        self, on_change: Callable[[], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Learn until cancelled; ``on_change`` is called after each change of who may speak.

        Reports as started once the archive knows who was revoked so far.
        """
        self._on_change = on_change
        await self._tell_archive()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._spreader.run)
            nursery.start_soon(self.follower.run)
            nursery.start_soon(self._count)
            task_status.started()

    def verify_author(self, certificate_der: bytes) -> PeerIdentity:
        """As ``Admission.verify_author``, and remembers whose reports were refused. From any thread."""
        try:
            return self._admission.verify_author(certificate_der)
        except Revoked as error:
            self._refused[error.device] += 1
            raise

    async def _changed(self, digest: Digest) -> None:
        if self._admission.changed():
            self._on_change()
            await self._tell_archive()
        for problem in self._admission.problems:
            log.error("%s", problem)
        await self._spreader.own_changed(digest)

    async def _tell_archive(self) -> None:
        revoked = [
            Revocation(one.device_id, int(one.since.timestamp() * 1_000), one.reason)
            for one in self._admission.revoked()
        ]
        try:
            await self._archive.revoke(revoked)
        except StorageError as error:
            log.error("the archive cannot note who is revoked: %s", error)

    async def _count(self) -> None:
        while True:
            await trio.sleep(COUNT_INTERVAL_S)
            counts = {device: self._refused.pop(device) for device in [*self._refused]}
            try:
                await self._archive.refused(counts)
            except StorageError as error:
                log.error("refused reports cannot be counted: %s", error)
                self._refused.update(counts)


def _peer_info(session: Session) -> PeerInfo:
    hello = session.peer_hello
    return PeerInfo(session.device, "", hello.site, session.role, 0, False, hello.agent, None, hello.uptime)
