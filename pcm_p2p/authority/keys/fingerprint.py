"""Public keys of authorities: as TUF metadata lists them, and as people compare them. Pure.

A key's id is the SHA-256 over its canonical form (type, scheme, key). People compare the first 128 bits of it, in eight groups
of four digits or as twelve words (``words``): both show the same bits. Owner and role are no part of a key id: whoever compares a
fingerprint asks the person *which* key it is, too.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]  # exported without __all__

from pcm_p2p.authority.keys.words import words_of

DIGITS: Final = 32
"""Of the key id, in hexadecimal: 128 bits."""


def public_tuf_key(public_key: bytes, owner: str) -> SSlibKey:
    """The TUF form of a raw Ed25519 public key. The owner's name is no part of the key id. Raises ``ValueError``."""
    return owned(SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(public_key)), owner)


def owned(key: SSlibKey, owner: str) -> SSlibKey:
    """``key`` with the name of its owner beside it, as metadata lists it."""
    key.unrecognized_fields["x-pcm-owner"] = owner
    return key


def grouped(hexadecimal: str) -> str:
    """``0123456789ab`` as ``0123 4567 89ab``."""
    return " ".join(hexadecimal[at : at + 4] for at in range(0, len(hexadecimal), 4))


def fingerprint_of(keyid: str) -> str:
    """The first 128 bits of a key id in eight groups of four digits."""
    return grouped(keyid[:DIGITS])


def words_of_key(keyid: str) -> tuple[str, ...]:
    """The same 128 bits as twelve words. Raises ``ValueError`` if ``keyid`` is not hexadecimal."""
    return words_of(bytes.fromhex(keyid[:DIGITS]))
