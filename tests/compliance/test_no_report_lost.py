"""No report is lost and none is doubled: outboxes and couriers of three devices and a collector, whatever goes wrong.

Hypothesis draws reports, kills, lost, repeated and reordered messages, links and routes that come and go, and state folders
that are restored from a backup. Then the world heals, and every report must be at the collector, once, and every outbox empty.
The outboxes run on real SQLite in memory, inline; a kill keeps what was committed.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from compliance_world import START_MS, FakeCollector, FakeDevice, verify_certificate
from hypothesis import HealthCheck
from hypothesis import settings as budget
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from pcm_p2p.compliance.acknowledgement import open_ack_untrusted
from pcm_p2p.compliance.carriage import (
    Answered,
    CollectorDown,
    CollectorsKnown,
    CollectorUp,
    Dial,
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
from pcm_p2p.compliance.courier import Courier, CourierLimits
from pcm_p2p.compliance.outbox import MIGRATIONS, Outbox
from pcm_p2p.compliance.parcel import Changed, Kept
from pcm_p2p.compliance.record import open_record_untrusted
from pcm_p2p.compliance.report import pack
from pcm_p2p.ids import DeviceId

T = TypeVar("T")
COLLECTOR = FakeCollector()
DEVICES = [FakeDevice(name) for name in ("alice", "bob", "carol")]
COLLECTOR_KEYS = COLLECTOR.keys


def inline(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("it waited")


class InlineConnection:
    """The part of an aiosqlite connection that the outbox uses, without a thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def execute(self, sql: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        return self._connection.execute(sql, values)

    async def execute_fetchall(self, sql: str, values: tuple[object, ...] = ()) -> list[sqlite3.Row]:
        return self._connection.execute(sql, values).fetchall()


class Killed(BaseException):
    """SIGKILL before the commit."""


class InlineDatabase:
    def __init__(self, image: bytes | None = None) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        self.die_before_commit = False
        if image is None:
            for script in MIGRATIONS:
                self.connection.executescript(script)
        else:
            self.connection.deserialize(image)

    async def transaction(self, work: Callable[[Any], Awaitable[T]]) -> T:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            result = await work(InlineConnection(self.connection))
            if self.die_before_commit:
                raise Killed
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
        return result

    async def read(self, work: Callable[[Any], Awaitable[T]]) -> T:
        return await work(InlineConnection(self.connection))


@dataclass
class Message:
    """Under way. ``life`` is the run of the sender that waits for the outcome."""

    kind: str
    sender: DeviceId
    target: DeviceId
    life: int
    body: Any


@dataclass
class Node:
    device: FakeDevice
    direct: bool
    database: InlineDatabase = field(default_factory=InlineDatabase)
    life: int = 0
    peers: set[DeviceId] = field(default_factory=set)

    def start(self, now_ms: int) -> None:
        self.life += 1
        self.database.die_before_commit = False
        self.outbox = Outbox(self.database, self.device.id)
        self.courier = Courier(self.device.id, Random(self.life), CourierLimits(direct=self.direct))
        self.peers = set()
        changed = inline(self.outbox.seal_with(self.device.sealer(COLLECTOR, seed=self.life), START_MS + now_ms))
        assert changed == Changed()


class World:
    def __init__(self) -> None:
        self.now_ms = 0
        self.collector = FakeCollector()
        self.nodes = {device.id: Node(device, direct=number > 0) for number, device in enumerate(DEVICES)}
        self.routes: set[DeviceId] = set()
        self.wire: list[Message] = []
        self.serial = 0
        self.made: dict[DeviceId, set[int]] = {device.id: set() for device in DEVICES}
        self.restored: set[DeviceId] = set()
        self.may_be_gone: dict[DeviceId, set[int]] = {device.id: set() for device in DEVICES}
        for node in self.nodes.values():
            self.start(node)

    def start(self, node: Node) -> None:
        for other in self.nodes.values():
            if node.device.id in other.peers:
                other.peers.discard(node.device.id)
                self.fold(other, PeerDown(node.device.id))
        node.start(self.now_ms)
        self.fold(node, Stored(tuple(inline(node.outbox.load()))))
        self.fold(node, CollectorsKnown((self.collector.id,)))

    @contextlib.contextmanager
    def alive(self, node: Node) -> Iterator[None]:
        """A kill inside starts the node again."""
        try:
            yield
        except Killed:
            self.start(node)

    def fold(self, node: Node, event: Event) -> None:
        for effect in node.courier.handle(event, self.now_ms):
            me = node.device.id
            match effect:
                case Dial(collector):
                    self.send("dial", me, collector, node.life, None)
                case HangUp():
                    pass
                case Put(target, hashes, to_collector):
                    stored = inline(node.outbox.read(hashes))
                    sent = tuple(wanted for wanted in hashes if wanted in stored)
                    kind = "upload" if to_collector else "put"
                    self.send(kind, me, target, node.life, (hashes, sent, [stored[wanted] for wanted in sent]))
                case SayRoute(reachable, peer):
                    for one in sorted(node.peers) if peer is None else [peer]:
                        self.send("route", me, one, node.life, reachable)
                case HandAcks(peer, authors):
                    self.send("acks", me, peer, node.life, inline(node.outbox.acks_about(authors)))

    def send(self, kind: str, sender: DeviceId, target: DeviceId, life: int, body: Any) -> None:
        self.wire.append(Message(kind, sender, target, life, body))

    def changed(self, node: Node, changed: Changed) -> None:
        if changed.removed or changed.advanced:
            self.fold(node, Gone(changed.removed, changed.advanced))
        if changed.added:
            self.fold(node, Stored(changed.added))

    def report(self, node: Node) -> None:
        self.serial += 1
        created_ms = START_MS + self.now_ms + self.serial
        with self.alive(node):
            changed = inline(node.outbox.add(pack(node.device.report(created_ms)), created_ms))
            self.made[node.device.id].add(created_ms)
            self.changed(node, changed)

    def meet(self, one: Node, other: Node) -> None:
        for a, b in ((one, other), (other, one)):
            a.peers.add(b.device.id)
        for a, b in ((one, other), (other, one)):
            self.fold(a, PeerUp(b.device.id))

    def part(self, one: Node, other: Node) -> None:
        for a, b in ((one, other), (other, one)):
            a.peers.discard(b.device.id)
            self.fold(a, PeerDown(b.device.id))

    def lose(self, message: Message) -> None:
        node = self.nodes.get(message.sender)
        if node is None or message.life != node.life:
            return
        match message.kind:
            case "dial":
                self.fold(node, CollectorDown(message.target))
            case "put" | "upload":
                self.failed(node, message)

    def failed(self, node: Node, message: Message) -> None:
        if message.kind == "upload":
            self.fold(node, CollectorDown(message.target))
        self.fold(node, PutFailed(message.target, message.body[0]))

    def deliver(self, message: Message, *, answer_lost: bool = False) -> None:
        sender = self.nodes[message.sender]
        waits = message.life == sender.life
        match message.kind:
            case "dial":
                up = message.sender in self.routes
                if waits:
                    self.fold(sender, CollectorUp(message.target) if up else CollectorDown(message.target))
            case "upload":
                if message.sender not in self.routes:
                    self.lose(message)
                    return
                self.upload(sender, message, waits and not answer_lost)
                if waits and answer_lost:
                    self.failed(sender, message)
            case "put":
                self.put(sender, self.nodes[message.target], message, waits and not answer_lost)
                if answer_lost and message.life == sender.life:
                    self.failed(sender, message)
            case "route":
                target = self.nodes[message.target]
                if message.sender in target.peers:
                    self.fold(target, PeerRoute(message.sender, message.body))
            case "acks":
                self.acknowledge(self.nodes[message.target], message.body)

    def upload(self, sender: Node, message: Message, answered: bool) -> None:
        _, sent, records = message.body
        taken = tuple(self.collector.take(data) for data in records)
        devices = {open_record_untrusted(data, verify_certificate).device for data in records}
        ack = self.collector.ack(*devices) if devices else None
        if answered:
            life = sender.life
            self.acknowledge(sender, [ack] if ack else [])
            if sender.life == life:
                self.fold(sender, Answered(message.target, sent, taken))

    def put(self, sender: Node, target: Node, message: Message, answered: bool) -> None:
        _, sent, records = message.body
        opened = [open_record_untrusted(data, verify_certificate) for data in records]
        try:
            answers, changed = inline(target.outbox.keep(opened, message.sender, START_MS + self.now_ms))
        except Killed:
            self.start(target)
            if answered:
                self.failed(sender, message)
            return
        self.changed(target, changed)
        finished = [
            record.device for record, answer in zip(opened, answers, strict=True) if answer is Kept.ACKNOWLEDGED
        ]
        acks = inline(target.outbox.acks_about(finished)) if finished else []
        if answered:
            life = sender.life
            self.acknowledge(sender, acks)
            if sender.life == life:
                self.fold(sender, Answered(message.target, sent, tuple(answer.taken for answer in answers)))

    def acknowledge(self, node: Node, acks: list[bytes]) -> None:
        with self.alive(node):
            for data in acks:
                ack = open_ack_untrusted(data, COLLECTOR_KEYS)
                self.changed(node, inline(node.outbox.acknowledge(ack, START_MS + self.now_ms)))

    def restore(self, node: Node, image: bytes, made: set[int]) -> None:
        """The state folder of ``node`` becomes what it was when ``made`` were its reports."""
        node.database = InlineDatabase(image)
        self.restored.add(node.device.id)
        self.may_be_gone[node.device.id] |= self.made[node.device.id] - made
        self.start(node)

    def heal(self) -> None:
        nodes = [*self.nodes.values()]
        for node in nodes:
            node.database.die_before_commit = False
        self.routes = {node.device.id for node in nodes[1:]}
        for number, one in enumerate(nodes):
            for other in nodes[number + 1 :]:
                if other.device.id not in one.peers:
                    self.meet(one, other)
        for _ in range(300):
            while self.wire:
                self.deliver(self.wire.pop(0))
            if not self.waiting():
                return
            self.now_ms = min(node.courier.wake_at_ms or self.now_ms + 60_000 for node in nodes)
            for node in nodes:
                self.fold(node, Tick())
        raise AssertionError(f"the healed world does not come to rest: {self.waiting()}")

    def waiting(self) -> list[tuple[str, str, int, int]]:
        """What still waits: holder, author, epoch and number. Where a restored device's history has a hole, what it wrote behind
        the hole can only expire at its carriers."""
        return [
            (node.device.id.short, parcel.key.device.short, parcel.key.epoch, parcel.key.seq)
            for node in self.nodes.values()
            for parcel in inline(node.outbox.load())
            if parcel.received_from is None or parcel.key.device not in self.restored
        ]

    def check(self) -> None:
        for device in self.nodes:
            counted = Counter(report.created_ms for report in self.collector.reports_of(device))
            lost = self.made[device] - counted.keys() - self.may_be_gone[device]
            assert not lost, f"{len(lost)} reports of {device.short} are lost"
            assert counted.keys() <= self.made[device]
            if device not in self.restored:
                assert all(count == 1 for count in counted.values()), f"reports of {device.short} are doubled"
        assert not {record.device for record in self.collector.conflicts.values()} - self.restored


which = st.sampled_from([device.id for device in DEVICES])


class NoReportLost(RuleBasedStateMachine):
    backups = Bundle("backups")

    @initialize()
    def begin(self) -> None:
        self.world = World()

    @rule(device=which)
    def report(self, device: DeviceId) -> None:
        self.world.report(self.world.nodes[device])

    @precondition(lambda self: self.world.wire)
    @rule(data=st.data(), again=st.booleans(), answer_lost=st.booleans())
    def deliver(self, data: st.DataObject, again: bool, answer_lost: bool) -> None:
        message = self.world.wire.pop(data.draw(st.integers(0, len(self.world.wire) - 1)))
        self.world.deliver(message, answer_lost=answer_lost)
        if again:
            self.world.wire.append(Message(message.kind, message.sender, message.target, -1, message.body))

    @precondition(lambda self: self.world.wire)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.world.lose(self.world.wire.pop(data.draw(st.integers(0, len(self.world.wire) - 1))))

    @precondition(lambda self: self.world.wire)
    @rule()
    def deliver_all(self) -> None:
        for _ in range(min(len(self.world.wire), 30)):
            self.world.deliver(self.world.wire.pop(0))

    @rule(device=which)
    def kill(self, device: DeviceId) -> None:
        self.world.start(self.world.nodes[device])

    @rule(device=which)
    def kill_before_the_next_commit(self, device: DeviceId) -> None:
        self.world.nodes[device].database.die_before_commit = True

    @rule(one=which, other=which)
    def link(self, one: DeviceId, other: DeviceId) -> None:
        a, b = self.world.nodes[one], self.world.nodes[other]
        if one != other:
            (self.world.part if other in a.peers else self.world.meet)(a, b)

    @rule(device=st.sampled_from([device.id for device in DEVICES[1:]]))
    def route(self, device: DeviceId) -> None:
        self.world.routes ^= {device}

    @rule(target=backups, device=which)
    def back_up(self, device: DeviceId) -> tuple[DeviceId, bytes, set[int]]:
        return device, self.world.nodes[device].database.connection.serialize(), set(self.world.made[device])

    @rule(backup=consumes(backups))
    def restore(self, backup: tuple[DeviceId, bytes, set[int]]) -> None:
        device, image, made = backup
        self.world.restore(self.world.nodes[device], image, made)

    @rule(seconds=st.sampled_from([1, 70, 150, 4_000]))
    def wait(self, seconds: int) -> None:
        self.world.now_ms += seconds * 1_000
        for node in self.world.nodes.values():
            self.world.fold(node, Tick())

    @invariant()
    def nothing_that_waits_was_forgotten(self) -> None:
        """A report is at the collector or in its author's outbox, at every moment."""
        world = getattr(self, "world", None)
        if world is None:
            return
        for device, node in world.nodes.items():
            if device not in world.restored:
                arrived = len(world.collector.reports_of(device))
                waiting = sum(parcel.key.device == device for parcel in inline(node.outbox.load()))
                assert arrived + waiting >= len(world.made[device])

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.heal()
            self.world.check()


NoReportLost.TestCase.settings = budget(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestNoReportLost = NoReportLost.TestCase
