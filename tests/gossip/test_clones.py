"""Two devices with one key are told apart from everything that only looks like it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.gossip.clones import (
    DEVICES_MAX,
    QUARANTINE_MS_MAX,
    QUARANTINE_MS_MIN,
    REMEMBERED_MS,
    SIGHTINGS_MAX,
    UNKNOWN,
    Clones,
)
from pcm_p2p.ids import DeviceId

DEVICE = DeviceId(b"d" * 16)
HOUR_MS = 3_600_000

Seen = tuple[str, int, int]
"""Instance, and the interval in which it was alive at some moment."""


def proofs(*sightings: Seen) -> int:
    clones = Clones()
    return sum(clones.alive(DEVICE, name.encode() * 16, since, until) for name, since, until in sightings)


CLONES: dict[str, list[Seen]] = {
    "both dial again": [("a", 0, 1), ("b", 10, 11), ("a", 20, 21), ("b", 30, 31)],
    "both answer a ping": [("a", 0, 1), ("b", 10, 11), ("a", 12, 12), ("b", 13, 13)],
    "the newer one was restarted meanwhile": [("a", 0, 1), ("b", 9, 9), ("c", 10, 11), ("a", 20, 21), ("c", 30, 31)],
    "both are there for long": [
        *[("a", 0, 1), ("a", 2, 3), ("a", 4, 5), ("b", 6, 7), ("b", 8, 9), ("a", 10, 11), ("a", 12, 12), ("b", 13, 13)]
    ],
    "a message of the older one was late": [("a", 0, 1), ("b", 10, 11), ("a", 9, 12), ("a", 13, 14), ("b", 15, 16)],
}


@pytest.mark.parametrize("sightings", CLONES.values(), ids=list(CLONES))
def test_instances_that_take_turns_are_two(sightings: list[Seen]) -> None:
    assert proofs(*sightings) == 1


ONE_DEVICE: dict[str, list[Seen]] = {
    "it never restarts": [("a", 0, 1), ("a", 5, 6), ("a", 10, 11)],
    "it restarts": [("a", 0, 1), ("b", 10, 11), ("b", 20, 21)],
    "it restarts at once": [("a", 0, 1), ("b", 2, 3), ("c", 4, 5), ("d", 6, 7)],
    "a crash loop of two hundred starts": [(chr(200 + n), 10 * n, 10 * n + 1) for n in range(200)],
    "two sessions cross during a dial race": [("a", 0, 5), ("a", 1, 4), ("a", 2, 6)],
    "two sessions cross while it restarts": [("a", 0, 5), ("b", 4, 8), ("a", 3, 9)],
    "the last words of the old process arrive late": [("a", 0, 1), ("b", 10, 11), ("a", 5, 12)],
    "the first words of the old process arrive after its successor's": [("b", 10, 11), ("a", 5, 12), ("b", 13, 14)],
    "the old process and the new one within one millisecond": [("a", 0, 0), ("b", 0, 0), ("a", 0, 0)],
    "a virtual machine set back to a snapshot with its memory": [
        ("a", 0, 1),
        ("b", 10, 11),
        ("a", 20, 21),
        ("a", 30, 31),
    ],
    "set back, and restarted then": [("a", 0, 1), ("b", 10, 11), ("a", 20, 21), ("c", 30, 31), ("c", 40, 41)],
    "a state folder restored from a backup: its old instance never returns": [
        ("a", 0, 1),
        ("b", 10, 11),
        ("c", 20, 21),
    ],
    "an older version, which has no instance": [("\0", 0, 1), ("b", 10, 11), ("\0", 20, 21)],
}


@pytest.mark.parametrize("sightings", ONE_DEVICE.values(), ids=list(ONE_DEVICE))
def test_what_only_looks_like_two_is_one(sightings: list[Seen]) -> None:
    assert proofs(*sightings) == 0


def test_an_older_version_says_nothing_about_itself() -> None:
    assert UNKNOWN == b"\0" * 16


@given(st.data())
def test_one_process_at_a_time_is_never_taken_for_two(data: st.DataObject) -> None:
    """Lives follow each other; a sighting contains a moment of the life it is about; they come in the order of their ends."""
    borders = sorted(data.draw(st.lists(st.integers(0, 1_000), min_size=2, max_size=9, unique=True)))
    seen = []
    for number, (born, dead) in enumerate(pairwise(borders)):
        for moment in data.draw(st.lists(st.integers(born, dead - 1), max_size=5)):
            before, after = data.draw(st.tuples(st.integers(0, 300), st.integers(0, 300)))
            seen.append((chr(65 + number), moment - before, moment + after))
    assert proofs(*sorted(seen, key=lambda one: one[2])) == 0


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50), st.integers(0, 20)), max_size=40),
    st.integers(1, 10),
)
def test_two_processes_that_are_both_seen_again_are_always_found(noise: list[tuple[str, int, int]], gap: int) -> None:
    clones, now = Clones(), 0
    for name, wait, length in noise:
        now += wait + length
        clones.alive(DEVICE, name.encode() * 16, now - length, now)
    found = False
    for name in "xyxy":
        now += gap
        found |= clones.alive(DEVICE, name.encode() * 16, now, now)
    assert found


def proven_at(clones: Clones, now_ms: int) -> None:
    """A proof whose last sighting is at ``now_ms``."""
    for number, before_ms in ((1, 30), (2, 20), (1, 10)):
        assert not clones.alive(DEVICE, bytes([number]) * 16, now_ms - before_ms, now_ms - before_ms)
    assert clones.alive(DEVICE, bytes([2]) * 16, now_ms, now_ms)


def test_a_clone_is_refused_for_a_while_and_longer_each_time_it_is_still_there() -> None:
    clones, now, lengths = Clones(), 1_000, []
    for _ in range(9):
        proven_at(clones, now)
        start = now
        while clones.quarantined(DEVICE, now):
            now += 1_000
        lengths.append(now - start)
        now += 1_000
    assert lengths == [min(QUARANTINE_MS_MIN << n, QUARANTINE_MS_MAX) for n in range(9)]


def test_a_clone_that_goes_on_during_its_quarantine_stays_in_it_without_making_it_longer() -> None:
    clones = Clones()
    for minute in range(30):
        proven_at(clones, 1_000 + minute * 30_000)
    end = 1_000 + 29 * 30_000 + QUARANTINE_MS_MIN
    assert clones.quarantined(DEVICE, end - 1)
    assert not clones.quarantined(DEVICE, end)


def test_after_a_day_without_a_proof_a_device_begins_anew() -> None:
    clones = Clones()
    proven_at(clones, HOUR_MS)
    proven_at(clones, 2 * HOUR_MS)
    assert [(clone.device, clone.proven_ms, clone.proofs) for clone in clones.proven(2 * HOUR_MS)] == [
        (DEVICE, 2 * HOUR_MS, 2)
    ]
    later = 2 * HOUR_MS + REMEMBERED_MS + 1
    assert clones.proven(later) == ()
    proven_at(clones, later + 100)
    assert [clone.proofs for clone in clones.proven(later + 100)] == [1]
    assert not clones.quarantined(DEVICE, later + 100 + QUARANTINE_MS_MIN)


def test_the_one_that_stays_is_not_held_by_what_was_seen_of_the_other() -> None:
    clones = Clones()
    proven_at(clones, 1_000)
    now = 1_000 + QUARANTINE_MS_MIN
    for _ in range(10):
        now += 1_000
        assert not clones.alive(DEVICE, bytes([1]) * 16, now, now)
    assert not clones.quarantined(DEVICE, now)


def test_other_devices_are_not_concerned() -> None:
    clones, other = Clones(), DeviceId(b"o" * 16)
    for now_ms in range(10):
        assert not clones.alive(DEVICE, b"a" * 16, 2 * now_ms, 2 * now_ms)
        assert not clones.alive(other, b"b" * 16, 2 * now_ms + 1, 2 * now_ms + 1)
    proven_at(clones, 1_000)
    assert not clones.quarantined(other, 1_001)


def test_what_is_remembered_is_bounded_and_who_is_in_quarantine_goes_last() -> None:
    clones = Clones()
    proven_at(clones, 1_000)
    for number in range(3 * DEVICES_MAX):
        clones.alive(DeviceId(number.to_bytes(16, "big")), b"a" * 16, 1_001, 1_001)
    assert len(clones._watched) == DEVICES_MAX
    assert clones.quarantined(DEVICE, 1_002)
    for number in range(100):
        clones.alive(DEVICE, number.to_bytes(16, "big"), 2_000 + number, 2_000 + number)
    assert len(clones._watched[DEVICE].sightings) == SIGHTINGS_MAX
