"""Standing: how this device stands in its fleet. Its certificate and the way to a new one, the way for others, and clones.

Wires ``renewal``, ``tunnel`` and the overlay's watch for clones, and answers for all three in status and reports.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from pcm_p2p.config import Config
from pcm_p2p.daemon.admission import Admission
from pcm_p2p.daemon.renewal import Renewal
from pcm_p2p.daemon.surroundings import Surroundings
from pcm_p2p.daemon.tunnel import Tunnel
from pcm_p2p.daemon.vicinity import look_around
from pcm_p2p.gossip.overlay import Overlay
from pcm_p2p.gossip.roster_file import RosterFile
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.identity import DeviceIdentity

PLACES_MAX = 32
ENROL_ANEW = "pcm-p2p enroll join --new-identity TOKEN"


class Standing:
    """``installed`` is awaited with the identity once a new certificate is in use; ``report`` is called when there is news of
    clones."""

    def __init__(
        self,
        identity: DeviceIdentity,
        config: Config,
        state: Path,
        client: TrustClient,
        admission: Admission,
        surroundings: Surroundings,
        overlay: Overlay,
        *,
        installed: Callable[[DeviceIdentity], Awaitable[None]],
        report: Callable[[], object],
        rng: Random,
    ) -> None:
        self._me = identity.device_id
        self._config, self._client, self._overlay, self._admission = config, client, overlay, admission
        self._roster_file = RosterFile(state / "run" / "roster.msgpack")
        self._put_to_use = installed
        self._rng = rng
        self.tunnel = Tunnel(surroundings.desks, willing=config.enrolment.relay)
        overlay.reception.passage = self.tunnel.serve
        overlay.clones.on_news = report
        self.renewal = Renewal(
            identity,
            now=client.wall_clock,
            desks=lambda: _addresses(surroundings.desks(), identity.record.desk),
            authorities_pem=lambda: admission.authorities_pem,
            neighbours=self._places,
            look_around=(lambda: look_around(identity.fleet, config.discovery.interfaces))
            if config.discovery.mdns
            else None,
            installed=self._installed,
            rng=rng,
        )

    async def run(self) -> None:
        """Until cancelled."""
        await self.renewal.run()

    def facts(self) -> dict[str, Any]:
        """For status."""
        passages = self.tunnel.statistics
        return {
            "certificate": self.renewal.facts(),
            "clones": {
                "told_by": [device.hex() for device in self._overlay.clones.tellers()],
                "seen": [clone.device.hex() for clone in self._overlay.clones.proven()],
            },
            "relayed": {
                "opened": passages.opened,
                "refused": passages.refused,
                "bytes": passages.carried_bytes,
            },
        }

    def problems(self) -> list[str]:
        """What a person should look at."""
        found = []
        if tellers := self._overlay.clones.tellers():
            who = ", ".join("itself" if device == self._me else device.short for device in tellers[:3])
            more = f" and {len(tellers) - 3} more" if len(tellers) > 3 else ""
            found.append(f"another device uses this identity ({who}{more}): enrol this one anew with '{ENROL_ANEW}'")
        found += [
            f"two devices use the identity of {clone.device.short}: enrol both anew"
            for clone in self._overlay.clones.proven()
        ]
        return [*found, *self.renewal.problems()]

    def why_no_report(self) -> str:
        """Why nothing is signed now; empty if it may be. A collector does not believe what is dated after the certificate's
        end."""
        if self._client.wall_clock() <= self.renewal.identity.not_after:
            return ""
        return "the certificate has ended; reports go on once it is renewed"

    def clones(self) -> tuple[str, ...]:
        """For reports: ids, in hexadecimal, that two devices use; this device's own among them if neighbours say so."""
        seen = {clone.device.hex() for clone in self._overlay.clones.proven()}
        if self._overlay.clones.tellers():
            seen.add(self._me.hex())
        return tuple(sorted(seen))

    async def _installed(self, identity: DeviceIdentity) -> None:
        self._admission.reload(identity)
        self._overlay.network_changed()  # those who refused an ended certificate are asked again now
        await self._put_to_use(identity)

    def _places(self) -> Sequence[tuple[str, int]]:
        """Where neighbours may listen: seeds, whom the overlay knows, whom it knew before; a random order of at most so many."""
        known = [*self._overlay.roster(), *self._roster_file.load().entries]
        seeds = [seed.rpartition(":") for seed in self._config.discovery.seeds]
        places = {(host.strip("[]"), int(port)): None for host, _, port in seeds}
        places |= {(entry.host, entry.port): None for entry in known if entry.host and entry.port}
        found = list(places)
        self._rng.shuffle(found)
        return found[:PLACES_MAX]


def _addresses(desks: Sequence[tuple[str, int]], enrolled_at: str) -> list[str]:
    """``host:port`` of the desks of the fleet document, then of the one that this device was enrolled at."""
    named = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in desks]
    return list(dict.fromkeys([*named, *([enrolled_at] if enrolled_at else [])]))
