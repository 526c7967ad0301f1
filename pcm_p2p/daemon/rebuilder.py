"""The rebuilder: base chunks that the office lacks, made out of files that are installed here.

For every wanted release with layouts it asks the fetcher what is missing, looks once a minute whether the base is installed
(dpkg's status; the markers of archive folders), and does what ``swarm.rebuilding`` says: get a layout, make a batch of chunks,
tell the fetcher. Chunks go into the store as any others do, within its quota. After each batch it pauses for half the time that
the batch took, so that whoever sits at the device keeps a part of the core. A full disk stops it for ``FULL_S``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

from pcm_p2p.apply.providers.archive import MARKER
from pcm_p2p.apply.receipt import Receipt
from pcm_p2p.content.chunk import Chunk
from pcm_p2p.content.keeping.installed import InstalledForm, Package, installed_packages, read_installed
from pcm_p2p.content.manifest import Manifest
from pcm_p2p.content.pieces import Pieces, decode_layout_untrusted
from pcm_p2p.errors import StorageError, UntrustedBytes
from pcm_p2p.ids import ChunkId, DeviceId, ManifestId
from pcm_p2p.swarm.rebuilding import GetLayouts, MakeChunks, Rebuilding, Rest, Wait
from pcm_p2p.swarm.workers import Workers

log = logging.getLogger(__name__)

IDLE_S = 30.0
LOOK_S = 0.5
"""While something is missing. Choice: a sixth of the time for which full segments wait (``swarm.prices.BASE_GRACE_MS``)."""
WAIT_S = 0.05
"""For a layout, and for this device's turn."""
INSTALLED_S = 60.0
FULL_S = 60.0
_MARKER_BYTES_MAX = 128


class Fetching(Protocol):
    """The part of ``swarm.fetcher.Fetcher`` that is used here."""

    @property
    def wanted(self) -> Mapping[ManifestId, Manifest]: ...
    def bases_missing(self, manifest: ManifestId, /) -> Mapping[int, Collection[int]]: ...
    async def wait_bases_changed(self) -> None: ...
    def want_layout(self, manifest: ManifestId, layout: int, /) -> None: ...
    def drop_layout(self, manifest: ManifestId, layout: int, /) -> None: ...
    def gained(self, manifest: ManifestId, chunks: Collection[ChunkId], /) -> None: ...


class Chunks(Protocol):
    """The part of ``content.keeping.store.ChunkStore`` that is used here."""

    def has(self, chunk: ChunkId, /) -> bool: ...
    def get(self, chunk: ChunkId, /) -> Chunk | None: ...
    def put(self, chunk: Chunk, /) -> bool: ...


@dataclass
class _Job:
    """One wanted manifest. ``places``: those of its layouts whose files are here, and below which folder of the root."""

    manifest: Manifest
    rebuilding: Rebuilding
    places: dict[int, bytes] = field(default_factory=dict)
    looked_s: float = float("-inf")
    rests_until_s: float = 0.0
    asked: set[int] = field(default_factory=set)
    broken: set[int] = field(default_factory=set)
    forms: dict[int, InstalledForm] = field(default_factory=dict)
    made: int = 0


class Rebuilder:
    """``root``: where packages and archives are applied; ``site``: the other devices. ``receipts`` is called in a worker."""

    def __init__(
        self,
        fetcher: Fetching,
        store: Chunks,
        root: Path,
        receipts: Callable[[], tuple[Receipt, ...]],
        site: Callable[[], Collection[DeviceId]],
        me: DeviceId,
        workers: Workers | None = None,
    ) -> None:
        self._fetcher = fetcher
        self._store = store
        self._root = root
        self._receipts = receipts
        self._site = site
        self._me = me
        self._workers = workers or Workers(threads_max=1)
        self._jobs: dict[ManifestId, _Job] = {}

    async def run(self) -> None:
        """Look at what is wanted until cancelled."""
        while True:
            pause_s = IDLE_S
            for name, manifest in list(self._fetcher.wanted.items()):
                if manifest.layouts:
                    pause_s = min(pause_s, await self._turn(name, manifest))
            self._jobs = {name: job for name, job in self._jobs.items() if name in self._fetcher.wanted}
            if pause_s < LOOK_S:
                await trio.sleep(pause_s)
            else:
                with trio.move_on_after(pause_s):
                    await self._fetcher.wait_bases_changed()

    async def _turn(self, name: ManifestId, manifest: Manifest) -> float:
        """Do one step for this manifest; how long to wait for the next, in seconds."""
        job = self._jobs.setdefault(name, _Job(manifest, Rebuilding(manifest, self._me)))
        try:
            if name not in self._fetcher.wanted:
                return IDLE_S
            if trio.current_time() >= job.rests_until_s:
                return await self._step(name, job)
        except StorageError as error:
            log.warning("%s: no more base chunks are made of installed files: %s", manifest.title, error)
            job.rests_until_s = trio.current_time() + FULL_S
        return LOOK_S

    async def _step(self, name: ManifestId, job: _Job) -> float:
        if self._fetcher.bases_missing(name) and trio.current_time() - job.looked_s >= INSTALLED_S:
            job.looked_s = trio.current_time()
            job.places = await self._workers.run(installed_layouts, job.manifest, self._root, self._receipts)
            if name not in self._fetcher.wanted:
                return LOOK_S
        missing, now_ms = self._fetcher.bases_missing(name), int(trio.current_time() * 1000)
        usable = [layout for layout in job.places if layout not in job.broken]
        ready = [layout for layout in usable if layout in job.forms or self._is_stored(job.manifest, layout)]
        match job.rebuilding.step(now_ms, missing, usable, ready, self._site()):
            case Wait(until_ms):
                return min(LOOK_S, max(WAIT_S, (until_ms - now_ms) / 1000))
            case GetLayouts(layouts):
                self._ask(name, job, layouts)
                return WAIT_S
            case MakeChunks(layouts, positions):
                return await self._make(name, job, layouts, positions)
            case Rest():
                self._rest(name, job)
        return LOOK_S if missing else IDLE_S

    def _is_stored(self, manifest: Manifest, layout: int) -> bool:
        row = manifest.layouts[layout]
        return all(self._store.has(chunk) for chunk in manifest.table_chunks[row.first : row.first + row.count])

    def _ask(self, name: ManifestId, job: _Job, layouts: tuple[int, ...]) -> None:
        for layout in layouts:
            row = job.manifest.layouts[layout]
            if layout not in job.asked:
                log.info(
                    "%s: %s is installed here and can be the base", job.manifest.title, row.package or row.artifact
                )
                job.asked.add(layout)
            self._fetcher.want_layout(name, layout)

    def _rest(self, name: ManifestId, job: _Job) -> None:
        for layout in sorted(job.asked):
            self._fetcher.drop_layout(name, layout)
        job.asked.clear()
        job.forms.clear()
        if job.made:
            log.info("%s: %d base chunks were made of installed files", job.manifest.title, job.made)
            job.made = 0

    async def _make(self, name: ManifestId, job: _Job, layouts: tuple[int, ...], positions: tuple[int, ...]) -> float:
        began_s = trio.current_time()
        made: list[int] = []
        failed: list[int] = []
        try:
            await self._workers.run(self._make_batch, job, layouts, positions, made, failed)
        finally:
            job.made += len(made)
            job.rebuilding.failed(failed)
            # A store that is nearly full may have evicted the first of them for the last.
            chunks = [job.manifest.table_chunks[position] for position in made]
            if gained := [chunk for chunk in chunks if self._store.has(chunk)]:
                self._fetcher.gained(name, gained)
            job.rebuilding.made(made)
        return (trio.current_time() - began_s) / 2

    def _make_batch(
        self, job: _Job, layouts: tuple[int, ...], positions: tuple[int, ...], made: list[int], failed: list[int]
    ) -> None:
        """In a worker thread. What was made and what cannot be stands in the two lists, also after an error."""
        for layout in layouts:
            if layout not in job.forms:
                pieces = self._read_layout(job, layout)
                if pieces is None:
                    return
                job.forms[layout] = InstalledForm(pieces, self._root, job.places[layout])
        chunks, sizes = job.manifest.table_chunks, job.manifest.table_sizes
        for position in positions:
            found = (job.forms[layout].get(chunks[position], sizes[position]) for layout in layouts)
            chunk = next((each for each in found if each is not None), None)
            if chunk is None:
                failed.append(position)
                return  # the deltas that need it are ruled out, and with them the rest of the batch
            self._store.put(chunk)
            made.append(position)

    def _read_layout(self, job: _Job, layout: int) -> Pieces | None:
        row = job.manifest.layouts[layout]
        parts = []
        for chunk in job.manifest.table_chunks[row.first : row.first + row.count]:
            part = self._store.get(chunk)
            if part is None:
                return None  # rotten: the store tells the fetcher
            parts.append(part.data)
        try:
            return decode_layout_untrusted(b"".join(parts))
        except UntrustedBytes as error:
            log.error("%s: a published layout cannot be used: %s", job.manifest.title, error)
            job.broken.add(layout)
            return None


def installed_layouts(manifest: Manifest, root: Path, receipts: Callable[[], tuple[Receipt, ...]]) -> dict[int, bytes]:
    """Those of the manifest's layouts whose files are below ``root``, and the folder below it in which they are. Blocking."""
    packages: dict[Package, int] = {}
    archives: dict[str, int] = {}
    for index, layout in enumerate(manifest.layouts):
        if layout.package:
            packages[Package(layout.package, layout.package_version, layout.architecture)] = index
        else:
            archives[layout.stored_sha256.hex()] = index
    places = {packages[found]: b"" for found in installed_packages(root, packages)} if packages else {}
    for receipt in receipts() if archives else ():
        for kept in receipt.archives:
            for folder in filter(None, (kept.folder, kept.previous)):
                below = os.fsencode(f"{kept.path}/{folder}")
                marker = read_installed(root, below + b"/" + MARKER.encode(), _MARKER_BYTES_MAX)
                if (
                    marker is not None
                    and (found := archives.get(marker.decode("ascii", "replace").strip())) is not None
                ):
                    places[found] = below
    return dict(sorted(places.items()))
