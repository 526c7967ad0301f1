"""Evidence of equivocation: two documents that the same role signed with the same version. Kept by ``trial``, read here.

Of a fork there is no innocent reading but one: a publisher that was restored from a backup went on beside its former self. Else
an online key is used by somebody else, or a site or team shows different neighbours different policies. A device goes on with
what it trusted first; a person must look, so the two digests are in its status and in its reports.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Timestamp  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

FORKS_MAX = 16
"""``trial`` keeps 32 files, two for each fork."""
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


class Evidence:
    """The ``evidence`` folder of a trust client. Reads files, of at most 32, when the folder changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: frozenset[str] = frozenset()
        self._forks: tuple[Fork, ...] = ()

    def forks(self) -> tuple[Fork, ...]:
        """The forks that this device has proof of, by role and version. What does not read is passed over."""
        try:
            names = frozenset(path.name for path in self._folder.iterdir() if _FILE.fullmatch(path.name))
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
                match = _FILE.fullmatch(name)
                role = match[1] if match is not None else ""
                digest = hashlib.sha256(document.signed_bytes).hexdigest()
                found.setdefault((role, document.signed.version), {})[digest] = seen_ms
                if isinstance(document.signed, Timestamp):
                    # Two timestamps that differ may name two snapshots with one version: that is a fork of the snapshot.
                    meta = document.signed.snapshot_meta
                    for named in (meta.hashes or {}).values():
                        snapshots.setdefault(("snapshot", meta.version), {})[named] = seen_ms
        twice = {place: digests for place, digests in (snapshots | found).items() if len(digests) > 1}
        return tuple(
            Fork(role, version, tuple(sorted(digests)), max(digests.values()))
            for (role, version), digests in sorted(twice.items())
        )[:FORKS_MAX]
