"""Rendezvous hashing in integers: golden values, balance, and little movement."""

from __future__ import annotations

import math
import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.rendezvous import cost, negative_log2, ranking

rng = random.Random(5)
DEVICES = [DeviceId(rng.randbytes(16)) for _ in range(10)]
KEYS = [rng.randbytes(32) for _ in range(1_500)]


@given(st.integers(1, 2**64))
def test_the_integer_logarithm_is_that_of_the_mathematics_library(number: int) -> None:
    assert abs(negative_log2(number) / (1 << 24) - (64 - math.log2(number))) < 2e-7


def test_golden_costs() -> None:
    """Other releases on other platforms must compute the same; a change of these is a change of the protocol."""
    device = DeviceId(bytes(range(16)))
    assert [cost(device, bytes(32), weight) for weight in (1, 8, 16, 99)] == GOLDEN


GOLDEN = [69394051686960, 8674256460870, 4337128230435, 4337128230435]


def test_load_follows_the_weights() -> None:
    weights = dict.fromkeys(DEVICES, 4)
    weights[DEVICES[0]] = 16
    weights[DEVICES[1]] = 0
    wins = Counter(ranking(weights, key)[0] for key in KEYS)
    assert DEVICES[1] not in wins
    assert abs(wins[DEVICES[0]] / len(KEYS) - 16 / 48) < 0.05


def test_a_device_that_leaves_moves_its_own_keys_only() -> None:
    weights = dict.fromkeys(DEVICES, 8)
    before = [ranking(weights, key) for key in KEYS[:500]]
    del weights[DEVICES[3]]
    for key, order in zip(KEYS, before, strict=False):
        assert ranking(weights, key) == [device for device in order if device != DEVICES[3]]


def test_a_lower_weight_moves_the_keys_of_that_device_only() -> None:
    weights = dict.fromkeys(DEVICES, 8)
    before = [ranking(weights, key)[0] for key in KEYS]
    weights[DEVICES[3]] = 4
    after = [ranking(weights, key)[0] for key in KEYS]
    assert all(old == DEVICES[3] for old, new in zip(before, after, strict=True) if old != new)
