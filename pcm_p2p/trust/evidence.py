"""Evidence of equivocation: two documents that one role signed with one version. Kept and read here, found by ``trial``.

Of a fork there is no innocent reading but one: a publisher that was restored from a backup went on beside its former self. Else
an online key is used by somebody else, or a site or team shows different neighbours different policies. A device goes on with
what it trusted first; a person must look, so the two digests are in its status and in its reports.

Files: ``<role>-<version>-<16 hexadecimal digits of the document>.json``, two for each fork, at most ``FORKS_MAX`` forks. Whoever
has a key can sign as many forks as it likes, so a fork of one role never costs that of another its place: the role that has most
gives way, and of its own the first and the newest stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Timestamp  # type: ignore[attr-defined]

from pcm_p2p.durable import write_atomic

log = logging.getLogger(__name__)

FORKS_MAX = 16
"""Choice: kept and told of. As many roles can fork without one of them being forgotten."""
FILES_MAX = 2 * FORKS_MAX
_FILE = re.compile(r"([A-Za-z0-9._-]{1,80})-([1-9][0-9]{0,9})-[0-9a-f]{16}\.json")


@dataclass(frozen=True, order=True)
class Fork:
    """``role`` signed several documents with this ``version``; ``digests`` are the SHA-256 of their signed parts, in
    hexadecimal, sorted. ``seen_ms``: when the last one was kept, in milliseconds since 1970 by the device's clock."""

    role: str
    version: int
    digests: tuple[str, ...]
    seen_ms: int

    def line(self) -> str:
        both = " and ".join(digest[:16] for digest in self.digests)
        return f"{self.role} version {self.version} was signed twice with different contents, {both}"


class Place(NamedTuple):
    """Where a fork was: one role, one version."""

    role: str
    version: int


def giving_way(kept: Sequence[Place], new: Place) -> Place | None:
    """Which fork has no place when ``new`` comes to ``kept``, which is in the order of coming; None if all have one.

    Of the role that has most, the new one's first among equals, the second one goes; of a role with one fork, that one.
    """
    if len(kept) < FORKS_MAX:
        return None
    count = Counter(place.role for place in (*kept, new))
    role = max(sorted(count), key=lambda role: (count[role], role == new.role))
    return [place for place in (*kept, new) if place.role == role][: min(2, count[role])][-1]


def keep_fork(folder: Path, place: Place, documents: Iterable[Metadata[Any]]) -> bool:
    """Keep both sides of a fork, for people; whether they are kept. The same fork is kept once. Blocking.

    ``documents``: of that version, ours first; of the snapshot, the two timestamps that name it.
    """
    try:
        return _keep(folder, place, documents)
    except OSError as error:
        log.error("trust: the evidence against %s could not be kept: %s", place.role, error)
        return False


def _keep(folder: Path, place: Place, documents: Iterable[Metadata[Any]]) -> bool:
    folder.mkdir(mode=0o700, exist_ok=True)
    files: dict[Place, list[Path]] = {}
    for path in sorted(_files(folder), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        files.setdefault(_place(path), []).append(path)
    while place not in files and (leaving := giving_way(list(files), place)) is not None:
        if leaving == place:
            return False
        for path in files.pop(leaving):
            path.unlink()
    names = {path.name for path in files.get(place, ())}
    if len(names) < 2:
        for document in documents:
            digest = hashlib.sha256(document.signed_bytes).hexdigest()
            if (name := f"{place.role}-{place.version}-{digest[:16]}.json") not in names:
                write_atomic(folder / name, document.to_bytes())
    return True


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _FILE.fullmatch(path.name)]


def _place(path: Path) -> Place:
    match = _FILE.fullmatch(path.name)
    assert match is not None, "only such files are listed"
    return Place(match[1], int(match[2]))


class Evidence:
    """The ``evidence`` folder of a trust client. Reads files, of at most ``FILES_MAX``, when the folder changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: frozenset[str] = frozenset()
        self._forks: tuple[Fork, ...] = ()

    def forks(self) -> tuple[Fork, ...]:
        """The forks that this device has proof of, by role and version. What does not read is passed over."""
        try:
            names = frozenset(path.name for path in _files(self._folder))
        except OSError:
            names = frozenset()
        if names != self._names:
            forks = self._read(sorted(names))
            for fork in set(forks) - set(self._forks):
                log.error("trust: %s; the evidence is in %s", fork.line(), self._folder)
            self._names, self._forks = names, forks
        return self._forks

    def _read(self, names: list[str]) -> tuple[Fork, ...]:
        found: dict[tuple[str, int], dict[str, int]] = {}
        snapshots: dict[tuple[str, int], dict[str, int]] = {}
        for name in names:
            with contextlib.suppress(OSError, RepositoryError, TypeError, ValueError):
                path = self._folder / name
                document = Metadata[Any].from_bytes(path.read_bytes())
                seen_ms = path.stat().st_mtime_ns // 1_000_000
                role = _place(path).role
                digest = hashlib.sha256(document.signed_bytes).hexdigest()
                if role == document.signed.type or not isinstance(document.signed, Timestamp):
                    found.setdefault((role, document.signed.version), {})[digest] = seen_ms
                if isinstance(document.signed, Timestamp):
                    # Two timestamps that differ may name two snapshots with one version: that is a fork of the snapshot.
                    meta = document.signed.snapshot_meta
                    for named in (meta.hashes or {}).values():
                        snapshots.setdefault(("snapshot", meta.version), {})[named] = seen_ms
        twice = {Place(*place): digests for place, digests in (snapshots | found).items() if len(digests) > 1}
        told: list[Place] = []
        for place in sorted(twice, key=lambda place: (max(twice[place].values()), place)):
            leaving = giving_way(told, place)
            told = [one for one in (*told, place) if one != leaving]
        return tuple(Fork(*place, tuple(sorted(twice[place])), max(twice[place].values())) for place in sorted(told))
