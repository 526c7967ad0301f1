"""The error tree: every error owns its message, its exit status and its remedy.

Raise the leaf whose *remedy* fits; catch the branch whose *handling* fits. The command line maps any ``PcmError`` to one
message on standard error, the remedy below it, and the exit status of its class. ``exit_statuses()`` prints the table that
the help texts and the README quote, so it cannot drift from the code.

===  =================================================================================
0    done
1    a finding: the command worked and something is not as it should be
2    usage, or a file given by the user is wrong (``InputError``)
3    the daemon is not reachable (``DaemonUnreachable``)
4    degraded: a part of the system did not answer in time (``Degraded``)
5    refused for reasons of trust (``TrustError``)
6    storage: disk full, damaged state (``StorageError``)
7    transfer: origin or peers did not deliver (``TransferError``)
8    a change could not be made on the device (``ApplyError``)
===  =================================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class PcmError(Exception):
    """Root of everything this package raises on purpose.

    ``remedy`` is one sentence that tells the reader the next step; it may be given per instance or per class.
    """

    exit_status: ClassVar[int] = 1
    meaning: ClassVar[str] = "the command worked and something is not as it should be"
    remedy: str = ""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if remedy is not None:
            self.remedy = remedy

    def __str__(self) -> str:
        return self.message


class InputError(PcmError):
    """Something the user gave is wrong. Names the file, the line and the key where there are any."""

    exit_status = 2
    meaning = "usage, or a file given by the user is wrong"

    def __init__(
        self,
        message: str,
        *,
        path: Path | str | None = None,
        line: int | None = None,
        key: str | None = None,
        remedy: str | None = None,
    ) -> None:
        place = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
        about = f"{key}: " if key else ""
        super().__init__(f"{place}{about}{message}", remedy=remedy)
        self.path = path
        self.line = line
        self.key = key


class DaemonUnreachable(PcmError):
    """The Unix socket of the daemon is absent or nobody answers on it."""

    exit_status = 3
    meaning = "the daemon is not reachable"
    remedy = "Start it with 'pcm-p2p daemon --state DIR', or pass the --state of the daemon you mean."


class Degraded(PcmError):
    """A part of the system did not answer in time; what did answer was used."""

    exit_status = 4
    meaning = "a part of the system did not answer in time"


class TrustError(PcmError):
    """Refused for reasons of trust: signature, version, expiry, identity, fleet."""

    exit_status = 5
    meaning = "refused for reasons of trust"


class StorageError(PcmError):
    """The state folder cannot be read or written as it must be."""

    exit_status = 6
    meaning = "storage: disk full or damaged state"


class DiskFull(StorageError):
    """No room within the quota or on the disk; nothing half-written was kept."""

    remedy = "Free space, or raise [store] quota_bytes_max in the daemon's config.toml; the fetch resumes by itself."


class TransferError(PcmError):
    """Bytes did not arrive: origin or peer absent, slow, truncated or refusing."""

    exit_status = 7
    meaning = "origin or peers did not deliver"


class ApplyError(PcmError):
    """A change could not be made on the device; the journal says what was undone."""

    exit_status = 8
    meaning = "a change could not be made on the device"


class UntrustedBytes(PcmError):
    """Bytes from outside do not fit their schema or their bound. Raised by every ``*_untrusted`` decoder, and only that."""

    exit_status = 5
    meaning = "bytes from outside do not fit their schema"


def exit_statuses() -> dict[int, str]:
    """The documented exit statuses, from the class tree."""
    table = {0: "done", 1: PcmError.meaning}
    for error in (InputError, DaemonUnreachable, Degraded, TrustError, StorageError, TransferError, ApplyError):
        table[error.exit_status] = error.meaning
    return table
