"""Files: bytes, mode, owner and group of one path below the root; replaced atomically, with a back-up first."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pcm_p2p.apply.root import COPY_BYTES, Root, copy_staged, is_guarded, lstat, open_regular
from pcm_p2p.apply.step import FileObserved, Staged, WriteFile
from pcm_p2p.durable import fsync_folder
from pcm_p2p.errors import ApplyError
from pcm_p2p.policy.resource import FileResource, below_root

_SET_USER_BITS = stat.S_ISUID | stat.S_ISGID


class FileProvider:
    """``may_chown`` is false for an unprivileged daemon, which in a private root leaves owners alone as dpkg does there."""

    def __init__(self, root: Root, *, may_chown: bool | None = None) -> None:
        self._root = root
        self._may_chown = os.geteuid() == 0 if may_chown is None else may_chown

    def observe(self, resource: FileResource, artifact_sha256: str | None) -> FileObserved:
        """``artifact_sha256`` is that of ``resource.artifact``. Raises ``ApplyError`` where no plain file can be."""
        path = below_root(resource.path)
        wanted = artifact_sha256
        if resource.content is not None:
            wanted = hashlib.sha256(resource.content.encode()).hexdigest()
        uid = self._account(resource.owner, "passwd", resource.path)
        gid = self._account(resource.group, "group", resource.path)
        missing = self._root.missing_folders(path.rpartition("/")[0])
        if missing:
            return FileObserved(False, wanted, uid, gid, made_folders=missing)
        with self._root.parent(path) as (folder, name):
            facts = lstat(folder, name)
            if facts is None:
                return FileObserved(False, wanted, uid, gid)
            if not stat.S_ISREG(facts.st_mode):
                raise ApplyError(
                    f"{resource.path} is a {'link' if stat.S_ISLNK(facts.st_mode) else 'folder or device'}, not a file",
                    remedy="Name the real file in the policy, or remove what is there.",
                )
            descriptor = open_regular(folder, name, shown=resource.path)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                facts = os.fstat(descriptor)
                found = _digest(file, facts.st_size) if wanted is not None else ""
        mode = stat.S_IMODE(facts.st_mode)
        return FileObserved(True, wanted, uid, gid, found, mode, facts.st_uid, facts.st_gid)

    def prepare(self, step: WriteFile, backups: Path) -> None:
        """Keep the present bytes in ``backups``, durably. Raises ``ApplyError`` unless they are those that were observed: going
        back gives them the owner and mode that were observed, too."""
        if step.backup is None:
            return
        with self._root.parent(step.path) as (folder, name):
            source = open_regular(folder, name, shown=f"/{step.path}")
        digest = hashlib.sha256()
        with os.fdopen(source, "rb", buffering=0) as reader:
            target = os.open(backups / step.backup, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(target, "wb") as writer:
                for block in _blocks(reader, os.fstat(source).st_size):
                    digest.update(block)
                    writer.write(block)
                writer.flush()
                os.fsync(target)
        if step.previous_sha256 and digest.hexdigest() != step.previous_sha256:
            raise ApplyError(
                f"/{step.path} changed while the change was prepared",
                remedy="Find out who writes to it; it is tried again.",
            )
        fsync_folder(backups)

    def change(self, step: WriteFile, staged: Staged | None) -> None:
        with self._place(step, make=True) as (folder, name):
            if step.sha256 is None:
                self._set_attributes(folder, name, step.mode, step.uid, step.gid, step.path)
                return
            uid = step.uid if step.uid is not None or not step.existed else step.previous_uid
            gid = step.gid if step.gid is not None or not step.existed else step.previous_gid
            with self._replacing(folder, name, step.mode, uid, gid) as target:
                if step.content is not None:
                    with os.fdopen(os.dup(target), "wb") as file:
                        file.write(step.content.encode())
                elif staged is not None:
                    copy_staged(staged, target)
                else:
                    raise ApplyError(f"the artifact {step.artifact} for /{step.path} is not staged")

    def undo(self, step: WriteFile, backups: Path) -> None:
        try:
            with self._place(step, make=False) as (folder, name):
                if not step.existed:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=folder)
                        os.fsync(folder)
                elif step.backup is None:
                    mode = step.previous_mode & ~(0 if is_guarded(folder) else _SET_USER_BITS)
                    self._set_attributes(folder, name, mode, step.previous_uid, step.previous_gid, step.path)
                else:
                    was = (step.previous_mode, step.previous_uid, step.previous_gid)
                    with (
                        (backups / step.backup).open("rb") as source,
                        self._replacing(folder, name, *was) as target,
                        os.fdopen(os.dup(target), "wb") as file,
                    ):
                        while block := source.read(COPY_BYTES):
                            file.write(block)
        except FileNotFoundError:
            if step.existed:
                raise ApplyError(f"/{step.path} or its back-up is gone, so it could not be restored") from None
        self._root.remove_folders(step.made_folders)

    @contextlib.contextmanager
    def _place(self, step: WriteFile, *, make: bool) -> Iterator[tuple[int, str]]:
        with self._root.parent(step.path, make=make) as (folder, name):
            # What an interrupted change of this very file may have left.
            for entry in os.listdir(folder):  # noqa: PTH208 - of an open folder, which pathlib cannot list
                if entry.startswith(f".{name}.") and entry.endswith(".pcm-tmp"):
                    with contextlib.suppress(IsADirectoryError, PermissionError, FileNotFoundError):  # not ours, then
                        os.unlink(entry, dir_fd=folder)
            yield folder, name

    @contextlib.contextmanager
    def _replacing(self, folder: int, name: str, mode: int, uid: int | None, gid: int | None) -> Iterator[int]:
        """An open temporary file that takes the place of ``name`` when the block ends well."""
        temporary = f".{name}.{secrets.token_hex(6)}.pcm-tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            yield descriptor
            self._chown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        finally:
            os.close(descriptor)

    def _set_attributes(self, folder: int, name: str, mode: int, uid: int | None, gid: int | None, path: str) -> None:
        try:
            descriptor = open_regular(folder, name, shown=f"/{path}")
        except FileNotFoundError:
            raise ApplyError(f"/{path} does not exist, and the policy gives it no content") from None
        try:
            # Whoever can write to the folder chooses which file this is, and might choose one of root's, or one of his own.
            if not is_guarded(folder) and (os.fstat(descriptor).st_nlink > 1 or mode & _SET_USER_BITS):
                raise ApplyError(
                    f"/{path} is in a folder that others can write to, and "
                    + ("is asked to run as its owner" if mode & _SET_USER_BITS else "has further names")
                    + "; its attributes are left alone",
                    remedy="Give the folder to root, or give the file content in the policy.",
                )
            self._chown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _chown(self, descriptor: int, uid: int | None, gid: int | None) -> None:
        """Owner first, then mode: a change of owner clears the set-user bits."""
        if self._may_chown and (uid is not None or gid is not None):
            os.fchown(descriptor, -1 if uid is None else uid, -1 if gid is None else gid)

    def _account(self, name: str | None, database: str, path: str) -> int | None:
        """The number of an account by the accounts of the root. None: not asked, or not ours to set."""
        if name is None:
            return None
        if not self._may_chown:
            if self._root.is_system:
                raise ApplyError(
                    f"{path}: the owner can only be set by root",
                    remedy="Run the daemon as root, or set another [apply] root.",
                )
            return None
        if name.isdigit():
            return int(name)
        if not self._root.is_system:
            with contextlib.suppress(FileNotFoundError), self._root.folder("etc") as folder:
                descriptor = open_regular(folder, database, shown=f"/etc/{database}")
                with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
                    for line in file:
                        fields = line.rstrip("\n").split(":")
                        if fields[0] == name and len(fields) > 2 and fields[2].isdigit():
                            return int(fields[2])
        try:
            return pwd.getpwnam(name).pw_uid if database == "passwd" else grp.getgrnam(name).gr_gid
        except KeyError:
            raise ApplyError(f"{path}: there is no account {name!r} on this device") from None


def _blocks(file: IO[bytes], size_bytes: int) -> Iterator[bytes]:
    """The bytes that the file had when it was opened: one that grows as fast as it is read must have an end, too."""
    left = size_bytes
    while left and (block := file.read(min(left, COPY_BYTES))):
        left -= len(block)
        yield block


def _digest(file: IO[bytes], size_bytes: int) -> str:
    digest = hashlib.sha256()
    for block in _blocks(file, size_bytes):
        digest.update(block)
    return digest.hexdigest()
