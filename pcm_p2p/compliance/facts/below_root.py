"""Places below a root, with links followed as if the root were ``/``: what ``chroot`` would see, without being root.

Each part is opened relative to the folder before it and never through a link; a link's text is spliced into what remains to
walk, an absolute one starts again at the root, and ``..`` does not leave it. So a user who swaps a folder for a link
meanwhile gains nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from pcm_p2p.compliance.facts.observation import CannotTell, OutOfBudget

LINKS_MAX = 40
"""As the kernel."""
PARTS_MAX = 512
"""Choice: bounds the descriptors that one walk holds open."""
_WALK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK_BYTES = 256 << 10


class Below:
    """A root, and until when probes may read below it (``time.monotonic``; None: no end)."""

    def __init__(self, root: Path, deadline_s: float | None = None) -> None:
        self.root = root
        self.is_system = root.resolve() == Path("/")
        self._deadline_s = deadline_s

    def check_time(self, what: str) -> None:
        """Raises ``OutOfBudget`` when time is up."""
        if self._deadline_s is not None and time.monotonic() > self._deadline_s:
            raise OutOfBudget(f"time was up while reading {what}")

    @contextlib.contextmanager
    def place(self, path: str, *, follow: bool) -> Iterator[int | None]:
        """A descriptor that names ``path`` (``O_PATH``), or None if nothing is there. ``follow``: a link at the end too.

        Raises ``CannotTell`` when the walk is refused.
        """
        with contextlib.ExitStack() as opened:
            yield self._walk(path, follow, opened)

    def _walk(self, path: str, follow: bool, opened: contextlib.ExitStack) -> int | None:
        def keep(descriptor: int) -> int:
            opened.callback(os.close, descriptor)
            return descriptor

        try:
            trail = [keep(_open_root(self.root))]
            left, links, walked = _parts(path), 0, 0
            while left:
                self.check_time(path)
                walked += 1
                if walked + len(left) > PARTS_MAX:
                    raise CannotTell(f"{path}: more than {PARTS_MAX} parts")
                part = left.pop(0)
                if part == "..":
                    trail = trail[:-1] if len(trail) > 1 else trail
                    continue
                here = keep(os.open(part, _WALK, dir_fd=trail[-1]))
                mode = os.fstat(here).st_mode
                if stat.S_ISLNK(mode) and (left or follow):
                    links += 1
                    if links > LINKS_MAX:
                        raise CannotTell(f"{path}: too many links")
                    target = os.readlink("", dir_fd=here)
                    left = _parts(target) + left
                    trail = trail[:1] if target.startswith("/") else trail
                    continue
                if left and not stat.S_ISDIR(mode):
                    return None
                trail.append(here)
            return trail[-1]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CannotTell(f"{path}: {error.strerror}") from None

    def read(self, path: str, size_bytes_max: int) -> bytes | None:
        """The bytes of a regular file, following links; None if nothing is there.

        Raises ``CannotTell`` if it is something else or refused, ``OutOfBudget`` if it is longer than ``size_bytes_max``.
        """
        with self.place(path, follow=True) as descriptor:
            if descriptor is None:
                return None
            pieces, size_bytes = [], 0
            for block in self.blocks(descriptor, path):
                size_bytes += len(block)
                if size_bytes > size_bytes_max:
                    raise OutOfBudget(f"{path} is longer than {size_bytes_max} bytes")
                pieces.append(block)
            return b"".join(pieces)

    def blocks(self, place: int, path: str) -> Iterator[bytes]:
        """Read what ``place`` names, if it is a regular file. Raises ``CannotTell``, ``OutOfBudget``."""
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise CannotTell(f"{path} is not a regular file")
        try:
            # The only door from a descriptor that names to one that reads; it cannot lead elsewhere.
            with Path(f"/proc/self/fd/{place}").open("rb", buffering=0) as file:
                while block := file.read(_BLOCK_BYTES):
                    self.check_time(path)
                    yield block
        except OSError as error:
            raise CannotTell(f"{path}: {error.strerror}") from None

    def names(self, path: str) -> list[str]:
        """The sorted names in a folder, following links; empty if it is not there. Raises ``CannotTell``."""
        with self.place(path, follow=True) as descriptor:
            if descriptor is None:
                return []
            try:
                return sorted(place.name for place in Path(f"/proc/self/fd/{descriptor}").iterdir())
            except NotADirectoryError:
                return []
            except OSError as error:
                raise CannotTell(f"{path}: {error.strerror}") from None


def _open_root(root: Path) -> int:
    try:
        return os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise CannotTell(f"the root {root} does not exist") from None
        raise


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
