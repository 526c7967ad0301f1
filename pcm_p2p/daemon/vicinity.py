"""Looking around by mDNS for members that may relay an errand to the desk, for a device that has no route to it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import SystemRandom

import trio

from pcm_p2p.gossip.discovery import Candidate, Discovery
from pcm_p2p.sidecar import open_sidecar

LOOK_S = 4.0
"""research/gossip-scale.md 6.2: the contact list of a full segment takes 1.6 s."""

log = logging.getLogger(__name__)


async def look_around(fleet: str, interfaces: Sequence[str] = (), *, seconds: float = LOOK_S) -> list[tuple[str, int]]:
    """Hosts and ports of members of ``fleet`` (32 hex digits) that announce themselves. Hints: who answers there proves nothing.

    ``interfaces``: addresses of this machine to use; empty: all. An empty list where mDNS cannot work. In a random order, so that
    who floods the network with announcements does not keep a device that tries again from ever finding an honest one.
    """
    found: dict[tuple[str, int], None] = {}

    def introduce(candidate: Candidate) -> None:
        found[candidate.host, candidate.port] = None

    log.info("looking for members nearby for %g s", seconds)
    async with open_sidecar() as sidecar:
        discovery = Discovery(sidecar, fleet=fleet, interfaces=interfaces)
        with trio.move_on_after(seconds):
            await discovery.run(lambda: 0, introduce, lambda: None)
    places = list(found)
    SystemRandom().shuffle(places)
    return places
