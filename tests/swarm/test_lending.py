"""Chunks of a base release count for the release that is made from it, and who holds them fetches nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from office_in_memory import make_release, make_update

from pcm_p2p.ids import DeviceId
from pcm_p2p.swarm.announcements import drop_messages, have_messages, holdings_message
from pcm_p2p.swarm.events import PeerLends
from pcm_p2p.swarm.holdings import OfficeHoldings, bits_of, positions_of
from pcm_p2p.swarm.lending import Lending, is_base
from pcm_p2p.wire.messages import Claim

OLD = make_release().manifest
NEW = make_update(make_release(), layout=b"layout").manifest
ID, COUNT = OLD.manifest_id, len(OLD.table_chunks)
YOU, OTHER = DeviceId(bytes([2]) * 16), DeviceId(bytes([3]) * 16)


def test_a_manifest_names_its_bases() -> None:
    assert is_base(OLD, NEW)
    assert not is_base(NEW, OLD)
    assert not is_base(make_release(seed=2).manifest, NEW)


@given(st.sets(st.integers(0, COUNT - 1)))
def test_what_is_held_of_the_one_is_held_of_the_other(positions: set[int]) -> None:
    lends = Lending(OLD, NEW).holds(YOU, bits_of(positions))
    assert {NEW.table_chunks[at] for at in positions_of(lends.bits)} == {OLD.chunks[at] for at in positions}
    assert {NEW.table_chunks[at] for at in positions_of(lends.among)} == set(OLD.chunks)


def test_each_announcement_about_the_base_is_heard() -> None:
    lending, places = Lending(OLD, NEW), {at: NEW.position_of[chunk] for at, chunk in enumerate(OLD.chunks)}
    two = bits_of({places[3], places[5]})
    everything = lending.holds(YOU, (1 << COUNT) - 1)
    assert lending.heard(YOU, holdings_message(ID, COUNT, 7), (1 << COUNT) - 1) == everything
    assert lending.heard(YOU, next(have_messages(ID, [3, 5])), 0) == PeerLends(YOU, two, two)
    assert lending.heard(YOU, next(drop_messages(ID, [3, 5])), 0) == PeerLends(YOU, two, 0)
    assert lending.heard(YOU, next(have_messages(ID, [3, 60_000])), 0) == PeerLends(YOU, 1 << places[3], 1 << places[3])
    assert lending.heard(YOU, Claim(ID, YOU, 1, 1_000, ()), 0) is None


def test_a_lender_counts_until_it_speaks_for_itself() -> None:
    holdings = OfficeHoldings(8)
    holdings.peer_lends(YOU, 0b1111, 0b0011)
    holdings.peer_lends(YOU, 0b110000, 0b010000)
    assert (holdings.lan, holdings.lending) == (0b010011, {YOU})
    holdings.peer_lends(YOU, 0b1111, 0b0100)
    assert holdings.lan == 0b010100
    holdings.peer_lends(OTHER, 0b1111, 0)
    assert OTHER not in holdings.peers, "it lends nothing"
    holdings.lending.discard(YOU)
    holdings.peer_holds(YOU, 0b1)
    holdings.peer_lends(YOU, 0b1111, 0b1111)
    assert holdings.lan == 0b1, "it has told itself what it holds"
    holdings.peer_lends(OTHER, 0b1111, 0b1000)
    holdings.peer_left(OTHER)
    assert (holdings.lan, holdings.lending) == (0b1, set())
