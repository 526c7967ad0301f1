"""Surroundings: what the signed fleet document, as this device trusts it, says about the world around it."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable

import ifaddr
import nacl.utils
import trio

from pcm_p2p.compliance.carry import Carrier
from pcm_p2p.compliance.record import RecordSealer, SealKey
from pcm_p2p.errors import PcmError, StorageError
from pcm_p2p.gossip.exposure import exposed
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.fleet_document import Collector, FleetDocument, decode_fleet_document
from pcm_p2p.trust.identity import DeviceIdentity
from pcm_p2p.trust.index import FLEET_DOCUMENT

log = logging.getLogger(__name__)

SEAL_RETRY_S = 30.0


def fleet_document(client: TrustClient) -> FleetDocument | None:
    """The signed fleet document as last trusted; None before there is one, or when this version cannot read it."""
    view = client.view
    if view is None or FLEET_DOCUMENT not in view.kept:
        return None
    try:
        return decode_fleet_document(view.read(FLEET_DOCUMENT), FLEET_DOCUMENT)
    except PcmError as error:
        log.error("the fleet document cannot be used: %s", error)
        return None


class Surroundings:
    """``changed`` reads the document anew; the rest answers from what was read. The carrier seals to the collectors in it."""

    def __init__(
        self, client: TrustClient, identity: DeviceIdentity, revoked: Callable[[DeviceId], bool], *, site: str
    ) -> None:
        self._client = client
        self._site = site
        self._revoked = revoked
        self._identity = identity
        self._document: FleetDocument | None = None
        self._exposed_interfaces: frozenset[str] = frozenset()

    async def changed(self, carrier: Carrier, nursery: trio.Nursery) -> None:
        """The trusted view is another one: read it, and tell ``carrier`` to whom reports are sealed from now on."""
        self._document = fleet_document(self._client)
        collectors = self._collectors()
        if not collectors:
            return
        sealer = RecordSealer(
            self._identity.sign,
            self._identity.certificate_der,
            tuple(SealKey(bytes.fromhex(one.seal_key)) for one in collectors),
            nacl.utils.random,
        )
        try:
            await carrier.collectors(sealer, [one.device_id for one in collectors])
        except StorageError as error:
            log.error("reports cannot be sealed: %s", error)
            nursery.start_soon(self._later, carrier, nursery)

    async def _later(self, carrier: Carrier, nursery: trio.Nursery) -> None:
        await trio.sleep(SEAL_RETRY_S)
        await self.changed(carrier, nursery)

    def desks(self) -> list[tuple[str, int]]:
        """Host and port of where devices enrol and renew, in this order."""
        return [desk.endpoint for desk in self._document.desk] if self._document is not None else []

    def renewed(self, identity: DeviceIdentity) -> None:
        """This device has another certificate: records that are sealed after the next ``changed`` carry it."""
        self._identity = identity

    def collector_address(self, collector: DeviceId) -> tuple[str, int] | None:
        """Host and port of a collector; None for who is none."""
        for one in self._collectors():
            if one.device_id == collector:
                return one.endpoint
        return None

    def collector_keys(self) -> dict[DeviceId, bytes]:
        """With which raw Ed25519 key each collector signs acknowledgements."""
        return {one.device_id: bytes.fromhex(one.verify_key) for one in self._collectors()}

    def exposed_addresses(self) -> tuple[str, ...]:
        """This machine's addresses that peers may reach it at (``gossip.exposure``)."""
        sites = self._document.site if self._document is not None else ()
        subnets = [ipaddress.ip_network(subnet) for site in sites for subnet in site.subnets]
        machine = machine_addresses()
        named = any(site.name == self._site and site.subnets for site in sites)
        found = exposed(machine, subnets, own_site_is_named=named)
        self._exposed_interfaces = frozenset(machine[address] for address in found)
        return found

    def exposed_interfaces(self) -> frozenset[str]:
        """The interfaces of those addresses, when they were last looked at."""
        return self._exposed_interfaces

    def _collectors(self) -> list[Collector]:
        """A revoked collector gets no reports, and what it acknowledges is not believed."""
        collectors = self._document.collector if self._document is not None else ()
        return [one for one in collectors if not self._revoked(one.device_id)]


def machine_addresses() -> dict[str, str]:
    """Every address of this machine, numeric, IPv6 without zones, with the name of its interface; empty if the system does not
    tell."""
    try:
        adapters = list(ifaddr.get_adapters())
    except OSError as error:
        log.error("the addresses of this machine cannot be read: %s", error)
        return {}
    return {
        ip.ip if isinstance(ip.ip, str) else ip.ip[0]: adapter.name.partition(":")[0]  # eth0:1 is an alias of eth0
        for adapter in adapters
        for ip in adapter.ips
    }
