"""Stored forms: what users of a file see stays the same, and hostile relatives of it are refused by name and reason."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
import zstandard
from content_samples import ar_of, build_deb, noise, tar_of, text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcm_p2p.content.forms.stored_form import detect, write_stored
from pcm_p2p.errors import DiskFull, InputError, StorageError

TAR = tar_of(hello=text(300_000), other=noise(1000))
debian = pytest.mark.debian
needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="there is no dpkg-deb here")

COMPRESSORS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "zst-without-size": zstandard.ZstdCompressor(write_content_size=False).compress,
}


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def stored(source: Path, size_bytes_max: int = 1 << 30) -> bytes:
    destination = source.with_name(source.name + ".stored")
    write_stored(source, detect(source), destination, size_bytes_max=size_bytes_max)
    return destination.read_bytes()


def refused(source: Path, why: str, form: str | None = None, size_bytes_max: int = 1 << 30) -> None:
    """The error names the file and the reason, and nothing is left behind."""
    destination = source.with_name("stored")
    with pytest.raises(InputError, match=why) as caught:
        write_stored(source, form or detect(source), destination, size_bytes_max=size_bytes_max)  # type: ignore[arg-type]
    assert source.name in str(caught.value)
    assert not destination.exists()


# tar


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_compressed_tar_is_stored_as_the_tar(tmp_path: Path, suffix: str) -> None:
    source = written(tmp_path, "a.tar." + suffix, COMPRESSORS[suffix](TAR))
    assert detect(source) == "tar"
    assert stored(source) == TAR


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_members_and_padding_of_a_stream_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    pack, half = COMPRESSORS[suffix], len(TAR) // 2
    source = written(tmp_path, "a.tar", pack(TAR[:half]) + pack(TAR[half:]) + b"\0" * 512)
    assert stored(source) == TAR


def test_a_stream_of_more_than_one_block_with_a_member_cut_at_its_border(tmp_path: Path) -> None:
    data = tar_of(large=noise(3_000_000))
    packed = gzip.compress(data, 1)
    for cut in ((1 << 20) - 12, (1 << 20) - 4, 1 << 20):
        # A first member of exactly ``cut`` bytes, so that its trailer lies across the border of a read.
        head = zlib.compressobj(0, wbits=31)
        size = cut - 18 - 5 * -(-cut // 65_535)
        first = head.compress(data[:size]) + head.flush()
        source = written(tmp_path, f"a{cut}.tar", first + gzip.compress(data[size:], 1))
        assert stored(source) == data
    assert stored(written(tmp_path, "b.tar", packed)) == data


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_thousands_of_members_of_odd_sizes_are_one_stream(tmp_path: Path, suffix: str) -> None:
    """Their ends fall on every place of the pieces in which a stream is read; zeros between them are padding."""
    pack = COMPRESSORS[suffix] if suffix != "xz" else lambda data: lzma.compress(data, preset=0)
    parts, at, step = list[bytes](), 0, 1
    while at < len(TAR):
        parts.append(pack(TAR[at : at + step]))
        at, step = at + step, step * 5 % 211 + 1
    parts.insert(len(parts) // 2, b"\0" * 150_000)
    assert len(parts) > 2000
    assert stored(written(tmp_path, "a.tar", b"".join(parts))) == TAR


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_a_stream_that_ends_early_is_refused_wherever_it_ends(tmp_path: Path, suffix: str) -> None:
    packed = COMPRESSORS[suffix](TAR)
    for size in (len(packed) - 1, len(packed) - 5, len(packed) * 3 // 4):
        refused(written(tmp_path, "a.tar", packed[:size]), "ends early", "tar")


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_a_stream_with_other_bytes_behind_it_is_refused(tmp_path: Path, suffix: str) -> None:
    refused(written(tmp_path, "a.tar", COMPRESSORS[suffix](TAR) + b"and then this"), "cannot be unpacked|ends early")


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_a_spoilt_stream_is_refused(tmp_path: Path, suffix: str) -> None:
    pack = COMPRESSORS[suffix] if suffix != "zst" else zstandard.ZstdCompressor(write_checksum=True).compress
    packed = bytearray(pack(TAR))
    packed[len(packed) // 2] ^= 0x10
    refused(written(tmp_path, "a.tar", bytes(packed)), "cannot be unpacked|ends early", "tar")


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst", "zst-without-size"])
def test_a_bomb_is_stopped_at_the_bound(tmp_path: Path, suffix: str) -> None:
    source = written(tmp_path, "a.tar", COMPRESSORS[suffix](TAR[:512] + b"\0" * (40 << 20)))
    assert source.stat().st_size < 200_000
    refused(source, "more than 1000000 bytes", size_bytes_max=1_000_000)


def test_a_stream_that_wants_a_gigabyte_of_memory_is_refused(tmp_path: Path) -> None:
    block = bytearray(lzma.compress(TAR, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}]))
    # The dictionary size is one byte of the block header, behind the filter's id and its length; 36 is 1 GiB.
    size = (block[12] + 1) * 4
    at = block.index(b"\x21\x01", 12) + 2
    block[at] = 36
    block[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(bytes(block[12 : 12 + size - 4])))
    refused(written(tmp_path, "a.tar", bytes(block)), "cannot be unpacked: .*[Mm]emory", "tar")


def test_what_is_compressed_and_no_tar_is_exact(tmp_path: Path) -> None:
    for name, data in {
        "a.gz": gzip.compress(b"no tar" * 1000),
        "b.xz": lzma.compress(b""),
        "c": b"",
        "d": b"\x1f\x8b",
        "e.tar": TAR,
        "f": noise(5000),
        "g.apk": b"PK\x03\x04" + noise(100),
        "h.a": ar_of(("member.o/", b"code")),
    }.items():
        source = written(tmp_path, name, data)
        assert detect(source) == "exact"
        assert stored(source) == data


def test_a_form_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path, "a.bin", noise(5000))
    refused(source, "is not a tar", "tar")
    refused(source, "not an ar archive", "deb")
    refused(source, "no zip", "zip")
    refused(written(tmp_path, "b", gzip.compress(noise(5000))), "is not a tar", "tar")
    refused(source, "more than 4999 bytes", "exact", size_bytes_max=4999)


# deb

CONTROL = tar_of(control=b"Package: sample\n")
GOOD_DEB = (
    ("debian-binary", b"2.0\n"),
    ("control.tar.gz", gzip.compress(CONTROL)),
    ("data.tar.xz", lzma.compress(TAR)),
)


def test_a_package_is_stored_with_plain_tars(tmp_path: Path) -> None:
    source = written(tmp_path, "a.deb", ar_of(*GOOD_DEB))
    assert detect(source) == "deb"
    assert stored(source) == ar_of(("debian-binary", b"2.0\n"), ("control.tar", CONTROL), ("data.tar", TAR))


def test_odd_sizes_are_padded(tmp_path: Path) -> None:
    members = (("debian-binary", b"2.0\n"), ("control.tar", b"odd"), ("data.tar.gz", gzip.compress(b"odder")))
    assert stored(written(tmp_path, "a.deb", ar_of(*members))) == ar_of(*members[:2], ("data.tar", b"odder"))


def test_a_signed_package_stays_as_it_is(tmp_path: Path) -> None:
    source = written(tmp_path, "a.deb", ar_of(*GOOD_DEB, ("_gpgorigin", b"signature")))
    assert detect(source) == "exact"
    assert stored(source) == source.read_bytes()


def _with_size(data: bytes, member: int, size: bytes) -> bytes:
    at = 8
    for _ in range(member):
        length = int(data[at + 48 : at + 58])
        at += 60 + length + length % 2
    return data[: at + 48] + size.ljust(10) + data[at + 58 :]


HOSTILE_DEBS = {
    "occurs twice": ar_of(*GOOD_DEB, GOOD_DEB[2]),
    "'control.tar.gz' occurs twice": ar_of(GOOD_DEB[0], GOOD_DEB[1], GOOD_DEB[1], GOOD_DEB[2]),
    "one data.tar, in this order": ar_of(*GOOD_DEB, ("data.tar.gz", gzip.compress(TAR))),
    "in this order; this one has 'debian-binary', 'data": ar_of(GOOD_DEB[0], GOOD_DEB[2], GOOD_DEB[1]),
    "this one has 'debian-binary', 'control.tar.gz'$": ar_of(*GOOD_DEB[:2]),
    "this one has 'debian-binary', 'control.tar.gz', 'data.tar.xz', '/'": ar_of(*GOOD_DEB, ("//", b"long names")),
    "known here": ar_of(*GOOD_DEB[:2], ("data.tar.br", b"brotli")),
    "does not belong": ar_of(*GOOD_DEB[:2], ("data", b"no tar")),
    "states a size": _with_size(ar_of(*GOOD_DEB), 2, b"9999999999"),
    "'control.tar.gz' states a size": _with_size(ar_of(*GOOD_DEB), 1, b"-5"),
    "'debian-binary' states a size": _with_size(ar_of(*GOOD_DEB), 0, b""),
    "ar header at byte": ar_of(*GOOD_DEB) + b"tail",
    "is broken": ar_of(*GOOD_DEB)[:66] + b"xx" + ar_of(*GOOD_DEB)[68:],
    "more than 16 members": ar_of(*GOOD_DEB, *((f"_{number}", b"x") for number in range(20))),
    "ends early": ar_of(*GOOD_DEB[:2], ("data.tar.xz", lzma.compress(TAR)[:-20])),
    "cannot be unpacked": ar_of(*GOOD_DEB[:2], ("data.tar.gz", lzma.compress(TAR))),
}


@pytest.mark.parametrize("why", HOSTILE_DEBS)
def test_hostile_packages_are_refused(tmp_path: Path, why: str) -> None:
    refused(written(tmp_path, "a.deb", HOSTILE_DEBS[why]), why, "deb")
    assert detect(tmp_path / "a.deb") == "deb", "it is still a package, and what is wrong with it is said"


def test_a_package_that_is_a_bomb_is_stopped(tmp_path: Path) -> None:
    bomb = ar_of(*GOOD_DEB[:2], ("data.tar.xz", lzma.compress(b"\0" * (40 << 20))))
    refused(written(tmp_path, "a.deb", bomb), "unpacks to more than", size_bytes_max=1 << 20)


@debian
@needs_dpkg
@pytest.mark.parametrize("compression", ["xz", "gzip", "zstd", "none"])
def test_dpkg_reads_and_installs_the_stored_form(tmp_path: Path, compression: str) -> None:
    payload = text(200_000)
    source = build_deb(tmp_path, payload, compression=compression)
    plain = written(tmp_path, "stored.deb", stored(source))

    def ask(path: Path, *options: str) -> bytes:
        return subprocess.run(["dpkg-deb", *options, path], check=True, capture_output=True, timeout=120).stdout

    assert ask(plain, "--field") == ask(source, "--field")
    assert ask(plain, "--contents") == ask(source, "--contents")
    assert ask(plain, "--fsys-tarfile") == ask(source, "--fsys-tarfile")
    root = tmp_path / "root"
    for folder in ("info", "updates", "triggers"):
        (root / "var/lib/dpkg" / folder).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    command = ["dpkg", "--root", root, "--force-not-root", "--force-bad-path", "--log=/dev/null", "-i", plain]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert (root / "opt/payload").read_bytes() == payload


# zip


def a_zip(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"a comment"
        for number, (name, data) in enumerate(members.items()):
            info = zipfile.ZipInfo(name, (2020, 1, 2, 3, 4, 2 * number))
            info.compress_type = (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED)[number % 3]
            info.external_attr = (0o100755 if number % 2 else 0o100640) << 16
            info.comment = name.encode()
            info.extra = struct.pack("<HHBI", 0x5455, 5, 1, 1_600_000_000)
            archive.writestr(info, data)
        archive.mkdir("folder")
    return out.getvalue()


MEMBERS = {"zeta": text(200_000), "alpha": noise(5000), "größe": b"", "last": text(10)}


def test_a_zip_is_stored_with_the_same_members_uncompressed(tmp_path: Path) -> None:
    source = written(tmp_path, "a.zip", a_zip(**MEMBERS))
    assert detect(source) == "zip"
    data = stored(source)
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(io.BytesIO(data)) as after:
        assert after.testzip() is None
        assert after.comment == before.comment
        for old, new in zip(before.infolist(), after.infolist(), strict=True):
            for fact in (
                "filename",
                "date_time",
                "external_attr",
                "create_system",
                "comment",
                "file_size",
                "CRC",
                "extra",
            ):
                assert getattr(new, fact) == getattr(old, fact), fact
            assert new.compress_type == zipfile.ZIP_STORED
            assert after.read(new) == before.read(old)
    assert MEMBERS["zeta"] in data


def test_the_stored_zip_depends_on_the_source_alone(tmp_path: Path) -> None:
    digests = set[str]()
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        digests.add(hashlib.sha256(stored(written(folder, "a.zip", a_zip(**MEMBERS)))).hexdigest())
    assert len(digests) == 1


@pytest.mark.skipif(not shutil.which("zip") or not shutil.which("unzip"), reason="there is no zip or unzip here")
def test_info_zip_reads_what_was_stored_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "run").write_bytes(text(50_000))
    (tmp_path / "in" / "run").chmod(0o750)
    subprocess.run(["zip", "-q", "-r", "../a.zip", "."], cwd=tmp_path / "in", check=True, timeout=120)
    plain = written(tmp_path, "plain.zip", stored(tmp_path / "a.zip"))
    subprocess.run(["unzip", "-q", plain, "-d", tmp_path / "out"], check=True, timeout=120)
    assert (tmp_path / "out" / "run").read_bytes() == text(50_000)
    assert (tmp_path / "out" / "run").stat().st_mode & 0o777 == 0o750


def _patched(data: bytes, *, central: int, offset: int, value: bytes, local_too: bool = False) -> bytes:
    """The zip with bytes of a central directory entry changed, ``offset`` as in the central header."""
    changed, at = bytearray(data), -1
    for _ in range(central + 1):
        at = data.index(b"PK\x01\x02", at + 1)
    changed[at + offset : at + offset + len(value)] = value
    if local_too:
        local = int.from_bytes(data[at + 42 : at + 46], "little")
        changed[local + offset - 2 : local + offset - 2 + len(value)] = value
    return bytes(changed)


def _duplicate() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("same", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("same", b"two")
    return out.getvalue()


ZIP = a_zip(one=text(5000), two=text(100))
HOSTILE_ZIPS = {
    "occurs twice": _duplicate,
    "is encrypted": lambda: _patched(ZIP, central=0, offset=8, value=b"\x01\0", local_too=True),
    "method 14": lambda: _patched(ZIP, central=0, offset=10, value=b"\x0e\0", local_too=True),
    "cannot be read as a zip: Bad CRC": lambda: _patched(ZIP, central=0, offset=24, value=(4999).to_bytes(4, "little")),
    "states 5001 bytes and has 5000|Bad CRC": lambda: _patched(
        ZIP, central=0, offset=24, value=(5001).to_bytes(4, "little")
    ),
    "more than 1073741824 bytes": lambda: _patched(ZIP, central=0, offset=24, value=(1 << 31).to_bytes(4, "little")),
    "cannot be read as a zip: Bad CRC-32": lambda: _patched(ZIP, central=1, offset=16, value=b"\1\2\3\4"),
    "cannot be read as a zip: File name": lambda: ZIP.replace(b"one", b"eno", 1),
    "no directory at its end": lambda: ZIP[:-30],
    "its directory has more than": lambda: ZIP.replace(
        ZIP[-31:], ZIP[-31:-19] + (65 << 20).to_bytes(4, "little") + ZIP[-15:]
    ),
    "readers cut short": lambda: ZIP.replace(b"two", b"t\0o"),
}


@pytest.mark.parametrize("why", HOSTILE_ZIPS)
def test_hostile_zips_are_refused(tmp_path: Path, why: str) -> None:
    refused(written(tmp_path, "a.zip", HOSTILE_ZIPS[why]()), why, "zip")


def test_a_zip_that_is_a_bomb_is_stopped(tmp_path: Path) -> None:
    source = written(tmp_path, "a.zip", a_zip(bomb=b"\0" * (30 << 20)))
    refused(source, "unpacks to more than", size_bytes_max=1 << 20)


# all of them


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=400),
    magic=st.sampled_from([b"", b"!<arch>\n", b"PK\x03\x04", b"\x1f\x8b\x08", b"\xfd7zXZ\0"]),
)
def test_noise_is_refused_and_never_more_than_a_guess(tmp_path: Path, data: bytes, magic: bytes) -> None:
    source = written(tmp_path, "noise.zip", magic + data)
    for form in ("deb", "tar", "zip"):
        with pytest.raises(InputError):
            write_stored(source, form, source.with_name("stored"))  # type: ignore[arg-type]
        assert not source.with_name("stored").exists()
    assert detect(source) in ("deb", "exact", "zip")


def test_changed_bytes_of_real_archives_raise_nothing_else(tmp_path: Path) -> None:
    import random

    rng = random.Random(3)
    for form, data in (
        ("deb", ar_of(*GOOD_DEB)),
        ("zip", ZIP),
        ("tar", lzma.compress(TAR)),
        ("tar", gzip.compress(TAR)),
    ):
        for _ in range(60):
            spoilt = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
            source = written(tmp_path, "spoilt.zip", bytes(spoilt))
            destination = tmp_path / "stored"
            try:
                write_stored(source, form, destination)  # type: ignore[arg-type]
                destination.unlink()
            except InputError:
                assert not destination.exists()


def test_a_destination_that_exists_is_left_alone(tmp_path: Path) -> None:
    source, taken = written(tmp_path, "a", b"x"), written(tmp_path, "b", b"precious")
    with pytest.raises(StorageError, match="cannot be created"):
        write_stored(source, "exact", taken)
    assert taken.read_bytes() == b"precious"


def test_a_source_that_cannot_be_read_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        detect(tmp_path / "absent")
    with pytest.raises(InputError, match="No such file"):
        write_stored(tmp_path / "absent", "exact", tmp_path / "b")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def onto_a_full_disk(path: Path, flags: int, mode: int = 0o777) -> int:
        opened(path, flags, mode)
        return opened("/dev/full", os.O_RDWR)

    source = written(tmp_path, "a.tar.gz", gzip.compress(TAR))
    monkeypatch.setattr("pcm_p2p.content.forms.stored_form.os.open", onto_a_full_disk)
    with pytest.raises(DiskFull, match=r"a\.tar\.gz"):
        write_stored(source, "tar", tmp_path / "stored")
    assert not (tmp_path / "stored").exists()


def test_a_tar_of_any_dialect_is_known(tmp_path: Path) -> None:
    for dialect in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz", format=dialect) as archive:
            archive.addfile(tarfile.TarInfo("folder/" * 12 + "name" * 20))
        assert detect(written(tmp_path, "a", out.getvalue())) == "tar"
