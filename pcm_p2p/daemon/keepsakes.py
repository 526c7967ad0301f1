"""Keepsakes: what of the releases that were applied here a roll-back finds again, as real bytes.

The office keeps copies of the chunks of the manifests that were applied last (``caretaker``); those of the package that a change
replaces are gathered here before the change.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from pcm_p2p.apply.receipt import Receipt
from pcm_p2p.content.keeping.assemble import assemble
from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.content.manifest import Manifest
from pcm_p2p.daemon.ledger import Ledger
from pcm_p2p.errors import PcmError
from pcm_p2p.swarm.holdings import bits_of

log = logging.getLogger(__name__)


class Keepsakes(Ledger):
    """Blocking; called in worker threads. ``receipts`` gives what packages artifacts turned out to be."""

    def __init__(self, folder: Path, store: ChunkStore, receipts: Callable[[], tuple[Receipt, ...]]) -> None:
        super().__init__(folder)
        self._store = store
        self._receipts = receipts

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
