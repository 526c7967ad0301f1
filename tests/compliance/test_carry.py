"""The carrier over real outboxes on disk and links in memory: what the daemon does, on a virtual clock."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing
from compliance_world import START_MS, FakeCollector, FakeDevice, NamedSigner, verify_certificate

from pcm_p2p.compliance.carry import Carrier
from pcm_p2p.compliance.courier import Courier, CourierLimits
from pcm_p2p.compliance.handover import decode_taken_untrusted, encode_taken
from pcm_p2p.compliance.outbox import MIGRATIONS, Outbox
from pcm_p2p.compliance.record import open_record_untrusted
from pcm_p2p.database import open_database
from pcm_p2p.errors import TransferError, UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.sidecar import Sidecar, open_sidecar
from pcm_p2p.wire.messages import AcksPut, Message, RecordsPut, Route


class Site:
    """Carriers that meet each other, and one collector which some of them reach."""

    def __init__(self, folder: Path, sidecar: Sidecar) -> None:
        self.folder = folder
        self.sidecar = sidecar
        self.collector = FakeCollector()
        self.carriers: dict[DeviceId, Carrier] = {}
        self.scopes: dict[DeviceId, trio.CancelScope] = {}
        self.ended: dict[DeviceId, trio.Event] = {}
        self.routes: set[DeviceId] = set()
        self.links: set[frozenset[DeviceId]] = set()
        self.nursery: trio.Nursery
        self.uploads = 0
        self.spoil: Callable[[bytes], bytes] = lambda answer: answer

    async def start(self, device: FakeDevice, *, direct: bool = True) -> Carrier:
        """Start or, after ``kill``, restart."""
        return await self.nursery.start(self._run, device, direct)

    async def _run(self, device: FakeDevice, direct: bool, *, task_status: trio.TaskStatus[Carrier]) -> None:
        path = self.folder / f"{device.id.short}.sqlite"
        self.ended[device.id] = trio.Event()
        with trio.CancelScope() as self.scopes[device.id]:
            async with open_database(self.sidecar, path, MIGRATIONS) as database:
                outbox = Outbox(database, device.id)
                self.carriers[device.id] = carrier = Carrier(
                    outbox,
                    Courier(device.id, Random(1), CourierLimits(direct=direct)),
                    dial=lambda collector: self.dial(device.id, collector),
                    neighbour=lambda other: self.neighbour(device.id, other),
                    verify_certificate=verify_certificate,
                    collector_keys=lambda: self.collector.keys,
                    wall_clock_ms=lambda: START_MS + int(1_000 * trio.current_time()),
                )
                async with trio.open_nursery() as nursery:
                    await nursery.start(carrier.run)
                    await carrier.collectors(device.sealer(self.collector), [self.collector.id])
                    task_status.started(carrier)
        self.ended[device.id].set()

    async def kill(self, device: FakeDevice) -> None:
        self.scopes[device.id].cancel()
        del self.carriers[device.id]
        for link in [link for link in self.links if device.id in link]:
            self.part(*link)
        await self.ended[device.id].wait()

    def meet(self, one: DeviceId, other: DeviceId) -> None:
        self.links.add(frozenset((one, other)))
        self.carriers[one].peer_up(other)
        self.carriers[other].peer_up(one)

    def part(self, one: DeviceId, other: DeviceId) -> None:
        self.links.discard(frozenset((one, other)))
        for a, b in ((one, other), (other, one)):
            if a in self.carriers:
                self.carriers[a].peer_down(b)

    def neighbour(self, me: DeviceId, other: DeviceId) -> Link | None:
        return Link(self, me, other) if frozenset((me, other)) in self.links else None

    async def dial(self, me: DeviceId, collector: DeviceId) -> Link:
        await trio.sleep(0.05)
        if me not in self.routes:
            raise TransferError("no route to host")
        return Link(self, me, collector)

    def collect(self, message: RecordsPut) -> bytes:
        self.uploads += 1
        taken = [self.collector.take(data) for data in message.records]
        ack = self.collector.ack(*{key.device for key in self.collector.kept})
        return self.spoil(encode_taken(taken, [ack] if ack else []))


class Link:
    """One side of a session."""

    def __init__(self, site: Site, me: DeviceId, other: DeviceId) -> None:
        self.site, self.me, self.other = site, me, other
        self.closed = trio.Event()

    def post(self, message: Message) -> None:
        self.site.nursery.start_soon(self._deliver, message)

    async def _deliver(self, message: Message) -> None:
        carrier = self.site.carriers.get(self.other)
        if carrier is not None and isinstance(message, Route):
            carrier.peer_route(self.me, message)
        elif carrier is not None and isinstance(message, AcksPut):
            await carrier.take_acks(self.me, message)

    async def fetch(
        self,
        make_request: Callable[[int], Message],
        size_bytes_max: int,
        timeout_s: float,
        rate_bytes_per_s_min: int = 0,
    ) -> bytes:
        await trio.sleep(0.01)
        message = make_request(1)
        assert isinstance(message, RecordsPut)
        if self.other == self.site.collector.id:
            if self.me not in self.site.routes:
                self.closed.set()
                raise TransferError("connection lost")
            return self.site.collect(message)
        if self.other not in self.site.carriers:
            raise TransferError("the session ended")
        return await self.site.carriers[self.other].take_records(self.me, message)

    async def close(self, reason: str) -> None:
        self.closed.set()


@contextlib.asynccontextmanager
async def site_at(folder: Path) -> AsyncIterator[Site]:
    async with open_sidecar() as sidecar:
        site = Site(folder, sidecar)
        async with trio.open_nursery() as site.nursery:
            yield site
            site.nursery.cancel_scope.cancel()


async def until(condition: Callable[[], Awaitable[bool] | bool], timeout_s: float = 10_000.0) -> None:
    """Let virtual time pass until ``condition`` holds. The limit is wide: virtual time also passes while the disk works."""
    with trio.fail_after(timeout_s):
        while True:
            answer = condition()
            if answer if isinstance(answer, bool) else await answer:
                return
            await trio.sleep(0.5)


async def is_empty(carrier: Carrier) -> bool:
    statistics = await carrier.statistics()
    return statistics.own_records == statistics.carried_records == 0


async def carries(carrier: Carrier, count: int) -> bool:
    return (await carrier.statistics()).carried_records == count


ALICE, BOB, CAROL = (FakeDevice(name) for name in ("alice", "bob", "carol"))


async def test_a_report_goes_up_as_soon_as_it_is_made(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with site_at(tmp_path) as site:
        alice = await site.start(ALICE)
        site.routes = {ALICE.id}
        await alice.report(ALICE.report())
        await until(lambda: is_empty(alice))
        assert len(site.collector.reports_of(ALICE.id)) == 1
        assert (await alice.statistics()).acknowledged == 1
        assert alice.route == "direct"


async def test_without_a_collector_reports_wait_and_survive_a_kill(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with site_at(tmp_path) as site:
        alice = await site.start(ALICE)
        for number in range(3):
            await alice.report(ALICE.report(START_MS + number))
        await trio.sleep(500)
        assert alice.route == "none"
        await site.kill(ALICE)
        alice = await site.start(ALICE)
        assert (await alice.statistics()).own_records == 3
        site.routes = {ALICE.id}
        await until(lambda: is_empty(alice))
        assert len(site.collector.reports_of(ALICE.id)) == 3


async def test_a_neighbour_with_a_route_carries_and_the_acknowledgement_comes_back(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with site_at(tmp_path) as site:
        alice, bob = await site.start(ALICE, direct=False), await site.start(BOB)
        site.routes = {BOB.id}
        await bob.report(BOB.report())
        await until(lambda: bob.route == "direct")
        site.meet(ALICE.id, BOB.id)
        await until(lambda: alice.route == "through 1 neighbour")
        await alice.report(ALICE.report())
        await until(lambda: is_empty(alice))
        await until(lambda: is_empty(bob))
        assert {record.device for record in site.collector.kept.values()} == {ALICE.id, BOB.id}


async def test_a_laptop_takes_the_reports_of_an_office_without_any_route(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Carol visits Alice's office, leaves, is killed on the way, and reaches the collector from elsewhere."""
    async with site_at(tmp_path) as site:
        alice, carol = await site.start(ALICE, direct=False), await site.start(CAROL)
        await alice.report(ALICE.report())
        site.meet(ALICE.id, CAROL.id)
        await until(lambda: carries(carol, 1))
        site.part(ALICE.id, CAROL.id)
        await site.kill(CAROL)
        site.routes = {CAROL.id}
        carol = await site.start(CAROL)
        await until(lambda: carries(carol, 0))
        assert len(site.collector.reports_of(ALICE.id)) == 1
        assert (await alice.statistics()).own_records == 1, "its author does not know yet"
        site.meet(ALICE.id, CAROL.id)
        await until(lambda: is_empty(alice))
        assert len(site.collector.kept) == 1


async def test_a_broken_answer_costs_a_repetition_and_no_report(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with site_at(tmp_path) as site:
        alice = await site.start(ALICE)
        site.routes = {ALICE.id}
        site.spoil = lambda answer: answer[:-1] if site.uploads < 4 else answer
        await alice.report(ALICE.report())
        await until(lambda: is_empty(alice))
        assert site.uploads == 4
        assert len(site.collector.kept) == 1


async def test_a_forged_acknowledgement_frees_nothing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with site_at(tmp_path) as site:
        alice = await site.start(ALICE)
        await alice.report(ALICE.report())
        forger = FakeCollector("forger")
        (data,) = (await alice._outbox.read(parcel.hash for parcel in await alice._outbox.load())).values()
        forger.kept = {record.key: record for record in [open_record_untrusted(data, verify_certificate)]}
        forged = forger.ack(ALICE.id)
        assert forged is not None
        with caplog.at_level(logging.WARNING):
            await alice.take_acks(BOB.id, AcksPut((forged, b"noise")))
        assert (await alice.statistics()).own_records == 1
        assert caplog.text.count(f"{BOB.id.short} handed over an acknowledgement that is refused") == 2


async def test_junk_among_records_is_refused_and_blamed_and_the_rest_is_kept(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with site_at(tmp_path) as site:
        alice, bob = await site.start(ALICE, direct=False), await site.start(BOB)
        await alice.report(ALICE.report())
        (data,) = (await alice._outbox.read(parcel.hash for parcel in await alice._outbox.load())).values()
        with caplog.at_level(logging.WARNING):
            answer = await bob.take_records(CAROL.id, RecordsPut(1, (b"junk", data, data[:-1], data)))
        assert decode_taken_untrusted(answer, 4).taken == (False, True, False, True)
        assert (await bob.statistics()).carried_records == 1
        assert caplog.text.count(f"{CAROL.id.short} handed over a record that is refused") == 2


async def test_a_carrier_lets_go_of_what_revoked_devices_wrote_and_takes_no_more_of_it(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    revoked: set[DeviceId] = set()

    def verify(certificate: bytes) -> NamedSigner:
        signer = verify_certificate(certificate)
        if signer.device_id in revoked:
            raise UntrustedBytes(f"device {signer.device_id.short} is revoked")
        return signer

    async with site_at(tmp_path) as site:
        alice, carol, bob = [await site.start(device, direct=False) for device in (ALICE, CAROL, BOB)]
        bob._verify_certificate = verify
        records = []
        for author, carrier in ((ALICE, alice), (CAROL, carol)):
            await carrier.report(author.report())
            (data,) = (await carrier._outbox.read(parcel.hash for parcel in await carrier._outbox.load())).values()
            records.append(data)
        answer = await bob.take_records(CAROL.id, RecordsPut(1, tuple(records)))
        assert decode_taken_untrusted(answer, 2).taken == (True, True)
        assert await carries(bob, 2)
        revoked.add(ALICE.id)
        await bob.let_go([ALICE.id])
        assert await carries(bob, 1)
        with caplog.at_level(logging.WARNING):
            answer = await bob.take_records(CAROL.id, RecordsPut(1, tuple(records)))
        assert decode_taken_untrusted(answer, 2).taken == (False, True)
        assert await carries(bob, 1), "Carol's is still there, Alice's does not come back"
        assert f"device {ALICE.id.short} is revoked" in caplog.text
