"""Receipt: what is in place of one subject, and how the last change of it ended; and the outcome of a change. Pure.

A receipt never proves that something is in place (the device is observed for that); it remembers what an observation needs:
which package an artifact turned out to be.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from pcm_p2p.apply.step import PackageIdentity, Verdict
from pcm_p2p.policy.desired import Change

ATTEMPTS_MAX = 5
"""research/compliance.md 4 B: then parked until an operator looks."""
WAIT_MS = 60_000
WAIT_MS_MAX = 3_600_000
"""Choice: a minute after the first failure, doubling up to an hour."""
PACKAGES_KEPT = 256
"""Choice: the packages of several editions of the largest releases."""
INTERRUPTED = "the daemon was interrupted while it made the change"
"""The reason of a change that a crash ended. The first time it says nothing about the change, which is tried again at once; after
that it waits like any failure, since a change that kills the daemon must not do so in a loop."""


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

    def why_wait(self, change: Change, now_ms: int) -> str:
        """One sentence that says why ``change`` is not to be tried now; empty when it may be."""
        if self.is_parked(change):
            return f"Parked after {self.attempts} attempts: {self.reason}"
        wait_ms = self.wait_ms(change, now_ms)
        if not wait_ms:
            return ""
        return f"Attempt {self.attempts} failed ({self.reason}); the next one is in {-(-wait_ms // 1000)} s."


class Outcome(msgspec.Struct, frozen=True):
    """How a change ended. ``steps``: what was done, or taken back. ``error`` and ``remedy`` are empty when done."""

    subject: str
    version: str
    verdict: Verdict
    steps: tuple[str, ...]
    attempts: int
    error: str = ""
    remedy: str = ""


def digest_of(change: Change) -> str:
    return hashlib.sha256(msgspec.json.encode(change)).hexdigest()
