"""Clones: whether two devices use one key. A core: sightings go in, proof comes out.

Each start of a daemon draws 16 random bytes, its *instance*, and says them in every Hello. A state folder has one process at a
time, so the instances of one device follow each other and none returns. What is seen of an instance is an interval: at some
moment in it the process was alive, since it signed or answered something that did not exist before. Proof is taking turns::

    A was alive, then B, then A, then B again      (intervals that do not touch, by one clock that only goes on)

Had there been one process at a time, A would have lived from its first to its last sighting, and B in between. So restarts,
crash loops, clocks that jump, a state folder that was restored from a backup, two dials that cross, and a message that was
late cannot look like a clone: none of them brings an instance back to life. A virtual machine that is set back to a snapshot
with its memory does that once (A, B, A); it takes two living processes to go on. Incarnations are not asked: they go back
with a restored folder, and go up when a device refutes an accusation.

Each peer judges by what it saw. Nothing is passed on to other peers, so that nobody can have another device quarantined by
saying so. On proof the peer drops the sessions of that id, both of them, and refuses it for ``QUARANTINE_MS_MIN``, twice as long
each time that the clone is still there afterwards, up to ``QUARANTINE_MS_MAX``.

What this cannot see: a machine that was copied together with its running processes has one instance twice. Their reports tell
(two reports under one number, ``collector.archive``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pcm_p2p.ids import DeviceId

UNKNOWN = bytes(16)
"""The instance of a peer that speaks an older protocol and does not say it."""
DEVICES_MAX = 1_024
"""Choice: twice the roster; the devices seen longest ago are forgotten first."""
SIGHTINGS_MAX = 16
"""Choice: of one device. A crash loop pushes out what is older than a dozen starts."""
QUARANTINE_MS_MIN = 60_000
QUARANTINE_MS_MAX = 3_600_000
"""Choice: a device whose clone was enrolled anew is back within the hour, by itself."""
REMEMBERED_MS = 24 * 3_600_000
"""Choice: how long a proof is told in reports, and counts when the next quarantine is measured."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """At some moment from ``since_ms`` to ``until_ms`` the process was alive."""

    instance: bytes
    since_ms: int
    until_ms: int


@dataclass(slots=True)
class _Watched:
    sightings: list[Sighting] = field(default_factory=list)
    seen_ms: int = 0
    proven_ms: int | None = None
    until_ms: int = 0
    length_ms: int = 0
    proofs: int = 0


@dataclass(frozen=True, slots=True)
class Clone:
    """Two devices were proven to use the key of ``device``; ``proven_ms`` is the latest time, ``proofs`` how often so far."""

    device: DeviceId
    proven_ms: int
    proofs: int


class Clones:
    """Times are milliseconds of one clock that never goes back."""

    def __init__(self) -> None:
        self._watched: dict[DeviceId, _Watched] = {}

    def alive(self, device: DeviceId, instance: bytes, since_ms: int, now_ms: int) -> bool:
        """An instance of ``device`` proved to be alive at some moment from ``since_ms`` to ``now_ms``.

        Whether that proves two processes with one key; the device is in quarantine from then on.
        """
        if instance == UNKNOWN:
            return False
        watched = self._watched.pop(device, None) or _Watched()
        self._watched[device] = watched  # last in order: seen last
        watched.seen_ms = now_ms
        self._forget(now_ms)
        new = Sighting(instance, since_ms, now_ms)
        if _take_turns(watched.sightings, new):
            self._prove(watched, now_ms)
            return True
        _note(watched.sightings, new)
        return False

    def quarantined(self, device: DeviceId, now_ms: int) -> bool:
        """Whether sessions of this device are refused at present."""
        watched = self._watched.get(device)
        return watched is not None and now_ms < watched.until_ms

    def proven(self, now_ms: int) -> tuple[Clone, ...]:
        """The clones of the last day, by device id."""
        return tuple(
            Clone(device, watched.proven_ms, watched.proofs)
            for device, watched in sorted(self._watched.items())
            if watched.proven_ms is not None and now_ms - watched.proven_ms < REMEMBERED_MS
        )

    @staticmethod
    def _prove(watched: _Watched, now_ms: int) -> None:
        recent = watched.proven_ms is not None and now_ms - watched.proven_ms < REMEMBERED_MS
        if now_ms >= watched.until_ms:
            # It is there again after a quarantine, or for the first time. During one it only goes on.
            longer_ms = min(2 * watched.length_ms, QUARANTINE_MS_MAX)
            watched.length_ms = longer_ms if recent else QUARANTINE_MS_MIN
        watched.until_ms = now_ms + watched.length_ms
        watched.proven_ms = now_ms
        watched.proofs = watched.proofs + 1 if recent else 1
        watched.sightings.clear()  # what was punished once is not evidence for the next time

    def _forget(self, now_ms: int) -> None:
        """Make room, first from those of whom nothing is held against them."""
        while len(self._watched) > DEVICES_MAX:
            harmless = (
                device
                for device, watched in self._watched.items()
                if now_ms >= watched.until_ms
                and (watched.proven_ms is None or now_ms - watched.proven_ms > REMEMBERED_MS)
            )
            del self._watched[next(harmless, next(iter(self._watched)))]


def _take_turns(before: list[Sighting], new: Sighting) -> bool:
    """Whether some other instance and the one of ``new`` were alive in turns: other, this, other, and now this again."""
    others = {one.instance for one in before} - {new.instance}
    return any(_turns(before, new, other) for other in others)


def _turns(before: list[Sighting], new: Sighting, other: bytes) -> bool:
    over_ms = -1
    for instance in (other, new.instance, other):
        ends = [one.until_ms for one in before if one.instance == instance and one.since_ms > over_ms]
        if not ends:
            return False
        over_ms = min(ends)
    return new.since_ms > over_ms


def _note(sightings: list[Sighting], new: Sighting) -> None:
    """Keep it; of a run of one instance the first and the last suffice."""
    run = 0
    for one in reversed(sightings):
        if one.instance != new.instance:
            break
        run += 1
    if run >= 2:
        sightings.pop()
    sightings.append(new)
    if len(sightings) > SIGHTINGS_MAX:
        del sightings[0]
