"""The follower keeps trusted metadata fresh. Neighbours' news come through ``gossip.spreader``; the origin is polled here.

Who polls the origin: once per poll period and site, the neighbours that are alive rank themselves by rendezvous hashing over
the period, and only the first one asks (research/gossip-scale.md 1.3: metadata over the WAN does not grow with the office). A
device without any trusted metadata asks after ``rank × FIRST_WAIT_S``, so that a whole office that starts at once still asks
once. After a failure the origin is left alone for a while that doubles, and neighbours are asked meanwhile.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import trio

from pcm_p2p.gossip.spread import Ending
from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.rendezvous import ranking
from pcm_p2p.trust.client import Attempt, MetadataSource, TrustClient
from pcm_p2p.wire.messages import Digest

log = logging.getLogger(__name__)

FIRST_WAIT_S = 10.0
"""Choice: a neighbour that asked the origin has the answer, and has told us, well within this."""
HEAL_S = 20.0
"""Choice: what is withheld by one is had from another within a minute; after a round of all sources in vain it doubles."""
BACK_OFF_S_MIN = 2.0
BACK_OFF_S_MAX = 300.0
SEEK_MAX = 8
"""Choice: what that many do not have comes with the next change of the fleet."""


class Neighbours(Protocol):
    """What the follower needs of the sessions."""

    def site_peers(self) -> Mapping[DeviceId, int]:
        """Devices of this site with a live session, and their weight for the WAN."""
        ...

    def metadata_source(self, device: DeviceId) -> MetadataSource: ...


class Follower:
    """The only caller of ``TrustClient.attempt``. ``on_change`` is awaited after each view that is new, with its digest."""

    def __init__(
        self,
        client: TrustClient,
        me: DeviceId,
        neighbours: Neighbours,
        origin: MetadataSource | None,
        *,
        weight: int,
        poll_s: float,
        settle_s: float,
        wall_s: Callable[[], float],
        on_change: Callable[[Digest], Awaitable[None]],
    ) -> None:
        self._client = client
        self._me = me
        self._neighbours = neighbours
        self._origin = origin
        self._weight = weight
        self._poll_s = poll_s
        self._settle_s = settle_s
        self._wall_s = wall_s
        self._on_change = on_change
        self._polled_period = -1
        self._not_before = 0.0
        self._failures = 0
        self.last_problem = ""
        self._one_seek = trio.Lock()
        self._seek_waits = False

    def digest(self) -> Digest:
        """What this device trusts, for neighbours."""
        return Digest(*self._client.digest())

    async def ask_neighbour(self, device: DeviceId) -> Ending:
        """Pull and verify what a neighbour has; how it ended."""
        return (await self._ask(self._neighbours.metadata_source(device), device.short)).kind

    async def ask(self, source: MetadataSource) -> Ending:
        """Pull and verify what stands at first hand, asked for by name; how it ended."""
        return (await self._ask(source, source.name, first_hand=True)).kind

    async def seek(self, lacking: Callable[[], bool]) -> None:
        """Where something is wanted that was not before, there is nothing newer to hear of: ask neighbours and then the origin,
        until one has all of it. ``lacking`` tells whether anything is; it is called in a worker thread.

        One at a time, and one that waits for it speaks for all that come meanwhile: who publishes for a site every second, with a
        neighbour that does not answer, must not have a queue grow in which the news of the fleet stand last."""
        if self._seek_waits:
            return
        self._seek_waits = True
        try:
            await self._one_seek.acquire()
        finally:
            self._seek_waits = False
        try:
            await self._seek(lacking)
        finally:
            self._one_seek.release()

    async def _seek(self, lacking: Callable[[], bool]) -> None:
        if not await trio.to_thread.run_sync(lacking):
            return
        sources = [self._neighbours.metadata_source(device) for device in self._neighbours.site_peers()][:SEEK_MAX]
        sources += [self._origin] if self._origin is not None else []
        for source in sources:
            name = "origin" if source is self._origin else source.name
            if (await self._ask(source, name)).kind in ("good", "unchanged"):
                return

    async def run(self) -> None:
        """Poll the origin when it is this device's turn, and look for what is missing meanwhile, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heal)
            if self._origin is not None:
                await self._poll(self._origin)

    async def _heal(self) -> None:
        """While a document of a site, of a team or of halts is missing, ask one source after the other for it.

        Versions do not tell who has it: whoever trusts the same metadata claims the same.
        """
        turn, pause_s = 0, HEAL_S
        while True:
            await trio.sleep(pause_s)
            if self._client.settled:
                turn, pause_s = 0, HEAL_S
                continue
            sources = [self._neighbours.metadata_source(device) for device in sorted(self._neighbours.site_peers())]
            sources += [self._origin] if self._origin is not None else []
            if sources:
                source = sources[turn % len(sources)]
                await self._ask(source, "origin" if source is self._origin else source.name)
                turn += 1
                if turn % len(sources) == 0:  # none of them had it
                    pause_s = min(2 * pause_s, BACK_OFF_S_MAX)

    async def _poll(self, origin: MetadataSource) -> None:
        start = trio.current_time() + self._settle_s
        while True:
            now = trio.current_time()
            if self._is_due(now, start):
                self._polled_period = self._period()
                self._note(await self._ask(origin, "origin", first_hand=True))
            else:
                await trio.sleep(self._pause_s(now, start))

    async def _ask(self, source: MetadataSource, name: str, *, first_hand: bool = False) -> Attempt:
        before = self._client.view
        attempt = await self._client.attempt(source)
        if attempt.kind in ("good", "unchanged"):
            self.last_problem = ""
        elif attempt.kind != "older" or first_hand:
            # A neighbour that lags is no news. An origin that does was set back, or somebody is between us.
            self.last_problem = f"{name}: {attempt.reason or attempt.kind}"
        if attempt.view is not before:
            await self._on_change(self.digest())
        return attempt

    def _note(self, attempt: Attempt) -> None:
        if attempt.kind in ("good", "unchanged"):
            self._failures = 0
            return
        self._failures += 1
        self._not_before = trio.current_time() + min(BACK_OFF_S_MAX, BACK_OFF_S_MIN * 2 ** min(self._failures - 1, 16))
        self._polled_period = -1  # the period's poll did not happen; try again after the back-off

    def _is_due(self, now: float, start: float) -> bool:
        if now < max(start, self._not_before):
            return False
        rank = self._rank()
        if self._client.view is None:
            return now >= start + rank * FIRST_WAIT_S
        return rank == 0 and self._period() != self._polled_period

    def _period(self) -> int:
        """By the wall clock, which neighbours share; where clocks differ by more than a period, two of them poll."""
        return math.floor(self._wall_s() / self._poll_s)

    def _rank(self) -> int:
        weights = {**self._neighbours.site_peers(), self._me: self._weight}
        order = ranking(weights, b"poll %d" % self._period()) or [self._me]
        return order.index(self._me) if self._me in order else len(order)

    def _pause_s(self, now: float, start: float) -> float:
        if now < max(start, self._not_before):
            return max(start, self._not_before) - now
        if self._client.view is None:
            return 1.0
        # Neighbours come and go within a period, and the turn with them: look again a few times in each.
        period_left_s = (self._period() + 1) * self._poll_s - self._wall_s()
        return min(max(0.05, period_left_s), max(1.0, self._poll_s / 8))
