"""Who in the office has which chunk of one manifest: a bit field over its whole table in one ``int`` per device.

Core. All zones of the table are told and heard of; what a device *wants* of it is a bit field too, and changes: the release
zone, the base chunks of deltas that it applies, a layout now and then. Plain ints make the questions of this room single
operations (``want & ~office``), also for the 65,536 chunks that a manifest may have: 8 KiB a field. ``by_count`` keeps, for
each number of holders, the positions with just that many, so that the rarest chunk of a neighbour is found by a few ``and``
operations and not by a walk over the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pcm_p2p.ids import DeviceId


def bits_of(positions: Iterable[int]) -> int:
    """The bit field with just these positions."""
    every = tuple(positions)
    if len(every) <= 8:
        bits = 0
        for position in every:
            bits |= 1 << position
        return bits
    packed = bytearray(max(every) // 8 + 1)
    for position in every:
        packed[position >> 3] |= 1 << (position & 7)
    return int.from_bytes(packed, "little")


def positions_of(bits: int) -> Iterator[int]:
    """The positions in a bit field, lowest first."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


class OfficeHoldings:
    """``mine`` is what is in my store; ``peers`` what each announcing neighbour said; ``lan`` what any of them says it has;
    ``wanted`` what is to be in my store (everything, unless told otherwise).

    ``proven`` are neighbours that have delivered a chunk: what others hold is hearsay. A device is in ``peers`` from its
    first announcement until it leaves or is banned: that is what makes it a candidate, unless it is in ``keeping``: those have
    the release in place and fetch nothing over the WAN; or in ``lending``: those have not announced this release at all, and
    are known to hold chunks of it by what they say about another (``lending``). ``lacking_gzip`` cannot decode what needs gzip.
    """

    def __init__(self, chunk_count: int, mine: int = 0, wanted: int = -1) -> None:
        self.chunk_count = chunk_count
        self.full = (1 << chunk_count) - 1
        self.wanted = wanted & self.full
        self.mine = mine & self.full
        self.peers: dict[DeviceId, int] = {}
        self.proven: set[DeviceId] = set()
        self.keeping: set[DeviceId] = set()
        self.lending: set[DeviceId] = set()
        self.lacking_gzip: set[DeviceId] = set()
        self.lan = 0
        self.by_count: list[int] = [self.full]

    @property
    def missing(self) -> int:
        return self.wanted & ~self.mine

    @property
    def office(self) -> int:
        """What I have, or a neighbour says it has."""
        return self.mine | self.lan

    def proven_lan(self) -> int:
        """What neighbours hold that have delivered before."""
        bits = 0
        for device in self.proven:
            bits |= self.peers.get(device, 0)
        return bits

    def gain(self, bits: int) -> int:
        """Add to mine; returns what is new."""
        new = bits & self.full & ~self.mine
        self.mine |= new
        return new

    def lose(self, bits: int) -> int:
        """Take from mine; returns what was there."""
        gone = bits & self.mine
        self.mine &= ~gone
        return gone

    def peer_holds(self, device: DeviceId, bits: int) -> None:
        before = self.peers.get(device, 0)
        bits &= self.full
        self.peers[device] = bits
        self._recount(bits & ~before, +1)
        self._recount(before & ~bits, -1)

    def peer_gains(self, device: DeviceId, bits: int) -> None:
        if device in self.peers:
            self.peer_holds(device, self.peers[device] | bits)

    def peer_drops(self, device: DeviceId, bits: int) -> None:
        if device in self.peers:
            self.peer_holds(device, self.peers[device] & ~bits)

    def peer_lends(self, device: DeviceId, among: int, bits: int) -> None:
        """Of ``among`` it holds just ``bits``. Who has announced this release has told that already."""
        if device in self.lending or (bits and device not in self.peers):
            self.lending.add(device)
            self.peer_holds(device, self.peers.get(device, 0) & ~among | bits)

    def peer_left(self, device: DeviceId) -> None:
        if device in self.peers:
            self.peer_holds(device, 0)
            del self.peers[device]
        self.proven.discard(device)
        self.keeping.discard(device)
        self.lending.discard(device)
        self.lacking_gzip.discard(device)

    def holders(self, position: int) -> list[DeviceId]:
        """Neighbours that say they have it, in the order of their first announcement."""
        return [device for device, bits in self.peers.items() if bits >> position & 1]

    def _recount(self, bits: int, step: int) -> None:
        """Move the positions in ``bits`` one row of ``by_count`` up or down."""
        if not bits:
            return
        rows = range(len(self.by_count) - 1, -1, -1) if step > 0 else range(1, len(self.by_count))
        for count in rows:
            moving = self.by_count[count] & bits
            if not moving:
                continue
            self.by_count[count] &= ~moving
            if count + step == len(self.by_count):
                self.by_count.append(0)
            self.by_count[count + step] |= moving
        self.lan = self.full & ~self.by_count[0]
