"""Files: what lstat says, with names from the root's own passwd and group, and a hash where one is asked for.

A link at the end of the path is the object itself: its target is an attribute. Sockets, links and devices have no hash
and no size worth comparing.
"""

from __future__ import annotations

import hashlib
import os
import stat

from pcm_p2p.compliance.facts.below_root import Below
from pcm_p2p.compliance.facts.observation import Observation

ACCOUNTS_SIZE_BYTES_MAX = 4 << 20

_TYPES = (
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "folder"),
    (stat.S_ISLNK, "link"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISBLK, "block"),
    (stat.S_ISCHR, "character"),
)

_ABSENT: Observation = {
    "exists": False,
    "type": None,
    "owner": None,
    "group": None,
    "mode": None,
    "sha256": None,
    "size_bytes": None,
    "symlink_target": None,
}


def observe(below: Below, path: str, *, hashed: bool) -> Observation:
    """``hashed``: read the contents too. Raises ``CannotTell``, ``OutOfBudget``."""
    with below.place(path, follow=False) as place:
        if place is None:
            return _ABSENT
        found = os.fstat(place)
        regular, link = stat.S_ISREG(found.st_mode), stat.S_ISLNK(found.st_mode)
        sha256 = None
        if hashed and regular:
            digest = hashlib.sha256()
            for block in below.blocks(place, path):
                digest.update(block)
            sha256 = digest.hexdigest()
        return {
            "exists": True,
            "type": next((name for test, name in _TYPES if test(found.st_mode)), "file"),
            "owner": _name(below, "/etc/passwd", found.st_uid),
            "group": _name(below, "/etc/group", found.st_gid),
            "mode": stat.S_IMODE(found.st_mode),
            "sha256": sha256,
            "size_bytes": found.st_size if regular else None,
            "symlink_target": os.readlink("", dir_fd=place) if link else None,
        }


def _name(below: Below, table: str, number: int) -> str:
    """The account's name, or its number where the root's own table has none: directories over a network are not asked."""
    data = below.read(table, ACCOUNTS_SIZE_BYTES_MAX) or b""
    for line in data.decode("utf-8", "replace").splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2] == str(number):
            return fields[0]
    return str(number)
