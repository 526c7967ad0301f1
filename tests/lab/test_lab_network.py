"""Namespaces of a lab: laid out as promised, shaped, counted, gone afterwards, and never felt by the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from pcm_p2p.errors import InputError
from pcm_p2p.lab import network as module
from pcm_p2p.lab.doorway import serve_doorway
from pcm_p2p.lab.network import CENTRE_ADDRESS, Namespaces, open_network, why_no_namespaces
from pcm_p2p.lab.processes import LabError, Processes, open_processes
from pcm_p2p.lab.scenario import DeviceName, Scenario, Site

WHY_NOT = why_no_namespaces()
netns = [pytest.mark.netns, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "namespaces are there")]

RATE = 2_000_000
SIZE = 1_000_000
FIRST, SECOND, ELSEWHERE = DeviceName("a", "d01", 1), DeviceName("a", "d02", 2), DeviceName("b", "d01", 1)

SERVE = """
import socket, sys
listener = socket.create_server((sys.argv[1], 9000))
open(sys.argv[2], "w").write("ready\\n")
while True:
    client, _ = listener.accept()
    client.sendall(bytes(int(sys.argv[3])))
    client.close()
"""
TAKE = """
import socket, sys, time
start = time.monotonic()
with socket.create_connection((sys.argv[1], 9000), timeout=float(sys.argv[2])) as server:
    size = sum(len(piece) for piece in iter(lambda: server.recv(65536), b""))
print(size, time.monotonic() - start)
"""


def interfaces() -> str:
    return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout


@asynccontextmanager
async def two_offices(folder: Path) -> AsyncIterator[tuple[Namespaces, Processes]]:
    scenario = Scenario(
        network="netns",
        site=(Site("a", 2, wan_bytes_per_s=RATE, lan_bytes_per_s=50_000_000), Site("b", 1)),
    )
    async with open_processes(folder / "logs") as processes, open_network(scenario, processes) as network:
        assert isinstance(network, Namespaces)
        yield network, processes


async def serve(processes: Processes, place: int | None, address: str, folder: Path) -> None:
    """Start a server that hands out ``SIZE`` zeros, and wait until it listens."""
    pipe = folder / f"ready-{address}"
    os.mkfifo(pipe)
    command = [sys.executable, "-c", SERVE, address, pipe, str(SIZE)]
    processes.start(f"serve-{address}", command, namespace=place)
    with trio.fail_after(60):
        await trio.to_thread.run_sync(pipe.read_text, abandon_on_cancel=True)


class TestNamespaces:
    pytestmark = netns

    async def test_the_link_of_an_office_is_slow_and_counted_and_its_lan_is_neither(self, tmp_path: Path) -> None:
        before = interfaces()
        async with two_offices(tmp_path) as (network, processes):
            await serve(processes, network.centre, CENTRE_ADDRESS, tmp_path)
            await serve(processes, network.place_of(FIRST), "10.77.1.1", tmp_path)

            async def take(address: str) -> tuple[int, float, int]:
                counted = await network.link_bytes()
                command = [sys.executable, "-c", TAKE, address, "20"]
                said = await processes.run("take", command, timeout_s=120.0, namespace=network.place_of(SECOND))
                after = await network.link_bytes()
                assert counted is not None
                assert after is not None
                assert counted["b"] == after["b"]
                size, seconds = said.split()
                return int(size), float(seconds), after["a"] - counted["a"]

            size, seconds, counted = await take(CENTRE_ADDRESS)
            assert size == SIZE
            assert seconds > 0.5 * SIZE / RATE  # the bucket starts full, so a little less than the quotient
            assert SIZE < counted < 1.2 * SIZE
            size, seconds, counted = await take("10.77.1.1")
            assert size == SIZE
            assert counted < 1_000
            assert interfaces() == before
        assert interfaces() == before

    async def test_offices_do_not_reach_each_other(self, tmp_path: Path) -> None:
        async with two_offices(tmp_path) as (network, processes):
            assert network.address_of(ELSEWHERE) == "10.77.2.1"
            command = [sys.executable, "-c", TAKE, "10.77.2.1", "0.5"]
            with pytest.raises(LabError, match=r"unreachable|timed out"):
                await processes.run("take", command, timeout_s=120.0, namespace=network.place_of(FIRST))

    async def test_the_machine_reaches_the_console_through_the_doorway(self, tmp_path: Path) -> None:
        async with two_offices(tmp_path) as (network, processes), trio.open_nursery() as nursery:
            await serve(processes, network.centre, CENTRE_ADDRESS, tmp_path)
            port = await nursery.start(serve_doorway, network.centre, CENTRE_ADDRESS, 9000)
            received = 0
            with trio.fail_after(60):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    async for piece in stream:
                        received += len(piece)
            nursery.cancel_scope.cancel()
        assert received == SIZE


async def test_without_root_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "geteuid", lambda: 1000)
    async with open_processes(tmp_path) as processes:
        with pytest.raises(InputError, match="need root") as raised:
            async with open_network(Scenario(network="netns"), processes):
                pass
    assert "--network loopback" in raised.value.remedy


async def test_loopback_counts_no_links(tmp_path: Path) -> None:
    async with open_processes(tmp_path) as processes, open_network(Scenario(), processes) as network:
        assert network.address_of(FIRST) == "127.0.0.1"
        assert network.place_of(FIRST) is None
        assert await network.link_bytes() is None
