"""What a device and the desk say to each other: one request, one reply, each behind its length (u32, little-endian).

``proof`` is a signature by the device's key over ``statement`` (token id, fleet, public key): it holds the private key. ``mac``
is HMAC-SHA256 under the token's secret over statement and proof: it holds the token. The secret itself is never sent.
"""

from __future__ import annotations

import hmac
from typing import Annotated

import msgspec
import trio

from pcm_p2p.errors import TransferError, UntrustedBytes
from pcm_p2p.trust.certificate import CERTIFICATE_SIZE_BYTES_MAX
from pcm_p2p.trust.identity import AUTHORITIES_SIZE_BYTES_MAX, separated

REQUEST_SIZE_BYTES_MAX = 4_096
REPLY_SIZE_BYTES_MAX = 600_000
"""A root may have 512,000 bytes; certificate and authorities come on top."""
PROOF_DOMAIN = b"pcm.enrol/1"

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
