"""A signature that comes back from elsewhere: merged in any order, or refused by name (research 10.32)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from repository_simulator import START
from securesystemslib.signer import Signature  # type: ignore[attr-defined]
from tuf.api.metadata import Metadata, Targets

from pcm_p2p.authority.carry.signature_file import (
    SIZE_BYTES_MAX,
    DetachedSignature,
    Signable,
    SignatureFile,
    decode_signature_file_untrusted,
    is_there,
    why_refused,
)
from pcm_p2p.authority.keys.fingerprint import public_tuf_key
from pcm_p2p.errors import UntrustedBytes

FLEET = "f" * 32
PRIVATE = {name: SigningKey(bytes([number]) * 32) for number, name in enumerate(("alice", "bob", "mallory"), start=1)}
KEYS = {name: public_tuf_key(bytes(key.verify_key), name) for name, key in PRIVATE.items()}


def proposed(version: int = 4) -> Signable:
    known = {KEYS[name].keyid: KEYS[name] for name in ("alice", "bob")}
    return Signable("targets", Metadata(Targets(version, expires=START)), known, 3)


def signed(name: str, signable: Signable, **other: Any) -> DetachedSignature:
    keyid = KEYS[name].keyid
    signature = PRIVATE[name].sign(signable.document.signed_bytes).signature.hex()
    made = DetachedSignature(signable.role, signable.document.signed.version, signable.sha256, keyid, name, signature)
    return msgspec.structs.replace(made, **other)


def refusal(carried: DetachedSignature, fleet: str = FLEET, signable: Signable | None = None) -> str:
    return why_refused(carried, fleet, FLEET, [signable or proposed()], {"targets": 3, "root": 1})


def test_a_good_signature_is_not_refused() -> None:
    assert refusal(signed("alice", proposed())) == ""
    assert refusal(signed("alice", proposed(), owner="whoever")) == "", "the name in the file decides nothing"


@pytest.mark.parametrize(
    ("carried", "fleet", "why"),
    [
        (signed("alice", proposed()), "e" * 32, "alice's signature is for fleet eeeeeeee, and this is fleet ffffffff"),
        (
            signed("alice", proposed(3)),
            FLEET,
            "alice's signature is for targets 3 and outdated: what is proposed is targets 4",
        ),
        (signed("alice", proposed(5)), FLEET, "alice's signature is for targets 5 and of another proposal"),
        (
            signed("alice", proposed(), sha256="0" * 64),
            FLEET,
            "alice's signature is over other bytes of targets 4: digest 0000",
        ),
        (signed("mallory", proposed()), FLEET, "which has no part in targets: an unknown person"),
        (signed("mallory", proposed(), keyid=KEYS["bob"].keyid), FLEET, "bob's signature on targets 4 does not verify"),
        (
            signed("alice", proposed(), role="root"),
            FLEET,
            "alice's signature is for root 4, and no root is proposed; root 1 is published",
        ),
        (signed("alice", proposed(), signature="00"), FLEET, "alice's signature on targets 4 does not verify"),
        (signed("mallory", proposed(), owner="\x1b[2Jalice"), FLEET, "\\x1b[2Jalice's signature"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(carried: DetachedSignature, fleet: str, why: str) -> None:
    assert why in refusal(carried, fleet)


def test_nobody_counts_twice_and_a_bad_signature_in_the_place_of_a_good_one_is_replaced() -> None:
    signable = proposed()
    carried = signed("alice", signable)
    signable.document.signatures[carried.keyid] = Signature(carried.keyid, "00")
    assert refusal(carried, signable=signable) == ""
    assert not is_there(carried, FLEET, FLEET, [signable])
    signable.document.signatures[carried.keyid] = Signature(carried.keyid, carried.signature)
    assert is_there(carried, FLEET, FLEET, [signable])
    assert not is_there(carried, "0" * 32, FLEET, [signable])
    assert not is_there(msgspec.structs.replace(carried, signature="00"), FLEET, FLEET, [signable])
    assert not is_there(signed("bob", signable), FLEET, FLEET, [signable])
    assert not is_there(carried, FLEET, FLEET, [proposed(5)])


def test_the_file_gives_back_what_was_put_in_and_says_nothing_more() -> None:
    file = SignatureFile("pcm.signatures/1", FLEET, (signed("alice", proposed()), signed("bob", proposed())))
    assert decode_signature_file_untrusted(file.encoded()) == file


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b" " * (SIZE_BYTES_MAX + 1), "65537 bytes"),
        (b"{}", "schema"),
        (b"[" * 9_000, "signature file"),
        (SignatureFile("pcm.signatures/1", FLEET, ()).encoded(), "length >= 1"),
        (
            SignatureFile("pcm.signatures/1", FLEET, (signed("bob", proposed(), role="../x"),)).encoded(),
            "matching regex",
        ),
        (SignatureFile("pcm.signatures/1", FLEET, (signed("bob", proposed(), signature="zz"),)).encoded(), "regex"),
        (SignatureFile("pcm.signatures/1", FLEET, (signed("bob", proposed()),) * 65).encoded(), "length <= 64"),
    ],
)
def test_a_file_that_is_no_signature_file(data: bytes, why: str) -> None:
    with pytest.raises(UntrustedBytes, match=why):
        decode_signature_file_untrusted(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_file_or_the_one_error(data: bytes) -> None:
    with pytest.raises(UntrustedBytes):
        decode_signature_file_untrusted(data)
