"""What waits to be written on a session: control frames first, then the answers that are under way, piece by piece in turn."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import trio

from pcm_p2p.wire.framing import BULK_PIECE_SIZE_BYTES, encode_bulk

CONTROL_QUEUE_MAX = 1_024
CONTROL_QUEUE_BYTES_MAX = 4 << 20
WRITE_SIZE_BYTES = 256 << 10
"""Choice: control frames are joined up to this size, so that a burst of small ones is one write."""


@dataclass(slots=True)
class Part:
    """Bytes of an answer that the writer cuts into pieces; ``last`` says whether they end the answer."""

    request: int
    view: memoryview
    last: bool
    written: trio.Event


class Outgoing:
    """The queue between those who send and the one task that writes. Counts the bytes it gave out, by kind."""

    def __init__(self) -> None:
        self.control_bytes = 0
        self.bulk_bytes = 0
        self._control: deque[bytes] = deque()
        self._control_waiting_bytes = 0
        self._parts: deque[Part] = deque()
        self._wanted = trio.Event()

    def has_room_for(self, frame: bytes) -> bool:
        """Whether one more control frame fits; if not, the peer does not read."""
        fits = self._control_waiting_bytes + len(frame) <= CONTROL_QUEUE_BYTES_MAX
        return fits and len(self._control) < CONTROL_QUEUE_MAX

    def put_control(self, frame: bytes) -> None:
        self._control.append(frame)
        self._control_waiting_bytes += len(frame)
        self._wanted.set()

    async def write_part(self, request: int, view: memoryview, *, last: bool) -> None:
        """Queue a part of an answer and wait until the writer has taken all of it (it ends the session if it cannot)."""
        part = Part(request, view, last, trio.Event())
        self._parts.append(part)
        self._wanted.set()
        await part.written.wait()

    def next_write(self) -> bytes | None:
        """All control frames that wait, up to a bound; else one piece of the answer whose turn it is; None if there is none."""
        if self._control:
            return self._joined_control()
        if self._parts:
            return self._next_piece()
        return None

    async def wait(self) -> None:
        """Return when there may be something to write. Only after ``next_write`` gave None."""
        self._wanted = trio.Event()
        await self._wanted.wait()

    def _joined_control(self) -> bytes:
        frames = [self._control.popleft()]
        size = len(frames[0])
        while self._control and size + len(self._control[0]) <= WRITE_SIZE_BYTES:
            frames.append(self._control.popleft())
            size += len(frames[-1])
        self._control_waiting_bytes -= size
        self.control_bytes += size
        return b"".join(frames)

    def _next_piece(self) -> bytes:
        part = self._parts.popleft()
        piece, part.view = part.view[:BULK_PIECE_SIZE_BYTES], part.view[BULK_PIECE_SIZE_BYTES:]
        self.bulk_bytes += len(piece)
        if part.view:
            self._parts.append(part)
        else:
            part.written.set()
        return encode_bulk(part.request, piece, last=part.last and not part.view)
