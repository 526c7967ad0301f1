"""The state folder at the start: each fault by name, with the file, what is wrong and the command that puts it right."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.daemon.state_check import FLEET_PRIVATE, STATE_PRIVATE, check_state, faults
from pcm_p2p.errors import TrustError
from pcm_p2p.trust.identity import DeviceIdentity

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to somebody else")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A folder as 'enroll join' leaves it."""
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    now = datetime.now(UTC)
    DeviceIdentity.create(state / "identity", FleetCA.in_memory("1" * 32, now=now), now=now)
    (state / "config.toml").write_text("")
    for part in ("trust/generations/1", "run", "store", "collector"):
        (state / part).mkdir(parents=True, mode=0o700)
    (state / "collector" / "seal.key").touch(mode=0o600)
    return state


def test_a_folder_as_it_was_made_has_no_fault(state: Path) -> None:
    check_state(state)
    (state.parent / "link").symlink_to(state)
    check_state(state.parent / "link")  # the path that a person gave may be a link; nothing inside may


def own(path: Path) -> None:
    os.chown(path, 61_234, -1)


def link(path: Path) -> None:
    moved = path.with_name(f"{path.name}.moved")
    path.rename(moved)
    path.symlink_to(moved)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def shared(bits: int) -> Callable[[Path], None]:
    """A group of other people."""

    def spoil(path: Path) -> None:
        os.chown(path, -1, 61_234)
        path.chmod(bits)

    return spoil


def mode(bits: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(bits)


@pytest.mark.parametrize(
    ("name", "spoil", "what", "remedy"),
    [
        ("identity/device.key", mode(0o640), "must be known to its owner alone", "chmod 600"),
        ("identity/device.key", mode(0o604), "must be known to its owner alone", "chmod 600"),
        ("identity/device.key", link, "is a link", "rm "),
        ("identity/device.key", fifo, "is not a regular file", "rm "),
        ("collector/seal.key", mode(0o644), "must be known to its owner alone", "chmod 600"),
        ("config.toml", mode(0o666), "can be written by everybody", "chmod go-w"),
        pytest.param("config.toml", shared(0o664), "can be written by its group", "chmod go-w", marks=NEEDS_ROOT),
        ("config.toml", link, "is a link", "rm "),
        ("trust", link, "is a link", "rm "),
        ("trust", mode(0o777), "can be written by everybody", "chmod go-w"),
        ("trust/generations/1", link, "is a link", "rm "),
        pytest.param("run", shared(0o770), "can be written by its group", "chmod go-w", marks=NEEDS_ROOT),
        ("store", link, "is a link", "rm "),
        (".", mode(0o777), "can be written by everybody", "chmod go-w"),
        pytest.param(".", shared(0o775), "can be written by its group", "chmod go-w", marks=NEEDS_ROOT),
    ],
)
def test_each_fault_names_the_file_and_the_command(
    state: Path, name: str, spoil: Callable[[Path], None], what: str, remedy: str
) -> None:
    path = state / name
    spoil(path)
    with pytest.raises(TrustError) as caught:
        check_state(state)
    assert caught.value.message.startswith(f"{path.parent.resolve() / path.name}: " if name != "." else f"{state}: ")
    assert what in caught.value.message
    assert remedy in caught.value.remedy


@NEEDS_ROOT
@pytest.mark.parametrize(
    "name", [".", "config.toml", "identity", "identity/device.key", "trust/generations/1", "store"]
)
def test_what_belongs_to_somebody_else_is_refused_even_to_root(state: Path, name: str) -> None:
    own(state / name)
    with pytest.raises(TrustError, match="belongs to 61234, and this runs as root") as caught:
        check_state(state)
    assert "sudo chown -R root" in caught.value.remedy


def test_a_service_of_another_user_than_the_owner_is_told_both(state: Path) -> None:
    first = next(faults(state, STATE_PRIVATE, uid=61_234))
    assert "and this runs as 61234" in first.what


def test_a_folder_above_that_everybody_can_write_is_named(state: Path) -> None:
    state.parent.chmod(0o777)
    with pytest.raises(TrustError, match="could replace what is in it"):
        check_state(state)
    state.parent.chmod(0o1777)
    check_state(state)


def test_rights_to_write_below_a_closed_folder_mean_nothing(state: Path) -> None:
    """As a group's umask leaves them: nobody else can reach them."""
    state.chmod(0o700)
    for name in ("config.toml", "trust", "run"):
        (state / name).chmod(0o775)
    check_state(state)


def test_a_group_that_is_the_owners_own_is_nobody_else(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (state / "run").chmod(0o775)
    user, gid = pwd.getpwuid(os.geteuid()), (state / "run").stat().st_gid
    for members, refused in (([], False), ([user.pw_name], False), (["mallory"], True)):
        monkeypatch.setattr(
            grp, "getgrgid", lambda _gid, members=members: SimpleNamespace(gr_name=user.pw_name, gr_mem=members)
        )
        monkeypatch.setattr(pwd, "getpwuid", lambda _uid: SimpleNamespace(pw_name=user.pw_name, pw_gid=gid))
        assert bool(list(faults(state, STATE_PRIVATE, uid=os.geteuid()))) is refused


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="cannot be used"):
        check_state(tmp_path / "absent")
    (tmp_path / "file").touch(mode=0o600)
    with pytest.raises(TrustError, match="is not a folder"):
        check_state(tmp_path / "file")


def test_keys_of_a_fleet_folder_are_private_too(tmp_path: Path) -> None:
    for name in ("keys/timestamp.key", "ca/ca.key", "ca/former/ab.key", "enrolment/tokens/ab.json"):
        path = tmp_path / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        check_state(tmp_path, FLEET_PRIVATE)
        path.chmod(0o640)
        with pytest.raises(TrustError, match="must be known to its owner alone"):
            check_state(tmp_path, FLEET_PRIVATE)
        path.chmod(0o600)


def test_the_daemon_refuses_such_a_folder_with_exit_status_5(state: Path) -> None:
    (state / "identity" / "device.key").chmod(0o644)
    ended = subprocess.run(
        [sys.executable, "-m", "pcm_p2p.daemon", "--state", str(state)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 5
    assert "device.key: can be read or written by others (644)" in ended.stderr
    assert f"chmod 600 {state.resolve()}/identity/device.key" in ended.stderr
