"""Steps: what providers observe, and the reversible steps that a plan is made of. Frozen data; journaled as JSON.

A step holds everything that undoing it needs, except the back-ups, which lie under the names given here in the folder of
the transaction. SHA-256 in lower-case hexadecimal; ``made_folders`` are the parents that did not exist before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec


class Staged(msgspec.Struct, frozen=True):
    """An assembled artifact, and the SHA-256 that the signed manifest gives for it (of the stored form)."""

    path: Path
    sha256: str


class PackageIdentity(msgspec.Struct, frozen=True):
    name: str
    version: str
    architecture: str


def is_configured(status: str) -> bool:
    """Whether dpkg's abbreviation says unpacked, configured, and not in need of a reinstallation (``ii``; held: ``hi``)."""
    return len(status) == 2 and status[1] == "i"


class PackageObserved(msgspec.Struct, frozen=True):
    """``status`` is dpkg's abbreviation (``ii``; empty: not known to dpkg); ``backup``: a previous .deb can be had."""

    wanted: PackageIdentity
    sha256: str
    status: str = ""
    version: str = ""
    architecture: str = ""
    backup: bool = False


class ArchiveObserved(msgspec.Struct, frozen=True):
    """``folder_sha256``: of the artifact that the version folder was unpacked from; empty: no folder, or a foreign one."""

    sha256: str
    folder_exists: bool
    folder_sha256: str
    link_target: str | None
    made_folders: tuple[str, ...] = ()


class FileObserved(msgspec.Struct, frozen=True):
    """``wanted_*`` None: not asked. The others describe the file that is there, if ``present``."""

    present: bool
    wanted_sha256: str | None
    wanted_uid: int | None
    wanted_gid: int | None
    sha256: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    made_folders: tuple[str, ...] = ()


class ServiceObserved(msgspec.Struct, frozen=True):
    present: bool
    enabled: bool
    active: bool


Observed = PackageObserved | ArchiveObserved | FileObserved | ServiceObserved


class PackageChange(msgspec.Struct, frozen=True):
    """One package of an ``InstallPackages``: from ``previous_*`` (empty: absent) to ``wanted``."""

    artifact: str
    sha256: str
    wanted: PackageIdentity
    previous_status: str
    previous_version: str
    previous_architecture: str
    backup: str | None


class InstallPackages(msgspec.Struct, frozen=True, tag_field="step", tag="packages"):
    """All packages of a change in one dpkg run, so that dpkg orders them by their dependencies."""

    packages: tuple[PackageChange, ...]

    @property
    def title(self) -> str:
        return "install " + ", ".join(f"{package.wanted.name} {package.wanted.version}" for package in self.packages)


class SwitchArchive(msgspec.Struct, frozen=True, tag_field="step", tag="archive"):
    """Unpack to ``path/folder`` if ``unpack``, then point ``path/link`` at it. ``path`` is relative to the root."""

    path: str
    link: str
    folder: str
    artifact: str
    sha256: str
    unpack: bool
    replaces: bool
    previous_target: str | None
    made_folders: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"switch /{self.path}/{self.link} to {self.folder}"


class WriteFile(msgspec.Struct, frozen=True, tag_field="step", tag="file"):
    """``sha256`` None: attributes only. ``backup`` None: the file did not exist. ``path`` is relative to the root.

    ``previous_*`` were observed of one open file; the bytes that are backed up must be those (empty: of a journal of before).
    """

    path: str
    content: str | None
    artifact: str | None
    sha256: str | None
    mode: int
    uid: int | None
    gid: int | None
    existed: bool
    previous_mode: int
    previous_uid: int
    previous_gid: int
    backup: str | None
    made_folders: tuple[str, ...]
    previous_sha256: str = ""

    @property
    def title(self) -> str:
        return f"{'write' if self.sha256 else 'set attributes of'} /{self.path}"


class SetService(msgspec.Struct, frozen=True, tag_field="step", tag="service"):
    name: str
    enabled: bool | None
    active: bool | None
    restart: bool
    was_enabled: bool
    was_active: bool

    @property
    def title(self) -> str:
        said = []
        if self.enabled is not None and self.enabled != self.was_enabled:
            said.append("enable" if self.enabled else "disable")
        if self.active is not None and self.active != self.was_active:
            said.append("start" if self.active else "stop")
        if self.restart:
            said.append("restart")
        return f"{' and '.join(said)} {self.name}"


Step = InstallPackages | SwitchArchive | WriteFile | SetService

Verdict = Literal["done", "rolled_back", "parked"]
