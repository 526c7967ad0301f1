"""A desk that was off until everything it signs had expired heals the fleet by itself when it is on again (RSTUF issue 555)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
import trio
import trio.testing
from repository_simulator import RepositorySimulator

from pcm_p2p.authority.auditing import verify_folder
from pcm_p2p.authority.expiry import Level
from pcm_p2p.authority.founding import SNAPSHOT_LIFETIME
from pcm_p2p.authority.health import check
from pcm_p2p.daemon.desk import _keep_fresh


async def test_a_desk_that_was_off_for_weeks_signs_expired_metadata_anew_at_its_start(
    fleet: RepositorySimulator, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    with fleet.client() as device:
        assert (await device.attempt(fleet.source())).kind == "good"
        fleet.clock.now += SNAPSHOT_LIFETIME + timedelta(days=10)
        levels = {finding.what: finding.level for finding in check(fleet.fleet)}
        assert (levels["snapshot"], levels["timestamp"]) == (Level.expired, Level.expired)
        assert device.freshness() == "frozen"

        async def at_once(work: Callable[..., object], *arguments: object) -> object:
            return work(*arguments)

        monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_fresh, fleet.fleet, fleet.origin, fleet.keys)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        monkeypatch.undo()
        levels = {finding.what: finding.level for finding in check(fleet.fleet)}
        assert (levels["snapshot"], levels["timestamp"]) == (Level.ok, Level.ok)
        assert (await device.attempt(fleet.source())).kind == "good"
        assert device.freshness() == "fresh"
    assert verify_folder(fleet.fleet).verdict.complaints == ()
