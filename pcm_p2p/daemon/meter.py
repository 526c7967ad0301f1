"""The meter: bytes that this device moved, in total and per release, kept over restarts.

Rooms count since their start; the meter adds what earlier runs had. The file is written every few seconds while something
moves, without fsync: a power cut loses seconds of counting, never a decision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

SAVE_INTERVAL_S = 2.0
RELEASES_MAX = 256


class ReleaseBytes(msgspec.Struct):
    """``needed_bytes``: what the office pays by the fetch plan, once; 0 if there was none yet."""

    wan_in_bytes: int = 0
    lan_in_bytes: int = 0
    needed_bytes: int = 0


class Totals(msgspec.Struct):
    """Payload as received, retries included. ``wan_in_bytes`` holds segments and metadata; the latter also apart."""

    wan_in_bytes: int = 0
    wan_metadata_bytes: int = 0
    lan_in_bytes: int = 0
    lan_out_bytes: int = 0
    releases: dict[str, ReleaseBytes] = {}


@dataclass
class Meter:
    """``current`` gives what the rooms have counted since this start."""

    path: Path
    current: Callable[[], Totals]
    _base: Totals = field(default_factory=Totals)
    _saved: bytes = b""

    def load(self) -> None:
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            self._base = msgspec.json.decode(self.path.read_bytes(), type=Totals)

    def totals(self) -> Totals:
        """Since the device was enrolled."""
        now, base = self.current(), self._base
        names = [*base.releases, *(name for name in now.releases if name not in base.releases)][-RELEASES_MAX:]
        releases = {}
        for name in names:
            rows = [totals.releases[name] for totals in (base, now) if name in totals.releases]
            # A plan that is made again after a restart may know less than the one that was carried out.
            needed = min((row.needed_bytes for row in rows if row.needed_bytes), default=0)
            releases[name] = ReleaseBytes(
                sum(row.wan_in_bytes for row in rows), sum(row.lan_in_bytes for row in rows), needed
            )
        return Totals(
            base.wan_in_bytes + now.wan_in_bytes,
            base.wan_metadata_bytes + now.wan_metadata_bytes,
            base.lan_in_bytes + now.lan_in_bytes,
            base.lan_out_bytes + now.lan_out_bytes,
            releases,
        )

    def save(self) -> None:
        data = msgspec.json.encode(self.totals())
        if data != self._saved:
            temporary = self.path.with_suffix(".tmp")
            with contextlib.suppress(OSError):
                temporary.write_bytes(data)
                temporary.replace(self.path)
                self._saved = data

    async def run(self) -> None:
        """Save while something changes, until cancelled."""
        try:
            while True:
                await trio.sleep(SAVE_INTERVAL_S)
                self.save()
        finally:
            self.save()
