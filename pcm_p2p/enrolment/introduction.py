"""What a device and the desk say to each other: one request, one reply, each behind its length (u32, little-endian).

``proof`` is a signature by the device's key over ``statement`` (token id, fleet, public key): it holds the private key. ``mac``
is HMAC-SHA256 under the token's secret over statement and proof: it holds the token. The secret itself is never sent.
"""

from __future__ import annotations

import hmac
import ssl
from datetime import datetime
from typing import Annotated

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pcm_p2p.enrolment.token import Token, endpoint_untrusted
from pcm_p2p.errors import InputError, TransferError, TrustError, UntrustedBytes
from pcm_p2p.trust.certificate import CERTIFICATE_SIZE_BYTES_MAX
from pcm_p2p.trust.identity import AUTHORITIES_SIZE_BYTES_MAX, peer_identity_untrusted, separated

REQUEST_SIZE_BYTES_MAX = 4_096
REPLY_SIZE_BYTES_MAX = 600_000
"""A root may have 512,000 bytes; certificate and authorities come on top."""
EXCHANGE_TIMEOUT_S = 15.0
"""Choice: connect, handshake, one question, one answer, one fsync."""
PROOF_DOMAIN = b"pcm.enrol/1"

_NOT_YET_VALID, _EXPIRED = 9, 10
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL."""

_Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Bytes64 = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Request(msgspec.Struct, frozen=True, array_like=True):
    """Bytes 16, 32, 64 and 32: see the module's text."""

    token_id: _Bytes16
    public_key: _Bytes32
    proof: _Bytes64
    mac: _Bytes32


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """``reason`` is "" for yes, else unknown, wrong, expired, used, malformed or failed, and the rest is empty."""

    reason: Annotated[str, msgspec.Meta(max_length=64)]
    certificate_der: Annotated[bytes, msgspec.Meta(max_length=CERTIFICATE_SIZE_BYTES_MAX)] = b""
    authorities_pem: Annotated[bytes, msgspec.Meta(max_length=AUTHORITIES_SIZE_BYTES_MAX)] = b""
    root: Annotated[bytes, msgspec.Meta(max_length=512_000)] = b""


_request_decoder = msgspec.msgpack.Decoder(Request)
_reply_decoder = msgspec.msgpack.Decoder(Reply)


def decode_request_untrusted(data: bytes) -> Request:
    """Raises ``UntrustedBytes``."""
    if len(data) > REQUEST_SIZE_BYTES_MAX:
        raise UntrustedBytes(f"enrolment request: {len(data)} bytes; at most {REQUEST_SIZE_BYTES_MAX} are read")
    try:
        return _request_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"enrolment request: {error}") from None


def decode_reply_untrusted(data: bytes) -> Reply:
    """Raises ``UntrustedBytes``."""
    if len(data) > REPLY_SIZE_BYTES_MAX:
        raise UntrustedBytes(f"enrolment reply: {len(data)} bytes; at most {REPLY_SIZE_BYTES_MAX} are read")
    try:
        return _reply_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"enrolment reply: {error}") from None


def statement(token_id: bytes, fleet: str, public_key: bytes) -> bytes:
    """What is proven and authenticated. ``fleet`` is 32 hex digits; each part has a fixed length."""
    return token_id + bytes.fromhex(fleet) + public_key


def mac(secret: bytes, stated: bytes, proof: bytes) -> bytes:
    """32 bytes that only a holder of the token can make."""
    return hmac.digest(secret, separated(PROOF_DOMAIN, stated + proof), "sha256")


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


_REFUSALS = {
    "unknown": ("does not know this token", "Ask for a new token, made in the fleet folder of this desk."),
    "wrong": (
        "refuses this token: its secret is not the right one",
        "Copy the whole line again, or ask for a new token.",
    ),
    "expired": ("says that this token has expired", "Ask for a new token."),
    "used": (
        "says that this token was used as often as it may be",
        "Ask for a new token; if nobody else should have had this one, find out who joined with it.",
    ),
}


async def ask_desk(token: Token, key: Ed25519PrivateKey, now: datetime) -> Reply:
    """Go to the token's desk with ``key`` and bring back its yes, of which nothing but the sender is verified yet.

    ``now`` is the device's time. Raises ``InputError`` (no certificate in the token), ``TrustError`` (not the desk, refused,
    wrong clock) or ``TransferError`` (not reached in ``EXCHANGE_TIMEOUT_S``, no answer), each with its remedy.
    """
    host, port = endpoint_untrusted(token.desk)
    stated = statement(token.token_id, token.fleet, key.public_key().public_bytes_raw())
    proof = key.sign(separated(PROOF_DOMAIN, stated))
    request = Request(token.token_id, key.public_key().public_bytes_raw(), proof, mac(token.secret, stated, proof))
    unreachable = "Check the address in the token, the network, and that 'pcm-p2p enroll desk' runs there; then repeat."
    context = _joining_context(token)
    tls: trio.SSLStream[trio.SocketStream] | None = None
    try:
        with trio.fail_after(EXCHANGE_TIMEOUT_S):
            tcp = await trio.open_tcp_stream(host, port)
            tls = trio.SSLStream(tcp, context, https_compatible=True)
            await tls.do_handshake()
            _check_desk(token, tls.getpeercert(binary_form=True) or b"", now)
            await send(tls, msgspec.msgpack.encode(request))
            reply = decode_reply_untrusted(await receive(tls, REPLY_SIZE_BYTES_MAX))
    except trio.TooSlowError:
        raise TransferError(
            f"the desk at {token.desk} did not answer within {EXCHANGE_TIMEOUT_S:.0f} s", remedy=unreachable
        ) from None
    except (OSError, UnicodeError, trio.BrokenResourceError) as error:  # UnicodeError: a host that no name can have
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise _not_the_desk(token, cause, now) from None
        reason = str(cause if isinstance(cause, ssl.SSLError) else error) or "the connection broke"
        raise TransferError(f"the desk at {token.desk} cannot be reached: {reason}", remedy=unreachable) from None
    except (TransferError, UntrustedBytes) as error:
        raise TransferError(f"the desk at {token.desk} gave no answer: {error}", remedy=unreachable) from None
    finally:
        if tls is not None:
            await trio.aclose_forcefully(tls)
    if reply.reason in _REFUSALS:
        what, remedy = _REFUSALS[reply.reason]
        raise TrustError(f"the desk at {token.desk} {what}", remedy=remedy)
    if reply.reason:
        raise TransferError(
            f"the desk at {token.desk} could not answer: {reply.reason!r}",
            remedy="Look into the log of the desk, then repeat this command.",
        )
    return reply


def _joining_context(token: Token) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cadata=token.authority_der)
    except (ssl.SSLError, ValueError):
        raise InputError("the token holds no certificate", remedy="Ask for a new token.") from None
    return context


def _check_desk(token: Token, certificate_der: bytes, now: datetime) -> None:
    """TLS has verified who issued it. Any member's certificate would pass that: only one in role ``desk`` is the desk's."""
    try:
        desk = peer_identity_untrusted(certificate_der)
    except UntrustedBytes as error:
        raise TrustError(f"{token.desk} is not a desk: {error}", remedy="Ask for a new token.") from None
    if desk.role != "desk" or desk.fleet != token.fleet:
        raise TrustError(
            f"{token.desk} is not the desk of this fleet, but a {desk.role} of fleet {desk.fleet}",
            remedy="Tell the fleet's owner: somebody answers in the place of the desk.",
        )
    if not desk.not_before <= now <= desk.not_after:
        raise _wrong_clock(now)


def _not_the_desk(token: Token, error: ssl.SSLCertVerificationError, now: datetime) -> TrustError:
    if error.verify_code in {_NOT_YET_VALID, _EXPIRED}:
        return _wrong_clock(now)
    return TrustError(
        f"{token.desk} is not the desk that this token is for: {error.verify_message}",
        remedy="Check the address in the token; if it is right, somebody answers in the place of the desk.",
    )


def _wrong_clock(now: datetime) -> TrustError:
    return TrustError(
        f"by this device's clock it is {now:%Y-%m-%d %H:%M} UTC, and the desk's certificate is not valid then",
        remedy="Set the clock of this device and repeat; if it is right, look at the clock of the desk.",
    )
