"""Ingest: what comes out is what went in, on any path through it, after any kill."""

from __future__ import annotations

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from content_samples import build_deb, noise, tar_of, text

from pcm_p2p.content.keeping.assemble import assemble
from pcm_p2p.content.keeping.memory_store import MemoryStore
from pcm_p2p.content.manifest import SEGMENT_OUTPUT_BYTES_MAX, Manifest
from pcm_p2p.content.publishing import compressor, packing
from pcm_p2p.content.publishing.ingest import Ingested, IngestProgress, ingest
from pcm_p2p.content.segment import decode_full_untrusted
from pcm_p2p.errors import InputError, StorageError
from pcm_p2p.ids import SegmentId

TAR = tar_of(one=text(2_000_000), two=noise(500_000))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "in").mkdir()
    plain, packed, empty = (tmp_path / "in" / name for name in ("app.bin", "app.tar.gz", "nothing"))
    plain.write_bytes(noise(700_000, seed=5) + text(1_000_000))
    packed.write_bytes(gzip.compress(TAR))
    empty.write_bytes(b"")
    return [plain, packed, empty]


def make(files: list[Path], work: Path, **options: object) -> Ingested:
    chosen = {"release": "app", "version": "1.0", "counter": 7, "work": work, "level": 1, "processes": 0} | options
    return ingest(files, **chosen)  # type: ignore[arg-type]


def assembled(ingested: Ingested, folder: Path) -> dict[str, bytes]:
    """The release as a device gets it: from manifest and segments alone."""
    store, manifest = MemoryStore(), ingested.manifest
    for segment in manifest.segments:
        blob = blob_path(ingested, segment.segment_id.hex()).read_bytes()
        assert len(blob) == segment.size
        ids = [manifest.chunks[position] for position in segment.positions]
        for chunk in decode_full_untrusted(blob, ids, [manifest.sizes[position] for position in segment.positions]):
            store.put(chunk)
    folder.mkdir()
    for artifact in manifest.artifacts:
        assemble(manifest, artifact, store, folder / artifact.name)
    return {artifact.name: (folder / artifact.name).read_bytes() for artifact in manifest.artifacts}


def blob_path(ingested: Ingested, segment: str) -> Path:
    return ingested.segments_folder / segment[:2] / segment


@pytest.mark.parametrize(("level", "processes"), [(0, 2), (1, 0), (3, 2)])
def test_what_goes_in_comes_out_in_its_stored_form(
    files: list[Path], tmp_path: Path, level: int, processes: int
) -> None:
    ingested = make(files, tmp_path / "work", level=level, processes=processes)
    assert assembled(ingested, tmp_path / "out") == {
        "app.bin": files[0].read_bytes(),
        "app.tar.gz": TAR,
        "nothing": b"",
    }
    manifest = ingested.manifest
    assert (manifest.release, manifest.version, manifest.counter) == ("app", "1.0", 7)
    assert [artifact.form for artifact in manifest.artifacts] == ["exact", "tar", "exact"]
    for artifact, path in zip(manifest.artifacts, files, strict=True):
        assert artifact.delivered_size == path.stat().st_size
        assert artifact.delivered_sha256 == hashlib.sha256(path.read_bytes()).digest()
    assert ingested.segments_folder == tmp_path / "work" / "segments"
    assert ingested.delivered_bytes == sum(path.stat().st_size for path in files)
    assert ingested.stored_bytes == files[0].stat().st_size + len(TAR)
    assert ingested.unique_bytes == sum(manifest.sizes)
    assert list((tmp_path / "work" / "ingest" / "stored").iterdir()) == []
    assert list((tmp_path / "work" / "ingest" / "temporary").iterdir()) == []


def test_the_same_files_make_the_same_manifest(files: list[Path], tmp_path: Path) -> None:
    one = make(files, tmp_path / "a", processes=2).manifest
    other = make(files, tmp_path / "b", processes=0).manifest
    assert one.manifest_id == other.manifest_id


def test_a_chunk_that_occurs_again_is_stored_once(tmp_path: Path) -> None:
    data = text(3_000_000)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(data)
    ingested = make([tmp_path / "a", tmp_path / "b"], tmp_path / "work")
    assert ingested.stored_bytes == 2 * ingested.unique_bytes
    assert assembled(ingested, tmp_path / "out") == {"a": data, "b": data}


@pytest.mark.debian
@pytest.mark.skipif(not Path("/usr/bin/dpkg-deb").exists(), reason="there is no dpkg-deb here")
def test_two_builds_of_a_package_share_most_of_their_chunks(tmp_path: Path) -> None:
    payload = text(4_000_000)
    releases: list[Manifest] = []
    for version, data in (("1", payload), ("2", payload[:2_000_000] + b"a fix" + payload[2_000_000:])):
        package = build_deb(tmp_path, data, version=version, compression="gzip")
        releases.append(make([package], tmp_path / "work", version=version).manifest)
    shared = set(releases[0].chunks) & set(releases[1].chunks)
    assert len(shared) > len(releases[1].chunks) / 2


def test_progress_rises_to_the_end_of_each_phase(files: list[Path], tmp_path: Path) -> None:
    steps: list[IngestProgress] = []
    make(files, tmp_path / "work", progress=steps.append)
    assert list(dict.fromkeys(step.phase for step in steps)) == ["unpacking", "cutting", "compressing"]
    for phase in ("unpacking", "cutting", "compressing"):
        of_phase = [step for step in steps if step.phase == phase]
        done = [step.bytes_done for step in of_phase]
        assert done == sorted(done)
        assert done[-1] == of_phase[-1].bytes_total
    assert steps[-1].segments_done == steps[-1].segments_total == 1


def test_finished_segments_are_not_compressed_again(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make(files, tmp_path / "work")

    def nobody(*_: object) -> None:
        raise AssertionError("a segment was compressed again")

    monkeypatch.setattr(packing, "do", nobody)
    monkeypatch.setattr(compressor.Crew, "__enter__", nobody)
    for processes in (0, 2):
        assert make(files, tmp_path / "work", processes=processes).manifest == before.manifest


@pytest.mark.parametrize("spoil", ["flip", "empty", "gone", "note"])
def test_a_finished_segment_that_is_not_whole_is_made_again(files: list[Path], tmp_path: Path, spoil: str) -> None:
    before = make(files, tmp_path / "work")
    path = blob_path(before, before.manifest.segments[0].segment_id.hex())
    blob = path.read_bytes()
    match spoil:
        case "flip":
            path.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case "note":
            for note in (tmp_path / "work" / "ingest" / "notes").glob("*/*"):
                note.write_bytes(b"torn")
    assert make(files, tmp_path / "work").manifest == before.manifest
    assert path.read_bytes() == blob


def test_another_level_is_another_segment(files: list[Path], tmp_path: Path) -> None:
    ids = {make(files, tmp_path / "work", level=level).manifest.segments[0].id for level in (0, 1, 9)}
    assert len(ids) == 3


def refused(why: str, files: list[Path], tmp_path: Path, **options: object) -> None:
    with pytest.raises(InputError, match=why):
        make(files, tmp_path / "work", **options)


def test_what_the_user_got_wrong_is_said(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "app.bin").write_bytes(b"x")
    (tmp_path / "-odd name").write_bytes(b"x")
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(files[1].read_bytes()[:-20])
    refused("at least one file", [], tmp_path)
    refused(r"other/app\.bin: has the same name as .*in/app\.bin", [*files, tmp_path / "other" / "app.bin"], tmp_path)
    (tmp_path / "other" / "APP.bin").write_bytes(b"x")
    refused(r"other/APP\.bin: has the same name as .*in/app\.bin", [*files, tmp_path / "other" / "APP.bin"], tmp_path)
    refused("file name '-odd name'", [tmp_path / "-odd name"], tmp_path)
    refused("absent: cannot be read: No such file", [tmp_path / "absent"], tmp_path)
    refused("other: is not a file", [tmp_path / "other"], tmp_path)
    refused("release '../x'", files, tmp_path, release="../x")
    refused("version 'a/b'", files, tmp_path, version="a/b")
    refused("level 23", files, tmp_path, level=23)
    refused(r"app\.bin: is not a tar", files, tmp_path, form="tar")
    refused(r"broken\.tar\.gz: the gzip data ends early", [broken], tmp_path)
    assert list((tmp_path / "work" / "ingest" / "stored").iterdir()) == []


@pytest.mark.parametrize("processes", [0, 1])
def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path, processes: int) -> None:
    path = tmp_path / "app"
    path.write_bytes(noise(1_000_000))

    def change(step: IngestProgress) -> None:
        if step.phase == "compressing":
            path.write_bytes(noise(1_000_000, seed=2))

    refused("app: changed while it was being read", [path], tmp_path, progress=change, processes=processes)


def test_a_file_that_shrinks_before_it_is_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "app"
    path.write_bytes(noise(1_000_000))

    def change(step: IngestProgress) -> None:
        if step.phase == "cutting":
            path.write_bytes(b"short")

    refused("changed while it was being read", [path], tmp_path, progress=change)


def test_two_at_once_in_one_folder_are_refused(files: list[Path], tmp_path: Path) -> None:
    refusals: list[str] = []

    def again(step: IngestProgress) -> None:
        if not refusals:
            with pytest.raises(StorageError, match="another process makes a release") as caught:
                make(files, tmp_path / "work")
            refusals.append(caught.value.remedy)

    make(files, tmp_path / "work", progress=again)
    assert refusals == ["Wait until it has ended."]


def test_a_worker_that_dies_is_an_error_and_no_wait(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give = compressor.Crew._give

    def kill_instead(crew: compressor.Crew, worker: subprocess.Popen[bytes], job: compressor.Job) -> None:
        worker.kill()
        worker.wait(10)
        give(crew, worker, job)

    monkeypatch.setattr(compressor.Crew, "_give", kill_instead)
    with pytest.raises(StorageError, match="ended by itself"):
        make(files, tmp_path / "work", processes=1)


_INGESTS = """
import sys, time
from pathlib import Path
from pcm_p2p.content.publishing.ingest import ingest
def tell(step):
    print(step.phase, step.segments_done, flush=True)
    if (step.phase, step.segments_done) == ("compressing", 1):
        time.sleep(600)
ingest([Path(sys.argv[1])], release="app", version="1", counter=1, work=Path(sys.argv[2]), level=int(sys.argv[3]),
       processes=2, progress=tell)
"""


def _workers_of(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_sigkill_in_the_middle_takes_the_workers_along_and_the_next_run_goes_on(tmp_path: Path) -> None:
    source, work = tmp_path / "app.bin", tmp_path / "work"
    source.write_bytes(noise(3 * SEGMENT_OUTPUT_BYTES_MAX))
    command = [sys.executable, "-c", _INGESTS, str(source), str(work), "9"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == b"compressing 1\n":
                break
        workers = _workers_of(process.pid)
        process.send_signal(signal.SIGKILL)
    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its caller"
        time.sleep(0.01)
    notes = [SegmentId(note.read_bytes()).hex() for note in (work / "ingest" / "notes").glob("*/*")]
    kept = {path: path.stat().st_ino for path in (work / "segments").glob("*/*") if path.name in notes}
    assert kept
    ingested = make([source], work, level=9, processes=2)
    assert {path: path.stat().st_ino for path in kept} == kept, "what was finished was made again"
    assert assembled(ingested, tmp_path / "out") == {"app.bin": source.read_bytes()}


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


_PEAK = """
import sys
from pathlib import Path
from pcm_p2p.content.publishing.ingest import ingest
ingest([Path(sys.argv[1])], release="app", version="1", counter=1, work=Path(sys.argv[2]), level=1, processes=1)
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
def test_memory_does_not_grow_with_the_artifact(tmp_path: Path) -> None:
    peaks = []
    for size_mib in (8, 100):
        source = tmp_path / f"{size_mib}.tar.gz"
        block = noise(1 << 20)
        head = tar_of(x=b"")[:512]
        with gzip.open(source, "wb", compresslevel=0) as packed:
            packed.write(head)
            for number in range(size_mib):
                packed.write(number.to_bytes(8, "big") + block[8:])
        command = [sys.executable, "-c", _PEAK, str(source), str(tmp_path / f"work{size_mib}")]
        result = subprocess.run(command, check=True, capture_output=True, timeout=120, env=os.environ)
        peaks.append(int(result.stdout) >> 10)
    assert peaks[1] < 150
    assert peaks[1] - peaks[0] < 40


def test_a_package_as_apt_downloads_it_keeps_the_colon_of_its_epoch(tmp_path: Path) -> None:
    delivered = tmp_path / "hello_1%3a2.0-1_all.deb"
    delivered.write_bytes(b"x")
    made = ingest([delivered], release="hello", version="2.0", counter=1, work=tmp_path / "work", level=1, processes=0)
    assert [artifact.name for artifact in made.manifest.artifacts] == ["hello_1:2.0-1_all.deb"]
