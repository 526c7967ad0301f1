"""The rebuilder: a fetcher that lacks a base, files that are installed here, and chunks in the store in between."""

from __future__ import annotations

import io
import logging
import shutil
import struct
import tarfile
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from pcm_p2p.apply.receipt import KeptArchive, Receipt
from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.keeping.memory_store import MemoryStore
from pcm_p2p.content.manifest import (
    SCHEMA,
    Artifact,
    Base,
    ChunkerParameters,
    Layout,
    Manifest,
    Segment,
    decode_untrusted,
)
from pcm_p2p.content.publishing.layout import make_layout
from pcm_p2p.daemon.rebuilder import FULL_S, IDLE_S, LOOK_S, Rebuilder, installed_layouts
from pcm_p2p.ids import ChunkId, DeviceId, ManifestId
from pcm_p2p.swarm.rebuilding import QUIET_MS, RANK_MS_MAX
from pcm_p2p.swarm.rendezvous import ranking
from pcm_p2p.swarm.workers import Workers

CHUNK = 8192
STATUS = "Package: app\nStatus: install ok installed\nArchitecture: all\nVersion: {}\n\n"
ME = DeviceId(bytes(16))
OTHER = DeviceId(bytes([1] * 16))


def pieces_of(data: bytes) -> list[Chunk]:
    return [Chunk.of(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]


class Sample:
    """An archive of four files whose stored form is the base of two deltas, and its files below ``root``.

    ``package``: the layout is said to be of a Debian package, whose files are below the root itself.
    """

    def __init__(self, root: Path, *, package: bool = True, layout: bytes | None = None) -> None:
        self.root, rng = root, Random(1)
        self.folder = root / "opt/app-1"
        self.folder.mkdir(parents=True)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for name in ("one", "two", "three", "four"):
                data = rng.randbytes(5 * CHUNK)
                (self.folder / name).write_bytes(data)
                info = tarfile.TarInfo(f"opt/app-1/{name}" if package else name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        self.base = pieces_of(out.getvalue())
        stored = root / "stored"
        stored.write_bytes(out.getvalue())
        self.layout = layout or make_layout(
            stored, "tar", [chunk.id for chunk in self.base], [len(chunk.data) for chunk in self.base]
        )
        stored.unlink()
        assert self.layout is not None
        self.layout_chunks = [Chunk.of(self.layout[at : at + 500]) for at in range(0, len(self.layout), 500)]
        self.manifest = self._manifest(package)
        self.status("1")

    def status(self, version: str) -> None:
        (self.root / "var/lib/dpkg").mkdir(parents=True, exist_ok=True)
        (self.root / "var/lib/dpkg/status").write_text(STATUS.format(version))

    def _manifest(self, package: bool) -> Manifest:
        new = [Chunk.of(Random(2).randbytes(CHUNK)), Chunk.of(Random(3).randbytes(CHUNK))]
        aids, half = [*self.base, *self.layout_chunks], len(self.base) // 2
        layout_first = 2 + len(self.base)
        bases = (range(2, 2 + half), range(2 + half, layout_first))
        size = sum(len(chunk.data) for chunk in new)
        row = Layout(0, "app", "tar", bytes([7] * 32), layout_first, len(self.layout_chunks))
        if package:
            row = msgspec.structs.replace(row, form="deb", package="app", package_version="1", architecture="all")
        manifest = Manifest(
            schema=SCHEMA,
            release="app",
            version="2",
            counter=2,
            chunker=ChunkerParameters("fastcdc2020/nc1", 65536, 262144, 1048576),
            artifacts=(Artifact("app", "exact", size, bytes(32), size, bytes(32), struct.pack("<2I", 0, 1)),),
            chunk_ids=b"".join(chunk.id for chunk in new),
            chunk_sizes=struct.pack("<2I", *(len(chunk.data) for chunk in new)),
            segments=(
                *(Segment(bytes(32), CHUNK, "full", at, 1) for at in (0, 1)),
                *(Segment(bytes(32), 100, "delta", at, 1, tuple(bases[at])) for at in (0, 1)),
                Segment(bytes(32), 500, "layout", layout_first, len(self.layout_chunks)),
            ),
            bases=(Base("1", bytes(32)),),
            aid_ids=b"".join(chunk.id for chunk in aids),
            aid_sizes=struct.pack(f"<{len(aids)}I", *(len(chunk.data) for chunk in aids)),
            layouts=(row,),
        )
        return decode_untrusted(msgspec.msgpack.encode(manifest))


class FakeFetcher:
    """Lacks a base until it is gained or comes over the LAN; gets layouts at once."""

    def __init__(self, sample: Sample, store: MemoryStore) -> None:
        self._sample, self._store, self._changed = sample, store, trio.Event()
        self.wanted: dict[ManifestId, Manifest] = {}
        self.lan: set[ChunkId] = set()
        self.layouts: set[int] = set()
        self.log: list[str] = []
        self.offline = False

    def want(self) -> None:
        self.wanted[self._sample.manifest.manifest_id] = self._sample.manifest
        self.change()

    def change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def bases_missing(self, manifest: ManifestId) -> dict[int, tuple[int, ...]]:
        missing = [
            2 + number
            for number, chunk in enumerate(self._sample.base)
            if not self._store.has(chunk.id) and chunk.id not in self.lan
        ]
        return {0: tuple(missing)} if missing and manifest in self.wanted else {}

    async def wait_bases_changed(self) -> None:
        await self._changed.wait()

    def want_layout(self, manifest: ManifestId, layout: int) -> None:
        if layout not in self.layouts:
            self.log.append("want")
            self.layouts.add(layout)
        if not self.offline:
            for chunk in self._sample.layout_chunks:
                self._store.put(chunk)

    def drop_layout(self, manifest: ManifestId, layout: int) -> None:
        self.log.append("drop")
        self.layouts.discard(layout)

    def gained(self, manifest: ManifestId, chunks: Collection[ChunkId]) -> None:
        assert all(self._store.has(chunk) for chunk in chunks)
        self.log.append("gained")
        self.change()


class AtOnce(Workers):
    """In the trio thread: virtual time does not wait for threads."""

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)


class Device:
    """A rebuilder and what is around it."""

    def __init__(self, sample: Sample, *, site: Collection[DeviceId] = (), quota_bytes_max: int = 0) -> None:
        self.sample = sample
        self.store = MemoryStore(quota_bytes_max)
        self.fetcher = FakeFetcher(sample, self.store)
        self.receipts: list[Receipt] = []
        self.rebuilder = Rebuilder(
            self.fetcher, self.store, sample.root, lambda: tuple(self.receipts), lambda: site, ME, AtOnce()
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.rebuilder.run)
            await trio.testing.wait_all_tasks_blocked()
            yield
            nursery.cancel_scope.cancel()

    def made(self) -> list[bool]:
        return [self.store.has(chunk.id) for chunk in self.sample.base]


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return Sample(tmp_path / "root")


async def test_a_base_that_is_installed_here_is_made_and_told(autojump_clock: MockClock, sample: Sample) -> None:
    device = Device(sample)
    async with device.running():
        began_s = trio.current_time()
        device.fetcher.want()
        await trio.sleep(1)
        assert all(device.made())
        assert device.fetcher.log[0] == "want"
        assert set(device.fetcher.log[1:-1]) == {"gained"}
        assert device.fetcher.log[-1] == "drop", "the layout is of no more use"
        assert trio.current_time() - began_s < IDLE_S, "it did not wait for its turn to look"


async def test_nothing_is_done_for_a_base_that_is_not_installed(autojump_clock: MockClock, sample: Sample) -> None:
    sample.status("3")
    device = Device(sample)
    async with device.running():
        device.fetcher.want()
        await trio.sleep(30)
        assert device.fetcher.log == []
        # The base is installed by hand while the office still lacks it.
        sample.status("1")
        await trio.sleep(61)
        assert all(device.made())


async def test_a_file_that_was_changed_rules_out_its_delta_only(autojump_clock: MockClock, sample: Sample) -> None:
    (sample.folder / "four").write_bytes(b"edited")
    device = Device(sample)
    async with device.running():
        device.fetcher.want()
        await trio.sleep(60)
        made, half = device.made(), len(sample.base) // 2
        assert all(made[:half])
        assert not all(made[half:])
        assert device.fetcher.log[-1] == "drop"
        assert device.fetcher.log.count("want") == 1, "it is not tried again and again"


async def test_chunks_that_turn_up_in_the_office_are_not_made(autojump_clock: MockClock, sample: Sample) -> None:
    device = Device(sample)
    device.fetcher.lan = {chunk.id for chunk in sample.base[3:]}
    async with device.running():
        device.fetcher.want()
        await trio.sleep(5)
        assert device.made() == [True] * 3 + [False] * (len(sample.base) - 3)


async def test_who_is_second_lets_the_first_do_it(autojump_clock: MockClock, sample: Sample) -> None:
    order = ranking({ME: 1, OTHER: 1}, bytes(sample.manifest.manifest_id))
    # A device that comes before this one in the order.
    first = (
        OTHER
        if order[0] == OTHER
        else next(
            device
            for device in (DeviceId(bytes([number] * 16)) for number in range(2, 99))
            if ranking({ME: 1, device: 1}, bytes(sample.manifest.manifest_id))[0] == device
        )
    )
    device = Device(sample, site=[first])
    async with device.running():
        device.fetcher.want()
        for chunk in sample.base:
            device.fetcher.lan.add(chunk.id)
            await trio.sleep(0.1)
        await trio.sleep(10)
        assert device.fetcher.log == []
        # The first one leaves, and took with it what nobody else had.
        device.fetcher.lan.clear()
        await trio.sleep((QUIET_MS + RANK_MS_MAX) / 1000 + 2 * IDLE_S)
        assert all(device.made())


async def test_a_full_disk_stops_it_for_a_while(
    autojump_clock: MockClock, sample: Sample, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    device = Device(sample, quota_bytes_max=4 * CHUNK)
    device.store.set_wanted([chunk.id for chunk in (*sample.base, *sample.layout_chunks)])
    async with device.running():
        device.fetcher.want()
        await trio.sleep(FULL_S - 1)
        assert 0 < sum(device.made()) <= 4
        assert device.fetcher.log == ["want", "gained"], "what was made is told"
        assert len(caplog.records) == 1
        await trio.sleep(3 * FULL_S)
        assert len(caplog.records) == 4


async def test_a_store_that_evicts_what_was_made_does_not_keep_it_busy(
    autojump_clock: MockClock, sample: Sample
) -> None:
    device = Device(sample, quota_bytes_max=4 * CHUNK)
    async with device.running():
        device.fetcher.want()
        await trio.sleep(300)
        assert device.store.statistics().stored <= len(sample.base) + 3 * len(sample.layout_chunks)


async def test_a_layout_that_cannot_be_had_is_waited_for(autojump_clock: MockClock, sample: Sample) -> None:
    device = Device(sample)
    device.fetcher.offline = True
    async with device.running():
        device.fetcher.want()
        await trio.sleep(20)
        assert device.fetcher.log == ["want"]
        device.fetcher.offline = False
        await trio.sleep(LOOK_S)
        assert all(device.made())


async def test_a_published_layout_that_is_nonsense_is_left_alone(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    device = Device(Sample(tmp_path / "root", layout=b"nonsense"))
    async with device.running():
        device.fetcher.want()
        await trio.sleep(60)
        assert device.fetcher.log == ["want", "drop"]
        assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_a_release_that_is_withdrawn_meanwhile_is_forgotten(autojump_clock: MockClock, sample: Sample) -> None:
    device = Device(sample)
    device.fetcher.offline = True
    async with device.running():
        device.fetcher.want()
        await trio.sleep(1)
        device.fetcher.wanted.clear()
        device.fetcher.offline = False
        await trio.sleep(60)
        assert not any(device.made())


# What is installed


def test_a_package_is_installed_at_its_very_version(sample: Sample) -> None:
    assert installed_layouts(sample.manifest, sample.root, lambda: ()) == {0: b""}
    sample.status("1.1")
    assert installed_layouts(sample.manifest, sample.root, lambda: ()) == {}
    shutil.rmtree(sample.root)
    assert installed_layouts(sample.manifest, sample.root, lambda: ()) == {}


def receipt(folder: str, previous: str) -> Receipt:
    archives = (KeptArchive("opt", "app", folder, previous),)
    return Receipt("app", "1", "", "done", 0, 0, archives=archives)


def test_an_archive_is_known_by_its_marker(tmp_path: Path) -> None:
    sample = Sample(tmp_path / "root", package=False)
    installed = receipt("app-2", "app-1")
    assert installed_layouts(sample.manifest, sample.root, lambda: (installed,)) == {}
    (sample.folder / ".pcm-artifact").write_text(bytes([7] * 32).hex() + "\n")
    assert installed_layouts(sample.manifest, sample.root, lambda: (installed,)) == {0: b"opt/app-1"}
    assert installed_layouts(sample.manifest, sample.root, lambda: (receipt("app-1", ""),)) == {0: b"opt/app-1"}
    assert installed_layouts(sample.manifest, sample.root, lambda: (receipt("app-2", "../opt/app-1"),)) == {}
    (sample.folder / ".pcm-artifact").write_text(bytes([8] * 32).hex() + "\n")
    assert installed_layouts(sample.manifest, sample.root, lambda: (installed,)) == {}


async def test_an_archive_folder_is_the_base(autojump_clock: MockClock, tmp_path: Path) -> None:
    device = Device(Sample(tmp_path / "root", package=False))
    (device.sample.folder / ".pcm-artifact").write_text(bytes([7] * 32).hex() + "\n")
    device.receipts.append(receipt("app-2", "app-1"))
    async with device.running():
        device.fetcher.want()
        await trio.sleep(1)
        assert all(device.made())
