"""A person's key, wherever it rests: opened for signing from a key file or a token."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from securesystemslib.signer import Signer  # type: ignore[attr-defined]  # exported without __all__

from pcm_p2p.authority import keyfile


class SigningKey(NamedTuple):
    """An opened key. ``role`` and ``owner`` are what the key's holder says; what counts is where metadata lists ``keyid``.

    For a key in a token that does not know them, both are empty.
    """

    signer: Signer
    owner: str
    role: str
    keyid: str


def open_signing_key(path_or_uri: Path | str, passphrase_or_pin: str) -> SigningKey:
    """Open a key file with its passphrase. Raises as ``keyfile.load``."""
    key = keyfile.load(Path(path_or_uri), passphrase_or_pin)
    return SigningKey(key.signer(), key.owner, key.role, key.keyid)
