"""Rate limits. ``TokenBucket`` is the core; ``Pace`` waits for it in trio.

A taker may overdraw: it gets its bytes at once in the books and is told how long to wait, so that takers are served in
the order in which they came and a piece larger than the burst needs no cutting. Rates are bytes a second; 0 is no limit.
"""

from __future__ import annotations

import trio

NS_PER_S = 1_000_000_000
BURST_S = 0.1
"""Choice: a tenth of a second of traffic may pass at once; more would be felt by telephony on the same link."""
BURST_BYTES_MIN = 64 << 10


class TokenBucket:
    """``burst_bytes`` 0: a tenth of a second of the rate, at least ``BURST_BYTES_MIN``."""

    def __init__(self, rate_bytes_per_s: int, burst_bytes: int = 0, *, now_ns: int = 0) -> None:
        self.rate_bytes_per_s = rate_bytes_per_s
        self.burst_bytes = burst_bytes or max(int(rate_bytes_per_s * BURST_S), BURST_BYTES_MIN)
        self._level_bytes = float(self.burst_bytes)
        self._at_ns = now_ns

    def take(self, size_bytes: int, now_ns: int) -> int:
        """Take them; returns how many ns to wait before using them. Time that goes backwards adds nothing."""
        if not self.rate_bytes_per_s:
            return 0
        passed_ns = max(0, now_ns - self._at_ns)
        self._at_ns = max(self._at_ns, now_ns)
        refilled = self._level_bytes + passed_ns * self.rate_bytes_per_s / NS_PER_S
        self._level_bytes = min(float(self.burst_bytes), refilled) - size_bytes
        if self._level_bytes >= 0:
            return 0
        return int(-self._level_bytes * NS_PER_S / self.rate_bytes_per_s)


class Pace:
    """A limit that several transfers share. A cancelled ``take`` has taken its bytes; the next one waits the longer."""

    def __init__(self, rate_bytes_per_s: int, burst_bytes: int = 0) -> None:
        self._bucket = TokenBucket(rate_bytes_per_s, burst_bytes)

    @property
    def rate_bytes_per_s(self) -> int:
        return self._bucket.rate_bytes_per_s

    def change(self, rate_bytes_per_s: int) -> None:
        """Limit to this rate from now on; who waits already waits as long as was said."""
        if rate_bytes_per_s != self._bucket.rate_bytes_per_s:
            self._bucket = TokenBucket(rate_bytes_per_s)

    async def take(self, size_bytes: int, /) -> None:
        """Return when ``size_bytes`` may pass."""
        if not self._bucket.rate_bytes_per_s:
            await trio.lowlevel.checkpoint()
            return
        wait_ns = self._bucket.take(size_bytes, int(trio.current_time() * NS_PER_S))
        await trio.sleep(wait_ns / NS_PER_S)
