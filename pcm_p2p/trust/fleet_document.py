"""The fleet document: what every device of the fleet needs to know of its surroundings, written by a person, signed as a target.

::

    [fleet]
    id = "<32 hex>"
    name = "Example"

    [[origin]]
    url = "https://updates.example.org/pcm"

    [[collector]]                       # 'pcm-p2p collector --show' prints this table
    id = "<32 hex>"
    address = "collector.example.org:8743"
    seal_key = "<64 hex>"               # X25519: reports are sealed to it
    verify_key = "<64 hex>"             # Ed25519: acknowledgements are signed with it

    [[desk]]                            # where devices enrol and renew their certificates; several are asked in this order
    address = "desk.example.org:8742"

    [[site]]
    name = "office-1"
    subnets = ["10.1.0.0/24"]
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from pathlib import Path
from typing import Annotated

import msgspec

from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import DeviceId, check_name
from pcm_p2p.toml_document import decode_toml

_Hex16 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
COLLECTORS_MAX = 16
"""As many as a record can be sealed to."""
DESKS_MAX = 4
"""Choice: one desk works at a time; the others are further addresses of it, and one that stands by."""


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Fleet(_Table, frozen=True):
    id: _Hex16
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Origin(_Table, frozen=True):
    url: Annotated[str, msgspec.Meta(max_length=1_024)]


class Collector(_Table, frozen=True):
    """``address`` is ``host:port``; keys are raw, in hexadecimal."""

    id: _Hex16
    address: Annotated[str, msgspec.Meta(max_length=256)]
    seal_key: _Hex32
    verify_key: _Hex32

    @property
    def device_id(self) -> DeviceId:
        return DeviceId.parse(self.id)

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host (without brackets) and port."""
        return _endpoint(self.address)


class Desk(_Table, frozen=True):
    """``address`` is ``host:port``. Who answers there proves itself by a certificate in role desk; the address proves nothing."""

    address: Annotated[str, msgspec.Meta(max_length=256)]

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host (without brackets) and port."""
        return _endpoint(self.address)


class Site(_Table, frozen=True):
    name: str
    subnets: tuple[str, ...] = ()


class FleetDocument(_Table, frozen=True):
    """Checked: what this holds is usable as it stands."""

    fleet: Fleet
    origin: Annotated[tuple[Origin, ...], msgspec.Meta(max_length=64)] = ()
    collector: Annotated[tuple[Collector, ...], msgspec.Meta(max_length=COLLECTORS_MAX)] = ()
    site: Annotated[tuple[Site, ...], msgspec.Meta(max_length=10_000)] = ()
    desk: Annotated[tuple[Desk, ...], msgspec.Meta(max_length=DESKS_MAX)] = ()

    def site_of(self, address: str) -> str | None:
        """The site whose subnets hold this IP address; the narrowest subnet wins. ``::ffff:10.1.0.5`` is ``10.1.0.5``."""
        try:
            place = ipaddress.ip_address(address)
        except ValueError:
            return None
        if isinstance(place, ipaddress.IPv6Address) and place.ipv4_mapped is not None:
            place = place.ipv4_mapped
        found = [
            (network.prefixlen, site.name)
            for site in self.site
            for network in map(ipaddress.ip_network, site.subnets)
            if place in network
        ]
        return max(found)[1] if found else None


def decode_fleet_document(data: bytes, path: Path | str) -> FleetDocument:
    """Read the document; ``path`` is only named in errors. Raises ``InputError`` with file, line, key and remedy."""
    document = decode_toml(data, FleetDocument, path)
    for origin in document.origin:
        if not _is_web_address(origin.url):
            raise InputError(
                f"{origin.url!r} is not an http or https address",
                path=path,
                key="origin.url",
                remedy="Start it with https://.",
            )
    for collector in document.collector:
        _check_collector(collector, path)
    if len({collector.id for collector in document.collector}) != len(document.collector):
        raise InputError("two collectors have the same id", path=path, key="collector.id", remedy="Remove one of them.")
    for desk in document.desk:
        try:
            _endpoint(desk.address)
        except ValueError:
            raise InputError(
                f"{desk.address!r} is not host:port", path=path, key="desk.address", remedy="Write 'host:8742'."
            ) from None
    for site in document.site:
        _check_site(site, path)
    if len({site.name for site in document.site}) != len(document.site):
        raise InputError("two sites have the same name", path=path, key="site.name", remedy="Name each site once.")
    return document


def starting_document(fleet: str, name: str) -> str:
    """What a new fleet folder starts with; the comments say what to fill in."""
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return (
        "# The fleet document. After a change: 'pcm-p2p fleet stage', 'pcm-p2p sign', 'pcm-p2p publish'.\n\n"
        f'[fleet]\nid = "{fleet}"\nname = "{quoted}"\n\n'
        "# Where the origin tree is served; several are mirrors, asked in this order.\n"
        '# [[origin]]\n# url = "https://updates.example.org/pcm"\n\n'
        "# Where reports go; 'pcm-p2p collector --show' prints the table of a collector.\n"
        "# [[collector]]\n# id = …\n\n"
        "# Where devices enrol and renew their certificates: the address of 'pcm-p2p enroll desk'.\n"
        '# [[desk]]\n# address = "desk.example.org:8742"\n\n'
        "# Offices: devices for which bytes are cheap to each other.\n"
        '# [[site]]\n# name = "office-1"\n# subnets = ["10.1.0.0/24"]\n'
    )


def _check_collector(collector: Collector, path: Path | str) -> None:
    try:
        _endpoint(collector.address)
    except ValueError:
        raise InputError(
            f"{collector.address!r} is not host:port", path=path, key="collector.address", remedy="Write 'host:8743'."
        ) from None
    if DeviceId.of_public_key(bytes.fromhex(collector.verify_key)).hex() != collector.id:
        raise InputError(
            "does not belong to its verify_key",
            path=path,
            key="collector.id",
            remedy="Copy the table from 'pcm-p2p collector --show' again.",
        )


def _check_site(site: Site, path: Path | str) -> None:
    try:
        check_name(site.name, "site")
        for subnet in site.subnets:
            ipaddress.ip_network(subnet)
    except UntrustedBytes as error:
        raise InputError(error.message, path=path, key="site.name") from None
    except ValueError as error:
        raise InputError(str(error), path=path, key="site.subnets", remedy="Write for example '10.1.0.0/24'.") from None


def _is_web_address(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    elif len(host) > 253 or not re.fullmatch(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", host):
        raise ValueError(f"{text!r} is not host:port")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
        raise ValueError(f"{text!r} is not host:port")
    return host, int(port)
