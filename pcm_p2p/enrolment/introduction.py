"""What a device and the desk say to each other: one request, one reply, each behind its length (u32, little-endian). Pure.

Two requests, told apart by their first element:

- ``Request``, to join: four byte strings. ``proof`` is a signature by the device's key over ``statement`` (token id, fleet,
  public key): it holds the private key. ``mac`` is HMAC-SHA256 under the token's secret over statement and proof: it holds the
  token. The secret itself is never sent.
- ``Renewal``, by a member: the text ``renew``, its present certificate, and a signature by its key over fleet and certificate.

Neither needs a time or a nonce: who repeats a request that he overheard gets a certificate for a key that he does not hold, and
certificates are no secret.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Annotated

import msgspec

from pcm_p2p.enrolment.token import Token
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.trust.certificate import CERTIFICATE_SIZE_BYTES_MAX

REQUEST_SIZE_BYTES_MAX = 8_192
"""A certificate may have 4,096 bytes; a request to join has 150."""
REPLY_SIZE_BYTES_MAX = 600_000
"""A root may have 512,000 bytes; certificate and authorities come on top."""
PROOF_DOMAIN = b"pcm.enrol/1"
RENEWAL_DOMAIN = b"pcm.renew/1"
AUTHORITIES_SIZE_BYTES_MAX = 64 << 10
"""As ``trust.identity`` reads."""

Sign = Callable[[bytes, bytes], bytes]
"""(domain, data) to a signature by the device's key, as ``trust.identity`` makes it."""

_Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Bytes64 = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Request(msgspec.Struct, frozen=True, array_like=True):
    """To join. Bytes 16, 32, 64 and 32: see the module's text."""

    token_id: _Bytes16
    public_key: _Bytes32
    proof: _Bytes64
    mac: _Bytes32


class Renewal(msgspec.Struct, frozen=True, array_like=True, tag="renew"):
    """To get the same certificate with new dates."""

    certificate_der: Annotated[bytes, msgspec.Meta(min_length=1, max_length=CERTIFICATE_SIZE_BYTES_MAX)]
    proof: _Bytes64


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """``reason`` is an ``admittance.Answer``, or malformed or failed: "" is yes, and else the rest is empty. A renewal brings no
    root."""

    reason: Annotated[str, msgspec.Meta(max_length=64)]
    certificate_der: Annotated[bytes, msgspec.Meta(max_length=CERTIFICATE_SIZE_BYTES_MAX)] = b""
    authorities_pem: Annotated[bytes, msgspec.Meta(max_length=AUTHORITIES_SIZE_BYTES_MAX)] = b""
    root: Annotated[bytes, msgspec.Meta(max_length=512_000)] = b""


_request_decoder = msgspec.msgpack.Decoder(Request)
_renewal_decoder = msgspec.msgpack.Decoder(Renewal)
_reply_decoder = msgspec.msgpack.Decoder(Reply)


def decode_request_untrusted(data: bytes) -> Request | Renewal:
    """Raises ``UntrustedBytes``."""
    if len(data) > REQUEST_SIZE_BYTES_MAX:
        raise UntrustedBytes(f"enrolment request: {len(data)} bytes; at most {REQUEST_SIZE_BYTES_MAX} are read")
    try:
        # 0xa5 is MessagePack's text of five bytes; a request to join has bytes there.
        return (_renewal_decoder if data[1:7] == b"\xa5renew" else _request_decoder).decode(data)
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
    covered = b"pcm_p2p\0" + bytes([len(PROOF_DOMAIN)]) + PROOF_DOMAIN + stated + proof
    return hmac.digest(secret, covered, "sha256")


def joining(token: Token, public_key: bytes, sign: Sign) -> bytes:
    """The encoded request to join with ``token``; ``public_key`` is raw, 32 bytes."""
    stated = statement(token.token_id, token.fleet, public_key)
    proof = sign(PROOF_DOMAIN, stated)
    return msgspec.msgpack.encode(Request(token.token_id, public_key, proof, mac(token.secret, stated, proof)))


def renewing(fleet: str, certificate_der: bytes, sign: Sign) -> bytes:
    """The encoded request of a member for the same certificate with new dates."""
    return msgspec.msgpack.encode(Renewal(certificate_der, sign(RENEWAL_DOMAIN, renewed(fleet, certificate_der))))


def renewed(fleet: str, certificate_der: bytes) -> bytes:
    """What the proof of a renewal covers. ``fleet`` is 32 hex digits."""
    return bytes.fromhex(fleet) + certificate_der
