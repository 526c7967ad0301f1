"""The cooperative cache over real fetchers: trimmed, repaired, handed over, and enough to go back."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from office_in_memory import InMemoryOffice, Member, MemoryOrigin, Release, make_release
from trio.testing import MockClock

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.daemon.caretaker import ALONE_S, GATHER_S, LOOK_S, NOTICE_S, ROOM_S, Caretaker
from pcm_p2p.ids import ChunkId, DeviceId
from pcm_p2p.swarm.holdings import OfficeHoldings, bits_of
from pcm_p2p.swarm.keepers import Keepers
from pcm_p2p.swarm.keeping import REPAIR_MS
from pcm_p2p.wire.messages import AnyMessage, Handover, Message

SURPLUS_S = 100.0
TRIMMED_S = SURPLUS_S + 3 * LOOK_S + NOTICE_S
REPAIRED_S = 1.5 * REPAIR_MS / 1_000 + 2 * LOOK_S
_decoder = msgspec.msgpack.Decoder(AnyMessage)


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time would pass while a thread works."""

    async def at_once(function: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr("trio.to_thread.run_sync", at_once)


@pytest.fixture(name="release")
def _release() -> Release:
    return make_release()


class Device:
    def __init__(self, cache: Cache, member: Member, copies: int, handover_s: float, uptime: int) -> None:
        self.cache, self.member, self.uptime = cache, member, uptime
        self.scope = trio.CancelScope()
        self.told: list[DeviceId] = []
        self.caretaker = Caretaker(
            member.fetcher,
            member.store,
            self._send,
            member.device,
            uptime,
            random.Random(member.device),
            copies=copies,
            surplus_s=SURPLUS_S,
            handover_s=handover_s,
        )

    @property
    def store(self) -> Any:
        return self.member.store

    async def _send(self, device: DeviceId, message: Message) -> None:
        self.told.append(device)
        heard = _decoder.decode(msgspec.msgpack.encode(message))
        assert isinstance(heard, Handover)
        await self.cache.devices[device].caretaker.on_handover(self.member.device, heard)

    def put(self, release: Release, positions: range) -> None:
        for position in positions:
            self.store.put(Chunk.of(release.chunks[release.manifest.chunks[position]]))

    def held(self, release: Release) -> int:
        return bits_of(place for place, chunk in enumerate(release.manifest.chunks) if self.store.has(chunk))

    def office(self, release: Release) -> OfficeHoldings:
        holdings = self.member.fetcher.office(release.manifest.manifest_id)
        assert holdings is not None
        return holdings


class Cache:
    """An office of fetchers and caretakers that all know each other."""

    def __init__(self, office: InMemoryOffice, nursery: trio.Nursery) -> None:
        self.office, self.nursery = office, nursery
        self.devices: dict[DeviceId, Device] = {}

    async def add(self, *, copies: int = 3, handover_s: float = 10.0, uptime: int = 13) -> Device:
        device = Device(self, await self.office.add(), copies, handover_s, uptime)
        for other in self.devices.values():
            other.caretaker.peer_up(device.member.device, device.uptime)
            device.caretaker.peer_up(other.member.device, other.uptime)
        self.devices[device.member.device] = device

        async def run() -> None:
            with device.scope:
                await device.caretaker.run()

        self.nursery.start_soon(run)
        return device

    async def keeping(self, release: Release, count: int, **settings: Any) -> list[Device]:
        """Devices that have the release in place and all of it in their stores."""
        devices = [await self.add(**settings) for _ in range(count)]
        for device in devices:
            device.put(release, range(len(release.manifest.chunks)))
            await device.caretaker.tend({}, [release.manifest])
        return devices

    def kill(self, device: Device) -> None:
        del self.devices[device.member.device]
        device.scope.cancel()
        self.office.kill(device.member)
        for other in self.devices.values():
            other.caretaker.peer_down(device.member.device)

    def no_keeper(self, release: Release) -> Device:
        """A device that is a keeper of nothing."""
        shares = Keepers(release.manifest.chunks).shares(dict.fromkeys(self.devices, 13))
        return next(device for key, device in self.devices.items() if not shares[key])

    def copies(self, release: Release) -> list[int]:
        return [sum(device.store.has(chunk) for device in self.devices.values()) for chunk in release.manifest.chunks]


@asynccontextmanager
async def open_cache(origin: MemoryOrigin) -> AsyncIterator[Cache]:
    async with InMemoryOffice(origin).open() as office, trio.open_nursery() as nursery:
        yield Cache(office, nursery)
        nursery.cancel_scope.cancel()


async def test_an_office_comes_to_hold_three_copies_and_says_so(release: Release, autojump_clock: MockClock) -> None:
    origin = MemoryOrigin(release.blobs)
    async with open_cache(origin) as cache:
        devices = await cache.keeping(release, 8)
        await trio.sleep(SURPLUS_S - 1)
        assert set(cache.copies(release)) == {8}, "the grace is not over"
        await trio.sleep(TRIMMED_S - SURPLUS_S)
        assert set(cache.copies(release)) == {3}
        size = sum(release.manifest.sizes)
        for device in devices:
            figures = device.caretaker.figures()
            mine = sum(size for chunk, size in zip(release.manifest.chunks, release.manifest.sizes, strict=True)
                       if device.store.has(chunk))  # fmt: skip
            assert (figures.copies, figures.mine_bytes, figures.office_bytes) == (3, mine, 3 * size)
            (row,) = figures.releases
            assert (row.release, row.copies_min, row.copies_median) == ("demo", 3, 3)
            kept, last = device.store.tiers
            assert (kept, last) == (frozenset(device.store.ids()), frozenset())
        assert origin.bytes_sent == 0


async def test_neighbours_know_of_a_copy_that_goes_before_its_file_is_deleted(
    release: Release, autojump_clock: MockClock
) -> None:
    async with open_cache(MemoryOrigin(release.blobs)) as cache:
        *devices, other = await cache.keeping(release, 6)
        surprises = []

        def look_before_trimming(device: Device) -> None:
            trim = device.store.trim

            def look_and_trim(chunks: Collection[ChunkId]) -> None:
                places = bits_of(release.manifest.chunks.index(chunk) for chunk in chunks)
                surprises.append(other.office(release).peers[device.member.device] & places)
                trim(chunks)

            device.store.trim = look_and_trim

        for device in devices:
            look_before_trimming(device)
        await trio.sleep(TRIMMED_S)
        assert set(surprises) == {0}


async def test_neighbours_hear_of_what_the_store_is_about_to_evict(release: Release, autojump_clock: MockClock) -> None:
    async with open_cache(MemoryOrigin(release.blobs)) as cache:
        device, other = await cache.keeping(release, 2)
        await trio.sleep(1)
        device.store.leaving = list(release.manifest.chunks[:2])
        await trio.sleep(ROOM_S + 0.1)
        seen = other.office(release).peers[device.member.device]
        assert seen == device.held(release) & ~0b11


async def test_the_copies_of_a_device_that_crashed_are_made_again_from_neighbours(
    release: Release, autojump_clock: MockClock
) -> None:
    origin = MemoryOrigin(release.blobs)
    async with open_cache(origin) as cache:
        await cache.keeping(release, 8)
        await trio.sleep(TRIMMED_S)
        for _ in range(3):
            cache.kill(next(device for device in cache.devices.values() if device.held(release)))
            await trio.sleep(30)
            assert min(cache.copies(release)) == 2, "it may only be a reboot"
            await trio.sleep(REPAIRED_S)
            assert min(cache.copies(release)) == 3
        assert origin.bytes_sent == 0


async def test_who_leaves_hands_over_what_only_it_holds(release: Release, autojump_clock: MockClock) -> None:
    origin = MemoryOrigin(release.blobs)
    async with open_cache(origin) as cache:
        devices = [await cache.add() for _ in range(5)]
        devices[0].put(release, range(len(release.manifest.chunks)))
        for device in devices:
            await device.caretaker.tend({}, [release.manifest])
        await trio.sleep(1)
        for leaving in devices[:4]:
            start_s = trio.current_time()
            await leaving.caretaker.hand_over()
            assert trio.current_time() - start_s < 2
            cache.kill(leaving)
            assert min(cache.copies(release)) == 1
        start_s = trio.current_time()
        await devices[4].caretaker.hand_over()
        assert trio.current_time() == start_s, "nobody is there to take anything"
        assert origin.bytes_sent == 0


async def test_a_neighbour_that_takes_nothing_is_waited_for_no_longer_than_set(
    release: Release, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_cache(MemoryOrigin(release.blobs)) as cache:
        leaving, other, second = [await cache.add(handover_s=6) for _ in range(3)]
        leaving.put(release, range(len(release.manifest.chunks)))
        for device in (leaving, other, second):
            await device.caretaker.tend({}, [release.manifest])
        leaving.member.nature = "mute"
        await trio.sleep(1)
        start_s = trio.current_time()
        await leaving.caretaker.hand_over()
        assert trio.current_time() - start_s == pytest.approx(6, abs=0.2)
        assert set(leaving.told) == {other.member.device, second.member.device}, "the second in rank was asked too"
        assert f"{len(release.manifest.chunks)} chunks that no neighbour has" in caplog.text


async def test_a_neighbour_of_the_protocol_before_is_asked_nothing(release: Release, autojump_clock: MockClock) -> None:
    async with open_cache(MemoryOrigin(release.blobs)) as cache:
        leaving, other = await cache.add(), await cache.add(uptime=0)
        leaving.put(release, range(3))
        for device in (leaving, other):
            await device.caretaker.tend({}, [release.manifest])
        await trio.sleep(1)
        start_s = trio.current_time()
        await leaving.caretaker.hand_over()
        assert (leaving.told, trio.current_time()) == ([], start_s)


async def test_an_admin_may_do_without_handing_over(release: Release, autojump_clock: MockClock) -> None:
    async with open_cache(MemoryOrigin(release.blobs)) as cache:
        leaving, other = [await cache.add(handover_s=0) for _ in range(2)]
        leaving.put(release, range(3))
        for device in (leaving, other):
            await device.caretaker.tend({}, [release.manifest])
        await trio.sleep(1)
        await leaving.caretaker.hand_over()
        assert leaving.told == []


async def test_what_is_still_being_fetched_from_me_is_waited_for_when_i_leave(
    release: Release, autojump_clock: MockClock
) -> None:
    async with open_cache(MemoryOrigin(release.blobs, down="no route")) as cache:
        leaving, other = [await cache.add() for _ in range(2)]
        leaving.put(release, range(len(release.manifest.chunks)))
        for device in (leaving, other):
            await device.member.fetcher.want(release.manifest)
            await device.caretaker.tend({release.manifest.manifest_id: release.manifest}, [])
        await trio.sleep(0.005)
        assert other.held(release) != leaving.held(release)
        await leaving.caretaker.hand_over()
        assert (leaving.told, other.held(release)) == ([], leaving.held(release))


async def test_no_copy_goes_while_a_neighbour_is_fetching_the_release(
    release: Release, autojump_clock: MockClock
) -> None:
    async with open_cache(MemoryOrigin(release.blobs)) as cache:
        await cache.keeping(release, 5)
        newcomer = await cache.office.add()
        newcomer.nature = "honest"
        newcomer.store.room = 0
        await newcomer.fetcher.want(release.manifest)
        await trio.sleep(3 * TRIMMED_S)
        assert set(cache.copies(release)) == {5}
        newcomer.store.room = 1_000
        await newcomer.fetcher.wait_complete(release.manifest.manifest_id)
        await trio.sleep(TRIMMED_S)
        assert max(cache.copies(release)) <= 3


async def test_chunks_of_no_release_go_after_the_same_grace(release: Release, autojump_clock: MockClock) -> None:
    other = make_release(seed=2)
    async with open_cache(MemoryOrigin(release.blobs)) as cache:
        device = await cache.add()
        device.put(release, range(4))
        device.put(other, range(4))
        await trio.sleep(5 * SURPLUS_S)
        assert len(device.store.ids()) == 8, "nothing is known yet of what is wanted"
        await device.caretaker.tend({}, [release.manifest])
        await trio.sleep(SURPLUS_S - 1)
        assert len(device.store.ids()) == 8
        await trio.sleep(2 * SURPLUS_S)
        assert (device.held(release), device.held(other)) == (0b1111, 0)


async def test_what_is_wanted_or_gathered_does_not_go(release: Release, autojump_clock: MockClock) -> None:
    shared = make_release(seed=3, shared=next(iter(release.chunks.values())))
    async with open_cache(MemoryOrigin(shared.blobs)) as cache:
        await cache.keeping(release, 6)
        device = cache.no_keeper(release)
        await device.caretaker.tend(
            {shared.manifest.manifest_id: shared.manifest}, [release.manifest], [(release.manifest, 0b110)]
        )
        await trio.sleep(TRIMMED_S)
        assert device.held(release) == 0b111
        assert device.store.wanted == {*shared.manifest.chunks, *release.manifest.chunks[1:3]}


async def test_a_package_to_go_back_to_is_gathered_before_a_change_and_goes_again_after_it(
    release: Release, autojump_clock: MockClock
) -> None:
    origin = MemoryOrigin(release.blobs)
    async with open_cache(origin) as cache:
        await cache.keeping(release, 6)
        device = cache.no_keeper(release)
        await trio.sleep(TRIMMED_S)
        assert device.held(release) == 0
        wanted = (1 << len(release.manifest.chunks)) - 2
        await device.caretaker.tend({}, [release.manifest], [(release.manifest, wanted)])
        start_s = trio.current_time()
        assert await device.caretaker.gathered("demo")
        assert trio.current_time() - start_s < 2
        assert device.held(release) == wanted
        await trio.sleep(2 * TRIMMED_S)
        assert device.held(release) == wanted, "held until the change has ended"
        await device.caretaker.tend({}, [release.manifest])
        await trio.sleep(TRIMMED_S)
        assert device.held(release) == 0
        assert origin.bytes_sent == 0


async def test_a_package_that_nobody_has_holds_up_no_change(release: Release, autojump_clock: MockClock) -> None:
    async with open_cache(MemoryOrigin(release.blobs)) as cache:
        device, other = [await cache.add() for _ in range(2)]
        for each in (device, other):
            await each.caretaker.tend({}, [release.manifest], [(release.manifest, 0b11)])
        start_s = trio.current_time()
        assert not await device.caretaker.gathered("demo")
        assert trio.current_time() - start_s == pytest.approx(ALONE_S, abs=0.2)
        other.put(release, range(2))
        other.member.fetcher.gained(release.manifest.manifest_id, release.manifest.chunks[:2])
        other.member.nature = "mute"
        await trio.sleep(1)
        start_s = trio.current_time()
        assert not await device.caretaker.gathered("demo")
        assert trio.current_time() - start_s <= GATHER_S
        await device.caretaker.tend({}, [release.manifest])
        assert await device.caretaker.gathered("demo"), "nothing is needed to go back"
        await device.caretaker.tend({}, [release.manifest], [(release.manifest, 0b11)])
        assert await device.caretaker.gathered("another")


async def test_a_handover_of_nonsense_or_by_a_stranger_changes_nothing(
    release: Release, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_cache(MemoryOrigin(release.blobs)) as cache:
        device, other = [await cache.add(copies=1) for _ in range(2)]
        other.put(release, range(8))
        for each in (device, other):
            await each.caretaker.tend({}, [release.manifest])
        await trio.sleep(1)
        key = bytes(release.manifest.manifest_id)
        stranger = DeviceId(bytes(16))
        await device.caretaker.on_handover(stranger, Handover(key, (0,)))
        await device.caretaker.on_handover(other.member.device, Handover(key, (0, 5_000)))
        await device.caretaker.on_handover(other.member.device, Handover(bytes(32), (0,)))
        await trio.sleep(LOOK_S)
        assert device.held(release) == 0
        assert "hands over nonsense" in caplog.text
        await device.caretaker.on_handover(other.member.device, Handover(key, (0, 5)))
        await trio.sleep(1)
        assert device.held(release) == 0b100001


async def test_a_release_that_is_no_longer_kept_is_no_longer_announced(
    release: Release, autojump_clock: MockClock
) -> None:
    async with open_cache(MemoryOrigin(release.blobs)) as cache:
        device, other = await cache.keeping(release, 2)
        await device.caretaker.tend({}, [])
        assert device.member.fetcher.kept == {}
        await device.caretaker.tend({release.manifest.manifest_id: release.manifest}, [release.manifest])
        assert device.member.fetcher.kept == {}, "what is wanted is the fetcher's"
        assert list(other.member.fetcher.kept) == [release.manifest.manifest_id]
