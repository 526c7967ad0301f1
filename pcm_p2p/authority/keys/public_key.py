"""The public side of an authority's key, as it is carried to whoever makes a fleet or delegates a role. Pure.

A small JSON file that its own key has signed (proof of possession: nobody can hand in the key of another person as their own)::

    {"statement": {"schema": "pcm.public-key/1", "role": "root", "owner": "alice", "made": "2026-03-01T12:00:00Z",
                   "key": {"keytype": "ed25519", "scheme": "ed25519", "public": "<64 hex>"}},
     "signature": "<hex>"}

The signature is over ``DOMAIN`` and the statement in canonical form, which no TUF document begins with. What the file does *not*
prove is who made it: compare the fingerprint with its owner by another way.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import (  # type: ignore[attr-defined]  # exported without __all__
    Signature,
    Signer,
    SSlibKey,
)

from pcm_p2p.authority.keys.fingerprint import fingerprint_of, owned, words_of_key
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.trust.delegation import ROLE_PATTERN as DELEGATED_PATTERN
from pcm_p2p.trust.delegation import kind_of
from pcm_p2p.trust.lint import ROLES

SCHEMA: Final = "pcm.public-key/1"
DOMAIN: Final = b"pcm_p2p public key 1\0"
SIZE_BYTES_MAX = 4_096
OWNER_LENGTH_MAX = 64
SIGNATURE_LENGTH_MAX = 512
"""Hexadecimal digits: Ed25519 has 128, ECDSA over P-384 in DER up to 208."""

ROLE_PATTERN: Final = rf"^(?:{'|'.join((*ROLES, 'ca'))}|{DELEGATED_PATTERN})\Z"
"""What a key can be for. ``targets`` signs releases and policies; ``team-<team>`` and ``site-<site>`` are delegated roles."""
Role = str
"""Fits ``ROLE_PATTERN``."""

KEYS: Final = {
    ("ed25519", "ed25519"): "Ed25519",
    ("ecdsa", "ecdsa-sha2-nistp256"): "ECDSA P-256",
    ("ecdsa", "ecdsa-sha2-nistp384"): "ECDSA P-384",
}
"""Types and schemes that every device can verify (the same as ``trust.lint.KEY_TYPES``), as people call them."""


class PublicPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public key as TUF metadata writes it: hexadecimal for Ed25519, PEM for ECDSA."""

    keytype: Annotated[str, msgspec.Meta(max_length=32)]
    scheme: Annotated[str, msgspec.Meta(max_length=32)]
    public: Annotated[str, msgspec.Meta(max_length=1_024)]


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the key's holder says about it."""

    schema: Literal["pcm.public-key/1"]
    role: Annotated[str, msgspec.Meta(pattern=ROLE_PATTERN)]
    owner: Annotated[str, msgspec.Meta(min_length=1, max_length=OWNER_LENGTH_MAX)]
    made: Annotated[datetime, msgspec.Meta(tz=True)]
    key: PublicPart


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    statement: Statement
    signature: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})+\Z", max_length=SIGNATURE_LENGTH_MAX)]


_decoder = msgspec.json.Decoder(_Document)


@dataclass(frozen=True)
class PublicKey:
    """A key with its role and the name of its holder."""

    role: Role
    owner: str
    key: SSlibKey

    @property
    def keyid(self) -> str:
        """The id under which TUF metadata lists the key: SHA-256, 64 hex digits."""
        return str(self.key.keyid)

    @property
    def fingerprint(self) -> str:
        """The first 128 bits of ``keyid`` in groups of four digits."""
        return fingerprint_of(self.keyid)

    @property
    def words(self) -> tuple[str, ...]:
        """The same bits as twelve words, for reading aloud."""
        return words_of_key(self.keyid)

    @property
    def algorithm(self) -> str:
        return KEYS[self.key.keytype, self.key.scheme]


def is_owner(text: str) -> bool:
    """Whether ``text`` can name a person: 1 to 64 characters that can be shown, no blank at either end."""
    return 0 < len(text) <= OWNER_LENGTH_MAX and text.isprintable() and text == text.strip()


def is_role(text: str) -> bool:
    """Whether a key can be made for the role ``text``. To halt, people use the key that they have."""
    kind = kind_of(text)
    return text in {*ROLES, "ca"} or (kind is not None and kind[0] != "halt")


def encode_public_key(key: PublicKey, signer: Signer, made: datetime) -> bytes:
    """The file for ``key``, signed by ``signer``, which holds it. Raises what the signer raises."""
    part = PublicPart(key.key.keytype, key.key.scheme, str(key.key.keyval["public"]))
    statement = Statement(SCHEMA, key.role, key.owner, made.astimezone(UTC).replace(microsecond=0), part)
    document = _Document(statement, signer.sign(_signed_part(statement)).signature)
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def decode_public_key_untrusted(data: bytes) -> PublicKey:
    """Check size, schema, kind of key, and the signature by the key itself. Raises ``UntrustedBytes``."""
    if len(data) > SIZE_BYTES_MAX:
        raise UntrustedBytes(f"public key: {len(data)} bytes; at most {SIZE_BYTES_MAX} are read")
    try:
        document = _decoder.decode(data)
        statement = document.statement
        key = _key_of(statement.key)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, UnsupportedAlgorithm) as error:
        raise UntrustedBytes(f"public key: {error}") from None
    if not is_role(statement.role):
        raise UntrustedBytes(f"public key: there is no role {statement.role!r} to hold a key for")
    if not is_owner(statement.owner):
        raise UntrustedBytes(f"public key: the owner {statement.owner!r} cannot be shown")
    try:
        key.verify_signature(Signature(key.keyid, document.signature), _signed_part(statement))
    except (UnverifiedSignatureError, VerificationError):
        raise UntrustedBytes(
            f"public key: the signature of {statement.owner} is not by this key: the file was altered, or its maker does not"
            " hold the key"
        ) from None
    return PublicKey(statement.role, statement.owner, owned(key, statement.owner))


def _key_of(part: PublicPart) -> SSlibKey:
    """The key, in the one spelling that gives the one id. Raises ``ValueError``."""
    if (part.keytype, part.scheme) not in KEYS:
        raise ValueError(f"keys of the type {part.keytype}/{part.scheme} are not used")
    public: Any = (
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(part.public))
        if part.keytype == "ed25519"
        else load_pem_public_key(part.public.encode())
    )
    if not isinstance(public, Ed25519PublicKey | EllipticCurvePublicKey):
        raise ValueError("the key is of another kind than it says")  # noqa: TRY004 - one error for all that is wrong with it
    key = SSlibKey.from_crypto(public, scheme=part.scheme)
    if (key.keytype, key.scheme, key.keyval["public"]) != (part.keytype, part.scheme, part.public):
        raise ValueError("the key is not written in its canonical form")
    if isinstance(public, EllipticCurvePublicKey) and f"nistp{public.curve.key_size}" not in key.scheme:
        raise ValueError("the curve does not belong to the scheme")
    return key


def _signed_part(statement: Statement) -> bytes:
    return DOMAIN + msgspec.json.encode(statement, order="deterministic")
