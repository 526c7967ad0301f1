"""A machine without any route to the desk joins through a neighbour: real daemons, namespaces, mDNS over a real bridge."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio
from repository_simulator import PASSPHRASE, RepositorySimulator, TreeSource, attempt

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.enrolment.invitation import create_token
from pcm_p2p.lab.network import CENTRE_ADDRESS, Namespaces, open_network, why_no_namespaces
from pcm_p2p.lab.processes import LabError, Process, Processes, open_processes
from pcm_p2p.lab.scenario import DeviceName, Scenario, Site
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.identity import DeviceIdentity, FleetRecord

WHY_NOT = why_no_namespaces()
pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "namespaces are there")]

DESK = f"{CENTRE_ADDRESS}:8742"
HELPER, NEWCOMER = DeviceName("office", "d01", 1), DeviceName("office", "d02", 2)
CLI = [sys.executable, "-c", "import sys; from pcm_p2p.cli.main import run; sys.argv[0] = 'pcm-p2p'; sys.exit(run())"]
START_S = 120.0


@pytest.fixture(name="fleet")
def _fleet(fleet_of_today: RepositorySimulator) -> RepositorySimulator:
    """Its signed document names the desk, and the subnet of the office."""
    fleet = fleet_of_today
    document = fleet.fleet.path / "fleet.toml"
    tables = f'\n[[desk]]\naddress = "{DESK}"\n\n[[site]]\nname = "office"\nsubnets = ["10.77.1.0/24"]\n'
    document.write_text(document.read_text() + tables)
    fleet.fleet.stage_fleet_document()
    fleet.sign()
    fleet.publish()
    return fleet


def member(fleet: RepositorySimulator, state: Path) -> None:
    """A device as 'enroll join' leaves it, which has read the fleet document since."""
    issuer, root = FleetCA.load(fleet.fleet.path / "ca", PASSPHRASE), fleet.fleet.root_bytes(1)
    identity = DeviceIdentity.create(state / "identity", issuer, now=fleet.clock.now)
    record = FleetRecord(fleet.fleet.fleet_id, site="office")
    DeviceIdentity.install(state / "identity", identity.certificate_der, issuer.pem, record, root)
    (state / "config.toml").write_text('[device]\nsite = "office"\n')
    with TrustClient(state / "trust", root, fleet.fleet.fleet_id, wall_clock=fleet.clock) as client:
        assert attempt(client, TreeSource(fleet.origin)).kind == "good"


async def until_it_says(process: Process, words: str) -> None:
    with trio.fail_after(START_S):
        while words not in process.log.read_text(errors="replace"):
            assert process.alive, process.last_lines()
            await trio.sleep(0.05)


async def joins(processes: Processes, place: int, token: Path, state: Path, *options: str) -> str:
    command = [*CLI, "enroll", "join", "--token-file", str(token), "--state", str(state), *options]
    return (await processes.run("join", command, timeout_s=START_S, namespace=place)).decode()


async def test_a_newcomer_without_a_route_finds_a_neighbour_by_mdns_and_joins_through_it(
    fleet: RepositorySimulator, tmp_path: Path, quick_disk: None
) -> None:
    scenario = Scenario(network="netns", site=(Site("office", 2),))
    words, token = tmp_path / "words", tmp_path / "token"
    words.write_text(PASSPHRASE + "\n")
    words.chmod(0o600)
    token.write_text(create_token(fleet.fleet, desk=DESK, site="office").line())
    await trio.to_thread.run_sync(member, fleet, tmp_path / "helper")
    async with open_processes(tmp_path / "logs") as processes, open_network(scenario, processes) as network:
        assert isinstance(network, Namespaces)
        place = network.place_of(NEWCOMER)
        await processes.run("route", ["ip", "route", "del", "default"], timeout_s=120.0, namespace=place)
        command = [*CLI, "enroll", "desk", "--fleet", fleet.fleet.path, "--listen", DESK, "--passphrase-file", words]
        desk = processes.start("desk", command, namespace=network.centre)
        await until_it_says(desk, f"is open at {DESK}")
        with pytest.raises(LabError, match="cannot be reached"):
            await joins(processes, place, token, tmp_path / "alone")
        daemon = [sys.executable, "-m", "pcm_p2p.daemon", "--state", tmp_path / "helper"]
        helper = processes.start("helper", daemon, namespace=network.place_of(HELPER))
        await until_it_says(helper, " is up at 10.77.1.1:8741")
        said = await joins(processes, place, token, tmp_path / "newcomer", "--json")
        assert '"through": "10.77.1.1:8741"' in said
        await until_it_says(helper, "between 10.77.1.2 and the desk")
        await until_it_says(desk, "of site office enrolled with token")
    assert DeviceIdentity.load(tmp_path / "newcomer" / "identity").role == "device"
