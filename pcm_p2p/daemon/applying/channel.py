"""The channel between the network's daemon and the apply service: messages and bytes over one Unix socket, with deadlines.

Both ends use it. Whatever the other side does wrong ends in ``ChannelClosed``: it closed, it was too slow, it said something that
does not fit. No open file is ever taken from a message: nothing here asks the kernel for them, so it drops those that are sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import trio

from pcm_p2p.apply.dialogue import LENGTH_BYTES, Bring, Brought, Request, Said, encode, length_untrusted
from pcm_p2p.errors import StorageError, TransferError, UntrustedBytes

T = TypeVar("T")

STALL_S = 30.0
"""Choice: both ends are on one machine; a disk that spins up takes seconds."""
RATE_BYTES_PER_S_MIN = 512 << 10
"""Choice: a slow memory card reads ten times as fast."""
PIECE_BYTES = 1 << 20

_CREDENTIALS = struct.Struct("3i")


class ChannelClosed(TransferError):
    """The other side of the channel is gone, too slow, or not understood."""


class Channel:
    """One connection. Not for two tasks at once."""

    def __init__(self, stream: trio.SocketStream, *, size_bytes_max: int, stall_s: float = STALL_S) -> None:
        self._stream = stream
        self._size_bytes_max = size_bytes_max
        self._stall_s = stall_s
        self._buffer = bytearray()

    async def say(self, message: Request | Brought | Said) -> None:
        await self._send(encode(message))

    async def hear(self, decode: Callable[[bytes], T], *, timeout_s: float | None = None) -> T:
        """The next message. ``timeout_s`` None: as long as a stall may last; infinite: as long as it takes."""
        try:
            with _deadline(self._stall_s if timeout_s is None else timeout_s, "said nothing"):
                length = length_untrusted(bytes(await self._exactly(LENGTH_BYTES)), self._size_bytes_max)
                body = bytes(await self._exactly(length))
            return decode(body)
        except UntrustedBytes as error:
            raise ChannelClosed(f"the other side is not understood: {error.message}") from None

    async def take(self, size_bytes: int, keep: Callable[[bytes], None]) -> None:
        """Give the next ``size_bytes`` bytes to ``keep``, in pieces and in a worker thread, which may raise."""
        left = size_bytes
        with _deadline(self._stall_s + size_bytes / RATE_BYTES_PER_S_MIN, f"did not send {size_bytes} bytes"):
            while left:
                with _deadline(self._stall_s, "stopped in the middle"):
                    piece = await self._exactly(min(left, PIECE_BYTES))
                left -= len(piece)
                await trio.to_thread.run_sync(keep, bytes(piece))

    async def give(self, data: bytes) -> None:
        """``Bring``, and the bytes."""
        await self.say(Bring(len(data)))
        for at in range(0, len(data), PIECE_BYTES):
            await self._send(data[at : at + PIECE_BYTES])

    async def give_file(self, path: Path) -> None:
        """``Bring``, and the bytes of a file of our own. Raises ``OSError``, or ``StorageError`` if it shrinks meanwhile."""
        descriptor = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            left = os.fstat(descriptor).st_size
            await self.say(Bring(left))
            while left:
                piece = await trio.to_thread.run_sync(os.read, descriptor, min(left, PIECE_BYTES))
                if not piece:
                    raise StorageError(f"{path} became shorter while it was sent")
                await self._send(piece)
                left -= len(piece)
        finally:
            os.close(descriptor)

    async def _send(self, data: bytes) -> None:
        with _deadline(self._stall_s, "does not listen"):
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise ChannelClosed("the other side has closed the connection") from None

    async def _exactly(self, size_bytes: int) -> bytearray:
        while len(self._buffer) < size_bytes:
            try:
                data = await self._stream.receive_some(PIECE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                raise ChannelClosed("the other side has closed the connection")
            self._buffer += data
        if len(self._buffer) == size_bytes:
            taken, self._buffer = self._buffer, bytearray()
            return taken
        taken = self._buffer[:size_bytes]
        del self._buffer[:size_bytes]
        return taken


@contextlib.contextmanager
def _deadline(seconds: float, what: str) -> Iterator[None]:
    """``ChannelClosed`` instead of a wait without end."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise ChannelClosed(f"the other side {what} within {seconds:g} s")


def uid_of_peer(connection: trio.socket.SocketType | socket.socket) -> int:
    """The user that opened the other end, as the kernel knows it (SO_PEERCRED)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return int(uid)
