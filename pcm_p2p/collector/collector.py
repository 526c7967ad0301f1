"""The collector daemon: sessions of devices and carriers in, acknowledgements out, archive swept, console supervised.

It listens for mutual-TLS links of this fleet and speaks the same sessions as everybody else, with the role ``collector``. It
serves one request, ``RecordsPut``, and hears ``Roster``; all other requests are refused. Who connects, and whom they name, is
noted as seen, so that the console can draw devices that never report. It dials nobody.

Whom ``LinkSecurity.verify`` refuses gets no session, and loses the one it has when ``reconsider`` is called. ``visitors`` is told
who comes, goes and says what, so that the collector can learn of newer metadata from those who call on it.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from pcm_p2p.collector.archive import Archive, Seen
from pcm_p2p.collector.intake import Intake
from pcm_p2p.collector.supervisor import ConsoleSettings, supervise
from pcm_p2p.errors import InputError, PcmError, StorageError
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.doorkeeper import Doorkeeper
from pcm_p2p.wire.link import Link, LinkSecurity, Reception, open_listeners, serve_links
from pcm_p2p.wire.messages import PROTOCOL, Hello, Message, RecordsPut, Roster
from pcm_p2p.wire.session import Refuse, Session, SessionClosed

LINKS_MAX = 2_048
"""Choice: devices hang up when they have nothing to send, so this many at once serve a fleet of 100,000."""
LINKS_EACH_MAX = 4
"""Choice: a device that came back before its old link was found dead; a carrier beside its own reports."""
STRANGERS_MAX = 64
STRANGERS_EACH_MAX = 16
"""Choice: a whole office may come from one NAT address; over a satellite 16 handshakes at once are 10 a second."""
REVOKED = "revoked"
SWEEP_INTERVAL_S = 6 * 3_600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectorSettings:
    """``listen``: address and port (0: any). ``incarnation`` grows at each start. ``console`` ``None``: none is started."""

    device: DeviceId
    site: str
    agent: str
    incarnation: int
    listen: tuple[str, int]
    console: ConsoleSettings | None = None


class Visitors(Protocol):
    """Who wants to know of the sessions. None of these may raise."""

    async def came(self, session: Session) -> None: ...
    async def went(self, session: Session) -> None: ...
    async def said(self, session: Session, message: Message) -> None: ...


class Collector:
    """One collector. ``run`` in a nursery; it reports as started with the (host, port) it listens on."""

    def __init__(
        self,
        settings: CollectorSettings,
        security: LinkSecurity,
        archive: Archive,
        intake: Intake,
        *,
        wall_clock_ms: Callable[[], int],
        visitors: Visitors | None = None,
    ) -> None:
        self._settings = settings
        self._visitors = visitors
        self._certificates: dict[Session, bytes] = {}
        self._nursery: trio.Nursery | None = None
        self._security = security
        self._archive = archive
        self._intake = intake
        self._wall_clock_ms = wall_clock_ms
        self._port = 0
        self._links: Counter[DeviceId] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED) -> None:
        """Collect until cancelled. Raises ``InputError`` if the address cannot be used."""
        host, port = self._settings.listen
        try:
            listeners = await open_listeners([host], port)
        except OSError as error:
            raise InputError(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                remedy="Choose another --listen address or port.",
            ) from None
        self._port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._sweep)
            if self._settings.console is not None:
                nursery.start_soon(supervise, self._settings.console.command())
            await nursery.start(self._serve_links, listeners)
            task_status.started((host, self._port))

    async def _serve_links(
        self,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[list[trio.SocketListener]],
    ) -> None:
        doorkeeper = Doorkeeper(
            at_once_max=STRANGERS_MAX, each_at_once_max=STRANGERS_EACH_MAX, burst=200, rate_per_s=20.0
        )
        reception = Reception(self._security, self._use, links_max=LINKS_MAX, doorkeeper=doorkeeper)
        await serve_links(listeners, reception, task_status=task_status)

    async def _use(self, link: Link) -> None:
        """Run a session over ``link`` to its end."""
        if self._links[link.device] >= LINKS_EACH_MAX:
            return
        self._links[link.device] += 1
        session = Session(
            link.stream,
            self._hello(),
            device=link.device,
            role=link.role,
            site=link.site,
            dialled=False,
            serve={RecordsPut: self._take},
            on_message=self._hear,
            on_start=self._greet,
        )
        self._certificates[session] = link.certificate_der
        try:
            with contextlib.suppress(SessionClosed):
                await session.run()
        except Exception:  # a fault of ours that one device brought about must not end the sessions of all others
            _log.exception("the session with %s failed", link.device.short)
        finally:
            del self._certificates[session]
            with trio.CancelScope(shield=True):
                if self._visitors is not None:
                    await self._visitors.went(session)
            self._links[link.device] -= 1
            if not self._links[link.device]:
                del self._links[link.device]

    def _hello(self) -> Hello:
        settings = self._settings
        return Hello(
            PROTOCOL,
            self._security.fleet,
            settings.site,
            "collector",
            self._port,
            settings.incarnation,
            0,
            settings.agent,
        )

    def reconsider(self) -> None:
        """Whom ``LinkSecurity.verify`` believes has changed: sessions of those it refuses now end."""
        for session in [*self._certificates]:
            if (refusal := self._refusal(session)) and self._nursery is not None:
                _log.warning("ending the session with %s: %s", session.device.short, refusal)
                self._nursery.start_soon(session.close, REVOKED)

    def _refusal(self, session: Session) -> str:
        try:
            self._security.verify(self._certificates[session])
        except PcmError as error:
            return error.message
        return ""

    async def _take(self, session: Session, message: Any) -> bytes:
        if session.role == "collector":
            raise Refuse("denied")
        return await self._intake.take(session.device, message)

    async def _greet(self, session: Session) -> None:
        if self._refusal(session):  # revoked since its handshake
            await session.close(REVOKED)
            return
        if self._visitors is not None and session.role != "collector":
            await self._visitors.came(session)
        if session.role != "collector":
            await self._note([Seen(session.device, session.peer_hello.site)], session.device)

    async def _hear(self, session: Session, message: Message) -> None:
        if isinstance(message, Roster):
            seen = [Seen(DeviceId(entry.device), entry.site) for entry in message.entries]
            await self._note([one for one in seen if one.device != self._settings.device], session.device)
        elif self._visitors is not None:
            await self._visitors.said(session, message)

    async def _note(self, seen: list[Seen], by: DeviceId) -> None:
        try:
            await self._archive.seen(seen, by=by, now_ms=self._wall_clock_ms())
        except StorageError as error:
            _log.error("what %s has seen cannot be noted: %s", by.short, error)

    async def _sweep(self) -> None:
        while True:
            try:
                dropped = await self._archive.sweep(self._wall_clock_ms())
            except StorageError as error:
                _log.error("the archive cannot be swept: %s", error)
            else:
                if dropped:
                    _log.info("dropped %d reports past their retention", dropped)
            await trio.sleep(SWEEP_INTERVAL_S)


def fleet_document_table(device: DeviceId, address: str, *, seal_key: bytes, verify_key: bytes) -> str:
    """The ``[[collector]]`` table to paste into the fleet document. Keys are raw public keys, 32 bytes each."""
    return (
        "[[collector]]\n"
        f'id = "{device}"\n'
        f'address = "{address}"\n'
        f'seal_key = "{seal_key.hex()}"\n'
        f'verify_key = "{verify_key.hex()}"\n'
    )
