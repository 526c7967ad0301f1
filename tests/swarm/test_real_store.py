"""Fetchers with real stores, real threads, a real HTTP origin and a crash: what virtual time leaves out."""

from __future__ import annotations

import random
from pathlib import Path

import trio
from office_in_memory import Release, make_release

from pcm_p2p.config import Origin as Settings
from pcm_p2p.content.decoder import Decoder
from pcm_p2p.content.store import ChunkStore
from pcm_p2p.ids import ChunkId, DeviceId
from pcm_p2p.swarm.fetcher import Fetcher
from pcm_p2p.swarm.origin import OriginClient, segment_path
from pcm_p2p.swarm.origin_server import OriginCounters, serve_origin
from pcm_p2p.swarm.peers import ChunkNotServed, UploadRefused
from pcm_p2p.swarm.seeder import Seeder
from pcm_p2p.wire.messages import Message


class Link:
    """Sessions by function call: what one fetcher says is handed to the other's, chunks go through the other's seeder."""

    def __init__(self) -> None:
        self.ends: dict[DeviceId, tuple[Fetcher, Seeder]] = {}

    def of(self, device: DeviceId) -> _End:
        return _End(self, device)


class _End:
    def __init__(self, link: Link, me: DeviceId) -> None:
        self._link, self._me = link, me

    async def send(self, device: DeviceId, message: Message, /) -> None:
        await self._link.ends[device][0].on_message(self._me, message)

    async def broadcast(self, message: Message, /, *, besides: DeviceId | None = None) -> None:
        for device in self._link.ends:
            if device not in (self._me, besides):
                await self.send(device, message)

    async def fetch_chunk(self, device: DeviceId, chunk: ChunkId, size_bytes_max: int, /) -> bytes:
        try:
            return await self._link.ends[device][1].serve_chunk(self._me, chunk)
        except UploadRefused as error:
            raise ChunkNotServed(error.message, "busy" if error.reason == "busy" else "missing") from None


def publish(release: Release, folder: Path) -> None:
    for segment, blob in release.blobs.items():
        place = folder / segment_path(segment)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(blob)


async def test_three_devices_fetch_a_release_once_and_a_restart_fetches_nothing(tmp_path: Path) -> None:
    release = make_release(8 << 20, chunk_bytes=256 << 10)
    publish(release, tmp_path / "origin")
    counters, link = OriginCounters(), Link()
    rng = random.Random(3)
    devices = [DeviceId(rng.randbytes(16)) for _ in range(3)]

    async def device(me: DeviceId, url: str, *, task_status: trio.TaskStatus[Fetcher]) -> None:
        folder = tmp_path / me.hex()
        store = await trio.to_thread.run_sync(ChunkStore(folder / "store", 1 << 30).open)
        async with (
            Decoder() as decoder,
            OriginClient([url], Settings(), folder / "parts") as origin,
            trio.open_nursery() as nursery,
        ):
            fetcher = Fetcher(store, link.of(me), origin, me, decoder=decoder, settle_s=0.3)
            link.ends[me] = fetcher, Seeder(store)
            await nursery.start(fetcher.run)
            task_status.started(fetcher)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def serve(*, task_status: trio.TaskStatus[tuple[str, int]]) -> None:
                await serve_origin(tmp_path / "origin", "127.0.0.1", 0, counters=counters, task_status=task_status)

            host, port = await nursery.start(serve)
            for round_number in range(2):
                async with trio.open_nursery() as office:
                    for me in devices:
                        await office.start(device, me, f"http://{host}:{port}")
                    for me, (fetcher, _) in link.ends.items():
                        for other in devices:
                            if other != me:
                                fetcher.peer_up(other, 8)
                        await fetcher.want(release.manifest)
                    for fetcher, _ in link.ends.values():
                        await fetcher.wait_complete(release.manifest.manifest_id)
                        source = {row.source[:4] for row in fetcher.why(release.manifest.manifest_id)}
                        assert source <= ({"wan:", "lan:"} if round_number == 0 else {"inst"})
                    office.cancel_scope.cancel()
                assert counters.segment_bytes == release.blob_bytes
            nursery.cancel_scope.cancel()
    for me in devices:
        store = ChunkStore(tmp_path / me.hex() / "store", 1 << 30)
        store.open()
        assert all(store.get(chunk) is not None for chunk in release.chunks)
