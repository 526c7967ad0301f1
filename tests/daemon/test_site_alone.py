"""A site that acts alone, with real daemons: publish in the office with the origin out of reach, and all of the office has it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import floors
from fleet_of_processes import WORDS, Device, Fleet, noise, open_fleet, state_of
from origin_with_faults import OriginWithFaults

from pcm_p2p.authority.held_floor import keep_floor, site_here
from pcm_p2p.authority.people.founders import Founders
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.site_repository import found_site, list_site_root, signed_root
from pcm_p2p.content.publishing.ingest import ingest
from pcm_p2p.daemon.site.floor import StateSource, bring_floor, pinned_by

ALLOWANCES = b"""
schema = "pcm.allowances/1"

[[site]]
name = "office"
modes = ["observe", "notify", "enforce"]
releases = ["office-*", "app"]
resources = ["file"]
paths = ["/opt/"]
"""


class Office:
    """The site's authority: its folder, and the tree on the device on which it publishes."""

    def __init__(self, fleet: Fleet, name: str = "first") -> None:
        self.tree = fleet.folder / "office-tree"
        self.folder = found_site(
            fleet.folder / f"office-{name}",
            fleet.authority.fleet_id,
            "office",
            Founders(owners=("olga",)),
            WORDS,
            preset="lab",
        )
        self.edition = 0
        list_site_root(fleet.authority, "office", signed_root(self.folder))

    async def takes_over(self, device: Device) -> None:
        """What the fleet lets the site set, as that device knows it, whose daemon is running."""
        facts, source = site_here(self.folder), StateSource(device.state)
        root = pinned_by(device.state)
        keep_floor(self.folder, await bring_floor(facts, None, source, root, wall_clock=self.folder.wall_clock))

    def release(self, data: bytes, version: str) -> None:
        source = self.folder.path / "work" / version
        source.mkdir(parents=True)
        (source / "office-tool.bin").write_bytes(data)
        counter = self.folder.next_counter("office-tool")
        made = ingest(
            [source / "office-tool.bin"],
            release="office-tool",
            version=version,
            counter=counter,
            work=self.folder.path,
            level=0,
            processes=1,
        )
        self.folder.stage_release(made.manifest, made.segments_folder)

    def publish(self, version: str, *, path: str = "/opt/office-tool", policy: str = "office") -> None:
        self.edition += 1
        document = textwrap.dedent(f"""
            schema = "pcm.policy/1"
            id = "{policy}"
            version = {self.edition}
            mode = "enforce"

            [[assign]]
            release = "office-tool"
            version = "{version}"

            [[assign.resource]]
            kind = "file"
            artifact = "office-tool.bin"
            path = "{path}"
            """)
        self.folder.stage_policy(policy, document.encode())
        self.folder.sign(self.folder.path / "keys" / "targets-olga.key", WORDS)
        publish(self.folder, self.tree, OnlineKeys.open(self.folder, WORDS))


async def enrolled(fleet: Fleet, tree: Path) -> list[Device]:
    """Three devices; the authority of the site publishes on the first."""
    site: dict[str, Any] = {"repository": str(tree)}
    return [await fleet.enrol("a", site=site), await fleet.enrol("b"), await fleet.enrol("c")]


async def test_published_in_the_office_with_the_origin_out_of_reach_all_devices_of_the_site_have_it(
    tmp_path: Path,
) -> None:
    async with open_fleet(tmp_path) as fleet:
        office = Office(fleet)
        devices = await enrolled(fleet, office.tree)
        fleet.authority.stage_file("fleet/allowances.toml", ALLOWANCES)
        fleet.publish()
        fleet.start(*devices)
        for device in devices:
            await fleet.until(device, lambda status: status["trust"]["targets"] == 1)

        fleet.origin.close()
        await office.takes_over(devices[0])
        tool = noise(300_000)
        office.release(tool, "1")
        office.publish("1")
        await fleet.until_applied(*devices, name="office-tool")
        for device in devices:
            assert device.installed("office-tool") == tool
            status = await fleet.until(device, lambda status: status["site_repository"]["state"] == "fresh")
            assert status["site_repository"]["targets"] == 1

        office.release(noise(1_000, 2), "2")
        office.publish("2")
        await fleet.until_applied(*devices, name="office-tool", version="2")

        # The fleet takes the site out of wrong hands: another root, and the old keys are worth nothing.
        await fleet.nursery.start(fleet.origin.serve)
        second = Office(fleet, "second")
        fleet.sign_and_publish()
        for device in devices:
            await fleet.until(device, lambda status: status["trust"]["targets"] == 2)
        await second.takes_over(devices[1])
        office.release(noise(1_000, 5), "2.1")
        office.publish("2.1")
        # The reason is that of the source asked last: a neighbour that has nothing of the new root yet may come between.
        refused = "signed by 0/1 keys"
        status = await fleet.until(devices[0], lambda status: refused in status["site_repository"]["reason"])
        assert state_of(status, "office-tool", "2.1") == ""
        for file in (office.tree / "metadata").iterdir():
            file.unlink()
        second.release(noise(2_000, 3), "3")
        second.publish("3")
        await fleet.until_applied(*devices, name="office-tool", version="3")


async def test_from_a_web_server_of_the_office_and_a_policy_that_loosens_is_set_aside_and_said(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        office = Office(fleet)
        floors.hold(office.folder)  # of a day when the fleet had no policy; devices go by what it says today
        office.tree.mkdir()
        server = OriginWithFaults(office.tree)
        await fleet.nursery.start(server.serve)
        web: dict[str, Any] = {"urls": [server.url], "poll_s": 1.0}
        devices = [await fleet.enrol("a", site=web), await fleet.enrol("b", site=web)]
        app = noise(50_000, 4)
        fleet.release(app)
        fleet.authority.stage_file("fleet/allowances.toml", ALLOWANCES)
        fleet.publish()
        tool = noise(300_000)
        office.release(tool, "1")
        office.publish("1", path="/opt/app", policy="greedy")
        office.publish("1")
        fleet.start(*devices)
        await fleet.until_applied(*devices, name="office-tool")
        await fleet.until_applied(*devices)
        for device in devices:
            assert (device.installed("office-tool"), device.installed("app")) == (tool, app)
            status = await fleet.until(device, lambda status: status["problems"])
            problem = "policy greedy of site office is set aside: release office-tool changes /opt/app"
            assert any(one.startswith(problem) for one in status["problems"]), status["problems"]
        asked_of_fleet = {path for path, _ in fleet.origin.segments_asked}
        asked_of_site = {path for path, _ in server.segments_asked}
        assert asked_of_fleet
        assert asked_of_site
        assert not asked_of_fleet & asked_of_site, "neither is asked for what the other has"
        assert sum(server.sent[path] for path in asked_of_site) < 2 * len(tool), "one device fetches, the others ask it"
