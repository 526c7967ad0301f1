"""Scenario [core]: what a lab run is made of, as a TOML file that a person writes; every key has a default.

::

    schema = "pcm.scenario/1"
    title = "Two offices, the second behind 2 MB/s"
    network = "loopback"                 # or "netns" (needs root): a namespace per device, shaped links
    timeout_s = 170.0                    # each of the two roll-outs must be done within this
    compression_level = 12               # zstd level of the segments

    [[site]]
    name = "office-1"
    devices = 6

    [[site]]
    name = "office-2"
    devices = 4
    wan_bytes_per_s = 2_000_000          # the office's link, both ways; 10 MB/s by default, 0 is without limit
    lan_bytes_per_s = 0                  # netns only: each device's own link

    [release]
    package = "libreoffice-core-nogui"   # two versions from the package archive; or the pair: old = "a", new = "b"

    [devices]
    poll_s = 20.0                        # how often a device asks the origin; ``pollers`` of each site ask each second
    pollers = 2

    [[fault]]
    kind = "kill"                        # kill | pause | stop
    target = "office-1/d02"              # a device; or "origin", "collector"; stop is for those two
    at_pct = 40                          # when the fleet holds this share of the new version's chunks
    for_s = 3.0                          # back after this time

On loopback the link of a site is its own origin process with a total rate: the origin is a static tree, so several servers of
one folder are as good as one. In namespaces it is a token bucket on the link itself.

The compression level of the lab is 12 where ``release add`` defaults to 19. Measured on the default pair (108 MB stored form
in 16 MiB runs, one core): level 9 36.5 MB in 2 s, 12 36.2 MB in 5 s, 15 35.9 MB in 19 s, 19 31.9 MB in 46 s. A lab must be
done in three minutes on two cores, with two versions; the 13 % are the price, and do not touch the ratios that a lab measures.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import check_name
from pcm_p2p.toml_document import decode_toml, load_toml

SCHEMA = "pcm.scenario/1"
LEVEL = 12
DEVICES_MAX = 200
"""Choice: one process each; 200 take 12 GB. Larger fleets belong into the simulator."""

Count = Annotated[int, msgspec.Meta(ge=1, le=DEVICES_MAX)]
Rate = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Level = Annotated[int, msgspec.Meta(ge=1, le=22)]
Network = Literal["loopback", "netns"]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Site(_Table, frozen=True):
    """One office. Rates in bytes a second; 0 is without limit."""

    name: str = "office-1"
    devices: Count = 6
    wan_bytes_per_s: Rate = 10_000_000
    """Choice: 80 Mbit/s, a good line of an office. A link without limit (loopback takes 7 MB in 10 ms) is none that an office
    has, and what it measures is how long a process waits for a core: then whole segments pass before a claim is heard."""
    lan_bytes_per_s: Rate = 0


class Release(_Table, frozen=True):
    """Which pair is released: two given files, two versions of ``package``, or (neither) the lab's choice."""

    package: str = ""
    old: str = ""
    new: str = ""


class Devices(_Table, frozen=True):
    """Settings that every device gets. ``pollers`` devices of each site ask the origin each second, as if their turn had
    come just after the release: the others learn of it by gossip."""

    poll_s: Seconds = 20.0
    pollers: Annotated[int, msgspec.Meta(ge=0, le=DEVICES_MAX)] = 2
    settle_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 2.0


class Fault(_Table, frozen=True):
    """Something that goes wrong while the new version spreads, and is over after ``for_s`` seconds.

    ``kill`` is SIGKILL and a new start; ``pause`` is SIGSTOP and SIGCONT; ``stop`` ends an origin or the collector in order
    and starts it again on the same port. ``target`` may be a pattern: ``office-1/*``.
    """

    kind: Literal["kill", "pause", "stop"]
    target: str
    at_pct: Annotated[int, msgspec.Meta(ge=0, le=99)] = 40
    for_s: Seconds = 3.0


class Scenario(_Table, frozen=True):
    schema: str = SCHEMA
    title: str = "Six devices in one office"
    network: Network = "loopback"
    timeout_s: Seconds = 170.0
    compression_level: Level = LEVEL
    site: tuple[Site, ...] = (Site(),)
    release: Release = msgspec.field(default_factory=Release)
    devices: Devices = msgspec.field(default_factory=Devices)
    fault: tuple[Fault, ...] = ()

    @property
    def device_count(self) -> int:
        return sum(site.devices for site in self.site)

    def roster(self) -> tuple[DeviceName, ...]:
        """Every device of the lab, in order: site by site, ``d01`` upwards."""
        return tuple(DeviceName(site.name, f"d{n:02d}", n) for site in self.site for n in range(1, site.devices + 1))

    def targets(self, fault: Fault) -> tuple[str, ...]:
        """The names that ``fault.target`` stands for: ``site/dNN``, ``origin`` or ``collector``."""
        names = ["origin", "collector", *(str(name) for name in self.roster())]
        return tuple(name for name in names if fnmatch.fnmatchcase(name, fault.target))


@dataclass(frozen=True, order=True)
class DeviceName:
    """A device of the lab by its place: ``office-1/d03``. ``number`` counts from 1 within the site."""

    site: str
    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.site}/{self.name}"


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file. Raises ``InputError`` that names the file, the line, the key and the remedy."""
    return check_scenario(load_toml(path, Scenario), path)


def decode_scenario(data: bytes, path: Path | str) -> Scenario:
    """Like ``load_scenario``, from bytes; ``path`` is only named in errors."""
    return check_scenario(decode_toml(data, Scenario, path), path)


def check_scenario(scenario: Scenario, path: Path | str) -> Scenario:
    """What a schema cannot say; returns ``scenario``. ``path`` is only named in errors. Raises ``InputError``."""

    def wrong(message: str, key: str, remedy: str) -> InputError:
        return InputError(message, path=path, key=key, remedy=remedy)

    if scenario.schema != SCHEMA:
        raise wrong(f"is {scenario.schema!r}", "schema", f"This version reads {SCHEMA!r}.")
    if not scenario.site:
        raise wrong("there is no site", "site", "Add a [[site]] table, or leave sites out for the default.")
    names = [site.name for site in scenario.site]
    for name in names:
        try:
            check_name(name, "site")
        except UntrustedBytes as error:
            raise wrong(error.message, "site.name", "Use a name like 'office-1'.") from None
    if len(set(names)) != len(names):
        raise wrong("two sites have the same name", "site.name", "Give each site its own name.")
    if scenario.device_count > DEVICES_MAX:
        raise wrong(
            f"{scenario.device_count} devices; a lab holds {DEVICES_MAX}", "site.devices", "Use the simulator for more."
        )
    release = scenario.release
    if bool(release.old) != bool(release.new):
        missing = "new" if release.old else "old"
        raise wrong(f"is missing beside {'old' if release.old else 'new'}", f"release.{missing}", "Give both files.")
    if release.old and release.package:
        raise wrong("stands beside two given files", "release.package", "Give the package or the files, not both.")
    for fault in scenario.fault:
        targets = scenario.targets(fault)
        if not targets:
            raise wrong(
                f"{fault.target!r} is nothing in this lab",
                "fault.target",
                f"Write '{names[0]}/d01', '{names[0]}/*', 'origin' or 'collector'.",
            )
        if fault.kind == "stop" and not set(targets) <= {"origin", "collector"}:
            raise wrong("'stop' is for 'origin' and 'collector'", "fault.kind", "Use 'kill' or 'pause' for a device.")
    return scenario
