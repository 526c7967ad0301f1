"""The desk's records of tokens: one file per token, below ``enrolment/tokens`` of the fleet folder.

The desk writes records while it is open; commands may work beside it. So a token is revoked by a file of its own beside the
record (``<id>.revoked``), and neither side overwrites what the other wrote.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from pcm_p2p.durable import write_atomic
from pcm_p2p.enrolment.token import TokenRecord
from pcm_p2p.errors import InputError, StorageError

RECORD_SIZE_BYTES_MAX = 16 << 20
"""100,000 uses (the most that the command line allows) of 67 bytes each, twice over."""
PREFIX_LENGTH_MIN = 4

_decoder = msgspec.json.Decoder(TokenRecord)
_NAME = re.compile(r"([0-9a-f]{32})\.json")


class TokenFolder:
    """Each change is on disk when the call returns. ``put`` is for one writer at a time: who makes a token, then the desk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, token_id: bytes, record: TokenRecord) -> None:
        """Raises ``OSError``."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(self._file(token_id), msgspec.json.encode(record) + b"\n", mode=0o600)

    def get(self, token_id: bytes) -> TokenRecord | None:
        """None for a token that this desk never made. Raises ``StorageError`` for a record that cannot be read."""
        path = self._file(token_id)
        try:
            with path.open("rb") as file:
                return _decoder.decode(file.read(RECORD_SIZE_BYTES_MAX))
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StorageError(
                f"{path}: cannot be used: {error}", remedy="Remove the file and make a new token."
            ) from None

    def ids(self) -> tuple[bytes, ...]:
        """Of all tokens that were made, in the order of their ids."""
        if not self.path.is_dir():
            return ()
        names = sorted(path.name for path in self.path.iterdir())
        return tuple(bytes.fromhex(match[1]) for name in names if (match := _NAME.fullmatch(name)))

    def revoke(self, token_id: bytes) -> None:
        """From now on it is worth nothing; who joined with it stays a member. Repeating is harmless. Raises ``OSError``."""
        write_atomic(self.path / f"{token_id.hex()}.revoked", b"", mode=0o600)

    def is_revoked(self, token_id: bytes) -> bool:
        return (self.path / f"{token_id.hex()}.revoked").exists()

    def find(self, text: str) -> bytes:
        """The token whose id, in hexadecimal, begins with ``text``. Raises ``InputError`` if that is none or several."""
        wanted = text.lower()
        if not re.fullmatch(r"[0-9a-f]{1,32}", wanted) or len(wanted) < PREFIX_LENGTH_MIN:
            raise InputError(
                f"{text[:80]!r} is not the id of a token",
                remedy=f"Give {PREFIX_LENGTH_MIN} or more digits of what 'pcm-p2p enroll list' shows.",
            )
        found = [token_id for token_id in self.ids() if token_id.hex().startswith(wanted)]
        if len(found) != 1:
            how_many = "no token" if not found else f"{len(found)} tokens"
            raise InputError(
                f"{how_many} begin{'s' if not found else ''} with {wanted}", remedy="'pcm-p2p enroll list' shows them."
            )
        return found[0]

    def _file(self, token_id: bytes) -> Path:
        return self.path / f"{token_id.hex()}.json"
