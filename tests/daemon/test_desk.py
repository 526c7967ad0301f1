"""The desk as a service: it starts, keeps an origin tree fresh, and ends when it is told to."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing

from pcm_p2p.authority.people.founding import TIMESTAMP_LIFETIME
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.daemon.desk import LOOK_INTERVAL_S, _is_due, _keep_fresh, run_desk
from pcm_p2p.errors import InputError, PcmError, TrustError

PASSPHRASE = "correct horse"


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path, clock: Clock) -> FleetFolder:
    """A fleet that published into ``tmp_path / "origin"``."""
    folder = FleetFolder.init(tmp_path / "fleet", name="x", passphrase=PASSPHRASE, preset="lab", wall_clock=clock)
    folder.sign(folder.path / "keys" / "targets-admin.key", PASSPHRASE)
    publish(folder, tmp_path / "origin", OnlineKeys.open(folder, PASSPHRASE))
    return folder


def version(folder: FleetFolder) -> int:
    timestamp = folder.timestamp()
    assert timestamp is not None
    return int(timestamp.signed.version)


def test_a_refresh_is_due_when_two_thirds_of_the_life_are_left(folder: FleetFolder, clock: Clock) -> None:
    assert not _is_due(folder)
    clock.now += TIMESTAMP_LIFETIME / 3
    assert not _is_due(folder)
    clock.now += timedelta(seconds=1)
    assert _is_due(folder)


def test_nothing_is_due_before_the_first_publishing(tmp_path: Path, clock: Clock) -> None:
    folder = FleetFolder.init(tmp_path / "new", name="x", passphrase=PASSPHRASE, preset="lab", wall_clock=clock)
    clock.now += timedelta(days=100)
    assert not _is_due(folder)


async def test_the_timestamp_is_signed_anew_in_time_and_after_a_failure(
    folder: FleetFolder,
    clock: Clock,
    tmp_path: Path,
    mock_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def at_once(work: Callable[..., object], *arguments: object) -> object:
        return work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    keys, looked = OnlineKeys.open(folder, PASSPHRASE), trio.testing.wait_all_tasks_blocked
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_fresh, folder, tmp_path / "origin", keys)
        await looked()
        assert version(folder) == 1, "nothing is due"
        clock.now += timedelta(hours=57)
        with folder.locked():
            mock_clock.jump(LOOK_INTERVAL_S + 1)
            await looked()
            assert version(folder) == 1, "somebody else works in the folder"
        mock_clock.jump(LOOK_INTERVAL_S + 1)
        await looked()
        assert version(folder) == 2
        mock_clock.jump(LOOK_INTERVAL_S + 1)
        await looked()
        assert version(folder) == 2, "once is enough"
        nursery.cancel_scope.cancel()


async def test_a_desk_that_cannot_start_says_why_and_gives_the_folder_back(folder: FleetFolder, tmp_path: Path) -> None:
    taken = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = taken.socket.getsockname()[1]
    with pytest.raises((InputError, BaseExceptionGroup)) as caught:
        await run_desk(folder, PASSPHRASE, "127.0.0.1", port, tmp_path / "origin", None)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, InputError)
    assert "cannot be listened on" in error.message
    await taken.aclose()
    (folder.path / "keys" / "snapshot.key").unlink()
    with pytest.raises(PcmError, match="no such file"):
        await run_desk(folder, PASSPHRASE, "127.0.0.1", 0, tmp_path / "origin", None)
    with pytest.raises(TrustError, match="passphrase"):
        await run_desk(folder, "wrong", "127.0.0.1", 0, None, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_desk_with_0(folder: FleetFolder, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "words").write_text(PASSPHRASE + "\n")
    (tmp_path / "words").chmod(0o600)
    command = ["enroll", "desk", "--fleet", str(folder.path), "--listen", "127.0.0.1:0"]
    command += ["--origin", str(tmp_path / "origin"), "--port-file", str(tmp_path / "port")]
    command += ["--passphrase-file", str(tmp_path / "words")]
    start = "import sys; from pcm_p2p.cli.main import run; sys.argv[0] = 'pcm-p2p'; sys.exit(run())"
    with subprocess.Popen([sys.executable, "-c", start, *command], stderr=subprocess.PIPE, text=True) as desk:
        deadline = time.monotonic() + 60
        while not (tmp_path / "port").exists() and desk.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        desk.send_signal(number)
        _, said = desk.communicate(timeout=120)
    assert desk.returncode == 0, said
    host, _, port = (tmp_path / "port").read_text().strip().rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    assert f"ending on {number.name}" in said
