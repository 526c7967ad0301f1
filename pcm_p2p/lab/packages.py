"""Two versions of something real to release: from the package archive, else wheels, else two files that the user names.

Downloads are kept in ``packages/`` of the lab's folder with a note of what they are, so that a later run starts at once and
without a network. A package with maintainer scripts is not taken: devices of a lab install into private roots, where dpkg
cannot run them. Of a package archive's pairs one is taken whose content really changes: some security updates are rebuilds in
which 99 % of the chunks stay the same, which is nice for the office and useless as a demonstration.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import trio

from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import check_name
from pcm_p2p.lab import debian, scenario
from pcm_p2p.lab.debian import Archive, Candidate, Run
from pcm_p2p.lab.processes import LabError

CHANGED_SHARE_MIN = 0.3
"""Choice: below this share of changed bytes another pair is looked for."""
TRIES_MAX = 6
"""Choice: pairs that are downloaded and found unsuitable before the wheels are taken instead (60 MB each, at most)."""

WHEEL = "pyarrow"
WHEELS = (
    # CVE-2023-47248, a code execution, is what 14.0.1 fixed. Any machine can unpack them; none runs them.
    ("14.0.0", "ecc463c45f2b6b36431f5f2025842245e8c15afe4d42072230575785f3bb00c6"),
    ("14.0.1", "981670b4ce0110d8dcb3246410a4aabf5714db5d8ea63b15686bce1c914b1f83"),
)
WHEEL_TIMEOUT_S = 300.0

Kind = Literal["package", "archive", "file"]
Say = Callable[[str], None]


class Version(msgspec.Struct, frozen=True):
    """One version: its name in the release, the file as delivered, its SHA-256 in hexadecimal."""

    version: str
    path: str
    sha256: str

    @property
    def file(self) -> Path:
        return Path(self.path)


class Pair(msgspec.Struct, frozen=True):
    """Two versions of one release. ``kind`` is the resource that installs it; ``artifact`` is the file's name in the release,
    the same in both so that one policy fits both; ``package`` is the Debian package's own name."""

    name: str
    kind: Kind
    artifact: str
    old: Version
    new: Version
    package: str = ""
    source: str = ""


@dataclass(frozen=True)
class Shelf:
    """The folder of kept downloads."""

    folder: Path

    def kept(self, name: str) -> Pair | None:
        """The pair that was kept as ``name``, if its files are still what they were."""
        try:
            pair = msgspec.json.decode((self.folder / f"{name}.json").read_bytes(), type=Pair)
            whole = all(_sha256(version.file) == version.sha256 for version in (pair.old, pair.new))
        except (OSError, msgspec.DecodeError):
            return None
        return pair if whole else None

    def keep(self, name: str, pair: Pair) -> Pair:
        write_atomic(self.folder / f"{name}.json", msgspec.json.format(msgspec.json.encode(pair)))
        return pair


async def obtain(wanted: scenario.Release, folder: Path, run: Run, say: Say) -> Pair:
    """The pair that ``wanted`` asks for. ``folder`` is the lab's; ``say`` gets a line for each thing that takes time."""
    shelf = Shelf(folder / "packages")
    await trio.Path(shelf.folder).mkdir(parents=True, exist_ok=True)
    if wanted.old:
        return await trio.to_thread.run_sync(given, Path(wanted.old), Path(wanted.new))
    kept = await trio.to_thread.run_sync(shelf.kept, wanted.package or "default")
    if kept is not None:
        return kept
    if Archive.present():
        try:
            return await _from_archive(Archive(run, folder / "apt"), wanted.package, shelf, say)
        except LabError as error:
            if wanted.package:
                raise
            say(f"The package archive has no suitable pair ({error.message.splitlines()[0]}); taking wheels instead.")
    elif wanted.package:
        raise InputError(
            "this machine has no apt-get to download it with",
            key="release.package",
            remedy="Leave it out, or give two files as release.old and release.new.",
        )
    return await _wheels(shelf, run, say)


def given(old: Path, new: Path) -> Pair:
    """Two files of the user's. Their SHA-256 names the versions, unless they are Debian packages, which say it themselves."""
    for path in (old, new):
        if not path.is_file():
            raise InputError("there is no such file", path=path, remedy="Give the paths of two files.")
    digests = [_sha256(path) for path in (old, new)]
    if digests[0] == digests[1]:
        raise InputError(f"has the same bytes as {old}", path=new, remedy="Give two versions that differ.")
    if old.suffix == new.suffix == ".deb" and Archive.present():
        first, second = debian.examine(old), debian.examine(new)
        if first.package != second.package:
            raise InputError(f"is {second.package}, and {old} is {first.package}", path=new)
        if not first.scripts and not second.scripts:
            return _package_pair(first.package, (old, first.version), (new, second.version), "given")
    kind: Kind = "archive" if _is_archive(old) and _is_archive(new) else "file"
    artifact = f"lab-artifact{_suffix(new)}"
    versions = [
        Version(f"{number}-{digest[:8]}", str(path.resolve()), digest)
        for number, path, digest in zip((1, 2), (old, new), digests, strict=True)
    ]
    return Pair("lab-release", kind, artifact, versions[0], versions[1], source="given")


async def _from_archive(archive: Archive, package: str, shelf: Shelf, say: Say) -> Pair:
    say("Looking for a package in two versions …")
    names = await archive.names(package)
    if not names:
        raise LabError(
            f"the package archive has no two versions of {package or 'any suitable package'}",
            remedy="Name another package, or give two files as release.old and release.new.",
        )
    best: tuple[float, Pair] | None = None
    refused = []
    for name in names[:TRIES_MAX]:
        candidate = await archive.newest_two(name)
        if candidate is None:
            continue
        say(f"Downloading {candidate.name} {candidate.old} and {candidate.new} …")
        old, new = await archive.download(candidate, shelf.folder)
        share, reason = await trio.to_thread.run_sync(_judge, old, new)
        if reason:
            refused.append(f"{candidate.name} {reason}")
            continue
        pair = await trio.to_thread.run_sync(_pair_of, candidate, old, new)
        if best is None or share > best[0]:
            best = share, pair
        if share >= CHANGED_SHARE_MIN or package:
            break
    if best is None:
        remedy = "Name another package, or give two files as release.old and release.new."
        raise LabError("; ".join(refused) or "no package has two versions to download", remedy=remedy)
    return shelf.keep(package or "default", best[1])


def _judge(old: Path, new: Path) -> tuple[float, str]:
    first, second = debian.examine(old), debian.examine(new)
    scripts = sorted({*first.scripts, *second.scripts})
    return debian.changed_share(first, second), f"has maintainer scripts ({', '.join(scripts)})" if scripts else ""


def _pair_of(candidate: Candidate, old: Path, new: Path) -> Pair:
    return _package_pair(candidate.name, (old, candidate.old), (new, candidate.new), "package archive")


def _package_pair(name: str, old: tuple[Path, str], new: tuple[Path, str], source: str) -> Pair:
    versions = [Version(_version_name(text), str(path.resolve()), _sha256(path)) for path, text in (old, new)]
    return Pair(name, "package", f"{name}.deb", versions[0], versions[1], package=name, source=source)


def _version_name(text: str) -> str:
    try:
        return check_name(text, "version")
    except UntrustedBytes as error:
        raise LabError(error.message) from None


async def _wheels(shelf: Shelf, run: Run, say: Say) -> Pair:
    say(f"Downloading {WHEEL} {WHEELS[0][0]} and {WHEELS[1][0]} …")
    versions = []
    for version, digest in WHEELS:
        pins = shelf.folder / f"{WHEEL}-{version}.txt"
        write_atomic(pins, f"{WHEEL}=={version} --hash=sha256:{digest}\n".encode())
        place = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp")
        command: list[str | Path] = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"),
            *("--no-deps", "--only-binary", ":all:", "--require-hashes", *place, "--dest", shelf.folder, "-r", pins),
        ]
        await run("pip-download", command, timeout_s=WHEEL_TIMEOUT_S)
        path = next(shelf.folder.glob(f"{WHEEL}-{version}-*.whl"))
        versions.append(Version(version, str(path.resolve()), digest))
    pair = Pair(WHEEL, "archive", f"{WHEEL}.whl", versions[0], versions[1], source="wheels")
    return shelf.keep("default", pair)


def _is_archive(path: Path) -> bool:
    return _suffix(path) in (".zip", ".whl", ".jar", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".tgz")


def _suffix(path: Path) -> str:
    suffixes = "".join(path.suffixes[-2:])
    return suffixes if suffixes.startswith(".tar.") else path.suffix


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
