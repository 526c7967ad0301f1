"""Identifiers: one textual form each, lengths that are part of the type, and names that cannot leave their folder."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import ChunkId, DeviceId, ManifestId, RelativePath, SegmentId, check_name

KINDS = [(DeviceId, 16), (ChunkId, 32), (SegmentId, 32), (ManifestId, 32)]
NAMES = ["web", "7.4.7-1+deb12u14", "4:7.4.7-1~rc1", "a@b", "x=1", "A" * 128, "libreoffice-core-nogui.deb"]
NOT_NAMES = [
    "",
    ".",
    "..",
    "a..b",
    "/etc",
    "a/b",
    "a\\b",
    "-rf",
    ".hidden",
    "a b",
    "a\0b",
    "ü",
    "a\n",
    "A" * 129,
    "$HOME",
]


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_text_and_bytes_are_two_forms_of_one_id(kind: type[ChunkId], size: int) -> None:
    raw = bytes(range(size))
    assert kind.parse(str(kind(raw))) == raw
    assert kind(raw).short == raw.hex()[:8]
    assert repr(kind(raw)) == f"{kind.__name__}({raw.hex()[:8]}…)"


@pytest.mark.parametrize(("kind", "size"), KINDS)
@pytest.mark.parametrize("wrong", ["", "0", "upper", "long", "short", "space", "prefix", "other"])
def test_any_other_text_is_refused(kind: type[ChunkId], size: int, wrong: str) -> None:
    good = bytes(range(0xF0 - size, 0xF0)).hex()
    texts = {"upper": good.upper(), "long": good + "00", "short": good[2:], "space": " " + good[1:]}
    texts |= {"prefix": "0x" + good[2:], "other": "g" * len(good)}
    with pytest.raises(UntrustedBytes, match=kind.__name__):
        kind.parse(texts.get(wrong, wrong))


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_a_wrong_length_cannot_be_built(kind: type[ChunkId], size: int) -> None:
    for length in (0, size - 1, size + 1):
        with pytest.raises(UntrustedBytes):
            kind(bytes(length))


@given(st.binary(max_size=200))
def test_content_ids_are_blake3_and_device_ids_are_half_of_sha256(data: bytes) -> None:
    assert ChunkId.of(data) == ChunkId.of(memoryview(data)) == blake3(data).digest()
    assert DeviceId.of_public_key(data) == hashlib.sha256(data).digest()[:16]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_packages_have_are_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", NOT_NAMES)
def test_names_that_could_be_more_than_a_name_are_refused(name: str) -> None:
    with pytest.raises(UntrustedBytes, match="release"):
        check_name(name, "release")


@pytest.mark.parametrize("path", ["a", "a/b.c", "usr/share/doc/ü", "a b/-c", "...", "a/..b"])
def test_a_path_below_a_root_is_taken(path: str) -> None:
    assert RelativePath(path) == path


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "a/", "a//b", "./a", "a/.", "..", "a/../b", "a\0", "a\\..\\b", "x" * 4097]
)
def test_a_path_that_could_leave_its_root_is_refused(path: str) -> None:
    with pytest.raises(UntrustedBytes):
        RelativePath(path)


@given(st.text(st.sampled_from("ab./\\\0"), max_size=12))
def test_no_relative_path_climbs(text: str) -> None:
    try:
        path = RelativePath(text)
    except UntrustedBytes:
        return
    joined = PurePosixPath("/root") / path
    assert joined.is_relative_to("/root")
    assert ".." not in joined.parts


@given(st.text(max_size=140))
def test_a_checked_name_is_one_component_of_a_path(text: str) -> None:
    try:
        name = check_name(text)
    except UntrustedBytes:
        return
    assert PurePosixPath("/root", name).parent == PurePosixPath("/root")
    assert len(RelativePath(name).split("/")) == 1
