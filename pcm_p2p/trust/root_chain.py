"""The chain of roots that a device keeps: ``N.root.json`` in one folder, from the pinned one on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signature  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

SIGNATURE_LENGTH_MAX = 512
"""In hexadecimal; those of the largest curve that is used have 208."""


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


def bare(document: Metadata[Any], keyids: Iterable[str]) -> bytes:
    """The document with its signatures by ``keyids`` and nothing else around what is signed.

    No hash binds a root or a timestamp, so a carrier can pad them up to their bounds with blanks, fields of its own and false
    signatures. What is kept, and handed to others, is free of that.
    """
    known = set(keyids)
    signatures = {
        keyid: Signature(keyid, plain)
        for keyid, one in document.signatures.items()
        if keyid in known and (plain := _plain(one.signature))
    }
    return Metadata(document.signed, signatures).to_bytes()


def _plain(signature: str) -> str:
    """In the one spelling: libraries read blanks and capitals, too. Empty for what is no signature of any key that is used."""
    try:
        plain = bytes.fromhex(signature).hex()
    except (TypeError, ValueError):  # TypeError: nobody has judged that it is text
        return ""
    return plain if len(plain) <= SIGNATURE_LENGTH_MAX else ""
