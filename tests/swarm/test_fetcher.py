"""The fetcher's shell over in-memory sessions, stores and an origin, in virtual time."""

from __future__ import annotations

import pytest
import trio
from office_in_memory import InMemoryOffice, Member, MemoryOrigin, Release, make_release
from trio.testing import MockClock

from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.messages import Claim, ClaimedSegment, Holdings


@pytest.fixture
def release() -> Release:
    return make_release()


async def all_complete(office: InMemoryOffice, release: Release, timeout_s: float = 120.0) -> float:
    """Seconds until every member has everything."""
    began = trio.current_time()
    with trio.fail_after(timeout_s):
        for member in list(office.members.values()):
            await member.fetcher.wait_complete(release.manifest.manifest_id)
    return trio.current_time() - began


async def wanting(office: InMemoryOffice, count: int, release: Release) -> list[Member]:
    members = [await office.add() for _ in range(count)]
    for member in members:
        await member.fetcher.want(release.manifest)
    return members


@pytest.mark.parametrize("count", [1, 2, 6])
async def test_each_segment_crosses_the_wan_once(autojump_clock: MockClock, release: Release, count: int) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        members = await wanting(office, count, release)
        await all_complete(office, release)
        await trio.sleep(1)
        assert office.origin.sent == {segment: len(blob) for segment, blob in release.blobs.items()}
        for member in members:
            assert set(member.store.sealed) == set(release.chunks)
        assert sum(member.fetcher.wan_in_bytes for member in members) == office.origin.bytes_sent
        assert office.origin.discarded == set(release.blobs), "no partial file is left behind"


async def test_a_latecomer_takes_everything_from_neighbours(autojump_clock: MockClock, release: Release) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        [first] = await wanting(office, 1, release)
        await all_complete(office, release)
        sent = office.origin.bytes_sent
        [late] = await wanting(office, 1, release)
        took_s = await all_complete(office, release)
        assert office.origin.bytes_sent == sent
        assert late.fetcher.wan_in_bytes == 0
        assert late.fetcher.lan_in_bytes > 0
        assert took_s < 1.0, "the LAN does not wait for the roster to settle"
        rows = late.fetcher.why(release.manifest.manifest_id)
        assert {row.source for row in rows} == {f"lan:{first.device.short}"}
        assert {row.source for row in first.fetcher.why(release.manifest.manifest_id)} == {f"wan:{first.device.short}"}


async def test_what_the_store_has_is_not_fetched(autojump_clock: MockClock, release: Release) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        [one] = await wanting(office, 1, release)
        await all_complete(office, release)
        two = await office.add()
        two.store.sealed.update(one.store.sealed)
        await two.fetcher.want(release.manifest)
        progress = two.fetcher.progress(release.manifest.manifest_id)
        assert progress.complete
        assert progress.lan_bytes == progress.wan_bytes == 0
        assert {row.source for row in two.fetcher.why(release.manifest.manifest_id)} == {"installed/store"}


async def test_an_origin_that_is_down_is_named_and_tried_again(autojump_clock: MockClock, release: Release) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs, down="http://origin answers 503")).open() as office:
        members = await wanting(office, 3, release)
        await trio.sleep(120)
        assert 5 < office.origin.failures < 200, "it is tried again, and not by everybody all the time"
        waiting = [member.fetcher.progress(release.manifest.manifest_id).waiting for member in members]
        assert any("503" in reason for reason in waiting)
        assert any("503" in row.reason for row in members[0].fetcher.why(release.manifest.manifest_id))
        office.origin.down = ""
        await all_complete(office, release)
        assert office.origin.bytes_sent == release.blob_bytes


async def test_neighbours_serve_while_the_origin_is_down(autojump_clock: MockClock, release: Release) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        await wanting(office, 1, release)
        await all_complete(office, release)
        office.origin.down = "gone"
        await wanting(office, 3, release)
        await all_complete(office, release, timeout_s=5)


@pytest.mark.parametrize("nature", ["poisoned", "garbled"])
async def test_wrong_bytes_are_blamed_and_fetched_elsewhere(
    autojump_clock: MockClock, release: Release, nature: str
) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        poisoned, _honest = await wanting(office, 2, release)
        await all_complete(office, release)
        poisoned.nature = nature
        sent = office.origin.bytes_sent
        [victim] = await wanting(office, 1, release)
        await all_complete(office, release)
        assert list(victim.fetcher.blamed) == [poisoned.device]
        assert set(victim.store.sealed) == set(release.chunks)
        assert office.origin.bytes_sent == sent, "the other neighbour had it all"


@pytest.mark.parametrize("nature", ["mute", "forgetful", "poisoned"])
async def test_a_sole_holder_that_does_not_serve_is_given_up(
    autojump_clock: MockClock, release: Release, nature: str
) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        [holder] = await wanting(office, 1, release)
        await all_complete(office, release)
        holder.nature = nature
        [other] = await wanting(office, 1, release)
        await all_complete(office, release)
        assert other.fetcher.wan_in_bytes == release.blob_bytes


async def test_a_full_disk_pauses_says_so_and_goes_on(autojump_clock: MockClock, release: Release) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        members = [await office.add() for _ in range(3)]
        full = members[0]
        full.store.room = 5
        for member in members:
            await member.fetcher.want(release.manifest)
        await trio.sleep(60)
        progress = full.fetcher.progress(release.manifest.manifest_id)
        assert not progress.complete
        assert "no room left" in progress.waiting
        assert len(full.store.sealed) == 5
        for member in members[1:]:
            assert member.fetcher.progress(release.manifest.manifest_id).complete, "others are not held up"
            assert full.device not in member.fetcher.blamed
        full.store.room = 1 << 20
        await all_complete(office, release)
        assert full.fetcher.progress(release.manifest.manifest_id).waiting == ""


async def test_a_killed_owner_is_replaced(autojump_clock: MockClock, release: Release) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs, bytes_per_s=16 << 10)).open() as office:
        members = await wanting(office, 4, release)
        await trio.sleep(10)
        busy = [member for member in members if member.fetcher.progress(release.manifest.manifest_id).fetching]
        office.kill(busy[0])
        await all_complete(office, release)
        in_flight = 2 * max(map(len, release.blobs.values()))
        assert office.origin.bytes_sent <= release.blob_bytes + in_flight


async def test_a_restarted_device_fetches_nothing_again_that_it_has(
    autojump_clock: MockClock, release: Release
) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs, bytes_per_s=64 << 10)).open() as office:
        [member] = await wanting(office, 1, release)
        await trio.sleep(15)
        assert 0 < len(member.store.sealed) < len(release.chunks)
        office.kill(member)
        again = await office.add()
        again.store.sealed.update(member.store.sealed)
        await again.fetcher.want(release.manifest)
        await all_complete(office, release)
        in_flight = 2 * max(map(len, release.blobs.values()))
        assert office.origin.bytes_sent <= release.blob_bytes + in_flight


async def test_chunks_that_rot_or_are_evicted_come_back_from_neighbours(
    autojump_clock: MockClock, release: Release
) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        one, two = await wanting(office, 2, release)
        await all_complete(office, release)
        sent, chunk = office.origin.bytes_sent, release.manifest.chunks[3]
        one.store.remove(chunk)
        await trio.sleep(10)
        assert one.store.has(chunk)
        two.store.remove(chunk)
        two.fetcher.lost([chunk])
        assert not two.fetcher.progress(release.manifest.manifest_id).complete
        await all_complete(office, release)
        assert office.origin.bytes_sent == sent


async def test_a_device_with_weight_0_uses_neighbours_only(autojump_clock: MockClock, release: Release) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        metered = await office.add(weight=0)
        await metered.fetcher.want(release.manifest)
        await trio.sleep(60)
        assert office.origin.bytes_sent == 0
        assert "wan_weight" in metered.fetcher.progress(release.manifest.manifest_id).waiting
        await wanting(office, 1, release)
        await all_complete(office, release)
        assert metered.fetcher.wan_in_bytes == 0


async def test_releases_that_share_a_chunk_share_it_in_the_swarm(autojump_clock: MockClock) -> None:
    shared = b"shared" * 5_000
    first, second = make_release(128 << 10, seed=1, shared=shared), make_release(128 << 10, seed=2, shared=shared)
    async with InMemoryOffice(MemoryOrigin({**first.blobs, **second.blobs})).open() as office:
        members = await wanting(office, 2, first)
        for member in members:
            await member.fetcher.want(second.manifest)
            await member.fetcher.want(first.manifest)
        await all_complete(office, first)
        await all_complete(office, second)
        assert len(members[0].fetcher.wanted) == 2


async def test_unwanting_stops_the_transfer_and_ends_the_wait(autojump_clock: MockClock, release: Release) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs, bytes_per_s=1 << 10)).open() as office:
        [member] = await wanting(office, 1, release)
        manifest = release.manifest.manifest_id
        await trio.sleep(30)
        assert member.fetcher.progress(manifest).fetching

        async def stop() -> None:
            await trio.sleep(5)
            member.fetcher.unwant(manifest)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            with pytest.raises(KeyError):
                await member.fetcher.wait_complete(manifest)
        sent = office.origin.bytes_sent
        await trio.sleep(60)
        assert office.origin.bytes_sent == sent
        office.origin.bytes_per_s = 1 << 20
        await member.fetcher.want(release.manifest)
        await all_complete(office, release)


async def test_nonsense_from_a_neighbour_changes_nothing_and_is_blamed(
    autojump_clock: MockClock, release: Release
) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        member, other = await office.add(), await office.add()
        await member.fetcher.want(release.manifest)
        manifest = release.manifest.manifest_id
        stranger = DeviceId(bytes(16))
        claim = Claim(manifest, other.device, 1, 1000, (ClaimedSegment(99_999, 1),))
        for _ in range(3):
            await member.fetcher.on_message(other.device, Holdings(manifest, 3, b"\xff"))
            await member.fetcher.on_message(other.device, claim)
            await member.fetcher.on_message(stranger, Holdings(manifest, 3, b"\xff"))
        assert list(member.fetcher.blamed) == [other.device]
        await member.fetcher.wait_complete(manifest)


async def test_progress_speaks_of_rate_and_remaining_time(autojump_clock: MockClock, release: Release) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs, bytes_per_s=50_000)).open() as office:
        [member] = await wanting(office, 1, release)
        manifest = release.manifest.manifest_id
        assert "looking for neighbours" in member.fetcher.progress(manifest).waiting
        await trio.sleep(18)
        progress = member.fetcher.progress(manifest)
        assert 0 < progress.bytes_have < progress.bytes_total
        assert progress.fetching
        assert progress.waiting == ""
        assert progress.rate_bytes_per_s > 0
        assert progress.eta_s is not None
        await member.fetcher.wait_complete(manifest)
        assert member.fetcher.progress(manifest).bytes_have == progress.bytes_total


async def test_a_segment_that_does_not_yield_its_chunks_is_reported(autojump_clock: MockClock) -> None:
    release = make_release(broken=True)
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        [member] = await wanting(office, 1, release)
        await trio.sleep(60)
        progress = member.fetcher.progress(release.manifest.manifest_id)
        rows = member.fetcher.why(release.manifest.manifest_id)
        assert progress.chunks_have == 0
        assert any("does not yield its chunks" in row.reason for row in rows)


async def test_a_release_without_chunks_is_complete_at_once(autojump_clock: MockClock) -> None:
    release = make_release(1)
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        await wanting(office, 2, release)
        await all_complete(office, release)
