"""A halt over real daemons: held by everybody who hears of it, from the origin or a neighbour, and let go by the threshold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fleet_of_processes import WORDS, Fleet, Status, open_fleet, release_row

from pcm_p2p.authority import halting
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.keys.signing_key import open_signing_key
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.trust.delegation import HALT


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    pass


def halt(fleet: Fleet, key: Path, release: str, reason: str) -> str:
    """Ordered and published with one key, while other proposals wait; its id."""
    ordered = halting.order(fleet.authority, open_signing_key(key, WORDS), release=release, reason=reason)
    publish(fleet.authority, fleet.origin.folder, OnlineKeys.open(fleet.authority, WORDS), only=[HALT])
    return ordered.halt.id


def held(status: Status, reason: str) -> bool:
    row = release_row(status)
    return row.get("state") == "waiting" and row["version"] == "2" and reason in row["detail"]


async def test_a_halted_update_is_fetched_and_held_until_it_is_lifted(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        one, two = [await fleet.enrol(name) for name in ("one", "two")]
        fleet.release(os.urandom(100_000))
        bea = keyfile.create(tmp_path / "office.key", WORDS, "site-office", "bea", preset="lab")
        fleet.authority.delegate("site-office", [bea.key], 1)
        fleet.publish()
        fleet.start(one, two)
        await fleet.until_applied(one, two)
        first = one.installed()
        # The key of the devices' own site, and then the root key of a person: each stops it alone.
        ids = [halt(fleet, bea.path, "app", "the office is moving")]
        fleet.release(os.urandom(100_000), version="2")
        fleet.publish()
        for device in (one, two):
            await fleet.until(device, lambda status: held(status, "Halted by bea since"))
        ids.append(halt(fleet, fleet.authority.path / "keys" / "root-admin.key", "app", "breaks the till"))
        halting.lift(fleet.authority, ids[:1])
        fleet.sign_and_publish()
        for device in (one, two):
            status = await fleet.until(device, lambda status: held(status, "Halted by admin since"))
            assert "breaks the till" in release_row(status)["detail"]
            assert device.installed() == first, "nothing was changed, and nothing was taken away"
        halting.lift(fleet.authority, ids[1:])
        fleet.sign_and_publish()
        await fleet.until_applied(one, two, version="2")
        assert two.installed() == one.installed() != first
