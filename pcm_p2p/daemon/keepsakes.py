"""Keepsakes: the manifests of what was applied here, so that a roll-back finds real bytes and no release goes backwards.

Per release name the two manifests applied last are kept (``<counter>-<manifest id>.manifest`` in a folder of the name), the
newest of which sets the floor of the release counter. Their chunks stay wanted in the store, so the previous package can be
assembled without the network.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from pcm_p2p.apply.receipt import Receipt
from pcm_p2p.content.assemble import assemble
from pcm_p2p.content.manifest import Manifest, decode_untrusted
from pcm_p2p.content.store import ChunkStore
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import PcmError, UntrustedBytes

log = logging.getLogger(__name__)

KEPT_PER_RELEASE = 2


class Keepsakes:
    """Blocking; called in worker threads. ``receipts`` gives what packages artifacts turned out to be."""

    def __init__(self, folder: Path, store: ChunkStore, receipts: Callable[[], tuple[Receipt, ...]]) -> None:
        self._folder = folder
        self._store = store
        self._receipts = receipts
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remember(self, manifest: Manifest) -> None:
        """``manifest`` is in place now. Writing it again changes nothing."""
        folder = self._folder / manifest.release
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{manifest.counter:020d}-{manifest.manifest_id.hex()}.manifest"
        if path.exists():
            return
        write_atomic(path, manifest.encoded)
        for old in sorted(folder.glob("*.manifest"))[:-KEPT_PER_RELEASE]:
            with contextlib.suppress(OSError):
                old.unlink()

    def counter(self, release: str) -> int:
        """The highest counter of ``release`` that was applied here; 0: none."""
        names = sorted(path.name for path in (self._folder / release).glob("*.manifest"))
        return int(names[-1].partition("-")[0]) if names else 0

    def manifests(self) -> list[Manifest]:
        """All that are kept; damaged files are removed and named in the log."""
        kept = []
        for path in sorted(self._folder.glob("*/*.manifest")):
            try:
                kept.append(decode_untrusted(path.read_bytes()))
            except (OSError, UntrustedBytes) as error:
                log.warning("%s is damaged and removed: %s", path, error)
                with contextlib.suppress(OSError):
                    path.unlink()
        return kept

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
