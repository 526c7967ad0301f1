"""Two overlays with one identity, over real sockets: found out, refused, told; and one that restarts is not taken for two."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio
from test_overlay import Running, fleet_in

from pcm_p2p.gossip import clone_watch
from pcm_p2p.gossip.roster_file import RosterFile
from pcm_p2p.wire.session import Session


async def until_told(running: Running) -> None:
    """A device hears that it is one of two when a session of its own ends."""
    told = trio.Event()
    ended = running.overlay.clones.ended

    def listening(session: Session) -> None:
        ended(session)
        if running.overlay.clones.tellers():
            told.set()

    running.overlay.clones.ended = listening  # type: ignore[method-assign]
    if not running.overlay.clones.tellers():
        with trio.fail_after(60):
            await told.wait()


@pytest.mark.parametrize("newer_first", [False, True], ids=["it started later", "its clock is behind"])
async def test_two_devices_with_one_key_are_found_out_refused_and_told(tmp_path: Path, newer_first: bool) -> None:
    """Whichever of the two wins the place of the one session at first."""
    clocks = [lambda: 1_000, lambda: 2_000]
    if newer_first:
        clocks.reverse()
    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a")
        proven: list[bool] = []
        a.overlay.clones.on_news = lambda: proven.append(True)
        one = await fleet.start("b", a, wall_clock_s=clocks[0])
        await one.until_peers(1)
        await a.until_peers(1)
        two = await fleet.start("b", a, wall_clock_s=clocks[1])
        await until_told(one)
        await until_told(two)
        await a.until_peers(0)
        assert proven
        assert [clone.device for clone in a.overlay.clones.proven()] == [one.overlay.device]
        assert one.overlay.clones.tellers() == two.overlay.clones.tellers() == (a.overlay.device,)
        assert not one.overlay.clones.proven()
        three = await fleet.start("b", a, wall_clock_s=lambda: 3_000)
        await until_told(three)
        assert not a.overlay.peers(), "in quarantine, whoever of them it is"


async def test_a_device_that_meets_its_own_key_knows_without_being_told(tmp_path: Path) -> None:
    async with fleet_in(tmp_path) as fleet:
        one = await fleet.start("b")
        await fleet.start("b", one)
        await until_told(one)
        assert one.overlay.clones.tellers() == (one.overlay.device,)
        assert not one.overlay.peers()


async def test_restarts_in_quick_succession_are_no_clone(tmp_path: Path) -> None:
    """Killed, not ended: the old sessions may still be open when the next process says Hello."""
    memory = RosterFile(tmp_path / "roster")
    async with fleet_in(tmp_path) as fleet:
        a, c = await fleet.start("a"), await fleet.start("c")
        for _ in range(6):
            b = await fleet.start("b", a, c, roster_file=memory)
            await b.until_peers(2)
            b.nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint()
        last = await fleet.start("b", a, c, roster_file=memory)
        await last.until_peers(2)
        await a.until(lambda: last.overlay.device in {peer.device_id for peer in a.overlay.peers()})
        assert not a.overlay.clones.proven()
        assert not c.overlay.clones.proven()
        assert not last.overlay.clones.tellers()


async def test_a_device_in_quarantine_is_let_in_again_when_it_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pcm_p2p.gossip.clones.QUARANTINE_MS_MIN", 300)
    caplog.set_level(logging.WARNING)
    async with fleet_in(tmp_path) as fleet:
        a = await fleet.start("a")
        one = await fleet.start("b", a, wall_clock_s=lambda: 1_000)
        await one.until_peers(1)
        two = await fleet.start("b", a, wall_clock_s=lambda: 2_000)
        await until_told(one)
        two.nursery.cancel_scope.cancel()
        await a.until(lambda: [peer.device_id for peer in a.overlay.peers()] == [one.overlay.device])
    assert "two devices use the identity of" in caplog.text
    assert "enroll join --new-identity" in caplog.text


async def test_what_neighbours_say_of_me_is_bounded_and_forgotten(
    mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Told:
        def __init__(self, number: int) -> None:
            self.device = clone_watch.DeviceId(number.to_bytes(16, "big"))
            self.bye_reason = clone_watch.CLONE

    watch = clone_watch.CloneWatch(clone_watch.DeviceId(bytes(16)), None)  # type: ignore[arg-type]
    for number in range(1, 200):
        watch.ended(Told(number))  # type: ignore[arg-type]
    assert len(watch.tellers()) == clone_watch.TELLERS_MAX
    caplog.clear()
    for _ in range(100):
        watch.ended(Told(199))  # type: ignore[arg-type]
    assert not caplog.records, "said once"
    mock_clock.jump(clone_watch.TOLD_S + 1)
    assert watch.tellers() == ()
