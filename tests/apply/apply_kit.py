"""Builders for the tests of this room: artifacts, permissions and transactions."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pcm_p2p.apply.applier import Applier
from pcm_p2p.apply.command import Completed, Runner, run
from pcm_p2p.apply.device import Device
from pcm_p2p.apply.journal import Journal
from pcm_p2p.apply.providers.archive import ArchiveProvider
from pcm_p2p.apply.providers.file import FileProvider
from pcm_p2p.apply.providers.package import PackageProvider
from pcm_p2p.apply.providers.service import ServiceProvider
from pcm_p2p.apply.receipt_folder import Receipts
from pcm_p2p.apply.root import Root
from pcm_p2p.apply.step import Staged
from pcm_p2p.apply.transaction import Transaction
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.activation import Activation
from pcm_p2p.policy.desired import Authorisation, Change, decide
from pcm_p2p.policy.document import Assignment, Policy
from pcm_p2p.policy.resource import Resource
from pcm_p2p.policy.selector import DeviceFacts

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
HAS_DPKG = shutil.which("dpkg") is not None and shutil.which("dpkg-deb") is not None


def authorised(*resources: Resource, subject: str = "tool", version: str = "1") -> tuple[Change, Authorisation]:
    """The change, and the permission for it, the way a device comes by them."""
    assigned = Assignment(subject, version, resources=resources)
    policy = Policy("pcm.policy/1", "test", 1, mode="enforce", assignments=(assigned,))
    activation = Activation("pcm.activation/1", NOW, scope="all")
    desired = decide([policy], activation, DeviceFacts(DeviceId(bytes(16)), "here"), NOW, "fresh")
    return desired.releases[0].change, desired.authorisation


class Artifacts:
    """A staging folder: ``put`` files in, and call it like the daemon's look-up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.sha256_of: dict[str, str] = {}

    def put(self, name: str, data: bytes) -> Path:
        (self.folder / name).write_bytes(data)
        self.sha256_of[name] = hashlib.sha256(data).hexdigest()
        return self.folder / name

    def put_tar(self, name: str, files: dict[str, bytes]) -> Path:
        return self.put(name, tar_of(*((path, data) for path, data in files.items())))

    def put_deb(self, name: str, package: str, version: str, files: dict[str, str], **scripts: str) -> Path:
        tree = self.folder / f"{name}.tree"
        for path, text in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text)
        (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
        (tree / "DEBIAN").chmod(0o755)
        control = f"Package: {package}\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: x\n"
        (tree / "DEBIAN/control").write_text(control)
        for script, text in scripts.items():
            (tree / "DEBIAN" / script).write_text(f"#!/bin/sh\n{text}\n")
            (tree / "DEBIAN" / script).chmod(0o755)
        target = self.folder / name
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, target],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=120,
        )
        shutil.rmtree(tree)
        return self.put(name, target.read_bytes())

    def __call__(self, name: str) -> Staged:
        return Staged(self.folder / name, self.sha256_of[name])


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tape:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tape.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size, info.mode = len(member[1]), 0o644
            tape.addfile(info, io.BytesIO(member[1]))
    return target.getvalue()


def nothing_before(_name: str, _version: str, _architecture: str) -> Path | None:
    return None


class FakeSystemctl:
    """A systemd of a few units, as a runner. ``broken`` units fail to start; ``dying`` ones start and are gone at once."""

    def __init__(self, **active: bool) -> None:
        self.active = {f"{name}.service": on for name, on in active.items()}
        self.enabled = dict.fromkeys(self.active, False)
        self.broken: set[str] = set()
        self.dying: set[str] = set()
        self.said: list[str] = []

    def __call__(self, argv: Sequence[str], timeout_s: float) -> Completed:
        if argv[0] != "systemctl":
            return run(argv, timeout_s)
        verb, unit = argv[2] if argv[2] == "show" else argv[3], argv[-1]
        if verb == "show":
            facts = (
                f"LoadState={'loaded' if unit in self.active else 'not-found'}\n"
                f"UnitFileState={'enabled' if self.enabled.get(unit) else 'disabled'}\n"
                f"ActiveState={'active' if self.active.get(unit) else 'inactive'}\n"
            )
            return Completed(0, facts.encode(), "")
        if verb != "daemon-reload":
            self.said.append(f"{verb} {unit}")
            if verb in ("start", "restart") and unit in self.broken:
                self.active[unit] = False
                return Completed(1, b"", f"Job for {unit} failed.")
            if verb in ("start", "restart", "stop"):
                self.active[unit] = verb != "stop" and unit not in self.dying
            else:
                self.enabled[unit] = verb == "enable"
        return Completed(0, b"", "")


class SystemRoot(Root):
    """A folder that plays the system itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.is_system = True


def make_device(
    root: Root, work: Path, *, runner: Runner = run, previous: Callable[[str, str, str], Path | None] = nothing_before
) -> Device:
    work.mkdir(parents=True, exist_ok=True)
    return Device(
        PackageProvider(root, previous, runner, lock_s=2.0, sleep=lambda _seconds: None),
        ArchiveProvider(root, work),
        FileProvider(root),
        ServiceProvider(root, runner),
    )


def make_transaction(
    folder: Path, device: Device, *, journal: Journal | None = None, now_ms: int = NOW_MS
) -> Transaction:
    for part in (folder, folder / "receipts"):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Transaction(
        folder,
        device,
        journal or Journal(folder),
        Receipts(folder / "receipts"),
        now_ms=lambda: now_ms,
        settle_s=0.0,
        sleep=lambda _seconds: None,
    )


def make_applier(folder: Path, root: Path, *, clock_ms: list[int] | None = None) -> Applier:
    now = clock_ms or [NOW_MS]
    return Applier(folder, root, previous_package=nothing_before, now_ms=lambda: now[0], settle_s=0.0)


def picture(root: Path) -> dict[str, str]:
    """Everything below ``root``, links as such, files by mode and content: to compare a device before and after."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = f"{path.stat().st_mode & 0o7777:o} {path.read_bytes()!r}"
    return found
