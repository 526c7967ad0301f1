"""Places: what of a device a policy manages or looks at, and whether somebody else's change would reach it.

A change reaches a held place when it is that place, a folder around it, within a tree that is held, or what decides about it
elsewhere: a file of ``sysctl.d`` for a sysctl; for a service the unit's own files and drop-ins, its template's, and those that
systemd reads for all units of a kind or with the beginning of a name; ``/etc/fstab`` and its unit for a mount. Paths
compare as they are written: what is applied follows no links.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Literal

from pcm_p2p.policy.allowance import resources_of
from pcm_p2p.policy.document import (
    Assignment,
    Check,
    FileCheck,
    FileContentCheck,
    MountCheck,
    PackageCheck,
    Policy,
    ServiceCheck,
    SysctlCheck,
)
from pcm_p2p.policy.resource import ArchiveResource, FileResource, PackageResource, Resource, ServiceResource

_SYSCTL_FOLDERS = (
    "/etc/sysctl.d/",
    "/run/sysctl.d/",
    "/usr/lib/sysctl.d/",
    "/usr/local/lib/sysctl.d/",
    "/lib/sysctl.d/",
)
_SYSCTL_REMEDY = f"{_SYSCTL_FOLDERS[0]}90-pcm_p2p-"
_UNIT_FOLDERS = tuple(
    f"{folder}/systemd/{kind}/"
    for folder in ("/etc", "/run", "/usr/lib", "/usr/local/lib", "/lib")
    for kind in (
        *("system", "system.control", "system.attached", "transient"),
        *("generator", "generator.early", "generator.late"),
    )
)
"""systemd.unit(5), the search path of the system."""

_Kind = Literal["path", "tree", "unit", "package", "sysctl"]


class Held:
    """The places of one policy, where ``assignments`` are those of it that count."""

    def __init__(self, policy: Policy, assignments: Iterable[Assignment]) -> None:
        self._of: dict[_Kind, dict[str, str]] = {"path": {}, "tree": {}, "unit": {}, "package": {}, "sysctl": {}}
        releases = {f"release {assignment.release}" for assignment in assignments}
        for asker, resource in resources_of(policy):
            if asker.startswith("check ") or asker in releases:
                for kind, name in _made(resource):
                    self._of[kind].setdefault(name, asker)
        for check in policy.checks:
            for kind, name in _looked_at(check):
                self._of[kind].setdefault(name, f"check {check.id}")
        self._paths = sorted(self._of["path"])
        self._deciding: dict[str, str] = {}
        for unit, holder in self._of["unit"].items():
            for name in _deciding(unit):
                self._deciding.setdefault(name, holder)

    def holder_of(self, resource: Resource, asker: str) -> str:
        """What holds a place that ``resource`` would reach (``release x``, ``check y``); empty if nothing does."""
        match resource:
            case PackageResource():
                return self._of["package"].get(_package(resource.artifact), "")
            case ServiceResource():
                says_state = resource.enabled is not None or resource.active is not None
                return self._of["unit"].get(resource.name, "") if says_state else ""
            case ArchiveResource():
                tree, link = f"{resource.path}/{resource.name}", f"{resource.path}/{resource.link}"
                return (
                    self._at(link) or self._first_path(f"{tree}-") or self._first_path(f"{tree}/") or self._tree(tree)
                )
            case FileResource():
                return self._at(resource.path) or self._sysctl(resource.path, asker)
        raise TypeError(f"{type(resource).__name__} is at no known place")

    def _at(self, path: str) -> str:
        """Who holds the path itself, something below it, a tree that it is in, or the unit that it is a file of."""
        for folder in _UNIT_FOLDERS:
            if path.startswith(folder):
                unit = path.removeprefix(folder).partition("/")[0].removesuffix(".d")
                if unit in self._deciding:
                    return self._deciding[unit]
        return self._of["path"].get(path, "") or self._first_path(f"{path}/") or self._tree(path)

    def _first_path(self, prefix: str) -> str:
        at = bisect_left(self._paths, prefix)
        return (
            self._of["path"][self._paths[at]] if self._paths[at : at + 1] and self._paths[at].startswith(prefix) else ""
        )

    def _tree(self, path: str) -> str:
        """Who holds a tree that meets ``path``, which may be a tree itself."""
        for tree, holder in self._of["tree"].items():
            around = tree.startswith((f"{path}/", f"{path}-"))
            if path == tree or path.startswith((f"{tree}/", f"{tree}-")) or around:
                return holder
        return ""

    def _sysctl(self, path: str, asker: str) -> str:
        if not path.startswith(_SYSCTL_FOLDERS):
            return ""
        if asker.startswith("check ") and path.startswith(_SYSCTL_REMEDY):  # the remedy of a sysctl check sets one key
            return self._of["sysctl"].get(path.removeprefix(_SYSCTL_REMEDY).removesuffix(".conf"), "")
        return next(iter(self._of["sysctl"].values()), "")


def words_of(resource: Resource) -> str:
    """The place of a resource, for people."""
    kind, name = next(_made(resource))
    return f"package {name}" if kind == "package" else name


def _made(resource: Resource) -> Iterator[tuple[_Kind, str]]:
    match resource:
        case FileResource():
            yield "path", resource.path
        case ArchiveResource():
            yield "tree", f"{resource.path}/{resource.name}"
            yield "path", f"{resource.path}/{resource.link}"
        case PackageResource():
            yield "package", _package(resource.artifact)
        case ServiceResource():
            yield "unit", resource.name


def _looked_at(check: Check) -> Iterator[tuple[_Kind, str]]:
    match check:
        case FileCheck() | FileContentCheck():
            yield "path", check.path
        case MountCheck():
            yield "path", check.path
            yield "path", "/etc/fstab"
            yield "unit", _mount_unit(check.path)
        case ServiceCheck():
            yield "unit", check.name
        case SysctlCheck():
            yield "sysctl", check.key.replace("/", ".")
            yield "path", "/etc/sysctl.conf"
        case PackageCheck():
            yield "package", check.name


def _deciding(unit: str) -> Iterator[str]:
    """The names of files (or, with ``.d``, of folders of drop-ins) that systemd reads for ``unit``: ``a-b@c.service`` is made of
    itself, ``a-b@.service``, ``a-.service.d`` and ``service.d``."""
    stem, _, kind = unit.rpartition(".")
    template, at, _ = stem.partition("@")
    yield unit
    if at:
        yield f"{template}@.{kind}"
    yield from (f"{stem[: place + 1]}.{kind}" for place, letter in enumerate(stem) if letter == "-")
    yield kind


def _mount_unit(path: str) -> str:
    """As ``systemd-escape --path --suffix=mount``: ``/var/my-data`` is ``var-my\\x2ddata.mount``."""
    kept = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_.")
    name = "".join(
        "-"
        if letter == "/"
        else letter
        if letter in kept and (letter, place) != (".", 0)
        # What has a meaning of its own in the name of a unit, byte by byte.
        else "".join(f"\\x{byte:02x}" for byte in letter.encode())
        for place, letter in enumerate(path.strip("/"))
    )
    return f"{name or '-'}.mount"


def _package(artifact: str) -> str:
    """The name in ``name_version_arch.deb``: what an artifact is called. What is in it, only its maker says."""
    return artifact.partition("_")[0]
