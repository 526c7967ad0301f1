"""What a device remembers of itself: bytes over restarts, and the manifests that a roll-back and the counter's floor need."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from pcm_p2p.apply.receipt import Receipt
from pcm_p2p.apply.step import PackageIdentity
from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.content.manifest import Manifest
from pcm_p2p.content.publishing.ingest import ingest
from pcm_p2p.content.segment import decode_full_untrusted
from pcm_p2p.daemon.keepsakes import Keepsakes
from pcm_p2p.daemon.ledger import KEPT_PER_RELEASE
from pcm_p2p.daemon.meter import RELEASES_MAX, Meter, ReleaseBytes, Totals


def test_the_meter_goes_on_where_the_run_before_ended(tmp_path: Path) -> None:
    counted = Totals(10, 1, 5, 2, {"app@1": ReleaseBytes(9, 5)})
    meter = Meter(tmp_path / "meter.json", lambda: counted)
    meter.load()
    assert meter.totals() == counted
    meter.save()
    again = Meter(
        tmp_path / "meter.json", lambda: Totals(1, 0, 1, 0, {"app@1": ReleaseBytes(1, 1), "b@1": ReleaseBytes(2)})
    )
    again.load()
    assert again.totals() == Totals(11, 1, 6, 2, {"app@1": ReleaseBytes(10, 6), "b@1": ReleaseBytes(2, 0)})
    again.save()
    again.save()
    assert again.totals() == Totals(11, 1, 6, 2, {"app@1": ReleaseBytes(10, 6), "b@1": ReleaseBytes(2, 0)})


def test_what_a_release_needed_is_not_added_up_and_not_forgotten(tmp_path: Path) -> None:
    row = ReleaseBytes(1, 1)
    meter = Meter(tmp_path / "meter.json", lambda: Totals(releases={"app@1": row}))
    told = []
    for needed_bytes in (0, 500, 0, 900):
        row.needed_bytes = needed_bytes
        meter.load()
        told.append(meter.totals().releases["app@1"].needed_bytes)
        meter.save()
    assert told == [0, 500, 500, 500], "a plan made after a restart may not know any more that there was a base"


@pytest.mark.parametrize("torn", [b"", b"{", b"\xff", b'{"wan_in_bytes": "x"}', b"[]"])
def test_a_torn_meter_starts_at_nothing(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "meter.json").write_bytes(torn)
    meter = Meter(tmp_path / "meter.json", Totals)
    meter.load()
    assert meter.totals() == Totals()


def test_the_meter_forgets_the_oldest_releases_and_outlives_a_full_disk(tmp_path: Path) -> None:
    many = Totals(releases={f"r@{number}": ReleaseBytes(1) for number in range(RELEASES_MAX + 5)})
    meter = Meter(tmp_path / "absent" / "meter.json", lambda: many)
    assert len(meter.totals().releases) == RELEASES_MAX
    meter.save()
    assert "r@0" not in meter.totals().releases


async def test_the_meter_is_saved_while_it_runs_and_at_its_end(tmp_path: Path, autojump_clock: MockClock) -> None:
    totals = Totals()
    meter = Meter(tmp_path / "meter.json", lambda: totals)
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(meter.run)
            await trio.sleep(2.5)
            assert b'"wan_in_bytes":0' in meter.path.read_bytes()
            totals.wan_in_bytes = 7
            nursery.cancel_scope.cancel()
    assert b'"wan_in_bytes":7' in meter.path.read_bytes()


class Kept:
    """A store and keepsakes, and releases to remember."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ChunkStore(folder / "store", 50_000_000).open()
        self.receipts: list[Receipt] = []
        self.keepsakes = Keepsakes(folder / "releases", self.store, lambda: tuple(self.receipts))

    def release(self, counter: int) -> Manifest:
        file = self.folder / "app.bin"
        file.write_bytes(b"%d" % counter * 1_000)
        made = ingest(
            [file], release="app", version=str(counter), counter=counter, work=self.folder, level=0, processes=1
        )
        for _, segment in made.manifest.full_segments():
            name = segment.segment_id.hex()
            blob = (made.segments_folder / name[:2] / name).read_bytes()
            places = segment.positions
            ids = made.manifest.chunks[places.start : places.stop]
            sizes = made.manifest.sizes[places.start : places.stop]
            for chunk in decode_full_untrusted(blob, ids, sizes):
                assert isinstance(chunk, Chunk)
                self.store.put(chunk)
        return made.manifest


def test_the_last_two_manifests_of_a_release_are_kept_and_the_newest_sets_the_floor(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    releases = [kept.release(counter) for counter in (9, 10, 11)]
    assert kept.keepsakes.counter("app") == 0
    for manifest in releases:
        kept.keepsakes.remember(manifest)
        kept.keepsakes.remember(manifest)
    assert [manifest.counter for manifest in kept.keepsakes.manifests()] == [10, 11]
    assert kept.keepsakes.counter("app") == 11
    assert kept.keepsakes.counter("other") == 0
    assert len(list((tmp_path / "releases" / "app").iterdir())) == KEPT_PER_RELEASE


def test_what_a_change_replaces_are_the_packages_of_the_release_applied_last(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    releases = [kept.release(counter) for counter in (1, 2)]
    for manifest in releases:
        kept.keepsakes.remember(manifest)
    assert kept.keepsakes.to_go_back("app") is None, "it was no package"
    shas = [manifest.artifacts[0].stored_sha256.hex() for manifest in releases]
    package = PackageIdentity("app", "1", "all")
    kept.receipts.append(Receipt("app", "2", "", "done", 0, 0, packages=dict.fromkeys(shas, package)))
    found = kept.keepsakes.to_go_back("app")
    assert found == (releases[1], (1 << len(releases[1].chunks)) - 1)
    assert kept.keepsakes.to_go_back("other") is None


@pytest.mark.parametrize("torn", [0, 20])
def test_a_damaged_manifest_is_passed_over_and_the_floor_stays(tmp_path: Path, torn: int) -> None:
    kept = Kept(tmp_path)
    for counter in (1, 2):
        kept.keepsakes.remember(kept.release(counter))
    folder = tmp_path / "releases" / "app"
    newest = max(folder.iterdir())
    newest.write_bytes(newest.read_bytes()[:torn])
    (folder / "notes.manifest").write_text("not ours")
    (folder / ".hidden.tmp").write_text("")
    assert [manifest.counter for manifest in kept.keepsakes.manifests()] == [1]
    assert kept.keepsakes.counter("app") == 2, "no device goes back because of a bad sector"
    kept.keepsakes.remember(kept.release(3))
    assert [manifest.counter for manifest in kept.keepsakes.manifests()] == [3]
    assert kept.keepsakes.counter("app") == 3
