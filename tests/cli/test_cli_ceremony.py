"""The ceremony at the command line: a fleet of people on several machines, the walk on a terminal, the sheet, key commands."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.main
from command_line import WORDS, Command
from soft_token import PIN, needs_tokens, plugged_in

from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.keys.key_sheet import DUTIES, LOSSES
from pcm_p2p.cli.main import app

Words = tuple[str, Path]

ROLES = ("root", "targets")


@pytest.fixture(autouse=True)
def _cheap_derivation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What opening a key costs is tested elsewhere."""
    monkeypatch.setitem(keyfile.PRESETS, "interactive", keyfile.PRESETS["lab"])


@pytest.fixture
def token_of_alice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty token."""
    (tmp_path / "token").mkdir()
    return plugged_in(tmp_path / "token", monkeypatch).add("alice")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key files of three people, each as if made on a machine of its own."""
    folder = tmp_path_factory.mktemp("keys")
    for owner in ("alice", "bob", "carol"):
        for role in ROLES:
            keyfile.create(folder / f"{owner}-{role}.key", f"{WORDS} of {owner}", role, owner, preset="lab")
    return folder


def passphrase_of(owner: str, folder: Path) -> Words:
    path = folder / f"{owner}.words"
    path.write_text(f"{WORDS} of {owner}\n")
    path.chmod(0o600)
    return "--passphrase-file", path


def public_files(cli: Command, keys: Path, folder: Path, *owners: str) -> list[object]:
    """The options that bring the public files of ``owners``, which each of them made."""
    line: list[object] = []
    for owner in owners:
        for role, option in zip(ROLES, ("--root-key", "--release-key"), strict=True):
            path = folder / f"{owner}-{role}.pub"
            made = cli("key", "public", keys / f"{owner}-{role}.key", "--out", path, *passphrase_of(owner, folder))
            assert made.status == 0, made.err
            line += [option, path]
    return line


def sign(cli: Command, fleet: Path, keys: Path, owner: str, role: str, folder: Path) -> Any:
    key = keys / f"{owner}-{role}.key"
    return cli("sign", "--fleet", fleet, "--key", key, "--yes", *passphrase_of(owner, folder))


# several people, several machines


def test_people_on_several_machines_found_a_fleet_and_nothing_is_published_before_enough_have_signed(
    cli: Command, keys: Path, tmp_path: Path, words: Words
) -> None:
    fleet, origin = tmp_path / "fleet", tmp_path / "origin"
    carried = public_files(cli, keys, tmp_path, "alice", "bob", "carol")
    made = cli("fleet", "init", fleet, "--name", "acme", *carried, *words, "--kdf", "interactive", "--json")
    assert made.status == 0, made.err
    assert made.facts["root"] == {"threshold": 2, "have": [], "could": ["alice", "bob", "carol"], "complete": False}
    places = {(key["role"], key["owner"]): key["path"] for key in made.facts["keys"]}
    assert places["root", "alice"] is None
    assert {owner for (role, owner), path in places.items() if path} == {"publisher"}
    assert not (fleet / "repository" / "metadata" / "1.root.json").exists()
    publishing = ("publish", "--fleet", fleet, "--to", origin, *words)

    nobody = cli(*publishing)
    assert nobody.status == 5
    assert re.search(r"root: 2 more of alice, bob, carol must sign; signed by nobody yet", nobody.err)
    token = cli("enroll", "token", "--fleet", fleet, "--desk", "10.0.0.1:8742", "--site", "here")
    assert (token.status, "is not signed and published yet" in token.err) == (5, True)

    assert sign(cli, fleet, keys, "carol", "root", tmp_path).status == 0
    one = cli(*publishing)
    assert one.status == 5
    assert "1 more of alice, bob must sign; signed by carol" in one.err
    for owner, role in (("alice", "root"), ("bob", "targets"), ("carol", "targets")):
        assert sign(cli, fleet, keys, owner, role, tmp_path).status == 0
    published = cli(*publishing, "--json")
    assert published.status == 0, published.err
    assert published.facts["root"] == 1
    assert (origin / "metadata" / "1.root.json").exists()
    assert cli("sign", "--fleet", fleet).status == 2, "nothing is left to sign"


def test_the_first_root_is_carried_to_its_holders_and_their_signatures_come_back_in_any_order(
    cli: Command, keys: Path, tmp_path: Path, words: Words
) -> None:
    fleet, proposal = tmp_path / "fleet", tmp_path / "first.proposal"
    carried = public_files(cli, keys, tmp_path, "alice", "bob", "carol")
    assert cli("fleet", "init", fleet, "--name", "acme", *carried, *words, "--kdf", "interactive").status == 0
    assert cli("proposal", "export", proposal, "--fleet", fleet).status == 0
    signatures = []
    for owner, role in (("carol", "targets"), ("bob", "root"), ("alice", "targets"), ("carol", "root")):
        signature = tmp_path / f"{owner}-{role}.sig"
        key = ("--key", keys / f"{owner}-{role}.key", "--pin", tmp_path / f"{owner}.pin")
        signed = cli("sign", "--proposal", proposal, *key, "--out", signature, "--yes", *passphrase_of(owner, tmp_path))
        assert signed.status == 0, signed.err
        assert "root: 2 of 3 must sign" in signed.err + signed.out, "who signs sees who will decide"
        signatures.append(signature)
    merged = cli("merge", *signatures[2:], "--fleet", fleet)
    assert merged.status == 0, merged.err
    missing = cli("publish", "--fleet", fleet, "--to", tmp_path / "origin", *words)
    assert (missing.status, "root: 1 more of alice, bob must sign" in missing.err) == (5, True)
    assert cli("merge", *signatures[:2], "--fleet", fleet).status == 0
    published = cli("publish", "--fleet", fleet, "--to", tmp_path / "origin", *words)
    assert published.status == 0, published.err
    left = cli("key", "test", keys / "alice-root.key", "--fleet", fleet, *passphrase_of("alice", tmp_path))
    assert [line for line in left.err.splitlines() if line] == ["not tested yet: the targets key of bob"]
    verified = cli("audit", "verify", "--fleet", fleet)
    assert verified.status == 0, verified.err + verified.out


def test_one_person_here_and_two_elsewhere_is_a_fleet_too(
    cli: Command, keys: Path, tmp_path: Path, words: Words
) -> None:
    carried = public_files(cli, keys, tmp_path, "alice", "bob")
    line = ("fleet", "init", tmp_path / "f", "--name", "acme", "--owner", "dora", *carried, *words)
    made = cli(*line, "--kdf", "interactive")
    assert made.status == 0, made.err
    assert "root: 1 more of alice, bob must sign; signed by dora" in made.out
    assert "4 of 8 keys gave a test signature" in made.out
    assert "Compare the words with alice, bob" in made.err


def test_fingerprints_are_shown_in_groups_and_as_words_that_the_owner_can_read_aloud(
    cli: Command, keys: Path, tmp_path: Path, words: Words
) -> None:
    carried = public_files(cli, keys, tmp_path, "alice")
    made = cli("fleet", "init", tmp_path / "f", "--name", "acme", *carried, *words, "--kdf", "interactive")
    shown = cli("key", "show", keys / "alice-root.key", "--json").facts
    assert shown["fingerprint"] in made.out
    assert shown["words"] in made.out
    aloud = shown["words"].split()
    public = tmp_path / "alice-root.pub"
    same = cli("key", "compare", public, *aloud)
    assert (same.status, "the same: the root key of alice" in same.out) == (0, True)
    assert cli("key", "compare", public, " ".join(aloud).upper()).status == 0, "as one argument, and in capitals"
    other = cli("key", "show", keys / "bob-root.key", "--json").facts["words"].split()
    exchanged = cli("key", "compare", public, *other)
    assert (exchanged.status, "another key" in exchanged.err) == (5, True)
    misheard = cli("key", "compare", public, "zebrafish", *aloud[1:])
    assert (misheard.status, "word 1, 'zebrafish', is not in the list" in misheard.err) == (2, True)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("owner", "is not by this key"),
        ("role", "is not by this key"),
        ("key", "is not by this key"),
        ("cut", "truncated"),
    ],
)
def test_a_public_file_that_was_altered_on_its_way_founds_no_fleet(
    cli: Command, keys: Path, tmp_path: Path, words: Words, spoil: str, said: str
) -> None:
    carried = public_files(cli, keys, tmp_path, "alice", "bob")
    path = tmp_path / "alice-root.pub"
    document = msgspec.json.decode(path.read_bytes())
    other = msgspec.json.decode((tmp_path / "bob-root.pub").read_bytes())
    if spoil == "owner":
        document["statement"]["owner"] = "mallory"
    elif spoil == "role":
        document["statement"]["role"] = "site-x"
    elif spoil == "key":
        document["statement"]["key"] = other["statement"]["key"]
    data = msgspec.json.encode(document)
    path.write_bytes(data[:-9] if spoil == "cut" else data)
    ended = cli("fleet", "init", tmp_path / "f", "--name", "acme", *carried, *words)
    assert ended.status == 2
    assert ended.err.startswith(f"pcm-p2p: {path}: ")
    assert said in ended.err
    assert "key public" in ended.err
    assert not (tmp_path / "f").exists()


def test_keys_that_do_not_fit_found_no_fleet(cli: Command, keys: Path, tmp_path: Path, words: Words) -> None:
    public_files(cli, keys, tmp_path, "alice", "bob")
    root, release, bob = (tmp_path / name for name in ("alice-root.pub", "alice-targets.pub", "bob-root.pub"))
    for options, said in (
        (("--root-key", release, "--release-key", release), "is for targets, not for root"),
        (("--root-key", root, "--root-key", root, "--release-key", release), "owners must be different people"),
        (("--root-key", root), "nobody holds a release key"),
        (("--root-key", root, "--root-key", bob, "--release-key", release, "--root-threshold", 3), "root threshold 3"),
        (("--owner", "Alice", "--root-key", root, "--release-key", release), "owners must be different people"),
    ):
        ended = cli("fleet", "init", tmp_path / "f", "--name", "acme", *options, *words)
        assert (ended.status, said in ended.err) == (2, True), ended.err
    assert not (tmp_path / "f").exists()


def test_two_of_three_is_suggested_and_what_one_or_all_means_is_said(
    cli: Command, tmp_path: Path, words: Words
) -> None:
    three = ("--owner", "ann", "--owner", "bob", "--owner", "eve")
    line = ("--name", "acme", *words, "--kdf", "interactive")
    suggested = cli("fleet", "init", tmp_path / "a", *three, *line)
    assert suggested.status == 0
    assert "is enough to sign" not in suggested.err
    all_three = cli("fleet", "init", tmp_path / "b", *three, "--root-threshold", 3, "--release-threshold", 1, *line)
    assert "all 3 root keys must sign: one that is lost or away stops you" in all_three.err
    assert "one release key is enough to sign" in all_three.err


def test_without_a_terminal_the_missing_option_is_named(cli: Command, tmp_path: Path, words: Words) -> None:
    unnamed = cli("fleet", "init", tmp_path / "f", *words)
    assert (unnamed.status, "--name is missing" in unnamed.err) == (2, True)
    unasked = cli("fleet", "init", tmp_path / "f", "--name", "acme", "--owner", "ann")
    assert (unasked.status, "--passphrase-file" in unasked.err) == (2, True)
    assert not (tmp_path / "f").exists()


# tests of keys


def test_a_carried_key_is_tested_against_root_and_who_is_left_is_named(
    cli: Command, keys: Path, tmp_path: Path, words: Words
) -> None:
    fleet = tmp_path / "fleet"
    carried = public_files(cli, keys, tmp_path, "alice", "bob")
    assert cli("fleet", "init", fleet, "--name", "a", *carried, *words, "--kdf", "interactive").status == 0
    tested = cli("key", "test", keys / "alice-root.key", "--fleet", fleet, *passphrase_of("alice", tmp_path))
    assert tested.status == 0, tested.err
    assert tested.out == "root: signed, and verified under the key that root 1 lists\n"
    left = [line for line in tested.err.splitlines() if "not tested yet" in line]
    assert left == [
        f"not tested yet: the {role} key of {owner}"
        for role, owner in (("root", "bob"), ("targets", "alice"), ("targets", "bob"))
    ]
    stranger = cli("key", "test", keys / "carol-root.key", "--fleet", fleet, *passphrase_of("carol", tmp_path))
    assert (stranger.status, "lists the key of carol for nothing" in stranger.err) == (2, True)
    wrong = cli("key", "test", keys / "bob-root.key", "--fleet", fleet, *passphrase_of("alice", tmp_path))
    assert (wrong.status, "passphrase is wrong" in wrong.err) == (5, True)
    facts = cli("key", "test", keys / "bob-root.key", "--fleet", fleet, *passphrase_of("bob", tmp_path), "--json").facts
    assert [(one["role"], one["owner"]) for one in facts["untested"]] == [("targets", "alice"), ("targets", "bob")]


def test_a_key_that_stays_where_it_is_is_tested_against_a_carried_root(
    cli: Command, keys: Path, tmp_path: Path, words: Words
) -> None:
    fleet, root, answer = tmp_path / "fleet", tmp_path / "1.root.json", tmp_path / "alice.test"
    carried = public_files(cli, keys, tmp_path, "alice", "bob")
    assert cli("fleet", "init", fleet, "--name", "a", *carried, *words, "--kdf", "interactive").status == 0
    root.write_bytes((fleet / "proposal" / "root.json").read_bytes())
    line = ("key", "test", keys / "alice-root.key", "--root", root, *passphrase_of("alice", tmp_path))
    unwritten = cli(*line)
    assert (unwritten.status, "--root goes with --out" in unwritten.err) == (2, True)
    made = cli(*line, "--out", answer)
    assert (made.status, made.out) == (0, f"{answer}: test signatures for root\n"), made.err
    accepted = cli("key", "test", "--accept", answer, "--fleet", fleet)
    assert accepted.status == 0, accepted.err
    assert accepted.out == "root: signed, and verified under the key that root 1 lists\n"
    assert "the root key of alice" not in accepted.err
    assert "the root key of bob" in accepted.err
    assert cli("audit", "verify", "--fleet", fleet).status == 0
    other = tmp_path / "other"
    assert cli("fleet", "init", other, "--name", "b", *carried, *words, "--kdf", "interactive").status == 0
    foreign = cli("key", "test", "--accept", answer, "--fleet", other)
    assert (foreign.status, "not by a root key of fleet b" in foreign.err) == (5, True)
    stranger = cli(
        "key",
        "test",
        keys / "carol-root.key",
        "--root",
        root,
        "--out",
        tmp_path / "c",
        *passphrase_of("carol", tmp_path),
    )
    assert (stranger.status, "lists the key of carol for nothing" in stranger.err) == (2, True)
    (tmp_path / "noise").write_bytes(b"[" * 9_000)
    assert cli(*line[:4], tmp_path / "noise", "--out", answer, *line[5:]).status == 2
    assert cli("key", "test", "--accept", tmp_path / "noise", "--fleet", fleet).status == 2


def test_the_sheet_is_written_as_page_and_as_text(cli: Command, fleet: Path, tmp_path: Path) -> None:
    for name in ("sheet.html", "sheet.txt"):
        ended = cli("fleet", "sheet", "--fleet", fleet, "--out", tmp_path / name)
        assert ended.status == 0, ended.err
        text = (tmp_path / name).read_text()
        for holder in cli("key", "show", fleet / "keys" / "root-ann.key", "--json").facts["fingerprint"], "ann", "eve":
            assert holder in text
    assert "The root key of ann has not been tested" not in ended.err, "she signed root"
    assert "The release (targets) key of ann has not been tested" in ended.err
    unknown = cli("fleet", "sheet", "--fleet", fleet, "--out", tmp_path / "sheet.pdf")
    assert (unknown.status, "End it in .html or .txt" in unknown.err) == (2, True)


@cache
def program() -> Any:
    """The tree of commands, which takes a tenth of a second to make."""
    return typer.main.get_command(app)


@pytest.mark.parametrize("text", [command for _, command in LOSSES] + list(DUTIES))
def test_commands_on_the_sheet_exist(text: str) -> None:
    for line in re.findall(r"pcm-p2p ([a-z -]+)", text):
        command: Any = program()
        for word in line.split():
            if word.startswith("-") or not hasattr(command, "commands"):
                break
            assert word in command.commands, f"the sheet names pcm-p2p {line}, which is no command"
            command = command.commands[word]
        if hasattr(command, "commands") and "order" in command.commands:
            command = command.commands["order"]  # 'halt RELEASE' is short for it
        options = {name for parameter in command.params for name in parameter.opts}
        for option in re.findall(r"--[a-z-]+", text):
            assert option in options, f"pcm-p2p {line} has no {option}"


# passphrases


def test_a_passphrase_is_changed_and_only_the_new_one_opens(cli: Command, keys: Path, tmp_path: Path) -> None:
    path = tmp_path / "dora.key"
    keyfile.create(path, f"{WORDS} of dora", "root", "dora", preset="lab")
    (tmp_path / "new").write_text("other words\n")
    (tmp_path / "new").chmod(0o600)
    old, new = passphrase_of("dora", tmp_path), ("--new-passphrase-file", tmp_path / "new")
    wrong = cli("key", "passphrase", path, *passphrase_of("alice", tmp_path), *new, "--kdf", "interactive")
    assert (wrong.status, "passphrase is wrong" in wrong.err) == (5, True)
    changed = cli("key", "passphrase", path, *old, *new, "--kdf", "interactive")
    assert (changed.status, changed.out) == (0, f"{path} opens with the new passphrase\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    refused = cli("key", "public", path, "--out", tmp_path / "dora.pub", *old)
    assert (refused.status, (tmp_path / "dora.pub").exists()) == (5, False)
    opened = cli("key", "public", path, "--out", tmp_path / "dora.pub", "--passphrase-file", tmp_path / "new")
    assert opened.status == 0
    again = cli("key", "public", path, "--out", tmp_path / "dora.pub", "--passphrase-file", tmp_path / "new")
    assert (again.status, "exists already" in again.err) == (2, True)


def test_a_key_is_named_once(cli: Command, keys: Path, tmp_path: Path, words: Words) -> None:
    neither = cli("key", "show")
    assert (neither.status, "no key was named" in neither.err) == (2, True)
    both = cli("key", "show", keys / "bob-root.key", "--token", "hsm:2")
    assert (both.status, "two keys were named" in both.err) == (2, True)
    unknown = cli("key", "new", tmp_path / "k", "--role", "boss", "--owner", "ann", *words)
    assert (unknown.status, "there is no role 'boss'" in unknown.err) == (2, True)


# on a terminal


class Terminal:
    """A command on a terminal of its own, as a person meets it. Every wait has a deadline."""

    DEADLINE_S = 120

    def __init__(self, *words: object, **environment: str) -> None:
        self.master, slave = pty.openpty()

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "pcm_p2p.cli.main", *map(str, words)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=take_terminal,  # noqa: PLW1509 - between fork and exec it makes one system call
            env={**os.environ, "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "200", **environment},
        )
        os.close(slave)
        self.seen = ""
        self.all = ""

    def read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing came in time; seen: {self.all[-2000:]}"
        try:
            data = os.read(self.master, 65_536)
        except OSError:  # how Linux says that the other end is closed
            return False
        self.seen += data.decode(errors="replace")
        self.all += data.decode(errors="replace")
        return bool(data)

    def answer(self, question: str, line: str, *, hidden: bool = False) -> None:
        """Wait for ``question``, for the end of the echo where it is about a secret, then type ``line``."""
        deadline = time.monotonic() + self.DEADLINE_S
        while question not in self.seen:
            assert self.read(deadline), f"it ended before it asked {question!r}: {self.all[-2000:]}"
        self.seen = self.seen.split(question, 1)[1]
        while hidden and termios.tcgetattr(self.master)[3] & termios.ECHO:
            assert time.monotonic() < deadline, "it asks for a secret with echo"
            os.sched_yield()
        os.write(self.master, line.encode() + b"\n")

    def ended(self) -> int:
        deadline = time.monotonic() + self.DEADLINE_S
        while self.read(deadline):
            pass
        return self.process.wait(self.DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.master)


@contextlib.contextmanager
def terminal(*words: object, **environment: str) -> Iterator[Terminal]:
    opened = Terminal(*words, **environment)
    try:
        yield opened
    finally:
        opened.close()


def test_on_a_terminal_people_are_walked_through_and_nobody_sees_a_passphrase(
    cli: Command, keys: Path, tmp_path: Path
) -> None:
    public_files(cli, keys, tmp_path, "carol")
    with terminal("fleet", "init", tmp_path / "f", "--kdf", "interactive") as person:
        person.answer("What do people call the fleet?", "Acme")
        person.answer("How many people will hold keys? [3]", "")
        person.answer("here/files [here]", "")
        person.answer("Name", "ann")
        person.answer("here/files [here]", "here")
        person.answer("Name", "ann")
        person.answer("owners must be different people", "")
        person.answer("Name", "bob")
        person.answer("here/files [here]", "files")
        person.answer("Public file of their root key", str(tmp_path / "absent.pub"))
        person.answer("there is no such file", "")
        person.answer("Public file of their root key", str(tmp_path / "carol-root.pub"))
        person.answer("Does carol read the same twelve words?", "y")
        person.answer("Public file of their release key", str(tmp_path / "carol-targets.pub"))
        person.answer("Does carol read the same twelve words?", "y")
        person.answer("How many of the 3 must sign a new root? [2]", "")
        person.answer("How many of the 3 must sign releases and policies? [2]", "")
        person.answer("Make this fleet? [Y/n]", "y")
        for whose, words in (("keys of ann", "Xyzzy of ann 4711"), ("keys of bob", "Xyzzy of bob 4711")):
            person.answer(f"Passphrase for the {whose}", words, hidden=True)
            person.answer("Repeat for confirmation", words, hidden=True)
        person.answer(
            "Passphrase for the publisher's keys and the certificate authority of fleet Acme", "short", hidden=True
        )
        person.answer("Repeat for confirmation", "short", hidden=True)
        assert person.ended() == 0, person.all
    assert "Xyzzy" not in person.all
    assert "That is short" in person.all
    assert "root: complete, signed by ann, bob" in person.all
    assert "6 of 8 keys gave a test signature" in person.all
    keyfile.load(tmp_path / "f" / "keys" / "targets-bob.key", "Xyzzy of bob 4711")
    keyfile.load(tmp_path / "f" / "keys" / "timestamp.key", "short")
    assert not (tmp_path / "f" / "keys" / "root-carol.key").exists()


def test_who_says_no_at_the_end_of_the_walk_has_made_nothing(tmp_path: Path) -> None:
    with terminal("fleet", "init", tmp_path / "f", "--name", "Acme") as person:
        person.answer("How many people will hold keys? [3]", "1")
        person.answer("here/files [here]", "")
        person.answer("Name", "ann")
        person.answer("must sign a new root? [1]", "")
        person.answer("must sign releases and policies? [1]", "")
        person.answer("Make this fleet? [Y/n]", "n")
        assert person.ended() == 2
    assert "no fleet was made" in person.all
    assert not (tmp_path / "f").exists()


# secrets


def test_no_passphrase_and_no_private_key_is_in_any_output_file_or_log(
    cli: Command, keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fleet, secret = tmp_path / "fleet", f"{WORDS} of alice"
    opened = keyfile.load(keys / "alice-root.key", secret)
    forbidden = [
        secret,
        opened.private_key.private_bytes_raw().hex(),
        opened.private_key.private_bytes_raw().hex().upper(),
    ]
    of_alice = passphrase_of("alice", tmp_path)
    carried = public_files(cli, keys, tmp_path, "alice", "bob")
    said = []
    for line in (
        ("fleet", "init", fleet, "--name", "acme", *carried, *of_alice, "--kdf", "interactive"),
        ("key", "show", keys / "alice-root.key"),
        ("key", "public", keys / "alice-root.key", "--out", tmp_path / "again.pub", *of_alice),
        ("key", "test", keys / "alice-root.key", "--fleet", fleet, *of_alice),
        ("key", "test", keys / "bob-root.key", "--fleet", fleet, *of_alice),
        ("sign", "--fleet", fleet, "--key", keys / "alice-root.key", "--yes", *of_alice),
        ("sign", "--fleet", fleet, "--key", keys / "carol-root.key", "--yes", *of_alice),
        ("fleet", "sheet", "--fleet", fleet, "--out", tmp_path / "sheet.txt"),
        ("key", "passphrase", keys / "bob-root.key", *of_alice, "--new-passphrase-file", of_alice[1]),
    ):
        ended = cli(*line)
        said.append(ended.out + ended.err)
    said += [repr(opened), str(opened), repr(opened.signer()), (tmp_path / "sheet.txt").read_text(), caplog.text]
    said += [
        path.read_text(errors="replace")
        for path in (*fleet.rglob("*"), *keys.iterdir(), *tmp_path.glob("*.pub"))
        if path.is_file()
    ]
    assert len(said) > 30
    for text in said:
        assert not any(word in text for word in forbidden)


def test_a_running_command_shows_no_passphrase_in_the_process_list(keys: Path, tmp_path: Path) -> None:
    secret = f"{WORDS} of alice"
    with terminal("key", "public", keys / "alice-root.key", "--out", tmp_path / "a.pub") as person:
        person.answer("Passphrase for", secret[:5], hidden=True)
        person.ended()
        assert person.process.returncode == 5
    with terminal("key", "public", keys / "alice-root.key", "--out", tmp_path / "a.pub") as person:
        deadline = time.monotonic() + person.DEADLINE_S
        while "Passphrase for" not in person.seen:
            assert person.read(deadline)
        shown = Path(f"/proc/{person.process.pid}/cmdline").read_bytes() if Path("/proc").exists() else b""
        environment = Path(f"/proc/{person.process.pid}/environ").read_bytes() if Path("/proc").exists() else b""
        person.seen = "Passphrase for" + person.seen
        person.answer("Passphrase for", secret, hidden=True)
        assert person.ended() == 0, person.all
    assert secret.encode() not in shown + environment
    assert secret not in person.all


# tokens


@needs_tokens[0]
@needs_tokens[1]
def test_a_key_in_a_token_is_one_of_the_keys_of_a_fleet(
    cli: Command, keys: Path, tmp_path: Path, words: Words, token_of_alice: str
) -> None:
    pin = ("--passphrase-file", tmp_path / "pin")
    (tmp_path / "pin").write_text(f"{PIN}\n")
    (tmp_path / "pin").chmod(0o600)
    made = cli("key", "new", "--token", token_of_alice, "--role", "root", "--owner", "alice", *pin, "--json")
    assert made.status == 0, made.err
    assert made.facts["algorithm"] == "ECDSA P-256"
    assert cli("key", "show", "--token", token_of_alice, "--json").facts == made.facts
    public = cli("key", "public", "--token", token_of_alice, "--out", tmp_path / "alice-root.pub", *pin)
    assert public.status == 0, public.err
    release = public_files(cli, keys, tmp_path, "bob")
    founding = ("--root-key", tmp_path / "alice-root.pub", *release, "--root-threshold", 2)
    fleet = tmp_path / "fleet"
    assert cli("fleet", "init", fleet, "--name", "acme", *founding, *words, "--kdf", "interactive").status == 0
    tested = cli("key", "test", "--token", token_of_alice, "--fleet", fleet, *pin)
    assert (tested.status, "root: signed" in tested.out) == (0, True)
    signed = cli("sign", "--fleet", fleet, "--token", token_of_alice, "--yes", *pin)
    assert signed.status == 0, signed.err
    assert "root: 1 more of bob must sign; signed by alice" in signed.out
    assert sign(cli, fleet, keys, "bob", "root", tmp_path).status == 0
    assert sign(cli, fleet, keys, "bob", "targets", tmp_path).status == 0
    published = cli("publish", "--fleet", fleet, "--to", tmp_path / "origin", *words)
    assert published.status == 0, published.err
    assert PIN not in "".join(one.out + one.err for one in (made, public, tested, signed))
    (tmp_path / "pin").write_text("000000\n")
    wrong = cli("key", "test", "--token", token_of_alice, "--fleet", fleet, *pin)
    assert (wrong.status, "refused the PIN" in wrong.err) == (5, True)
    assert "000000" not in wrong.err
