"""A fleet of real daemons, each a process of its own, on loopback below one folder.

The authority and the desk work in the test's own process, through the functions that the commands call; key files have the
preset ``lab``. The origin is in this process too, so that it can have faults and be counted. Daemons and the collector are
processes with the command lines that an admin would have; what differs from an office is in ``SETTINGS`` alone.

A device that sees no neighbour waits ten seconds for one before it turns to the origin. So there is a bystander in this
process, a member of the fleet that has nothing and wants nothing, except where a test wants to be alone.

States are waited for by asking control sockets, with a deadline. Processes end with ``open_fleet``; nothing else is signalled.
"""

from __future__ import annotations

import signal
import sqlite3
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import trio
from free_port import free_port
from origin_with_faults import OriginWithFaults

from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.content.manifest import Manifest
from pcm_p2p.content.publishing.ingest import ingest
from pcm_p2p.daemon.collect import show_table
from pcm_p2p.daemon.control import ask
from pcm_p2p.enrolment.desk import Desk
from pcm_p2p.enrolment.invitation import create_token
from pcm_p2p.enrolment.join import join
from pcm_p2p.errors import PcmError
from pcm_p2p.gossip.overlay import Overlay
from pcm_p2p.gossip.settings import OverlaySettings
from pcm_p2p.lab.processes import Process, Processes, open_processes
from pcm_p2p.trust.identity import DeviceIdentity, client_context, peer_identity_untrusted, server_context
from pcm_p2p.wire.link import LinkSecurity

WORDS = "words"
WAIT_S = 120.0
"""Far above what anything here takes: on a busy machine a process may need many seconds to start."""
LOOK_S = 0.05
SETTINGS: dict[str, dict[str, object]] = {
    "discovery": {"mdns": False, "settle_s": 0.3},
    "origin": {"poll_s": 1.0},
    "apply": {"interval_s": 1.0},
    "collectors": {"interval_s": 1.0},
}
"""Intervals that suit somebody who is waiting; addresses and ports are set for each device."""
ACTIVATION = b'schema = "pcm.activation/1"\nscope = "all"\nnot_before = 2020-01-01T00:00:00Z\n'
COLLECT = """
import sys, pathlib
from pcm_p2p.daemon.collect import run_collector
state = pathlib.Path(sys.argv[1])
run_collector(state, ("127.0.0.1", int(sys.argv[2])), None, state / "port")
"""
"""The collector without its console, which is another process and another room's matter."""

Status = dict[str, Any]


@dataclass
class Device:
    """One enrolled device: its folders, its port, and its process while it runs."""

    name: str
    folder: Path
    port: int
    identity: DeviceIdentity
    process: Process | None = None

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def hex(self) -> str:
        return self.identity.device_id.hex()

    @property
    def log(self) -> str:
        return "" if self.process is None else self.process.log.read_text(errors="replace")

    def installed(self, name: str = "app") -> bytes | None:
        path = self.root / "opt" / name
        return path.read_bytes() if path.exists() else None


@dataclass
class Fleet:
    """See ``open_fleet``. ``everyone`` is the policy's standing; releases are assigned to all devices."""

    folder: Path
    authority: FleetFolder
    origin: OriginWithFaults
    processes: Processes
    nursery: trio.Nursery
    desk: str
    devices: dict[str, Device] = field(default_factory=dict)
    edition: int = 0
    assigned: dict[str, tuple[str, str]] = field(default_factory=dict)
    collector: Device | None = None
    bystander: Device | None = None

    # What the authority does

    def release(self, data: bytes, *, name: str = "app", version: str = "1") -> Manifest:
        """Add a release of one file."""
        folder = self.folder / "artifacts" / version
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.bin"
        file.write_bytes(data)
        counter = self.authority.next_counter(name)
        made = ingest(
            [file], release=name, version=version, counter=counter, work=self.authority.path, level=0, processes=1
        )
        self.authority.stage_release(made.manifest, made.segments_folder)
        self.assigned[name] = (version, made.manifest.artifacts[0].delivered_sha256.hex())
        return made.manifest

    def policy(self, mode: str = "enforce") -> str:
        """What assigns all releases to everybody, and checks that each is there."""
        self.edition += 1
        text = f'schema = "pcm.policy/1"\nid = "base"\nversion = {self.edition}\nmode = "{mode}"\n'
        for name, (version, sha256) in self.assigned.items():
            text += textwrap.dedent(f"""
                [[assign]]
                release = "{name}"
                version = "{version}"
                to = {{ all = true }}

                [[assign.resource]]
                kind = "file"
                artifact = "{name}.bin"
                path = "/opt/{name}"
                mode = 0o644

                [[check]]
                id = "{name}"
                resource = "file"
                path = "/opt/{name}"
                sha256 = "{sha256}"
                """)
        return text

    def publish(self, *, mode: str = "enforce", activate: bool = True) -> None:
        """Stage the policy (and the activation), sign, publish."""
        self.authority.stage_policy("base", self.policy(mode).encode())
        if activate:
            self.authority.stage_file("fleet/activation.toml", ACTIVATION)
        self.sign_and_publish()

    def sign_and_publish(self) -> None:
        self.authority.sign(self.authority.path / "keys" / "targets-admin.key", WORDS)
        publish(self.authority, self.origin.folder, OnlineKeys.open(self.authority, WORDS))

    # Devices

    async def enrol(self, name: str, *, role: str = "device", **tables: dict[str, object]) -> Device:
        """Through a token and the desk. Devices know those that were enrolled before as seeds."""
        folder, port = self.folder / name, free_port()
        (folder / "root" / "opt").mkdir(parents=True)
        known = [*self.devices.values(), *([self.bystander] if self.bystander else [])]
        seeds = tuple(f"127.0.0.1:{device.port}" for device in known)
        token = create_token(
            self.authority, desk=self.desk, site="office", role=role, origins=(self.origin.url,), seeds=seeds
        )
        overrides: dict[str, dict[str, object]] = {table: dict(values) for table, values in SETTINGS.items()}
        overrides["apply"]["root"] = str(folder / "root")
        overrides["listen"] = {"addresses": ["127.0.0.1"], "port": port}
        for table, values in tables.items():
            overrides.setdefault(table, {}).update(values)
        joined = await join(folder / "state", token.line(), wall_clock=lambda: datetime.now(UTC), overrides=overrides)
        device = Device(name, folder, port, joined.identity)
        if role == "device" and name != "bystander":
            self.devices[name] = device
        return device

    async def stand_by(self) -> None:
        self.bystander = device = await self.enrol("bystander")
        identity = device.identity
        security = LinkSecurity(
            server_context(identity), client_context(identity), peer_identity_untrusted, identity.fleet
        )
        settings = OverlaySettings(site="office", port=device.port, weight=0)
        await self.nursery.start(Overlay(identity.device_id, security, settings, rng=Random(1)).run)

    async def found_collector(self) -> None:
        """Enrol a collector and name it in the fleet document, to be published with what comes next."""
        self.collector = collector = await self.enrol("collector", role="collector")
        document = self.authority.path / "fleet.toml"
        table = show_table(collector.state, f"127.0.0.1:{collector.port}")
        document.write_text(f"{document.read_text()}\n{table}")
        self.authority.stage_fleet_document()

    async def start_collector(self) -> None:
        assert self.collector is not None
        port = self.collector.state / "port"
        port.unlink(missing_ok=True)
        words: list[str | Path] = [sys.executable, "-c", COLLECT, self.collector.state, str(self.collector.port)]
        self.collector.process = self.processes.start("collector", words)
        await self._until(port.exists, self.collector.process)

    def start(self, *devices: Device, doctored: str | None = None) -> None:
        """``doctored``: a point of ``doctored_daemon``."""
        for device in devices:
            words: list[str | Path] = [sys.executable, "-m", "pcm_p2p.daemon", "--state", device.state]
            if doctored is not None:
                words = [sys.executable, Path(__file__).with_name("doctored_daemon.py"), doctored, device.state]
            device.process = self.processes.start(device.name, words, environment={"MALLOC_ARENA_MAX": "1"})

    async def kill(self, device: Device) -> None:
        """SIGKILL; returns when it has ended."""
        assert device.process is not None
        device.process.signal(signal.SIGKILL)
        await device.process.wait_ended()

    async def stop(self, device: Device) -> int:
        """SIGTERM; returns the exit status."""
        assert device.process is not None
        device.process.signal(signal.SIGTERM)
        with trio.fail_after(WAIT_S):
            return await device.process.wait_ended()

    async def died(self, device: Device) -> None:
        """Wait until a daemon that was doctored so has killed itself."""
        assert device.process is not None
        with trio.move_on_after(WAIT_S):
            status = await device.process.wait_ended()
            assert status == -signal.SIGKILL, f"ended with {status}:\n{device.log[-3_000:]}"
            return
        raise AssertionError(f"{device.name} never came to its point of death:\n{device.log[-3_000:]}")

    # Looking

    async def status(self, device: Device) -> Status | None:
        try:
            return await trio.to_thread.run_sync(lambda: ask(device.state, "status", timeout_s=5.0))
        except PcmError:
            return None

    async def until(self, device: Device, condition: Callable[[Status], object]) -> Status:
        """The first status of ``device`` for which ``condition`` holds."""
        seen: Status | None = None
        with trio.move_on_after(WAIT_S):
            while True:
                status = await self.status(device)
                if status is not None:
                    seen = status
                    if condition(status):
                        return status
                if device.process is not None and not device.process.alive:
                    break
                await trio.sleep(LOOK_S)
        raise AssertionError(f"{device.name} did not get there; status {seen}; log:\n{device.log[-4_000:]}")

    async def until_applied(self, *devices: Device, version: str = "1", name: str = "app") -> None:
        for device in devices:
            await self.until(device, lambda status: state_of(status, name, version) == "applied")

    async def until_archived(self, condition: Callable[[list[tuple[str, int, int, str]]], object]) -> None:
        """Wait for the collector's archive: rows of device, epoch, number, carrier."""
        assert self.collector is not None
        assert self.collector.process is not None
        await self._until(lambda: condition(self.archived()), self.collector.process)

    def conflicts(self) -> int:
        """Reports that bear the number of another one."""
        assert self.collector is not None
        path = self.collector.state / "collector" / "archive.sqlite"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM conflict").fetchone()[0])

    def archived(self) -> list[tuple[str, int, int, str]]:
        assert self.collector is not None
        path = self.collector.state / "collector" / "archive.sqlite"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT device, epoch, seq, carrier FROM report ORDER BY 1, 2, 3")
            return [(str(device), epoch, seq, carrier) for device, epoch, seq, carrier in rows]

    async def _until(self, condition: Callable[[], object], process: Process) -> None:
        with trio.move_on_after(WAIT_S):
            while not condition():
                assert process.alive, process.last_lines()
                await trio.sleep(LOOK_S)
            return
        raise AssertionError(f"{process.name} did not get there:\n{process.last_lines(40)}")


@asynccontextmanager
async def open_fleet(folder: Path, *, bystander: bool = True) -> AsyncIterator[Fleet]:
    """A fleet with its desk and origin open, and nothing published; everything has ended when this is left."""
    authority = FleetFolder.init(folder / "authority", name="acme", passphrase=WORDS, preset="lab")
    tree = folder / "origin"
    tree.mkdir()
    desk = Desk.open(authority, WORDS)
    try:
        async with open_processes(folder / "logs") as processes, trio.open_nursery() as nursery:
            origin = OriginWithFaults(tree)
            await nursery.start(origin.serve)
            listeners: list[trio.SocketListener] = await nursery.start(desk.serve, "127.0.0.1", 0)
            address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            fleet = Fleet(folder, authority, origin, processes, nursery, address)
            if bystander:
                await fleet.stand_by()
            yield fleet
            nursery.cancel_scope.cancel()
    finally:
        desk.close()


def state_of(status: Status, name: str = "app", version: str = "1") -> str:
    """The state of a release in a status; empty if it is not assigned."""
    return next((row["state"] for row in status["releases"] if (row["name"], row["version"]) == (name, version)), "")


def release_row(status: Status, name: str = "app") -> dict[str, Any]:
    return next((row for row in status["releases"] if row["name"] == name), {})


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not compress, so that sizes on the wire are known."""
    return Random(seed).randbytes(size)
