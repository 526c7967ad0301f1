"""Packages from dpkg's own files: ``status`` and the journal of a dpkg that runs or was killed (``updates/``).

The files are read once and again when they change: ``dpkg-query`` would be a process per check. ``installed`` is dpkg's third
status word; a package that is unpacked but not configured is not installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pcm_p2p.compliance.facts.below_root import Below
from pcm_p2p.compliance.facts.observation import CannotTell, Observation

STATUS = "/var/lib/dpkg/status"
UPDATES = "/var/lib/dpkg/updates"
STATUS_SIZE_BYTES_MAX = 64 << 20
"""Choice: 20 times the status file of a desktop with 4,000 packages."""


@dataclass(frozen=True, slots=True)
class _Package:
    version: str
    arch: str
    installed: bool
    held: bool


class PackageProbe:
    """Keeps the parsed database between checks; one instance per root."""

    def __init__(self) -> None:
        self._seen: tuple[object, ...] | None = None
        self._packages: Mapping[str, Mapping[str, _Package]] = {}

    def observe(self, below: Below, name: str) -> Observation:
        """Of several architectures the first installed one counts. Raises ``CannotTell``, ``OutOfBudget``."""
        found = [*self._database(below).get(name, {}).values()]
        package = next((one for one in found if one.installed), None)
        held = any(one.held for one in found)
        if package is None:
            return {"installed": False, "version": None, "arch": None, "held": held if found else None}
        return {"installed": True, "version": package.version, "arch": package.arch, "held": held}

    def _database(self, below: Below) -> Mapping[str, Mapping[str, _Package]]:
        journal = [f"{UPDATES}/{name}" for name in below.names(UPDATES) if name.isdecimal()]
        seen = tuple(_identity(below, path) for path in (STATUS, *journal))
        if seen != self._seen:
            self._packages = self._parse(below, journal)
            self._seen = seen
        return self._packages

    def _parse(self, below: Below, journal: list[str]) -> Mapping[str, Mapping[str, _Package]]:
        packages: dict[str, dict[str, _Package]] = {}
        for path in (STATUS, *journal):
            data = below.read(path, STATUS_SIZE_BYTES_MAX)
            if data is None:
                if path == STATUS and below.is_system:
                    raise CannotTell("there is no dpkg database on this system")
                continue
            for stanza in data.decode("utf-8", "replace").split("\n\n"):
                fields = dict(_fields(stanza))
                if name := fields.get("package"):
                    wish, _, state = (*fields.get("status", "").split(), "", "", "")[:3]
                    arch = fields.get("architecture", "")
                    packages.setdefault(name, {})[arch] = _Package(
                        fields.get("version", ""), arch, state == "installed", wish == "hold"
                    )
            below.check_time(path)
        return packages


def _fields(stanza: str) -> Iterator[tuple[str, str]]:
    for line in stanza.splitlines():
        if not line.startswith((" ", "\t")):
            key, _, value = line.partition(":")
            if key in ("Package", "Status", "Version", "Architecture"):
                yield key.lower(), value.strip()


def _identity(below: Below, path: str) -> object:
    with below.place(path, follow=True) as descriptor:
        if descriptor is None:
            return None
        found = os.fstat(descriptor)
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
