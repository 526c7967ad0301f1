"""What marks a fleet folder as that of a site that acts alone: ``site.json``, and what may be staged in it.

A site's folder is a fleet folder in all but this: it holds no certificate authority and no fleet document, and what it publishes
are policies, releases of the site's own names, and halts, which reach the site's devices. Devices look at nothing else in it;
here it is refused while somebody can still correct it. What the fleet lets the site set is held beside it (``held_floor``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
from tuf.api.metadata import Targets  # type: ignore[attr-defined]

from pcm_p2p.errors import InputError
from pcm_p2p.trust.delegation import HALT, TARGETS, index_of, role_of_path
from pcm_p2p.trust.index import LIFTED
from pcm_p2p.trust.site_root import is_own_release

NAME = "site.json"


class SiteFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``fleet`` is the id of the fleet that the site belongs to; the folder's own id is ``site_root.repository_id`` of both.
    ``counters_above``: the counters of its releases are higher. Devices never go to a lower one, and a folder that was made in
    place of another does not know how far that one had come: seconds since 1970 at the founding, for nobody releases so often."""

    schema: Literal["pcm.site-folder/1"]
    fleet: str
    site: str
    counters_above: int


def site_of(folder: Path) -> SiteFacts | None:
    """Which site the fleet folder is of; None for a fleet's own. Raises ``InputError`` if the file does not read."""
    file = folder / NAME
    try:
        return msgspec.json.decode(file.read_bytes(), type=SiteFacts)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot be read: {error}", path=file, remedy="Restore it from a backup of the folder."
        ) from None


def counters_above(folder: Path) -> int:
    """What the counters of releases in this folder are above: 0 for a fleet's own. Raises as ``site_of``."""
    facts = site_of(folder)
    return facts.counters_above if facts is not None else 0


def site_complaints(folder: Path, role: str, targets: Targets) -> tuple[str, ...]:
    """What in a proposed targets document is not for a site to publish; nothing for a fleet's own folder."""
    facts = site_of(folder)
    return tuple(_complaints(facts.site, role, targets)) if facts is not None else ()


def _complaints(site: str, role: str, targets: Targets) -> Iterator[str]:
    for path in sorted(targets.targets):
        folder, _, name = path.rpartition("/")
        if path == index_of(role) or role_of_path(path) == HALT == role:
            continue
        if role == TARGETS and (folder in ("audit", "policies") or path == LIFTED):
            continue
        if role != TARGETS or folder != "releases/main":
            yield f"{path} is not for site {site} to publish: policies, halts and its own releases are"
        elif not is_own_release(site, name.partition("@")[0]):
            yield f"{name} is not a name for a release of site {site}; its own begin with '{site}-'"
