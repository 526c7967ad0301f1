"""A detached signature: a small file that a person carries back, and the judgement whether it may be merged. Pure.

::

    {"schema": "pcm.signatures/1", "fleet": "<32 hex>", "signatures": [
      {"role": "targets", "version": 4, "sha256": "<64 hex>", "keyid": "<64 hex>", "owner": "alice", "signature": "<hex>"}]}

``sha256`` is over the bytes that are signed. Everything but the signature itself is there for people and for exact refusals: what
counts is that the signature verifies over the bytes that are proposed, with a key that is named for the role.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Key, Signature  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.metadata import Metadata

from pcm_p2p.authority.audit.log import plain_signature
from pcm_p2p.authority.keys.fingerprint import grouped
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.shown_text import cut, shown
from pcm_p2p.trust.delegation import ROLE_PATTERN
from pcm_p2p.trust.index import VERSION_MAX
from pcm_p2p.trust.lint import owner_of

SCHEMA: Final = "pcm.signatures/1"
SIZE_BYTES_MAX = 65_536
SIGNATURES_MAX = 64
"""Choice: one key signs a few documents at a time; a file of 64 signatures has 40 kB."""

_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class DetachedSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature over one version of one document."""

    role: Annotated[str, msgspec.Meta(pattern=rf"^(root|targets|{ROLE_PATTERN})\Z")]
    version: Annotated[int, msgspec.Meta(ge=1, le=VERSION_MAX)]
    sha256: _Hex32
    keyid: _Hex32
    owner: Annotated[str, msgspec.Meta(max_length=64)]
    signature: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})+\Z", max_length=512)]

    @property
    def title(self) -> str:
        return f"{self.role} {self.version}"


class SignatureFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one person signed at one sitting."""

    schema: Literal["pcm.signatures/1"]
    fleet: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    signatures: Annotated[tuple[DetachedSignature, ...], msgspec.Meta(min_length=1, max_length=SIGNATURES_MAX)]

    def encoded(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


_decoder = msgspec.json.Decoder(SignatureFile)


def decode_signature_file_untrusted(data: bytes) -> SignatureFile:
    """Check size and schema; raises ``UntrustedBytes`` only. Nothing is verified yet."""
    if len(data) > SIZE_BYTES_MAX:
        raise UntrustedBytes(f"signature file: {len(data)} bytes; at most {SIZE_BYTES_MAX} are read")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"signature file: {error}") from None


@dataclass(frozen=True)
class Signable:
    """A proposed document, the keys that have a part in it by key id, and the version that is published (0: none)."""

    role: str
    document: Metadata[Any]
    keys: dict[str, Key]
    published_version: int

    @property
    def title(self) -> str:
        return f"{self.role} {self.document.signed.version}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.document.signed_bytes).hexdigest()

    def verifies(self, signature: Signature) -> bool:
        """Whether ``signature`` is by the key that it names, over the bytes that are proposed, and spelled as everywhere here."""
        key = self.keys.get(signature.keyid)
        if key is None or signature.signature != plain_signature(signature.signature):
            return False
        try:
            key.verify_signature(signature, self.document.signed_bytes)
        except (UnverifiedSignatureError, VerificationError):
            return False
        return True

    def detached(self, signature: Signature) -> DetachedSignature:
        """``signature`` as it is carried. Its key has a part in the document."""
        owner = owner_of(self.keys[signature.keyid])
        version = self.document.signed.version
        return DetachedSignature(self.role, version, self.sha256, signature.keyid, owner, signature.signature)


def why_refused(
    carried: DetachedSignature, fleet_of_file: str, fleet: str, proposed: Iterable[Signable], published: dict[str, int]
) -> str:
    """One sentence that names the person and the fault; empty when the signature may be merged.

    ``fleet``: the one that merges; ``published``: versions by role, for what is not proposed (any more).
    """
    who = f"{cut(shown(carried.owner or 'somebody'), 64)}'s signature"
    if fleet_of_file != fleet:
        return f"{who} is for fleet {fleet_of_file[:8]}, and this is fleet {fleet[:8]}"
    signable = next((one for one in proposed if one.role == carried.role), None)
    if signable is None:
        known = published.get(carried.role, 0)
        state = f"; {carried.role} {known} is published" if known else ""
        return f"{who} is for {carried.title}, and no {carried.role} is proposed{state}"
    key = signable.keys.get(carried.keyid)
    if key is None:
        return (
            f"{who} on {carried.title} is by the key {grouped(carried.keyid[:16])} …, which has no part in {carried.role}:"
            " an unknown person"
        )
    who = f"{shown(owner_of(key))}'s signature"
    if carried.version != signable.document.signed.version:
        age = "outdated" if carried.version < signable.document.signed.version else "of another proposal"
        return f"{who} is for {carried.title} and {age}: what is proposed is {signable.title}"
    if carried.sha256 != signable.sha256:
        return (
            f"{who} is over other bytes of {carried.title}: digest {grouped(carried.sha256[:32])},"
            f" proposed {grouped(signable.sha256[:32])}"
        )
    signature = Signature(carried.keyid, carried.signature)
    if not signable.verifies(signature):
        return f"{who} on {carried.title} does not verify: the file was altered, or its maker does not hold the key"
    return ""


def is_there(carried: DetachedSignature, fleet_of_file: str, fleet: str, documents: Iterable[Signable]) -> bool:
    """Whether this signature is on one of ``documents`` already, proposed or published: nobody counts twice."""
    for one in documents:
        if fleet_of_file == fleet and (one.role, one.sha256) == (carried.role, carried.sha256):
            there = one.document.signatures.get(carried.keyid)
            mine = Signature(carried.keyid, carried.signature)
            return there is not None and one.verifies(there) and one.verifies(mine)
    return False
