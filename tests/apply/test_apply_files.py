"""Files: replaced atomically, restored exactly, and never through a link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from apply_kit import Artifacts

from pcm_p2p.apply.plan import plan
from pcm_p2p.apply.providers.file import FileProvider
from pcm_p2p.apply.root import Root
from pcm_p2p.apply.step import Step, WriteFile
from pcm_p2p.errors import ApplyError
from pcm_p2p.policy.desired import Change
from pcm_p2p.policy.resource import FileResource


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups"


def step_for(provider: FileProvider, resource: FileResource, sha256: str | None = None) -> WriteFile:
    steps: tuple[Step, ...] = plan(Change("a", "1", (resource,)), (provider.observe(resource, sha256),)).steps
    (step,) = steps
    assert isinstance(step, WriteFile)
    return step


def test_a_new_file_and_its_folders_come_and_go(root: Path, backups: Path) -> None:
    provider = FileProvider(Root(root))
    resource = FileResource(path="/etc/a/b/c.conf", content="blue\n", mode=0o600)
    step = step_for(provider, resource)
    provider.prepare(step, backups)
    provider.change(step, None)
    assert (root / "etc/a/b/c.conf").read_text() == "blue\n"
    assert (root / "etc/a/b/c.conf").stat().st_mode & 0o7777 == 0o600
    for _ in range(2):
        provider.undo(step, backups)
        assert list((root / "etc").iterdir()) == []


def test_a_folder_that_got_other_files_meanwhile_is_left(root: Path, backups: Path) -> None:
    provider = FileProvider(Root(root))
    step = step_for(provider, FileResource(path="/etc/a/c.conf", content="blue\n"))
    provider.change(step, None)
    (root / "etc/a/other").write_text("mine")
    provider.undo(step, backups)
    assert [path.name for path in (root / "etc/a").iterdir()] == ["other"]


def test_a_replaced_file_comes_back_with_its_mode(root: Path, backups: Path) -> None:
    path = root / "etc/c.conf"
    path.write_text("red\n")
    path.chmod(0o640)
    provider = FileProvider(Root(root))
    step = step_for(provider, FileResource(path="/etc/c.conf", content="blue\n"))
    provider.prepare(step, backups)
    provider.change(step, None)
    assert path.read_text() == "blue\n"
    assert path.stat().st_mode & 0o7777 == 0o640, "no mode was asked, so it stays"
    for _ in range(2):
        provider.undo(step, backups)
        assert (path.read_text(), path.stat().st_mode & 0o7777) == ("red\n", 0o640)


def test_attributes_alone_change_and_come_back(root: Path, backups: Path) -> None:
    path = root / "etc/shadow"
    path.write_text("secret")
    path.chmod(0o666)
    provider = FileProvider(Root(root))
    step = step_for(provider, FileResource(path="/etc/shadow", mode=0o600))
    provider.prepare(step, backups)
    provider.change(step, None)
    assert path.stat().st_mode & 0o7777 == 0o600
    provider.undo(step, backups)
    assert path.stat().st_mode & 0o7777 == 0o666
    assert path.read_text() == "secret"


def test_an_artifact_becomes_a_file(root: Path, tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "staged")
    artifacts.put("tool", b"\x7fELF")
    provider = FileProvider(Root(root))
    step = step_for(
        provider, FileResource(path="/usr/bin/tool", artifact="tool", mode=0o755), artifacts.sha256_of["tool"]
    )
    provider.change(step, artifacts("tool"))
    assert (root / "usr/bin/tool").read_bytes() == b"\x7fELF"


def test_a_staged_file_that_changed_after_it_was_verified_is_not_used(root: Path, tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "staged")
    path = artifacts.put("tool", b"good")
    provider = FileProvider(Root(root))
    step = step_for(provider, FileResource(path="/etc/tool", artifact="tool"), artifacts.sha256_of["tool"])
    path.write_bytes(b"evil")
    with pytest.raises(ApplyError, match="has changed since it was verified"):
        provider.change(step, artifacts("tool"))
    assert list((root / "etc").iterdir()) == []


def test_a_staged_file_that_others_can_write_is_not_used(root: Path, tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "staged")
    artifacts.put("tool", b"good").chmod(0o666)
    provider = FileProvider(Root(root))
    step = step_for(provider, FileResource(path="/etc/tool", artifact="tool"), artifacts.sha256_of["tool"])
    with pytest.raises(ApplyError, match="could be changed by other users"):
        provider.change(step, artifacts("tool"))


def test_a_link_out_of_the_root_is_not_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "etc/away").symlink_to(outside)
    (root / "etc/file").symlink_to(outside / "target")
    provider = FileProvider(Root(root))
    with pytest.raises(ApplyError, match="is a link or not a folder"):
        provider.observe(FileResource(path="/etc/away/x", content="x"), None)
    with pytest.raises(ApplyError, match="is a link, not a file"):
        provider.observe(FileResource(path="/etc/file", content="x"), None)
    assert list(outside.iterdir()) == []


def test_a_folder_that_becomes_a_link_between_plan_and_change_is_not_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "etc/a").mkdir()
    provider = FileProvider(Root(root))
    step = step_for(provider, FileResource(path="/etc/a/x", content="x"))
    (root / "etc/a").rmdir()
    (root / "etc/a").symlink_to(outside)
    with pytest.raises(ApplyError, match="is a link or not a folder"):
        provider.change(step, None)
    assert list(outside.iterdir()) == []


def test_a_temporary_file_of_an_interrupted_change_is_swept(root: Path, backups: Path) -> None:
    provider = FileProvider(Root(root))
    step = step_for(provider, FileResource(path="/etc/c", content="x"))
    (root / "etc/.c.abcdef012345.pcm-tmp").write_text("half")
    provider.undo(step, backups)
    assert list((root / "etc").iterdir()) == []


def test_accounts_are_those_of_the_root(root: Path) -> None:
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nservice:x:4711:42::/:/bin/false\n")
    provider = FileProvider(Root(root), may_chown=True)
    assert provider.observe(FileResource(path="/etc/c", content="x", owner="service"), None).wanted_uid == 4711
    assert provider.observe(FileResource(path="/etc/c", content="x", owner="99"), None).wanted_uid == 99
    with pytest.raises(ApplyError, match="no account 'nobody-at-all'"):
        provider.observe(FileResource(path="/etc/c", content="x", owner="nobody-at-all"), None)
    unprivileged = FileProvider(Root(root), may_chown=False)
    assert unprivileged.observe(FileResource(path="/etc/c", content="x", owner="service"), None).wanted_uid is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_owners_are_set_and_restored(root: Path, backups: Path) -> None:
    path = root / "etc/c"
    path.write_text("x")
    provider = FileProvider(Root(root))
    step = step_for(provider, FileResource(path="/etc/c", owner="4711", group="42", mode=0o4755))
    provider.prepare(step, backups)
    provider.change(step, None)
    facts = path.stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o7777) == (4711, 42, 0o4755)
    provider.undo(step, backups)
    assert (path.stat().st_uid, path.stat().st_gid) == (0, 0)


def test_a_device_or_folder_in_the_way_is_named(root: Path) -> None:
    (root / "etc/c").mkdir()
    with pytest.raises(ApplyError, match="folder or device"):
        FileProvider(Root(root)).observe(FileResource(path="/etc/c", content="x"), None)
