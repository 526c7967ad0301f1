"""The announcer: keeps this device announced while it is one of the segment's beacons. The shell around ``beacon``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Protocol

import trio

from pcm_p2p.gossip import beacon
from pcm_p2p.ids import DeviceId

INTERVAL_S = 60.0
"""research/gossip-scale.md 1.1: every 60 s, with jitter."""
START_S_MAX = 0.5
"""Choice: devices that start together do not announce themselves in the same millisecond."""


class Introducer(Protocol):
    """What gossip needs of ``discovery.Discovery``."""

    async def run(
        self,
        port: Callable[[], int],
        introduce: Callable[[Any], None],
        network_changed: Callable[[], None],
        *,
        task_status: trio.TaskStatus[None] = ...,
    ) -> None: ...

    async def announce(self, wanted: bool) -> None: ...


async def keep_announced(
    introducer: Introducer, device: DeviceId, fleet: str, known: Callable[[], Iterable[DeviceId]], rng: Random
) -> None:
    """Decide now and each minute, until cancelled; ``known`` gives the devices that are believed to be here."""
    tag = beacon.group_tag(fleet)
    announced = False
    await trio.sleep(rng.uniform(0, START_S_MAX))
    while True:
        announced = beacon.should_announce(device, known(), tag, announced=announced)
        await introducer.announce(announced)
        await trio.sleep(INTERVAL_S * rng.uniform(0.75, 1.25))
