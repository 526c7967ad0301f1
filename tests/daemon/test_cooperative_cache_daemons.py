"""Real daemons: an office that keeps a few copies of a release, and a device that hands over before it ends."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fleet_of_processes import Device, Fleet, Status, noise, open_fleet

APP = noise(3_000_000)
STORE: dict[str, object] = {"copies": 1, "surplus_s": 1.0}
TWO_WEEKS_MS = 14 * 24 * 3_600_000


async def enrol(fleet: Fleet, name: str) -> Device:
    """A device that has been up for two weeks: two copies are enough for 99 % then, where one is asked for."""
    device = await fleet.enrol(name, store=STORE)
    now_ms = int(1_000 * time.time())
    (device.state / "uptime.json").write_text(json.dumps([[now_ms - TWO_WEEKS_MS, now_ms]]))
    return device


def cached(status: Status) -> dict[str, Any]:
    """The figures of the one release."""
    (row,) = status["cache"]["releases"]
    return {**status["cache"], **row}


async def test_an_office_keeps_two_copies_of_a_release_and_hands_over_what_a_device_has_alone(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        manifest = fleet.release(APP)
        fleet.publish()
        devices = [await enrol(fleet, name) for name in "abcd"]
        fleet.start(*devices)
        await fleet.until_applied(*devices)
        size = sum(manifest.sizes)
        here: dict[str, int] = {}
        for device in devices:
            status = await fleet.until(
                device, lambda status: status["cache"]["releases"] and cached(status)["office_bytes"] == 2 * size
            )
            assert (cached(status)["copies_min"], cached(status)["copies_median"]) == (2, 2)
            here[device.name] = status["cache"]["mine_bytes"]
        assert sum(here.values()) == 2 * size
        sent = fleet.origin.segment_bytes
        first, second, *others = sorted(devices, key=lambda device: -here[device.name])
        await fleet.kill(first)
        await fleet.until(second, lambda status: status["peers"]["site"] == 3)
        assert await fleet.stop(second) == 0
        for device in others:
            await fleet.until(device, lambda status: status["peers"]["site"] == 2 and cached(status)["copies_min"] >= 1)
        assert fleet.origin.segment_bytes == sent


async def test_a_device_that_ends_hands_its_release_to_one_that_installed_it_by_hand(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        manifest = fleet.release(APP)
        fleet.publish()
        fetcher, other = [await enrol(fleet, name) for name in "ab"]
        (other.root / "opt" / "app").write_bytes(APP)
        (other.root / "opt" / "app").chmod(0o644)
        fleet.start(fetcher)
        await fleet.until_applied(fetcher)
        fleet.start(other)
        await fleet.until_applied(other)
        await fleet.until(other, lambda status: status["cache"]["releases"] and cached(status)["copies_min"] == 1)
        await fleet.until(fetcher, lambda status: status["peers"]["site"] == 2)
        assert await fleet.stop(fetcher) == 0
        assert "leave the office" not in fetcher.log
        status = await fleet.until(other, lambda status: status["store"]["chunks"] == len(manifest.chunks))
        assert cached(status)["mine_bytes"] == sum(manifest.sizes)
