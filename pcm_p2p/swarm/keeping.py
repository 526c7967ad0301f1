"""What this device does about one kept release: fetch copies, let go of copies, hand the last ones over. Core.

A release is *kept* while it is the current or the previous one here. ``keepers`` says who keeps which chunk; this core compares
that with what the neighbours announce:

- *wanting*: I am a keeper and lack it, and a neighbour has it. It is fetched, from neighbours only, once this has been so for
  ``REPAIR_MS`` and a jitter: a reboot moves nothing. What a leaving device hands over is fetched at once.
- *surplus*: I am no keeper, and every keeper says that it holds it. Two devices may let go of the same chunk at the same
  time, since neither counts on the other. It is let go once this has been so for ``surplus_ms``, and not while a neighbour is
  still fetching the release. A device that comes and goes makes a chunk move once in that time at most.
- *last*: nobody else has it. It leaves the store after everything else.

Bits are over the chunk table of the manifest; only its release zone is kept, since the base zone is another release's.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import ChunkId, DeviceId, ManifestId
from pcm_p2p.swarm.holdings import bits_of, positions_of
from pcm_p2p.swarm.keepers import COPIES, Keepers
from pcm_p2p.wire.messages import Handover

REPAIR_MS = 60_000
"""Choice: longer than a reboot."""
POSITIONS_A_HANDOVER_MAX = 4_096
"""Of ``Handover`` (wire.messages)."""


@dataclass(frozen=True, slots=True)
class KeepPlan:
    """Bit fields. ``share``: what I am to keep, held or not. ``fetch``: to be taken from neighbours now, ``urgent`` of it without
    sparing them. ``surplus`` and ``last`` are of what I hold; ``drop`` is the surplus whose time is over. ``next_ms``: when the
    answer may change by itself."""

    share: int = 0
    fetch: int = 0
    urgent: int = 0
    surplus: int = 0
    last: int = 0
    drop: int = 0
    next_ms: int | None = None


class Ripening:
    """Bits that have been set without a break for ``wait_ms``."""

    def __init__(self, wait_ms: int) -> None:
        self._wait_ms = wait_ms
        self._since: list[tuple[int, int]] = []

    def look(self, bits: int, now_ms: int) -> int:
        """``bits`` are set now; returns those that have been for long enough."""
        known = ripe = 0
        since = []
        for since_ms, before in self._since:
            still = before & bits & ~known
            known |= still
            if still:
                since.append((since_ms, still))
                ripe |= still if now_ms - since_ms >= self._wait_ms else 0
        if new := bits & ~known:
            since.append((now_ms, new))
            ripe |= new if self._wait_ms <= 0 else 0
        self._since = since
        return ripe

    def next_ms(self, now_ms: int) -> int | None:
        """When the next bits are ripe; None if none are waiting."""
        return min((at_ms for at, _ in self._since if (at_ms := at + self._wait_ms) > now_ms), default=None)


class Keeping:
    """One kept manifest. ``surplus_ms``: how long a copy that nobody needs is kept all the same."""

    def __init__(
        self,
        me: DeviceId,
        uptime: int,
        manifest: Manifest,
        rng: random.Random,
        *,
        copies: int = COPIES,
        surplus_ms: int,
        repair_ms: int = REPAIR_MS,
    ) -> None:
        self.manifest = manifest
        self._me, self._uptime = me, uptime
        self._full = (1 << len(manifest.chunks)) - 1
        self._keepers = Keepers(manifest.chunks, copies)
        # A jitter, so that not all keepers ask the one that has it at the same moment.
        self._wanting = Ripening(repair_ms + rng.randrange(repair_ms // 2 + 1))
        self._surplus = Ripening(surplus_ms)
        self._taken_over = 0

    def decide(
        self, mine: int, others: Mapping[DeviceId, int], uptimes: Mapping[DeviceId, int], now_ms: int, *, needed: bool
    ) -> KeepPlan:
        """``others``: what each neighbour that has announced the manifest says it holds; ``uptimes``: their classes (absent:
        unknown); ``needed``: one of them is still fetching it."""
        mine &= self._full
        roster = {device: uptimes.get(device, 0) for device in others}
        shares = self._keepers.shares({**roster, self._me: self._uptime})
        lan = lacking = 0
        for device, bits in others.items():
            lan |= bits
            lacking |= shares[device] & ~bits
        share = shares[self._me]
        self._taken_over &= ~mine
        fetch = self._wanting.look(share & ~mine & lan, now_ms)
        urgent = self._taken_over & lan
        surplus = mine & ~share & ~lacking
        drop = self._surplus.look(surplus, now_ms)
        times = [at_ms for each in (self._wanting, self._surplus) if (at_ms := each.next_ms(now_ms)) is not None]
        return KeepPlan(
            share=share,
            fetch=fetch | urgent,
            urgent=urgent,
            surplus=surplus,
            last=mine & ~lan,
            drop=0 if needed else drop,
            next_ms=min(times, default=None),
        )

    def heirs(
        self, mine: int, others: Mapping[DeviceId, int], uptimes: Mapping[DeviceId, int], rank: int = 0
    ) -> dict[DeviceId, int]:
        """Who of the neighbours is to take over what only I hold, at place ``rank`` of each chunk's order."""
        last = mine & self._full
        for bits in others.values():
            last &= ~bits
        return self._keepers.heirs(last, {device: uptimes.get(device, 0) for device in others}, rank)

    def take_over(self, bits: int) -> None:
        """A neighbour that leaves asks me to have these before it goes."""
        self._taken_over |= bits & self._full


def handover_messages(manifest: ManifestId, bits: int) -> Iterable[Handover]:
    positions = tuple(positions_of(bits))
    for start in range(0, len(positions), POSITIONS_A_HANDOVER_MAX):
        yield Handover(bytes(manifest), positions[start : start + POSITIONS_A_HANDOVER_MAX])


def read_handover_untrusted(message: Handover, manifest: Manifest) -> int:
    """The bits that a neighbour hands over. Raises ``UntrustedBytes`` if they are not of the manifest."""
    if any(position >= len(manifest.chunks) for position in message.positions):
        raise UntrustedBytes("a position handed over is past the end of the release")
    return bits_of(message.positions)


def chunks_to_drop(plans: Sequence[tuple[Manifest, int, KeepPlan]], needed: Collection[ChunkId]) -> list[ChunkId]:
    """What may go at last: surplus in every kept manifest that lists it, and not ``needed``; ``plans`` come with what I hold."""
    going: dict[ChunkId, None] = {}
    for manifest, _, plan in plans:
        going.update(dict.fromkeys(manifest.chunks[position] for position in positions_of(plan.drop)))
    if going:
        for manifest, mine, plan in plans:
            for position in positions_of(mine & ~plan.drop & ((1 << len(manifest.chunks)) - 1)):
                going.pop(manifest.chunks[position], None)
    return [chunk for chunk in going if chunk not in needed]


def count_copies(chunk_count: int, holders: Iterable[int]) -> list[int]:
    """How many of ``holders`` (bit fields) have each position."""
    rows = [(1 << chunk_count) - 1]
    for bits in holders:
        # From the highest row down: each position moves up by one at most.
        rows.append(rows[-1] & bits)
        for row in range(len(rows) - 2, 0, -1):
            rows[row] = rows[row] & ~bits | rows[row - 1] & bits
        rows[0] &= ~bits
    counts = [0] * chunk_count
    for number, row in enumerate(rows):
        for position in positions_of(row):
            counts[position] = number
    return counts
