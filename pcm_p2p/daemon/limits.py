"""Limits: the rates that this device keeps to, from its own settings and from policy; the lower one of each counts.

The three paces are shared by all transfers of their kind and live as long as the daemon; a new policy changes their rate. 0 is no
limit.
"""

from __future__ import annotations

from pcm_p2p.config import Limits
from pcm_p2p.policy.document import Transfer
from pcm_p2p.swarm.pace import Pace


class RateLimits:
    """``wan_in`` paces the origin client, ``lan_in`` and ``lan_out`` the sessions with neighbours."""

    def __init__(self, own: Limits) -> None:
        self._own = own
        self.wan_in = Pace(own.wan_in_bytes_per_s)
        self.lan_in = Pace(own.lan_in_bytes_per_s)
        self.lan_out = Pace(own.lan_out_bytes_per_s)

    def follow(self, policy: Transfer) -> None:
        """Keep to ``policy`` too, from now on."""
        self.wan_in.change(lower(self._own.wan_in_bytes_per_s, policy.wan_in_bytes_per_s))
        self.lan_in.change(lower(self._own.lan_in_bytes_per_s, policy.lan_in_bytes_per_s))
        self.lan_out.change(lower(self._own.lan_out_bytes_per_s, policy.lan_out_bytes_per_s))


def lower(own: int, policy: int | None) -> int:
    """The lower of two limits, of which 0 and None are none."""
    return min((rate for rate in (own, policy) if rate), default=0)
