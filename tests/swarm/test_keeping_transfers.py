"""Kept releases in the fetcher: announced, repaired from neighbours alone, and in nobody's way."""

from __future__ import annotations

import pytest
import trio
from office_in_memory import InMemoryOffice, Member, MemoryOrigin, Release, make_release
from trio.testing import MockClock

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.swarm.holdings import bits_of


@pytest.fixture(name="release")
def _release() -> Release:
    return make_release()


def put(member: Member, release: Release, positions: range) -> None:
    for position in positions:
        member.store.put(Chunk.of(release.chunks[release.manifest.chunks[position]]))


def held(member: Member, release: Release) -> int:
    return bits_of(place for place, chunk in enumerate(release.manifest.chunks) if member.store.has(chunk))


async def test_copies_come_from_neighbours_one_after_the_other_and_no_others_are_taken(
    release: Release, autojump_clock: MockClock
) -> None:
    origin, count = MemoryOrigin(release.blobs), len(release.manifest.chunks)
    async with InMemoryOffice(origin).open() as office:
        holder, keeper = [await office.add() for _ in range(2)]
        put(holder, release, range(count - 1))
        for member in (holder, keeper):
            await member.fetcher.keep(release.manifest)
        await trio.sleep(20)
        assert held(keeper, release) == 0, "nothing is fetched that is not asked for"
        most = 0
        keeper.fetcher.take_copies(release.manifest.manifest_id, bits_of(range(5, count)))
        for _ in range(200):
            most = max(most, keeper.fetcher.progress(release.manifest.manifest_id).requests)
            await trio.sleep(0.001)
        assert held(keeper, release) == bits_of(range(5, count - 1))
        assert most == 1
        await trio.sleep(60)
        assert origin.bytes_sent == 0, "what nobody here has is not fetched for a copy"
        progress = keeper.fetcher.progress(release.manifest.manifest_id)
        assert progress.waiting == "in place; copies are kept for the office"
        seen = holder.fetcher.office(release.manifest.manifest_id)
        assert seen is not None
        assert (seen.peers[keeper.device], seen.keeping) == (held(keeper, release), {keeper.device})


async def test_urgent_copies_are_not_taken_one_by_one(release: Release, autojump_clock: MockClock) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        holder, keeper = [await office.add() for _ in range(2)]
        put(holder, release, range(len(release.manifest.chunks)))
        for member in (holder, keeper):
            await member.fetcher.keep(release.manifest)
        await trio.sleep(1)
        keeper.fetcher.take_copies(release.manifest.manifest_id, -1, urgent=True)
        assert keeper.fetcher.progress(release.manifest.manifest_id).requests > 1
        await trio.sleep(1)
        assert held(keeper, release) == held(holder, release)


async def test_who_only_keeps_is_not_waited_for_by_who_wants(release: Release, autojump_clock: MockClock) -> None:
    origin, count = MemoryOrigin(release.blobs, bytes_per_s=10 << 20), len(release.manifest.chunks)
    async with InMemoryOffice(origin).open() as office:
        for number in range(6):
            keeper = await office.add()
            put(keeper, release, range(number * 2, number * 2 + 2))
            await keeper.fetcher.keep(release.manifest)
        await trio.sleep(10)
        newcomer = await office.add()
        await newcomer.fetcher.want(release.manifest)
        with trio.fail_after(5):
            await newcomer.fetcher.wait_complete(release.manifest.manifest_id)
        assert held(newcomer, release) == (1 << count) - 1
        assert origin.bytes_sent < release.blob_bytes, "what is kept comes from keepers"


async def test_a_wanted_release_that_is_in_place_is_kept_and_wanted_again_when_it_is_not(
    release: Release, autojump_clock: MockClock
) -> None:
    origin, key = MemoryOrigin(release.blobs, bytes_per_s=64 << 10), release.manifest.manifest_id
    async with InMemoryOffice(origin).open() as office:
        member, other = [await office.add() for _ in range(2)]
        await other.fetcher.want(release.manifest)
        await member.fetcher.want(release.manifest)
        await trio.sleep(5)
        assert 0 < origin.bytes_sent < release.blob_bytes
        other.fetcher.unwant(key)
        await member.fetcher.keep(release.manifest)
        await trio.sleep(1)
        sent = origin.bytes_sent
        assert sent < release.blob_bytes
        await trio.sleep(60)
        assert origin.bytes_sent == sent, "its own fetches ended"
        assert (member.fetcher.wanted, list(member.fetcher.kept)) == ({}, [key])
        await member.fetcher.want(release.manifest)
        with trio.fail_after(60):
            await member.fetcher.wait_complete(key)
        assert (list(member.fetcher.wanted), member.fetcher.kept) == ([key], {})


async def test_neighbours_hear_of_a_copy_that_goes_before_it_goes(release: Release, autojump_clock: MockClock) -> None:
    async with InMemoryOffice(MemoryOrigin(release.blobs)).open() as office:
        one, two = [await office.add() for _ in range(2)]
        for member in (one, two):
            put(member, release, range(len(release.manifest.chunks)))
            await member.fetcher.keep(release.manifest)
        await trio.sleep(1)
        one.fetcher.let_go(release.manifest.chunks[:3])
        await trio.sleep(0.1)
        seen = two.fetcher.office(release.manifest.manifest_id)
        assert seen is not None
        assert seen.peers[one.device] == held(one, release) & ~0b111
        assert one.store.has(release.manifest.chunks[0])
        await trio.sleep(60)
        mine = one.fetcher.office(release.manifest.manifest_id)
        assert mine is not None
        assert mine.mine == held(one, release) & ~0b111, "it is not taken back"
