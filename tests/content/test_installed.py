"""Chunks out of installed files: what is unchanged is found, what was changed is a miss, and nothing leads outside."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from content_samples import noise, text

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.forms.stored_form import write_stored
from pcm_p2p.content.keeping.installed import (
    STATUS_SIZE_BYTES_MAX,
    InstalledForm,
    Package,
    installed_packages,
    read_installed,
)
from pcm_p2p.content.manifest import Form
from pcm_p2p.content.pieces import FilePiece, Pieces, decode_layout_untrusted
from pcm_p2p.content.publishing.layout import make_layout
from pcm_p2p.ids import ChunkId

debian = pytest.mark.debian
needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg"), reason="there is no dpkg here")
CHUNK = 4096


def chunks_of_file(path: Path, size: int = CHUNK) -> list[Chunk]:
    data = path.read_bytes()
    return [Chunk.of(data[at : at + size]) for at in range(0, len(data), size)]


def pieces_of(stored: Path, form: Form, chunks: list[Chunk]) -> Pieces:
    layout = make_layout(stored, form, [chunk.id for chunk in chunks], [len(chunk.data) for chunk in chunks])
    assert layout is not None
    return decode_layout_untrusted(layout)


def rebuilt(form: InstalledForm, chunks: list[Chunk]) -> list[bool]:
    """Which of the chunks come out of installed files, each compared byte for byte."""
    found = [form.get(chunk.id, len(chunk.data)) for chunk in chunks]
    assert all(got is None or got == chunk for got, chunk in zip(found, chunks, strict=True))
    return [got is not None for got in found]


class OneFile:
    """A stored form that is one file, ``folder/file``, of three chunks."""

    def __init__(self, root: Path) -> None:
        self.root, self.data = root, noise(3 * CHUNK)
        self.path = root / "folder" / "file"
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(self.data)
        self.chunks = [Chunk.of(self.data[at : at + CHUNK]) for at in range(0, 3 * CHUNK, CHUNK)]
        pieces = Pieces(
            [FilePiece(b"folder/file", 3 * CHUNK)], [CHUNK] * 3, bytes(chunk.id[0] for chunk in self.chunks)
        )
        self.form = InstalledForm(pieces, root)

    def rebuilt(self) -> list[bool]:
        return rebuilt(self.form, self.chunks)


@pytest.fixture
def one(tmp_path: Path) -> OneFile:
    return OneFile(tmp_path / "root")


ALL, NONE = [True] * 3, [False] * 3


def test_a_file_as_it_was_installed_gives_its_chunks(one: OneFile) -> None:
    assert one.rebuilt() == ALL


def test_an_edit_costs_the_chunk_that_it_lies_in(one: OneFile) -> None:
    with one.path.open("r+b") as file:
        file.seek(CHUNK + 5)
        file.write(b"edited")
    assert one.rebuilt() == [True, False, True]


def test_a_file_that_grew_or_shrank_is_a_miss(one: OneFile) -> None:
    one.path.write_bytes(one.data + b"!")
    assert one.rebuilt() == NONE
    one.path.write_bytes(one.data[:-1])
    assert one.rebuilt() == NONE


def test_a_file_that_is_gone_is_a_miss_with_a_debug_line(one: OneFile, caplog: pytest.LogCaptureFixture) -> None:
    one.path.unlink()
    with caplog.at_level(logging.DEBUG, logger="pcm_p2p.content.keeping.installed"):
        assert one.rebuilt() == NONE
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert "No such file" in caplog.text
    shutil.rmtree(one.root)
    assert one.rebuilt() == NONE


def test_a_link_in_place_of_the_file_is_not_followed(one: OneFile, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    one.path.rename(outside)
    one.path.symlink_to(outside)
    assert one.rebuilt() == NONE


def test_a_link_in_place_of_a_folder_is_not_followed(one: OneFile, tmp_path: Path) -> None:
    one.path.parent.rename(tmp_path / "elsewhere")
    one.path.parent.symlink_to(tmp_path / "elsewhere")
    assert one.rebuilt() == NONE
    one.path.parent.unlink()
    one.path.parent.symlink_to("../elsewhere")
    assert one.rebuilt() == NONE


def test_what_is_no_regular_file_is_a_miss_at_once(one: OneFile) -> None:
    for make in (os.mkfifo, os.mkdir):
        one.path.unlink()
        make(one.path)
        assert one.rebuilt() == NONE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_miss(one: OneFile) -> None:
    one.path.chmod(0)
    assert one.rebuilt() == NONE


def test_a_chunk_of_another_stored_form_is_a_miss(one: OneFile) -> None:
    assert one.form.get(ChunkId.of(b"another"), CHUNK) is None
    same_mark = ChunkId(one.chunks[0].id[:1] + bytes(31))
    assert one.form.get(same_mark, CHUNK) is None


# merged /usr


@pytest.mark.parametrize("target", ["usr/lib", "/usr/lib"])
def test_the_links_of_merged_usr_are_walked_through(tmp_path: Path, target: str) -> None:
    (tmp_path / "usr" / "lib" / "systemd").mkdir(parents=True)
    (tmp_path / "usr" / "lib" / "systemd" / "unit").write_bytes(b"a unit")
    (tmp_path / "lib").symlink_to(target)
    assert read_installed(tmp_path, b"lib/systemd/unit", 100) == b"a unit"
    assert read_installed(tmp_path, b"usr/lib/systemd/unit", 100) == b"a unit"


def test_no_other_link_at_the_top_is_walked_through(tmp_path: Path) -> None:
    for folder in ("usr/lib", "elsewhere/lib"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_bytes(b"bytes")
    for name, target in (("lib", "elsewhere/lib"), ("bin", "../usr/bin"), ("lib64", "usr/lib"), ("opt", "usr/opt")):
        (tmp_path / name).symlink_to(target)
    for path in (b"lib/file", b"bin/file", b"lib64/file", b"opt/file"):
        assert read_installed(tmp_path, path, 100) is None
    (tmp_path / "usr" / "lib" / "lib").symlink_to("/usr/lib")
    assert read_installed(tmp_path, b"usr/lib/lib/file", 100) is None


def test_a_small_file_is_read_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_installed(tmp_path, b"file", 5) == b"12345"
    assert read_installed(tmp_path, b"file", 4) is None
    assert read_installed(tmp_path, b"absent", 4) is None


# dpkg's status


def status(root: Path, *stanzas: str) -> None:
    folder = root / "var" / "lib" / "dpkg"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status").write_text("\n".join(stanzas))


def stanza(name: str, version: str, status: str = "install ok installed", architecture: str = "amd64") -> str:
    return (
        f"Package: {name}\nStatus: {status}\nArchitecture: {architecture}\nVersion: {version}\n"
        f"Description: one\n Package: folded\n .\n Version: 9\n"
    )


def test_packages_are_those_that_dpkg_has_at_this_version(tmp_path: Path) -> None:
    status(
        tmp_path,
        stanza("one", "1:2-3"),
        stanza("two", "1", architecture="i386"),
        stanza("gone", "1", "deinstall ok config-files"),
        stanza("half", "1", "install reinstreq half-installed"),
        stanza("fresh", "1", "install ok unpacked"),
        stanza("waits", "1", "hold ok triggers-pending"),
    )
    wanted = [
        Package(name, version, architecture)
        for name, version in (
            ("one", "1:2-3"),
            ("one", "1"),
            ("two", "1"),
            ("gone", "1"),
            ("half", "1"),
            ("folded", "9"),
        )
        for architecture in ("amd64", "i386")
    ]
    wanted += [Package("fresh", "1", "amd64"), Package("waits", "1", "amd64")]
    assert installed_packages(tmp_path, wanted) == {
        Package("one", "1:2-3", "amd64"),
        Package("two", "1", "i386"),
        Package("fresh", "1", "amd64"),
        Package("waits", "1", "amd64"),
    }


def test_without_a_status_or_with_an_absurd_one_nothing_is_installed(tmp_path: Path) -> None:
    one = Package("one", "1", "amd64")
    assert installed_packages(tmp_path, [one]) == set()
    status(tmp_path, stanza("one", "1"))
    assert installed_packages(tmp_path, [one]) == {one}
    with (tmp_path / "var/lib/dpkg/status").open("r+b") as file:
        file.truncate(STATUS_SIZE_BYTES_MAX + 1)
    assert installed_packages(tmp_path, [one]) == set()


# packages and archives


def build(folder: Path, multi_arch: str) -> Path:
    """A package of many kinds of files, made by dpkg-deb; its stored form."""
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: sample\nVersion: 1\nArchitecture: amd64\nMulti-Arch: {multi_arch}\n"
        "Maintainer: N <n@example.org>\nDescription: sample\n"
    )
    (tree / "DEBIAN" / "conffiles").write_text("/etc/sample.conf\n")
    lines = "".join(f"{noise(16, n).hex()}  usr/share/sample/{n}\n" for n in range(100))
    (tree / "DEBIAN" / "md5sums").write_text(lines)
    for path, data in {
        "etc/sample.conf": text(6000),
        "usr/bin/sample": noise(200_000),
        "usr/share/sample/text": text(50_000),
        "usr/share/sample/tiny": b"tiny",
        "lib/sample.so": noise(80_000, 2),
    }.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)
    (tree / "usr/share/sample/link").symlink_to("text")
    (tree / "usr/share/sample/hard").hardlink_to(tree / "usr/share/sample/text")
    deb = folder / "sample.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-b", tree, deb]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    write_stored(deb, "deb", folder / "stored")
    return folder / "stored"


def install(stored: Path, root: Path) -> None:
    for folder in ("info", "updates", "triggers"):
        (root / "var/lib/dpkg" / folder).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    (root / "var/lib/dpkg/info/format").write_text("1\n")
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    force = ["--force-not-root", "--force-architecture", "--force-script-chrootless"]
    (stored.parent / "sample_1_amd64.deb").hardlink_to(stored)
    subprocess.run(
        ["dpkg", f"--root={root}", f"--log={root}/log", *force, "--install", stored.parent / "sample_1_amd64.deb"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=120,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )


@debian
@needs_dpkg
@pytest.mark.parametrize("multi_arch", ["no", "same"])
def test_a_package_that_dpkg_installed_is_the_base_again(tmp_path: Path, multi_arch: str) -> None:
    stored, root = build(tmp_path, multi_arch), tmp_path / "root"
    install(stored, root)
    one = Package("sample", "1", "amd64")
    assert installed_packages(root, [one]) == {one}
    chunks = chunks_of_file(stored)
    pieces = pieces_of(stored, "deb", chunks)
    assert all(rebuilt(InstalledForm(pieces, root), chunks))

    # A conffile is edited: nothing is lost. A program is patched by hand: its chunk and no other.
    with (root / "etc/sample.conf").open("a") as file:
        file.write("edited")
    assert all(rebuilt(InstalledForm(pieces, root), chunks))
    with (root / "usr/bin/sample").open("r+b") as file:
        file.write(b"patched")
    found = rebuilt(InstalledForm(pieces, root), chunks)
    assert found.count(False) == 1
    # The md5sums of the package are read from dpkg's own folder.
    info = "sample.md5sums" if multi_arch == "no" else "sample:amd64.md5sums"
    (root / "var/lib/dpkg/info" / info).unlink()
    assert rebuilt(InstalledForm(pieces, root), chunks).count(False) > 1


def test_an_archive_that_was_unpacked_is_the_base_again(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in (("./app/program", noise(90_000)), ("./app/notes", text(30_000)), ("./tiny", b"tiny")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    stored, folder = tmp_path / "stored", tmp_path / "root/opt/app-1"
    stored.write_bytes(out.getvalue())
    (folder / "app").mkdir(parents=True)
    (folder / "app" / "program").write_bytes(noise(90_000))
    (folder / "app" / "notes").write_bytes(text(30_000))
    chunks = chunks_of_file(stored)
    form = InstalledForm(pieces_of(stored, "tar", chunks), tmp_path / "root", b"opt/app-1")
    assert all(rebuilt(form, chunks))
    assert not all(rebuilt(InstalledForm(pieces_of(stored, "tar", chunks), folder, b"../app-1"), chunks))
    (folder / "app" / "notes").write_bytes(text(30_000)[::-1])
    found = rebuilt(form, chunks)
    assert 0 < found.count(False) <= 30_000 // CHUNK + 2
