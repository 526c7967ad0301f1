"""Links over real sockets: who is let in, who is not, and that nothing is said before that is known."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.trust.identity import DeviceIdentity, client_context, peer_identity_untrusted, server_context
from pcm_p2p.wire.doorkeeper import Doorkeeper
from pcm_p2p.wire.link import Link, LinkFailed, LinkSecurity, Reception, dial, open_listeners, serve_links
from pcm_p2p.wire.messages import PROTOCOL, ChunkGet, Hello
from pcm_p2p.wire.session import Session

FLEET, OTHER_FLEET = "1" * 32, "2" * 32
NOW = datetime.now(UTC)


@pytest.fixture
def authority() -> FleetCA:
    return FleetCA.in_memory(FLEET, now=NOW)


def security(folder: Path, authority: FleetCA, fleet: str = FLEET, *, now: datetime = NOW) -> LinkSecurity:
    identity = DeviceIdentity.create(folder, authority, now=now)
    return LinkSecurity(server_context(identity), client_context(identity), peer_identity_untrusted, fleet)


@asynccontextmanager
async def serving(own: LinkSecurity, doorkeeper: Doorkeeper | None = None) -> AsyncIterator[tuple[int, list[Link]]]:
    links: list[Link] = []

    async def use(link: Link) -> None:
        links.append(link)
        await link.stream.send_all(b"welcome")

    listeners = await open_listeners(["127.0.0.1"], 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_links, listeners, Reception(own, use, doorkeeper=doorkeeper))
        yield listeners[0].socket.getsockname()[1], links
        nursery.cancel_scope.cancel()


async def first_words(port: int, own: LinkSecurity) -> bytes:
    """What a dialler hears first; empty where it is turned away (with TLS 1.3 that shows at the first read)."""
    try:
        link = await dial("127.0.0.1", port, own)
    except LinkFailed:
        return b""
    try:
        with trio.fail_after(5):
            return bytes(await link.stream.receive_some(100))
    except trio.BrokenResourceError:
        return b""
    finally:
        await trio.aclose_forcefully(link.stream)


async def test_two_devices_of_a_fleet_know_each_other(tmp_path: Path, authority: FleetCA) -> None:
    a, b = security(tmp_path / "a", authority), security(tmp_path / "b", authority)
    async with serving(a) as (port, links):
        link = await dial("127.0.0.1", port, b)
        assert await link.stream.receive_some(100) == b"welcome"
        assert link.device == DeviceIdentity.load(tmp_path / "a").device_id
        assert (link.role, link.dialled, links[0].dialled) == ("device", True, False)
        assert links[0].device == DeviceIdentity.load(tmp_path / "b").device_id
        await trio.aclose_forcefully(link.stream)


def without_certificate(own: LinkSecurity) -> LinkSecurity:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return replace(own, client_context=context)


def with_tls_1_2(own: LinkSecurity) -> LinkSecurity:
    own.client_context.minimum_version = ssl.TLSVersion.TLSv1_2
    own.client_context.maximum_version = ssl.TLSVersion.TLSv1_2
    return own


def trusting_everybody(own: LinkSecurity) -> LinkSecurity:
    own.client_context.verify_mode = ssl.CERT_NONE
    return own


@pytest.mark.parametrize("how", ["no certificate", "foreign authority", "same name", "expired", "TLS 1.2", "not TLS"])
async def test_strangers_are_closed_before_any_word(
    tmp_path: Path, authority: FleetCA, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = security(tmp_path / "own", authority)
    guest = tmp_path / "guest"
    strangers: dict[str, Callable[[], LinkSecurity]] = {
        "no certificate": lambda: without_certificate(security(guest, authority)),
        "foreign authority": lambda: trusting_everybody(
            security(guest, FleetCA.in_memory(OTHER_FLEET, now=NOW), FLEET)
        ),
        "same name": lambda: trusting_everybody(security(guest, FleetCA.in_memory(FLEET, now=NOW))),
        "expired": lambda: security(guest, authority, now=NOW - timedelta(days=400)),
        "TLS 1.2": lambda: with_tls_1_2(security(guest, authority)),
    }
    async with serving(own) as (port, links):
        if how == "not TLS":
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            answer = b""
            with trio.fail_after(5), contextlib.suppress(trio.BrokenResourceError):
                while part := await stream.receive_some(100):
                    answer += part
            assert b"welcome" not in answer
            await stream.aclose()
        else:
            assert await first_words(port, strangers[how]()) == b""
        assert await first_words(port, security(tmp_path / "friend", authority)) == b"welcome"
        assert len(links) == 1
    assert "refused a connection from 127.0.0.1" in caplog.text


async def test_a_dialler_refuses_a_listener_of_another_authority(tmp_path: Path, authority: FleetCA) -> None:
    impostor = security(tmp_path / "impostor", FleetCA.in_memory(FLEET, now=NOW))
    async with serving(impostor) as (port, links):
        with pytest.raises(LinkFailed):
            await dial("127.0.0.1", port, security(tmp_path / "own", authority))
        assert links == []


async def test_a_certificate_that_names_another_fleet_is_refused_even_under_our_authority(
    tmp_path: Path, authority: FleetCA
) -> None:
    own = replace(security(tmp_path / "own", authority), fleet=OTHER_FLEET)
    async with serving(own) as (port, links):
        assert await first_words(port, security(tmp_path / "guest", authority)) == b""
        assert links == []
    async with serving(security(tmp_path / "guest", authority)) as (port, _):
        with pytest.raises(LinkFailed, match="another fleet"):
            await dial("127.0.0.1", port, own)


async def test_nobody_there_is_a_failed_link_with_the_reason() -> None:
    [listener] = await open_listeners(["127.0.0.1"], 0)
    port = listener.socket.getsockname()[1]
    listener.socket.close()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(LinkFailed, match="cannot connect"):
        await dial("127.0.0.1", port, LinkSecurity(context, context, peer_identity_untrusted, FLEET))


async def test_those_who_never_finish_their_handshake_take_a_bounded_number_of_places(
    tmp_path: Path, authority: FleetCA
) -> None:
    guest = security(tmp_path / "guest", authority)
    async with serving(security(tmp_path / "own", authority), Doorkeeper(at_once_max=3)) as (port, _links):
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
        with trio.fail_after(4):  # below the handshake's deadline: it is the bound that turns these away
            while await first_words(port, guest) == b"welcome":
                await trio.lowlevel.checkpoint()
        for stream in silent:
            await stream.aclose()
        with trio.fail_after(4):
            while await first_words(port, guest) != b"welcome":
                await trio.lowlevel.checkpoint()


async def test_a_session_carries_chunks_over_a_real_link(tmp_path: Path, authority: FleetCA) -> None:
    a, b = security(tmp_path / "a", authority), security(tmp_path / "b", authority)
    chunk = bytes(range(256)) * 1_024

    def hello() -> Hello:
        return Hello(PROTOCOL, FLEET, "berlin", "device", 0, 1, 0, "test")

    async def serve(_session: Session, request: ChunkGet) -> bytes:
        return chunk

    async def use(link: Link) -> None:
        await Session(link.stream, hello(), device=link.device, dialled=False, serve={ChunkGet: serve}).run()

    listeners = await open_listeners(["127.0.0.1"], 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_links, listeners, Reception(a, use))
        link = await dial("127.0.0.1", listeners[0].socket.getsockname()[1], b)
        session = Session(link.stream, hello(), device=link.device, dialled=True)
        await nursery.start(session.run)
        for _ in range(20):
            assert await session.fetch(lambda number: ChunkGet(number, bytes(32)), len(chunk), 10.0) == chunk
        await session.close("done")
        nursery.cancel_scope.cancel()
