"""The collector's X25519 key: reports are sealed to its public half, and only this file can open them."""

from __future__ import annotations

from pathlib import Path

from nacl.public import PrivateKey

from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import StorageError


def load_or_create_seal_key(path: Path) -> PrivateKey:
    """Read the key, 64 hexadecimal digits in a file of mode 0600, or make it on the first call.

    Raises ``StorageError`` if the file is damaged: a new key would not open what was sealed to the old one.
    """
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, bytes(PrivateKey.generate()).hex().encode() + b"\n", mode=0o600)
        return PrivateKey(bytes.fromhex(path.read_text("ascii").strip()))
    except OSError as error:
        raise StorageError(f"cannot use the seal key {path}: {error}") from None
    except (ValueError, TypeError):
        raise StorageError(
            f"{path} is damaged",
            remedy="Restore it from a backup; or remove it, and sign a fleet document with the new seal_key.",
        ) from None
