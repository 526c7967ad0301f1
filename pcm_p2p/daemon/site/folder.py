"""Where what is trusted of the site's own repository lies: ``site-trust/<16 hexadecimal digits of the root's SHA-256>/``.

Another root that the fleet lists begins another folder, and the one before goes. A floor of versions outlives the change as far
as the online keys do (``trust.floor``), so that nobody who still has these can go back. A root that the site's own chain has led
to already is no other.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from pcm_p2p.durable import write_atomic
from pcm_p2p.trust.floor import SavedFloor


def trusted_folder(folder: Path, root: bytes) -> Path:
    """The folder below ``folder`` that goes with this root, for a ``trust.client``; the others are removed. Blocking.

    Raises ``OSError``.
    """
    place = folder / hashlib.sha256(root).hexdigest()[:16]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    others = [each for each in folder.iterdir() if each != place]
    if not place.exists():
        for other in others:
            if any(file.read_bytes() == root for file in (other / "roots").glob("*.root.json")):
                other.rename(place)  # the site's own chain came by this root: nothing else is new
                break
        else:
            _begin(place, others)
    for other in others:
        shutil.rmtree(other, ignore_errors=True)
    return place


def _begin(place: Path, others: Iterable[Path]) -> None:
    """A new folder that knows nothing but how far the versions of the one before had come, and what was proved of it."""
    staging = place.with_suffix(".new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    for other in others:
        if (other / "evidence").is_dir():
            shutil.copytree(other / "evidence", staging / "evidence", dirs_exist_ok=True)
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            floor = msgspec.json.decode((other / "floor.json").read_bytes(), type=SavedFloor)
            write_atomic(staging / "floor.json", msgspec.json.encode(msgspec.structs.replace(floor, root=0)))
    staging.rename(place)
