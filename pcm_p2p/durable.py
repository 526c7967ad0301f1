"""Writes that survive a power cut: the one place where a rename is preceded and followed by fsync."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` with ``data`` so that a reader, or a restart after a power cut, sees the old bytes or the new ones.

    The temporary file is created with ``mode`` (never wider), flushed, renamed over ``path``, and the folder is flushed.
    Raises ``OSError`` and leaves no temporary file behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = (
                str(path),
                None,
            )  # a write does not say where, a rename says the temporary name
        raise
    fsync_folder(path.parent)


def sweep_temporaries(folder: Path) -> None:
    """Remove what ``write_atomic`` left in ``folder`` when it was killed; for a start, while nobody writes there."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def fsync_folder(folder: Path) -> None:
    """Flush the entries of ``folder`` itself (a rename is durable only after this)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
