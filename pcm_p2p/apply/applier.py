"""Applier: the trio shell around the transaction. One change at a time, each in a worker thread that is never abandoned.

A cancellation (the daemon is stopping) waits for the transaction under way: every command in it has a deadline, and finishing
leaves the device in a known state at once. If the daemon is killed instead, ``resume`` does so at the next start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import trio

from pcm_p2p.apply.command import Runner, run
from pcm_p2p.apply.device import Device, StagedArtifacts
from pcm_p2p.apply.journal import Journal
from pcm_p2p.apply.plan import plan
from pcm_p2p.apply.providers.archive import ArchiveProvider
from pcm_p2p.apply.providers.file import FileProvider
from pcm_p2p.apply.providers.package import PackageProvider, PreviousPackage
from pcm_p2p.apply.providers.service import ServiceProvider
from pcm_p2p.apply.receipt import Outcome, Receipt
from pcm_p2p.apply.receipt_folder import Receipts
from pcm_p2p.apply.root import Root
from pcm_p2p.apply.step import PackageIdentity
from pcm_p2p.apply.transaction import Transaction
from pcm_p2p.errors import PcmError
from pcm_p2p.policy.desired import Authorisation, Change

SETTLE_S = 3.0
"""Choice: a service that dies of a bad configuration does so at its start; longer watching is the checks' part."""


class Applier:
    """Owns ``folder`` (made with mode 0700) and changes what lies below ``root``.

    ``previous_package`` finds the .deb of what is installed, for rolling back; it is called in a worker thread.
    """

    def __init__(
        self,
        folder: Path,
        root: Path,
        *,
        previous_package: PreviousPackage,
        now_ms: Callable[[], int],
        runner: Runner = run,
        settle_s: float = SETTLE_S,
    ) -> None:
        for part in (folder, folder / "receipts", folder / "work"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = Root(root)
        self._now_ms = now_ms
        self._receipts = Receipts(folder / "receipts")
        self._device = Device(
            PackageProvider(place, previous_package, runner),
            ArchiveProvider(place, folder / "work"),
            FileProvider(place),
            ServiceProvider(place, runner),
        )
        self._transaction = Transaction(
            folder, self._device, Journal(folder), self._receipts, now_ms=now_ms, settle_s=settle_s
        )
        self._one_at_a_time = trio.Lock()

    async def resume(self) -> Outcome | None:
        """To be called at the start, before anything else: ends what a crash left half made."""
        async with self._one_at_a_time:
            return await trio.to_thread.run_sync(self._transaction.resume)

    async def learn(self) -> None:
        """Nothing to learn: this applier is told what to do by whoever holds it."""

    async def apply(self, change: Change, authorisation: Authorisation, staged: StagedArtifacts) -> Outcome:
        """Make ``change``. Raises ``TrustError`` unless ``authorisation`` names it, ``StorageError`` when the end cannot
        be recorded; everything else is in the outcome."""
        async with self._one_at_a_time:
            return await trio.to_thread.run_sync(self._transaction.run, change, authorisation, staged)

    async def is_in_place(self, change: Change, sha256_of: Mapping[str, str]) -> bool:
        """Whether the device is as ``change`` wants it, found without the artifacts: by observation and receipts.

        ``sha256_of`` gives the stored SHA-256 of each artifact by name (hexadecimal, from the manifest). False also when
        it cannot be told, in which case ``apply`` finds out.
        """
        async with self._one_at_a_time:
            return await trio.to_thread.run_sync(self._is_in_place, change, sha256_of)

    async def replaced_packages(self, change: Change, staged: StagedArtifacts) -> tuple[PackageIdentity, ...]:
        """The packages that ``change`` would replace, as they are installed now. Raises ``ApplyError``."""
        async with self._one_at_a_time:
            return await trio.to_thread.run_sync(self._device.replaced_packages, change, staged)

    def receipt(self, subject: str) -> Receipt | None:
        return self._receipts.get(subject)

    def receipts(self) -> tuple[Receipt, ...]:
        """All receipts, by subject."""
        return self._receipts.all()

    def why_wait(self, change: Change) -> str:
        """One sentence that says why ``change`` is not to be tried now; empty when it may be."""
        receipt = self._receipts.get(change.subject)
        return receipt.why_wait(change, self._now_ms()) if receipt is not None else ""

    async def reset(self, subject: str) -> bool:
        """Forget the failures of ``subject``, so that it is tried again. False when there were none."""
        async with self._one_at_a_time:
            receipt = self._receipts.get(subject)
            if receipt is None or receipt.verdict == "done":
                return False
            fresh = msgspec.structs.replace(receipt, verdict="rolled_back", attempts=0)
            await trio.to_thread.run_sync(self._receipts.put, fresh)
            return True

    def _is_in_place(self, change: Change, sha256_of: Mapping[str, str]) -> bool:
        receipt = self._receipts.get(change.subject)
        packages = receipt.packages if receipt is not None else {}
        try:
            observed = self._device.observe(
                change, sha256_of.__getitem__, lambda artifact: packages[sha256_of[artifact]]
            )
        except (KeyError, PcmError, OSError):
            return False
        return not plan(change, observed).steps
