"""The program as one file (``bootstrap/offline-tool``): for keys and signatures, on machines where nothing is installed."""

from __future__ import annotations

import sys
import zipfile


def refuse_in_one_file(what: str) -> None:
    """Raises ``InputError`` where this is that file: processes that ``what`` starts would not find the program in it."""
    from pcm_p2p.errors import InputError

    if zipfile.is_zipfile(sys.argv[0]):
        raise InputError(
            f"{sys.argv[0]} is the tool for keys and signatures; it runs no {what}",
            remedy="Install pcm-p2p on this machine: README, 'Install, on every machine'.",
        )
