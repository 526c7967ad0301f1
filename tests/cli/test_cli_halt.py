"""The commands for sites, teams and halts: what they propose, what one person can do, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import WORDS, Command, Ended

from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.keys.signing_key import open_signing_key
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.trust.index import ALLOWANCES

Words = tuple[str, Path]

POLICY = 'schema = "pcm.policy/1"\nid = "berlin-base"\nversion = 1\nmode = "notify"\n'


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    pass


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Key files of a site's and a team's admin."""
    folder, made = tmp_path_factory.mktemp("people"), {}
    for role, owner in (("site-berlin", "bea"), ("team-web", "wanda")):
        made[role] = folder / f"{role}.key"
        keyfile.create(made[role], WORDS, role, owner, preset="lab")
    return made


@pytest.fixture(scope="module")
def offices_once(founded: Path, people: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fleet with both delegations and allowances, signed and published to ``origin`` beside it."""
    place = tmp_path_factory.mktemp("offices")
    shutil.copytree(founded / "fleet", place / "fleet")
    folder = FleetFolder.open(place / "fleet")
    for role, path in people.items():
        folder.delegate(role, [keyfile.read_public(path).key], 1)
    folder.stage_file(ALLOWANCES, b'schema = "pcm.allowances/1"\n[default]\nmodes = ["observe", "notify"]\n')
    for owner in ("ann", "bob"):
        folder.sign(folder.path / "keys" / f"targets-{owner}.key", WORDS)
    publish(folder, place / "origin", OnlineKeys.open(folder, WORDS))
    return place


@pytest.fixture
def offices(offices_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(offices_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "fleet"


def signed(cli: Command, fleet: Path, words: Words, *owners: str) -> None:
    for owner in owners or ("ann", "bob"):
        assert (
            cli("sign", "--fleet", fleet, "--key", fleet / "keys" / f"targets-{owner}.key", "--yes", *words).status == 0
        )


def halts(cli: Command, fleet: Path) -> list[dict[str, str]]:
    listed = cli("halt", "list", "--fleet", fleet, "--json")
    assert listed.status == 0
    found: list[dict[str, str]] = json.loads(listed.out)
    return found


# Delegating


def test_delegating_shows_who_and_what_remains(cli: Command, fleet: Path, people: dict[str, Path]) -> None:
    said = cli("site", "delegate", "berlin", "--key", people["site-berlin"], "--fleet", fleet)
    assert said.status == 0
    key = open_signing_key(people["site-berlin"], WORDS)
    assert said.out.splitlines()[0] == "proposed: 1 of these sign for site berlin"
    assert "bea" in said.out
    assert key.keyid[:4] in said.out
    assert "allows site berlin nothing yet: state what it may set with 'pcm-p2p policy allow'" in said.err
    shown = cli("site", "show", "--fleet", fleet)
    assert shown.out.startswith("site berlin: 1 of 1 must sign; proposed; nothing published")
    assert cli("team", "show", "--fleet", fleet).err.startswith("Nobody signs for a team.")


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        (("site", "delegate", "a/b", "--key", "KEY"), 2, "cannot be delegated to"),
        (("team", "delegate", "main", "--key", "KEY"), 2, "no team is called 'main'"),
        (
            ("site", "delegate", "berlin", "--key", "KEY", "--threshold", "2"),
            2,
            "a threshold of 2 needs that many keys",
        ),
        (("site", "delegate", "berlin", "--key", "KEY", "--key", "KEY"), 2, "stands twice"),
        (("site", "delegate", "berlin", "--key", "ONLINE"), 2, "is the snapshot key of a machine, not of a person"),
        (("site", "delegate", "berlin", "--key", "NOTHING"), 2, "there is no such file"),
        (("site", "revoke", "berlin"), 2, "site berlin has no delegation"),
        (("site", "show", "berlin"), 2, "site berlin has no delegation"),
    ],
)
def test_what_cannot_be_delegated(
    cli: Command, fleet: Path, people: dict[str, Path], line: tuple[str, ...], status: int, said: str
) -> None:
    paths = {"KEY": people["site-berlin"], "ONLINE": fleet / "keys" / "snapshot.key", "NOTHING": fleet / "nothing"}
    before = sorted((fleet / "proposal").iterdir())
    ended = cli(*(paths.get(word, word) for word in line), "--fleet", fleet)
    assert (ended.status, ended.out) == (status, "")
    assert said in ended.err
    assert sorted((fleet / "proposal").iterdir()) == before


def test_a_site_signs_its_own_policy_and_nobody_else_has_to(
    cli: Command, offices: Path, people: dict[str, Path], words: Words, tmp_path: Path
) -> None:
    file = tmp_path / "base.toml"
    file.write_text(POLICY)
    assert cli("policy", "put", file, "--site", "berlin", "--fleet", offices).out == (
        "staged policies/berlin/berlin-base.toml\n"
    )
    refused = cli("sign", "--fleet", offices, "--key", offices / "keys" / "targets-ann.key", "--yes", *words)
    assert (refused.status, "the targets key of ann has no part" in refused.err) == (2, True)
    assert cli("sign", "--fleet", offices, "--key", people["site-berlin"], "--yes", *words).status == 0
    published = cli("publish", "--fleet", offices, "--to", tmp_path / "origin", *words, "--json")
    assert (published.facts["targets"], published.facts["delegated"]) == (1, {"site-berlin": 1})
    shown = cli("site", "show", "berlin", "--fleet", offices, "--json").facts[0]
    assert (shown["version"], shown["published"]) == (1, ["policies/berlin/berlin-base.toml"])
    file.write_text(POLICY.replace("notify", "enforce").replace("version = 1", "version = 2"))
    beyond = cli("policy", "put", file, "--site", "berlin", "--fleet", offices)
    assert (beyond.status, "the site may observe, notify only" in beyond.err) == (2, True)
    assert cli("policy", "put", file, "--site", "paris", "--fleet", offices).status == 2


def test_a_teams_release_is_its_own(
    cli: Command, offices: Path, people: dict[str, Path], words: Words, tmp_path: Path
) -> None:
    (tmp_path / "shop.bin").write_bytes(bytes(10_000))
    line = ("release", "add", "shop", "1", tmp_path / "shop.bin", "--fleet", offices, "--json")
    assert cli(*line, "--team", "web").facts["target"] == "releases/web/shop@1.manifest"
    taken = cli("release", "add", "shop", "2", tmp_path / "shop.bin", "--fleet", offices)
    assert (taken.status, "shop is released by team web" in taken.err) == (2, True)
    assert cli("release", "add", "x", "1", tmp_path / "shop.bin", "--fleet", offices, "--team", "ops").status == 2
    assert cli("sign", "--fleet", offices, "--key", people["team-web"], "--yes", *words).status == 0
    assert cli("publish", "--fleet", offices, "--to", tmp_path / "origin", *words).status == 0


# Halting


def test_one_person_halts_and_publishes_in_one_go(cli: Command, offices: Path, words: Words, tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(POLICY)
    cli("policy", "put", tmp_path / "base.toml", "--fleet", offices)
    key = offices / "keys" / "root-eve.key"
    line = ("halt", "--all", "--reason", "the network is down", "--fleet", offices, "--key", key, *words)
    done = cli(*line, "--to", tmp_path / "origin")
    assert done.status == 0
    assert done.out.split() == ["halts", "everything", "for", "the", "fleet", "id", halts(cli, offices)[0]["id"]]
    assert done.err.startswith("Published.")
    assert (tmp_path / "origin" / "metadata" / "1.halt.json").exists()
    assert halts(cli, offices)[0] | {"id": "", "since": ""} == {
        "id": "", "halts": "everything", "for": "the fleet", "by": "eve", "since": "",
        "reason": "the network is down", "state": "in force",
    }  # fmt: skip
    assert "targets version 1 → 2" in cli("proposal", "show", "--fleet", offices).err, "the rest goes on waiting"


def test_a_halt_without_the_publishers_keys_waits_for_them(
    cli: Command, offices: Path, people: dict[str, Path], words: Words, tmp_path: Path
) -> None:
    line = ("halt", "--all", "--reason", "x", "--fleet", offices, "--key", people["site-berlin"], *words, "--json")
    assert (said := cli(*line).facts)["for"] == "site berlin"
    assert said["published"] is None
    assert halts(cli, offices)[0]["state"] == "staged"
    assert cli("publish", "--only", "halt", "--fleet", offices, "--to", tmp_path / "origin", *words).status == 0
    again = cli("publish", "--only", "halt", "--fleet", offices, "--to", tmp_path / "origin", *words)
    assert "nothing was proposed for halt" in again.err
    assert halts(cli, offices)[0]["state"] == "in force"


def test_lifting_takes_the_threshold(cli: Command, offices: Path, words: Words, tmp_path: Path) -> None:
    key = offices / "keys" / "root-eve.key"
    order = ("halt", "--all", "--reason", "x", "--fleet", offices, "--key", key, *words, "--to", tmp_path / "origin")
    assert cli(*order).status == 0
    lifted = cli("halt", "lift", halts(cli, offices)[0]["id"][:8], "--fleet", offices)
    assert lifted.out == "proposed: everything goes on; halted by eve: x\n"
    assert "targets: 2 more of ann, bob, eve must sign" in lifted.err
    told = cli("halt", "lift", halts(cli, offices)[0]["id"][:8], "--fleet", offices, "--json").facts
    assert [(one["halts"], one["by"]) for one in told["lifting"]] == [("everything", "eve")]
    assert told["signatures_missing"][0]["could"] == ["ann", "bob", "eve"]
    signed(cli, offices, words, "ann")
    refused = cli("publish", "--fleet", offices, "--to", tmp_path / "origin", *words)
    assert (refused.status, "1 more of bob, eve must sign" in refused.err) == (5, True)
    assert halts(cli, offices)[0]["state"] == "lifting"
    signed(cli, offices, words, "bob")
    assert cli("publish", "--fleet", offices, "--to", tmp_path / "origin", *words).status == 0
    assert halts(cli, offices)[0]["state"] == "lifted"
    assert "lifted" in cli("halt", "list", "--fleet", offices).out


def test_who_signs_a_lifting_reads_what_goes_on_and_who_stopped_it(
    cli: Command, offices: Path, people: dict[str, Path], words: Words, tmp_path: Path
) -> None:
    to = ("--fleet", offices, *words, "--to", tmp_path / "origin")
    for reason, key in (("x", offices / "keys" / "root-eve.key"), ("burns", people["site-berlin"])):
        assert cli("halt", "--all", "--reason", reason, "--key", key, *to).status == 0
    two = {one["reason"]: one for one in halts(cli, offices)}
    assert cli("halt", "lift", two["x"]["id"], two["burns"]["id"], "--fleet", offices).status == 0
    said = [
        f"    + lifts halt {one['id'][:8]} of everything{where}, ordered by {by}, "
        f"{one['since'][:16].replace('T', ' ')} UTC: {reason}"
        for reason, where, by in (("x", "", "eve"), ("burns", " for site berlin", "bea"))
        for one in [two[reason]]
    ]
    lines = cli("sign", "--fleet", offices).err.splitlines()
    assert sorted(line for line in lines if "halt " in line) == sorted(said)
    assert any(line.strip() == f'+    "{two["x"]["id"]}",' for line in lines), "beside the very lines that are signed"
    facts = json.loads(cli("sign", "--fleet", offices, "--json").out)
    assert {line.strip() for line in said} <= set(
        facts[0]["difference"][-1]["details"] + facts[0]["difference"][-2]["details"]
    )
    assert cli("proposal", "export", tmp_path / "lift", "--fleet", offices).status == 0
    lines = cli("sign", "--proposal", tmp_path / "lift").err.splitlines()
    assert sorted(line for line in lines if "halt " in line) == sorted(said)
    root = tmp_path / "origin" / "metadata" / "1.root.json"
    made = cli("fleet", "workspace", tmp_path / "away", "--from", tmp_path / "origin", "--root", root)
    assert made.status == 0, made.err
    assert cli("proposal", "import", tmp_path / "lift", "--fleet", tmp_path / "away").status == 0
    lines = cli("sign", "--fleet", tmp_path / "away").err.splitlines()
    assert sorted(line for line in lines if "halt " in line) == sorted(said)


def test_what_one_key_ordered_is_lifted_together(cli: Command, offices: Path, words: Words) -> None:
    for name, reason in (("root-eve", "one"), ("root-eve", "two"), ("targets-ann", "mine")):
        key = offices / "keys" / f"{name}.key"
        assert cli("halt", "--all", "--reason", reason, "--fleet", offices, "--key", key, *words).status == 0
    mine = next(one["id"] for one in halts(cli, offices) if one["reason"] == "one")
    lifted = cli("halt", "lift", mine, "--same-key", "--fleet", offices)
    assert sorted(lifted.out.splitlines()) == [
        f"proposed: everything goes on; halted by eve: {reason}" for reason in ("one", "two")
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("--reason", "x"), "what to halt is not clear"),
        (("app", "--all", "--reason", "x"), "what to halt is not clear"),
        (("app", "--reason", "x"), "there is no release app"),
        (("--all", "--reason", ""), "the reason cannot be used"),
    ],
)
def test_orders_that_are_not_taken(cli: Command, offices: Path, words: Words, line: tuple[str, ...], said: str) -> None:
    ended: Ended = cli("halt", *line, "--fleet", offices, "--key", offices / "keys" / "root-eve.key", *words)
    assert (ended.status, ended.out) == (2, "")
    assert said in ended.err
    assert halts(cli, offices) == []


def test_a_stranger_and_the_publisher_halt_nothing(cli: Command, offices: Path, words: Words, tmp_path: Path) -> None:
    keyfile.create(tmp_path / "mallory.key", WORDS, "targets", "mallory", preset="lab")
    for key in (tmp_path / "mallory.key", offices / "keys" / "timestamp.key"):
        ended = cli("halt", "--all", "--reason", "x", "--fleet", offices, "--key", key, *words)
        assert (ended.status, "named by no role that may halt" in ended.err) == (2, True)


def test_only_roles_that_are_there_can_be_published(cli: Command, offices: Path, words: Words, tmp_path: Path) -> None:
    ended = cli("publish", "--only", "site-rome", "--fleet", offices, "--to", tmp_path / "origin", *words)
    assert ended.status == 2
    assert "there is no role site-rome" in ended.err
    assert "Roles: root, targets, halt, site-berlin, team-web." in ended.err
