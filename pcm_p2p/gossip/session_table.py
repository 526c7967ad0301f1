"""The table of live sessions: one per device, which of two stays, who is let in, and how much was carried. No I/O of its own."""

from __future__ import annotations

from dataclasses import dataclass

from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.session import Session

SESSIONS_MAX = 40
"""Twice the degree: in a large site those who come later are let in by those who have enough."""
FOREIGN_SESSIONS_MAX = 4
"""Choice: neighbours of other sites carry metadata and reports, not chunks; a few are enough."""


@dataclass(frozen=True, slots=True)
class OverlayStatistics:
    """Bulk bytes are answers (chunks, files), control bytes are messages; both since the start, closed sessions included."""

    sessions: int
    site_peers: int
    control_in_bytes: int
    control_out_bytes: int
    bulk_in_bytes: int
    bulk_out_bytes: int


class SessionTable:
    """``own`` is this device; sessions of other sites than ``site`` are ``foreign``."""

    def __init__(self, own: DeviceId, site: str, role: str, sessions_max: int) -> None:
        self._own = own
        self._site = site
        self._role = role
        self._sessions_max = sessions_max
        self._sessions: dict[DeviceId, Session] = {}
        self._hosts: dict[DeviceId, str] = {}
        self._closed_bytes = (0, 0, 0, 0)

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, device: object) -> bool:
        return device in self._sessions

    def get(self, device: DeviceId) -> Session | None:
        return self._sessions.get(device)

    def host(self, device: DeviceId) -> str:
        """The peer's address as this device sees it."""
        return self._hosts.get(device, "?")

    def all(self) -> list[Session]:
        """A copy, by device id: the table may change while it is walked."""
        return [self._sessions[device] for device in sorted(self._sessions)]

    def holds(self, session: Session) -> bool:
        """Whether this very session is the one that counts for its device."""
        return self._sessions.get(session.device) is session

    def is_foreign(self, session: Session) -> bool:
        return session.peer_hello.site != self._site

    def refusal(self, session: Session) -> str:
        """Why this session is not wanted; empty if it is."""
        if session.device == self._own:
            return "myself"
        existing = self._sessions.get(session.device)
        if existing is not None:
            return "" if self._prefers(session, existing) else "duplicate"
        if len(self._sessions) >= self._sessions_max:
            return "full"
        foreign = sum(1 for other in self._sessions.values() if self.is_foreign(other))
        if self.is_foreign(session) and self._role == "device" and foreign >= FOREIGN_SESSIONS_MAX:
            return "full"
        return ""

    def admit(self, session: Session, host: str) -> Session | None:
        """Let it in; returns the session that it replaces."""
        old = self._sessions.get(session.device)
        self._sessions[session.device] = session
        self._hosts[session.device] = host
        return old

    def remove(self, session: Session) -> None:
        del self._sessions[session.device]
        del self._hosts[session.device]

    def count_closed(self, session: Session) -> None:
        """Add what a session carried that has ended, whether or not it was ever in the table."""
        self._closed_bytes = _sum(self._closed_bytes, session)

    def statistics(self) -> OverlayStatistics:
        total = self._closed_bytes
        for session in self._sessions.values():
            total = _sum(total, session)
        site_peers = sum(1 for session in self._sessions.values() if not self.is_foreign(session))
        return OverlayStatistics(len(self._sessions), site_peers, *total)

    def _prefers(self, new: Session, old: Session) -> bool:
        """Both ends must come to the same answer: a restarted peer first, then the connection that the lower id dialled."""
        if new.peer_hello.incarnation != old.peer_hello.incarnation:
            return new.peer_hello.incarnation > old.peer_hello.incarnation
        if new.dialled == old.dialled:
            return True
        return (self._own if new.dialled else new.device) == min(self._own, new.device)


def _sum(total: tuple[int, int, int, int], session: Session) -> tuple[int, int, int, int]:
    now = session.statistics()
    return (
        total[0] + now.control_in_bytes,
        total[1] + now.control_out_bytes,
        total[2] + now.bulk_in_bytes,
        total[3] + now.bulk_out_bytes,
    )
