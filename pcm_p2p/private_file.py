"""Files that hold a secret: refused where anybody but their owner could read or exchange them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pcm_p2p.errors import TrustError


def refuse_shared(status: os.stat_result, path: Path, what: str, remedy: str) -> None:
    """``status`` is of the open file, so that what is judged is what is read. ``what``: ``key file``; ``remedy`` ends the advice.

    Raises ``TrustError`` if it belongs to somebody else, or if its mode lets others in.
    """
    if status.st_uid != os.geteuid():
        raise TrustError(
            f"{path}: belongs to user {status.st_uid}, who could read or exchange it, and you are user {os.geteuid()}",
            remedy=f"Run 'chown {os.geteuid()} {path}', or copy it to a file of your own.",
        )
    if status.st_mode & 0o077:
        raise TrustError(
            f"{path}: others can read or write this {what} (mode {stat.S_IMODE(status.st_mode):o})",
            remedy=f"Run 'chmod 600 {path}' (from a stick without modes: copy it first); if others had access, {remedy}.",
        )
