"""A published tree over HTTP on loopback that has the faults of real origins, and remembers what it sent to whom asked."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import trio
from free_port import free_port

Fault = Literal["none", "missing", "error", "truncated", "wrong", "stalled"]
BLOCK_BYTES = 16 << 10


@dataclass
class OriginWithFaults:
    """``fault`` befalls answers whose path starts with ``where``. ``allowance_bytes`` of segments are sent, then it stalls."""

    folder: Path
    fault: Fault = "none"
    where: str = "segments/"
    allowance_bytes: int | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    _open: trio.CancelScope | None = None
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def segment_bytes(self) -> int:
        return sum(size for path, size in self.sent.items() if path.startswith("segments/"))

    @property
    def segments_asked(self) -> list[tuple[str, int]]:
        return [(path, start) for path, start in self.asked if path.startswith("segments/")]

    def forget(self) -> None:
        self.asked.clear()
        self.sent.clear()

    def heal(self) -> None:
        self.fault, self.allowance_bytes = "none", None
        self._changed.set()
        self._changed = trio.Event()

    def close(self) -> None:
        """As if the machine were off: nobody listens, and every connection ends."""
        if self._open is not None:
            self._open.cancel()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until ``close``, after which it can be called again."""
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        with trio.CancelScope() as self._open:
            task_status.started()
            await trio.serve_listeners(self._connection, listeners)

    async def _connection(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                waiting = b""
                while True:
                    while b"\r\n\r\n" not in waiting:
                        received = await stream.receive_some()
                        if not received:
                            return
                        waiting += received
                    head, _, waiting = waiting.partition(b"\r\n\r\n")
                    if not await self._answer(stream, head.decode()):
                        return

    async def _answer(self, stream: trio.SocketStream, head: str) -> bool:
        path = head.split(" ")[1].lstrip("/")
        ranged = re.search(r"(?i)^range: bytes=(\d+)-\r?$", head, re.MULTILINE)
        start = int(ranged[1]) if ranged else 0
        self.asked.append((path, start))
        fault = self.fault if path.startswith(self.where) else "none"
        file = self.folder / path
        if fault == "error":
            await stream.send_all(b"HTTP/1.1 503 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            return True
        if fault == "missing" or not file.is_file():
            await stream.send_all(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
            return True
        body = file.read_bytes()
        end, size = len(body), len(body)
        if fault == "wrong":
            body = bytes(byte ^ 1 for byte in body)
        if fault == "truncated":
            end = start + (size - start) // 2
        status = f"206 P\r\nContent-Range: bytes {start}-{size - 1}/{size}" if start else "200 OK"
        await stream.send_all(f"HTTP/1.1 {status}\r\nContent-Length: {size - start}\r\n\r\n".encode())
        if fault == "stalled":
            await self._changed.wait()
            return False
        for at in range(start, end, BLOCK_BYTES):
            block = body[at : min(end, at + BLOCK_BYTES)]
            while path.startswith("segments/") and self._exhausted():
                await self._changed.wait()
            await stream.send_all(block)
            self.sent[path] = self.sent.get(path, 0) + len(block)
        return end == size

    def _exhausted(self) -> bool:
        return self.allowance_bytes is not None and self.segment_bytes >= self.allowance_bytes
