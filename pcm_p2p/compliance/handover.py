"""Handover: the answer to ``RecordsPut``, on the wire. Pure; used by carriers, collectors and those who hand over."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.wire.messages import RecordsTaken

TAKEN_SIZE_BYTES_MAX = 512 << 10
"""Twice the acknowledgements that are handed on at once."""
ACKS_MAX = 64

_decoder = msgspec.msgpack.Decoder(RecordsTaken)


def encode_taken(taken: Sequence[bool], acks: Sequence[bytes] = ()) -> bytes:
    """``taken[i]``: record ``i`` is safe here (on disk, known, or acknowledged), so its sender may count on it."""
    return msgspec.msgpack.encode(RecordsTaken(tuple(taken), tuple(acks)))


def decode_taken_untrusted(data: bytes, records: int) -> RecordsTaken:
    """Read the answer to a ``RecordsPut`` of ``records`` records. Raises ``UntrustedBytes``."""
    if len(data) > TAKEN_SIZE_BYTES_MAX:
        raise UntrustedBytes(f"answer to records: {len(data)} bytes; at most {TAKEN_SIZE_BYTES_MAX} are read")
    try:
        answer = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"answer to records: {error}") from None
    if len(answer.taken) != records or len(answer.acks) > ACKS_MAX:
        raise UntrustedBytes(
            f"answer to records: {len(answer.taken)} answers to {records} records, {len(answer.acks)} acks"
        )
    return answer
