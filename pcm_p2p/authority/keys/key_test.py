"""A test signature: a person's key signs a challenge, and the key that metadata lists verifies it. Pure.

What is signed begins with ``DOMAIN`` and so is no TUF document, whoever made the challenge. A test names the fleet, the role and
the version of the document that lists the key; it stays verifiable for whoever has the challenge, which is kept with it.

A key is also proven by a signature on a document of the fleet: then it has done what it is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import (  # type: ignore[attr-defined]  # exported without __all__
    Key,
    Signature,
    Signer,
)
from tuf.api.metadata import Metadata

from pcm_p2p.authority.keys.fingerprint import fingerprint_of, words_of_key
from pcm_p2p.authority.keys.public_key import SIGNATURE_LENGTH_MAX
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.trust.lint import owner_of

SCHEMA: Final = "pcm.key-tests/1"
DOMAIN: Final = b"pcm_p2p key test 1\0"
CHALLENGE_SIZE_BYTES = 32
TESTS_MAX = 4_096
SIZE_BYTES_MAX = 4 << 20

_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Hex64 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Challenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key signs to show that it works. ``under`` is the version of the document that lists it."""

    fleet: _Hex32
    role: Annotated[str, msgspec.Meta(min_length=1, max_length=80)]
    keyid: _Hex64
    under: Annotated[int, msgspec.Meta(ge=1)]
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    random: _Hex64

    @property
    def signed(self) -> bytes:
        """The bytes that are signed."""
        return DOMAIN + msgspec.json.encode(self, order="deterministic")


class KeyTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A challenge with the signature of its key, in hexadecimal."""

    challenge: Challenge
    signature: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})+\Z", max_length=SIGNATURE_LENGTH_MAX)]

    def is_by(self, key: Key) -> bool:
        """Whether ``key``, as metadata lists it, made this signature."""
        if key.keyid != self.challenge.keyid:
            return False
        return _is_by(key, self.challenge.signed, {key.keyid: Signature(key.keyid, self.signature)})


class KeyTests(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The record of a fleet folder: the newest test of each key and role."""

    schema: Literal["pcm.key-tests/1"]
    tests: Annotated[tuple[KeyTest, ...], msgspec.Meta(max_length=TESTS_MAX)] = ()

    def with_test(self, test: KeyTest) -> KeyTests:
        kept = (one for one in self.tests if _place(one) != _place(test))
        return KeyTests(SCHEMA, (*kept, test)[-TESTS_MAX:])

    def encoded(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


_decoder = msgspec.json.Decoder(KeyTests)


@dataclass(frozen=True)
class Holder:
    """A key and the role for which metadata lists it. ``tested``: its newest test; ``signed``: it is on a document."""

    role: str
    key: Key
    tested: datetime | None = None
    signed: bool = False

    @property
    def proven(self) -> bool:
        """Whether anybody has seen this key work."""
        return self.signed or self.tested is not None

    @property
    def owner(self) -> str:
        return owner_of(self.key)

    @property
    def keyid(self) -> str:
        return str(self.key.keyid)

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.keyid)

    @property
    def words(self) -> tuple[str, ...]:
        return words_of_key(self.keyid)


def make_test(challenge: Challenge, signer: Signer) -> KeyTest:
    """Raises what the signer raises."""
    return KeyTest(challenge, signer.sign(challenge.signed).signature)


def decode_key_tests_untrusted(data: bytes) -> KeyTests:
    """Check size and schema; whether a test counts is for ``holders``. Raises ``UntrustedBytes``."""
    if len(data) > SIZE_BYTES_MAX:
        raise UntrustedBytes(f"key tests: {len(data)} bytes; at most {SIZE_BYTES_MAX} are read")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"key tests: {error}") from None


def holders(
    listed: Mapping[str, Iterable[Key]], tests: KeyTests, documents: Iterable[Metadata[Any]], fleet: str
) -> tuple[Holder, ...]:
    """All keys by role in the order of ``listed``, each with what proves it.

    ``listed``: the keys that metadata names for each role. ``documents``: signed documents of the fleet. A test or signature
    counts only if it is by the listed key; a test only for this fleet and role.
    """
    by_place = {_place(test): test for test in tests.tests if test.challenge.fleet == fleet}
    signed = [(document.signed_bytes, document.signatures) for document in documents]
    found = []
    for role, keys in listed.items():
        for key in keys:
            test = by_place.get((role, key.keyid))
            tested = test.challenge.time if test is not None and test.is_by(key) else None
            found.append(Holder(role, key, tested, any(_is_by(key, *document) for document in signed)))
    return tuple(found)


def _is_by(key: Key, data: bytes, signatures: Mapping[str, Signature]) -> bool:
    if key.keyid not in signatures:
        return False
    try:
        key.verify_signature(signatures[key.keyid], data)
    except (UnverifiedSignatureError, VerificationError):
        return False
    return True


def _place(test: KeyTest) -> tuple[str, str]:
    return test.challenge.role, test.challenge.keyid
