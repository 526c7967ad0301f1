"""Looking after the store: what is in it, whether it is good, and letting surplus copies go. ``pcm-p2p store`` asks for it.

The same answers with and without a daemon: a running one is asked over its socket, else the command opens the folder itself.
What is surplus a running device knows from its neighbours. Before it does, and where nobody runs, every chunk that is named by
a manifest on this device counts as kept: what is left then is of no use to anybody here.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.content.keeping.verification import Verification
from pcm_p2p.content.manifest import Manifest, decode_untrusted
from pcm_p2p.errors import Degraded, InputError, UntrustedBytes
from pcm_p2p.ids import ChunkId

log = logging.getLogger(__name__)

MANIFEST_PLACES = ("releases/*/*.manifest", "trust/generations/*/targets/releases/**/*.manifest")
"""Below the state folder: what was applied here, and what is trusted at present and was before that."""
NOTICE_S = 2.0
"""Choice: between telling neighbours and deleting, so that what they have asked for is still served."""

Command = Callable[[Mapping[str, Any]], Awaitable[object]]


def manifests_at(state: Path) -> list[Manifest]:
    """The manifests on this device, by release and counter; damaged ones are passed over. Who signed them is not asked:
    they decide over nothing but what is kept."""
    found: dict[bytes, Manifest] = {}
    for pattern in MANIFEST_PLACES:
        for path in state.glob(pattern):
            try:
                manifest = decode_untrusted(path.read_bytes())
            except (OSError, UntrustedBytes) as error:
                log.warning("%s is passed over: %s", path, error)
            else:
                found[manifest.manifest_id] = manifest
    return sorted(found.values(), key=lambda manifest: (manifest.release, manifest.counter, manifest.manifest_id))


def statistics(store: ChunkStore, state: Path) -> dict[str, Any]:
    """The figures of the store, and its share of each release; bytes as they are on disk."""
    releases = []
    for manifest in manifests_at(state):
        share = store.share_of(manifest.chunks)
        releases.append(
            {
                "name": manifest.release,
                "version": manifest.version,
                "chunks_total": len(manifest.chunks),
                "chunks_have": share.chunks,
                "bytes": share.bytes,
            }
        )
    return {"schema": "pcm.store/1", **asdict(store.statistics()), "releases": releases}


def surplus(store: ChunkStore, state: Path, size_bytes_max: int) -> list[ChunkId]:
    """What may go for the store to have at most so many bytes; fewer if there is not enough surplus."""
    keep_what_is_named(store, state)
    return store.surplus_above(size_bytes_max)


def keep_what_is_named(store: ChunkStore, state: Path) -> None:
    """Where nobody has said yet what the office keeps: all that a manifest on this device names."""
    if not store.tiers_known:
        store.set_tiers({chunk for manifest in manifests_at(state) for chunk in manifest.table_chunks}, ())


def collected(store: ChunkStore, before: int, dropped: int) -> dict[str, Any]:
    """What came of it; ``before`` is what the store had, in bytes."""
    after = store.statistics()
    return {
        "dropped": dropped,
        "dropped_bytes": max(0, before - after.bytes),
        "chunks": after.chunks,
        "bytes": after.bytes,
    }


class Upkeep:
    """The daemon's side. ``let_go`` tells neighbours that chunks are about to be deleted."""

    def __init__(self, store: ChunkStore, state: Path, let_go: Callable[[Iterable[ChunkId]], None]) -> None:
        self._store, self._state, self._let_go = store, state, let_go
        self._verification = Verification(store)

    def commands(self) -> Mapping[str, Command]:
        """What the control socket answers."""
        return {"store_stats": self.stats, "store_verify": self.verify, "store_gc": self.gc}

    async def run(self) -> None:
        """Read the index of the store. Until cancelled, then a verification is ended."""
        try:
            await trio.to_thread.run_sync(self._store.scan, abandon_on_cancel=True)
            await trio.sleep_forever()
        finally:
            self._store.close()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._verification.stop)

    async def stats(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        return await trio.to_thread.run_sync(statistics, self._store, self._state)

    async def verify(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``action``: ``start``, which begins unless one is under way, ``progress`` or ``stop``."""
        match request.get("action", "progress"):
            case "start":
                progress = self._verification.start()
            case "stop":
                progress = await trio.to_thread.run_sync(self._verification.stop)
            case _:
                progress = self._verification.progress()
        return asdict(progress)

    async def gc(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``to``: so many bytes the store may have afterwards; 0 drops all surplus."""
        to = request.get("to", 0)
        if not isinstance(to, int) or to < 0:
            raise InputError("is not a number of bytes", key="to")
        before = self._store.statistics()
        if not before.scanned:
            raise Degraded("the store is still being looked through", remedy="Try again in a moment.")
        going: Collection[ChunkId] = await trio.to_thread.run_sync(surplus, self._store, self._state, to)
        if going:
            self._let_go(going)
            await trio.sleep(NOTICE_S)
            # Neighbours may have come or gone meanwhile.
            still = set(await trio.to_thread.run_sync(self._store.surplus_above, 0))
            going = [chunk for chunk in going if chunk in still]
        dropped = await trio.to_thread.run_sync(self._store.trim, going)
        return collected(self._store, before.bytes, dropped)
