"""The console's one password: kept as an Argon2id hash, shown once.

The file holds one line. If it is absent, a password is made and the caller shows it once. If it holds plain text (an admin wrote
it there), the text is the password and is replaced by its hash.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

import nacl.exceptions
import nacl.pwhash

from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, StorageError

PASSWORD_SIZE_BYTES_MAX = 1_024
ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
"""32 letters and digits without look-alikes: 5 bits each."""


@dataclass(frozen=True)
class Password:
    """``hashed`` is libsodium's text form of Argon2id (interactive limits: 64 MiB, some 60 ms). ``fresh`` is the plain text of
    a password that was made just now, to be shown once, or ``None``."""

    hashed: bytes
    fresh: str | None = None

    def is_right(self, attempt: str) -> bool:
        """Compare; takes as long as Argon2id takes, so call it in a worker thread."""
        try:
            return nacl.pwhash.verify(self.hashed, attempt.encode()[:PASSWORD_SIZE_BYTES_MAX])
        except nacl.exceptions.InvalidkeyError:
            return False


def load_password(path: Path) -> Password:
    """Read the password file, or make it. Raises ``InputError`` for an empty file, ``StorageError`` if it cannot be used."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        plain = "-".join("".join(secrets.choice(ALPHABET) for _ in range(5)) for _ in range(4))
        return Password(_store(path, plain.encode()), plain)
    except OSError as error:
        raise StorageError(f"cannot read the password file {path}: {error}") from None
    line = text.strip()
    if not line or len(line) > PASSWORD_SIZE_BYTES_MAX:
        raise InputError(
            "holds no password",
            path=path,
            remedy="Write a password into it, or remove it: a new one is then made and shown.",
        )
    if line.startswith(b"$argon2id$"):
        return Password(line)
    return Password(_store(path, line))


def _store(path: Path, plain: bytes) -> bytes:
    hashed = nacl.pwhash.argon2id.str(
        plain, opslimit=nacl.pwhash.argon2id.OPSLIMIT_INTERACTIVE, memlimit=nacl.pwhash.argon2id.MEMLIMIT_INTERACTIVE
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, hashed + b"\n", mode=0o600)
    except OSError as error:
        raise StorageError(f"cannot write the password file {path}: {error}") from None
    return bytes(hashed)
