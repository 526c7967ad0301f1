"""The follower keeps trusted metadata fresh: it decides whom to ask next, and asks one source at a time.

Where news comes from, cheapest first:

1. **A neighbour's digest** that claims something newer than what is trusted here: ask that neighbour.
2. **The origin**, once per poll period and site: the neighbours that are alive rank themselves by rendezvous hashing over the
   period, and only the first one polls (research/gossip-scale.md 1.3: metadata over the WAN does not grow with the office).
3. **The origin as a last resort**: a device without any trusted metadata asks after ``rank × FIRST_WAIT_S``, so that a whole
   office that starts at once still asks once.

A source that fails is left alone for a while that doubles; a neighbour that delivered what no honest carrier can have is left
alone for an hour. Whatever was learnt is told to all neighbours at once.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import trio

from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.rendezvous import ranking
from pcm_p2p.trust.client import Attempt, MetadataSource, TrustClient
from pcm_p2p.wire.messages import Digest

log = logging.getLogger(__name__)

FIRST_WAIT_S = 10.0
"""Choice: a neighbour that asked the origin has the answer, and has told us, well within this."""
BACK_OFF_S_MIN = 2.0
BACK_OFF_S_MAX = 300.0
BLAME_S = 3_600.0
HINTS_MAX = 64


class Neighbours(Protocol):
    """What the follower needs of the sessions."""

    def site_peers(self) -> Mapping[DeviceId, int]:
        """Devices of this site with a live session, and their weight for the WAN."""
        ...

    def metadata_source(self, device: DeviceId) -> MetadataSource: ...

    async def tell_everybody(self, message: Digest) -> None: ...


class Follower:
    """The only caller of ``TrustClient.attempt``. ``on_change`` is awaited after each view that is new."""

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
        on_change: Callable[[], Awaitable[None]],
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
        self._hints: OrderedDict[DeviceId, Digest] = OrderedDict()
        self._not_before: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._polled_period = -1
        self._wake = trio.Event()
        self.last_problem = ""

    def hear(self, device: DeviceId, digest: Digest) -> None:
        """A neighbour said what it trusts. Remembered if it claims more than is trusted here; never waits."""
        if self._is_newer(digest):
            self._hints[device] = digest
            self._hints.move_to_end(device)
            while len(self._hints) > HINTS_MAX:
                self._hints.popitem(last=False)
            self._wake.set()

    def forget(self, device: DeviceId) -> None:
        self._hints.pop(device, None)

    def digest(self) -> Digest:
        return Digest(*self._client.digest())

    async def run(self) -> None:
        """Follow until cancelled."""
        start = trio.current_time()
        while True:
            now = trio.current_time()
            source = self._choose(now, start)
            if source is None:
                self._wake = trio.Event()
                with trio.move_on_after(self._pause_s(now, start)):
                    await self._wake.wait()
                continue
            await self._ask(source)

    def _is_newer(self, digest: Digest) -> bool:
        mine = self._client.digest()
        if digest.timestamp == mine.timestamp:
            return digest.timestamp_sha256 != mine.timestamp_sha256 and digest.timestamp > 0
        return digest.timestamp > mine.timestamp

    def _choose(self, now: float, start: float) -> MetadataSource | None:
        for device in sorted(self._hints, key=lambda device: (-self._hints[device].timestamp, device)):
            if not self._is_newer(self._hints[device]):
                del self._hints[device]
            elif now >= self._not_before.get(device.hex(), 0.0):
                return self._neighbours.metadata_source(device)
        return self._origin if self._origin is not None and self._origin_is_due(now, start) else None

    def _origin_is_due(self, now: float, start: float) -> bool:
        assert self._origin is not None
        if now < self._not_before.get(self._origin.name, 0.0) or now < start + self._settle_s:
            return False
        rank = self._rank()
        if self._client.view is None:
            return now >= start + self._settle_s + rank * FIRST_WAIT_S
        return rank == 0 and self._period() != self._polled_period

    def _period(self) -> int:
        """By the wall clock, which neighbours share; where clocks differ by more than a period, two of them poll."""
        return math.floor(self._wall_s() / self._poll_s)

    def _rank(self) -> int:
        weights = {**self._neighbours.site_peers(), self._me: self._weight}
        order = ranking(weights, b"poll %d" % self._period()) or [self._me]
        return order.index(self._me) if self._me in order else len(order)

    def _pause_s(self, now: float, start: float) -> float:
        until = [self._not_before.get(device.hex(), now) for device in self._hints]
        if self._origin is not None:
            if now < start + self._settle_s:
                until.append(start + self._settle_s)
            elif self._client.view is None:
                until.append(now + 1.0)
            period_left_s = (self._period() + 1) * self._poll_s - self._wall_s()
            until.append(max(now + period_left_s, self._not_before.get(self._origin.name, 0.0)))
        return max(0.05, min((moment - now for moment in until), default=self._poll_s))

    async def _ask(self, source: MetadataSource) -> None:
        is_origin = self._origin is not None and source.name == self._origin.name
        if is_origin:
            self._polled_period = self._period()
        before = self._client.view
        attempt = await self._client.attempt(source)
        self._remember(source.name, attempt, is_origin=is_origin)
        if attempt.kind in ("good", "unchanged"):
            self.last_problem = ""
        elif attempt.kind != "older":
            self.last_problem = f"{'origin' if is_origin else source.name[:8]}: {attempt.reason}"
        if attempt.view is not before and attempt.view is not None:
            await self._neighbours.tell_everybody(self.digest())
            await self._on_change()

    def _remember(self, name: str, attempt: Attempt, *, is_origin: bool) -> None:
        """When this source may be asked again."""
        now = trio.current_time()
        device = None if is_origin else DeviceId.parse(name)
        if attempt.kind in ("good", "unchanged"):
            self._failures.pop(name, None)
            self._not_before.pop(name, None)
            if device is not None and attempt.kind == "unchanged":
                self._hints.pop(device, None)
            return
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        wait_s = min(BACK_OFF_S_MAX, BACK_OFF_S_MIN * 2 ** min(failures - 1, 16))
        if attempt.kind == "bad" and device is not None:
            wait_s = BLAME_S
        self._not_before[name] = now + wait_s
        if device is None:
            self._polled_period = -1  # the period's poll did not happen; try again after the back-off
        elif attempt.kind in ("older", "bad", "expired"):
            self._hints.pop(device, None)
        while len(self._failures) > 4 * HINTS_MAX:
            gone = next(iter(self._failures))
            del self._failures[gone]
            self._not_before.pop(gone, None)
