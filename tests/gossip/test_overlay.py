"""The overlay over real sockets and real mutual TLS on loopback: few nodes, every promise of its docstring."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.gossip.discovery import Discovery
from pcm_p2p.gossip.overlay import Overlay
from pcm_p2p.gossip.peer import PeerDown, PeerUp
from pcm_p2p.gossip.roster_file import RosterFile
from pcm_p2p.gossip.settings import OverlaySettings
from pcm_p2p.ids import ChunkId, DeviceId
from pcm_p2p.sidecar import open_sidecar
from pcm_p2p.trust.identity import DeviceIdentity, client_context, peer_identity_untrusted, server_context
from pcm_p2p.wire.framing import encode_control
from pcm_p2p.wire.link import LinkFailed, LinkSecurity, dial
from pcm_p2p.wire.messages import PROTOCOL, ChunkGet, Digest, FileGet, Hello, Route
from pcm_p2p.wire.session import PeerRefused, Refuse, SessionClosed

FLEET = "1" * 32
NOW = datetime.now(UTC)
CHUNK = bytes(range(256)) * 1_000


class Running:
    """An overlay, what its watchers and handlers saw, and a bell that rings whenever a peer comes or goes."""

    def __init__(self, overlay: Overlay, nursery: trio.Nursery) -> None:
        self.overlay = overlay
        self.nursery = nursery
        self.seen: list[Any] = []
        self._bell = trio.Event()
        overlay.watch(self._watch)
        overlay.register(Route, self._hear)
        overlay.register(Digest, self._hear)

    @property
    def port(self) -> int:
        return self.overlay.listening[0][1]

    async def _watch(self, event: PeerUp | PeerDown) -> None:
        self.seen.append(event)
        self.ring()

    async def _hear(self, device: DeviceId, message: Any) -> None:
        self.seen.append((device, message))
        self.ring()

    def ring(self) -> None:
        self._bell.set()
        self._bell = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(60):
            while not condition():
                await self._bell.wait()

    async def until_peers(self, count: int) -> None:
        await self.until(lambda: len(self.overlay.peers()) == count)


class Fleet:
    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self.folder = folder
        self.nursery = nursery
        self.authority = FleetCA.in_memory(FLEET, now=NOW)

    def identity(self, name: str, role: Any = "device", authority: FleetCA | None = None) -> DeviceIdentity:
        folder = self.folder / name
        if (folder / "device.crt").exists():
            return DeviceIdentity.load(folder)
        return DeviceIdentity.create(folder, authority or self.authority, role, now=NOW)

    def make(self, name: str, **options: Any) -> Overlay:
        identity = self.identity(name, options.pop("role", "device"), options.pop("authority", None))
        contexts = server_context(identity), client_context(identity)
        settings = {"site": "berlin", "agent": name} | options.pop("settings", {})
        return Overlay(
            identity.device_id,
            LinkSecurity(*contexts, peer_identity_untrusted, FLEET),
            OverlaySettings(**settings),
            rng=Random(name),
            **options,
        )

    async def start(self, name: str, *seeds: Running, **options: Any) -> Running:
        """Run an overlay in a nursery of its own, so that one can be stopped while the others go on."""
        settings = options.setdefault("settings", {})
        settings["seeds"] = tuple(("127.0.0.1", seed.port) for seed in seeds)
        before = options.pop("before", None)
        overlay = self.make(name, **options)
        if before is not None:
            before(overlay)

        async def run(*, task_status: trio.TaskStatus[Running]) -> None:
            async with trio.open_nursery() as nursery:
                running = Running(overlay, nursery)
                await nursery.start(overlay.run)
                task_status.started(running)

        started: Running = await self.nursery.start(run)
        return started


@asynccontextmanager
async def fleet_in(folder: Path) -> AsyncIterator[Fleet]:
    async with trio.open_nursery() as nursery:
        yield Fleet(folder, nursery)
        nursery.cancel_scope.cancel()


def agents(running: Running) -> set[str]:
    return {peer.agent for peer in running.overlay.peers()}


async def test_two_devices_become_peers_and_a_peer_is_up_before_its_first_message(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a")
        b = await fleet.start("b", a)
        await a.until_peers(1)
        await b.until_peers(1)
        await a.overlay.broadcast(Route(True))
        await b.until(lambda: (a.overlay.device, Route(True)) in b.seen)
        assert isinstance(b.seen[0], PeerUp)
        [peer] = b.overlay.site_peers()
        assert (peer.device_id, peer.host, peer.site, peer.weight, peer.agent) == (
            a.overlay.device,
            "127.0.0.1",
            "berlin",
            8,
            "a",
        )


async def test_one_seed_is_enough_for_a_full_mesh(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        nodes = [await fleet.start("0")]
        for number in range(1, 6):
            nodes.append(await fleet.start(str(number), nodes[0]))
        for node in nodes:
            await node.until_peers(5)
        assert all(len(node.overlay.known()) == 5 for node in nodes)


async def test_mdns_alone_is_enough_for_a_full_mesh(tmp_path: Path) -> None:
    announced = secrets.token_hex(16)  # tests beside this one are heard on the same loopback
    async with open_sidecar() as sidecar, fleet_in(tmp_path) as fleet:
        nodes = []
        for number in range(5):
            introducer = Discovery(sidecar, fleet=announced, interfaces=["127.0.0.1"])
            nodes.append(await fleet.start(str(number), introducer=introducer))
        for node in nodes:
            await node.until_peers(4)


async def test_chunks_and_files_are_fetched_from_a_named_peer(tmp_path: Path) -> None:
    async def chunk(device: DeviceId, request: ChunkGet) -> bytes:
        if request.chunk == bytes(32):
            raise Refuse("missing")
        return CHUNK

    async def file(device: DeviceId, request: FileGet) -> bytes:
        return f"{request.path} for {device.short}".encode()

    def serve(overlay: Overlay) -> None:
        overlay.serve(ChunkGet, chunk)
        overlay.serve(FileGet, file)

    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a", before=serve)
        b = await fleet.start("b", a)
        await b.until_peers(1)
        assert await b.overlay.fetch_chunk(a.overlay.device, ChunkId(b"c" * 32), len(CHUNK)) == CHUNK
        answer = await b.overlay.fetch_file(a.overlay.device, "metadata/timestamp.json", 100)
        assert answer == f"metadata/timestamp.json for {b.overlay.device.short}".encode()
        with pytest.raises(PeerRefused, match="missing"):
            await b.overlay.fetch_chunk(a.overlay.device, ChunkId(bytes(32)), 10)
        with pytest.raises(SessionClosed):
            await b.overlay.fetch_chunk(DeviceId(bytes(16)), ChunkId(bytes(32)), 10)
        assert b.overlay.statistics().bulk_in_bytes == len(CHUNK) + len(answer)


async def test_two_that_dial_each_other_keep_one_session_and_agree_which(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        for number in range(4):
            a = await fleet.start(f"a{number}")
            b = await fleet.start(f"b{number}")
            a.overlay.introduce("127.0.0.1", b.port)
            b.overlay.introduce("127.0.0.1", a.port)
            await a.until_peers(1)
            await b.until_peers(1)
            for node, other in ((a, b), (b, a)):
                await node.overlay.send(other.overlay.device, Route(True))
                await other.until(lambda node=node, other=other: (node.overlay.device, Route(True)) in other.seen)  # type: ignore[misc]
            one, two = a.overlay.session_with(b.overlay.device), b.overlay.session_with(a.overlay.device)
            assert one is not None
            assert two is not None
            assert one.dialled != two.dialled


async def test_a_port_that_is_taken_is_one_plain_error(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a")
        refused = fleet.make("b", settings={"port": a.port})
        with pytest.raises(OSError, match="in use"):
            await fleet.nursery.start(refused.run)


async def test_a_node_of_another_fleet_never_becomes_a_peer(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a")
        stranger = await fleet.start("s", a, authority=FleetCA.in_memory(FLEET, now=NOW))
        friend = await fleet.start("f", a)
        a.overlay.introduce("127.0.0.1", stranger.port)
        await friend.until_peers(1)
        await a.until_peers(1)
        assert agents(a) == {"f"}
        assert stranger.overlay.peers() == []


async def test_the_enrolment_desk_is_no_peer(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a")
        await fleet.start("desk", a, role="desk")
        friend = await fleet.start("f", a)
        await friend.until_peers(1)
        assert agents(a) == {"f"}


async def test_a_peer_that_leaves_is_gone_at_once_and_not_suspected(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a")
        b = await fleet.start("b", a)
        await a.until_peers(1)
        await b.overlay.leave()
        await a.until_peers(0)
        assert a.seen[-1] == PeerDown(b.overlay.device, "peer said bye: leaving")
        assert a.overlay.known() == []


async def test_a_peer_that_crashes_is_down_and_comes_back_when_it_restarts(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a")
        b = await fleet.start("b", a)
        await a.until_peers(1)
        b.nursery.cancel_scope.cancel()
        await a.until_peers(0)
        assert a.overlay.known() == [b.overlay.device], "one lost session is no proof of death"
        again = await fleet.start("b", a)
        await a.until_peers(1)
        await again.until_peers(1)
        assert [type(event).__name__ for event in a.seen] == ["PeerUp", "PeerDown", "PeerUp"]


async def test_a_restart_finds_the_neighbours_again_without_seed_or_mdns_and_on_the_same_port(tmp_path: Path) -> None:
    memory = tmp_path / "roster.msgpack"
    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a")
        b = await fleet.start("b", a, roster_file=RosterFile(memory))
        await b.until_peers(1)
        await a.until_peers(1)
        port, incarnation = b.port, b.overlay._membership.incarnation
        await b.overlay.leave()
        b.nursery.cancel_scope.cancel()
        await a.until_peers(0)
        again = await fleet.start("b", roster_file=RosterFile(memory))
        await again.until_peers(1)
        assert again.port == port
        assert again.overlay._membership.incarnation > incarnation


async def test_a_new_connection_of_a_restarted_peer_replaces_the_one_that_hangs(tmp_path: Path) -> None:
    """As after a power cut: the old session is still there on one side, and nobody answers on the other."""
    async with fleet_in(tmp_path) as fleet:
        a, identity = await fleet.start("a"), fleet.identity("b")
        contexts = server_context(identity), client_context(identity)
        dead = await dial("127.0.0.1", a.port, LinkSecurity(*contexts, peer_identity_untrusted, FLEET))
        await dead.stream.send_all(
            encode_control(Hello(PROTOCOL, FLEET, "berlin", "device", 0, 1_000, 8, "b", 0, b"dead process   \0"))
        )
        await a.until_peers(1)
        newer = await fleet.start("b", a, wall_clock_s=lambda: 2_000)
        await newer.until_peers(1)
        await a.until(lambda: len(a.seen) >= 3)
        up, down, up_again = a.seen[:3]
        assert isinstance(up, PeerUp)
        assert down == PeerDown(newer.overlay.device, "replaced")
        assert isinstance(up_again, PeerUp)
        await newer.overlay.send(a.overlay.device, Route(True))
        await a.until(lambda: (newer.overlay.device, Route(True)) in a.seen)
        await trio.aclose_forcefully(dead.stream)


async def test_peers_of_another_site_are_peers_but_not_of_the_site(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a")
        b = await fleet.start("b", a, settings={"site": "paris"})
        c = await fleet.start("c", a)
        await a.until_peers(2)
        assert [peer.agent for peer in a.overlay.site_peers()] == ["c"]
        assert b.overlay.site_peers() == []
        assert a.overlay.known() == [c.overlay.device]
        await a.overlay.broadcast(Route(True), site_only=True)
        await a.overlay.broadcast(Route(False), except_={c.overlay.device})
        await b.until(lambda: (a.overlay.device, Route(False)) in b.seen)
        await c.until(lambda: (a.overlay.device, Route(True)) in c.seen)
        assert (a.overlay.device, Route(True)) not in b.seen
        assert (a.overlay.device, Route(False)) not in c.seen


async def test_a_neighbour_is_of_the_site_that_its_certificate_says_whatever_it_claims(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        for name, site in (("a", "berlin"), ("liar", "paris"), ("honest", "berlin")):
            identity = fleet.identity(name)
            der = fleet.authority.issue(identity.public_key, "device", now=NOW, site=site)
            DeviceIdentity.install(identity.folder, der, fleet.authority.pem, identity.record)
        a = await fleet.start("a")
        liar = await fleet.start("liar", a)  # its settings say berlin, and so does its hello
        honest = await fleet.start("honest", a)
        await a.until_peers(2)
        assert {(peer.agent, peer.site, peer.same_site) for peer in a.overlay.peers()} == {
            ("liar", "paris", False),
            ("honest", "berlin", True),
        }
        assert [peer.agent for peer in a.overlay.site_peers()] == ["honest"]
        assert a.overlay.known() == [honest.overlay.device], "nor is it dialled as one of the site"
        await a.overlay.broadcast(Route(True), site_only=True)
        await honest.until(lambda: (a.overlay.device, Route(True)) in honest.seen)
        assert (a.overlay.device, Route(True)) not in liar.seen


async def test_a_full_node_lets_nobody_else_in_and_keeps_those_it_has(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a", settings={"sessions_max": 1})
        b = await fleet.start("b", a)
        await a.until_peers(1)
        c = await fleet.start("c", a, b)
        await c.until(lambda: "b" in agents(c))
        assert agents(a) == {"b"}


async def test_a_collector_is_dialled_on_the_side_and_only_by_its_role(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        collector = await fleet.start("k", role="collector", settings={"site": "paris", "role": "collector"})
        a = await fleet.start("a")
        async with a.overlay.dial("127.0.0.1", collector.port, "collector") as session:
            assert session.peer_hello.role == "collector"
            await session.send(Route(True))
            await collector.until(lambda: (a.overlay.device, Route(True)) in collector.seen)
        assert a.overlay.peers() == []
        with pytest.raises(LinkFailed, match="collector, not relay"):
            async with a.overlay.dial("127.0.0.1", collector.port, "relay"):
                pass


async def test_an_error_inside_a_dialled_session_is_raised_as_it_is(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        collector = await fleet.start("k", role="collector", settings={"site": "paris", "role": "collector"})
        a = await fleet.start("a")
        with pytest.raises(PeerRefused, match="denied"):
            async with a.overlay.dial("127.0.0.1", collector.port, "collector") as session:
                await session.fetch(lambda number: FileGet(number, "x"), 10, 5.0)


async def test_a_peer_whose_message_does_not_fit_is_closed_and_a_handler_that_fails_closes_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def judge(device: DeviceId, digest: Digest) -> None:
        if digest.root == 1:
            raise LookupError("a fault of ours")
        if digest.root == 2:
            raise UntrustedBytes("does not fit")

    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a", before=lambda overlay: overlay.register(Digest, judge))
        b = await fleet.start("b", a)
        await b.until_peers(1)
        await a.until_peers(1)
        await b.overlay.send(a.overlay.device, Digest(1, 0, 0, 0, bytes(32)))
        await b.overlay.send(a.overlay.device, Route(True))
        await a.until(lambda: (b.overlay.device, Route(True)) in a.seen)
        await b.overlay.send(a.overlay.device, Digest(2, 0, 0, 0, bytes(32)))
        await a.until(lambda: any(isinstance(event, PeerDown) for event in a.seen))
    assert "a fault of ours" in caplog.text
    assert "sent a bad Digest" in caplog.text


async def test_a_watcher_that_fails_does_not_end_the_overlay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(event: PeerUp | PeerDown) -> None:
        raise LookupError("a fault of ours")

    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a", before=lambda overlay: overlay.watch(fail))
        b = await fleet.start("b", a)
        await b.until_peers(1)
        await a.until_peers(1)
    assert "a fault of ours" in caplog.text
