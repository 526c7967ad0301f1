"""What neighbours' words about a base release say about the release that is made from it. Core.

While a release goes through an office in rings, the devices of the first ring want it, and the base lies with all the others:
those announce the base release only, which they keep. What a neighbour holds of the one is translated into places of the other's
table. A *lender* is such a neighbour: its chunks count as the office's, and it is no candidate for fetching segments.
"""

from __future__ import annotations

from collections.abc import Iterable

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.events import PeerLends
from pcm_p2p.swarm.holdings import bits_of
from pcm_p2p.wire.messages import Drop, Have, Holdings, Message


def is_base(base: Manifest, manifest: Manifest) -> bool:
    """Whether deltas of ``manifest`` start from ``base``."""
    return any(one.manifest == base.manifest_id for one in manifest.bases)


class Lending:
    def __init__(self, base: Manifest, manifest: Manifest) -> None:
        places = manifest.position_of
        self._places = {at: places[chunk] for at, chunk in enumerate(base.table_chunks) if chunk in places}
        self._all = bits_of(self._places.values())

    def holds(self, device: DeviceId, bits: int) -> PeerLends:
        """``device`` holds these chunks of the base release, and no others."""
        held = bits.to_bytes(bits.bit_length() // 8 + 1, "little")
        lent = (to for at, to in self._places.items() if at >> 3 < len(held) and held[at >> 3] >> (at & 7) & 1)
        return PeerLends(device, self._all, bits_of(lent))

    def heard(self, device: DeviceId, message: Message, bits: int) -> PeerLends | None:
        """What an announcement about the base release changes; ``bits`` is what ``device`` holds of that now."""
        match message:
            case Holdings():
                return self.holds(device, bits)
            case Have():
                gained = self._of(message.positions)
                return PeerLends(device, gained, gained)
            case Drop():
                return PeerLends(device, self._of(message.positions), 0)
            case _:
                return None

    def _of(self, positions: Iterable[int]) -> int:
        return bits_of(self._places[at] for at in positions if at in self._places)
