"""Receipts: per subject, what is in place, and how the last change ended. What ``status`` and reports say about releases.

One small file each, written atomically after every transaction. A receipt never proves that something is in place (the device is
observed for that); it remembers what an observation needs: which package an artifact turned out to be.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import msgspec

from pcm_p2p.apply.step import PackageIdentity, Verdict
from pcm_p2p.durable import sweep_temporaries, write_atomic
from pcm_p2p.policy.desired import Change

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 5
"""research/compliance.md 4 B: then parked until an operator looks."""
WAIT_MS = 60_000
WAIT_MS_MAX = 3_600_000
"""Choice: a minute after the first failure, doubling up to an hour."""
PACKAGES_KEPT = 256
INTERRUPTED = "the daemon was interrupted while it made the change"
"""The reason of a change that a crash ended. The first time it says nothing about the change, which is tried again at once; after
that it waits like any failure, since a change that kills the daemon must not do so in a loop."""
"""Choice: the packages of several editions of the largest releases."""


class KeptArchive(msgspec.Struct, frozen=True):
    """The version folders of one link: in use, and the one before (empty: none)."""

    path: str
    link: str
    folder: str
    previous: str


class Receipt(msgspec.Struct, frozen=True):
    """``applied_version``: the last version that was brought in place (empty: none). ``packages``: artifact SHA-256 → package."""

    subject: str
    version: str
    digest: str
    verdict: Verdict
    attempts: int
    at_ms: int
    applied_version: str = ""
    reason: str = ""
    remedy: str = ""
    steps: tuple[str, ...] = ()
    packages: dict[str, PackageIdentity] = {}
    archives: tuple[KeptArchive, ...] = ()
    schema: Literal["pcm.receipt/1"] = "pcm.receipt/1"

    def attempts_at(self, change: Change) -> int:
        """How often ``change`` has failed in a row; a change that differs starts from nothing."""
        return self.attempts if self.digest == digest_of(change) and self.verdict != "done" else 0

    def is_parked(self, change: Change) -> bool:
        return self.verdict == "parked" and self.digest == digest_of(change)

    def wait_ms(self, change: Change, now_ms: int) -> int:
        """How long to wait before trying ``change`` again; 0: not at all."""
        failed = self.attempts_at(change)
        if not failed or (failed == 1 and self.reason == INTERRUPTED):
            return 0
        pause_ms = min(WAIT_MS << (failed - 1), WAIT_MS_MAX)
        # A clock that was set back must not make the wait longer than the pause itself.
        return max(0, min(self.at_ms + pause_ms - now_ms, pause_ms))


class Receipts:
    """The folder of receipts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._decoder = msgspec.json.Decoder(Receipt)

    def get(self, subject: str) -> Receipt | None:
        return self._read(self._path(subject))

    def all(self) -> tuple[Receipt, ...]:
        found = (self._read(path) for path in sorted(self._folder.glob("*.json")))
        return tuple(receipt for receipt in found if receipt is not None)

    def sweep(self) -> None:
        """Remove what a kill in the middle of a write left."""
        sweep_temporaries(self._folder)

    def put(self, receipt: Receipt) -> None:
        write_atomic(self._path(receipt.subject), msgspec.json.encode(receipt), mode=0o600)

    def _path(self, subject: str) -> Path:
        name = quote(subject, safe="")
        if len(name) > 180:
            name = name[:120] + hashlib.sha256(subject.encode()).hexdigest()[:32]
        return self._folder / f"{name}.json"

    def _read(self, path: Path) -> Receipt | None:
        try:
            return self._decoder.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, ValueError) as error:
            log.warning("The receipt %s cannot be read (%s); the device is observed anew.", path.name, error)
            return None


def digest_of(change: Change) -> str:
    return hashlib.sha256(msgspec.json.encode(change)).hexdigest()
