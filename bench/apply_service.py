"""What it costs that changes are made by another process: one file of ``--size-mb`` through the apply service and without it.

Both make the same change on the same disk: a release of one file, assembled beforehand. Without, the applier hashes the file
while it copies it into place. With, the service (a process of its own) first has the bytes sent over its socket and hashes and
stages them; then the same applier does the same. The best of ``--runs``, in wall seconds and in seconds of a core of both
processes; each run is a new version of the file. What is compared ends with the receipt.

    .venv/bin/python bench/apply_service.py [--size-mb 100] [--runs 5] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import trio

from pcm_p2p.apply.applier import Applier
from pcm_p2p.apply.step import Staged
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.content.publishing.ingest import ingest
from pcm_p2p.daemon.applying.client import Changer, RemoteApplier
from pcm_p2p.daemon.documents import manifests_to_keep, read_documents
from pcm_p2p.daemon.site.repository import FolderSource
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.desired import Desired
from pcm_p2p.policy.selector import DeviceFacts
from pcm_p2p.trust.client import TrustClient

MB = 1_000_000
WORDS = "words"
ME = DeviceId(bytes(16))
FACTS = DeviceFacts(ME, "default")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def core_s(process: int | None) -> float:
    """Seconds of a core that a process has had."""
    if process is None:
        return 0.0
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(process: int) -> float:
    """The most that a process ever had in memory."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1_000


def wall_clock() -> datetime:
    return datetime.now(UTC)


class World:
    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder, self.size_bytes, self.edition = folder, size_bytes, 0
        self.fleet = FleetFolder.init(folder / "fleet", name="bench", passphrase=WORDS, preset="lab")
        self.origin, self.staged, self.root = folder / "origin", folder / "staged", folder / "root"
        self.staged.mkdir(mode=0o700)
        self.root.mkdir()
        self.client = TrustClient(
            folder / "trust",
            self.fleet.root_bytes(1),
            self.fleet.fleet_id,
            wall_clock=wall_clock,
            wanted=manifests_to_keep(FACTS, wall_clock),
        )

    def publish(self) -> None:
        """The next version of the file."""
        self.edition += 1
        version, name = str(self.edition), f"file-{self.edition}"
        path = self.staged / name
        path.write_bytes(random.Random(self.edition).randbytes(self.size_bytes))
        path.chmod(0o600)
        made = ingest(
            [path], release="bench", version=version, counter=self.edition, work=self.folder, level=0, processes=1
        )
        self.fleet.stage_release(made.manifest, made.segments_folder)
        policy = (
            f'schema = "pcm.policy/1"\nid = "base"\nversion = {version}\nmode = "enforce"\n'
            f'[[assign]]\nrelease = "bench"\nversion = "{version}"\nto = {{ all = true }}\n'
            f'[[assign.resource]]\nkind = "file"\nartifact = "{name}"\npath = "/opt/file"\n'
        )
        self.fleet.stage_policy("base", policy.encode())
        activation = b'schema = "pcm.activation/1"\nscope = "all"\nnot_before = 2020-01-01T00:00:00Z\n'
        self.fleet.stage_file("fleet/activation.toml", activation)
        self.fleet.sign(self.fleet.path / "keys" / "targets-admin.key", WORDS)
        publish(self.fleet, self.origin, OnlineKeys.open(self.fleet, WORDS))

    async def desired(self) -> Desired:
        attempt = await self.client.attempt(FolderSource(self.origin))
        assert attempt.view is not None, attempt
        documents = read_documents(attempt.view)
        weighed = documents.weighed(FACTS, "fresh")
        return documents.desired(weighed, FACTS, self.client.now(), "fresh")

    async def run(self, changer: Changer, service: int | None = None) -> tuple[float, float]:
        """Wall seconds and seconds of a core for one change. ``service``: its process id."""
        self.publish()
        desired = await self.desired()
        (release,) = desired.releases
        path = self.staged / f"file-{self.edition}"
        staged = Staged(path, hashlib.sha256(path.read_bytes()).hexdigest())
        if isinstance(changer, RemoteApplier):
            assert not await changer.is_in_place(release.change, {})  # what is new is told before, as in the daemon
        os.sync()
        began, core = time.monotonic(), time.process_time() + core_s(service)
        outcome = await changer.apply(release.change, desired.authorisation, lambda _name: staged)
        taken = time.monotonic() - began, time.process_time() + core_s(service) - core
        assert outcome.verdict == "done", outcome
        path.unlink()
        return taken

    def start_service(self) -> subprocess.Popen[bytes]:
        state, socket = self.folder / "apply-service", self.folder / "socket-folder" / "socket"
        state.mkdir(mode=0o700)
        (state / "root.json").write_bytes(self.fleet.root_bytes(1))
        (state / "apply.toml").write_text(
            f'socket = "{socket}"\nclient = "{os.getuid()}"\n[device]\nid = "{ME.hex()}"\n'
            f'fleet = "{self.fleet.fleet_id}"\n[apply]\nroot = "{self.root}"\n'
        )
        words = [sys.executable, "-m", "pcm_p2p.cli.main", "apply-service", "run", "--state", str(state)]
        service = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        while not socket.exists():
            assert service.poll() is None, "the service did not start"
            time.sleep(0.05)
        return service


async def measure(world: World, runs: int) -> dict[str, float]:
    here = Applier(world.folder / "applier", world.root, previous_package=lambda *_: None, now_ms=now_ms, settle_s=0.0)
    with world.client:
        inside = [await world.run(here) for _ in range(runs)]
        service = world.start_service()
        try:
            remote = RemoteApplier(
                world.folder / "socket-folder" / "socket", world.client, lambda: None, lambda *_: None, now_ms
            )
            await remote.resume()
            through = [await world.run(remote, service.pid) for _ in range(runs)]
            memory_mb = resident_mb(service.pid)
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(30)
    return {
        "in_process_s": min(wall for wall, _ in inside),
        "in_process_core_s": min(core for _, core in inside),
        "through_service_s": min(wall for wall, _ in through),
        "through_service_core_s": min(core for _, core in through),
        "service_resident_mb": memory_mb,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = trio.run(measure, World(Path(folder), chosen.size_mb * MB), chosen.runs)
    if chosen.json:
        print(json.dumps({"size_mb": chosen.size_mb, **{key: round(value, 3) for key, value in found.items()}}))
        return
    for words, key in (("in the same process", "in_process"), ("through the service", "through_service")):
        print(f"{words}   {found[key + '_s']:.2f} s, {found[key + '_core_s']:.2f} s of a core, for {chosen.size_mb} MB")
    print(f"the service's memory   {found['service_resident_mb']:.0f} MB at most")


if __name__ == "__main__":
    main()
