"""Result [core]: what devices answered and what links counted, turned into the figures that a lab run prints.

Words: *needed* is what an office must take over its link once: for each run that holds at least one chunk which the office did
not have already, the smallest delta whose base it had, else the full segment. *Plain* is what the same devices would have taken
without neighbours: the delivered files, once for each device. *WAN amplification* is taken ÷ needed; 1.0 is the best a fleet
can do with these segments. On loopback both are payload as received, retries included; in namespaces they are what the kernel
counted on the office's link, divided by what it counted for one plain download of the same segments over the same link.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.ids import ChunkId

SCHEMA = "pcm.lab/1"
DONE = "applied"
"""State of a release on a device that has it: the last one of the report's list."""
NOT_COMPLIANT = ("fail", "error", "not_run")


@dataclass(frozen=True)
class Picture:
    """What one device said at one moment, reduced to what the lab looks at. Byte counters are since it was enrolled."""

    version: str = ""
    state: str = "starting"
    chunks_have: int = 0
    chunks_total: int = 0
    wan_bytes: int = 0
    metadata_bytes: int = 0
    lan_bytes: int = 0
    findings: Mapping[str, int] = field(default_factory=dict)
    outbox: int = 0
    acknowledged: int = 0
    site_peers: int = 0
    detail: str = ""
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, status: Mapping[str, Any], release: str, version: str) -> Picture:
        """From the daemon's status (``pcm.status/1``); of several versions of ``release``, ``version`` comes first."""
        rows = [row for row in status["releases"] if row["name"] == release]
        row = next((row for row in rows if row["version"] == version), rows[-1] if rows else {})
        transfer, reports = status["transfer"], status["reports"]
        return cls(
            version=str(row.get("version", "")),
            state=str(row.get("state", "idle")),
            chunks_have=int(row.get("chunks_have", 0)),
            chunks_total=int(row.get("chunks_total", 0)),
            wan_bytes=int(transfer["wan_in_bytes"]),
            metadata_bytes=int(transfer["wan_metadata_bytes"]),
            lan_bytes=int(transfer["lan_in_bytes"]),
            findings={str(name): int(count) for name, count in status["compliance"].items()},
            outbox=int(reports["outbox"]),
            acknowledged=int(reports["acknowledged"]),
            site_peers=int(status["peers"]["site"]),
            detail=str(row.get("detail", "")),
            problems=tuple(str(text) for text in status["problems"]),
        )

    def has(self, version: str) -> bool:
        """Whether the device runs ``version``."""
        return self.version == version and self.state == DONE

    @property
    def compliant(self) -> bool:
        """At least one check passes and none fails, has an error or was not run: silence is not compliance."""
        return self.findings.get("pass", 0) > 0 and not any(self.findings.get(state, 0) for state in NOT_COMPLIANT)

    @property
    def reported(self) -> bool:
        """Everything it had to say was acknowledged by a collector."""
        return self.acknowledged > 0 and self.outbox == 0

    def why_not(self, version: str) -> str:
        """One sentence for the table: what keeps this device from being done. Empty when nothing does."""
        if not self.has(version):
            text = f"{self.version} is {self.state}" if self.version else f"no version yet ({self.state})"
            return "; ".join([text, *filter(None, [self.detail]), *self.problems])
        if not self.compliant:
            bad = ", ".join(f"{self.findings[state]} {state}" for state in NOT_COMPLIANT if self.findings.get(state, 0))
            return f"patched, checks: {bad or 'none was run'}"
        if not self.reported:
            return f"patched and compliant, {self.outbox} reports not acknowledged"
        return ""


@dataclass
class Counted:
    """Bytes of one device as it counts them itself, over restarts; ``metadata`` is part of ``wan``.

    A device saves its counters every few seconds, so after SIGKILL it has forgotten the last ones: they are added here. What it
    takes between its new start and the first picture of it is missing then (a few tenths of a second).
    """

    wan: int = 0
    metadata: int = 0
    lan: int = 0
    _forgotten: tuple[int, int, int] = (0, 0, 0)
    _restarted: bool = False

    def see(self, picture: Picture) -> None:
        """Fold in what the device says now."""
        said = (picture.wan_bytes, picture.metadata_bytes, picture.lan_bytes)
        if self._restarted:
            known = (self.wan, self.metadata, self.lan)
            self._forgotten = tuple(max(0, a - b) for a, b in zip(known, said, strict=True))  # type: ignore[assignment]
            self._restarted = False
        self.wan, self.metadata, self.lan = (a + b for a, b in zip(self._forgotten, said, strict=True))

    def restarted(self) -> None:
        """The device was killed and starts anew."""
        self._restarted = True


@dataclass(frozen=True)
class Totals:
    """Bytes of the whole fleet; ``metadata`` is part of ``wan``. ``links`` is what the kernel counted on the offices' links
    (None: nothing counted there)."""

    wan: int = 0
    metadata: int = 0
    lan: int = 0
    links: int | None = None

    @classmethod
    def over(cls, devices: Collection[Counted], links: int | None = None) -> Totals:
        return cls(sum(d.wan for d in devices), sum(d.metadata for d in devices), sum(d.lan for d in devices), links)

    def since(self, earlier: Totals) -> Totals:
        links = None if self.links is None or earlier.links is None else self.links - earlier.links
        return Totals(self.wan - earlier.wan, self.metadata - earlier.metadata, self.lan - earlier.lan, links)


def needed_segments(manifest: Manifest, held: Collection[ChunkId] = ()) -> list[tuple[str, int]]:
    """Id (hexadecimal) and size of each segment that an office needs which holds the chunks ``held``: of each run the smallest
    delta whose base it has, else the full segment."""
    table, have = manifest.table_chunks, frozenset(held)
    needed = []
    for index, full in manifest.full_segments():
        if any(table[position] not in have for position in full.positions):
            deltas = (manifest.segments[place] for place in manifest.deltas.get(index, ()))
            usable = (delta for delta in deltas if all(table[position] in have for position in delta.base))
            segment = next(usable, full)
            needed.append((segment.id.hex(), segment.size))
    return needed


def percentile(values: Sequence[float], share: float) -> float | None:
    """Nearest rank, so that the answer is a value that occurred; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True)
class RollOut:
    """One version reaching the fleet. ``seconds`` by device, from publishing; devices that never got there are absent."""

    version: str
    artifact_bytes: int
    needed_bytes: int
    sites: int
    devices: int
    seconds: Mapping[str, float]
    totals: Totals
    yardstick_bytes: int | None = None
    """What the kernel counted for one plain download of the needed segments; None where it does not count."""

    @property
    def amplification(self) -> float | None:
        """Taken ÷ needed, over all offices; None when nothing was needed."""
        if self.totals.links is not None and self.yardstick_bytes:
            return round(self.totals.links / (self.yardstick_bytes * self.sites), 4)
        if not self.needed_bytes:
            return None
        return round(self.totals.wan / (self.needed_bytes * self.sites), 4)

    @property
    def plain_bytes(self) -> int:
        return self.artifact_bytes * self.devices

    def facts(self) -> dict[str, Any]:
        times = list(self.seconds.values())
        return {
            "artifact_bytes": self.artifact_bytes,
            "needed_bytes": self.needed_bytes * self.sites,
            "plain_bytes": self.plain_bytes,
            "wan_bytes": self.totals.wan,
            "wan_metadata_bytes": self.totals.metadata,
            "wan_link_bytes": self.totals.links,
            "wan_amplification": self.amplification,
            "lan_bytes": self.totals.lan,
            "completion_s": {
                "p50": _rounded(percentile(times, 0.50)),
                "p99": _rounded(percentile(times, 0.99)),
                "max": _rounded(max(times, default=None)),
            },
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


@dataclass(frozen=True)
class Result:
    """Everything a run found out. ``devices`` maps each device to the sentence that says what is wrong; empty: nothing."""

    network: str
    release: str
    devices: Mapping[str, str]
    compliant: int
    first: RollOut | None
    patch: RollOut | None
    console_url: str
    faults: Sequence[Mapping[str, Any]] = ()
    duration_s: float = 0.0
    console_differs: str = ""
    """What the console says otherwise, if anything."""

    @property
    def failed(self) -> list[str]:
        return [device for device in self.devices if self.why(device)]

    def why(self, device: str) -> str:
        """What is wrong with ``device``; empty: nothing."""
        late = self.patch is not None and device not in self.patch.seconds
        return self.devices[device] or ("patched and compliant, after the time was up" if late else "")

    @property
    def ok(self) -> bool:
        """Every device patched within the time, compliant and reported; the console shows the same."""
        in_time = self.patch is not None and len(self.patch.seconds) == len(self.devices)
        return in_time and not self.failed and not self.console_differs

    def facts(self) -> dict[str, Any]:
        """The JSON object that ``--json`` prints. Byte figures and times are those of the new version's roll-out."""
        patch = self.patch
        blank = RollOut("", 0, 0, 0, 0, {}, Totals())
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "network": self.network,
            "release": self.release,
            "versions": [roll_out.version if roll_out else None for roll_out in (self.first, patch)],
            "devices": len(self.devices),
            **(patch or blank).facts(),
            "compliant": self.compliant,
            "failed": len(self.failed),
            "failures": [{"device": device, "why": self.why(device)} for device in self.failed],
            "console": self.console_differs or "agrees",
            "console_url": self.console_url,
            "faults": list(self.faults),
            "first_version": self.first.facts() if self.first else None,
            "duration_s": round(self.duration_s, 1),
        }

    def rows(self) -> list[tuple[str, str]]:
        """The end table for people: name and value."""
        patch = self.patch
        if patch is None:
            return [("devices patched", f"0 of {len(self.devices)}"), ("console", self.console_url)]
        times, totals = patch.facts()["completion_s"], patch.totals
        saved = 1 - totals.wan / patch.plain_bytes if patch.plain_bytes else 0.0
        needed = megabytes(patch.needed_bytes * patch.sites)
        amplification = "nothing was needed" if patch.amplification is None else f"{patch.amplification:.3f}"
        patched = len(patch.seconds)
        rows = [
            ("release", f"{self.release} {self.first.version if self.first else '?'} → {patch.version}"),
            ("devices patched", f"{patched} of {len(self.devices)}"),
            ("compliant, as reported", f"{self.compliant} of {len(self.devices)}"),
            ("time", "-" if not patched else f"half {times['p50']} s, 99 % {times['p99']} s, all {times['max']} s"),
            ("over the WAN", f"{megabytes(totals.wan)}  (of which signed metadata {megabytes(totals.metadata)})"),
            ("plain downloads would be", f"{megabytes(patch.plain_bytes)}  ({saved:.0%} saved)"),
            ("WAN amplification", f"{amplification}  (needed once: {needed})"),
            ("over the LAN", megabytes(totals.lan)),
        ]
        if totals.links is not None and patch.yardstick_bytes:
            counted = f"{megabytes(totals.links)} ÷ {megabytes(patch.yardstick_bytes * patch.sites)}"
            rows.insert(7, ("kernel counters", f"{counted} of plain downloads of the same segments"))
        rows += [
            (
                f"fault: {fault['kind']} {fault['target']}",
                "did not happen: the fleet was done before"
                if fault["at_s"] is None
                else f"at {fault['at_s']} s for {fault['for_s']:g} s",
            )
            for fault in self.faults
        ]
        return [*rows, ("console", self.console_url)]


def megabytes(count: int) -> str:
    """Bytes for people, in decimal megabytes (what links are sold in); small counts in kilobytes."""
    return f"{count / 1e3:.0f} kB" if count < 1_000_000 else f"{count / 1e6:.1f} MB"
