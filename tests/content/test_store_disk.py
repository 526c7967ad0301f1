"""The chunk store and its disk: crashes, rot, no room, other people's files."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from content_samples import chunks_of

from pcm_p2p.content.chunk import SEALED_SIZE_BYTES_MAX, Chunk, seal
from pcm_p2p.content.keeping.chunk_folder import ChunkFolder, DiskSpace, Found, ReadChunk, disk_space, write_new_file
from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.errors import DiskFull, StorageError
from pcm_p2p.ids import ChunkId

GIB = 1 << 30


def path_of(folder: Path, chunk: ChunkId) -> Path:
    return folder / "chunks" / chunk.hex()[:2] / chunk.hex()


def test_chunks_are_there_after_a_restart_in_the_order_of_use(tmp_path: Path) -> None:
    chunks = chunks_of(1000, 1000, 1000)
    now = 1_000_000.0
    store = ChunkStore(tmp_path, clock=lambda: now).open()
    for chunk in chunks:
        now += 10
        store.put(chunk)
    now += 3600
    store.get(chunks[0].id)
    again = ChunkStore(tmp_path, 3 * len(seal(chunks[0])), clock=lambda: now + 1).open().scan()
    assert set(again.ids()) == {chunk.id for chunk in chunks}
    again.put(chunks_of(1000, seed=2)[0])
    assert again.take_removed() == [chunks[1].id]


@pytest.mark.parametrize("spoil", ["flip", "tear", "empty", "vanish", "link", "grow"])
def test_a_file_that_is_not_the_chunk_is_a_miss_and_goes(tmp_path: Path, spoil: str) -> None:
    (chunk,) = chunks_of(5000)
    store = ChunkStore(tmp_path / "store").open()
    store.put(chunk)
    path = path_of(tmp_path / "store", chunk.id)
    data = path.read_bytes()
    match spoil:
        case "flip":
            path.write_bytes(data[:100] + bytes([data[100] ^ 4]) + data[101:])
        case "tear":
            path.write_bytes(data[:1000])
        case "empty":
            path.write_bytes(b"")
        case "vanish":
            path.unlink()
        case "link":
            (tmp_path / "elsewhere").write_bytes(data)
            path.unlink()
            path.symlink_to(tmp_path / "elsewhere")
        case "grow":
            path.write_bytes(data + bytes(SEALED_SIZE_BYTES_MAX))
    assert store.get_sealed(chunk.id) is None
    assert not store.has(chunk.id)
    assert not path.is_symlink()
    assert not path.exists()
    assert store.take_removed() == [chunk.id]
    facts = store.statistics()
    assert (facts.rotten, facts.misses, facts.chunks, facts.bytes) == (1, 1, 0, 0)
    assert store.put(chunk) is True
    assert store.get(chunk.id) == chunk


def test_opening_sweeps_what_a_crash_left(tmp_path: Path) -> None:
    good, torn = chunks_of(1000, 2000)
    store = ChunkStore(tmp_path).open()
    store.put(good)
    path_of(tmp_path, torn.id).parent.mkdir(exist_ok=True)
    path_of(tmp_path, torn.id).write_bytes(b"")
    (tmp_path / "temporary" / "left").write_bytes(b"half a chunk")
    misplaced = tmp_path / "chunks" / ("00" if good.id.hex()[:2] != "00" else "01") / good.id.hex()
    misplaced.parent.mkdir(exist_ok=True)
    misplaced.write_bytes(b"in the wrong folder")
    (tmp_path / "chunks" / "00").mkdir(exist_ok=True)
    (tmp_path / "chunks" / "00" / "README").write_text("somebody else's")
    again = ChunkStore(tmp_path).open().scan()
    assert again.ids() == [good.id]
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not misplaced.exists()
    assert (tmp_path / "chunks" / "00" / "README").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_makes_room_once_and_says_so_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    wanted, idle, new, more = chunks_of(1000, 1000, 1000, 1000)
    store = ChunkStore(tmp_path, GIB).open()
    store.set_wanted({wanted.id})
    store.put(wanted)
    store.put(idle)
    write, room = write_new_file, [1]

    def full_disk(path: Path, data: bytes) -> None:
        if sum(1 for _ in tmp_path.glob("chunks/*/*")) > room[0]:
            path.write_bytes(data[:10])
            raise OSError(number, os.strerror(number))
        write(path, data)

    monkeypatch.setattr("pcm_p2p.content.keeping.store.write_new_file", full_disk)
    assert store.put(new) is True
    assert store.take_removed() == [idle.id]
    room[0] = 0
    store.set_wanted({wanted.id, new.id})
    with pytest.raises(DiskFull) as caught:
        store.put(more)
    assert "quota_bytes_max" in caught.value.remedy
    assert list((tmp_path / "temporary").iterdir()) == []
    assert store.statistics().state == "full"
    assert store.get(wanted.id) == wanted
    assert store.get(new.id) == new
    room[0] = 10
    assert store.put(more) is True
    assert store.statistics().state == "ok"


def test_a_broken_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (chunk,) = chunks_of(1000)
    store = ChunkStore(tmp_path).open()

    def broken(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pcm_p2p.content.keeping.store.write_new_file", broken)
    with pytest.raises(StorageError, match="Input/output error"):
        store.put(chunk)
    assert not store.has(chunk.id)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_folder_that_cannot_be_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be opened"):
        ChunkStore(tmp_path / "file" / "store").open()


@pytest.mark.parametrize(
    ("space", "quota"),
    [
        (DiskSpace(1000 * GIB, 50 * GIB), 10 * GIB),
        (DiskSpace(1000 * GIB, 900 * GIB), 20 * GIB),
        (DiskSpace(1000 * GIB, 0), 0),
    ],
)
def test_the_quota_of_its_own_choice(tmp_path: Path, space: DiskSpace, quota: int) -> None:
    store = ChunkStore(tmp_path, space=lambda _: space).open().scan()
    assert store.statistics().quota_bytes_max == quota


def test_a_quota_of_its_own_choice_does_not_shrink_with_restarts(tmp_path: Path) -> None:
    chunks = chunks_of(*[100_000] * 5)
    store = ChunkStore(tmp_path, space=lambda _: DiskSpace(GIB, GIB)).open().scan()
    before = store.statistics().quota_bytes_max
    for chunk in chunks:
        store.put(chunk)
    held = store.statistics().bytes
    again = ChunkStore(tmp_path, space=lambda _: DiskSpace(GIB, GIB - held)).open().scan()
    assert again.statistics().quota_bytes_max == before


def test_a_tenth_of_the_disk_stays_free(tmp_path: Path) -> None:
    total = 10_000_000
    free = 2_000_000
    store = ChunkStore(tmp_path, space=lambda _: DiskSpace(total, free)).open()
    idle, wanted, refused = chunks_of(100_000, 100_000, 100_000)
    store.put(idle)
    free = 1_050_000
    assert store.put(wanted) is True, "room was made"
    assert store.take_removed() == [idle.id]
    store.set_wanted({wanted.id})
    with pytest.raises(DiskFull, match="stay free"):
        store.put(refused)
    assert store.ids() == [wanted.id]


def test_nothing_is_evicted_for_a_chunk_that_would_not_fit_anyway(tmp_path: Path) -> None:
    wanted, idle, large = chunks_of(1000, 1000, 3000)
    store = ChunkStore(tmp_path, 2 * len(seal(wanted)) + 500).open()
    store.set_wanted({wanted.id})
    store.put(wanted)
    store.put(idle)
    with pytest.raises(DiskFull):
        store.put(large)
    assert set(store.ids()) == {wanted.id, idle.id}


def test_many_threads_agree(tmp_path: Path) -> None:
    chunks = chunks_of(*[2000] * 40)
    store = ChunkStore(tmp_path, 25 * len(seal(chunks[0]))).open()
    wanted = {chunk.id for chunk in chunks[:10]}
    store.set_wanted(wanted)
    fresh, failures = [0] * 4, list[BaseException]()

    def work(number: int) -> None:
        try:
            for turn in range(3):
                for chunk in chunks[:: -1 if (number + turn) % 2 else 1]:
                    fresh[number] += store.put(chunk)
                    found = store.get(chunk.id)
                    assert found in (None, chunk)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    facts = store.statistics()
    assert facts.rotten == 0
    assert facts.stored == sum(fresh) == facts.chunks + facts.evicted
    assert wanted <= set(store.ids())
    assert set(ChunkStore(tmp_path, GIB).open().scan().ids()) == set(store.ids())
    assert facts.bytes == sum(path.stat().st_size for path in tmp_path.glob("chunks/*/*"))


_PUTS_FOR_EVER = """
import sys
from pathlib import Path
from content_samples import chunks_of
from pcm_p2p.content.keeping.store import ChunkStore
store = ChunkStore(Path(sys.argv[1])).open()
print("ready", flush=True)
for seed in range(1, 100_000):
    for chunk in chunks_of(*[20_000] * 5, seed=seed):
        store.put(chunk)
"""


def test_sigkill_while_storing_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PUTS_FOR_EVER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 60
        while sum(1 for _ in tmp_path.glob("chunks/*/*")) < 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    store = ChunkStore(tmp_path).open().scan()
    assert len(store.ids()) >= 50
    assert all(store.get(chunk) for chunk in store.ids())
    assert store.statistics().rotten == 0


# Before the index is read


def filled(folder: Path, *chunks: Chunk) -> ChunkStore:
    """A store that has just been opened on a folder that holds ``chunks``."""
    before = ChunkStore(folder, GIB).open()
    for chunk in chunks:
        before.put(chunk)
    return ChunkStore(folder, GIB).open()


def test_what_is_on_disk_is_known_before_the_scan(tmp_path: Path) -> None:
    one, other, third = chunks_of(1000, 2000, 3000)
    store = filled(tmp_path, one, other)
    assert store.ids() == []
    assert not store.statistics().scanned
    assert store.has(one.id)
    assert not store.has(third.id)
    assert store.put(other) is False, "nothing is fetched and stored twice"
    assert store.get(one.id) == one
    store.scan()
    facts = store.statistics()
    assert (facts.scanned, facts.chunks, facts.stored) == (True, 2, 0)
    assert facts.bytes == len(seal(one)) + len(seal(other))


def test_a_store_whose_index_is_read_does_not_ask_the_disk(tmp_path: Path) -> None:
    (one,) = chunks_of(1000)
    store = ChunkStore(tmp_path, GIB).open().scan()
    filled(tmp_path, one)
    assert not store.has(one.id)


def test_what_leaves_while_the_index_is_read_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = chunks_of(1000, 2000)
    store = filled(tmp_path, one, other)
    files = ChunkFolder.files

    def listed_before(self: ChunkFolder, folder: Path) -> list[Found]:
        found = list(files(self, folder))
        store.remove(one.id)
        return found

    monkeypatch.setattr(ChunkFolder, "files", listed_before)
    store.scan()
    assert store.ids() == [other.id]
    assert store.statistics().bytes == len(seal(other))


def test_what_is_stored_while_the_index_is_read_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = chunks_of(1000, 2000)
    store = filled(tmp_path, one)
    files = ChunkFolder.files

    def stored_before(self: ChunkFolder, folder: Path) -> list[Found]:
        store.put(other)
        return list(files(self, folder))

    monkeypatch.setattr(ChunkFolder, "files", stored_before)
    store.scan()
    assert set(store.ids()) == {one.id, other.id}
    assert store.statistics().bytes == len(seal(one)) + len(seal(other))
    assert store.get(other.id) == other


def test_what_a_crash_tore_is_replaced_while_the_index_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = chunks_of(1000)
    store = filled(tmp_path, one)
    path_of(tmp_path, one.id).write_bytes(b"")
    files = ChunkFolder.files

    def listed_before(self: ChunkFolder, folder: Path) -> list[Found]:
        found = list(files(self, folder))
        store.put(one)
        return found

    monkeypatch.setattr(ChunkFolder, "files", listed_before)
    store.scan()
    assert store.get(one.id) == one


def test_a_folder_that_cannot_be_listed_costs_its_chunks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = chunks_of(1000, 2000)
    store = filled(tmp_path, one, other)
    files = ChunkFolder.files

    def broken(self: ChunkFolder, folder: Path) -> Iterator[Found]:
        if folder == path_of(tmp_path, one.id).parent:
            raise OSError(errno.EIO, "Input/output error")
        return files(self, folder)

    monkeypatch.setattr(ChunkFolder, "files", broken)
    store.scan()
    assert store.ids() == [other.id]
    assert store.statistics().scanned


def test_a_scan_ends_soon_when_the_store_is_closed(tmp_path: Path) -> None:
    (one,) = chunks_of(1000)
    store = filled(tmp_path, one)
    store.close()
    store.scan()
    assert not store.statistics().scanned
    assert store.has(one.id)


# Reading never raises


@pytest.mark.parametrize(("number", "stays"), [(errno.EIO, False), (errno.EMFILE, True), (errno.ENOMEM, True)])
def test_a_chunk_that_cannot_be_read_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, stays: bool
) -> None:
    (one,) = chunks_of(1000)
    store = ChunkStore(tmp_path, GIB).open()
    store.put(one)

    def broken(*_: object, **__: object) -> ReadChunk:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(ChunkFolder, "read", broken)
        assert store.get(one.id) is None
    assert store.has(one.id) is stays
    assert store.take_removed() == ([] if stays else [one.id])
    assert (store.get(one.id) == one) is stays


def test_disk_space_is_that_of_the_folder(tmp_path: Path) -> None:
    space = disk_space(tmp_path)
    assert 0 <= space.free <= space.total
