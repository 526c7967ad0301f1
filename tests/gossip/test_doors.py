"""Doors: listeners follow the addresses that should be open, all on one port, and what came in through a closed door ends."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from free_port import free_port

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.gossip.doors import Doors
from pcm_p2p.trust.identity import DeviceIdentity, client_context, peer_identity_untrusted, server_context
from pcm_p2p.wire.link import Link, LinkFailed, LinkSecurity, Reception, dial

FLEET = "1" * 32
NOW = datetime.now(UTC)
ABSENT = "203.0.113.77"
"""Of no interface (TEST-NET-3)."""


class Opened:
    """Doors over a list that a test changes, and the links that came in."""

    def __init__(self, folder: Path) -> None:
        authority = FleetCA.in_memory(FLEET, now=NOW)
        self.own, self.guest = (self._security(folder / name, authority) for name in ("own", "guest"))
        self.addresses: list[str] = ["127.0.0.1"]
        self.ended: list[str] = []
        self._bell = trio.Event()

    @staticmethod
    def _security(folder: Path, authority: FleetCA) -> LinkSecurity:
        identity = DeviceIdentity.create(folder, authority, now=NOW)
        return LinkSecurity(server_context(identity), client_context(identity), peer_identity_untrusted, FLEET)

    @asynccontextmanager
    async def run(self, *, fixed: bool = False, port: int = 0, remembered: int = 0) -> AsyncIterator[Doors]:
        doors = Doors(lambda: self.addresses, Reception(self.own, self._use), self._changed, fixed=fixed)
        async with trio.open_nursery() as nursery:
            await nursery.start(doors.run, port, remembered)
            yield doors
            nursery.cancel_scope.cancel()

    def _changed(self) -> None:
        self._bell.set()
        self._bell = trio.Event()

    async def _use(self, link: Link) -> None:
        try:
            await link.stream.send_all(b"welcome")
            await trio.sleep_forever()
        finally:
            self.ended.append(link.host)

    async def changed(self, doors: Doors, *addresses: str) -> None:
        """Other addresses are wanted; returns when the doors have followed."""
        bell, self.addresses = self._bell, list(addresses)
        doors.look_again()
        with trio.fail_after(60):
            await bell.wait()

    async def answers(self, host: str, port: int) -> bool:
        try:
            link = await dial(host, port, self.guest)
        except LinkFailed:
            return False
        assert await link.stream.receive_some(10) == b"welcome"
        await trio.aclose_forcefully(link.stream)
        return True


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path)


async def test_a_new_address_is_opened_on_the_same_port_and_a_gone_one_is_closed(opened: Opened) -> None:
    async with opened.run() as doors:
        ((host, port),) = doors.listening
        assert await opened.answers(host, port)
        await opened.changed(doors, "127.0.0.1", "127.0.0.2")
        assert doors.listening == (("127.0.0.1", port), ("127.0.0.2", port))
        assert await opened.answers("127.0.0.2", port)
        await opened.changed(doors, "127.0.0.2")
        assert doors.listening == (("127.0.0.2", port),)
        assert not await opened.answers("127.0.0.1", port)
        await opened.changed(doors)
        assert doors.listening == ()
        assert not await opened.answers("127.0.0.2", port)
        await opened.changed(doors, "127.0.0.1")
        assert await opened.answers("127.0.0.1", port)


async def test_what_came_in_through_a_door_ends_when_it_closes_and_nothing_else_does(opened: Opened) -> None:
    opened.addresses = ["127.0.0.1", "127.0.0.2"]
    async with opened.run() as doors:
        port = doors.listening[0][1]
        inside, other = await dial("127.0.0.1", port, opened.guest), await dial("127.0.0.2", port, opened.guest)
        for link in (inside, other):
            assert await link.stream.receive_some(10) == b"welcome"
        await opened.changed(doors, "127.0.0.2")
        with trio.fail_after(60), contextlib.suppress(trio.BrokenResourceError):
            assert await inside.stream.receive_some(10) == b""
        assert len(opened.ended) == 1
        for link in (inside, other):
            await trio.aclose_forcefully(link.stream)


async def test_an_address_that_has_just_gone_is_no_fault_unless_it_was_asked_for_by_name(opened: Opened) -> None:
    opened.addresses = [ABSENT, "127.0.0.1"]
    async with opened.run() as doors:
        assert [host for host, _ in doors.listening] == ["127.0.0.1"]
    with pytest.raises(ExceptionGroup) as caught:
        async with opened.run(fixed=True):
            pass
    assert caught.group_contains(OSError, match="(?i)assign requested address")


async def test_a_port_that_another_program_has_is_said_at_the_start(opened: Opened) -> None:
    async with opened.run() as doors:
        port = doors.listening[0][1]
        with pytest.raises(ExceptionGroup) as caught:
            async with opened.run(port=port):
                pass
        assert caught.group_contains(OSError, match="in use")
        # One that was only remembered is given up for another.
        async with opened.run(remembered=port) as again:
            assert again.listening[0][1] != port


async def test_a_device_without_any_address_runs_and_listens_nowhere(opened: Opened) -> None:
    port, opened.addresses = free_port(), []
    async with opened.run(port=port) as doors:
        assert doors.listening == ()
        await opened.changed(doors, "127.0.0.1")
        assert doors.listening == (("127.0.0.1", port),)


async def test_changes_of_the_network_are_noticed_without_being_told(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcm_p2p.gossip.doors.WATCH_INTERVAL_S", 0.02)
    async with opened.run() as doors:
        bell, opened.addresses = opened._bell, ["127.0.0.3"]
        with trio.fail_after(60):
            await bell.wait()
        assert [host for host, _ in doors.listening] == ["127.0.0.3"]
