"""A request of ours that waits for its answer: what has come, when it is complete, and when to give up."""

from __future__ import annotations

import trio

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.wire.framing import BulkFrame


class Pending:
    """One request. Ends once: complete, or failed with an error that ``answer`` raises."""

    __slots__ = ("_error", "_pieces", "asked_at", "ended", "heard_at", "size_bytes", "size_bytes_max")

    def __init__(self, size_bytes_max: int) -> None:
        self.size_bytes_max = size_bytes_max
        self.size_bytes = 0
        self.asked_at = self.heard_at = trio.current_time()
        self.ended = trio.Event()
        self._pieces: list[bytes] = []
        self._error: Exception | None = None

    def take(self, frame: BulkFrame, now: float) -> None:
        """The next piece of the answer. One that exceeds the bound fails the request."""
        if self.ended.is_set():
            return
        self.heard_at = now
        self.size_bytes += len(frame.data)
        if self.size_bytes > self.size_bytes_max:
            self.fail(UntrustedBytes(f"the answer is longer than {self.size_bytes_max} bytes"))
            return
        self._pieces.append(frame.data)
        if frame.last:
            self.ended.set()

    def fail(self, error: Exception) -> None:
        if not self.ended.is_set():
            self._error = error
            self._pieces.clear()
            self.ended.set()

    def answer(self) -> bytes:
        """The whole answer, after ``ended``; raises what it failed with."""
        if self._error is not None:
            raise self._error
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    async def wait(self, timeout_s: float, rate_bytes_per_s_min: int) -> bool:
        """Wait for the end. False: no byte for ``timeout_s``, or ``timeout_s`` after the request the mean rate is too low."""
        while True:
            deadline = self.heard_at + timeout_s
            if rate_bytes_per_s_min > 0:
                deadline = min(deadline, self.asked_at + max(timeout_s, (self.size_bytes + 1) / rate_bytes_per_s_min))
            if deadline <= trio.current_time():
                return False
            with trio.move_on_at(deadline):
                await self.ended.wait()
                return True
