"""What is halted on this device: the halts of the fleet and of the device's own site, asked release by release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pcm_p2p.trust.halt import InForce, stopping

UNKNOWN = "The newest list of halts has not arrived yet, so nothing new is installed."


@dataclass(frozen=True)
class Halted:
    """The answer for ``policy.desired.decide``: why a release must not be applied; of no release: why nothing must be.

    ``known``: whether the halts are those that the newest metadata lists. ``teams``: whose a release is, by name and version;
    what is not there is the fleet's.
    """

    site: str
    halts: tuple[InForce, ...] = ()
    known: bool = True
    teams: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def __call__(self, release: str = "", version: str = "") -> str:
        if not self.known:
            return UNKNOWN
        team = self.teams.get((release, version), "")
        first = next(stopping(self.halts, self.site, release, version, team), None)
        return first.sentence() if first is not None else ""
