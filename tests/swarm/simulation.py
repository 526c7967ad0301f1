"""An office in virtual time: real exchanges, a shared WAN pipe, a LAN with latency and upload rates. No real time.

Deterministic: everything random comes from ``random.Random(seed)``, events are ordered by (time, number). Bytes are not
moved; a chunk arrives if its holder has it. What is modelled: sessions that come up pair by pair, control messages with
latency and loss, uploads one after the other per device, the WAN as one pipe shared evenly by all transfers, partial
segments that survive a crash, decoding chunk by chunk when the base is here, rebuilding a base from installed files.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from pcm_p2p.content.manifest import Artifact, Base, ChunkerParameters, Layout, Manifest, Segment, decode_untrusted
from pcm_p2p.content.segment import plan_runs
from pcm_p2p.ids import ChunkId, DeviceId
from pcm_p2p.swarm.conduct import Conduct
from pcm_p2p.swarm.events import (
    AbortSegment,
    Banned,
    Blame,
    Broadcast,
    ChunkArrived,
    ChunkFailed,
    ChunkFailure,
    Effect,
    Event,
    Gained,
    PeerDown,
    PeerUp,
    RequestChunk,
    SegmentDone,
    SegmentFailedHere,
    SegmentProgress,
    Send,
    StartSegment,
    Tick,
)
from pcm_p2p.swarm.exchange import Exchange
from pcm_p2p.swarm.holdings import bits_of, positions_of
from pcm_p2p.swarm.picker import Budget
from pcm_p2p.swarm.turns import Slots
from pcm_p2p.wire.messages import Claim, ClaimedSegment, Have, Holdings, Message

US = 1_000_000


def make_manifest(
    size_bytes: int,
    *,
    chunk_bytes: int = 256 << 10,
    seed: int = 1,
    ratio: float = 0.4,
    deltas: tuple[float, ...] = (),
    kept_every: int = 8,
    layouts: bool = False,
    gzip: bool = False,
) -> Manifest:
    """A manifest of made-up chunks; blobs have ``ratio`` of their output.

    ``deltas``: one base release for each, whose deltas have that part of their output. A base is as long as its run; each
    ``kept_every``-th chunk of it is the same in the release. ``layouts``: each base can be rebuilt from installed files.
    ``gzip``: every second delta needs it.
    """
    rng = random.Random(seed)
    sizes: list[int] = []
    while sum(sizes) < size_bytes:
        sizes.append(rng.randrange(chunk_bytes // 2, chunk_bytes * 3 // 2))
    segments = []
    aids: list[int] = []
    runs = plan_runs(sizes)
    for first, count in runs:
        output = sum(sizes[first : first + count])
        segments.append(Segment(id=rng.randbytes(32), size=int(output * ratio), kind="full", first=first, count=count))
    for of, share in enumerate(deltas):
        for first, count in runs:
            base = []
            for position in range(first, first + count):
                if position % kept_every:
                    base.append(len(sizes) + len(aids))
                    aids.append(sizes[position])
                else:
                    base.append(position)
            size = int(sum(sizes[first : first + count]) * share)
            delta = Segment(rng.randbytes(32), size, "delta", first, count, tuple(base), of)
            segments.append(msgspec.structs.replace(delta, needs="gzip") if gzip and len(segments) % 2 else delta)
    rows = []
    for of in range(len(deltas) if layouts else 0):
        first = len(sizes) + len(aids)
        aids.append(100 << 10)
        segments.append(Segment(rng.randbytes(32), 20 << 10, "layout", first, 1))
        rows.append(Layout(of, "a.bin", "deb", bytes(32), first, 1, "a", str(of), "all"))
    positions = b"".join(position.to_bytes(4, "little") for position in range(len(sizes)))
    manifest = Manifest(
        schema="pcm.manifest/2",
        release="a",
        version=str(seed),
        counter=1,
        chunker=ChunkerParameters("none", 1, 1, 1),
        artifacts=(Artifact("a.bin", "exact", sum(sizes), bytes(32), sum(sizes), bytes(32), positions),),
        chunk_ids=b"".join(ChunkId(rng.randbytes(32)) for _ in sizes),
        chunk_sizes=b"".join(size.to_bytes(4, "little") for size in sizes),
        segments=tuple(segments),
        bases=tuple(Base(f"0.{of}", rng.randbytes(32)) for of in range(len(deltas))),
        aid_ids=rng.randbytes(32 * len(aids)),
        aid_sizes=b"".join(size.to_bytes(4, "little") for size in aids),
        layouts=tuple(rows),
    )
    return decode_untrusted(manifest.encoded)


def base_bits(manifest: Manifest, of: int = 0) -> int:
    """The chunks of one base release, as a bit field."""
    return bits_of({place for segment in manifest.segments if segment.of == of for place in segment.base})


@dataclass(frozen=True)
class Rules:
    """``wan_bytes_per_s`` is for the office, ``upload_bytes_per_s`` for each device; pairs are (least, most). ``want_ms`` is
    from a daemon's start to when it learns of the release."""

    wan_bytes_per_s: int = 2_500_000
    upload_bytes_per_s: int = 60_000_000
    latency_ms: tuple[int, int] = (1, 5)
    meet_ms: tuple[int, int] = (50, 2_000)
    start_ms: tuple[int, int] = (0, 500)
    want_ms: tuple[int, int] = (0, 0)
    settle_ms: int = 3_000
    claim_loss: float = 0.0
    decode_us_a_chunk: int = 3_000
    rebuild_us_a_chunk: int = 10_000
    rebuild_after_ms: int = 1_000
    origin_down_s: tuple[float, float] = (0.0, 0.0)
    failure_notice_s: float = 1.0


@dataclass(eq=False)
class Node:
    """A device. ``nature``: honest; stalling (its transfers do not move); boasting (says it holds and claims everything,
    does nothing); hollow (says it holds bases, and never answers for them); poisoned (serves wrong bytes); firewalled (the
    origin never answers it); gone. ``installed``: base releases that it can rebuild; ``partial``: bytes by segment;
    ``lacks_gzip``: deltas that need it are of no use to it."""

    device: DeviceId
    weight: int = 8
    nature: str = "honest"
    up: bool = False
    life: int = 0
    started_ms: int = 0
    roster_changed_ms: int = 0
    disk: int = 0
    partial: dict[int, float] = field(default_factory=dict)
    installed: tuple[int, ...] = ()
    lacks_gzip: bool = False
    rebuilds: bool = False
    exchange: Exchange | None = None
    sessions: set[DeviceId] = field(default_factory=set)
    next_tick_us: int = 0
    upload_free_us: int = 0
    wan_bytes: float = 0.0
    lan_bytes: int = 0
    done_us: int = -1
    blamed: list[tuple[DeviceId, str]] = field(default_factory=list)


@dataclass(eq=False)
class _Flow:
    node: Node
    index: int
    use: int
    life: int
    done: float
    size: int
    pct: int = -1
    aborted: bool = False

    @property
    def given_up(self) -> bool:
        return self.aborted or not self.node.up or self.node.life != self.life


class Office:
    def __init__(self, count: int, manifest: Manifest, rules: Rules | None = None, *, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.rules = rules or Rules()
        self.manifest = manifest
        self.nodes = [Node(DeviceId(self.rng.randbytes(16))) for _ in range(count)]
        self.by_id = {node.device: node for node in self.nodes}
        self.now_us = 0
        self.trace: list[tuple[int, str, str]] = []
        self.wan_by_segment: dict[int, float] = {}
        self.messages = 0
        self.locality_breaches: list[str] = []
        self.cut: set[frozenset[DeviceId]] = set()
        self.broken: set[int] = set()
        """Segments that do not decode anywhere."""
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        self._flows: list[_Flow] = []
        self._waiting: list[_Flow] = []
        self._decoding: list[_Flow] = []
        self._flows_at_us = 0
        self._flow_wake = 0
        self._latency_us: dict[tuple[DeviceId, DeviceId], int] = {}
        for node in self.nodes:
            self.after(self.rng.randint(*self.rules.start_ms) * 1000, self.start, node)

    # -- time ------------------------------------------------------------------------------------------------------------------

    def after(self, delay_us: int, action: Callable[..., None], *args: object) -> None:
        self._number += 1
        heapq.heappush(self._heap, (self.now_us + max(0, delay_us), self._number, lambda: action(*args)))

    def run(self, until_s: float = 3_600.0) -> None:
        """Until every honest device that is not gone is complete, or the time is over."""
        while self._heap and not self.finished:
            if self._heap[0][0] > until_s * US:
                return
            self.now_us, _, action = heapq.heappop(self._heap)
            action()

    @property
    def finished(self) -> bool:
        return all(node.done_us >= 0 for node in self.nodes if node.nature not in ("boasting", "gone"))

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    # -- figures ---------------------------------------------------------------------------------------------------------------

    @property
    def needed_bytes(self) -> int:
        """What an office without any base pays."""
        return sum(segment.size for _, segment in self.manifest.full_segments())

    def delta_bytes(self, of: int = 0) -> int:
        """What an office with this base pays."""
        return sum(one.size for one in self.manifest.segments if one.kind == "delta" and one.of == of)

    @property
    def wan_bytes(self) -> float:
        """Of devices that do not come to be banned: what such a one fetches is of no use to anybody."""
        return sum(node.wan_bytes for node in self.nodes if node.nature not in ("poisoned", "hollow"))

    @property
    def amplification(self) -> float:
        return self.wan_bytes / self.needed_bytes

    @property
    def done_s(self) -> float:
        return max(node.done_us for node in self.nodes) / US

    # -- devices ---------------------------------------------------------------------------------------------------------------

    def start(self, node: Node) -> None:
        node.up, node.life, node.started_ms = True, node.life + 1, self.now_ms
        for other in self.nodes:
            if other is not node and other.up:
                delay_us = self.rng.randint(*self.rules.meet_ms) * 1000
                self.after(delay_us, self.meet, node, other, (node.life, other.life))
        if self.rules.want_ms[1]:
            self.after(self.rng.randint(*self.rules.want_ms) * 1000, self.want, node, node.life)
        else:
            self.want(node, node.life)

    def want(self, node: Node, life: int) -> None:
        if not node.up or node.life != life:
            return
        node.rebuilds = False
        sizes = [segment.size for segment in self.manifest.segments]
        node.exchange = Exchange(
            self.manifest,
            node.disk,
            node.device,
            weight=node.weight,
            conduct=Conduct(),
            slots=Slots(),
            budget=Budget(),
            rng=random.Random(int.from_bytes(node.device[:8], "big") + node.life),
            settle_ms=self.rules.settle_ms,
            started_ms=node.started_ms,
            roster_changed_ms=node.roster_changed_ms,
            now_ms=self.now_ms,
            partial_pct={index: int(100 * done / sizes[index]) for index, done in node.partial.items()},
            why_not_gzip="there is none" if node.lacks_gzip else "",
        )
        for device in sorted(node.sessions):
            node.exchange.meet(device, self.by_id[device].weight, self.now_ms)
        self._perform(node, node.exchange.begin())
        self._event(node, Tick())

    def crash(self, node: Node) -> None:
        self._advance_wan()
        node.up, node.exchange, node.done_us = False, None, -1
        self._flows = [flow for flow in self._flows if flow.node is not node]
        self._waiting = [flow for flow in self._waiting if flow.node is not node]
        for device in sorted(node.sessions):
            self.part(node, self.by_id[device])
        self._plan_wan()

    def leave(self, node: Node) -> None:
        """Gone for good: not waited for."""
        self.crash(node)
        node.nature = "gone"

    def meet(self, one: Node, two: Node, lives: tuple[int, int]) -> None:
        pair = frozenset((one.device, two.device))
        if not (one.up and two.up) or (one.life, two.life) != lives or pair in self.cut or two.device in one.sessions:
            return
        one.sessions.add(two.device)
        two.sessions.add(one.device)
        for me, other in ((one, two), (two, one)):
            me.roster_changed_ms = self.now_ms
            self._event(me, PeerUp(other.device, other.weight))
            if me.nature == "boasting" and len(me.sessions) == 1:
                self._boast(me, me.life)

    def part(self, one: Node, two: Node) -> None:
        one.sessions.discard(two.device)
        two.sessions.discard(one.device)
        self._event(one, PeerDown(two.device))
        self._event(two, PeerDown(one.device))

    def partition(self, group: list[Node], *, heal_s: float) -> None:
        """No sessions between ``group`` and the others until ``heal_s`` from now."""
        others = [node for node in self.nodes if node not in group]
        for one in group:
            for two in others:
                self.cut.add(frozenset((one.device, two.device)))
                self.part(one, two)
        self.after(int(heal_s * US), self._heal, group, others)

    def _heal(self, group: list[Node], others: list[Node]) -> None:
        self.cut.clear()
        for one in group:
            for two in others:
                self.meet(one, two, (one.life, two.life))

    def _boast(self, node: Node, life: int) -> None:
        """Says that it holds everything, and claims every segment again and again."""
        if not node.up or node.life != life:
            return
        count = len(self.manifest.table_sizes)
        bits = ((1 << count) - 1).to_bytes((count + 7) // 8, "little")
        claimed = tuple(ClaimedSegment(index=index, done_pct=1) for index in range(len(self.manifest.segments)))
        manifest = self.manifest.manifest_id
        for device in sorted(node.sessions):
            self._deliver(node, self.by_id[device], Holdings(manifest, count, bits))
            self._deliver(node, self.by_id[device], Claim(manifest, node.device, 1, 600_000, claimed))
        self.after(US, self._boast, node, life)

    # -- events and effects ----------------------------------------------------------------------------------------------------

    def _event(self, node: Node, event: Event) -> None:
        if node.up and node.exchange is not None:
            self._perform(node, node.exchange.handle(event, self.now_ms))

    def _perform(self, node: Node, effects: list[Effect]) -> None:
        exchange = node.exchange
        assert exchange is not None
        for effect in effects:
            match effect:
                case Send():
                    if effect.device in node.sessions:
                        self._deliver(node, self.by_id[effect.device], effect.message)
                case Broadcast():
                    for device in sorted(node.sessions):
                        if device != effect.besides:
                            self._deliver(node, self.by_id[device], effect.message)
                case RequestChunk():
                    self._request(node, effect.device, effect.position)
                case StartSegment():
                    self._start_segment(node, effect.index, effect.use)
                case AbortSegment():
                    self._advance_wan()
                    for flow in (*self._flows, *self._waiting, *self._decoding):
                        flow.aborted = flow.aborted or (flow.node is node and flow.index == effect.index)
                    self._flows = [flow for flow in self._flows if not flow.aborted]
                    self._plan_wan()
                    self.trace.append((self.now_ms, node.device.short, f"abort {effect.index}: {effect.reason}"))
                case Blame():
                    node.blamed.append((effect.device, effect.reason))
                    self.after(0, self._event, node, Banned(effect.device))
        node.disk = exchange.holdings.mine
        for flow in [flow for flow in self._waiting if flow.node is node]:
            self._decode_when_base_is_here(flow)
        if node.installed and not node.rebuilds and exchange.bases_missing():
            node.rebuilds = True
            self.after(self.rules.rebuild_after_ms * 1000, self._rebuild, node, node.life)
        if exchange.complete and node.done_us < 0:
            node.done_us = self.now_us
        due_us = max(exchange.next_ms * 1000, self.now_us + 1000)
        if node.next_tick_us <= self.now_us or due_us < node.next_tick_us:
            node.next_tick_us = due_us
            self.after(due_us - self.now_us, self._tick, node, node.life)

    def _tick(self, node: Node, life: int) -> None:
        if node.life != life or not node.up or node.exchange is None:
            return
        if node.exchange.next_ms <= self.now_ms:
            self._event(node, Tick())
        elif node.next_tick_us <= self.now_us:
            node.next_tick_us = node.exchange.next_ms * 1000
            self.after(node.next_tick_us - self.now_us, self._tick, node, life)

    def _deliver(self, sender: Node, receiver: Node, message: Message) -> None:
        self.messages += 1
        if sender.nature == "hollow" and isinstance(message, Holdings):
            bits = int.from_bytes(message.bits, "little") | base_bits(self.manifest)
            message = Holdings(message.manifest, message.chunk_count, bits.to_bytes(len(message.bits), "little"))
        if sender.nature == "boasting" and isinstance(message, Have):
            return
        if isinstance(message, Claim) and self.rules.claim_loss and self.rng.random() < self.rules.claim_loss:
            return
        # One latency for each pair: messages of a session do not overtake each other.
        pair = (sender.device, receiver.device)
        if pair not in self._latency_us:
            self._latency_us[pair] = 1000 * self.rng.randint(*self.rules.latency_ms)
        self.after(self._latency_us[pair], self._arrive, sender, receiver, receiver.life, message)

    def _arrive(self, sender: Node, receiver: Node, life: int, message: Message) -> None:
        if receiver.life == life and sender.device in receiver.sessions and receiver.exchange is not None:
            self._perform(receiver, receiver.exchange.receive_untrusted(sender.device, message, self.now_ms))

    # -- LAN -------------------------------------------------------------------------------------------------------------------

    def _request(self, node: Node, device: DeviceId, position: int) -> None:
        holder, size = self.by_id[device], self.manifest.table_sizes[position]
        if not holder.up or device not in node.sessions:
            self.after(1_000, self._fail, node, node.life, device, position, "gone")
        elif holder.nature == "boasting" or (holder.nature == "hollow" and not holder.disk >> position & 1):
            self.after(10 * US, self._fail, node, node.life, device, position, "slow")
        elif not holder.disk >> position & 1:
            self.after(2_000, self._fail, node, node.life, device, position, "missing")
        else:
            begin_us = max(self.now_us + 1_000, holder.upload_free_us)
            holder.upload_free_us = begin_us + size * US // self.rules.upload_bytes_per_s
            delay_us = holder.upload_free_us - self.now_us + 1_500
            self.after(delay_us, self._upload_ends, node, node.life, holder, holder.life, position)

    def _upload_ends(self, node: Node, life: int, holder: Node, holder_life: int, position: int) -> None:
        if node.life != life or not node.up:
            return
        if holder.life != holder_life or not holder.up:
            self._fail(node, life, holder.device, position, "gone")
            return
        node.lan_bytes += self.manifest.table_sizes[position]
        if holder.nature == "poisoned":
            self._fail(node, life, holder.device, position, "wrong")
        else:
            self._event(node, ChunkArrived(holder.device, position))

    def _fail(self, node: Node, life: int, device: DeviceId, position: int, why: ChunkFailure) -> None:
        if node.life == life:
            self._event(node, ChunkFailed(device, position, why))

    # -- WAN -------------------------------------------------------------------------------------------------------------------

    def _start_segment(self, node: Node, index: int, use: int) -> None:
        if node.nature == "boasting":
            return
        self.trace.append((self.now_ms, node.device.short, f"start {index} by {use}"))
        segment, office = self.manifest.segments[use], node.disk
        for device in node.sessions:
            if self.by_id[device].nature in ("honest", "stalling", "firewalled"):
                office |= self.by_id[device].disk
        if not (((1 << segment.count) - 1) << segment.first) & ~office:
            self.locality_breaches.append(
                f"{self.now_ms} ms: {node.device.short} starts {index}, which neighbours hold"
            )
        down_s = self.rules.origin_down_s
        if node.nature == "firewalled" or down_s[0] * US <= self.now_us < down_s[1] * US:
            self.after(int(self.rules.failure_notice_s * US), self._origin_failed, node, node.life, index)
            return
        self._advance_wan()
        self._flows.append(_Flow(node, index, use, node.life, node.partial.get(use, 0.0), segment.size))
        self._plan_wan()

    def _origin_failed(self, node: Node, life: int, index: int) -> None:
        if node.life == life:
            self._event(node, SegmentFailedHere(index, "the origin does not answer", 1_000, whole_origin=True))

    def _moving(self) -> list[_Flow]:
        return [flow for flow in self._flows if flow.node.nature != "stalling"]

    def _advance_wan(self) -> None:
        """Give every transfer its share since the last change."""
        moving, passed_us = self._moving(), self.now_us - self._flows_at_us
        self._flows_at_us = self.now_us
        if not moving or not passed_us:
            return
        share = self.rules.wan_bytes_per_s * passed_us / US / len(moving)
        for flow in moving:
            got = min(share, flow.size - flow.done)
            flow.done += got
            flow.node.wan_bytes += got
            flow.node.partial[flow.use] = flow.done
            self.wan_by_segment[flow.use] = self.wan_by_segment.get(flow.use, 0.0) + got

    def _plan_wan(self) -> None:
        """Wake when a transfer comes to its next percent or its end."""
        moving = self._moving()
        self._flow_wake += 1
        if not moving:
            return
        left = min(max(1.0, min((flow.pct + 1) * flow.size / 100, flow.size) - flow.done) for flow in moving)
        delay_us = int(left * len(moving) / self.rules.wan_bytes_per_s * US) + 1
        self.after(delay_us, self._wan, self._flow_wake)

    def _wan(self, wake: int) -> None:
        if wake != self._flow_wake:
            return
        self._advance_wan()
        for flow in list(self._flows):
            if flow not in self._flows or flow.node.nature == "stalling":
                continue
            pct = int(100 * flow.done / flow.size + 1e-9)
            if flow.done >= flow.size - 0.5:
                self._flows.remove(flow)
                self._waiting.append(flow)
                self._event(flow.node, SegmentProgress(flow.index, 100))
                self._decode_when_base_is_here(flow)
            elif pct > flow.pct:
                flow.pct = pct
                self._event(flow.node, SegmentProgress(flow.index, min(pct, 99)))
        self._plan_wan()

    def _decode_when_base_is_here(self, flow: _Flow) -> None:
        if flow in self._waiting and (flow.given_up or not self._base_of(flow) & ~flow.node.disk):
            self._waiting.remove(flow)
            if not flow.given_up:
                self._decoding.append(flow)
                self.after(0, self._decode, flow, 0)

    def _base_of(self, flow: _Flow) -> int:
        return bits_of(self.manifest.segments[flow.use].base)

    def _decode(self, flow: _Flow, done: int) -> None:
        node, segment = flow.node, self.manifest.segments[flow.use]
        if flow.given_up:
            self._decoding.remove(flow)
        elif flow.use in self.broken:
            self._decoding.remove(flow)
            node.partial.pop(flow.use, None)
            self._event(node, SegmentFailedHere(flow.index, "it does not decode", 0, whole_origin=False, bad_blob=True))
        elif done == segment.count:
            self._decoding.remove(flow)
            node.partial.pop(flow.use, None)
            self._event(node, SegmentDone(flow.index))
        else:
            self._event(node, Gained((segment.first + done,)))
            self.after(self.rules.decode_us_a_chunk, self._decode, flow, done + 1)

    # -- installed files -------------------------------------------------------------------------------------------------------

    def _rebuild(self, node: Node, life: int) -> None:
        """Get the layouts, then make what is missing of the bases, chunk by chunk."""
        exchange = node.exchange
        if node.life != life or not node.up or exchange is None:
            return
        missing = {of: bits for of, bits in exchange.bases_missing().items() if of in node.installed}
        if not missing:
            node.rebuilds = False
            return
        of = min(missing)
        [layout] = [place for place, row in enumerate(self.manifest.layouts) if row.of == of]
        if not exchange.has_layout(layout):
            self._perform(node, exchange.want_layout(layout, self.now_ms))
            self.after(100_000, self._rebuild, node, life)
            return
        self._event(node, Gained((next(positions_of(missing[of])),)))
        self.after(self.rules.rebuild_us_a_chunk, self._rebuild, node, life)
