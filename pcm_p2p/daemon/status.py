"""Status: one picture of the node, for people (``pcm-p2p status``), for the lab, and for ``doctor``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import msgspec
import trio

from pcm_p2p.compliance.carry import Carrier
from pcm_p2p.config import Config
from pcm_p2p.content.keeping.store import ChunkStore
from pcm_p2p.daemon.admission import Admission
from pcm_p2p.daemon.caretaker import Caretaker
from pcm_p2p.daemon.control import Command
from pcm_p2p.daemon.follower import Follower
from pcm_p2p.daemon.meter import Meter, ReleaseBytes
from pcm_p2p.daemon.reporter import Reporter, counts, full_bytes
from pcm_p2p.daemon.site.repository import SiteRepository
from pcm_p2p.daemon.standing import Standing
from pcm_p2p.daemon.steward import ReleaseWork, Steward
from pcm_p2p.errors import InputError
from pcm_p2p.gossip.overlay import Overlay
from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.fetcher import Fetcher
from pcm_p2p.swarm.origin import OriginClient
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.evidence import Fork

SCHEMA = "pcm.status/1"


class Status:
    """Answers questions from what the rooms know; changes nothing but ``assess``, which runs the checks."""

    def __init__(
        self,
        *,
        me: DeviceId,
        config: Config,
        overlay: Overlay,
        client: TrustClient,
        admission: Admission,
        forks: Callable[[], tuple[Fork, ...]],
        follower: Follower,
        site: SiteRepository,
        standing: Standing,
        steward: Steward,
        fetcher: Fetcher,
        caretaker: Caretaker,
        origin: OriginClient,
        store: ChunkStore,
        carrier: Carrier,
        reporter: Reporter,
        meter: Meter,
        wall_ms: Callable[[], int],
    ) -> None:
        self._me, self._config, self._overlay, self._client = me, config, overlay, client
        self._follower, self._steward, self._fetcher, self._origin = follower, steward, fetcher, origin
        self._store, self._carrier, self._reporter, self._meter = store, carrier, reporter, meter
        self._caretaker, self._admission = caretaker, admission
        self._forks = forks
        self._wall_ms = wall_ms
        self._site, self._standing = site, standing
        self._started = trio.current_time()

    def commands(self) -> Mapping[str, Command]:
        """What the control socket answers."""
        return {"status": self.status, "peers": self.peers, "why": self.why, "assess": self.assess}

    async def status(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        totals = self._meter.totals()
        held = self._store.statistics()
        outbox = await self._carrier.statistics()
        desired = self._steward.desired
        digest = self._client.digest()
        return {
            "schema": SCHEMA,
            "device": self._me.hex(),
            "short": self._me.short,
            "site": self._config.device.site,
            "role": self._config.device.role,
            "listening": [f"{host}:{port}" for host, port in self._overlay.listening],
            "uptime_s": round(trio.current_time() - self._started, 1),
            "clock_ms": self._wall_ms(),
            "trust": {
                "state": self._client.freshness() if self._client.view is not None else "none",
                "root": digest.root,
                "timestamp": digest.timestamp,
                "snapshot": digest.snapshot,
                "targets": digest.targets,
                "reason": self._follower.last_problem,
            },
            "revocation": dict(self._admission.facts()),
            "forks": [asdict(fork) for fork in self._forks()],
            "site_repository": self._site.facts(),
            "activation": {
                "allowed": desired is not None and desired.changes_allowed,
                "why_not": desired.why_not if desired is not None else "no signed policy has arrived yet",
            },
            "gzip": {"usable": not self._fetcher.why_not_gzip, "why_not": self._fetcher.why_not_gzip},
            "peers": {
                "sessions": len(self._overlay.peers()),
                "site": len(self._overlay.site_peers()),
                "known": len(self._overlay.known()),
            },
            "releases": [self._release(work, totals.releases.get(work.key)) for work in self._steward.works.values()],
            "transfer": {
                "wan_in_bytes": totals.wan_in_bytes,
                "wan_metadata_bytes": totals.wan_metadata_bytes,
                "lan_in_bytes": totals.lan_in_bytes,
                "lan_out_bytes": totals.lan_out_bytes,
            },
            "store": {
                "chunks": held.chunks,
                "bytes": held.bytes,
                "quota_bytes_max": held.quota_bytes_max,
                "state": held.state,
            },
            "cache": asdict(self._caretaker.figures()),
            "reports": {
                "outbox": outbox.own_records,
                "acknowledged": outbox.acknowledged,
                "carried": outbox.carried_records,
                "route": self._carrier.route,
            },
            "compliance": counts(self._reporter.findings),
            **self._standing.facts(),
            "problems": self._problems(held.state),
        }

    def _release(self, work: ReleaseWork, moved: ReleaseBytes | None) -> dict[str, Any]:
        manifest = work.manifest
        row: dict[str, Any] = {
            "name": work.assigned.name,
            "version": work.assigned.version,
            "mode": work.assigned.mode,
            "state": work.state,
            "detail": work.detail,
            "since_ms": work.since_ms,
            "chunks_total": len(manifest.sizes) if manifest is not None else 0,
            "chunks_have": 0,
            "needed_bytes": (moved.needed_bytes if moved is not None else 0) or full_bytes(manifest),
            "wan_bytes": moved.wan_in_bytes if moved is not None else 0,
            "lan_bytes": moved.lan_in_bytes if moved is not None else 0,
            "rate_bytes_per_s": 0,
            "eta_s": None,
        }
        if manifest is not None and manifest.manifest_id in self._fetcher.wanted:
            progress = self._fetcher.progress(manifest.manifest_id)
            row |= {
                "chunks_have": progress.chunks_have,
                "needed_bytes": progress.needed_bytes,
                "rate_bytes_per_s": progress.rate_bytes_per_s,
                "eta_s": progress.eta_s,
            }
            if not progress.complete:
                row["detail"] = progress.waiting or work.detail
        elif work.state == "applied":
            row["chunks_have"] = row["chunks_total"]
        return row

    def _problems(self, store_state: str) -> list[str]:
        """What a person should look at, most important first."""
        found = [f"{fork.line()}: keep the evidence and tell the fleet's owner" for fork in self._forks()]
        found += [*self._admission.problems, *self._standing.problems(), *self._steward.problems]
        found += [
            f"{work.assigned.name} {work.assigned.version} is {work.state}: {work.detail}"
            for work in self._steward.works.values()
            if work.state in ("failed", "parked", "rolled_back")
        ]
        if store_state != "ok":
            found.append("the store is full: free space, or raise [store] quota_bytes_max in config.toml")
        if self._client.view is None and self._follower.last_problem:
            found.append(f"no signed metadata yet: {self._follower.last_problem}")
        elif self._client.view is not None and self._client.freshness() != "fresh":
            why = self._client.behind or self._follower.last_problem
            found.append(f"signed metadata is {self._client.freshness()}: {why}")
        site = self._site.facts()
        if site["reason"]:
            found.append(f"the site's own repository: {site['reason']}")
        if site["state"] in ("stale", "frozen"):
            found.append(f"the site's own repository is {site['state']}: its authority must publish again")
        if resting := self._origin.statistics().resting:
            found.append(f"origin: {resting}")
        found += [f"device {device.short} is banned: it {why}" for device, why in self._fetcher.blamed.items()]
        if self._reporter.problem:
            found.append(f"no report could be made: {self._reporter.problem}")
        return found

    async def peers(self, _request: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One row for each device this one knows, sessions first."""
        rows = []
        for peer in self._overlay.peers():
            session = self._overlay.session_with(peer.device_id)
            moved = session.statistics() if session is not None else None
            rows.append(
                {
                    "device": peer.device_id.hex(),
                    "site": peer.site,
                    "role": peer.role,
                    "address": peer.host,
                    "weight": peer.weight,
                    "status": "alive",
                    "session": "same site" if peer.same_site else "other site",
                    "round_trip_ms": None if peer.round_trip_s is None else round(1000 * peer.round_trip_s, 2),
                    "bytes_in": moved.bulk_in_bytes if moved is not None else 0,
                    "bytes_out": moved.bulk_out_bytes if moved is not None else 0,
                }
            )
        connected = {row["device"] for row in rows}
        rows += [
            {
                "device": device.hex(),
                "site": self._config.device.site,
                "role": "",
                "address": "",
                "weight": None,
                "status": "alive",
                "session": "none",
                "round_trip_ms": None,
                "bytes_in": 0,
                "bytes_out": 0,
            }
            for device in self._overlay.known()
            if device.hex() not in connected and device != self._me
        ]
        return rows

    async def why(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A release (``name`` or ``name@version``) segment by segment, or a check by its id.

        ``facts`` about it, and ``segments``: a ``transfer.WhyRow`` each.
        """
        name = str(request.get("name", ""))
        for work in self._steward.works.values():
            if name in (work.assigned.name, work.key):
                return self._why_release(work)
        for finding in self._reporter.findings:
            if name in (finding.check, f"{finding.policy}/{finding.check}"):
                return {"facts": msgspec.to_builtins(finding), "segments": []}
        known = ", ".join(self._steward.works) or "none"
        raise InputError(f"nothing here is called {name[:80]!r}", remedy=f"Releases of this device: {known}.")

    def _why_release(self, work: ReleaseWork) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "release": work.key,
            "state": work.state,
            "detail": work.detail,
            "policy": f"{work.assigned.policy_id} version {work.assigned.policy_version}, mode {work.assigned.mode}",
            "changes": work.assigned.why_not or "allowed",
        }
        segments: list[dict[str, Any]] = []
        known = {**self._fetcher.wanted, **self._fetcher.kept}
        if work.manifest is not None and work.manifest.manifest_id in known:
            progress = self._fetcher.progress(work.manifest.manifest_id)
            facts |= {
                "chunks": f"{progress.chunks_have} of {progress.chunks_total}",
                "waiting": progress.waiting,
                "rate_bytes_per_s": progress.rate_bytes_per_s,
                "needed_bytes": progress.needed_bytes,
            }
            segments = [asdict(row) for row in self._fetcher.why(work.manifest.manifest_id)]
        elif work.state == "applied":
            facts["chunks"] = "not kept here: the release is in place, and nothing is fetched for it"
        return {"facts": facts, "segments": segments}

    async def assess(self, _request: Mapping[str, Any]) -> list[Any]:
        findings = await self._reporter.assess()
        self._reporter.poke(assess=False)
        return [msgspec.to_builtins(finding) for finding in findings]
