"""Admission: who may speak with a device now. Over real metadata and real mutual TLS, from publishing to the end of a session."""

from __future__ import annotations

import contextlib
import math
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from random import Random
from socket import socketpair
from typing import Any

import pytest
import trio
from repository_simulator import PASSPHRASE, RepositorySimulator, TreeSource

from pcm_p2p.authority import ca_folder
from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.revocation import change_deny_list
from pcm_p2p.daemon.admission import Admission
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.gossip.overlay import Overlay
from pcm_p2p.gossip.peer import PeerDown, PeerUp
from pcm_p2p.gossip.settings import OverlaySettings
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust.certificate import CERTIFICATE_DAYS
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.identity import DeviceIdentity, client_context, server_context
from pcm_p2p.trust.index import AUTHORITIES, DENY
from pcm_p2p.wire.link import LinkFailed, dial
from pcm_p2p.wire.messages import FileGet
from pcm_p2p.wire.session import SessionClosed

Fleet = RepositorySimulator


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    pass


@pytest.fixture(name="fleet")
def _fleet(fleet_of_today: Fleet) -> Fleet:
    return fleet_of_today


class Member:
    """A device with its trusted view and its admission; ``learn`` makes it trust what is published."""

    def __init__(self, fleet: Fleet, name: str, authority: FleetCA | None = None) -> None:
        self.fleet, self.folder = fleet, fleet.folder / name
        issuer = authority or FleetCA.load(fleet.fleet.path / "ca", PASSPHRASE)
        self.identity = DeviceIdentity.create(self.folder / "identity", issuer, now=fleet.clock.now)
        self.client = TrustClient(
            self.folder / "trust", fleet.fleet.root_bytes(1), fleet.fleet.fleet_id, wall_clock=fleet.clock
        )
        self.client.open()
        self.admission = self.made()

    def made(self) -> Admission:
        return Admission(self.identity, self.client, self.folder / "denied.json")

    @property
    def id(self) -> DeviceId:
        return self.identity.device_id

    async def learn(self) -> bool:
        assert (await self.client.attempt(TreeSource(self.fleet.origin))).kind in ("good", "unchanged")
        return self.admission.changed()

    def accepts(self, other: Member) -> bool:
        try:
            self.admission.verify(other.identity.certificate_der)
        except UntrustedBytes:
            return False
        return True


@asynccontextmanager
async def members(fleet: Fleet, *names: str) -> AsyncIterator[list[Member]]:
    made = [Member(fleet, name) for name in names]
    try:
        yield made
    finally:
        for member in made:
            member.client.close()


def revoke(fleet: Fleet, *devices: DeviceId) -> None:
    change_deny_list(fleet.fleet, lambda held: held.with_devices(devices, "stolen", fleet.clock.now))
    fleet.sign()
    fleet.publish()


async def test_a_revoked_device_is_refused_as_peer_and_as_author_and_others_are_not(fleet: Fleet) -> None:
    async with members(fleet, "a", "b", "c") as (a, b, c):
        await a.learn()
        assert a.accepts(b)
        revoke(fleet, b.id)
        assert await a.learn()
        assert not a.accepts(b)
        assert a.accepts(c)
        with pytest.raises(UntrustedBytes, match=r"is revoked since .*: stolen"):
            a.admission.verify_author(b.identity.certificate_der)
        assert a.admission.is_revoked(b.id)
        facts = a.admission.facts()
        assert (facts["devices"], facts["sessions_refused"], facts["records_refused"]) == (1, 1, 1)


async def test_a_restored_device_is_a_member_again(fleet: Fleet) -> None:
    async with members(fleet, "a", "b") as (a, b):
        revoke(fleet, b.id)
        await a.learn()
        change_deny_list(fleet.fleet, lambda held: held.without_devices([b.id]))
        fleet.sign()
        fleet.publish()
        assert await a.learn()
        assert a.accepts(b)


async def test_the_revoked_device_says_so_itself_and_keeps_what_it_has(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    async with members(fleet, "a", "b") as (_, b):
        revoke(fleet, b.id)
        await b.learn()
        (problem,) = b.admission.problems
        assert "this device was revoked on" in problem
        assert "stolen" in problem
        assert problem in caplog.text
        assert b.client.view is not None
        assert b.client.view.index().policies == ("policies/first.toml",)


async def test_zeroed_files_of_the_view_and_a_lost_view_set_nobody_free(fleet: Fleet) -> None:
    async with members(fleet, "a", "b") as (a, b):
        revoke(fleet, b.id)
        await a.learn()
        assert a.client.view is not None
        a.client.view.file_of(DENY).write_bytes(b"")
        again = a.made()
        assert again.is_revoked(b.id)
        assert "deny list cannot be used" in again.problems[0]
        a.client.close()
        for path in (a.folder / "trust" / "generations").iterdir():
            (path / "state.json").write_bytes(b"\0" * 100)
        a.client.open()
        assert a.client.view is None
        assert a.made().is_revoked(b.id)


@pytest.mark.parametrize("damage", [b"", b"\0" * 200, b"{}", b"not json"])
async def test_a_damaged_memory_of_the_list_is_replaced_by_what_is_signed(fleet: Fleet, damage: bytes) -> None:
    async with members(fleet, "a", "b") as (a, b):
        revoke(fleet, b.id)
        await a.learn()
        (a.folder / "denied.json").write_bytes(damage)
        assert a.made().is_revoked(b.id)


@pytest.mark.parametrize("how", ["dropped", "emptied"])
async def test_a_list_of_a_lower_epoch_under_newer_metadata_sets_nobody_free(fleet: Fleet, how: str) -> None:
    """As a fleet folder that was restored from a backup would sign it."""
    async with members(fleet, "a", "b") as (a, b):
        revoke(fleet, b.id)
        await a.learn()
        if how == "dropped":
            fleet.fleet.unstage(DENY)
        else:
            empty = b'{"schema": "pcm.deny/1", "fleet": "%s", "epoch": 0}' % fleet.fleet.fleet_id.encode()
            fleet.fleet.stage_file(DENY, empty)
        fleet.sign()
        fleet.publish()
        assert not await a.learn()
        assert a.admission.is_revoked(b.id)
        assert "went back to epoch 0" in a.admission.problems[0]


async def test_a_list_that_does_not_read_leaves_the_one_before_it_in_force(fleet: Fleet) -> None:
    async with members(fleet, "a", "b") as (a, b):
        revoke(fleet, b.id)
        await a.learn()
        fleet.fleet.stage_file(DENY, b"{}")
        fleet.sign()
        fleet.publish()
        await a.learn()
        assert a.admission.is_revoked(b.id)
        assert "the one before it stays" in a.admission.problems[0]


# Authorities


def renew_authority(fleet: Fleet) -> FleetCA:
    """Step 1, published."""
    ca = fleet.fleet.path / "ca"
    made = ca_folder.found_next(ca, fleet.fleet.fleet_id, PASSPHRASE, owner="desk", preset="lab", now=fleet.clock.now)
    fleet.fleet.stage_fleet_document()
    fleet.sign()
    fleet.publish()
    return made


async def test_an_authority_is_believed_as_soon_as_it_is_signed_and_not_before(fleet: Fleet) -> None:
    async with members(fleet, "a") as (a,):
        await a.learn()
        second = renew_authority(fleet)
        b = Member(fleet, "b", second)
        assert not a.accepts(b)
        assert await a.learn()
        assert a.accepts(b)
        b.client.close()


async def test_a_retired_authority_is_out_with_every_certificate_that_it_issued(fleet: Fleet) -> None:
    async with members(fleet, "a", "b") as (a, b):
        second = renew_authority(fleet)
        ca_folder.use_next(fleet.fleet.path / "ca")
        c = Member(fleet, "c", second)
        await c.learn()
        assert c.accepts(b)
        ca_folder.retire(fleet.fleet.path / "ca")
        fleet.fleet.stage_fleet_document()
        fleet.sign()
        fleet.publish()
        await c.learn()
        assert not c.accepts(b)
        await a.learn()
        assert "renew its certificate" in a.admission.problems[0], "a was certified by the one that is gone"
        a.identity = DeviceIdentity.create(a.folder / "identity", second, now=fleet.clock.now)
        a.admission.reload(a.identity)
        assert c.accepts(a)
        c.client.close()


async def test_a_retired_authority_still_vouches_for_records_on_their_way_and_a_denied_one_does_not(
    fleet: Fleet,
) -> None:
    """Reports of members that were offline for weeks must not be lost because the authority was replaced meanwhile."""
    async with members(fleet, "a", "b") as (a, b):
        await a.learn()
        first = FleetCA.load(fleet.fleet.path / "ca", PASSPHRASE)
        renew_authority(fleet)
        await a.learn()
        ca_folder.use_next(fleet.fleet.path / "ca")
        ca_folder.retire(fleet.fleet.path / "ca")
        fleet.fleet.stage_fleet_document()
        fleet.sign()
        fleet.publish()
        await a.learn()
        assert not a.accepts(b), "no session"
        assert a.client.view is not None
        a.client.view.file_of(AUTHORITIES).write_bytes(b"")
        for admission in (a.admission, a.made()):  # after a restart, too, and with a damaged list
            with pytest.raises(UntrustedBytes):
                admission.verify(b.identity.certificate_der)
            assert admission.verify_author(b.identity.certificate_der).device_id == b.id
        change_deny_list(fleet.fleet, lambda held: held.with_authorities([first.der], "copied", fleet.clock.now))
        fleet.sign()
        fleet.publish()
        await a.learn()
        for admission in (a.admission, a.made()):
            with pytest.raises(UntrustedBytes):
                admission.verify_author(b.identity.certificate_der)


async def test_a_denied_authority_is_out_at_once_even_while_it_is_still_listed(fleet: Fleet) -> None:
    async with members(fleet, "a", "b") as (a, b):
        second = renew_authority(fleet)
        c = Member(fleet, "c", second)
        await a.learn()
        first = FleetCA.load(fleet.fleet.path / "ca", PASSPHRASE)
        change_deny_list(
            fleet.fleet, lambda held: held.with_authorities([first.der], "its key was copied", fleet.clock.now)
        )
        fleet.sign()
        fleet.publish()
        assert await a.learn()
        assert a.accepts(c)
        assert not a.accepts(b)
        change_deny_list(fleet.fleet, lambda held: held.with_authorities([second.der], "this too", fleet.clock.now))
        fleet.sign()
        fleet.publish()
        await a.learn()
        assert not a.accepts(c)
        assert a.admission.authorities_pem == b""
        assert "every certificate authority" in a.admission.problems[0]
        c.client.close()


async def test_authorities_of_another_fleet_in_the_signed_list_are_not_believed(fleet: Fleet) -> None:
    async with members(fleet, "a", "b") as (a, b):
        foreign = FleetCA.in_memory("e" * 32, now=fleet.clock.now)
        own = FleetCA.load(fleet.fleet.path / "ca", PASSPHRASE)
        fleet.fleet.stage_file("identity/ca.pem", foreign.pem + own.pem)
        fleet.sign()
        fleet.publish()
        await a.learn()
        assert a.admission.authorities_pem == own.pem
        fleet.fleet.stage_file("identity/ca.pem", foreign.pem)
        fleet.sign()
        fleet.publish()
        await a.learn()
        assert "names no authority of this fleet" in a.admission.problems[0]
        assert a.accepts(b), "a list that names nobody of us changes nothing"


# Over sockets


class Running:
    """An overlay over a member's admission, and a bell for whoever comes and goes."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.served: list[DeviceId] = []
        self._bell = trio.Event()
        self.overlay = Overlay(
            member.id,
            member.admission.security,
            OverlaySettings(site="office", addresses=("127.0.0.1",)),
            rng=Random(member.id),
            revoked=member.admission.is_revoked,
        )
        self.overlay.watch(self._watch)
        self.overlay.serve(FileGet, self._file)

    async def _watch(self, _event: PeerUp | PeerDown) -> None:
        self._bell.set()
        self._bell = trio.Event()

    async def _file(self, device: DeviceId, _request: Any) -> bytes:
        self.served.append(device)
        return b"file"

    @property
    def place(self) -> tuple[str, int]:
        return self.overlay.listening[0]

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(60):
            while not condition():
                await self._bell.wait()

    def sees(self, other: Running) -> bool:
        return other.member.id in [peer.device_id for peer in self.overlay.peers()]

    async def learn(self) -> None:
        await self.member.learn()
        self.overlay.reconsider()


@asynccontextmanager
async def office(fleet: Fleet, *names: str) -> AsyncIterator[list[Running]]:
    """Members that all have sessions with each other."""
    async with members(fleet, *names) as made, trio.open_nursery() as nursery:
        running = [Running(member) for member in made]
        for one in running:
            await nursery.start(one.overlay.run)
            for other in running:
                if other is not one and other.overlay.listening:
                    one.overlay.introduce(*other.place)
        for one in running:
            await one.until(lambda one=one: len(one.overlay.peers()) == len(running) - 1)  # type: ignore[misc]
        yield running
        nursery.cancel_scope.cancel()


async def test_live_sessions_of_a_revoked_device_drop_at_once_and_a_redial_is_refused_on_both_sides(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcm_p2p.gossip.overlay.SAVE_INTERVAL_S", math.inf)  # nor does anybody look again by themselves
    async with office(fleet, "a", "b", "c") as (a, b, c):
        assert await a.overlay.fetch_file(b.member.id, "x", 10) == b"file"
        revoke(fleet, b.member.id)
        await a.learn()
        await c.learn()
        await a.until(lambda: not a.sees(b))
        await c.until(lambda: not c.sees(b))
        assert a.sees(c)
        # Neither asks the other anything any more.
        with pytest.raises(SessionClosed):
            await a.overlay.fetch_file(b.member.id, "x", 10)
        await b.until(lambda: not b.sees(a))
        with pytest.raises(SessionClosed):
            await b.overlay.fetch_file(a.member.id, "x", 10)
        # The revoked device dials: its handshake may seem to succeed (TLS 1.3), no frame ever comes.
        a.served.clear()
        link = await dial(*a.place, b.member.admission.security)
        with trio.fail_after(60), contextlib.suppress(trio.BrokenResourceError):
            assert await link.stream.receive_some(10) == b""
        await trio.aclose_forcefully(link.stream)
        # And who dials it hangs up.
        with pytest.raises(LinkFailed, match="is revoked since"):
            await dial(*b.place, a.member.admission.security)
        assert not a.sees(b)
        assert a.served == []


async def test_a_revoked_device_is_in_no_roster(fleet: Fleet) -> None:
    async with office(fleet, "a", "b", "c") as (a, b, c):
        assert b.member.id in a.overlay.known()
        revoke(fleet, b.member.id)
        await a.learn()
        await a.until(lambda: not a.sees(b))
        assert b.member.id not in a.overlay.known()
        assert bytes(b.member.id) not in [entry.device for entry in a.overlay.roster()]
        assert c.member.id in a.overlay.known(), "c, which has not heard yet, still tells of b, and a does not listen"


async def test_a_session_does_not_outlive_the_certificate_it_stands_on(fleet: Fleet) -> None:
    async with office(fleet, "a", "b", "c") as (a, b, c):
        longer = FleetCA.load(fleet.fleet.path / "ca", PASSPHRASE)
        c.member.identity = DeviceIdentity.create(
            c.member.folder / "identity", longer, now=fleet.clock.now, days=CERTIFICATE_DAYS + 10
        )
        fleet.clock.advance(days=CERTIFICATE_DAYS + 1)
        with pytest.raises(UntrustedBytes, match="valid from"):
            a.member.admission.verify(b.member.identity.certificate_der)
        assert a.member.accepts(c.member)
        a.overlay.reconsider()
        await a.until(lambda: not a.sees(b))


async def test_a_thief_of_the_online_keys_cannot_end_certificates_before_their_time(fleet: Fleet) -> None:
    """The moment that a timestamp proves may be as far ahead as targets last; neighbours are needed then, to heal."""
    async with members(fleet, "a", "b") as (a, b):
        await a.learn()
        issuer = FleetCA.load(fleet.fleet.path / "ca", PASSPHRASE)
        b.identity = DeviceIdentity.create(b.folder / "identity", issuer, now=fleet.clock.now, days=120)
        tree = fleet.stolen(issued=fleet.clock.now + timedelta(days=200), lifetime=timedelta(days=400))
        assert (await a.client.attempt(TreeSource(tree))).kind == "good"
        assert a.client.now() == fleet.clock.now + timedelta(days=200)
        assert a.accepts(b)
        fleet.clock.advance(days=121)
        assert not a.accepts(b)


async def test_a_session_that_was_being_made_while_its_device_was_revoked_is_not_admitted(fleet: Fleet) -> None:
    """The certificate was good at the handshake; the list came before Hello."""
    async with members(fleet, "a", "b") as (a, b), trio.open_nursery() as nursery:
        running = Running(a)
        await nursery.start(running.overlay.run)
        link = await dial(*running.place, b.admission.security)
        revoke(fleet, b.id)
        await running.learn()
        other = Running(b)
        with trio.fail_after(60):
            await other.overlay._use(link)
        assert running.overlay.peers() == []
        nursery.cancel_scope.cancel()


async def test_an_authority_is_rotated_under_live_sessions_and_nobody_is_lost(fleet: Fleet) -> None:
    async with office(fleet, "a", "b") as (a, b):
        seen: list[Any] = []

        async def note(event: PeerUp | PeerDown) -> None:
            seen.append(event)

        a.overlay.watch(note)
        second = renew_authority(fleet)
        for one in (a, b):
            await one.learn()
        ca_folder.use_next(fleet.fleet.path / "ca")
        for one in (a, b):  # the desk renews each certificate; sessions go on
            one.member.identity = DeviceIdentity.create(one.member.folder / "identity", second, now=fleet.clock.now)
            one.member.admission.reload(one.member.identity)
        assert a.sees(b)
        assert b.sees(a)
        assert seen == []
        # New connections show the new certificates and are believed on both sides.
        link = await dial(*a.place, b.member.admission.security)
        assert link.device == a.member.id
        await trio.aclose_forcefully(link.stream)
        ca_folder.retire(fleet.fleet.path / "ca")
        fleet.fleet.stage_fleet_document()
        fleet.sign()
        fleet.publish()
        for one in (a, b):
            await one.learn()
        # The old sessions stood on certificates of the retired authority; the members meet again with their new ones.
        await a.until(lambda: [type(event).__name__ for event in seen[-2:]] == ["PeerDown", "PeerUp"])
        assert await a.overlay.fetch_file(b.member.id, "x", 10) == b"file"


async def test_a_tls_session_cannot_be_resumed_past_a_revocation(fleet: Fleet) -> None:
    """The server issues no tickets, so a client that asks for its old session proves itself anew."""
    async with members(fleet, "a", "b") as (a, b):

        def handshake(session: ssl.SSLSession | None) -> ssl.SSLSocket:
            near, far = socketpair()
            server = server_context(a.identity)
            accepted: list[ssl.SSLSocket] = []
            worker = threading.Thread(target=lambda: accepted.append(server.wrap_socket(far, server_side=True)))
            worker.start()
            client = context.wrap_socket(near, session=session)
            worker.join(10)
            accepted[0].send(b"x")
            assert client.recv(1) == b"x"
            assert accepted[0].getpeercert(binary_form=True), "it proved itself"
            assert not accepted[0].session_reused
            accepted[0].close()
            return client

        context = client_context(b.identity)
        with handshake(None) as first:
            session = first.session
            assert session is None or not session.has_ticket
        with handshake(session) as second:
            assert not second.session_reused
