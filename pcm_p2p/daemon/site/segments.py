"""Segments of a site's own releases: from the folder of its tree, or from a web server in the office.

The device with the folder takes every release of the site into its store, whether policy assigns it to this device or not: chunks
are what neighbours can ask for, so that an office needs no web server. It does not compete for that: what lies on the own disk
is nobody's to fetch. Other devices leave these segments to it (``Fetcher.want(…, lan_only=True)``), or, where a web server of the
office is named in their settings, share them out among themselves as they do with the fleet's.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from random import Random

import trio

from pcm_p2p import __version__
from pcm_p2p.config import Config
from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.decoding.job import SegmentDecoder
from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.content.manifest import Manifest, Segment
from pcm_p2p.errors import PcmError
from pcm_p2p.ids import ManifestId, SegmentId
from pcm_p2p.swarm.fetcher import Fetcher
from pcm_p2p.swarm.origin import OriginClient, Pacing
from pcm_p2p.swarm.segment_fetch import SegmentSource

log = logging.getLogger(__name__)

LOOK_S = 60.0
"""Choice: what was evicted or found rotten is taken from the folder again within a minute."""


class SegmentImporter:
    """``tree`` is the folder, empty where this device has none; ``manifests`` gives the site's own releases (in a worker thread);
    ``seed`` makes this device hold them for its neighbours."""

    def __init__(
        self,
        tree: str,
        fetcher: Fetcher,
        store: ChunkStore,
        decoder: SegmentDecoder,
        *,
        manifests: Callable[[], Mapping[ManifestId, Manifest]],
        seed: Callable[[Mapping[ManifestId, Manifest]], Awaitable[None]],
    ) -> None:
        self._tree = Path(tree) if tree else None
        self._fetcher, self._store, self._decoder = fetcher, store, decoder
        self._manifests, self._seed = manifests, seed
        self._wake = trio.Event()
        self.problem = ""

    def poke(self) -> None:
        """There may be another release."""
        self._wake.set()

    async def run(self) -> None:
        """Hold what the site publishes, until cancelled."""
        while self._tree is not None:
            self._wake = trio.Event()
            manifests = await trio.to_thread.run_sync(self._manifests)
            self.problem = ""
            try:
                await self._seed(manifests)
                for manifest in manifests.values():
                    await self._take(self._tree, manifest)
            except (PcmError, OSError) as error:
                self.problem = f"a release of the site cannot be taken from {self._tree}: {error}"
                log.error("%s", self.problem)
            with trio.move_on_after(LOOK_S):
                await self._wake.wait()

    async def _take(self, tree: Path, manifest: Manifest) -> None:
        for segment in manifest.segments:
            if segment.kind == "full" and await trio.to_thread.run_sync(self._lacks, manifest, segment):
                name = segment.segment_id.hex()
                file = tree / "segments" / name[:2] / name
                await self._decoder.decode(segment, manifest, file, self._store.get, self._keep)
                self._fetcher.gained(
                    manifest.manifest_id, [manifest.table_chunks[place] for place in segment.positions]
                )

    def _lacks(self, manifest: Manifest, segment: Segment) -> bool:
        return not all(self._store.has(manifest.table_chunks[position]) for position in segment.positions)

    def _keep(self, _position: int, chunk: Chunk) -> None:
        self._store.put(chunk)


@contextlib.asynccontextmanager
async def open_site_origin(
    state: Path, config: Config, pace: Pacing, rng: Random
) -> AsyncIterator[OriginClient | None]:
    """The web servers in the office that the settings name, as an origin with parts of its own; None if they name none. It keeps
    to the limit of the LAN."""
    if not config.site.urls:
        yield None
        return
    agent = f"pcm-p2p/{__version__}"
    async with OriginClient(
        config.site.urls, config.origin, state / "site-segments", pace=pace, rng=rng, agent=agent
    ) as origin:
        yield origin


class RoutedSegments:
    """The fleet's origin, and another one for the segments of the site's own releases: neither is asked for the other's."""

    def __init__(
        self, fleet: SegmentSource, site: SegmentSource, manifests: Callable[[], Mapping[ManifestId, Manifest]]
    ) -> None:
        self._fleet, self._site, self._manifests = fleet, site, manifests
        self._known: dict[ManifestId, frozenset[SegmentId]] = {}

    async def fetch_segment(self, segment: Segment, progress: Callable[[int, int], None]) -> Path:
        if not self._is_of_site(segment.segment_id):
            await self._look()
        source = self._site if self._is_of_site(segment.segment_id) else self._fleet
        return await source.fetch_segment(segment, progress)

    async def discard(self, segment: SegmentId) -> None:
        for source in (self._fleet, self._site):
            await source.discard(segment)

    async def parts(self) -> Mapping[SegmentId, int]:
        return {**await self._fleet.parts(), **await self._site.parts()}

    async def _look(self) -> None:
        manifests = await trio.to_thread.run_sync(self._manifests)
        self._known = {
            manifest_id: self._known.get(manifest_id) or frozenset(segment.segment_id for segment in manifest.segments)
            for manifest_id, manifest in manifests.items()
        }

    def _is_of_site(self, segment: SegmentId) -> bool:
        return any(segment in segments for segments in self._known.values())
