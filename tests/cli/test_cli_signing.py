"""Propose, carry, sign, merge, audit, rotate, recover and check at the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Command

from pcm_p2p.cli.main import report
from pcm_p2p.errors import TrustError

Words = tuple[str, Path]

POLICY = 'schema = "pcm.policy/1"\nid = "base"\nversion = {version}\nmode = "observe"\ntitle = "{title}"\n'


def put(cli: Command, fleet: Path, version: int = 1, title: str = "x") -> None:
    path = fleet.parent / "base.toml"
    path.write_text(POLICY.format(version=version, title=title))
    assert cli("policy", "put", path, "--fleet", fleet).status == 0


def key(fleet: Path, name: str) -> Path:
    return fleet / "keys" / f"{name}.key"


def published(cli: Command, fleet: Path, words: Words, *, with_policy: bool = True) -> Path:
    """An origin tree with the fleet's first targets, signed by ann and bob."""
    if with_policy:
        put(cli, fleet)
    for name in ("targets-ann", "targets-bob"):
        assert cli("sign", "--fleet", fleet, "--key", key(fleet, name), "--yes", *words).status == 0
    assert cli("publish", "--fleet", fleet, "--to", fleet.parent / "origin", *words).status == 0
    return fleet.parent / "origin"


def elsewhere(folder: Path, fleet: Path, name: str) -> Path:
    """A signer's machine: its key and nothing else."""
    folder.mkdir()
    shutil.copy(key(fleet, name), folder / "my.key")
    return folder / "my.key"


def test_staging_what_is_published_already_proposes_nothing_and_says_so(
    cli: Command, fleet: Path, words: Words, tmp_path: Path
) -> None:
    published(cli, fleet, words)
    again = cli("policy", "put", fleet.parent / "base.toml", "--fleet", fleet)
    assert (again.status, again.err) == (0, "That is what is published already: nothing is proposed.\n")
    line = ("fleet", "activate", "--all", "--fleet", fleet, "--json")
    assert cli("policy", "put", fleet.parent / "base.toml", "--fleet", fleet, "--json").facts["proposed"] == []
    assert cli(*line).facts == {
        "schema": "pcm.staged/1",
        "target": "fleet/activation.toml",
        "proposed": ["targets 2"],
    }


# Carry, sign, merge


def test_two_people_sign_a_carried_proposal_on_machines_of_their_own(
    cli: Command, fleet: Path, tmp_path: Path, words: Words
) -> None:
    put(cli, fleet)
    exported = cli("proposal", "export", tmp_path / "friday.proposal", "--fleet", fleet, "--json")
    assert exported.facts["proposed"] == ["targets 1"]
    assert exported.facts["size_bytes"] == (tmp_path / "friday.proposal").stat().st_size
    files = []
    for name in ("ann", "bob"):
        mine = elsewhere(tmp_path / name, fleet, f"targets-{name}")
        signed = cli(
            *("sign", "--proposal", tmp_path / "friday.proposal", "--key", mine, "--out", tmp_path / f"{name}.sig"),
            *("--yes", *words),
        )
        assert signed.status == 0, signed.err
        assert signed.out == f"signed targets 1 for {name}\n"
        assert "is new to this machine; compare the digest of its root 1" in signed.err
        assert '    +mode = "observe"' in signed.err
        assert (mine.with_name("my.key.pin").stat().st_mode & 0o777) == 0o600
        files.append(tmp_path / f"{name}.sig")
    merged = cli("merge", *reversed(files), "--fleet", fleet)
    assert merged.status == 0, merged.err
    assert merged.out.splitlines() == [
        "merged bob's signature on targets 1",
        "merged ann's signature on targets 1",
        "targets: complete, signed by ann, bob",
    ]
    again = cli("merge", files[0], "--fleet", fleet)
    assert (again.status, again.out.splitlines()[0]) == (0, "there already: ann's signature on targets 1")
    told = cli("merge", files[0], "--fleet", fleet, "--json").facts
    assert (told["merged"], told["there"], told["refused"]) == ([], ["ann's signature on targets 1"], [])
    assert cli("publish", "--fleet", fleet, "--to", tmp_path / "origin", *words).status == 0


def test_signing_a_carried_proposal_asks_and_names_what_is_missing(
    cli: Command, fleet: Path, tmp_path: Path, words: Words
) -> None:
    put(cli, fleet)
    file = tmp_path / "friday.proposal"
    assert cli("proposal", "export", file, "--fleet", fleet).status == 0
    mine = elsewhere(tmp_path / "ann", fleet, "targets-ann")
    line = ("sign", "--proposal", file, "--key", mine)
    no_out = cli(*line, "--yes", *words)
    assert (no_out.status, "--out is missing" in no_out.err) == (2, True)
    unanswered = cli(*line, "--out", tmp_path / "ann.sig", *words)
    assert (unanswered.status, "not signed" in unanswered.err) == (2, True)
    assert not (tmp_path / "ann.sig").exists()
    other = elsewhere(tmp_path / "root", fleet, "root-ann")
    no_part = cli("sign", "--proposal", file, "--key", other, "--out", tmp_path / "x.sig", "--yes", *words)
    assert (no_part.status, "has no part in what is proposed" in no_part.err) == (2, True)
    nothing = cli("sign", "--key", mine)
    assert (nothing.status, "Pass --fleet FOLDER, or --proposal FILE" in nothing.err) == (2, True)
    shown = cli("sign", "--proposal", file, "--json")
    assert shown.facts["schema"] == "pcm.carried-proposal/1"
    assert shown.facts["proposals"][0]["difference"][0]["field"] == "_type"
    damaged = tmp_path / "damaged"
    damaged.write_bytes(file.read_bytes()[:-9])
    assert cli("sign", "--proposal", damaged).status == 5


def test_a_machine_that_knows_the_fleet_refuses_another_one_in_its_place(
    cli: Command, fleet: Path, tmp_path: Path, words: Words
) -> None:
    put(cli, fleet)
    file, mine = tmp_path / "p", elsewhere(tmp_path / "ann", fleet, "targets-ann")
    assert cli("proposal", "export", file, "--fleet", fleet).status == 0
    line = ("sign", "--proposal", file, "--key", mine, "--out", tmp_path / "s", "--yes", *words)
    assert cli(*line).status == 0
    pin = mine.with_name("my.key.pin")
    known = json.loads(pin.read_text())
    (only,) = known["fleets"].values()
    only["root"]["sha256"] = "0" * 64
    pin.write_text(json.dumps(known))
    refused = cli(*line)
    assert refused.status == 5
    assert "root 1 in the proposal is not the one that this machine has seen" in refused.err
    assert "Do not sign." in refused.err


def test_a_policy_cannot_paint_the_screen_of_who_signs_it(cli: Command, fleet: Path) -> None:
    put(cli, fleet, title="\\u001b[2J")
    path = fleet.parent / "base.toml"
    path.write_bytes(
        path.read_bytes().replace(b'mode = "observe"', b'mode = "observe" # \xe2\x80\xae [red]evil[/red] :smile:')
    )
    assert cli("policy", "put", path, "--fleet", fleet).status in (0, 2)
    path.write_bytes(path.read_bytes().replace(b"version = 1", b"version = 2"))
    assert cli("policy", "put", path, "--fleet", fleet).status == 0
    shown = cli("proposal", "show", "--fleet", fleet)
    assert '+mode = "observe" # \\u202e [red]evil[/red] :smile:' in shown.err
    assert "\x1b" not in shown.err
    assert "\u202e" not in shown.err


def test_an_error_that_quotes_what_a_stranger_wrote_cannot_paint_the_screen_either(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report(TrustError("refused: \x1bc\u202e\nsecond line", remedy="Do not sign."))
    assert capsys.readouterr().err == "pcm-p2p: refused: \\x1bc\\u202e\nsecond line\n  Do not sign.\n"


def test_a_proposal_is_shown_imported_and_dropped(cli: Command, fleet: Path, tmp_path: Path, words: Words) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(fleet, copy)
    put(cli, fleet)
    assert cli("proposal", "export", tmp_path / "p", "--fleet", fleet, "--with-segments").status == 0
    other = cli("proposal", "import", tmp_path / "p", "--fleet", copy)
    assert (other.status, "another change of targets is proposed here" in other.err) == (2, True)
    assert cli("proposal", "discard", "--fleet", copy, "--role", "targets").out == "dropped targets 1\n"
    absent = cli("proposal", "discard", "--fleet", copy)
    assert (absent.status, "nothing is proposed" in absent.err) == (2, True)
    imported = cli("proposal", "import", tmp_path / "p", "--fleet", copy)
    assert imported.out == "targets: 2 more of ann, bob, eve must sign; signed by nobody yet\n"
    here, there = (cli("proposal", "show", "--fleet", one, "--json").facts for one in (fleet, copy))
    assert here[0]["sha256"] == there[0]["sha256"]
    assert cli("proposal", "show", "--proposal", tmp_path / "p", "--full").err.startswith("targets version 0 → 1\n")


# Audit


def test_the_audit_log_is_verified_offline_and_shown(cli: Command, fleet: Path, words: Words) -> None:
    origin = published(cli, fleet, words)
    whole = cli("audit", "verify", "--fleet", fleet, "--json")
    assert (whole.status, whole.facts["whole"]) == (0, True)
    assert whole.facts["entries"] == whole.facts["verified"]
    shown = cli("audit", "show", "--fleet", fleet, "--role", "targets")
    assert [line.split()[3:7] for line in shown.out.splitlines()[1:]] == [
        ["sign", "targets", "1", "ann"],
        ["sign", "targets", "1", "bob"],
    ]
    put(cli, fleet, version=2)
    published(cli, fleet, words, with_policy=False)
    assert cli("audit", "verify", "--origin", origin).status == 0
    log = fleet / "audit" / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-3]))
    cut = cli("audit", "verify", "--fleet", fleet)
    assert cut.status == 5
    assert "the signature of publisher on snapshot 2 has no entry: an act is missing" in cut.err
    log.write_bytes(b"".join(lines).replace(b'"owner":"ann"', b'"owner":"eve"', 1))
    edited = cli("audit", "verify", "--fleet", fleet, "--json")
    assert edited.status == 5
    assert any("one of the two was altered" in one for one in edited.facts["complaints"])


# Rotation and playbooks


def new_key(cli: Command, folder: Path, role: str, owner: str, words: Words) -> Path:
    path = folder / f"{owner}-{role}-2.key"
    assert cli("key", "new", path, "--role", role, "--owner", owner, "--kdf", "interactive", *words).status == 0
    return path


def test_before_signing_each_document_says_whether_this_key_signs_it(
    cli: Command, fleet: Path, tmp_path: Path, words: Words
) -> None:
    published(cli, fleet, words)
    new = new_key(cli, tmp_path, "root", "ann", words)
    assert cli("key", "rotate", "--role", "root", "--owner", "ann", "--new", new, "--fleet", fleet).status == 0
    file = tmp_path / "friday.proposal"
    assert cli("proposal", "export", file, "--fleet", fleet).status == 0
    beside = "This key does not sign {}, which is proposed beside it:"
    for name, signs, not_signed in (("targets-ann", "targets 2", "root 2"), ("root-bob", "root 2", "targets 2")):
        mine = elsewhere(tmp_path / name, fleet, name)
        carried = ("--proposal", file, "--out", tmp_path / f"{name}.sig")
        for place in (("--fleet", fleet), carried):
            lines = cli("sign", *place, "--key", mine, *words).err.splitlines()
            at, theirs = lines.index(f"THIS KEY SIGNS {signs}:"), lines.index(beside.format(not_signed))
            assert theirs < at, "what is signed stands next to the question"
            assert lines[at + 1] == f"{signs.split()[0]} version 1 → 2"
            assert any(said.startswith(f"Sign {signs} with this key? [y/N]") for said in lines)
        assert cli("sign", *carried, "--key", mine, "--yes", *words).out == f"signed {signs} for {name.split('-')[1]}\n"
    shown = cli("sign", "--fleet", fleet).err
    assert "his key" not in shown, "where no key is named"
    cli("proposal", "discard", "--role", "root", "--fleet", fleet)
    other = cli("sign", "--fleet", fleet, "--key", tmp_path / "root-bob" / "my.key", "--passphrase-file", "nowhere")
    assert (other.status, "the root key of bob has no part in what is proposed" in other.err) == (2, True)


def test_a_root_key_is_rotated_in_band(cli: Command, fleet: Path, tmp_path: Path, words: Words) -> None:
    published(cli, fleet, words)
    new = new_key(cli, tmp_path, "root", "ann", words)
    proposed = cli("key", "rotate", "--role", "root", "--owner", "ann", "--new", new, "--fleet", fleet)
    assert proposed.status == 0, proposed.err
    assert proposed.out.splitlines()[:3] == [
        "proposed: root version 1 → 2",
        "  root, old keys: 2 more of ann, bob, eve must sign; signed by nobody yet",
        "  root, new keys: 2 more of ann, bob, eve must sign; signed by nobody yet",
    ]
    wrong = cli("key", "rotate", "--role", "root", "--owner", "bob", "--new", new, "--fleet", fleet)
    assert (wrong.status, "the new key is of ann, not of bob" in wrong.err) == (2, True)
    for path in (
        key(fleet, "root-ann"),
        key(fleet, "root-bob"),
        new,
        key(fleet, "targets-ann"),
        key(fleet, "targets-eve"),
    ):
        assert cli("sign", "--fleet", fleet, "--key", path, "--yes", *words).status == 0
    assert cli("publish", "--fleet", fleet, "--to", tmp_path / "origin", *words, "--json").facts["root"] == 2
    assert cli("audit", "verify", "--fleet", fleet).status == 0


def test_people_and_thresholds_change(cli: Command, fleet: Path, tmp_path: Path, words: Words) -> None:
    new = new_key(cli, tmp_path, "targets", "dave", words)
    assert cli("key", "add", "--role", "targets", "--new", new, "--threshold", "3", "--fleet", fleet).status == 0
    few = cli("key", "remove", "--role", "root", "--owner", "eve", "--threshold", "3", "--fleet", fleet)
    assert (few.status, "root would need 3 of 2 keys" in few.err) == (2, True)
    assert cli("key", "remove", "--role", "root", "--owner", "eve", "--fleet", fleet).status == 0
    assert cli("fleet", "threshold", "1", "--role", "root", "--fleet", fleet).status == 0
    shown = cli("proposal", "show", "--fleet", fleet).err
    assert "~ threshold of targets 2 of 3 → 3 of 4" in shown
    assert "~ threshold of root 2 of 3 → 1 of 2" in shown
    assert "+ targets: dave may sign" in shown
    absent = cli("fleet", "threshold", "2", "--role", "site-x", "--fleet", fleet)
    assert (absent.status, "there is no role site-x" in absent.err) == (2, True)


def test_playbooks_say_what_they_did_and_who_is_next(cli: Command, fleet: Path, tmp_path: Path, words: Words) -> None:
    published(cli, fleet, words)
    missing = cli("fleet", "recover", "lost-laptop", "bob", "--fleet", fleet)
    assert missing.status == 2
    assert "bob holds keys for root, targets; there is no new one for root, targets" in missing.err
    files = [new_key(cli, tmp_path, role, "bob", words) for role in ("root", "targets")]
    book = cli("fleet", "recover", "lost-laptop", "bob", "--new", files[0], "--new", files[1], "--fleet", fleet)
    assert book.status == 0, book.err
    assert "  root: bob gets a new key; 2 of 3 must sign" in book.out
    assert "  1. 2 of ann, eve: sign root 2 (old keys)" in book.out
    assert (
        cli("fleet", "recover", "lost-root-key", "ann", "--remove", "--threshold", "root=1", "--fleet", fleet).status
        == 0
    )
    bad = cli("fleet", "recover", "lost-root-key", "eve", "--threshold", "root", "--fleet", fleet)
    assert (bad.status, "'root' is not ROLE=N" in bad.err) == (2, True)
    online = cli("fleet", "recover", "stolen-online-key", "--fleet", fleet, "--json", *words)
    assert online.facts["schema"] == "pcm.playbook/1"
    assert len(online.facts["done"]) == 2
    device = cli("fleet", "recover", "lost-device", "0" * 32, "--reason", "train", "--fleet", fleet, "--json")
    assert device.facts["title"] == f"device {'0' * 32} is lost"
    assert cli("fleet", "recover", "lost-device", "xyz", "--fleet", fleet).status == 2
    neither = cli("fleet", "recover", "stolen-site-key", "hq", "--fleet", fleet)
    assert (neither.status, "Pass either --new FILE.pub or --remove" in neither.err) == (2, True)
    nobody = cli("fleet", "recover", "stolen-site-key", "hq", "--remove", "--fleet", fleet)
    assert (nobody.status, "there is no role site-hq" in nobody.err) == (2, True)


# Check


def test_fleet_check_exits_for_cron(cli: Command, fleet: Path, tmp_path: Path, words: Words) -> None:
    waiting = cli("fleet", "check", "--fleet", fleet, "--json")
    assert (waiting.status, waiting.facts["level"]) == (1, "warn")
    assert any("must sign" in one["text"] for one in waiting.facts["findings"])
    published(cli, fleet, words, with_policy=False)
    for name in ("root-eve", "targets-eve"):
        cli("key", "test", key(fleet, name), "--fleet", fleet, *words)
    well = cli("fleet", "check", "--fleet", fleet)
    assert well.status == 0, well.out
    assert [line.split()[:2] for line in well.out.splitlines()[1:6]] == [
        ["root", "ok"],
        ["targets", "ok"],
        ["snapshot", "ok"],
        ["timestamp", "ok"],
        ["ca", "ok"],
    ]
    assert cli("fleet", "renew", "--role", "root", "--fleet", fleet).out.startswith(
        "proposed: root with the same content"
    )
    absent = cli("fleet", "renew", "--role", "site-x", "--fleet", fleet)
    assert (absent.status, "there is no role site-x" in absent.err) == (2, True)


def test_the_tool_signs_a_carried_proposal_without_a_network_or_a_home(
    cli: Command, fleet: Path, tmp_path: Path, words: Words
) -> None:
    """As on an air-gapped machine: another process, an empty environment, no folder of the fleet, no interface."""
    put(cli, fleet)
    assert cli("proposal", "export", tmp_path / "p", "--fleet", fleet).status == 0
    mine = elsewhere(tmp_path / "ann", fleet, "targets-ann")
    start = [sys.executable, "-c", "from pcm_p2p.cli.main import run; run()"]
    line = ["sign", "--proposal", tmp_path / "p", "--key", mine, "--out", tmp_path / "s", "--yes", *words]
    apart = ["unshare", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network namespace needs root, unshare, and a kernel that gives one")
    ended = subprocess.run(
        [*apart, *start, *map(str, line)],
        env={},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Network is unreachable" not in ended.stderr
    assert cli("merge", tmp_path / "s", "--fleet", fleet).status == 0
