"""When a certificate is renewed, and how long a failure waits. Pure.

Due at two thirds of the certificate's life: of a year four months are left, in which a desk may be away and a person may act.
Each device draws its own moment in the ``SPREAD`` behind that, so that an office that was enrolled in one hour does not come
in one. Failures wait longer each time, an hour at most once the certificate is in its last tenth or over.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random

SPREAD = 1 / 30
"""Of the life: twelve days of a year."""
RETRY_MIN, RETRY_MAX = timedelta(minutes=2), timedelta(hours=12)
RETRY_URGENT_MAX = timedelta(minutes=15)
URGENT = 1 / 10
"""Of the life, counted from its end."""


def due(not_before: datetime, not_after: datetime, rng: Random) -> datetime:
    """The moment at which this device renews a certificate that is good from ``not_before`` to ``not_after``."""
    life = not_after - not_before
    return not_before + life * (2 / 3 + SPREAD * rng.random())


def retry(failures: int, not_before: datetime, not_after: datetime, now: datetime, rng: Random) -> timedelta:
    """How long to wait after the ``failures``-th failure in a row (1: the first)."""
    urgent = now >= not_after - (not_after - not_before) * URGENT
    longest = RETRY_URGENT_MAX if urgent else RETRY_MAX
    doubled = RETRY_MIN * (1 << min(failures - 1, 16))
    return min(doubled, longest) * rng.uniform(0.75, 1.25)
