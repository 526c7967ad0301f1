"""Which key a command works with, a key file or a key in a token, and asking for what opens it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli import passphrase
from pcm_p2p.errors import InputError

if TYPE_CHECKING:
    from pcm_p2p.authority.keys.keyfile import PublicKeyFile
    from pcm_p2p.authority.keys.public_key import PublicKey
    from pcm_p2p.authority.keys.signing_key import SigningKey

Token = Annotated[
    str | None,
    typer.Option(
        "--token", metavar="URI", help="A key in a PKCS#11 token: hsm:2?label=LABEL; PYKCS11LIB names its library."
    ),
]


def chosen(file: Path | None, token: str | None, *, option: str = "KEYFILE") -> Path | str:
    """The one of the two that was given. Raises ``InputError``."""
    if (file is None) == (token is None):
        said = "no key was named" if file is None else "two keys were named"
        raise InputError(said, remedy=f"Pass either {option} or --token URI.")
    return file if file is not None else str(token)


def secret_for(key: Path | str, file: Path | None, descriptor: int | None) -> str:
    """The passphrase of a key file or the PIN of a token. Raises ``InputError``."""
    word = "Passphrase" if isinstance(key, Path) else "PIN"
    return passphrase.obtain(file, descriptor, what=str(key), word=word)


def public_side(key: Path | str) -> PublicKeyFile | PublicKey | None:
    """What a key says of itself before it is opened; ``None`` where it says nothing, which opening it will explain."""
    from pcm_p2p.authority.keys import hardware_key, keyfile
    from pcm_p2p.errors import PcmError

    try:
        return keyfile.read_public(key) if isinstance(key, Path) else hardware_key.read_public(key)
    except PcmError:
        return None


def open_key(key: Path | str, file: Path | None, descriptor: int | None) -> SigningKey:
    """Ask, and open. Raises as ``open_signing_key``."""
    from pcm_p2p.authority.keys.signing_key import open_signing_key

    return open_signing_key(key, secret_for(key, file, descriptor))
