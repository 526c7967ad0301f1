"""A real HTTP server on loopback that does what it is told to each request in turn: faults that real origins have."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import trio

Answer = Callable[[bytes, int], bytes | None]
"""From the file and the offset asked for to the whole answer on the wire; None closes the connection."""


def ok(body: bytes, start: int) -> bytes:
    if start:
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{len(body) - 1}/{len(body)}\r\n"
        return head.encode() + f"Content-Length: {len(body) - start}\r\n\r\n".encode() + body[start:]
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def without_ranges(body: bytes, start: int) -> bytes:
    return ok(body, 0)


def status(code: int, *headers: str) -> Answer:
    head = "".join(f"{header}\r\n" for header in headers)
    return lambda body, start: f"HTTP/1.1 {code} No\r\nContent-Length: 2\r\n{head}\r\nno".encode()


def cut_after(size: int) -> Answer:
    """Breaks off ``size`` body bytes into the answer."""

    def answer(body: bytes, start: int) -> bytes:
        whole = ok(body, start)
        return whole[: whole.index(b"\r\n\r\n") + 4 + size]

    return answer


def wrong(body: bytes, start: int) -> bytes:
    return ok(bytes(byte ^ 1 for byte in body), start)


def captive_portal(body: bytes, start: int) -> bytes:
    return ok(b"<html>Please log in</html>", 0)


def other_range(body: bytes, start: int) -> bytes:
    return ok(body, start).replace(f"bytes {start}-".encode(), f"bytes {start + 1}-".encode())


def too_long(body: bytes, start: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body + b"more"


def hang_up(body: bytes, start: int) -> None:
    return None


@dataclass
class FaultyOrigin:
    """``script`` are answers for the next requests; then ``otherwise``. ``drip_s`` waits that long between pieces of 100
    bytes. ``asked`` keeps (path, offset) of every request, ``body_bytes`` what went into sockets after the heads."""

    files: dict[str, bytes]
    script: list[Answer] = field(default_factory=list)
    otherwise: Answer = ok
    drip_s: float = 0.0
    asked: list[tuple[str, int]] = field(default_factory=list)
    body_bytes: int = 0
    url: str = ""

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[FaultyOrigin]:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            nursery.start_soon(trio.serve_listeners, self._connection, listeners)
            yield self
            nursery.cancel_scope.cancel()

    async def _connection(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            waiting = b""
            while True:
                while b"\r\n\r\n" not in waiting:
                    received = await stream.receive_some()
                    if not received:
                        return
                    waiting += received
                head, _, waiting = waiting.partition(b"\r\n\r\n")
                if not await self._answer(stream, head.decode()):
                    await stream.aclose()
                    return

    async def _answer(self, stream: trio.SocketStream, head: str) -> bool:
        path = head.split(" ")[1].removeprefix("/")
        asked = re.search(r"(?i)^range: bytes=(\d+)-$", head, re.MULTILINE)
        start = int(asked[1]) if asked else 0
        self.asked.append((path, start))
        body = self.files.get(path)
        answer = self.script.pop(0) if self.script else self.otherwise
        whole = answer(body, start) if body is not None else status(404)(b"", 0)
        if whole is None:
            return False
        self.body_bytes += len(whole) - whole.index(b"\r\n\r\n") - 4
        for at in range(0, len(whole), 100 if self.drip_s else len(whole)):
            await stream.send_all(whole[at : at + (100 if self.drip_s else len(whole))])
            if self.drip_s:
                await trio.sleep(self.drip_s)
        promised = re.search(rb"Content-Length: (\d+)", whole)
        return bool(promised) and int(promised[1]) == len(whole) - whole.index(b"\r\n\r\n") - 4
