"""Packages whose changelog grows by a line: the delta is small, and what a device makes of it installs."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import msgspec
import pytest
from content_samples import noise, text
from gzip_samples import program

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.decoding.gzip_program import PLACES, Gzip, find_gzip
from pcm_p2p.content.decoding.job import decode_blob_untrusted
from pcm_p2p.content.delta.repacking import CannotPack
from pcm_p2p.content.manifest import decode_untrusted
from pcm_p2p.content.publishing import packing
from pcm_p2p.content.publishing.bases import BaseRelease
from pcm_p2p.content.publishing.ingest import Ingested, ingest
from pcm_p2p.content.publishing.preview import FilesToCompare, preview

pytestmark = pytest.mark.skipif(not any(Path(place).exists() for place in PLACES), reason="there is no gzip here")

LOG = b"".join(
    b"  * Change number %d, see #%d.\n" % (number, number * number % 9_999_991) for number in range(20_000, 0, -1)
)
"""600 kB, 200 kB packed."""


def package(folder: Path, version: str, log: bytes) -> Path:
    """A package made by dpkg-deb, with a changelog that gzip itself packed, as debhelper does."""
    tree = folder / f"tree-{version}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: sample\nVersion: {version}\nArchitecture: all\nMaintainer: N <n@example.org>\nDescription: sample\n"
    )
    documents = tree / "usr/share/doc/sample"
    documents.mkdir(parents=True)
    (documents / "changelog").write_bytes(log)
    (documents / "README").write_bytes(text(20_000))
    subprocess.run(["gzip", "-9n", documents / "changelog", documents / "README"], check=True, timeout=30)
    (tree / "usr/bin").mkdir()
    (tree / "usr/bin/sample").write_bytes(noise(400_000) + version.encode())
    path = folder / f"sample_{version}_all.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "-b", tree, path]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=30)
    return path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("packages")
    return package(folder, "1", LOG), package(folder, "2", b"  * One line more.\n" + LOG)


def publish(path: Path, version: str, work: Path, *bases: BaseRelease, processes: int = 0) -> Ingested:
    return ingest(
        [path],
        release="app",
        version=version,
        counter=int(version),
        work=work,
        level=1,
        processes=processes,
        bases=bases,
    )


def blob_of(work: Path, segment: bytes) -> bytes:
    return (work / "segments" / segment.hex()[:2] / segment.hex()).read_bytes()


@pytest.fixture
def old(packages: tuple[Path, Path], tmp_path: Path) -> BaseRelease:
    made = publish(packages[0], "1", tmp_path)
    return BaseRelease(made.manifest, made.segments_folder)


def stored_by_deltas(made: Ingested, old: Ingested | BaseRelease, work: Path) -> bytes:
    """What a device with the old release makes of the deltas, every chunk verified."""
    chunks = dict[int, bytes]()
    had = dict[bytes, bytes]()
    for segment in old.manifest.segments:
        sizes = [old.manifest.sizes[at] for at in segment.positions]
        data, at = decode_blob_untrusted("full", blob_of(work, segment.id), b"", sum(sizes)), 0
        for position, size in zip(segment.positions, sizes, strict=True):
            had[old.manifest.chunks[position]] = data[at : at + size]
            at += size
    for segment in made.manifest.segments:
        if segment.kind != "delta":
            continue
        base = b"".join(had[made.manifest.table_chunks[position]] for position in segment.base)
        sizes = [made.manifest.sizes[at] for at in segment.positions]
        pack = find_gzip().packer() if segment.needs_gzip else None
        data, at = decode_blob_untrusted("delta", blob_of(work, segment.id), base, sum(sizes), pack), 0
        for position, size in zip(segment.positions, sizes, strict=True):
            chunks[position] = Chunk.verified(made.manifest.chunks[position], data[at : at + size]).data
            at += size
    return b"".join(chunks[position] for position in made.manifest.artifacts[0].chunk_positions())


def test_a_changelog_that_grew_by_a_line_costs_little_and_the_result_installs(
    packages: tuple[Path, Path], old: BaseRelease, tmp_path: Path
) -> None:
    made = publish(packages[1], "2", tmp_path, old)
    (delta,) = (segment for segment in made.manifest.segments if segment.kind == "delta")
    assert delta.needs_gzip
    assert made.why_not_gzip == ""
    assert delta.size < 2_000
    assert made.manifest.segments[0].size > 400_000
    stored = stored_by_deltas(made, old, tmp_path)
    assert hashlib.sha256(stored).digest() == made.manifest.artifacts[0].stored_sha256
    (tmp_path / "made.deb").write_bytes(stored)
    root, instdir = tmp_path / "root", tmp_path / "root/usr"
    for folder in ("updates", "info", "triggers"):
        (root / "var/lib/dpkg" / folder).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    command = [
        "dpkg",
        "--root",
        root,
        "--force-not-root",
        "--force-bad-path",
        f"--log={root}/log",
        "-i",
        tmp_path / "made.deb",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    log = subprocess.run(
        ["gzip", "-dc", instdir / "share/doc/sample/changelog.gz"], check=True, capture_output=True, timeout=30
    )
    assert log.stdout == b"  * One line more.\n" + LOG
    verified = ["dpkg", "--root", root, "--verify", "sample"]
    assert subprocess.run(verified, check=True, capture_output=True, timeout=30).stdout == b""


def test_the_same_packages_give_the_same_release_again_and_with_any_number_of_processes(
    packages: tuple[Path, Path], old: BaseRelease, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = publish(packages[1], "2", tmp_path, old)
    again = publish(packages[1], "2", tmp_path, old)
    assert again.manifest.encoded == first.manifest.encoded, "notes of what was finished keep what needs gzip"
    other = tmp_path_factory.mktemp("other")
    made = publish(packages[0], "1", other)
    elsewhere = publish(packages[1], "2", other, BaseRelease(made.manifest, made.segments_folder), processes=1)
    assert elsewhere.manifest.encoded == first.manifest.encoded


def test_a_publisher_without_gzip_makes_the_deltas_that_it_made_before(
    packages: tuple[Path, Path], old: BaseRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find() -> Gzip:
        raise CannotPack("there is no /usr/bin/gzip")

    with_gzip = publish(packages[1], "2", tmp_path, old)
    monkeypatch.setattr(packing, "find_gzip", find)
    made = publish(packages[1], "2", tmp_path, old)
    (delta,) = (segment for segment in made.manifest.segments if segment.kind == "delta")
    assert not delta.needs_gzip
    assert made.why_not_gzip == "there is no /usr/bin/gzip"
    assert b"needs" not in made.manifest.encoded
    assert b"\xa5needs\xa4gzip" in with_gzip.manifest.encoded
    stored = stored_by_deltas(made, old, tmp_path)
    assert hashlib.sha256(stored).digest() == made.manifest.artifacts[0].stored_sha256


@pytest.mark.parametrize("script", ["exec /bin/cat /dev/zero", "exit 7", "exec /usr/bin/gzip -n -3"])
def test_a_gzip_that_turns_bad_while_a_release_is_made_costs_bytes_and_not_the_release(
    packages: tuple[Path, Path],
    old: BaseRelease,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    script: str,
) -> None:
    bad = program(tmp_path_factory.mktemp("bad"), script)
    monkeypatch.setattr(packing, "find_gzip", lambda: Gzip(str(bad)))
    made = publish(packages[1], "2", tmp_path, old)
    (delta,) = (segment for segment in made.manifest.segments if segment.kind == "delta")
    assert not delta.needs_gzip
    stored = stored_by_deltas(made, old, tmp_path)
    assert hashlib.sha256(stored).digest() == made.manifest.artifacts[0].stored_sha256


def test_a_plan_shows_what_a_changelog_costs_after_that(packages: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    found = preview(
        FilesToCompare((packages[0],)), FilesToCompare((packages[1],)), work=tmp_path / "work", level=1, processes=0
    )
    rows = {row.path.rpartition("/")[2]: row for row in found.members}
    assert rows["changelog.gz"].full_bytes > 100_000
    assert rows["changelog.gz"].delta_bytes < found.delta_segment_bytes < 2_000
    assert found.delta_segment_bytes == sum(row.delta_bytes for row in found.members)


def test_only_a_delta_may_need_gzip(packages: tuple[Path, Path], old: BaseRelease) -> None:
    manifest = old.manifest
    segments = (msgspec.structs.replace(manifest.segments[0], needs="gzip"), *manifest.segments[1:])
    with pytest.raises(Exception, match="needs no program"):
        decode_untrusted(msgspec.msgpack.encode(msgspec.structs.replace(manifest, segments=segments)))
    with pytest.raises(Exception, match="Invalid enum value 'perl'"):
        decode_untrusted(
            msgspec.msgpack.encode(
                msgspec.structs.replace(manifest, segments=(msgspec.structs.replace(segments[0], needs="perl"),))
            )
        )
