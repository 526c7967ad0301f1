"""An errand to the desk: directly, else through a neighbour, with one request; it comes back with the desk's reply.

The desk is known by its certificate, in role ``desk`` and issued by an authority that the device knew before; where it answers
and who carried the bytes proves nothing. So a neighbour that alters, cuts or answers itself is found out by TLS, and the next
is tried.

What the reply says is for the caller: a refusal comes back like a yes. Errors are about not getting a reply.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import trio

from pcm_p2p.enrolment.introduction import REPLY_SIZE_BYTES_MAX, Reply, decode_reply_untrusted
from pcm_p2p.enrolment.passage import MEANINGS, PREAMBLE, WORDS
from pcm_p2p.enrolment.token import endpoint_untrusted
from pcm_p2p.errors import InputError, PcmError, TransferError, TrustError, UntrustedBytes
from pcm_p2p.trust.identity import peer_identity_untrusted

EXCHANGE_TIMEOUT_S = 15.0
"""Choice: connect, handshake, one question, one answer, one fsync."""
NEIGHBOUR_TIMEOUT_S = 30.0
"""As long as a neighbour keeps a passage open (``passage.PASSAGE_TIMEOUT_S``)."""
KNOCK_TIMEOUT_S = 3.0
"""Choice: a neighbour is on the same network."""
NEIGHBOURS_MAX = 8
"""Choice: tried for one errand. If none of eight has a route, the office has none."""

_NOT_YET_VALID, _EXPIRED = 9, 10
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL."""

log = logging.getLogger(__name__)


class NotTheDesk(TrustError):
    """Somebody else answered, or a clock is wrong. The desk has said nothing: another errand may end otherwise."""


LookAround = Callable[[], Awaitable[Sequence[tuple[str, int]]]]
"""Find members nearby: hosts and ports of where they may listen. Takes seconds; raises nothing for what the network does."""


@dataclass(frozen=True)
class Desk:
    """Whom to go to. ``addresses`` are ``host:port``, in this order; ``authorities`` is what ``load_verify_locations`` takes
    (PEM as text, or DER); ``expected`` ends the sentence "… is not the desk …" for people."""

    addresses: tuple[str, ...]
    fleet: str
    authorities: str | bytes
    expected: str = "of this fleet"


@dataclass(frozen=True)
class Brought:
    """The reply of the desk at ``address``; ``through`` is the neighbour that relayed, empty if none did."""

    reply: Reply
    address: str
    through: str = ""


async def ask_desk(
    desk: Desk,
    request: bytes,
    now: datetime,
    *,
    neighbours: Sequence[tuple[str, int]] = (),
    look_around: LookAround | None = None,
) -> Brought:
    """Bring ``request`` to the desk: its addresses first, then through ``neighbours``, then through those found nearby.

    ``now`` is the device's time. Raises ``InputError`` (no certificate to know the desk by), ``TrustError`` (somebody else
    answers, wrong clock) or ``TransferError`` (not reached, no answer), each with its remedy.
    """
    context = _context(desk)
    failures: list[PcmError] = []
    for address in desk.addresses:
        try:
            return Brought(await _directly(address, desk, context, request, now), address)
        except (TransferError, TrustError) as error:
            failures.append(error)
    asked: list[str] = []
    for places in (neighbours, None):
        found = places if places is not None else await look_around() if look_around is not None else ()
        for host, port in found:
            name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            if name in asked or len(asked) >= NEIGHBOURS_MAX:
                continue
            asked.append(name)
            try:
                reply = await _through(host, port, name, desk, context, request, now)
            except (TransferError, TrustError) as error:
                failures.append(error)
                continue
            for failure in failures:  # somebody in the place of the desk is worth a word though the right one was found
                log.log(logging.WARNING if isinstance(failure, TrustError) else logging.INFO, "%s", failure)
            return Brought(reply, desk.addresses[0] if desk.addresses else f"the other end of {name}", name)
    raise _worst(desk, failures, len(asked), looked=look_around is not None)


def _worst(desk: Desk, failures: list[PcmError], asked: int, *, looked: bool) -> PcmError:
    """What to tell of many failures: an impostor first, else why the desk was not reached, and how the neighbours fared."""
    for error in failures:
        if isinstance(error, TrustError):
            return error
    if not failures:
        return TransferError(
            "no address of a desk is known, and no neighbour either",
            remedy="Name the desk in fleet.toml with a [[desk]] table and publish it.",
        )
    first, rest = failures[0], failures[len(desk.addresses) :]
    if not desk.addresses:
        through = "; ".join(error.message for error in rest)
        return TransferError(
            f"no address of a desk is known, and no neighbour knows more: {through}", remedy=first.remedy
        )
    if not asked:
        nobody = "; no neighbour was found that could relay" if looked else ""
        return TransferError(first.message + nobody, remedy=first.remedy)
    through = "; ".join(error.message for error in rest)
    return TransferError(f"{first.message}; nor through a neighbour: {through}", remedy=first.remedy)


async def _directly(address: str, desk: Desk, context: ssl.SSLContext, request: bytes, now: datetime) -> Reply:
    unreachable = "Check that address, the network, and that 'pcm-p2p enroll desk' runs there; then repeat."
    try:
        host, port = endpoint_untrusted(address)
        with trio.fail_after(EXCHANGE_TIMEOUT_S):
            tcp = await trio.open_tcp_stream(host, port)
            return await _exchange(tcp, f"{address}", desk, context, request, now)
    except trio.TooSlowError:
        raise TransferError(
            f"the desk at {address} did not answer within {EXCHANGE_TIMEOUT_S:.0f} s", remedy=unreachable
        ) from None
    except (OSError, UnicodeError, trio.BrokenResourceError) as error:  # UnicodeError: a host that no name can have
        raise TransferError(f"the desk at {address} cannot be reached: {_reason(error)}", remedy=unreachable) from None
    except (TransferError, UntrustedBytes) as error:
        raise TransferError(f"the desk at {address} gave no answer: {error}", remedy=unreachable) from None


async def _through(
    host: str, port: int, name: str, desk: Desk, context: ssl.SSLContext, request: bytes, now: datetime
) -> Reply:
    try:
        with trio.move_on_after(KNOCK_TIMEOUT_S) as knocking:
            tcp = await trio.open_tcp_stream(host, port)
        if knocking.cancelled_caught:
            raise TransferError(f"{name} does not answer")
        with trio.fail_after(NEIGHBOUR_TIMEOUT_S):
            try:
                await tcp.send_all(PREAMBLE)
                answer = WORDS.get(await tcp.receive_some(1))
            except BaseException:
                await trio.aclose_forcefully(tcp)
                raise
            if answer != "open":
                await trio.aclose_forcefully(tcp)
                raise TransferError(f"{name} {MEANINGS[answer] if answer is not None else 'does not relay'}")
            try:
                return await _exchange(tcp, f"who answers through {name}", desk, context, request, now)
            except TransferError as error:
                raise TransferError(f"through {name} came no answer: {error}") from None
    except trio.TooSlowError:
        raise TransferError(f"{name} was too slow") from None
    except (OSError, UnicodeError, trio.BrokenResourceError) as error:
        raise TransferError(f"{name} cannot be used: {_reason(error)}") from None
    except UntrustedBytes as error:
        raise TransferError(f"{name} cannot be used: {error}") from None


async def _exchange(
    tcp: trio.SocketStream, who: str, desk: Desk, context: ssl.SSLContext, request: bytes, now: datetime
) -> Reply:
    """One request, one reply. The deadline is the caller's; ``who`` is the other end, as errors name it."""
    tls = trio.SSLStream(tcp, context, https_compatible=True)
    try:
        await tls.do_handshake()
        _check_desk(who, desk, tls.getpeercert(binary_form=True) or b"", now)
        await send(tls, request)
        return decode_reply_untrusted(await receive(tls, REPLY_SIZE_BYTES_MAX))
    except trio.BrokenResourceError as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise _not_the_desk(who, desk, error.__cause__, now) from None
        raise
    finally:
        await trio.aclose_forcefully(tls)


async def send(stream: trio.abc.SendStream, data: bytes) -> None:
    """Send one message. The deadline is the caller's."""
    await stream.send_all(len(data).to_bytes(4, "little") + data)


async def receive(stream: trio.abc.ReceiveStream, size_bytes_max: int) -> bytes:
    """Receive one message. Raises ``TransferError`` if it is too long or cut off. The deadline is the caller's."""
    size_bytes = int.from_bytes(await _receive_exactly(stream, 4), "little")
    if size_bytes > size_bytes_max:
        raise TransferError(f"a message of {size_bytes} bytes; at most {size_bytes_max} are read")
    return await _receive_exactly(stream, size_bytes)


async def _receive_exactly(stream: trio.abc.ReceiveStream, size_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < size_bytes:
        piece = await stream.receive_some(size_bytes - len(received))
        if not piece:
            raise TransferError("the connection ended before the message did")
        received += piece
    return bytes(received)


def _context(desk: Desk) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cadata=desk.authorities)
    except (ssl.SSLError, ValueError):
        raise InputError("the token holds no certificate", remedy="Ask for a new token.") from None
    return context


def _check_desk(who: str, desk: Desk, certificate_der: bytes, now: datetime) -> None:
    """TLS has verified who issued it. Any member's certificate would pass that: only one in role ``desk`` is the desk's."""
    try:
        found = peer_identity_untrusted(certificate_der)
    except UntrustedBytes as error:
        raise NotTheDesk(f"{who} is not a desk: {error}", remedy="Ask for a new token.") from None
    if found.role != "desk" or found.fleet != desk.fleet:
        raise NotTheDesk(
            f"{who} is not the desk of this fleet, but a {found.role} of fleet {found.fleet}",
            remedy="Tell the fleet's owner: somebody answers in the place of the desk.",
        )
    if not found.not_before <= now <= found.not_after:
        raise _wrong_clock(now)


def _not_the_desk(who: str, desk: Desk, error: ssl.SSLCertVerificationError, now: datetime) -> NotTheDesk:
    if error.verify_code in {_NOT_YET_VALID, _EXPIRED}:
        return _wrong_clock(now)
    return NotTheDesk(
        f"{who} is not the desk {desk.expected}: {error.verify_message}",
        remedy="Check the address of the desk; if it is right, somebody answers in the place of the desk.",
    )


def _wrong_clock(now: datetime) -> NotTheDesk:
    return NotTheDesk(
        f"by this device's clock it is {now:%Y-%m-%d %H:%M} UTC, and the desk's certificate is not valid then",
        remedy="Set the clock of this device and repeat; if it is right, look at the clock of the desk.",
    )


def _reason(error: BaseException) -> str:
    cause = error.__cause__
    return str(cause if isinstance(cause, ssl.SSLError) else error) or "the connection broke"
