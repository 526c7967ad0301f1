"""Keys in PKCS#11 tokens, against SoftHSM: what signs, and what each thing that goes wrong says."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]
from soft_token import LIBRARY, PIN, SoftToken, needs_tokens, plugged_in
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.authority.keys import hardware_key
from pcm_p2p.authority.keys.hardware_key import TokenAddress, is_token_uri
from pcm_p2p.authority.keys.public_key import decode_public_key_untrusted, encode_public_key
from pcm_p2p.authority.keys.signing_key import add_signature, open_signing_key
from pcm_p2p.errors import InputError, TrustError

pytestmark = needs_tokens


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftToken:
    return plugged_in(tmp_path, monkeypatch)


def test_a_key_made_in_a_token_signs_there_and_its_signature_is_that_of_the_listed_key(tokens: SoftToken) -> None:
    uri = tokens.add("alice")
    made = hardware_key.create(uri, PIN, "root", "Alice Example")
    assert (made.role, made.owner, made.algorithm) == ("root", "Alice Example", "ECDSA P-256")
    opened = open_signing_key(uri, PIN)
    assert (opened.owner, opened.role, opened.keyid) == ("Alice Example", "root", made.keyid)
    root = Root(expires=datetime(2027, 1, 1, tzinfo=UTC))
    root.add_key(made.key, "root")
    document = Metadata(root)
    add_signature(document, opened.signer)
    root.verify_delegate("root", document.signed_bytes, document.signatures)


def test_p_384_works_too_and_each_number_of_a_token_is_a_key_of_its_own(tokens: SoftToken) -> None:
    tokens.add("alice")
    keys = [
        hardware_key.create("hsm:2?label=alice", PIN, "root", "alice"),
        hardware_key.create("hsm:3?label=alice", PIN, "targets", "alice", curve="secp384r1"),
    ]
    assert [key.algorithm for key in keys] == ["ECDSA P-256", "ECDSA P-384"]
    assert hardware_key.read_public("hsm:3?label=alice").keyid == keys[1].keyid
    signature = open_signing_key("hsm:3?label=alice", PIN).signer.sign(b"data")
    keys[1].key.verify_signature(signature, b"data")


def test_the_public_file_of_a_token_proves_possession(tokens: SoftToken) -> None:
    uri = tokens.add("alice")
    hardware_key.create(uri, PIN, "root", "alice")
    signer, public = hardware_key.open_token_key(uri, PIN)
    data = encode_public_key(public, signer, datetime(2026, 3, 1, tzinfo=UTC))
    carried = decode_public_key_untrusted(data)
    assert (carried.keyid, carried.role, carried.owner) == (public.keyid, "root", "alice")


def test_a_key_without_our_label_takes_role_and_owner_from_whoever_reads_it(tokens: SoftToken) -> None:
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    uri = tokens.add("piv")
    with pkcs11.lib(str(LIBRARY)).get_token(token_label="piv").open(user_pin=PIN, rw=True) as session:
        curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
        parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
        parameters.generate_keypair(id=b"\x02", label="Public key for Digital Signature", store=True)
    assert (hardware_key.read_public(uri).role, hardware_key.read_public(uri).owner) == ("", "")
    told = hardware_key.read_public(uri, role="site-paris", owner="bob")
    assert (told.role, told.owner) == ("site-paris", "bob")


def test_the_key_does_not_leave_the_token(tokens: SoftToken) -> None:
    import pkcs11

    uri = tokens.add("alice")
    hardware_key.create(uri, PIN, "root", "alice")
    with pkcs11.lib(str(LIBRARY)).get_token(token_label="alice").open(user_pin=PIN) as session:
        key = session.get_key(pkcs11.ObjectClass.PRIVATE_KEY)
        with pytest.raises(pkcs11.exceptions.AttributeSensitive):
            key[pkcs11.Attribute.VALUE]


def test_a_wrong_pin_says_so_is_tried_once_and_is_not_repeated_in_the_message(
    tokens: SoftToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pkcs11

    uri = tokens.add("alice")
    hardware_key.create(uri, PIN, "root", "alice")
    tried, find = [], hardware_key.HSMSigner._find_token

    class Counting:
        def __init__(self, token: object) -> None:
            self.token = token

        def open(self, **options: object) -> object:
            tried.append(options.get("user_pin"))
            return self.token.open(**options)  # type: ignore[attr-defined]

        def __getattr__(self, name: str) -> object:
            return getattr(self.token, name)

    monkeypatch.setattr(hardware_key.HSMSigner, "_find_token", staticmethod(lambda label: Counting(find(label))))
    with pytest.raises(TrustError, match="the token 'alice' refused the PIN") as refused:
        open_signing_key(uri, "918273")
    assert tried == ["918273"]
    assert "918273" not in refused.value.message + refused.value.remedy
    assert refused.value.remedy
    monkeypatch.setattr(hardware_key.HSMSigner, "_find_token", staticmethod(find))
    locked = pkcs11.exceptions.PinLocked()
    with pytest.raises(TrustError, match="is locked"), hardware_key._named(TokenAddress.parse(uri)):
        raise locked


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("USER_PIN_COUNT_LOW", "few attempts are left"),
        ("USER_PIN_FINAL_TRY", "ONE attempt is left"),
        ("USER_PIN_LOCKED", "is locked now"),
    ],
)
def test_the_last_attempts_before_a_token_locks_itself_are_told(
    tokens: SoftToken, monkeypatch: pytest.MonkeyPatch, flags: str, said: str
) -> None:
    import pkcs11

    class Token:
        flags = 0

        def open(self, **options: object) -> object:
            raise pkcs11.exceptions.PinIncorrect

    Token.flags = pkcs11.TokenFlag[flags]
    monkeypatch.setattr(hardware_key.HSMSigner, "_find_token", staticmethod(lambda label: Token()))
    with pytest.raises(TrustError, match=said):
        open_signing_key("hsm:2?label=alice", PIN)


def test_an_empty_pin_is_not_tried_at_all(tokens: SoftToken) -> None:
    with pytest.raises(InputError, match="empty"):
        hardware_key.open_token_key(tokens.add("alice"), "")


def test_a_token_that_is_not_there_is_named(tokens: SoftToken) -> None:
    tokens.add("alice")
    with pytest.raises(InputError, match="no token labelled 'bob'") as refused:
        open_signing_key("hsm:2?label=bob", PIN)
    assert "Plug it in" in refused.value.remedy
    tokens.add("bob")
    with pytest.raises(InputError, match="several tokens fit"):
        open_signing_key("hsm:2", PIN)


def test_a_token_removed_between_the_question_and_the_signature_signs_nothing(tokens: SoftToken) -> None:
    uri = tokens.add("alice")
    made = hardware_key.create(uri, PIN, "root", "alice")
    opened = open_signing_key(uri, PIN)
    tokens.unplug()
    root = Root(expires=datetime(2027, 1, 1, tzinfo=UTC))
    root.add_key(made.key, "root")
    document = Metadata(root)
    with pytest.raises(InputError, match="no token labelled 'alice'"):
        add_signature(document, opened.signer)
    assert document.signatures == {}


def test_no_such_key_is_told_and_a_taken_number_is_not_overwritten(tokens: SoftToken) -> None:
    uri = tokens.add("alice")
    with pytest.raises(InputError, match="shows no ECDSA key 7"):
        hardware_key.open_token_key("hsm:7?label=alice", PIN)
    made = hardware_key.create(uri, PIN, "root", "alice")
    with pytest.raises(InputError, match="holds a key 2 already"):
        hardware_key.create(uri, PIN, "targets", "alice")
    assert hardware_key.read_public(uri).keyid == made.keyid


def test_a_library_that_is_not_named_or_not_there_is_told(tokens: SoftToken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYKCS11LIB", "/nowhere/libtoken.so")
    with pytest.raises(InputError, match="PYKCS11LIB: the token's library cannot be loaded"):
        open_signing_key("hsm:2", PIN)
    monkeypatch.delenv("PYKCS11LIB")
    with pytest.raises(InputError, match="PYKCS11LIB is not set"):
        open_signing_key("hsm:2", PIN)


def test_without_the_extra_the_message_names_it(tokens: SoftToken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pkcs11", None)
    with pytest.raises(InputError, match="python-pkcs11 is not installed") as refused:
        open_signing_key("hsm:2", PIN)
    assert "pcm_p2p[token]" in refused.value.remedy


def test_neither_pin_nor_token_is_in_what_a_signer_shows(tokens: SoftToken) -> None:
    uri = tokens.add("alice")
    hardware_key.create(uri, PIN, "root", "alice")
    opened = open_signing_key(uri, PIN)
    assert PIN not in repr(opened) + str(opened) + repr(vars(opened.signer))


@pytest.mark.parametrize(
    "uri",
    ["hsm", "file:2", "hsm:two", "hsm://host/2", "hsm:2?pin=1234", "hsm:2?label=a&pin=1", "hsm:9999999999", "hsm:-1"],
)
def test_an_address_that_names_no_key_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="does not name a key in a token"):
        TokenAddress.parse(uri)


def test_addresses_are_read_as_they_are_written() -> None:
    assert TokenAddress.parse("hsm:") == TokenAddress(2, None)
    address = TokenAddress.parse("hsm:4?label=YubiKey+PIV+%2315835999")
    assert address == TokenAddress(4, "YubiKey PIV #15835999")
    assert TokenAddress.parse(str(address)) == address
    assert is_token_uri("hsm:2")
    assert not is_token_uri("keys/hsm.key")


def test_a_role_or_owner_that_cannot_be_shown_makes_no_key(tokens: SoftToken) -> None:
    uri = tokens.add("alice")
    for role, owner in (("boss", "alice"), ("root", "a\nb")):
        with pytest.raises(InputError):
            hardware_key.create(uri, PIN, role, owner)
    with pytest.raises(InputError, match="no ECDSA key"):
        hardware_key.read_public(uri)


def test_other_signers_than_ours_are_not_opened_from_an_address() -> None:
    with pytest.raises(ValueError, match="who knows the PIN"):
        hardware_key.TokenSigner.from_priv_key_uri(
            "hsm:2", SSlibKey("0", "ecdsa", "ecdsa-sha2-nistp256", {"public": ""})
        )
