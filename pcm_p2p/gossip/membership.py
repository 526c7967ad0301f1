"""Membership: who is at this site, whom to dial, and who is gone. A core: events and the time go in, effects come out.

Evidence, strongest first: a live session (nothing outweighs it) > what a device says of itself > what I saw > what others say.

- A device is **alive** when it says so with the highest incarnation heard. Incarnations grow at each start and each refutation.
- It is **suspect** when I lost its session and could not get it back, or when two others say so.
- It is **dead** after a further wait (SWIM's suspicion, shortened by confirmations) *and* two observers; one is enough where no
  other observer exists. Accusations are first-hand only: hearsay is not passed on, so one peer cannot look like many.
- It has **left** when it said so in its Bye.
- A device that hears of its own accusation raises its incarnation and says so; a stale "alive" is answered with the
  accusation, so that the subject can refute (the mass-restart complaint of memberlist).
- A node that lost a third of its sessions within a minute is itself the likely cause and stops accusing (Lifeguard in small).

Up to ``DEGREE`` sessions are sought; ``targets`` says where.

Nobody waits for this detector before fetching (claims and leases do that), so its times are calm. Numbers:
research/gossip-scale.md 1.1 where not marked as a choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from random import Random

from pcm_p2p.gossip.targets import Address, Targets
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.messages import RosterEntry

DEGREE = 20
ROSTER_MAX = 512
BRIEF_SESSION_MS = 10_000
"""Choice: a session that ended sooner counts as a failed dial, so that two nodes that disagree do not spin."""
SUSPECT_AFTER_MS = 3_000
"""Choice: a restart or a roaming device is back before."""
UNREACHED_DIALS = 3
"""Choice: a device that I only know from others is suspect to me after this many failed dials."""
ACCUSATION_INTERVAL_MS = 2_000
SUSPICION_MS_MIN = 6_000
SUSPICION_FACTOR_MAX = 4
CONFIRMATIONS = 3
SELF_DOUBT_MS = 60_000
REFUTE_INTERVAL_MS = 2_000
TELL_INTERVAL_MS = 300
"""Choice: changes are collected this long, so that 20 simultaneous starts cost 20 messages a session, not 400."""
ANTI_ENTROPY_MS = 60_000
FORGET_DEAD_MS = 24 * 3_600_000
FORGET_LEFT_MS = 600_000


class Status(IntEnum):
    """As on the wire."""

    ALIVE = 0
    SUSPECT = 1
    LEFT = 2
    DEAD = 3


@dataclass(frozen=True, slots=True)
class Introduced:
    """Somebody may listen here: a seed, an mDNS answer, the last-known roster. ``device`` is a hint, never believed."""

    address: Address
    device: DeviceId | None = None
    seed: bool = False


@dataclass(frozen=True, slots=True)
class Dialled:
    """The dial reached a device with a certificate of the fleet."""

    address: Address
    device: DeviceId


@dataclass(frozen=True, slots=True)
class DialFailed:
    address: Address


@dataclass(frozen=True, slots=True)
class SessionUp:
    """``address``: where the peer listens, None if nowhere; ``site`` and ``incarnation`` as in its Hello."""

    device: DeviceId
    address: Address | None
    site: str
    incarnation: int
    weight: int


@dataclass(frozen=True, slots=True)
class SessionDown:
    """``left``: the peer said that it is leaving."""

    device: DeviceId
    left: bool = False


@dataclass(frozen=True, slots=True)
class RosterHeard:
    sender: DeviceId
    entries: tuple[RosterEntry, ...]


@dataclass(frozen=True, slots=True)
class WeightChanged:
    """My own weight changed."""

    weight: int


@dataclass(frozen=True, slots=True)
class NetworkChanged:
    """An interface came, went or changed its address: try everybody again now."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; about once a second."""


Event = (
    Introduced | Dialled | DialFailed | SessionUp | SessionDown | RosterHeard | WeightChanged | NetworkChanged | Tick
)


@dataclass(frozen=True, slots=True)
class Dial:
    """Try this address; answer with ``Dialled`` or ``DialFailed``."""

    address: Address


@dataclass(frozen=True, slots=True)
class Tell:
    """Send these entries to ``to``, or to every session of the site."""

    entries: tuple[RosterEntry, ...]
    to: DeviceId | None = None


@dataclass(frozen=True, slots=True)
class Refute:
    """My incarnation is now this: keep it on disk and use it in every Hello."""

    incarnation: int


Effect = Dial | Tell | Refute


@dataclass(slots=True)
class Member:
    """Another device of this site, as far as known."""

    device: DeviceId
    address: Address
    incarnation: int
    weight: int
    status: Status
    since_ms: int
    lost_ms: int | None = None
    failed_dials: int = 0
    accusers: set[DeviceId] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Contact:
    """A live session."""

    local: bool
    since_ms: int


class Membership:
    """Call ``handle`` for every event; perform the effects in order. Not more than ``ROSTER_MAX`` members are kept."""

    def __init__(
        self,
        device: DeviceId,
        *,
        site: str,
        port: int,
        incarnation: int,
        weight: int,
        rng: Random,
        degree: int = DEGREE,
    ) -> None:
        self.device = device
        self.site = site
        self.port = port
        self.incarnation = incarnation
        self.weight = weight
        self.members: dict[DeviceId, Member] = {}
        self._rng = rng
        self._degree = degree
        self._targets = Targets(device, rng)
        self._sessions: dict[DeviceId, _Contact] = {}
        self._untold: dict[DeviceId, None] = {}
        self._told_ms = 0
        self._accused_ms = -ACCUSATION_INTERVAL_MS
        self._refuted_ms = -REFUTE_INTERVAL_MS
        self._anti_entropy_ms: int | None = None

    def alive(self) -> list[DeviceId]:
        """The devices of this site that are alive or suspect, without myself, in the order of their ids."""
        return sorted(m.device for m in self.members.values() if m.status in (Status.ALIVE, Status.SUSPECT))

    def roster(self) -> tuple[RosterEntry, ...]:
        """What I would tell a newcomer, myself first (host empty: the address you see me on)."""
        told = [entry for member in self.members.values() if (entry := self._entry(member)) is not None]
        return (self._own_entry(), *told[: ROSTER_MAX - 1])

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        match event:
            case Introduced(address, device, seed):
                self._introduce(address, device, now_ms, seed=seed)
            case Dialled(address, device):
                self._targets.reached(address, device, now_ms)
            case DialFailed(address):
                self._dial_failed(address, now_ms)
            case SessionUp():
                effects += self._session_up(event, now_ms)
            case SessionDown(device, left):
                self._session_down(device, left, now_ms)
            case RosterHeard(sender, entries):
                effects += self._roster_heard(sender, entries, now_ms)
            case WeightChanged(weight):
                self.weight = weight
                self._untold[self.device] = None
            case NetworkChanged():
                self._targets.retry_all(now_ms)
            case Tick():
                self._accuse(now_ms)
                self._bury(now_ms)
                self._forget(now_ms)
                effects += self._anti_entropy(now_ms)
        effects += self._tell(now_ms)
        effects += self._dial(now_ms)
        return effects

    # Whom to dial

    def _introduce(self, address: Address, device: DeviceId | None, now_ms: int, *, seed: bool = False) -> None:
        self._targets.introduce(address, device, now_ms, seed=seed, connected=self._sessions.keys())

    def _dial_failed(self, address: Address, now_ms: int) -> None:
        expected = self._targets.failed(address, now_ms)
        member = self.members.get(expected) if expected is not None else None
        if member is not None and member.address == address:
            member.failed_dials += 1

    def _dial(self, now_ms: int) -> list[Effect]:
        wanted = self._degree - len(self._sessions)
        subnets = [self.members[device].address.subnet for device in self._sessions if device in self.members]
        dials = self._targets.next_dials(now_ms, connected=self._sessions.keys(), subnets=subnets, wanted=wanted)
        return [Dial(address) for address in dials]

    # What sessions show

    def _session_up(self, up: SessionUp, now_ms: int) -> list[Effect]:
        local = up.site == self.site
        self._sessions[up.device] = _Contact(local, now_ms)
        if up.address is not None:
            self._introduce(up.address, up.device, now_ms)
        if not local:
            return []
        address = up.address or Address("", 0)
        member = self.members.get(up.device)
        if member is None and not self._room_for_member():
            return [Tell(self.roster(), up.device)]
        new = Member(up.device, address, up.incarnation, up.weight, Status.ALIVE, now_ms)
        if member is None or self._differs(member, new):
            self._untold[up.device] = None
        self.members[up.device] = new
        return [Tell(self.roster(), up.device)]

    @staticmethod
    def _differs(old: Member, new: Member) -> bool:
        return (old.address, old.incarnation, old.weight, old.status) != (
            new.address,
            new.incarnation,
            new.weight,
            new.status,
        )

    def _session_down(self, device: DeviceId, left: bool, now_ms: int) -> None:
        contact = self._sessions.pop(device, None)
        brief = contact is not None and now_ms - contact.since_ms < BRIEF_SESSION_MS
        if left:
            self._targets.pause(device, now_ms + FORGET_LEFT_MS)
        else:
            self._targets.lost(device, now_ms, brief=brief)
        member = self.members.get(device)
        if member is None:
            return
        if left:
            member.status, member.since_ms = Status.LEFT, now_ms
            member.accusers = {self.device}
            self._untold[device] = None
        else:
            member.lost_ms = now_ms

    # What time shows

    def _accuse(self, now_ms: int) -> None:
        """At most one new accusation per interval, none while I may be the cause."""
        if now_ms - self._accused_ms < ACCUSATION_INTERVAL_MS or self._doubts_itself(now_ms):
            return
        for device in sorted(self.members):
            member = self.members[device]
            if device in self._sessions or self.device in member.accusers or not member.address.port:
                continue
            lost = member.lost_ms is not None and now_ms - member.lost_ms >= SUSPECT_AFTER_MS
            unreached = member.failed_dials >= (1 if lost else UNREACHED_DIALS)
            if member.status <= Status.SUSPECT and unreached:
                self._add_accuser(member, self.device, now_ms)
                self._untold[device] = None
                self._accused_ms = now_ms
                return

    def _doubts_itself(self, now_ms: int) -> bool:
        lost = sum(
            1
            for member in self.members.values()
            if member.device not in self._sessions
            and member.lost_ms is not None
            and now_ms - member.lost_ms < SELF_DOUBT_MS
        )
        return lost > 2 and 10 * lost > 3 * (lost + len(self._sessions))

    def _add_accuser(self, member: Member, accuser: DeviceId, now_ms: int) -> None:
        member.accusers.add(accuser)
        if member.status == Status.ALIVE and (self.device in member.accusers or len(member.accusers) >= 2):
            member.status, member.since_ms = Status.SUSPECT, now_ms

    def _bury(self, now_ms: int) -> None:
        others = sum(1 for contact in self._sessions.values() if contact.local)
        for member in self.members.values():
            if member.status != Status.SUSPECT or member.device in self._sessions:
                continue
            enough = len(member.accusers) >= min(2, 1 + others)
            if enough and now_ms - member.since_ms >= self._suspicion_ms(len(member.accusers) - 1):
                member.status, member.since_ms = Status.DEAD, now_ms
                self._untold[member.device] = None

    def _suspicion_ms(self, confirmations: int) -> int:
        """memberlist's formula: from the longest wait towards the shortest with each independent confirmation."""
        shortest = SUSPICION_MS_MIN * max(1.0, math.log10(len(self.members) + 1))
        longest = shortest * SUSPICION_FACTOR_MAX
        shrunk = longest - math.log(confirmations + 1) / math.log(CONFIRMATIONS + 1) * (longest - shortest)
        return round(max(shortest, shrunk))

    def _forget(self, now_ms: int) -> None:
        for device, member in list(self.members.items()):
            age_ms = now_ms - member.since_ms
            old = (member.status == Status.DEAD and age_ms > FORGET_DEAD_MS) or (
                member.status == Status.LEFT and age_ms > FORGET_LEFT_MS
            )
            if old and device not in self._sessions:
                del self.members[device]
                self._targets.forget(member.address)

    # What others say

    def _roster_heard(self, sender: DeviceId, entries: Iterable[RosterEntry], now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        if (contact := self._sessions.get(sender)) is None or not contact.local:
            return effects
        for entry in entries:
            device = DeviceId(entry.device)
            if entry.site != self.site:
                continue
            if device == self.device:
                effects += self._heard_of_myself(entry, now_ms)
            elif device == sender:
                self._heard_of_itself(entry)
            else:
                effects += self._heard_of_another(sender, device, entry, now_ms)
        return effects

    def _heard_of_myself(self, entry: RosterEntry, now_ms: int) -> list[Effect]:
        accused = entry.status != Status.ALIVE and entry.incarnation >= self.incarnation
        behind = entry.incarnation > self.incarnation  # restored from an old image: others know a later me
        if (
            not (accused or behind)
            or now_ms - self._refuted_ms < REFUTE_INTERVAL_MS
            or entry.incarnation >= 0xFFFF_FFFE
        ):
            return []
        self._refuted_ms = now_ms
        self.incarnation = entry.incarnation + 1
        self._untold[self.device] = None
        return [Refute(self.incarnation)]

    def _heard_of_itself(self, entry: RosterEntry) -> None:
        member = self.members.get(DeviceId(entry.device))
        if member is not None and (entry.incarnation, entry.weight) != (member.incarnation, member.weight):
            member.incarnation, member.weight = entry.incarnation, entry.weight
            self._untold[member.device] = None

    def _heard_of_another(self, sender: DeviceId, device: DeviceId, entry: RosterEntry, now_ms: int) -> list[Effect]:
        member = self.members.get(device)
        accused = entry.status != Status.ALIVE
        if device in self._sessions:
            # Nothing outweighs a live session; but the accused should know, to refute.
            return [Tell((entry,), device)] if accused and member and entry.incarnation >= member.incarnation else []
        if member is None or entry.incarnation > member.incarnation:
            if entry.status in (Status.LEFT, Status.DEAD) and member is None:
                return []
            self._take_entry(sender, device, entry, now_ms)
            return []
        if accused and entry.incarnation == member.incarnation:
            self._add_accuser(member, sender, now_ms)
        elif not accused and entry.incarnation == member.incarnation:
            member.accusers.discard(sender)
        elif member.status in (Status.SUSPECT, Status.DEAD) and not accused and self.device in member.accusers:
            answer = self._entry(member)
            return [Tell((answer,), sender)] if answer is not None else []
        return []

    def _take_entry(self, sender: DeviceId, device: DeviceId, entry: RosterEntry, now_ms: int) -> None:
        address = Address(entry.host, entry.port)
        known = device in self.members
        if not address.is_numeric or (not known and not self._room_for_member()):
            return
        member = Member(device, address, entry.incarnation, entry.weight, Status.ALIVE, now_ms)
        if entry.status != Status.ALIVE:
            member.accusers.add(sender)
        self.members[device] = member
        self._untold[device] = None
        self._introduce(address, device, now_ms)

    def _room_for_member(self) -> bool:
        """Whether one more fits, after forgetting the oldest of those that are gone if it must be."""
        if len(self.members) < ROSTER_MAX - 1:
            return True
        gone = [m for m in self.members.values() if m.status >= Status.LEFT and m.device not in self._sessions]
        if not gone:
            return False
        del self.members[min(gone, key=lambda member: (member.since_ms, member.device)).device]
        return True

    # What I say

    def _own_entry(self) -> RosterEntry:
        return RosterEntry(self.device, "", self.port, self.incarnation, Status.ALIVE, self.site, self.weight)

    def _entry(self, member: Member) -> RosterEntry | None:
        """First-hand knowledge only: an accusation is passed on by those who made it."""
        if member.status != Status.ALIVE and self.device not in member.accusers:
            return None
        if not member.address.host:
            return None
        return RosterEntry(
            member.device,
            member.address.host,
            member.address.port,
            member.incarnation,
            member.status,
            self.site,
            member.weight,
        )

    def _tell(self, now_ms: int) -> list[Effect]:
        if not self._untold or now_ms - self._told_ms < TELL_INTERVAL_MS:
            return []
        self._told_ms = now_ms
        entries = []
        for device in self._untold:
            if device == self.device:
                entries.append(self._own_entry())
            elif (member := self.members.get(device)) is not None and (entry := self._entry(member)) is not None:
                entries.append(entry)
        self._untold.clear()
        return [Tell(tuple(entries[:ROSTER_MAX]))] if entries else []

    def _anti_entropy(self, now_ms: int) -> list[Effect]:
        if self._anti_entropy_ms is None or now_ms >= self._anti_entropy_ms:
            first = self._anti_entropy_ms is None
            self._anti_entropy_ms = now_ms + ANTI_ENTROPY_MS * self._rng.randint(50, 150) // 100
            local = sorted(device for device, contact in self._sessions.items() if contact.local)
            if local and not first:
                return [Tell(self.roster(), self._rng.choice(local))]
        return []
