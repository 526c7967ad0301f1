"""A device is revoked while real daemons and a real collector run: who hears of it, who drops whom, what each says."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from fleet_of_processes import Fleet, noise, open_fleet

from pcm_p2p.authority.revocation import change_deny_list


def revocations(fleet: Fleet) -> dict[str, str]:
    """Device to reason, in the collector's archive."""
    assert fleet.collector is not None
    path = fleet.collector.state / "collector" / "archive.sqlite"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT device, reason FROM revoked"))


async def test_a_revoked_device_loses_its_neighbours_and_its_collector_within_seconds_and_says_so(
    tmp_path: Path,
) -> None:
    async with open_fleet(tmp_path, bystander=False) as fleet:
        await fleet.found_collector()
        one, lost = [await fleet.enrol(name) for name in ("one", "lost")]
        data = noise(60_000)
        fleet.release(data)
        fleet.publish()
        await fleet.start_collector()
        fleet.start(one, lost)
        await fleet.until_applied(one, lost)
        await fleet.until_archived(lambda rows: {row[0] for row in rows} == {one.hex, lost.hex})
        await fleet.until(one, lambda status: status["peers"]["site"] == 1)

        change_deny_list(
            fleet.authority,
            lambda held: held.with_devices([lost.identity.device_id], "left in a taxi", fleet.authority.wall_clock()),
        )
        fleet.release(noise(60_000, seed=2), version="2")
        fleet.publish()
        status = await fleet.until(one, lambda status: status["revocation"]["devices"] == 1)
        assert status["revocation"]["epoch"] == 1
        await fleet.until(one, lambda status: status["peers"]["site"] == 0)
        await fleet.until_applied(one, version="2")
        # The device itself reads it from the origin, says so, and keeps what it was told.
        status = await fleet.until(lost, lambda status: status["peers"]["sessions"] == 0 and status["problems"])
        assert "this device was revoked on" in status["problems"][0]
        assert "left in a taxi" in status["problems"][0]
        assert "this device was revoked on" in lost.log
        assert lost.installed() is not None
        # The collector heard of it too, and the device's reports end.
        await fleet.until_archived(lambda _rows: revocations(fleet) == {lost.hex: "left in a taxi"})
        before = [row for row in fleet.archived() if row[0] == lost.hex]
        await fleet.until(lost, lambda status: status["reports"]["outbox"] > 0)
        await fleet.until(one, lambda status: status["reports"]["outbox"] == 0)
        assert [row for row in fleet.archived() if row[0] == lost.hex] == before
        # It goes on trying, and is refused.
        status = await fleet.until(one, lambda status: status["revocation"]["sessions_refused"] > 0)
        assert status["peers"]["site"] == 0
