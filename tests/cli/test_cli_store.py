"""``store stats``, ``store verify``, ``store gc``: the same with a daemon and on the folder itself."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from command_line import Command, Ended

from pcm_p2p.content.chunk import Chunk, seal
from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.content.manifest import SCHEMA, Artifact, ChunkerParameters, Manifest, Segment
from pcm_p2p.daemon import upkeep
from pcm_p2p.daemon.control import serve_control
from pcm_p2p.daemon.state_lock import lock_state
from pcm_p2p.daemon.upkeep import Upkeep
from pcm_p2p.ids import ChunkId

QUOTA = 1_000_000
Run = Callable[..., Awaitable[Ended]]


def chunks_of(*sizes: int, seed: int) -> list[Chunk]:
    rng = random.Random(seed)
    return [Chunk.of(rng.randbytes(size)) for size in sizes]


def release_of(chunks: list[Chunk]) -> Manifest:
    """A release of one file that is made of ``chunks``."""
    data, count = b"".join(chunk.data for chunk in chunks), len(chunks)
    positions, sha256 = struct.pack(f"<{count}I", *range(count)), hashlib.sha256(data).digest()
    return Manifest(
        schema=SCHEMA,
        release="sample",
        version="1",
        counter=1,
        chunker=ChunkerParameters("fastcdc2020/nc1", 65536, 262144, 1048576),
        artifacts=(Artifact("app", "exact", len(data), sha256, len(data), sha256, positions),),
        chunk_ids=b"".join(chunk.id for chunk in chunks),
        chunk_sizes=struct.pack(f"<{count}I", *(len(chunk.data) for chunk in chunks)),
        segments=(Segment(bytes(32), len(data), "full", 0, count),),
    )


@dataclass
class Device:
    """A state folder with the first two of three chunks of a release, and two that no manifest names."""

    state: Path
    manifest: Manifest
    release: list[Chunk]
    strays: list[Chunk]
    told: list[ChunkId] = field(default_factory=list)

    def store(self) -> ChunkStore:
        return ChunkStore(self.state / "store", QUOTA).open()

    def path(self, chunk: Chunk) -> Path:
        return self.state / "store" / "chunks" / chunk.id.hex()[:2] / chunk.id.hex()

    def here(self) -> set[ChunkId]:
        return set(self.store().scan().ids())


@pytest.fixture
def device(tmp_path: Path) -> Device:
    state = tmp_path / "state"
    release = chunks_of(1000, 2000, 3000, seed=1)
    device = Device(state, release_of(release), release, chunks_of(4000, 5000, seed=2))
    store = device.store()
    for chunk in [*release[:2], *device.strays]:
        store.put(chunk)
    (state / "config.toml").write_text(f"[store]\nquota_bytes_max = {QUOTA}\n")
    place = state / "releases" / "sample"
    place.mkdir(parents=True)
    (place / f"{1:020d}-{device.manifest.manifest_id.hex()}.manifest").write_bytes(device.manifest.encoded)
    (place / f"{2:020d}-{'0' * 64}.manifest").write_bytes(b"torn")
    return device


@pytest.fixture(params=["daemon", "folder"])
async def run(
    request: pytest.FixtureRequest, device: Device, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Run]:
    """Runs a command in a thread: a daemon answers it, or there is none."""
    monkeypatch.setattr(upkeep, "NOTICE_S", 0.0)

    async def run(*words: object) -> Ended:
        return await trio.to_thread.run_sync(lambda: cli("store", *words, "--state", device.state))

    if request.param == "folder":
        yield run
        return
    async with daemon_of(device):
        yield run


@asynccontextmanager
async def daemon_of(device: Device, store: ChunkStore | None = None) -> AsyncIterator[ChunkStore]:
    def let_go(chunks: Iterable[ChunkId]) -> None:
        device.told.extend(chunks)

    store = store or device.store()
    service = Upkeep(store, device.state, let_go)
    with lock_state(device.state):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run)
            await nursery.start(serve_control, device.state, service.commands())
            while not store.statistics().scanned:
                await trio.lowlevel.checkpoint()
            yield store
            nursery.cancel_scope.cancel()


async def test_stats_show_what_is_kept_and_of_what(device: Device, run: Run) -> None:
    facts = (await run("stats", "--json")).facts
    sealed = [len(seal(chunk)) for chunk in [*device.release[:2], *device.strays]]
    assert facts["schema"] == "pcm.store/1"
    assert facts["scanned"] is True
    assert (facts["chunks"], facts["bytes"], facts["quota_bytes_max"]) == (4, sum(sealed), QUOTA)
    assert facts["wanted_bytes"] + facts["kept_bytes"] + facts["last_bytes"] + facts["surplus_bytes"] == sum(sealed)
    assert facts["releases"] == [
        {"name": "sample", "version": "1", "chunks_total": 3, "chunks_have": 2, "bytes": sum(sealed[:2])}
    ]
    shown = await run("stats")
    assert shown.status == 0
    rows = [row.split() for row in shown.out.splitlines()]
    assert rows[0] == ["store", "4", "chunks,", "12", "kB", "of", "1", "MB"]
    assert rows[-1] == ["sample", "1", "2/3", "3.02", "kB"]


async def test_a_good_store_verifies(run: Run) -> None:
    assert (await run("verify", "--json")).facts == {
        "state": "done",
        "chunks_total": 4,
        "chunks_done": 4,
        "rotten": 0,
    }
    shown = await run("verify")
    assert (shown.status, shown.out) == (0, "4 of 4 chunks read, all are good\n")


async def test_rot_is_found_deleted_and_said(device: Device, run: Run) -> None:
    for chunk in device.release[:2]:
        path = device.path(chunk)
        data = path.read_bytes()
        path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    ended = await run("verify")
    assert (ended.status, ended.out) == (1, "4 of 4 chunks read, rotten and deleted: 2\n")
    assert not device.path(device.release[0]).exists()
    again = await run("verify", "--json")
    assert (again.status, again.facts["rotten"]) == (0, 0)


async def test_surplus_is_dropped_and_what_a_release_names_stays(device: Device, run: Run) -> None:
    ended = await run("gc", "--all-surplus", "--json")
    kept = [len(seal(chunk)) for chunk in device.release[:2]]
    assert ended.facts == {
        "dropped": 2,
        "dropped_bytes": sum(len(seal(chunk)) for chunk in device.strays),
        "chunks": 2,
        "bytes": sum(kept),
    }
    assert device.here() == {chunk.id for chunk in device.release[:2]}
    assert (await run("gc")).out == "0 chunks dropped, 0 B; 3.02 kB are left\n"


async def test_without_a_daemon_stats_call_surplus_what_gc_would_drop(device: Device, cli: Command) -> None:
    facts = (await trio.to_thread.run_sync(lambda: cli("store", "stats", "--json", "--state", device.state))).facts
    assert facts["surplus_bytes"] == sum(len(seal(chunk)) for chunk in device.strays)


async def test_what_a_trusted_release_names_stays_though_it_was_never_applied(device: Device, run: Run) -> None:
    fetched = release_of(device.strays)
    place = device.state / "trust" / "generations" / "7" / "targets" / "releases" / "main"
    place.mkdir(parents=True)
    (place / f"{'a' * 64}.other@1.manifest").write_bytes(fetched.encoded)
    assert (await run("gc", "--json")).facts["dropped"] == 0


async def test_gc_stops_at_the_size_that_is_asked_for(device: Device, run: Run) -> None:
    ended = await run("gc", "--to", 8_500)
    assert ended.status == 0
    assert ended.out.startswith("1 chunk dropped, ")
    assert len(device.here()) == 3
    short = await run("gc", "--to", 100)
    assert short.status == 0
    assert "stays above 100 B" in short.err
    assert device.here() == {chunk.id for chunk in device.release[:2]}


async def test_a_daemon_tells_its_neighbours_and_goes_by_what_it_knows_of_them(
    device: Device, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "NOTICE_S", 0.0)
    one, other = device.release[:2]
    store = device.store()
    store.set_wanted({device.strays[0].id})
    store.set_tiers({one.id}, {device.strays[1].id})
    async with daemon_of(device, store):
        await trio.to_thread.run_sync(lambda: cli("store", "gc", "--state", device.state))
    assert device.told == [other.id]
    assert device.here() == {one.id, *(chunk.id for chunk in device.strays)}


async def test_what_becomes_wanted_after_the_notice_stays(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "NOTICE_S", 0.0)
    store = device.store().scan()

    def let_go(chunks: Iterable[ChunkId]) -> None:
        store.set_wanted(list(chunks))

    facts = await Upkeep(store, device.state, let_go).gc({})
    assert facts["dropped"] == 0
    assert len(store.ids()) == 4


async def test_a_daemon_that_still_reads_its_index_drops_nothing(device: Device, cli: Command) -> None:
    service = Upkeep(device.store(), device.state, device.told.extend)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, device.state, service.commands())
        ended = await trio.to_thread.run_sync(lambda: cli("store", "gc", "--state", device.state))
        nursery.cancel_scope.cancel()
    assert ended.status == 4
    assert "Try again" in ended.err


def test_a_folder_without_a_store_is_named(cli: Command, tmp_path: Path) -> None:
    for words in (("stats",), ("verify",), ("gc",)):
        ended = cli("store", *words, "--state", tmp_path)
        assert (ended.status, ended.out) == (2, "")
        assert f"{tmp_path / 'store'}: there is no store" in ended.err
        assert "--state" in ended.err


def test_a_folder_that_a_silent_daemon_uses_is_left_alone(cli: Command, device: Device) -> None:
    with lock_state(device.state):
        ended = cli("store", "gc", "--state", device.state)
    assert ended.status == 6
    assert "in use by another daemon" in ended.err
    assert len(device.here()) == 4


def test_two_ends_for_gc_are_refused(cli: Command, device: Device) -> None:
    ended = cli("store", "gc", "--to", 5, "--all-surplus", "--state", device.state)
    assert ended.status == 2
    assert "exclude each other" in ended.err
