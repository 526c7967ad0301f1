"""Where the processes of a lab live: all on loopback, or each device in a network namespace of its own (needs root).

Namespaces, as the lab makes them::

      d01   d02   d03      one namespace a device, eth0 10.77.S.N/24
        \\    |    /
         [ lan ]           bridge inside the office's namespace, 10.77.S.254
           wan             10.201.S.2/30 ── token bucket both ways ── 10.201.S.1
            |
       [ the rest ]        one namespace: origin, desk, collector on 10.200.0.1

Every interface is created inside these namespaces, both ends; the machine's own namespace gets none, and no forwarding, no
firewall, no name in ``/run/netns``. The namespaces are held by file descriptors of the lab and by the processes in them, so
they vanish with these, also after SIGKILL. What works on which kernels (tbf does; netem often is not there) was measured and
is the reason for the token bucket; loss and delay are not offered.

Forwarding is on in the offices and off in the rest: offices reach the origin and the collector, not each other.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from pcm_p2p.errors import InputError
from pcm_p2p.lab.launcher import CLONE_NEWNET
from pcm_p2p.lab.processes import LabError, Processes
from pcm_p2p.lab.scenario import DeviceName, Scenario

STEP_TIMEOUT_S = 20.0
CENTRE_ADDRESS = "10.200.0.1"
SITES_MAX = 250


class Network(Protocol):
    """What the fleet asks of a network. Namespaces are file descriptors; None is the lab's own."""

    name: str

    @property
    def centre(self) -> int | None:
        """Where the origins, the desk and the collector live."""
        ...

    @property
    def centre_address(self) -> str: ...

    @property
    def shapes_links(self) -> bool:
        """Whether the network limits the links itself; if not, each office gets an origin with a rate."""
        ...

    def place_of(self, device: DeviceName) -> int | None: ...

    def address_of(self, device: DeviceName) -> str: ...

    def office_of(self, site: str) -> int | None:
        """Where a plain download of this office runs."""
        ...

    async def link_bytes(self) -> dict[str, int] | None:
        """Bytes that came in over each office's link, as the kernel counts them; None where there are no links."""
        ...


class Loopback:
    """Everything on 127.0.0.1; mDNS works there too."""

    name = "loopback"
    centre = None
    centre_address = "127.0.0.1"
    shapes_links = False

    def place_of(self, device: DeviceName) -> int | None:  # noqa: ARG002 - same for all
        return None

    def address_of(self, device: DeviceName) -> str:  # noqa: ARG002
        return "127.0.0.1"

    def office_of(self, site: str) -> int | None:  # noqa: ARG002
        return None

    async def link_bytes(self) -> dict[str, int] | None:
        return None


class Namespaces:
    """See the module; built by ``open_network``."""

    name = "netns"
    centre_address = CENTRE_ADDRESS
    shapes_links = True

    def __init__(self, scenario: Scenario, processes: Processes) -> None:
        self._scenario = scenario
        self._processes = processes
        self._sites = {site.name: number for number, site in enumerate(scenario.site, start=1)}
        self.centre = new_namespace()
        self._offices = {site.name: new_namespace() for site in scenario.site}
        self._devices = {device: new_namespace() for device in scenario.roster()}

    def place_of(self, device: DeviceName) -> int | None:
        return self._devices[device]

    def address_of(self, device: DeviceName) -> str:
        return f"10.77.{self._sites[device.site]}.{device.number}"

    def office_of(self, site: str) -> int | None:
        return self._offices[site]

    async def link_bytes(self) -> dict[str, int] | None:
        return {
            site: _received(await self._say(place, ["cat", "/proc/net/dev"])) for site, place in self._offices.items()
        }

    async def build(self) -> None:
        await self._batch(
            self.centre,
            "link set lo up",
            f"address add {CENTRE_ADDRESS}/32 dev lo",
        )
        for site in self._scenario.site:
            await self._build_office(site.name, site.wan_bytes_per_s)
        for device, place in self._devices.items():
            await self._build_device(device, place)

    async def _build_office(self, site: str, wan_bytes_per_s: int) -> None:
        number, office = self._sites[site], self._offices[site]
        await self._batch(
            office,
            "link set lo up",
            "link add lan type bridge",
            f"address add 10.77.{number}.254/24 dev lan",
            "link set lan up",
            f"link add wan type veth peer name site{number} netns {_path(self.centre)}",
            f"address add 10.201.{number}.2/30 dev wan",
            "link set wan up",
        )
        await self._batch(
            self.centre,
            f"address add 10.201.{number}.1/30 dev site{number}",
            f"link set site{number} up",
            f"route add 10.77.{number}.0/24 via 10.201.{number}.2",
        )
        await self._batch(office, f"route add default via 10.201.{number}.1")
        await self._say(office, ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        if wan_bytes_per_s:
            await self._shape(self.centre, f"site{number}", wan_bytes_per_s)
            await self._shape(office, "wan", wan_bytes_per_s)

    async def _build_device(self, device: DeviceName, place: int) -> None:
        number, office = self._sites[device.site], self._offices[device.site]
        port = f"p{device.number}"
        await self._batch(office, f"link add {port} type veth peer name eth0 netns {_path(place)}")
        await self._batch(office, f"link set {port} master lan", f"link set {port} up")
        await self._batch(
            place,
            "link set lo up",
            f"address add {self.address_of(device)}/24 broadcast + dev eth0",
            "link set eth0 up",
            f"route add default via 10.77.{number}.254",
        )
        rate = next(site.lan_bytes_per_s for site in self._scenario.site if site.name == device.site)
        if rate:
            await self._shape(place, "eth0", rate)
            await self._shape(office, port, rate)

    async def _shape(self, place: int, interface: str, bytes_per_s: int) -> None:
        # The bucket must hold what one timer tick lets through, and a whole offloaded segment (64 KiB).
        burst = max(128 << 10, bytes_per_s // 100)
        bucket = ["rate", f"{8 * bytes_per_s}bit", "burst", str(burst), "latency", "50ms"]
        await self._say(place, ["tc", "qdisc", "add", "dev", interface, "root", "tbf", *bucket])

    async def _batch(self, place: int, *commands: str) -> None:
        # Without IPv6: its router and neighbour solicitations would be counted as the office's bytes.
        quiet = (
            "for each in all default; do echo 1 2>/dev/null >/proc/sys/net/ipv6/conf/$each/disable_ipv6 || true; done"
        )
        await self._say(place, ["sh", "-e", "-c", "\n".join([quiet, *(f"ip {command}" for command in commands)])])

    async def _say(self, place: int, command: Sequence[str]) -> str:
        return (await self._processes.run("network", command, timeout_s=STEP_TIMEOUT_S, namespace=place)).decode()

    def close(self) -> None:
        for descriptor in (self.centre, *self._offices.values(), *self._devices.values()):
            os.close(descriptor)


@asynccontextmanager
async def open_network(scenario: Scenario, processes: Processes) -> AsyncIterator[Network]:
    """The network that the scenario names. Raises ``InputError`` where this machine has no such network."""
    if scenario.network == "loopback":
        yield Loopback()
        return
    why = why_no_namespaces()
    if why:
        raise InputError(why, key="network", remedy="Use --network loopback, or run as root on Linux with iproute2.")
    if len(scenario.site) > SITES_MAX:
        raise InputError(f"{len(scenario.site)} sites; namespaces are laid out for {SITES_MAX}", key="site")
    namespaces = Namespaces(scenario, processes)
    try:
        await namespaces.build()
        yield namespaces
    finally:
        namespaces.close()


def why_no_namespaces() -> str:
    """What keeps this machine from network namespaces; empty if nothing does."""
    if sys.platform != "linux":
        return "network namespaces are a matter of Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"the program '{program}' (iproute2) is missing"
    try:
        os.close(new_namespace())
    except LabError as error:
        return error.message
    return ""


def new_namespace() -> int:
    """A new network namespace, held by the file descriptor that is returned."""
    made: list[int] = []
    failed: list[int] = []

    def make() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            failed.append(ctypes.get_errno())
        else:
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    _in_a_thread_of_its_own(make)
    if not made:
        raise LabError(f"no network namespace: {os.strerror(failed[0]) if failed else 'unknown reason'}")
    return made[0]


def socket_in(namespace: int) -> socket.socket:
    """A new TCP socket that belongs to ``namespace``, whoever uses it."""
    made: list[socket.socket] = []
    failed: list[int] = []

    def make() -> None:
        if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
            failed.append(ctypes.get_errno())
        else:
            made.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))

    _in_a_thread_of_its_own(make)
    if not made:
        raise LabError(f"no socket in the namespace: {os.strerror(failed[0]) if failed else 'unknown reason'}")
    return made[0]


def _in_a_thread_of_its_own(make: Callable[[], None]) -> None:
    # A namespace is a property of a thread; this one ends before another namespace could surprise anybody.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()


def _path(namespace: int) -> str:
    return f"/proc/{os.getpid()}/fd/{namespace}"


def _received(table: str) -> int:
    for line in table.splitlines():
        interface, _, counters = line.partition(":")
        if interface.strip() == "wan":
            return int(counters.split()[0])
    raise LabError("the office has no link to the rest")
