"""What is read of trusted views: who speaks for whom, and that one signer takes nothing from another."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.daemon.documents import Documents, manifests_to_keep, read_documents
from pcm_p2p.daemon.site.repository import FolderSource
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.document import Policy, decode_policy
from pcm_p2p.policy.selector import DeviceFacts
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.delegation import every_role
from pcm_p2p.trust.index import Index

WORDS = "words"
BERLIN = DeviceFacts(DeviceId(bytes(16)), "berlin")
PARIS = DeviceFacts(DeviceId(bytes(16)), "paris")
ALLOWANCES = b"""
schema = "pcm.allowances/1"
[default]
modes = ["observe", "enforce"]
releases = ["*"]
"""
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def text(name: str, version: int = 1, *assigned: str, mode: str = "enforce") -> bytes:
    said = f'schema = "pcm.policy/1"\nid = "{name}"\nversion = {version}\nmode = "{mode}"\n'
    for one in assigned:
        release, _, of = one.partition("@")
        said += f'[[assign]]\nrelease = "{release}"\nversion = "{of}"\n'
    return said.encode()


class World:
    """A fleet with two delegated sites, and a relay that keeps what all of them say."""

    def __init__(self, path: Path) -> None:
        self.now = NOW
        self.path = path
        self.folder = FleetFolder.init(
            path / "fleet", name="acme", passphrase=WORDS, preset="lab", wall_clock=lambda: self.now
        )
        for site in ("berlin", "paris"):
            key = keyfile.create(path / f"{site}.key", WORDS, f"site-{site}", site, preset="lab")
            self.folder.delegate(f"site-{site}", [key.key], 1)
        self.client = TrustClient(
            path / "trust",
            self.folder.root_bytes(1),
            self.folder.fleet_id,
            wall_clock=lambda: self.now,
            roles=every_role,
        )

    async def publish(self, allowances: bytes = ALLOWANCES, **policies: bytes) -> None:
        """Policies by name; those that begin with a site's name are that site's."""
        self.folder.stage_file("fleet/allowances.toml", allowances)
        for name, data in policies.items():
            site = name.partition("_")[0]
            self.folder.stage_policy(name, data, f"site-{site}" if site in ("berlin", "paris") else "targets")
        # As if their tools had let everything pass: the devices judge for themselves.
        for role in self.folder.roles():
            document = self.folder.proposed(role)
            if document is not None and role != "root":
                key = self.folder.path / "keys" / "targets-admin.key"
                key = key if role in ("targets", "halt") else self.path / f"{role.removeprefix('site-')}.key"
                document.sign(keyfile.load(key, WORDS).signer(), append=True)
                (self.folder.path / "proposal" / f"{role}.json").write_bytes(document.to_bytes())
        publish(self.folder, self.path / "tree", OnlineKeys.open(self.folder, WORDS))
        attempt = await self.client.attempt(FolderSource(self.path / "tree"))
        assert attempt.kind == "good", attempt

    def documents(self) -> Documents:
        assert self.client.view is not None
        return read_documents(self.client.view, None, self.now)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_disk: None) -> Iterator[World]:
    monkeypatch.setattr("pcm_p2p.authority.publish.policy_complaints", lambda *_: ())  # as an older tool would publish
    world = World(tmp_path)
    with world.client:
        yield world


def counting(documents: Documents, facts: DeviceFacts) -> list[str]:
    return [policy.id for policy in documents.weighed(facts, "fresh").policies]


async def test_a_delegated_site_speaks_for_its_own_devices_only(world: World) -> None:
    await world.publish(base=text("base"), berlin_a=text("berlin_a"), paris_a=text("paris_a"))
    documents = world.documents()
    assert counting(documents, BERLIN) == ["base", "berlin_a"]
    assert counting(documents, PARIS) == ["base", "paris_a"]
    assert [policy.id for policy in documents.policies] == ["base"]


async def test_a_delegated_policy_that_loosens_is_set_aside_by_the_device_and_said(world: World) -> None:
    await world.publish(base=text("base", 1, "app@2"), berlin_a=text("berlin_a", 9, "app@1"), berlin_b=text("berlin_b"))
    weighed = world.documents().weighed(BERLIN, "fresh")
    assert [policy.id for policy in weighed.policies] == ["base", "berlin_b"]
    assert weighed.problems == (
        "policy berlin_a of site berlin is set aside: it assigns app 1, and policy base assigns 2",
    )


async def test_without_usable_allowances_no_site_sets_anything(world: World) -> None:
    await world.publish(b'schema = "pcm.allowances/1"\nwaive = true\n', base=text("base"), berlin_a=text("berlin_a"))
    documents = world.documents()
    assert any("allowances of sites not usable" in problem for problem in documents.problems)
    assert counting(documents, BERLIN) == ["base"]


async def test_what_a_site_signed_stays_in_force_when_it_expires_and_does_nothing_new_after_the_grace(
    world: World,
) -> None:
    await world.publish(base=text("base"), berlin_a=text("berlin_a", 1, "tool@1"))

    def why_not() -> str:
        return world.documents().weighed(BERLIN, "fresh").standing["berlin_a"].why_not

    assert why_not() == ""
    world.now += timedelta(days=90 + 20)
    assert why_not() == ""
    world.now += timedelta(days=2)
    assert "frozen" in why_not()
    assert counting(world.documents(), BERLIN) == ["base", "berlin_a"]


# Which manifests a device asks for


def kept(documents: dict[str, bytes], *others: Policy, releases: tuple[str, ...]) -> list[str]:
    paths = tuple(f"releases/main/{release}.manifest" for release in releases)
    index = Index("pcm.index/1", "0" * 32, policies=tuple(documents), releases=paths)
    wanted = manifests_to_keep(BERLIN, lambda: NOW, lambda: others)
    return sorted(path.removeprefix("releases/main/").removesuffix(".manifest") for path in wanted(index, documents))


@pytest.mark.parametrize("where", ["delegated", "own repository"])
def test_a_sites_policy_takes_no_manifest_from_the_fleets(where: str) -> None:
    loosening = text("mine", 99, "app@1", "tool@1")
    documents = {"policies/base.toml": text("base", 1, "app@2")}
    others = []
    if where == "delegated":
        documents["policies/berlin/mine.toml"] = loosening
    else:
        others.append(decode_policy(loosening, "mine"))
    assert kept(documents, *others, releases=("app@1", "app@2", "tool@1")) == ["app@1", "app@2", "tool@1"]


def test_policies_of_other_sites_and_those_that_do_not_read_ask_for_nothing() -> None:
    documents = {
        "policies/base.toml": textwrap.dedent("not a policy").encode(),
        "policies/paris/a.toml": text("a", 1, "app@1"),
        "policies/berlin/a.toml": text("a", 1, "tool@1"),
    }
    assert kept(documents, releases=("app@1", "tool@1")) == ["tool@1"]
