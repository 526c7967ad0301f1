"""Transaction: one authorised change, made as a whole or taken back as a whole. The machine is drawn in the room's page.

Blocking on purpose: between the first step and the last nothing else is decided, and a worker thread that is never abandoned
is the simplest thing that can be killed anywhere. ``applier`` is the trio shell.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from pcm_p2p.apply.device import Device, StagedArtifacts
from pcm_p2p.apply.journal import Entry, Journal
from pcm_p2p.apply.plan import plan, undo_order
from pcm_p2p.apply.receipt import ATTEMPTS_MAX, INTERRUPTED, PACKAGES_KEPT, KeptArchive, Outcome, Receipt, digest_of
from pcm_p2p.apply.receipt_folder import Receipts
from pcm_p2p.apply.step import PackageIdentity, Step, SwitchArchive, Verdict
from pcm_p2p.durable import fsync_folder
from pcm_p2p.errors import ApplyError, PcmError, StorageError, TrustError
from pcm_p2p.policy.desired import Authorisation, Change

log = logging.getLogger(__name__)


class Transaction:
    """``folder`` is private to the daemon and holds the back-ups. ``now_ms`` is the wall clock; ``sleep`` waits for services."""

    def __init__(
        self,
        folder: Path,
        device: Device,
        journal: Journal,
        receipts: Receipts,
        *,
        now_ms: Callable[[], int],
        settle_s: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._backups = folder / "backup"
        self._device = device
        self._journal = journal
        self._receipts = receipts
        self._now_ms = now_ms
        self._settle_s = settle_s
        self._sleep = sleep

    def run(self, change: Change, authorisation: Authorisation, staged: StagedArtifacts) -> Outcome:
        """Make ``change``. Raises ``TrustError``, before looking at anything, unless ``authorisation`` names it."""
        if not isinstance(authorisation, Authorisation) or not authorisation.permits(change):
            raise TrustError(
                f"the signed policy and activation do not permit {change.title} on this device now",
                remedy="See 'pcm-p2p status' for what is missing.",
            )
        self.resume()
        receipt = self._receipts.get(change.subject)
        if receipt is not None and receipt.is_parked(change):
            return _outcome(receipt)
        attempt = 1 + (receipt.attempts_at(change) if receipt is not None else 0)
        packages: dict[str, PackageIdentity] = {}

        def package_of(artifact: str) -> PackageIdentity:
            file = staged(artifact)
            if file.sha256 not in packages:
                packages[file.sha256] = self._device.packages.identify(file)
            return packages[file.sha256]

        def observe() -> tuple[Step, ...]:
            return plan(change, self._device.observe(change, lambda name: staged(name).sha256, package_of)).steps

        self._entry = Entry(change, (), "applying", 0, attempt, self._now_ms(), packages)
        try:
            self._entry = msgspec.structs.replace(self._entry, steps=observe())
            if self._entry.steps:
                self._prepare(self._entry.steps)
                self._record()
                self._make(staged)
                self._verify(observe)
                self._record(state="done")
        except Exception as error:  # whatever it is, the device goes back to where it was
            return self._roll_back(_with_reason(self._entry, error))
        return self._commit(self._entry)

    def resume(self) -> Outcome | None:
        """Bring what a crash left half made to an end. None when there was nothing."""
        self._journal.sweep()
        self._receipts.sweep()
        entry = self._journal.read()
        if entry is None:
            return None
        if entry.state == "done":
            return self._commit(entry)
        if not entry.reason:
            entry = msgspec.structs.replace(entry, reason=INTERRUPTED)
        return self._roll_back(entry)

    def _prepare(self, steps: tuple[Step, ...]) -> None:
        shutil.rmtree(self._backups, ignore_errors=True)
        self._backups.mkdir(mode=0o700)
        fsync_folder(self._backups.parent)
        for step in steps:
            self._device.prepare(step, self._backups)

    def _record(self, **changes: object) -> None:
        """Memory first: a record that could not be written counts as begun, and undoing what was not begun is harmless."""
        self._entry = msgspec.structs.replace(self._entry, **changes)
        self._journal.write(self._entry)

    def _make(self, staged: StagedArtifacts) -> None:
        for number, step in enumerate(self._entry.steps):
            self._record(reached=number + 1)
            log.info("%s: %s", self._entry.change.title, step.title)
            self._device.change(step, staged)

    def _verify(self, observe: Callable[[], tuple[Step, ...]]) -> None:
        if any(self._device.needs_settling(step) for step in self._entry.steps):
            self._sleep(self._settle_s)
        if left := observe():
            raise ApplyError(
                f"the change was made but did not hold: {'; '.join(step.title for step in left)} would be needed again",
                remedy="Another tool may manage the same thing on this device.",
            )

    def _commit(self, entry: Entry) -> Outcome:
        before = self._receipts.get(entry.change.subject)
        archives = _kept(entry, before)
        for step in entry.steps:
            self._device.commit(step)
        for old in before.archives if before else ():
            in_use = {
                folder
                for kept in archives
                if (kept.path, kept.link) == (old.path, old.link)
                for folder in (kept.folder, kept.previous)
            }
            for folder in sorted({old.folder, old.previous} - in_use - {""}):
                self._device.archives.forget(old.path, folder, old.link)
        return self._finish(entry, "done", archives)

    def _roll_back(self, entry: Entry) -> Outcome:
        """Undo every step that was begun. Goes on past a step that cannot be undone: the others are still better undone."""
        entry = msgspec.structs.replace(entry, state="rolling_back")
        log.warning("%s: rolling back, because %s", entry.change.title, entry.reason)
        if entry.reached:
            try:
                self._journal.write(entry)
            except OSError as error:
                # The record on disk says "applying" with the same steps, from which a restart rolls back just as well.
                log.warning("The apply journal cannot be written: %s", error)
        stuck: list[str] = []
        for at in undo_order(entry.steps):
            if at < entry.reached:
                try:
                    self._device.undo(entry.steps[at], self._backups)
                except Exception as error:  # reported below, with the change parked
                    stuck.append(f"'{entry.steps[at].title}' could not be undone: {error}")
        if stuck:
            kept = self._backups.with_suffix(".kept")
            entry = msgspec.structs.replace(
                entry,
                reason=f"{entry.reason}; {'; '.join(stuck)}",
                remedy=f"Look at the device; what was kept is in {kept}. Then reset the change.",
            )
            if self._backups.is_dir():
                shutil.rmtree(kept, ignore_errors=True)
                self._backups.rename(kept)
        parked = bool(stuck) or entry.attempt >= ATTEMPTS_MAX
        return self._finish(entry, "parked" if parked else "rolled_back", ())

    def _finish(self, entry: Entry, verdict: Verdict, archives: tuple[KeptArchive, ...]) -> Outcome:
        """The receipt first, then the end of the journal: a crash between the two only repeats this."""
        before = self._receipts.get(entry.change.subject)
        known = {**(before.packages if before else {}), **entry.packages}
        receipt = Receipt(
            subject=entry.change.subject,
            version=entry.change.version,
            digest=digest_of(entry.change),
            verdict=verdict,
            attempts=entry.attempt,
            at_ms=self._now_ms(),
            applied_version=entry.change.version if verdict == "done" else before.applied_version if before else "",
            reason=entry.reason if verdict != "done" else "",
            remedy=entry.remedy if verdict != "done" else "",
            steps=tuple(step.title for step in entry.steps[: entry.reached]),
            packages=dict(list(known.items())[-PACKAGES_KEPT:]),
            archives=archives if verdict == "done" else before.archives if before else (),
        )
        try:
            self._receipts.put(receipt)
            self._journal.remove()
        except OSError as error:
            raise StorageError(
                f"the end of {entry.change.title} cannot be recorded: {error.strerror}",
                remedy="Free space on the disk of the state folder; the device itself is in a known state.",
            ) from None
        shutil.rmtree(self._backups, ignore_errors=True)
        return _outcome(receipt)


def _with_reason(entry: Entry, error: Exception) -> Entry:
    if not isinstance(error, PcmError | OSError):
        log.error("%s: unexpected", entry.change.title, exc_info=error)
    reason = error.message if isinstance(error, PcmError) else f"{type(error).__name__}: {error}"
    remedy = error.remedy if isinstance(error, PcmError) else ""
    return msgspec.structs.replace(entry, reason=reason, remedy=remedy)


def _outcome(receipt: Receipt) -> Outcome:
    return Outcome(
        receipt.subject,
        receipt.version,
        receipt.verdict,
        receipt.steps,
        receipt.attempts,
        receipt.reason,
        receipt.remedy,
    )


def _kept(entry: Entry, before: Receipt | None) -> tuple[KeptArchive, ...]:
    """The folders to keep for each link: the one in use, and the one it pointed at before."""
    kept = {(archive.path, archive.link): archive for archive in (before.archives if before else ())}
    for step in entry.steps:
        if isinstance(step, SwitchArchive):
            previous = step.previous_target if step.previous_target not in (None, step.folder) else ""
            kept[step.path, step.link] = KeptArchive(step.path, step.link, step.folder, previous or "")
    return tuple(kept.values())
