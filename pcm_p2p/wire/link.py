"""Links: authenticated streams. TCP, mutual TLS 1.3, and who is at the other end; nothing is said before that is known.

The TLS contexts refuse every certificate that the fleet CA did not sign; ``verify`` then reads the peer's certificate and
checks what TLS cannot (SAN against key, fleet, role). Both are built by ``trust.identity``; this module needs only their shape.

Connections that have not proven themselves are bounded in number, in all and for each source (``doorkeeper``), each for
``HANDSHAKE_TIMEOUT_S``; what comes on top is closed at once, before it costs a TLS object.

Fact to know (research/trust.md 8): with TLS 1.3 a *refused* client sees its handshake succeed and learns the truth at its
first read. Hence a link is not a promise; the Hello of the session above is.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from pcm_p2p.errors import PcmError, TransferError
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.arrival import interface_of
from pcm_p2p.wire.doorkeeper import Doorkeeper

CONNECT_TIMEOUT_S = 5.0
"""Choice: a neighbour on a LAN answers in milliseconds or not at all."""
TLS_HANDSHAKE = b"\x16"
"""The first byte of every TLS connection: the type of its first record."""
HANDSHAKE_TIMEOUT_S = 5.0
"""Choice: the whole handshake, however slowly it drips. Milliseconds on a LAN, two round trips over a satellite."""
LINKS_EACH_MAX = 4
"""Choice: one that counts, one that replaces it, and two that are not found dead yet. A device that says nothing on forty would
keep everybody else out."""

_log = logging.getLogger(__name__)


class PeerIdentity(Protocol):
    """What a certificate says, once it is verified (``trust.identity.PeerIdentity``)."""

    @property
    def device_id(self) -> DeviceId: ...
    @property
    def role(self) -> str: ...
    @property
    def fleet(self) -> str: ...
    @property
    def site(self) -> str: ...


Verify = Callable[[bytes], PeerIdentity]


class LinkFailed(TransferError):
    """No authenticated stream came about; the message says at which step and why."""


@dataclass(frozen=True)
class Link:
    """An authenticated stream. ``host`` and ``port`` are the peer's end of the connection, not where it listens; ``began_s`` is
    when the handshake began, by ``trio.current_time``: the peer signed something that did not exist before. ``certificate_der``
    is what it proved itself with, for asking ``LinkSecurity.verify`` again later. ``site``: as certified, or empty."""

    stream: trio.SSLStream[trio.SocketStream]
    device: DeviceId
    role: str
    host: str
    port: int
    dialled: bool
    began_s: float = 0.0
    certificate_der: bytes = b""
    site: str = ""


@dataclass
class LinkSecurity:
    """What is needed to make links. ``verify`` takes a certificate in DER and raises a ``PcmError`` to refuse it.

    The contexts may be replaced at any time, when authorities or the own certificate change: links that are made afterwards use
    the new ones.
    """

    server_context: ssl.SSLContext
    client_context: ssl.SSLContext
    verify: Verify
    fleet: str


async def dial(host: str, port: int, security: LinkSecurity) -> Link:
    """Connect and authenticate. Raises ``LinkFailed`` within ``CONNECT_TIMEOUT_S`` plus ``HANDSHAKE_TIMEOUT_S``."""
    stream: trio.SocketStream | None = None
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            stream = await trio.open_tcp_stream(host, port)
    except (OSError, UnicodeError, trio.TooSlowError) as error:  # UnicodeError: a host that no name can have
        raise LinkFailed(f"{host}:{port}: cannot connect: {_reason(error)}") from None
    assert stream is not None
    return await _authenticate(stream, security, dialled=True)


async def _authenticate(tcp: trio.SocketStream, security: LinkSecurity, *, dialled: bool) -> Link:
    context = security.client_context if dialled else security.server_context
    tls = trio.SSLStream(tcp, context, server_side=not dialled, https_compatible=True)
    host, port, began_s = "?", 0, trio.current_time()
    try:
        host, port = tcp.socket.getpeername()[:2]
        with trio.fail_after(HANDSHAKE_TIMEOUT_S):
            await tls.do_handshake()
        certificate = tls.getpeercert(binary_form=True)
        if not certificate:
            raise LinkFailed(f"{host}:{port}: no certificate")
        identity = security.verify(certificate)
        if identity.fleet != security.fleet:
            raise LinkFailed(f"{host}:{port}: a certificate of another fleet")
        return Link(tls, identity.device_id, identity.role, host, port, dialled, began_s, certificate, identity.site)
    except LinkFailed:
        await trio.aclose_forcefully(tls)
        raise
    except (PcmError, trio.BrokenResourceError, trio.TooSlowError, OSError) as error:
        await trio.aclose_forcefully(tls)
        raise LinkFailed(f"{host}:{port}: refused: {_reason(error)}") from None
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise


def _reason(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "no answer in time"
    cause = error.__cause__
    if isinstance(cause, ssl.SSLError):
        return cause.reason or str(cause)
    return str(error) or type(error).__name__


async def _first_byte(tcp: trio.SocketStream, host: str) -> bytes:
    """What the other end begins with, left where it is; empty if it ended. Raises ``LinkFailed`` if nothing comes in time.

    ``host`` is the other end, for the message: the socket of one that is gone by then does not tell any more.
    """
    with trio.move_on_after(HANDSHAKE_TIMEOUT_S):
        try:
            return await tcp.socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return b""
    await trio.aclose_forcefully(tcp)
    raise LinkFailed(f"{host}: refused: no answer in time")


async def open_listeners(addresses: Sequence[str], port: int) -> list[trio.SocketListener]:
    """Listen on each address, all on one port; port 0 lets the system choose it. Raises ``OSError``."""
    listeners: list[trio.SocketListener] = []
    try:
        for address in addresses:
            opened = await trio.open_tcp_listeners(port, host=address)
            listeners += opened
            port = port or opened[0].socket.getsockname()[1]
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


class Reception:
    """Lets connections in: ``accept`` for each; ``use(link)`` runs for each that proved itself, at most ``links_max`` at once and
    ``LINKS_EACH_MAX`` of one device.

    ``use`` owns its link and must not raise; what it leaves open is closed behind it. One reception may serve several listeners.
    ``interfaces()`` names those through which strangers may come in (``arrival``), besides loopback; None: all.
    ``passage(stream, host)`` gets the connections whose first byte is no TLS record's; None: they are refused like any noise.
    """

    def __init__(
        self,
        security: LinkSecurity,
        use: Callable[[Link], Awaitable[object]],
        *,
        links_max: int = 1_024,
        doorkeeper: Doorkeeper | None = None,
    ) -> None:
        self.interfaces: Callable[[], Collection[str]] | None = None
        self.passage: Callable[[trio.SocketStream, str], Awaitable[object]] | None = None
        self._security = security
        self._use = use
        self._links_max = links_max
        self._links = 0
        self._links_of: Counter[DeviceId] = Counter()
        self._doorkeeper = doorkeeper or Doorkeeper()
        self._refused_logged: dict[str, int] = {}

    async def accept(self, tcp: trio.SocketStream) -> None:
        """One connection from its first byte to its end."""
        try:
            host = str(tcp.socket.getpeername()[0])
        except OSError:  # gone already
            await trio.aclose_forcefully(tcp)
            return
        refusal = self._wrong_door(tcp) or self._doorkeeper.enter(host, trio.current_time())
        if refusal:
            self._log_refusal(host, f"{host}: {refusal}")
            await trio.aclose_forcefully(tcp)
            return
        link = None
        try:
            if self._links >= self._links_max:
                await trio.aclose_forcefully(tcp)
                return
            passes_on = self.passage is not None and await _first_byte(tcp, host) not in (b"", TLS_HANDSHAKE)
            if not passes_on:
                link = await _authenticate(tcp, self._security, dialled=False)
        except LinkFailed as error:
            self._log_refusal(host, error.message)
            return
        finally:
            self._doorkeeper.leave(host, proved=link is not None)
        if link is None:
            if self.passage is not None:
                await self.passage(tcp, host)
            await trio.aclose_forcefully(tcp)
            return
        if self._links_of[link.device] >= LINKS_EACH_MAX:
            await trio.aclose_forcefully(link.stream)
            return
        self._links += 1
        self._links_of[link.device] += 1
        try:
            await self._use(link)
        finally:
            self._links -= 1
            self._links_of[link.device] -= 1
            if not self._links_of[link.device]:
                del self._links_of[link.device]
            await trio.aclose_forcefully(link.stream)

    def _wrong_door(self, tcp: trio.SocketStream) -> str:
        if self.interfaces is None:
            return ""
        interface = interface_of(tcp.socket)
        if interface is None or interface == "lo" or interface in self.interfaces():
            return ""
        return f"came in through {interface}, on which nobody is let in"

    def _log_refusal(self, host: str, message: str) -> None:
        """A scanner that knocks all day must not fill the log: the 1st, 10th, 100th … refusal of one host is a line."""
        counts = self._refused_logged
        if len(counts) > 1_024:
            counts.clear()
        counts[host] = count = counts.get(host, 0) + 1
        if count in (1, 10, 100, 1_000) or count % 10_000 == 0:
            _log.warning("refused a connection from %s (%d from this host so far)", message, count)


async def serve_links(
    listeners: Sequence[trio.SocketListener],
    reception: Reception,
    *,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept for ever; cancelling closes the listeners and what came in through them."""
    await trio.serve_listeners(reception.accept, list(listeners), task_status=task_status)
