"""The state folder at the start of a service: whose it is, who else could write into it, and who could read its keys.

What is looked at, before any of it is believed:

- every folder above: nobody else may rename the state folder away (world-writable without the sticky bit);
- the folder itself, what is directly in it, and what is in the folders of ``LOOKED_INTO``: owned by the user of this process, no
  links, and not writable by others. Below a folder that others cannot enter, their rights to write mean nothing, and a group
  that is the owner's own (same name, no further members, as Debian makes it for each user) is no other;
- private files: regular, and readable by their owner alone, wherever they are.

A fault stops the service: a key that others could read is known to them, and what others could write they may have written. The
remedy is a command line. Root's own services are held to the same: a folder of somebody else is theirs to change.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pcm_p2p.errors import TrustError

STATE_PRIVATE = ("identity/device.key", "collector/seal.key", "collector/console-password")
"""Of a daemon's or collector's state folder, as patterns."""
FLEET_PRIVATE = (
    *("keys/*.key", "ca/*.key", "ca/next/*.key", "ca/former/*.key"),
    *("enrolment/desk/device.key", "enrolment/tokens/*"),
)
"""Of a fleet folder, on the machine of the desk."""
LOOKED_INTO = (
    *("identity", "trust", "trust/generations", "trust/roots", "site-trust", "run", "apply", "collector", "releases"),
    *("keys", "ca", "enrolment", "enrolment/desk", "enrolment/tokens"),
)
ENTRIES_MAX = 10_000
"""Choice: a folder of more entries is looked at so far; ours have dozens, and a desk one for each token."""


@dataclass(frozen=True)
class Fault:
    """Something that is not as it must be, and the command that puts it right."""

    path: Path
    what: str
    remedy: str


def check_state(state: Path, private: Sequence[str] = STATE_PRIVATE) -> None:
    """Raises ``TrustError`` for the first fault of ``faults``, as the user of this process."""
    for fault in faults(state, private, uid=os.geteuid()):
        raise TrustError(f"{fault.path}: {fault.what}", remedy=fault.remedy)


def faults(state: Path, private: Sequence[str], *, uid: int) -> Iterator[Fault]:
    """What keeps a service of the user ``uid`` from starting on ``state``; the most important first."""
    try:
        state = state.resolve(strict=True)
    except OSError as error:
        yield Fault(state, f"cannot be used: {error.strerror}", "Enrol this device, or pass another --state.")
        return
    for folder in state.parents:
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            yield Fault(folder, "can be written by everybody, who could replace what is in it", _chmod("o-w", folder))
    yield from _look_at(state, uid, entered=True, folder_only=True)
    entered = bool(state.stat().st_mode & 0o077)
    for folder in (state, *(state / name for name in LOOKED_INTO)):
        if folder.is_dir() and not folder.is_symlink():
            inside = entered and bool(folder.stat().st_mode & 0o011)
            yield from _entries(folder, uid, entered=inside)
    for pattern in private:
        for path in sorted(state.glob(pattern)):
            yield from _private(path)


def _entries(folder: Path, uid: int, *, entered: bool) -> Iterator[Fault]:
    try:
        names = sorted(os.listdir(folder))[:ENTRIES_MAX]  # noqa: PTH208 - names only
    except OSError as error:
        yield Fault(folder, f"cannot be read: {error.strerror}", f"sudo chown -R {_user(uid)} {_quoted(folder)}")
        return
    for name in names:
        yield from _look_at(folder / name, uid, entered=entered)


def _look_at(path: Path, uid: int, *, entered: bool, folder_only: bool = False) -> Iterator[Fault]:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return  # a temporary file of a process that is ending
    if stat.S_ISLNK(found.st_mode):
        yield Fault(path, "is a link; what it leads to is not ours to believe", f"rm {_quoted(path)}")
    elif folder_only and not stat.S_ISDIR(found.st_mode):
        yield Fault(path, "is not a folder", "Pass another --state.")
    elif found.st_uid != uid:
        yield Fault(
            path,
            f"belongs to {_user(found.st_uid)}, and this runs as {_user(uid)}",
            f"Run as that user, or: sudo chown -R {_user(uid)} {_quoted(path)}",
        )
    elif entered and (found.st_mode & 0o002 or (found.st_mode & 0o020 and not _is_own_group(found.st_gid, uid))):
        who = "everybody" if found.st_mode & 0o002 else "its group"
        yield Fault(path, f"can be written by {who} ({stat.S_IMODE(found.st_mode):o})", _chmod("go-w", path))


def _private(path: Path) -> Iterator[Fault]:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        yield Fault(path, "is not a regular file", f"Remove it: rm {_quoted(path)}")
    elif found.st_mode & 0o077:
        yield Fault(
            path,
            f"can be read or written by others ({stat.S_IMODE(found.st_mode):o}), and must be known to its owner alone",
            f"{_chmod('600', path)}; if somebody else was on this machine, replace the key",
        )


def _is_own_group(gid: int, uid: int) -> bool:
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_gid == gid and user.pw_name == group.gr_name and not set(group.gr_mem) - {user.pw_name}


def _chmod(mode: str, path: Path) -> str:
    return f"chmod {mode} {_quoted(path)}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
