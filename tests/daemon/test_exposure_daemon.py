"""A real daemon on a machine with several networks, in a namespace of its own: where it is reached by default."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from repository_simulator import PASSPHRASE, RepositorySimulator, TreeSource, attempt

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.daemon.control import ask
from pcm_p2p.errors import PcmError
from pcm_p2p.lab.network import why_no_namespaces
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.identity import DeviceIdentity, FleetRecord
from pcm_p2p.wire.link import HANDSHAKE_TIMEOUT_S

Fleet = RepositorySimulator

WHY_NOT = why_no_namespaces() or ("" if shutil.which("nsenter") else "unshare and nsenter of util-linux are not here")
pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "namespaces are there")]

NETWORKS = {"office": "10.1.7.{}/24", "home": "192.168.178.{}/24", "outside": "203.0.113.{}/24"}
"""The daemon's machine is 9 in each of them, its neighbour 10."""
SITES = '\n[[site]]\nname = "office"\nsubnets = ["10.1.0.0/16"]\n'
KNOCK = """
import socket, sys
with socket.create_connection((sys.argv[1], 8741), timeout=60) as door:
    door.settimeout(float(sys.argv[2]))
    try:
        print("closed" if not door.recv(1) else "spoke")
    except TimeoutError:
        print("open")
    except OSError:
        print("closed")
"""


def enrolled(fleet: Fleet, state: Path) -> None:
    """A device as 'enroll join' leaves it, which has read the fleet document since."""
    issuer, root = FleetCA.load(fleet.fleet.path / "ca", PASSPHRASE), fleet.fleet.root_bytes(1)
    identity = DeviceIdentity.create(state / "identity", issuer, now=fleet.clock.now)
    record = FleetRecord(fleet.fleet.fleet_id, site="office")
    DeviceIdentity.install(state / "identity", identity.certificate_der, issuer.pem, record, root)
    (state / "config.toml").write_text('[device]\nsite = "office"\n[discovery]\nmdns = false\n')
    with TrustClient(state / "trust", root, fleet.fleet.fleet_id, wall_clock=fleet.clock) as client:
        assert attempt(client, TreeSource(fleet.origin)).kind == "good"


class Neighbour:
    """A machine with a link to each network of the daemon's machine."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def run(self, *words: str) -> str:
        ended = subprocess.run(
            ["nsenter", "--net", "--target", str(self.pid), *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return ended.stdout.strip()

    def knock(self, address: str, *, patience_s: float = 1.0) -> str:
        """What the door says within ``patience_s``: "open" if it only waits."""
        return self.run(sys.executable, "-c", KNOCK, address, str(patience_s))


@contextmanager
def neighbour() -> Iterator[Neighbour]:
    with subprocess.Popen(["unshare", "--net", "sleep", "300"]) as process:
        try:
            own, theirs = Path("/proc/self/ns/net"), Path(f"/proc/{process.pid}/ns/net")
            while theirs.readlink() == own.readlink():
                time.sleep(0.01)
            yield Neighbour(process.pid)
        finally:
            process.kill()


@contextmanager
def daemon_on_its_own_machine(state: Path, beside: Neighbour, log: list[str]) -> Iterator[list[str]]:
    """Where it says that it listens, once it answers; what it logged is in ``log`` when it has ended."""
    steps = ["ip link set lo up"]
    for name, address in NETWORKS.items():
        steps.append(f"ip link add {name} type veth peer name {name} netns {beside.pid}")
        steps.append(f"ip addr add {address.format(9)} dev {name} && ip link set {name} up")
    steps.append(f"exec {sys.executable} -m pcm_p2p.daemon --state {state}")
    daemon = subprocess.Popen(
        ["unshare", "--net", "sh", "-ec", "\n".join(steps)], stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                listening: list[str] = ask(state, "status", timeout_s=5.0)["listening"]
                break
            except PcmError:
                assert daemon.poll() is None, daemon.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.05)
        for name, address in NETWORKS.items():
            beside.run("sh", "-ec", f"ip addr add {address.format(10)} dev {name} && ip link set {name} up")
        yield listening
    finally:
        daemon.terminate()
        log.append(daemon.communicate(timeout=120)[1])


@pytest.fixture
def office(fleet_of_today: Fleet) -> Fleet:
    """A fleet whose document names the subnet of its one office."""
    fleet = fleet_of_today
    document = fleet.fleet.path / "fleet.toml"
    document.write_text(document.read_text() + SITES)
    fleet.fleet.stage_fleet_document()
    fleet.sign()
    fleet.publish()
    return fleet


def test_it_is_reached_on_the_network_of_a_site_and_through_no_other_interface(office: Fleet, tmp_path: Path) -> None:
    state = tmp_path / "state"
    enrolled(office, state)
    log: list[str] = []
    with neighbour() as beside, daemon_on_its_own_machine(state, beside, log) as listening:
        assert listening == ["10.1.7.9:8741"]
        assert beside.knock("10.1.7.9") == "open"
        for address in ("192.168.178.9", "203.0.113.9"):
            with pytest.raises(subprocess.CalledProcessError):  # connection refused
                beside.knock(address)
        # The address of the office, asked for over the outside link: the kernel answers there too, the daemon does not.
        beside.run("sh", "-ec", "ip link set office down && ip route add 10.1.7.9/32 via 203.0.113.9 dev outside")
        # Sooner than whoever is let in and says nothing.
        assert beside.knock("10.1.7.9", patience_s=0.8 * HANDSHAKE_TIMEOUT_S) == "closed"
    assert "203.0.113.10: came in through outside, on which nobody is let in" in log[0]
