"""Links over real sockets: who is let in, who is not, and that nothing is said before that is known."""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust.certificate import authority_certificate, member_certificate
from pcm_p2p.trust.identity import (
    DeviceIdentity,
    PeerIdentity,
    client_context,
    peer_identity_untrusted,
    server_context,
)
from pcm_p2p.wire import link as link_module
from pcm_p2p.wire.doorkeeper import STRANGERS_EACH_MAX, Doorkeeper
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
        with trio.fail_after(60):
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


def refusing(own: LinkSecurity, denied: DeviceId) -> LinkSecurity:
    """As a daemon that has read that this device is revoked."""

    def verify(certificate_der: bytes) -> PeerIdentity:
        identity = peer_identity_untrusted(certificate_der)
        if identity.device_id == denied:
            raise UntrustedBytes("revoked")
        return identity

    return replace(own, verify=verify)


def showing(own: LinkSecurity, folder: Path, certificate: x509.Certificate, key: Ed25519PrivateKey) -> LinkSecurity:
    """Who dials with this certificate and key, whatever they are."""
    pem = Encoding.PEM
    folder.mkdir(exist_ok=True)
    (folder / "any.crt").write_bytes(certificate.public_bytes(pem))
    (folder / "any.key").write_bytes(key.private_bytes(pem, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(folder / "any.crt", folder / "any.key")
    return replace(own, client_context=context)


def of_another_fleet(own: LinkSecurity, folder: Path, authority: FleetCA) -> LinkSecurity:
    """Our authority signed it, and its name says another fleet."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    signer, issuer = authority._private_key, authority._certificate
    return showing(own, folder, member_certificate(signer, issuer, OTHER_FLEET, public, "device", NOW, 365), key)


def of_itself(own: LinkSecurity, folder: Path) -> LinkSecurity:
    """Signed by its own key, under the name that ours has."""
    key = Ed25519PrivateKey.generate()
    return showing(own, folder, authority_certificate(key, FLEET, NOW, 365), key)


STRANGERS: dict[str, Callable[[LinkSecurity, Path, FleetCA], LinkSecurity]] = {
    "no certificate": lambda own, guest, authority: without_certificate(own),
    "foreign CA": lambda own, guest, authority: trusting_everybody(
        security(guest / "x", FleetCA.in_memory(OTHER_FLEET, now=NOW), FLEET)
    ),
    "foreign CA of the same name": lambda own, guest, authority: trusting_everybody(
        security(guest / "x", FleetCA.in_memory(FLEET, now=NOW))
    ),
    "self-signed": lambda own, guest, authority: of_itself(own, guest),
    "expired": lambda own, guest, authority: security(guest / "x", authority, now=NOW - timedelta(days=400)),
    "not yet valid": lambda own, guest, authority: security(guest / "x", authority, now=NOW + timedelta(days=2)),
    "denied id": lambda own, guest, authority: own,
    "wrong fleet in the name": of_another_fleet,
    "CA certificate as leaf": lambda own, guest, authority: showing(
        own, guest, authority._certificate, authority._private_key
    ),
    "TLS 1.2": lambda own, guest, authority: with_tls_1_2(own),
}


@pytest.mark.parametrize("how", [*STRANGERS, "not TLS"])
async def test_strangers_are_closed_before_any_word(
    tmp_path: Path, authority: FleetCA, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    guest = security(tmp_path / "guest", authority)
    denied = DeviceIdentity.load(tmp_path / "guest").device_id if how == "denied id" else DeviceId(bytes(16))
    own = refusing(security(tmp_path / "own", authority), denied)
    async with serving(own) as (port, links):
        if how == "not TLS":
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            answer = b""
            with trio.fail_after(60), contextlib.suppress(trio.BrokenResourceError):
                while part := await stream.receive_some(100):
                    answer += part
            assert b"welcome" not in answer
            await stream.aclose()
        else:
            assert await first_words(port, STRANGERS[how](guest, tmp_path / "guest", authority)) == b""
        assert await first_words(port, security(tmp_path / "friend", authority)) == b"welcome"
        assert len(links) == 1
    assert "refused a connection from 127.0.0.1" in caplog.text


@pytest.mark.parametrize(
    "how", ["foreign CA of the same name", "expired", "not yet valid", "wrong fleet in the name", "denied id"]
)
async def test_who_dials_refuses_the_same_of_whom_it_reaches(tmp_path: Path, authority: FleetCA, how: str) -> None:
    """The other side of the table: nothing is said to an impostor that listens."""
    guest, own = security(tmp_path / "guest", authority), security(tmp_path / "own", authority)
    if how == "denied id":
        own = refusing(own, DeviceIdentity.load(tmp_path / "guest").device_id)
    impostor = STRANGERS[how](guest, tmp_path / "guest", authority)
    if how == "wrong fleet in the name":
        listens = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        listens.load_cert_chain(tmp_path / "guest" / "any.crt", tmp_path / "guest" / "any.key")
        impostor = replace(impostor, server_context=listens)
    async with serving(replace(impostor, verify=peer_identity_untrusted, fleet=FLEET)) as (port, _links):
        with pytest.raises(LinkFailed):
            await dial("127.0.0.1", port, own)


async def test_a_half_open_connection_and_one_that_drips_end_at_the_deadline(
    tmp_path: Path, authority: FleetCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is for the whole handshake: a byte now and then does not move it."""
    monkeypatch.setattr(link_module, "HANDSHAKE_TIMEOUT_S", 0.4)
    own = security(tmp_path / "own", authority)
    hello = client_hello(security(tmp_path / "guest", authority))

    async def drip(stream: trio.SocketStream, words: bytes) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for byte in words:
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.02)

    door = Doorkeeper()
    async with serving(own, door) as (port, links), trio.open_nursery() as nursery:
        began = trio.current_time()
        silent, dripping, stalled = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
        nursery.start_soon(drip, dripping, hello * 100)
        await stalled.send_all(hello)
        for stream in (silent, dripping, stalled):
            with trio.fail_after(60), contextlib.suppress(trio.BrokenResourceError):
                while await stream.receive_some(4_096):
                    pass
            await stream.aclose()
        assert trio.current_time() - began < 30, "the drip alone would take ten minutes"
        with trio.fail_after(60):
            while door.strangers:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert links == []


async def test_one_device_cannot_take_the_links_of_all(tmp_path: Path, authority: FleetCA) -> None:
    own, greedy, other = (security(tmp_path / name, authority) for name in ("own", "greedy", "other"))
    used: list[Link] = []

    async def use(link: Link) -> None:
        used.append(link)
        await link.stream.send_all(b"welcome")
        await trio.sleep_forever()

    listeners = await open_listeners(["127.0.0.1"], 0)
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_links, listeners, Reception(own, use, links_max=8))
        held = [await dial("127.0.0.1", port, greedy) for _ in range(8)]
        assert await first_words(port, greedy) == b""
        assert len(used) == link_module.LINKS_EACH_MAX
        assert await first_words(port, other) == b"welcome"
        for link in held:
            await trio.aclose_forcefully(link.stream)
        nursery.cancel_scope.cancel()


async def test_a_stranger_that_is_gone_when_its_time_is_over_ends_nothing_but_itself(
    tmp_path: Path, authority: FleetCA, autojump_clock: trio.testing.MockClock
) -> None:
    """The reset comes between the end of the wait and the next look at the socket, which is then connected to nobody."""

    class Gone:
        closed = False

        def __init__(self) -> None:
            self.socket = self

        def getpeername(self) -> tuple[str, int]:
            if trio.current_time() >= began_s + link_module.HANDSHAKE_TIMEOUT_S:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            return "192.0.2.1", 50_000

        async def recv(self, *_: int) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        async def aclose(self) -> None:
            Gone.closed = True
            await trio.lowlevel.checkpoint()

    async def nobody(_: object, __: str = "") -> None:
        raise AssertionError("nobody came in")

    reception = Reception(security(tmp_path, authority), nobody)
    reception.passage = nobody
    began_s = trio.current_time()
    await reception.accept(Gone())  # type: ignore[arg-type]
    assert Gone.closed


async def test_one_address_cannot_take_the_places_of_all(
    tmp_path: Path, authority: FleetCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "HANDSHAKE_TIMEOUT_S", 600)
    guest = security(tmp_path / "guest", authority)
    door = Doorkeeper(loopback_is_exempt=False)
    async with serving(security(tmp_path / "own", authority), door) as (port, _links):
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(STRANGERS_EACH_MAX)]
        with trio.fail_after(60):
            while door.strangers < STRANGERS_EACH_MAX:
                await trio.lowlevel.checkpoint()
        assert await first_words(port, guest) == b"", "no further one from this address"
        link = await _dial_from("127.0.0.2", port, guest)
        assert await link.stream.receive_some(100) == b"welcome", "others are let in"
        await trio.aclose_forcefully(link.stream)
        for stream in silent:
            await stream.aclose()


async def _dial_from(address: str, port: int, own: LinkSecurity) -> Link:
    stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=address)
    return await link_module._authenticate(stream, own, dialled=True)


def client_hello(own: LinkSecurity) -> bytes:
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        own.client_context.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    return out.read()


def test_a_stranger_that_stalls_costs_a_bounded_amount_of_memory() -> None:
    """55 KiB each, measured with 200; 16 of them are what a daemon lets in at once."""
    script = Path(__file__).parents[2] / "bench" / "handshake_memory.py"
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=250, check=True)
    each = [int(line.split(":")[1].split()[0]) for line in ended.stdout.splitlines()]
    assert len(each) == 2
    assert max(each) < 150, ended.stdout


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


@pytest.mark.parametrize("host", ["no..name", "a" * 64])
async def test_a_name_that_no_host_can_have_is_a_failed_link(host: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(LinkFailed, match="cannot connect"):
        await dial(host, 8741, LinkSecurity(context, context, peer_identity_untrusted, FLEET))


async def test_those_who_never_finish_their_handshake_take_a_bounded_number_of_places(
    tmp_path: Path, authority: FleetCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "HANDSHAKE_TIMEOUT_S", 600)  # it is the bound that turns these away
    guest = security(tmp_path / "guest", authority)
    async with serving(security(tmp_path / "own", authority), Doorkeeper(at_once_max=3)) as (port, _links):
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
        with trio.fail_after(60):
            while await first_words(port, guest) == b"welcome":
                await trio.lowlevel.checkpoint()
        for stream in silent:
            await stream.aclose()
        with trio.fail_after(60):
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
