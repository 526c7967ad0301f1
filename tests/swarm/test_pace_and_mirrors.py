"""Rate limits and the choice of mirrors."""

from __future__ import annotations

import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from pcm_p2p.swarm.mirrors import REST_MS_MAX, RETRY_AFTER_MS_MAX, Mirrors
from pcm_p2p.swarm.pace import NS_PER_S, Pace, TokenBucket


@given(st.integers(1_000, 10**8), st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 1 << 20)), max_size=50))
def test_never_more_than_rate_times_time_and_one_burst(rate: int, steps: list[tuple[int, int]]) -> None:
    bucket, now_ns, taken = TokenBucket(rate), 0, 0
    for wait_ns, size in steps:
        now_ns += wait_ns
        ready_ns = now_ns + bucket.take(size, now_ns)
        taken += size
        assert taken <= bucket.burst_bytes + rate * ready_ns / NS_PER_S + 1


def test_without_a_rate_nothing_waits_and_time_that_goes_back_gives_nothing() -> None:
    assert TokenBucket(0).take(1 << 40, 0) == 0
    bucket = TokenBucket(1_000, 1_000, now_ns=10 * NS_PER_S)
    assert bucket.take(1_000, 5 * NS_PER_S) == 0
    assert bucket.take(1_000, 1 * NS_PER_S) == NS_PER_S


async def test_takers_of_one_pace_share_its_rate(autojump_clock: MockClock) -> None:
    pace = Pace(100_000, burst_bytes=10_000)
    began = trio.current_time()

    async def taker() -> None:
        for _ in range(10):
            await pace.take(10_000)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(taker)
    assert trio.current_time() - began == pytest.approx(2.9, abs=0.05)


def test_mirrors_are_asked_in_order_and_rest_after_failures() -> None:
    mirrors = Mirrors(["http://a/", "http://b"], random.Random(1))
    first, second = mirrors.all
    assert first.url == "http://a"
    assert mirrors.choose(0) is first
    mirrors.failed(first, "answers 503", 0)
    assert mirrors.choose(1) is second
    mirrors.failed(second, "is too slow", 1)
    assert mirrors.choose(2) is None
    assert 900 <= mirrors.wait_ms(2) <= 1_250
    assert mirrors.reason in ("answers 503", "is too slow")
    assert mirrors.choose(1_300) is first
    mirrors.worked(first)
    assert mirrors.choose(1_301) is first


def test_rests_double_up_to_their_ceiling_and_honour_retry_after() -> None:
    mirrors = Mirrors(["http://a"], random.Random(1))
    [mirror] = mirrors.all
    rests = []
    for _ in range(12):
        mirrors.failed(mirror, "x", 0)
        rests.append(mirror.rest_until_ms)
    assert rests[0] <= 1_250
    assert 4 * rests[0] < rests[4]
    assert max(rests) <= REST_MS_MAX * 5 // 4
    mirrors.failed(mirror, "x", 0, retry_after_ms=120_000)
    assert mirror.rest_until_ms == 120_000
    mirrors.failed(mirror, "x", 0, retry_after_ms=10**12)
    assert mirror.rest_until_ms == RETRY_AFTER_MS_MAX


def test_a_mirror_with_wrong_bytes_rests_for_long() -> None:
    mirrors = Mirrors(["http://a", "http://b"], random.Random(1))
    mirrors.delivered_wrong(mirrors.all[0], "wrong bytes", 0)
    assert mirrors.choose(599_999) is mirrors.all[1]
    assert mirrors.choose(600_001) is mirrors.all[0]
    assert Mirrors([], random.Random(1)).choose(0) is None
