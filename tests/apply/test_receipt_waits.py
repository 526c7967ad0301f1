"""How long a change that ended badly is left alone."""

from __future__ import annotations

import pytest

from pcm_p2p.apply.receipt import INTERRUPTED, WAIT_MS, WAIT_MS_MAX, Receipt, digest_of
from pcm_p2p.policy.desired import Change

CHANGE = Change("app", "1", ())


def ended(attempts: int, reason: str) -> Receipt:
    return Receipt("app", "1", digest_of(CHANGE), "rolled_back", attempts, 1_000_000, reason=reason)


@pytest.mark.parametrize(
    ("attempts", "reason", "wait_ms"),
    [
        (1, INTERRUPTED, 0),
        (2, INTERRUPTED, 2 * WAIT_MS),
        (1, "it failed", WAIT_MS),
        (3, "it failed", 4 * WAIT_MS),
        (9, "it failed", WAIT_MS_MAX),
    ],
)
def test_a_first_interruption_is_tried_again_at_once_and_a_failure_waits_ever_longer(
    attempts: int, reason: str, wait_ms: int
) -> None:
    assert ended(attempts, reason).wait_ms(CHANGE, 1_000_000) == wait_ms
