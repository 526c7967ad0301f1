"""Away from the fleet folder: a person of a site stages and signs in a workspace, and every step says where it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import WORDS, Command

from pcm_p2p.authority.carry.carrying import read_bundle
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.trust.index import ALLOWANCES

Words = tuple[str, Path]
POLICY = 'schema = "pcm.policy/1"\nid = "berlin-base"\nversion = 1\nmode = "notify"\n'


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    """Nothing here tests durability."""


@pytest.fixture
def bea(founded: Path, tmp_path: Path) -> Path:
    """Bea's machine: her key, and below it (``fleet``, ``origin``) the centre with a delegation to site berlin, published."""
    shutil.copytree(founded / "fleet", tmp_path / "fleet")
    folder = FleetFolder.open(tmp_path / "fleet")
    keyfile.create(tmp_path / "bea.key", WORDS, "site-berlin", "bea", preset="lab")
    folder.delegate("site-berlin", [keyfile.read_public(tmp_path / "bea.key").key], 1)
    folder.stage_file(ALLOWANCES, b'schema = "pcm.allowances/1"\n[default]\nmodes = ["observe", "notify"]\n')
    for owner in ("ann", "bob"):
        folder.sign(folder.path / "keys" / f"targets-{owner}.key", WORDS)
    publish(folder, tmp_path / "origin", OnlineKeys.open(folder, WORDS))
    return tmp_path


def workspace(cli: Command, folder: Path) -> Path:
    root = folder / "origin" / "metadata" / "1.root.json"
    made = cli("fleet", "workspace", folder / "berlin", "--from", folder / "origin", "--root", root)
    assert made.status == 0, made.err
    return folder / "berlin"


def test_each_step_away_from_the_fleet_folder_names_the_carrying_and_not_the_publishing(
    cli: Command, bea: Path, words: Words
) -> None:
    there = workspace(cli, bea)
    (bea / "base.toml").write_text(POLICY)
    staged = cli("policy", "put", bea / "base.toml", "--site", "berlin", "--fleet", there)
    assert staged.err == (
        "Next: 'pcm-p2p sign', then 'pcm-p2p proposal export FILE', and carry that file to who publishes.\n"
    )
    shown = cli("sign", "--fleet", there)
    assert shown.err.endswith("Nothing was signed: pass --key FILE or --token.\n")
    signed = cli("sign", "--fleet", there, "--key", bea / "bea.key", "--yes", *words)
    assert "Next: 'pcm-p2p proposal export FILE', and carry that file to who publishes" in signed.err
    assert "pcm-p2p publish" not in signed.err
    refused = cli("publish", "--fleet", there, "--to", bea / "mine")
    assert refused.status == 2, "and nobody is asked for a passphrase"
    assert "the publisher's keys are not in it" in refused.err
    assert "'pcm-p2p proposal export FILE'" in refused.err
    exported = cli("proposal", "export", bea / "monday.proposal", "--fleet", there)
    assert exported.err == "Next, where it is published: 'pcm-p2p proposal import monday.proposal --fleet FOLDER'.\n"
    taken = cli("proposal", "import", bea / "monday.proposal", "--fleet", bea / "fleet")
    assert taken.out == "site-berlin: complete, signed by bea\n"
    assert taken.err == "Next: 'pcm-p2p publish'.\n"
    assert cli("publish", "--fleet", bea / "fleet", "--to", bea / "origin", *words).status == 0


def test_a_release_of_somebody_elsewhere_is_carried_with_its_segments(cli: Command, bea: Path) -> None:
    there = workspace(cli, bea)
    (bea / "x.bin").write_bytes(bytes(10_000))
    added = cli("release", "add", "x", "1", bea / "x.bin", "--fleet", there, "--level", 1)
    assert "'pcm-p2p proposal export FILE --with-segments'" in added.err


def test_a_halt_from_elsewhere_goes_alone_whatever_else_waits_there(cli: Command, bea: Path, words: Words) -> None:
    there = workspace(cli, bea)
    (bea / "base.toml").write_text(POLICY)
    assert cli("policy", "put", bea / "base.toml", "--site", "berlin", "--fleet", there).status == 0
    # The centre has a change of that role of its own, which would refuse the whole of what bea has.
    (bea / "other.toml").write_text(POLICY.replace("berlin-base", "berlin-other"))
    assert cli("policy", "put", bea / "other.toml", "--site", "berlin", "--fleet", bea / "fleet").status == 0
    key = ("--key", bea / "bea.key", *words)
    halted = cli("halt", "--all", "--reason", "smoke", "--fleet", there, *key)
    assert "NOT in force yet. Next: 'pcm-p2p proposal export FILE --role halt', and carry" in halted.err
    at_once = cli("halt", "--all", "--reason", "smoke", "--fleet", there, *key, "--to", bea / "mine")
    assert (at_once.status, "the publisher's keys are not in it" in at_once.err) == (2, True)
    assert cli("proposal", "export", bea / "all.proposal", "--fleet", there).status == 0
    whole = cli("proposal", "import", bea / "all.proposal", "--fleet", bea / "fleet")
    assert (whole.status, "another change of site-berlin is proposed here" in whole.err) == (2, True)
    exported = cli("proposal", "export", bea / "halt.proposal", "--role", "halt", "--fleet", there, "--json")
    assert exported.facts["proposed"] == ["halt 1"]
    assert list(read_bundle(bea / "halt.proposal").proposed) == ["halt"]
    assert cli("proposal", "import", bea / "halt.proposal", "--fleet", bea / "fleet").status == 0
    line = ("publish", "--fleet", bea / "fleet", "--to", bea / "origin", *words)
    waiting = cli(*line)
    assert waiting.status == 5
    assert "site-berlin: 1 more of bea must sign" in waiting.err
    assert "What is complete waits for nobody: 'pcm-p2p publish --only halt'." in waiting.err
    assert cli(*line, "--only", "halt").status == 0
    assert cli("halt", "list", "--fleet", bea / "fleet", "--json").facts[0]["state"] == "in force"


def test_what_cannot_be_signed_alone_is_not_exported_alone(cli: Command, bea: Path) -> None:
    folder = FleetFolder.open(bea / "fleet")
    keyfile.create(bea / "rita.key", WORDS, "site-rome", "rita", preset="lab")
    folder.delegate("site-rome", [keyfile.read_public(bea / "rita.key").key], 1)
    folder.stage_policy("rome", POLICY.replace("berlin-base", "rome").encode(), "site-rome")
    refused = cli("proposal", "export", bea / "x", "--role", "site-rome", "--fleet", bea / "fleet")
    assert refused.status == 2
    assert "who signs for site-rome changes with what is proposed for targets" in refused.err
    assert not (bea / "x").exists()
    absent = cli("proposal", "export", bea / "x", "--role", "site-berlin", "--fleet", bea / "fleet")
    assert (absent.status, "nothing is proposed for site-berlin" in absent.err) == (2, True)
    both = ("proposal", "export", bea / "x", "--role", "site-rome", "--role", "targets", "--fleet", bea / "fleet")
    assert cli(*both, "--json").facts["proposed"] == ["site-rome 1", "targets 2"]
