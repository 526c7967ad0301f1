"""Admittance: whom the desk certifies. A core: what is known goes in, the answer comes out; keys and secrets were checked before.

===========  ==================================================================================================
answer       meaning
===========  ==================================================================================================
(empty)      yes
unknown      this desk never made that token
revoked      the token was revoked; or the device, or the authority that had certified it
wrong        the token's secret, or the proof that the device holds its key, does not fit
expired      the token's time is over
used         the token was used as often as it may be
waiting      a person must let the device in; it is in the queue
full         a person must let the device in, and the queue has no room
denied       a person said no
stranger     for renewals: not a member of this fleet
overdue      for renewals: the certificate ended longer ago than ``GRACE``
===========  ==================================================================================================

The desk has two answers besides: malformed (the request does not fit its schema) and failed (its log says why).

A key that comes again for the same token is the same use, whatever became of its first certificate.

Renewal: a member proves its key and shows the certificate that it has; it gets the same name and role with new dates. One that
expired while the device was away is good for ``GRACE`` longer, at the desk and nowhere else: TLS between members and with
collectors asks for valid dates.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pcm_p2p.enrolment.token import TokenRecord

GRACE = timedelta(days=90)
"""Choice: a quarter of a certificate's life. A laptop that was away for a long leave comes back by itself, a forgotten one
not."""
QUEUE_MAX = 2_000
"""Choice: what a person can look through, and 1 MB on disk."""
QUEUE_EACH_MAX = 1_000
"""Of one token."""
QUEUE_SLACK = 16
"""Choice: a token's queue has room for twice as many devices as it has uses left, and a few: strangers who found the image's
token cannot fill the queue of another, nor keep out all who should come."""

Answer = Literal[
    "", "unknown", "revoked", "wrong", "expired", "used", "waiting", "full", "denied", "stranger", "overdue"
]
Decision = Literal["approved", "denied"]


@dataclass(frozen=True, slots=True)
class Queue:
    """How the queue stands for one device: whether it is in it, what was decided, and how many are in it in all."""

    waits: bool = False
    decision: Decision | None = None
    of_token: int = 0
    in_all: int = 0


def admit(record: TokenRecord, public_key: str, *, revoked: bool, queue: Queue, now_ms: int) -> Answer:
    """The answer to a device that holds ``public_key`` (hexadecimal) and the token of ``record``; ``now_ms`` since 1970."""
    state = record.state(now_ms, revoked=revoked)
    if state in ("revoked", "expired"):
        return state
    if public_key in record.spent:
        return ""
    if state == "used up":
        return "used"
    if not record.approval or queue.decision == "approved":
        return ""
    if queue.decision == "denied":
        return "denied"
    return "waiting" if queue.waits or has_room(record, queue) else "full"


def has_room(record: TokenRecord, queue: Queue) -> bool:
    """Whether one more device of this token may wait."""
    of_token_max = min(2 * record.uses_left + QUEUE_SLACK, QUEUE_EACH_MAX)
    return queue.of_token < of_token_max and queue.in_all < QUEUE_MAX


def renew(role: str, not_after: datetime, *, denied: bool, now: datetime) -> Answer:
    """The answer to a member whose certificate names ``role`` and ends at ``not_after``; ``denied``: it, or who certified it."""
    if role not in ("device", "collector", "relay"):
        return "stranger"
    if denied:
        return "revoked"
    return "overdue" if now > not_after + GRACE else ""
