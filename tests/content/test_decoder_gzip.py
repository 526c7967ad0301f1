"""Decoding deltas that need gzip in the worker: with the program of this machine, without, and with ones that fail.

Every test runs a real worker. A program that hangs is a script, which tells its process id first.
"""

from __future__ import annotations

import lzma
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import hdiffpatch
import pytest
import trio
from content_samples import noise
from gzip_samples import member, program
from test_decoder import DELTA, FULL, Office, failing, is_gone, pid_of, published

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.decoding import decoder as decoder_module
from pcm_p2p.content.decoding.decoder import Decoder, InlineDecoder
from pcm_p2p.content.decoding.gzip_program import PLACES, Gzip
from pcm_p2p.content.decoding.job import DecodeFailed
from pcm_p2p.content.decoding.worker import NICE
from pcm_p2p.content.delta.blob import encode_smallest_delta, needs_gzip
from pcm_p2p.content.delta.gzip_members import PLAIN_BYTES_MAX
from pcm_p2p.content.delta.repacking import BaseSpan, CannotPack, Head, OutputSpan, encode_head
from pcm_p2p.content.manifest import BASE_BYTES_MAX, SEGMENT_OUTPUT_BYTES_MAX

HERE = next((place for place in PLACES if Path(place).exists()), "")
MAGIC_OF_PATCHES = b"HDIFF13&\0"
PACKER = {"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 32 << 20}
pytestmark = pytest.mark.skipif(not HERE, reason="there is no gzip here")


def gzipped(plain: bytes, level: int = 9) -> bytes:
    return member(plain, level)[:10] + Gzip(HERE).packer()(plain, level)


def chunked(data: bytes, size_bytes: int) -> list[Chunk]:
    return [Chunk.of(data[at : at + size_bytes]) for at in range(0, len(data), size_bytes)]


def office_of(folder: Path, base: bytes, output: bytes, blob: bytes, *, chunk_bytes: int = 50_000) -> Office:
    """A release with ``blob`` for its delta from ``base``."""
    assert needs_gzip(blob)
    release, before = chunked(output, chunk_bytes), chunked(base, chunk_bytes)
    manifest = published(folder, release, before, {DELTA: blob}, 1)
    office = Office(folder, manifest, before, release)
    for chunk in before:
        office.store.put(chunk)
    return office


@cache
def sample_delta() -> tuple[bytes, bytes, bytes]:
    """Base, output, blob."""
    log = b"".join(b"%d " % (at * at) for at in range(20_000))
    old, new = noise(9000) + gzipped(log) + noise(9000, 2), noise(9010) + gzipped(b"first " + log) + noise(9000, 2)
    return old, new, encode_smallest_delta(old, new, Gzip(HERE).packer())


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return office_of(tmp_path, *sample_delta())


@contextmanager
def found(monkeypatch: pytest.MonkeyPatch, path: Path | str) -> Iterator[None]:
    """The program at ``path`` was found good when the daemon started."""
    with monkeypatch.context() as patch:
        patch.setattr(decoder_module, "find_gzip", lambda: Gzip(str(path)))
        yield


@pytest.fixture
async def decoder() -> AsyncIterator[Decoder]:
    async with Decoder() as decoder:
        yield decoder


@pytest.mark.parametrize("inline", [False, True], ids=["process", "inline"])
async def test_a_delta_that_needs_gzip_yields_its_chunks(office: Office, decoder: Decoder, inline: bool) -> None:
    each: Decoder | InlineDecoder = InlineDecoder() if inline else decoder
    assert each.why_not_gzip == ""
    assert await office.decode(each, DELTA) == office.release
    assert office.manifest.segments[DELTA].size < office.manifest.segments[FULL].size / 10


@pytest.mark.parametrize("inline", [False, True], ids=["process", "inline"])
async def test_without_a_gzip_it_is_a_fault_of_this_device_and_the_full_segment_does(
    office: Office, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, inline: bool
) -> None:
    def find() -> Gzip:
        raise CannotPack("there is no /usr/bin/gzip")

    monkeypatch.setattr(decoder_module, "find_gzip", find)
    async with Decoder() as worker:
        each: Decoder | InlineDecoder = InlineDecoder(why_not_gzip="there is none") if inline else worker
        assert each.why_not_gzip.startswith("there is no")
        failed = await failing(office, each, DELTA)
        assert not failed.wrong
        assert "no gzip" in failed.reason
        assert await office.decode(each, FULL) == office.release
    assert "deltas that need gzip are of no use here: there is no /usr/bin/gzip" in caplog.text


@pytest.mark.parametrize(
    ("script", "wrong", "why"),
    [
        pytest.param('exec /usr/bin/gzip "$@" --rsyncable', True, "", id="packs otherwise"),
        pytest.param("exec /usr/bin/gzip -n -1", True, "another number of bytes", id="packs less"),
        pytest.param("exit 0", False, "ended with status 0", id="says nothing"),
        pytest.param("exit 3", False, "ended with status 3", id="dies"),
        pytest.param("kill -9 $$", False, "ended with status -9", id="is killed"),
        pytest.param("exec /bin/cat /dev/zero", False, "more bytes than it was given", id="never ends to speak"),
    ],
)
async def test_a_gzip_that_turned_bad_since_the_start_yields_no_chunk(
    office: Office, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, wrong: bool, why: str
) -> None:
    with found(monkeypatch, program(tmp_path, script)):
        async with Decoder() as decoder:
            failed = await failing(office, decoder, DELTA)
            assert failed.wrong == wrong
            assert why in failed.reason
            assert all(chunk == office.release[at] for at, chunk in office.got.items()), "what came before is good"
            assert await office.decode(decoder, FULL) == office.release


async def test_a_gzip_that_was_removed_is_a_fault_of_this_device(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    with found(monkeypatch, "/nowhere/gzip"):
        async with Decoder() as decoder:
            failed = await failing(office, decoder, DELTA)
            assert not failed.wrong
            assert failed.reason == "/nowhere/gzip cannot be started: No such file or directory"


def hanging(folder: Path) -> Path:
    """A program that tells its process id in a fifo and then does nothing at all."""
    os.mkfifo(folder / "pid")
    return program(folder, f"echo $$ > {folder}/pid\nexec /bin/sleep 600")


async def pid_of_gzip(folder: Path) -> int:
    with trio.fail_after(60):
        return int(await trio.to_thread.run_sync((folder / "pid").read_text, abandon_on_cancel=True))


def is_dead(pid: int) -> bool:
    """Gone, or waited for by nobody."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


async def until_dead(pid: int) -> None:
    def wait() -> None:
        deadline = time.monotonic() + 60
        while not is_dead(pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    await trio.to_thread.run_sync(wait)


async def test_a_gzip_that_hangs_dies_with_the_worker_at_the_deadline(
    office: Office, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with found(monkeypatch, hanging(tmp_path)):
        async with Decoder(timeout_s=1.5) as decoder, trio.open_nursery() as nursery:
            pids = list[int]()

            async def note() -> None:
                pids.append(await pid_of_gzip(tmp_path))

            nursery.start_soon(note)
            with pytest.raises(DecodeFailed, match="did not answer in time"):
                await office.decode(decoder, DELTA)
    await until_dead(pids[0])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_cancelling_kills_the_gzip_that_is_waited_for(
    office: Office, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with found(monkeypatch, hanging(tmp_path)):
        async with Decoder() as decoder:
            async with trio.open_nursery() as nursery:

                async def decode() -> None:
                    await office.decode(decoder, DELTA)

                nursery.start_soon(decode)
                gzip = await pid_of_gzip(tmp_path)
                worker = pid_of(decoder)
                assert os.getpriority(os.PRIO_PROCESS, gzip) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICE)
                nursery.cancel_scope.cancel()
            await until_dead(gzip)
            assert is_gone(worker)
            assert await office.decode(decoder, FULL) == office.release


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_gzip_that_is_killed_costs_the_delta_and_nothing_else(
    office: Office, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with found(monkeypatch, hanging(tmp_path)):
        async with Decoder() as decoder, trio.open_nursery() as nursery:

            async def kill() -> None:
                os.kill(await pid_of_gzip(tmp_path), signal.SIGKILL)

            nursery.start_soon(kill)
            failed = await failing(office, decoder, DELTA)
            assert (failed.wrong, "ended with status -9" in failed.reason) == (False, True)
            assert await office.decode(decoder, FULL) == office.release


def patch_without_base(output: bytes, base_bytes: int) -> bytes:
    """A patch that takes nothing from a base of this size: comparing so many bytes would take a minute."""
    patch = hdiffpatch.diff(b"", output, "none", validate=False)
    begin = len(MAGIC_OF_PATCHES)
    end = begin + next(number for number, byte in enumerate(patch[begin:]) if not byte & 0x80) + 1
    digits = [base_bytes >> shift & 0x7F | (0x80 if shift else 0) for shift in (21, 14, 7, 0)]
    assert patch[end] == 0 == base_bytes >> 28
    return patch[:end] + bytes(digits) + patch[end + 1 :]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
async def test_the_largest_job_that_needs_gzip_stays_below_the_ceiling(tmp_path: Path, decoder: Decoder) -> None:
    """As much base as there may be, as much of it to unpack, a patch that holds all of the output, and as much to pack."""
    plain = (noise(1 << 12).hex().encode() * 2048)[: PLAIN_BYTES_MAX - 4]
    old, new = gzipped(plain, 1), gzipped(plain[::-1], 1)
    base = old + noise(BASE_BYTES_MAX - len(old), 4)
    # Of the blob a quarter is enough: making 16 MiB that do not compress takes longer than all else here.
    rest = (noise(3 << 20, 3) + noise(999_983, 5) * 14)[: SEGMENT_OUTPUT_BYTES_MAX - len(new)]
    head = Head((BaseSpan(10, len(old) - 10, len(plain)),), (OutputSpan(10, len(plain), 1),))
    patch = patch_without_base(new[:10] + plain[::-1] + rest, len(base) - len(old) + 10 + len(plain))
    blob = lzma.compress(encode_head(head) + patch, check=lzma.CHECK_NONE, filters=[PACKER])
    office = office_of(tmp_path, base, new + rest, blob, chunk_bytes=4 << 20)
    peaks = list[int]()

    def take(position: int, chunk: Chunk) -> None:
        status = Path(f"/proc/{pid_of(decoder)}/status").read_text()
        peaks.append(next(int(line.split()[1]) >> 10 for line in status.splitlines() if line.startswith("VmHWM")))
        office.take(position, chunk)

    assert await office.decode(decoder, DELTA, on_chunk=take) == office.release
    assert peaks[-1] <= 240, "MiB; the rest of the blob would be 12, and the program has some"
