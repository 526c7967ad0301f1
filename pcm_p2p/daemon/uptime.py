"""How much of the last two weeks this device was up, as it has seen itself: what the cooperative cache weighs it by.

The spans in which a daemon ran are kept in a small file, extended every ``SAVE_INTERVAL_S``: a crash or a power cut costs that
much of the last span. A break of less than ``BREAK_MS`` (a restart, an update) does not count as being off; sleep does, since the
wall clock goes on while nothing is observed. A clock that was set back drops the spans that lie in its future.

``share`` is in sixteenths. A day at ``swarm.keepers.UPTIME_PRESUMED`` is added to what was observed, so that an hour's
observation says little. The daemon announces what it was at its start, the same to all its neighbours.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from pcm_p2p.durable import write_atomic
from pcm_p2p.swarm.keepers import UPTIME_MAX, UPTIME_PRESUMED

log = logging.getLogger(__name__)

WINDOW_MS = 14 * 24 * 3_600_000
"""Spec: the last 14 days."""
SAVE_INTERVAL_S = 300.0
"""Choice: a small file and a flush every five minutes."""
BREAK_MS = 600_000
"""Choice: two savings, and so the largest error of a restart after a crash."""
PRESUMED_MS = 24 * 3_600_000


class Span(msgspec.Struct, array_like=True):
    """Milliseconds since the epoch."""

    from_ms: int
    to_ms: int


class Uptime:
    """``wall_ms`` reads the wall clock. A file that is missing or torn starts the observation anew."""

    def __init__(self, path: Path, wall_ms: Callable[[], int]) -> None:
        self._path, self._wall_ms = path, wall_ms
        self._spans: list[Span] = []
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            self._spans = msgspec.json.decode(path.read_bytes(), type=list[Span])
        self.observe()

    def observe(self) -> None:
        """The device is up at this moment."""
        now_ms = self._wall_ms()
        spans: list[Span] = []
        for span in sorted(self._spans, key=lambda span: span.from_ms):
            from_ms, to_ms = max(span.from_ms, now_ms - WINDOW_MS), min(span.to_ms, now_ms)
            if from_ms > to_ms:
                continue
            if spans and from_ms - spans[-1].to_ms < BREAK_MS:
                spans[-1].to_ms = max(spans[-1].to_ms, to_ms)
            else:
                spans.append(Span(from_ms, to_ms))
        if spans and now_ms - spans[-1].to_ms < BREAK_MS:
            spans[-1].to_ms = now_ms
        else:
            spans.append(Span(now_ms, now_ms))
        self._spans = spans

    @property
    def share(self) -> int:
        """1 … 16 sixteenths of the time since the first observation, or of the last 14 days."""
        up_ms = sum(span.to_ms - span.from_ms for span in self._spans)
        observed_ms = self._spans[-1].to_ms - self._spans[0].from_ms
        sixteenths = UPTIME_MAX * up_ms + UPTIME_PRESUMED * PRESUMED_MS
        whole = observed_ms + PRESUMED_MS
        return min(max((2 * sixteenths + whole) // (2 * whole), 1), UPTIME_MAX)

    def save(self) -> None:
        """Blocking. A disk that refuses costs the observation, never the daemon."""
        try:
            write_atomic(self._path, msgspec.json.encode(self._spans), mode=0o600)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)

    async def run(self) -> None:
        """Observe and save until cancelled."""
        while True:
            self.observe()
            await trio.to_thread.run_sync(self.save)
            await trio.sleep(SAVE_INTERVAL_S)
