"""Which chunks of an earlier release a run of the new one is made from, so that the delta between them is small. Pure.

Both releases are seen as one space of bytes, their stored forms joined. A run asks for base chunks in four ways, in this order,
until ``base_bytes_max`` is reached:

1. *unchanged*: chunks that the run and the base have in common; a delta copies them;
2. *aligned*: where the member of the same path was (exactly, else but for versions, else but for numbers, else the member with
   most anchors in common): all of a small one; of a large one, block by block, the place to which the anchors of the block
   point, or those of the blocks nearest to it, or the same share of the way through;
3. *around*: neighbours of the aligned chunks, nearest first;
4. *alike*: for what has no member to be aligned with, chunks that hold many of its anchors.

More base is not better: with chunks that are alike for all of the run, before those around, deltas of qemu and libreoffice grow
by 3 and 4 %, because the library then copies from far away (mariadb shrinks by 2 %); with nothing around they grow by 15 %
(libreoffice).

An *anchor* is a place that the content chooses, with what follows it: a cut point of a fine-grained FastCDC and the 16 bytes
behind it. A recompiled binary has hardly a kilobyte in common with the old one in a row, but in each 64 KiB some dozens of
anchors survive (postgresql 15.18 → 15.20: 45 % of all, at 512 bytes between two).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median_low

from pcm_p2p.content.forms.member import Member, normalized, versionless

BASE_BYTES_TARGET = 32 << 20
"""Choice: twice a run. Below ``manifest.BASE_BYTES_MAX``, because more helps nobody and has to be brought together."""
SMALL_BYTES_MAX = 512 << 10
"""A member of the base up to this size is taken as a whole: its chunks are hardly more than the part that is needed."""
BLOCK_BYTES = 128 << 10
"""The step in which a large member is aligned."""
AROUND_BYTES_MAX = 4 << 20
"""Measured: postgresql 25.1 % of the package with 4 MiB on either side, 25.2 % with 8."""
OCCURRENCES_MAX = 4
"""An anchor that occurs more often in the base says nothing about where to look."""
ALIKE_ANCHORS_MIN = 4
"""Fewer anchors in common than that, in a chunk, are chance."""


@dataclass(frozen=True, slots=True)
class Anchors:
    """Anchors of a release in order: ``offsets``, and what is there (``keys``, 64 bit)."""

    offsets: array[int] = field(default_factory=lambda: array("Q"))
    keys: array[int] = field(default_factory=lambda: array("Q"))

    def within(self, begin: int, end: int) -> range:
        """Which anchors have offsets in ``begin`` … ``end - 1``."""
        return range(bisect_left(self.offsets, begin), bisect_left(self.offsets, end))


@dataclass(frozen=True, slots=True)
class Side:
    """One release. ``members`` tile its bytes; ``offsets`` and ``positions`` say which chunk of its table begins where."""

    members: Sequence[Member]
    anchors: Anchors
    offsets: Sequence[int] = ()
    positions: Sequence[int] = ()
    sizes: Sequence[int] = ()
    first_places: Sequence[int] = field(init=False)
    """Where in ``offsets`` each chunk of the table occurs first."""

    def __post_init__(self) -> None:
        places = array("L", bytes(len(self.sizes) * array("L").itemsize))
        for place in reversed(range(len(self.positions))):
            places[self.positions[place]] = place
        object.__setattr__(self, "first_places", places)

    def members_within(self, begin: int, end: int) -> Iterator[int]:
        """Which members have bytes in ``begin`` … ``end - 1``."""
        at = max(0, bisect_right(self.members, begin, key=_offset) - 1)
        while at < len(self.members) and self.members[at].offset < end:
            yield at
            at += 1

    def places_within(self, begin: int, end: int) -> range:
        """Which places of ``offsets`` have bytes in ``begin`` … ``end - 1``."""
        return range(max(0, bisect_right(self.offsets, begin) - 1), bisect_left(self.offsets, end))

    def size_at(self, place: int) -> int:
        return self.sizes[self.positions[place]]


def _offset(member: Member) -> int:
    return member.offset


class Matcher:
    """Matches runs of ``new`` against ``base``. Deterministic: a function of the two sides."""

    def __init__(self, new: Side, base: Side) -> None:
        self._new, self._base = new, base
        self._index = _index(base.anchors)
        self._pairs = _by_path(new.members, base.members)
        self._steps: dict[int, list[int]] = {}
        for number, member in enumerate(new.members):
            if self._pairs[number] is None and member.size > BLOCK_BYTES:
                self._pairs[number] = self._most_alike(member)

    def base_of(
        self,
        slices: Iterable[tuple[int, int]],
        unchanged: Iterable[int] = (),
        base_bytes_max: int = BASE_BYTES_TARGET,
    ) -> list[int]:
        """Positions in the base's table, each once, in the order of its stored forms, ``base_bytes_max`` together at most.

        ``slices``: (offset, size) of the run's parts in the new release; ``unchanged``: base positions of its chunks.
        """
        slices = list(slices)
        chosen = _Choice(self._base, base_bytes_max)
        chosen.take(self._base.first_places[position] for position in unchanged)
        aligned, alone = Counter[int](), list[tuple[int, int]]()
        for offset, size in slices:
            alone += self._align(offset, offset + size, aligned)
        chosen.take(sorted(aligned, key=lambda place: (-aligned[place], place)))
        chosen.take(self._around(sorted(aligned)))
        alike = self._alike(alone)
        chosen.take(sorted(alike, key=lambda place: (-alike[place], place)))
        return chosen.positions()

    def counterpart(self, number: int, begin: int, end: int) -> tuple[int, int]:
        """First byte and end of the part of the base that bytes ``begin`` … ``end - 1`` of member ``number`` are aligned with.

        (0, 0) if there is none. Of a large member it is the part with ``BLOCK_BYTES`` on either side.
        """
        pair = self._pairs[number]
        if pair is None:
            return 0, 0
        member, old = self._new.members[number], self._base.members[pair]
        if old.size <= SMALL_BYTES_MAX:
            return old.offset, old.offset + old.size
        blocks = range((begin - member.offset) // BLOCK_BYTES, -(-(end - member.offset) // BLOCK_BYTES))
        steps = self._steps_of(number, old)
        first, last = min(steps[block] for block in blocks), max(steps[block] for block in blocks)
        return max(old.offset, first - BLOCK_BYTES), min(old.offset + old.size, last + 2 * BLOCK_BYTES)

    def _align(self, begin: int, end: int, aligned: Counter[int]) -> list[tuple[int, int]]:
        """Count for each place of the base how many bytes of ``begin`` … ``end - 1`` are aligned with it.

        Returns the parts (offset, size) that are aligned with nothing.
        """
        alone = list[tuple[int, int]]()
        for number in self._new.members_within(begin, end):
            pair, member = self._pairs[number], self._new.members[number]
            first, last = max(begin, member.offset), min(end, member.offset + member.size)
            if pair is None:
                alone.append((first, last - first))
                continue
            old = self._base.members[pair]
            if old.size <= SMALL_BYTES_MAX:
                for place in self._base.places_within(old.offset, old.offset + old.size):
                    aligned[place] += last - first
                continue
            steps = self._steps_of(number, old)
            for block in range((first - member.offset) // BLOCK_BYTES, -(-(last - member.offset) // BLOCK_BYTES)):
                at = min(max(steps[block], old.offset), old.offset + old.size - 1)
                until = min(at + BLOCK_BYTES, old.offset + old.size)
                for place in self._base.places_within(at, until):
                    aligned[place] += BLOCK_BYTES
        return alone

    def _steps_of(self, number: int, old: Member) -> list[int]:
        """For each block of a member: where in the base it is, by its anchors."""
        if number in self._steps:
            return self._steps[number]
        member = self._new.members[number]
        count = -(-member.size // BLOCK_BYTES)
        shifts: list[int | None] = []
        for block in range(count):
            begin = member.offset + block * BLOCK_BYTES
            found = [
                place - self._new.anchors.offsets[at]
                for at in self._new.anchors.within(begin, min(begin + BLOCK_BYTES, member.offset + member.size))
                for place in self._index.get(self._new.anchors.keys[at], ())
                if old.offset <= place < old.offset + old.size
            ]
            shifts.append(median_low(found) if found else None)
        steps = [
            member.offset + block * BLOCK_BYTES + shift
            if shift is not None
            else old.offset + block * BLOCK_BYTES * old.size // member.size
            for block, shift in enumerate(_nearest(shifts))
        ]
        self._steps[number] = steps
        return steps

    def _alike(self, slices: list[tuple[int, int]]) -> Counter[int]:
        """How many anchors of the slices each place of the base holds, where they are many enough."""
        votes, anchors, offsets = Counter[int](), self._new.anchors, self._base.offsets
        for offset, size in slices:
            for at in anchors.within(offset, offset + size):
                for place in self._index.get(anchors.keys[at], ()):
                    votes[bisect_right(offsets, place) - 1] += 1
        return Counter({place: count for place, count in votes.items() if count >= ALIKE_ANCHORS_MIN})

    def _around(self, aligned: list[int]) -> Iterator[int]:
        """Places at both sides of the aligned ones, nearest first."""
        taken, last = set(aligned), len(self._base.offsets) - 1
        edges = [(place, step, 0) for place in aligned for step in (-1, 1)]
        while edges:
            following = []
            for edge, step, distance in edges:
                place = edge + step
                if 0 <= place <= last and place not in taken and distance < AROUND_BYTES_MAX:
                    taken.add(place)
                    following.append((place, step, distance + self._base.size_at(place)))
                    yield place
            edges = following

    def _most_alike(self, member: Member) -> int | None:
        """The member of the base with most anchors of ``member``."""
        votes, anchors = Counter[int](), self._new.anchors
        for at in anchors.within(member.offset, member.offset + member.size):
            for place in self._index.get(anchors.keys[at], ()):
                votes[bisect_right(self._base.members, place, key=_offset) - 1] += 1
        if not votes:
            return None
        best = min(votes, key=lambda number: (-votes[number], number))
        return best if votes[best] >= ALIKE_ANCHORS_MIN else None


class _Choice:
    """Places of the base, taken until its bytes are used up."""

    def __init__(self, base: Side, bytes_max: int) -> None:
        self._base = base
        self._left = bytes_max
        self._places: dict[int, int] = {}

    def take(self, places: Iterable[int]) -> None:
        for place in places:
            position, size = self._base.positions[place], self._base.size_at(place)
            if position not in self._places and size <= self._left:
                self._left -= size
                self._places[position] = place

    def positions(self) -> list[int]:
        return sorted(self._places, key=self._places.__getitem__)


def _index(anchors: Anchors) -> dict[int, tuple[int, ...]]:
    """Where each key occurs, of those that occur seldom."""
    found: dict[int, tuple[int, ...]] = {}
    for key, offset in zip(anchors.keys, anchors.offsets, strict=True):
        before = found.get(key, ())
        if len(before) <= OCCURRENCES_MAX:
            found[key] = (*before, offset)
    return {key: offsets for key, offsets in found.items() if len(offsets) <= OCCURRENCES_MAX}


def _by_path(new: Sequence[Member], base: Sequence[Member]) -> list[int | None]:
    """For each member of ``new`` the one of ``base`` with its path, else with one that differs in versions, else in numbers.

    Where several come into question the first goes with the first, and so on.
    """
    pairs: list[int | None] = [None] * len(new)
    free = list(range(len(base)))
    for alike in (str, versionless, normalized):
        ranked: dict[str, list[int]] = {}
        for number in free:
            ranked.setdefault(alike(base[number].path), []).append(number)
        seen, used = Counter[str](), set[int]()
        for number, member in enumerate(new):
            if pairs[number] is None and (found := ranked.get(path := alike(member.path))):
                pairs[number] = found[min(seen[path], len(found) - 1)]
                used.add(found[min(seen[path], len(found) - 1)])
                seen[path] += 1
        free = [number for number in free if number not in used]
    return pairs


def _nearest(shifts: list[int | None]) -> list[int | None]:
    """Each gap filled with the nearest known shift, the earlier one if two are equally near."""
    before: list[tuple[int, int] | None] = []
    known: tuple[int, int] | None = None
    for at, shift in enumerate(shifts):
        known = (at, shift) if shift is not None else known
        before.append(known)
    filled, known = list[int | None](), None
    for at in reversed(range(len(shifts))):
        shift, earlier = shifts[at], before[at]
        known = (at, shift) if shift is not None else known
        if known is None or (earlier is not None and at - earlier[0] <= known[0] - at):
            filled.append(earlier[1] if earlier else None)
        else:
            filled.append(known[1])
    return filled[::-1]
