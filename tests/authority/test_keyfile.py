"""Key files: what opens one, what must not, and what reading one may cost."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from repository_simulator import killed_before

from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.keys.keyfile import (
    MEMORY_BYTES_MAX,
    PASSES_MAX,
    SIZE_BYTES_MAX,
    KeyFile,
    decode_key_file_untrusted,
)
from pcm_p2p.authority.keys.public_key import PublicKey, encode_public_key
from pcm_p2p.errors import InputError, PcmError, TrustError, UntrustedBytes

WORDS = "correct horse battery staple"
MADE = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def made(tmp_path: Path) -> KeyFile:
    return keyfile.create(tmp_path / "targets-ada.key", WORDS, "targets", "ada", preset="lab")


def altered(path: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    document = msgspec.json.decode(path.read_bytes())
    change(document)
    path.write_bytes(msgspec.json.encode(document))


def test_a_key_file_opens_with_its_passphrase_and_signs(made: KeyFile) -> None:
    opened = keyfile.load(made.path, WORDS)
    assert (opened.role, opened.owner, opened.keyid) == ("targets", "ada", made.keyid)
    signature = opened.signer().sign(b"a proposal")
    made.key.verify_signature(signature, b"a proposal")
    assert signature.keyid == made.keyid


def test_the_public_side_needs_no_passphrase(made: KeyFile) -> None:
    public = keyfile.read_public(made.path)
    assert public.public_key == made.public_key
    assert public.key.unrecognized_fields == {"x-pcm-owner": "ada"}
    assert public.fingerprint.replace(" ", "") == made.keyid[:32]
    assert [len(group) for group in public.fingerprint.split()] == [4] * 8


def test_neither_seed_nor_passphrase_is_in_the_file_or_in_what_is_printed(made: KeyFile) -> None:
    seed = made.private_key.private_bytes_raw().hex()
    assert seed not in made.path.read_text()
    assert seed not in repr(made)
    assert WORDS not in made.path.read_text()


def test_two_files_under_one_passphrase_share_neither_salt_nor_key(made: KeyFile, tmp_path: Path) -> None:
    other = keyfile.create(tmp_path / "other.key", WORDS, "targets", "ada", preset="lab")
    salts = {decode_key_file_untrusted(key.path.read_bytes()).header.derivation.salt for key in (made, other)}
    assert len(salts) == 2
    assert other.public_key != made.public_key


def test_only_the_owner_can_read_a_new_file_whatever_the_umask(made: KeyFile) -> None:
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600


def test_an_existing_file_is_never_replaced(made: KeyFile) -> None:
    before = made.path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        keyfile.create(made.path, WORDS, "root", "ada", preset="lab")
    assert made.path.read_bytes() == before


def test_a_link_left_in_the_place_of_the_new_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "new.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError):
        keyfile.create(tmp_path / "new.key", WORDS, "root", "ada", preset="lab")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("owner", ["", " ada", "a\nb", "x" * 65, "\x1b[2J"])
def test_an_owner_who_cannot_be_shown_is_refused(tmp_path: Path, owner: str) -> None:
    with pytest.raises(InputError, match="owner"):
        keyfile.create(tmp_path / "k.key", WORDS, "root", owner, preset="lab")
    assert not (tmp_path / "k.key").exists()


def test_a_wrong_passphrase_is_refused_and_says_so(made: KeyFile) -> None:
    with pytest.raises(TrustError, match="passphrase is wrong") as refused:
        keyfile.load(made.path, "correct horse")
    assert refused.value.remedy


def test_one_passphrase_typed_on_two_keyboards_is_the_same(tmp_path: Path) -> None:
    keyfile.create(tmp_path / "k.key", "caf\u00e9", "root", "ada", preset="lab")
    assert keyfile.load(tmp_path / "k.key", "cafe\u0301").owner == "ada"


@pytest.mark.parametrize(("field", "value"), [("role", "root"), ("owner", "mallory"), ("public", "00" * 32)])
def test_an_altered_header_is_found_out(made: KeyFile, field: str, value: str) -> None:
    altered(made.path, lambda document: document["header"].update({field: value}))
    with pytest.raises(TrustError, match="header was altered"):
        keyfile.load(made.path, WORDS)


def test_a_box_moved_from_another_file_does_not_open(made: KeyFile, tmp_path: Path) -> None:
    other = msgspec.json.decode(
        keyfile.create(tmp_path / "o.key", WORDS, "root", "ada", preset="lab").path.read_bytes()
    )
    altered(made.path, lambda document: document.update(box=other["box"]))
    with pytest.raises(TrustError):
        keyfile.load(made.path, WORDS)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("memory_bytes", MEMORY_BYTES_MAX + 1, "asks for more than the 1024 MiB of memory"),
        ("memory_bytes", 1 << 62, "asks for more than the 1024 MiB of memory"),
        ("memory_bytes", 1 << 200, "asks for more than the 1024 MiB of memory"),
        ("memory_bytes", 0, "is a damaged key file"),
        ("passes", PASSES_MAX + 1, "asks for more than the 16 passes"),
        ("passes", 0, "is a damaged key file"),
        ("algorithm", "scrypt", "is a damaged key file"),
        ("salt", "00", "is a damaged key file"),
    ],
)
def test_a_derivation_out_of_bounds_is_refused_before_it_costs_anything(
    made: KeyFile, field: str, value: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(*_: object, **__: object) -> bytes:
        raise AssertionError("the derivation ran")

    altered(made.path, lambda document: document["header"]["derivation"].update({field: value}))  # type: ignore[attr-defined]
    monkeypatch.setattr(keyfile.argon2id, "kdf", spent)
    with pytest.raises(TrustError, match=said) as refused:
        keyfile.load(made.path, WORDS)
    assert str(made.path) in refused.value.message
    assert "from its backup" in refused.value.remedy
    with pytest.raises(InputError, match=said):
        keyfile.read_public(made.path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_file_that_others_can_read_is_not_used(made: KeyFile, mode: int) -> None:
    made.path.chmod(mode)
    with pytest.raises(TrustError, match="others can read") as refused:
        keyfile.load(made.path, WORDS)
    assert "chmod 600" in refused.value.remedy
    with pytest.raises(InputError, match="others can read"):
        keyfile.read_public(made.path)


def test_an_absent_file_and_a_folder_are_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        keyfile.load(tmp_path / "absent.key", WORDS)
    with pytest.raises(InputError, match="is not a file"):
        keyfile.load(tmp_path, WORDS)


def test_a_file_cut_off_anywhere_is_damaged_and_nothing_else(made: KeyFile) -> None:
    data = made.path.read_bytes().rstrip()
    for length in range(0, len(data), 7):
        with pytest.raises(UntrustedBytes):
            decode_key_file_untrusted(data[:length])


def test_a_file_without_end_is_refused_by_its_size() -> None:
    with pytest.raises(UntrustedBytes, match="more than the 8192 bytes"):
        decode_key_file_untrusted(b" " * (SIZE_BYTES_MAX + 1))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
@example(b'{"header": {"owner": "\xff"}}')
@example(b"[" * 8_000)
@example(b'{"header": {"derivation": {"passes": NaN}}, "box": ""}')
@example(b'{"header": {"derivation": {"passes": 1e999}}, "box": ""}')
@example(b'{"header": {"derivation": []}, "box": null}')
def test_noise_is_refused_as_untrusted_and_in_no_other_way(data: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        decode_key_file_untrusted(data)


def linked(made: KeyFile, path: Path) -> None:
    path.symlink_to(made.path)


def of_somebody_else(made: KeyFile, path: Path) -> None:
    path.write_bytes(made.path.read_bytes())
    path.chmod(0o600)
    os.chown(path, 12_345, -1)


def cut_off(made: KeyFile, path: Path) -> None:
    path.write_bytes(made.path.read_bytes()[:-100])
    path.chmod(0o600)


def a_photograph(made: KeyFile, path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n" + bytes(20_000))
    path.chmod(0o600)


def a_public_key(made: KeyFile, path: Path) -> None:
    path.write_bytes(encode_public_key(PublicKey(made.role, made.owner, made.key), made.signer(), MADE))
    path.chmod(0o600)


def empty(made: KeyFile, path: Path) -> None:
    path.touch(0o600)


@pytest.mark.parametrize(
    ("prepare", "said", "remedy"),
    [
        (linked, "is a symbolic link", "the key file itself"),
        pytest.param(
            of_somebody_else,
            "belongs to user 12345",
            "chown",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away"),
        ),
        (cut_off, "was cut off", "from its backup"),
        (a_photograph, "is not a key file", "Check the path"),
        (a_public_key, "is not a key file: it has no header and box", "Check the path"),
        (empty, "is not a key file", "Check the path"),
    ],
)
def test_what_cannot_be_a_key_of_yours_says_what_it_is_and_what_to_do(
    made: KeyFile, tmp_path: Path, prepare: Callable[[KeyFile, Path], None], said: str, remedy: str
) -> None:
    path = tmp_path / "other.key"
    prepare(made, path)
    with pytest.raises(TrustError, match=said) as refused:
        keyfile.load(path, WORDS)
    assert refused.value.message.startswith(f"{path}: ")
    assert remedy in refused.value.remedy


def test_a_pipe_in_the_place_of_a_key_file_does_not_hold_the_reader_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.key", 0o600)
    with pytest.raises(InputError, match="is not a file"):
        keyfile.load(tmp_path / "pipe.key", WORDS)


def test_a_changed_passphrase_opens_the_same_key_and_the_old_one_no_longer_does(made: KeyFile) -> None:
    keyfile.change_passphrase(made.path, WORDS, "new words", preset="lab")
    opened = keyfile.load(made.path, "new words")
    assert (opened.keyid, opened.role, opened.owner) == (made.keyid, "targets", "ada")
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    with pytest.raises(TrustError, match="passphrase is wrong"):
        keyfile.load(made.path, WORDS)
    assert [path.name for path in made.path.parent.iterdir()] == [made.path.name]


@pytest.mark.parametrize(("old", "new"), [("wrong", "new words"), (WORDS, "")])
def test_a_passphrase_that_cannot_be_changed_leaves_the_file_as_it_was(made: KeyFile, old: str, new: str) -> None:
    before = made.path.read_bytes()
    with pytest.raises(PcmError):
        keyfile.change_passphrase(made.path, old, new, preset="lab")
    assert made.path.read_bytes() == before
    assert [path.name for path in made.path.parent.iterdir()] == [made.path.name]


def test_a_disk_that_writes_something_else_does_not_take_the_old_key_away(
    made: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = keyfile._write_new

    def torn(path: Path, data: bytes) -> None:
        honest(path, data[:-200])

    monkeypatch.setattr(keyfile, "_write_new", torn)
    with pytest.raises(TrustError, match="was cut off"):
        keyfile.change_passphrase(made.path, WORDS, "new words", preset="lab")
    assert keyfile.load(made.path, WORDS).keyid == made.keyid
    assert [path.name for path in made.path.parent.iterdir()] == [made.path.name]


def test_killed_at_any_point_of_a_change_the_key_opens_with_one_of_the_two(made: KeyFile) -> None:
    for step in range(20):
        if not killed_before(step, lambda: keyfile.change_passphrase(made.path, WORDS, "new words", preset="lab")):
            break
        try:
            keyfile.load(made.path, WORDS)
        except TrustError:
            assert keyfile.load(made.path, "new words").keyid == made.keyid
            keyfile.change_passphrase(made.path, "new words", WORDS, preset="lab")
    assert step > 2
    assert keyfile.load(made.path, "new words").keyid == made.keyid


@pytest.mark.parametrize("role", ["root", "targets", "team-core", "site-paris.2", "site-a"])
def test_roles_of_teams_and_sites_have_keys_like_others(tmp_path: Path, role: str) -> None:
    assert keyfile.load(keyfile.create(tmp_path / "k", WORDS, role, "ada", preset="lab").path, WORDS).role == role


@pytest.mark.parametrize(
    "role", ["", "boss", "team-", "site-a/b", "site-..", "site-a..b", "root\n", "team-x\n", "halt", "team-main"]
)
def test_there_are_no_keys_of_other_roles(tmp_path: Path, role: str) -> None:
    with pytest.raises(InputError, match="there is no role"):
        keyfile.create(tmp_path / "k", WORDS, role, "ada", preset="lab")
