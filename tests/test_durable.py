"""Durable writes: a reader sees the old bytes or the new ones, whatever happens in between, and nothing is left lying about."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pcm_p2p import durable
from pcm_p2p.durable import fsync_folder, write_atomic


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


class _PowerCutError(Exception):
    """Nothing after this is executed."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], list[str]]:
    """Records fsync and rename in order; the step that is named fails."""

    def watch(failing: str | None) -> list[str]:
        seen: list[str] = []
        fsync, replace = os.fsync, Path.replace

        def step(name: str) -> None:
            seen.append(name)
            if name == failing:
                raise _PowerCutError(name)

        def watched_fsync(descriptor: int) -> None:
            step("fsync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync file")
            fsync(descriptor)

        def watched_replace(path: Path, target: Path) -> Path:
            step("rename")
            return replace(path, target)

        monkeypatch.setattr(durable.os, "fsync", watched_fsync)
        monkeypatch.setattr(Path, "replace", watched_replace)
        return seen

    return watch


def test_the_file_is_flushed_before_the_rename_and_the_folder_after(
    tmp_path: Path, steps: Callable[[str | None], list[str]]
) -> None:
    seen = steps(None)
    write_atomic(tmp_path / "state", b"new")
    assert seen == ["fsync file", "rename", "fsync folder"]
    assert (tmp_path / "state").read_bytes() == b"new"


@pytest.mark.parametrize("failing", ["fsync file", "rename"])
def test_a_failure_before_the_rename_keeps_the_old_bytes_and_no_other_file(
    tmp_path: Path, steps: Callable[[str | None], list[str]], failing: str
) -> None:
    path = tmp_path / "state"
    write_atomic(path, b"old")
    steps(failing)
    with pytest.raises(_PowerCutError):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state"]


def test_a_failure_after_the_rename_shows_the_new_bytes(
    tmp_path: Path, steps: Callable[[str | None], list[str]]
) -> None:
    path = tmp_path / "state"
    write_atomic(path, b"old")
    steps("fsync folder")
    with pytest.raises(_PowerCutError):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["state"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "state", b"new")
    assert names(tmp_path) == []


def test_a_secret_is_never_wider_than_its_mode(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_atomic(tmp_path / "key", b"secret", mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"untouched")
    (tmp_path / "state").symlink_to("elsewhere")
    write_atomic(tmp_path / "state", b"new")
    assert (tmp_path / "elsewhere").read_bytes() == b"untouched"
    assert not (tmp_path / "state").is_symlink()


def test_flushing_a_file_as_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        fsync_folder(tmp_path / "file")
