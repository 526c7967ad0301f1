"""Real daemons and real packages: nobody has the old chunks, one device has the old package installed by hand, and the office
pays for a delta."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fleet_of_processes import Device, Fleet, noise, open_fleet

from pcm_p2p.content.manifest import Manifest
from pcm_p2p.content.publishing.bases import BaseRelease
from pcm_p2p.content.publishing.ingest import ingest

pytestmark = [
    pytest.mark.debian,
    pytest.mark.skipif(not (shutil.which("dpkg") and shutil.which("dpkg-deb")), reason="there is no dpkg here"),
]
FILES = {f"usr/lib/app/{number}": noise(300_000, seed=number) for number in range(8)}
UPDATED = {name: data[:1000] + b"patched" + data[1000:] for name, data in FILES.items()}
FORCE = ("--force-not-root", "--force-architecture", "--force-depends")


def build(folder: Path, version: str, files: dict[str, bytes]) -> Path:
    tree, deb = folder / f"tree-{version}", folder / version / "app.deb"
    deb.parent.mkdir(parents=True)
    control = tree / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    control.write_text(
        f"Package: app\nVersion: {version}\nArchitecture: all\nMaintainer: N <n@example.org>\nDescription: app\n"
    )
    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "-b", tree, deb)
    return deb


def run(*words: str | Path) -> None:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    subprocess.run(words, check=True, capture_output=True, timeout=120, env={**os.environ, "PATH": path})


def release(fleet: Fleet, deb: Path, version: str, *bases: Manifest) -> Manifest:
    made = ingest(
        [deb],
        release="app",
        version=version,
        counter=fleet.authority.next_counter("app"),
        work=fleet.authority.path,
        level=1,
        processes=1,
        bases=[BaseRelease(base, fleet.authority.path / "segments", required=True) for base in bases],
    )
    fleet.authority.stage_release(made.manifest, made.segments_folder)
    return made.manifest


def publish(fleet: Fleet, version: str) -> None:
    text = f"""
        schema = "pcm.policy/1"
        id = "base"
        version = 1
        mode = "enforce"
        [[assign]]
        release = "app"
        version = "{version}"
        to = {{ all = true }}
        [[assign.resource]]
        kind = "package"
        artifact = "app.deb"
    """
    fleet.policy = lambda mode="enforce": text  # type: ignore[method-assign]
    fleet.publish()


def install(device: Device, deb: Path) -> None:
    for folder in ("info", "updates", "triggers"):
        (device.root / "var/lib/dpkg" / folder).mkdir(parents=True)
    (device.root / "var/lib/dpkg/status").touch()
    (device.root / "var/lib/dpkg/info/format").write_text("1\n")
    run("dpkg", f"--root={device.root}", f"--log={device.root}/log", *FORCE, "--install", deb)


async def test_the_office_pays_for_a_delta_and_a_layout(tmp_path: Path) -> None:
    one, two = build(tmp_path, "1", FILES), build(tmp_path, "2", UPDATED)
    async with open_fleet(tmp_path / "fleet") as fleet:
        update = release(fleet, two, "2", release(fleet, one, "1"))
        publish(fleet, "2")
        devices = [await fleet.enrol(name) for name in "abc"]
        # It starts first: full segments wait three seconds for a base, and a busy machine may take longer to start a process.
        install(devices[0], one)
        fleet.start(devices[0])
        await fleet.until(devices[0], lambda status: status["peers"]["sessions"])
        fleet.start(*devices[1:])
        await fleet.until_applied(*devices, version="2")
        for device in devices:
            assert all((device.root / name).read_bytes() == data for name, data in UPDATED.items())
        fetched = {path.rpartition("/")[2] for path, _ in fleet.origin.segments_asked}
        needed = [segment for segment in update.segments if segment.kind != "full"]
        assert {segment.kind for segment in needed} == {"delta", "layout"}
        assert fetched == {segment.id.hex() for segment in needed}
        assert fleet.origin.segment_bytes == sum(segment.size for segment in needed)
