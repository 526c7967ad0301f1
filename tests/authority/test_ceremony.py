"""How a fleet begins: founders, public files, the first root that waits for signatures, test signatures, the sheet."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st
from repository_simulator import PASSPHRASE, START, Clock, TreeSource, attempt, killed_before
from securesystemslib.signer import CryptoSigner, Signature, SSlibKey  # type: ignore[attr-defined]
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.authority.keys import key_test_file
from pcm_p2p.authority.keys.fingerprint import public_tuf_key
from pcm_p2p.authority.keys.key_sheet import BLANKS, DUTIES, LOSSES, as_text
from pcm_p2p.authority.keys.key_sheet_file import as_html, sheet_of, write_sheet
from pcm_p2p.authority.keys.key_test import DOMAIN, Challenge, KeyTest, decode_key_tests_untrusted, make_test
from pcm_p2p.authority.keys.key_test_file import holders_of, prove_key, read_tests, untested
from pcm_p2p.authority.keys.keyfile import KeyFile, create
from pcm_p2p.authority.keys.public_key import PublicKey, decode_public_key_untrusted, encode_public_key
from pcm_p2p.authority.keys.public_key_file import read_public_key, write_public_key
from pcm_p2p.authority.keys.signing_key import SigningKey, open_signing_key
from pcm_p2p.authority.people.founders import Founders, suggested_threshold
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.errors import InputError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.lint import KEY_TYPES

PEOPLE = ("alice", "bob", "carol")
Keys = dict[tuple[str, str], KeyFile]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Root and targets key of three people and one stranger, each as if made on a machine of its own."""
    folder = tmp_path_factory.mktemp("people")
    return {
        (role, owner): create(folder / f"{owner}-{role}.key", PASSPHRASE, role, owner, preset="lab")
        for owner in (*PEOPLE, "mallory")
        for role in ("root", "targets")
    }


def public(key: KeyFile) -> PublicKey:
    return PublicKey(key.role, key.owner, key.key)


def carried(keys: Keys, role: str, *owners: str) -> tuple[PublicKey, ...]:
    return tuple(public(keys[role, owner]) for owner in owners or PEOPLE)


def found(path: Path, keys: Keys, **options: Any) -> FleetFolder:
    """A fleet of the three, two of whom must sign."""
    given: dict[str, Any] = {
        "owners": (),
        "root_keys": carried(keys, "root"),
        "targets_keys": carried(keys, "targets"),
        "root_threshold": 2,
        "targets_threshold": 2,
        **options,
    }
    return FleetFolder.init(path, name="Example", passphrase=PASSPHRASE, preset="lab", wall_clock=Clock(), **given)


@pytest.fixture(scope="module")
def founded(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> FleetFolder:
    return found(tmp_path_factory.mktemp("founded") / "fleet", keys)


@pytest.fixture
def waiting(founded: FleetFolder, tmp_path: Path) -> FleetFolder:
    """A copy of the fleet whose first root nobody has signed."""
    shutil.copytree(founded.path, tmp_path / "fleet")
    return FleetFolder.open(tmp_path / "fleet", wall_clock=Clock())


# founders


@pytest.mark.parametrize(("people", "threshold"), [(1, 1), (2, 1), (3, 2), (4, 2), (9, 2)])
def test_two_signatures_are_suggested_where_three_people_are(people: int, threshold: int) -> None:
    assert suggested_threshold(people) == threshold


@pytest.mark.parametrize(
    ("founders", "said"),
    [
        (lambda keys: Founders(), "nobody holds a root key"),
        (lambda keys: Founders(root_keys=carried(keys, "root")), "nobody holds a release key"),
        (lambda keys: Founders(("ann", "Ann")), "would hold two root keys"),
        (lambda keys: Founders(("alice",), carried(keys, "root")), "alice would hold two root keys"),
        (lambda keys: Founders(("a b",)), "owner"),
        (lambda keys: Founders(("ann",), root_threshold=2), "root threshold 2 needs that many owners; there are 1"),
        (lambda keys: Founders(("ann",), targets_threshold=0), "release threshold 0"),
        (lambda keys: Founders(("ann",), carried(keys, "targets")), "is for targets, not for root"),
        (lambda keys: Founders(("ann",), (), carried(keys, "root")), "is for root, not for targets"),
        (
            lambda keys: Founders(
                (), (public(keys["root", "bob"]),), (PublicKey("targets", "eve", keys["root", "bob"].key),)
            ),
            "one key was given twice, as the root key of bob and the targets key of eve",
        ),
    ],
)
def test_people_who_cannot_found_a_fleet_are_told_why(
    keys: Keys, founders: Callable[[Keys], Founders], said: str
) -> None:
    with pytest.raises(InputError, match=said) as refused:
        founders(keys).check()
    assert refused.value.remedy


def test_people_hear_what_their_thresholds_mean() -> None:
    assert Founders(("a", "b", "c"), (), (), 2, 2).remarks() == ()
    assert "whoever steals one decides alone" in Founders(("a",)).remarks()[0]
    assert "lost or away stops you" in Founders(("a", "b"), (), (), 2, 2).remarks()[0]


# public files


def test_a_public_file_carries_role_owner_and_key_and_nothing_secret(keys: Keys, tmp_path: Path) -> None:
    key = keys["root", "alice"]
    write_public_key(tmp_path / "alice.pub", public(key), key.signer())
    read = read_public_key(tmp_path / "alice.pub")
    assert (read.role, read.owner, read.keyid, read.words) == ("root", "alice", key.keyid, key.words)
    assert read.key.unrecognized_fields == {"x-pcm-owner": "alice"}
    assert key.private_key.private_bytes_raw().hex() not in (tmp_path / "alice.pub").read_text()
    with pytest.raises(InputError, match="exists already"):
        write_public_key(tmp_path / "alice.pub", public(key), key.signer())


def test_the_public_side_of_a_key_file_is_taken_too(keys: Keys) -> None:
    read = read_public_key(keys["targets", "bob"].path)
    assert (read.role, read.owner, read.keyid) == ("targets", "bob", keys["targets", "bob"].keyid)


def test_a_public_file_whose_maker_does_not_hold_the_key_is_refused(keys: Keys) -> None:
    """Somebody hands in the key of another person as their own: they cannot sign the statement."""
    key, thief = keys["root", "alice"], keys["root", "mallory"]
    forged = encode_public_key(PublicKey("root", "mallory", key.key), thief.signer(), START)
    with pytest.raises(UntrustedBytes, match="its maker does not hold the key"):
        decode_public_key_untrusted(forged)


STATEMENTS: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("owner", lambda one: one.update(owner="mallory"), "not by this key"),
    ("role", lambda one: one.update(role="targets"), "not by this key"),
    ("date", lambda one: one.update(made="2020-01-01T00:00:00Z"), "not by this key"),
    ("halt", lambda one: one.update(role="halt"), "no role"),
    ("stranger role", lambda one: one.update(role="boss"), "role"),
    ("screen", lambda one: one.update(owner="a\x1b[2J"), "cannot be shown"),
    ("scheme", lambda one: one["key"].update(scheme="ecdsa-sha2-nistp256"), "are not used"),
    ("rsa", lambda one: one["key"].update(keytype="rsa", scheme="rsassa-pss-sha256"), "are not used"),
    ("no key", lambda one: one["key"].update(public="00"), "public key"),
    ("capitals", lambda one: one["key"].update(public=one["key"]["public"].upper()), "canonical form"),
    ("more", lambda one: one.update(more=1), "more"),
    ("naive", lambda one: one.update(made="2020-01-01T00:00:00"), "made"),
]


@pytest.mark.parametrize(
    ("change", "said"), [(change, said) for _, change, said in STATEMENTS], ids=[one[0] for one in STATEMENTS]
)
def test_an_altered_public_file_is_refused(keys: Keys, change: Callable[[dict[str, Any]], object], said: str) -> None:
    key = keys["root", "alice"]
    document = msgspec.json.decode(encode_public_key(public(key), key.signer(), START))
    change(document["statement"])
    with pytest.raises(UntrustedBytes, match=said):
        decode_public_key_untrusted(msgspec.json.encode(document))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_public_files_carry_the_keys_that_tokens_have(curve: ec.EllipticCurve) -> None:
    private = ec.generate_private_key(curve)
    key = SSlibKey.from_crypto(private.public_key())
    assert (key.keytype, key.scheme) in KEY_TYPES
    data = encode_public_key(PublicKey("site-paris", "bob", key), CryptoSigner(private, key), START)
    assert decode_public_key_untrusted(data).keyid == key.keyid


def test_a_curve_that_devices_cannot_verify_is_refused() -> None:
    private = ec.generate_private_key(ec.SECP521R1())
    key = SSlibKey.from_crypto(private.public_key())
    data = encode_public_key(PublicKey("root", "bob", key), CryptoSigner(private, key), START)
    with pytest.raises(UntrustedBytes, match="are not used"):
        decode_public_key_untrusted(data)


def test_a_curve_under_the_scheme_of_another_is_refused() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    key = SSlibKey.from_crypto(private.public_key())
    document = msgspec.json.decode(encode_public_key(PublicKey("root", "bob", key), CryptoSigner(private, key), START))
    document["statement"]["key"]["scheme"] = "ecdsa-sha2-nistp384"
    with pytest.raises(UntrustedBytes, match="does not belong to the scheme"):
        decode_public_key_untrusted(msgspec.json.encode(document))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
@example(b"[" * 4_000)
@example(b" " * 5_000)
@example(b'{"statement": {"schema": "pcm.public-key/1"}, "signature": "00"}')
def test_noise_is_no_public_key(data: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        decode_public_key_untrusted(data)


# the first root


def test_a_first_root_waits_until_enough_of_its_holders_have_signed_in_any_order(
    waiting: FleetFolder, keys: Keys, tmp_path: Path
) -> None:
    online = OnlineKeys.open(waiting, PASSPHRASE)
    assert waiting.first_root_waits()
    assert waiting.root().signed.version == 1
    assert waiting.root().signatures == {}
    root, targets = waiting.proposals()
    assert (root.role, root.version_before, root.version_after) == ("root", 0, 1)
    assert [one.line() for one in root.signatures] == [
        "root: 2 more of alice, bob, carol must sign; signed by nobody yet"
    ]
    assert targets.role == "targets"
    for role, owner in (("targets", "carol"), ("root", "carol"), ("targets", "alice")):
        with pytest.raises(TrustError, match=r"signatures are missing:\s+root: \d more of .*alice"):
            publish(waiting, tmp_path / "origin", online)
        waiting.sign(keys[role, owner].path, PASSPHRASE)
    with pytest.raises(TrustError, match="root: 1 more of alice, bob must sign; signed by carol"):
        publish(waiting, tmp_path / "origin", online)
    assert not (tmp_path / "origin" / "metadata").exists()
    waiting.sign(keys["root", "bob"].path, PASSPHRASE)
    published = publish(waiting, tmp_path / "origin", online)
    assert (published.versions.root, waiting.first_root_waits(), waiting.proposals()) == (1, False, ())
    client = TrustClient(tmp_path / "device", waiting.root_bytes(1), waiting.fleet_id, wall_clock=Clock())
    with client:
        heard = attempt(client, TreeSource(tmp_path / "origin"))
    assert heard.kind == "good", heard.reason


def test_a_stranger_and_a_release_key_do_not_sign_the_first_root(waiting: FleetFolder, keys: Keys) -> None:
    with pytest.raises(InputError, match="has no part in what is proposed"):
        waiting.sign(keys["root", "mallory"].path, PASSPHRASE)
    waiting.sign(keys["targets", "alice"].path, PASSPHRASE)
    assert waiting.root().signatures == {}


def test_the_same_person_twice_is_one_signature(waiting: FleetFolder, keys: Keys) -> None:
    for _ in range(2):
        waiting.sign(keys["root", "alice"].path, PASSPHRASE)
    (root, _) = waiting.proposals()
    assert root.signatures[0].have == ("alice",)
    assert not root.complete


def test_before_the_first_root_is_signed_no_device_can_be_told_to_trust_it(waiting: FleetFolder) -> None:
    with pytest.raises(TrustError, match="not signed and published yet"):
        waiting.root_bytes()
    with pytest.raises(TrustError, match="not signed and published yet"):
        waiting.root_bytes(1)


def test_a_waiting_first_root_is_neither_replaced_nor_thrown_away(waiting: FleetFolder, keys: Keys) -> None:
    waiting.sign(keys["root", "alice"].path, PASSPHRASE)
    with pytest.raises(InputError, match="cannot be replaced"):
        waiting.propose_root(lambda root: None)
    waiting.discard()
    assert waiting.first_root_waits()
    assert waiting.root().signatures.keys() == {keys["root", "alice"].keyid}
    waiting.stage_fleet_document()
    assert [proposal.role for proposal in waiting.proposals()] == ["root", "targets"]


def test_people_on_this_machine_sign_at_once_and_the_others_after_them(keys: Keys, tmp_path: Path) -> None:
    folder = found(tmp_path / "mixed", keys, owners=("dora",), root_threshold=3)
    assert folder.first_root_waits()
    assert [one.have for one in folder.proposals()[0].signatures] == [("dora",)]
    enough = found(tmp_path / "enough", keys, owners=("dora", "emil"), root_threshold=2)
    assert not enough.first_root_waits()
    assert enough.root_bytes(1)


def test_killed_while_the_first_root_is_published_the_same_command_completes_it(
    waiting: FleetFolder, keys: Keys, tmp_path: Path
) -> None:
    for role, owner in (("root", "alice"), ("root", "bob"), ("targets", "alice"), ("targets", "bob")):
        waiting.sign(keys[role, owner].path, PASSPHRASE)
    online = OnlineKeys.open(waiting, PASSPHRASE)
    for step in range(0, 60, 7):
        copy = tmp_path / str(step)
        shutil.copytree(waiting.path, copy / "fleet")
        folder = FleetFolder.open(copy / "fleet", wall_clock=Clock())
        killed = killed_before(step, lambda folder=folder, copy=copy: publish(folder, copy / "origin", online))
        assert publish(folder, copy / "origin", online).versions.root == 1
        assert not folder.first_root_waits()
        if not killed:
            break
    assert step > 20


# test signatures


def test_a_key_that_the_fleet_lists_signs_a_challenge_that_its_listing_verifies(
    waiting: FleetFolder, keys: Keys
) -> None:
    key = keys["root", "alice"]
    (test,) = prove_key(waiting, open_signing_key(key.path, PASSPHRASE))
    assert (test.challenge.role, test.challenge.fleet, test.challenge.under) == ("root", waiting.fleet_id, 1)
    assert test.is_by(waiting.root().signed.keys[key.keyid])
    assert read_tests(waiting.path).tests == (test,)
    left = {(holder.role, holder.owner) for holder in untested(waiting)}
    assert ("root", "alice") not in left
    assert left == {
        *(("root", owner) for owner in ("bob", "carol")),
        *(("targets", owner) for owner in PEOPLE),
        ("snapshot", "publisher"),
        ("timestamp", "publisher"),
    }


def test_the_publishers_keys_and_every_persons_can_be_tested_until_nobody_is_left(
    waiting: FleetFolder, keys: Keys
) -> None:
    for path in [
        *(key.path for (_, owner), key in keys.items() if owner in PEOPLE),
        *(waiting.path / "keys").iterdir(),
    ]:
        prove_key(waiting, open_signing_key(path, PASSPHRASE))
    assert untested(waiting) == ()
    assert all(holder.tested == START for holder in holders_of(waiting))


def test_a_signature_on_a_document_proves_a_key_too(waiting: FleetFolder, keys: Keys) -> None:
    waiting.sign(keys["root", "bob"].path, PASSPHRASE)
    (bob,) = [holder for holder in holders_of(waiting) if (holder.role, holder.owner) == ("root", "bob")]
    assert (bob.tested, bob.signed, bob.proven) == (None, True, True)


def test_a_stranger_is_told_that_the_fleet_lists_him_for_nothing(waiting: FleetFolder, keys: Keys) -> None:
    with pytest.raises(InputError, match="lists the key of mallory for nothing"):
        prove_key(waiting, open_signing_key(keys["root", "mallory"].path, PASSPHRASE))
    assert read_tests(waiting.path).tests == ()


def test_a_key_whose_signatures_do_not_verify_is_not_recorded(waiting: FleetFolder, keys: Keys) -> None:
    """A token with another key behind the number that the public file was made of."""
    alice, mallory = keys["root", "alice"], keys["root", "mallory"]

    class Exchanged(CryptoSigner):
        def sign(self, payload: bytes) -> Signature:
            return Signature(alice.keyid, super().sign(payload).signature)

    exchanged = SigningKey(Exchanged(mallory.private_key, mallory.key), "alice", "root", alice.keyid)
    with pytest.raises(TrustError, match="does not verify under the key that the fleet lists for root"):
        prove_key(waiting, exchanged)
    assert read_tests(waiting.path).tests == ()


def test_what_is_signed_is_no_document_of_the_tree(waiting: FleetFolder, keys: Keys) -> None:
    key = keys["root", "alice"]
    (test,) = prove_key(waiting, open_signing_key(key.path, PASSPHRASE))
    assert test.challenge.signed.startswith(DOMAIN)
    assert not waiting.root().signed_bytes.startswith(DOMAIN[:1])


CHALLENGE = Challenge("0" * 32, "root", "0" * 64, 1, START, "0" * 64)


@pytest.mark.parametrize(
    "other",
    [
        {"fleet": "1" * 32},
        {"role": "targets"},
        {"under": 2},
        {"random": "1" * 64},
        {"time": datetime(2027, 1, 1, tzinfo=UTC)},
    ],
)
def test_a_recorded_test_counts_for_its_own_challenge_only(keys: Keys, other: dict[str, Any]) -> None:
    key = keys["root", "alice"]
    challenge = msgspec.structs.replace(CHALLENGE, keyid=key.keyid)
    test = make_test(challenge, key.signer())
    assert test.is_by(key.key)
    assert not test.is_by(keys["root", "bob"].key)
    assert not KeyTest(msgspec.structs.replace(challenge, **other), test.signature).is_by(key.key)


def test_a_test_that_was_recorded_for_another_fleet_or_by_hand_does_not_count(waiting: FleetFolder, keys: Keys) -> None:
    key = keys["root", "alice"]
    foreign = make_test(msgspec.structs.replace(CHALLENGE, keyid=key.keyid), key.signer())
    mine = msgspec.structs.replace(CHALLENGE, keyid=keys["root", "bob"].keyid, fleet=waiting.fleet_id)
    with waiting.locked():
        key_test_file.record(waiting, foreign, "alice")
        key_test_file.record(waiting, KeyTest(mine, foreign.signature), "bob")
    assert {("root", "alice"), ("root", "bob")} <= {(holder.role, holder.owner) for holder in untested(waiting)}


def test_a_damaged_record_says_what_to_do(waiting: FleetFolder) -> None:
    (waiting.path / "key-tests.json").write_bytes(b"{}")
    with pytest.raises(StorageError, match=r"key-tests\.json cannot be read") as refused:
        untested(waiting)
    assert "tested again" in refused.value.remedy


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
@example(b"[" * 4_000)
def test_noise_is_no_record_of_tests(data: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        decode_key_tests_untrusted(data)


# the sheet


def test_the_sheet_names_people_fingerprints_thresholds_dates_and_who_is_untested(
    waiting: FleetFolder, keys: Keys
) -> None:
    prove_key(waiting, open_signing_key(keys["root", "alice"].path, PASSPHRASE))
    sheet = sheet_of(waiting)
    text, page = as_text(sheet), as_html(sheet)
    for told in (
        "Example",
        sheet.fleet,
        sheet.root_digest,
        "2028-02-29",
        "2 of 3 must sign",
        "tested 2026-03-01",
        "NOT TESTED",
        *BLANKS,
    ):
        assert told in text
        assert told in page
    for key in (key for (_, owner), key in keys.items() if owner in PEOPLE):
        assert key.fingerprint in text
        assert key.fingerprint in page
        assert " ".join(key.words[:6]) in text
        assert " ".join(key.words[6:]) in page
    assert "The root is not signed by enough people yet" in text
    assert "The root key of bob has not been tested" in text
    assert "The root key of alice has not been tested" not in text
    assert all(command in page for _, command in LOSSES)
    assert len(DUTIES) >= 5
    assert max(len(line) for line in text.splitlines()) <= 78


def test_the_page_is_whole_by_itself_and_runs_nothing(waiting: FleetFolder) -> None:
    page = as_html(sheet_of(waiting))
    assert "@page { size: A4" in page
    for foreign in ("<script", "http://", "https://", "url(", "<img", "<link", "@import", "javascript:"):
        assert foreign not in page
    assert "default-src 'none'" in page


def test_names_paint_neither_the_page_nor_the_terminal(keys: Keys, tmp_path: Path) -> None:
    evil = PublicKey("root", "<img src=x>", public_tuf_key(keys["root", "mallory"].public_key, "<img src=x>"))
    folder = found(tmp_path / "fleet", keys, root_keys=(*carried(keys, "root"), evil))
    assert "<img src=x>" not in as_html(sheet_of(folder))
    assert "&lt;img src=x&gt;" in as_html(sheet_of(folder))


def test_the_sheet_of_a_signed_fleet_warns_of_thresholds_that_one_absence_breaks(keys: Keys, tmp_path: Path) -> None:
    folder = found(
        tmp_path / "fleet", keys, owners=("dora", "emil"), root_keys=(), root_threshold=2, targets_threshold=1
    )
    remarks = sheet_of(folder).remarks
    assert "All root keys must sign: one that is lost or away stops the fleet's people." in remarks
    assert "One release (targets) key is enough to sign: whoever steals one decides alone." in remarks
    assert not any("not signed by enough" in remark for remark in remarks)


def test_a_sheet_is_written_in_the_place_of_an_older_one(waiting: FleetFolder, tmp_path: Path) -> None:
    path = tmp_path / "sheet.html"
    path.write_text("old")
    write_sheet(waiting, path)
    assert path.read_text().startswith("<!doctype html>")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(InputError, match="cannot be written"):
        write_sheet(waiting, tmp_path / "absent" / "sheet.txt")


def test_no_private_key_is_in_what_is_shown_of_an_opened_one(keys: Keys) -> None:
    key = keys["root", "alice"]
    secret = key.private_key.private_bytes_raw().hex()
    opened = open_signing_key(key.path, PASSPHRASE)
    assert secret not in repr(opened) + str(opened) + repr(key) + str(public(key))
    assert isinstance(key.private_key, Ed25519PrivateKey)
    assert not any(PASSPHRASE in repr(one) for one in (opened, key, opened.signer))


def test_a_root_of_people_only_satisfies_the_rules_for_metadata(waiting: FleetFolder) -> None:
    root = waiting.root()
    assert isinstance(root, Metadata)
    assert isinstance(root.signed, Root)
    assert {role: holder.threshold for role, holder in root.signed.roles.items()} == {
        "root": 2,
        "targets": 2,
        "snapshot": 1,
        "timestamp": 1,
    }


def test_the_keys_of_a_site_are_tested_and_printed_like_others(waiting: FleetFolder, tmp_path: Path) -> None:
    office = create(tmp_path / "office.key", PASSPHRASE, "site-berlin", "frida", preset="lab")
    waiting.delegate("site-berlin", [public(office).key], 1)
    assert ("site-berlin", "frida") in {(holder.role, holder.owner) for holder in untested(waiting)}
    (test,) = prove_key(waiting, open_signing_key(office.path, PASSPHRASE))
    assert test.challenge.role == "site-berlin"
    assert ("site-berlin", "frida") not in {(holder.role, holder.owner) for holder in untested(waiting)}
    text = as_text(sheet_of(waiting))
    assert "SITE BERLIN: 1 of 1 must sign\nsigns policies of site berlin" in text
    assert office.fingerprint in text
    assert "halt" not in text.split("DUTIES")[0].lower(), "everybody holds that; it is no key of its own"


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 440), put=st.binary(min_size=1, max_size=1))
def test_whatever_one_byte_of_a_public_file_becomes_nobody_else_comes_out(place: int, put: bytes) -> None:
    data = SAMPLE[: place % len(SAMPLE)] + put + SAMPLE[place % len(SAMPLE) + 1 :]
    try:
        read = decode_public_key_untrusted(data)
    except UntrustedBytes:
        return
    assert (read.role, read.owner, read.keyid) == ("root", "alice", SAMPLE_KEY.keyid)


def _sample() -> tuple[SSlibKey, bytes]:
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    key = public_tuf_key(private.public_key().public_bytes_raw(), "alice")
    return key, encode_public_key(PublicKey("root", "alice", key), CryptoSigner(private, key), START)


SAMPLE_KEY, SAMPLE = _sample()
