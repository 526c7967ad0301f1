"""Who may ask: sessions after a login, and a limit on guessing. Cores: the clock and the random tokens are arguments.

Sessions live in memory: a restart of the console asks everybody for the password again, and a stolen disk holds none.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from dataclasses import dataclass, field

SESSION_LIFETIME_S = 12 * 3_600
"""Choice: a working day."""
SESSIONS_MAX = 1_000
"""Choice: the oldest session ends when one more is begun."""
FAILURES_MAX = 5
"""Choice: wrong passwords from one address within ``WINDOW_S`` before it has to wait."""
FAILURES_ALL_MAX = 60
"""Choice: the same over all addresses: bounds the work that Argon2id can be made to do, and distributed guessing."""
WINDOW_S = 300.0
ADDRESSES_MAX = 4_096


@dataclass(frozen=True)
class Session:
    """``form_token`` must come back with each form of this session."""

    form_token: str
    ends_s: float


class Sessions:
    """Sessions by the SHA-256 of their cookie: whoever reads this memory cannot use what is in it."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def begin(self, *, cookie: str, form_token: str, now_s: float) -> Session:
        """Start a session for ``cookie``, a fresh random text."""
        while len(self._sessions) >= SESSIONS_MAX:
            self._sessions.popitem(last=False)
        session = Session(form_token, now_s + SESSION_LIFETIME_S)
        self._sessions[_key(cookie)] = session
        return session

    def find(self, cookie: str, *, now_s: float) -> Session | None:
        """The session of ``cookie`` if it is one and has not ended."""
        session = self._sessions.get(_key(cookie))
        if session is not None and session.ends_s <= now_s:
            del self._sessions[_key(cookie)]
            return None
        return session

    def end(self, cookie: str) -> None:
        """End the session of ``cookie``, if there is one."""
        self._sessions.pop(_key(cookie), None)

    def __len__(self) -> int:
        return len(self._sessions)


@dataclass
class LoginGate:
    """Slows guessing down: counts wrong passwords per address and in all over a sliding window."""

    _failures: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    _all: deque[float] = field(default_factory=deque)

    def wait_s(self, address: str, *, now_s: float) -> float:
        """How long ``address`` must wait before it may try; 0 if it may now."""
        waits = [0.0]
        for failures, most in ((self._failures.get(address, deque()), FAILURES_MAX), (self._all, FAILURES_ALL_MAX)):
            while failures and failures[0] <= now_s - WINDOW_S:
                failures.popleft()
            if len(failures) >= most:
                waits.append(failures[0] + WINDOW_S - now_s)
        return max(waits)

    def failed(self, address: str, *, now_s: float) -> None:
        """Note a wrong password. Called before the comparison ends, so that parallel attempts count too."""
        self._failures.setdefault(address, deque()).append(now_s)
        self._failures.move_to_end(address)
        while len(self._failures) > ADDRESSES_MAX:
            self._failures.popitem(last=False)
        self._all.append(now_s)
        while len(self._all) > FAILURES_ALL_MAX:
            self._all.popleft()

    def succeeded(self, address: str, *, at_s: float) -> None:
        """Take back what ``failed`` noted for this attempt (``at_s``: its ``now_s``), as the password was right."""
        for failures in (self._failures.get(address), self._all):
            if failures and at_s in failures:
                failures.remove(at_s)


def _key(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode()).digest()
