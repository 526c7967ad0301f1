"""Discovery by mDNS: who may be nearby. zeroconf runs in the asyncio side-car; what it hears are hints and nothing more.

An announcement says a fleet tag and a port (and the addresses that mDNS itself needs), nothing else: the instance name is
drawn anew whenever announcing begins, the host name is made of it, and ``g=`` are eight digits of a hash of the fleet id. No
device id, host name, site, version or holdings, so that nobody in a café can follow a device from network to network. Identity
comes from mutual TLS, liveness from sessions; an announcement that vanishes means nothing (a killed peer stays listed for more
than an hour).

What strangers can do: announcements are bounded by zeroconf (10,000 records, of which the oldest go first, and a least lifetime
of pointers), by ``RESOLVING_MAX`` here and by the back-off of ``targets``. Addresses are taken only where mDNS can come from:
this machine's own networks, and private ones behind a reflector. So a forged announcement makes nobody dial into the internet.

Facts behind the code (research/gossip-scale.md 6.1–6.3): a handler that raises kills the browser, so handlers only start tasks
and those are wrapped; names are unique by construction (64 random bits), so probing for conflicts, which takes a
second, is left out; giving addresses as ``interfaces`` works on loopback and without a multicast route; it does not cross
routers (seeds and the last-known roster do). IPv4 only: peers on IPv6-only networks are reached by seeds.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import ifaddr
import trio
from zeroconf import BadTypeInNameException, IPVersion, NonUniqueNameException, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.gossip.beacon import group_tag
from pcm_p2p.sidecar import Sidecar

SERVICE = "_pcmp2p._tcp.local."
RESOLVE_TIMEOUT_MS = 3_000
RESOLVING_MAX = 64
"""Choice: names being looked up at once; beyond that a name is skipped and heard again at its next announcement."""
ADDRESSES_MAX = 8
WATCH_INTERVAL_S = 30.0
"""Choice: how often the machine's addresses are compared (about a millisecond of work)."""
RETRY_S = 60.0
NAME_SIZE_BYTES = 8
PRIVATE = tuple(
    ipaddress.IPv4Network(network)
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "127.0.0.0/8")
)
"""RFC 1918, RFC 3927 and loopback: what an announcement behind an mDNS reflector may name."""
CALL_TIMEOUT_S = 10.0

_INSTANCE = re.compile(r"[0-9a-f]{16,32}\." + re.escape(SERVICE))
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Somebody may listen at ``host:port`` (IPv4, numeric)."""

    host: str
    port: int


def candidates_untrusted(
    name: str, addresses: Sequence[str], port: int | None, properties: Mapping[bytes, bytes | None], tag: str
) -> list[Candidate]:
    """One announcement to the places to try; empty if it is of another group. Raises ``UntrustedBytes`` and nothing else."""
    if not _INSTANCE.fullmatch(name):
        raise UntrustedBytes(f"{name[:80]!r} is not an instance name of ours")
    if properties.get(b"g") != tag.encode():
        return []
    if not port or not 0 < port < 65_536:
        raise UntrustedBytes("an announcement without a port")
    usable = [address for address in addresses if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", address)]
    return [Candidate(address, port) for address in usable[:ADDRESSES_MAX]]


def is_nearby(host: str, networks: Iterable[ipaddress.IPv4Network]) -> bool:
    """Whether an announced address can be a neighbour's: in one of this machine's own ``networks``, or a private one."""
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        return False
    if address.is_multicast or address.is_unspecified or address.is_reserved:
        return False
    private = any(address in network for network in PRIVATE)
    return private or any(address in network for network in networks if network.prefixlen >= 8)


class Discovery:
    """Browses as long as ``run`` runs; announces this device while ``announce(True)`` is in force.

    ``interfaces``: addresses to use (empty: all). ``listen``: the addresses this device listens on, for what it announces.
    ``places``: both, where they change while this runs; while there is none, it waits.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        *,
        fleet: str,
        interfaces: Sequence[str] = (),
        listen: Sequence[str] = (),
        places: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        self._sidecar = sidecar
        self._places = places
        self._tag = group_tag(fleet)
        self._interfaces = tuple(interfaces)
        self._listen = tuple(address for address in listen if address not in ("", "0.0.0.0", "::"))  # noqa: S104
        self._port: Callable[[], int] = int
        self._engine: _Engine | None = None
        self._announced = False

    async def run(
        self,
        port: Callable[[], int],
        introduce: Callable[[Candidate], None],
        network_changed: Callable[[], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Browse for ever; ``port()`` is what is announced. ``introduce`` and ``network_changed`` are called in the trio thread
        and must not raise.

        Where mDNS cannot start (no network, the port is held exclusively) it says so once and tries again each minute.
        """
        self._port = port
        complained = False
        task_status.started()
        while True:
            addresses = self._addresses()
            if self._places is not None and not addresses:
                await self._until_addresses_differ_from(addresses)
                continue
            engine = _Engine(self._sidecar, self._tag, introduce, _networks())
            interfaces = self._interfaces or (addresses if self._places is not None else ())
            try:
                await self._sidecar.run(engine.start, interfaces, timeout_s=CALL_TIMEOUT_S)
            except (OSError, TimeoutError) as error:
                if not complained:
                    _log.warning("mDNS cannot start (%s); peers are found by seeds and the roster meanwhile", error)
                complained = True
                await trio.sleep(RETRY_S)
                continue
            complained = False
            self._engine = engine
            try:
                if self._announced:
                    await self._publish(engine, addresses)
                await self._until_addresses_differ_from(addresses)
                _log.info("addresses of this machine changed; starting mDNS anew")
                network_changed()
            finally:
                self._engine = None
                with trio.CancelScope(shield=True):
                    await self._stop(engine)

    async def announce(self, wanted: bool) -> None:
        """Register or unregister this device; remembered over restarts of mDNS."""
        if wanted == self._announced:
            return
        self._announced = wanted
        engine = self._engine
        if engine is None:
            return
        if wanted:
            await self._publish(engine, self._addresses())
        else:
            await self._call(engine.unpublish)

    async def _publish(self, engine: _Engine, addresses: tuple[str, ...]) -> None:
        if port := self._port():
            await self._call(engine.publish, addresses, port)

    async def _stop(self, engine: _Engine) -> None:
        await self._call(engine.stop)

    async def _call(self, function: Callable[..., object], *args: object) -> None:
        try:
            await self._sidecar.run(function, *args, timeout_s=CALL_TIMEOUT_S)  # type: ignore[arg-type]
        except (OSError, TimeoutError, BadTypeInNameException, NonUniqueNameException) as error:
            _log.warning("mDNS: %s failed: %s", getattr(function, "__name__", "call"), error or type(error).__name__)

    async def _until_addresses_differ_from(self, addresses: tuple[str, ...]) -> None:
        while True:
            await trio.sleep(WATCH_INTERVAL_S)  # the kernel tells nobody without a netlink socket
            if self._addresses() != addresses:
                return

    def _addresses(self) -> tuple[str, ...]:
        """What to announce: the places of now, or where it listens, or the configured interfaces, or all but loopback."""
        if self._places is not None:
            return tuple(place for place in self._places() if ":" not in place)[:ADDRESSES_MAX]
        if self._listen or self._interfaces:
            return self._listen or self._interfaces
        found = sorted({ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if isinstance(ip.ip, str)})
        outside = [address for address in found if not address.startswith("127.")]
        return tuple((outside or found)[:ADDRESSES_MAX])


def _networks() -> tuple[ipaddress.IPv4Network, ...]:
    """The IPv4 networks that this machine is in."""
    return tuple(
        ipaddress.IPv4Network((ip.ip, ip.network_prefix), strict=False)
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if isinstance(ip.ip, str)
    )


class _Engine:
    """What lives in the asyncio thread. All methods are called there."""

    def __init__(
        self,
        sidecar: Sidecar,
        tag: str,
        introduce: Callable[[Candidate], None],
        networks: Sequence[ipaddress.IPv4Network],
    ) -> None:
        self._sidecar = sidecar
        self._tag = tag
        self._own_name = ""
        self._introduce = introduce
        self._networks = networks
        self._resolving: dict[str, asyncio.Task[None]] = {}

    async def start(self, interfaces: tuple[str, ...]) -> None:
        version = IPVersion.V4Only
        if interfaces:
            self._zeroconf = AsyncZeroconf(interfaces=list(interfaces), ip_version=version)
        else:
            self._zeroconf = AsyncZeroconf(ip_version=version)
        try:
            await self._zeroconf.zeroconf.async_wait_for_start()
            self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._changed])
        except BaseException:
            await self._zeroconf.async_close()
            raise

    async def publish(self, addresses: tuple[str, ...], port: int) -> None:
        instance = secrets.token_hex(NAME_SIZE_BYTES)
        self._own_name = f"{instance}.{SERVICE}"
        info = AsyncServiceInfo(
            SERVICE,
            self._own_name,
            port=port,
            parsed_addresses=list(addresses),
            properties={"g": self._tag},
            server=f"{instance}.local.",
        )
        await self._zeroconf.async_register_service(info, cooperating_responders=True)

    async def unpublish(self) -> None:
        await self._zeroconf.async_unregister_all_services()

    async def stop(self) -> None:
        for task in self._resolving.values():
            task.cancel()
        await self._browser.async_cancel()
        await self._zeroconf.async_close()

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed or name == self._own_name or name in self._resolving:
            return
        if len(self._resolving) >= RESOLVING_MAX:
            return
        task = asyncio.get_running_loop().create_task(self._resolve(zeroconf, service_type, name))
        self._resolving[name] = task
        task.add_done_callback(lambda _: self._resolving.pop(name, None))

    async def _resolve(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        try:
            info = AsyncServiceInfo(service_type, name)
            if not await info.async_request(zeroconf, RESOLVE_TIMEOUT_MS):
                return
            addresses = info.parsed_addresses(IPVersion.V4Only)
            for candidate in candidates_untrusted(name, addresses, info.port, info.properties, self._tag):
                if is_nearby(candidate.host, self._networks):
                    self._sidecar.tell(self._introduce, candidate)
        except UntrustedBytes as error:
            _log.debug("ignored an mDNS announcement: %s", error)
        except Exception:
            _log.exception("looking up an mDNS announcement failed")
