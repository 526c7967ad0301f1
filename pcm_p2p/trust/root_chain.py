"""The chain of roots that a device keeps: ``N.root.json`` in one folder, from the pinned one on."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]


def newest_root(roots: Path, bootstrap: bytes) -> bytes:
    """The newest root that is kept and reads, else the pinned one."""
    with contextlib.suppress(OSError, RepositoryError, ValueError, TypeError):
        data = (roots / f"{max(root_versions(roots))}.root.json").read_bytes()
        Metadata[Root].from_bytes(data)
        return data
    return bootstrap


def root_versions(folder: Path) -> set[int]:
    """Versions of the ``N.root.json`` in a folder."""
    with contextlib.suppress(OSError):
        return {
            int(name.removesuffix(".root.json"))
            for name in os.listdir(folder)  # noqa: PTH208 - names only
            if name.endswith(".root.json") and name.removesuffix(".root.json").isdigit()
        }
    return set()
