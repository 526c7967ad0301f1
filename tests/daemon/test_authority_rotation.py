"""The certificate authority is replaced under running members: with the real desk, real renewals, and sessions over real TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from random import Random

import pytest
import trio
from free_port import free_port
from repository_simulator import PASSPHRASE, RepositorySimulator
from test_admission import Member, Running, members, renew_authority

from pcm_p2p.authority import ca_folder
from pcm_p2p.daemon import renewal as renewal_module
from pcm_p2p.daemon.renewal import Renewal
from pcm_p2p.enrolment.desk import Desk
from pcm_p2p.trust.identity import DeviceIdentity

Fleet = RepositorySimulator


@pytest.fixture(autouse=True)
def _quick(quick_disk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("START_S_MIN", "START_S_MAX"):
        monkeypatch.setattr(renewal_module, name, 0.0)
    monkeypatch.setattr(renewal_module, "NEW_AUTHORITY_S", 0.2)


@pytest.fixture(name="fleet")
def _fleet(fleet_of_today: Fleet) -> Fleet:
    return fleet_of_today


@asynccontextmanager
async def desk_of(fleet: Fleet, port: int) -> AsyncIterator[None]:
    """The desk as it certifies at present."""
    desk = Desk.open(fleet.fleet, PASSPHRASE)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(desk.serve, "127.0.0.1", port)
            yield
            nursery.cancel_scope.cancel()
    finally:
        desk.close()


class Renewing(Running):
    """A running member that renews its certificate by itself."""

    def __init__(self, member: Member, port: int) -> None:
        super().__init__(member)
        self.installed = trio.Event()
        self.renewal = Renewal(
            member.identity,
            now=member.client.now,
            desks=lambda: [f"127.0.0.1:{port}"],
            authorities_pem=lambda: member.admission.authorities_pem,
            neighbours=list,
            look_around=None,
            installed=self._installed,
            rng=Random(1),
        )

    async def _installed(self, identity: DeviceIdentity) -> None:
        self.member.identity = identity
        self.member.admission.reload(identity)
        self.installed.set()

    async def learn(self) -> None:
        if await self.member.learn():
            self.renewal.look_again()
        self.overlay.reconsider()


async def test_an_authority_is_replaced_and_no_running_member_is_lost(fleet: Fleet) -> None:
    ca = fleet.fleet.path / "ca"
    port = free_port()
    async with members(fleet, "a", "b", "late") as (a_member, b_member, late), trio.open_nursery() as nursery:
        a, b = running = [Renewing(a_member, port), Renewing(b_member, port)]
        for one in running:
            await one.learn()
            await nursery.start(one.overlay.run)
            nursery.start_soon(one.renewal.run)
        a.overlay.introduce(*b.place)
        await a.until(lambda: a.sees(b))
        # 1: the next authority is believed beside the present one.
        renew_authority(fleet)
        for one in running:
            await one.learn()
        assert not a.installed.is_set()
        # 2: it certifies; the desk is restarted, and members renew as soon as they have read of it.
        ca_folder.use_next(ca)
        fleet.fleet.stage_fleet_document()
        fleet.sign()
        fleet.publish()
        fleet.clock.advance(seconds=2)  # a certificate is renewed by one that ends no sooner
        async with desk_of(fleet, port):
            for one in running:
                await one.learn()
            with trio.fail_after(60):
                for one in running:
                    fleet.clock.advance(seconds=1)
                    await one.installed.wait()
        for member in (a_member, b_member):
            again = DeviceIdentity.load(member.folder / "identity")
            assert again.certificate_der == member.identity.certificate_der, "it survives a restart"
        assert a.sees(b), "the session goes on"
        # 3: the former one is retired. Who renewed stays; who did not is out.
        (first,) = ca_folder.retire(ca)
        fleet.fleet.stage_fleet_document()
        fleet.sign()
        fleet.publish()
        for one in running:
            await one.learn()
        with trio.fail_after(60):
            while not (a.sees(b) and a_member.accepts(b_member)):
                await a._bell.wait()
        assert not a_member.accepts(late)
        assert ca_folder.fingerprint(first) not in map(ca_folder.fingerprint, ca_folder.former(ca))
        nursery.cancel_scope.cancel()


async def test_a_renewal_that_the_desk_still_signs_with_the_former_authority_is_tried_again(fleet: Fleet) -> None:
    """The desk was not restarted after --use."""
    port = free_port()
    async with desk_of(fleet, port), members(fleet, "a") as (member,), trio.open_nursery() as nursery:
        a = Renewing(member, port)
        await a.learn()
        renew_authority(fleet)
        await a.learn()
        ca_folder.use_next(fleet.fleet.path / "ca")
        fleet.fleet.stage_fleet_document()
        fleet.sign()
        fleet.publish()
        fleet.clock.advance(seconds=2)
        nursery.start_soon(a.renewal.run)
        await a.learn()
        with trio.fail_after(60):
            while not a.installed.is_set():
                fleet.clock.advance(seconds=1)
                await trio.sleep(0.02)
        assert a.renewal._due < fleet.clock.now + timedelta(days=1), "not a year later"
        nursery.cancel_scope.cancel()
