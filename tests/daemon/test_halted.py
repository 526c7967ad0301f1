"""What a device reads of halts and teams: by whose key a release is held, and that two teams are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from repository_simulator import PASSPHRASE, RepositorySimulator, attempt, put_segment, small_manifest

from pcm_p2p.authority import halting
from pcm_p2p.authority.keys.signing_key import open_signing_key
from pcm_p2p.daemon.documents import SiteWord, manifest_place, manifests_to_keep, read_documents
from pcm_p2p.daemon.halted import UNKNOWN
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.desired import Desired
from pcm_p2p.policy.selector import DeviceFacts
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.delegation import HALT, roles_of_device

BERLIN = DeviceFacts(DeviceId(bytes(16)), "berlin")
ACTIVE = b'schema = "pcm.activation/1"\nscope = "all"\nnot_before = 2026-01-01T00:00:00Z\n'
PLACE = '[[assign.resource]]\nkind = "file"\npath = "/opt/{0}"\ncontent = "x"\n'


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    pass


@pytest.fixture
def teams(fleet: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    """Two teams with a release each, one release of the fleet's, and a policy that assigns all three."""
    fleet.delegate("team-web", "wanda")
    fleet.delegate("team-ops", "otto")
    fleet.delegate("site-berlin", "bob")
    for name, role in (("tool", "targets"), ("shop", "team-web"), ("agent", "team-ops")):
        add(fleet, tmp_path, name, role)
    rows = "".join(
        f'[[assign]]\nrelease = "{name}"\nversion = "1.0"\n{PLACE.format(name)}' for name in ("tool", "shop", "agent")
    )
    policy = f'schema = "pcm.policy/1"\nid = "first"\nversion = 2\nmode = "enforce"\n{rows}'
    fleet.fleet.stage_policy("first", policy.encode())
    fleet.fleet.stage_file("fleet/activation.toml", ACTIVE)
    fleet.sign()
    fleet.sign("wanda", role="team-web")
    fleet.sign("otto", role="team-ops")
    fleet.publish()
    return fleet


def add(fleet: RepositorySimulator, folder: Path, name: str, role: str) -> str:
    manifest, blob = small_manifest(name)
    return fleet.fleet.stage_release(manifest, put_segment(folder / "segments", manifest, blob), role)


def device_of(fleet: RepositorySimulator) -> TrustClient:
    return fleet.client(wanted=manifests_to_keep(BERLIN, fleet.clock), roles=roles_of_device("berlin"))


def desired(fleet: RepositorySimulator, device: TrustClient) -> Desired:
    attempt(device, fleet.source())
    assert device.view is not None
    documents = read_documents(device.view)
    return documents.desired(documents.weighed(BERLIN, "fresh"), BERLIN, fleet.clock.now, "fresh")


def halt(fleet: RepositorySimulator, role: str, owner: str, release: str = "") -> None:
    key = open_signing_key(fleet.key_path(role, owner), PASSPHRASE)
    halting.order(fleet.fleet, key, release=release, reason="it breaks")
    fleet.publish()


def held(found: Desired) -> dict[str, str]:
    return {one.name: one.why_not.partition(" since")[0] for one in found.releases if one.why_not}


@pytest.mark.parametrize(
    ("role", "owner", "release", "expected"),
    [
        ("targets", "alice", "shop", {"shop": "Halted by alice"}),
        ("root", "alice", "", dict.fromkeys(("agent", "shop", "tool"), "Halted by alice")),
        ("site-berlin", "bob", "tool", {"tool": "Halted by bob"}),
        ("team-web", "wanda", "", {"shop": "Halted by wanda"}),
        ("team-web", "wanda", "agent", {}),
    ],
)
def test_a_release_is_held_by_whoever_may_hold_it(
    teams: RepositorySimulator, role: str, owner: str, release: str, expected: dict[str, str]
) -> None:
    with device_of(teams) as device:
        assert held(desired(teams, device)) == {}
        assert device.view is not None
        assert manifest_place(device.view, None, "shop", "1.0") == (device.view, "releases/web/shop@1.0.manifest")
        halt(teams, role, owner, release)
        found = desired(teams, device)
        assert held(found) == expected
        assert all(one.fetch for one in found.releases)
        permitted = {one.name for one in found.releases if found.authorisation.permits(one.change)}
        assert permitted == {"tool", "shop", "agent"} - expected.keys()


def test_while_halts_are_not_known_nothing_new_is_applied(teams: RepositorySimulator) -> None:
    with device_of(teams) as device:
        desired(teams, device)
        halt(teams, "root", "alice", "shop")
        attempt(device, teams.source(missing={f"metadata/1.{HALT}.json"}))
        assert device.view is not None
        documents = read_documents(device.view)
        found = documents.desired(documents.weighed(BERLIN, "fresh"), BERLIN, teams.clock.now, "fresh")
        assert {one.why_not for one in found.releases} == {UNKNOWN}
        assert held(desired(teams, device)) == {"shop": "Halted by alice"}


def test_where_two_teams_sign_one_release_none_is_chosen(teams: RepositorySimulator, tmp_path: Path) -> None:
    """Our tool refuses it. Signed by hand all the same, no device lets an attacker's team stand in for another."""
    folder = teams.fleet
    manifest, _ = small_manifest("shop")
    facts = {"release": "shop", "version": "1.0", "counter": 1}
    path = "releases/ops/shop@1.0.manifest"
    folder.stage("team-ops", {path: manifest.encoded}, {path: facts})
    teams.sign("otto", role="team-ops")
    teams.publish()
    with device_of(teams) as device:
        found = desired(teams, device)
        assert device.view is not None
        problems = read_documents(device.view).problems
        assert problems == ("release shop 1.0 is signed by the teams ops and web: none is chosen",)
        assert manifest_place(device.view, None, "shop", "1.0") is None
        assert manifest_place(device.view, None, "agent", "1.0") is not None
        assert not [path for path in device.view.kept if "shop" in path]
        assert found.release("shop") is not None, "it is still assigned, and waits"


def test_the_fleets_own_release_comes_before_a_teams(teams: RepositorySimulator, tmp_path: Path) -> None:
    manifest, _ = small_manifest("tool")
    path = "releases/ops/tool@1.0.manifest"
    teams.fleet.stage("team-ops", {path: manifest.encoded}, {path: {"release": "tool", "version": "1.0", "counter": 1}})
    teams.sign("otto", role="team-ops")
    teams.publish()
    with device_of(teams) as device:
        desired(teams, device)
        assert device.view is not None
        assert read_documents(device.view).problems == ()
        assert manifest_place(device.view, None, "tool", "1.0") == (device.view, "releases/main/tool@1.0.manifest")
        halt(teams, "team-ops", "otto")
        assert held(desired(teams, device)) == {"agent": "Halted by otto"}, "a team's key holds its own alone"


def test_who_signs_for_a_sites_own_repository_halts_on_its_devices_only(
    teams: RepositorySimulator, tmp_path: Path
) -> None:
    office = RepositorySimulator(tmp_path / "office")
    with office.client() as of_site, device_of(teams) as device:
        desired(teams, device)
        attempt(of_site, office.source())
        assert device.view is not None
        halt(office, "root", "alice")
        attempt(of_site, office.source())
        assert of_site.view is not None
        own = read_documents(device.view, SiteWord("berlin", of_site.view))
        assert own.halted("berlin")("tool", "1.0").startswith("Halted by alice")
        assert own.halted("berlin")("", "").startswith("Halted by alice")
        assert own.halted("paris")("tool", "1.0") == ""
        halt(office, "targets", "alice")
        attempt(of_site, office.source(missing={f"metadata/2.{HALT}.json"}))
        assert read_documents(device.view, SiteWord("berlin", of_site.view)).halted("berlin")("x", "1") == UNKNOWN
