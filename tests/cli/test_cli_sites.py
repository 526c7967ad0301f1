"""What a site may set, and sites that act alone, as people type it: from founding to publishing, and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import floors
import pytest
import trio
from command_line import WORDS, Command

from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.people.founders import Founders
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.authority.site_repository import found_site
from pcm_p2p.daemon.site.repository import FolderSource
from pcm_p2p.errors import TrustError
from pcm_p2p.trust.client import TrustClient

ALLOWANCES = """
schema = "pcm.allowances/1"
[[site]]
name = "berlin"
modes = ["observe", "enforce"]
releases = ["berlin-*"]
resources = ["file"]
paths = ["/opt/berlin/"]
checks = ["file"]
"""
FLEET_POLICY = """
schema = "pcm.policy/1"
id = "base"
version = 1
[[check]]
id = "motd"
resource = "file"
path = "/opt/berlin/motd"
mode = 0o644
"""


def site_policy(path: str = "/opt/berlin/x", release: str = "berlin-tool", mode: str = "enforce") -> str:
    return (
        f'schema = "pcm.policy/1"\nid = "tools"\nversion = 1\nmode = "{mode}"\n[[assign]]\nrelease = "{release}"\n'
        f'version = "1"\n[[assign.resource]]\nkind = "file"\npath = "{path}"\ncontent = "x"\n'
    )


@pytest.fixture
def words(tmp_path: Path) -> Path:
    file = tmp_path / "words"
    file.write_text(WORDS)
    file.chmod(0o600)
    return file


@pytest.fixture
def fleet(tmp_path: Path) -> FleetFolder:
    return FleetFolder.init(tmp_path / "fleet", name="acme", passphrase=WORDS, preset="lab")


def founded(folder: Path, fleet_id: str, site: str = "berlin") -> Path:
    found_site(folder / "office", fleet_id, site, Founders(owners=("olga",)), WORDS, preset="lab")
    return folder / "office"


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_allowances_are_staged_and_what_they_name_is_said(cli: Command, fleet: FleetFolder, tmp_path: Path) -> None:
    ended = cli("policy", "allow", written(tmp_path, "a.toml", ALLOWANCES), "--fleet", fleet.path)
    assert ended.status == 0, ended.err
    assert "fleet/allowances.toml" in ended.out
    assert "names berlin; others may set nothing" in ended.out
    assert fleet.read_target("fleet/allowances.toml").decode() == ALLOWANCES


def test_wrong_allowances_are_refused_with_file_line_and_key(cli: Command, fleet: FleetFolder, tmp_path: Path) -> None:
    text = ALLOWANCES.replace('modes = ["observe"', 'modes = ["audit"')
    ended = cli("policy", "allow", written(tmp_path, "a.toml", text), "--fleet", fleet.path)
    assert ended.status == 2
    assert "a.toml:5" in ended.err


@pytest.mark.parametrize(
    ("policy", "status", "word"),
    [
        (site_policy(), 0, ""),
        (site_policy("/etc/passwd"), 2, "writes to /etc/passwd, and the site may write to /opt/berlin/ only"),
        (site_policy(release="vlc"), 2, "it assigns release vlc"),
        (site_policy(mode="notify"), 2, "its mode is notify"),
        (site_policy("/opt/berlin/motd"), 2, "which check motd of policy base holds"),
    ],
)
def test_a_policy_is_checked_as_a_sites_before_anybody_signs_it(
    cli: Command, tmp_path: Path, policy: str, status: int, word: str
) -> None:
    ended = cli(
        *("policy", "check", written(tmp_path, "p.toml", policy), "--site", "berlin"),
        *("--allowances", written(tmp_path, "a.toml", ALLOWANCES)),
        *("--fleet-policy", written(tmp_path, "f.toml", FLEET_POLICY)),
    )
    assert ended.status == status, ended.err
    assert word in ended.err
    assert not word or "policy allow" in ended.err, "the remedy is named"


def test_without_allowances_a_site_may_set_nothing(cli: Command, tmp_path: Path) -> None:
    ended = cli("policy", "check", written(tmp_path, "p.toml", site_policy()), "--site", "berlin")
    assert ended.status == 2
    assert "may set nothing" in ended.err


def test_a_site_acts_alone_from_founding_to_publishing_with_the_ordinary_commands(
    cli: Command, fleet: FleetFolder, tmp_path: Path, words: Path
) -> None:
    office, tree = tmp_path / "office", tmp_path / "tree"
    ended = cli(
        *("site", "found", "berlin", "--folder", office, "--fleet-id", fleet.fleet_id, "--owner", "olga"),
        *("--kdf", "interactive", "--passphrase-file", words, "--json"),
    )
    assert ended.status == 0, ended.err
    root = Path(json.loads(ended.out)["root"])
    carried = written(tmp_path, "root.json", root.read_text())
    ended = cli("site", "autonomous", "berlin", "--root", carried, "--fleet", fleet.path)
    assert ended.status == 0, ended.err
    assert "sites/berlin/root.json" in ended.out
    assert "allows site berlin nothing yet" in ended.err
    assert fleet.read_target("sites/berlin/root.json") == root.read_bytes()

    floors.hold(FleetFolder.open(office))
    policy = 'schema = "pcm.policy/1"\nid = "tools"\nversion = 1\n'
    assert cli("policy", "put", written(tmp_path, "p.toml", policy), "--fleet", office).status == 0
    key = office / "keys" / "targets-olga.key"
    ended = cli("sign", "--key", key, "--fleet", office, "--passphrase-file", words, "--yes")
    assert ended.status == 0, ended.err
    ended = cli("publish", "--to", tree, "--fleet", office, "--passphrase-file", words)
    assert ended.status == 0, ended.err
    assert (tree / "metadata" / "timestamp.json").exists()

    ended = cli("site", "autonomous", "berlin", "--withdraw", "--fleet", fleet.path)
    assert ended.status == 0, ended.err


def test_what_is_not_for_a_site_to_publish_is_refused_in_its_folder(
    cli: Command, fleet: FleetFolder, tmp_path: Path
) -> None:
    office = founded(tmp_path, fleet.fleet_id)
    ended = cli("fleet", "activate", "--all", "--fleet", office)
    assert ended.status == 2
    ended = cli("policy", "allow", written(tmp_path, "a.toml", ALLOWANCES), "--fleet", office)
    assert ended.status == 2
    assert "not for site berlin to publish" in ended.err


@pytest.mark.parametrize("other", ["another site", "another fleet", "a fleet's own root", "not a root"])
def test_a_root_that_is_not_of_this_site_of_this_fleet_is_refused(
    cli: Command, fleet: FleetFolder, tmp_path: Path, other: str
) -> None:
    fleet_id = "0" * 32 if other == "another fleet" else fleet.fleet_id
    site = "paris" if other == "another site" else "berlin"
    office = founded(tmp_path, fleet_id, site)
    root = office / "repository" / "metadata" / "1.root.json"
    if other == "a fleet's own root":
        root = fleet.metadata / "1.root.json"
    elif other == "not a root":
        root = written(tmp_path, "x.json", "{}")
    ended = cli("site", "autonomous", "berlin", "--root", root, "--fleet", fleet.path)
    assert ended.status == 2
    assert "root of site berlin" in ended.err


def test_a_first_root_whose_holder_is_elsewhere_waits_for_the_signature(
    cli: Command, fleet: FleetFolder, tmp_path: Path, words: Path
) -> None:
    publics = []
    for role in ("root", "targets"):
        key = tmp_path / f"{role}.key"
        options = ("--kdf", "interactive", "--passphrase-file", words)
        assert cli("key", "new", key, "--role", role, "--owner", "olga", *options).status == 0
        publics.append(tmp_path / f"{role}.pub")
        assert cli("key", "public", key, "--out", publics[-1], "--passphrase-file", words).status == 0
    office = tmp_path / "office"
    ended = cli(
        *("site", "found", "berlin", "--fleet-id", fleet.fleet_id, "--folder", office, "--root-key", publics[0]),
        *("--release-key", publics[1], "--kdf", "interactive", "--passphrase-file", words),
    )
    assert ended.status == 0, ended.err
    assert "olga must sign" in ended.err
    ended = cli("site", "autonomous", "berlin", "--folder", office, "--fleet", fleet.path)
    assert ended.status == 5
    assert "olga" in ended.err
    root_key = tmp_path / "root.key"
    assert cli("sign", "--key", root_key, "--fleet", office, "--passphrase-file", words, "--yes").status == 0
    assert cli("site", "autonomous", "berlin", "--folder", office, "--fleet", fleet.path).status == 0


def test_a_policy_is_judged_by_what_a_device_of_the_site_trusts(
    cli: Command, fleet: FleetFolder, tmp_path: Path
) -> None:
    fleet.stage_file("fleet/allowances.toml", ALLOWANCES.encode())
    fleet.stage_policy("base", FLEET_POLICY.encode())
    fleet.sign(fleet.path / "keys" / "targets-admin.key", WORDS)
    publish(fleet, tmp_path / "tree", OnlineKeys.open(fleet, WORDS))
    state = tmp_path / "state"
    nothing = cli("policy", "check", written(tmp_path, "p.toml", site_policy()), "--site", "berlin", "--state", state)
    assert nothing.status == 2
    assert "trusts nothing yet" in nothing.err
    client = TrustClient(state / "trust", fleet.root_bytes(), fleet.fleet_id, wall_clock=lambda: datetime.now(UTC))
    with client:  # as its daemon would have it open
        attempt = trio.run(client.attempt, FolderSource(tmp_path / "tree"))
        assert attempt.kind == "good"
        for path, status in (("/opt/berlin/x", 0), ("/opt/berlin/motd", 2), ("/etc/x", 2)):
            file = written(tmp_path, "p.toml", site_policy(path))
            assert cli("policy", "check", file, "--site", "berlin", "--state", state).status == status


def test_delegating_with_autonomous_lists_the_sites_own_repository(
    cli: Command, fleet: FleetFolder, tmp_path: Path
) -> None:
    office = founded(tmp_path, fleet.fleet_id)
    arguments = ("site", "delegate", "berlin", "--fleet", fleet.path)
    ended = cli(*arguments, "--autonomous", "--folder", office)
    assert ended.status == 0, ended.err
    assert "sites/berlin/root.json" in ended.out
    shown = cli("site", "show", "--fleet", fleet.path)
    assert "site berlin acts alone: root version 1 of olga; proposed; sha256" in shown.out
    (facts,) = cli("site", "show", "berlin", "--fleet", fleet.path, "--json").facts
    assert (facts["own_repository"], facts["people"]) == ("proposed", ["olga"])
    assert cli(*arguments).status == 2
    assert "--key is missing" in cli(*arguments).err
    assert cli(*arguments, "--folder", office).status == 2
    assert cli(*arguments, "--autonomous").status == 2


def test_a_sites_folder_may_assign_what_the_fleet_releases_and_not_what_it_lacks_itself(
    cli: Command, fleet: FleetFolder, tmp_path: Path
) -> None:
    office = founded(tmp_path, fleet.fleet_id)
    floors.hold(FleetFolder.open(office))
    ended = cli("policy", "put", written(tmp_path, "p.toml", site_policy(release="vlc")), "--fleet", office)
    assert ended.status == 0, ended.err
    assert "vlc 1 is looked for among the fleet's releases" in ended.err
    ended = cli("policy", "put", written(tmp_path, "p.toml", site_policy().replace("tools", "b")), "--fleet", office)
    assert ended.status == 2
    assert "berlin-tool 1, which is not a release" in ended.err


def test_a_delegated_sites_policy_beyond_its_allowances_is_neither_staged_nor_signed(
    cli: Command, fleet: FleetFolder, tmp_path: Path
) -> None:
    key = keyfile.create(tmp_path / "berlin.key", WORDS, "site-berlin", "bea", preset="lab")
    fleet.delegate("site-berlin", [key.key], 1)
    fleet.stage_file("fleet/allowances.toml", ALLOWANCES.encode())
    policy = written(tmp_path, "p.toml", site_policy("/etc/x"))
    ended = cli("policy", "put", policy, "--site", "berlin", "--fleet", fleet.path)
    assert ended.status == 2
    fleet.stage_policy("tools", policy.read_bytes(), "site-berlin")  # as another tool would have done
    with pytest.raises(TrustError, match="writes to /etc/x"):
        fleet.sign(tmp_path / "berlin.key", WORDS)


def test_the_fleets_signers_are_told_which_policies_of_sites_a_change_sets_aside(
    cli: Command, fleet: FleetFolder, tmp_path: Path
) -> None:
    key = keyfile.create(tmp_path / "berlin.key", WORDS, "site-berlin", "bea", preset="lab")
    fleet.delegate("site-berlin", [key.key], 1)
    fleet.stage_file("fleet/allowances.toml", ALLOWANCES.encode())
    fleet.stage_policy("tools", site_policy().encode(), "site-berlin")
    narrower = written(tmp_path, "a.toml", ALLOWANCES.replace("/opt/berlin/", "/opt/other/"))
    ended = cli("policy", "allow", narrower, "--fleet", fleet.path)
    assert ended.status == 0
    assert "policy tools of site berlin would be set aside: release berlin-tool: writes to /opt/berlin/x" in ended.err


def test_a_folder_made_in_place_of_another_goes_on_above_its_counters(fleet: FleetFolder, tmp_path: Path) -> None:
    """A device that applied what the one before released refuses anything with a lower counter."""
    moments = (datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in count())
    first, second = (
        found_site(
            tmp_path / str(number),
            fleet.fleet_id,
            "berlin",
            Founders(owners=("olga",)),
            WORDS,
            preset="lab",
            wall_clock=moments.__next__,
        )
        for number in range(2)
    )
    assert second.next_counter("berlin-tool") > first.next_counter("berlin-tool") + 3
    assert fleet.next_counter("app") == 1
