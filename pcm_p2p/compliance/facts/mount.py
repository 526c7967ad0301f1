"""Mounts: what is mounted now (mountinfo) and what will be (fstab). In a private root, mount points are taken below it."""

from __future__ import annotations

import re
from pathlib import Path

from pcm_p2p.compliance.facts.below_root import Below
from pcm_p2p.compliance.facts.observation import CannotTell, Fact, Observation, Unknown

SIZE_BYTES_MAX = 16 << 20
"""Choice: a host with 50,000 mounts has 8 MB."""

_OCTAL = re.compile(r"\\([0-7]{3})")


def observe(below: Below, procfs: Path, path: str) -> Observation:
    """A side that cannot be read is ``Unknown``, the other is still told. Raises ``OutOfBudget``."""
    fstab: Fact
    try:
        fstab = _fstab_options(below, path)
    except CannotTell as error:
        fstab = Unknown("error", str(error))
    return {**_mounted(below, procfs, path), "fstab_options": fstab}


def _mounted(below: Below, procfs: Path, path: str) -> Observation:
    wanted = path if below.is_system else str(below.root.resolve() / path.lstrip("/")).rstrip("/")
    try:
        with (procfs / "self" / "mountinfo").open("rb") as file:
            data = file.read(SIZE_BYTES_MAX + 1)
    except OSError as error:
        unknown = Unknown("error", f"mountinfo: {error.strerror}")
        return dict.fromkeys(("mounted", "fstype", "device", "options"), unknown)
    if len(data) > SIZE_BYTES_MAX:
        unknown = Unknown("not_run", f"mountinfo is longer than {SIZE_BYTES_MAX} bytes")
        return dict.fromkeys(("mounted", "fstype", "device", "options"), unknown)
    found: Observation = {"mounted": False, "fstype": None, "device": None, "options": None}
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        before, separator, behind = line.partition(" - ")
        fields, more = before.split(" "), behind.split(" ")
        if separator and len(fields) >= 6 and len(more) >= 3 and _plain(fields[4]) == wanted:
            # The last line for a place is the mount on top. Options of the mount stand before those of the file system.
            options = dict.fromkeys([*fields[5].split(","), *more[2].split(",")])
            found = {"mounted": True, "fstype": more[0], "device": _plain(more[1]), "options": tuple(options)}
    return found


def _fstab_options(below: Below, path: str) -> tuple[str, ...] | None:
    data = below.read("/etc/fstab", SIZE_BYTES_MAX)
    found: tuple[str, ...] | None = None
    for line in (data or b"").decode("utf-8", "surrogateescape").splitlines():
        fields = line.split()
        if len(fields) >= 2 and not fields[0].startswith("#"):
            place = _plain(fields[1])
            if (place.rstrip("/") or "/") == path:
                found = tuple(fields[3].split(",")) if len(fields) > 3 else ("defaults",)
    return found


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), text)
