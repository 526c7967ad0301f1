"""Serving chunks to neighbours: upload slots, rate limit, and a bounded queue in front of them.

Few slots finish a piece sooner, and a finished piece can be passed on (research/gossip-scale.md 1.4: 1 to 2 slots, 1.09
of the bound against 1.21 with four). A slot is held while the chunk is read and verified and while the rate limit makes
it wait; the session's own queue comes after.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from pcm_p2p.errors import PcmError
from pcm_p2p.ids import ChunkId, DeviceId
from pcm_p2p.swarm.origin import Pacing
from pcm_p2p.swarm.peers import Store, UploadRefused
from pcm_p2p.swarm.workers import Workers

WAITING_MAX = 64
WAITING_A_PEER_MAX = 8
"""Choice: above a full pipeline, so that one neighbour cannot fill the queue and none is refused needlessly."""
WAIT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class SeederStatistics:
    """Since the start. ``lan_out_bytes`` are sealed bytes handed to sessions."""

    lan_out_bytes: int = 0
    served: int = 0
    missing: int = 0
    busy: int = 0


class Seeder:
    def __init__(
        self, store: Store, *, upload_slots: int = 2, pace: Pacing | None = None, workers: Workers | None = None
    ) -> None:
        self._store, self._pace = store, pace
        self._slots = trio.CapacityLimiter(upload_slots)
        self._workers = workers or Workers(upload_slots)
        self._waiting: dict[DeviceId, int] = {}
        self._bytes = self._served = self._missing = self._busy = 0

    async def serve_chunk(self, device: DeviceId, chunk: ChunkId) -> bytes:
        """The sealed chunk. Raises ``UploadRefused``: missing, busy or error."""
        if sum(self._waiting.values()) >= WAITING_MAX or self._waiting.get(device, 0) >= WAITING_A_PEER_MAX:
            self._busy += 1
            raise UploadRefused("busy")
        if not self._store.has(chunk):
            self._missing += 1
            raise UploadRefused("missing")
        slot = object()
        await self._wait_for_slot(device, slot)
        try:
            sealed = await self._workers.run(self._store.get_sealed, chunk)
            if sealed is None:
                self._missing += 1
                raise UploadRefused("missing")
            if self._pace is not None:
                await self._pace.take(len(sealed))
        except UploadRefused:
            raise
        except PcmError as error:
            raise UploadRefused("error") from error
        finally:
            self._slots.release_on_behalf_of(slot)
        self._served += 1
        self._bytes += len(sealed)
        return sealed

    async def _wait_for_slot(self, device: DeviceId, slot: object) -> None:
        self._waiting[device] = self._waiting.get(device, 0) + 1
        try:
            with trio.fail_after(WAIT_TIMEOUT_S):
                await self._slots.acquire_on_behalf_of(slot)
        except trio.TooSlowError:
            self._busy += 1
            raise UploadRefused("busy") from None
        finally:
            self._waiting[device] -= 1
            if not self._waiting[device]:
                del self._waiting[device]

    def statistics(self) -> SeederStatistics:
        return SeederStatistics(self._bytes, self._served, self._missing, self._busy)
