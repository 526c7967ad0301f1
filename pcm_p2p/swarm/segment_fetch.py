"""One blob for one run: from the origin to verified chunks in the store. What it meets on the way becomes one event.

A delta waits, when its blob is here, until its base is in the store: the picker fetches that meanwhile, and ownership ends the
waiting (by cancelling this) when it is in vain. A base chunk that turns out to be rotten is told as lost, which fetches it again
where a neighbour has it; then the blob is decoded once more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import trio

from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.decoding.job import BaseMissing, DecodeFailed, SegmentDecoder
from pcm_p2p.content.manifest import Segment
from pcm_p2p.ids import ChunkId, SegmentId
from pcm_p2p.swarm.events import Event, SegmentDone, SegmentFailedHere, SegmentProgress, StartSegment
from pcm_p2p.swarm.holdings import bits_of
from pcm_p2p.swarm.origin import OriginFailed, OriginMissing, OriginWrong
from pcm_p2p.swarm.peers import Store
from pcm_p2p.swarm.transfer import Transfer
from pcm_p2p.swarm.workers import Workers

BASE_TRIES_MAX = 3
"""Choice: a disk on which the base rots as quickly as it comes is not worth more."""
PROGRESS_MS = 1_000
"""An owner shows that bytes move at least this often, also while a percent takes longer."""
BROKEN_WAIT_MS = 60_000
"""Choice: a published segment that is broken stays so until somebody publishes again."""

_log = logging.getLogger(__name__)


class SegmentSource(Protocol):
    """The part of ``origin.OriginClient`` that is used here."""

    async def fetch_segment(self, segment: Segment, progress: Callable[[int, int], None], /) -> Path: ...
    async def discard(self, segment: SegmentId, /) -> None: ...
    async def parts(self) -> Mapping[SegmentId, int]: ...


class SegmentFetch:
    """``on_event`` takes progress, ``on_chunk`` a position whose chunk is stored, ``on_bytes`` the number of bytes that came
    over the WAN, ``on_lost`` base chunks that are not fit. All are called in the trio thread."""

    def __init__(
        self,
        transfer: Transfer,
        start: StartSegment,
        origin: SegmentSource,
        decoder: SegmentDecoder,
        store: Store,
        workers: Workers,
        *,
        on_event: Callable[[Event], None],
        on_chunk: Callable[[int], None],
        on_bytes: Callable[[int], None],
        on_lost: Callable[[Iterable[ChunkId]], None],
    ) -> None:
        self._transfer, self._index = transfer, start.index
        self._segment = transfer.manifest.segments[start.use]
        self._origin, self._decoder, self._store, self._workers = origin, decoder, store, workers
        self._on_event, self._on_chunk, self._on_bytes, self._on_lost = on_event, on_chunk, on_bytes, on_lost
        self._shown_pct, self._shown_ms = -1, 0

    async def run(self) -> Event:
        """Returns how it ended. Raises ``StorageError`` when nothing can be stored; may be cancelled."""
        title, segment = self._transfer.manifest.title, self._segment
        try:
            path = await self._origin.fetch_segment(segment, self._progress)
            self._on_event(SegmentProgress(self._index, 100))
            await self._decode(path)
            await self._origin.discard(segment.segment_id)
        except OriginFailed as error:
            _log.warning("%s: segment %d: %s", title, self._index, error)
            bad = isinstance(error, (OriginMissing, OriginWrong))
            return SegmentFailedHere(self._index, error.message, error.wait_ms, error.whole_origin, bad)
        except DecodeFailed as error:
            # What is wrong is what the authorities signed, so it is broken for everybody; else this device is to blame.
            _log.error("%s: segment %d, %s: %s", title, self._index, segment.kind, error.message)
            await self._origin.discard(segment.segment_id)
            reason = "the published segment does not yield its chunks" if error.wrong else error.message
            wait_ms = BROKEN_WAIT_MS if error.wrong else 0
            return SegmentFailedHere(self._index, reason, wait_ms, whole_origin=False, bad_blob=True)
        return SegmentDone(self._index)

    def _progress(self, done_bytes: int, new_bytes: int) -> None:
        self._on_bytes(new_bytes)
        done_pct, now_ms = min(99, 100 * done_bytes // self._segment.size), int(trio.current_time() * 1000)
        if done_pct != self._shown_pct or now_ms - self._shown_ms >= PROGRESS_MS:
            self._shown_pct, self._shown_ms = done_pct, now_ms
            self._on_event(SegmentProgress(self._index, done_pct))

    async def _decode(self, path: Path) -> None:
        manifest = self._transfer.manifest
        for _ in range(BASE_TRIES_MAX):
            await self._transfer.wait_for(bits_of(self._segment.base))
            try:
                await self._decoder.decode(self._segment, manifest, path, self._store.get, self._decoded)
            except BaseMissing as error:
                _log.warning("%s: segment %d: %s", manifest.title, self._index, error.message)
                self._on_lost([manifest.table_chunks[position] for position in error.positions])
                await trio.lowlevel.checkpoint()
            else:
                return
        raise DecodeFailed("its base does not stay in the store", wrong=False)

    def _decoded(self, position: int, chunk: Chunk) -> None:
        """In the decoder's thread: each chunk is in the store and announced before the next one is looked at."""
        self._store.put(chunk)
        self._workers.tell(self._on_chunk, position)
