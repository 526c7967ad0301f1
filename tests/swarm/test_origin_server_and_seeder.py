"""Serving: the static tree over HTTP, and chunks to neighbours."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
import trio
from office_in_memory import InlineWorkers, MemoryStore, make_release
from trio.testing import MockClock

from pcm_p2p.config import Origin as Settings
from pcm_p2p.content.chunk import Chunk, open_sealed_untrusted
from pcm_p2p.content.manifest import Segment
from pcm_p2p.errors import InputError, StorageError
from pcm_p2p.ids import ChunkId, DeviceId, SegmentId
from pcm_p2p.swarm.origin import OriginClient, segment_path
from pcm_p2p.swarm.origin_server import OriginCounters, find_file, serve_origin
from pcm_p2p.swarm.pace import Pace
from pcm_p2p.swarm.peers import UploadRefused
from pcm_p2p.swarm.seeder import WAITING_A_PEER_MAX, WAITING_MAX, Seeder

YOU = DeviceId(bytes(16))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "origin" / "metadata").mkdir(parents=True)
    (tmp_path / "origin" / "metadata" / "timestamp.json").write_bytes(b"0123456789")
    (tmp_path / "origin" / ".secret").write_bytes(b"secret")
    (tmp_path / "outside").write_bytes(b"outside")
    (tmp_path / "origin" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "origin" / "folder").symlink_to(tmp_path)
    return tmp_path / "origin"


@pytest.mark.parametrize(
    "path",
    ["", "/", "metadata", "metadata/", ".secret", "../outside", "metadata/../../outside", "link", "folder/outside",
     "metadata//timestamp.json", "/".join("a" * 9), "metadata/timestamp.json\0", "%2e%2e/outside", "a\\b", "nothing"],
)  # fmt: skip
def test_only_plain_files_below_the_tree_are_found(tree: Path, path: str) -> None:
    assert find_file(tree, path) is None


async def test_a_real_server_answers_whole_files_ranges_and_nothing_else(tree: Path, tmp_path: Path) -> None:
    counters = OriginCounters()
    async with trio.open_nursery() as nursery:
        port_file = tmp_path / "port"

        async def run(*, task_status: trio.TaskStatus[tuple[str, int]]) -> None:
            await serve_origin(tree, "127.0.0.1", 0, port_file=port_file, counters=counters, task_status=task_status)

        host, port = await nursery.start(run)
        assert port_file.read_text() == f"{host}:{port}\n"
        async with httpx2.AsyncClient(trust_env=False, base_url=f"http://{host}:{port}") as client:
            file = "/metadata/timestamp.json"
            answer = await client.get(file)
            assert (answer.status_code, answer.content) == (200, b"0123456789")
            answer = await client.get(file, headers={"range": "bytes=4-"})
            assert (answer.status_code, answer.content) == (206, b"456789")
            assert answer.headers["content-range"] == "bytes 4-9/10"
            assert (await client.get(file, headers={"range": "bytes=10-"})).status_code == 416
            assert (await client.head(file)).headers["content-length"] == "10"
            for path in ("/", "/metadata", "/.secret", "/link", "/folder/outside", "/..%2foutside", "/nothing"):
                assert (await client.get(path)).status_code == 404
            assert (await client.put(file, content=b"x")).status_code == 405
        assert counters.answers >= 10
        with pytest.raises(InputError, match="cannot be listened on"):
            await serve_origin(tree, host, port, task_status=trio.TASK_STATUS_IGNORED)
        nursery.cancel_scope.cancel()


async def test_client_and_server_together_at_a_limited_rate(tmp_path: Path) -> None:
    blob = random.Random(2).randbytes(300_000)
    segment = Segment(id=bytes(SegmentId.of(blob)), size=len(blob), kind="full", first=0, count=1)
    place = tmp_path / "origin" / segment_path(segment.segment_id)
    place.parent.mkdir(parents=True)
    place.write_bytes(blob)
    counters = OriginCounters()
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[tuple[str, int]]) -> None:
            await serve_origin(
                tmp_path / "origin",
                "127.0.0.1",
                0,
                rate_bytes_per_s=500_000,
                counters=counters,
                task_status=task_status,
            )

        host, port = await nursery.start(run)
        began = trio.current_time()
        async with OriginClient([f"http://{host}:{port}"], Settings(), tmp_path / "parts") as client:
            path = await client.fetch_segment(segment, lambda done, new: None)
            assert path.read_bytes() == blob
            assert client.statistics().wan_bytes == len(blob) == counters.segment_bytes
        assert trio.current_time() - began >= 0.4
        nursery.cancel_scope.cancel()


def test_the_server_ends_on_sigterm(tree: Path, tmp_path: Path) -> None:
    code = (
        "import sys, trio; from pathlib import Path; from pcm_p2p.swarm.origin_server import serve_origin;"
        "trio.run(lambda: serve_origin(Path(sys.argv[1]), '127.0.0.1', 0, port_file=Path(sys.argv[2])))"
    )
    port_file = tmp_path / "port"
    process = subprocess.Popen([sys.executable, "-c", code, str(tree), str(port_file)])

    async def until_ready() -> None:
        with trio.fail_after(60):
            while not port_file.exists():  # noqa: ASYNC110 - another process
                await trio.sleep(0.02)

    try:
        trio.run(until_ready)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()


def seeder_with_chunks(**options: object) -> tuple[Seeder, list[ChunkId]]:
    release, store = make_release(200_000), MemoryStore()
    for data in release.chunks.values():
        store.put(Chunk.of(data))
    return Seeder(store, workers=InlineWorkers(), **options), list(release.chunks)  # type: ignore[arg-type]


async def test_a_chunk_is_served_sealed_and_counted() -> None:
    seeder, chunks = seeder_with_chunks()
    sealed = await seeder.serve_chunk(YOU, chunks[0])
    assert open_sealed_untrusted(chunks[0], sealed).id == chunks[0]
    assert seeder.statistics().lan_out_bytes == len(sealed)


async def test_what_is_not_there_is_said_to_be_missing() -> None:
    seeder, chunks = seeder_with_chunks()
    with pytest.raises(UploadRefused, match="missing"):
        await seeder.serve_chunk(YOU, ChunkId(bytes(32)))
    seeder._store.get_sealed = lambda chunk: None  # type: ignore[method-assign]
    with pytest.raises(UploadRefused, match="missing"):
        await seeder.serve_chunk(YOU, chunks[0])
    assert seeder.statistics().missing == 2


async def test_a_store_that_fails_is_an_error_and_frees_its_slot() -> None:
    seeder, chunks = seeder_with_chunks(upload_slots=1)

    def fail(chunk: ChunkId) -> bytes:
        raise StorageError("the disk is gone")

    seeder._store.get_sealed = fail  # type: ignore[method-assign]
    for _ in range(3):
        with pytest.raises(UploadRefused, match="error"):
            await seeder.serve_chunk(YOU, chunks[0])


async def test_the_queue_is_bounded_for_each_neighbour_and_for_all(autojump_clock: MockClock) -> None:
    seeder, chunks = seeder_with_chunks(upload_slots=1, pace=Pace(50_000, burst_bytes=1))
    refused: list[str] = []

    async def ask(number: int) -> None:
        try:
            await seeder.serve_chunk(DeviceId(bytes([number]) * 16), chunks[0])
        except UploadRefused as error:
            refused.append(error.reason)

    async with trio.open_nursery() as nursery:
        for _ in range(WAITING_A_PEER_MAX + 5):
            nursery.start_soon(ask, 0)
        for number in range(WAITING_MAX + 20):
            nursery.start_soon(ask, number)
    assert len(refused) > 20
    assert set(refused) == {"busy"}
    assert await seeder.serve_chunk(YOU, chunks[0]), "all slots are free again"


async def test_a_cancelled_upload_frees_its_slot(autojump_clock: MockClock) -> None:
    seeder, chunks = seeder_with_chunks(upload_slots=1, pace=Pace(10, burst_bytes=1))
    with trio.move_on_after(1):
        await seeder.serve_chunk(YOU, chunks[0])
    seeder._pace = None
    assert await seeder.serve_chunk(YOU, chunks[0])
