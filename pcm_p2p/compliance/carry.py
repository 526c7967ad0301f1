"""Carry: performs what the courier decides, and answers neighbours. The only writer of the outbox while the daemon runs.

Inputs come from three sides and meet in one queue, so that the core sees one event at a time: the daemon (new reports, the
fleet's collectors), the overlay (neighbours come, go and say whether they have a route) and sessions (records and
acknowledgements of others). Outputs run as tasks of ``run``'s nursery, at most one hand-over per target, each with a deadline.

Bytes of others are opened here: a record is checked before it is stored, an acknowledgement before it is believed. A
neighbour that sends junk gets "not taken" for it and is named in the log.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Protocol

import trio

from pcm_p2p.compliance.acknowledgement import open_ack_untrusted
from pcm_p2p.compliance.carriage import (
    Answered,
    CollectorDown,
    CollectorsKnown,
    CollectorUp,
    Dial,
    Effect,
    Event,
    Gone,
    HandAcks,
    HangUp,
    PeerDown,
    PeerRoute,
    PeerUp,
    Put,
    PutFailed,
    SayRoute,
    Stored,
    Tick,
)
from pcm_p2p.compliance.courier import Courier
from pcm_p2p.compliance.handover import TAKEN_SIZE_BYTES_MAX, decode_taken_untrusted, encode_taken
from pcm_p2p.compliance.outbox import Outbox, OutboxStatistics
from pcm_p2p.compliance.own_records import Sealer
from pcm_p2p.compliance.parcel import Changed, Kept
from pcm_p2p.compliance.record import Record, VerifyCertificate, open_record_untrusted
from pcm_p2p.compliance.report import ReportBody, pack
from pcm_p2p.errors import PcmError, StorageError, TransferError, UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.messages import AcksPut, Message, RecordsPut, Route

DIAL_TIMEOUT_S = 20.0
"""Choice: connect and mutual TLS over a satellite take 4 s."""
PUT_TIMEOUT_S = 60.0
"""Choice: a full hand-over at 64 kbit/s takes 12 s, a record of the largest size 32 s."""
EXPIRE_INTERVAL_S = 3_600.0

_log = logging.getLogger(__name__)


class Link(Protocol):
    """What hand-overs need of a session (``wire.session.Session``)."""

    @property
    def closed(self) -> trio.Event: ...

    def post(self, message: Message) -> None: ...

    async def fetch(
        self,
        make_request: Callable[[int], Message],
        size_bytes_max: int,
        timeout_s: float,
        rate_bytes_per_s_min: int = ...,
    ) -> bytes: ...

    async def close(self, reason: str) -> None: ...


class Carrier:
    """The shell around ``Courier`` and ``Outbox``.

    ``dial(collector)`` opens a session with a collector or raises ``PcmError``; ``neighbour(device)`` is the live session with a
    device of the site, or None. ``collector_keys()`` are the verify keys of the fleet document, ``wall_clock_ms()``
    milliseconds since 1970.
    """

    def __init__(
        self,
        outbox: Outbox,
        courier: Courier,
        *,
        dial: Callable[[DeviceId], Awaitable[Link]],
        neighbour: Callable[[DeviceId], Link | None],
        verify_certificate: VerifyCertificate,
        collector_keys: Callable[[], Mapping[DeviceId, bytes]],
        wall_clock_ms: Callable[[], int],
    ) -> None:
        self._outbox = outbox
        self._courier = courier
        self._dial = dial
        self._neighbour = neighbour
        self._verify_certificate = verify_certificate
        self._collector_keys = collector_keys
        self._wall_clock_ms = wall_clock_ms
        self._events: deque[Event] = deque()
        self._wake = trio.Event()
        self._peers: dict[DeviceId, None] = {}
        self._uplinks: dict[DeviceId, Link] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry until cancelled. Reports as started once the outbox has been read."""
        self._fold(Stored(tuple(await self._outbox.load())))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._expire)
            task_status.started()
            while True:
                self._wake = trio.Event()
                while self._events:
                    for effect in self._courier.handle(self._events.popleft(), _now_ms()):
                        nursery.start_soon(self._perform, effect)
                wake_at_ms = self._courier.wake_at_ms
                with trio.move_on_at(math.inf if wake_at_ms is None else wake_at_ms / 1_000):
                    await self._wake.wait()
                    continue
                self._events.append(Tick())

    # From the daemon

    async def report(self, report: ReportBody) -> None:
        """Number, seal and store a report; it is on its way when this returns. Raises what ``Outbox.add`` and ``pack`` raise."""
        self._changed(await self._outbox.add(pack(report), report.created_ms))

    async def collectors(self, sealer: Sealer, collectors: Iterable[DeviceId]) -> None:
        """The fleet document's collectors: whom to dial, and how to seal to them. Call at start and at each change."""
        self._changed(await self._outbox.seal_with(sealer, self._wall_clock_ms()))
        self._fold(CollectorsKnown(tuple(collectors)))

    async def let_go(self, authors: Collection[DeviceId]) -> None:
        """These devices are revoked: what is carried for them is dropped. What comes anew ``verify_certificate`` refuses."""
        try:
            self._changed(await self._outbox.let_go(authors))
        except StorageError as error:
            _log.warning("records of revoked devices cannot be dropped: %s", error)

    async def statistics(self) -> OutboxStatistics:
        return await self._outbox.statistics()

    @property
    def route(self) -> str:
        """How reports leave this device at present, in words."""
        return self._courier.route

    # From the overlay

    def peer_up(self, peer: DeviceId) -> None:
        """There is a session with a device of my site."""
        self._peers[peer] = None
        self._fold(PeerUp(peer))

    def peer_down(self, peer: DeviceId) -> None:
        self._peers.pop(peer, None)
        self._fold(PeerDown(peer))

    def peer_route(self, peer: DeviceId, message: Route) -> None:
        self._fold(PeerRoute(peer, message.collector_reachable))

    async def take_records(self, peer: DeviceId, message: RecordsPut) -> bytes:
        """Answer a hand-over: keep what is genuine and fits. The answer is an encoded ``RecordsTaken``."""
        opened: list[Record | None] = []
        for data in message.records:
            try:
                opened.append(open_record_untrusted(data, self._verify_certificate))
            except UntrustedBytes as error:
                _log.warning("%s handed over a record that is refused: %s", peer.short, error)
                opened.append(None)
            await trio.lowlevel.checkpoint()
        genuine = [record for record in opened if record is not None]
        try:
            answers, changed = await self._outbox.keep(genuine, peer, self._wall_clock_ms())
            self._changed(changed)
            by_hash = {record.hash: answer for record, answer in zip(genuine, answers, strict=True)}
            finished = [record.device for record in genuine if by_hash[record.hash] is Kept.ACKNOWLEDGED]
            acks = await self._outbox.acks_about(finished) if finished else []
        except StorageError as error:
            _log.warning("records of %s cannot be kept: %s", peer.short, error)
            return encode_taken([False] * len(opened))
        return encode_taken([record is not None and by_hash[record.hash].taken for record in opened], acks)

    async def take_acks(self, peer: DeviceId, message: AcksPut) -> None:
        """Believe what collectors signed, whoever brings it."""
        try:
            await self._acknowledge(peer, message.acks)
        except StorageError as error:
            _log.warning("an acknowledgement cannot be stored: %s", error)

    # Effects

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case Dial(collector):
                await self._open_uplink(collector)
            case HangUp(collector):
                if (uplink := self._uplinks.pop(collector, None)) is not None:
                    await uplink.close("nothing to send")
            case Put(target, hashes, to_collector):
                link = self._uplinks.get(target) if to_collector else self._neighbour(target)
                await self._put(link, target, hashes)
            case SayRoute(reachable, None):
                for peer in [*self._peers]:
                    self._post(peer, Route(reachable))
            case SayRoute(reachable, DeviceId() as peer):
                self._post(peer, Route(reachable))
            case HandAcks(peer, authors):
                try:
                    acks = await self._outbox.acks_about(authors)
                except StorageError as error:
                    _log.warning("acknowledgements cannot be read: %s", error)
                else:
                    if acks:
                        self._post(peer, AcksPut(tuple(acks)))

    async def _open_uplink(self, collector: DeviceId) -> None:
        try:
            with trio.fail_after(DIAL_TIMEOUT_S):
                uplink = await self._dial(collector)
        except (PcmError, trio.TooSlowError) as error:
            _log.info("no route to collector %s: %s", collector.short, error or "timed out")
            self._fold(CollectorDown(collector))
            return
        self._uplinks[collector] = uplink
        self._fold(CollectorUp(collector))
        await uplink.closed.wait()
        if self._uplinks.get(collector) is uplink:
            del self._uplinks[collector]
            self._fold(CollectorDown(collector))

    async def _put(self, link: Link | None, target: DeviceId, hashes: tuple[bytes, ...]) -> None:
        try:
            if link is None:
                raise TransferError("the session is gone")
            stored = await self._outbox.read(hashes)
            sent = [wanted for wanted in hashes if wanted in stored]
            records = tuple(stored[wanted] for wanted in sent)
            answer = decode_taken_untrusted(
                await link.fetch(lambda request: RecordsPut(request, records), TAKEN_SIZE_BYTES_MAX, PUT_TIMEOUT_S, 0),
                len(records),
            )
            await self._acknowledge(target, answer.acks)
        except PcmError as error:
            _log.info("reports were not handed over to %s: %s", target.short, error)
            self._fold(PutFailed(target, hashes))
        else:
            self._fold(Answered(target, tuple(sent), answer.taken))

    async def _acknowledge(self, giver: DeviceId, acks: Iterable[bytes]) -> None:
        for data in acks:
            try:
                ack = open_ack_untrusted(data, self._collector_keys())
            except UntrustedBytes as error:
                _log.warning("%s handed over an acknowledgement that is refused: %s", giver.short, error)
                continue
            changed = await self._outbox.acknowledge(ack, self._wall_clock_ms())
            if changed.new_epoch is not None:
                _log.warning(
                    "collector %s has other reports under my numbers (restored from a backup?): numbering anew as epoch %d",
                    ack.collector.short,
                    changed.new_epoch,
                )
            self._changed(changed)

    async def _expire(self) -> None:
        while True:
            try:
                self._changed(await self._outbox.expire(self._wall_clock_ms()))
            except StorageError as error:
                _log.warning("carried records cannot be swept: %s", error)
            await trio.sleep(EXPIRE_INTERVAL_S)

    def _post(self, peer: DeviceId, message: Message) -> None:
        link = self._neighbour(peer)
        if link is not None:
            try:
                link.post(message)
            except PcmError as error:
                _log.debug("%s was not told: %s", peer.short, error)

    def _changed(self, changed: Changed) -> None:
        if changed.removed or changed.advanced:
            self._fold(Gone(changed.removed, changed.advanced))
        if changed.added:
            self._fold(Stored(changed.added))

    def _fold(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()


def _now_ms() -> int:
    """Milliseconds of trio's clock, rounded up, so that a wake-up is never before its time."""
    return math.ceil(trio.current_time() * 1_000)
