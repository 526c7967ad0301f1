"""The apply service's own settings: ``apply.toml`` and the pinned root in a folder that nobody else can change.

::

    socket = "/run/pcm-p2p-apply/socket"
    client = "pcm-p2p"                     # the account of the network's daemon, by name or number

    [device]
    id = "<32 hex>"
    fleet = "<32 hex>"
    site = "office-1"
    labels = ["desktop"]

    [apply]
    root = "/"

Site and labels decide which policies are for this device, so those of the daemon's ``config.toml`` are not asked: who takes the
daemon over could write them.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import Annotated

import msgspec

from pcm_p2p.errors import InputError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.ids import DeviceId, check_name
from pcm_p2p.policy.selector import DeviceFacts
from pcm_p2p.toml_document import load_toml

SETTINGS = "apply.toml"
PINNED_ROOT = "root.json"
SOCKET = Path("/run/pcm-p2p-apply/socket")

_Hex16 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Device(_Table, frozen=True):
    id: _Hex16
    fleet: _Hex16
    site: str = "default"
    labels: tuple[str, ...] = ()


class Apply(_Table, frozen=True):
    """Where packages, archives and files go; another root than ``/`` is a private root."""

    root: str = "/"


class ApplySettings(_Table, frozen=True):
    device: Device
    client: str
    socket: str = str(SOCKET)
    apply: Apply = msgspec.field(default_factory=Apply)

    @property
    def facts(self) -> DeviceFacts:
        return DeviceFacts(DeviceId.parse(self.device.id), self.device.site, self.device.labels)


def load_settings(state: Path) -> tuple[ApplySettings, bytes]:
    """The settings and the pinned root. Raises ``InputError``, and ``TrustError`` if others could have written either."""
    if not (state / SETTINGS).exists():
        raise InputError(
            "there is no such file",
            path=state / SETTINGS,
            remedy="As root: 'pcm-p2p apply-service adopt' after 'pcm-p2p enroll join'.",
        )
    for path in (state, state / SETTINGS, state / PINNED_ROOT):
        if complaint := why_not_ours(path):
            raise TrustError(
                f"{path} {complaint}", remedy=f"Look who did that, then: chown root: {path}; chmod go-w {path}"
            )
    settings = load_toml(state / SETTINGS, ApplySettings)
    for key, name in [("site", settings.device.site), *(("labels", label) for label in settings.device.labels)]:
        try:
            check_name(name, key)
        except UntrustedBytes as error:
            raise InputError(error.message, path=state / SETTINGS, key=f"device.{key}") from None
    if not settings.apply.root.startswith("/"):
        raise InputError("is not an absolute path", path=state / SETTINGS, key="apply.root")
    try:
        return settings, (state / PINNED_ROOT).read_bytes()
    except OSError as error:
        raise StorageError(f"{state / PINNED_ROOT} cannot be read: {error.strerror}") from None


def require_ours(path: Path) -> None:
    """Raises ``TrustError`` if somebody else than the user of this process (or root) could have changed ``path``."""
    if complaint := why_not_ours(path):
        raise TrustError(
            f"{path} {complaint}", remedy=f"Look who did that, then: chown root: {path}; chmod go-w {path}"
        )


def require_ours_above(path: Path) -> None:
    """Raises ``TrustError`` if somebody else could put another folder in the place of ``path``."""
    for parent in path.absolute().parents:
        facts = parent.stat()
        # In a folder like /tmp, others can add names but not take away ours.
        if facts.st_uid not in (0, os.geteuid()) or (facts.st_mode & 0o022 and not facts.st_mode & stat.S_ISVTX):
            raise TrustError(
                f"{path} lies in {parent}, which others can change",
                remedy="Choose a place to which only root can write.",
            )


def why_not_ours(path: Path) -> str:
    """Why somebody else than the user of this process (or root) could have changed ``path``; empty if nobody could."""
    try:
        facts = path.lstat()
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    if stat.S_ISLNK(facts.st_mode):
        return "is a link"
    if facts.st_uid not in (0, os.geteuid()):
        return f"belongs to user {facts.st_uid}"
    if facts.st_mode & 0o022:
        return f"can be written by others (mode {stat.S_IMODE(facts.st_mode):o})"
    return ""


def account(name: str, place: Path) -> tuple[int, int]:
    """User and group number of the account ``name`` (a number is its own user and group). Raises ``InputError``."""
    if name.isdigit():
        return int(name), int(name)
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise InputError(
            f"there is no account {name!r} on this device",
            path=place,
            key="client",
            remedy="Make it with 'systemd-sysusers', or name another one.",
        ) from None
    return found.pw_uid, found.pw_gid
