"""Installed files as bytes of a stored form: read below a root, never through a link, and believed only when they hash right.

A user may put links, pipes or other files where a package had its own, and change them while they are read. The walk goes
folder by folder without following links, opens regular files only, never writes, and reads no more than the layout says; what
comes out is a chunk if its hash is the chunk's id, and is forgotten otherwise. So the worst is a miss.

One kind of link is walked through: Debian's merged /usr, where ``/lib`` is a link to ``usr/lib`` and packages still ship
``./lib/…``. It counts at the top of the root only, with exactly that target.

Everything here is a miss with a debug line and never an error: a file that is gone, grew, shrank, cannot be read, was edited.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.pieces import FileRange, Pieces, is_below
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import ChunkId

log = logging.getLogger(__name__)

STATUS = b"var/lib/dpkg/status"
STATUS_SIZE_BYTES_MAX = 64 << 20
"""Choice, as in ``compliance.facts.package``: 20 times the status file of a desktop with 4,000 packages."""
LINE_BYTES_MAX = 64 << 10
MERGED_USR = (b"bin", b"sbin", b"lib", b"lib32", b"lib64", b"libo32", b"libx32")
"""Debian's usrmerge: the folders of which the root has a link into /usr."""
_WITH_FILES = (b"unpacked", b"half-configured", b"triggers-awaited", b"triggers-pending", b"installed")
"""The third words of dpkg's status with which all files of a package are in place."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Package(NamedTuple):
    """As dpkg's database spells them."""

    name: str
    version: str
    architecture: str


class InstalledForm:
    """A stored form that is not here as a file: ``pieces``, with its files below the folder ``below`` of ``root``."""

    def __init__(self, pieces: Pieces, root: Path, below: bytes = b"") -> None:
        self._pieces = pieces
        self._root = root
        self._below = below + b"/" if below else b""

    def get(self, chunk: ChunkId, size_bytes: int) -> Chunk | None:
        """The chunk out of installed files, verified; None if they are not what they were."""
        for at in self._pieces.places(chunk, size_bytes):
            data = self._read(at, size_bytes)
            if data is not None:
                try:
                    return Chunk.verified(chunk, data)
                except UntrustedBytes:
                    log.debug("chunk %s: files below %s are not what they were", chunk.short, self._root)
        return None

    def _read(self, at: int, size_bytes: int) -> bytes | None:
        try:
            with _Walk(self._root) as walk:
                pieces = self._pieces.between(at, size_bytes)
                return b"".join(
                    piece if isinstance(piece, bytes) else walk.read(piece, self._below) for piece in pieces
                )
        except OSError as error:
            log.debug("below %s: %s", self._root, error)
            return None


def read_installed(root: Path, path: bytes, size_bytes_max: int) -> bytes | None:
    """A small file below ``root``, in the same way; None if it is not there, no regular file, or longer."""
    try:
        with _Walk(root) as walk, walk.opened(path) as (descriptor, facts):
            return _read_exactly(descriptor, 0, facts.st_size) if facts.st_size <= size_bytes_max else None
    except OSError as error:
        log.debug("below %s: %s", root, error)
        return None


def installed_packages(root: Path, wanted: Collection[Package]) -> set[Package]:
    """Those of ``wanted`` that dpkg below ``root`` has the files of, at exactly this version.

    The status file is read as a stream. A dpkg that runs meanwhile makes it older than the files, or newer; chunks are hashed.
    """
    found = set[Package]()
    try:
        with _Walk(root) as walk, walk.opened(STATUS) as (descriptor, facts):
            if facts.st_size > STATUS_SIZE_BYTES_MAX:
                log.debug("dpkg's status below %s has %d bytes and is not read", root, facts.st_size)
                return found
            for package in _packages(descriptor):
                if package in wanted:
                    found.add(package)
    except OSError as error:
        log.debug("below %s: %s", root, error)
    return found


def _packages(descriptor: int) -> Iterator[Package]:
    fields: dict[bytes, bytes] = {}
    with os.fdopen(os.dup(descriptor), "rb") as file:
        while True:
            line = file.readline(LINE_BYTES_MAX)
            if not line.strip():
                if fields.get(b"Status", b"").rpartition(b" ")[2] in _WITH_FILES:
                    texts = (fields.get(key, b"") for key in (b"Package", b"Version", b"Architecture"))
                    yield Package(*(text.decode("utf-8", "replace") for text in texts))
                fields = {}
                if not line:
                    return
            elif not line.startswith((b" ", b"\t")):
                key, _, value = line.partition(b":")
                if key in (b"Package", b"Status", b"Version", b"Architecture"):
                    fields[key] = value.strip()


class _Walk:
    """Opens files below a root. The folder last used stays open: files of a package stand side by side."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = b""
        self._descriptor = -1

    def __enter__(self) -> _Walk:
        self._descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, wanted: FileRange, below: bytes) -> bytes:
        """Raises ``OSError``, also for a file of another size."""
        with self.opened(below + wanted.file.path) as (descriptor, facts):
            if facts.st_size != wanted.file.size_bytes:
                raise OSError(f"{wanted.file.path!r} has {facts.st_size} bytes instead of {wanted.file.size_bytes}")
            return _read_exactly(descriptor, wanted.at, wanted.size_bytes)

    @contextlib.contextmanager
    def opened(self, path: bytes) -> Iterator[tuple[int, os.stat_result]]:
        """A regular file, open for reading. Raises ``OSError`` for anything else."""
        if not is_below(path):
            raise OSError(f"{path!r} is not a path that stays below its root")
        folder, _, name = path.rpartition(b"/")
        self._enter(folder)
        # Looked at first: opening a device can have effects, and only root could put one here in between.
        if not stat.S_ISREG(os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mode):
            raise OSError(f"{path!r} is not a regular file")
        descriptor = os.open(name, _FILE, dir_fd=self._descriptor)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(f"{path!r} is not a regular file")
            yield descriptor, facts
        finally:
            os.close(descriptor)

    def _enter(self, folder: bytes) -> None:
        if folder == self._folder:
            return
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            parts = folder.split(b"/") if folder else []
            if parts and parts[0] in MERGED_USR and _leads_to_usr(descriptor, parts[0]):
                parts.insert(0, b"usr")
            for part in parts:
                inner = os.open(part, _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
        except OSError:
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor, self._folder = descriptor, folder


def _leads_to_usr(root: int, name: bytes) -> bool:
    with contextlib.suppress(OSError):  # no link, or not there: the walk goes on with the name as it is
        return os.readlink(name, dir_fd=root) in (b"usr/" + name, b"/usr/" + name)
    return False


def _read_exactly(descriptor: int, at: int, size_bytes: int) -> bytes:
    parts, left = [], size_bytes
    while left:
        data = os.pread(descriptor, left, at)
        if not data:
            raise OSError("a file became shorter while it was read")
        parts.append(data)
        at, left = at + len(data), left - len(data)
    return b"".join(parts)
