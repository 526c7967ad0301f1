"""The origin client against a real server on loopback that misbehaves."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from faulty_origin import (
    FaultyOrigin,
    captive_portal,
    cut_after,
    hang_up,
    other_range,
    status,
    too_long,
    without_ranges,
    wrong,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.config import Origin as Settings
from pcm_p2p.content.manifest import Segment
from pcm_p2p.errors import DiskFull, StorageError
from pcm_p2p.ids import SegmentId
from pcm_p2p.swarm import origin as origin_module
from pcm_p2p.swarm.origin import (
    OriginClient,
    OriginFailed,
    OriginMissing,
    OriginWrong,
    retry_after_untrusted,
    segment_path,
)
from pcm_p2p.swarm.pace import Pace

BLOB = random.Random(1).randbytes(600_000)
SEGMENT = Segment(id=bytes(SegmentId.of(BLOB)), size=len(BLOB), kind="full", first=0, count=1)
PATH = segment_path(SEGMENT.segment_id)
PATIENT, QUICK = Settings(), Settings(stall_s=0.3, rate_bytes_per_s_min=50_000)
"""For an origin that serves, however busy the machine is, and for one that stalls."""


@asynccontextmanager
async def client_of(
    folder: Path, *origins: FaultyOrigin, settings: Settings = PATIENT, **options: object
) -> AsyncIterator[OriginClient]:
    urls = [origin.url for origin in origins]
    client = OriginClient(urls, settings, folder / "parts", rng=random.Random(1), **options)  # type: ignore[arg-type]
    with trio.fail_after(60):
        async with client:
            yield client


def blob_origin(*script: object) -> FaultyOrigin:
    return FaultyOrigin({PATH: BLOB, "index.json": b"{}"}, list(script))  # type: ignore[arg-type]


async def fetch(client: OriginClient) -> tuple[bytes, list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []
    path = await client.fetch_segment(SEGMENT, lambda done, new: seen.append((done, new)))
    return path.read_bytes(), seen


async def size_of_part(client: OriginClient) -> int:
    parts = await client.parts()
    assert set(parts) <= {SEGMENT.segment_id}
    return parts.get(SEGMENT.segment_id, 0)


async def test_a_segment_comes_once_verified_and_with_progress(tmp_path: Path) -> None:
    async with blob_origin().serve() as server, client_of(tmp_path, server) as client:
        blob, seen = await fetch(client)
        assert blob == BLOB
        assert seen[-1][0] == len(BLOB)
        assert sum(new for _, new in seen) == len(BLOB) == client.statistics().wan_bytes == server.body_bytes
        assert len(server.asked) == 1
        assert await size_of_part(client) == len(BLOB)
        again, _ = await fetch(client)
        assert again == BLOB
        assert len(server.asked) == 1, "killed while decoding: nothing is fetched again"
        await client.discard(SEGMENT.segment_id)
        assert await size_of_part(client) == 0


async def test_a_broken_connection_is_resumed_where_it_broke(tmp_path: Path) -> None:
    async with (
        blob_origin(cut_after(300_000), cut_after(200_000)).serve() as server,
        client_of(tmp_path, server) as client,
    ):
        blob, _ = await fetch(client)
        assert blob == BLOB
        assert [start for _, start in server.asked] == [0, 300_000, 500_000]
        assert client.statistics().wan_bytes == len(BLOB)
        assert client.statistics().resumed == 2


async def test_a_part_left_by_a_killed_process_is_resumed(tmp_path: Path) -> None:
    async with blob_origin().serve() as server:
        async with client_of(tmp_path, server) as client:
            (tmp_path / "parts" / f"{SEGMENT.segment_id.hex()}.part").write_bytes(BLOB[:400_000])
            blob, _ = await fetch(client)
        assert blob == BLOB
        assert server.asked == [(PATH, 400_000)]


async def test_an_aborted_fetch_keeps_what_it_has(tmp_path: Path) -> None:
    server = blob_origin()
    server.drip_s = 0.005
    async with server.serve(), client_of(tmp_path, server) as client:
        with trio.CancelScope() as scope:
            await client.fetch_segment(SEGMENT, lambda done, new: scope.cancel())
        kept = await size_of_part(client)
        assert 0 < kept == client.statistics().wan_bytes < len(BLOB)
        server.drip_s = 0
        blob, _ = await fetch(client)
        assert blob == BLOB
        assert server.asked[-1] == (PATH, kept)


@pytest.mark.parametrize("junk", [BLOB[:1000] + b"rot" + BLOB[1003:400_000], BLOB + b"more", bytes(len(BLOB))])
async def test_a_rotten_part_costs_one_segment_and_blames_nobody(tmp_path: Path, junk: bytes) -> None:
    async with blob_origin().serve() as server, client_of(tmp_path, server) as client:
        (tmp_path / "parts" / f"{SEGMENT.segment_id.hex()}.part").write_bytes(junk)
        if len(junk) < len(BLOB):
            # The mirror served the rest; it cannot be told from one that served wrong bytes.
            with pytest.raises(OriginWrong):
                await fetch(client)
            return
        blob, _ = await fetch(client)
        assert blob == BLOB
        assert [start for _, start in server.asked] == [0]


async def test_a_server_without_ranges_is_read_from_the_start(tmp_path: Path) -> None:
    server = blob_origin(cut_after(300_000))
    server.otherwise = without_ranges
    async with server.serve(), client_of(tmp_path, server) as client:
        blob, _ = await fetch(client)
        assert blob == BLOB
        assert client.statistics().wan_bytes == len(BLOB) + 300_000, "retries are counted"


async def test_wrong_bytes_blame_the_mirror_and_the_next_one_is_asked(tmp_path: Path) -> None:
    bad, good = blob_origin(), blob_origin()
    bad.otherwise = wrong
    async with bad.serve(), good.serve(), client_of(tmp_path, bad, good) as client:
        blob, _ = await fetch(client)
        assert blob == BLOB
        await client.discard(SEGMENT.segment_id)
        await fetch(client)
        assert len(bad.asked) == 1, "it is left alone for a while"
        assert client.statistics().wrong == 1


@pytest.mark.parametrize("answer", [wrong, captive_portal, too_long], ids=["wrong", "portal", "too long"])
async def test_the_only_mirror_with_wrong_bytes_is_named(tmp_path: Path, answer: object) -> None:
    server = blob_origin()
    server.otherwise = answer  # type: ignore[assignment]
    async with server.serve(), client_of(tmp_path, server) as client:
        with pytest.raises(OriginWrong) as raised:
            await fetch(client)
        assert server.url in raised.value.message
        assert raised.value.wait_ms > 60_000
        assert client.statistics().resting


async def test_another_range_than_asked_for_is_refused(tmp_path: Path) -> None:
    async with blob_origin(cut_after(100_000), other_range).serve() as server, client_of(tmp_path, server) as client:
        with pytest.raises(OriginWrong):
            await fetch(client)
        assert await size_of_part(client) == 100_000


async def test_a_missing_segment_is_looked_for_at_every_mirror(tmp_path: Path) -> None:
    empty, full = FaultyOrigin({}), blob_origin()
    async with empty.serve(), full.serve():
        async with client_of(tmp_path, empty, full) as client:
            assert (await fetch(client))[0] == BLOB
        async with client_of(tmp_path / "other", empty) as client:
            with pytest.raises(OriginMissing) as raised:
                await fetch(client)
            assert not raised.value.whole_origin


@pytest.mark.parametrize("code", [500, 503, 429, 403, 301])
async def test_other_statuses_rest_the_mirror_and_are_named(tmp_path: Path, code: int) -> None:
    server = blob_origin()
    server.otherwise = status(code)
    async with server.serve(), client_of(tmp_path, server) as client:
        with pytest.raises(OriginFailed, match=str(code)) as raised:
            await fetch(client)
        assert 0 < raised.value.wait_ms < 2_000
        with pytest.raises(OriginFailed):
            await fetch(client)
        assert len(server.asked) == 1, "no request while it rests"


async def test_retry_after_is_honoured(tmp_path: Path) -> None:
    async with blob_origin(status(503, "Retry-After: 120")).serve() as server, client_of(tmp_path, server) as client:
        with pytest.raises(OriginFailed) as raised:
            await fetch(client)
        assert 119_000 <= raised.value.wait_ms <= 120_000


async def test_a_stalled_and_a_dripping_origin_are_given_up(tmp_path: Path) -> None:
    for drip_s in (1.0, 0.02):
        server = blob_origin()
        server.drip_s = drip_s
        async with server.serve(), client_of(tmp_path / str(drip_s), server, settings=QUICK) as client:
            with pytest.raises(OriginFailed, match=r"stalled|too slow"):
                await fetch(client)


async def test_the_own_rate_limit_is_kept_and_not_held_against_the_origin(tmp_path: Path) -> None:
    async with blob_origin().serve() as server, client_of(tmp_path, server, pace=Pace(400_000)) as client:
        began = trio.current_time()
        assert (await fetch(client))[0] == BLOB
        assert trio.current_time() - began >= (len(BLOB) - (64 << 10) - 65_536) / 400_000


async def test_nobody_there(tmp_path: Path) -> None:
    async with blob_origin().serve() as server:
        url = server.url
    async with OriginClient([url], PATIENT, tmp_path) as client:
        with pytest.raises(OriginFailed, match="cannot be reached"):
            await fetch(client)
        with pytest.raises(OriginFailed):
            await client.get("index.json", 100)
    async with OriginClient([], PATIENT, tmp_path) as client:
        with pytest.raises(OriginFailed, match="no origin is configured"):
            await fetch(client)


async def test_small_files_come_whole_bounded_and_from_any_mirror(tmp_path: Path) -> None:
    first, second = FaultyOrigin({}), blob_origin()
    async with first.serve(), second.serve(), client_of(tmp_path, first, second) as client:
        assert await client.get("index.json", 100) == b"{}"
        with pytest.raises(OriginMissing):
            await client.get("metadata/timestamp.json", 100)
        assert client.statistics().metadata_bytes == 2
        assert client.statistics().wan_bytes == 0
    async with second.serve(), client_of(tmp_path, second) as client:
        with pytest.raises(OriginFailed, match="longer than 1 "):
            await client.get("index.json", 1)


async def test_a_hang_up_before_any_answer_is_tried_at_the_next_mirror(tmp_path: Path) -> None:
    first, second = blob_origin(hang_up, hang_up), blob_origin()
    async with first.serve(), second.serve(), client_of(tmp_path, first, second) as client:
        assert (await fetch(client))[0] == BLOB
        assert await client.get("index.json", 10) == b"{}"


async def test_two_tasks_that_want_the_same_segment_share_one_fetch(tmp_path: Path) -> None:
    async with blob_origin().serve() as server, client_of(tmp_path, server) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fetch, client)
        assert len(server.asked) == 1


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, DiskFull), (errno.EIO, StorageError)])
async def test_a_disk_that_refuses_is_not_the_origins_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def refuse(path: Path, offset: int, data: bytes) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(origin_module, "_write_at", refuse)
    async with blob_origin().serve() as server, client_of(tmp_path, server) as client:
        with pytest.raises(error):
            await fetch(client)
        assert client.statistics().resting == ""


async def test_the_environments_proxy_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with blob_origin().serve() as server, client_of(tmp_path, server) as client:
        assert (await fetch(client))[0] == BLOB


def test_retry_after_in_both_forms() -> None:
    assert retry_after_untrusted("120", 0.0) == 120_000
    assert retry_after_untrusted("Thu, 01 Jan 1970 00:02:00 GMT", 60.0) == 60_000
    assert retry_after_untrusted("Thu, 01 Jan 1970 00:00:00 GMT", 60.0) == 0
    assert retry_after_untrusted("9" * 60, 0.0) == 86_400_000


@settings(max_examples=200)
@given(st.text(max_size=80))
def test_retry_after_takes_any_noise(text: str) -> None:
    assert 0 <= retry_after_untrusted(text, 1e9) <= 86_400_000
