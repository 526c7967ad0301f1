"""Dialogue: what the network's daemon asks of the apply service over its Unix socket, and what is answered. Sans I/O.

One connection carries one request. The service asks back for what it needs, and believes nothing of what it gets::

    message = u32 length (big-endian, of what follows) | MessagePack array [tag, field, …]
    bytes   = a ``Bring`` message, then exactly as many bytes as it says

======  ============  ==========================================================================================
tag     message       meaning
======  ============  ==========================================================================================
1       Offer         I have other metadata than I told you of last: learn what you can of it
2       Apply         make this change, if your own policy says so now
3       InPlace       whether the device is as this change wants it
4       GetReceipts   what is in place of each subject
5       Observe       look at what this check of the signed policies is about
6       Reset         forget the failures of a subject; root only
7       GetStanding   what the service trusts and is
16, 17  Bring, Lack   answer to what the service asks: bytes follow, or there are none
32      AskFile       the service needs a file of the tree of metadata and targets
33      AskArtifact   the service needs an artifact of the release
34      AskPackage    the service needs the package that the change replaces, to go back to if need be
48      Learned       end of an Offer: how it ended, and what is trusted now
49      Ended         end of an Apply
50      Answer        end of InPlace and Reset
51      ReceiptRow    one receipt
52      NoMore        end of GetReceipts
53      Observed      end of Observe
54      Standing      end of GetStanding
55      Refused       end of anything: no, and why
======  ============  ==========================================================================================

The daemon passes no open file: what it could change, stop or make endless after a check is worth nothing here, so bytes travel
as bytes and are hashed while they are copied.
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeVar

import msgspec

from pcm_p2p.apply.receipt import Outcome, Receipt
from pcm_p2p.errors import UntrustedBytes

REQUEST_BYTES_MAX = 16 << 10
"""Of one message to the service. Choice: the largest names a subject and a version, below 1 KiB."""
ANSWER_BYTES_MAX = 8 << 20
"""Of one message of the service. Choice: a receipt with 256 packages has 50 KB; what ``hits`` exceed of it is not told."""
BYTES_MAX = 64 << 30
"""Of what follows one ``Bring``. Choice: as the largest archive that is unpacked."""

T = TypeVar("T")

_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size

Subject = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Version = Annotated[str, msgspec.Meta(max_length=128)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=4_096)]
SizeBytes = Annotated[int, msgspec.Meta(ge=0, le=BYTES_MAX)]


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages."""


class Offer(_Message, frozen=True, tag=1):
    """``site``: of the repository with which the device's site acts alone, instead of the fleet's."""

    site: bool = False


class Apply(_Message, frozen=True, tag=2):
    """``digest`` is that of the change which is meant (``receipt.digest_of``): both sides must mean the same."""

    subject: Subject
    version: Version
    digest: Sha256


class InPlace(_Message, frozen=True, tag=3):
    subject: Subject
    version: Version
    digest: Sha256


class GetReceipts(_Message, frozen=True, tag=4):
    pass


class Observe(_Message, frozen=True, tag=5):
    """``check`` is the SHA-256 of the check as it stands in a policy (``judgement.digest_of_check``)."""

    check: Sha256
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)]


class Reset(_Message, frozen=True, tag=6):
    subject: Subject


class GetStanding(_Message, frozen=True, tag=7):
    pass


class Bring(_Message, frozen=True, tag=16):
    size_bytes: SizeBytes


class Lack(_Message, frozen=True, tag=17):
    reason: Text = ""


class AskFile(_Message, frozen=True, tag=32):
    path: Text
    size_bytes_max: SizeBytes


class AskArtifact(_Message, frozen=True, tag=33):
    name: Text
    sha256: Sha256
    size_bytes: SizeBytes


class AskPackage(_Message, frozen=True, tag=34):
    name: Text
    version: Text
    architecture: Text
    sha256: Sha256
    size_bytes: SizeBytes


class Learned(_Message, frozen=True, tag=48):
    """``kind`` as ``trust.client.Attempt``."""

    kind: Text
    reason: Text


class Ended(_Message, frozen=True, tag=49):
    outcome: Outcome


class Answer(_Message, frozen=True, tag=50):
    yes: bool


class ReceiptRow(_Message, frozen=True, tag=51):
    receipt: Receipt


class NoMore(_Message, frozen=True, tag=52):
    pass


class SeenFact(msgspec.Struct, frozen=True, array_like=True):
    """One attribute. ``unknown`` is empty, or the state of a fact that could not be told, for ``reason``."""

    attribute: str
    value: bool | int | str | tuple[str, ...] | None
    unknown: str = ""
    reason: str = ""


class Observed(_Message, frozen=True, tag=53):
    facts: tuple[SeenFact, ...]


class Standing(_Message, frozen=True, tag=54):
    """``versions``: root, timestamp, snapshot, targets; 0 where there is nothing yet."""

    device: Text
    fleet: Text
    site: Text
    labels: tuple[str, ...]
    root: Text
    freshness: Text
    versions: tuple[int, int, int, int]
    changes_allowed: bool
    why_not: Text


class Refused(_Message, frozen=True, tag=55):
    """``exit_status`` is that of the error (``pcm_p2p.errors``)."""

    message: Text
    remedy: Text
    exit_status: int


Request = Offer | Apply | InPlace | GetReceipts | Observe | Reset | GetStanding
Brought = Bring | Lack
Question = AskFile | AskArtifact | AskPackage
End = Learned | Ended | Answer | ReceiptRow | NoMore | Observed | Standing | Refused
Said = Question | End

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_brought: msgspec.msgpack.Decoder[Brought] = msgspec.msgpack.Decoder(Brought)
_said: msgspec.msgpack.Decoder[Said] = msgspec.msgpack.Decoder(Said)


def encode(message: Request | Brought | Said) -> bytes:
    """A message with its length before it."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def length_untrusted(head: bytes, size_bytes_max: int) -> int:
    """How many bytes of message follow; raises ``UntrustedBytes`` only."""
    if len(head) != LENGTH_BYTES:
        raise UntrustedBytes(f"the length of a message has {LENGTH_BYTES} bytes, not {len(head)}")
    (length,) = _LENGTH.unpack(head)
    if not 1 <= length <= size_bytes_max:
        raise UntrustedBytes(f"a message of {length} bytes is refused; at most {size_bytes_max} are read")
    return int(length)


def decode_request_untrusted(body: bytes) -> Request:
    """What a connection begins with; raises ``UntrustedBytes`` only."""
    return _decode_untrusted(_requests, body)


def decode_brought_untrusted(body: bytes) -> Brought:
    """The answer to what the service asked; raises ``UntrustedBytes`` only."""
    return _decode_untrusted(_brought, body)


def decode_said_untrusted(body: bytes) -> Said:
    """What the service says; raises ``UntrustedBytes`` only."""
    return _decode_untrusted(_said, body)


def _decode_untrusted(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"message does not fit its schema: {error}") from None
