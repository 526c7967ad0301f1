"""A person's key, wherever it rests: opened for signing from a key file or a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from securesystemslib.signer import Signer  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata

from pcm_p2p.authority.keys import hardware_key, keyfile
from pcm_p2p.errors import PcmError, TrustError


class SigningKey(NamedTuple):
    """An opened key. ``role`` and ``owner`` are what the key's holder says; what counts is where metadata lists ``keyid``.

    For a key in a token that does not know them, both are empty.
    """

    signer: Signer
    owner: str
    role: str
    keyid: str


def open_signing_key(path_or_uri: Path | str, passphrase_or_pin: str) -> SigningKey:
    """Open a key file with its passphrase, or a key in a token (``hsm:2?label=alice``) with its PIN.

    Raises as ``keyfile.load`` and ``hardware_key.open_token_key``.
    """
    if hardware_key.is_token_uri(str(path_or_uri)):
        signer, public = hardware_key.open_token_key(str(path_or_uri), passphrase_or_pin)
        return SigningKey(signer, public.owner, public.role, public.keyid)
    key = keyfile.load(Path(path_or_uri), passphrase_or_pin)
    return SigningKey(key.signer(), key.owner, key.role, key.keyid)


def add_signature(document: Metadata[Any], signer: Signer) -> None:
    """Add a signature to ``document``. Raises ``PcmError`` as the signer does, such as for a token that is gone."""
    try:
        document.sign(signer, append=True)
    except UnsignedMetadataError as error:
        if isinstance(error.__cause__, PcmError):
            raise error.__cause__ from None
        raise TrustError(f"the key did not sign: {error}") from None
