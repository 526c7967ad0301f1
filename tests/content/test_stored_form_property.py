"""Stored forms of any archive: what a reader finds in them is what it found in the original, member by member."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pcm_p2p.content.forms.stored_form import detect, write_stored
from pcm_p2p.content.forms.zip import SUFFIXES

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zst": zstandard.ZstdCompressor().compress,
}

names = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=40).filter(
        lambda name: name not in (".", "..")
    ),
    min_size=1,
    max_size=5,
).map("/".join)
contents = st.one_of(
    st.binary(max_size=2000), st.integers(0, 70_000).map(lambda size: b"line of text\n" * (size // 13))
)


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """Tars of every dialect with members of every type, and whatever owners, modes and times they have."""
    dialect = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=dialect) as archive:
        for name in draw(st.lists(names, min_size=1, max_size=6)):
            if dialect == tarfile.USTAR_FORMAT:
                name = name.encode("ascii", "replace").decode()[:90]  # noqa: PLW2901 - what this dialect can say
            info = tarfile.TarInfo(name)
            info.type = draw(
                st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
            )
            info.mode = draw(st.integers(0, 0o7777))
            info.uid, info.gid = draw(st.integers(0, 70_000)), draw(st.integers(0, 70_000))
            info.uname = draw(st.sampled_from(["", "root", "_apt"]))
            info.mtime = draw(st.integers(0, 1 << 32))
            data = draw(contents) if info.isreg() else b""
            info.size = len(data)
            if info.issym() or info.islnk():
                info.linkname = draw(st.sampled_from(["target", "../../outside", "/etc/passwd"]))
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def stored(data: bytes, name: str, form: str) -> bytes:
    """The stored form, made twice under different names and compared, and of itself again."""
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for number in range(2):
            source = Path(folder) / f"{number}{name}"
            source.write_bytes(data)
            assert detect(source) == form
            destination = Path(folder) / f"{number}.stored"
            write_stored(source, form, destination)  # type: ignore[arg-type]
            made.append(destination.read_bytes())
        again = Path(folder) / f"again{name}"
        again.write_bytes(made[0])
        write_stored(again, form, again.with_suffix(".stored"))  # type: ignore[arg-type]
        assert made[0] == made[1], "depends on more than the source"
        assert again.with_suffix(".stored").read_bytes() == made[0], "what is stored already stays as it is"
        return made[0]


def members_of(tar: bytes) -> list[tuple[Any, ...]]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return [
            (*(sorted(info.get_info().items())), info.pax_headers, _content(archive, info))
            for info in archive.getmembers()
        ]


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info) if info.isreg() else None
    return file.read() if file else b""


@settings(max_examples=60, deadline=None)
@given(tars(), st.sampled_from(["gz", "bz2", "xz", "zst"]))
def test_a_compressed_tar_keeps_every_member(tar: bytes, suffix: str) -> None:
    made = stored(PACK[suffix](tar), f".tar.{suffix}", "tar")
    assert members_of(made) == members_of(tar)
    assert made == tar


def ar(*members: tuple[str, bytes, bytes]) -> bytes:
    """Members as name, the part of the header between name and size, and content."""
    out = b"!<arch>\n"
    for name, facts, data in members:
        out += name.encode().ljust(16) + facts + f"{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


def read_ar(data: bytes) -> list[tuple[str, bytes, bytes]]:
    members, at = [], 8
    while at < len(data):
        size = int(data[at + 48 : at + 58])
        members.append((data[at : at + 16].decode().rstrip(), data[at + 16 : at + 48], data[at + 60 : at + 60 + size]))
        at += 60 + size + size % 2
    return members


ar_facts = st.builds(
    lambda date, uid, gid, mode: f"{date:<12}{uid:<6}{gid:<6}{mode:<8o}".encode(),
    st.integers(0, 1 << 32),
    st.integers(0, 99_999),
    st.integers(0, 99_999),
    st.integers(0o100000, 0o107777),
)


@settings(max_examples=60, deadline=None)
@given(
    tars(), tars(), st.sampled_from(list(PACK)), st.sampled_from(list(PACK)), st.lists(ar_facts, min_size=3, max_size=3)
)
def test_a_package_keeps_every_member_of_both_tars(
    control: bytes, data: bytes, control_suffix: str, data_suffix: str, facts: list[bytes]
) -> None:
    delivered = ar(
        ("debian-binary", facts[0], b"2.0\n"),
        (f"control.tar.{control_suffix}".rstrip("."), facts[1], PACK[control_suffix](control)),
        (f"data.tar.{data_suffix}".rstrip("."), facts[2], PACK[data_suffix](data)),
    )
    made = read_ar(stored(delivered, ".deb", "deb"))
    assert [name for name, _, _ in made] == ["debian-binary", "control.tar", "data.tar"]
    assert [header for _, header, _ in made] == facts
    assert made[0][2] == b"2.0\n"
    assert members_of(made[1][2]) == members_of(control)
    assert members_of(made[2][2]) == members_of(data)
    assert (made[1][2], made[2][2]) == (control, data)


@st.composite
def zips(draw: st.DrawFn) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.comment = draw(st.binary(max_size=50))
        for name in draw(st.lists(names, min_size=1, max_size=6, unique=True)):
            folder = draw(st.booleans())
            when = draw(st.tuples(st.integers(1980, 2107), st.integers(1, 12), st.integers(1, 28)))
            info = zipfile.ZipInfo(
                name + "/" * folder, (*when, draw(st.integers(0, 23)), 59, 2 * draw(st.integers(0, 29)))
            )
            info.compress_type = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]))
            info.external_attr = draw(st.integers(0, (1 << 32) - 1))
            info.internal_attr = draw(st.integers(0, 1))
            info.create_system = draw(st.sampled_from([0, 3, 10]))
            info.comment = draw(st.binary(max_size=20))
            # The mark of jars, the owners of Info-ZIP, and times with the modification time only, as both headers have them.
            info.extra = b"".join(
                draw(
                    st.lists(
                        st.sampled_from([b"\xfe\xca\0\0", b"ux\x0b\0\x01\4\1\2\3\4\4\5\6\7\x08", b"UT\5\0\1abcd"]),
                        unique=True,
                    )
                )
            )
            archive.writestr(info, b"" if folder else draw(contents))
    return out.getvalue()


FACTS = (
    "filename",
    "date_time",
    "external_attr",
    "internal_attr",
    "create_system",
    "comment",
    "extra",
    "file_size",
    "CRC",
)


@settings(max_examples=80, deadline=None)
@given(zips(), st.sampled_from(sorted(SUFFIXES)))
def test_a_zip_of_any_family_keeps_every_member(data: bytes, suffix: str) -> None:
    made = stored(data, suffix, "zip")
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(io.BytesIO(made)) as after:
        assert after.comment == before.comment
        for old, new in zip(before.infolist(), after.infolist(), strict=True):
            assert {fact: getattr(new, fact) for fact in FACTS} == {fact: getattr(old, fact) for fact in FACTS}
            assert new.compress_type == zipfile.ZIP_STORED
            assert after.read(new) == before.read(old)


@settings(max_examples=40, deadline=None)
@given(contents, st.sampled_from(["", ".rpm", ".apk", ".nupkg", ".docx", ".msi"]))
def test_what_is_exact_is_the_same_bytes(data: bytes, suffix: str) -> None:
    assert stored(b"#" + data, suffix, "exact") == b"#" + data
