"""Membership: a site finds itself, loses some, is lied to, and recovers; by the real cores in virtual time."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbourhood import World, device_id

from pcm_p2p.gossip.membership import (
    DEGREE,
    ROSTER_MAX,
    Dial,
    DialFailed,
    Dialled,
    Event,
    Introduced,
    Membership,
    NetworkChanged,
    Refute,
    RosterHeard,
    SessionDown,
    SessionUp,
    Status,
    Tell,
    Tick,
    WeightChanged,
)
from pcm_p2p.gossip.targets import BACKOFF_MS_MAX, DIALS_MAX, TARGETS_MAX, Address
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.messages import RosterEntry


def membership(number: int = 0, *, incarnation: int = 10) -> Membership:
    return Membership(device_id(number), site="berlin", port=1, incarnation=incarnation, weight=8, rng=Random(1))


def entry(number: int, *, incarnation: int = 1, status: Status = Status.ALIVE, site: str = "berlin") -> RosterEntry:
    return RosterEntry(device_id(number), f"10.0.{number // 250}.{number % 250}", 8741, incarnation, status, site, 8)


def up(core: Membership, number: int, now_ms: int = 0, *, incarnation: int = 1, site: str = "berlin") -> None:
    core.handle(SessionUp(device_id(number), Address(f"10.0.0.{number}", 8741), site, incarnation, 8), now_ms)


# A site in virtual time


@pytest.mark.parametrize("count", [2, 6, 20])
def test_devices_that_start_together_and_know_one_seed_form_a_full_mesh_within_seconds(count: int) -> None:
    world = World()
    nodes = [world.start(number) for number in range(count)]
    for node in nodes[1:]:
        world.introduce(node, nodes[0], named=False)
    world.run(4_000)
    assert [len(node.sessions) for node in nodes] == [count - 1] * count
    assert max(node.dials for node in nodes) <= 2 * count


def test_beacons_that_everybody_hears_give_a_full_mesh_with_little_double_dialling() -> None:
    world = World()
    nodes = [world.start(number) for number in range(20)]
    for node in nodes:
        for other in nodes[:8]:
            world.introduce(node, other)
    world.run(4_000)
    assert [len(node.sessions) for node in nodes] == [19] * 20
    assert sum(node.dials for node in nodes) < 1.3 * 190


def test_a_large_site_is_one_graph_of_bounded_degree_in_which_everybody_is_known() -> None:
    world = World()
    nodes = [world.start(number, host=f"10.0.{number % 4}.{number}") for number in range(60)]
    for node in nodes[1:]:
        world.introduce(node, nodes[0], named=False)
    world.run(60_000)
    assert all(len(node.core.members) == 59 for node in nodes)
    assert sorted(len(node.sessions) for node in nodes)[30] <= 2 * DEGREE
    reached, frontier = {nodes[0].device}, [nodes[0]]
    while frontier:
        for device, peer in frontier.pop().sessions.items():
            if device not in reached:
                reached.add(device)
                frontier.append(peer)
    assert len(reached) == 60


def test_a_crashed_device_becomes_suspect_then_dead_everywhere_and_nobody_else_does() -> None:
    world = World()
    nodes = [world.start(number) for number in range(10)]
    for node in nodes[1:]:
        world.introduce(node, nodes[0])
    world.run(20_000)
    world.crash(nodes[3])
    world.run(7_000)
    others = [node for node in nodes if node is not nodes[3]]
    assert {node.statuses()[nodes[3].device] for node in others} == {Status.SUSPECT}
    world.run(9_000)  # all nine confirm each other, so the shortest suspicion applies
    for node in others:
        found = node.statuses()
        assert found.pop(nodes[3].device) == Status.DEAD
        assert set(found.values()) == {Status.ALIVE}


def test_a_device_that_says_bye_has_left_at_once_and_is_forgotten_later() -> None:
    world = World()
    nodes = [world.start(number) for number in range(4)]
    for node in nodes[1:]:
        world.introduce(node, nodes[0])
    world.run(5_000)
    world.crash(nodes[3], left=True)
    world.run(1_000)
    assert all(node.statuses()[nodes[3].device] == Status.LEFT for node in nodes[:3])
    world.run(700_000)
    assert all(nodes[3].device not in node.core.members for node in nodes[:3])


def test_a_mass_restart_with_lower_incarnations_brings_everybody_back() -> None:
    world = World()
    nodes = [world.start(number, incarnation=1_000) for number in range(8)]
    for node in nodes[1:]:
        world.introduce(node, nodes[0])
    world.run(20_000)
    for node in nodes[1:]:
        world.crash(node)
    world.run(120_000)
    again = [world.start(number, incarnation=1) for number in range(1, 8)]
    for node in again:
        world.introduce(node, nodes[0])
    world.run(20_000)
    for node in (nodes[0], *again):
        assert len(node.sessions) == 7
        assert set(node.statuses().values()) == {Status.ALIVE}


def test_two_devices_that_cannot_reach_each_other_do_not_bury_each_other() -> None:
    world = World()
    nodes = [world.start(number) for number in range(6)]
    for node in nodes[1:]:
        world.introduce(node, nodes[0])
    world.run(20_000)
    world.cut(nodes[1], nodes[2])
    world.run(300_000)
    # Each accuses the other, which refutes through the rest; one observer is not enough for "dead".
    for node in nodes:
        assert Status.DEAD not in node.statuses().values()
    assert nodes[1].refuted
    assert nodes[2].refuted
    assert all(node.statuses()[nodes[2].device] == Status.ALIVE for node in (nodes[0], *nodes[3:]))


def test_the_only_other_device_is_dead_on_one_observation() -> None:
    world = World()
    one, two = world.start(0), world.start(1)
    world.introduce(one, two)
    world.run(20_000)
    world.crash(two)
    world.run(60_000)
    assert one.statuses() == {two.device: Status.DEAD}


def test_a_device_cut_off_from_everybody_accuses_nobody() -> None:
    world = World()
    nodes = [world.start(number) for number in range(10)]
    for node in nodes[1:]:
        world.introduce(node, nodes[0])
    world.run(20_000)
    for node in nodes[1:]:
        world.cut(nodes[0], node)
    world.run(50_000)
    assert set(nodes[0].statuses().values()) == {Status.ALIVE}


def test_idle_gossip_is_next_to_nothing() -> None:
    world = World()
    nodes = [world.start(number) for number in range(20)]
    for node in nodes[1:]:
        world.introduce(node, nodes[0])
    world.run(10_000)
    told, dials = [node.told for node in nodes], [node.dials for node in nodes]
    world.run(600_000)
    assert dials == [node.dials for node in nodes]
    entries_per_minute = [(node.told - before) / 10 for node, before in zip(nodes, told, strict=True)]
    assert max(entries_per_minute) <= 20 * 1.6


def test_sites_do_not_gossip_their_rosters_to_each_other() -> None:
    world = World()
    berlin = [world.start(number) for number in range(3)]
    paris = [world.start(number + 10, site="paris") for number in range(3)]
    for node in (*berlin, *paris):
        world.introduce(node, berlin[0], named=False)
        world.introduce(node, paris[0], named=False)
    world.run(20_000)
    assert all(set(node.core.members) == {n.device for n in berlin if n is not node} for node in berlin)
    assert all(set(node.core.members) == {n.device for n in paris if n is not node} for node in paris)


TRACE = """
import sys
sys.path.insert(0, sys.argv[1])
from neighbourhood import World
world = World()
nodes = [world.start(number) for number in range(12)]
for node in nodes[1:]:
    world.introduce(node, nodes[0])
world.run(5_000)
world.crash(nodes[5])
world.run(90_000)
for node in nodes:
    print(node.dials, node.told, sorted((d.hex(), m.status, m.since_ms) for d, m in node.core.members.items()))
"""


def test_the_same_seed_gives_the_same_history_whatever_the_hash_seed() -> None:
    histories = {
        subprocess.run(
            [sys.executable, "-c", TRACE, str(Path(__file__).parent)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(histories) == 1


# One core, event by event


def dials_at(core: Membership, now_ms: int) -> bool:
    return any(isinstance(effect, Dial) for effect in core.handle(Tick(), now_ms))


def test_back_off_doubles_to_its_ceiling_and_never_ends() -> None:
    core, now_ms, waits = membership(), 0, list[int]()
    address = Address("10.0.0.9", 1)
    assert core.handle(Introduced(address, seed=True), 0) == [Dial(address)]
    for _ in range(14):
        core.handle(DialFailed(address), now_ms)
        failed_ms = now_ms
        while not dials_at(core, now_ms):
            now_ms += 250
        waits.append(now_ms - failed_ms)
    assert waits[0] <= 1_000
    assert all(later > earlier for earlier, later in pairwise(waits[:8]))
    assert all(0.7 * BACKOFF_MS_MAX < wait < 1.3 * BACKOFF_MS_MAX for wait in waits[-3:])


def test_a_changed_network_is_tried_at_once() -> None:
    core, address = membership(), Address("10.0.0.9", 1)
    core.handle(Introduced(address), 0)
    core.handle(DialFailed(address), 0)
    assert core.handle(Tick(), 100) == []
    assert core.handle(NetworkChanged(), 101) == [Dial(address)]


def test_at_most_a_few_dials_at_once() -> None:
    core, dials = membership(), 0
    for number in range(1, 50):
        dials += len(core.handle(Introduced(Address(f"10.0.0.{number}", 1)), 0))
    assert dials == DIALS_MAX


def test_a_brief_session_counts_as_a_failed_dial() -> None:
    core, address = membership(1), Address("10.0.0.2", 8741)
    core.handle(Introduced(address), 0)
    waits, now_ms = list[int](), 0
    for _ in range(5):
        core.handle(Dialled(address, device_id(2)), now_ms)
        core.handle(SessionUp(device_id(2), address, "berlin", 1, 8), now_ms)
        now_ms += 100
        core.handle(SessionDown(device_id(2)), now_ms)
        ended_ms = now_ms
        while not dials_at(core, now_ms):
            now_ms += 100
        waits.append(now_ms - ended_ms)
    assert waits[-1] > 4_000


def test_it_never_dials_itself_twice() -> None:
    core, address = membership(), Address("127.0.0.1", 1)
    assert core.handle(Introduced(address, seed=True), 0) == [Dial(address)]
    core.handle(Dialled(address, device_id(0)), 5)
    assert not any(core.handle(Tick(), now_ms) for now_ms in range(1_000, 600_000, 1_000))


def test_one_peer_alone_can_make_nobody_suspect_and_two_can() -> None:
    core = membership()
    up(core, 1)
    up(core, 2)
    core.handle(RosterHeard(device_id(1), (entry(9),)), 0)
    for _ in range(5):
        core.handle(RosterHeard(device_id(1), (entry(9, status=Status.DEAD),)), 10)
    assert core.members[device_id(9)].status == Status.ALIVE
    core.handle(RosterHeard(device_id(2), (entry(9, status=Status.SUSPECT),)), 20)
    assert core.members[device_id(9)].status == Status.SUSPECT


def test_an_accusation_against_a_device_in_session_is_not_believed_but_passed_to_it() -> None:
    core = membership()
    up(core, 1)
    up(core, 2)
    accusation = entry(2, status=Status.DEAD)
    effects = core.handle(RosterHeard(device_id(1), (accusation,)), 1)
    assert Tell((accusation,), device_id(2)) in effects
    assert core.members[device_id(2)].status == Status.ALIVE


def test_hearsay_is_not_passed_on_as_an_accusation_of_ones_own() -> None:
    core = membership()
    up(core, 1)
    up(core, 2)
    core.handle(RosterHeard(device_id(1), (entry(9),)), 0)
    core.handle(Tick(), 1_000)
    for accuser in (1, 2):
        core.handle(RosterHeard(device_id(accuser), (entry(9, status=Status.SUSPECT),)), 1_010)
    told = [effect for now_ms in range(2_000, 6_000, 1_000) for effect in core.handle(Tick(), now_ms)]
    assert device_id(9) not in {e.device for effect in told if isinstance(effect, Tell) for e in effect.entries}
    assert device_id(9) not in {e.device for e in core.roster()}


def test_the_accused_refutes_with_a_higher_incarnation_and_not_too_often() -> None:
    core = membership(incarnation=10)
    up(core, 1)
    effects = core.handle(RosterHeard(device_id(1), (entry(0, incarnation=10, status=Status.SUSPECT),)), 10_000)
    assert Refute(11) in effects
    told = [e for effect in effects if isinstance(effect, Tell) for e in effect.entries if not e.host]
    assert [e.incarnation for e in told] == [11]
    again = RosterHeard(device_id(1), (entry(0, incarnation=11, status=Status.DEAD),))
    assert core.handle(again, 10_500) == []
    assert Refute(12) in core.handle(again, 12_500)


def test_an_old_accusation_is_nothing_and_a_later_self_is_caught_up_with() -> None:
    core = membership(incarnation=10)
    up(core, 1)
    core.handle(Tick(), 5_000)
    assert core.handle(RosterHeard(device_id(1), (entry(0, incarnation=9, status=Status.DEAD),)), 10_000) == []
    assert Refute(501) in core.handle(RosterHeard(device_id(1), (entry(0, incarnation=500),)), 10_000)


def test_an_incarnation_at_the_end_of_its_range_is_ignored() -> None:
    core = membership()
    up(core, 1)
    core.handle(RosterHeard(device_id(1), (entry(0, incarnation=0xFFFF_FFFF, status=Status.DEAD),)), 10_000)
    assert core.incarnation == 10


def test_rosters_of_strangers_and_of_other_sites_are_ignored() -> None:
    core = membership()
    up(core, 1, site="paris")
    core.handle(RosterHeard(device_id(1), (entry(5),)), 0)
    core.handle(RosterHeard(device_id(2), (entry(5),)), 0)
    up(core, 3)
    core.handle(RosterHeard(device_id(3), (entry(5, site="paris"),)), 0)
    assert device_id(5) not in core.members


@pytest.mark.parametrize("host", ["db.example.org", "", "10.0.0.300", "10.0.0.1 ", "a" * 256])
def test_a_name_in_a_roster_is_never_looked_up(host: str) -> None:
    core = membership()
    up(core, 1)
    named = RosterEntry(device_id(7), host, 22, 1, Status.ALIVE, "berlin", 8)
    core.handle(RosterHeard(device_id(1), (named,)), 10)
    assert device_id(7) not in core.members
    assert not [effect for effect in core.handle(Tick(), 20_000) if isinstance(effect, Dial)]


def test_a_flood_of_invented_members_is_bounded() -> None:
    core = membership()
    up(core, 1)
    for start in range(0, 5_000, 500):
        core.handle(RosterHeard(device_id(1), tuple(entry(start + n + 10) for n in range(500))), start)
    assert len(core.members) <= ROSTER_MAX
    assert len(core._targets) <= TARGETS_MAX
    assert len(core.roster()) <= ROSTER_MAX


def test_a_newcomer_is_told_the_roster_and_all_others_of_the_newcomer() -> None:
    core = membership()
    up(core, 1, 1_000)
    effects = core.handle(SessionUp(device_id(2), Address("10.0.0.2", 8741), "berlin", 1, 8), 5_000)
    assert Tell(core.roster(), device_id(2)) in effects
    broadcast = [effect for effect in effects if isinstance(effect, Tell) and effect.to is None]
    assert [e.device for effect in broadcast for e in effect.entries] == [device_id(2)]


def test_a_changed_weight_is_told_and_heard() -> None:
    one, two = membership(1), membership(2)
    up(two, 1)
    [tell] = one.handle(WeightChanged(0), 1_000)
    assert isinstance(tell, Tell)
    two.handle(RosterHeard(device_id(1), tell.entries), 2_000)
    assert two.members[device_id(1)].weight == 0


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_sequence_of_events_breaks_the_bounds(data: st.DataObject) -> None:
    """Whatever happens in whatever order: no exception, bounded dials, never a member myself, sessions outweigh hearsay."""
    core, now_ms, dialling, sessions = membership(), 0, set[Address](), set[DeviceId]()
    numbers = st.integers(0, 5)
    for _ in range(data.draw(st.integers(1, 40))):
        now_ms += data.draw(st.sampled_from([0, 100, 1_000, 7_000, 90_000]))
        number = data.draw(numbers)
        device, address = device_id(number), Address(f"10.0.0.{number}", 8741)
        kind = data.draw(st.integers(0, 6))
        event: Event = Tick()
        if kind == 0:
            event = Introduced(address, data.draw(st.sampled_from([None, device])))
        elif kind == 1 and number:
            sessions.add(device)
            event = SessionUp(device, address, "berlin", data.draw(st.integers(0, 3)), 8)
        elif kind == 2 and device in sessions:
            sessions.discard(device)
            event = SessionDown(device, data.draw(st.booleans()))
        elif kind == 3:
            status = data.draw(st.sampled_from(Status))
            heard = entry(data.draw(numbers), incarnation=data.draw(st.integers(0, 4)), status=status)
            event = RosterHeard(device, (heard,))
        elif kind in {4, 5} and dialling:
            address = data.draw(st.sampled_from(sorted(dialling)))
            dialling.discard(address)
            event = DialFailed(address) if kind == 4 else Dialled(address, device)
        for effect in core.handle(event, now_ms):
            if isinstance(effect, Dial):
                assert effect.address not in dialling
                dialling.add(effect.address)
            elif isinstance(effect, Tell):
                assert len(effect.entries) <= ROSTER_MAX
        assert len(dialling) <= DIALS_MAX
        assert core.device not in core.members
        for known in sessions & set(core.members):
            assert core.members[known].status == Status.ALIVE
