"""The commands of an authority: fleet, key, release, policy, sign, publish."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from command_line import Command

from pcm_p2p.cli.passphrase import obtain

Words = tuple[str, Path]

POLICY = """\
schema = "pcm.policy/1"
id = "base"
version = {version}
mode = "enforce"

[[assign]]
release = "{release}"
version = "1"
to = {{ all = true }}

[[assign.resource]]
kind = "file"
artifact = "app.bin"
path = "/opt/app"
"""


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "app.bin"
    path.write_bytes(os.urandom(200_000))
    return path


def policy(folder: Path, *, version: int = 1, release: str = "app", text: str = POLICY) -> Path:
    path = folder / "base.toml"
    path.write_text(text.format(version=version, release=release))
    return path


# fleet


def test_fleet_init_shows_the_keys_and_refuses_a_second_time(cli: Command, tmp_path: Path, words: Words) -> None:
    line = ("fleet", "init", tmp_path / "f", "--name", "acme", "--owner", "ann", *words, "--kdf", "interactive")
    made = cli(*line, "--json")
    assert made.status == 0
    assert made.facts["schema"] == "pcm.fleet-init/1"
    assert len(made.facts["fleet"]) == 32
    roles = {(key["role"], key["owner"]) for key in made.facts["keys"]}
    assert roles >= {("root", "ann"), ("targets", "ann"), ("snapshot", "publisher"), ("timestamp", "publisher")}
    again = cli(*line)
    assert (again.status, again.out) == (2, "")
    assert f"{tmp_path / 'f'}: holds a fleet already" in again.err


def test_fleet_init_in_text(cli: Command, tmp_path: Path, words: Words) -> None:
    made = cli("fleet", "init", tmp_path / "f", "--name", "acme", *words, "--kdf", "interactive")
    assert made.status == 0
    assert "targets    admin" in made.out
    assert "Next: edit fleet.toml" in made.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--root-threshold", "2"), "root threshold 2 needs that many owners; there are 1"),
        (("--owner", "ann", "--owner", "ann"), "owners must be different people"),
        (("--owner", "a/b"), "owner"),
    ],
)
def test_fleet_init_refuses_what_cannot_work(
    cli: Command, tmp_path: Path, words: Words, options: tuple[str, ...], said: str
) -> None:
    ended = cli("fleet", "init", tmp_path / "f", "--name", "acme", *words, *options)
    assert ended.status == 2
    assert said in ended.err


def test_a_passphrase_is_never_guessed(cli: Command, tmp_path: Path) -> None:
    line = ("key", "new", tmp_path / "k", "--owner", "ann", "--kdf", "interactive")
    nobody = cli(*line)
    assert nobody.status == 2
    assert "there is no terminal to ask on" in nobody.err
    assert "--passphrase-file" in nobody.err
    for name, data in (("empty", b"\n"), ("latin", b"\xff\n")):
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o600)
    assert "the passphrase is empty" in cli(*line, "--passphrase-file", tmp_path / "empty").err
    assert "not UTF-8" in cli(*line, "--passphrase-file", tmp_path / "latin").err
    assert "cannot be read" in cli(*line, "--passphrase-file", tmp_path / "absent").err
    assert "descriptor 987 cannot be read" in cli(*line, "--passphrase-fd", "987").err


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_passphrase_that_others_may_read_or_exchange_is_refused_as_a_key_file_is(
    cli: Command, tmp_path: Path, mode: int
) -> None:
    shared, link = tmp_path / "shared", tmp_path / "link"
    shared.write_text("correct horse battery staple\n")
    shared.chmod(mode)
    link.symlink_to(shared)
    line = ("key", "new", tmp_path / "k", "--owner", "ann", "--kdf", "interactive", "--passphrase-file")
    for named in (shared, link):
        refused = cli(*line, named)
        assert (refused.status, (tmp_path / "k").exists()) == (5, False)
        assert f"{named}: others can read or write this passphrase file (mode {mode:o})" in refused.err
        assert f"Run 'chmod 600 {named}'" in refused.err
        assert "choose another passphrase" in refused.err
    shared.chmod(0o400)
    assert cli(*line, link).status == 0


def test_a_passphrase_file_of_somebody_else_is_refused(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "words"
    file.write_text("correct horse battery staple\n")
    file.chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    refused = cli("key", "new", tmp_path / "k", "--owner", "ann", "--kdf", "interactive", "--passphrase-file", file)
    assert refused.status == 5
    assert f"belongs to user {file.stat().st_uid}, who could read or exchange it" in refused.err


@pytest.mark.parametrize("way", ["descriptor", "pipe", "credential"])
def test_a_passphrase_from_who_opened_it_or_from_the_service_manager_is_taken(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """``%d/passphrase`` of a systemd unit belongs to root, with the mode 0440 and an access list."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "words").write_text("correct horse battery staple\n")
    (folder / "words").chmod(0o440)
    line = ("key", "new", tmp_path / "k", "--owner", "ann", "--kdf", "interactive", "--passphrase-file")
    if way == "credential":
        assert cli(*line, folder / "words").status == 5, "elsewhere it is a file that others may read"
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
        assert cli(*line, folder / "words").status == 0
        return
    if way == "pipe":
        reading, writing = os.pipe()
        os.write(writing, (folder / "words").read_bytes())
        os.close(writing)
    else:
        reading = os.open(folder / "words", os.O_RDONLY)
    try:
        assert cli(*line, f"/dev/fd/{reading}").status == 0
    finally:
        os.close(reading)


def test_a_passphrase_from_a_pipe_is_the_whole_line_in_however_many_parts_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A key that was made under the first part would not open with the whole."""
    parts = [b"correct ", b"horse\nbattery", b" staple\n"]

    def read(descriptor: int, size: int) -> bytes:
        while parts and not parts[0]:
            parts.pop(0)
        data, rest = (parts[0][:size], parts[0][size:]) if parts else (b"", b"")
        parts[:1] = [rest]
        return data

    monkeypatch.setattr(os, "read", read)
    assert obtain(None, 3, what="a key") == "correct horse"
    assert obtain(None, 3, what="the next") == "battery staple"


def test_fleet_stage_names_the_line_of_what_is_wrong(cli: Command, fleet: Path) -> None:
    assert cli("fleet", "stage", "--fleet", fleet).out == "staged fleet/fleet.toml\n"
    document = fleet / "fleet.toml"
    document.write_text(document.read_text() + '\n[[site]]\nnmae = "x"\n')
    ended = cli("fleet", "stage", "--fleet", fleet)
    assert ended.status == 2
    line = document.read_text().splitlines().index('nmae = "x"') + 1
    assert f"fleet.toml:{line}: nmae: unknown key in site[0]" in ended.err
    assert "Did you mean 'name'?" in ended.err


def test_fleet_activate_wants_somebody(cli: Command, fleet: Path) -> None:
    nobody = cli("fleet", "activate", "--fleet", fleet)
    assert nobody.status == 2
    assert "nobody would be activated" in nobody.err
    assert cli("fleet", "activate", "--fleet", fleet, "--all", "--site", "x").status == 2
    assert cli("fleet", "activate", "--fleet", fleet, "--site", "x").out == "staged fleet/activation.toml\n"
    assert cli("fleet", "activate", "--fleet", fleet, "--all", "--not-before", "soon").status == 2
    elsewhere = cli("fleet", "activate", "--fleet", fleet.parent, "--all")
    assert (elsewhere.status, "is not a fleet folder" in elsewhere.err) == (2, True)


# key


def test_key_new_and_show(cli: Command, tmp_path: Path, words: Words) -> None:
    path = tmp_path / "ann.key"
    made = cli("key", "new", path, "--owner", "ann", "--kdf", "interactive", *words, "--json")
    assert made.status == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made.facts.keys() == {"path", "role", "owner", "algorithm", "keyid", "fingerprint", "words"}
    assert len(made.facts["words"].split()) == 12
    assert cli("key", "show", path, "--json").facts == made.facts
    shown = cli("key", "show", path)
    assert made.facts["fingerprint"] in shown.out
    again = cli("key", "new", path, "--owner", "ann", *words)
    assert again.status == 2
    assert str(path) in again.err


def test_key_show_refuses_what_is_no_key(cli: Command, tmp_path: Path, words: Words) -> None:
    assert cli("key", "show", tmp_path / "absent").status == 2
    assert "--owner is missing" in cli("key", "new", tmp_path / "k", *words).err


# release


def test_release_add_and_show(cli: Command, fleet: Path, artifact: Path, tmp_path: Path) -> None:
    line = ("release", "add", "app", "1", artifact, "--fleet", fleet, "--level", "0")
    added = cli(*line, "--json")
    assert added.status == 0, added.err
    assert added.facts["schema"] == "pcm.release/1"
    assert added.facts["target"] == "releases/main/app@1.manifest"
    assert added.facts["delivered_bytes"] == 200_000
    assert added.facts["artifacts"][0]["name"] == "app.bin"
    shown = cli("release", "show", "app", "--fleet", fleet, "--json").facts
    assert {**shown, "seconds": 0} == {**added.facts, "seconds": 0}
    assert cli("release", "show", "--fleet", fleet, "--json").facts == [
        {"name": "app", "version": "1", "counter": 1, "state": "staged"}
    ]
    table = cli("release", "show", "--fleet", fleet).out.splitlines()
    assert [row.split() for row in table] == [["RELEASE", "VERSION", "COUNTER", "STATE"], ["app", "1", "1", "staged"]]
    assert "in 1 segment\n" in cli("release", "show", "app", "1", "--fleet", fleet).out
    absent = cli("release", "show", "app", "2", "--fleet", fleet)
    assert (absent.status, absent.err.splitlines()[0]) == (2, "pcm-p2p: there is no release app 2")
    again = cli(*line)
    assert (again.status, "counter 1" in again.out) == (0, True), "the same again changes nothing"
    artifact.write_bytes(b"other")
    other = cli(*line)
    assert (other.status, "exists with other content" in other.err) == (2, True)


@pytest.mark.parametrize(
    ("name", "file", "said"),
    [("app", "absent.bin", "absent.bin"), ("a/b", "app.bin", "a/b"), ("app", ".", "")],
)
def test_release_add_names_what_cannot_be_used(
    cli: Command, fleet: Path, artifact: Path, name: str, file: str, said: str
) -> None:
    ended = cli("release", "add", name, "1", artifact.parent / file, "--fleet", fleet)
    assert ended.status == 2
    assert said in ended.err


# policy


def test_policy_check_says_what_is_in_it(cli: Command, tmp_path: Path) -> None:
    path = policy(tmp_path)
    assert cli("policy", "check", path).out == f"{path}: base version 1, mode enforce, 1 assignment, 0 checks\n"
    assert cli("policy", "check", path, "--json").facts == [
        {"id": "base", "version": 1, "mode": "enforce", "assignments": 1, "checks": 0}
    ]


@pytest.mark.parametrize(
    ("there", "instead", "line", "said", "remedy"),
    [
        ('mode = "enforce"', 'mod = "enforce"', 4, "mod: unknown key", "Did you mean 'mode'?"),
        ('kind = "file"', 'kind = "fiel"', 12, "invalid value 'fiel'", "Did you mean 'file'?"),
        ("version = {version}", 'version = "one"', 3, "version: expected `int`", ""),
        ('id = "base"', "id = ", 2, "", ""),
    ],
)
def test_policy_check_names_file_line_key_and_remedy(
    cli: Command, tmp_path: Path, there: str, instead: str, line: int, said: str, remedy: str
) -> None:
    path = policy(tmp_path, text=POLICY.replace(there, instead))
    ended = cli("policy", "check", path)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"pcm-p2p: {path}:{line}: ")
    assert said in ended.err
    assert remedy in ended.err


def test_policy_put_wants_a_known_release_and_a_higher_version(
    cli: Command, fleet: Path, artifact: Path, tmp_path: Path
) -> None:
    absent = cli("policy", "put", tmp_path / "absent.toml", "--fleet", fleet)
    assert (absent.status, "cannot be read" in absent.err) == (2, True)
    path = policy(tmp_path)
    unknown = cli("policy", "put", path, "--fleet", fleet)
    assert unknown.status == 2
    assert f"{path}: assign: assigns app 1, which is not a release of this fleet" in unknown.err
    assert cli("release", "add", "app", "1", artifact, "--fleet", fleet, "--level", "0").status == 0
    assert cli("policy", "put", path, "--fleet", fleet).out == "staged policies/base.toml\n"
    assert cli("policy", "put", path, "--fleet", fleet).status == 0, "the same again"
    path.write_text(path.read_text() + "\n")
    lower = cli("policy", "put", path, "--fleet", fleet)
    assert lower.status == 2
    assert "version: is version 1, and version 1 is staged or published" in lower.err
    assert "Raise it to 2." in lower.err


# sign, publish


def test_two_of_three_sign_what_they_see_and_publish_names_who_is_missing(
    cli: Command, fleet: Path, artifact: Path, tmp_path: Path, words: Words
) -> None:
    origin, keys = tmp_path / "origin", fleet / "keys"
    early = cli("fleet", "refresh", "--fleet", fleet, "--to", origin, *words)
    assert (early.status, "has published nothing yet" in early.err) == (2, True)
    assert cli("release", "add", "app", "1", artifact, "--fleet", fleet, "--level", "0").status == 0
    seen = cli("sign", "--fleet", fleet)
    assert seen.status == 0
    assert "targets version 0 → 1" in seen.err
    assert "+ releases/main/app@1.manifest" in seen.err
    assert "+ fleet/fleet.toml" in seen.err
    assert seen.out == "targets: 2 more of ann, bob, eve must sign; signed by nobody yet\n"
    publishing = ("publish", "--fleet", fleet, "--to", origin, *words)
    early = cli(*publishing)
    assert early.status == 5
    assert "signatures are missing: targets: 2 more of ann, bob, eve must sign" in early.err
    assert not (origin / "metadata" / "timestamp.json").exists()

    signing = ("sign", "--fleet", fleet, "--key", keys / "targets-ann.key", *words)
    unanswered = cli(*signing)
    assert (unanswered.status, "not signed" in unanswered.err) == (2, True)
    assert cli(*signing, "--yes").out == "targets: 1 more of bob, eve must sign; signed by ann\n"
    (tmp_path / "wrong").write_text("wrong\n")
    (tmp_path / "wrong").chmod(0o600)
    wrong = cli(
        "sign", "--fleet", fleet, "--key", keys / "targets-eve.key", "--yes", "--passphrase-file", tmp_path / "wrong"
    )
    assert wrong.status == 5
    no_part = cli("sign", "--fleet", fleet, "--key", keys / "root-eve.key", "--yes", *words)
    assert no_part.status == 2
    still = cli(*publishing)
    assert (still.status, "1 more of bob, eve must sign; signed by ann" in still.err) == (5, True)
    both = cli("sign", "--fleet", fleet, "--key", keys / "targets-eve.key", "--yes", *words, "--json")
    assert both.facts[0]["schema"] == "pcm.proposal/1"
    assert both.facts[0]["signatures"] == [
        {"role": "targets", "threshold": 2, "have": ["ann", "eve"], "could": ["bob"]}
    ]
    assert both.facts[0]["complete"]

    published = cli(*publishing, "--json")
    assert published.status == 0, published.err
    assert published.facts["schema"] == "pcm.published/1"
    assert (published.facts["root"], published.facts["targets"], published.facts["timestamp"]) == (1, 1, 1)
    assert published.facts["segments_added"] == 1
    assert (origin / "metadata" / "timestamp.json").exists()
    assert cli("release", "show", "--fleet", fleet, "--json").facts[0]["state"] == "published"
    nothing = cli("sign", "--fleet", fleet)
    assert (nothing.status, "nothing is proposed" in nothing.err) == (2, True)
    refreshed = cli("fleet", "refresh", "--fleet", fleet, "--to", origin, *words, "--json")
    assert (refreshed.status, refreshed.facts["timestamp"]) == (0, 2)
