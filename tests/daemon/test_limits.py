"""Rates come from the device's own settings and from policy; the lower of each kind counts."""

from __future__ import annotations

import pytest

from pcm_p2p.config import Limits
from pcm_p2p.daemon.limits import RateLimits, lower
from pcm_p2p.policy.document import Transfer


@pytest.mark.parametrize(
    ("own", "policy", "expected"), [(0, None, 0), (0, 0, 0), (5, None, 5), (0, 7, 7), (5, 7, 5), (9, 7, 7), (5, 0, 5)]
)
def test_the_lower_limit_counts_and_zero_is_none(own: int, policy: int | None, expected: int) -> None:
    assert lower(own, policy) == expected


def test_a_policy_limits_each_kind_and_its_end_gives_the_own_limit_back() -> None:
    limits = RateLimits(Limits(wan_in_bytes_per_s=1_000, lan_out_bytes_per_s=50))
    limits.follow(Transfer(wan_in_bytes_per_s=400, lan_in_bytes_per_s=70))
    assert [pace.rate_bytes_per_s for pace in (limits.wan_in, limits.lan_in, limits.lan_out)] == [400, 70, 50]
    limits.follow(Transfer())
    assert [pace.rate_bytes_per_s for pace in (limits.wan_in, limits.lan_in, limits.lan_out)] == [1_000, 0, 50]
