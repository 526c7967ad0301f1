"""The picker, on the core alone."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.conduct import BAN_MS, Conduct
from pcm_p2p.swarm.holdings import OfficeHoldings, bits_of, positions_of
from pcm_p2p.swarm.picker import PIPELINE, PIPELINE_FEW, Budget, Picker

A, B, C, D, E = (DeviceId(bytes([number]) * 16) for number in range(1, 6))
SIZE = 256 << 10


def office(count: int = 64, budget: Budget | None = None, **held: int) -> tuple[OfficeHoldings, Picker]:
    holdings = OfficeHoldings(count)
    for name, bits in held.items():
        holdings.peer_holds({"a": A, "b": B, "c": C, "d": D, "e": E}[name], bits)
    return holdings, Picker(holdings, [SIZE] * count, budget or Budget(1 << 40), random.Random(1))


ALL = (1 << 64) - 1


def test_a_sole_holder_gets_a_deep_pipeline_and_many_get_shallow_ones() -> None:
    _, picker = office(a=ALL)
    assert len(picker.next_requests(0)) == PIPELINE_FEW
    assert picker.next_requests(1) == []
    _, picker = office(a=ALL, b=ALL, c=ALL, d=ALL, e=ALL)
    counts = Counter(request.device for request in picker.next_requests(0))
    assert counts == dict.fromkeys((A, B, C, D, E), PIPELINE)


def test_no_chunk_is_asked_for_twice_while_others_are_left() -> None:
    _, picker = office(a=ALL, b=ALL, c=ALL, d=ALL)
    requests = picker.next_requests(0)
    assert len({request.position for request in requests}) == len(requests)


def test_the_rarest_chunk_goes_first() -> None:
    rare = 1 << 17
    _, picker = office(a=ALL, b=ALL & ~rare, c=ALL & ~rare)
    assert 17 in {request.position for request in picker.next_requests(0) if request.device == A}


def test_ties_are_broken_by_chance_not_by_place() -> None:
    firsts = set()
    for seed in range(20):
        holdings = OfficeHoldings(64)
        holdings.peer_holds(A, ALL)
        firsts.add(Picker(holdings, [SIZE] * 64, Budget(), random.Random(seed)).next_requests(0)[0].position)
    assert len(firsts) > 10


def test_the_budget_bounds_what_is_on_its_way_but_lets_one_through() -> None:
    budget = Budget(3 * SIZE)
    _, picker = office(budget=budget, a=ALL, b=ALL)
    assert len(picker.next_requests(0)) == 3
    assert picker.next_ms is not None, "room may be made by another manifest"
    holdings = OfficeHoldings(1)
    holdings.peer_holds(A, 1)
    large = Picker(holdings, [4 << 20], Budget(1 << 20), random.Random(1))
    assert len(large.next_requests(0)) == 1


def test_an_old_request_is_hedged_once_when_nothing_else_is_left() -> None:
    _, picker = office(count=1, a=1, b=1, c=1)
    [first] = picker.next_requests(0)
    assert picker.next_requests(10) == []
    assert picker.next_ms == 1_000, "nothing was measured yet"
    [second] = picker.next_requests(1_000)
    assert second.device != first.device
    assert picker.next_requests(5_000) == []
    assert picker.asked == 2


def test_the_hedge_follows_what_answers_take() -> None:
    holdings, picker = office(count=8, a=0xFF, b=0xFF)
    requests = picker.next_requests(0)
    for request in requests[:-1]:
        picker.arrived(request.device, request.position, 10)
        holdings.gain(1 << request.position)
    picker.next_requests(20)
    assert picker.next_ms is not None
    assert picker.next_ms <= 100


def test_busy_neighbours_rest_and_come_back() -> None:
    _, picker = office(count=1, a=1)
    [request] = picker.next_requests(0)
    picker.failed(A, request.position, "busy", 10)
    assert picker.next_requests(11) == []
    assert picker.next_ms is not None
    assert 10 < picker.next_ms <= 70
    assert len(picker.next_requests(picker.next_ms)) == 1


@pytest.mark.parametrize("why", ["missing", "wrong"])
def test_what_a_neighbour_has_not_is_not_asked_of_it_again(why: str) -> None:
    holdings, picker = office(count=1, a=1)
    picker.next_requests(0)
    picker.failed(A, 0, why, 1)  # type: ignore[arg-type]
    assert holdings.peers[A] == 0
    assert picker.next_requests(100_000) == []


def test_a_neighbour_that_leaves_frees_its_requests_for_others() -> None:
    budget = Budget(1 << 30)
    holdings, picker = office(count=2, budget=budget, a=0b11)
    assert len(picker.next_requests(0)) == 2
    holdings.peer_left(A)
    picker.peer_left(A)
    assert (picker.asked, budget.bytes_asked) == (0, 0)
    picker.arrived(A, 0, 5)
    holdings.peer_holds(B, 0b11)
    assert {request.device for request in picker.next_requests(6)} == {B}


def test_what_comes_by_another_path_is_skipped() -> None:
    _, picker = office(count=4, a=0b1111)
    assert {request.position for request in picker.next_requests(0, skip=0b0011)} == {2, 3}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, (1 << 12) - 1)), max_size=30))
def test_holdings_count_holders_as_a_plain_count_would(steps: list[tuple[int, int, int]]) -> None:
    devices, holdings = (A, B, C, D, E), OfficeHoldings(12)
    plain: dict[DeviceId, set[int]] = {}
    for who, what, bits in steps:
        device = devices[who]
        if what == 0:
            holdings.peer_holds(device, bits)
            plain[device] = set(positions_of(bits))
        elif what == 1:
            holdings.peer_gains(device, bits)
            if device in plain:
                plain[device] |= set(positions_of(bits))
        elif what == 2:
            holdings.peer_drops(device, bits)
            if device in plain:
                plain[device] -= set(positions_of(bits))
        else:
            holdings.peer_left(device)
            plain.pop(device, None)
    counts = Counter(position for held in plain.values() for position in held)
    for position in range(12):
        rows = [count for count, row in enumerate(holdings.by_count) if row >> position & 1]
        assert rows == [counts[position]]
        assert bool(holdings.lan >> position & 1) == (counts[position] > 0)
        assert set(holdings.holders(position)) == {device for device, held in plain.items() if position in held}
    assert holdings.peers == {device: bits_of(held) for device, held in plain.items()}


def test_two_deliveries_of_wrong_bytes_are_a_ban_for_an_hour() -> None:
    conduct = Conduct()
    assert not conduct.failed(A, "wrong", 0)
    conduct.delivered(A)
    assert conduct.failed(A, "wrong", 1)
    assert conduct.banned(A, 2)
    assert not conduct.failed(A, "wrong", 3), "it is told once"
    assert not conduct.banned(A, 1 + BAN_MS)
    assert not conduct.banned(B, 2)


def test_bad_luck_is_forgiven_by_good_deliveries() -> None:
    conduct = Conduct()
    for _ in range(200):
        assert not conduct.failed(A, "slow", 0)
        for _ in range(3):
            conduct.delivered(A)
    assert any(conduct.failed(A, "slow", 0) for _ in range(6))
    assert not any(conduct.failed(B, "busy", 0) or conduct.failed(B, "gone", 0) for _ in range(1_000))
