"""The audit log in the fleet folder: appended to before a signature takes its place, so that no signature is without its entry.

::

    audit/log.jsonl                 see ``log``; only ever appended to
    audit/documents/<sha256>.json   signed bytes of proposals: they are kept when a proposal is dropped

Whoever appends holds the folder's lock. A crash between the entry and the signature leaves an entry for an act that took place
and had no effect, and the same command repeats it. What a crash left of a last line is cut off by the next writer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from pcm_p2p import __version__
from pcm_p2p.authority.audit.log import LINE_BYTES_MAX, SigningAct, line_of, read_entry_untrusted, volumes
from pcm_p2p.authority.people.founding import whole_seconds
from pcm_p2p.durable import fsync_folder, write_atomic
from pcm_p2p.errors import StorageError, TrustError, UntrustedBytes


class AuditJournal:
    """``folder`` is the fleet folder, ``wall_clock`` dates the entries."""

    def __init__(self, folder: Path, wall_clock: Callable[[], datetime]) -> None:
        self.file = folder / "audit" / "log.jsonl"
        self._documents = folder / "audit" / "documents"
        self._wall_clock = wall_clock

    @property
    def begun(self) -> bool:
        return self.file.exists()

    def append(self, act: SigningAct) -> None:
        """One entry more, durable when this returns. Raises ``StorageError`` if the log cannot be continued, and ``TrustError``
        for an act of which no entry can be made: written, it would be the end of the log.
        """
        self.file.parent.mkdir(mode=0o700, exist_ok=True)
        new = not self.begun
        try:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StorageError(f"{self.file} cannot be opened: {error.strerror}") from None
        try:
            last, end = self._last_line(descriptor)
            tool = f"pcm-p2p {__version__}"
            line = line_of(act, after=last, time=whole_seconds(self._wall_clock()), tool=tool)
            try:
                read_entry_untrusted(line[:-1])
            except UntrustedBytes as error:
                raise TrustError(
                    f"the signature by {act.keyid[:16]} on {act.role} {act.version} has no place in the log: {error.message}",
                    remedy="Nothing was changed. Discard the proposal that it is on.",
                ) from None
            os.ftruncate(descriptor, end)
            os.lseek(descriptor, end, os.SEEK_SET)
            try:
                with os.fdopen(os.dup(descriptor), "wb") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                os.ftruncate(descriptor, end)  # a part of a line would look like a log that was cut
                raise StorageError(
                    f"{self.file} cannot be written: {error.strerror}",
                    remedy="Nothing was signed. Make room, and repeat the command.",
                ) from None
        finally:
            os.close(descriptor)
        if new:
            fsync_folder(self.file.parent)
            fsync_folder(self.file.parent.parent)

    def keep_document(self, signed: bytes) -> None:
        """Keep the signed bytes of a proposal, so that its entries can be verified also when it is dropped."""
        file = self._documents / f"{hashlib.sha256(signed).hexdigest()}.json"
        if not file.exists():
            self._documents.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(file, signed)

    def forget_document(self, signed: bytes) -> None:
        """What is published is kept there."""
        (self._documents / f"{hashlib.sha256(signed).hexdigest()}.json").unlink(missing_ok=True)

    def documents(self) -> dict[str, bytes]:
        """Signed bytes that are kept here, by their SHA-256."""
        if not self._documents.is_dir():
            return {}
        kept = (file.read_bytes() for file in self._documents.glob("*.json"))
        return {hashlib.sha256(data).hexdigest(): data for data in kept}

    def read(self) -> bytes:
        """The whole log, empty before its first entry. Raises ``StorageError``."""
        try:
            return self.file.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StorageError(f"{self.file} cannot be read: {error.strerror}") from None

    def embedded(self) -> dict[str, bytes]:
        """The targets in which the log is published, as it stands; without a last line that a crash left half written."""
        log = self.read()
        return volumes(log[: log.rfind(b"\n") + 1])

    def _last_line(self, descriptor: int) -> tuple[bytes | None, int]:
        """The last whole line without its line feed, and where the log ends behind it."""
        size = os.fstat(descriptor).st_size
        start = max(0, size - 2 * LINE_BYTES_MAX)
        tail = os.pread(descriptor, size - start, start)
        end = tail.rfind(b"\n")
        if end < 0:
            if start > 0:
                raise self._damaged("its last line does not end")
            return None, 0
        line = tail[tail.rfind(b"\n", 0, end) + 1 : end]
        try:
            read_entry_untrusted(line)
        except UntrustedBytes as error:
            raise self._damaged(error.message) from None
        return line, start + end + 1

    def _damaged(self, why: str) -> StorageError:
        return StorageError(
            f"{self.file} cannot be continued: {why}",
            remedy="See 'pcm-p2p audit verify'; restore the file from the backup of the fleet folder.",
        )
