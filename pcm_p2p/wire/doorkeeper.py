"""The doorkeeper: how many strangers may be at the door, in all and from one place. A core; for links and for the desk.

A connection is a stranger's until its handshake proved a certificate, and costs memory and a place until then. Hence:

- at most ``at_once_max`` strangers in all, each until the caller's deadline;
- of one *source* (an IPv4 address, a /64 of IPv6: what one host has to itself) at most ``each_at_once_max``, and no more new
  ones than a token bucket of ``burst`` that refills with ``rate_per_s`` allows;
- sources that proved themselves before have ``at_once_max`` places of their own, so that strangers who fill theirs do not lock
  neighbours out.

What is not let in is closed at once and costs nothing further. Loopback has no limit for each source: all programs of a machine
share that one address. The table of sources is bounded; the one that was idle longest makes room.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

STRANGERS_MAX = 16
"""Choice: 1.5 ms of work each, so even a full set is done in a blink; more than that is not a LAN's normal life."""
STRANGERS_EACH_MAX = 4
"""Choice: a neighbour dials once and is dialled once; four leave room for the devices behind one NAT address."""
BURST = 20
RATE_PER_S = 2.0
"""Choice: an office of 20 behind one address that starts together is let in at once, a knocker 120 times a minute."""
SOURCES_MAX = 1_024


@dataclass(slots=True)
class _Source:
    tokens: float
    seen_s: float
    inside: int = 0
    proven: bool = False


class Doorkeeper:
    """``enter`` for each connection; for each that was let in, ``leave`` once its handshake has ended. Times are monotonic."""

    def __init__(
        self,
        *,
        at_once_max: int = STRANGERS_MAX,
        each_at_once_max: int = STRANGERS_EACH_MAX,
        burst: int = BURST,
        rate_per_s: float = RATE_PER_S,
        sources_max: int = SOURCES_MAX,
        loopback_is_exempt: bool = True,
    ) -> None:
        self._at_once_max = at_once_max
        self._each_at_once_max = each_at_once_max
        self._burst = burst
        self._rate_per_s = rate_per_s
        self._sources_max = max(sources_max, 2 * at_once_max + 1)
        self._loopback_is_exempt = loopback_is_exempt
        self._sources: dict[str, _Source] = {}
        self.strangers = 0
        self.proven = 0
        self.turned_away = 0

    def enter(self, host: str, now_s: float) -> str:
        """Empty if the connection from this address may go on, else the reason why not, in words."""
        name, exempt = source_of(host)
        refusal = self._refusal(name, now_s, exempt=exempt and self._loopback_is_exempt)
        self.turned_away += bool(refusal)
        return refusal

    def leave(self, host: str, *, proved: bool) -> None:
        """The handshake that ``enter`` let in has ended; ``proved``: with a certificate of the fleet."""
        source = self._sources[source_of(host)[0]]
        source.inside -= 1
        if source.proven:
            self.proven -= 1
        else:
            self.strangers -= 1
        if proved and not source.inside:  # which pool a source's connections are counted in changes between them only
            source.proven = True

    def _refusal(self, name: str, now_s: float, *, exempt: bool) -> str:
        source = self._sources.pop(name, None) or self._new(now_s)
        self._sources[name] = source  # the order of the table is that of the last knock
        source.tokens = min(self._burst, source.tokens + (now_s - source.seen_s) * self._rate_per_s)
        source.seen_s = now_s
        if not exempt:
            if source.inside >= self._each_at_once_max:
                return f"{source.inside} handshakes with this address are under way"
            if source.tokens < 1:
                return "too many connections from this address"
        if (self.proven if source.proven else self.strangers) >= self._at_once_max:
            return f"{self._at_once_max} handshakes are under way"
        source.tokens -= 1
        source.inside += 1
        if source.proven:
            self.proven += 1
        else:
            self.strangers += 1
        return ""

    def _new(self, now_s: float) -> _Source:
        if len(self._sources) >= self._sources_max:
            del self._sources[next(name for name, source in self._sources.items() if not source.inside)]
        return _Source(self._burst, now_s)


def source_of(host: str) -> tuple[str, bool]:
    """What is counted as one source, and whether it is this machine itself. An address that does not read is one of its own."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host[:64], False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.IPv6Address(int(address) >> 64 << 64)), address.is_loopback
        address = address.ipv4_mapped
    return str(address), address.is_loopback
