"""Releases in a targets document, and the counters by which devices tell which of two is newer. Pure.

Counters only grow, also over releases that were taken back: a device that applied one of these refuses anything lower. The
index remembers the highest counter of what is no longer listed, in its ``custom`` field.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from tuf.api.metadata import TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.trust.index import INDEX

COUNTERS = "counters"
"""Custom field of the index: highest counters of releases that are no longer listed, by release name."""


@dataclass(frozen=True)
class Release:
    """A release among the staged or published targets."""

    name: str
    version: str
    counter: int
    path: str
    published: bool


def releases_of(targets: Targets, published: Targets | None) -> tuple[Release, ...]:
    """What ``targets`` lists, by name and counter; ``published`` says which of it devices know already."""
    found = []
    for path, info in targets.targets.items():
        if path.endswith(".manifest"):
            there = published is not None and published.targets.get(path) == info
            found.append(Release(*_named(path), _counter(info), path, there))
    return tuple(sorted(found, key=lambda release: (release.name, release.counter)))


def highest_counters(targets: Targets) -> dict[str, int]:
    """By release name: of the releases in this document, and of those that it remembers."""
    highest: dict[str, int] = {}
    for path, info in targets.targets.items():
        if path == INDEX or path.endswith(f"/{INDEX}"):
            remembered = info.custom.get(COUNTERS) if isinstance(info.custom, dict) else None
            if isinstance(remembered, dict):
                highest |= {name: one for name, one in remembered.items() if isinstance(name, str) and type(one) is int}
    for path, release in targets.targets.items():
        if path.endswith(".manifest"):
            name, _ = _named(path)
            highest[name] = max(highest.get(name, 0), _counter(release))
    return highest


def counters_gone(published: Targets | None, working: Targets) -> dict[str, int]:
    """What ``working`` has to remember of ``published``: counters above those of the releases that stay."""
    before = highest_counters(published) if published is not None else {}
    stay = Targets(targets={path: info for path, info in working.targets.items() if not path.endswith(INDEX)})
    now = highest_counters(stay)
    return {name: counter for name, counter in sorted(before.items()) if counter > now.get(name, 0)}


def same_but_for_counter(known: Manifest, offered: Manifest) -> bool:
    """Equal but for the counter, which the tool gave."""
    return msgspec.structs.replace(known, counter=0) == msgspec.structs.replace(offered, counter=0)


def _named(path: str) -> tuple[str, str]:
    """Release and version, as the path of a manifest names them: what a carried document says beside it is its signer's word."""
    name, _, version = path.rpartition("/")[2].removesuffix(".manifest").partition("@")
    return name, version


def _counter(info: TargetFile) -> int:
    """What the tool wrote beside the target; 0 where somebody else's tool wrote something else."""
    counter = (info.custom or {}).get("counter") if isinstance(info.custom, dict) else None
    return counter if type(counter) is int and counter > 0 else 0
