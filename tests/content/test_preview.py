"""Previews: what an update would cost, and that no byte of it is lost on the way to the members."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from content_samples import noise, tar_of, text

from pcm_p2p.content.publishing.ingest import ingest
from pcm_p2p.content.publishing.preview import FilesToCompare, Preview, ReleaseToCompare, Version, preview
from pcm_p2p.errors import InputError

OLD = {"bin/tool": text(900_000), "share/same": noise(400_000, 3), "share/gone": b"x" * 5_000}
NEW = {"bin/tool": text(900_000)[:450_000] + noise(20_000) + text(900_000)[450_000:], "share/same": noise(400_000, 3)}


def archive(folder: Path, name: str, members: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(gzip.compress(tar_of(**members), 1, mtime=0))
    return path


def planned(old: Version, new: Version, work: Path) -> Preview:
    work.mkdir()
    return preview(old, new, work=work, level=1, processes=0)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return archive(tmp_path / "in", "app-1.tar.gz", OLD), archive(tmp_path / "in", "app-2.tar.gz", NEW)


def test_the_sums_over_members_are_those_of_the_segments(files: tuple[Path, Path], tmp_path: Path) -> None:
    found = planned(FilesToCompare((files[0],)), FilesToCompare((files[1],)), tmp_path / "work")
    assert found.delivered_bytes == files[1].stat().st_size
    assert found.stored_bytes == len(tar_of(**NEW)) == sum(member.stored_bytes for member in found.members)
    assert found.full_segment_bytes == sum(member.full_bytes for member in found.members)
    assert found.delta_segment_bytes == sum(member.delta_bytes for member in found.members)
    assert found.office_without_base_bytes == found.full_segment_bytes
    assert found.office_with_base_bytes == found.delta_segment_bytes < found.full_segment_bytes / 10


def test_what_changed_is_named_first(files: tuple[Path, Path], tmp_path: Path) -> None:
    found = planned(FilesToCompare((files[0],)), FilesToCompare((files[1],)), tmp_path / "work")
    assert found.members[0].path == "bin/tool"
    assert found.members[0].delta_bytes > 0.9 * found.delta_segment_bytes
    same = next(member for member in found.members if member.path == "share/same")
    assert same.full_bytes > 350_000, "the other way round it is the most expensive one"


def test_a_release_is_previewed_from_its_segments(files: tuple[Path, Path], tmp_path: Path) -> None:
    versions: list[Version] = []
    for number, path in enumerate(files):
        made = ingest(
            [path], release="app", version=str(number), counter=number, work=tmp_path / "fleet", level=1, processes=0
        )
        versions.append(ReleaseToCompare(made.manifest, made.segments_folder))
    before = sorted((tmp_path / "fleet").rglob("*"))
    of_releases = planned(*versions, tmp_path / "work")
    of_files = planned(FilesToCompare((files[0],)), FilesToCompare((files[1],)), tmp_path / "other")
    assert of_releases.members == of_files.members
    assert of_releases.delivered_bytes == of_files.delivered_bytes
    assert sorted((tmp_path / "fleet").rglob("*")) == before


def test_nothing_new_costs_nothing(files: tuple[Path, Path], tmp_path: Path) -> None:
    found = planned(FilesToCompare((files[1],)), FilesToCompare((files[1],)), tmp_path / "work")
    assert found.office_with_base_bytes == 0
    assert found.delta_segment_bytes < 200  # published for offices that have the base installed, and fetched by nobody
    assert found.office_without_base_bytes > 0


def test_nothing_in_common_costs_the_full_segments(tmp_path: Path) -> None:
    for name, data in (("old", noise(300_000)), ("new", noise(300_000, 2)), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
    found = planned(FilesToCompare((tmp_path / "old",)), FilesToCompare((tmp_path / "new",)), tmp_path / "work")
    assert found.office_with_base_bytes == found.office_without_base_bytes > 300_000
    assert [member.path for member in found.members] == ["new"]
    nothing = planned(FilesToCompare((tmp_path / "old",)), FilesToCompare((tmp_path / "empty",)), tmp_path / "work2")
    assert (nothing.stored_bytes, nothing.office_with_base_bytes, nothing.members) == (0, 0, ())


def test_a_release_whose_segments_are_gone_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    made = ingest([files[0]], release="app", version="1", counter=1, work=tmp_path / "fleet", level=1, processes=0)
    gone = ReleaseToCompare(made.manifest, tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"app 1 cannot be a base: segment .* cannot be read"):
        planned(gone, FilesToCompare((files[1],)), tmp_path / "work")
    with pytest.raises(InputError, match=r"app 1 cannot be read: segment .* cannot be read"):
        planned(FilesToCompare((files[0],)), gone, tmp_path / "work2")
