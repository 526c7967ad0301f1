"""Segments of a site's own releases: from the folder into the store whatever befalls it, and each origin asked for its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from pcm_p2p.content.decoding.decoder import InlineDecoder
from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.content.manifest import Manifest, Segment
from pcm_p2p.content.publishing.ingest import ingest
from pcm_p2p.daemon.site.segments import LOOK_S, RoutedSegments, SegmentImporter
from pcm_p2p.ids import ChunkId, ManifestId, SegmentId


class Fetching:
    """Counts what the importer tells the fetcher."""

    def __init__(self) -> None:
        self.chunks: set[ChunkId] = set()

    def gained(self, manifest: ManifestId, chunks: list[ChunkId]) -> None:
        self.chunks.update(chunks)


class Tree:
    def __init__(self, path: Path) -> None:
        self.path = path
        source = path / "tool.bin"
        source.write_bytes(Random(1).randbytes(3_000_000))
        made = ingest([source], release="berlin-tool", version="1", counter=1, work=path, level=0, processes=1)
        self.manifest = made.manifest

    def file(self, number: int = 0) -> Path:
        name = [one for one in self.manifest.segments if one.kind == "full"][number].segment_id.hex()
        return self.path / "segments" / name[:2] / name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return Tree(tmp_path_factory.mktemp("tree"))


class Office:
    def __init__(self, path: Path, tree: Tree) -> None:
        self.store = ChunkStore(path / "store", 1 << 30).open()
        self.fetching, self.tree = Fetching(), tree
        self.listed: dict[ManifestId, Manifest] = {tree.manifest.manifest_id: tree.manifest}
        self.seeded: list[Mapping[ManifestId, Manifest]] = []
        self.importer = SegmentImporter(
            str(tree.path),
            self.fetching,  # type: ignore[arg-type]
            self.store,
            InlineDecoder(),
            manifests=lambda: self.listed,
            seed=self.seed,
        )

    async def seed(self, manifests: Mapping[ManifestId, Manifest]) -> None:
        await trio.lowlevel.checkpoint()
        self.seeded.append(dict(manifests))

    def whole(self) -> bool:
        return all(self.store.has(chunk) for chunk in self.tree.manifest.chunks)


@contextmanager
def moved_away(file: Path) -> Iterator[None]:
    aside = file.with_suffix(".aside")
    file.rename(aside)
    try:
        yield
    finally:
        aside.rename(file)


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(1_000):
        while True:
            if condition():
                return
            await trio.sleep(5.0)


async def test_what_the_folder_has_is_in_the_store_and_told(
    tmp_path: Path, made: Tree, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    office = Office(tmp_path, made)
    nursery.start_soon(office.importer.run)
    await until(office.whole)
    await until(lambda: office.fetching.chunks == set(made.manifest.chunks))
    assert office.seeded[0].keys() == {made.manifest.manifest_id}
    assert office.importer.problem == ""


async def test_a_blob_that_is_not_there_or_is_another_is_said_and_taken_when_it_is_right(
    tmp_path: Path, made: Tree, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    office = Office(tmp_path, made)
    file = made.file()
    with moved_away(file):
        file.write_bytes(b"not the blob")
        nursery.start_soon(office.importer.run)
        await until(lambda: "cannot be taken" in office.importer.problem)
        assert not office.whole()
        file.unlink()
    await until(office.whole)
    await until(lambda: office.importer.problem == "")


async def test_chunks_that_went_are_taken_from_the_folder_again(
    tmp_path: Path, made: Tree, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    office = Office(tmp_path, made)
    nursery.start_soon(office.importer.run)
    await until(office.whole)
    office.store.set_wanted(())
    office.store.trim(made.manifest.chunks)
    assert not office.whole()
    before = trio.current_time()
    await until(office.whole)
    assert trio.current_time() - before <= LOOK_S + 6


class Source:
    def __init__(self, name: str, tmp_path: Path) -> None:
        self.path, self.asked, self.discarded = tmp_path / name, list[SegmentId](), list[SegmentId]()

    async def fetch_segment(self, segment: Segment, _progress: Callable[[int, int], None]) -> Path:
        await trio.lowlevel.checkpoint()
        self.asked.append(segment.segment_id)
        return self.path

    async def discard(self, segment: SegmentId) -> None:
        await trio.lowlevel.checkpoint()
        self.discarded.append(segment)

    async def parts(self) -> Mapping[SegmentId, int]:
        await trio.lowlevel.checkpoint()
        return {SegmentId(bytes(31) + self.path.name.encode()[:1]): 7}


async def test_neither_origin_is_asked_for_segments_of_the_other(tmp_path: Path, made: Tree) -> None:
    fleet, site = Source("fleet", tmp_path), Source("site", tmp_path)
    listed: dict[ManifestId, Manifest] = {}
    routed = RoutedSegments(fleet, site, lambda: listed)
    segment = made.manifest.segments[0]
    assert await routed.fetch_segment(segment, lambda _done, _new: None) == fleet.path
    listed[made.manifest.manifest_id] = made.manifest
    assert await routed.fetch_segment(segment, lambda _done, _new: None) == site.path
    listed.clear()
    other = Segment(bytes(32), 10, "full", 0, 1)
    assert await routed.fetch_segment(other, lambda _done, _new: None) == fleet.path
    assert (fleet.asked, site.asked) == ([segment.segment_id, other.segment_id], [segment.segment_id])
    assert len(await routed.parts()) == 2
    await routed.discard(segment.segment_id)
    assert fleet.discarded == site.discarded == [segment.segment_id]
