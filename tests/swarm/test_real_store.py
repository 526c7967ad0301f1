"""Fetchers with real stores, real threads, a real HTTP origin and a crash: what virtual time leaves out."""

from __future__ import annotations

import random
from pathlib import Path

import trio
from office_in_memory import Release, make_release, make_update

from pcm_p2p.config import Origin as Settings
from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.decoding.decoder import Decoder
from pcm_p2p.content.keeping.store import ChunkStore
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


class World:
    """Three devices with state on disk, and an origin; their daemons end with ``run``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counters, self.link = OriginCounters(), Link()
        rng = random.Random(3)
        self.devices = [DeviceId(rng.randbytes(16)) for _ in range(3)]

    def store(self, me: DeviceId) -> ChunkStore:
        return ChunkStore(self.folder / me.hex() / "store", 1 << 30)

    async def run(self, release: Release) -> set[str]:
        """Until all have the release; returns where its segments came from."""
        sources: set[str] = set()
        async with trio.open_nursery() as nursery:

            async def serve(*, task_status: trio.TaskStatus[tuple[str, int]]) -> None:
                await serve_origin(
                    self.folder / "origin", "127.0.0.1", 0, counters=self.counters, task_status=task_status
                )

            host, port = await nursery.start(serve)
            for me in self.devices:
                await nursery.start(self._device, me, f"http://{host}:{port}")
            for me, (fetcher, _) in self.link.ends.items():
                for other in self.devices:
                    if other != me:
                        fetcher.peer_up(other, 8)
                await fetcher.want(release.manifest)
            for fetcher, _ in self.link.ends.values():
                await fetcher.wait_complete(release.manifest.manifest_id)
                sources |= {row.source[:4] for row in fetcher.why(release.manifest.manifest_id)}
            nursery.cancel_scope.cancel()
        return sources

    async def _device(self, me: DeviceId, url: str, *, task_status: trio.TaskStatus[None]) -> None:
        store = await trio.to_thread.run_sync(self.store(me).open)
        async with (
            Decoder() as decoder,
            OriginClient([url], Settings(), self.folder / me.hex() / "parts") as origin,
            trio.open_nursery() as nursery,
        ):
            fetcher = Fetcher(store, self.link.of(me), origin, me, decoder=decoder, settle_s=0.3)
            self.link.ends[me] = fetcher, Seeder(store)
            await nursery.start(fetcher.run)
            task_status.started()

    def assert_complete(self, release: Release) -> None:
        for me in self.devices:
            store = self.store(me)
            store.open()
            assert all(store.get(chunk) is not None for chunk in release.chunks)
            assert not list((self.folder / me.hex() / "parts").iterdir())


async def test_three_devices_fetch_a_release_once_and_a_restart_fetches_nothing(tmp_path: Path) -> None:
    release = make_release(8 << 20, chunk_bytes=256 << 10)
    publish(release, tmp_path / "origin")
    world = World(tmp_path)
    with trio.fail_after(60):
        assert await world.run(release) <= {"wan:", "lan:"}
        assert world.counters.segment_bytes == release.blob_bytes
        assert await world.run(release) == {"inst"}
    assert world.counters.segment_bytes == release.blob_bytes
    world.assert_complete(release)


async def test_an_update_costs_its_deltas_though_parts_of_the_base_rot_on_one_device(tmp_path: Path) -> None:
    old = make_release(8 << 20, chunk_bytes=256 << 10)
    new = make_update(old)
    publish(new, tmp_path / "origin")
    world = World(tmp_path)
    for me in world.devices[:2]:
        store = world.store(me)
        store.open()
        for chunk, data in old.chunks.items():
            store.put(Chunk.verified(chunk, data))
    rotten = [chunk for chunk in old.chunks if chunk not in new.chunks][:3]
    for chunk in rotten:
        [file] = (tmp_path / world.devices[0].hex() / "store").rglob(chunk.hex())
        file.write_bytes(b"rot")
    with trio.fail_after(60):
        await world.run(new)
    assert world.counters.segment_bytes == new.bytes_of("delta") < new.bytes_of("full") // 20
    world.assert_complete(new)
