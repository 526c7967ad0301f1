"""When I may start which open run: since when it is open, and how long my rank waits. Core.

*Open* is a run that is needed and that nobody claims. Its clock starts anew whenever it opens again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm import rendezvous
from pcm_p2p.swarm.prices import SegmentRun
from pcm_p2p.swarm.troubles import Troubles
from pcm_p2p.swarm.turns import Turns

JITTER_MS = 100  # gossip-scale.md 1.5 rule 1
LEAVES_MS = 1_000  # choice: as often as claims are renewed
_LAYOUT, _GOES_ON = -2, -1
"""Before rank 0: what is small and waited for, then what I have a part of."""


class Agenda:
    def __init__(self, me: DeviceId, segments: Sequence[SegmentRun], troubles: Troubles, rng: random.Random) -> None:
        self._me, self._troubles = me, troubles
        self._open_since_ms: dict[int, int] = {}
        self._jitter_ms = {segment.index: rng.randrange(JITTER_MS) for segment in segments}

    def begin_anew(self) -> None:
        """All clocks: the roster has settled."""
        self._open_since_ms.clear()

    def opened(self, indexes: Iterable[int], now_ms: int) -> None:
        """Nobody claims these any more, or they have failed: the time for who may take them starts, after their rest."""
        for index in indexes:
            self._open_since_ms[index] = max(now_ms, self._troubles.rests_until_ms(index))

    def ready(
        self,
        open_now: Sequence[SegmentRun],
        turns: Turns,
        goes_on: Callable[[SegmentRun, DeviceId], bool],
        now_ms: int,
        times: list[int],
    ) -> list[tuple[int, int]]:
        """What may be started, as (rank, index), best first; ``times`` get when others come to be.

        ``goes_on`` tells whether I have a part of a run and go before its owner for that.
        """
        # What is no longer open is forgotten.
        self._open_since_ms = {segment.index: self._open_since_ms.get(segment.index, now_ms) for segment in open_now}
        ready: list[tuple[int, int, int]] = []
        for segment in open_now:
            if turns.leaves(segment):
                # From when they are done with what they have, they get the time that others would.
                self._open_since_ms[segment.index] = now_ms
                times.append(now_ms + LEAVES_MS)
                continue
            order = turns.order(segment)
            rank, start_ms = order.index(self._me), self._open_since_ms[segment.index]
            if goes_on(segment, order[0]):
                rank = _GOES_ON
            else:
                start_ms += turns.wait_ms(order) + self._jitter_ms[segment.index]
            start_ms = max(start_ms, self._troubles.rests_until_ms(segment.index))
            if start_ms > now_ms:
                times.append(start_ms)
            else:
                ready.append((_LAYOUT if segment.aid else rank, rendezvous.cost(self._me, segment.key), segment.index))
        return [(rank, index) for rank, _, index in sorted(ready)]
