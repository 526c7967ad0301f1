"""Debian packages, through dpkg: on the system itself, or unprivileged into a private root.

All packages of a change go into one ``dpkg --install``, which orders them by their dependencies. Stored-form packages (ar with an
uncompressed control.tar and data.tar) are installed as they are.

In a private root dpkg runs with ``--root``, and for an ordinary user with ``--force-not-root``. Two things differ there. A
package with maintainer scripts is refused: an unprivileged dpkg cannot change its root folder, so a script would
act on the machine that runs the daemon. And dependencies are not insisted on: such a root holds what releases put there and no
base system, so they could never be met.

Conffiles: an admin's edits are kept (``--force-confdef --force-confold``). dpkg's lock is waited for, up to ``LOCK_S``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

from pcm_p2p.apply.command import Completed, Runner, run
from pcm_p2p.apply.root import Root, check_staged
from pcm_p2p.apply.step import (
    InstallPackages,
    PackageChange,
    PackageIdentity,
    PackageObserved,
    Staged,
    is_configured,
)
from pcm_p2p.durable import fsync_folder
from pcm_p2p.errors import ApplyError

ASK_S = 60.0
INSTALL_S = 1_800.0
"""Choice: libreoffice with its triggers takes 4 minutes on a slow disk; a script that waits for an answer never ends."""
LOCK_S = 300.0
"""Choice: unattended-upgrades holds the lock for minutes (research/compliance.md 6, 22)."""
LOCK_RETRY_S = 2.0

_LOCKED = re.compile(r"lock.* (is|was) locked by another process|unable to (access|lock)|is locked", re.IGNORECASE)
_SCRIPTS = frozenset({"preinst", "postinst", "prerm", "postrm", "config"})
_ABSENT = ("", "n", "c")
"""Second letter of dpkg's status abbreviation: not known, not installed, only configuration files left."""

PreviousPackage = Callable[[str, str, str], Path | None]
"""``(name, version, architecture) → .deb``: where rolling back finds what was installed before; None: not at hand."""


class PackageProvider:
    """``runner`` is the seam to dpkg; ``sleep`` waits between looks at its lock (this runs in a worker thread)."""

    def __init__(
        self,
        root: Root,
        previous_package: PreviousPackage,
        runner: Runner = run,
        *,
        lock_s: float = LOCK_S,
        install_s: float = INSTALL_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._root = root
        self._previous_package = previous_package
        self._run = runner
        self._lock_s = lock_s
        self._install_s = install_s
        self._sleep = sleep

    def identify(self, staged: Staged) -> PackageIdentity:
        """Name, version and architecture as the package itself gives them. Refuses what this root cannot take."""
        check_staged(staged)
        answer = self._run(("dpkg-deb", "--field", str(staged.path), "Package", "Version", "Architecture"), ASK_S)
        fields = dict(line.partition(": ")[::2] for line in answer.text.splitlines())
        if answer.status != 0 or not {"Package", "Version", "Architecture"} <= fields.keys():
            raise ApplyError(f"{staged.path.name} is no Debian package: {answer.complaint}")
        if not self._root.is_system and (scripts := self._scripts(staged)):
            raise ApplyError(
                f"{fields['Package']} brings maintainer scripts ({', '.join(scripts)}), which in a private root would run on "
                "the machine outside of it",
                remedy="Release a package without scripts for devices with a private root, or apply to / as root.",
            )
        return PackageIdentity(fields["Package"], fields["Version"], fields["Architecture"])

    def observe(self, wanted: PackageIdentity, sha256: str) -> PackageObserved:
        status, version, architecture = self._installed(wanted)
        unpacked = status[1:2] not in _ABSENT
        in_place = is_configured(status) and (version, architecture) == (wanted.version, wanted.architecture)
        backup = unpacked and not in_place and self._previous_package(wanted.name, version, architecture) is not None
        return PackageObserved(wanted, sha256, status, version, architecture, backup)

    def replaced(self, wanted: PackageIdentity) -> PackageIdentity | None:
        """What is unpacked here under the name of ``wanted`` and is not it; None if nothing is."""
        status, version, architecture = self._installed(wanted)
        installed = PackageIdentity(wanted.name, version, architecture)
        return installed if status[1:2] not in _ABSENT and not (is_configured(status) and installed == wanted) else None

    def prepare(self, step: InstallPackages, backups: Path) -> None:
        """Keep the .deb of what is installed now in ``backups``, durably."""
        for package in step.packages:
            if package.backup is None:
                continue
            previous = (package.wanted.name, package.previous_version, package.previous_architecture)
            source, kept = self._previous_package(*previous), backups / package.backup
            if source is None:
                raise ApplyError(f"the .deb of {' '.join(previous)} was there a moment ago and is gone")
            kept.unlink(missing_ok=True)
            shutil.copyfile(source, kept)
            with kept.open("rb") as file:
                os.fsync(file.fileno())
        fsync_folder(backups)

    def change(self, step: InstallPackages, staged: Callable[[str], Staged]) -> None:
        files = [staged(package.artifact) for package in step.packages]
        for file in files:
            check_staged(file)
        self._make_private_root()
        answer = self._dpkg("--install", *(str(file.path) for file in files))
        if answer.status != 0:
            raise ApplyError(f"dpkg could not {step.title}: {answer.complaint}")

    def undo(self, step: InstallPackages, backups: Path) -> None:
        """Back to the versions before, in one run; then off with what was not there before."""
        self._wait_for_lock()
        reinstall: list[str] = []
        lost: list[str] = []
        for package in step.packages:
            status, version, _ = self._installed(package.wanted)
            if package.previous_version and not (is_configured(status) and version == package.previous_version):
                if package.backup is not None and (backups / package.backup).is_file():
                    reinstall.append(str(backups / package.backup))
                else:
                    lost.append(f"{package.wanted.name} {package.previous_version}")
        if reinstall:
            self._must("--install", *reinstall)
        self._remove(step.packages)
        if lost:
            raise ApplyError(
                f"could not go back to {', '.join(lost)}: no .deb of it is at hand",
                remedy="Install it by hand, or release a version that works; then reset the change.",
            )

    def _remove(self, packages: Sequence[PackageChange]) -> None:
        """Purge what dpkg did not know before; only remove what had left its configuration files."""
        for purge in (True, False):
            gone = ("", "n") if purge else _ABSENT
            names = [
                _qualified(package.wanted)
                for package in packages
                if not package.previous_version
                and (package.previous_status[1:2] != "c") is purge
                and self._installed(package.wanted)[0][1:2] not in gone
            ]
            if names:
                self._must("--purge" if purge else "--remove", "--force-remove-reinstreq", *names)

    def _wait_for_lock(self) -> None:
        """A dpkg that outlived the daemon that started it goes on to its end; only then is there something to undo."""
        try:
            descriptor = os.open(self._admin / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            waited_s = 0.0
            while True:
                try:
                    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    if waited_s >= self._lock_s:
                        raise ApplyError(f"another dpkg held its lock for more than {self._lock_s:.0f} s") from None
                self._sleep(LOCK_RETRY_S)
                waited_s += LOCK_RETRY_S
        finally:
            os.close(descriptor)

    def _must(self, *arguments: str) -> None:
        answer = self._dpkg(*arguments)
        if answer.status != 0:
            raise ApplyError(f"dpkg {arguments[0]} failed: {answer.complaint}")

    def _installed(self, wanted: PackageIdentity) -> tuple[str, str, str]:
        """Status abbreviation, version and architecture of what dpkg has under this name; empty where it has nothing."""
        if not (self._admin / "status").exists():
            return "", "", ""
        form = "${db:Status-Abbrev}\t${Version}\t${Architecture}\n"
        answer = self._run(
            ("dpkg-query", f"--admindir={self._admin}", "--show", f"--showformat={form}", wanted.name), ASK_S
        )
        rows = [line.split("\t") for line in answer.text.splitlines() if line.count("\t") == 2]
        fitting = [row for row in rows if row[2] == wanted.architecture] or [
            row for row in rows if row[1] and "all" in (row[2], wanted.architecture)
        ]
        if answer.status not in (0, 1):
            raise ApplyError(f"dpkg-query does not answer: {answer.complaint}")
        return (fitting[0][0].strip(), fitting[0][1], fitting[0][2]) if fitting else ("", "", "")

    @property
    def _admin(self) -> Path:
        return self._root.path / "var/lib/dpkg"

    def _scripts(self, staged: Staged) -> list[str]:
        answer = self._run(("dpkg-deb", "--ctrl-tarfile", str(staged.path)), ASK_S)
        try:
            with tarfile.open(fileobj=BytesIO(answer.output)) as control:
                names = {name.removeprefix("./") for name in control.getnames()}
        except (tarfile.TarError, EOFError) as error:
            raise ApplyError(f"{staged.path.name} has no readable control part: {error}") from None
        return sorted(names & _SCRIPTS)

    def _make_private_root(self) -> None:
        if self._root.is_system:
            return
        for folder in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "var/log"):
            with self._root.folder(folder, make=True):
                pass
        for name in ("status", "available"):
            with contextlib.suppress(FileExistsError):
                (self._admin / name).touch(exist_ok=False)

    def _dpkg(self, *arguments: str) -> Completed:
        options = ["--force-confdef", "--force-confold"]
        if not self._root.is_system:
            options += [f"--root={self._root.path}", f"--log={self._root.path}/var/log/dpkg.log", "--force-depends"]
            if os.geteuid() != 0:
                options.append("--force-not-root")
        waited_s = 0.0
        while True:
            answer = self._run(("dpkg", *options, *arguments), self._install_s)
            if answer.status == 0 or not _LOCKED.search(answer.errors):
                return answer
            if waited_s >= self._lock_s:
                raise ApplyError(
                    f"dpkg's lock was not free within {self._lock_s:.0f} s: {answer.complaint}",
                    remedy="Find the holder with 'fuser /var/lib/dpkg/lock-frontend'; the change is tried again by itself.",
                )
            self._sleep(LOCK_RETRY_S)
            waited_s += LOCK_RETRY_S


def _qualified(package: PackageIdentity) -> str:
    return package.name if package.architecture == "all" else f"{package.name}:{package.architecture}"
