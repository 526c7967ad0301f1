"""Chunks to one file: the stored form of an artifact, byte for byte, under its name only when all of it is right."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.manifest import Artifact, Manifest
from pcm_p2p.durable import fsync_folder
from pcm_p2p.errors import DiskFull, StorageError, TransferError, TrustError
from pcm_p2p.ids import ChunkId

_SUFFIX = ".assembling"


class ChunkSource(Protocol):
    """The part of a chunk store that assembly needs; ``get`` verifies what it returns."""

    def has(self, chunk: ChunkId, /) -> bool: ...
    def get(self, chunk: ChunkId, /) -> Chunk | None: ...


class MissingChunks(TransferError):
    """Chunks of a release are not in the store, or were found rotten. ``positions``: their places in the chunk table,
    rising, each once."""

    remedy = "The daemon fetches them again by itself."

    def __init__(self, title: str, positions: Sequence[int]) -> None:
        super().__init__(f"{title}: {len(positions)} chunks are missing, the first at position {min(positions)}")
        self.title = title
        self.positions = tuple(sorted(set(positions)))


def assemble(manifest: Manifest, artifact: Artifact, store: ChunkSource, destination: Path) -> None:
    """Write ``artifact`` to ``destination`` (replaced if there is one), in memory of one chunk: while it makes 400 MB a process
    never has more than 27 MB resident (``bench/assemble.py``).

    The file is written under a temporary name in the same folder, checked against ``stored_sha256``, flushed and renamed, so
    that ``destination`` is complete or absent after SIGKILL or a power cut; what an earlier, killed attempt left is swept.

    Raises ``MissingChunks`` with everything that is missing (not only the first), ``DiskFull``, ``StorageError``, and
    ``TrustError`` if the chunks are right and the file is not: the manifest contradicts itself.
    """
    try:
        _sweep(destination)
        temporary, file = _create(destination)
        try:
            with file:
                _write(manifest, artifact, store, file)
                os.fsync(file.fileno())
                temporary.rename(destination)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        fsync_folder(destination.parent)
    except OSError as error:
        what = f"{artifact.name} of {manifest.title} cannot be assembled at {destination}: {error.strerror}"
        raise (DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError)(what) from error


def _write(manifest: Manifest, artifact: Artifact, store: ChunkSource, file: BinaryIO) -> None:
    positions = artifact.chunk_positions()
    # Absent chunks are known without reading; reading the rest finds the rotten ones, so that one repair is enough.
    missing = {position for position in positions if not store.has(manifest.chunks[position])}
    sha256 = hashlib.sha256()
    for position in dict.fromkeys(positions) if missing else positions:
        if position in missing:
            continue
        chunk = store.get(manifest.chunks[position])
        if chunk is None:
            missing.add(position)
        elif not missing:
            sha256.update(chunk.data)
            view = memoryview(chunk.data)
            while view:
                view = view[file.write(view) :]
    if missing:
        raise MissingChunks(manifest.title, sorted(missing))
    if sha256.digest() != artifact.stored_sha256:
        raise TrustError(
            f"{artifact.name} of {manifest.title}: its chunks are right and the file they make is not the one described",
            remedy="Release it again; this manifest contradicts itself.",
        )


def _create(destination: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file, locked for as long as it is open: what has no lock belongs to nobody."""
    while True:
        temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(6)}{_SUFFIX}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        file = os.fdopen(descriptor, "wb", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, file
        file.close()  # swept by another assembly, between its creation and the lock


def _sweep(destination: Path) -> None:
    """Delete temporary files of this destination whose writer is gone: a living one holds a lock."""
    prefix = f".{destination.name}."
    with os.scandir(destination.parent) as entries:
        left = [e for e in entries if e.name.startswith(prefix) and e.name.endswith(_SUFFIX) and not e.is_symlink()]
    for entry in left:
        with contextlib.suppress(OSError), Path(entry.path).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Path(entry.path).unlink()
