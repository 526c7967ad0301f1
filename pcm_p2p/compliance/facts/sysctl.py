"""Kernel settings: ``live`` from procfs, ``persisted`` as the next boot will set it.

Merge order of systemd-sysctl (sysctl.d(5)): folders from etc to lib, where a file masks those of the same name in later
folders; then all files by name, later assignments win; an exact key wins over a pattern, whatever their order; ``-key`` alone
takes a key out of patterns. ``/etc/sysctl.conf`` counts only through the link that Debian puts into ``/etc/sysctl.d``.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pcm_p2p.compliance.facts.below_root import Below
from pcm_p2p.compliance.facts.observation import CannotTell, Fact, Observation, Unknown

FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
SIZE_BYTES_MAX = 1 << 20


def observe(below: Below, procfs: Path, key: str) -> Observation:
    """``key`` with dots or slashes. A side that cannot be read is ``Unknown``, the other is still told."""
    place = _path_of(key)
    persisted: Fact
    try:
        persisted = _persisted(below, place)
    except CannotTell as error:
        persisted = Unknown("error", str(error))
    return {"live": _live(procfs, place), "persisted": persisted}


def _path_of(key: str) -> str:
    """The key as a path: the first separator decides which character separates (sysctl.d(5))."""
    first = next((letter for letter in key if letter in "./"), ".")
    return key if first == "/" else key.translate(str.maketrans("./", "/."))


def _live(procfs: Path, place: str) -> Fact:
    try:
        with (procfs / "sys" / place).open("rb") as file:
            data = file.read(SIZE_BYTES_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Unknown("error", f"{place}: {error.strerror}")
    return " ".join(data.decode("utf-8", "replace").split())


def _persisted(below: Below, place: str) -> str | None:
    exact: str | None = None
    by_pattern: str | None = None
    excluded = False
    for key, value in _assignments(below):
        if key == place:
            exact = value if value is not None else exact
            excluded = excluded or value is None
        elif value is not None and _is_pattern(key) and _fits(place, key):
            by_pattern = value
    return exact if exact is not None else None if excluded else by_pattern


def _is_pattern(key: str) -> bool:
    return any(letter in key for letter in "*?[")


def _fits(place: str, pattern: str) -> bool:
    return place.count("/") == pattern.count("/") and fnmatch.fnmatchcase(place, pattern)


def _assignments(below: Below) -> Iterator[tuple[str, str | None]]:
    """All in the order in which they are made; value None is an exclusion."""
    chosen: dict[str, str] = {}
    for folder in FOLDERS:
        for name in below.names(folder):
            if name.endswith(".conf"):
                chosen.setdefault(name, f"{folder}/{name}")
    for name in sorted(chosen):
        try:
            data = below.read(chosen[name], SIZE_BYTES_MAX)
        except CannotTell:
            with below.place(chosen[name], follow=True) as place:
                if place is not None and _is_null(place):
                    continue  # linked to /dev/null: masked
            raise
        for line in (data or b"").decode("utf-8", "replace").splitlines():
            text = line.strip()
            if not text or text[0] in "#;":
                continue
            key, assigned, value = text.partition("=")
            key = key.strip()
            if assigned:
                yield _path_of(key.removeprefix("-")), " ".join(value.split())
            elif key.startswith("-"):
                yield _path_of(key[1:]), None


def _is_null(place: int) -> bool:
    found = os.fstat(place)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)
