"""Announcements on their way out: one queue, emptied by one task, so that they leave in the order in which they were made."""

from __future__ import annotations

import contextlib
from collections import deque

import trio

from pcm_p2p.errors import TransferError
from pcm_p2p.swarm.events import Broadcast, Send
from pcm_p2p.swarm.peers import Peers

WAITING_MAX = 4_096


class Announcer:
    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._waiting: deque[Send | Broadcast] = deque()
        self._filled = trio.Event()

    def say(self, message: Send | Broadcast) -> None:
        if len(self._waiting) >= WAITING_MAX:
            # Sessions are not taking anything; the holdings of each minute repair what is dropped here.
            self._waiting.popleft()
        self._waiting.append(message)
        self._filled.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._filled.wait()
            self._filled = trio.Event()
            while self._waiting:
                item = self._waiting.popleft()
                # A session that ends meanwhile is told as ``peer_down``.
                with contextlib.suppress(TransferError):
                    if isinstance(item, Send):
                        await self._peers.send(item.device, item.message)
                    else:
                        await self._peers.broadcast(item.message, besides=item.besides)
