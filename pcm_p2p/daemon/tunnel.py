"""The tunnel: carries what a device without a route says to the desk, and back (``enrolment.passage``).

It sees ciphertext. It connects to no place but the desks of the signed fleet document, so it is no proxy for anybody; and it is
bounded in number, size and time, in all and for each source, so that who knocks all day gets little.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from pcm_p2p.enrolment.passage import (
    BURST,
    BYTES,
    CONNECT_TIMEOUT_S,
    EACH_MAX,
    PASSAGE_TIMEOUT_S,
    PASSAGES_MAX,
    PREAMBLE,
    PREAMBLE_TIMEOUT_S,
    RATE_PER_S,
    SIZE_BYTES_MAX,
    Word,
)
from pcm_p2p.wire.doorkeeper import Doorkeeper

PIECE_SIZE_BYTES = 64 << 10
DRAIN_S = 2.0
"""Choice: once one side has ended, the other gets this long to finish."""

log = logging.getLogger(__name__)


@dataclass
class TunnelStatistics:
    """Since the start: passages that were opened, ones that were refused, and bytes in both directions."""

    opened: int = 0
    refused: int = 0
    carried_bytes: int = 0


class Tunnel:
    """``desks`` gives host and port of the desks of the signed fleet document, in order."""

    def __init__(self, desks: Callable[[], Sequence[tuple[str, int]]], *, willing: bool = True) -> None:
        self.statistics = TunnelStatistics()
        self._desks = desks
        self._willing = willing
        self._open = 0
        self._doorkeeper = Doorkeeper(
            at_once_max=2 * PASSAGES_MAX,
            each_at_once_max=EACH_MAX,
            burst=BURST,
            rate_per_s=RATE_PER_S,
            loopback_is_exempt=True,
        )

    async def serve(self, device: trio.SocketStream, host: str) -> None:
        """One connection that does not begin with TLS; ``host`` is where it comes from. The caller closes it."""
        if self._doorkeeper.enter(host, trio.current_time()):
            self.statistics.refused += 1
            return
        try:
            with trio.move_on_after(PASSAGE_TIMEOUT_S):
                await self._serve(device, host)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # either end may go at any time
        finally:
            self._doorkeeper.leave(host, proved=False)

    async def _serve(self, device: trio.SocketStream, host: str) -> None:
        if not await _hears_preamble(device):
            self.statistics.refused += 1
            return
        refusal: Word | None = None if self._willing else "unwilling"
        if self._open >= PASSAGES_MAX:
            refusal = "busy"
        self._open += 1  # a place while connecting, too
        try:
            word, desk = (refusal, None) if refusal is not None else await self._connect()
            if desk is None:
                self.statistics.refused += 1
                await device.send_all(BYTES[word])
                return
            await self._pass(device, desk, host)
        finally:
            self._open -= 1

    async def _pass(self, device: trio.SocketStream, desk: trio.SocketStream, host: str) -> None:
        self.statistics.opened += 1
        carried_before = self.statistics.carried_bytes
        try:
            await device.send_all(BYTES["open"])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry, device, desk, nursery.cancel_scope)
                nursery.start_soon(self._carry, desk, device, nursery.cancel_scope)
        finally:
            await trio.aclose_forcefully(desk)
            log.info("carried %d bytes between %s and the desk", self.statistics.carried_bytes - carried_before, host)

    async def _connect(self) -> tuple[Word, trio.SocketStream | None]:
        desks = self._desks()
        for host, port in desks:
            with trio.move_on_after(CONNECT_TIMEOUT_S):
                try:
                    return "open", await trio.open_tcp_stream(host, port)
                except (OSError, UnicodeError) as error:  # UnicodeError: a host that no name can have
                    log.info("the desk at %s:%d cannot be reached for a neighbour: %s", host, port, error)
        return ("no route" if desks else "no desk"), None

    async def _carry(self, source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
        """Pass bytes one way until the source ends or the bound is reached; then the other way has little time left."""
        size_bytes = 0
        try:
            while size_bytes < SIZE_BYTES_MAX:
                data = await source.receive_some(min(PIECE_SIZE_BYTES, SIZE_BYTES_MAX - size_bytes))
                if not data:
                    await sink.send_eof()
                    break
                size_bytes += len(data)
                await sink.send_all(data)
                self.statistics.carried_bytes += len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            both.cancel()
        both.deadline = min(both.deadline, trio.current_time() + DRAIN_S)


async def _hears_preamble(device: trio.SocketStream) -> bool:
    """Read it and not a byte more: what follows is the desk's."""
    heard = b""
    with trio.move_on_after(PREAMBLE_TIMEOUT_S):
        while len(heard) < len(PREAMBLE) and PREAMBLE.startswith(heard):
            data = await device.receive_some(len(PREAMBLE) - len(heard))
            if not data:
                return False
            heard += data
    return heard == PREAMBLE
