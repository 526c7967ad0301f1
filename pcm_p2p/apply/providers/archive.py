"""Archives: each version in a folder of its own, and a link that is switched atomically.

``<path>/<name>-<version>`` is complete from the moment it has that name: it is unpacked beside, written to disk, then renamed.
``.pcm-artifact`` inside it holds the SHA-256 of the artifact it came from, so that a folder can be told from another of
the same name.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from pcm_p2p.apply.plan import archive_folder
from pcm_p2p.apply.providers.archive_members import unpack_untrusted
from pcm_p2p.apply.root import Root, copy_staged, lstat, open_regular
from pcm_p2p.apply.step import ArchiveObserved, Staged, SwitchArchive
from pcm_p2p.errors import ApplyError, UntrustedBytes
from pcm_p2p.policy.resource import ArchiveResource, below_root

MARKER = ".pcm-artifact"
UNPACKED_BYTES_MAX = 64 << 30
"""Choice: a bound on zip bombs; a release that is larger is no archive but an image."""


class ArchiveProvider:
    """``work`` is a private folder on any file system, where the verified copy of the artifact is kept while it is read."""

    def __init__(self, root: Root, work: Path, *, unpacked_bytes_max: int = UNPACKED_BYTES_MAX) -> None:
        self._root = root
        self._work = work
        self._unpacked_bytes_max = unpacked_bytes_max

    def observe(self, resource: ArchiveResource, version: str, artifact_sha256: str) -> ArchiveObserved:
        path = below_root(resource.path)
        missing = self._root.missing_folders(path)
        if missing:
            return ArchiveObserved(artifact_sha256, False, "", None, missing)
        with self._root.folder(path) as folder:
            link = lstat(folder, resource.link)
            if link is not None and not stat.S_ISLNK(link.st_mode):
                raise ApplyError(
                    f"{resource.path}/{resource.link} is not a link",
                    remedy="Move it away, or choose another link name.",
                )
            target = os.readlink(resource.link, dir_fd=folder) if link is not None else None
            name = archive_folder(resource, version)
            exists = lstat(folder, name) is not None
            return ArchiveObserved(artifact_sha256, exists, _marker(folder, name) if exists else "", target)

    def change(self, step: SwitchArchive, staged: Staged | None) -> None:
        with self._root.folder(step.path, make=True) as folder:
            _sweep(folder, step)
            if step.unpack:
                if staged is None:
                    raise ApplyError(f"the artifact {step.artifact} for /{step.path}/{step.folder} is not staged")
                partial = f".{step.folder}.{secrets.token_hex(4)}.pcm-part"
                self._unpack(staged, folder, partial)
                if step.replaces:
                    os.rename(step.folder, _aside(step), src_dir_fd=folder, dst_dir_fd=folder)
                os.rename(partial, step.folder, src_dir_fd=folder, dst_dir_fd=folder)
            _switch(folder, step.link, step.folder)

    def undo(self, step: SwitchArchive) -> None:
        with contextlib.suppress(FileNotFoundError), self._root.folder(step.path) as folder:
            if step.previous_target is None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(step.link, dir_fd=folder)
            elif lstat(folder, step.link) is None or os.readlink(step.link, dir_fd=folder) != step.previous_target:
                _switch(folder, step.link, step.previous_target)
            if step.unpack and not step.replaces:
                _remove(folder, step.folder)
            elif step.replaces and lstat(folder, _aside(step)) is not None:
                _remove(folder, step.folder)
                os.rename(_aside(step), step.folder, src_dir_fd=folder, dst_dir_fd=folder)
            _sweep(folder, step)
            os.fsync(folder)
        self._root.remove_folders(step.made_folders)

    def commit(self, step: SwitchArchive) -> None:
        """Remove what only an undo would have needed."""
        if step.replaces:
            with self._root.folder(step.path) as folder:
                _remove(folder, _aside(step))

    def forget(self, path: str, folder_name: str, link: str) -> None:
        """Remove a version that is neither in use nor the one before, unless the link points at it after all."""
        with contextlib.suppress(OSError), self._root.folder(path) as folder:
            if os.readlink(link, dir_fd=folder) != folder_name and _marker(folder, folder_name):
                _remove(folder, folder_name)

    def _unpack(self, staged: Staged, folder: int, partial: str) -> None:
        os.mkdir(partial, 0o755, dir_fd=folder)
        inner = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            # A copy of our own, hashed while it is made: what is unpacked is what was hashed.
            with tempfile.TemporaryFile(dir=self._work) as copy:
                copy_staged(staged, copy.fileno())
                copy.seek(0)
                unpack_untrusted(
                    copy,
                    Path(f"/proc/self/fd/{inner}"),
                    unpacked_bytes_max=self._unpacked_bytes_max,
                )
            marker = os.open(MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=inner)
            with os.fdopen(marker, "w", encoding="ascii") as file:
                file.write(staged.sha256 + "\n")
            _flush_file_system(inner)
        except FileExistsError:
            raise ApplyError(
                f"{staged.path.name} brings its own {MARKER}, a name that is kept for the marker"
            ) from None
        except UntrustedBytes as error:
            raise ApplyError(f"{staged.path.name} is refused: {error.message}") from None
        except OSError as error:
            raise ApplyError(f"{staged.path.name} could not be unpacked: {error.strerror}") from None
        finally:
            os.close(inner)


def _aside(step: SwitchArchive) -> str:
    return f".{step.folder}.pcm-before"


def _marker(folder: int, name: str) -> str:
    try:
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return ""
    try:
        with os.fdopen(open_regular(inner, MARKER, shown=MARKER), "rb") as file:
            return file.read(65).decode("ascii", "replace").strip()
    except (OSError, ApplyError):
        return ""
    finally:
        os.close(inner)


def _switch(folder: int, link: str, target: str) -> None:
    temporary = f".{link}.{secrets.token_hex(4)}.pcm-link"
    os.symlink(target, temporary, dir_fd=folder)
    os.rename(temporary, link, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _sweep(folder: int, step: SwitchArchive) -> None:
    """Remove what an interrupted change of this very archive may have left."""
    ours = ((f".{step.folder}.", ".pcm-part"), (f".{step.link}.", ".pcm-link"))
    for entry in os.listdir(folder):
        if any(entry.startswith(start) and entry.endswith(end) for start, end in ours):
            _remove(folder, entry)


def _remove(folder: int, name: str) -> None:
    facts = lstat(folder, name)
    if facts is None:
        return
    if stat.S_ISDIR(facts.st_mode):
        shutil.rmtree(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def _flush_file_system(descriptor: int) -> None:
    """``syncfs``: one flush for thousands of small files, where an fsync each would take minutes."""
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
        os.sync()
