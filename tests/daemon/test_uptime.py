"""How a device observes its own uptime, and what a crash, sleep, a wrong clock and a torn file do to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from pcm_p2p.daemon.uptime import SAVE_INTERVAL_S, Uptime

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 24 * 3_600_000
NOON_MS = 1_800_000_000_000


class Device:
    """A device with a wall clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "uptime.json"
        self.now_ms = NOON_MS
        self.uptime = self.start()

    def start(self) -> Uptime:
        self.uptime = Uptime(self.path, lambda: self.now_ms)
        self.uptime.save()
        return self.uptime

    def on(self, duration_ms: int) -> None:
        until_ms = self.now_ms + duration_ms
        while self.now_ms < until_ms:
            self.now_ms += int(1_000 * SAVE_INTERVAL_S)
            self.uptime.observe()
        self.uptime.save()

    def off(self, duration_ms: int) -> None:
        self.now_ms += duration_ms
        self.start()


@pytest.fixture(name="device")
def _device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_a_new_device_is_presumed_to_be_a_desktop(device: Device) -> None:
    assert device.uptime.share == 13
    device.on(HOUR_MS)
    assert device.uptime.share == 13, "an hour says little"


def test_a_server_is_up_all_the_time(device: Device) -> None:
    device.on(14 * DAY_MS)
    assert device.uptime.share == 16


@pytest.mark.parametrize(("hours", "share"), [(8, 6), (12, 8), (20, 13), (1, 1)])
def test_a_device_of_office_hours_says_so_after_two_weeks(device: Device, hours: int, share: int) -> None:
    for _ in range(30):
        device.on(hours * HOUR_MS)
        device.off((24 - hours) * HOUR_MS)
    assert device.uptime.share == share


def test_a_restart_is_no_time_off(device: Device) -> None:
    for _ in range(14):
        device.on(DAY_MS)
        device.off(2 * MINUTE_MS)
    assert device.uptime.share == 16
    assert len(device.path.read_bytes()) < 100


def test_a_crash_costs_what_was_not_saved(device: Device) -> None:
    device.on(2 * DAY_MS)
    saved = device.path.read_bytes()
    device.now_ms += 4 * MINUTE_MS
    device.uptime.observe()
    assert device.path.read_bytes() == saved
    device.off(MINUTE_MS)
    assert device.uptime.share == 15


def test_sleep_counts_as_time_off(device: Device) -> None:
    for _ in range(10):
        device.on(HOUR_MS)
        device.now_ms += 9 * HOUR_MS
        device.uptime.observe()
    assert device.uptime.share < 6


@pytest.mark.parametrize("jump_ms", [-3 * DAY_MS, -400 * DAY_MS, 400 * DAY_MS])
def test_a_clock_that_was_set_leaves_a_share_that_can_be_announced(device: Device, jump_ms: int) -> None:
    device.on(5 * DAY_MS)
    device.off(jump_ms)
    device.on(HOUR_MS)
    assert 1 <= device.uptime.share <= 16
    device.on(14 * DAY_MS)
    assert device.uptime.share == 16


@pytest.mark.parametrize("torn", [b"", b"[[1", b"\xff", b'{"a": 1}', b"[[5, 1]]", b"[[1, 2, 3]]", b'[["a", 2]]'])
def test_a_torn_file_starts_the_observation_anew(device: Device, torn: bytes) -> None:
    device.on(5 * DAY_MS)
    device.path.write_bytes(torn)
    assert device.start().share == 13


def test_a_disk_that_refuses_is_logged(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    device.path.parent.joinpath("uptime.json").unlink()
    device.path.mkdir()
    device.uptime.save()
    assert "cannot be written" in caplog.text


async def test_it_is_saved_every_few_minutes(
    device: Device, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(function: Callable[[], None]) -> None:
        """Virtual time would pass while a thread works."""
        await trio.lowlevel.checkpoint()
        function()

    monkeypatch.setattr("trio.to_thread.run_sync", at_once)
    start_s = trio.current_time()

    def wall_ms() -> int:
        return NOON_MS + int(1_000 * (trio.current_time() - start_s))

    uptime = Uptime(device.path, wall_ms)
    with trio.move_on_after(12 * SAVE_INTERVAL_S + 1):
        await uptime.run()
    assert device.path.read_bytes() == b"[[%d,%d]]" % (NOON_MS, NOON_MS + int(12_000 * SAVE_INTERVAL_S))
