"""Server-sent events: the browser is told that the archive has changed, and asks for the page again.

An event's id is the archive's change count. A browser that comes back names the last one it saw and is told at once if there
was another meanwhile, so nothing is missed. All streams share one look at the archive a second.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import trio

from pcm_p2p.collector.snapshot import open_snapshot
from pcm_p2p.errors import PcmError

LOOK_S = 1.0
HEARTBEAT_S = 15.0
"""Choice: proxies close a connection that is silent for half a minute or more."""
STREAM_LIFETIME_S = 3_600.0
"""Choice: then the browser connects again, and shows its session once more."""
STREAMS_MAX = 64


class Watch:
    """The archive's change count, looked up at most once in ``LOOK_S`` for everybody."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._lock = trio.Lock()
        self._looked_s = float("-inf")
        self._changes = 0
        self.streams = 0

    async def changes(self) -> int:
        """The count, at most ``LOOK_S`` old; the last known one while the archive cannot be read."""
        async with self._lock:
            if trio.current_time() - self._looked_s >= LOOK_S:
                self._changes = await trio.to_thread.run_sync(self._look)
                self._looked_s = trio.current_time()
            return self._changes

    def _look(self) -> int:
        try:
            with open_snapshot(self._archive, 0) as snapshot:
                return snapshot.changes()
        except PcmError:
            return self._changes

    async def stream(self, seen: int | None, still_allowed: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Lines of an event stream. ``seen`` is the id the browser saw last, or ``None`` if this is its first connection."""
        self.streams += 1
        try:
            last = await self.changes() if seen is None else seen
            yield f"retry: 2000\nid: {last}\nevent: hello\ndata: {last}\n\n".encode()
            started_s = beat_s = trio.current_time()
            while trio.current_time() - started_s < STREAM_LIFETIME_S and still_allowed():
                now = await self.changes()
                if now != last:
                    last = now
                    beat_s = trio.current_time()
                    yield f"id: {last}\nevent: archive\ndata: {last}\n\n".encode()
                elif trio.current_time() - beat_s >= HEARTBEAT_S:
                    beat_s = trio.current_time()
                    yield b": still here\n\n"
                await trio.sleep(LOOK_S)
        finally:
            self.streams -= 1


def seen_untrusted(header: str | None) -> int | None:
    """The id in a ``Last-Event-ID`` header; anything that is not one of ours is as good as none."""
    return int(header) if header and len(header) <= 15 and header.isascii() and header.isdigit() else None
