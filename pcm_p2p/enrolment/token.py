"""Tokens: the line that invites devices, and what the desk remembers about it. Pure; the records rest in ``token_folder``.

The line holds all that a device needs to reach the desk and to know that it is the right one: the authority's certificate and
the hash of the TUF root. Its secret is worth as many enrolments as the desk's record says, until it expires. The line is as
good as a password; the record is as good as the line, hence both files are the owner's only.

A token that asks for *approval* may lie in an image that many devices start from: holding it is worth a place in a queue, and a
person lets each device in.

    pcm1.<base64url, no padding, of a MessagePack array>
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec

from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.trust.certificate import CERTIFICATE_SIZE_BYTES_MAX

PREFIX = "pcm1."
LINE_LENGTH_MAX = 8_192
"""A token with one origin and one seed has about 800 characters; this leaves room for a long list of mirrors."""
EXPIRES_MS_MAX = 253_402_300_799_000
"""The end of the year 9999, which is as far as ``datetime`` goes."""

EnrolledRole = Literal["device", "collector", "relay"]
_Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Text = Annotated[str, msgspec.Meta(max_length=512)]
_Few = Annotated[tuple[_Text, ...], msgspec.Meta(max_length=32)]
_ExpiresMs = Annotated[int, msgspec.Meta(ge=0, le=EXPIRES_MS_MAX)]


class Token(msgspec.Struct, frozen=True, array_like=True):
    """``desk`` and ``seeds`` are ``host:port``; ``fleet`` is 32 hex digits; ``expires_ms`` counts from 1970, UTC."""

    desk: Annotated[str, msgspec.Meta(min_length=3, max_length=300)]
    token_id: _Bytes16
    secret: _Bytes16
    root_sha256: _Bytes32
    authority_der: Annotated[bytes, msgspec.Meta(min_length=1, max_length=CERTIFICATE_SIZE_BYTES_MAX)]
    fleet: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    fleet_name: _Text
    expires_ms: _ExpiresMs
    role: EnrolledRole
    site: _Text
    origins: _Few
    seeds: _Few

    def line(self) -> str:
        """The token as one line of text without blanks."""
        return PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode("ascii").rstrip("=")

    @property
    def expires(self) -> datetime:
        return datetime.fromtimestamp(self.expires_ms / 1_000, UTC)

    def __repr__(self) -> str:
        return f"Token({self.token_id.hex()[:8]}…, {self.role} of site {self.site!r}, desk {self.desk!r})"


_token_decoder = msgspec.msgpack.Decoder(Token)


def decode_token_untrusted(line: str) -> Token:
    """Read a token's line, exactly as ``Token.line`` writes it. Raises ``UntrustedBytes``."""
    if len(line) > LINE_LENGTH_MAX:
        raise UntrustedBytes(f"token: {len(line)} characters; at most {LINE_LENGTH_MAX} are read")
    if not line.startswith(PREFIX):
        raise UntrustedBytes(f"token: does not start with {PREFIX!r}")
    text = line.removeprefix(PREFIX)
    try:
        standard = text.translate({ord("-"): "+", ord("_"): "/", ord("+"): " ", ord("/"): " "})
        data = binascii.a2b_base64(standard + "=" * (-len(text) % 4), strict_mode=True)
        token = _token_decoder.decode(data)
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise UntrustedBytes("token: is cut off, or was changed on the way") from None
    endpoint_untrusted(token.desk)
    return token


def endpoint_untrusted(text: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as host and port. Raises ``UntrustedBytes``."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not host.isascii() or not host.isprintable() or len(port) > 5 or not port.isdecimal():
        raise UntrustedBytes(f"{text[:80]!r} is not host:port")
    if not port.isascii() or not 0 < int(port) <= 65_535:
        raise UntrustedBytes(f"{text[:80]!r} is not host:port")
    return host, int(port)


class TokenRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the desk knows about a token. ``spent`` are the public keys, in hex, that were certified for it, oldest first.

    ``root_version`` is the root that the token pins: newer ones may have been signed since. ``approval``: a person lets each
    device in.
    """

    secret: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    expires_ms: _ExpiresMs
    uses_max: Annotated[int, msgspec.Meta(ge=1)]
    role: EnrolledRole
    site: str
    root_version: Annotated[int, msgspec.Meta(ge=1)]
    spent: tuple[str, ...] = ()
    schema: Literal["pcm.token/1"] = "pcm.token/1"
    approval: bool = False

    @property
    def uses_left(self) -> int:
        return max(0, self.uses_max - len(self.spent))

    def state(self, now_ms: int, *, revoked: bool) -> Literal["open", "used up", "expired", "revoked"]:
        """What it is worth at present."""
        if revoked:
            return "revoked"
        if now_ms >= self.expires_ms:
            return "expired"
        return "open" if self.uses_left else "used up"


def check_endpoints(texts: Sequence[str], what: str) -> None:
    """Raises ``InputError`` that names the first of ``texts`` that is not ``host:port``."""
    for text in texts:
        try:
            endpoint_untrusted(text)
        except UntrustedBytes as error:
            raise InputError(error.message, key=what, remedy="Write for example 'desk.example:8742'.") from None
