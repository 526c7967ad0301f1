"""Fetchers over in-memory sessions, stores and an origin: the shell's world, in virtual time."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import trio

from pcm_p2p.content.chunk import Chunk, open_sealed_untrusted, seal
from pcm_p2p.content.decoding.decoder import InlineDecoder
from pcm_p2p.content.delta.blob import encode_delta
from pcm_p2p.content.manifest import Artifact, Base, ChunkerParameters, Layout, Manifest, Segment, decode_untrusted
from pcm_p2p.content.segment import encode_full
from pcm_p2p.errors import DiskFull, UntrustedBytes
from pcm_p2p.ids import ChunkId, DeviceId, SegmentId
from pcm_p2p.swarm.fetcher import Fetcher
from pcm_p2p.swarm.origin import OriginFailed, OriginMissing
from pcm_p2p.swarm.peers import ChunkNotServed
from pcm_p2p.swarm.workers import Workers
from pcm_p2p.wire.messages import AnyMessage, Message

_decoder = msgspec.msgpack.Decoder(AnyMessage)


@dataclass(frozen=True)
class Release:
    manifest: Manifest
    blobs: dict[SegmentId, bytes]
    chunks: dict[ChunkId, bytes]

    @property
    def blob_bytes(self) -> int:
        return sum(map(len, self.blobs.values()))

    def bytes_of(self, kind: str) -> int:
        """Of the blobs of the full, delta or layout segments together."""
        return sum(segment.size for segment in self.manifest.segments if segment.kind == kind)


def make_release(
    size_bytes: int = 1 << 20,
    *,
    chunk_bytes: int = 32 << 10,
    chunks_a_segment: int = 8,
    seed: int = 1,
    shared: bytes = b"",
    broken: bool = False,
) -> Release:
    """A small real release of one artifact: random chunks, real segments, a manifest that decodes. ``broken``: its segments
    were published with other bytes than its chunks have."""
    rng = random.Random(seed)
    data = [shared] if shared else []
    while sum(map(len, data)) < size_bytes:
        data.append(rng.randbytes(rng.randrange(chunk_bytes // 2, chunk_bytes * 3 // 2)))
    chunks = {ChunkId.of(piece): piece for piece in data}
    sizes = [len(piece) for piece in data]
    blobs: dict[SegmentId, bytes] = {}
    segments = []
    for first in range(0, len(data), chunks_a_segment):
        count = len(data[first : first + chunks_a_segment])
        pieces = data[first : first + count]
        blob = encode_full([bytes([first]) * len(piece) for piece in pieces] if broken else pieces, 1)
        blobs[SegmentId.of(blob)] = blob
        segments.append(Segment(id=bytes(SegmentId.of(blob)), size=len(blob), kind="full", first=first, count=count))
    positions = b"".join(position.to_bytes(4, "little") for position in range(len(sizes)))
    manifest = Manifest(
        schema="pcm.manifest/1",
        release="demo",
        version=str(seed),
        counter=seed,
        chunker=ChunkerParameters("none", 1, 1, 1),
        artifacts=(Artifact("demo.bin", "exact", sum(sizes), bytes(32), sum(sizes), bytes(32), positions),),
        chunk_ids=b"".join(chunks),
        chunk_sizes=b"".join(size.to_bytes(4, "little") for size in sizes),
        segments=tuple(segments),
    )
    return Release(decode_untrusted(manifest.encoded), blobs, chunks)


def make_update(
    old: Release,
    *,
    chunks_a_segment: int = 8,
    kept_every: int = 4,
    layout: bytes = b"",
    broken: bool = False,
    prefix: bytes = b"new",
) -> Release:
    """The next release: every chunk of ``old`` with another beginning, but for one in ``kept_every``. Each run has a delta from
    the chunks of the same places. ``layout``: the bytes of a layout of the old release; ``broken``: the deltas yield other bytes.
    """
    before = [old.chunks[chunk] for chunk in old.manifest.chunks]
    data = [piece if at % kept_every == 0 else prefix + piece for at, piece in enumerate(before)]
    ids, aids = [ChunkId.of(piece) for piece in data], [piece for at, piece in enumerate(before) if at % kept_every]
    places = {chunk: place for place, chunk in enumerate([*ids, *map(ChunkId.of, aids)])}
    blobs: dict[SegmentId, bytes] = {}
    segments: list[Segment] = []

    def add(blob: bytes, kind: Literal["full", "delta", "layout"], first: int, count: int, *base: int) -> None:
        blobs[SegmentId.of(blob)] = blob
        segments.append(Segment(bytes(SegmentId.of(blob)), len(blob), kind, first, count, base))

    for first in range(0, len(data), chunks_a_segment):
        pieces = data[first : first + chunks_a_segment]
        sources = before[first : first + chunks_a_segment]
        output = [bytes(len(piece)) for piece in pieces] if broken else pieces
        add(encode_full(pieces, 1), "full", first, len(pieces))
        base = [places[ChunkId.of(piece)] for piece in sources]
        add(encode_delta(b"".join(sources), b"".join(output)), "delta", first, len(pieces), *base)
    layouts: tuple[Layout, ...] = ()
    if layout:
        first = len(data) + len(aids)
        add(encode_full([layout], 1), "layout", first, 1)
        aids.append(layout)
        layouts = (Layout(0, "demo.bin", "exact", bytes(32), first, 1, "demo", "1", "all"),)
    positions = b"".join(position.to_bytes(4, "little") for position in range(len(data)))
    size = sum(map(len, data))
    manifest = Manifest(
        schema="pcm.manifest/2",
        release="demo",
        version=f"{old.manifest.version}.1",
        counter=old.manifest.counter + 1,
        chunker=ChunkerParameters("none", 1, 1, 1),
        artifacts=(Artifact("demo.bin", "exact", size, bytes(32), size, bytes(32), positions),),
        chunk_ids=b"".join(ids),
        chunk_sizes=_packed(data),
        segments=tuple(segments),
        bases=(Base(old.manifest.version, bytes(old.manifest.manifest_id)),),
        aid_ids=b"".join(map(ChunkId.of, aids)),
        aid_sizes=_packed(aids),
        layouts=layouts,
    )
    return Release(decode_untrusted(manifest.encoded), blobs, dict(zip(ids, data, strict=True)))


def _packed(pieces: list[bytes]) -> bytes:
    return b"".join(len(piece).to_bytes(4, "little") for piece in pieces)


class InlineWorkers(Workers):
    """No threads: virtual time would run on while one works."""

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    def tell(self, function: Callable[..., object], *args: Any) -> None:
        function(*args)


class MemoryStore:
    """What ``content.keeping.store.ChunkStore`` promises, without a disk. ``room`` is how many chunks fit, and there is none for
    those in ``refused``. Nothing is evicted: what is wanted, kept and last is only noted."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.wanted: frozenset[ChunkId] = frozenset()
        self.tiers: tuple[frozenset[ChunkId], frozenset[ChunkId]] = (frozenset(), frozenset())
        self.sealed: dict[ChunkId, bytes] = {}
        self.removed: list[ChunkId] = []
        self.leaving: list[ChunkId] = []
        self.room = room
        self.refused: frozenset[ChunkId] = frozenset()

    def has(self, chunk: ChunkId) -> bool:
        return chunk in self.sealed

    def get(self, chunk: ChunkId) -> Chunk | None:
        sealed = self.sealed.get(chunk)
        if sealed is None:
            return None
        try:
            return open_sealed_untrusted(chunk, sealed)
        except UntrustedBytes:
            self.remove(chunk)
            return None

    def fill(self, release: Release) -> None:
        for chunk, data in release.chunks.items():
            self.sealed[chunk] = seal(Chunk.verified(chunk, data))

    def spoil(self, chunk: ChunkId) -> None:
        self.sealed[chunk] = seal(Chunk.of(b"rot"))

    def get_sealed(self, chunk: ChunkId) -> bytes | None:
        return self.sealed.get(chunk)

    def put(self, chunk: Chunk) -> bool:
        return self._keep(chunk.id, seal(chunk))

    def put_sealed(self, chunk: ChunkId, sealed: bytes) -> Chunk:
        verified = open_sealed_untrusted(chunk, sealed)
        self._keep(chunk, sealed)
        return verified

    def take_removed(self) -> Iterable[ChunkId]:
        removed, self.removed = self.removed, []
        return removed

    def ids(self) -> list[ChunkId]:
        return list(self.sealed)

    def set_wanted(self, chunks: Collection[ChunkId]) -> None:
        self.wanted = frozenset(chunks)

    def set_tiers(self, kept: Collection[ChunkId], last: Collection[ChunkId]) -> None:
        self.tiers = frozenset(kept), frozenset(last)

    def trim(self, chunks: Collection[ChunkId]) -> None:
        for chunk in chunks:
            if chunk not in self.wanted:
                self.sealed.pop(chunk, None)

    def take_leaving(self) -> Iterable[ChunkId]:
        leaving, self.leaving = self.leaving, []
        return leaving

    def remove(self, chunk: ChunkId) -> None:
        del self.sealed[chunk]
        self.removed.append(chunk)

    def _keep(self, chunk: ChunkId, sealed: bytes) -> bool:
        if chunk in self.sealed:
            return False
        if len(self.sealed) >= self.room or chunk in self.refused:
            raise DiskFull("no room left on the disk")
        self.sealed[chunk] = sealed
        return True


@dataclass
class MemoryOrigin:
    """Segments at ``bytes_per_s`` each, in pieces of 16 KiB; counts what it hands out. ``down`` is said instead.

    One object is the origin and every device's client of it, so that partial segments are not modelled: a blob that came whole
    is put into ``folder``, where the decoder reads it. ``missing`` are answered with 404.
    """

    blobs: dict[SegmentId, bytes]
    bytes_per_s: int = 1 << 20
    down: str = ""
    sent: dict[SegmentId, int] = field(default_factory=dict)
    failures: int = 0
    discarded: set[SegmentId] = field(default_factory=set)
    missing: set[SegmentId] = field(default_factory=set)
    folder: Path = Path()

    async def fetch_segment(self, segment: Segment, progress: Callable[[int, int], None]) -> Path:
        if segment.segment_id in self.missing:
            await trio.sleep(0.01)
            raise OriginMissing(f"the origin has no segment {segment.segment_id.short}", whole_origin=False)
        blob, done = self.blobs[segment.segment_id], 0
        while done < len(blob):
            if self.down:
                self.failures += 1
                await trio.sleep(0.5)
                raise OriginFailed(self.down, wait_ms=1_000)
            step = min(16 << 10, len(blob) - done)
            await trio.sleep(step / self.bytes_per_s)
            done += step
            self.sent[segment.segment_id] = self.sent.get(segment.segment_id, 0) + step
            progress(done, step)
        path = self.folder / segment.segment_id.hex()
        path.write_bytes(blob)
        return path

    async def discard(self, segment: SegmentId) -> None:
        self.discarded.add(segment)

    async def parts(self) -> Mapping[SegmentId, int]:
        return {}

    @property
    def bytes_sent(self) -> int:
        return sum(self.sent.values())


class Member:
    """A device: fetcher and store. ``nature``: honest; poisoned (sends wrong bytes); garbled (sends nonsense); mute (never
    answers); forgetful (says it has nothing)."""

    def __init__(
        self, office: InMemoryOffice, device: DeviceId, *, weight: int, settle_s: float, why_not_gzip: str = ""
    ) -> None:
        self.office, self.device, self.weight = office, device, weight
        self.store = MemoryStore()
        self.nature = "honest"
        self.fetcher = Fetcher(
            self.store,
            self,
            office.origin,
            device,
            decoder=InlineDecoder(why_not_gzip=why_not_gzip),
            weight=weight,
            settle_s=settle_s,
            rng=random.Random(int.from_bytes(device, "big")),
            workers=InlineWorkers(),
        )

    async def send(self, device: DeviceId, message: Message, /) -> None:
        await self.office.carry(self.device, device, message)

    async def broadcast(self, message: Message, /, *, besides: DeviceId | None = None) -> None:
        for device in self.office.neighbours(self.device):
            if device != besides:
                await self.office.carry(self.device, device, message)

    async def fetch_chunk(self, device: DeviceId, chunk: ChunkId, size_bytes_max: int, /) -> bytes:
        holder = self.office.members.get(device)
        if holder is None or frozenset((self.device, device)) not in self.office.sessions:
            raise ChunkNotServed("the session ended", "gone")
        await trio.sleep(0.002)
        if holder.nature == "mute":
            await trio.sleep_forever()
        if holder.nature == "garbled":
            raise UntrustedBytes("a frame does not fit")
        sealed = None if holder.nature == "forgetful" else holder.store.get_sealed(chunk)
        if sealed is None:
            raise ChunkNotServed("the peer refused: missing", "missing")
        return seal(Chunk.of(b"poison")) if holder.nature == "poisoned" else sealed


class InMemoryOffice:
    def __init__(self, origin: MemoryOrigin, *, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.origin = origin
        self.members: dict[DeviceId, Member] = {}
        self.sessions: set[frozenset[DeviceId]] = set()
        self._nursery: trio.Nursery | None = None
        self._scopes: dict[DeviceId, trio.CancelScope] = {}

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[InMemoryOffice]:
        with tempfile.TemporaryDirectory() as folder:
            self.origin.folder = Path(folder)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                yield self
                nursery.cancel_scope.cancel()

    async def add(self, *, weight: int = 8, settle_s: float = 1.0, why_not_gzip: str = "") -> Member:
        """A new device, running and connected with everybody."""
        assert self._nursery is not None
        device = DeviceId(self.rng.randbytes(16))
        member = Member(self, device, weight=weight, settle_s=settle_s, why_not_gzip=why_not_gzip)

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with trio.CancelScope() as scope:
                self._scopes[member.device] = scope
                await member.fetcher.run(task_status)

        await self._nursery.start(run)
        others = list(self.members.values())
        self.members[member.device] = member
        for other in others:
            self.sessions.add(frozenset((member.device, other.device)))
            member.fetcher.peer_up(other.device, other.weight)
            other.fetcher.peer_up(member.device, member.weight)
        return member

    def kill(self, member: Member) -> None:
        """As by SIGKILL, as far as others can see."""
        self._scopes.pop(member.device).cancel()
        del self.members[member.device]
        for other in self.members.values():
            self.sessions.discard(frozenset((member.device, other.device)))
            other.fetcher.peer_down(member.device)

    def neighbours(self, device: DeviceId) -> list[DeviceId]:
        return [other for other in self.members if frozenset((device, other)) in self.sessions]

    async def carry(self, sender: DeviceId, receiver: DeviceId, message: Message) -> None:
        if receiver in self.members and frozenset((sender, receiver)) in self.sessions:
            on_the_wire = msgspec.msgpack.encode(message)
            await self.members[receiver].fetcher.on_message(sender, _decoder.decode(on_the_wire))
