"""dpkg with a package and with its stored form, in two private roots: the same files, scripts, database, conffile handling."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard
from content_samples import ar_of, noise, text

from pcm_p2p.content.forms.stored_form import write_stored

pytestmark = [
    pytest.mark.debian,
    pytest.mark.skipif(not shutil.which("dpkg"), reason="there is no dpkg here"),
]

SCRIPT = """#!/bin/sh
set -e
# Relative to the root that dpkg was given: nothing outside of it is touched.
echo "{name} $*" >> "$DPKG_ROOT/var/scripts.log"
"""
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
LONG = "usr/share/sample/" + "long-folder-name/" * 9 + "long-file-name" * 8
WHEN = 1_600_000_000


class Member(NamedTuple):
    path: str
    data: bytes = b""
    mode: int = 0o644
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    uid: int = 0


def _tar(*members: Member) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number, member in enumerate(members):
            info = tarfile.TarInfo("./" + member.path)
            info.type, info.linkname, info.mode, info.size = member.kind, member.link, member.mode, len(member.data)
            info.uid, info.gid, info.mtime = member.uid, member.uid, WHEN + number
            archive.addfile(info, io.BytesIO(member.data))
    return out.getvalue()


def package(version: str, suffix: str) -> bytes:
    """A package with one of everything that dpkg treats in its own way."""
    folders = {"", "etc/", "usr/", "usr/bin/", "usr/share/", "usr/share/sample/"}
    folders |= {LONG[: at + 1] for at, letter in enumerate(LONG) if letter == "/"}
    data = [
        *(Member(path, mode=0o755, kind=tarfile.DIRTYPE) for path in sorted(folders)),
        Member("usr/share/sample/shared/", mode=0o2775, kind=tarfile.DIRTYPE, uid=1234),
        Member("usr/share/sample/dropbox/", mode=0o1777, kind=tarfile.DIRTYPE),
        Member("usr/bin/sample", noise(70_000, seed=int(version)), 0o4755),
        Member("usr/bin/sample-admin", text(9000), 0o2750, uid=1234),
        Member("usr/share/sample/data", f"version {version}\n".encode() * 3000),
        Member("usr/share/sample/empty"),
        Member("usr/share/sample/größe", b"a name of more than ASCII\n"),
        Member(LONG, b"deep\n"),
        Member("usr/share/sample/link", kind=tarfile.SYMTYPE, link="../../bin/sample", mode=0o777),
        Member("usr/share/sample/dangling", kind=tarfile.SYMTYPE, link="/nowhere/at/all", mode=0o777),
        Member("usr/share/sample/long-link", kind=tarfile.SYMTYPE, link="x/" * 80 + "y", mode=0o777),
        Member("usr/share/sample/same", kind=tarfile.LNKTYPE, link="./usr/share/sample/data"),
        Member("etc/changed-here.conf", f"setting = {version}\n".encode(), 0o640),
        Member("etc/changed-there.conf", f"other = {version}\n".encode()),
        Member("etc/deleted-here.conf", f"third = {version}\n".encode()),
    ]
    if version == "2":
        data = [member for member in data if member.path != "usr/share/sample/empty"]
        data.append(Member("usr/share/sample/new", b"new in 2\n"))
    conffiles = [member.path for member in data if member.path.startswith("etc/") and member.data]
    sums = "".join(
        f"{hashlib.md5(member.data, usedforsecurity=False).hexdigest()}  {member.path}\n"
        for member in data
        if member.kind == tarfile.REGTYPE and member.path not in conffiles
    )
    control = _tar(
        Member("", mode=0o755, kind=tarfile.DIRTYPE),
        Member(
            "control",
            f"Package: sample\nVersion: {version}\nArchitecture: all\nMaintainer: N <n@example.org>\n"
            "Description: sample\n with\n .\n a long one\n".encode(),
        ),
        Member("conffiles", "".join(f"/{path}\n" for path in conffiles).encode()),
        Member("md5sums", sums.encode()),
        Member("triggers", b"interest-noawait /usr/share/sample-plugins\n"),
        *(Member(name, SCRIPT.format(name=f"{name}-{version}").encode(), 0o755) for name in SCRIPTS),
    )
    pack = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress}[suffix]
    return ar_of(
        ("debian-binary", b"2.0\n"), (f"control.tar.{suffix}", pack(control)), (f"data.tar.{suffix}", pack(_tar(*data)))
    )


class Root:
    """A private root, which dpkg changes with the package as delivered or in its stored form."""

    def __init__(self, folder: Path, *, in_stored_form: bool, suffix: str) -> None:
        self.path, self._stored, self._suffix = folder / "root", in_stored_form, suffix
        for part in ("info", "updates", "triggers"):
            (self.path / "var/lib/dpkg" / part).mkdir(parents=True)
        (self.path / "var/lib/dpkg/status").touch()

    def install(self, version: str, *options: str) -> None:
        deb = self.path.parent / f"sample_{version}.deb"
        deb.write_bytes(package(version, self._suffix))
        if self._stored:
            write_stored(deb, "deb", deb.with_suffix(".stored"))
            assert b"control.tar  " in deb.with_suffix(".stored").read_bytes()[:100]
            deb.with_suffix(".stored").replace(deb)
        self.dpkg(*options, "--install", str(deb))

    def dpkg(self, *arguments: str) -> None:
        command = ["dpkg", "--root", str(self.path), "--log=/dev/null", "--force-script-chrootless"]
        command += ["--force-not-root", "--force-bad-path", "--force-unsafe-io", *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120
        )
        assert done.returncode == 0, done.stderr

    def tree(self) -> dict[str, tuple[object, ...]]:
        """Type, mode, owner, time, links and content of everything; times only of what the package brought."""
        found: dict[str, tuple[object, ...]] = {}
        for path in sorted(self.path.rglob("*")):
            facts, name = path.lstat(), str(path.relative_to(self.path))
            content: object = None
            if path.is_symlink():
                content = str(path.readlink())
            elif path.is_file():
                content = path.read_bytes()
            timed = not name.startswith("var/") and not path.is_dir()
            owner = (facts.st_uid, facts.st_gid)
            kind, mode = stat.S_IFMT(facts.st_mode), stat.S_IMODE(facts.st_mode)
            links = facts.st_nlink if stat.S_ISREG(facts.st_mode) else 0
            found[name] = (kind, mode, owner, int(facts.st_mtime) if timed else 0, links, content)
        return found


@pytest.fixture(params=["gz", "xz", "zst"])
def roots(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Root, Root]:
    for name in ("delivered", "stored"):
        (tmp_path / name).mkdir()
    return (
        Root(tmp_path / "delivered", in_stored_form=False, suffix=request.param),
        Root(tmp_path / "stored", in_stored_form=True, suffix=request.param),
    )


def same(roots: tuple[Root, Root]) -> dict[str, tuple[object, ...]]:
    delivered, stored = (root.tree() for root in roots)
    assert list(stored) == list(delivered)
    for name, facts in delivered.items():
        assert stored[name] == facts, name
    return stored


def test_the_same_is_installed(roots: tuple[Root, Root]) -> None:
    for root in roots:
        root.install("1")
    tree = same(roots)
    kind, mode, _, when, _, content = tree["usr/bin/sample"]
    assert (kind, mode, content) == (stat.S_IFREG, 0o4755, noise(70_000, seed=1))
    assert WHEN < when < WHEN + 100  # type: ignore[operator]
    assert tree["usr/share/sample/data"][4] == 2, "a hard link is one"
    assert tree["usr/share/sample/link"][-1] == "../../bin/sample"
    assert tree[LONG][-1] == b"deep\n"
    if os.geteuid() == 0:
        assert tree["usr/bin/sample-admin"][1:3] == (0o2750, (1234, 1234))
    assert tree["var/scripts.log"][-1] == b"preinst-1 install\npostinst-1 configure \n"
    status = str(tree["var/lib/dpkg/status"][-1])
    assert "install ok installed" in status
    assert "/etc/changed-here.conf" in status


@pytest.mark.parametrize(
    ("option", "here", "beside"),
    [
        ("--force-confold", b"setting = mine\n", {"etc/changed-here.conf.dpkg-dist": b"setting = 2\n"}),
        ("--force-confnew", b"setting = 2\n", {"etc/changed-here.conf.dpkg-old": b"setting = mine\n"}),
    ],
)
def test_a_conffile_that_was_changed_locally_is_treated_the_same(
    roots: tuple[Root, Root], option: str, here: bytes, beside: dict[str, bytes]
) -> None:
    for root in roots:
        root.install("1")
        mine = root.path / "etc/changed-here.conf"
        mine.write_bytes(b"setting = mine\n")
        os.utime(mine, (WHEN, WHEN))
        (root.path / "etc/deleted-here.conf").unlink()
        root.install("2", option)
    tree = same(roots)
    assert tree["etc/changed-here.conf"][-1] == here
    assert tree["etc/changed-there.conf"][-1] == b"other = 2\n"
    for name, content in beside.items():
        assert tree[name][-1] == content
    assert "usr/share/sample/empty" not in tree
    assert tree["usr/share/sample/new"][-1] == b"new in 2\n"
    log = bytes(tree["var/scripts.log"][-1]).decode()  # type: ignore[call-overload]
    assert log.splitlines()[2:] == [
        "prerm-1 upgrade 2",
        "preinst-2 upgrade 1 2",
        "postrm-1 upgrade 2",
        "postinst-2 configure 1",
    ]


def test_removing_and_purging_leave_the_same(roots: tuple[Root, Root]) -> None:
    for root in roots:
        root.install("1")
        root.dpkg("--remove", "sample")
    removed = same(roots)
    assert "etc/changed-here.conf" in removed
    assert "usr/bin/sample" not in removed
    for root in roots:
        root.dpkg("--purge", "sample")
    assert "etc/changed-here.conf" not in same(roots)


def test_the_two_may_follow_each_other(tmp_path: Path) -> None:
    """A device that installed a package as delivered takes the next one in its stored form, and back again."""
    trees = []
    for number, forms in enumerate(((False, True), (True, False), (False, False))):
        (tmp_path / str(number)).mkdir()
        root = Root(tmp_path / str(number), in_stored_form=forms[0], suffix="xz")
        root.install("1")
        root._stored = forms[1]
        root.install("2")
        trees.append(root.tree())
    assert trees[0] == trees[1] == trees[2]
