"""The files that carry public keys: ``pcm-p2p key public`` makes them, ``fleet init`` and delegations take them.

A key file is taken in their place, for fleets whose people work on one machine: its public side needs no passphrase.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from securesystemslib.signer import Signer  # type: ignore[attr-defined]  # exported without __all__

from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.keys.public_key import SIZE_BYTES_MAX, PublicKey, decode_public_key_untrusted, encode_public_key
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, UntrustedBytes


def write_public_key(path: Path, key: PublicKey, signer: Signer) -> None:
    """Write the public file of ``key``, signed by its own ``signer``. Raises ``InputError``; a file there is never replaced."""
    if path.exists():
        raise InputError("exists already", path=path, remedy="Choose another path.")
    try:
        write_atomic(path, encode_public_key(key, signer, datetime.now(UTC)))
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", path=path, remedy="Check the path, and who may write there."
        ) from None


def read_public_key(path: Path) -> PublicKey:
    """The public key in ``path``, a public file or a key file. Raises ``InputError`` that names the file and what is wrong."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(max(SIZE_BYTES_MAX, keyfile.SIZE_BYTES_MAX) + 1)
    except FileNotFoundError:
        raise InputError("there is no such file", path=path, remedy="Check the path.") from None
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=path, remedy="Check the path, and who may read it."
        ) from None
    if b'"pcm.key/1"' in data:
        public = keyfile.read_public(path)
        return PublicKey(public.role, public.owner, public.key)
    try:
        return decode_public_key_untrusted(data)
    except UntrustedBytes as error:
        raise InputError(
            error.message,
            path=path,
            remedy="Let its owner make it again with 'pcm-p2p key public KEYFILE --out FILE'.",
        ) from None
