"""The folder in which releases are made: one user at a time, leftovers of a killed one swept, finished segments remembered.

===============================  ======================================================================================
``segments/ab/<64 hex digits>``  segment blobs by their id: the result
``ingest/lock``                  held while somebody works here; the kernel lets go of it when that process dies
``ingest/stored/``               stored forms being cut, and those of base releases; emptied at the start and at the end
``ingest/temporary/``            blobs being written; emptied likewise
``ingest/notes/ab/<64 digits>``  recipe of a segment (chunk ids, level, libraries) → id of the blob that was made of it, or
                                 that it is a delta too large to be kept
===============================  ======================================================================================

A note is a hint: the blob it names is hashed before it is used, so a torn one is made again.
"""

from __future__ import annotations

import _lzma
import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import threading
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import zstandard
from blake3 import blake3

from pcm_p2p.content.manifest import SEGMENT_OUTPUT_BYTES_MAX, SEGMENT_OVERHEAD_BYTES_MAX
from pcm_p2p.errors import DiskFull, StorageError, UntrustedBytes
from pcm_p2p.ids import ChunkId, SegmentId

_RECIPE = b"pcm segment recipe 8"
_LARGE = b"too large"


def storage_error(what: str, error: OSError) -> StorageError:
    """``DiskFull`` if that is what ``error`` says, else ``StorageError``."""
    kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
    return kind(f"{what}: {error.strerror}", remedy="Free space and run the command again; it goes on where it was.")


class Workplace:
    """A context manager: entering takes the lock and sweeps, leaving sweeps and releases. Raises ``StorageError``."""

    def __init__(self, folder: Path) -> None:
        self.segments = folder / "segments"
        self.stored = folder / "ingest" / "stored"
        self.temporary = folder / "ingest" / "temporary"
        self._notes = folder / "ingest" / "notes"
        self._lock = folder / "ingest" / "lock"
        self._held: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            for folder in (self.segments, self.stored, self.temporary, self._notes):
                folder.mkdir(parents=True, exist_ok=True)
            held = self._lock.open("ab")
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.close()
                raise StorageError(
                    f"another process makes a release in {self._lock.parent.parent}", remedy="Wait until it has ended."
                ) from None
            self._held = held
            self._sweep()
        except OSError as error:
            raise storage_error(f"{self.segments.parent} cannot be used", error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._sweep()
        if self._held is not None:
            self._held.close()

    def _sweep(self) -> None:
        for folder in (self.stored, self.temporary):
            with os.scandir(folder) as entries:
                for entry in entries:
                    Path(entry.path).unlink()

    def blob_path(self, segment: SegmentId) -> Path:
        return blob_path(self.segments, segment)

    def find(self, recipe: bytes) -> tuple[SegmentId, int] | None:
        """The segment that was made by this recipe, with the size of its blob in bytes, if it is here and whole."""
        try:
            segment = SegmentId(self._note_path(recipe).read_bytes())
            with self.blob_path(segment).open("rb") as file:
                blob = file.read(SEGMENT_OUTPUT_BYTES_MAX + SEGMENT_OVERHEAD_BYTES_MAX + 1)
        except (OSError, UntrustedBytes):
            return None
        return (segment, len(blob)) if SegmentId.of(blob) == segment else None

    def note(self, recipe: bytes, segment: SegmentId) -> None:
        """Remember what came of ``recipe``. Raises ``StorageError``."""
        self._note(recipe, segment)

    def is_large(self, recipe: bytes) -> bool:
        """Was the delta of this recipe made before, and too large to be kept?"""
        try:
            return self._note_path(recipe).read_bytes() == _LARGE
        except OSError:
            return False

    def note_large(self, recipe: bytes) -> None:
        """Remember that the delta of this recipe is too large to be kept. Raises ``StorageError``."""
        self._note(recipe, _LARGE)

    def keep(self, temporary: Path, segment: SegmentId) -> None:
        """Give a finished blob the name under which it is found. Raises ``StorageError``."""
        path = self.blob_path(segment)
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.rename(path)
        except OSError as error:
            raise storage_error(f"segment {segment.short}… cannot be kept", error) from error

    def _note(self, recipe: bytes, content: bytes) -> None:
        path = self._note_path(recipe)
        temporary = self.temporary / f"note-{threading.get_ident()}"
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(content)
            temporary.rename(path)
        except OSError as error:
            raise storage_error(f"{path} cannot be written", error) from error

    def _note_path(self, recipe: bytes) -> Path:
        return self._notes / recipe.hex()[:2] / recipe.hex()


def blob_path(segments: Path, segment: SegmentId) -> Path:
    """Where the blob of ``segment`` lies below the folder ``segments``."""
    return segments / segment.hex()[:2] / segment.hex()


def recipe_of(chunks: Sequence[ChunkId], level: int) -> bytes:
    """32 bytes that name everything that a full blob depends on: its chunks, the level, and the library that compresses."""
    library = f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}, liblzma {_liblzma_version()}"
    return _recipe(f"full|{level}|{library}", chunks)


def delta_recipe_of(
    chunks: Sequence[ChunkId], base: Sequence[ChunkId], level: int, *, with_gzip: bool = False
) -> bytes:
    """The same for a delta: also its base, and whether it may look into gzip members. ``level`` is that of the full segment,
    which decides whether the delta is worth it."""
    library = (
        f"hdiffpatch {metadata.version('hdiffpatch')}, liblzma {_liblzma_version()}{', gzip' if with_gzip else ''}"
    )
    return _recipe(f"delta|{level}|{len(base)}|{library}", (*base, *chunks))


def _recipe(head: str, chunks: Sequence[ChunkId]) -> bytes:
    recipe = blake3(b"%s|%s|" % (_RECIPE, head.encode()))
    for chunk in chunks:
        recipe.update(chunk)
    return recipe.digest()


@functools.cache
def _liblzma_version() -> str:
    """The version of the library behind the standard ``lzma``, which does not tell it."""
    try:
        version_string = ctypes.CDLL(getattr(_lzma, "__file__", None)).lzma_version_string
    except (OSError, AttributeError):
        return "unknown"
    version_string.restype = ctypes.c_char_p
    return str(version_string(), "ascii")
