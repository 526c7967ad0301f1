"""Assembly: the whole file or none, everything that is missing named at once, crashes swept."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from content_samples import chunks_of, release_of

from pcm_p2p.content.keeping import assemble as assemble_module
from pcm_p2p.content.keeping.assemble import MissingChunks, assemble
from pcm_p2p.content.keeping.memory_store import MemoryStore
from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.errors import DiskFull, StorageError, TransferError, TrustError

CHUNKS = chunks_of(1000, 2000, 3000, 4000)
RELEASE = release_of(CHUNKS, app=[0, 1, 0, 2], other=[3], empty=[])
APP = RELEASE.artifacts[0]
APP_BYTES = b"".join(CHUNKS[position].data for position in (0, 1, 0, 2))


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    for chunk in CHUNKS:
        store.put(chunk)
    return store


def test_the_file_is_the_chunks_in_order(store: MemoryStore, tmp_path: Path) -> None:
    for artifact in RELEASE.artifacts:
        assemble(RELEASE, artifact, store, tmp_path / artifact.name)
    assert (tmp_path / "app").read_bytes() == APP_BYTES
    assert (tmp_path / "empty").read_bytes() == b""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app", "empty", "other"]


def test_an_older_file_is_replaced_and_a_link_is_not_followed(store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("not ours")
    (tmp_path / "app").symlink_to("precious")
    assemble(RELEASE, APP, store, tmp_path / "app")
    assert (tmp_path / "precious").read_text() == "not ours"
    assert not (tmp_path / "app").is_symlink()
    assert (tmp_path / "app").read_bytes() == APP_BYTES


def test_all_that_is_missing_or_rotten_is_named_at_once(store: MemoryStore, tmp_path: Path) -> None:
    store.remove(CHUNKS[2].id)
    store.spoil(CHUNKS[0].id)
    (tmp_path / "app").write_text("the version before")
    with pytest.raises(MissingChunks) as caught:
        assemble(RELEASE, APP, store, tmp_path / "app")
    assert list(caught.value.positions) == [0, 2]
    assert isinstance(caught.value, TransferError)
    assert [path.name for path in tmp_path.iterdir()] == ["app"]
    assert (tmp_path / "app").read_text() == "the version before"
    store.put(CHUNKS[0])
    store.put(CHUNKS[2])
    assemble(RELEASE, APP, store, tmp_path / "app")
    assert (tmp_path / "app").read_bytes() == APP_BYTES


def test_rot_found_in_the_middle_of_writing_is_named_too(store: MemoryStore, tmp_path: Path) -> None:
    store.spoil(CHUNKS[1].id)
    with pytest.raises(MissingChunks) as caught:
        assemble(RELEASE, APP, store, tmp_path / "app")
    assert list(caught.value.positions) == [1]
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_contradicts_itself_yields_no_file(store: MemoryStore, tmp_path: Path) -> None:
    lie = msgspec.structs.replace(APP, stored_sha256=hashlib.sha256(b"something else").digest())
    with pytest.raises(TrustError, match="not the one described"):
        assemble(RELEASE, lie, store, tmp_path / "app")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_assembly_left_is_swept_and_what_a_living_one_has_is_not(
    store: MemoryStore, tmp_path: Path
) -> None:
    import fcntl

    dead, alive, foreign = (tmp_path / f".app.{name}" for name in ("1.assembling", "2.assembling", "swp"))
    for path in (dead, alive, foreign):
        path.write_bytes(b"half")
    with alive.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assemble(RELEASE, APP, store, tmp_path / "app")
    assert not dead.exists()
    assert alive.exists()
    assert foreign.exists()


@dataclasses.dataclass
class Failing:
    """``os.fsync`` of a disk that has no room for what it promised."""

    number: int

    def __call__(self, descriptor: int) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(("number", "kind"), [(28, DiskFull), (122, DiskFull), (5, StorageError)])
def test_a_failing_disk_leaves_no_file(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    monkeypatch.setattr(assemble_module.os, "fsync", Failing(number))
    with pytest.raises(kind, match="cannot be assembled"):
        assemble(RELEASE, APP, store, tmp_path / "app")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_a_storage_error(store: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        assemble(RELEASE, APP, store, tmp_path / "no" / "app")


_ASSEMBLES_SLOWLY = """
import sys, time
from pathlib import Path
from pcm_p2p.content.keeping.assemble import assemble
from pcm_p2p.content.manifest import decode_untrusted
from pcm_p2p.content.keeping.store import ChunkStore
folder = Path(sys.argv[1])
class Slow(ChunkStore):
    def get(self, chunk):
        print("chunk", flush=True)
        time.sleep(0.05)
        return super().get(chunk)
manifest = decode_untrusted((folder / "manifest").read_bytes())
assemble(manifest, manifest.artifacts[0], Slow(folder / "store").open(), folder / "out" / "app")
"""


def test_sigkill_in_the_middle_leaves_nothing_under_the_name_and_the_next_one_finishes(tmp_path: Path) -> None:
    chunks = chunks_of(*[20_000] * 60)
    release = release_of(chunks, app=list(range(60)))
    store = ChunkStore(tmp_path / "store").open()
    for chunk in chunks:
        store.put(chunk)
    (tmp_path / "manifest").write_bytes(release.encoded)
    (tmp_path / "out").mkdir()
    with subprocess.Popen([sys.executable, "-c", _ASSEMBLES_SLOWLY, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    left = list((tmp_path / "out").iterdir())
    assert len(left) == 1
    assert left[0].name.endswith(".assembling")
    begun = time.monotonic()
    assemble(release, release.artifacts[0], store, tmp_path / "out" / "app")
    assert time.monotonic() - begun < 60
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["app"]
    assert (tmp_path / "out" / "app").read_bytes() == b"".join(chunk.data for chunk in chunks)
