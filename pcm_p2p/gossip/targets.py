"""Targets: the addresses that may be dialled, and which of them now. A core.

At most ``DIALS_MAX`` attempts at once, exponential back-off per address for ever, both ends of a pair not at the same time (the
higher id waits ``PATIENCE_MS``). Subnets with fewer than two sessions come first, so that a site of several subnets stays one
graph. Addresses come from strangers' words, so their number is bounded and each costs its own failures only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from random import Random

from pcm_p2p.ids import DeviceId

TARGETS_MAX = 1_024
DIALS_MAX = 4
"""Choice: a machine that starts among 20 others has all sessions after five rounds of some 10 ms."""
PATIENCE_MS = 1_500
BACKOFF_MS_MIN = 500
BACKOFF_MS_MAX = 300_000
AGAIN_MS = 3_000
"""Choice: an address that is announced anew after this long may be back, whatever its back-off says."""


@dataclass(frozen=True, slots=True, order=True)
class Address:
    host: str
    port: int

    @property
    def is_numeric(self) -> bool:
        """Whether the host is an IP address. A name in a stranger's word would be looked up wherever it points."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def subnet(self) -> str:
        """The /24 of an IPv4 address, the host otherwise: only for spreading sessions."""
        return self.host.rpartition(".")[0] or self.host


@dataclass(slots=True)
class _Target:
    address: Address
    seed: bool
    device: DeviceId | None
    next_ms: int
    introduced_ms: int
    failures: int = 0


class Targets:
    """``own`` is never dialled once an address turned out to be its own."""

    def __init__(self, own: DeviceId, rng: Random) -> None:
        self._own = own
        self._rng = rng
        self._targets: dict[Address, _Target] = {}
        self._dialling: dict[Address, DeviceId | None] = {}

    def __len__(self) -> int:
        return len(self._targets)

    def introduce(
        self, address: Address, device: DeviceId | None, now_ms: int, *, seed: bool, connected: Collection[DeviceId]
    ) -> None:
        """Somebody may listen there; ``device`` is a hint that does not overrule a live session in ``connected``."""
        if device == self._own or not address.port:
            return
        target = self._targets.get(address)
        if target is None:
            if len(self._targets) < TARGETS_MAX or self._drop_worst():
                patience_ms = PATIENCE_MS if device is not None and device < self._own else 0
                self._targets[address] = _Target(address, seed, device, now_ms + patience_ms, now_ms)
            return
        target.seed = target.seed or seed
        if device is not None and target.device != device and target.device not in connected:
            target.device = device
        if target.failures and now_ms - target.introduced_ms > AGAIN_MS:
            target.next_ms = now_ms
        target.introduced_ms = now_ms

    def reached(self, address: Address, device: DeviceId, now_ms: int) -> None:
        """A dial found this device there; what becomes of the session is told by ``lost`` or ``failed``."""
        self._dialling.pop(address, None)
        if (target := self._targets.get(address)) is not None:
            target.device = device
            target.next_ms = now_ms + PATIENCE_MS

    def failed(self, address: Address, now_ms: int) -> DeviceId | None:
        """A dial found nobody; returns who was expected there."""
        self._dialling.pop(address, None)
        target = self._targets.get(address)
        if target is None:
            return None
        self._back_off(target, now_ms)
        return target.device

    def lost(self, device: DeviceId, now_ms: int, *, brief: bool) -> None:
        """A session ended. A brief one counts as a failed dial, so that two nodes that disagree do not spin."""
        for target in self._of(device):
            if brief:
                self._back_off(target, now_ms)
            else:
                patience_ms = PATIENCE_MS if device < self._own else 0
                target.failures, target.next_ms = 0, now_ms + patience_ms + self._rng.randint(0, 250)

    def pause(self, device: DeviceId, until_ms: int) -> None:
        """The device said that it is leaving."""
        for target in self._of(device):
            target.next_ms = until_ms

    def forget(self, address: Address) -> None:
        """Its device was forgotten. Seeds stay."""
        target = self._targets.get(address)
        if target is not None and not target.seed:
            del self._targets[address]

    def retry_all(self, now_ms: int) -> None:
        """The network changed: no failure of before says anything."""
        for target in self._targets.values():
            target.failures, target.next_ms = 0, min(target.next_ms, now_ms)

    def next_dials(
        self, now_ms: int, *, connected: Collection[DeviceId], subnets: Iterable[str], wanted: int
    ) -> list[Address]:
        """What to dial now, for ``wanted`` more sessions; ``subnets`` holds one entry for each session there is."""
        room = min(wanted, DIALS_MAX) - len(self._dialling)
        if room <= 0:
            return []
        reached = {*connected, *self._dialling.values(), self._own} - {None}
        due = [
            target
            for target in self._targets.values()
            if target.next_ms <= now_ms and target.address not in self._dialling and target.device not in reached
        ]
        self._rng.shuffle(due)
        counts: dict[str, int] = {}
        for subnet in subnets:
            counts[subnet] = counts.get(subnet, 0) + 1
        due.sort(key=lambda target: (target.failures > 0, min(counts.get(target.address.subnet, 0), 2)))
        chosen: list[Address] = []
        for target in due:
            if len(chosen) == room:
                break
            if target.device not in reached:
                self._dialling[target.address] = target.device
                if target.device is not None:
                    reached.add(target.device)
                chosen.append(target.address)
        return chosen

    def _of(self, device: DeviceId) -> list[_Target]:
        return [target for target in self._targets.values() if target.device == device]

    def _back_off(self, target: _Target, now_ms: int) -> None:
        wait_ms = min(BACKOFF_MS_MIN << min(target.failures, 20), BACKOFF_MS_MAX)
        target.failures += 1
        target.next_ms = now_ms + wait_ms * self._rng.randint(75, 125) // 100

    def _drop_worst(self) -> bool:
        """Make room: the address that failed most often, seeds excepted."""
        worst = max(
            (t for t in self._targets.values() if not t.seed and t.address not in self._dialling),
            key=lambda t: (t.failures, t.address),
            default=None,
        )
        if worst is None or not worst.failures:
            return False
        del self._targets[worst.address]
        return True
