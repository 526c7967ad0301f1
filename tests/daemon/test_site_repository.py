"""The repository of a site that acts alone, as devices follow it: real metadata, sessions in memory, no network."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import floors
import pytest
import trio
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.authority import halting, site_policy
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.keys.signing_key import open_signing_key
from pcm_p2p.authority.people.founders import Founders
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.authority.site_folder import NAME
from pcm_p2p.authority.site_repository import found_site, list_site_root, signed_root
from pcm_p2p.content.publishing.ingest import ingest
from pcm_p2p.daemon.documents import manifests_to_keep, read_documents
from pcm_p2p.daemon.site import repository as site_repository
from pcm_p2p.daemon.site.repository import FolderSource, SiteRepository
from pcm_p2p.gossip import spread
from pcm_p2p.gossip.peer import PeerDown, PeerInfo, PeerUp
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.document import Policy
from pcm_p2p.policy.selector import DeviceFacts
from pcm_p2p.trust.client import MetadataSource, TrustClient
from pcm_p2p.trust.delegation import HALT
from pcm_p2p.trust.index import STANDING, site_root_path
from pcm_p2p.trust.updater import SourceMissing
from pcm_p2p.wire.messages import Message, SiteDigest

WORDS = "words"
SITE = "berlin"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WAIT_S = 60.0


def policy(version: int = 1, name: str = "own") -> bytes:
    return f'schema = "pcm.policy/1"\nid = "{name}"\nversion = {version}\n'.encode()


@dataclass
class Authority:
    """A fleet's folder or a site's, and the tree that it publishes."""

    folder: FleetFolder
    tree: Path

    def publish(self, **files: bytes) -> None:
        for name, data in files.items():
            self.folder.stage_policy(name, data)
        (key,) = (self.folder.path / "keys").glob("targets-*.key")
        self.folder.sign(key, WORDS)
        publish(self.folder, self.tree, OnlineKeys.open(self.folder, WORDS))


@dataclass
class World:
    """A fleet, and what its clocks say."""

    path: Path
    now: datetime = NOW
    fleet: Authority = field(init=False)
    sites: int = 0

    def __post_init__(self) -> None:
        folder = FleetFolder.init(
            self.path / "fleet", name="acme", passphrase=WORDS, preset="lab", wall_clock=lambda: self.now
        )
        self.fleet = Authority(folder, self.path / "fleet-tree")

    def found(self, *, site: str = SITE, fleet_id: str = "") -> Authority:
        self.sites += 1
        folder = found_site(
            self.path / f"site-{self.sites}",
            fleet_id or self.fleet.folder.fleet_id,
            site,
            Founders(owners=("olga",)),
            WORDS,
            preset="lab",
            wall_clock=lambda: self.now,
        )
        floors.hold(folder)
        return Authority(folder, self.path / f"site-{self.sites}-tree")

    def lists(self, root: bytes | None) -> None:
        """The fleet publishes what it lists as the site's root."""
        if root is None:
            self.fleet.folder.unstage(site_root_path(SITE))
        else:
            self.fleet.folder.stage_file(site_root_path(SITE), root)
        self.fleet.publish()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_disk: None) -> World:
    monkeypatch.setattr(site_repository, "LOOK_S", 0.02)
    monkeypatch.setattr(site_repository, "LOOK_S_MAX", 0.05)
    return World(tmp_path)


class Device:
    """A device of the site (or of another one) whose sessions end in the other devices of ``office``."""

    def __init__(
        self,
        world: World,
        office: dict[DeviceId, Device],
        *,
        tree: Path | None = None,
        site: str = SITE,
        protocol: int = 3,
    ) -> None:
        self.world, self.office, self.protocol, self.site_name = world, office, protocol, site
        self.device = DeviceId(bytes([len(office) + 1]) * 16)
        office[self.device] = self
        self.folder = world.path / f"device-{len(office)}"
        self.fleet = TrustClient(
            self.folder / "trust",
            world.fleet.folder.root_bytes(1),
            world.fleet.folder.fleet_id,
            wall_clock=lambda: world.now,
            wanted=manifests_to_keep(DeviceFacts(self.device, site), lambda: world.now, self.policies),
            standing=(*STANDING, site_root_path(site)),
        )
        self.handler: Callable[[DeviceId, Any], Awaitable[None]] | None = None
        self.watcher: Callable[[PeerUp | PeerDown], Awaitable[None]] | None = None
        self.heard: list[tuple[DeviceId, SiteDigest]] = []
        self.asked: list[str] = []
        self.changed = trio.Event()
        self.site = SiteRepository(
            self.folder / "site-trust",
            site,
            self.device,
            self.fleet,
            self,
            self.neighbour,
            tree=tree,
            origin=None,
            poll_s=60.0,
            settle_s=0.0,
            wall_s=time.time,
            rng=Random(1),
            on_change=self.on_change,
        )

    def policies(self) -> tuple[Policy, ...]:
        return self.site.policies()

    async def on_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def follow_fleet(self) -> None:
        attempt = await self.fleet.attempt(FolderSource(self.world.fleet.tree))
        assert attempt.kind in ("good", "unchanged"), attempt
        self.site.fleet_changed()

    async def until(self, condition: Callable[[], object]) -> None:
        with trio.fail_after(WAIT_S):
            while not condition():
                with trio.move_on_after(0.05):  # a problem is not announced; a change is
                    await self.changed.wait()

    def targets(self) -> int:
        return int(self.site.facts()["targets"])

    async def until_targets(self, version: int) -> None:
        await self.until(lambda: self.targets() == version)

    # As the overlay

    def info(self, other: Device) -> PeerInfo:
        return PeerInfo(other.device, "", other.site_name, "device", 8, other.site_name == self.site_name, "", None)

    def peers(self) -> list[PeerInfo]:
        return [self.info(other) for other in self.office.values() if other is not self]

    def session_with(self, device: DeviceId, /) -> Any:
        return SimpleNamespace(peer_hello=SimpleNamespace(protocol=self.office[device].protocol))

    def register(self, message_type: type[Message], handler: Callable[[DeviceId, Any], Awaitable[None]], /) -> None:
        assert message_type is SiteDigest
        self.handler = handler

    def watch(self, watcher: Callable[[PeerUp | PeerDown], Awaitable[None]], /) -> None:
        self.watcher = watcher

    async def send(self, device: DeviceId, message: Message, /) -> None:
        assert isinstance(message, SiteDigest)
        other = self.office[device]
        other.heard.append((self.device, message))
        assert other.handler is not None
        await other.handler(self.device, message)

    def neighbour(self, device: DeviceId, prefix: str) -> MetadataSource:
        return Neighbour(self, device, prefix)


class Neighbour:
    def __init__(self, asker: Device, device: DeviceId, prefix: str) -> None:
        self.asker, self.other, self.prefix, self.name = asker, asker.office[device], prefix, device.hex()

    async def fetch(self, path: str, size_bytes_max: int) -> bytes:
        self.asker.asked.append(path)
        data = await trio.to_thread.run_sync(self.other.site.serve, self.prefix + path)
        if data is None:
            raise SourceMissing(path)
        return data


@asynccontextmanager
async def running(*devices: Device) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for device in devices:
            device.fleet.open()
            nursery.start_soon(device.site.run)
            await device.follow_fleet()
        yield
        nursery.cancel_scope.cancel()
    for device in devices:
        device.fleet.close()


async def test_what_is_published_on_one_device_reaches_all_of_the_site_and_nobody_else(world: World) -> None:
    site = world.found()
    world.lists(signed_root(site.folder))
    office: dict[DeviceId, Device] = {}
    first, second, third = Device(world, office, tree=site.tree), Device(world, office), Device(world, office)
    elsewhere, older = Device(world, office, site="paris"), Device(world, office, protocol=2)
    async with running(first, second, third, elsewhere):
        site.publish(own=policy())
        for device in (first, second, third):
            await device.until_targets(1)
            assert [one.id for one in device.site.policies()] == ["own"]
        site.publish(own=policy(2))
        for device in (first, second, third):
            await device.until_targets(2)
            assert [one.version for one in device.site.policies()] == [2]
    assert elsewhere.site.word() is None
    assert not elsewhere.heard, "digests stay within the site"
    assert not older.heard, "a peer that does not know the message would end the session over it"


async def test_without_a_listed_root_nothing_of_a_site_counts(world: World) -> None:
    site = world.found()
    world.fleet.publish(base=policy(name="base"))
    site.publish(own=policy())
    device = Device(world, {}, tree=site.tree)
    async with running(device):
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert device.site.word() is None
        assert device.site.serve(f"sites/{SITE}/metadata/timestamp.json") is None
        world.lists(signed_root(site.folder))
        await device.follow_fleet()
        await device.until_targets(1)


async def test_another_root_in_the_fleet_drops_what_was_trusted_and_makes_old_keys_worthless(world: World) -> None:
    old = world.found()
    world.lists(signed_root(old.folder))
    for version in (1, 2, 3):
        old.publish(own=policy(version))
    device = Device(world, {}, tree=old.tree)
    async with running(device):
        await device.until_targets(3)
        new = world.found()
        world.lists(signed_root(new.folder))
        await device.follow_fleet()
        await device.until_targets(0)
        old.publish(own=policy(4))
        await device.until(lambda: "signed by 0/1 keys" in device.site.facts()["reason"])
        assert device.site.policies() == ()
        for file in sorted(old.tree.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        new.tree = old.tree
        new.publish(fresh=policy(name="fresh"))
        await device.until_targets(1)
        assert [one.id for one in device.site.policies()] == ["fresh"]
        assert len(list((device.folder / "site-trust").iterdir())) == 1, "nothing of the old one stays"


async def test_online_keys_that_outlive_a_new_root_cannot_take_the_site_back(world: World) -> None:
    site = world.found()
    world.lists(signed_root(site.folder))
    site.publish(own=policy(1))
    early = {file.name: file.read_bytes() for file in (site.tree / "metadata").iterdir()}
    site.publish(own=policy(2))
    device = Device(world, {}, tree=site.tree)
    async with running(device):
        await device.until_targets(2)
        # The fleet lists a root with another root key and the same publisher.
        root = Metadata[Root].from_bytes(signed_root(site.folder))
        key = keyfile.create(world.path / "new-root.key", WORDS, "root", "nina", preset="lab")
        (old_id,) = root.signed.roles["root"].keyids
        root.signed.revoke_key(old_id, "root")
        root.signed.add_key(key.key, "root")
        root.signatures.clear()
        root.sign(key.signer())
        world.lists(root.to_bytes())
        for name, data in early.items():
            (site.tree / "metadata" / name).write_bytes(data)
        (site.tree / "metadata" / "timestamp.json").touch()
        await device.follow_fleet()
        await device.until(lambda: "is below 2" in device.site.facts()["reason"])
        assert device.targets() == 0


async def test_a_root_that_the_sites_own_chain_came_by_changes_nothing(world: World) -> None:
    site = world.found()
    world.lists(signed_root(site.folder))
    site.publish(own=policy())

    def with_new_lifetime(root: Root) -> None:
        root.expires += timedelta(days=1)

    site.folder.propose_root(with_new_lifetime)
    site.folder.sign(site.folder.path / "keys" / "root-olga.key", WORDS)
    site.publish(own=policy(2))
    device = Device(world, {}, tree=site.tree)
    async with running(device):
        await device.until_targets(2)
        assert device.site.facts()["root"] == 2
        (site.tree / "metadata" / "timestamp.json").unlink()
        world.lists(site.folder.root_bytes(2))
        await device.follow_fleet()
        await device.until(lambda: device.site.client is None or device.site.facts()["root"] == 2)
        await device.until_targets(2)
        assert [one.version for one in device.site.policies()] == [2], "without anybody to ask"


@pytest.mark.parametrize("other", ["another fleet", "another site", "the fleet itself", "no root"])
async def test_a_listed_root_that_is_not_of_this_site_of_this_fleet_is_refused_and_said(
    world: World, other: str
) -> None:
    roots: dict[str, Callable[[], bytes]] = {
        "another fleet": lambda: signed_root(world.found(fleet_id="0" * 32).folder),
        "another site": lambda: signed_root(world.found(site="paris").folder),
        "the fleet itself": world.fleet.folder.root_bytes,
        "no root": lambda: json.dumps({"signed": {}, "signatures": []}).encode(),
    }
    world.lists(roots[other]())
    device = Device(world, {})
    async with running(device):
        await device.until(lambda: device.site.facts()["reason"])
        assert "root of site berlin cannot be believed" in device.site.facts()["reason"]
        assert device.site.word() is None


async def test_a_root_that_is_listed_no_longer_ends_the_sites_say_and_listed_again_it_goes_back_to_nothing_older(
    world: World,
) -> None:
    site = world.found()
    world.lists(signed_root(site.folder))
    site.publish(own=policy())
    early = (site.tree / "metadata" / "timestamp.json").read_bytes()
    site.publish(own=policy(2))
    device = Device(world, {}, tree=site.tree)
    async with running(device):
        await device.until_targets(2)
        world.lists(None)
        await device.follow_fleet()
        await device.until(lambda: device.site.word() is None)
        assert device.site.policies() == ()
        (site.tree / "metadata" / "timestamp.json").write_bytes(early)
        world.lists(signed_root(site.folder))
        await device.follow_fleet()
        await device.until_targets(2)
        await device.until(lambda: device.site.facts()["reason"])
        assert [one.version for one in device.site.policies()] == [2]


@pytest.mark.parametrize("lost", ["the fleet's trusted set", "the listed root"])
async def test_what_the_disk_lost_of_the_fleet_takes_nothing_from_what_is_known_of_the_site(
    world: World, lost: str
) -> None:
    site = world.found()
    world.lists(signed_root(site.folder))
    site.publish(own=policy())
    early = {file.name: file.read_bytes() for file in (site.tree / "metadata").iterdir()}
    site.publish(own=policy(2))
    device = Device(world, {}, tree=site.tree)
    async with running(device):
        await device.until_targets(2)
    for name, data in early.items():
        (site.tree / "metadata" / name).write_bytes(data)
    again = Device(world, {}, tree=site.tree)
    if lost == "the listed root":
        for root in (again.folder / "trust").glob("generations/*/targets/sites/*/*"):
            root.write_bytes(b"rotten")
    else:
        (again.folder / "trust" / "current").unlink()
        for state in (again.folder / "trust").rglob("state.json"):
            state.unlink()
    async with running(again):
        await again.until_targets(2)
        await again.until(lambda: again.site.facts()["reason"])
        assert [one.version for one in again.site.policies()] == [2], "the older state that is offered is refused"


async def test_a_folder_that_cannot_be_used_is_said_and_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_repository, "RETRY_S", 0.05)
    site = world.found()
    world.lists(signed_root(site.folder))
    site.publish(own=policy())
    device = Device(world, {}, tree=site.tree)
    device.folder.mkdir(parents=True, exist_ok=True)
    (device.folder / "site-trust").write_text("in the way")
    async with running(device):
        await device.until(lambda: "cannot be followed" in device.site.facts()["reason"])
        (device.folder / "site-trust").unlink()
        await device.until_targets(1)
        assert device.site.facts()["reason"] == ""


async def test_a_restart_with_nobody_around_knows_what_was_trusted(world: World) -> None:
    site = world.found()
    world.lists(signed_root(site.folder))
    site.publish(own=policy())
    device = Device(world, {}, tree=site.tree)
    async with running(device):
        await device.until_targets(1)
        known = device.site.policies()
    again = Device(world, {})
    async with running(again):
        await again.until_targets(1)
        assert again.site.policies() == known


async def test_the_freshness_of_the_site_is_its_own(world: World) -> None:
    site = world.found()
    world.lists(signed_root(site.folder))
    site.publish(own=policy())
    device = Device(world, {}, tree=site.tree)
    async with running(device):
        await device.until_targets(1)
        world.now = NOW + timedelta(days=10)
        assert (device.fleet.freshness(), device.site.facts()["state"]) == ("stale", "stale")
        site.publish(own=policy(2))
        await device.until_targets(2)
        assert (device.fleet.freshness(), device.site.facts()["state"]) == ("stale", "fresh")
        world.now = NOW + timedelta(days=60)
        word = device.site.word()
        assert word is not None
        assert word.frozen
        assert [one.version for one in device.site.policies()] == [2], "what was said stands"


async def test_whatever_else_a_site_signs_is_not_heard(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """research/trust.md 10.15: a site that signs the fleet's paths."""
    site = world.found()
    world.lists(signed_root(site.folder))
    # Its folder would refuse to stage this, and to sign it.
    (site.folder.path / NAME).unlink()
    monkeypatch.setattr(site_policy, "acts_alone", lambda _: False)
    site.folder.stage_file("fleet/activation.toml", b'schema = "pcm.activation/1"\nscope = "all"\n')
    site.folder.stage_file("fleet/allowances.toml", b'schema = "pcm.allowances/1"\n[default]\n')
    site.folder.stage_file("identity/deny.json", b"{}")
    site.folder.stage_file("sites/berlin/root.json", b"{}")
    site.publish(own=policy(), base=policy(9, "base"))
    world.fleet.publish(base=policy(name="base"))
    device = Device(world, {}, tree=site.tree)
    async with running(device):
        await device.until_targets(1)
        word = device.site.word()
        assert word is not None
        assert set(word.view.paths()) == {"index.json", "policies/base.toml", "policies/own.toml"}
        assert device.fleet.view is not None
        documents = read_documents(device.fleet.view, word)
        assert (documents.activation, documents.allowances) == (None, None)
        weighed = documents.weighed(DeviceFacts(device.device, SITE), "fresh")
        assert [(one.id, one.version) for one in weighed.policies] == [("base", 1)], "a site does not replace a policy"


async def test_a_site_halts_its_own_devices_and_lifts_what_it_halted(world: World) -> None:
    site = world.found()
    world.lists(signed_root(site.folder))
    site.publish(own=policy())
    key = open_signing_key(site.folder.path / "keys" / "targets-olga.key", WORDS)
    device = Device(world, {}, tree=site.tree)

    def why_not(of: str) -> str:
        assert device.fleet.view is not None
        return read_documents(device.fleet.view, device.site.word()).halted(of)("tool", "1")

    async with running(device):
        await device.until_targets(1)
        ordered = halting.order(site.folder, key, reason="it breaks")
        assert ordered.reach.sentence() == "site berlin"
        publish(site.folder, site.tree, OnlineKeys.open(site.folder, WORDS), only=(HALT,))
        await device.until(lambda: why_not(SITE))
        assert (why_not(SITE).startswith("Halted by olga"), why_not("paris")) == (True, "")
        assert [one.state for one in halting.standings(site.folder)] == ["in force"]
        halting.lift(site.folder, [ordered.halt.id])
        site.publish()
        await device.until(lambda: not why_not(SITE))


async def test_a_peer_that_lies_about_the_sites_versions_costs_one_bounded_attempt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("PENALTY_MS_MIN", "PENALTY_MS_MAX"):  # however long the rest takes here
        monkeypatch.setattr(spread, bound, 3_600_000)
    site = world.found()
    world.lists(signed_root(site.folder))
    site.publish(own=policy())
    office: dict[DeviceId, Device] = {}
    device, liar = Device(world, office, tree=site.tree), Device(world, office)
    async with running(device):
        await device.until_targets(1)
        assert device.handler is not None
        for _ in range(50):
            await device.handler(liar.device, SiteDigest(SITE, 1, 2**31, 2**31, 2**31, bytes(32)))
        await device.until(lambda: device.asked)
        site.publish(own=policy(2))
        await device.until_targets(2)
        asked = list(device.asked)
        assert len(asked) <= 3, asked
        for version in range(2**31, 2**31 + 50):
            await device.handler(liar.device, SiteDigest(SITE, 1, version, 1, 1, bytes(32)))
        site.publish(own=policy(3))
        await device.until_targets(3)
        assert device.asked == asked, "it is left alone for a while, and stops nobody"


async def test_digests_of_another_site_are_not_heeded(world: World) -> None:
    site = world.found()
    world.lists(signed_root(site.folder))
    site.publish(own=policy())
    office: dict[DeviceId, Device] = {}
    device, other = Device(world, office, tree=site.tree), Device(world, office)
    async with running(device):
        await device.until_targets(1)
        assert device.handler is not None
        await device.handler(other.device, SiteDigest("paris", 1, 99, 99, 99, bytes(32)))
        site.publish(own=policy(2))
        await device.until_targets(2)
        assert not device.asked


@pytest.mark.parametrize(
    "path",
    [
        "sites/paris/metadata/timestamp.json",
        "sites/berlin/../../identity/device.key",
        "sites/berlin//etc/passwd",
        "sites/berlin/state.json",
        "sites/berlin/metadata/9.targets.json",
    ],
)
async def test_only_trusted_files_of_the_own_sites_tree_are_served(world: World, path: str) -> None:
    site = world.found()
    world.lists(signed_root(site.folder))
    site.publish(own=policy())
    device = Device(world, {}, tree=site.tree)
    async with running(device):
        await device.until_targets(1)
        assert device.site.serve("sites/berlin/metadata/timestamp.json") is not None
        assert device.site.serve(path) is None


async def test_the_fleet_refuses_to_list_a_root_of_another_site(world: World) -> None:
    with pytest.raises(Exception, match="root of site berlin"):
        list_site_root(world.fleet.folder, SITE, signed_root(world.found(site="paris").folder))


async def test_a_release_of_the_fleet_that_only_the_site_assigns_is_seen_to_be_lacking_until_its_manifest_is_here(
    world: World,
) -> None:
    source = world.path / "app.bin"
    source.write_bytes(b"app")
    folder = world.fleet.folder
    made = ingest([source], release="app", version="1", counter=1, work=folder.path, level=0, processes=1)
    folder.stage_release(made.manifest, made.segments_folder)
    site = world.found()
    world.lists(signed_root(site.folder))
    device = Device(world, {}, tree=site.tree)
    async with running(device):
        site.publish(own=policy())
        await device.until_targets(1)
        assert not device.site.lacks_of_the_fleets()
        site.publish(own=policy(2) + b'[[assign]]\nrelease = "app"\nversion = "1"\n')
        await device.until_targets(2)
        assert device.site.lacks_of_the_fleets()
        await device.follow_fleet()
        assert not device.site.lacks_of_the_fleets()
        assert device.fleet.view is not None
        assert "releases/main/app@1.manifest" in device.fleet.view.kept
