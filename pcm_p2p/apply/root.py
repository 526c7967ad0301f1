"""Root: places below the apply root, reached folder by folder without following a link.

Every operation of the providers on files is relative to an open folder, so a user who swaps a folder for a link between a
check and a use gains nothing: the walk refuses links, and what is open stays what it was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pcm_p2p.apply.step import Staged
from pcm_p2p.errors import ApplyError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
COPY_BYTES = 1 << 20


class Root:
    """The apply root. ``/`` is the system itself; anything else is a private root.

    ``flush`` false: made folders are not flushed one by one, because the caller flushes all at once.
    """

    def __init__(self, path: Path, *, flush: bool = True) -> None:
        self.path = path
        self._flush = flush
        self.is_system = path.resolve() == Path("/")

    @contextlib.contextmanager
    def folder(self, relative: str, *, make: bool = False) -> Iterator[int]:
        """The open folder ``relative`` (empty: the root itself), made with mode 0755 where asked.

        Raises ``ApplyError`` when a part is a link or no folder, ``FileNotFoundError`` when a part is missing.
        """
        if make:
            self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            walked = ""
            for part in relative.split("/") if relative else ():
                walked = f"{walked}/{part}"
                inner = self._enter(descriptor, part, walked, make)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def parent(self, relative: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The open folder that holds ``relative``, and the last part of its name."""
        folder, _, name = relative.rpartition("/")
        with self.folder(folder, make=make) as descriptor:
            yield descriptor, name

    def missing_folders(self, relative: str) -> tuple[str, ...]:
        """Those of the folders down to ``relative`` that do not exist, outermost first."""
        parts = relative.split("/") if relative else []
        for count in range(len(parts), -1, -1):
            with contextlib.suppress(FileNotFoundError), self.folder("/".join(parts[:count])):
                return tuple("/".join(parts[: n + 1]) for n in range(count, len(parts)))
        return tuple("/".join(parts[: n + 1]) for n in range(len(parts)))

    def remove_folders(self, folders: tuple[str, ...]) -> None:
        """Remove those of ``folders`` that are empty, innermost first."""
        for folder in reversed(folders):
            with contextlib.suppress(OSError), self.parent(folder) as (parent, name):
                os.rmdir(name, dir_fd=parent)

    def _enter(self, parent: int, part: str, walked: str, make: bool) -> int:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=parent)
                if self._flush:
                    os.fsync(parent)
        try:
            return os.open(part, _FOLDER, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise ApplyError(
                    f"{walked} is a link or not a folder, and links are not followed",
                    remedy="Name the real path in the policy.",
                ) from None
            raise


def lstat(folder: int, name: str) -> os.stat_result | None:
    """``lstat`` of ``name`` in the open ``folder``; None where there is nothing."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def open_regular(folder: int, name: str, *, shown: str) -> int:
    """``name`` in the open ``folder`` for reading, if it is a regular file. Asked of what is open, so that nothing that takes
    the file's place meanwhile (a pipe, a device, a folder) is read. Raises ``ApplyError``, ``FileNotFoundError``."""
    try:
        descriptor = os.open(name, _READ, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise ApplyError(f"{shown} is a link or a device, not a file") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ApplyError(f"{shown} is no regular file")
    return descriptor


def is_guarded(folder: int) -> bool:
    """Whether only root (or the user of this process) can put, rename and link things in the open ``folder``.

    Elsewhere a name may come to mean another file at any moment, one that is a further name of a file of root's included.
    """
    facts = os.fstat(folder)
    return facts.st_uid in (0, os.geteuid()) and not facts.st_mode & 0o022


def copy_staged(staged: Staged, target: int) -> None:
    """Copy the staged artifact into the open file ``target``; raises ``ApplyError`` unless these very bytes hash as signed."""
    with _open_staged(staged) as source:
        digest = hashlib.sha256()
        while block := os.read(source, COPY_BYTES):
            digest.update(block)
            view = memoryview(block)
            while view:
                view = view[os.write(target, view) :]
    _compare(staged, digest.hexdigest())


def check_staged(staged: Staged) -> None:
    """Hash a staged artifact that a program will open by name. Nobody but us may be able to change it meanwhile."""
    with _open_staged(staged) as source:
        digest = hashlib.sha256()
        while block := os.read(source, COPY_BYTES):
            digest.update(block)
    _compare(staged, digest.hexdigest())


@contextlib.contextmanager
def _open_staged(staged: Staged) -> Iterator[int]:
    try:
        source = os.open(staged.path, _READ)
    except OSError as error:
        raise ApplyError(f"the staged artifact {staged.path.name} cannot be opened: {error.strerror}") from None
    try:
        for facts, what in ((os.fstat(source), staged.path), (staged.path.parent.lstat(), staged.path.parent)):
            if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022 or stat.S_ISLNK(facts.st_mode):
                raise ApplyError(
                    f"{what} could be changed by other users, so its hash proves nothing",
                    remedy="Give the state folder back to the user of the daemon, with mode 0700.",
                )
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise ApplyError(f"the staged artifact {staged.path.name} is not a regular file")
        yield source
    finally:
        os.close(source)


def _compare(staged: Staged, found: str) -> None:
    if found != staged.sha256:
        raise ApplyError(
            f"the staged artifact {staged.path.name} has changed since it was verified "
            f"(SHA-256 {found[:16]}… instead of {staged.sha256[:16]}…)",
            remedy="It is assembled again from verified chunks; look for what writes into the state folder.",
        )
