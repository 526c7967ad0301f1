"""The stored form: a file with its inner compression undone, so that two versions of it share most of their chunks.

It is what devices assemble and use, so each form is one that its user reads as it is: dpkg a .deb with uncompressed tars,
tar a tar, unzip a zip without compression. The manifest names the hash of both what was delivered and what is stored.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from pcm_p2p.content.forms.deb import is_deb, write_deb
from pcm_p2p.content.forms.decompression import BLOCK_SIZE_BYTES, too_large
from pcm_p2p.content.forms.tar import is_compressed_tar, write_tar
from pcm_p2p.content.forms.zip import is_zip, write_zip
from pcm_p2p.content.manifest import Form
from pcm_p2p.errors import DiskFull, InputError, StorageError

SIZE_BYTES_MAX = 64 << 30
"""What a manifest of ``CHUNKS_MAX`` chunks of the largest average describes."""
EXPANSION_MAX = 100
EXPANSION_FREE_BYTES = 1 << 30
"""Choices: what unpacks to more than a hundred times its size, and to more than 1 GiB, is a bomb. Packages unpack to two to seven
times their size (``bench/delta.py``), the most that gzip can do is a thousand times."""


def detect(path: Path) -> Form:
    """The form of the file at ``path``: by its content, for zip also by its name. ``exact`` is always an answer.

    A plain tar is ``exact``: it is its own stored form. Raises ``InputError`` if it cannot be read.
    """
    try:
        if is_deb(path):
            return "deb"
        if is_compressed_tar(path):
            return "tar"
        return "zip" if is_zip(path) else "exact"
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from None


def size_bytes_most(form: Form, delivered_bytes: int) -> int:
    """How large the stored form of a file of ``delivered_bytes`` may become."""
    if form == "exact":
        return SIZE_BYTES_MAX
    return min(SIZE_BYTES_MAX, max(EXPANSION_FREE_BYTES, EXPANSION_MAX * delivered_bytes))


def write_stored(source: Path, form: Form, destination: Path, *, size_bytes_max: int | None = None) -> None:
    """Write the stored form of ``source`` to ``destination``, which must not exist, in bounded memory.

    It has at most ``size_bytes_max`` bytes, by default those of ``size_bytes_most``. The same source gives the same bytes.
    Nothing is left at ``destination`` after an error: ``InputError`` names the source and what is wrong with it, ``DiskFull`` and
    ``StorageError`` the destination.
    """
    try:
        with source.open("rb") as readable:
            readable.read(1)
            if size_bytes_max is None:
                size_bytes_max = size_bytes_most(form, os.fstat(readable.fileno()).st_size)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=source) from None
    try:
        descriptor = os.open(destination, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StorageError(f"{destination} cannot be created: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "w+b") as file:
            match form:
                case "deb":
                    write_deb(source, file, size_bytes_max)
                case "tar":
                    write_tar(source, file, size_bytes_max)
                case "zip":
                    write_zip(source, file, size_bytes_max)
                case "exact":
                    with source.open("rb") as delivered:
                        while block := delivered.read(BLOCK_SIZE_BYTES):
                            file.write(block)
                            if file.tell() > size_bytes_max:
                                raise too_large(source, size_bytes_max)
    except BaseException as error:
        with contextlib.suppress(OSError):
            destination.unlink()
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            message = f"the stored form of {source.name} cannot be written to {destination}: {error.strerror}"
            raise (DiskFull if full else StorageError)(message) from error
        raise
