"""A site in virtual time: many real membership cores, sessions and dials with latency, crashes, cuts and restarts.

Deterministic: one seed, one heap ordered by (time, number). Used by the membership tests.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from functools import partial
from random import Random

from pcm_p2p.gossip.membership import (
    Dial,
    DialFailed,
    Dialled,
    Event,
    Introduced,
    Membership,
    Refute,
    RosterHeard,
    SessionDown,
    SessionUp,
    Status,
    Tell,
    Tick,
)
from pcm_p2p.gossip.targets import Address
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.messages import RosterEntry

LATENCY_MS = 5
TICK_MS = 1_000


def device_id(number: int) -> DeviceId:
    return DeviceId(hashlib.sha256(str(number).encode()).digest()[:16])


class Node:
    def __init__(self, world: World, number: int, host: str, site: str, incarnation: int) -> None:
        self.world = world
        self.number = number
        self.device = device_id(number)
        self.address = Address(host, 8741)
        self.core = Membership(
            self.device, site=site, port=self.address.port, incarnation=incarnation, weight=8, rng=Random(number)
        )
        self.sessions: dict[DeviceId, Node] = {}
        self.dials = 0
        self.told = 0
        self.refuted: list[int] = []

    def fold(self, event: Event) -> None:
        if not self.world.is_up(self):
            return
        for effect in self.core.handle(event, self.world.now_ms):
            match effect:
                case Dial(address):
                    self.dials += 1
                    self.world.after(LATENCY_MS, partial(self.world.dial, self, address))
                case Tell(entries, to):
                    for device, peer in list(self.sessions.items()):
                        if to in (None, device):
                            self.told += len(entries)
                            self.world.deliver(self, peer, entries)
                case Refute(incarnation):
                    self.refuted.append(incarnation)

    def statuses(self) -> dict[DeviceId, Status]:
        return {device: member.status for device, member in self.core.members.items()}


class World:
    def __init__(self) -> None:
        self.now_ms = 0
        self.nodes: dict[Address, Node] = {}
        self.unreachable: set[tuple[DeviceId, DeviceId]] = set()
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now_ms + delay_ms, self._count, action))

    def run(self, duration_ms: int) -> None:
        end_ms = self.now_ms + duration_ms
        while self._heap and self._heap[0][0] <= end_ms:
            self.now_ms, _, action = heapq.heappop(self._heap)
            action()
        self.now_ms = end_ms

    def start(self, number: int, *, host: str = "", site: str = "berlin", incarnation: int = 1) -> Node:
        node = Node(self, number, host or f"10.0.0.{number + 1}", site, incarnation)
        self.nodes[node.address] = node

        def tick() -> None:
            if self.is_up(node):
                node.fold(Tick())
                self.after(TICK_MS, tick)

        self.after(number % 100, tick)
        return node

    def is_up(self, node: Node) -> bool:
        return self.nodes.get(node.address) is node

    def crash(self, node: Node, *, left: bool = False) -> None:
        del self.nodes[node.address]
        for peer in list(node.sessions.values()):
            del peer.sessions[node.device]
            self.after(LATENCY_MS, partial(peer.fold, SessionDown(node.device, left)))
        node.sessions.clear()

    def cut(self, one: Node, two: Node) -> None:
        """These two cannot talk to each other any more; both can to all others."""
        self.unreachable |= {(one.device, two.device), (two.device, one.device)}
        if two.device in one.sessions:
            del one.sessions[two.device], two.sessions[one.device]
            one.fold(SessionDown(two.device))
            two.fold(SessionDown(one.device))

    def introduce(self, node: Node, other: Node, *, named: bool = True) -> None:
        node.fold(Introduced(other.address, other.device if named else None))

    def dial(self, node: Node, address: Address) -> None:
        other = self.nodes.get(address)
        if not self.is_up(node):
            return
        if other is None or (node.device, other.device) in self.unreachable:
            node.fold(DialFailed(address))
            return
        node.fold(Dialled(address, other.device))
        if other is node or other.device in node.sessions:
            return
        node.sessions[other.device], other.sessions[node.device] = other, node
        for one, two in ((node, other), (other, node)):
            me = two.core
            one.fold(SessionUp(two.device, two.address, me.site, me.incarnation, me.weight))

    def deliver(self, sender: Node, receiver: Node, entries: tuple[RosterEntry, ...]) -> None:
        def arrive() -> None:
            if receiver.sessions.get(sender.device) is sender:
                receiver.fold(RosterHeard(sender.device, entries))

        self.after(LATENCY_MS, arrive)
