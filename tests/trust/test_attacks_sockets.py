"""A dozen attacks over real sockets: a member that lies over mutual TLS, and an origin that lies over HTTP.

The hostile side is real code with a hostile tree, or bytes written by hand where no code of the product would write them. After
each attack the same device learns from an honest one over the same kind of socket.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from attack_kit import TIMESTAMP, next_root
from repository_simulator import PASSPHRASE, RepositorySimulator, Tree
from test_attacks_versions import pointing_back, without_targets

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.config import Origin as OriginSettings
from pcm_p2p.daemon.neighbours import OriginSource, _PeerSource
from pcm_p2p.swarm.origin import OriginClient
from pcm_p2p.trust.client import MetadataSource, TrustClient
from pcm_p2p.trust.identity import DeviceIdentity, client_context, peer_identity_untrusted, server_context
from pcm_p2p.wire.framing import FrameDecoder, decode_message_untrusted, encode_bulk, encode_control
from pcm_p2p.wire.link import Link, LinkSecurity, Reception, dial, open_listeners, serve_links
from pcm_p2p.wire.messages import PROTOCOL, FileGet, Hello
from pcm_p2p.wire.session import Refuse, Session

STALL_S = 0.3
"""Of real time: these sockets are real. The deadlines of the product are tested with virtual time elsewhere."""
PATIENCE_S = 60.0
"""For whoever does answer, however busy the machine is."""

Answer = Callable[[str], Awaitable[bytes]]


@pytest.fixture
def two_versions(fleet: RepositorySimulator) -> tuple[RepositorySimulator, Tree, Tree]:
    """A fleet, its tree as first published, and as published second; the device of the tests has seen the second."""
    old = fleet.tree()
    fleet.publish_policy("second", "version = 2\n")
    return fleet, old, fleet.tree()


# The attacks: what the liar serves, and the verdicts that are right


def unknown_signer(fleet: RepositorySimulator, old: Tree, folder: Path) -> Tree:
    """4a: everything is well-formed, and by the keys of another fleet."""
    stranger = RepositorySimulator(folder / "stranger", clock=fleet.clock)
    return fleet.stolen(keys=stranger.keys)


def root_by_new_keys_alone(fleet: RepositorySimulator, old: Tree, folder: Path) -> Tree:
    thief = keyfile.create(folder / "thief.key", PASSPHRASE, "root", "mallory", preset="lab")

    def edit(root: Any) -> None:
        root.revoke_key(root.roles["root"].keyids[0], "root")
        root.add_key(thief.key, "root")

    return {**fleet.tree(), "metadata/2.root.json": next_root(fleet, [thief.signer()], edit)}


def foreign_root(fleet: RepositorySimulator, old: Tree, folder: Path) -> Tree:
    """14: the fleet for tests shares its root key with this one."""
    signers = [fleet.signer("root")]
    root = next_root(fleet, signers, lambda root: root.unrecognized_fields.update({"x-pcm-fleet": "f" * 32}))
    return {**fleet.tree(), "metadata/2.root.json": root}


def equivocation(fleet: RepositorySimulator, old: Tree, folder: Path) -> Tree:
    return fleet.stolen(timestamp_version=2, lifetime=timedelta(days=5))


def swapped_target(fleet: RepositorySimulator, old: Tree, folder: Path) -> Tree:
    fleet.publish_policy("third", "version = 3\n")
    tree = fleet.tree()
    return {**tree, next(path for path in tree if path.endswith("third.toml")): b"version = 4\n"}


def mixed(fleet: RepositorySimulator, old: Tree, folder: Path) -> Tree:
    fleet.publish_policy("third")
    return {**fleet.tree(), "metadata/3.targets.json": fleet.tree()["metadata/2.targets.json"]}


def junk(fleet: RepositorySimulator, old: Tree, folder: Path) -> Tree:
    return {**fleet.tree(), TIMESTAMP: b"<html>Please log in</html>"}


ATTACKS: dict[str, tuple[Callable[[RepositorySimulator, Tree, Path], Tree], tuple[str, ...]]] = {
    "1a older timestamp": (lambda fleet, old, folder: old, ("older",)),
    "1b newer timestamp, older snapshot": (lambda fleet, old, folder: pointing_back(fleet, old), ("bad",)),
    "1d targets dropped from the snapshot": (lambda fleet, old, folder: without_targets(fleet, old), ("bad",)),
    "3 mix and match": (mixed, ("bad", "incomplete")),
    "4a unknown signer": (unknown_signer, ("bad",)),
    "6d swapped target": (swapped_target, ("bad",)),
    "7 a captive portal": (junk, ("bad",)),
    "9 root by new keys alone": (root_by_new_keys_alone, ("bad",)),
    "12i equivocation": (equivocation, ("bad",)),
    "14 root of another fleet": (foreign_root, ("bad",)),
}


async def learns(device: TrustClient, source: MetadataSource, *kinds: str) -> None:
    """An attempt over the socket ends in one of ``kinds`` and leaves what was trusted."""
    before = device.view
    result = await device.attempt(source)
    assert result.kind in kinds, f"{result.kind}: {result.reason}"
    assert result.view == before
    assert before is not None
    assert all(before.read(path) for path in before.paths())


# Over mutual TLS


def security(folder: Path, authority: FleetCA, fleet: RepositorySimulator) -> LinkSecurity:
    identity = DeviceIdentity.create(folder, authority, now=authority_now())
    return LinkSecurity(
        server_context(identity), client_context(identity), peer_identity_untrusted, fleet.fleet.fleet_id
    )


def authority_now() -> datetime:
    """TLS reads the clock of the machine."""
    return datetime.now(UTC)


def hello(fleet: RepositorySimulator) -> Hello:
    return Hello(PROTOCOL, fleet.fleet.fleet_id, "berlin", "device", 0, 1, 0, "test")


class OneSession:
    """What ``_PeerSource`` asks of an overlay, over one session."""

    def __init__(self, session: Session, stall_s: float) -> None:
        self.session, self.stall_s = session, stall_s

    async def fetch_file(self, device: Any, path: str, size_bytes_max: int) -> bytes:
        return await self.session.fetch(lambda number: FileGet(number, path), size_bytes_max, self.stall_s)


@asynccontextmanager
async def peer_serving(
    fleet: RepositorySimulator, folder: Path, use: Callable[[Link], Awaitable[None]], stall_s: float = PATIENCE_S
) -> AsyncIterator[MetadataSource]:
    """A member whose connections ``use`` handles, as a source over a session of another member, all with real certificates."""
    authority = FleetCA.in_memory(fleet.fleet.fleet_id, now=authority_now())
    liar, own = security(folder / "liar", authority, fleet), security(folder / "own", authority, fleet)
    listeners = await open_listeners(["127.0.0.1"], 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_links, listeners, Reception(liar, use))
        link = await dial("127.0.0.1", listeners[0].socket.getsockname()[1], own)
        session = Session(link.stream, hello(fleet), device=link.device, dialled=True)
        await nursery.start(session.run)
        yield _PeerSource(OneSession(session, stall_s), link.device, "")  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()


def with_tree(fleet: RepositorySimulator, tree: Tree) -> Callable[[Link], Awaitable[None]]:
    async def serve(_: Any, request: FileGet) -> bytes:
        if request.path not in tree:
            raise Refuse("missing")
        return tree[request.path]

    async def use(link: Link) -> None:
        await Session(link.stream, hello(fleet), device=link.device, dialled=False, serve={FileGet: serve}).run()

    return use


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_member_that_lies_over_tls(
    two_versions: tuple[RepositorySimulator, Tree, Tree], tmp_path: Path, name: str
) -> None:
    fleet, old, new = two_versions
    attack, kinds = ATTACKS[name]
    with fleet.client() as device:
        async with peer_serving(fleet, tmp_path / "first", with_tree(fleet, new)) as source:
            assert (await device.attempt(source)).kind == "good"
        tree = attack(fleet, old, tmp_path)
        async with peer_serving(fleet, tmp_path / "liar", with_tree(fleet, tree)) as source:
            await learns(device, source, *kinds)
        fleet.publish_policy("healed")
        async with peer_serving(fleet, tmp_path / "honest", with_tree(fleet, fleet.tree())) as source:
            assert (await device.attempt(source)).kind == "good"


def by_hand(fleet: RepositorySimulator, answer: Callable[[Link, int, bytes], Awaitable[None]]) -> Any:
    """A peer that says Hello and answers each request for a file by writing frames itself."""
    tree = fleet.tree()

    async def use(link: Link) -> None:
        decoder = FrameDecoder()
        await link.stream.send_all(encode_control(hello(fleet)))
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await link.stream.receive_some(65_536):
                for frame in decoder.feed_untrusted(data):
                    message = decode_message_untrusted(frame.body)  # type: ignore[union-attr]
                    if isinstance(message, FileGet):
                        await answer(link, message.request, tree.get(message.path, b"x" * 1_000))

    return use


async def nothing_after_99_percent(link: Link, request: int, data: bytes) -> None:
    await link.stream.send_all(encode_bulk(request, data[: len(data) * 99 // 100], last=False))


async def a_byte_at_a_time(link: Link, request: int, data: bytes) -> None:
    for at in range(len(data)):
        await link.stream.send_all(encode_bulk(request, data[at : at + 1], last=False))
        await trio.sleep(STALL_S / 3)


async def never_ending(link: Link, request: int, data: bytes) -> None:
    while True:
        await link.stream.send_all(encode_bulk(request, b" " * 65_536, last=False))


@pytest.mark.parametrize("answer", [nothing_after_99_percent, a_byte_at_a_time, never_ending])
async def test_a_member_that_stalls_drips_or_never_ends_over_tls(
    two_versions: tuple[RepositorySimulator, Tree, Tree], tmp_path: Path, answer: Any
) -> None:
    fleet, _, new = two_versions
    with fleet.client() as device, trio.fail_after(PATIENCE_S):
        async with peer_serving(fleet, tmp_path / "first", with_tree(fleet, new)) as source:
            assert (await device.attempt(source)).kind == "good"
        fleet.publish_policy("third")
        async with peer_serving(fleet, tmp_path / "liar", by_hand(fleet, answer), STALL_S) as source:
            await learns(device, source, "incomplete", "bad")
        async with peer_serving(fleet, tmp_path / "honest", with_tree(fleet, fleet.tree())) as source:
            assert (await device.attempt(source)).kind == "good"


# Over HTTP


@asynccontextmanager
async def origin_serving(
    folder: Path, handle: Callable[[trio.SocketStream, str], Awaitable[None]], stall_s: float = PATIENCE_S
) -> Any:
    """An origin on loopback: ``handle`` writes the answer to each request, on a connection of its own."""

    async def connection(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            head = b""
            while b"\r\n\r\n" not in head:
                part = await stream.receive_some()
                if not part:
                    return
                head += part
            await handle(stream, head.split(b" ")[1].decode().removeprefix("/"))
            await stream.aclose()

    settings = OriginSettings(stall_s=stall_s, rate_bytes_per_s_min=1_000)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, connection, listeners)
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with OriginClient([url], settings, folder / "parts", rng=random.Random(1)) as client:
            yield OriginSource(client)
        nursery.cancel_scope.cancel()


def head_of(size_bytes: int, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {size_bytes}\r\n\r\n".encode()


def files_of(tree: Tree) -> Callable[[trio.SocketStream, str], Awaitable[None]]:
    async def handle(stream: trio.SocketStream, path: str) -> None:
        data = tree.get(path)
        await stream.send_all(head_of(0, "404 Not Found") if data is None else head_of(len(data)) + data)

    return handle


@pytest.mark.parametrize("name", ["1a older timestamp", "4a unknown signer", "6d swapped target", "7 a captive portal"])
async def test_an_origin_that_lies_over_http(
    two_versions: tuple[RepositorySimulator, Tree, Tree], tmp_path: Path, name: str
) -> None:
    fleet, old, new = two_versions
    attack, kinds = ATTACKS[name]
    with fleet.client() as device:
        async with origin_serving(tmp_path / "first", files_of(new)) as source:
            assert (await device.attempt(source)).kind == "good"
        async with origin_serving(tmp_path / "liar", files_of(attack(fleet, old, tmp_path))) as source:
            await learns(device, source, *kinds)
        fleet.publish_policy("healed")
        async with origin_serving(tmp_path / "honest", files_of(fleet.tree())) as source:
            assert (await device.attempt(source)).kind == "good"


SLOW = ("nothing after the head", "nothing after 99 percent", "a byte at a time", "more than it says", "without an end")


@pytest.mark.parametrize("how", SLOW)
async def test_an_origin_that_stalls_drips_or_never_ends_over_http(
    two_versions: tuple[RepositorySimulator, Tree, Tree], tmp_path: Path, how: str
) -> None:
    fleet, _, new = two_versions
    honest = files_of(new)

    async def handle(stream: trio.SocketStream, path: str) -> None:
        if path != TIMESTAMP:
            await honest(stream, path)
            return
        data = new[path]
        match how:
            case "nothing after the head":
                await stream.send_all(head_of(len(data)))
                await trio.sleep_forever()
            case "nothing after 99 percent":
                await stream.send_all(head_of(len(data)) + data[: len(data) * 99 // 100])
                await trio.sleep_forever()
            case "a byte at a time":
                await stream.send_all(head_of(len(data)))
                for byte in data:
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(STALL_S / 3)
            case "more than it says":
                await stream.send_all(head_of(len(data)) + b" " * 100_000)
            case _:
                await stream.send_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                while True:
                    await stream.send_all(b" " * 65_536)

    with fleet.client() as device, trio.fail_after(PATIENCE_S):
        async with origin_serving(tmp_path / "first", files_of(new)) as source:
            assert (await device.attempt(source)).kind == "good"
        async with origin_serving(tmp_path / "liar", handle, STALL_S) as source:
            await learns(device, source, "incomplete", "bad")
        fleet.publish_policy("third")
        async with origin_serving(tmp_path / "honest", files_of(fleet.tree())) as source:
            assert (await device.attempt(source)).kind == "good"
