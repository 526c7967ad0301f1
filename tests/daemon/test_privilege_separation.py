"""What must be root is apart from the network: what the apply service does for an honest daemon, and what for one that lies.

The rows of the attack table are what somebody can try who has the network's daemon in his hand: its user, its socket, its
metadata, its artifacts. Each ends with the device unchanged, or with what is signed for it now.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from apply_world import ApplyWorld
from repository_simulator import RepositorySimulator


@pytest.fixture(name="world")
def _world(tmp_path: Path, fleet: RepositorySimulator, quick_disk: None) -> Iterator[ApplyWorld]:
    world = ApplyWorld(tmp_path, fleet)
    with world.daemon:
        yield world


# An honest daemon


async def test_a_file_comes_to_the_device_through_the_service(world: ApplyWorld) -> None:
    world.publish_file("1", b"first")
    async with world.serving():
        remote, desired = world.remote(), await world.refresh()
        await remote.resume()
        change = desired.releases[0].change
        assert not await remote.is_in_place(change, {})
        outcome = await remote.apply(change, desired.authorisation, world.staged)
        assert (outcome.verdict, outcome.error) == ("done", "")
        assert world.installed == b"first"
        assert await remote.is_in_place(change, {})
        assert [receipt.applied_version for receipt in remote.receipts()] == ["1"]
