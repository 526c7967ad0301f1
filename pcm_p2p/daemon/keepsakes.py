"""Keepsakes: the manifests of what was applied here, so that a roll-back finds real bytes and no release goes backwards.

Per release name the two manifests applied last are kept (``<counter>-<manifest id>.manifest`` in a folder of the name), the
newest of which sets the floor of the release counter; one that was damaged still does, by its name. The office keeps copies of
their chunks (``caretaker``); those of the package that a change replaces are gathered here before the change.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pcm_p2p.apply.receipt import Receipt
from pcm_p2p.content.assemble import assemble
from pcm_p2p.content.manifest import Manifest, decode_untrusted
from pcm_p2p.content.store import ChunkStore
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import PcmError, UntrustedBytes
from pcm_p2p.swarm.holdings import bits_of

log = logging.getLogger(__name__)

KEPT_PER_RELEASE = 2
_NAME = re.compile(r"([0-9]{20})-[0-9a-f]{64}\.(?:manifest|damaged)")


class _Kept(NamedTuple):
    counter: int
    path: Path


class Keepsakes:
    """Blocking; called in worker threads. ``receipts`` gives what packages artifacts turned out to be."""

    def __init__(self, folder: Path, store: ChunkStore, receipts: Callable[[], tuple[Receipt, ...]]) -> None:
        self._folder = folder
        self._store = store
        self._receipts = receipts
        self._decoded: dict[tuple[Path, int, int], Manifest] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remember(self, manifest: Manifest) -> None:
        """``manifest`` is in place now. Writing it again changes nothing."""
        folder = self._folder / manifest.release
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{manifest.counter:020d}-{manifest.manifest_id.hex()}.manifest"
        if path.exists():
            return
        write_atomic(path, manifest.encoded)
        for old in _kept_in(folder)[:-KEPT_PER_RELEASE]:
            with contextlib.suppress(OSError):
                old.path.unlink()

    def counter(self, release: str) -> int:
        """The highest counter of ``release`` that was applied here; 0: none."""
        kept = _kept_in(self._folder / release)
        return kept[-1].counter if kept else 0

    def manifests(self) -> list[Manifest]:
        """All that are kept and whole; a damaged file is renamed, and named in the log."""
        kept = {}
        for path in sorted(self._folder.glob("*/*.manifest")):
            try:
                facts = path.stat()
                key = (path, facts.st_mtime_ns, facts.st_size)
                kept[key] = self._decoded.get(key) or decode_untrusted(path.read_bytes())
            except (OSError, UntrustedBytes) as error:
                log.warning("%s is damaged, so nothing can be rolled back to it: %s", path, error)
                with contextlib.suppress(OSError):
                    path.rename(path.with_suffix(".damaged"))
        self._decoded = kept
        return list(kept.values())

    def to_go_back(self, release: str) -> tuple[Manifest, int] | None:
        """What a change of ``release`` replaces: the manifest applied last, and its chunks (bits over the table) that make up
        packages. None if nothing of it was a package: archives and files are backed up from where they are installed."""
        packages = {sha256 for receipt in self._receipts() for sha256 in receipt.packages}
        for manifest in reversed(self.manifests()):
            if manifest.release == release:
                artifacts = [one for one in manifest.artifacts if one.stored_sha256.hex() in packages]
                bits = bits_of(position for one in artifacts for position in one.chunk_positions())
                return (manifest, bits) if bits else None
        return None

    def previous_package(self, name: str, version: str, architecture: str) -> Path | None:
        """The .deb of an installed package, assembled from kept chunks; None if it is not at hand."""
        shas = {
            sha256
            for receipt in self._receipts()
            for sha256, package in receipt.packages.items()
            if (package.name, package.version, package.architecture) == (name, version, architecture)
        }
        for manifest in reversed(self.manifests()):
            for artifact in manifest.artifacts:
                if artifact.stored_sha256.hex() not in shas:
                    continue
                path = self._folder / f"{artifact.stored_sha256.hex()}.deb"
                try:
                    assemble(manifest, artifact, self._store, path)
                except PcmError as error:
                    log.warning("%s %s cannot be had back: %s", name, version, error)
                    continue
                return path
        return None

    def sweep(self) -> None:
        """Remove .deb files that were assembled for a change that has ended."""
        for path in self._folder.glob("*.deb"):
            with contextlib.suppress(OSError):
                path.unlink()


def _kept_in(folder: Path) -> list[_Kept]:
    """Rising by counter; what has another name is not ours."""
    found = ((_NAME.fullmatch(path.name), path) for path in folder.glob("*"))
    return sorted(_Kept(int(match[1]), path) for match, path in found if match)
