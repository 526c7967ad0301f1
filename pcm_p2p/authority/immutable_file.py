"""Files that never change once they have their name: placed whole and durably, as a second link where that is possible."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from pcm_p2p.durable import fsync_folder


def place_immutable(source: Path, destination: Path) -> None:
    """Make ``destination`` the same file as ``source``, or a copy on another file system; durable, never half there."""
    _make_folder(destination.parent)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            with temporary.open("rb") as copy:
                os.fsync(copy.fileno())
        temporary.replace(destination)
    finally:
        # Renaming one link onto another of the same file leaves both: POSIX makes that a no-op.
        temporary.unlink(missing_ok=True)
    fsync_folder(destination.parent)


def _make_folder(folder: Path) -> None:
    """A new folder is durable only once the one above it was flushed."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)
