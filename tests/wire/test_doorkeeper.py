"""The doorkeeper: strangers are counted in all and for each source, and cannot lock those out who are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.wire.doorkeeper import (
    BURST,
    RATE_PER_S,
    STRANGERS_EACH_MAX,
    STRANGERS_MAX,
    Doorkeeper,
    source_of,
)


def address(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def test_one_source_has_a_few_places_and_others_still_get_in() -> None:
    door = Doorkeeper()
    assert [door.enter("10.0.0.1", 0.0) for _ in range(STRANGERS_EACH_MAX)] == [""] * STRANGERS_EACH_MAX
    assert "with this address" in door.enter("10.0.0.1", 0.0)
    assert door.enter("10.0.0.2", 0.0) == ""
    door.leave("10.0.0.1", proved=False)
    assert door.enter("10.0.0.1", 0.0) == ""
    assert door.turned_away == 1


def test_all_strangers_together_have_a_bounded_number_of_places() -> None:
    door = Doorkeeper()
    let_in = [number for number in range(100) if not door.enter(address(number), 0.0)]
    assert len(let_in) == STRANGERS_MAX
    assert door.strangers == STRANGERS_MAX


def test_a_source_that_knocks_all_day_is_let_in_at_the_rate_and_others_do_not_suffer() -> None:
    door, entered = Doorkeeper(), 0
    for tenth in range(600):
        if not door.enter("10.0.0.1", tenth / 10):
            door.leave("10.0.0.1", proved=False)
            entered += 1
        assert door.enter(address(1_000 + tenth), tenth / 10) == ""
        door.leave(address(1_000 + tenth), proved=False)
    assert BURST < entered <= BURST + 60 * RATE_PER_S


def test_strangers_who_fill_their_places_do_not_lock_a_known_neighbour_out() -> None:
    door = Doorkeeper()
    assert door.enter("10.0.0.1", 0.0) == ""
    door.leave("10.0.0.1", proved=True)
    for number in range(2, 100):
        door.enter(address(number), 0.0)
    assert door.enter("10.0.0.200", 0.0) != "", "a stranger finds no place"
    assert door.enter("10.0.0.1", 0.0) == "", "the neighbour does"
    door.leave("10.0.0.1", proved=True)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("?", "?", True),
        ("?", "10.0.0.1", False),
    ],
)
def test_what_counts_as_one_source(one: str, other: str, same: bool) -> None:
    assert (source_of(one) == source_of(other)) is same


def test_a_host_cannot_make_itself_many_within_its_own_ipv6_network() -> None:
    door = Doorkeeper()
    let_in = [number for number in range(50) if not door.enter(f"2001:db8::{number:x}", 0.0)]
    assert len(let_in) == STRANGERS_EACH_MAX


def test_programs_of_this_machine_share_one_address_and_only_the_common_bound() -> None:
    strict = Doorkeeper(loopback_is_exempt=False)
    assert sum(not strict.enter("127.0.0.1", 0.0) for _ in range(10)) == STRANGERS_EACH_MAX
    lenient = Doorkeeper()
    assert sum(not lenient.enter("127.0.0.1", 0.0) for _ in range(100)) == STRANGERS_MAX


def test_a_hundred_thousand_sources_take_a_bounded_table() -> None:
    door = Doorkeeper(sources_max=100)
    for number in range(5_000):
        if not door.enter(address(number), number / 1_000):
            door.leave(address(number), proved=False)
    assert len(door._sources) <= 100


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=200))
def test_what_was_let_in_is_counted_until_it_leaves(steps: list[tuple[int, bool, bool]]) -> None:
    door = Doorkeeper(at_once_max=4, each_at_once_max=2, burst=1_000)
    inside: dict[str, int] = {}
    for number, enters, proved in steps:
        host = address(number)
        if enters:
            if not door.enter(host, 0.0):
                inside[host] = inside.get(host, 0) + 1
        elif inside.get(host):
            inside[host] -= 1
            door.leave(host, proved=proved)
        assert door.strangers + door.proven == sum(inside.values())
        assert door.strangers <= 4
        assert door.proven <= 4
        assert max(inside.values(), default=0) <= 2
