"""What may befall a device, with real processes: killed anywhere, bad origins, bad neighbours, no room, half-written state.

Each room proves its own part at depth; here it is seen that the daemon as a whole says what is wrong and goes on.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from fleet_of_processes import WAIT_S, WORDS, Device, Fleet, Status, noise, open_fleet, release_row, state_of

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.publish import OnlineKeys, refresh_online
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.swarm.origin import FLUSH_SIZE_BYTES
from pcm_p2p.trust.identity import DeviceIdentity, client_context

APP, TOOL = noise(3_000_000), noise(1_000_000, seed=2)


# Killed


async def test_killed_while_fetching_only_the_piece_in_flight_is_fetched_again(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        needed = sum(
            segment.size
            for manifest in (fleet.release(APP), fleet.release(TOOL, name="tool"))
            for _, segment in manifest.full_segments()
        )
        fleet.publish()
        device = await fleet.enrol("a")
        fleet.origin.allowance_bytes = 2_500_000
        fleet.start(device)
        await fleet.until(
            device,
            lambda status: segment_bytes(status) >= 2_500_000 and segment_bytes(status) == fleet.origin.segment_bytes,
        )
        await fleet.kill(device)
        arrived = dict(fleet.origin.sent)
        fleet.origin.forget()
        fleet.origin.heal()
        fleet.start(device)
        await fleet.until_applied(device)
        await fleet.until_applied(device, name="tool")
        for path, start in fleet.origin.segments_asked:
            assert arrived.get(path, 0) - start <= FLUSH_SIZE_BYTES, "it goes on where the file ends"
        assert sum(arrived.values()) + fleet.origin.segment_bytes <= needed + 2 * FLUSH_SIZE_BYTES + metadata(arrived)
        assert (device.installed(), device.installed("tool")) == (APP, TOOL)


async def test_killed_while_assembling_nothing_is_fetched_again(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        fleet.release(APP)
        fleet.publish()
        device = await fleet.enrol("a")
        fleet.start(device, doctored="while_assembling")
        await fleet.died(device)
        assert device.installed() is None
        assert any(path.is_file() for path in (device.state / "staging").rglob("*")), "it died in the middle"
        fetched = fleet.origin.segment_bytes
        fleet.start(device)
        await fleet.until_applied(device)
        assert device.installed() == APP
        assert fleet.origin.segment_bytes == fetched
        assert not any((device.state / "staging").iterdir())


async def test_killed_while_applying_the_change_is_undone_and_made_again(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        fleet.release(APP)
        fleet.publish()
        device = await fleet.enrol("a")
        fleet.start(device, doctored="while_applying")
        await fleet.died(device)
        assert device.installed() == APP, "changed, and nobody has looked whether it holds"
        fetched = fleet.origin.segment_bytes
        fleet.start(device)
        await fleet.until_applied(device)
        assert device.installed() == APP
        assert fleet.origin.segment_bytes == fetched
        assert "is rolled_back" in device.log, "first undone, then made again"


async def test_killed_while_reporting_no_report_is_lost_or_doubled(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        await fleet.found_collector()
        fleet.release(TOOL)
        fleet.publish()
        device = await fleet.enrol("a")
        await fleet.start_collector()
        fleet.start(device, doctored="with_a_report_numbered")
        await fleet.died(device)
        assert fleet.archived() == []
        fleet.start(device, doctored="with_a_report_taken")
        await fleet.died(device)
        taken = fleet.archived()
        assert [(who, seq) for who, _, seq, _ in taken][:1] == [(device.hex, 1)], "the one that was numbered before"
        fleet.start(device)
        await fleet.until(
            device, lambda status: state_of(status) == "applied" and status["reports"]["acknowledged"] > len(taken)
        )
        await fleet.until(device, lambda status: status["reports"]["outbox"] == 0)
        archived = fleet.archived()
        assert [seq for _, _, seq, _ in archived] == [*range(1, len(archived) + 1)]
        assert len({epoch for _, epoch, _, _ in archived}) == 1
        assert archived[: len(taken)] == taken
        assert fleet.conflicts() == 0


# The origin


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("truncated", "broke the connection"),
        ("stalled", "stalled"),
        ("wrong", "wrong bytes for segment"),
        ("missing", "the origin has no segment"),
    ],
)
async def test_an_origin_with_a_fault_is_named_with_it_and_neighbours_still_serve(
    tmp_path: Path, fault: Any, said: str
) -> None:
    async with open_fleet(tmp_path) as fleet:
        fleet.release(TOOL)
        fleet.publish()
        one, two = await fleet.enrol("a", origin={"stall_s": 2.0}), await fleet.enrol("b")
        if fault in ("wrong", "missing"):  # not worth asking again soon: somebody must repair it
            fleet.start(two)
            await fleet.until_applied(two)
        fleet.origin.fault = fault
        fetched = fleet.origin.segment_bytes
        if fault in ("wrong", "missing"):
            await fleet.kill(two)
        fleet.start(one)
        status = await fleet.until(one, lambda status: said in told(status))
        assert state_of(status) == "fetching"
        assert one.installed() is None
        if fault in ("wrong", "missing"):
            fleet.start(two)
        else:
            fleet.origin.heal()
        await fleet.until_applied(one)
        assert one.installed() == TOOL
        if fault in ("wrong", "missing"):
            status = await fleet.until(one, lambda status: release_row(status)["lan_bytes"] >= len(TOOL))
            assert fleet.origin.segment_bytes - fetched in (0, len_on_wire(fleet)), "wrong bytes once, no more"


async def test_an_origin_that_is_down_is_named_and_a_neighbour_brings_policy_and_release(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        fleet.release(TOOL)
        fleet.publish()
        one, two = await fleet.enrol("a"), await fleet.enrol("b")
        fleet.start(one)
        await fleet.until_applied(one)
        await fleet.stop(one)
        fleet.origin.close()
        fleet.start(two)
        status = await fleet.until(two, lambda status: "cannot be reached" in told(status))
        assert status["trust"]["state"] == "none"
        assert "no signed metadata yet: origin: " in "".join(status["problems"])
        fleet.start(one)
        await fleet.until_applied(two)
        assert two.installed() == TOOL
        status = await fleet.until(two, lambda status: status["transfer"]["lan_in_bytes"] >= len(TOOL))
        assert (status["trust"]["state"], status["transfer"]["wan_in_bytes"]) == ("fresh", 0)


# Neighbours


async def test_a_neighbour_that_sends_wrong_bytes_is_dropped_and_named_and_the_chunk_comes_from_elsewhere(
    tmp_path: Path,
) -> None:
    async with open_fleet(tmp_path) as fleet:
        fleet.release(TOOL)
        fleet.publish()
        liar, victim = await fleet.enrol("liar"), await fleet.enrol("victim")
        fleet.start(liar, doctored="lying")
        await fleet.until_applied(liar)
        fleet.start(victim)
        await fleet.until_applied(victim)
        assert victim.installed() == TOOL
        status = await fleet.until(victim, lambda status: "is banned" in told(status))
        assert any(liar.hex[:8] in problem and "is banned: it " in problem for problem in status["problems"])


async def test_a_peer_without_a_certificate_of_this_fleet_is_closed_before_any_message(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, bystander=False) as fleet:
        fleet.release(TOOL)
        fleet.publish()
        device = await fleet.enrol("a")
        fleet.start(device)
        await fleet.until(device, lambda status: status["listening"])
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
        authority = FleetCA.in_memory(fleet.authority.fleet_id, now=datetime.now(UTC))
        stranger = client_context(DeviceIdentity.create(tmp_path / "stranger", authority, now=datetime.now(UTC)))
        stranger.verify_mode = ssl.CERT_NONE
        for context in (nobody, stranger):
            assert await trio.to_thread.run_sync(what_is_said_to, context, device.port) == b""
        member = client_context(DeviceIdentity.load((await fleet.enrol("b")).state / "identity"))
        assert await trio.to_thread.run_sync(what_is_said_to, member, device.port) != b"", "its Hello"
        status = await fleet.until(device, lambda status: status["peers"]["sessions"] == 0)
        assert status["problems"] == []


async def test_a_device_without_a_route_is_carried_by_its_neighbour_and_reported_once(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, bystander=False) as fleet:
        await fleet.found_collector()
        fleet.release(TOOL)
        fleet.publish()
        carrier, author = await fleet.enrol("a"), await fleet.enrol("b", collectors={"direct": False})
        await fleet.start_collector()
        fleet.start(carrier, author)
        await fleet.until_applied(carrier, author)
        await fleet.until(
            author, lambda status: status["reports"]["acknowledged"] > 0 and status["reports"]["outbox"] == 0
        )
        rows = [row for row in fleet.archived() if row[0] == author.hex]
        assert [seq for _, _, seq, _ in rows] == [*range(1, len(rows) + 1)]
        assert {via for _, _, _, via in rows} == {carrier.hex}
        assert {via for who, _, _, via in fleet.archived() if who == carrier.hex} == {""}
        assert fleet.conflicts() == 0
        status = await fleet.until(carrier, lambda status: status["reports"]["carried"] == 0)
        assert status["reports"]["outbox"] == 0


# Trust


async def test_unsigned_and_older_metadata_is_refused_with_its_reason_and_the_good_policy_stays(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        fleet.release(TOOL)
        fleet.publish()
        metadata_folder, old = fleet.origin.folder / "metadata", tmp_path / "old"
        shutil.copytree(metadata_folder, old)
        fleet.release(APP, version="2")
        fleet.publish()
        device = await fleet.enrol("a")
        fleet.start(device)
        await fleet.until_applied(device, version="2")
        timestamp = metadata_folder / "timestamp.json"
        good = timestamp.read_bytes()
        unsigned = json.loads(good)
        unsigned["signatures"] = []
        unsigned["signed"]["version"] += 1
        timestamp.write_text(json.dumps(unsigned))
        status = await fleet.until(device, lambda status: status["trust"]["reason"])
        assert status["trust"]["reason"].startswith("origin: ")
        assert "timestamp" in status["trust"]["reason"]
        assert (status["trust"]["timestamp"], status["trust"]["state"]) == (2, "fresh")
        timestamp.write_bytes((old / "timestamp.json").read_bytes())
        unsigned_reason = status["trust"]["reason"]
        status = await fleet.until(device, lambda status: status["trust"]["reason"] not in ("", unsigned_reason))
        assert state_of(status, version="2") == "applied", "the good policy is in force"
        assert (status["trust"]["timestamp"], status["activation"]["allowed"]) == (2, True)
        assert device.installed() == APP
        timestamp.write_bytes(good)


async def test_expired_metadata_is_refused_with_its_reason_until_it_is_signed_anew(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        fleet.release(TOOL)
        fleet.publish()
        weeks_ago = FleetFolder.open(fleet.authority.path, wall_clock=lambda: datetime.now(UTC) - timedelta(days=20))
        keys = OnlineKeys.open(fleet.authority, WORDS)
        refresh_online(weeks_ago, fleet.origin.folder, keys)
        device = await fleet.enrol("a")
        fleet.start(device)
        status = await fleet.until(device, lambda status: "expired" in status["trust"]["reason"])
        assert status["trust"]["state"] == "none"
        assert "expired" in "".join(status["problems"])
        assert device.installed() is None
        refresh_online(fleet.authority, fleet.origin.folder, keys)
        await fleet.until_applied(device)


async def test_nothing_is_changed_before_the_activation_is_signed(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        fleet.release(TOOL)
        fleet.publish(activate=False)
        device = await fleet.enrol("a")
        fleet.start(device)
        status = await fleet.until(
            device, lambda status: state_of(status) == "waiting" and status["compliance"]["fail"] == 1
        )
        assert release_row(status)["chunks_have"] == release_row(status)["chunks_total"], "fetched, so that it is quick"
        assert "no signed activation" in release_row(status)["detail"]
        assert not status["activation"]["allowed"]
        assert device.installed() is None
        fleet.publish(activate=True)
        await fleet.until_applied(device)
        assert device.installed() == TOOL
        await fleet.until(device, lambda status: status["compliance"]["pass"] == 1)


# The disk


async def test_a_full_store_pauses_the_fetch_and_says_so_and_more_room_resumes_it(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        manifest = fleet.release(APP)
        fleet.publish()
        device = await fleet.enrol("a", store={"quota_bytes_max": 1_500_000})
        fleet.start(device)
        status = await fleet.until(device, lambda status: status["store"]["state"] == "full")
        status = await fleet.until(device, lambda status: "paused" in release_row(status)["detail"])
        assert any("store is full" in problem for problem in status["problems"])
        assert 0 < status["store"]["chunks"] < len(manifest.chunks)
        assert status["store"]["bytes"] <= 1_500_000
        held = status["store"]["chunks"]
        assert await fleet.stop(device) == 0
        config = device.state / "config.toml"
        config.write_text(config.read_text().replace("1500000", "15000000"))
        fleet.start(device)
        await fleet.until_applied(device)
        assert device.installed() == APP
        assert held <= len(list((device.state / "store" / "chunks").glob("*/*")))
        assert (
            fleet.origin.segment_bytes
            <= sum(segment.size for _, segment in manifest.full_segments()) + FLUSH_SIZE_BYTES
        )


async def test_state_that_was_half_written_is_started_from_and_heals(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        await fleet.found_collector()
        fleet.release(TOOL)
        fleet.publish()
        device = await fleet.enrol("a")
        await fleet.start_collector()
        fleet.start(device)
        await fleet.until_applied(device)
        await fleet.until(device, lambda status: status["reports"]["acknowledged"] and status["compliance"]["pass"])
        for share in (0.5, 0.0):
            await fleet.kill(device)
            torn = [path for path in written_by_the_daemon(device) if path.stat().st_size]
            assert {"node.sqlite", "current", "state.json", "meter.json", "findings.json"} <= {
                path.name for path in torn
            }
            assert any("chunks" in path.parts for path in torn)
            for path in torn:
                with path.open("r+b") as file:
                    file.truncate(int(path.stat().st_size * share))
            (device.root / "opt" / "app").unlink()
            fleet.start(device)
            await fleet.until_applied(device)
            status = await fleet.until(device, lambda status: status["compliance"]["pass"] == 1)
            assert device.installed() == TOOL
            assert status["problems"] == []
            await fleet.until(device, lambda status: status["reports"]["acknowledged"] > 0)
        assert list(device.state.glob("node.sqlite.damaged-*")), "kept for a look"


# Beginning and ending


async def test_a_second_daemon_is_refused_a_taken_port_is_named_and_sigterm_ends_with_a_bye(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, bystander=False) as fleet:
        fleet.release(TOOL)
        fleet.publish()
        one, two = await fleet.enrol("a"), await fleet.enrol("b")
        fleet.start(one)
        await fleet.until(one, lambda status: status["listening"])
        assert await ends_at_once(fleet, one) == (
            6,
            f"pcm-p2p: {one.state} is in use by another daemon\n  Stop that one first, or use another --state.\n",
        )
        config = two.state / "config.toml"
        text = config.read_text()
        config.write_text(text.replace(f"port = {two.port}", f"port = {one.port}"))
        status, said = await ends_at_once(fleet, two)
        assert status == 2
        assert f"config.toml: listen: 127.0.0.1 port {one.port} cannot be listened on: " in said
        assert "Choose another port" in said
        config.write_text(text)
        fleet.start(two)
        await fleet.until(one, lambda status: status["peers"]["sessions"] == 1)
        assert await fleet.stop(two) == 0
        status_of_one = await fleet.until(one, lambda status: status["peers"]["sessions"] == 0)
        assert status_of_one["peers"]["known"] == 0, "it said bye, so nobody has to suspect it first"
        assert "leaving" in one.log
        assert not (two.state / "run" / "control.sock").exists()
        assert one.process is not None
        one.process.signal(signal.SIGINT)
        assert await one.process.wait_ended() == 0


# Looking


def told(status: Status) -> str:
    """Everything that a person reads of the state of things."""
    rows = [row["detail"] for row in status["releases"]]
    return "\n".join([*rows, *status["problems"], status["trust"]["reason"]])


def segment_bytes(status: Status) -> int:
    return int(status["transfer"]["wan_in_bytes"] - status["transfer"]["wan_metadata_bytes"])


def metadata(sent: dict[str, int]) -> int:
    return sum(size for path, size in sent.items() if not path.startswith("segments/"))


def len_on_wire(fleet: Fleet) -> int:
    return sum(path.stat().st_size for path in (fleet.origin.folder / "segments").rglob("*") if path.is_file())


def written_by_the_daemon(device: Device) -> list[Path]:
    """All files of a state folder but who the device is and what an admin wrote."""
    return [
        path
        for path in device.state.rglob("*")
        if path.is_file() and "identity" not in path.parts and path.name not in ("config.toml", "lock", ".lock")
    ]


def what_is_said_to(context: ssl.SSLContext, port: int) -> bytes:
    """The first application bytes that a daemon sends to whoever has ``context``; empty if it closes instead."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as tcp:
        try:
            with context.wrap_socket(tcp) as tls:
                return tls.recv(65_536)
        except (ssl.SSLError, ConnectionError):
            return b""


async def ends_at_once(fleet: Fleet, device: Device) -> tuple[int, str]:
    """Start another daemon for ``device`` that cannot run; its exit status and what it says."""
    again = Device(f"{device.name}-again", device.folder, device.port, device.identity)
    fleet.start(again)
    assert again.process is not None
    with trio.fail_after(WAIT_S):
        status = await again.process.wait_ended()
    return status, again.log
