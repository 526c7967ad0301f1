"""What this room needs from the others, as narrow protocols: sessions at my site, and a place for chunks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.errors import PcmError, TransferError
from pcm_p2p.ids import ChunkId, DeviceId
from pcm_p2p.swarm.events import ChunkFailure
from pcm_p2p.wire.messages import Message


class ChunkNotServed(TransferError):
    """A neighbour did not deliver a chunk; ``why`` is what the picker and the book of strikes go by."""

    def __init__(self, message: str, why: ChunkFailure) -> None:
        super().__init__(message)
        self.why: ChunkFailure = why


class UploadRefused(PcmError):
    """I do not serve this request; ``reason`` is one of ``wire.messages.Refused``'s."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the request is refused: {reason}")
        self.reason = reason


class Peers(Protocol):
    """Sessions with devices of my site. Neither ``send`` nor ``broadcast`` waits for a slow neighbour: messages go into
    the session's queue, and the session is closed when that overflows."""

    async def send(self, device: DeviceId, message: Message, /) -> None:
        """Does nothing when there is no session."""

    async def broadcast(self, message: Message, /, *, besides: DeviceId | None = None) -> None: ...

    async def fetch_chunk(self, device: DeviceId, chunk: ChunkId, size_bytes_max: int, /) -> bytes:
        """The sealed chunk as the neighbour sent it. Raises ``ChunkNotServed`` (any other ``TransferError`` counts as
        slow) or ``UntrustedBytes``; may be cancelled."""


class Store(Protocol):
    """The part of ``content.keeping.store.ChunkStore`` that is used here. Synchronous, thread-safe, called in worker threads."""

    def has(self, chunk: ChunkId, /) -> bool: ...
    def get(self, chunk: ChunkId, /) -> Chunk | None: ...
    def get_sealed(self, chunk: ChunkId, /) -> bytes | None: ...
    def put(self, chunk: Chunk, /) -> bool:
        """Raises ``DiskFull`` or ``StorageError``."""

    def put_sealed(self, chunk: ChunkId, sealed: bytes, /) -> Any:
        """Raises ``UntrustedBytes``, ``DiskFull`` or ``StorageError``."""

    def take_removed(self) -> Iterable[ChunkId]:
        """Chunks that left the store by themselves since the last call."""
