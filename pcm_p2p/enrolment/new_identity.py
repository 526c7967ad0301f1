"""A new identity for a device whose old one is used twice: a fresh key, and the old folder kept aside as evidence.

::

    identity.next/                     the fresh key, and the certificate for it once the desk gave one
    identity.retired-<UTC time>/       what was identity/, and node.sqlite*: the numbering of reports belongs to the old key

Joining goes to ``identity.next``; only when that is a whole identity does it take the place of the old one. The two renames are
repeated by the same command if a kill came between them. Reports that this device carried for others stay in the retired
database: their authors keep them until a collector has them.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pcm_p2p.durable import fsync_folder
from pcm_p2p.errors import StorageError, TrustError
from pcm_p2p.trust.identity import DeviceIdentity

NEXT = "identity.next"
NUMBERING = ("node.sqlite", "node.sqlite-wal", "node.sqlite-shm")


def unfinished(state: Path) -> bool:
    """Whether a new identity is whole and has not taken the place of the old one yet."""
    try:
        DeviceIdentity.load(state / NEXT)
    except TrustError:
        return False
    return True


def take_place(state: Path, now: datetime) -> Path | None:
    """Put the identity in ``identity.next`` in force. No daemon may run. Returns where the old one is; None if there was none.

    Raises ``StorageError``. May be repeated after any interruption.
    """
    present, retired = state / "identity", None
    try:
        if present.exists():
            name = f"identity.retired-{now:%Y%m%dT%H%M%SZ}"
            taken = len(list(state.glob(f"{name}*")))  # within the same second
            retired = state / (f"{name}-{taken + 1}" if taken else name)
            present.rename(retired)
        for name in NUMBERING:
            if (state / name).exists():
                home = retired or _last_retired(state)
                if home is not None:
                    (state / name).replace(home / name)
        (state / NEXT).rename(present)
        fsync_folder(state)
    except OSError as error:
        raise StorageError(
            f"{error.filename or state}: {error.strerror}", remedy="Make it writable, then repeat this command."
        ) from None
    return retired or _last_retired(state)


def _last_retired(state: Path) -> Path | None:
    return max(state.glob("identity.retired-*"), default=None)
