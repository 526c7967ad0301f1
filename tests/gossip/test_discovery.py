"""Discovery: foreign announcements are hints, and the real mDNS introduces two devices on loopback."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbourhood import device_id
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.gossip import discovery as discovery_module
from pcm_p2p.gossip.beacon import group_tag
from pcm_p2p.gossip.discovery import ADDRESSES_MAX, SERVICE, Candidate, Discovery, candidates_untrusted
from pcm_p2p.sidecar import open_sidecar

FLEET = "f" * 32
TAG = group_tag(FLEET)
OURS = {b"v": b"1", b"g": TAG.encode()}
NAME = f"{device_id(1)}.{SERVICE}"


def test_an_announcement_of_the_fleet_gives_its_addresses() -> None:
    found = candidates_untrusted(NAME, ["10.0.0.5", "fe80::1", "name.local"], 8741, OURS, TAG)
    assert found == [Candidate("10.0.0.5", 8741, device_id(1))]


@pytest.mark.parametrize(
    "properties", [{}, {b"v": b"1"}, {b"v": b"2", b"g": TAG.encode()}, {b"v": b"1", b"g": b"00000000"}, {b"v": None}]
)
def test_other_groups_and_versions_are_skipped(properties: dict[bytes, bytes | None]) -> None:
    assert candidates_untrusted(NAME, ["10.0.0.5"], 8741, properties, TAG) == []


@pytest.mark.parametrize(
    ("name", "port"),
    [
        (f"printer.{SERVICE}", 8741),
        (f"{'A' * 32}.{SERVICE}", 8741),
        (f"{device_id(1)}x.{SERVICE}", 8741),
        (NAME, 0),
        (NAME, None),
        (NAME, 70_000),
    ],
)
def test_announcements_that_do_not_fit_are_refused(name: str, port: int | None) -> None:
    with pytest.raises(UntrustedBytes):
        candidates_untrusted(name, ["10.0.0.5"], port, OURS, TAG)


def test_a_flood_of_addresses_is_cut() -> None:
    addresses = [f"10.0.0.{number}" for number in range(200)]
    assert len(candidates_untrusted(NAME, addresses, 1, OURS, TAG)) == ADDRESSES_MAX


@given(
    name=st.one_of(st.text(max_size=80), st.just(NAME)),
    addresses=st.lists(st.text(max_size=20), max_size=5),
    port=st.one_of(st.none(), st.integers(-5, 100_000)),
    properties=st.dictionaries(st.binary(max_size=3), st.one_of(st.none(), st.binary(max_size=9)), max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_noise_gives_candidates_or_untrusted_bytes(
    name: str, addresses: list[str], port: int | None, properties: dict[bytes, bytes | None]
) -> None:
    with contextlib.suppress(UntrustedBytes):
        candidates_untrusted(name, addresses, port, properties | OURS, TAG)


def hear(found: list[Candidate], heard: trio.Event) -> Callable[[Candidate], None]:
    def introduce(candidate: Candidate) -> None:
        found.append(candidate)
        heard.set()

    return introduce


async def test_one_device_announces_and_another_hears_it_over_real_mdns() -> None:
    found, heard = list[Candidate](), trio.Event()
    async with open_sidecar() as sidecar, trio.open_nursery() as nursery:
        announcer = Discovery(sidecar, device=device_id(1), fleet=FLEET, interfaces=["127.0.0.1"])
        listener = Discovery(sidecar, device=device_id(2), fleet=FLEET, interfaces=["127.0.0.1"])
        stranger = Discovery(sidecar, device=device_id(3), fleet="e" * 32, interfaces=["127.0.0.1"])
        for discovery, introduce in [
            (listener, hear(found, heard)),
            (announcer, hear([], trio.Event())),
            (stranger, hear([], trio.Event())),
        ]:
            await nursery.start(discovery.run, 8_000 + len(found), introduce, lambda: None)
        await stranger.announce(True)
        await announcer.announce(True)
        with trio.fail_after(20):
            await heard.wait()
        assert set(found) == {Candidate("127.0.0.1", 8_000, device_id(1))}
        await announcer.announce(False)
        nursery.cancel_scope.cancel()


async def test_a_hostile_announcement_does_not_deafen_the_browser(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An instance name that is not ours, then one that is: the second is still heard."""
    found, heard, ignored = list[Candidate](), trio.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def notice(record: logging.LogRecord) -> bool:
        if "ignored an mDNS announcement" in record.getMessage():
            token.run_sync_soon(ignored.set)
        return True

    caplog.set_level(logging.DEBUG, logger="pcm_p2p")
    monkeypatch.setattr(discovery_module._log, "filters", [notice])

    async def publish(name: str) -> AsyncZeroconf:
        responder = AsyncZeroconf(interfaces=["127.0.0.1"])
        info = AsyncServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            port=9,
            parsed_addresses=["127.0.0.1"],
            properties={"v": "1", "g": TAG},
            server="hostile.local.",
        )
        await responder.async_register_service(info, cooperating_responders=True)
        return responder

    async def close(responder: AsyncZeroconf) -> None:
        await responder.async_close()

    async with open_sidecar() as sidecar, trio.open_nursery() as nursery:
        listener = Discovery(sidecar, device=device_id(2), fleet=FLEET, interfaces=["127.0.0.1"])
        await nursery.start(listener.run, 1, hear(found, heard), lambda: None)
        hostile = await sidecar.run(publish, "not a device")
        with trio.fail_after(20):
            await ignored.wait()
        honest = await sidecar.run(publish, str(device_id(7)))
        with trio.fail_after(20):
            await heard.wait()
        assert found[0] == Candidate("127.0.0.1", 9, device_id(7))
        for responder in (hostile, honest):
            await sidecar.run(close, responder)
        nursery.cancel_scope.cancel()


async def test_where_mdns_cannot_start_it_is_said_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(discovery_module, "RETRY_S", 0.01)
    tries, enough = 0, trio.Event()

    async def start(self: object, interfaces: tuple[str, ...]) -> None:
        nonlocal tries
        tries += 1
        if tries == 3:
            sidecar.tell(enough.set)
        raise OSError("no such device")

    monkeypatch.setattr(discovery_module._Engine, "start", start)
    async with open_sidecar() as sidecar, trio.open_nursery() as nursery:
        discovery = Discovery(sidecar, device=device_id(1), fleet=FLEET)
        await nursery.start(discovery.run, 1, lambda candidate: None, lambda: None)
        with trio.fail_after(10):
            await enough.wait()
        await discovery.announce(True)
        nursery.cancel_scope.cancel()
    assert caplog.text.count("mDNS cannot start") == 1
