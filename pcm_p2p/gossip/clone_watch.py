"""The watch for clones: what sessions show of who is alive goes into ``clones``, and on proof sessions end and are refused.

Two kinds of sighting. A Hello: the handshake below it began at a known time, and who says Hello has just signed it. And a pong:
when a device turns up with another instance while a session with it is still open, both ends are pinged in turn. A process that
was killed does not answer, and an open connection alone proves nothing.

The cloned device itself is told by the word ``clone`` in the Bye of those who have proof, or sees its own key in the hands of
somebody else. It says so and goes on: a neighbour that lies can make it complain, and nothing else.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

import trio

from pcm_p2p.gossip.clones import UNKNOWN, Clone, Clones
from pcm_p2p.gossip.session_table import SessionTable
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.session import Session

CLONE = "clone"
"""The reason in the Bye."""
PROBE_S = 2.0
"""Choice: a pong takes milliseconds; a hung process does not answer and is replaced."""
APART_S = 0.002
"""So that a ping is sent in another millisecond than the Hello was heard: intervals that touch prove nothing."""
TOLD_S = 3_600.0
"""Choice: how long what a neighbour said of this device counts; while it is true, neighbours say it again within an hour."""
TELLERS_MAX = 64

_log = logging.getLogger(__name__)


class CloneWatch:
    """``instance`` is this process's; ``on_news`` is called when a clone was proven, or when this device was told that it is one
    of two; it must not raise or wait."""

    def __init__(self, own: DeviceId, table: SessionTable) -> None:
        self.instance = secrets.token_bytes(16)
        self.on_news: Callable[[], object] = lambda: None
        self._own = own
        self._table = table
        self._clones = Clones()
        self._probes: dict[Session, trio.Event] = {}
        self._tellers: dict[DeviceId, float] = {}

    def proven(self) -> tuple[Clone, ...]:
        """The devices whose key two use, of the last day; ``proven_ms`` by ``trio.current_time``."""
        return self._clones.proven(_now_ms())

    def tellers(self) -> tuple[DeviceId, ...]:
        """Who says that another device uses my identity, of the last hour."""
        since = trio.current_time() - TOLD_S
        return tuple(sorted(device for device, told in self._tellers.items() if told > since))

    def refusal(self, session: Session, began_s: float, nursery: trio.Nursery | None) -> str:
        """A peer said Hello over a link whose handshake began at ``began_s``: why its session is refused, or empty."""
        device, instance, now_ms = session.device, session.peer_hello.instance, _now_ms()
        if device == self._own:
            if instance not in (UNKNOWN, self.instance):
                self._told(device)
            return ""
        if self._clones.alive(device, instance, int(began_s * 1_000), now_ms):
            self._proven(device, nursery)
        elif nursery is not None and (older := self._table.get(device)) is not None and _differ(older, session):
            self._begin_probe(older, session, nursery)
        return CLONE if self._clones.quarantined(device, now_ms) else ""

    async def retire(self, session: Session) -> None:
        """End a session that another one of its device replaced, after it was asked what must be asked."""
        if (probe := self._probes.get(session)) is not None:
            await probe.wait()
        await session.close("replaced")

    def ended(self, session: Session) -> None:
        """A session has ended: did the peer say that I am one of two?"""
        if session.bye_reason == CLONE:
            self._told(session.device)

    def _begin_probe(self, older: Session, newer: Session, nursery: trio.Nursery) -> None:
        if older not in self._probes:
            self._probes[older] = trio.Event()
            nursery.start_soon(self._probe, older, newer, nursery)

    async def _probe(self, older: Session, newer: Session, nursery: trio.Nursery) -> None:
        """Two instances of one device have a session: do both processes live?"""
        try:
            for session in (older, newer):
                await trio.sleep(APART_S)
                asked_ms, instance = _now_ms(), session.peer_hello.instance
                if not await session.answers(PROBE_S):
                    return
                if self._clones.alive(session.device, instance, asked_ms, _now_ms()):
                    self._proven(session.device, nursery)
                    await older.close(CLONE)
        finally:
            self._probes.pop(older).set()

    def _proven(self, device: DeviceId, nursery: trio.Nursery | None) -> None:
        proofs = next(clone.proofs for clone in self.proven() if clone.device == device)
        if proofs & (proofs - 1) == 0:  # the 1st, 2nd, 4th, 8th time: two that go on for days do not fill the log
            _log.warning("two devices use the identity of %s; neither is spoken with for a while", device)
        open_one = self._table.get(device)
        if open_one is not None and nursery is not None:
            nursery.start_soon(open_one.close, CLONE)
        if proofs == 1:
            self.on_news()

    def _told(self, teller: DeviceId) -> None:
        before, now = self._tellers.pop(teller, None), trio.current_time()
        self._tellers[teller] = now
        if len(self._tellers) > TELLERS_MAX:
            del self._tellers[next(iter(self._tellers))]
        if before is None or now - before > TOLD_S:
            who = "a device with this identity turned up" if teller == self._own else f"{teller.short} saw two of them"
            _log.error(
                "another device uses this identity (%s): enrol this one anew with "
                "'pcm-p2p enroll join --new-identity TOKEN'",
                who,
            )
            self.on_news()


def _differ(one: Session, other: Session) -> bool:
    instances = {one.peer_hello.instance, other.peer_hello.instance}
    return len(instances) == 2 and UNKNOWN not in instances


def _now_ms() -> int:
    return int(trio.current_time() * 1_000)
