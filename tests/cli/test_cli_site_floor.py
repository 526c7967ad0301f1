"""What the fleet lets a site that acts alone set, as people type it in the office: taken over, shown, and refused by."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from command_line import WORDS, Command

from pcm_p2p.authority.carry.bundle import MAGIC
from pcm_p2p.authority.keys.fingerprint import grouped
from pcm_p2p.authority.people.founders import Founders
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.authority.site_repository import found_site, list_site_root, signed_root
from pcm_p2p.daemon.site.repository import FolderSource
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
BASE = """
schema = "pcm.policy/1"
id = "base"
version = 3
[[check]]
id = "motd"
resource = "file"
path = "/opt/berlin/motd"
mode = 0o644
"""
Words = tuple[str, Path]


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    """Nothing here tests durability."""


class Center:
    """A fleet that has published what site berlin may set, and the office's folder beside it."""

    def __init__(self, path: Path) -> None:
        self.path, self.tree, self.office = path, path / "tree", path / "office"
        self.folder = FleetFolder.open(path / "center")
        self.root = self.tree / "metadata" / "1.root.json"

    def says(self, allowances: str = ALLOWANCES) -> None:
        self.folder.stage_file("fleet/allowances.toml", allowances.encode())
        self.folder.stage_policy("base", BASE.encode())
        self.folder.sign(self.folder.path / "keys" / "targets-admin.key", WORDS)
        publish(self.folder, self.tree, OnlineKeys.open(self.folder, WORDS))

    def device(self) -> Path:
        """The state folder of a device of the office."""
        state = self.path / "state"
        (state / "identity").mkdir(parents=True, exist_ok=True)
        (state / "identity" / "root.json").write_bytes(self.folder.root_bytes(1))
        client = TrustClient(
            state / "trust", self.folder.root_bytes(1), self.folder.fleet_id, wall_clock=lambda: datetime.now(UTC)
        )
        with client:
            assert trio.run(client.attempt, FolderSource(self.tree)).kind == "good"
        return state


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("center")
    center = FleetFolder.init(folder / "center", name="acme", passphrase=WORDS, preset="lab")
    found_site(folder / "office", center.fleet_id, "berlin", Founders(owners=("olga",)), WORDS, preset="lab")
    Center(folder).says()
    return folder


@pytest.fixture
def center(made: Path, tmp_path: Path) -> Center:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Center(tmp_path)


def written(folder: Path, name: str, mode: str = "observe", path: str = "/opt/berlin/x", version: int = 1) -> Path:
    file = folder / f"{name}.toml"
    file.write_text(
        f'schema = "pcm.policy/1"\nid = "{name}"\nversion = {version}\nmode = "{mode}"\n'
        f'[[check]]\nid = "c"\nresource = "file"\npath = "{path}"\nmode = 0o600\n'
    )
    return file


def taken(cli: Command, center: Center) -> None:
    ended = cli("site", "floor", "--fleet", center.office, "--from", center.tree, "--root", center.root)
    assert ended.status == 0, ended.err


def test_from_a_tree_it_says_what_the_site_may_set_and_which_root_was_pinned(cli: Command, center: Center) -> None:
    ended = cli("site", "floor", "--fleet", center.office, "--from", center.tree, "--root", center.root)
    assert ended.status == 0, ended.err
    lines = dict(line.split("  ", 1) for line in ended.out.splitlines() if not line.startswith(" "))
    assert lines["site"].strip() == f"berlin, of fleet {center.folder.fleet_id}"
    assert lines["says"].strip().startswith("targets 1, as of ")
    assert "; held since " in lines["says"]
    assert "modes observe, enforce; releases berlin-*" in ended.out
    assert "makes file, below /opt/berlin/" in ended.out
    assert "checks file; remedies nothing" in ended.out
    assert lines["floor"].strip() == "1 policy of the fleet: base 3"
    digest = hashlib.sha256(center.folder.root().signed_bytes).hexdigest()
    assert lines["root"].strip() == f"1, from root 1 on: {grouped(digest[:32])}", "as on the key sheet"
    assert "Compare the digest of that root with the fleet's key sheet" in ended.err
    assert "the fleet does not list a root of this folder for site berlin yet" in ended.err
    again = cli("site", "floor", "--fleet", center.office)
    assert (again.status, again.out) == (0, ended.out), "without a source it shows what is held"
    assert "Compare" not in again.err


def test_from_a_device_it_needs_no_root_and_no_wan(cli: Command, center: Center) -> None:
    list_site_root(center.folder, "berlin", signed_root(FleetFolder.open(center.office)))
    center.says()
    state = center.device()
    shutil.rmtree(center.tree)
    ended = cli("site", "floor", "--fleet", center.office, "--state", state, "--json")
    assert ended.status == 0, ended.err
    facts = ended.facts
    assert (facts["schema"], facts["site"], facts["targets"], facts["news"]) == ("pcm.site-floor/1", "berlin", 2, True)
    assert facts["may_set"]["paths"] == ["/opt/berlin/"]
    assert facts["policies"] == [{"id": "base", "version": 3, "mode": "observe"}]
    assert (facts["set_aside"], facts["remarks"]) == ([], [])
    assert cli("site", "floor", "--fleet", center.office, "--state", state, "--json").facts["news"] is False


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), 2, "what the fleet lets site berlin set is not held here"),
        (("--from", "tree"), 2, "--root is missing"),
        (("--from", "nowhere", "--root", "root"), 2, "is no folder and no http address"),
        (("--from", "tree", "--state", "state"), 2, "one of --from and --state is needed"),
        (("--root", "root"), 2, "one of --from and --state is needed"),
        (("--from", "tree", "--root", "nowhere"), 2, "--root: cannot be read"),
        (("--from", "tree", "--root", "office"), 2, "--root: cannot be read"),
        (("--state", "nowhere"), 2, "trusts nothing yet, or is no state folder"),
        (("--from", "office/repository", "--root", "root"), 7, "did not deliver"),
    ],
)
def test_what_is_missing_is_named(cli: Command, center: Center, words: tuple[str, ...], status: int, said: str) -> None:
    places = {"tree": center.tree, "root": center.root}
    given = [places.get(word, center.path / word) if not word.startswith("--") else word for word in words]
    ended = cli("site", "floor", "--fleet", center.office, *given)
    assert (ended.status, said in ended.err) == (status, True), ended.err


def test_in_a_fleets_own_folder_there_is_nothing_to_take_over(cli: Command, center: Center) -> None:
    ended = cli("site", "floor", "--fleet", center.folder.path, "--from", center.tree, "--root", center.root)
    assert ended.status == 2
    assert "is the folder of a fleet, not of a site that acts alone" in ended.err


def test_no_policy_is_put_before_the_floor_is_there_and_none_beyond_it_after(cli: Command, center: Center) -> None:
    good = written(center.path, "good")
    ended = cli("policy", "put", good, "--fleet", center.office)
    assert ended.status == 2
    assert "what the fleet lets site berlin set is not held here" in ended.err
    assert "'pcm-p2p site floor --state STATE' of a device of the office, or '--from TREE --root ROOT'" in ended.err
    taken(cli, center)
    assert cli("policy", "put", good, "--fleet", center.office).status == 0
    for bad, why in (
        (written(center.path, "bold", mode="notify"), "its mode is notify, and the site may observe, enforce only"),
        (written(center.path, "base"), "a policy of higher rank has this id"),
    ):
        for command in (("policy", "put", bad), ("policy", "check", bad)):
            ended = cli(*command, "--fleet", center.office)
            assert ended.status == 2, command
            assert f"is beyond what site berlin may set: {why}" in ended.err
            assert "pcm-p2p site floor" in ended.err
    assert cli("policy", "check", good, "--fleet", center.office).status == 0
    assert cli("policy", "check", bad, "--fleet", center.office, "--site", "paris").status == 2


def test_from_staged_to_published_and_refused_once_the_fleet_says_less(
    cli: Command, center: Center, words: Words
) -> None:
    taken(cli, center)
    key = ("--key", center.office / "keys" / "targets-olga.key", "--yes", *words)
    bold = written(center.path, "bold", mode="enforce")
    assert cli("policy", "put", bold, "--fleet", center.office).status == 0
    center.says(ALLOWANCES.replace('"observe", "enforce"', '"observe"'))
    ended = cli("site", "floor", "--fleet", center.office, "--from", center.tree)
    assert ended.status == 0
    assert "! policy bold of site berlin: its mode is enforce" in ended.err
    assert "devices set it aside (proposed)" in ended.err
    signed = cli("sign", "--fleet", center.office, *key)
    assert (signed.status, "refused to go on: policy bold of site berlin" in signed.err) == (5, True), signed.err
    assert cli("fleet", "check", "--fleet", center.office).status == 1
    assert cli("policy", "put", written(center.path, "bold", version=2), "--fleet", center.office).status == 0
    assert cli("sign", "--fleet", center.office, *key).status == 0
    ended = cli("publish", "--fleet", center.office, "--to", center.path / "own", *words)
    assert ended.status == 0, ended.err


def test_an_older_copy_of_the_tree_is_refused_and_what_is_held_stays(cli: Command, center: Center) -> None:
    shutil.copytree(center.tree, center.path / "yesterday")
    center.says(ALLOWANCES.replace('"observe", "enforce"', '"observe"'))
    taken(cli, center)
    ended = cli("site", "floor", "--fleet", center.office, "--from", center.path / "yesterday")
    assert ended.status == 5
    assert "is older than what is held here" in ended.err
    assert cli("site", "floor", "--fleet", center.office, "--json").facts["targets"] == 2


def test_a_signer_elsewhere_sees_what_it_is_judged_by(cli: Command, center: Center, words: Words) -> None:
    taken(cli, center)
    assert cli("policy", "put", written(center.path, "good"), "--fleet", center.office).status == 0
    file = center.path / "monday.proposal"
    assert cli("proposal", "export", file, "--fleet", center.office).status == 0
    key = ("--key", center.office / "keys" / "targets-olga.key", "--out", center.path / "x.sig", "--yes", *words)
    ended = cli("sign", "--proposal", file, *key, "--json")
    assert ended.status == 0, ended.err
    remarks = ended.facts["remarks"]
    fleet = center.folder.fleet_id[:8]
    assert any(
        one.startswith(f"its policies are judged by fleet {fleet}, which is new to this machine") for one in remarks
    )
    assert any(one.startswith(f"its policies are judged by targets 1 of fleet {fleet}, as of ") for one in remarks)
    assert file.read_bytes().startswith(MAGIC)


def test_a_site_is_founded_with_what_the_fleet_lets_it_set(cli: Command, center: Center, words: Words) -> None:
    common = (
        "site",
        "found",
        "berlin",
        "--fleet-id",
        center.folder.fleet_id,
        "--owner",
        "olga",
        "--kdf",
        "interactive",
        *words,
    )
    ended = cli(*common, "--folder", center.path / "new", "--from", center.tree, "--root", center.root)
    assert ended.status == 0, ended.err
    assert "Held of the fleet: targets 1" in ended.err
    assert cli("policy", "put", written(center.path, "good"), "--fleet", center.path / "new").status == 0
    without = cli(*common, "--folder", center.path / "bare")
    assert f"'pcm-p2p site floor --fleet {center.path / 'bare'} --state STATE'" in without.err
    failed = cli(*common, "--folder", center.path / "none", "--from", center.tree)
    assert failed.status == 2
    assert not (center.path / "none").exists(), "nothing was made"
    other = cli(*common[:4], "0" * 32, *common[5:], "--folder", center.path / "none", "--state", center.device())
    assert (other.status, "is no root of fleet 00000000" in other.err) == (2, True)


def test_what_is_out_of_date_is_said_where_it_is_used(
    cli: Command, center: Center, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken(cli, center)
    later = datetime(2999, 1, 1, tzinfo=UTC)
    monkeypatch.setattr("pcm_p2p.authority.staging.system_clock", lambda: later)
    ended = cli("policy", "put", written(center.path, "good"), "--fleet", center.office)
    assert ended.status == 0, "the WAN may be down for weeks"
    assert "! what is held of the fleet expired" in ended.err


def test_a_site_may_set_nothing_where_the_fleet_names_it_nowhere(cli: Command, center: Center) -> None:
    center.says(ALLOWANCES.replace("berlin", "paris"))
    ended = cli("site", "floor", "--fleet", center.office, "--from", center.tree, "--root", center.root)
    assert "nothing: its allowances name neither site berlin nor a default" in ended.out
    ended = cli("policy", "put", written(center.path, "good"), "--fleet", center.office)
    assert "name neither site berlin nor a default, so it may set nothing" in ended.err


def test_a_policy_is_taken_away_with_or_without_a_floor(cli: Command, center: Center, words: Words) -> None:
    key = ("--key", center.office / "keys" / "targets-olga.key", "--yes", *words)
    taken(cli, center)
    for name in ("one", "two"):
        assert cli("policy", "put", written(center.path, name), "--fleet", center.office).status == 0
    assert cli("sign", "--fleet", center.office, *key).status == 0
    assert cli("publish", "--fleet", center.office, "--to", center.path / "own", *words).status == 0
    (center.office / "fleet.floor").unlink()
    ended = cli("policy", "remove", "one", "--fleet", center.office)
    assert ended.status == 0, ended.err
    assert ended.out == "policies/one.toml is published no longer, once this is signed and published\n"
    assert ended.err == "Next: 'pcm-p2p sign' and 'pcm-p2p publish'.\n"
    assert cli("sign", "--fleet", center.office, *key).status == 0
    assert cli("publish", "--fleet", center.office, "--to", center.path / "own", *words).status == 0
    assert [path.name for path in (center.path / "own" / "targets" / "policies").iterdir()], (
        "old files may be asked for"
    )
    targets = FleetFolder.open(center.office).targets()
    assert targets is not None
    assert "policies/one.toml" not in targets.signed.targets
    again = cli("policy", "remove", "one", "--fleet", center.office)
    assert (again.status, "policies/one.toml: is not staged or published" in again.err) == (2, True)
    assert cli("policy", "remove", "../x", "--fleet", center.office).status == 2
    removed = cli("policy", "remove", "base", "--fleet", center.folder.path, "--json").facts
    assert (removed["target"], removed["proposed"]) == ("policies/base.toml", ["targets 2"])


def test_judging_by_a_fleets_folder(cli: Command, center: Center) -> None:
    judged = ("--site", "berlin", "--fleet", center.folder.path)
    assert cli("policy", "check", written(center.path, "good"), *judged).status == 0
    refused = cli("policy", "check", written(center.path, "bold", mode="notify"), *judged)
    assert "its mode is notify, and the site may observe, enforce only" in refused.err
    shown = cli("site", "show", "--fleet", center.office)
    assert "This is the folder of site berlin: 'pcm-p2p site floor' shows what the fleet lets it set." in shown.err
    assert json.loads(cli("site", "show", "--fleet", center.office, "--json").out) == []
