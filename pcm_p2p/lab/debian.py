"""The package archive of a Debian or Ubuntu machine, used without root and without writing anything of the machine's own.

``apt-get`` reads the machine's sources and, where they are there, its lists; its cache is always ours. Where the lists are
missing (fresh containers) or too old to download from, a private copy of them is fetched below the lab's folder. Answers:
which packages exist in two versions of a suitable size, and what a downloaded ``.deb`` is (``examine``).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from pcm_p2p.lab.processes import LabError

DELIVERED_BYTES_MIN = 20_000_000
DELIVERED_BYTES_MAX = 60_000_000
"""Spec: the default pair is 20-60 MB as delivered."""
INSTALLED_BYTES_MAX = 150_000_000
"""Choice: each device holds it five times over (chunks, staged, installed, two versions)."""
MAINTAINER_SCRIPTS = frozenset({"preinst", "postinst", "prerm", "postrm", "config"})
LISTS_TIMEOUT_S = 300.0
DOWNLOAD_TIMEOUT_S = 300.0
APT_HELPER = Path("/usr/lib/apt/apt-helper")

PREFERRED = (
    # No maintainer scripts, and a content that changes from version to version; measured on Debian 12, share of the
    # bytes in files that differ: 64 %, 100 %, 100 %, 82 %, 100 %. Ubuntu has the first, third and fourth in two versions.
    "libreoffice-core-nogui",
    "chromium-common",
    "openjdk-17-source",
    "glibc-source",
    "libstd-rust-web-dev",
    "openjdk-21-source",
)


class Run(Protocol):
    """How commands are run: ``Processes.run``."""

    async def __call__(
        self, name: str, command: Sequence[str | Path], *, timeout_s: float, folder: Path | None = None
    ) -> bytes: ...


@dataclass(frozen=True)
class Candidate:
    """A package in two versions, the two newest."""

    name: str
    old: str
    new: str


@dataclass(frozen=True)
class Deb:
    """What a ``.deb`` says about itself. ``files`` maps each regular file to the SHA-256 of its bytes and its size."""

    package: str
    version: str
    scripts: tuple[str, ...]
    files: dict[str, tuple[bytes, int]]


class Archive:
    """The machine's package archive. ``folder`` is ours: a cache, and private lists where they are needed."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run = run
        self._folder = folder
        self._private = False

    @staticmethod
    def present() -> bool:
        return shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None and APT_HELPER.exists()

    async def names(self, package: str = "") -> list[str]:
        """Packages in two versions (only ``package`` if named, of any size), the most suitable first. May fetch lists."""
        found = await self._search(package)
        if not found and not self._private:
            await self._fetch_lists()
            found = await self._search(package)
        return found

    async def newest_two(self, name: str) -> Candidate | None:
        """The two newest versions of ``name`` by the rules of dpkg; None if there are not two."""
        # The newest version comes first; there is one line for each archive that has it.
        command = ["apt-cache", *self._options(), "madison", name]
        lines = (await self._run("apt-cache-madison", command, timeout_s=60.0)).decode().splitlines()
        fields = [[field.strip() for field in line.split("|")] for line in lines]
        versions = dict.fromkeys(row[1] for row in fields if len(row) == 3 and row[2].endswith("Packages"))
        if len(versions) < 2:
            return None
        new, old = list(versions)[:2]
        return Candidate(name, old, new)

    async def download(self, candidate: Candidate, into: Path) -> tuple[Path, Path]:
        """Both versions, old first. Stale lists name files that are gone: fresh private ones are then fetched once."""
        try:
            return await self._download(candidate, into)
        except LabError:
            if self._private:
                raise
            await self._fetch_lists()
            return await self._download(candidate, into)

    async def _download(self, candidate: Candidate, into: Path) -> tuple[Path, Path]:
        await trio.Path(into).mkdir(parents=True, exist_ok=True)
        wanted = [f"{candidate.name}={candidate.old}", f"{candidate.name}={candidate.new}"]
        command = ["apt-get", *self._options(), "--quiet", "download", *wanted]
        await self._run("apt-get-download", command, timeout_s=DOWNLOAD_TIMEOUT_S, folder=into)
        paths = [_downloaded(into, candidate.name, version) for version in (candidate.old, candidate.new)]
        return paths[0], paths[1]

    def _options(self) -> list[str]:
        for part in ("cache/archives/partial", "state/lists/partial"):
            (self._folder / part).mkdir(parents=True, exist_ok=True)
        options = [f"Dir::Cache={self._folder / 'cache'}", "Acquire::Retries=2", "Acquire::http::Timeout=30"]
        if self._private:
            options += [f"Dir::State={self._folder / 'state'}", "Dir::State::status=/dev/null"]
        if os.geteuid() == 0:
            options.append("APT::Sandbox::User=root")  # _apt may not enter the checkout
        return [word for option in options for word in ("-o", option)]

    async def _fetch_lists(self) -> None:
        self._private = True
        command = ["apt-get", *self._options(), "--quiet", "update"]
        await self._run("apt-get-update", command, timeout_s=LISTS_TIMEOUT_S)

    async def _search(self, package: str) -> list[str]:
        command = ["apt-get", *self._options(), "indextargets", "--format", "$(FILENAME)", "Created-By: Packages"]
        listing = await self._run("apt-get-indextargets", command, timeout_s=60.0)
        found: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        for name in dict.fromkeys(listing.decode().split("\n")):
            if name and await trio.Path(name).exists():
                data = await self._run("apt-helper", [APT_HELPER, "cat-file", name], timeout_s=60.0)
                await trio.to_thread.run_sync(_read_list, data, package, found)
        names = [name for name, versions in found.items() if len(versions) > 1 and (package or _suitable(versions))]
        return sorted(names, key=lambda name: (_preference(name), _installed(found[name]), name))


def _read_list(data: bytes, package: str, found: dict[str, dict[str, tuple[int, int]]]) -> None:
    for stanza in data.split(b"\n\n"):
        fields = dict(re.findall(rb"^(Package|Version|Size|Installed-Size): (.*)$", stanza, re.MULTILINE))
        name = fields.get(b"Package", b"").decode()
        if not name or (package and name != package):
            continue
        size, installed = int(fields.get(b"Size", 0)), 1024 * int(fields.get(b"Installed-Size", 0))
        if package or DELIVERED_BYTES_MIN <= size <= DELIVERED_BYTES_MAX:
            found[name][fields[b"Version"].decode()] = (size, installed)


def _suitable(versions: dict[str, tuple[int, int]]) -> bool:
    return all(installed <= INSTALLED_BYTES_MAX for _, installed in versions.values())


def _preference(name: str) -> int:
    return PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)


def _installed(versions: dict[str, tuple[int, int]]) -> int:
    return max(installed for _, installed in versions.values())


def _downloaded(folder: Path, name: str, version: str) -> Path:
    # apt writes an epoch's colon as %3a.
    for path in folder.glob(f"{name}_*.deb"):
        if path.name.split("_")[1].replace("%3a", ":") == version:
            return path
    raise LabError(f"apt-get downloaded no {name} {version} into {folder}")


def examine(path: Path) -> Deb:
    """Read a ``.deb`` with dpkg-deb (blocking; a second for 100 MB). Raises ``LabError`` if it is none."""
    try:
        control = _members(path, "--ctrl-tarfile", keep=True)
        files = _members(path, "--fsys-tarfile", keep=False)
    except tarfile.TarError as error:
        raise LabError(f"{path} is not a Debian package: {error}") from None
    text = control.get("control", (b"", 0, b""))[2].decode(errors="replace")
    fields = dict(re.findall(r"^(Package|Version): (.*)$", text, re.MULTILINE))
    return Deb(
        package=fields.get("Package", ""),
        version=fields.get("Version", ""),
        scripts=tuple(sorted(MAINTAINER_SCRIPTS & control.keys())),
        files={name: (digest, size) for name, (digest, size, _) in files.items()},
    )


def _members(path: Path, what: str, *, keep: bool) -> dict[str, tuple[bytes, int, bytes]]:
    members: dict[str, tuple[bytes, int, bytes]] = {}
    with subprocess.Popen(["dpkg-deb", what, path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
        assert reader.stdout is not None
        with tarfile.open(fileobj=reader.stdout, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is not None:
                    data = content.read()
                    name = member.name.removeprefix("./")
                    members[name] = (hashlib.sha256(data).digest(), member.size, data if keep else b"")
    return members


def changed_share(old: Deb, new: Deb) -> float:
    """Share of the new version's bytes that are in files which the old one does not have like that."""
    total = sum(size for _, size in new.files.values())
    kept = sum(size for name, (digest, size) in new.files.items() if old.files.get(name, (b"", 0))[0] == digest)
    return 1 - kept / total if total else 0.0
