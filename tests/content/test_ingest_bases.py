"""Ingest with bases: what deltas a release gets, that they yield it, and what a base may do to go wrong."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from content_samples import build_deb, noise, tar_of, text

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.delta.blob import decode_delta_untrusted
from pcm_p2p.content.keeping.assemble import assemble
from pcm_p2p.content.keeping.memory_store import MemoryStore
from pcm_p2p.content.manifest import BASE_BYTES_MAX, Manifest, decode_untrusted
from pcm_p2p.content.publishing import comparison, packing
from pcm_p2p.content.publishing import deltas as deltas_module
from pcm_p2p.content.publishing import ingest as ingest_module
from pcm_p2p.content.publishing.bases import BaseRelease
from pcm_p2p.content.publishing.deltas import office_bytes
from pcm_p2p.content.publishing.ingest import Ingested, IngestProgress, ingest
from pcm_p2p.content.segment import decode_full_untrusted, unpack_blob_untrusted
from pcm_p2p.errors import InputError
from pcm_p2p.ids import ChunkId

RUN = 1 << 19
"""Runs of this size, so that a release of a MB or two has several."""


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    plan_runs = ingest_module.plan_runs
    monkeypatch.setattr(ingest_module, "plan_runs", lambda sizes: plan_runs(sizes, RUN))


def patched(data: bytes, every: int = 4_096) -> bytes:
    """``data`` as a new build of it: the same length, one byte in ``every`` changed."""
    changed = bytearray(data)
    for at in range(every // 2, len(data), every):
        changed[at] ^= 0x55
    return bytes(changed)


class Publisher:
    """Releases of one name in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.made: dict[str, Manifest] = {}

    def base(self, version: str, *, required: bool = False) -> BaseRelease:
        return BaseRelease(self.made[version], self.work / "segments", required)

    def add(
        self, version: str, data: bytes, bases: tuple[str, ...] = (), *, required: bool = False, **options: object
    ) -> Ingested:
        path = self.folder / str(options.pop("name", "app.bin"))
        path.write_bytes(data)
        chosen = {
            "release": "app",
            "version": version,
            "counter": len(self.made) + 1,
            "work": self.work,
            "level": 1,
            "processes": 0,
            "bases": [self.base(one, required=required) for one in bases],
        }
        ingested = ingest([path], **(chosen | options))  # type: ignore[arg-type]
        self.made[version] = ingested.manifest
        return ingested

    def blob(self, segment: bytes) -> bytes:
        return (self.work / "segments" / segment.hex()[:2] / segment.hex()).read_bytes()

    def with_base(self, manifest: Manifest, *bases: str, of: int = 0) -> MemoryStore:
        """What a device has that had the base releases, and fetched each run as a delta of base ``of`` if there is one."""
        store, had = MemoryStore(), {}
        for base in bases:
            for _, segment in self.made[base].full_segments():
                had |= self.decoded(self.made[base], segment.first, segment.count, self.blob(segment.id))
        for chunk in had.values():
            store.put(chunk)
        for index, segment in manifest.full_segments():
            chosen = [at for at in manifest.deltas.get(index, ()) if manifest.segments[at].of == of]
            if not chosen:
                assert all(manifest.chunks[position] in had for position in segment.positions)
                continue
            delta = manifest.segments[chosen[0]]
            base_bytes = b"".join(had[manifest.table_chunks[position]].data for position in delta.base)
            assert len(base_bytes) <= BASE_BYTES_MAX
            output = sum(manifest.sizes[position] for position in delta.positions)
            data, at = decode_delta_untrusted(self.blob(delta.id), base_bytes, output), 0
            for position in delta.positions:
                store.put(Chunk.verified(manifest.chunks[position], data[at : at + manifest.sizes[position]]))
                at += manifest.sizes[position]
        return store

    @staticmethod
    def decoded(manifest: Manifest, first: int, count: int, blob: bytes) -> dict[ChunkId, Chunk]:
        run = range(first, first + count)
        chunks = decode_full_untrusted(blob, [manifest.chunks[at] for at in run], [manifest.sizes[at] for at in run])
        return {chunk.id: chunk for chunk in chunks}

    def assembled(self, manifest: Manifest, store: MemoryStore) -> bytes:
        out = self.folder / "out"
        out.unlink(missing_ok=True)
        assemble(manifest, manifest.artifacts[0], store, out)
        return out.read_bytes()


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path)


OLD = text(1_500_000)
NEW = patched(OLD)


def deltas(manifest: Manifest) -> list[int]:
    return [segment.size for segment in manifest.segments if segment.kind == "delta"]


def test_every_delta_yields_its_run_from_its_base(publisher: Publisher) -> None:
    publisher.add("1", OLD)
    made = publisher.add("2", NEW, ("1",))
    assert len(deltas(made.manifest)) == len(list(made.manifest.full_segments())) > 2
    assert publisher.assembled(made.manifest, publisher.with_base(made.manifest, "1")) == NEW
    full = sum(segment.size for _, segment in made.manifest.full_segments())
    assert made.offices == (("1", sum(deltas(made.manifest))),)
    assert sum(deltas(made.manifest)) < full / 20
    assert [(base.version, base.manifest) for base in made.manifest.bases] == [("1", publisher.made["1"].manifest_id)]


def test_two_bases_give_two_deltas_and_the_newest_comes_first(publisher: Publisher) -> None:
    oldest = text(1_500_000)
    publisher.add("1", oldest)
    publisher.add("2", patched(oldest))
    made = publisher.add("3", patched(patched(oldest), 10_000), ("1", "2"))
    assert [base.version for base in made.manifest.bases] == ["2", "1"]
    assert [version for version, _ in made.offices] == ["2", "1"]
    for of, version in enumerate(("2", "1")):
        store = publisher.with_base(made.manifest, version, of=of)
        assert publisher.assembled(made.manifest, store) == patched(patched(oldest), 10_000)


def test_runs_that_the_base_has_cost_nothing(publisher: Publisher) -> None:
    publisher.add("1", OLD)
    new = OLD[:1_250_000] + b"a fix" + OLD[1_250_000:]
    made = publisher.add("2", new, ("1",))
    assert len(deltas(made.manifest)) < len(list(made.manifest.full_segments()))
    assert publisher.assembled(made.manifest, publisher.with_base(made.manifest, "1")) == new
    known = set(made.manifest.chunks)
    for segment in made.manifest.segments:
        in_release = [position for position in segment.base if made.manifest.table_chunks[position] in known]
        assert all(position < len(made.manifest.sizes) for position in in_release), "one place for each chunk"
    assert office_bytes(made.manifest) == sum(segment.size for _, segment in made.manifest.full_segments())


def test_the_same_artifact_again_needs_no_delta(publisher: Publisher) -> None:
    publisher.add("1", OLD)
    made = publisher.add("2", OLD, ("1",))
    assert deltas(made.manifest) == []
    assert made.offices == (("1", 0),)
    assert [base.version for base in made.manifest.bases] == ["1"], "it has all of it"


def test_a_delta_that_is_not_worth_it_is_not_published_nor_made_again(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.add("1", OLD)
    other = text(750_000, seed=9) + OLD[:750_000]
    made = publisher.add("2", other, ("1",))
    runs = {segment.first: segment.size for _, segment in made.manifest.full_segments()}
    published = {segment.first: segment.size for segment in made.manifest.segments if segment.kind == "delta"}
    assert 0 < len(published) < len(runs)
    for first, size in published.items():
        assert size <= 0.6 * runs[first]
    listed = {segment.id.hex() for segment in (*made.manifest.segments, *publisher.made["1"].segments)}
    assert {path.name for path in (publisher.work / "segments").glob("*/*")} == listed, "nothing else is kept"
    monkeypatch.setattr(packing, "do", _only_unpacking(packing.do))
    assert publisher.add("2", other, ("1",), counter=2).manifest == made.manifest


def _only_unpacking(do: Callable[..., object]) -> Callable[..., object]:
    def checked(job: object, workspace: bytearray) -> object:
        assert not isinstance(job, packing.Job), "a segment was made again"
        return do(job, workspace)

    return checked


def test_a_base_without_anything_in_common_is_not_named(publisher: Publisher) -> None:
    publisher.add("1", noise(1_000_000))
    made = publisher.add("2", noise(1_000_000, 2), ("1",))
    assert (made.manifest.bases, made.manifest.aid_ids, deltas(made.manifest)) == ((), b"", [])
    assert made.offices == (("1", office_bytes(made.manifest)),)


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("old_size", [0, 1, 100_000])
def test_artifacts_of_nothing_and_of_a_byte(publisher: Publisher, size: int, old_size: int) -> None:
    publisher.add("1", noise(old_size))
    made = publisher.add("2", noise(size, 2), ("1",))
    store = MemoryStore()
    for _, segment in made.manifest.full_segments():
        for chunk in publisher.decoded(made.manifest, 0, segment.count, publisher.blob(segment.id)).values():
            store.put(chunk)
    assert publisher.assembled(made.manifest, store) == noise(size, 2)


@pytest.mark.parametrize(("old_level", "level"), [(0, 1), (3, 1), (19, 1)])
def test_a_base_may_be_packed_in_either_way(publisher: Publisher, old_level: int, level: int) -> None:
    publisher.add("1", OLD, level=old_level)
    made = publisher.add("2", NEW, ("1",), level=level)
    assert publisher.assembled(made.manifest, publisher.with_base(made.manifest, "1")) == NEW


def test_the_same_bytes_come_of_any_number_of_processes(tmp_path: Path) -> None:
    made = []
    for processes in (0, 1, 3):
        (tmp_path / str(processes)).mkdir()
        publisher = Publisher(tmp_path / str(processes))
        publisher.add("1", OLD, processes=processes)
        made.append(publisher.add("2", NEW, ("1",), processes=processes).manifest)
    assert made[0].encoded == made[1].encoded == made[2].encoded


@pytest.mark.parametrize("spoil", ["gone", "flip", "other"])
def test_a_base_whose_blobs_are_not_there_is_skipped_unless_it_was_asked_for(publisher: Publisher, spoil: str) -> None:
    publisher.add("1", OLD)
    publisher.add("2", patched(OLD, 9_000))
    segment = publisher.made["1"].segments[0].id
    path = publisher.work / "segments" / segment.hex()[:2] / segment.hex()
    match spoil:
        case "gone":
            path.unlink()
        case "flip":
            path.write_bytes(path.read_bytes()[:-1] + b"\xff")
        case "other":
            path.write_bytes(publisher.blob(publisher.made["1"].segments[1].id))
    made = publisher.add("3", NEW, ("1", "2"))
    assert [base.version for base in made.manifest.bases] == ["2"]
    assert [(skipped.version, segment.hex()[:8] in skipped.reason) for skipped in made.skipped] == [("1", True)]
    with pytest.raises(InputError, match=f"app 1 cannot be a base: segment {segment.hex()[:8]}"):
        publisher.add("4", NEW, ("1",), required=True)


def test_more_bases_than_a_manifest_can_name_are_refused(publisher: Publisher) -> None:
    publisher.add("1", b"x")
    with pytest.raises(InputError, match="9 base releases were given; at most 8"):
        publisher.add("2", b"y", ("1",) * 9)


def test_the_oldest_base_goes_without_where_the_table_would_be_too_long(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.add("1", text(1_500_000, seed=3))
    publisher.add("2", patched(OLD))
    mixed = text(1_500_000, seed=3)[:500_000] + patched(patched(OLD), 10_000)
    alone = publisher.add("3", mixed, ("2",))
    for module in (deltas_module, comparison):
        monkeypatch.setattr(module, "CHUNKS_MAX", len(alone.manifest.table_sizes) + 1)
    made = publisher.add("4", mixed, ("1", "2"))
    assert [base.version for base in made.manifest.bases] == ["2"]
    assert [(skipped.version, "more than" in skipped.reason) for skipped in made.skipped] == [("1", True)]


def test_progress_counts_deltas_to_the_end_of_each_phase(publisher: Publisher) -> None:
    steps: list[IngestProgress] = []
    publisher.add("1", OLD)
    made = publisher.add("2", NEW, ("1",), progress=steps.append)
    phases = list(dict.fromkeys(step.phase for step in steps))
    assert phases == ["unpacking", "cutting", "rebuilding", "matching", "compressing"]
    for phase in phases:
        done = [step.bytes_done for step in steps if step.phase == phase]
        assert done == sorted(done)
        assert done[-1] == [step for step in steps if step.phase == phase][-1].bytes_total
    assert steps[-1].segments_done == steps[-1].segments_total == len(made.manifest.segments)


def test_a_tar_has_a_layout_which_comes_out_of_its_segment(publisher: Publisher) -> None:
    old = tar_of(**{"app/a": OLD, "app/b": noise(300_000)})
    new = tar_of(**{"app/a": NEW, "app/b": noise(300_000)})
    publisher.add("1", gzip.compress(old, 1), name="app.tar.gz")
    manifest = publisher.add("2", gzip.compress(new, 1), ("1",), name="app.tar.gz").manifest
    (layout,) = manifest.layouts
    (segment,) = [segment for _, segment in manifest.layout_segments()]
    assert (layout.of, layout.artifact, layout.form) == (0, "app.tar.gz", "tar")
    assert layout.stored_sha256 == publisher.made["1"].artifacts[0].stored_sha256
    sizes = [manifest.table_sizes[position] for position in segment.positions]
    data = unpack_blob_untrusted(publisher.blob(segment.id), sum(sizes))
    for position, size in zip(segment.positions, sizes, strict=True):
        assert ChunkId.of(data[:size]) == manifest.table_chunks[position]
        data = data[size:]
    assert b"app/a" in unpack_blob_untrusted(publisher.blob(segment.id), sum(sizes))


@pytest.mark.debian
@pytest.mark.skipif(not Path("/usr/bin/dpkg-deb").exists(), reason="there is no dpkg-deb here")
def test_the_layout_of_a_package_names_it(publisher: Publisher, tmp_path: Path) -> None:
    for version, data in (("1", OLD), ("2", NEW)):
        package = build_deb(tmp_path, data, version=version, compression="gzip")
        publisher.add(version, package.read_bytes(), ("1",) if version == "2" else (), name=f"sample_{version}_all.deb")
    (layout,) = publisher.made["2"].layouts
    assert (layout.package, layout.package_version, layout.architecture) == ("sample", "1", "all")


def test_two_bases_of_the_same_artifact_share_its_layout(publisher: Publisher) -> None:
    old = gzip.compress(tar_of(**{"app/a": OLD}), 1)
    for version in ("1", "2"):
        publisher.add(version, old, name="app.tar.gz")
    new = gzip.compress(tar_of(**{"app/a": NEW}), 1)
    manifest = publisher.add("3", new, ("1", "2"), name="app.tar.gz").manifest
    assert [(base.version, of) for of, base in enumerate(manifest.bases)] == [("2", 0), ("1", 1)]
    assert [layout.of for layout in manifest.layouts] == [0]


def test_files_that_are_mostly_holes_take_no_room(tmp_path: Path) -> None:
    made: list[Manifest] = []
    for version, size, at in (("1", 128 << 20, 64 << 20), ("2", 1 << 30, (512 << 20) + 7)):
        path = tmp_path / "disk.img"
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
            file.seek(at)
            file.write(OLD)
        bases = [BaseRelease(made[0], tmp_path / "work" / "segments", True)] if made else []
        ingested = ingest(
            [path],
            release="disk",
            version=version,
            counter=1,
            work=tmp_path / "work",
            level=1,
            processes=0,
            bases=bases,
            inspect=lambda _: _room(tmp_path / "work"),
        )
        made.append(ingested.manifest)
    assert len(made[1].sizes) < 50
    assert ingested.offices[0][1] < office_bytes(made[1]) / 10


def _room(folder: Path) -> None:
    """The stored form of the base is there as well."""
    assert sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) < 20 << 20


_INGESTS = """
import sys
from pathlib import Path
from pcm_p2p.content.publishing import ingest as ingest_module
from pcm_p2p.content.publishing.bases import BaseRelease
from pcm_p2p.content.publishing.ingest import ingest
from pcm_p2p.content.manifest import decode_untrusted
plan_runs = ingest_module.plan_runs
ingest_module.plan_runs = lambda sizes: plan_runs(sizes, 4 << 20)
def tell(step):
    print(step.phase, step.segments_done, flush=True)
folder = Path(sys.argv[1])
base = BaseRelease(decode_untrusted((folder / "base").read_bytes()), folder / "work" / "segments", True)
made = ingest([folder / "app.bin"], release="app", version="2", counter=2, work=folder / "work", level=1,
              processes=2, bases=[base], progress=tell)
(folder / "made").write_bytes(made.manifest.encoded)
"""


@pytest.mark.parametrize("until", [b"rebuilding 0", b"compressing 1", b"compressing 5"])
def test_a_publisher_that_is_killed_goes_on_where_it_was(tmp_path: Path, until: bytes) -> None:
    # Three runs, each with its delta, which are long enough to be killed at.
    publisher = Publisher(tmp_path)
    old = noise(9 << 20)
    publisher.add("1", old, level=0)
    new = bytearray(old)
    for at in range(1_000, len(new), 1 << 20):
        new[at] ^= 1
    new[-1] ^= 1
    (tmp_path / "app.bin").write_bytes(new)
    (tmp_path / "base").write_bytes(publisher.made["1"].encoded)
    command = [sys.executable, "-c", _INGESTS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(until):
                break
        process.send_signal(signal.SIGKILL)
    notes = [note.read_bytes().hex() for note in (tmp_path / "work" / "ingest" / "notes").glob("*/*")]
    kept = {path: path.stat().st_ino for path in (tmp_path / "work" / "segments").glob("*/*") if path.name in notes}
    for segment in publisher.made["1"].segments:
        assert publisher.blob(segment.id), "what was published is untouched"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert {path: path.stat().st_ino for path in kept} == kept, "what was finished was made again"
    made = decode_untrusted((tmp_path / "made").read_bytes())
    assert len(deltas(made)) == len(list(made.full_segments())) == 3
    for segment in made.segments:
        assert len(publisher.blob(segment.id)) == segment.size
