"""Members: what a container holds, found in whatever it is given, within bounds."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from content_samples import ar_of, noise, tar_of, zip_of_many
from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.content.forms import members as members_module
from pcm_p2p.content.forms.member import Member, normalized, versionless
from pcm_p2p.content.forms.members import members
from pcm_p2p.content.manifest import Form


def found(tmp_path: Path, data: bytes, form: Form) -> list[Member]:
    path = tmp_path / "stored"
    path.write_bytes(data)
    there = members(path, form)
    assert [member.offset for member in there] == [sum(one.size for one in there[:at]) for at in range(len(there))]
    assert sum(member.size for member in there) == len(data)
    return there


def paths(there: list[Member]) -> list[str]:
    return [member.path for member in there]


def test_a_package_is_its_files(tmp_path: Path) -> None:
    data = tar_of(**{"./usr/bin/a": noise(1_000), "./usr/bin/b": noise(5)})
    package = ar_of(("debian-binary", b"2.0\n"), ("control.tar", tar_of(**{"./control": b"x"})), ("data.tar", data))
    there = found(tmp_path, package, "deb")
    assert paths(there) == [
        "",
        "debian-binary",
        "control.tar",
        "control.tar/control",
        "data.tar",
        "usr/bin/a",
        "usr/bin/b",
    ]
    inside = there[5]
    assert inside.size == 512 + 1024, "header, content and padding"
    assert package[inside.offset :][512:1512] == noise(1_000)


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("form", ["tar", "exact"])
def test_long_names_and_links_of_every_tar_are_read(tmp_path: Path, tar_format: int, form: Form) -> None:
    long = "/".join(["folder" * 5] * 4) + "/ä.txt"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for name, kind in (
            ("d", tarfile.DIRTYPE),
            (long, tarfile.REGTYPE),
            ("l", tarfile.SYMTYPE),
            ("e", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "e" if kind == tarfile.SYMTYPE else ""
            info.size = 700 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    assert paths(found(tmp_path, out.getvalue(), form)) == ["", long, "e"]


def test_a_zip_is_its_files_and_its_directory(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a/b.txt", b"b" * 100)
        with archive.open(zipfile.ZipInfo("long.bin"), "w", force_zip64=True) as member:
            member.write(b"l" * 300)
    there = found(tmp_path, out.getvalue(), "zip")
    assert paths(there) == ["a/b.txt", "long.bin", ""]


def test_anything_else_is_one_member_and_nothing_is_none(tmp_path: Path) -> None:
    assert found(tmp_path, noise(3_000), "exact") == [Member("", 0, 3_000)]
    assert found(tmp_path, b"", "deb") == []


@pytest.mark.parametrize("form", ["deb", "tar", "zip", "exact"])
def test_what_breaks_off_is_part_of_the_last_member(tmp_path: Path, form: Form) -> None:
    tar = tar_of(a=noise(3_000), b=noise(3_000, 2))
    whole = {"deb": ar_of(("debian-binary", b"2.0\n"), ("control.tar", tar), ("data.tar", tar)), "zip": zip_of_many(3)}
    for end in (1, 100, 511, 513, 2_000, 5_000):
        found(tmp_path, whole.get(form, tar)[:end], form)


@given(data=st.binary(max_size=2_000), form=st.sampled_from(["deb", "tar", "zip", "exact"]))
def test_garbage_is_tiled_too(tmp_path_factory: pytest.TempPathFactory, data: bytes, form: Form) -> None:
    folder = tmp_path_factory.mktemp("garbage")
    for head in (b"", b"!<arch>\n", b"PK\x03\x04", b"\0" * 257 + b"ustar"):
        found(folder, head + data, form)


def test_a_million_members_are_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "MEMBERS_MAX", 100)
    there = found(tmp_path, zip_of_many(1_000), "zip")
    assert len(there) == 100
    assert there[-1].path == "", "the rest is nobody's"


def test_versions_in_paths_are_equal() -> None:
    assert versionless("lib/modules/6.1.0-55-amd64/a1.ko") == versionless("lib/modules/6.1.0-56-amd64/a1.ko")
    assert versionless("a1.ko") != versionless("a2.ko")
    assert normalized("openssh_9.2p1-2+deb12u9_amd64.deb") == normalized("openssh_9.2p1-2+deb12u10_amd64.deb")
    assert normalized("a.so") != normalized("b.so")
