"""The overlay: this device's sessions with its neighbours. A shell around ``membership``.

It listens, dials whom the membership core names, keeps one session per device, passes messages to those who registered for
them, and tells them who came and went. What messages mean is not its matter, rosters excepted.

One session per device: when both dial each other, the connection dialled by the lower id stays; a peer with a higher
incarnation has restarted, so its new connection replaces the old one; a device never dials a second time itself.

Order that handlers can rely on: ``PeerUp`` before any message of that peer, messages one after the other, ``PeerDown`` after the
last, and a replaced session is ``PeerDown`` and ``PeerUp``.

Who may not speak with this device: ``LinkSecurity.verify`` refuses certificates at the handshake, and again when ``reconsider``
is called, which ends the sessions of those who are refused by then; ``revoked`` keeps devices out of rosters.

Shutdown: ``leave()`` says Bye to everybody, so that they need not suspect; cancelling ``run`` alone is a crash to the others.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from random import Random
from typing import Any

import trio

from pcm_p2p.errors import PcmError
from pcm_p2p.gossip.announcer import Introducer, keep_announced
from pcm_p2p.gossip.clone_watch import CloneWatch
from pcm_p2p.gossip.doors import Doors
from pcm_p2p.gossip.handlers import Handler, Handlers, Server, Watcher
from pcm_p2p.gossip.membership import (
    Dial,
    DialFailed,
    Dialled,
    Effect,
    Event,
    Introduced,
    Membership,
    NetworkChanged,
    Refute,
    RosterHeard,
    SessionDown,
    SessionUp,
    Tell,
    Tick,
    WeightChanged,
)
from pcm_p2p.gossip.peer import PeerDown, PeerInfo, PeerUp
from pcm_p2p.gossip.roster_file import Remembered, RosterFile, next_incarnation
from pcm_p2p.gossip.session_table import FOREIGN_SESSIONS_MAX, OverlayStatistics, SessionTable
from pcm_p2p.gossip.settings import OverlaySettings
from pcm_p2p.gossip.targets import Address
from pcm_p2p.ids import ChunkId, DeviceId
from pcm_p2p.wire.link import Link, LinkFailed, LinkSecurity, Reception, dial
from pcm_p2p.wire.messages import PROTOCOL, ChunkGet, FileGet, Hello, Message, Roster, RosterEntry
from pcm_p2p.wire.session import RATE_BYTES_PER_S_MIN, Pace, Session, SessionClosed

TICK_S = 1.0
ROLES = ("device", "collector", "relay")
SAVE_INTERVAL_S = 60.0
FETCH_TIMEOUT_S = 15.0
LEAVING = "leaving"
REVOKED = "revoked"

_log = logging.getLogger(__name__)


class Overlay:
    """Register handlers first, then ``run`` in a nursery; ``run`` reports as started with the (host, port) it listens on."""

    def __init__(
        self,
        device: DeviceId,
        security: LinkSecurity,
        settings: OverlaySettings,
        *,
        rng: Random,
        introducer: Introducer | None = None,
        roster_file: RosterFile | None = None,
        addresses: Callable[[], Sequence[str]] | None = None,
        interfaces: Callable[[], Collection[str]] | None = None,
        revoked: Callable[[DeviceId], bool] = lambda _device: False,
        pace_in: Pace | None = None,
        pace_out: Pace | None = None,
        wall_clock_s: Callable[[], float] = time.time,
    ) -> None:
        self.device = device
        self._security = security
        self._settings = settings
        self._rng = rng
        self._introducer = introducer
        self._roster_file = roster_file or RosterFile(None)
        self._pace_in, self._pace_out = pace_in, pace_out
        self._remembered = self._roster_file.load()
        self._membership = Membership(
            device,
            site=settings.site,
            port=settings.port,
            incarnation=next_incarnation(self._remembered.incarnation, int(wall_clock_s())),
            weight=settings.weight,
            rng=rng,
        )
        self._handlers = Handlers()
        self._table = SessionTable(device, settings.site, settings.role, settings.sessions_max)
        self.clones = CloneWatch(device, self._table)
        self._dialling: set[DeviceId] = set()
        self._certificates: dict[Session, bytes] = {}
        self._revoked = revoked
        reception = self.reception = Reception(
            security, self._use, links_max=settings.sessions_max + FOREIGN_SESSIONS_MAX
        )
        fixed = addresses is None or bool(settings.addresses)
        self._doors = Doors(
            (lambda: settings.addresses) if fixed or addresses is None else addresses,
            reception,
            self._doors_changed,
            fixed=fixed,
        )
        if not fixed:
            reception.interfaces = interfaces
        self._nursery: trio.Nursery | None = None
        self._leaving = False
        self._saved_s = 0.0

    # Before run

    def register(self, message_type: type[Message], handler: Handler) -> None:
        """``await handler(device, message)`` for each message of this type; several handlers run in the order registered.

        A handler must not wait for an answer of the same peer: what that peer sends waits behind it.
        """
        self._handlers.register(message_type, handler)

    def serve(self, request_type: type[Message], server: Server) -> None:
        """``await server(device, request)`` gives the answer's bytes, or raises ``wire.session.Refuse``."""
        self._handlers.serve(request_type, server)

    def watch(self, watcher: Watcher) -> None:
        """``await watcher(PeerUp | PeerDown)``, in order. Same limits as ``register``."""
        self._handlers.watch(watcher)

    # While it runs

    def peers(self) -> list[PeerInfo]:
        """All peers with a live session, by id."""
        return [self._info(session) for session in self._table.all()]

    def site_peers(self) -> list[PeerInfo]:
        """The peers of my site whose bytes are cheap: those that the swarm may count on."""
        return [peer for peer in self.peers() if peer.same_site and peer.role != "collector"]

    def session_with(self, device: DeviceId) -> Session | None:
        """The live session with a peer, for hand-overs that need more than ``send`` and ``fetch``."""
        return self._table.get(device)

    def known(self) -> list[DeviceId]:
        """Devices of this site that are believed to be alive, with a session or not."""
        return [device for device in self._membership.alive() if not self._revoked(device)]

    def roster(self) -> tuple[RosterEntry, ...]:
        """What I would tell a newcomer of this site, myself first."""
        return self._without_revoked(self._membership.roster())

    @property
    def listening(self) -> tuple[tuple[str, int], ...]:
        """Host and port of every address that is listened on at present."""
        return self._doors.listening

    def reconsider(self) -> None:
        """Whom ``LinkSecurity.verify`` believes has changed: sessions of those it refuses now end; doors may open or close."""
        self._doors.look_again()
        for session, certificate_der in [*self._certificates.items()]:
            if (refusal := self._refusal(certificate_der)) and self._nursery is not None:
                _log.warning("ending the session with %s: %s", session.device.short, refusal)
                self._nursery.start_soon(session.close, REVOKED)

    async def send(self, device: DeviceId, message: Message) -> None:
        """Queue a message to one peer. Raises ``SessionClosed`` if there is no session."""
        await self._session(device).send(message)

    async def broadcast(self, message: Message, except_: Collection[DeviceId] = (), *, site_only: bool = False) -> None:
        """Queue a message to all peers; those whose session ends meanwhile are skipped."""
        for session in self._table.all():
            if session.device not in except_ and not (site_only and self._table.is_foreign(session)):
                self._post(session, message)
        await trio.lowlevel.checkpoint()

    async def fetch(
        self,
        device: DeviceId,
        make_request: Callable[[int], Message],
        size_bytes_max: int,
        timeout_s: float = FETCH_TIMEOUT_S,
        rate_bytes_per_s_min: int = RATE_BYTES_PER_S_MIN,
    ) -> bytes:
        """One request to one peer; see ``Session.fetch`` for how it can end."""
        return await self._session(device).fetch(make_request, size_bytes_max, timeout_s, rate_bytes_per_s_min)

    async def fetch_chunk(self, device: DeviceId, chunk: ChunkId, size_bytes_max: int) -> bytes:
        """The sealed form of a chunk, unverified."""
        return await self.fetch(device, lambda number: ChunkGet(number, bytes(chunk)), size_bytes_max)

    async def fetch_file(self, device: DeviceId, path: str, size_bytes_max: int) -> bytes:
        """A file of the peer's trusted metadata or targets, unverified."""
        return await self.fetch(device, lambda number: FileGet(number, path), size_bytes_max)

    def introduce(self, host: str, port: int, device: DeviceId | None = None) -> None:
        """Somebody may listen there."""
        self._fold(Introduced(Address(host, port), device))

    def set_weight(self, weight: int) -> None:
        """My wish to fetch over the WAN changed (0: never)."""
        if weight != self._membership.weight:
            self._fold(WeightChanged(weight))

    def network_changed(self) -> None:
        """Forget all back-offs and try everybody again."""
        self._doors.look_again()
        self._fold(NetworkChanged())

    def statistics(self) -> OverlayStatistics:
        return self._table.statistics()

    @contextlib.asynccontextmanager
    async def dial(self, host: str, port: int, role: str) -> AsyncIterator[Session]:
        """A session of its own with the node at this address, closed at the end; used for collectors.

        Registered handlers and servers serve it too; it does not count as a peer. Raises ``LinkFailed`` (also when the
        node's certificate names another role) or ``SessionClosed``.
        """
        link = await dial(host, port, self._security)
        if link.role != role:
            await trio.aclose_forcefully(link.stream)
            raise LinkFailed(f"{host}:{port}: its certificate says {link.role}, not {role}")
        if self._nursery is None:
            await trio.aclose_forcefully(link.stream)
            raise SessionClosed("the overlay is not running")
        session = self._new_session(link, self._handlers.deliver, None)
        await self._nursery.start(self._run_on_the_side, session)
        try:
            yield session
        finally:
            with trio.CancelScope(shield=True):
                await session.close("done")

    async def leave(self) -> None:
        """Say Bye to all peers and stop dialling; at most a second. Call before cancelling ``run``."""
        self._leaving = True
        self._save()
        async with trio.open_nursery() as nursery:
            for session in self._table.all():
                nursery.start_soon(session.close, LEAVING)

    async def run(
        self, *, task_status: trio.TaskStatus[tuple[tuple[str, int], ...]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen, dial and serve until cancelled. Raises ``OSError`` if it cannot listen."""
        refusal: OSError | None = None  # raised outside of the nursery, which would make a group of it
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    await nursery.start(self._doors.run, self._settings.port, self._remembered.port)
                except OSError as error:
                    refusal = error
                else:
                    await self._begin(nursery)
                    task_status.started(self.listening)
        finally:
            self._nursery = None
            self._save()
        if refusal is not None:
            raise refusal

    # Inside

    async def _begin(self, nursery: trio.Nursery) -> None:
        self._fold(Tick())
        for host, port in self._settings.seeds:
            self._fold(Introduced(Address(host, port), seed=True))
        for entry in self._remembered.entries:
            if entry.host and entry.device != self.device and entry.site == self._settings.site:
                self._fold(Introduced(Address(entry.host, entry.port), DeviceId(entry.device)))
        nursery.start_soon(self._keep_time)
        if self._introducer is not None:
            await nursery.start(
                self._introducer.run,
                lambda: self._membership.port,
                self._introduce_candidate,
                self.network_changed,
            )
            nursery.start_soon(
                keep_announced, self._introducer, self.device, self._security.fleet, self.known, self._rng
            )

    def _doors_changed(self) -> None:
        self._membership.port = self.listening[0][1] if self.listening else 0

    def _refusal(self, certificate_der: bytes) -> str:
        try:
            self._security.verify(certificate_der)
        except PcmError as error:
            return error.message
        return ""

    def _without_revoked(self, entries: Iterable[RosterEntry]) -> tuple[RosterEntry, ...]:
        return tuple(entry for entry in entries if not self._revoked(DeviceId(entry.device)))

    def _introduce_candidate(self, candidate: Any) -> None:
        self.introduce(candidate.host, candidate.port)

    def _now_ms(self) -> int:
        return int(trio.current_time() * 1_000)

    def _fold(self, event: Event) -> None:
        if isinstance(event, RosterHeard):
            event = RosterHeard(event.sender, self._without_revoked(event.entries))
        for effect in self._membership.handle(event, self._now_ms()):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Tell):
            effect = Tell(self._without_revoked(effect.entries), effect.to)
        match effect:
            case Dial(address):
                if self._nursery is None or self._leaving:
                    return
                self._nursery.start_soon(self._dial, address)
            case Tell(entries, None):
                for session in self._table.all():
                    if not self._table.is_foreign(session):
                        self._post(session, Roster(entries))
            case Tell(entries, device) if device is not None and (told := self._table.get(device)) is not None:
                self._post(told, Roster(entries))
            case Refute():
                self._save()

    @staticmethod
    def _post(session: Session, message: Message) -> None:
        with contextlib.suppress(SessionClosed):
            session.post(message)

    async def _keep_time(self) -> None:
        while True:
            await trio.sleep_until(math.floor(trio.current_time()) + TICK_S)  # together with the pings of sessions
            self._fold(Tick())
            if trio.current_time() - self._saved_s > SAVE_INTERVAL_S:
                self._save()
                self.reconsider()  # certificates end

    def _save(self) -> None:
        self._saved_s = trio.current_time()
        others = self._membership.roster()[1:]
        entries = others or self._remembered.entries  # alone for a while: do not forget the neighbours
        self._roster_file.save(Remembered(self._membership.incarnation, self._membership.port, entries))

    async def _dial(self, address: Address) -> None:
        reached: DeviceId | None = None
        try:
            link = await dial(address.host, address.port, self._security)
        except LinkFailed as error:
            _log.debug("%s", error)
            self._fold(DialFailed(address))
            return
        try:
            self._fold(Dialled(address, link.device))
            existing = self._table.get(link.device)
            if link.device in self._dialling or (existing is not None and existing.dialled):
                return
            reached = link.device
            self._dialling.add(reached)
            if not await self._use(link):
                self._fold(DialFailed(address))
        finally:
            if reached is not None:
                self._dialling.discard(reached)
            await trio.aclose_forcefully(link.stream)

    def _new_session(
        self,
        link: Link,
        on_message: Callable[[Session, Message], Awaitable[None]],
        on_start: Callable[[Session], Awaitable[None]] | None,
    ) -> Session:
        me, own, fleet, instance = self._membership, self._settings, self._security.fleet, self.clones.instance
        hello = Hello(
            PROTOCOL, fleet, own.site, own.role, me.port, me.incarnation, me.weight, own.agent, own.uptime, instance
        )
        session = Session(
            link.stream,
            hello,
            device=link.device,
            role=link.role,
            site=link.site,
            dialled=link.dialled,
            serve=self._handlers.servers,
            on_message=on_message,
            on_start=on_start,
            pace_in=self._pace_in,
            pace_out=self._pace_out,
        )
        self._certificates[session] = link.certificate_der
        return session

    async def _use(self, link: Link) -> bool:
        """Run a session over the link to its end; returns whether it was admitted."""
        if link.role not in ROLES or self._leaving:
            return False
        admitted = False

        async def admit(session: Session) -> None:
            nonlocal admitted
            self._dialling.discard(link.device)
            doubt = self.clones.refusal(session, link.began_s, self._nursery)
            if self._refusal(link.certificate_der):  # revoked since its handshake
                doubt = REVOKED
            refusal = LEAVING if self._leaving else doubt or self._table.refusal(session)
            if refusal:
                await session.close(refusal)
                return
            admitted = True
            await self._admit(session, link.host)

        session = self._new_session(link, self._dispatch, admit)
        try:
            reason = await session.run()
        except SessionClosed as error:
            reason = error.message
        except Exception:  # a fault of ours that one peer brought about must not end the sessions with all others
            _log.exception("the session with %s failed", link.device.short)
            reason = "internal error"
        self._certificates.pop(session, None)
        self._table.count_closed(session)
        self.clones.ended(session)
        if self._table.holds(session):
            _log.info("session with %s ended: %s", link.device.short, reason)
            await self._dismiss(session, reason)
        return admitted

    async def _admit(self, session: Session, host: str) -> None:
        device, hello = session.device, session.peer_hello
        old = self._table.admit(session, host)
        if old is not None:
            if self._nursery is not None:
                self._nursery.start_soon(self.clones.retire, old)
            await self._handlers.announce(PeerDown(device, "replaced"))
            if not self._table.holds(session):
                return
        address = Address(host, hello.port) if hello.port else None
        self._fold(SessionUp(device, address, hello.site, hello.incarnation, hello.weight))
        _log.info("session with %s (%s, site %s) at %s", device.short, session.role, hello.site, host)
        await self._handlers.announce(PeerUp(self._info(session)))

    async def _dismiss(self, session: Session, reason: str) -> None:
        self._table.remove(session)
        self._fold(SessionDown(session.device, session.bye_reason == LEAVING))
        await self._handlers.announce(PeerDown(session.device, reason))

    async def _run_on_the_side(
        self, session: Session, *, task_status: trio.TaskStatus[Hello] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await session.run(task_status=task_status)
        finally:
            self._certificates.pop(session, None)
            self._table.count_closed(session)

    async def _dispatch(self, session: Session, message: Message) -> None:
        if self._table.holds(session):
            if isinstance(message, Roster):
                self._fold(RosterHeard(session.device, message.entries))
            else:
                await self._handlers.deliver(session, message)

    def _session(self, device: DeviceId) -> Session:
        session = self._table.get(device)
        if session is None:
            raise SessionClosed(f"no session with {device.short}")
        return session

    def _info(self, session: Session) -> PeerInfo:
        hello = session.peer_hello
        member = self._membership.members.get(session.device)
        return PeerInfo(
            session.device,
            self._table.host(session.device),
            hello.site,
            session.role,
            min(member.weight if member is not None else hello.weight, 16),
            hello.site == self._settings.site,
            hello.agent,
            session.statistics().round_trip_s,
            hello.uptime,
        )
