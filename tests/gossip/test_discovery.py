"""Discovery: foreign announcements are hints, and the real mDNS introduces two devices on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import secrets
import socket
import struct
from collections.abc import Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from zeroconf import DNSAddress, DNSIncoming, DNSOutgoing, DNSPointer, DNSService, DNSText
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf
from zeroconf.const import (
    _CLASS_IN,
    _FLAGS_AA,
    _FLAGS_QR_RESPONSE,
    _MAX_CACHE_RECORDS,
    _TYPE_A,
    _TYPE_PTR,
    _TYPE_SRV,
    _TYPE_TXT,
)

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.gossip import discovery as discovery_module
from pcm_p2p.gossip.beacon import group_tag
from pcm_p2p.gossip.discovery import (
    ADDRESSES_MAX,
    RESOLVING_MAX,
    SERVICE,
    Candidate,
    Discovery,
    candidates_untrusted,
    is_nearby,
)
from pcm_p2p.sidecar import open_sidecar

FLEET, OTHER_FLEET = (secrets.token_hex(16) for _ in range(2))
"""Of this process alone: tests beside this one hear and are heard on the same loopback."""
TAG = group_tag(FLEET)
OURS = {b"g": TAG.encode()}
NAME = f"{'a1' * 8}.{SERVICE}"


def test_an_announcement_of_the_fleet_gives_its_addresses() -> None:
    found = candidates_untrusted(NAME, ["10.0.0.5", "fe80::1", "name.local"], 8741, OURS, TAG)
    assert found == [Candidate("10.0.0.5", 8741)]


@pytest.mark.parametrize("properties", [{}, {b"v": b"1"}, {b"g": b"00000000"}, {b"g": None}, {b"g": b""}])
def test_other_groups_are_skipped(properties: dict[bytes, bytes | None]) -> None:
    assert candidates_untrusted(NAME, ["10.0.0.5"], 8741, properties, TAG) == []


@pytest.mark.parametrize(
    ("name", "port"),
    [
        (f"printer.{SERVICE}", 8741),
        (f"{'A' * 16}.{SERVICE}", 8741),
        (f"{'a' * 15}.{SERVICE}", 8741),
        (f"{'a' * 16}x.{SERVICE}", 8741),
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
        announcer = Discovery(sidecar, fleet=FLEET, interfaces=["127.0.0.1"])
        listener = Discovery(sidecar, fleet=FLEET, interfaces=["127.0.0.1"])
        stranger = Discovery(sidecar, fleet=OTHER_FLEET, interfaces=["127.0.0.1"])
        for discovery, introduce in [
            (listener, hear(found, heard)),
            (announcer, hear([], trio.Event())),
            (stranger, hear([], trio.Event())),
        ]:
            await nursery.start(discovery.run, lambda: 8_000, introduce, lambda: None)
        await stranger.announce(True)
        await announcer.announce(True)
        with trio.fail_after(60):
            await heard.wait()
        assert set(found) == {Candidate("127.0.0.1", 8_000)}
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
            properties={"g": TAG},
            server="hostile.local.",
        )
        await responder.async_register_service(info, cooperating_responders=True)
        return responder

    async def close(responder: AsyncZeroconf) -> None:
        await responder.async_close()

    async with open_sidecar() as sidecar, trio.open_nursery() as nursery:
        listener = Discovery(sidecar, fleet=FLEET, interfaces=["127.0.0.1"])
        await nursery.start(listener.run, lambda: 1, hear(found, heard), lambda: None)
        hostile = await sidecar.run(publish, "not a device")
        with trio.fail_after(60):
            await ignored.wait()
        honest = await sidecar.run(publish, "b2" * 8)
        with trio.fail_after(60):
            await heard.wait()
        assert found[0] == Candidate("127.0.0.1", 9)
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
        discovery = Discovery(sidecar, fleet=FLEET)
        await nursery.start(discovery.run, lambda: 1, lambda candidate: None, lambda: None)
        with trio.fail_after(60):
            await enough.wait()
        await discovery.announce(True)
        nursery.cancel_scope.cancel()
    assert caplog.text.count("mDNS cannot start") == 1


OWN = [ipaddress.IPv4Network("203.0.113.0/24")]


@pytest.mark.parametrize(
    ("host", "nearby"),
    [
        ("203.0.113.9", True),  # this machine is in that network
        ("192.168.7.7", True),  # behind a reflector
        ("169.254.1.1", True),
        ("8.8.8.8", False),
        ("203.0.114.9", False),
        ("224.0.0.251", False),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("999.1.1.1", False),
    ],
)
def test_a_forged_announcement_makes_nobody_dial_into_the_internet(host: str, nearby: bool) -> None:
    assert is_nearby(host, OWN) is nearby
    assert not is_nearby("8.8.8.8", [ipaddress.IPv4Network("0.0.0.0/0")])


def overhear() -> socket.socket:
    """What everybody on loopback's mDNS group hears, byte for byte."""
    ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    ear.bind(("224.0.0.251", 5353))
    group = struct.pack("4s4s", socket.inet_aton("224.0.0.251"), socket.inet_aton("127.0.0.1"))
    ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    ear.setblocking(False)
    return ear


async def test_on_the_wire_an_announcement_says_a_fleet_tag_and_a_port_under_a_name_of_its_own() -> None:
    """Every packet that carries our service is taken apart: no record says more, and a second announcement has another name."""
    names: set[str] = set()
    texts: set[bytes] = set()
    ports: set[int] = set()
    with overhear() as ear:
        async with open_sidecar() as sidecar, trio.open_nursery() as nursery:
            announcer = Discovery(sidecar, fleet=FLEET, interfaces=["127.0.0.1"])
            await nursery.start(announcer.run, lambda: 8_741, lambda candidate: None, lambda: None)
            for round_number in (1, 2):
                await announcer.announce(True)
                with trio.fail_after(60):
                    while len(names) < round_number or not texts:
                        await trio.lowlevel.wait_readable(ear)
                        packet = ear.recv(9_000)
                        message = DNSIncoming(packet)
                        ours = [record for record in message.answers() if TAG.encode() in packet and record.ttl]
                        for record in ours:
                            assert socket.gethostname().encode() not in packet
                            assert FLEET.encode() not in packet
                            if isinstance(record, DNSService):
                                names.add(record.name)
                                ports.add(record.port)
                                assert record.server == record.name.replace(SERVICE, "local.")
                            elif isinstance(record, DNSText):
                                texts.add(record.text)
                await announcer.announce(False)
            nursery.cancel_scope.cancel()
    assert texts == {bytes([len(TAG) + 2]) + b"g=" + TAG.encode()}
    assert ports == {8_741}
    assert len(names) == 2
    assert all(len(name) == 2 * 8 + 1 + len(SERVICE) for name in names)


def announcement(number: int, *, ttl: int, address: str = "127.0.0.1") -> bytes:
    name = f"{number:016x}"
    message = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
    message.add_answer_at_time(DNSPointer(SERVICE, _TYPE_PTR, _CLASS_IN, ttl, f"{name}.{SERVICE}"), 0)
    message.add_answer_at_time(DNSService(f"{name}.{SERVICE}", _TYPE_SRV, _CLASS_IN, ttl, 0, 0, 9, f"{name}.local."), 0)
    message.add_answer_at_time(
        DNSText(f"{name}.{SERVICE}", _TYPE_TXT, _CLASS_IN, ttl, bytes([len(TAG) + 2]) + b"g=" + TAG.encode()), 0
    )
    message.add_answer_at_time(DNSAddress(f"{name}.local.", _TYPE_A, _CLASS_IN, ttl, socket.inet_aton(address)), 0)
    return message.packets()[0]


async def test_ten_thousand_adverts_storms_of_goodbyes_and_adverts_for_other_hosts_are_bounded() -> None:
    """The cache of records keeps to its bound, few names are looked up at once, and an honest device is heard afterwards."""
    found, heard = list[Candidate](), trio.Event()

    def introduce(candidate: Candidate) -> None:
        found.append(candidate)
        if candidate.port == 7_777:
            heard.set()

    async with open_sidecar() as sidecar, trio.open_nursery() as nursery:
        listener = Discovery(sidecar, fleet=FLEET, interfaces=["127.0.0.1"])
        await nursery.start(listener.run, lambda: 1, introduce, lambda: None)
        while listener._engine is None:
            await trio.lowlevel.checkpoint()
        engine = listener._engine
        resolving_max = 0

        async def flood() -> None:
            nonlocal resolving_max
            zeroconf = engine._zeroconf.zeroconf
            for number in range(10_000):
                zeroconf.record_manager.async_updates_from_response(
                    DNSIncoming(announcement(number, ttl=4_500, address="8.8.8.8" if number % 2 else "127.0.0.1"))
                )
                if number % 10 == 0:  # goodbyes for what was just announced
                    zeroconf.record_manager.async_updates_from_response(DNSIncoming(announcement(number, ttl=0)))
                resolving_max = max(resolving_max, len(engine._resolving))
                if number % 500 == 0:
                    await asyncio.sleep(0)

        async def records() -> int:
            return sum(len(kept) for kept in engine._zeroconf.zeroconf.cache.cache.values())

        await sidecar.run(flood)
        assert await sidecar.run(records) <= _MAX_CACHE_RECORDS
        assert resolving_max <= RESOLVING_MAX
        assert {candidate.host for candidate in found} <= {"127.0.0.1"}
        announcer = Discovery(sidecar, fleet=FLEET, interfaces=["127.0.0.1"])
        await nursery.start(announcer.run, lambda: 7_777, lambda candidate: None, lambda: None)
        await announcer.announce(True)
        with trio.fail_after(60):
            await heard.wait()
        nursery.cancel_scope.cancel()
