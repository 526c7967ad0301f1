"""Layouts: joined pieces are the stored form, whatever archive it is, and a hostile layout names no place outside."""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from content_samples import ar_of, build_deb, noise, text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcm_p2p.content.forms.stored_form import write_stored
from pcm_p2p.content.manifest import Form
from pcm_p2p.content.pieces import (
    LAYOUT_BYTES_MAX,
    REST_BYTES_MAX,
    SCHEMA,
    FilePiece,
    Pieces,
    decode_layout_untrusted,
    encode_layout,
)
from pcm_p2p.content.publishing.layout import CONFFILE_BYTES_MAX, FILE_BYTES_MIN, make_layout, package_of
from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import ChunkId

CONTROL = "Package: sample\nVersion: 1:2-3\nArchitecture: amd64\nMulti-Arch: {}\nDescription: one\n Package: wrong\n"
MIB = 1 << 20
debian = pytest.mark.debian
needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="there is no dpkg-deb here")


def tar(members: list[tuple[str, bytes | str]], dialect: int = tarfile.GNU_FORMAT) -> bytes:
    """Files with bytes, symbolic links with a string."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=dialect) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def deb(control: list[tuple[str, bytes | str]], data: list[tuple[str, bytes | str]], multi_arch: str = "no") -> bytes:
    control = [("./control", CONTROL.format(multi_arch).encode()), *control]
    return ar_of(("debian-binary", b"2.0\n"), ("control.tar", tar(control)), ("data.tar", tar(data)))


def pieces_of(folder: Path, stored: bytes, form: Form = "tar", chunk_size: int = 1000) -> Pieces | None:
    path = folder / "stored"
    path.write_bytes(stored)
    chunks = [stored[at : at + chunk_size] for at in range(0, len(stored), chunk_size)]
    layout = make_layout(path, form, [ChunkId.of(chunk) for chunk in chunks], [len(chunk) for chunk in chunks])
    return None if layout is None else decode_layout_untrusted(layout)


def joined(pieces: Pieces, files: Mapping[bytes, bytes], at: int = 0, size_bytes: int | None = None) -> bytes:
    found = []
    for piece in pieces.between(at, pieces.size_bytes if size_bytes is None else size_bytes):
        if not isinstance(piece, bytes):
            data = files[piece.file.path]
            assert len(data) == piece.file.size_bytes
            found.append(data[piece.at : piece.at + piece.size_bytes])
        else:
            found.append(piece)
    return b"".join(found)


def paths(pieces: Pieces) -> list[bytes]:
    return [piece.path for piece in pieces.pieces if isinstance(piece, FilePiece)]


NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60), min_size=1, max_size=5
).map("/".join)
CONTENTS = st.one_of(st.binary(max_size=2000), st.integers(0, 5000).map(bytes), st.text("abc", min_size=1, max_size=9))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(st.tuples(NAMES, CONTENTS), max_size=12, unique_by=lambda member: member[0]),
    dialect=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    as_deb=st.booleans(),
    spans=st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 70_000)), max_size=4),
    broken_at=st.one_of(st.none(), st.integers(100_000, 200_000)),
)
def test_joined_pieces_are_the_stored_form(
    tmp_path: Path,
    members: list[tuple[str, bytes | str]],
    dialect: int,
    as_deb: bool,
    spans: list[tuple[int, int]],
    broken_at: int | None,
) -> None:
    members = [("./large", noise(90_000)), *(member for member in members if member[0] not in ("large", "./large"))]
    stored = tar(members, dialect)
    if broken_at is not None and not as_deb:
        stored = stored[:broken_at] + noise(500)
    if as_deb:
        stored = ar_of(
            ("debian-binary", b"2.0\n"),
            ("control.tar", tar([("./control", CONTROL.format("no").encode())])),
            ("data.tar", stored),
        )
    pieces = pieces_of(tmp_path, stored, "deb" if as_deb else "tar")
    assert pieces is not None
    # Later members of one path win when they are unpacked; here names are distinct, but for what "./" adds.
    files = {name.removeprefix("./").encode(): data for name, data in members if isinstance(data, bytes)}
    assert joined(pieces, files) == stored
    for at, size in spans:
        wanted = stored[at : at + size]
        assert joined(pieces, files, at, len(wanted)) == wanted


def test_files_are_pieces_and_all_else_is_in_the_layout(tmp_path: Path) -> None:
    members = [("./usr/bin/large", noise(5000)), ("usr/least", noise(FILE_BYTES_MIN)), ("usr/link", "bin/large")]
    stored = tar([*members, ("usr/small", noise(FILE_BYTES_MIN - 1)), ("usr/empty", b"")])
    pieces = pieces_of(tmp_path, stored)
    assert pieces is not None
    assert paths(pieces) == [b"usr/bin/large", b"usr/least"]


def test_a_hard_link_has_no_bytes_of_its_own(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("first")
        info.size = 5000
        archive.addfile(info, io.BytesIO(noise(5000)))
        second = tarfile.TarInfo("second")
        second.type, second.linkname, second.size = tarfile.LNKTYPE, "first", 0
        archive.addfile(second)
    pieces = pieces_of(tmp_path, out.getvalue())
    assert pieces is not None
    assert paths(pieces) == [b"first"]


def test_control_files_of_a_package_are_where_dpkg_keeps_them(tmp_path: Path) -> None:
    control: list[tuple[str, bytes | str]] = [("./md5sums", text(4000)), ("./postinst", noise(10))]
    payload: list[tuple[str, bytes | str]] = [("./opt/payload", noise(20_000))]
    for multi_arch, info in (("no", b"sample.md5sums"), ("same", b"sample:amd64.md5sums")):
        pieces = pieces_of(tmp_path, deb(control, payload, multi_arch), "deb")
        assert pieces is not None
        assert paths(pieces) == [b"var/lib/dpkg/info/" + info, b"opt/payload"]


def test_what_people_edit_is_in_the_layout(tmp_path: Path) -> None:
    control: list[tuple[str, bytes | str]] = [
        ("./conffiles", b"/etc/small\nremove-on-upgrade /etc/flagged\n/etc/large\n")
    ]
    data: list[tuple[str, bytes | str]] = [
        ("./etc/small", noise(5000)),
        ("./etc/flagged", noise(5000)),
        ("./etc/large", noise(CONFFILE_BYTES_MAX + 1)),
        ("./opt/payload", noise(50_000)),
    ]
    pieces = pieces_of(tmp_path, deb(control, data), "deb")
    assert pieces is not None
    assert paths(pieces) == [b"etc/large", b"opt/payload"]


def test_a_path_that_climbs_is_in_the_layout(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [(name, noise(1000)) for name in ("../out", "/absolute", "a/../b", "a//b")]
    pieces = pieces_of(tmp_path, tar([("large", noise(9000)), *members]))
    assert pieces is not None
    assert paths(pieces) == [b"large"]


def test_there_is_no_layout_where_it_would_not_pay(tmp_path: Path) -> None:
    assert pieces_of(tmp_path, b"") is None
    assert pieces_of(tmp_path, noise(50_000)) is None
    assert pieces_of(tmp_path, tar([("small", noise(100))])) is None
    assert pieces_of(tmp_path, tar([("large", noise(50_000))]), "zip") is None
    large = tar([("large", bytes(12 << 20))])
    for rest in (noise(LAYOUT_BYTES_MAX), bytes(REST_BYTES_MAX)):
        assert pieces_of(tmp_path, large + rest, chunk_size=MIB) is None
        assert pieces_of(tmp_path, large + rest[: LAYOUT_BYTES_MAX // 2], chunk_size=MIB) is not None


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    head = tarfile.TarInfo("pax")
    head.type, head.size = tarfile.XHDTYPE, 3 << 30
    path = tmp_path / "sparse"
    path.write_bytes(head.tobuf())
    with path.open("r+b") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    try:
        assert make_layout(path, "tar", [ChunkId.of(b"")], [64 << 20]) is None
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_package_is_named_as_dpkg_names_it(tmp_path: Path) -> None:
    path = tmp_path / "stored"
    path.write_bytes(deb([], []))
    assert package_of(path) == ("sample", "1:2-3", "amd64")


@debian
@needs_dpkg
def test_a_package_of_dpkg_deb_itself(tmp_path: Path) -> None:
    path = tmp_path / "stored"
    write_stored(build_deb(tmp_path, noise(50_000), version="7"), "deb", path)
    assert package_of(path) == ("sample", "7", "all")
    pieces = pieces_of(tmp_path, path.read_bytes(), "deb")
    assert pieces is not None
    assert joined(pieces, {b"opt/payload": noise(50_000)}) == path.read_bytes()


def test_what_is_no_package_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "stored"
    for data in (noise(100), ar_of(("debian-binary", b"2.0\n")), deb([], [])[:300]):
        path.write_bytes(data)
        with pytest.raises(InputError, match="stored"):
            package_of(path)
    path.write_bytes(ar_of(("debian-binary", b"2.0\n"), ("control.tar", tar([])), ("data.tar", tar([]))))
    with pytest.raises(InputError, match="names no package"):
        package_of(path)


# chunks


def test_a_chunk_is_found_by_its_size_and_the_beginning_of_its_id(tmp_path: Path) -> None:
    stored = tar([("large", text(30_000))])
    pieces = pieces_of(tmp_path, stored, chunk_size=7000)
    assert pieces is not None
    for at in range(0, len(stored), 7000):
        chunk = stored[at : at + 7000]
        assert at in pieces.places(ChunkId.of(chunk), len(chunk))
    assert pieces.places(ChunkId.of(stored[:7000]), 7001) == ()
    marks = {ChunkId.of(stored[at : at + 7000])[0] for at in range(0, len(stored), 7000)}
    other = next(number for number in range(256) if number not in marks)
    assert pieces.places(ChunkId(bytes([other] * 32)), 7000) == ()


def test_what_a_header_says_is_not_said_twice(tmp_path: Path) -> None:
    stored = tar([(f"./usr/share/{number}", noise(1000, number)) for number in range(50)])
    path = tmp_path / "stored"
    path.write_bytes(stored)
    layout = make_layout(path, "tar", [ChunkId.of(stored)], [len(stored)])
    assert layout is not None
    assert layout.count(b"usr/share/17") == 1
    assert len(layout) < 50 * 200


def test_equal_chunks_have_several_places() -> None:
    chunk = ChunkId.of(b"ab")
    pieces = decode_layout_untrusted(encode_layout([b"abab"], [chunk, chunk], [2, 2]))
    assert pieces.places(chunk, 2) == (0, 2)


# hostile layouts


def layout_of(pieces: list[object], sizes: list[int], marks: int | None = None) -> bytes:
    """A layout with anything in it."""
    packed = [size.to_bytes(4, "little") for size in sizes]
    planes = bytes(number[byte] for byte in range(4) for number in packed)
    return msgspec.msgpack.encode((SCHEMA, planes, bytes(len(sizes) if marks is None else marks), pieces))


def header(name: bytes, size: bytes = b"00000000005\0") -> bytes:
    return name.ljust(100, b"\0") + b"0000644\0" * 3 + size + bytes(512 - 136)


PATHS = [b"", b"/etc/shadow", b"../x", b"a/../../x", b"a//b", b"./a/.", b"a\0b", b"a/", b"x" * 5000]


@pytest.mark.parametrize("path", PATHS)
def test_a_layout_that_climbs_is_refused(path: bytes) -> None:
    with pytest.raises(UntrustedBytes, match="stays below its root"):
        decode_layout_untrusted(layout_of([(path, 5)], [5]))


@pytest.mark.parametrize("path", PATHS[:-1])
def test_a_header_that_climbs_is_refused(path: bytes) -> None:
    with pytest.raises(UntrustedBytes, match="stays below its root"):
        decode_layout_untrusted(layout_of([header(path), None], [517]))


def test_a_header_with_a_folder_before_its_name_that_climbs_is_refused() -> None:
    block = bytearray(header(b"x"))
    block[257:263], block[345:347] = b"ustar\0", b".."
    with pytest.raises(UntrustedBytes, match="stays below its root"):
        decode_layout_untrusted(layout_of([bytes(block), None], [517]))


@pytest.mark.parametrize(
    "size", [b"0" * 12, b"-0000000005\0", b"5_5".ljust(12), b"\x80" + bytes(11), b"9".ljust(12), bytes(12)]
)
def test_a_header_with_an_absurd_size_is_refused(size: bytes) -> None:
    with pytest.raises(UntrustedBytes, match=r"is empty|no header describes"):
        decode_layout_untrusted(layout_of([header(b"x", size), None], [517]))


@pytest.mark.parametrize(
    ("pieces", "sizes", "marks", "why"),
    [
        ([b"ab"], [3], None, "add up"),
        ([b"ab", (b"f", 1)], [2], None, "add up"),
        ([b"ab"], [2], 2, "do not match"),
        ([b"ab"], [], None, "add up"),
        ([b"ab"], [2, 0], None, "outside"),
        ([1 << 31], [1 << 31], None, "outside"),
        ([b"aaa", -1], [2], None, "not in files"),
        ([1 << 40], [2], None, "not in files"),
        ([REST_BYTES_MAX, 1], [2], None, "not in files"),
        ([b"aa", (b"f", 0)], [2], None, "is empty"),
        ([b"aa", (b"f", -1)], [1], None, "is empty"),
        ([None], [2], None, "no header describes"),
        ([b"short", None], [2], None, "no header describes"),
        ([header(b"x"), (b"f", 5), None], [522], None, "no header describes"),
        ([header(b"x"), None, None], [522], None, "no header describes"),
    ],
)
def test_a_layout_that_does_not_add_up_is_refused(
    pieces: list[object], sizes: list[int], marks: int | None, why: str
) -> None:
    with pytest.raises(UntrustedBytes, match=why):
        decode_layout_untrusted(layout_of(pieces, sizes, marks))


def test_bytes_that_are_no_layout_are_refused() -> None:
    good = encode_layout([b"ab"], [ChunkId.of(b"ab")], [2])
    for data in (b"", b"\xc0", good[:-1], good + b"\0", good.replace(SCHEMA.encode(), b"pcm.layout/9")):
        with pytest.raises(UntrustedBytes):
            decode_layout_untrusted(data)
    with pytest.raises(UntrustedBytes, match="at most"):
        decode_layout_untrusted(bytes(LAYOUT_BYTES_MAX + 1))


def test_more_pieces_than_are_read_are_refused_before_they_are_made() -> None:
    with pytest.raises(UntrustedBytes, match="length"):
        decode_layout_untrusted(layout_of([1] * ((1 << 18) + 1), [1]))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(UntrustedBytes):
        decode_layout_untrusted(data)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=9), st.integers(-1, 600), st.none(), st.tuples(st.binary(max_size=9), st.integers(0, 9))
        )
        | st.just(header(b"name"))
    ),
    st.lists(st.integers(0, 600), max_size=5),
)
def test_no_pieces_raise_anything_else(pieces: list[object], sizes: list[int]) -> None:
    with contextlib.suppress(UntrustedBytes):
        found = decode_layout_untrusted(layout_of(pieces, sizes))
        assert found.size_bytes == sum(sizes)
