"""What is opened as root is what was meant: no links, no other names, nothing that takes a file's place meanwhile.

Each disaster happens between two steps of a change, in a folder that a user can write to; root must neither read, change nor give
away anything of its own.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from apply_kit import HAS_DPKG, Artifacts, authorised, make_device, make_transaction, picture

from pcm_p2p.apply.command import Completed, run
from pcm_p2p.apply.plan import plan
from pcm_p2p.apply.providers.archive import MARKER, ArchiveProvider
from pcm_p2p.apply.providers.file import FileProvider
from pcm_p2p.apply.root import Root, check_staged, open_regular
from pcm_p2p.apply.step import Staged, WriteFile
from pcm_p2p.errors import ApplyError, UntrustedBytes
from pcm_p2p.policy.desired import Change
from pcm_p2p.policy.resource import ArchiveResource, FileResource, PackageResource, below_root

SECRET = "root's own\n"


class Place:
    """``home`` is a folder that others can write to, with the file that is managed; ``own`` holds a file of root's."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.home, self.own, self.backups = self.root / "home/eve", self.root / "etc", folder / "backups"
        for path in (self.home, self.own, self.backups):
            path.mkdir(parents=True)
        self.home.chmod(0o777)
        self.file, self.shadow = self.home / "tool", self.own / "shadow"
        self.file.write_text("tool\n")
        self.file.chmod(0o644)
        self.shadow.write_text(SECRET)
        self.shadow.chmod(0o600)
        self.provider = FileProvider(Root(self.root))

    def step(self, resource: FileResource) -> WriteFile:
        (step,) = plan(Change("x", "1", (resource,)), (self.provider.observe(resource, None),)).steps
        assert isinstance(step, WriteFile)
        return step

    def untouched(self) -> bool:
        facts = self.shadow.stat()
        return (self.shadow.read_text(), stat.S_IMODE(facts.st_mode)) == (SECRET, 0o600)


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Place:
    return Place(tmp_path)


Swap = Callable[[Place], None]


def a_link(place: Place) -> None:
    place.file.unlink()
    place.file.symlink_to(place.shadow)


def a_further_name(place: Place) -> None:
    place.file.unlink()
    place.file.hardlink_to(place.shadow)


def a_pipe(place: Place) -> None:
    place.file.unlink()
    os.mkfifo(place.file)


def a_folder(place: Place) -> None:
    place.file.unlink()
    place.file.mkdir()


def a_socket(place: Place) -> None:
    place.file.unlink()
    os.mknod(place.file, stat.S_IFSOCK | 0o600)


def other_bytes(place: Place) -> None:
    place.file.unlink()
    place.file.write_text("evil\n")


def a_folder_on_the_way(place: Place) -> None:
    place.home.rename(place.root / "home/moved")
    (place.root / "home/eve").symlink_to(place.own)
    (place.own / "tool").write_text(SECRET)


SWAPS: dict[str, Swap] = {
    "a link": a_link,
    "a further name of a file of root's": a_further_name,
    "a pipe": a_pipe,
    "a folder": a_folder,
    "a socket": a_socket,
    "other bytes": other_bytes,
    "a link for a folder on the way": a_folder_on_the_way,
}


@pytest.mark.parametrize("row", SWAPS)
def test_what_takes_the_place_of_a_file_is_not_backed_up(place: Place, row: str) -> None:
    """Going back would give the bytes to whoever owned the file before, with the mode that it had."""
    step = place.step(FileResource(path="/home/eve/tool", content="new\n"))
    SWAPS[row](place)
    with pytest.raises((ApplyError, OSError)):
        place.provider.prepare(step, place.backups)
    assert place.untouched()


@pytest.mark.parametrize("row", [row for row in SWAPS if row != "other bytes"])
def test_what_takes_the_place_of_a_file_keeps_its_attributes(place: Place, row: str) -> None:
    step = place.step(FileResource(path="/home/eve/tool", mode=0o666))
    SWAPS[row](place)
    with pytest.raises((ApplyError, OSError)):
        place.provider.change(step, None)
    assert place.untouched()


@pytest.mark.parametrize("row", [row for row in SWAPS if row != "other bytes"])
def test_what_takes_the_place_of_a_file_keeps_them_when_a_change_is_taken_back(place: Place, row: str) -> None:
    step = place.step(FileResource(path="/home/eve/tool", mode=0o600))
    place.provider.change(step, None)
    SWAPS[row](place)
    with pytest.raises((ApplyError, OSError)):
        place.provider.undo(step, place.backups)
    assert place.untouched()


@pytest.mark.parametrize("row", ["a link", "a further name of a file of root's", "a pipe", "a socket"])
def test_what_takes_the_place_of_a_file_is_replaced_and_not_written_through(place: Place, row: str) -> None:
    step = place.step(FileResource(path="/home/eve/tool", content="new\n"))
    place.provider.prepare(step, place.backups)
    SWAPS[row](place)
    place.provider.change(step, None)
    assert place.file.read_text() == "new\n"
    assert not place.file.is_symlink()
    assert place.untouched()


def test_no_set_user_bit_is_given_to_what_somebody_else_may_have_put_there(place: Place) -> None:
    with pytest.raises(ApplyError, match="asked to run as its owner"):
        place.provider.change(place.step(FileResource(path="/home/eve/tool", mode=0o4755)), None)
    place.file.chmod(0o4755)
    step = place.step(FileResource(path="/home/eve/tool", mode=0o755))
    place.provider.change(step, None)
    other_bytes(place)
    place.provider.undo(step, place.backups)
    assert not place.file.stat().st_mode & 0o6000, "nor when a change is taken back"


def test_a_set_user_bit_comes_and_goes_where_only_root_can_write(place: Place) -> None:
    (place.own / "su").write_text("su")
    step = place.step(FileResource(path="/etc/su", mode=0o4755))
    place.provider.change(step, None)
    assert (place.own / "su").stat().st_mode & 0o7777 == 0o4755


def test_a_file_that_grows_as_fast_as_it_is_read_has_an_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    step = place.step(FileResource(path="/home/eve/tool", content="new\n"))
    opened = open_regular

    def growing(folder: int, name: str, *, shown: str) -> int:
        descriptor = opened(folder, name, shown=shown)
        with place.file.open("a") as file:
            file.write("more\n")
        return descriptor

    monkeypatch.setattr("pcm_p2p.apply.providers.file.open_regular", growing)
    with pytest.raises(ApplyError, match="changed while the change was prepared"):
        place.provider.prepare(step, place.backups)


def test_what_has_the_name_of_a_temporary_file_and_is_a_folder_is_left(place: Place) -> None:
    (place.home / ".tool.0.pcm-tmp").mkdir()
    step = place.step(FileResource(path="/home/eve/tool", content="new\n"))
    place.provider.prepare(step, place.backups)
    place.provider.change(step, None)
    assert place.file.read_text() == "new\n"


def test_accounts_of_a_private_root_are_not_read_from_a_pipe(place: Place) -> None:
    os.mkfifo(place.own / "passwd")
    provider = FileProvider(Root(place.root), may_chown=True)
    with pytest.raises(ApplyError, match="no regular file"):
        provider.observe(FileResource(path="/home/eve/tool", content="x", owner="eve"), None)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_a_marker_that_is_no_file_is_none(place: Place, tmp_path: Path, kind: str) -> None:
    version = place.root / "opt/app/app-1"
    version.mkdir(parents=True)
    if kind == "folder":
        (version / MARKER).mkdir()
    elif kind == "pipe":
        os.mkfifo(version / MARKER)
    else:
        (version / MARKER).symlink_to(place.shadow)
    before = len(list(Path("/proc/self/fd").iterdir()))
    (tmp_path / "work").mkdir()
    seen = ArchiveProvider(Root(place.root), tmp_path / "work").observe(
        ArchiveResource(artifact="app.tar", name="app", path="/opt/app"), "1", "00"
    )
    assert seen.folder_sha256 == ""
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# What was staged


def group_may_write(path: Path) -> None:
    path.chmod(0o664)


def folder_is_open(path: Path) -> None:
    path.parent.chmod(0o777)


def folder_is_a_link(path: Path) -> None:
    moved = path.parent.with_name("moved")
    path.parent.rename(moved)
    path.parent.symlink_to(moved)


def staged_is_a_link(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.symlink_to(path.with_name("other"))


def staged_is_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def staged_has_other_bytes(path: Path) -> None:
    path.write_bytes(b"evil")


STAGED: dict[str, Callable[[Path], None]] = {
    "a group may write to it": group_may_write,
    "its folder is open to all": folder_is_open,
    "its folder is a link": folder_is_a_link,
    "it is a link": staged_is_a_link,
    "it is a pipe": staged_is_a_pipe,
    "other bytes": staged_has_other_bytes,
}


@pytest.mark.parametrize("row", STAGED)
def test_swapped_between_verification_and_use_a_staged_file_is_caught(tmp_path: Path, row: str) -> None:
    path = tmp_path / "staging" / "artifact"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"good")
    path.chmod(0o600)
    staged = Staged(path, hashlib.sha256(b"good").hexdigest())
    check_staged(staged)
    STAGED[row](path)
    with pytest.raises(ApplyError):
        check_staged(staged)


@pytest.mark.debian
@pytest.mark.skipif(not HAS_DPKG, reason="dpkg and dpkg-deb are not here")
def test_swapped_between_looking_and_installing_a_package_is_caught(tmp_path: Path) -> None:
    root, artifacts = tmp_path / "root", Artifacts(tmp_path / "staged")
    artifacts.put_deb("a.deb", "pcm-test-a", "1", {"usr/share/a/x": "good"})
    good = (artifacts.folder / "a.deb").read_bytes()
    artifacts.put_deb("evil.deb", "pcm-test-a", "1", {"usr/share/a/x": "evil"})

    def swapping(argv: tuple[str, ...], timeout_s: float) -> Completed:
        done = run(argv, timeout_s)
        if argv[0] == "dpkg-query" or "--field" in argv:
            (artifacts.folder / "a.deb").write_bytes((artifacts.folder / "evil.deb").read_bytes())
        return done

    assert good != (artifacts.folder / "evil.deb").read_bytes()
    device = make_device(Root(root), tmp_path / "work", runner=swapping)  # type: ignore[arg-type]
    outcome = make_transaction(tmp_path / "apply", device).run(
        *authorised(PackageResource(artifact="a.deb")), artifacts
    )
    assert outcome.verdict == "rolled_back"
    assert "has changed since it was verified" in outcome.error
    assert not (root / "usr/share/a/x").exists()


# Names


@pytest.mark.parametrize(
    "path",
    [
        "/etc/../root/x",
        "etc/x",
        "//etc/x",
        "/etc//x",
        "/etc/./x",
        "/etc/x/",
        "/",
        "/etc/\0x",
        "/a\\b",
        "/" + "a" * 5_000,
    ],
)
def test_a_path_that_could_lead_elsewhere_is_no_path(path: str) -> None:
    with pytest.raises((ValueError, UntrustedBytes)):
        FileResource(path=path, content="x")
    with pytest.raises(ValueError, match=r"."):
        below_root(path)


def test_nothing_is_written_outside_of_the_root_whatever_links_it_holds(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = Place(tmp_path)
    for link, target in {"a": outside, "b": "../../outside", "c": "/"}.items():
        (place.root / link).symlink_to(target)
    before = picture(outside)
    for link in "abc":
        with pytest.raises(ApplyError, match="links are not followed"):
            place.provider.observe(FileResource(path=f"/{link}/x", content="x"), None)
    assert picture(outside) == before
