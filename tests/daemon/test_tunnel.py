"""Enrolment through a neighbour: the way is found, nobody in between learns or changes anything, and nobody gets a proxy."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from random import Random

import msgspec
import pytest
import trio
import trio.testing

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.daemon import tunnel as tunnel_module
from pcm_p2p.daemon.tunnel import Tunnel
from pcm_p2p.daemon.vicinity import look_around
from pcm_p2p.enrolment import errand
from pcm_p2p.enrolment.desk import Desk, _desk_context
from pcm_p2p.enrolment.invitation import create_token
from pcm_p2p.enrolment.join import Joined, join, join_and_wait
from pcm_p2p.enrolment.passage import BYTES, PASSAGE_TIMEOUT_S, PASSAGES_MAX, PREAMBLE, Word
from pcm_p2p.enrolment.token import Token
from pcm_p2p.enrolment.token_folder import TokenFolder
from pcm_p2p.errors import PcmError, TransferError, TrustError
from pcm_p2p.gossip.discovery import Discovery
from pcm_p2p.sidecar import open_sidecar
from pcm_p2p.trust.identity import DeviceIdentity, client_context, peer_identity_untrusted, server_context
from pcm_p2p.wire.link import Link, LinkSecurity, Reception, dial

WORDS = "words"
NOWHERE = "127.0.0.1:9"

Place = tuple[str, int]


def clock() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    pass


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tunnel") / "fleet"
    FleetFolder.init(path, name="acme", passphrase=WORDS, preset="lab", wall_clock=clock)
    return path


@pytest.fixture
def fleet(made_once: Path, tmp_path: Path) -> FleetFolder:
    shutil.copytree(made_once, tmp_path / "fleet")
    return FleetFolder.open(tmp_path / "fleet", wall_clock=clock)


@asynccontextmanager
async def desk_at_work(fleet: FleetFolder) -> AsyncIterator[Place]:
    desk = Desk.open(fleet, WORDS)
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                listeners: list[trio.SocketListener] = await nursery.start(desk.serve, "127.0.0.1", 0)
                yield "127.0.0.1", listeners[0].socket.getsockname()[1]
                nursery.cancel_scope.cancel()
    finally:
        desk.close()


@asynccontextmanager
async def listening(serve: Callable[[trio.SocketStream], Awaitable[object]]) -> AsyncIterator[str]:
    """The address of something that accepts connections."""

    async def attend(stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the other end went
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(trio.serve_tcp, attend, 0)
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def neighbour(*desks: Place, willing: bool = True) -> AsyncIterator[tuple[str, Tunnel]]:
    tunnel = Tunnel(lambda: desks, willing=willing)
    async with listening(lambda stream: tunnel.serve(stream, "10.0.0.9")) as address:
        yield address, tunnel


def place(address: str) -> Place:
    host, _, port = address.rpartition(":")
    return host, int(port)


async def joins(state: Path, token: Token) -> Joined:
    return await join(state, token.line(), wall_clock=clock)


def token_for(fleet: FleetFolder, *seeds: str, uses: int = 1) -> Token:
    """A token whose desk this device cannot reach."""
    return create_token(fleet, desk=NOWHERE, seeds=seeds, uses=uses)


def uses(fleet: FleetFolder, token: Token) -> int:
    record = TokenFolder(fleet.path / "enrolment" / "tokens").get(token.token_id)
    assert record is not None
    return len(record.spent)


async def test_a_device_without_a_route_joins_through_a_neighbour(fleet: FleetFolder, tmp_path: Path) -> None:
    async with desk_at_work(fleet) as desk, neighbour(desk) as (address, tunnel):
        joined = await joins(tmp_path / "state", token_for(fleet, address))
    assert joined.through == address
    assert DeviceIdentity.load(tmp_path / "state" / "identity").role == "device"
    assert tunnel.statistics.opened == 1
    assert tunnel.statistics.carried_bytes > 1_000


async def test_neighbours_are_found_by_looking_around_when_the_token_names_none(
    fleet: FleetFolder, tmp_path: Path
) -> None:
    async with desk_at_work(fleet) as desk, neighbour(desk) as (address, _):
        looked: list[bool] = []

        async def look() -> Sequence[Place]:
            looked.append(True)
            return [place(NOWHERE), place(address)]

        line = token_for(fleet).line()
        joined = await join(tmp_path / "state", line, wall_clock=clock, look_around=look)
        assert joined.through == address
        near = create_token(fleet, desk=f"{desk[0]}:{desk[1]}")
        await join(tmp_path / "other", near.line(), wall_clock=clock, look_around=look)
        assert looked == [True], "who reaches the desk looks for nobody"


async def test_a_member_that_announces_itself_on_the_network_is_found_and_relays(
    fleet: FleetFolder, tmp_path: Path
) -> None:
    """With real mDNS, on loopback: the token knows neither a desk that answers nor a neighbour."""
    token = token_for(fleet)
    async with desk_at_work(fleet) as desk, neighbour(desk) as (address, _), open_sidecar() as sidecar:
        member = Discovery(sidecar, fleet=fleet.fleet_id, interfaces=["127.0.0.1"], listen=["127.0.0.1"])
        stranger = Discovery(sidecar, fleet="cd" * 16, interfaces=["127.0.0.1"], listen=["127.0.0.1"])
        async with trio.open_nursery() as nursery:
            for announcer, port in ((member, place(address)[1]), (stranger, 9)):
                await announcer.announce(True)
                nursery.start_soon(announcer.run, lambda port=port: port, lambda _: None, lambda: None)
            joined = await join(
                tmp_path / "state",
                token.line(),
                wall_clock=clock,
                look_around=lambda: look_around(token.fleet, ["127.0.0.1"], seconds=5.0),
            )
            nursery.cancel_scope.cancel()
    assert joined.through == address


async def test_the_neighbour_in_between_sees_ciphertext_only(fleet: FleetFolder, tmp_path: Path) -> None:
    seen = bytearray()

    async def listening_neighbour(device: trio.SocketStream) -> None:
        await relayed(device, desk, lambda data: seen.extend(data) or data)

    async with desk_at_work(fleet) as desk, listening(listening_neighbour) as address:
        token = token_for(fleet, address)
        joined = await joins(tmp_path / "state", token)
    assert len(seen) > 1_000
    identity = joined.identity
    for secret in (token.secret, token.token_id, identity.public_key, identity.certificate_der[:64], b"acme"):
        assert secret not in seen
    assert identity.device_id.hex().encode() not in seen


async def relayed(
    device: trio.SocketStream, desk: Place, change: Callable[[bytes], bytes], *, to_desk: bool | None = None
) -> None:
    """A neighbour of our own, that changes what it carries: to the desk, from it, or both (None)."""
    assert await device.receive_some(len(PREAMBLE)) == PREAMBLE
    onward = await trio.open_tcp_stream(*desk)
    await device.send_all(BYTES["open"])

    async def carry(source: trio.SocketStream, sink: trio.SocketStream, changed: bool) -> None:
        async for data in source:
            passed = change(bytes(data)) if changed else data
            if not passed:
                break
            await sink.send_all(passed)
        await sink.send_eof()

    async with onward, trio.open_nursery() as nursery:
        nursery.start_soon(carry, device, onward, to_desk in (True, None))
        nursery.start_soon(carry, onward, device, to_desk in (False, None))


@pytest.mark.parametrize("to_desk", [True, False], ids=["to the desk", "from the desk"])
async def test_a_neighbour_that_alters_bytes_is_found_out_and_the_next_is_tried(
    fleet: FleetFolder, tmp_path: Path, to_desk: bool
) -> None:
    pieces = 0

    def alter(data: bytes) -> bytes:
        nonlocal pieces
        pieces += 1
        # The first piece is the handshake's beginning; what follows is encrypted.
        return data if pieces == 1 else data[:-1] + bytes([data[-1] ^ 1])

    async def liar(device: trio.SocketStream) -> None:
        await relayed(device, desk, alter, to_desk=to_desk)

    async with desk_at_work(fleet) as desk, listening(liar) as first, neighbour(desk) as (second, _):
        with pytest.raises(TransferError, match=first):
            await joins(tmp_path / "a", token_for(fleet, first))
        token = token_for(fleet, first, second)
        assert (await joins(tmp_path / "b", token)).through == second
        assert uses(fleet, token) == 1
    assert not (tmp_path / "a" / "identity" / "device.crt").exists()


async def test_a_neighbour_that_plays_the_desk_is_told_apart(
    fleet: FleetFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = DeviceIdentity.create(
        tmp_path / "foreign", FleetCA.in_memory(fleet.fleet_id, now=clock()), "desk", now=clock()
    )
    member = DeviceIdentity.create(tmp_path / "member", FleetCA.load(fleet.path / "ca", WORDS), now=clock())

    def playing(identity: DeviceIdentity) -> Callable[[trio.SocketStream], Awaitable[None]]:
        async def serve(device: trio.SocketStream) -> None:
            assert await device.receive_some(len(PREAMBLE)) == PREAMBLE
            await device.send_all(BYTES["open"])
            await trio.SSLStream(device, _desk_context(identity.folder), server_side=True).do_handshake()

        return serve

    async with (
        desk_at_work(fleet) as desk,
        listening(playing(foreign)) as stranger,
        listening(playing(member)) as insider,
        neighbour(desk) as (honest, _),
    ):
        for address, reason in ((stranger, "not the desk that this token is for"), (insider, "but a device of fleet")):
            with pytest.raises(TrustError, match=reason) as refused:
                await joins(tmp_path / "a", token_for(fleet, address))
            assert address in refused.value.message
        assert (await joins(tmp_path / "a", token_for(fleet, stranger, insider, honest))).through == honest
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [address for address in (stranger, insider) if address in "".join(warned)] == [stranger, insider]


async def test_a_stranger_who_plays_a_neighbour_does_not_end_a_join_that_nobody_watches(
    fleet: FleetFolder, tmp_path: Path
) -> None:
    """Let alone for good: the unit that joins at first boot does not start again after a refusal."""
    foreign = DeviceIdentity.create(
        tmp_path / "foreign", FleetCA.in_memory(fleet.fleet_id, now=clock()), "desk", now=clock()
    )

    async def playing(device: trio.SocketStream) -> None:
        await device.receive_some(len(PREAMBLE))
        await device.send_all(BYTES["open"])
        await trio.SSLStream(device, _desk_context(foreign.folder), server_side=True).do_handshake()

    waits: list[PcmError] = []
    async with desk_at_work(fleet) as desk, listening(playing) as stranger, neighbour(desk) as (honest, _):
        token = token_for(fleet, stranger)

        async def attempt() -> Joined:
            return await joins(tmp_path / "a", msgspec.structs.replace(token, seeds=(honest,)) if waits else token)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("pcm_p2p.enrolment.join.WAIT_S_MIN", 0.01)
            assert (await join_and_wait(attempt, rng=Random(1), told=waits.append)).through == honest
    assert [type(error).__name__ for error in waits] == ["NotTheDesk"]


@pytest.mark.parametrize("cut_at", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("to_desk", [True, False], ids=["to the desk", "from the desk"])
async def test_a_tunnel_that_is_cut_anywhere_costs_no_further_use(
    fleet: FleetFolder, tmp_path: Path, cut_at: int, to_desk: bool
) -> None:
    """At the n-th piece of one direction, in the middle of it."""
    pieces = 0

    def cut(data: bytes) -> bytes:
        nonlocal pieces
        pieces += 1
        return data if pieces < cut_at else data[: len(data) // 2] if pieces == cut_at else b""

    async def short(device: trio.SocketStream) -> None:
        with trio.move_on_after(1):
            await relayed(device, desk, cut, to_desk=to_desk)

    async with desk_at_work(fleet) as desk, listening(short) as first, neighbour(desk) as (second, _):
        token = token_for(fleet, first)
        with suppress(TransferError):  # whatever was cut off, it is never taken for a refusal
            await joins(tmp_path / "state", token)
        joined = await joins(tmp_path / "state", msgspec.structs.replace(token, seeds=(second,)))
        assert uses(fleet, token) == 1
    assert joined.identity.role == "device"


async def test_a_token_that_two_devices_bring_through_two_neighbours_lets_one_in(
    fleet: FleetFolder, tmp_path: Path
) -> None:
    outcomes: list[str] = []

    async def attempt(state: Path, token: Token) -> None:
        try:
            outcomes.append((await joins(state, token)).through)
        except TrustError as error:
            outcomes.append(error.message)

    async with desk_at_work(fleet) as desk, neighbour(desk) as (one, _), neighbour(desk) as (two, _):
        token = token_for(fleet)
        async with trio.open_nursery() as nursery:
            for name, seed in (("a", one), ("b", two)):
                nursery.start_soon(attempt, tmp_path / name, msgspec.structs.replace(token, seeds=(seed,)))
        assert uses(fleet, token) == 1
    came_in, refused = sorted(outcomes)
    assert came_in in (one, two)
    assert "used as often as it may be" in refused


async def test_one_hop_and_no_more_who_has_no_route_says_so_and_the_next_is_tried(
    fleet: FleetFolder, tmp_path: Path
) -> None:
    async with (
        desk_at_work(fleet) as desk,
        neighbour(place(NOWHERE)) as (cut_off, _),
        neighbour(("no..name", 8742)) as (misled, _),
        neighbour() as (newcomer, _),
        neighbour(desk, willing=False) as (unwilling, _),
        neighbour(desk) as (good, _),
    ):
        with pytest.raises(TransferError) as refused:
            await joins(tmp_path / "state", token_for(fleet, cut_off, misled, newcomer, unwilling, NOWHERE))
        for said in (
            f"{cut_off} has no route to the desk either",
            f"{misled} has no route to the desk either",
            f"{newcomer} does not know of a desk",
            f"{unwilling} does not relay",
            f"{NOWHERE} cannot be used",
        ):
            assert said in refused.value.message
        assert (await joins(tmp_path / "state", token_for(fleet, cut_off, newcomer, good))).through == good


async def test_what_is_no_neighbour_is_passed_over(fleet: FleetFolder, tmp_path: Path) -> None:
    async def web_server(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"HTTP/1.0 400 Bad Request\r\n\r\n")

    async def silent(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)

    async with (
        desk_at_work(fleet) as desk,
        listening(web_server) as web,
        listening(silent) as mute,
        neighbour(desk) as (good, _),
    ):
        assert (await joins(tmp_path / "state", token_for(fleet, web, mute, good))).through == good


async def test_a_neighbour_that_stalls_is_given_up(
    fleet: FleetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errand, "NEIGHBOUR_TIMEOUT_S", 0.2)

    async def stall(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with desk_at_work(fleet), listening(stall) as address:
        with pytest.raises(TransferError, match="too slow"):
            await joins(tmp_path / "state", token_for(fleet, address))


# The bounds of the one who relays


@asynccontextmanager
async def knocking(address: str, say: bytes = PREAMBLE) -> AsyncIterator[trio.SocketStream]:
    stream = await trio.open_tcp_stream(*place(address))
    try:
        await stream.send_all(say)
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


async def word_of(stream: trio.SocketStream) -> bytes:
    """The next byte; empty if the other end closed, whether or not it read all that was sent."""
    with trio.fail_after(60):
        try:
            return bytes(await stream.receive_some(1))
        except trio.BrokenResourceError:
            return b""


async def answer_to(address: str, say: bytes = PREAMBLE) -> bytes:
    async with knocking(address, say) as stream:
        return await word_of(stream)


@asynccontextmanager
async def echo() -> AsyncIterator[Place]:
    """Stands for a desk, and says back what it hears."""

    async def serve(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()

    async with listening(serve) as address:
        yield place(address)


async def test_two_passages_at_once_and_the_third_is_told() -> None:
    assert PASSAGES_MAX == 2
    async with echo() as desk:
        tunnel, hosts = Tunnel(lambda: [desk]), count()
        async with listening(lambda stream: tunnel.serve(stream, f"10.0.0.{next(hosts)}")) as address:
            async with knocking(address) as one, knocking(address) as two:
                assert [await word_of(one), await word_of(two)] == [BYTES["open"]] * 2
                assert await answer_to(address) == BYTES["busy"]
            with trio.fail_after(60):
                while await answer_to(address) != BYTES["open"]:
                    await trio.testing.wait_all_tasks_blocked()


async def test_one_source_has_one_passage_at_once_and_few_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_module, "RATE_PER_S", 0.0)  # however long the row takes here
    async with echo() as desk, neighbour(desk) as (address, tunnel):
        async with knocking(address) as first:
            assert await word_of(first) == BYTES["open"]
            assert await answer_to(address) == b"", "closed without a word"
        answers = [await answer_to(address) for _ in range(30)]
        assert b"" in answers
        assert tunnel.statistics.opened <= tunnel_module.BURST + 1


async def test_a_passage_carries_no_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_module, "SIZE_BYTES_MAX", 100_000)
    monkeypatch.setattr(tunnel_module, "DRAIN_S", 0.1)
    heard = 0
    async with echo() as desk, neighbour(desk) as (address, tunnel), knocking(address) as stream:
        assert await word_of(stream) == BYTES["open"]
        with trio.fail_after(60), suppress(trio.BrokenResourceError):
            for _ in range(30):
                await stream.send_all(bytes(10_000))
                heard += len(await stream.receive_some(20_000))
        assert heard <= 100_000
        assert tunnel.statistics.carried_bytes <= 200_000


async def test_a_passage_ends_in_time_however_little_is_said(mock_clock: trio.testing.MockClock) -> None:
    async with echo() as desk, neighbour(desk) as (address, _), knocking(address) as stream:
        assert await word_of(stream) == BYTES["open"]
        mock_clock.jump(PASSAGE_TIMEOUT_S)
        assert await word_of(stream) == b""


async def test_the_device_cannot_say_where_to() -> None:
    """Whatever follows the preamble goes to the desk of the fleet document, and anything but the preamble goes nowhere."""
    async with echo() as desk, neighbour(desk) as (address, tunnel):
        async with knocking(address, PREAMBLE + b"10.9.9.9:22\n") as stream:
            assert await word_of(stream) == BYTES["open"]
            assert await stream.receive_some(100) == b"10.9.9.9:22\n"
        with trio.fail_after(60):
            while tunnel._doorkeeper.strangers:
                await trio.testing.wait_all_tasks_blocked()
        for noise in (b"CONNECT 10.9.9.9:22 HTTP/1.1\r\n\r\n", PREAMBLE[:-1] + b"\0", b"\0" * 100):
            assert await answer_to(address, noise) == b""
        assert tunnel.statistics.opened == 1


async def test_a_device_that_says_half_of_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_module, "PREAMBLE_TIMEOUT_S", 0.2)
    async with echo() as desk, neighbour(desk) as (address, tunnel):
        assert await answer_to(address, PREAMBLE[:5]) == b""
        assert tunnel.statistics.opened == 0


@pytest.mark.parametrize("word", list(BYTES))
def test_every_word_is_one_byte_that_no_tls_begins_with(word: Word) -> None:
    assert len(BYTES[word]) == 1
    assert BYTES[word] != b"\x16"
    assert not PREAMBLE.startswith(b"\x16")


async def test_links_and_passages_share_a_port(fleet: FleetFolder, tmp_path: Path) -> None:
    """As on a device: the ordinary port, its limits, and mutual TLS for everybody who begins with TLS."""
    authority = FleetCA.load(fleet.path / "ca", WORDS)
    one, two = (DeviceIdentity.create(tmp_path / name, authority, now=clock()) for name in ("one", "two"))

    def security(identity: DeviceIdentity) -> LinkSecurity:
        contexts = server_context(identity), client_context(identity)
        return LinkSecurity(*contexts, peer_identity_untrusted, identity.fleet)

    met: list[Link] = []

    async def use(link: Link) -> None:
        met.append(link)
        await link.stream.send_all(b"hello")

    reception = Reception(security(one), use)
    async with desk_at_work(fleet) as desk, listening(reception.accept) as address:
        with pytest.raises(TransferError, match="does not relay"):
            await joins(tmp_path / "early", token_for(fleet, address))
        reception.passage = Tunnel(lambda: [desk]).serve
        link = await dial(*place(address), security(two))
        assert await link.stream.receive_some(5) == b"hello"
        joined = await joins(tmp_path / "state", token_for(fleet, address))
        await trio.aclose_forcefully(link.stream)
    assert joined.through == address
    assert [link.device for link in met] == [two.device_id]
