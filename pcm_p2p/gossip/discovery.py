"""Discovery by mDNS: who may be nearby. zeroconf runs in the asyncio side-car; what it hears are hints and nothing more.

An announcement is ``<device id>._pcmp2p._tcp.local.`` with ``v=1`` and ``g=`` eight digits of a hash of the fleet id: no host
name, site, version or holdings. Identity comes from mutual TLS, liveness from sessions; an announcement that vanishes means
nothing (a killed peer stays listed for more than an hour).

Facts behind the code (research/gossip-scale.md 6.1–6.3): a handler that raises kills the browser, so handlers only start tasks
and those are wrapped; names are unique by construction (an id is a hash of a key), so probing for conflicts, which takes a
second, is left out; giving addresses as ``interfaces`` works on loopback and without a multicast route; it does not cross
routers (seeds and the last-known roster do). IPv4 only: peers on IPv6-only networks are reached by seeds.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ifaddr
import trio
from zeroconf import BadTypeInNameException, IPVersion, NonUniqueNameException, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.gossip.beacon import group_tag
from pcm_p2p.ids import DeviceId
from pcm_p2p.sidecar import Sidecar

SERVICE = "_pcmp2p._tcp.local."
RESOLVE_TIMEOUT_MS = 3_000
RESOLVING_MAX = 64
"""Choice: names being looked up at once; beyond that a name is skipped and heard again at its next announcement."""
ADDRESSES_MAX = 8
WATCH_INTERVAL_S = 30.0
"""Choice: how often the machine's addresses are compared (about a millisecond of work)."""
RETRY_S = 60.0
CALL_TIMEOUT_S = 10.0

_INSTANCE = re.compile(r"([0-9a-f]{32})\." + re.escape(SERVICE))
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Somebody may listen at ``host:port`` (IPv4, numeric); ``device`` is who it claims to be."""

    host: str
    port: int
    device: DeviceId


def candidates_untrusted(
    name: str, addresses: Sequence[str], port: int | None, properties: Mapping[bytes, bytes | None], tag: str
) -> list[Candidate]:
    """One announcement to the places to try; empty if it is of another group. Raises ``UntrustedBytes`` and nothing else."""
    match = _INSTANCE.fullmatch(name)
    if not match:
        raise UntrustedBytes(f"{name[:80]!r} is not an instance name of ours")
    if properties.get(b"v") != b"1" or properties.get(b"g") != tag.encode():
        return []
    if not port or not 0 < port < 65_536:
        raise UntrustedBytes("an announcement without a port")
    device = DeviceId.parse(match[1])
    usable = [address for address in addresses if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", address)]
    return [Candidate(address, port, device) for address in usable[:ADDRESSES_MAX]]


class Discovery:
    """Browses as long as ``run`` runs; announces this device while ``announce(True)`` is in force.

    ``interfaces``: addresses to use (empty: all); ``listen``: the addresses this device listens on, for what it announces.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        *,
        device: DeviceId,
        fleet: str,
        interfaces: Sequence[str] = (),
        listen: Sequence[str] = (),
    ) -> None:
        self._sidecar = sidecar
        self._device = device
        self._tag = group_tag(fleet)
        self._interfaces = tuple(interfaces)
        self._listen = tuple(address for address in listen if address not in ("", "0.0.0.0", "::"))  # noqa: S104
        self._port = 0
        self._engine: _Engine | None = None
        self._announced = False

    async def run(
        self,
        port: int,
        introduce: Callable[[Candidate], None],
        network_changed: Callable[[], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Browse for ever; ``introduce`` and ``network_changed`` are called in the trio thread and must not raise.

        Where mDNS cannot start (no network, the port is held exclusively) it says so once and tries again each minute.
        """
        self._port = port
        complained = False
        task_status.started()
        while True:
            addresses = self._addresses()
            engine = _Engine(self._sidecar, self._tag, self._device, introduce)
            try:
                await self._sidecar.run(engine.start, self._interfaces, timeout_s=CALL_TIMEOUT_S)
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
        await self._call(engine.publish, addresses, self._port)

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
        """What to announce: where it listens, else the configured interfaces, else all addresses but loopback."""
        if self._listen or self._interfaces:
            return self._listen or self._interfaces
        found = sorted({ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if isinstance(ip.ip, str)})
        outside = [address for address in found if not address.startswith("127.")]
        return tuple((outside or found)[:ADDRESSES_MAX])


class _Engine:
    """What lives in the asyncio thread. All methods are called there."""

    def __init__(self, sidecar: Sidecar, tag: str, device: DeviceId, introduce: Callable[[Candidate], None]) -> None:
        self._sidecar = sidecar
        self._tag = tag
        self._own_name = f"{device}.{SERVICE}"
        self._introduce = introduce
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
        info = AsyncServiceInfo(
            SERVICE,
            self._own_name,
            port=port,
            parsed_addresses=list(addresses),
            properties={"v": "1", "g": self._tag},
            server=f"{self._own_name.split('.', 1)[0]}.local.",
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
                self._sidecar.tell(self._introduce, candidate)
        except UntrustedBytes as error:
            _log.debug("ignored an mDNS announcement: %s", error)
        except Exception:
            _log.exception("looking up an mDNS announcement failed")
