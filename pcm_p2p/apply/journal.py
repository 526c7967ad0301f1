"""Journal: the one durable record of the transaction under way. A file that is there means: something was begun.

A file and not a database row: one atomic, flushed rename (``durable.write_atomic``) is the whole protocol, so what a
restart can find is the record before or the record after, and nothing has to be opened, migrated or repaired before a
device is brought back to a known state.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Literal

import msgspec

from pcm_p2p.apply.step import PackageIdentity, Step
from pcm_p2p.durable import fsync_folder, sweep_temporaries, write_atomic
from pcm_p2p.policy.desired import Change

log = logging.getLogger(__name__)

State = Literal["applying", "rolling_back", "done"]


class Entry(msgspec.Struct, frozen=True):
    """``reached``: how many steps were begun, in plan order. ``attempt`` counts from 1. ``reason`` is why it rolls back."""

    change: Change
    steps: tuple[Step, ...]
    state: State
    reached: int
    attempt: int
    began_ms: int
    packages: dict[str, PackageIdentity] = {}
    reason: str = ""
    remedy: str = ""
    schema: Literal["pcm.journal/1"] = "pcm.journal/1"


class Journal:
    """``folder/journal.json``. Only one transaction is under way at a time; the daemon's lock keeps others out."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal.json"
        self._decoder = msgspec.json.Decoder(Entry)

    def read(self) -> Entry | None:
        """The record; None when nothing is under way. One that cannot be read is moved aside and said so in the log."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, ValueError) as error:
            aside = self._path.with_suffix(".damaged")
            self._path.replace(aside)
            fsync_folder(self._path.parent)
            log.critical("The apply journal cannot be read (%s) and was moved to %s; look at the device.", error, aside)
            return None

    def sweep(self) -> None:
        """Remove what a kill in the middle of a write left."""
        sweep_temporaries(self._path.parent)

    def write(self, entry: Entry) -> None:
        write_atomic(self._path, msgspec.json.encode(entry), mode=0o600)

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        fsync_folder(self._path.parent)
