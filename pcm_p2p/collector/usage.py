"""What a device's byte counters mean: from cumulative counters in reports to differences that can be summed. A core.

Reports carry counters that only grow, until the device's state is lost and they start again. The archive keeps the counters of
each report; this core turns those of one device, one release and one epoch, in report order, into differences. A report that
arrives late is put between its neighbours, and only what follows it is worked out again.

A new epoch starts from zero: the device lost its state, or restored an older one. In the second case bytes are counted again,
which makes the savings look smaller, never larger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

COMPLETE_STATES = frozenset({"staged", "waiting", "applying", "applied", "rolled_back", "parked"})
"""Release states in which all bytes are on the device."""


class Counters(msgspec.Struct, frozen=True):
    """Bytes since the device was enrolled, or since it lost its state."""

    wan: int
    lan_in: int
    lan_out: int


NOTHING = Counters(0, 0, 0)


class Sample(msgspec.Struct, frozen=True):
    """The counters of the report with number ``seq``."""

    seq: int
    counters: Counters


def differences(samples: Iterable[Sample], *, before: Counters = NOTHING) -> Iterator[Sample]:
    """Each sample with its growth since the one before it; ``before`` are the counters ahead of the first.

    A counter below its predecessor was reset: all of it is new.
    """
    for sample in samples:
        now = sample.counters
        yield Sample(
            sample.seq,
            Counters(
                _growth(before.wan, now.wan), _growth(before.lan_in, now.lan_in), _growth(before.lan_out, now.lan_out)
            ),
        )
        before = now


def _growth(before: int, now: int) -> int:
    return now - before if now >= before else now


def was_downloaded(state: str, moved_bytes: int) -> bool:
    """Whether a plain download of the release would have happened by now: it is complete, and bytes of it moved.

    A release that was there before the product came would not have been downloaded, and is not counted as saved.
    """
    return state in COMPLETE_STATES and moved_bytes > 0
