"""Who keeps which chunk of a release at this site: the first few of a weighted rendezvous order. Core.

An office keeps k copies, not one a device. For each group of chunks the devices that have announced the release stand in an
order (``rendezvous``, weighted by how much of the time each is up); the first ``copies`` keep it. If those are off so often
that the group would be out of reach more than one time in ``ABSENT_ONE_IN``, the next ones keep it too, up to ``COPIES_MAX``
(research/distribution.md 2.5: k ≥ ln(1 − p) / ln(1 − a)). All of it is integer arithmetic over a few announced facts, so
devices that know the same facts compute the same, and one that goes moves its own chunks only.

Groups, because a delta needs all of its base. With a choice of keepers for each chunk there are as many sets of three devices
as chunks, and nearly any few devices that are off together are one of them: with 5 of 20 off, 83 % of the time something of 200
chunks is missing, and with it the base of half of all deltas. In groups of about a segment's output it is 5 % (as many
bytes are lost on average, but seldom and together). Groups begin at chunks whose id says so, and are named by their lowest id, so
that what two releases share has the same keepers in both. Where an office is larger than
a device has sessions, views differ: each neighbourhood then keeps its copies, which is more than needed, never less.

Uptime is a class of 1 … 16 sixteenths, as the device says. A liar can only weaken the cache: who boasts of its uptime
gets more to keep, and what it does not keep is fetched over the WAN again one day; who says little keeps little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.rendezvous import handicap, unweighted

COPIES = 3
"""Spec: the default."""
COPIES_MAX = 9
"""Choice: nine laptops that are up 30 % of the time reach 96 %; more copies are no longer a cache."""
ABSENT_ONE_IN = 100
"""Choice: one of the keepers is up for 99 % of the time. With desktops at 80 % that takes the three copies of the default."""
UPTIME_MAX = 16
UPTIME_PRESUMED = 13
"""Of a device that says nothing: a desktop at 80 % (research/distribution.md 2.5)."""
GROUP_CHUNKS_AVG, GROUP_CHUNKS_MAX = 64, 128
"""Choice: 64 chunks of the usual 256 KiB are a segment's output. A power of two."""
_PARTS = 32


def presumed(uptime: int) -> int:
    """The class to reckon with: what was announced, held to 1 … 16; 0 is unknown."""
    return min(uptime, UPTIME_MAX) if uptime > 0 else UPTIME_PRESUMED


def copies_for(uptimes: Sequence[int], copies: int) -> int:
    """How many of these devices, best first, keep a group: at least ``copies``, if there are as many."""
    absent, whole = 1, 1
    limit = max(COPIES_MAX, copies)
    for number, uptime in enumerate(uptimes[:limit], start=1):
        # Nobody is up all the time: the highest class is taken for 31 of 32 parts.
        absent *= max(_PARTS - 2 * uptime, 1)
        whole *= _PARTS
        if number >= copies and absent * ABSENT_ONE_IN <= whole:
            return number
    return min(len(uptimes), limit)


def groups_of(keys: Sequence[bytes]) -> list[tuple[bytes, int]]:
    """The name and the bits of each group of chunks."""
    firsts = [0]
    for position in range(1, len(keys)):
        begins = not keys[position][0] & (GROUP_CHUNKS_AVG - 1)
        if begins or position - firsts[-1] >= GROUP_CHUNKS_MAX:
            firsts.append(position)
    ends = [*firsts[1:], len(keys)]
    groups = zip(firsts, ends, strict=True)
    return [(min(keys[first:end]), ((1 << end - first) - 1) << first) for first, end in groups if end > first]


class Keepers:
    """``keys`` are the chunk ids of one release, by position. Not to be used from two threads at once.

    Measured with 20 devices and 65,536 chunks: 0.5 s when all are new, 0.05 s when one comes, goes or changes its uptime.
    """

    def __init__(self, keys: Sequence[bytes], copies: int = COPIES) -> None:
        self._groups = groups_of(keys)
        self._copies = copies
        self._draws: dict[DeviceId, list[int]] = {}
        self._roster: dict[DeviceId, int] = {}
        self._shares: dict[DeviceId, int] = {}

    def shares(self, uptimes: Mapping[DeviceId, int]) -> Mapping[DeviceId, int]:
        """What each of these devices is to keep, as a bit field; ``uptimes`` are their classes."""
        roster = {device: presumed(uptimes[device]) for device in sorted(uptimes)}
        if roster != self._roster:
            self._draw(roster)
            shares = dict.fromkeys(roster, 0)
            for place, (_, bits) in enumerate(self._groups):
                order = self._order(place, roster)
                for device in order[: copies_for([roster[each] for each in order], self._copies)]:
                    shares[device] |= bits
            self._roster, self._shares = roster, shares
        return self._shares

    def heirs(self, bits: int, uptimes: Mapping[DeviceId, int], rank: int = 0) -> dict[DeviceId, int]:
        """Who of these is to take the chunks in ``bits`` over: the device at place ``rank`` of each group's order."""
        roster = {device: presumed(uptimes[device]) for device in sorted(uptimes)}
        self._draw(roster)
        found: dict[DeviceId, int] = {}
        for place, (_, group) in enumerate(self._groups if roster else ()):
            if bits & group:
                order = self._order(place, roster)
                heir = order[min(rank, len(order) - 1)]
                found[heir] = found.get(heir, 0) | bits & group
        return found

    def _draw(self, roster: Mapping[DeviceId, int]) -> None:
        for device in roster:
            if device not in self._draws:
                self._draws[device] = [unweighted(device, name) for name, _ in self._groups]
        # Who has gone may come back; but a stream of new devices does not grow this for ever.
        for gone in [device for device in self._draws if device not in roster][: -max(2 * len(roster), 8)]:
            del self._draws[gone]

    def _order(self, place: int, roster: Mapping[DeviceId, int]) -> list[DeviceId]:
        ranked = sorted((self._draws[device][place] * handicap(roster[device]), device) for device in roster)
        return [device for _, device in ranked]
