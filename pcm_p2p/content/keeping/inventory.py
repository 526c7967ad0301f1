"""What a store holds, and the order in which it lets go. The bytes are the store's; here are ids, sizes and times.

*Wanted* chunks stay. All others are *idle*, in three tiers: surplus copies leave first, chunks that this device keeps for the
office next, chunks that nobody else at the site has last. Within a tier the least recently used leaves first.

Chunks that are *leaving* have been announced as gone: they leave before all others, whatever their tier.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pcm_p2p.ids import ChunkId

SURPLUS, KEPT, LAST = TIERS = range(3)


@dataclass(slots=True)
class Held:
    """``touched_s``: when ``used_s`` was last written to the disk. Both in seconds of the caller's clock."""

    size_bytes: int
    used_s: float
    touched_s: float


class Share(NamedTuple):
    """A part of what is held; bytes as sealed."""

    chunks: int
    bytes: int


class Inventory:
    """No lock: the store has one. ``bytes`` is what all has together; ``tiers_known`` since the first ``set_tiers``."""

    def __init__(self) -> None:
        self._held: dict[ChunkId, Held] = {}
        self._idle: tuple[OrderedDict[ChunkId, None], ...] = tuple(OrderedDict() for _ in TIERS)
        self._tier_bytes = [0 for _ in TIERS]
        self._wanted: frozenset[ChunkId] = frozenset()
        self._kept: frozenset[ChunkId] = frozenset()
        self._last: frozenset[ChunkId] = frozenset()
        self._leaving: dict[ChunkId, None] = {}
        self.bytes = 0
        self.tiers_known = False

    # What is there

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, chunk: ChunkId) -> bool:
        return chunk in self._held

    def ids(self) -> list[ChunkId]:
        return list(self._held)

    def size_bytes(self, chunk: ChunkId) -> int:
        """Raises ``KeyError`` if it is not held."""
        return self._held[chunk].size_bytes

    @property
    def wanted(self) -> frozenset[ChunkId]:
        """Those that are to stay, held or not."""
        return self._wanted

    @property
    def idle_bytes(self) -> int:
        return sum(self._tier_bytes)

    def tier_bytes(self, tier: int) -> int:
        return self._tier_bytes[tier]

    def share_of(self, chunks: Collection[ChunkId]) -> Share:
        """How many of these are held, each counted once, and their bytes."""
        sizes = [self._held[chunk].size_bytes for chunk in dict.fromkeys(chunks) if chunk in self._held]
        return Share(len(sizes), sum(sizes))

    def is_idle(self, chunk: ChunkId) -> bool:
        """Held, and not wanted."""
        return chunk in self._held and chunk not in self._wanted

    # What changes

    def add(self, chunk: ChunkId, size_bytes: int, now_s: float) -> None:
        """It must not be held. It counts as used now, so in time order it is the last."""
        self._held[chunk] = Held(size_bytes, now_s, now_s)
        self.bytes += size_bytes
        self._place(chunk, size_bytes)

    def forget(self, chunk: ChunkId) -> bool:
        """Whether it was held."""
        held = self._held.pop(chunk, None)
        if held is None:
            return False
        self.bytes -= held.size_bytes
        self._leaving.pop(chunk, None)
        for tier in TIERS:
            if chunk in self._idle[tier]:
                del self._idle[tier][chunk]
                self._tier_bytes[tier] -= held.size_bytes
        return True

    def use(self, chunk: ChunkId, now_s: float) -> Held | None:
        """It was read, or asked for again; None if it is not held."""
        held = self._held.get(chunk)
        if held is not None:
            held.used_s = now_s
            for idle in self._idle:
                if chunk in idle:
                    idle.move_to_end(chunk)
        return held

    def set_wanted(self, chunks: Collection[ChunkId]) -> None:
        self._wanted = frozenset(chunks)
        self.sort()

    def set_tiers(self, kept: Collection[ChunkId], last: Collection[ChunkId]) -> None:
        """What is in both is the last copy."""
        self._kept, self._last = frozenset(kept), frozenset(last)
        self.tiers_known = True
        self.sort()

    def sort(self) -> None:
        """Put everything into its tier in the order of last use: n log n, for changes that concern many."""
        for tier in TIERS:
            self._idle[tier].clear()
            self._tier_bytes[tier] = 0
        order: Callable[[tuple[ChunkId, Held]], tuple[float, ChunkId]] = lambda each: (each[1].used_s, each[0])  # noqa: E731
        for chunk, held in sorted(self._held.items(), key=order):
            self._place(chunk, held.size_bytes)
        for chunk in [chunk for chunk in self._leaving if chunk in self._wanted]:
            del self._leaving[chunk]

    def _place(self, chunk: ChunkId, size_bytes: int) -> None:
        if chunk in self._wanted:
            return
        tier = LAST if chunk in self._last else KEPT if chunk in self._kept else SURPLUS
        self._idle[tier][chunk] = None
        self._tier_bytes[tier] += size_bytes

    # Leaving

    def first_out(self) -> ChunkId | None:
        """The idle chunk that leaves first."""
        return next(self._in_order(), None)

    def surplus_above(self, size_bytes_max: int) -> list[ChunkId]:
        """The surplus copies that have to leave, first to last, for all to have at most ``size_bytes_max`` bytes."""
        excess, going = self.bytes - size_bytes_max, []
        for chunk in self._idle[SURPLUS]:
            if excess <= 0:
                break
            going.append(chunk)
            excess -= self._held[chunk].size_bytes
        return going

    def is_leaving(self, chunk: ChunkId) -> bool:
        return chunk in self._leaving

    def leaving(self) -> list[ChunkId]:
        return list(self._leaving)

    def stay(self, chunk: ChunkId) -> None:
        """It is asked for again, so it does not leave."""
        self._leaving.pop(chunk, None)

    def leave(self, room_bytes: int) -> list[ChunkId]:
        """Mark idle chunks of ``room_bytes`` together, as far as there are so many, as leaving; those that are new to it."""
        fresh = []
        for chunk in self._in_order():
            if room_bytes <= 0:
                break
            room_bytes -= self._held[chunk].size_bytes
            if chunk not in self._leaving:
                fresh.append(chunk)
        self._leaving |= dict.fromkeys(fresh)
        return fresh

    def _in_order(self) -> Iterator[ChunkId]:
        yield from self._leaving
        for idle in self._idle:
            yield from (chunk for chunk in idle if chunk not in self._leaving)
