"""Exposure: on which of a machine's addresses a device lets itself be reached. A core of one function.

Rules, for a device whose settings name no address:

- The fleet document names subnets of sites: the addresses in one of them, of whichever site, since a laptop may be at another
  site's desk. On every other network (a café, a phone, the outside of a gateway) the device dials out and is not reached.
- It names none for the device's own site, or there is no document yet: private addresses too (RFC 1918, link-local IPv4, unique
  local IPv6), so that the devices of an office find each other. Never one that the internet routes.
- Never loopback, link-local IPv6 (needs a zone, and peers are told no zones) or multicast.

A socket that is bound to an address is reached through every interface: Linux answers for its addresses on all of them. So a
connection is let in only if it came through an interface that has one of these addresses (``wire.arrival``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable

ADDRESSES_MAX = 16
"""Choice: more doors than that no office machine needs; a container host can have hundreds of addresses."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_PRIVATE: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7")
)


def exposed(addresses: Iterable[str], subnets: Collection[Network], *, own_site_is_named: bool) -> tuple[str, ...]:
    """Those of ``addresses`` (numeric; what does not read is skipped) that are listened on, IPv4 first, in numeric order.

    ``subnets``: of all sites in the signed fleet document; ``own_site_is_named``: whether some are of the device's own site.
    """
    inside = tuple(subnets) if own_site_is_named else (*subnets, *_PRIVATE)
    found: set[Address] = set()
    for text in addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        if address.is_loopback or address.is_multicast or address.is_unspecified:
            continue
        if address.version == 6 and address.is_link_local:
            continue
        if any(address in network for network in inside):
            found.add(address)
    ordered = sorted(found, key=lambda address: (address.version, int(address)))
    return tuple(str(address) for address in ordered[:ADDRESSES_MAX])
