"""The settings of one daemon: ``config.toml`` in its state folder, decoded once into frozen objects.

``pcm-p2p enroll join`` writes the file; an admin may edit it. Each default says where it comes from: (spec) an issue or
DESIGN.md, (measured) research notes, (choice) ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import check_name
from pcm_p2p.toml_document import load_toml

Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Device(_Table, frozen=True):
    """``labels`` are what policy selectors match; ``site`` is where the device is enrolled."""

    site: str = "default"
    labels: tuple[str, ...] = ()
    role: Literal["device", "collector", "relay"] = "device"


class Listen(_Table, frozen=True):
    """Where peers connect. No address (the default, spec): this machine's addresses in a subnet of a site of the signed fleet
    document, its private addresses too while that names none for the device's own site, looked at again whenever either changes;
    on other networks the device only dials out. Addresses given here are used as they are. Port 0: the system chooses, and the
    choice is kept in the state folder."""

    addresses: tuple[str, ...] = ()
    port: Port = 8741


class Discovery(_Table, frozen=True):
    """``seeds`` are ``host:port``. mDNS only introduces; ``interfaces`` are addresses (empty: all)."""

    mdns: bool = True
    interfaces: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    settle_s: float = 3.0  # choice: no WAN fetch until the roster was quiet for this long, see swarm.ownership


class Origin(_Table, frozen=True):
    """The static tree. Further mirrors are tried in order. ``poll_s``: 30 min from research/distribution.md 3."""

    urls: tuple[str, ...] = ()
    poll_s: float = 1_800.0
    connect_timeout_s: float = 10.0  # choice
    rate_bytes_per_s_min: NotNegative = 1_000  # choice: slower than this for stall_s counts as stalled
    stall_s: float = 30.0  # measured: research/distribution.md 3, timeouts


class Site(_Table, frozen=True):
    """The repository with which the device's own site acts alone, where the fleet gave it one. ``repository`` is the folder of
    its tree, on the device where the site's authority publishes: neighbours get everything from there. ``urls``: web servers in
    the office that serve the same tree."""

    repository: str = ""
    urls: tuple[str, ...] = ()
    poll_s: Annotated[float, msgspec.Meta(ge=1)] = 60.0  # choice: a small file over the LAN


class Limits(_Table, frozen=True):
    """Rates in bytes a second; 0 is without limit. LAN is unlimited by default (research/distribution.md 3)."""

    wan_in_bytes_per_s: NotNegative = 0
    lan_in_bytes_per_s: NotNegative = 0
    lan_out_bytes_per_s: NotNegative = 0
    upload_slots: Positive = 2  # measured: research/gossip-scale.md 1.4
    wan_weight: Annotated[int, msgspec.Meta(ge=0, le=16)] = 8  # choice; 0 for metered links


class Store(_Table, frozen=True):
    """``quota_bytes_max`` 0: min(20 % of free disk, 20 GiB), always leaving 10 % of the disk free (DESIGN.md 6). ``copies``:
    how many devices of the site keep each chunk of the current and the previous release, at least; the same on all of them.
    ``surplus_s``: how long further copies are kept, while the quota has room. ``handover_s``: how long a device that ends waits
    for neighbours to take over what only it holds; 0: it does not ask them."""

    quota_bytes_max: NotNegative = 0
    copies: Annotated[int, msgspec.Meta(ge=1, le=64)] = 3  # spec
    surplus_s: Annotated[float, msgspec.Meta(ge=0)] = (
        3_600.0  # choice: an hour in which a release that is taken back costs nothing
    )
    handover_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 10.0  # choice: service managers kill after 90 s


class Apply(_Table, frozen=True):
    """``root`` is where packages, archives and files go; another root than ``/`` is a private root (lab, tests, images).
    ``service`` is the socket of the apply service, which then makes all changes; empty: this process makes them."""

    root: str = "/"
    service: str = ""
    interval_s: float = 60.0  # choice: retry of what waits


class Assess(_Table, frozen=True):
    interval_s: float = 7_200.0  # spec: a couple of hours


class Collectors(_Table, frozen=True):
    """Only overrides: addresses come from the signed fleet document. ``direct`` false: never dial, always be carried."""

    direct: bool = True
    interval_s: float = 60.0  # choice: look for a route this often while something is in the outbox


class Enrolment(_Table, frozen=True):
    """``relay``: pass on to the desk what devices say that have no route to it; it is encrypted from them to the desk."""

    relay: bool = True


class Config(_Table, frozen=True):
    device: Device = msgspec.field(default_factory=Device)
    listen: Listen = msgspec.field(default_factory=Listen)
    discovery: Discovery = msgspec.field(default_factory=Discovery)
    origin: Origin = msgspec.field(default_factory=Origin)
    site: Site = msgspec.field(default_factory=Site)
    limits: Limits = msgspec.field(default_factory=Limits)
    store: Store = msgspec.field(default_factory=Store)
    apply: Apply = msgspec.field(default_factory=Apply)
    assess: Assess = msgspec.field(default_factory=Assess)
    collectors: Collectors = msgspec.field(default_factory=Collectors)
    enrolment: Enrolment = msgspec.field(default_factory=Enrolment)


def load_config(path: Path) -> Config:
    """Read and check ``config.toml``. Raises ``InputError`` that names the file, the line and the key."""
    config = load_toml(path, Config)
    for key, name in [("site", config.device.site), *(("labels", label) for label in config.device.labels)]:
        try:
            check_name(name, key)
        except UntrustedBytes as error:
            raise InputError(error.message, path=path, key=f"device.{key}") from None
    for key, urls in (("origin.urls", config.origin.urls), ("site.urls", config.site.urls)):
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise InputError(
                    f"{url!r} is not an http or https address", path=path, key=key, remedy="Start it with https://."
                )
    if config.site.repository and not Path(config.site.repository).is_absolute():
        raise InputError(
            f"{config.site.repository!r} does not start with '/'",
            path=path,
            key="site.repository",
            remedy="Give the whole path of the folder.",
        )
    for seed in config.discovery.seeds:
        host, _, port = seed.rpartition(":")
        if not host or not port.isdigit():
            raise InputError(
                f"{seed!r} is not host:port", path=path, key="discovery.seeds", remedy="Write '10.0.0.5:8741'."
            )
    return config
