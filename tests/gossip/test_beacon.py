"""Beacons: about eight of a segment announce themselves, whoever looks, and a newcomer moves at most few of them."""

from __future__ import annotations

import pytest
from neighbourhood import device_id

from pcm_p2p.gossip.beacon import BEACONS, SLACK, group_tag, rank, should_announce

TAG = group_tag("f" * 32)


@pytest.mark.parametrize("count", [1, 8, 30, 200])
def test_with_equal_views_exactly_the_first_eight_announce(count: int) -> None:
    devices = [device_id(number) for number in range(count)]
    ranks = [rank(device, devices, TAG) for device in devices]
    assert sorted(ranks) == list(range(count))
    announcing = [device for device in devices if should_announce(device, devices, TAG, announced=False)]
    assert len(announcing) == min(count, BEACONS)


def test_a_device_that_knows_nobody_announces_itself() -> None:
    assert should_announce(device_id(1), [], TAG, announced=False)


def test_a_newcomer_silences_nobody_at_once() -> None:
    devices = [device_id(number) for number in range(40)]
    announcing = [device for device in devices if should_announce(device, devices, TAG, announced=False)]
    grown = [*devices, *(device_id(1_000 + number) for number in range(3))]
    still = [device for device in announcing if should_announce(device, grown, TAG, announced=True)]
    assert still == announcing


def test_all_that_started_alone_fall_silent_but_those_within_the_slack() -> None:
    devices = [device_id(number) for number in range(60)]
    still = [device for device in devices if should_announce(device, devices, TAG, announced=True)]
    assert len(still) == BEACONS + SLACK


def test_another_fleet_has_another_tag_and_another_order() -> None:
    devices = [device_id(number) for number in range(40)]
    other = group_tag("e" * 32)
    assert other != TAG
    assert len(TAG) == 8
    assert [rank(d, devices, TAG) for d in devices] != [rank(d, devices, other) for d in devices]
