"""A desk that was off until all that it signs had expired heals the fleet when it is on again (RSTUF issue 555), and one whose
keys were replaced goes on with the new ones."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
import trio
import trio.testing
from repository_simulator import PASSPHRASE, RepositorySimulator

from pcm_p2p.authority.audit.verification import verify_folder
from pcm_p2p.authority.people import playbook
from pcm_p2p.authority.people.expiry import Level
from pcm_p2p.authority.people.founding import SNAPSHOT_LIFETIME
from pcm_p2p.authority.people.health import check
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.daemon.desk import _keep_fresh


@pytest.fixture
def _threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(work: Callable[..., object], *arguments: object) -> object:
        return work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)


@pytest.mark.usefixtures("_threads_at_once", "mock_clock")
async def test_a_desk_goes_on_with_the_keys_of_a_new_root(fleet: RepositorySimulator) -> None:
    old = fleet.keys
    playbook.stolen_online_keys(fleet.fleet, PASSPHRASE, preset="lab")
    fleet.sign(role="root")
    publish(fleet.fleet, fleet.origin, OnlineKeys.open(fleet.fleet, PASSPHRASE, proposed=True))
    before = fleet.fleet.timestamp()
    fleet.clock.advance(hours=57)
    async with trio.open_nursery() as nursery:
        reopen = partial(OnlineKeys.open, fleet.fleet, PASSPHRASE)
        nursery.start_soon(_keep_fresh, fleet.fleet, fleet.origin, old, reopen)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    after = fleet.fleet.timestamp()
    assert before is not None
    assert after is not None
    assert after.signed.version == before.signed.version + 1
    assert verify_folder(fleet.fleet).verdict.complaints == ()


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
