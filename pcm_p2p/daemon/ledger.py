"""Ledger: the signed manifests of what was applied on this device, so that no release goes backwards.

Per release name the two manifests applied last are kept (``<counter>-<manifest id>.manifest`` in a folder of the name), the
newest of which sets the floor of the release counter; one that was damaged still does, by its name.
"""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path
from typing import NamedTuple

from pcm_p2p.content.manifest import Manifest, decode_untrusted
from pcm_p2p.durable import sweep_temporaries, write_atomic
from pcm_p2p.errors import UntrustedBytes

log = logging.getLogger(__name__)

KEPT_PER_RELEASE = 2
_NAME = re.compile(r"([0-9]{20})-[0-9a-f]{64}\.(?:manifest|damaged)")


class _Kept(NamedTuple):
    counter: int
    path: Path


class Ledger:
    """Blocking; called in worker threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._decoded: dict[tuple[Path, int, int], Manifest] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remember(self, manifest: Manifest) -> None:
        """``manifest`` is in place now. Writing it again changes nothing."""
        folder = self._folder / manifest.release
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{manifest.counter:020d}-{manifest.manifest_id.hex()}.manifest"
        if path.exists():
            return
        sweep_temporaries(folder)
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


def _kept_in(folder: Path) -> list[_Kept]:
    """Rising by counter; what has another name is not ours."""
    found = ((_NAME.fullmatch(path.name), path) for path in folder.glob("*"))
    return sorted(_Kept(int(match[1]), path) for match, path in found if match)
