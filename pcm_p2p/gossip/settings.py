"""What an overlay is told at its start: its site and role, where it listens, whom it asks first."""

from __future__ import annotations

from dataclasses import dataclass

from pcm_p2p.gossip.session_table import SESSIONS_MAX


@dataclass(frozen=True, slots=True)
class OverlaySettings:
    """``addresses`` empty: those that the overlay is given at run time. ``seeds`` are (host, port). ``port`` 0 lets the system
    choose, and ``roster_file`` remembers the choice. ``uptime``: see ``Hello``."""

    site: str
    role: str = "device"
    agent: str = ""
    addresses: tuple[str, ...] = ("127.0.0.1",)
    port: int = 0
    seeds: tuple[tuple[str, int], ...] = ()
    weight: int = 8
    sessions_max: int = SESSIONS_MAX
    uptime: int = 0
