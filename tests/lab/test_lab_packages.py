"""Where a lab's two versions come from: what is taken, what is left, and what is said when there is nothing."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import pytest

from pcm_p2p.errors import InputError
from pcm_p2p.lab import packages
from pcm_p2p.lab.debian import Archive, changed_share, examine
from pcm_p2p.lab.packages import Shelf, given, obtain
from pcm_p2p.lab.processes import LabError
from pcm_p2p.lab.scenario import Release

debian = [
    pytest.mark.debian,
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not on this machine"),
]

LISTING = "\n\n".join(
    f"Package: {name}\nVersion: {version}\nInstalled-Size: {installed}\nSize: {size}"
    for name, version, size, installed in [
        ("glibc-source", "2", 20_500_000, 26_000),
        ("glibc-source", "1", 20_400_000, 26_000),
        ("with-scripts", "2", 30_000_000, 1_000),
        ("with-scripts", "1", 30_000_000, 1_000),
        ("one-version", "1", 30_000_000, 1_000),
        ("too-small", "2", 1_000_000, 1_000),
        ("too-small", "1", 1_000_000, 1_000),
        ("too-big-unpacked", "2", 50_000_000, 900_000),
        ("too-big-unpacked", "1", 50_000_000, 900_000),
    ]
)


def build_deb(folder: Path, name: str, version: str, content: bytes, *, script: bool = False) -> Path:
    tree = folder / f"tree-{name}-{version}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr").mkdir()
    (tree / "usr/same").write_bytes(bytes(1_000))
    (tree / "usr/content").write_bytes(content)
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    (tree / "DEBIAN/control").write_text(control)
    if script:
        (tree / "DEBIAN/postinst").write_text("#!/bin/sh\n")
        (tree / "DEBIAN/postinst").chmod(0o755)
    path = folder / f"{name}_{version.replace(':', '%3a')}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, path], check=True, capture_output=True)
    return path


class FakeApt:
    """Answers like apt does; ``names`` have two versions, and ``broken`` lists cannot be downloaded from."""

    def __init__(self, lists: Path, build: Callable[[str, str, Path], None], *, broken: bool = False) -> None:
        self.lists, self.build, self.broken = lists, build, broken
        self.commands: list[str] = []

    async def __call__(
        self, name: str, command: Sequence[str | Path], *, timeout_s: float, folder: Path | None = None
    ) -> bytes:
        self.commands.append(name)
        if name == "apt-get-indextargets":
            return f"{self.lists}\n".encode()
        if name == "apt-helper":
            return self.lists.read_bytes()
        if name == "apt-cache-madison":
            package = command[-1]
            rows = [f" {package} | {v} | http://archive.example main amd64 Packages" for v in ("2", "2", "1")]
            return "\n".join([*rows, f" {package} | 3 | http://archive.example main Sources"]).encode()
        if name == "apt-get-update":
            self.broken = False
            return b""
        if name == "apt-get-download":
            if self.broken:
                raise LabError("404  Not Found")
            assert folder is not None
            for word in map(str, command[-2:]):
                package, _, version = word.partition("=")
                self.build(package, version, folder)
            return b""
        raise AssertionError(name)


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    monkeypatch.setattr(Archive, "present", staticmethod(lambda: True))
    lists = tmp_path / "Packages"
    lists.write_text(LISTING)

    def build(name: str, version: str, folder: Path) -> None:
        scratch = tmp_path / f"scratch-{name}-{version}"
        scratch.mkdir()
        path = build_deb(scratch, name, version, version.encode() * 5_000, script=name == "with-scripts")
        shutil.copy(path, folder)

    return FakeApt(lists, build)


class TestPackageArchive:
    pytestmark = debian

    async def test_the_preferred_package_is_taken_and_kept(self, tmp_path: Path, apt: FakeApt) -> None:
        pair = await obtain(Release(), tmp_path, apt, lambda _text: None)
        assert (pair.name, pair.kind, pair.artifact) == ("glibc-source", "package", "glibc-source.deb")
        assert (pair.old.version, pair.new.version) == ("1", "2")
        apt.commands.clear()
        assert await obtain(Release(), tmp_path, apt, lambda _text: None) == pair
        assert apt.commands == []

    async def test_a_kept_file_that_changed_is_fetched_again(self, tmp_path: Path, apt: FakeApt) -> None:
        pair = await obtain(Release(), tmp_path, apt, lambda _text: None)
        pair.new.file.write_bytes(b"torn")
        shutil.rmtree(tmp_path / "scratch-glibc-source-1")
        shutil.rmtree(tmp_path / "scratch-glibc-source-2")
        again = await obtain(Release(), tmp_path, apt, lambda _text: None)
        assert "apt-get-download" in apt.commands
        assert again.new.file.stat().st_size > len(b"torn")

    async def test_stale_lists_are_fetched_anew_into_the_lab(self, tmp_path: Path, apt: FakeApt) -> None:
        apt.broken = True
        await obtain(Release(), tmp_path, apt, lambda _text: None)
        assert apt.commands.count("apt-get-update") == 1

    async def test_a_named_package_with_scripts_is_refused_by_name(self, tmp_path: Path, apt: FakeApt) -> None:
        with pytest.raises(LabError, match=r"with-scripts has maintainer scripts \(postinst\)"):
            await obtain(Release(package="with-scripts"), tmp_path, apt, lambda _text: None)

    async def test_a_named_package_in_one_version_is_refused_by_name(self, tmp_path: Path, apt: FakeApt) -> None:
        with pytest.raises(LabError, match="no two versions of one-version"):
            await obtain(Release(package="one-version"), tmp_path, apt, lambda _text: None)

    async def test_unsuitable_sizes_are_not_looked_at(self, tmp_path: Path, apt: FakeApt) -> None:
        assert await Archive(apt, tmp_path / "apt").names() == ["glibc-source", "with-scripts"]

    def test_a_package_is_examined_by_what_is_in_it(self, tmp_path: Path) -> None:
        old = examine(build_deb(tmp_path, "a", "1:1", b"x" * 3_000))
        new = examine(build_deb(tmp_path, "a", "1:2", b"y" * 3_000, script=True))
        assert (old.package, old.version, old.scripts) == ("a", "1:1", ())
        assert new.scripts == ("postinst",)
        assert changed_share(old, new) == 0.75
        assert changed_share(old, old) == 0.0

    def test_what_is_no_package_is_said_so(self, tmp_path: Path) -> None:
        path = tmp_path / "x.deb"
        path.write_bytes(b"!<arch>\nnonsense")
        with pytest.raises(LabError, match="is not a Debian package"):
            examine(path)

    def test_two_given_packages_say_their_versions_themselves(self, tmp_path: Path) -> None:
        pair = given(build_deb(tmp_path, "a", "1:1", b"x"), build_deb(tmp_path, "a", "1:2", b"y"))
        assert (pair.name, pair.kind, pair.old.version, pair.new.version) == ("a", "package", "1:1", "1:2")

    def test_given_packages_with_scripts_are_released_as_files(self, tmp_path: Path) -> None:
        pair = given(build_deb(tmp_path, "a", "1", b"x", script=True), build_deb(tmp_path, "a", "2", b"y"))
        assert (pair.kind, pair.artifact) == ("file", "lab-artifact.deb")

    def test_two_packages_of_different_names_are_no_pair(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is b, and"):
            given(build_deb(tmp_path, "a", "1", b"x"), build_deb(tmp_path, "b", "2", b"y"))


def put_wheel(pins: Path) -> None:
    version = pins.read_text().partition("==")[2].partition(" ")[0]
    (pins.parent / f"{packages.WHEEL}-{version}-cp311-any.whl").write_bytes(version.encode())


async def test_without_apt_two_wheels_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Archive, "present", staticmethod(lambda: False))
    commands: list[list[str]] = []

    async def pip(name: str, command: Sequence[str | Path], *, timeout_s: float, folder: Path | None = None) -> bytes:
        commands.append([str(word) for word in command])
        put_wheel(Path(command[-1]))
        return b""

    pair = await obtain(Release(), tmp_path, pip, lambda _text: None)
    assert (pair.kind, pair.old.version, pair.new.version) == ("archive", "14.0.0", "14.0.1")
    assert all("--require-hashes" in command and "--no-cache-dir" in command for command in commands)


async def test_without_apt_a_named_package_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Archive, "present", staticmethod(lambda: False))

    async def never(name: str, command: Sequence[str | Path], *, timeout_s: float, folder: Path | None = None) -> bytes:
        raise AssertionError(name)

    with pytest.raises(InputError, match="no apt-get") as raised:
        await obtain(Release(package="x"), tmp_path, never, lambda _text: None)
    assert "release.old" in raised.value.remedy


def test_given_files_become_files_or_archives(tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(name.encode())
    pair = given(tmp_path / "a.bin", tmp_path / "b.bin")
    assert (pair.kind, pair.artifact) == ("file", "lab-artifact.bin")
    assert pair.old.version.startswith("1-")
    assert pair.new.version.startswith("2-")
    for name in ("a.tar.gz", "b.tar.gz"):
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            member = tarfile.TarInfo("x")
            member.size = len(name)
            tar.addfile(member, BytesIO(name.encode()))
    pair = given(tmp_path / "a.tar.gz", tmp_path / "b.tar.gz")
    assert (pair.kind, pair.artifact) == ("archive", "lab-artifact.tar.gz")


def test_given_files_that_are_absent_or_equal_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"same")
    (tmp_path / "b").write_bytes(b"same")
    with pytest.raises(InputError, match="no such file"):
        given(tmp_path / "a", tmp_path / "none")
    with pytest.raises(InputError, match="same bytes"):
        given(tmp_path / "a", tmp_path / "b")


def test_a_damaged_note_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "default.json").write_bytes(b'{"name": 3')
    assert Shelf(tmp_path).kept("default") is None
    assert Shelf(tmp_path).kept("other") is None
