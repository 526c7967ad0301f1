"""Acknowledgement: a collector's signed statement of which records it has. Pure.

Layout: ``signed || signature`` as in ``record``; Ed25519 by the collector's device key, which the signed fleet document names
(``verify_key``), so no certificate travels.

===========  ================  ================================================================================
field        type              meaning
===========  ================  ================================================================================
format       1                 1
collector    16 bytes          who says it
level        1 or 2            1 received: one collector has flushed it to disk. 2 durable: the fleet will not lose it
issued_ms    u53               the collector's clock: only for people
entries      ≤ 1,024 × 4       device (16 bytes), epoch (u32), seq (u63): every number up to it is there;
                               head (16 bytes): first half of the hash of the record with that number
===========  ================  ================================================================================

Relays drop what is received; authors drop what is durable (research/gossip-scale.md 1.6). Statements only ever grow, so
acknowledgements may be lost, doubled and reordered: whoever holds one takes the maximum.

``head`` tells a device that was restored from an older state that the collector has *other* records under its numbers. The
records of an epoch are chained by hash, so equal heads mean equal histories, and an author deletes only on an equal head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Literal

import msgspec
from blake3 import blake3
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from pcm_p2p.compliance.record import SIGNATURE_SIZE_BYTES, Sign, covered
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId

DOMAIN = b"pcm.ack/1"
ACK_SIZE_BYTES_MAX = 64 << 10
ENTRIES_MAX = 1_024
HEAD_SIZE_BYTES = 16


class Level(IntEnum):
    """How safe the records are. The higher level implies the lower one."""

    RECEIVED = 1
    DURABLE = 2


class AckEntry(msgspec.Struct, frozen=True, array_like=True):
    """Records 1 … ``seq`` of (``device``, ``epoch``) are there; ``head`` is ``head_of`` the hash of number ``seq``."""

    device: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    epoch: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    seq: Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
    head: Annotated[bytes, msgspec.Meta(min_length=HEAD_SIZE_BYTES, max_length=HEAD_SIZE_BYTES)]


class _Signed(msgspec.Struct, frozen=True, array_like=True):
    format: Literal[1]
    collector: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    level: Level
    issued_ms: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    entries: Annotated[tuple[AckEntry, ...], msgspec.Meta(min_length=1, max_length=ENTRIES_MAX)]


_decoder = msgspec.msgpack.Decoder(_Signed)
_encoder = msgspec.msgpack.Encoder(enc_hook=bytes)  # an entry's device may be a DeviceId


@dataclass(frozen=True, slots=True)
class Ack:
    """An acknowledgement whose signature was verified: built by ``open_ack_untrusted`` only."""

    collector: DeviceId
    level: Level
    issued_ms: int
    entries: tuple[AckEntry, ...]
    hash: bytes
    data: bytes


def head_of(record_hash: bytes) -> bytes:
    """What an entry says about the record with its number."""
    return record_hash[:HEAD_SIZE_BYTES]


def seal_ack(entries: Sequence[AckEntry], *, collector: DeviceId, level: Level, issued_ms: int, sign: Sign) -> bytes:
    """Encode and sign. Raises ``ValueError`` where an argument breaks the format."""
    signed = _encoder.encode(_Signed(1, bytes(collector), level, issued_ms, tuple(entries)))
    try:
        _decoder.decode(signed)
    except msgspec.ValidationError as error:
        raise ValueError(f"an acknowledgement cannot be made of this: {error}") from None
    return signed + sign(DOMAIN, signed)


def open_ack_untrusted(data: bytes, verify_keys: Mapping[DeviceId, bytes]) -> Ack:
    """Check size, schema, collector and signature. ``verify_keys``: raw Ed25519 keys of the collectors in the fleet document.

    Raises ``UntrustedBytes`` with the reason.
    """
    if not SIGNATURE_SIZE_BYTES < len(data) <= ACK_SIZE_BYTES_MAX:
        raise UntrustedBytes(f"acknowledgement: {len(data)} bytes; at most {ACK_SIZE_BYTES_MAX} are read")
    signed, signature = data[:-SIGNATURE_SIZE_BYTES], data[-SIGNATURE_SIZE_BYTES:]
    try:
        fields = _decoder.decode(signed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"acknowledgement: {error}") from None
    collector = DeviceId(fields.collector)
    verify_key = verify_keys.get(collector)
    if verify_key is None:
        raise UntrustedBytes(f"acknowledgement: {collector.short} is not a collector of this fleet")
    try:
        VerifyKey(bytes(verify_key)).verify(covered(DOMAIN, signed), signature)
    except (CryptoError, ValueError):
        raise UntrustedBytes("acknowledgement: the signature does not fit") from None
    return Ack(
        collector=collector,
        level=fields.level,
        issued_ms=fields.issued_ms,
        entries=fields.entries,
        hash=blake3(signed).digest(),
        data=data,
    )
