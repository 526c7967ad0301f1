"""Decoding in a worker process: what comes out, and that nothing a blob or a worker does hurts the daemon.

Every test runs a real worker. Hangs are made with SIGSTOP and crashes with SIGKILL, from within the job.
"""

from __future__ import annotations

import lzma
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import trio
import trio.testing
from content_samples import chunks_of, noise, release_of, text

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.decoding.decoder import TIMEOUT_S, Decoder, InlineDecoder
from pcm_p2p.content.decoding.job import BaseMissing, DecodeFailed
from pcm_p2p.content.delta.blob import encode_delta
from pcm_p2p.content.keeping.memory_store import MemoryStore
from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.content.manifest import Base, Layout, Manifest, Segment, decode_untrusted
from pcm_p2p.content.segment import XZ_MAGIC, encode_full
from pcm_p2p.errors import DiskFull
from pcm_p2p.ids import ChunkId, SegmentId

FULL, DELTA, LAYOUT = range(3)
SIZES = (90_000, 50_000, 70_000)


@dataclass
class Office:
    """A release of one run, as a full segment and as a delta from another release, with a layout; the store has the base."""

    folder: Path
    manifest: Manifest
    base: list[Chunk]
    release: list[Chunk]
    store: MemoryStore = field(default_factory=MemoryStore)
    got: dict[int, Chunk] = field(default_factory=dict)

    def blob(self, index: int) -> Path:
        return self.folder / self.manifest.segments[index].segment_id.hex()

    def take(self, position: int, chunk: Chunk) -> None:
        self.got[position] = chunk
        self.store.put(chunk)

    async def decode(
        self,
        decoder: Decoder | InlineDecoder,
        index: int,
        *,
        blob: Path | None = None,
        base: Callable[[ChunkId], Chunk | None] | None = None,
        on_chunk: Callable[[int, Chunk], None] | None = None,
    ) -> list[Chunk]:
        """The chunks in the order in which they came."""
        self.got.clear()
        segment = self.manifest.segments[index]
        path = blob or self.blob(index)
        await decoder.decode(segment, self.manifest, path, base or self.store.get, on_chunk or self.take)
        assert list(self.got) == list(segment.positions)
        return list(self.got.values())


def published(folder: Path, release: list[Chunk], base: list[Chunk], blobs: dict[int, bytes], level: int) -> Manifest:
    """The manifest of it all. ``blobs``: what is to be published in place of the right blob, by segment."""
    layout = Chunk.of(text(3_000, seed=9))
    plain = release_of(release, app=list(range(len(release))))
    joined, joined_base = (b"".join(chunk.data for chunk in chunks) for chunks in (release, base))
    right = {
        FULL: blobs.get(FULL) or encode_full([joined], level),
        DELTA: blobs.get(DELTA) or encode_delta(joined_base, joined),
        LAYOUT: encode_full([layout.data], level),
    }
    for blob in right.values():
        (folder / SegmentId.of(blob).hex()).write_bytes(blob)
    count, ends = len(release), len(release) + len(base)
    ids = {index: bytes(SegmentId.of(blob)) for index, blob in right.items()}
    manifest = msgspec.structs.replace(
        plain,
        segments=(
            Segment(ids[FULL], len(right[FULL]), "full", 0, count),
            Segment(ids[DELTA], len(right[DELTA]), "delta", 0, count, tuple(range(count, ends)), 0),
            Segment(ids[LAYOUT], len(right[LAYOUT]), "layout", ends, 1),
        ),
        bases=(Base("0", bytes(32)),),
        aid_ids=b"".join(chunk.id for chunk in [*base, layout]),
        aid_sizes=struct.pack(f"<{len(base) + 1}I", *(len(chunk.data) for chunk in [*base, layout])),
        layouts=(Layout(0, "app", "exact", bytes(32), ends, 1),),
    )
    return decode_untrusted(msgspec.msgpack.encode(manifest))


def office_in(
    folder: Path, blobs: dict[int, bytes] | None = None, sizes: tuple[int, ...] = SIZES, level: int = 19
) -> Office:
    base = chunks_of(*sizes, seed=1)
    # A few bytes of each chunk change.
    release = [Chunk.of(chunk.data[:100] + b"new" + chunk.data[103:]) for chunk in base]
    office = Office(folder, published(folder, release, base, blobs or {}, level), base, release)
    for chunk in base:
        office.store.put(chunk)
    return office


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return office_in(tmp_path)


@pytest.fixture
async def decoder() -> AsyncIterator[Decoder]:
    async with Decoder() as decoder:
        yield decoder


def pid_of(decoder: Decoder) -> int:
    assert decoder.pid is not None
    return decoder.pid


def is_gone(pid: int) -> bool:
    """A process that was waited for; a zombie is not gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# What comes out


@pytest.mark.parametrize("inline", [False, True], ids=["process", "inline"])
async def test_every_kind_of_segment_yields_its_chunks_in_order(office: Office, decoder: Decoder, inline: bool) -> None:
    each: Decoder | InlineDecoder = InlineDecoder() if inline else decoder
    assert await office.decode(each, FULL) == office.release
    assert await office.decode(each, DELTA) == office.release
    (layout,) = await office.decode(each, LAYOUT)
    assert layout.id == office.manifest.table_chunks[office.manifest.layout_first]


async def test_the_worker_stays_for_the_next_segment_and_goes_when_idle(office: Office) -> None:
    async with Decoder(idle_s=0.05) as decoder:
        assert decoder.pid is None, "nothing is started before there is work"
        await office.decode(decoder, FULL)
        first = pid_of(decoder)
        await office.decode(decoder, DELTA)
        assert decoder.pid == first
        await trio.testing.wait_all_tasks_blocked(cushion=0.2)
        assert decoder.pid is None
        assert is_gone(first)
        assert await office.decode(decoder, DELTA) == office.release


async def test_jobs_queue_for_the_one_worker(office: Office, decoder: Decoder) -> None:
    under_way = most = 0

    def base(chunk: ChunkId) -> Chunk | None:
        nonlocal under_way, most
        under_way += chunk == office.base[0].id
        most = max(most, under_way)
        return office.store.get(chunk)

    def done(position: int, _chunk: Chunk) -> None:
        nonlocal under_way
        under_way -= position == len(office.release) - 1

    segment = office.manifest.segments[DELTA]
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(decoder.decode, segment, office.manifest, office.blob(DELTA), base, done)
    assert (under_way, most) == (0, 1)


async def test_the_worker_steps_back_and_has_a_ceiling(office: Office, decoder: Decoder) -> None:
    await office.decode(decoder, FULL)
    assert os.getpriority(os.PRIO_PROCESS, pid_of(decoder)) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    assert resource.prlimit(pid_of(decoder), resource.RLIMIT_DATA) == (256 << 20, 256 << 20)


# Blobs that are not what they should be


async def failing(
    office: Office, decoder: Decoder | InlineDecoder, index: int, blob: Path | None = None
) -> DecodeFailed:
    with pytest.raises(DecodeFailed) as caught:
        await office.decode(decoder, index, blob=blob)
    return caught.value


@pytest.mark.parametrize("inline", [False, True], ids=["process", "inline"])
@pytest.mark.parametrize("spoil", ["truncated", "swapped", "of another release", "absent"])
async def test_a_file_that_is_not_the_blob_is_a_fault_of_this_device(
    office: Office, decoder: Decoder, tmp_path: Path, spoil: str, inline: bool
) -> None:
    each: Decoder | InlineDecoder = InlineDecoder() if inline else decoder
    path = office.blob(DELTA)
    match spoil:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        case "swapped":
            path = office.blob(FULL)
        case "of another release":
            (tmp_path / "other").mkdir()
            path = office_in(tmp_path / "other", sizes=(1_000, 2_000)).blob(DELTA)
        case "absent":
            path.unlink()
    failed = await failing(office, each, DELTA, path)
    assert not failed.wrong
    assert office.got == {}
    assert await office.decode(each, FULL) == office.release


def with_huge_dictionary(data: bytes) -> bytes:
    # Compressing with such a dictionary takes ten times its size, so it is written into a finished stream: the block header
    # (xz file format 3.1: size, flags, filter 0x21, its one property byte, padding, CRC32).
    stream = bytearray(lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_NONE))
    at = 12
    assert stream[at + 2 : at + 4] == b"\x21\x01"
    stream[at + 4] = 36  # 2 ** (36 / 2 + 12) bytes, 1 GiB
    size = 4 * (stream[at] + 1)
    stream[at + size - 4 : at + size] = zlib.crc32(stream[at : at + size - 4]).to_bytes(4, "little")
    return bytes(stream)


@pytest.mark.parametrize("inline", [False, True], ids=["process", "inline"])
@pytest.mark.parametrize("index", [FULL, DELTA])
@pytest.mark.parametrize(
    "make",
    [
        lambda data: noise(1000),
        lambda data: XZ_MAGIC + bytes(1000),
        lambda data: encode_full([data[:-1]], 3),
        with_huge_dictionary,
    ],
)
async def test_a_published_blob_that_is_wrong_is_wrong_everywhere(
    tmp_path: Path, decoder: Decoder, index: int, make: Callable[[bytes], bytes], inline: bool
) -> None:
    each: Decoder | InlineDecoder = InlineDecoder() if inline else decoder
    joined = b"".join(chunk.data for chunk in office_in(tmp_path).release)
    # A delta has to be smaller than the full blob, or the manifest is refused before.
    office = office_in(tmp_path, {index: make(joined if index == FULL else joined[:1000])})
    failed = await failing(office, each, index)
    assert failed.wrong
    assert office.got == {}
    other = DELTA if index == FULL else FULL
    assert await office.decode(each, other) == office.release


async def test_chunks_before_the_first_wrong_one_are_good(tmp_path: Path, decoder: Decoder) -> None:
    first, second, third = (chunk.data for chunk in office_in(tmp_path).release)
    office = office_in(tmp_path, {FULL: encode_full([first, second[::-1], third], 3)})
    failed = await failing(office, decoder, FULL)
    assert failed.wrong
    assert list(office.got.values()) == office.release[:1]


# Base chunks that are not there


@pytest.mark.parametrize("inline", [False, True], ids=["process", "inline"])
async def test_all_missing_and_rotten_base_chunks_are_named_at_once(
    office: Office, decoder: Decoder, inline: bool
) -> None:
    each: Decoder | InlineDecoder = InlineDecoder() if inline else decoder
    first = len(office.release)
    office.store.spoil(office.base[0].id)
    office.store.remove(office.base[2].id)
    with pytest.raises(BaseMissing) as caught:
        await office.decode(each, DELTA)
    assert caught.value.positions == (first, first + 2)
    assert office.store.take_removed() == [office.base[0].id]
    for chunk in office.base:
        office.store.put(chunk)
    assert await office.decode(each, DELTA) == office.release


async def test_a_base_that_leaves_while_it_is_read_is_missing(office: Office, decoder: Decoder) -> None:
    def base(chunk: ChunkId) -> Chunk | None:
        found = office.store.get(chunk)
        office.store.remove(office.base[1].id)
        return found

    with pytest.raises(BaseMissing) as caught:
        await office.decode(decoder, DELTA, base=base)
    assert caught.value.positions == (len(office.release) + 1,)


async def test_a_rotten_file_in_the_store_is_a_missing_base(office: Office, decoder: Decoder, tmp_path: Path) -> None:
    store = ChunkStore(tmp_path / "store", 1 << 30).open()
    for chunk in office.base:
        store.put(chunk)
    name = office.base[1].id.hex()
    path = tmp_path / "store" / "chunks" / name[:2] / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BaseMissing) as caught:
        await office.decode(decoder, DELTA, base=store.get)
    assert caught.value.positions == (len(office.release) + 1,)
    store.put(office.base[1])
    assert await office.decode(decoder, DELTA, base=store.get) == office.release


async def test_a_full_disk_is_what_the_caller_hears(office: Office, decoder: Decoder) -> None:
    def on_chunk(position: int, _chunk: Chunk) -> None:
        if position == 1:
            raise DiskFull("no room")

    with pytest.raises(DiskFull):
        await office.decode(decoder, FULL, on_chunk=on_chunk)
    assert await office.decode(decoder, FULL) == office.release


# Workers that misbehave


async def test_a_worker_that_crashes_costs_one_job(office: Office, decoder: Decoder) -> None:
    def base(chunk: ChunkId) -> Chunk | None:
        os.kill(pid_of(decoder), signal.SIGKILL)
        return office.store.get(chunk)

    with pytest.raises(DecodeFailed, match=r"ended by itself \(status -9\)") as caught:
        await office.decode(decoder, DELTA, base=base)
    assert not caught.value.wrong
    assert await office.decode(decoder, DELTA) == office.release


async def test_a_worker_that_died_while_it_had_nothing_to_do_costs_nothing(office: Office, decoder: Decoder) -> None:
    await office.decode(decoder, FULL)
    first = pid_of(decoder)
    os.kill(first, signal.SIGKILL)
    # Until it has ended; the decoder waits for it properly.
    await trio.to_thread.run_sync(os.waitid, os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert await office.decode(decoder, FULL) == office.release
    assert is_gone(first)


async def test_a_worker_that_hangs_is_killed_at_the_deadline(office: Office) -> None:
    async with Decoder(timeout_s=0.2) as decoder:
        stopped = 0

        def base(chunk: ChunkId) -> Chunk | None:
            nonlocal stopped
            stopped = pid_of(decoder)
            os.kill(stopped, signal.SIGSTOP)
            return office.store.get(chunk)

        with pytest.raises(DecodeFailed, match="did not answer in time") as caught:
            await office.decode(decoder, DELTA, base=base)
        assert not caught.value.wrong
        assert is_gone(stopped)


async def test_a_slow_store_of_ours_is_no_hang(
    office: Office, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr("pcm_p2p.content.decoding.decoder.time", SimpleNamespace(monotonic=lambda: now_s))

    def on_chunk(position: int, chunk: Chunk) -> None:
        nonlocal now_s
        now_s += 2 * TIMEOUT_S
        office.take(position, chunk)

    def base(chunk: ChunkId) -> Chunk | None:
        nonlocal now_s
        now_s += 2 * TIMEOUT_S
        return office.store.get(chunk)

    assert await office.decode(decoder, DELTA, base=base, on_chunk=on_chunk) == office.release


async def test_a_job_that_needs_too_much_memory_fails_alone(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    office = office_in(tmp_path, {DELTA: noise(1000)}, (4 << 20,) * 4, level=1)
    other_folder = tmp_path_factory.mktemp("other")
    async with Decoder(memory_bytes_max=32 << 20) as decoder:
        failed = await failing(office, decoder, FULL)
        assert not failed.wrong
        assert "memory" in failed.reason
        other = office_in(other_folder)
        assert await other.decode(decoder, FULL) == other.release, "the next worker starts with nothing"


# Ends


async def test_cancelling_leaves_no_process(office: Office, decoder: Decoder) -> None:
    stopped = 0
    begun = trio.Event()

    def base(chunk: ChunkId) -> Chunk | None:
        nonlocal stopped
        stopped = pid_of(decoder)
        os.kill(stopped, signal.SIGSTOP)
        trio.from_thread.run_sync(begun.set)
        return office.store.get(chunk)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def decode() -> None:
                await office.decode(decoder, DELTA, base=base)

            nursery.start_soon(decode)
            await begun.wait()
            nursery.cancel_scope.cancel()
    assert decoder.pid is None
    assert is_gone(stopped)
    assert await office.decode(decoder, DELTA) == office.release


async def test_closing_leaves_no_process(office: Office) -> None:
    worker = 0

    async def fail_after_a_job() -> None:
        nonlocal worker
        async with Decoder() as decoder:
            await office.decode(decoder, FULL)
            worker = pid_of(decoder)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_after_a_job()
    assert is_gone(worker)


_DECODES_AND_WAITS = """
import sys, time
from pathlib import Path
import trio
import trio.testing
from test_decoder import DELTA, office_in, pid_of
from pcm_p2p.content.decoding.decoder import Decoder
office = office_in(Path(sys.argv[1]))
async def main():
    async with Decoder() as decoder:
        def base(chunk):
            print(pid_of(decoder), flush=True)
            time.sleep(60)
        await office.decode(decoder, DELTA, base=base)
trio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the worker ends after the job in hand")
def test_sigkill_of_the_daemon_ends_the_worker_in_the_middle_of_a_job(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _DECODES_AND_WAITS, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 60
    # Whoever adopts it may not wait for it, so a zombie counts as gone.
    while Path(f"/proc/{worker}").exists() and ") Z " not in Path(f"/proc/{worker}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
