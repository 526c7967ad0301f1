"""The node: every room built once, wired, run in one nursery, and shut down in order. Reads as the diagram of an endpoint.

::

    sidecar ─ discovery ─► overlay ◄─ sessions ─► neighbours
                             │  Digest            │ Holdings, Have, Claim …      │ RecordsPut, AcksPut, Route
                             ▼                    ▼                              ▼
               spreader ─ follower ─► client    fetcher ◄─ origin             carrier ─► outbox (node.sqlite)
                              site ────┤ view     │ chunks ▲ seeder              ▲
                                       ▼          ▼        │                     │
                                    steward ─► store ──► applier             reporter ◄─ prober
                                                 ▲
                                             rebuilder ◄─ installed files

Order of shutdown: stop answering questions, hand over what only this device holds, say Bye to neighbours (they need not suspect),
cancel everything (a change that is under way is finished first), save what is counted.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import trio

from pcm_p2p import __version__
from pcm_p2p.compliance.carry import Carrier
from pcm_p2p.compliance.courier import Courier, CourierLimits
from pcm_p2p.compliance.inspection import Inspector
from pcm_p2p.compliance.outbox import MIGRATIONS, Outbox
from pcm_p2p.config import Config
from pcm_p2p.content.decoding.decoder import Decoder
from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.daemon.admission import Admission
from pcm_p2p.daemon.applying.client import make_changer, make_probes
from pcm_p2p.daemon.caretaker import Caretaker
from pcm_p2p.daemon.control import serve_control
from pcm_p2p.daemon.documents import manifests_to_keep
from pcm_p2p.daemon.follower import Follower
from pcm_p2p.daemon.keepsakes import Keepsakes
from pcm_p2p.daemon.limits import RateLimits
from pcm_p2p.daemon.memory import keep_small
from pcm_p2p.daemon.meter import Meter, Totals
from pcm_p2p.daemon.neighbours import Neighbours, OriginSource, serve_neighbours
from pcm_p2p.daemon.rebuilder import Rebuilder
from pcm_p2p.daemon.reporter import Reporter
from pcm_p2p.daemon.site.repository import SiteRepository
from pcm_p2p.daemon.site.segments import RoutedSegments, SegmentImporter, open_site_origin
from pcm_p2p.daemon.standing import Standing
from pcm_p2p.daemon.status import Status
from pcm_p2p.daemon.steward import Steward
from pcm_p2p.daemon.surroundings import Surroundings, fleet_document
from pcm_p2p.daemon.upkeep import Upkeep
from pcm_p2p.daemon.uptime import Uptime
from pcm_p2p.database import open_database
from pcm_p2p.errors import InputError
from pcm_p2p.gossip.discovery import Discovery
from pcm_p2p.gossip.overlay import Overlay
from pcm_p2p.gossip.peer import PeerDown, PeerUp
from pcm_p2p.gossip.roster_file import RosterFile
from pcm_p2p.gossip.settings import OverlaySettings
from pcm_p2p.gossip.spreader import Spreader
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.selector import DeviceFacts
from pcm_p2p.sidecar import Sidecar, open_sidecar
from pcm_p2p.swarm.fetcher import Fetcher
from pcm_p2p.swarm.origin import OriginClient
from pcm_p2p.swarm.seeder import Seeder
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.delegation import every_role, roles_of_device
from pcm_p2p.trust.evidence import Evidence, Fork
from pcm_p2p.trust.identity import DeviceIdentity
from pcm_p2p.trust.index import STANDING, site_root_path
from pcm_p2p.wire.messages import (
    AcksPut,
    Claim,
    Digest,
    Drop,
    Handover,
    Have,
    Holdings,
    Message,
    RecordsPut,
    Route,
    SegmentFailed,
)
from pcm_p2p.wire.session import Session

log = logging.getLogger(__name__)

SWARM_MESSAGES: tuple[type[Message], ...] = (Holdings, Have, Drop, Claim, SegmentFailed)


async def run_node(state: Path, config: Config, identity: DeviceIdentity, ended: trio.Event) -> None:
    """Build, wire and run everything until ``ended`` is set."""
    rng = Random(secrets.randbits(64))  # noqa: S311 - jitter and ties; keys come from libsodium and OpenSSL
    store = await trio.to_thread.run_sync(lambda: ChunkStore(state / "store", config.store.quota_bytes_max).open())
    facts = DeviceFacts(identity.device_id, config.device.site, config.device.labels)
    nodes: list[_Node] = []
    client = TrustClient(
        state / "trust",
        identity.root_json,
        identity.fleet,
        wall_clock=_wall_clock,
        wanted=manifests_to_keep(facts, _wall_clock, lambda: [one for node in nodes for one in node.site.policies()]),
        standing=(*STANDING, site_root_path(config.device.site)),
        roles=every_role if config.device.role == "relay" else roles_of_device(config.device.site),
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(client)
        sidecar = await stack.enter_async_context(open_sidecar())
        database = await stack.enter_async_context(open_database(sidecar, state / "node.sqlite", MIGRATIONS))
        limits = RateLimits(config.limits)
        origin = await stack.enter_async_context(_open_origin(state, config, client, limits, rng))
        site_origin = await stack.enter_async_context(open_site_origin(state, config, limits.lan_in, rng))
        decoder = await stack.enter_async_context(Decoder())
        outbox = Outbox(database, identity.device_id)
        node = _Node(
            state, config, identity, facts, limits, rng, store, client, sidecar, outbox, origin, site_origin, decoder
        )
        nodes.append(node)
        await node.run(ended)


@contextlib.asynccontextmanager
async def _open_origin(
    state: Path, config: Config, client: TrustClient, limits: RateLimits, rng: Random
) -> AsyncIterator[OriginClient]:
    """Mirrors of the settings first, then those of the signed fleet document as it was last known."""
    document = fleet_document(client)
    signed = [origin.url for origin in document.origin] if document is not None else []
    urls = list(dict.fromkeys([*config.origin.urls, *signed]))
    agent = f"pcm-p2p/{__version__}"
    async with OriginClient(
        urls, config.origin, state / "segments", pace=limits.wan_in, rng=rng, agent=agent
    ) as origin:
        yield origin


class _Node:
    """All rooms of one daemon. The constructor is the wiring; ``run`` is the life."""

    def __init__(
        self,
        state: Path,
        config: Config,
        identity: DeviceIdentity,
        facts: DeviceFacts,
        limits: RateLimits,
        rng: Random,
        store: ChunkStore,
        client: TrustClient,
        sidecar: Sidecar,
        outbox: Outbox,
        origin: OriginClient,
        site_origin: OriginClient | None,
        decoder: Decoder,
    ) -> None:
        me = identity.device_id
        self.state, self.config, self.identity = state, config, identity
        self.store, self.client, self.origin = store, client, origin
        self.admission = Admission(identity, client, state / "denied.json")
        self.evidence = Evidence(state / "trust" / "evidence")
        self.surroundings = Surroundings(client, identity, self.admission.is_revoked, site=config.device.site)
        self.nursery: trio.Nursery | None = None
        self.uptime = Uptime(state / "uptime.json", _wall_ms)
        uptime = self.uptime.share  # the same to all neighbours, until the next start
        discovery = Discovery(
            sidecar,
            fleet=identity.fleet,
            interfaces=config.discovery.interfaces,
            listen=config.listen.addresses,
            places=None if config.listen.addresses else lambda: [host for host, _ in self.overlay.listening],
        )
        self.overlay = Overlay(
            me,
            self.admission.security,
            OverlaySettings(
                site=config.device.site,
                role=config.device.role,
                agent=__version__,
                addresses=config.listen.addresses,
                port=config.listen.port,
                seeds=tuple(_endpoint(seed) for seed in config.discovery.seeds),
                weight=config.limits.wan_weight,
                uptime=uptime,
            ),
            rng=rng,
            introducer=discovery if config.discovery.mdns else None,
            roster_file=RosterFile(state / "run" / "roster.msgpack"),
            addresses=self.surroundings.exposed_addresses,
            interfaces=self.surroundings.exposed_interfaces,
            revoked=self.admission.is_revoked,
            pace_in=limits.lan_in,
            pace_out=limits.lan_out,
        )
        self.neighbours = Neighbours(self.overlay, self.surroundings.collector_address)
        self.seeder = Seeder(store, upload_slots=config.limits.upload_slots)
        self.site = SiteRepository(
            state / "site-trust",
            config.device.site,
            me,
            client,
            self.overlay,
            self.neighbours.source_below,
            tree=Path(config.site.repository) if config.site.repository else None,
            origin=OriginSource(site_origin) if site_origin is not None else None,
            poll_s=config.site.poll_s,
            settle_s=config.discovery.settle_s,
            wall_s=time.time,
            rng=rng,
            on_change=self._site_changed,
        )
        self.fetcher = Fetcher(
            store,
            self.neighbours,
            origin if site_origin is None else RoutedSegments(origin, site_origin, self.site.manifests),
            me,
            decoder=decoder,
            weight=config.limits.wan_weight,
            settle_s=config.discovery.settle_s,
            rng=rng,
        )
        self.follower = Follower(
            client,
            me,
            self.neighbours,
            OriginSource(origin) if origin.urls else None,
            weight=config.limits.wan_weight,
            poll_s=config.origin.poll_s,
            settle_s=config.discovery.settle_s,
            wall_s=time.time,
            on_change=self._trust_changed,
        )
        self.spreader = Spreader(self.overlay, self.follower.digest(), self.follower.ask_neighbour, rng=rng)
        keepsakes = Keepsakes(state / "releases", store, lambda: self.applier.receipts())  # noqa: PLW0108 - the applier comes below
        self.applier = make_changer(
            state, config, client, lambda: self.site.client, keepsakes.previous_package, _wall_ms
        )
        self.upkeep = Upkeep(store, state, self.fetcher.let_go)
        self.rebuilder = Rebuilder(
            self.fetcher, store, Path(config.apply.root), self.applier.receipts, self.neighbours.site_peers, me
        )
        self.caretaker = Caretaker(
            self.fetcher,
            store,
            self.neighbours.send,
            me,
            uptime,
            rng,
            copies=config.store.copies,
            surplus_s=config.store.surplus_s,
            handover_s=config.store.handover_s,
        )
        self.steward = Steward(
            client,
            store,
            self.fetcher,
            self.applier,
            keepsakes,
            self.caretaker,
            facts,
            state / "staging",
            interval_s=config.apply.interval_s,
            now=client.now,
            on_change=self._release_changed,
            on_transfer=limits.follow,
            own_site=self.site.word,
            reaches_site_origin=site_origin is not None,
        )
        self.importer = SegmentImporter(
            config.site.repository,
            self.fetcher,
            store,
            decoder,
            manifests=self.site.manifests,
            seed=self.steward.seed,
        )
        courier_limits = CourierLimits(
            direct=config.collectors.direct, interval_ms=int(1_000 * config.collectors.interval_s)
        )
        self.carrier = Carrier(
            outbox,
            Courier(me, rng, courier_limits),
            dial=self._dial_collector,
            neighbour=self.neighbours.link,
            verify_certificate=self.admission.verify_author,
            collector_keys=self.surroundings.collector_keys,
            wall_clock_ms=_wall_ms,
        )
        self.meter = Meter(state / "meter.json", self._moved)
        self.reporter = Reporter(
            self.steward,
            client,
            self.carrier,
            Inspector(make_probes(config), _wall_ms),
            self.meter,
            me,
            config.device.site,
            state / "findings.json",
            interval_s=config.assess.interval_s,
            now=_wall_clock,
            remedy=self.steward.remedy,
            learn=self.applier.learn,
        )
        self.standing = Standing(
            identity,
            config,
            state,
            client,
            self.admission,
            self.surroundings,
            self.overlay,
            installed=self._certificate_changed,
            report=lambda: self.reporter.poke(assess=False),
            rng=rng,
        )
        self.reporter.clones, self.reporter.why_not = self.standing.clones, self.standing.why_no_report
        self.reporter.forks = self.forks
        self._wire()

    def _wire(self) -> None:
        """Who hears what."""
        overlay = self.overlay
        serve_neighbours(overlay, self.seeder, self.client, self.site.serve)
        for message_type in SWARM_MESSAGES:
            overlay.register(message_type, self.fetcher.on_message)
        overlay.register(Handover, self.caretaker.on_handover)
        overlay.register(Route, self._route_heard)
        overlay.register(AcksPut, self.carrier.take_acks)
        overlay.serve(RecordsPut, self.carrier.take_records)
        overlay.watch(self._peer_changed)

    async def run(self, ended: trio.Event) -> None:
        self.meter.load()
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            await nursery.start(self.carrier.run)
            await self.surroundings.changed(self.carrier, nursery)
            await nursery.start(self.fetcher.run)
            listening = await self._listen(nursery)
            await nursery.start(self.spreader.run)
            nursery.start_soon(self.caretaker.run)
            nursery.start_soon(self.steward.run)
            nursery.start_soon(self.rebuilder.run)
            nursery.start_soon(self.follower.run)
            nursery.start_soon(self.site.run)
            nursery.start_soon(self.importer.run)
            nursery.start_soon(self.standing.run)
            nursery.start_soon(self.reporter.run)
            nursery.start_soon(self.meter.run)
            nursery.start_soon(self.uptime.run)
            nursery.start_soon(self.upkeep.run)
            nursery.start_soon(keep_small)
            commands = {**self._status().commands(), **self.upkeep.commands()}
            control = await nursery.start(_in_scope_of_its_own, serve_control, self.state, commands)
            where = ", ".join(f"{host}:{port}" for host, port in listening) or "no address"
            log.info("device %s of site %s is up at %s", self.identity.device_id, self.config.device.site, where)
            await ended.wait()
            control.cancel()
            await self.caretaker.hand_over()
            await self.overlay.leave()
            nursery.cancel_scope.cancel()

    async def _listen(self, nursery: trio.Nursery) -> tuple[tuple[str, int], ...]:
        try:
            listening: tuple[tuple[str, int], ...] = await nursery.start(self.overlay.run)
        except OSError as error:
            listen = self.config.listen
            raise InputError(
                f"{' and '.join(listen.addresses)} port {listen.port} cannot be listened on: {error.strerror or error}",
                path=self.state / "config.toml",
                key="listen",
                remedy="Choose another port or address, or end the program that has this one.",
            ) from None
        return listening

    def _status(self) -> Status:
        return Status(
            me=self.identity.device_id,
            config=self.config,
            overlay=self.overlay,
            client=self.client,
            admission=self.admission,
            forks=self.forks,
            follower=self.follower,
            site=self.site,
            standing=self.standing,
            steward=self.steward,
            fetcher=self.fetcher,
            caretaker=self.caretaker,
            origin=self.origin,
            store=self.store,
            carrier=self.carrier,
            reporter=self.reporter,
            meter=self.meter,
            wall_ms=_wall_ms,
        )

    def forks(self) -> tuple[Fork, ...]:
        """What this device has proof of that was signed twice: by the fleet's keys, and by those of its own site."""
        return (*self.evidence.forks(), *self.site.forks())

    # Inputs that concern more than one room

    async def _peer_changed(self, event: PeerUp | PeerDown) -> None:
        if isinstance(event, PeerUp):
            peer = event.peer
            if peer.same_site and peer.role != "collector":
                self.fetcher.peer_up(peer.device_id, peer.weight)
                self.caretaker.peer_up(peer.device_id, peer.uptime)
                self.carrier.peer_up(peer.device_id)
        else:
            self.fetcher.peer_down(event.device_id)
            self.caretaker.peer_down(event.device_id)
            self.carrier.peer_down(event.device_id)

    async def _route_heard(self, device: DeviceId, message: Route) -> None:
        self.carrier.peer_route(device, message)

    async def _trust_changed(self, digest: Digest) -> None:
        if self.admission.changed():
            self.overlay.reconsider()  # before anything else is said to those who are out
            await self.carrier.let_go([one.device_id for one in self.admission.revoked()])
            self.standing.renewal.look_again()
        await self.spreader.own_changed(digest)
        assert self.nursery is not None
        await self.surroundings.changed(self.carrier, self.nursery)
        self.overlay.reconsider()
        self.site.fleet_changed()
        self.steward.poke()
        self.reporter.poke(assess=True)

    async def _certificate_changed(self, identity: DeviceIdentity) -> None:
        assert self.nursery is not None
        self.surroundings.renewed(identity)
        await self.surroundings.changed(self.carrier, self.nursery)
        self.reporter.poke(assess=False)

    async def _site_changed(self) -> None:
        assert self.nursery is not None
        self.nursery.start_soon(self.follower.seek, self.site.lacks_of_the_fleets)
        self.importer.poke()
        self.steward.poke()
        self.reporter.poke(assess=True)

    async def _release_changed(self) -> None:
        finished = any(work.state in ("applied", "rolled_back", "parked") for work in self.steward.works.values())
        self.reporter.poke(assess=finished)

    async def _dial_collector(self, collector: DeviceId) -> Session:
        assert self.nursery is not None
        session: Session = await self.nursery.start(self.neighbours.dial_collector, collector)
        session.post(self.follower.digest())  # so that it can learn from this device what is newer
        return session

    def _moved(self) -> Totals:
        origin = self.origin.statistics()
        return Totals(
            origin.wan_bytes + origin.metadata_bytes,
            origin.metadata_bytes,
            self.fetcher.lan_in_bytes,
            self.seeder.statistics().lan_out_bytes,
            dict(self.steward.moved()),
        )


async def _in_scope_of_its_own(
    function: Callable[..., Awaitable[Any]],
    *args: object,
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a service that is ended before the others; reports its scope as started once the service has started."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(function, *args)
            task_status.started(scope)


def _endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _wall_clock() -> datetime:
    return datetime.now(UTC)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
