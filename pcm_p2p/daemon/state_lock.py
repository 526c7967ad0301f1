"""One program a state folder: the lock that a daemon, a collector or a command that works on the folder itself holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pcm_p2p.errors import StorageError


@contextlib.contextmanager
def lock_state(state: Path) -> Iterator[None]:
    """Hold ``run/lock``: one daemon a state folder. Raises ``StorageError`` at once if there is another."""
    folder = state / "run"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StorageError(f"{folder} cannot be used: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageError(
                f"{state} is in use by another daemon", remedy="Stop that one first, or use another --state."
            ) from None
        with contextlib.suppress(
            OSError
        ):  # for people; a full disk must not keep the daemon from saying that it is full
            os.ftruncate(descriptor, 0)
            os.write(descriptor, b"%d\n" % os.getpid())
        yield
    finally:
        os.close(descriptor)
