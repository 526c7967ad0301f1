"""Hostile archives: refused by name and reason, or passed on as they are where members are not looked at; never at a high price.

The rule: of a container whose *structure* is undone here (ar, zip, the compression around a tar) everything that lies is
refused. What is *in* a tar is not looked at: its bytes are the stored form, whatever they say, and unpacking them is up to who
does it on the device (dpkg refuses ``..`` and links that lead outside; ``apply`` has its own rules). The same holds for names
in a zip: they are copied as they are.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from content_samples import ar_of, noise, tar_of, text, xz_with_dictionary, zip_of_many

from pcm_p2p.content.forms import stored_form
from pcm_p2p.content.forms.stored_form import EXPANSION_MAX, SIZE_BYTES_MAX, detect, size_bytes_most, write_stored
from pcm_p2p.content.forms.zip import MEMBERS_MAX
from pcm_p2p.content.manifest import Form
from pcm_p2p.errors import InputError

DEB_HEAD = (("debian-binary", b"2.0\n"), ("control.tar", tar_of(control=b"Package: sample\n")))

_PEAK = """
import sys
from pathlib import Path
from pcm_p2p.content.forms.stored_form import detect, write_stored
from pcm_p2p.errors import InputError
source, destination = Path(sys.argv[1]), Path(sys.argv[2])
def peak():
    return next(int(line.split()[1]) >> 10 for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
before = peak()
try:
    write_stored(source, sys.argv[3] if len(sys.argv) > 3 else detect(source), destination, size_bytes_max=100 << 20)
    print("written")
except InputError as error:
    print(error.message)
print(peak() - before)
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")


def outcome(source: Path, *form: str) -> tuple[str, int]:
    """What a fresh process says of ``source``, and how many MiB it took; nothing is left behind by a refusal."""
    destination = source.with_name("stored")
    command = [sys.executable, "-c", _PEAK, str(source), str(destination), *form]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    said, peak = result.stdout.splitlines()
    assert destination.exists() == (said == "written")
    return said, int(peak)


def packed_zeros(size_mib: int, suffix: str) -> bytes:
    """A tar that is mostly zeros, packed piece by piece, so that the test itself needs no memory for it."""
    head, block = tar_of(x=b"")[:512], bytes(1 << 20)
    match suffix:
        case "gz":
            out = io.BytesIO()
            with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as file:
                for piece in (head, *[block] * size_mib):
                    file.write(piece)
            return out.getvalue()
        case "bz2":
            packer = bz2.BZ2Compressor(9)
        case "xz":
            packer = lzma.LZMACompressor(preset=0)  # type: ignore[assignment]
        case _:
            packer = zstandard.ZstdCompressor(
                compression_params=zstandard.ZstdCompressionParameters(window_log=27, compression_level=1)
            ).compressobj()  # type: ignore[assignment]
    return packer.compress(head) + b"".join(packer.compress(block) for _ in range(size_mib)) + packer.flush()


@needs_proc
@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("around", ["tar", "deb"])
def test_bombs_are_stopped_at_the_bound_in_bounded_memory(tmp_path: Path, suffix: str, around: str) -> None:
    """120 MiB of which 100 are allowed; a zstd frame may make its reader keep a window of 128 MiB."""
    bomb = packed_zeros(120, suffix)
    assert len(bomb) < 2 << 20
    source = tmp_path / f"bomb.{around}"
    source.write_bytes(bomb if around == "tar" else ar_of(*DEB_HEAD, (f"data.tar.{suffix}", bomb)))
    said, peak_mib = outcome(source)
    assert "unpacks to more than 104" in said
    assert peak_mib < (220 if suffix == "zst" else 70)


@pytest.mark.parametrize(
    ("form", "delivered_bytes", "most_bytes"),
    [
        ("deb", 0, 1 << 30),
        ("tar", 10 << 20, 1 << 30),
        ("deb", 70_550_672, 7_055_067_200),
        ("zip", 1 << 40, SIZE_BYTES_MAX),
        ("exact", 1, SIZE_BYTES_MAX),
    ],
)
def test_how_large_a_file_may_unpack_follows_from_its_own_size(
    form: Form, delivered_bytes: int, most_bytes: int
) -> None:
    assert size_bytes_most(form, delivered_bytes) == most_bytes


@pytest.mark.parametrize(("form", "suffix"), [("tar", "gz"), ("zip", "zip")])
def test_a_release_is_not_made_of_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form, suffix: str
) -> None:
    monkeypatch.setattr(stored_form, "EXPANSION_FREE_BYTES", 1 << 20)
    bomb = tmp_path / f"bomb.{suffix}"
    if form == "tar":
        bomb.write_bytes(packed_zeros(16, "gz"))
    else:
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", bytes(16 << 20))
    assert bomb.stat().st_size * EXPANSION_MAX < 16 << 20, "it is one"
    with pytest.raises(InputError, match=r"bomb\.\w+: unpacks to more than \d+ bytes"):
        write_stored(bomb, form, tmp_path / "stored")
    assert not (tmp_path / "stored").exists()


@needs_proc
def test_a_zip_bomb_is_stopped_before_it_is_unpacked(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("zeros", "w") as member:
        for _ in range(120):
            member.write(bytes(1 << 20))
    (tmp_path / "bomb.zip").write_bytes(out.getvalue())
    said, peak_mib = outcome(tmp_path / "bomb.zip")
    assert "unpacks to more than 104857600 bytes" in said
    assert peak_mib < 60


def test_members_of_a_zip_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """The bomb whose sizes are all true: every entry of the directory names the same packed bytes."""
    source = tmp_path / "bomb.zip"
    source.write_bytes(zip_of_many(2000, data=bytes(1 << 20), overlapping=True))
    assert source.stat().st_size < 200_000
    with pytest.raises(InputError, match="'0000000' and '0000001' share bytes"):
        write_stored(source, "zip", tmp_path / "stored", size_bytes_max=SIZE_BYTES_MAX)
    assert not (tmp_path / "stored").exists()


@needs_proc
def test_a_zip_with_a_million_members_is_refused_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "million.jar").write_bytes(zip_of_many(1_000_000))
    said, peak_mib = outcome(tmp_path / "million.jar")
    assert f"has more than {MEMBERS_MAX} members" in said
    assert peak_mib < 150


def test_the_number_of_members_is_counted_and_not_believed(tmp_path: Path) -> None:
    source = tmp_path / "a.zip"
    data = zip_of_many(300)
    at = data.rindex(b"PK\x05\x06")
    for stated in (0, 1, 65_535):
        source.write_bytes(data[: at + 8] + stated.to_bytes(2, "little") * 2 + data[at + 12 :])
        (tmp_path / "stored").unlink(missing_ok=True)
        write_stored(source, "zip", tmp_path / "stored")
        with zipfile.ZipFile(tmp_path / "stored") as archive:
            assert len(archive.infolist()) == 300


@needs_proc
def test_a_tar_with_a_million_members_costs_its_bytes(tmp_path: Path) -> None:
    """Half a gigabyte of headers in a file of 2 MB: no member costs anything, the bound on the whole stops it."""
    header = tar_of(member=b"")[:512]
    for members, answer in ((200_000, "written"), (1_000_000, "unpacks to more than 104857600 bytes")):
        with gzip.open(tmp_path / "many.tar.gz", "wb", compresslevel=1) as file:
            for _ in range(members // 1000):
                file.write(header * 1000)
        said, peak_mib = outcome(tmp_path / "many.tar.gz")
        assert answer in said
        assert peak_mib < 40
        (tmp_path / "stored").unlink(missing_ok=True)


@needs_proc
@pytest.mark.parametrize("code", [28, 36, 40])
def test_a_dictionary_of_gigabytes_is_refused(tmp_path: Path, code: int) -> None:
    source = tmp_path / "a.deb"
    source.write_bytes(ar_of(*DEB_HEAD, ("data.tar.xz", xz_with_dictionary(tar_of(x=text(5000)), code))))
    said, peak_mib = outcome(source)
    if code == 28:
        assert (said, peak_mib < 100) == ("written", True), "64 MiB is what xz -9 asks for"
    else:
        assert "cannot be unpacked: Memory usage limit" in said
        assert peak_mib < 40


@needs_proc
def test_a_window_of_gigabytes_is_refused(tmp_path: Path) -> None:
    """zstd --long=31 --ultra: the frame header asks for 2 GiB."""
    # Magic, a descriptor without content size, the window byte for 2^31, one raw block of 5 bytes that is the last.
    frame = b"\x28\xb5\x2f\xfd\0\xa8" + (5 << 3 | 1).to_bytes(3, "little") + b"hello"
    (tmp_path / "a.tar.zst").write_bytes(frame)
    said, peak_mib = outcome(tmp_path / "a.tar.zst", "tar")
    assert "the zstd data cannot be unpacked" in said
    assert peak_mib < 40


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def _sized(size: bytes) -> bytes:
    """A member whose header states another size than there are bytes, its checksum right."""
    header = bytearray(_member("lies"))
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


TARS = {
    "climbs": _member("../../etc/cron.d/evil", data=b"* * * * * root true\n"),
    "absolute": _member("/etc/passwd", data=b"root::0:0::/:/bin/sh\n"),
    "link leads outside": _member("out", tarfile.SYMTYPE, "../../..") + _member("out/etc/evil", data=b"x"),
    "hard link leads outside": _member("shadow", tarfile.LNKTYPE, "../../etc/shadow"),
    "member twice": _member("same", data=b"one") + _member("same", data=b"two"),
    "file, then a link of its name": _member("same", data=b"one") + _member("same", tarfile.SYMTYPE, "/etc"),
    "device": _member("disk", tarfile.BLKTYPE),
    "larger than the archive": _sized(b"77777777777\0"),
    "negative": _sized(b"\xff" * 12),
    "no number": _sized(b"a lot\0\0\0\0\0\0\0"),
}


@pytest.mark.parametrize("what", TARS)
def test_what_is_in_a_tar_is_passed_on_as_it_is(tmp_path: Path, what: str) -> None:
    tar = TARS[what] + bytes(1024)
    for name, delivered, wanted in (
        ("a.tar.xz", lzma.compress(tar), tar),
        (
            "a.deb",
            ar_of(*DEB_HEAD, ("data.tar.gz", gzip.compress(tar))),
            ar_of(*DEB_HEAD, ("data.tar", tar)),
        ),
    ):
        source = tmp_path / name
        source.write_bytes(delivered)
        write_stored(source, detect(source), tmp_path / f"{name}.stored")
        assert (tmp_path / f"{name}.stored").read_bytes() == wanted


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "C:\\boot.ini", "a/../b", "con", "a//b", "./a"])
def test_names_in_a_zip_are_passed_on_as_they_are(tmp_path: Path, name: str) -> None:
    source, out = tmp_path / "a.zip", io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o120777 << 16  # a symbolic link, as Info-ZIP writes them
        archive.writestr(info, b"../../..")
    source.write_bytes(out.getvalue())
    write_stored(source, "zip", tmp_path / "stored")
    with zipfile.ZipFile(tmp_path / "stored") as archive:
        (member,) = archive.infolist()
        assert (member.filename, member.external_attr >> 16) == (name, 0o120777)
        assert archive.read(member) == b"../../.."


def _zip64_lie() -> bytes:
    """The long form of the end record, which states a directory of 2^62 bytes."""
    data = zip_of_many(3)
    at = data.rindex(b"PK\x05\x06")
    long_end = b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes(12) + b"\3" + bytes(7) + b"\3" + bytes(7)
    long_end += (1 << 62).to_bytes(8, "little") + bytes(8)
    locator = b"PK\x06\x07" + bytes(4) + at.to_bytes(8, "little") + b"\1\0\0\0"
    return data[:at] + long_end + locator + data[at:]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_zip64_lie, "its directory has more than"),
        (lambda: zip_of_many(3)[:-10], "no directory at its end"),
        (lambda: zip_of_many(3).replace(b"PK\x01\x02", b"PK\x01\x03", 2), "cannot be read as a zip"),
        (lambda: zip_of_many(3, data=noise(100)).replace(b"PK\x03\x04", b"PK\x03\x05", 3), "cannot be read as a zip"),
    ],
)
def test_zips_that_contradict_themselves_are_refused(tmp_path: Path, make: Callable[[], bytes], why: str) -> None:
    (tmp_path / "a.zip").write_bytes(make())
    with pytest.raises(InputError, match=why):
        write_stored(tmp_path / "a.zip", "zip", tmp_path / "stored")
    assert not (tmp_path / "stored").exists()
