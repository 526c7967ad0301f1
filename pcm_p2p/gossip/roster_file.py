"""What a device remembers of its neighbourhood over a restart: its incarnation, its port, and the last-known roster.

The file is a convenience, never a truth: a torn or foreign one counts as absent. The incarnation grows at each start and is at
least the wall clock in seconds, so that it grows even where the file was lost.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import msgspec

from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.wire.messages import U32, Port, RosterEntry

SIZE_BYTES_MAX = 1 << 20
INCARNATION_MAX = 0xFFFF_FFF0

_log = logging.getLogger(__name__)


class Remembered(msgspec.Struct, frozen=True, array_like=True):
    """``port`` is where this device listened last (0: never)."""

    incarnation: U32 = 0
    port: Port = 0
    entries: Annotated[tuple[RosterEntry, ...], msgspec.Meta(max_length=512)] = ()


_decoder = msgspec.msgpack.Decoder(Remembered)


def decode_untrusted(data: bytes) -> Remembered:
    """The file's bytes to what they say; raises ``UntrustedBytes`` and nothing else."""
    if len(data) > SIZE_BYTES_MAX:
        raise UntrustedBytes(f"roster file has {len(data)} bytes; at most {SIZE_BYTES_MAX} are read")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"roster file does not fit its schema: {error}") from None


class RosterFile:
    """``path`` is ``run/roster.msgpack`` in the state folder; ``None`` remembers nothing (tests, passing nodes)."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._written: Remembered | None = None

    def load(self) -> Remembered:
        """What was saved last; an absent, torn or unreadable file is an empty memory."""
        if self._path is None:
            return Remembered()
        try:
            with self._path.open("rb") as file:
                return decode_untrusted(file.read(SIZE_BYTES_MAX + 1))
        except FileNotFoundError:
            pass
        except (OSError, UntrustedBytes) as error:
            _log.warning("%s is ignored: %s", self._path, error)
        return Remembered()

    def save(self, remembered: Remembered) -> None:
        """Write if it differs from what was written last. A full disk is logged, not raised."""
        if self._path is None or remembered == self._written:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._path, msgspec.msgpack.encode(remembered, enc_hook=bytes), mode=0o600)
            self._written = remembered
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error)


def next_incarnation(remembered: int, wall_clock_s: int) -> int:
    """The incarnation of a new start: above the last one, and at least the wall clock."""
    return min(max(remembered + 1, wall_clock_s, 1), INCARNATION_MAX)
