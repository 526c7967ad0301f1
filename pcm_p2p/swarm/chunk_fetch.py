"""One chunk from one neighbour: asked for, verified, stored; or why not."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from pcm_p2p.content.chunk import SEALED_SIZE_BYTES_MAX
from pcm_p2p.errors import TransferError, UntrustedBytes
from pcm_p2p.ids import ChunkId, DeviceId
from pcm_p2p.swarm.events import ChunkFailure
from pcm_p2p.swarm.peers import ChunkNotServed, Peers, Store
from pcm_p2p.swarm.workers import Workers

REQUEST_TIMEOUT_S = 10.0
REQUEST_BYTES_PER_S_MIN = 64 << 10
"""Choice: four times what a session calls too slow, since several answers share it; hedging is quicker than either."""

_log = logging.getLogger(__name__)


async def fetch_chunk(
    peers: Peers,
    store: Store,
    workers: Workers,
    device: DeviceId,
    chunk: ChunkId,
    size_bytes: int,
    *,
    connected: Callable[[], bool],
    on_bytes: Callable[[int], None],
) -> ChunkFailure | None:
    """``connected``: whether there is a session still; ``on_bytes``: takes the size of what came. None if the chunk is in the
    store. Raises ``StorageError``."""
    try:
        with trio.fail_after(REQUEST_TIMEOUT_S + size_bytes / REQUEST_BYTES_PER_S_MIN):
            sealed = await peers.fetch_chunk(device, chunk, SEALED_SIZE_BYTES_MAX)
    except trio.TooSlowError:
        return "slow"
    except ChunkNotServed as error:
        return error.why
    except TransferError:
        return "slow" if connected() else "gone"
    except UntrustedBytes as error:
        _log.warning("device %s sent nonsense for chunk %s: %s", device, chunk.short, error)
        return "wrong"
    on_bytes(len(sealed))
    try:
        await workers.run(store.put_sealed, chunk, sealed)
    except UntrustedBytes as error:
        _log.warning("device %s sent wrong bytes for chunk %s: %s", device, chunk.short, error)
        return "wrong"
    return None
