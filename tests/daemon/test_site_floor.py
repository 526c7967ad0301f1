"""What the fleet lets a site set, taken over from a tree, an origin or a device: verified as by a device, and never back."""

from __future__ import annotations

import shutil
from pathlib import Path

import floors
import pytest
import trio
from origin_with_faults import OriginWithFaults
from repository_simulator import RepositorySimulator, TreeSource, attempt, site_policy
from tuf.api.metadata import Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.fleet_floor import FleetFloor
from pcm_p2p.authority.site_folder import SiteFacts
from pcm_p2p.daemon.site.floor import StateSource, bring_floor, pinned_by
from pcm_p2p.daemon.workspace import open_tree
from pcm_p2p.errors import InputError, TransferError, TrustError, UntrustedBytes
from pcm_p2p.trust.client import MetadataSource, TrustClient
from pcm_p2p.trust.delegation import roles_of_device
from pcm_p2p.trust.index import ALLOWANCES

ROLE = "site-berlin"
OBSERVE = b'schema = "pcm.allowances/1"\n[default]\n'
ENFORCE = OBSERVE + b'modes = ["observe", "enforce"]\n'
BASE = b'schema = "pcm.policy/1"\nid = "base"\nversion = 1\n'


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    pass


@pytest.fixture
def said(fleet: RepositorySimulator) -> RepositorySimulator:
    """A fleet that has said what sites may set, and has a policy of its own."""
    fleet.fleet.stage_file(ALLOWANCES, OBSERVE)
    fleet.fleet.stage_policy("base", BASE)
    fleet.sign()
    fleet.publish()
    return fleet


def facts(fleet: RepositorySimulator, site: str = "berlin") -> SiteFacts:
    return SiteFacts("pcm.site-folder/1", fleet.fleet.fleet_id, site, 0)


def bring(
    fleet: RepositorySimulator,
    source: MetadataSource | None = None,
    held: FleetFloor | None = None,
    *,
    root: bytes | None = None,
    site: str = "berlin",
) -> FleetFloor:
    given = fleet.fleet.root_bytes(1) if root is None and held is None else root

    async def work() -> FleetFloor:
        return await bring_floor(
            facts(fleet, site), held, source or fleet.source(), given or None, wall_clock=fleet.clock
        )

    return trio.run(work)


def device(fleet: RepositorySimulator, *, root: int = 1) -> Path:
    """The state folder of a device of the office that has read what is published."""
    state = fleet.folder / "state"
    (state / "identity").mkdir(parents=True, exist_ok=True)
    (state / "identity" / "root.json").write_bytes(fleet.fleet.root_bytes(root))
    client = TrustClient(
        state / "trust",
        fleet.fleet.root_bytes(root),
        fleet.fleet.fleet_id,
        wall_clock=fleet.clock,
        wanted=lambda index, documents: (),
        roles=roles_of_device("berlin"),
    )
    with client:
        assert attempt(client, fleet.source()).kind == "good"
    return state


def test_out_of_a_published_tree_comes_what_devices_judge_by(said: RepositorySimulator) -> None:
    found = bring(said)
    assert found.allowance is not None
    assert found.allowance.modes == ("observe",)
    assert [one.id for one in found.fleet_policies] == ["base"], "the other does not read, and devices pass it over"
    assert (found.taken, found.versions.targets) == (said.clock.now, 2)


def test_later_it_follows_from_what_is_held_and_says_since_when_that_is_held(said: RepositorySimulator) -> None:
    first = bring(said)
    said.clock.advance(hours=5)
    said.refresh()
    same = bring(said, held=first)
    assert (same.versions.targets, same.taken) == (2, first.taken)
    assert same.issued == said.clock.now
    said.rotate_online_keys()
    said.fleet.stage_file(ALLOWANCES, ENFORCE)
    said.sign()
    said.publish()
    newer = bring(said, held=same)
    assert [one.signed.version for one in newer.roots] == [1, 2]
    assert (newer.versions.targets, newer.taken) == (3, said.clock.now)


def test_a_device_of_the_office_has_it_too_with_the_wan_down_for_months(said: RepositorySimulator) -> None:
    said.delegate(ROLE, "bob")
    said.publish_site_policy("berlin", "local", "bob")
    state = device(said)
    said.clock.advance(days=800)
    shutil.rmtree(said.origin)
    found = bring(said, StateSource(state), root=pinned_by(state))
    assert [one.id for one in found.stronger] == ["base", "berlin-local"]
    assert "of the fleet expired 793 days ago" in found.overdue(said.clock.now)
    assert bring(said, StateSource(state), held=found).document == found.document


def test_a_device_that_was_enrolled_later_pins_a_later_root_and_the_first_one_may_be_put_before_it(
    said: RepositorySimulator,
) -> None:
    said.rotate_online_keys()
    state = device(said, root=2)
    held = bring(said, StateSource(state), root=pinned_by(state))
    assert [one.signed.version for one in held.roots] == [2]
    whole = bring(said, held=held, root=said.fleet.root_bytes(1))
    assert [one.signed.version for one in whole.roots] == [1, 2]


def test_a_tree_that_was_rolled_back_loosens_nothing(said: RepositorySimulator) -> None:
    said.fleet.stage_file(ALLOWANCES, ENFORCE)
    said.sign()
    said.publish()
    wide = said.tree()
    said.fleet.stage_file(ALLOWANCES, OBSERVE)
    said.sign()
    said.publish()
    held = bring(said)
    with pytest.raises(TrustError, match=r"is older than what is held here: .*accepted before") as caught:
        bring(said, TreeSource(wide), held=held)
    assert "what is held stays" in caught.value.remedy


def test_a_thief_of_the_online_keys_brings_no_older_words_back(said: RepositorySimulator) -> None:
    old = said.newest_targets()
    said.fleet.stage_file(ALLOWANCES, ENFORCE)
    said.sign()
    said.publish()
    held = bring(said)
    with pytest.raises(TrustError, match="targets version 2 is below 3, which was accepted before"):
        bring(said, TreeSource(said.stolen(targets=old)), held=held)


def test_a_fork_by_the_holders_of_targets_is_not_taken(said: RepositorySimulator) -> None:
    held = bring(said)

    def more(targets: Targets) -> None:
        targets.unrecognized_fields["x-other"] = 1

    forked = said.signed_targets(more, version_step=0)
    with pytest.raises(TrustError, match="has another targets 2 than the one that is held"):
        bring(said, TreeSource(said.stolen(targets=forked)), held=held)


def test_another_fleet_is_not_taken_for_this_one(said: RepositorySimulator, tmp_path: Path) -> None:
    other = RepositorySimulator(tmp_path / "other")
    with pytest.raises(InputError, match=r"--root: is no root of fleet .*: root is of"):
        bring(said, root=other.fleet.root_bytes(1))
    with pytest.raises(TrustError, match="cannot be believed"):
        bring(said, other.source())
    with pytest.raises(TrustError, match="cannot be believed"):
        bring(said, other.source(), held=bring(said))
    with pytest.raises(InputError, match="is no root of fleet"):
        bring(said, root=b"{}")


def test_a_fleet_with_the_same_id_and_other_keys_is_not_taken_for_this_one(said: RepositorySimulator) -> None:
    """The id is no secret, and in every root."""
    forged = floors.Fleet(said.fleet.fleet_id, now=said.clock.now)
    tree = TreeSource(floors.tree_of(forged.says(version=9)))
    for held in (None, bring(said)):
        with pytest.raises(TrustError, match="cannot be believed"):
            bring(said, tree, held)
    with pytest.raises(TrustError, match="has another root 1 than the one that is held"):
        bring(said, tree, bring(said), root=forged.roots[0].to_bytes())


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        ("other bytes", "cannot be believed"),
        ("longer bytes", "did not deliver"),
        ("no allowances", "did not deliver"),
        ("no targets", "did not deliver"),
        ("junk", "cannot be believed"),
        ("without end", "did not deliver"),
    ],
)
def test_a_carrier_that_lies_or_lacks_something_brings_nothing(said: RepositorySimulator, lie: str, told: str) -> None:
    (allowances,), targets = (
        (path for path in said.tree() if path.endswith(".allowances.toml")),
        "metadata/2.targets.json",
    )
    source = {
        "other bytes": said.source(replaced={allowances: b"#" + OBSERVE[1:]}),
        "longer bytes": said.source(replaced={allowances: ENFORCE}),
        "no allowances": said.source(missing={allowances}),
        "no targets": said.source(missing={targets}),
        "junk": said.source(replaced={targets: b"{}"}),
        "without end": said.source(unbounded=True),
    }[lie]
    with pytest.raises((TrustError, TransferError), match=told):
        bring(said, source)


def test_the_role_of_the_site_is_brought_whole_or_nothing_is(said: RepositorySimulator) -> None:
    said.delegate(ROLE, "bob")
    said.publish_site_policy("berlin", "local", "bob")
    held = bring(said)
    assert held.role is not None
    assert [one.id for one in held.role_policies] == ["berlin-local"]
    with pytest.raises(TrustError, match="cannot be believed about site-berlin"):
        bring(said, said.source(missing={"metadata/1.site-berlin.json"}), held=held)
    assert bring(said, site="paris").role is None, "another site is none of its business"
    assert site_policy("berlin", "local") in held.contents.values()


def test_a_device_that_lags_behind_the_newest_of_its_role_is_no_source(said: RepositorySimulator) -> None:
    said.delegate(ROLE, "bob")
    said.publish_site_policy("berlin", "local", "bob")
    state = device(said)
    said.publish_site_policy("berlin", "more", "bob")
    client = TrustClient(
        state / "trust",
        said.fleet.root_bytes(1),
        said.fleet.fleet_id,
        wall_clock=said.clock,
        roles=roles_of_device("berlin"),
    )
    with client:
        attempt(client, said.source(missing={"metadata/2.site-berlin.json"}))
    with pytest.raises(TrustError, match="cannot be believed about site-berlin"):
        bring(said, StateSource(state), root=pinned_by(state))


def test_what_is_asked_for_first_is_said(said: RepositorySimulator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trusts nothing yet"):
        StateSource(tmp_path)
    (tmp_path / "trust" / "current").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        StateSource(tmp_path)
    with pytest.raises(InputError, match=r"identity/root\.json: cannot be read"):
        pinned_by(tmp_path)

    async def without_root() -> None:
        await bring_floor(facts(said), None, said.source(), None, wall_clock=said.clock)

    with pytest.raises(InputError, match="--root is missing"):
        trio.run(without_root)


async def test_over_http_from_the_origin(said: RepositorySimulator) -> None:
    server = OriginWithFaults(said.origin)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        async with open_tree(f"{server.url}/") as tree:
            found = await bring_floor(facts(said), None, tree, said.fleet.root_bytes(1), wall_clock=said.clock)
        assert found.versions.targets == 2
        nursery.cancel_scope.cancel()


def test_the_source_of_a_device_answers_for_its_own_files_only(said: RepositorySimulator) -> None:
    source = StateSource(device(said))

    async def ask(path: str) -> bytes:
        return await source.fetch(path, 1_000_000)

    assert trio.run(ask, "metadata/1.root.json") == said.fleet.root_bytes(1)
    for path in ("metadata/2.root.json", "metadata/1.targets.json", "metadata/3.targets.json"):
        with pytest.raises(TransferError, match="has no"):
            trio.run(ask, path)
    with pytest.raises(UntrustedBytes, match="is not a file of the tree"):
        trio.run(ask, "../identity/device.key")
