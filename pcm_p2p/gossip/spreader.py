"""The shell around ``spread``: digests from and to the sessions, attempts handed to whoever verifies metadata."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Collection
from random import Random
from typing import Any, Protocol

import trio

from pcm_p2p.errors import TransferError
from pcm_p2p.gossip.peer import PeerDown, PeerUp
from pcm_p2p.gossip.spread import (
    Attempt,
    AttemptEnded,
    DigestHeard,
    Effect,
    Ending,
    Event,
    Fork,
    OwnChanged,
    PeerArrived,
    PeerLeft,
    SendDigest,
    Spread,
    Tick,
)
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.messages import Digest, Message
from pcm_p2p.wire.session import SessionClosed

TICK_S = 1.0
ATTEMPT_TIMEOUT_S = 120.0
"""Choice: metadata is small; the peer's least rate ends most stalls much earlier."""
FORKS_MAX = 16
"""Choice: a few documents are evidence enough."""

_log = logging.getLogger(__name__)


class Sessions(Protocol):
    """What this shell needs of the overlay."""

    def register(self, message_type: type[Message], handler: Callable[[DeviceId, Any], Awaitable[None]], /) -> None: ...
    def watch(self, watcher: Callable[[PeerUp | PeerDown], Awaitable[None]], /) -> None: ...
    async def send(self, device: DeviceId, message: Message, /) -> None: ...
    async def broadcast(self, message: Message, except_: Collection[DeviceId] = ..., /) -> None: ...


class Spreader:
    """Make it before the overlay runs, then ``run`` it in a nursery.

    ``attempt(device)`` pulls and verifies the metadata of a peer and says how it ended; if it was good, the caller has called
    ``own_changed`` before it returns. For a fork the same is called, and its ending is ignored. It may raise a
    ``TransferError``, which counts as incomplete. Attempts run one at a time.
    """

    def __init__(
        self, sessions: Sessions, own: Digest, attempt: Callable[[DeviceId], Awaitable[Ending]], *, rng: Random
    ) -> None:
        self._sessions = sessions
        self._attempt = attempt
        self._core = Spread(own, rng)
        self._wanted_in, self._wanted_out = trio.open_memory_channel[Attempt | Fork](FORKS_MAX + 1)
        sessions.register(Digest, self._digest_heard)
        sessions.watch(self._peer)

    def newest_heard(self) -> int:
        """The highest timestamp version that a present peer claims; 0 if none does."""
        return self._core.newest_heard()

    async def own_changed(self, digest: Digest) -> None:
        """This device trusts something else now: tell everybody."""
        await self._fold(OwnChanged(digest))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Attempt and repair until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time)
            task_status.started()
            async for wanted in self._wanted_out:
                ending: Ending = "incomplete"
                with trio.move_on_after(ATTEMPT_TIMEOUT_S):
                    try:
                        ending = await self._attempt(wanted.device)
                    except (OSError, TransferError) as error:
                        _log.info("metadata of %s: %s", wanted.device.short, error)
                if isinstance(wanted, Attempt):
                    await self._fold(AttemptEnded(wanted.device, ending))

    async def _keep_time(self) -> None:
        while True:
            await trio.sleep_until(math.floor(trio.current_time()) + TICK_S)  # together with other timers
            await self._fold(Tick())

    async def _peer(self, event: PeerUp | PeerDown) -> None:
        await self._fold(PeerArrived(event.peer.device_id) if isinstance(event, PeerUp) else PeerLeft(event.device_id))

    async def _digest_heard(self, device: DeviceId, digest: Digest) -> None:
        await self._fold(DigestHeard(device, digest))

    async def _fold(self, event: Event) -> None:
        for effect in self._core.handle(event, int(trio.current_time() * 1_000)):
            await self._perform(effect)

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case SendDigest(digest, None):
                await self._sessions.broadcast(digest)
            case SendDigest(digest, device) if device is not None:
                with contextlib.suppress(SessionClosed):
                    await self._sessions.send(device, digest)
            case Attempt() | Fork():
                if isinstance(effect, Fork):
                    _log.warning("%s trusts another timestamp %d", effect.device.short, effect.digest.timestamp)
                    if self._wanted_in.statistics().current_buffer_used >= FORKS_MAX:
                        return
                self._wanted_in.send_nowait(effect)  # there is room: of attempts there is one at a time
