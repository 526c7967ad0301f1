"""Record: one report on its way, sealed to the collectors and signed by the device. Pure: keys, numbers and times are arguments.

Layout: ``signed || signature``. ``signed`` is a MessagePack array of the fields below, ``signature`` the last 64 bytes,
Ed25519 by the key of ``certificate`` over ``DOMAIN`` and ``signed``. The record's hash is BLAKE3 over ``signed`` alone, and the
signature stands at a fixed place, so nobody on the way can make a second form of a record that counts as another one.

===========  ===========  ==================================================================================
field        bytes        meaning
===========  ===========  ==================================================================================
format       1            1
device       16           the author; must be the certificate's
epoch        u32          seconds since 1970 when the device began to number anew; larger than any it remembers
seq          u63 ≥ 1      no gaps within (device, epoch)
previous     32           hash of the record before it in the epoch; zeros for the first
created_ms   u53          the author's clock
lifetime_s   u32          carriers may drop it this long after they received it (no clock is compared with another)
certificate  ≤ 4 KiB      the author's leaf certificate, DER
keys         n × (8, 80)  per collector: first 8 bytes of BLAKE3 of its X25519 key; the content key in a SealedBox
sealed       ≤ 240 KiB    SecretBox (nonce in front) of the packed report under the content key
===========  ===========  ==================================================================================

Anybody may read the header; that is what relays need for quotas and deduplication. Only a collector reads the report, and it
checks that the report names the same device as the header: else a device could sign the sealed report of another.

Randomness: ``random_bytes`` gives content key and nonce; the ephemeral key of each SealedBox is drawn by libsodium itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol

import msgspec
from blake3 import blake3
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox
from nacl.secret import SecretBox
from nacl.signing import VerifyKey

from pcm_p2p.compliance.report import PACKED_SIZE_BYTES_MAX, ReportBody, unpack_untrusted
from pcm_p2p.errors import PcmError, UntrustedBytes
from pcm_p2p.ids import DeviceId

DOMAIN = b"pcm.record/1"
RECORD_SIZE_BYTES_MAX = 256 << 10
"""Choice: thousands of findings without texts pack into less; anything larger is refused before it is parsed."""
COLLECTORS_MAX = 16
CERTIFICATE_SIZE_BYTES_MAX = 4 << 10
SIGNATURE_SIZE_BYTES = 64
LIFETIME_S_MAX = 90 * 86_400
LIFETIME_S = 30 * 86_400
"""research/gossip-scale.md 1.6: for laptops that come back after weeks."""
FIRST = bytes(32)
"""``previous`` of the first record of an epoch."""

Sign = Callable[[bytes, bytes], bytes]
"""(domain, data) to an Ed25519 signature over ``covered(domain, data)``: ``trust.identity`` gives it."""


class Signer(Protocol):
    """Whom a certificate of this fleet names."""

    @property
    def device_id(self) -> DeviceId: ...

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519, 32 bytes."""
        ...


VerifyCertificate = Callable[[bytes], Signer]
"""DER to the device it names, or ``PcmError`` if the fleet's CA did not issue it."""


class RecordKey(NamedTuple):
    """What names a record everywhere. Sorts by author, then epoch, then number."""

    device: DeviceId
    epoch: int
    seq: int


class SealKey(NamedTuple):
    """The X25519 public key to which reports for one collector are sealed."""

    public: bytes

    @property
    def id(self) -> bytes:
        """8 bytes: enough to find one's own key among ``COLLECTORS_MAX``."""
        return blake3(self.public).digest(8)


class _WrappedKey(msgspec.Struct, frozen=True, array_like=True):
    key_id: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
    sealed: Annotated[bytes, msgspec.Meta(min_length=80, max_length=80)]


class _Signed(msgspec.Struct, frozen=True, array_like=True):
    format: Literal[1]
    device: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    epoch: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    seq: Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
    previous: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    created_ms: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    lifetime_s: Annotated[int, msgspec.Meta(ge=0, le=LIFETIME_S_MAX)]
    certificate: Annotated[bytes, msgspec.Meta(min_length=1, max_length=CERTIFICATE_SIZE_BYTES_MAX)]
    keys: Annotated[tuple[_WrappedKey, ...], msgspec.Meta(min_length=1, max_length=COLLECTORS_MAX)]
    sealed: Annotated[bytes, msgspec.Meta(min_length=41, max_length=PACKED_SIZE_BYTES_MAX + 40)]


_decoder = msgspec.msgpack.Decoder(_Signed)


@dataclass(frozen=True, slots=True)
class Record:
    """A record whose signature and certificate were verified: built by ``open_record_untrusted`` only. ``site``: of its author as
    certified, where whoever opened it looked."""

    key: RecordKey
    previous: bytes
    created_ms: int
    lifetime_s: int
    hash: bytes
    data: bytes
    _wrapped: Mapping[bytes, bytes]
    _sealed: bytes
    site: str = ""

    @property
    def device(self) -> DeviceId:
        return self.key.device

    @property
    def key_ids(self) -> frozenset[bytes]:
        """Which collectors' keys (``SealKey.id``) can open it."""
        return frozenset(self._wrapped)


def covered(domain: bytes, data: bytes) -> bytes:
    """What a signature of ``domain`` is over, as ``trust.identity`` makes it: no other domain's data reads the same."""
    return b"pcm_p2p\0" + bytes([len(domain)]) + domain + data


def record_hash(data: bytes) -> bytes:
    """Hash of an encoded record: BLAKE3 over the signed part."""
    return blake3(data[:-SIGNATURE_SIZE_BYTES]).digest()


def seal_record(
    packed: bytes,
    *,
    sign: Sign,
    certificate: bytes,
    key: RecordKey,
    previous: bytes,
    created_ms: int,
    collectors: Sequence[SealKey],
    random_bytes: Callable[[int], bytes],
    lifetime_s: int = LIFETIME_S,
) -> bytes:
    """Encode a record around a packed report (``report.pack``). Raises ``ValueError`` where an argument breaks the format."""
    content_key = random_bytes(SecretBox.KEY_SIZE)
    wrapped = tuple(
        _WrappedKey(collector.id, SealedBox(PublicKey(collector.public)).encrypt(content_key))
        for collector in collectors
    )
    signed = msgspec.msgpack.encode(
        _Signed(
            format=1,
            device=bytes(key.device),
            epoch=key.epoch,
            seq=key.seq,
            previous=previous,
            created_ms=created_ms,
            lifetime_s=lifetime_s,
            certificate=certificate,
            keys=wrapped,
            sealed=bytes(SecretBox(content_key).encrypt(packed, random_bytes(SecretBox.NONCE_SIZE))),
        )
    )
    try:
        _decoder.decode(signed)
    except msgspec.ValidationError as error:
        raise ValueError(f"a record cannot be made of this: {error}") from None
    return signed + sign(DOMAIN, signed)


@dataclass(frozen=True, slots=True)
class RecordSealer:
    """What sealing takes and only changes with the device's certificate or the fleet's collectors."""

    sign: Sign
    certificate: bytes
    collectors: tuple[SealKey, ...]
    random_bytes: Callable[[int], bytes]
    lifetime_s: int = LIFETIME_S

    @property
    def key_ids(self) -> frozenset[bytes]:
        return frozenset(collector.id for collector in self.collectors)

    def seal(self, packed: bytes, key: RecordKey, previous: bytes, created_ms: int) -> bytes:
        """``seal_record`` with the fields of this object."""
        return seal_record(
            packed,
            sign=self.sign,
            certificate=self.certificate,
            key=key,
            previous=previous,
            created_ms=created_ms,
            collectors=self.collectors,
            random_bytes=self.random_bytes,
            lifetime_s=self.lifetime_s,
        )


def open_record_untrusted(data: bytes, verify_certificate: VerifyCertificate) -> Record:
    """Check size, schema, certificate and signature, in this order. Raises ``UntrustedBytes`` with the reason."""
    if not SIGNATURE_SIZE_BYTES < len(data) <= RECORD_SIZE_BYTES_MAX:
        raise UntrustedBytes(f"record: {len(data)} bytes; at most {RECORD_SIZE_BYTES_MAX} are read")
    signed, signature = data[:-SIGNATURE_SIZE_BYTES], data[-SIGNATURE_SIZE_BYTES:]
    try:
        fields = _decoder.decode(signed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"record: {error}") from None
    try:
        signer = verify_certificate(fields.certificate)
    except PcmError as error:
        raise UntrustedBytes(f"record: its certificate is refused: {error}") from None
    if bytes(signer.device_id) != fields.device:
        raise UntrustedBytes("record: its certificate names another device")
    try:
        VerifyKey(bytes(signer.public_key)).verify(covered(DOMAIN, signed), signature)
    except (CryptoError, ValueError):
        raise UntrustedBytes("record: the signature does not fit") from None
    return Record(
        key=RecordKey(DeviceId(fields.device), fields.epoch, fields.seq),
        previous=fields.previous,
        created_ms=fields.created_ms,
        lifetime_s=fields.lifetime_s,
        hash=blake3(signed).digest(),
        data=data,
        _wrapped={wrapped.key_id: wrapped.sealed for wrapped in fields.keys},
        _sealed=fields.sealed,
    )


def unseal_untrusted(record: Record, private_key: bytes) -> ReportBody:
    """Open the report with a collector's X25519 private key (32 bytes). Raises ``UntrustedBytes``.

    The signature says who sealed it, not that the contents are well-formed: they are checked like any foreign bytes.
    """
    key = PrivateKey(private_key)
    wrapped = record._wrapped.get(SealKey(bytes(key.public_key)).id)
    if wrapped is None:
        raise UntrustedBytes("record: not sealed to this collector")
    try:
        packed = SecretBox(SealedBox(key).decrypt(wrapped)).decrypt(record._sealed)
    except (CryptoError, ValueError):
        raise UntrustedBytes("record: cannot be unsealed") from None
    report = unpack_untrusted(packed)
    if report.device != str(record.device):
        raise UntrustedBytes("record: the report inside names another device than its signer")
    return report
