"""Neighbours: the overlay as the other rooms want to see it, each through its own narrow protocol.

``swarm`` sees holders of chunks at its site, ``trust`` sees sources of metadata, ``compliance`` sees links to hand reports over.
Errors of a session are translated here, once, into what the asking room acts on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import trio

from pcm_p2p.content.chunk import SEALED_SIZE_BYTES_MAX
from pcm_p2p.errors import TransferError
from pcm_p2p.gossip.overlay import Overlay
from pcm_p2p.ids import ChunkId, DeviceId
from pcm_p2p.swarm.events import ChunkFailure
from pcm_p2p.swarm.origin import OriginClient, OriginMissing
from pcm_p2p.swarm.peers import ChunkNotServed, UploadRefused
from pcm_p2p.swarm.seeder import Seeder
from pcm_p2p.trust.client import MetadataSource, TrustClient
from pcm_p2p.trust.site_root import PREFIX
from pcm_p2p.trust.updater import SourceFailed, SourceMissing
from pcm_p2p.wire.messages import ChunkGet, FileGet, Message, Roster
from pcm_p2p.wire.session import PeerRefused, PeerTooSlow, Refuse, Session, SessionClosed

_REFUSALS: dict[str, ChunkFailure] = {"missing": "missing", "busy": "busy", "limit": "busy"}


class Neighbours:
    """``collector_address`` gives the host and port of a collector of the signed fleet document, or None."""

    def __init__(self, overlay: Overlay, collector_address: Callable[[DeviceId], tuple[str, int] | None]) -> None:
        self._overlay = overlay
        self._collector_address = collector_address

    # For swarm.fetcher

    async def send(self, device: DeviceId, message: Message, /) -> None:
        with contextlib.suppress(SessionClosed):
            await self._overlay.send(device, message)

    async def broadcast(self, message: Message, /, *, besides: DeviceId | None = None) -> None:
        """To all sessions of this site: what the swarm says concerns nobody else."""
        await self._overlay.broadcast(message, () if besides is None else (besides,), site_only=True)

    async def fetch_chunk(self, device: DeviceId, chunk: ChunkId, size_bytes_max: int, /) -> bytes:
        try:
            return await self._overlay.fetch_chunk(device, chunk, min(size_bytes_max, SEALED_SIZE_BYTES_MAX))
        except PeerRefused as error:
            raise ChunkNotServed(error.message, _REFUSALS.get(error.reason, "error")) from None
        except PeerTooSlow as error:
            raise ChunkNotServed(error.message, "slow") from None
        except SessionClosed as error:
            raise ChunkNotServed(error.message, "gone") from None

    # For daemon.follower

    def site_peers(self) -> Mapping[DeviceId, int]:
        return {peer.device_id: peer.weight for peer in self._overlay.site_peers()}

    def metadata_source(self, device: DeviceId) -> MetadataSource:
        return self.source_below(device, "")

    def source_below(self, device: DeviceId, prefix: str) -> MetadataSource:
        """A neighbour as a source of another tree than the fleet's, whose files have ``prefix`` before their paths."""
        return _PeerSource(self._overlay, device, prefix)

    # For compliance.carry

    def link(self, device: DeviceId) -> Session | None:
        return self._overlay.session_with(device)

    async def dial_collector(
        self, collector: DeviceId, *, task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Open a session with a collector, report it as started, and hold it until it ends. Raises ``TransferError``."""
        address = self._collector_address(collector)
        if address is None:
            raise TransferError(f"the fleet document has no collector {collector.short}")
        async with self._overlay.dial(*address, role="collector") as session:
            if session.device != collector:
                raise TransferError(
                    f"{address[0]}:{address[1]} is collector {session.device.short}, not {collector.short}"
                )
            # Who else is here: the console draws those that never report, instead of not knowing of them.
            session.post(Roster(self._overlay.roster()))
            task_status.started(session)
            await session.closed.wait()


class _PeerSource:
    """A neighbour as a source of metadata and targets."""

    def __init__(self, overlay: Overlay, device: DeviceId, prefix: str) -> None:
        self._overlay = overlay
        self._device = device
        self._prefix = prefix
        self.name = device.hex()

    async def fetch(self, path: str, size_bytes_max: int) -> bytes:
        try:
            return await self._overlay.fetch_file(self._device, self._prefix + path, size_bytes_max)
        except PeerRefused as error:
            if error.reason == "missing":
                raise SourceMissing(f"{self._device.short} has no {path}") from None
            raise SourceFailed(f"{self._device.short} refused {path}: {error.reason[:40]}") from None
        except TransferError as error:
            raise SourceFailed(error.message) from None


class OriginSource:
    """The origin as a source of metadata and targets."""

    name = "origin"

    def __init__(self, origin: OriginClient) -> None:
        self._origin = origin

    async def fetch(self, path: str, size_bytes_max: int) -> bytes:
        try:
            return await self._origin.get(path, size_bytes_max)
        except OriginMissing as error:
            raise SourceMissing(error.message) from None
        except TransferError as error:
            raise SourceFailed(error.message) from None


def serve_neighbours(
    overlay: Overlay, seeder: Seeder, client: TrustClient, of_site: Callable[[str], bytes | None] = lambda _: None
) -> None:
    """Register what neighbours may ask of this device: chunks within the site, trusted files for everybody of the fleet.
    ``of_site`` gives a trusted file of the site's own repository, by its path with the prefix."""

    async def chunk(device: DeviceId, request: ChunkGet) -> bytes:
        if all(peer.device_id != device for peer in overlay.site_peers()):
            raise Refuse("denied")  # chunks do not cross from site to site: that would be the WAN
        try:
            return await seeder.serve_chunk(device, ChunkId(request.chunk))
        except UploadRefused as error:
            raise Refuse(error.reason) from None

    async def file(_device: DeviceId, request: FileGet) -> bytes:
        serve = of_site if request.path.startswith(PREFIX) else client.serve
        data = await trio.to_thread.run_sync(serve, request.path)
        if data is None:
            raise Refuse("missing")
        return data

    overlay.serve(ChunkGet, chunk)
    overlay.serve(FileGet, file)
