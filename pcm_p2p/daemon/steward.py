"""The steward keeps the device at what the signed policy says: trusted documents → desired state → bytes → changes.

One turn looks at everything anew and is idempotent; it runs when the trusted view changes, when a release is complete, when a
change is due to be tried again, and at an interval. What a release is doing is one of these, in order::

    wanted → fetching → staged → waiting → applying → applied
                                    ↘ rolled_back, parked, failed (and what to do about it in ``detail``)

The steward decides nothing about trust, order or permission: ``policy.desired`` does, and ``apply`` checks its signature of
permission again. It keeps the manifests of what it applied last, so that a change can be rolled back to real bytes, and
refuses to go to a release with a lower counter than the one that was applied (Uptane's release counter).
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import trio

from pcm_p2p.apply.step import Staged
from pcm_p2p.compliance.report import ReleaseState
from pcm_p2p.content.keeping.assemble import MissingChunks, assemble
from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.content.manifest import Manifest
from pcm_p2p.daemon.applying.client import Changer
from pcm_p2p.daemon.caretaker import Caretaker
from pcm_p2p.daemon.documents import (
    SiteWord,
    decode_manifest_untrusted,
    manifest_place,
    read_documents,
    sha256_by_artifact,
)
from pcm_p2p.daemon.keepsakes import Keepsakes
from pcm_p2p.daemon.meter import ReleaseBytes
from pcm_p2p.errors import DaemonUnreachable, Degraded, InputError, PcmError, TrustError, UntrustedBytes
from pcm_p2p.ids import ManifestId
from pcm_p2p.policy.desired import AssignedRelease, Change, Desired
from pcm_p2p.policy.document import Policy, Transfer
from pcm_p2p.policy.fitness import why_unfit
from pcm_p2p.policy.resource import artifact_of
from pcm_p2p.policy.selector import DeviceFacts
from pcm_p2p.swarm.fetcher import Fetcher
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.view import TrustedView

log = logging.getLogger(__name__)

RELEASES_MAX = 1_024
IN_PLACE_INTERVAL_S = 1_800.0
"""Choice: what is in place is looked at this often. Looking hashes it: a minute's interval cost 0.5 % of a core for 400 MB."""


@dataclass
class ReleaseWork:
    """One assigned release: what it is doing since when, and why."""

    assigned: AssignedRelease
    manifest: Manifest | None = None
    unreadable: str = ""
    state: ReleaseState = "wanted"
    since_ms: int = 0
    detail: str = ""
    moved: ReleaseBytes = field(default_factory=ReleaseBytes)

    @property
    def key(self) -> str:
        return f"{self.assigned.name}@{self.assigned.version}"


class Steward:
    """The only caller of ``Fetcher.want`` and ``Applier.apply``; the caretaker keeps what is in place. ``on_change`` is awaited
    when a release changes state; ``on_transfer`` gets the limits of the policies in force. ``own_site`` gives what the site's own
    repository says; ``reaches_site_origin``: whether this device can ask a web server for that repository's segments."""

    def __init__(
        self,
        client: TrustClient,
        store: ChunkStore,
        fetcher: Fetcher,
        applier: Changer,
        keepsakes: Keepsakes,
        caretaker: Caretaker,
        facts: DeviceFacts,
        staging: Path,
        *,
        interval_s: float,
        now: Callable[[], datetime],
        on_change: Callable[[], Awaitable[None]],
        on_transfer: Callable[[Transfer], None] = lambda _: None,
        own_site: Callable[[], SiteWord | None] = lambda: None,
        reaches_site_origin: bool = False,
    ) -> None:
        self._client = client
        self._store = store
        self._fetcher = fetcher
        self._applier = applier
        self._keepsakes = keepsakes
        self._caretaker = caretaker
        self._facts = facts
        self._staging = staging
        self._interval_s = interval_s
        self._now = now
        self._on_change = on_change
        self._on_transfer = on_transfer
        self._own_site = own_site
        self._reaches_site_origin = reaches_site_origin
        self._of_site: set[ManifestId] = set()
        self._seeds: dict[ManifestId, Manifest] = {}
        self._wake = trio.Event()
        self._changed = False
        self._turn_failed = False
        self._manifests: dict[tuple[str, str], Manifest] = {}
        self._waiters: dict[ManifestId, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self.works: dict[str, ReleaseWork] = {}
        self.desired: Desired | None = None
        self.policies: tuple[Policy, ...] = ()
        self.problems: tuple[str, ...] = ()

    def poke(self) -> None:
        """Something may have changed: take a turn soon."""
        self._wake.set()

    async def run(self) -> None:
        """End what a crash left half made, then keep the device at its desired state until cancelled."""
        shutil.rmtree(self._staging, ignore_errors=True)
        resumed = False
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                self._wake = trio.Event()
                try:
                    if not resumed:
                        await self._resume()
                        resumed = True
                    await self._turn()
                    self._turn_failed = False
                except (PcmError, OSError) as error:
                    # The device's own disk, or a document that does not read: say so, and look again at the next turn.
                    log.error("the desired state cannot be worked on: %s", error)
                    self.problems = (str(error),)
                    self._turn_failed = True
                if self._changed:
                    self._changed = False
                    await self._on_change()
                with trio.move_on_after(self._pause_s()):
                    await self._wake.wait()

    async def _resume(self) -> None:
        outcome = await self._applier.resume()
        if outcome is not None:
            log.warning("a change was interrupted: %s %s is %s", outcome.subject, outcome.version, outcome.verdict)

    # One turn

    async def _turn(self) -> None:
        view = self._client.view
        if view is None:
            return
        own = self._own_site()
        documents = await trio.to_thread.run_sync(read_documents, view, own, self._now())
        freshness = self._client.freshness()
        weighed = await trio.to_thread.run_sync(documents.weighed, self._facts, freshness)
        desired = documents.desired(weighed, self._facts, self._now(), freshness)
        of_roles = view.problems(self._now())
        problems = (*of_roles, *documents.problems, *weighed.problems, *desired.conflicts)
        self._changed |= problems != self.problems
        self.problems, self.policies = problems, weighed.policies
        self.desired = desired
        self._on_transfer(desired.transfer)
        await self._follow_assignments(view, own, desired)
        # Before, so that the store knows what is wanted before it is fetched; and after, since more may be in place then.
        await self._tend()
        for work in list(self.works.values()):
            await self._advance(work, desired)
        await self._tend()

    async def _follow_assignments(self, view: TrustedView, own: SiteWord | None, desired: Desired) -> None:
        """Works for what is assigned, none for what is not; wanted manifests to match."""
        self._count_bytes()
        before, works = self.works, {}
        for assigned in desired.releases[:RELEASES_MAX]:
            work = ReleaseWork(assigned, since_ms=self._now_ms())
            old = before.get(work.key)
            if old is not None:
                work.manifest, work.state, work.since_ms, work.detail = (
                    old.manifest,
                    old.state,
                    old.since_ms,
                    old.detail,
                )
                work.moved = old.moved
            work.unreadable = ""
            try:
                work.manifest = await trio.to_thread.run_sync(self._manifest, view, own, assigned)
            except UntrustedBytes as error:
                work.manifest, work.unreadable = None, error.message
            works[work.key] = work
        self._changed |= works.keys() != before.keys()
        self.works = works
        wanted = {
            work.manifest.manifest_id: work.manifest
            for work in works.values()
            if work.manifest is not None and work.assigned.fetch
        }
        wanted |= self._seeds
        for manifest_id in [gone for gone in self._fetcher.wanted if gone not in wanted]:
            self._fetcher.unwant(manifest_id)
            self._stop_waiting(manifest_id)

    def _stop_waiting(self, manifest_id: ManifestId) -> None:
        if (waiter := self._waiters.pop(manifest_id, None)) is not None:
            waiter.cancel()

    async def _tend(self) -> None:
        """Tell the caretaker what is wanted, what is in place, and what changes that may be made replace."""
        wanted: dict[ManifestId, Manifest] = dict(self._seeds)
        replaced: dict[str, None] = {}
        for work in self.works.values():
            if work.manifest is None or not work.assigned.fetch or work.state == "applied":
                continue
            wanted[work.manifest.manifest_id] = work.manifest
            if not work.assigned.why_not and work.state not in ("failed", "parked"):
                replaced[work.manifest.release] = None

        def look() -> tuple[list[Manifest], list[tuple[Manifest, int]]]:
            found = [self._keepsakes.to_go_back(release) for release in replaced]
            return self._keepsakes.manifests(), [one for one in found if one is not None]

        await self._caretaker.tend(wanted, *await trio.to_thread.run_sync(look))

    def _manifest(self, view: TrustedView, own: SiteWord | None, assigned: AssignedRelease) -> Manifest | None:
        place = manifest_place(view, own, assigned.name, assigned.version)
        if place is None:
            return None
        where, path = place
        kept = where.kept[path]
        known = kept.sha256, path
        if known not in self._manifests:
            if len(self._manifests) > RELEASES_MAX:
                self._manifests.clear()
            self._manifests[known] = decode_manifest_untrusted(where.read(path), path)
        manifest = self._manifests[known]
        if where is not view:
            self._of_site.add(manifest.manifest_id)
        return manifest

    async def _advance(self, work: ReleaseWork, desired: Desired) -> None:
        """Move one release as far as it goes now."""
        assigned, manifest = work.assigned, work.manifest
        if work.unreadable:
            self._enter(work, "failed", f"its signed manifest is not usable by this version: {work.unreadable}")
            return
        if manifest is None:
            self._enter(work, "wanted", "its signed manifest has not arrived yet")
            return
        forms = {artifact.name: artifact.form for artifact in manifest.artifacts}
        if unfit := why_unfit(assigned.resources, forms):
            self._enter(work, "failed", unfit)
            return
        if not assigned.fetch:
            self._enter(work, "waiting", assigned.why_not)
            return
        change = assigned.change
        if await self._applier.is_in_place(change, sha256_by_artifact(manifest)):
            self._enter(work, "applied", "")
            await trio.to_thread.run_sync(self._keepsakes.remember, manifest)
            self._stop_waiting(manifest.manifest_id)
            return
        floor = await trio.to_thread.run_sync(self._keepsakes.counter, manifest.release)
        if manifest.counter < floor:
            self._enter(
                work, "failed", f"counter {manifest.counter} is below {floor}, which was applied; release it anew"
            )
            return
        await self._want(manifest)
        progress = self._fetcher.progress(manifest.manifest_id)
        if not progress.complete:
            self._enter(work, "fetching", progress.waiting)
        elif assigned.why_not:
            self._enter(work, "waiting", assigned.why_not)
        elif wait := self._applier.why_wait(change):
            receipt = self._applier.receipt(change.subject)
            parked = receipt is not None and receipt.verdict == "parked"
            self._enter(work, "parked" if parked else "rolled_back", wait)
        else:
            await self._apply(work, manifest, change, desired)

    async def _want(self, manifest: Manifest) -> None:
        manifest_id = manifest.manifest_id
        if manifest_id in self._fetcher.wanted:
            return
        await self._fetcher.want(manifest, lan_only=manifest_id in self._of_site and not self._reaches_site_origin)
        assert self._nursery is not None
        scope = self._waiters[manifest_id] = trio.CancelScope()
        self._nursery.start_soon(self._poke_when_complete, manifest_id, scope)

    async def _poke_when_complete(self, manifest_id: ManifestId, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await self._fetcher.wait_complete(manifest_id)
            except KeyError:
                return
            self.poke()

    # Applying

    async def _apply(self, work: ReleaseWork, manifest: Manifest, change: Change, desired: Desired) -> None:
        names = sorted({name for name in map(artifact_of, change.resources) if name})
        folder = self._staging / manifest.manifest_id.hex()
        self._enter(work, "staged", "waits for the package that it replaces, to go back to if need be")
        await self._tend()
        if not await self._caretaker.gathered(manifest.release):
            log.warning("%s: the package that it replaces is not at hand; it cannot be gone back to", change.title)
        self._enter(work, "staged", "assembling")
        try:
            await trio.to_thread.run_sync(self._stage, manifest, names, folder)
        except MissingChunks as error:
            lost = [manifest.chunks[position] for position in error.positions]
            self._enter(work, "fetching", f"{len(lost)} chunks were damaged on the disk and are fetched again")
            self._fetcher.lost(lost)
            self.poke()
            return
        except PcmError as error:
            self._enter(work, "failed", error.message)
            return
        self._enter(work, "applying", "")
        await self._on_change()
        shas = sha256_by_artifact(manifest)
        try:
            outcome = await self._applier.apply(
                change, desired.authorisation, lambda artifact: Staged(folder / artifact, shas[artifact])
            )
        except (TrustError, DaemonUnreachable, Degraded) as error:
            self._enter(work, "waiting", error.message)
            return
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._tidy, folder)
        if outcome.verdict == "done":
            await trio.to_thread.run_sync(self._keepsakes.remember, manifest)
            self._enter(work, "applied", "")
        else:
            detail = f"{outcome.error} {outcome.remedy}".strip()
            self._enter(work, "parked" if outcome.verdict == "parked" else "rolled_back", detail)
        log.info("%s: %s after %d attempts %s", change.title, work.state, outcome.attempts, work.detail)

    def _stage(self, manifest: Manifest, names: list[str], folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            artifact = manifest.artifact(name)
            assert artifact is not None, "checked before"
            assemble(manifest, artifact, self._store, folder / name)

    def _tidy(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._keepsakes.sweep()

    async def remedy(self, change: Change) -> None:
        """Apply the remedy of a failing check, within the same permission and the same limits on attempts."""
        if self.desired is None or not self.desired.authorisation.permits(change) or self._applier.why_wait(change):
            return
        try:
            outcome = await self._applier.apply(change, self.desired.authorisation, _no_artifact)
        except PcmError as error:
            log.error("remedy %s: %s", change.subject, error)  # the finding stays, and brings it up again
        else:
            log.info("remedy %s: %s %s", change.subject, outcome.verdict, outcome.error)

    # What others ask

    async def seed(self, manifests: Mapping[ManifestId, Manifest]) -> None:
        """From now on hold all of these for the site, assigned to this device or not; their chunks come from somebody else."""
        for manifest_id, manifest in manifests.items():
            if manifest_id not in self._fetcher.wanted:
                await self._fetcher.want(manifest, lan_only=True)
        if manifests.keys() != self._seeds.keys():
            self._seeds = dict(manifests)
            self.poke()

    def moved(self) -> Mapping[str, ReleaseBytes]:
        """Bytes per assigned release since the start, as received."""
        self._count_bytes()
        return {key: work.moved for key, work in self.works.items()}

    def _enter(self, work: ReleaseWork, state: ReleaseState, detail: str) -> None:
        if state != work.state:
            work.state, work.since_ms = state, self._now_ms()
            self._changed = True
        work.detail = detail

    def _count_bytes(self) -> None:
        known = {**self._fetcher.wanted, **self._fetcher.kept}
        for work in self.works.values():
            if work.manifest is not None and work.manifest.manifest_id in known:
                progress = self._fetcher.progress(work.manifest.manifest_id)
                work.moved = ReleaseBytes(progress.wan_bytes, progress.lan_bytes, progress.needed_bytes)

    def _pause_s(self) -> float:
        """Until the next turn that nobody asks for: soon while something is under way that is worth a fresh word."""
        states = {work.state for work in self.works.values()}
        if states & {"fetching", "wanted"}:
            return min(self._interval_s, 5.0)
        all_in_place = states == {"applied"} and not self._turn_failed
        return max(self._interval_s, IN_PLACE_INTERVAL_S) if all_in_place else self._interval_s

    def _now_ms(self) -> int:
        return math.floor(self._now().timestamp() * 1_000)


def _no_artifact(name: str) -> Staged:
    raise InputError(f"a remedy brings no artifact, and asks for {name}")
