"""Public keys of authorities: as TUF metadata lists them, and as people compare them."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]  # exported without __all__


def public_tuf_key(public_key: bytes, owner: str) -> SSlibKey:
    """The TUF form of a raw Ed25519 public key. The owner's name is no part of the key id. Raises ``ValueError``."""
    key = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(public_key))
    key.unrecognized_fields["x-pcm-owner"] = owner
    return key


def grouped(hexadecimal: str) -> str:
    """``0123456789ab`` as ``0123 4567 89ab``."""
    return " ".join(hexadecimal[at : at + 4] for at in range(0, len(hexadecimal), 4))
