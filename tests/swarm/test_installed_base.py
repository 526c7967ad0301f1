"""An office without the old chunks, and a device that has the old package installed: it pays for deltas and a layout.

Everything is real but time, the network and the disk of the store: the release is ingested, blobs are decoded, files are read.
"""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio
from office_in_memory import InlineWorkers, InMemoryOffice, Member, MemoryOrigin
from trio.testing import MockClock

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.content.publishing.bases import BaseRelease
from pcm_p2p.content.publishing.ingest import ingest
from pcm_p2p.content.publishing.workplace import blob_path
from pcm_p2p.content.segment import plan_runs
from pcm_p2p.daemon.rebuilder import Rebuilder
from pcm_p2p.ids import ChunkId, ManifestId
from pcm_p2p.swarm.fetcher import Fetcher
from pcm_p2p.swarm.prices import BASE_GRACE_MS, BASE_WAIT_MS

RUN_BYTES = 1 << 20
FILES = [f"usr/lib/app/{number}" for number in range(10)]


@dataclass(frozen=True)
class Update:
    """A release with its base, the blobs of it, and the files of the base."""

    manifest: Manifest
    blobs: Path
    old: dict[str, bytes]

    def bytes_of(self, kind: str) -> int:
        return sum(segment.size for segment in self.manifest.segments if segment.kind == kind)

    def origin(self) -> MemoryOrigin:
        ids = [segment.segment_id for segment in self.manifest.segments]
        return MemoryOrigin({segment: blob_path(self.blobs, segment).read_bytes() for segment in ids})

    def install(self, root: Path) -> Path:
        for name, data in self.old.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        (root / "var/lib/dpkg").mkdir(parents=True)
        (root / "var/lib/dpkg/status").write_text(
            "Package: app\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n"
        )
        return root


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def deb(version: str, files: dict[str, bytes]) -> bytes:
    control = f"Package: app\nVersion: {version}\nArchitecture: all\nDescription: app\n".encode()
    package = b"!<arch>\n"
    for name, data in (
        ("debian-binary", b"2.0\n"),
        ("control.tar", tar({"control": control})),
        ("data.tar", tar(files)),
    ):
        package += f"{name:<16}{'0':<12}{'0':<6}{'0':<6}{'100644':<8}{len(data):<10}`\n".encode() + data
    return package


@pytest.fixture(scope="module")
def update(tmp_path_factory: pytest.TempPathFactory) -> Update:
    made = update_in(tmp_path_factory.mktemp("update"), FILES)
    assert len(made.manifest.deltas) == len(list(made.manifest.full_segments())) >= 4
    return made


def update_in(folder: Path, changed: list[str]) -> Update:
    """An update in which the files ``changed`` differ, and the others do not."""
    rng = random.Random(1)
    old = {name: rng.randbytes(400_000) for name in FILES}
    new = {name: bytearray(data) for name, data in old.items()}
    for name in changed:
        for at in range(0, len(new[name]), 30_000):
            new[name][at : at + 8] = b"patched!"
    one, two = folder / "app_1.deb", folder / "app_2.deb"
    one.write_bytes(deb("1", old))
    two.write_bytes(deb("2", {name: bytes(data) for name, data in new.items()}))
    with pytest.MonkeyPatch.context() as patch:
        # Several runs in few megabytes.
        patch.setattr("pcm_p2p.content.publishing.ingest.plan_runs", partial(plan_runs, output_bytes_max=RUN_BYTES))
        make = partial(ingest, release="app", work=folder, level=1, processes=0)
        first = make([one], version="1", counter=1).manifest
        base = BaseRelease(first, folder / "segments", required=True)
        second = make([two], version="2", counter=2, bases=[base]).manifest
    assert len(second.layouts) == 1
    return Update(second, folder / "segments", old)


@asynccontextmanager
async def office_of(update: Update, count: int, installed: dict[int, Path]) -> AsyncIterator[list[Member]]:
    """``installed``: the root of each device that has one."""
    async with InMemoryOffice(update.origin()).open() as office, trio.open_nursery() as nursery:
        members = [await office.add() for _ in range(count)]
        for number, root in installed.items():
            member = members[number]
            others = partial(office.neighbours, member.device)
            rebuilder = Rebuilder(
                member.fetcher, member.store, root, lambda: (), others, member.device, InlineWorkers()
            )
            nursery.start_soon(rebuilder.run)
        for member in members:
            await member.fetcher.want(update.manifest)
        yield members
        nursery.cancel_scope.cancel()


async def all_complete(members: list[Member], update: Update) -> None:
    with trio.fail_after(120):
        for member in members:
            await member.fetcher.wait_complete(update.manifest.manifest_id)


def fetched(members: list[Member], update: Update) -> dict[str, int]:
    """Bytes over the WAN by kind of segment."""
    kinds = {segment.segment_id: segment.kind for segment in update.manifest.segments}
    found = {"full": 0, "delta": 0, "layout": 0}
    for segment, size in members[0].office.origin.sent.items():
        found[kinds[segment]] += size
    return found


@pytest.mark.parametrize("count", [1, 6])
async def test_the_office_pays_for_deltas_when_one_device_has_the_base_installed(
    autojump_clock: MockClock, tmp_path: Path, update: Update, count: int
) -> None:
    async with office_of(update, count, {count - 1: update.install(tmp_path / "root")}) as members:
        await all_complete(members, update)
        paid = {"full": 0, "delta": update.bytes_of("delta"), "layout": update.bytes_of("layout")}
        assert fetched(members, update) == paid
        assert sum(paid.values()) < update.bytes_of("full") / 10
        stored = members[-1].store.sealed
        assert set(update.manifest.table_chunks) >= set(stored), "nothing but what deltas start from was made"


@pytest.mark.parametrize("count", [1, 6])
async def test_what_did_not_change_at_all_is_made_of_installed_files_too(
    autojump_clock: MockClock, tmp_path: Path, count: int
) -> None:
    (tmp_path / "update").mkdir()
    update = update_in(tmp_path / "update", FILES[:3])
    async with office_of(update, count, {count - 1: update.install(tmp_path / "root")}) as members:
        await all_complete(members, update)
        paid = fetched(members, update)
        assert paid["full"] == 0
        assert 0 < paid["delta"] <= update.bytes_of("delta")


async def test_many_devices_that_have_it_share_the_work(
    autojump_clock: MockClock, tmp_path: Path, update: Update, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = {number: update.install(tmp_path / str(number)) for number in range(6)}
    made: list[ChunkId] = []
    told = Fetcher.gained

    def gained(fetcher: Fetcher, manifest: ManifestId, chunks: Iterable[ChunkId]) -> None:
        made.extend(every := list(chunks))
        told(fetcher, manifest, every)

    monkeypatch.setattr(Fetcher, "gained", gained)
    async with office_of(update, 6, roots) as members:
        await all_complete(members, update)
        assert len(made) == len(set(made)), "no chunk is made twice"
        paid = fetched(members, update)
        assert paid["full"] == 0
        assert paid["delta"] == update.bytes_of("delta")
        assert paid["layout"] == update.bytes_of("layout"), "the layout crosses the WAN once"


async def test_without_the_base_the_office_pays_in_full_after_a_short_wait(
    autojump_clock: MockClock, tmp_path: Path, update: Update
) -> None:
    (tmp_path / "root").mkdir()
    async with office_of(update, 3, {0: tmp_path / "root"}) as members:
        began_s = trio.current_time()
        await all_complete(members, update)
        assert fetched(members, update) == {"full": update.bytes_of("full"), "delta": 0, "layout": 0}
        moved_s = update.bytes_of("full") / members[0].office.origin.bytes_per_s
        assert trio.current_time() - began_s < BASE_GRACE_MS / 1000 + moved_s + 3


async def test_a_base_that_was_edited_costs_a_bounded_wait(
    autojump_clock: MockClock, tmp_path: Path, update: Update
) -> None:
    """Every delta of this small release starts from all of its base."""
    root = update.install(tmp_path / "root")
    (root / FILES[-1]).write_bytes(b"edited by hand")
    async with office_of(update, 3, {0: root}) as members:
        began_s = trio.current_time()
        await all_complete(members, update)
        paid = {"full": update.bytes_of("full"), "delta": 0, "layout": update.bytes_of("layout")}
        assert fetched(members, update) == paid
        moved_s = sum(paid.values()) / members[0].office.origin.bytes_per_s
        assert trio.current_time() - began_s < BASE_WAIT_MS / 1000 + moved_s + 3
