"""Delegated roles on a device: what a site or team signs reaches who it concerns, and its faults reach nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import trio
from repository_simulator import (
    RepositorySimulator,
    Tree,
    TreeSource,
    attempt,
    killed_before,
    put_segment,
    site_policy,
    small_manifest,
    with_target,
)
from tuf.api.metadata import DelegatedRole, Metadata, TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.errors import TrustError
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.delegation import roles_of_device
from pcm_p2p.trust.index import Index
from pcm_p2p.trust.updater import SourceFailed
from pcm_p2p.trust.view import Listed, TrustedView

BERLIN, PARIS, WEB = "site-berlin", "site-paris", "team-web"
FIRST = "policies/berlin/first.toml"
OF_FIRST = site_policy("berlin", "first")


@pytest.fixture(scope="module")
def offices_once(tmp_path_factory: pytest.TempPathFactory) -> RepositorySimulator:
    """Two sites that each published a policy: berlin by bob, paris by two of three."""
    fleet = RepositorySimulator(tmp_path_factory.mktemp("offices"))
    fleet.delegate(BERLIN, "bob")
    fleet.delegate(PARIS, "pia", "paul", "pam", threshold=2)
    fleet.publish_site_policy("berlin", "first", "bob")
    fleet.publish_site_policy("paris", "first", "pia", "pam")
    return fleet


@pytest.fixture
def offices(offices_once: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    return offices_once.copied_to(tmp_path)


def device_of(fleet: RepositorySimulator, site: str = "berlin") -> TrustClient:
    return fleet.client(roles=roles_of_device(site))


def seen(device: TrustClient) -> TrustedView:
    assert device.view is not None
    return device.view


def add(path: str, data: bytes = b"version = 9\n") -> Callable[[Targets], None]:
    def edit(targets: Targets) -> None:
        targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])

    return edit


def index_of_berlin(fleet: RepositorySimulator, *policies: str) -> bytes:
    return Index("pcm.index/1", fleet.fleet.fleet_id, tuple(sorted(policies))).encoded()


# What reaches whom


def test_a_site_signs_for_its_devices_without_the_centre(offices: RepositorySimulator) -> None:
    targets = offices.newest_targets().signed.version
    with device_of(offices) as device:
        assert attempt(device, offices.source()).kind == "good"
        view = seen(device)
        assert view.listing().policies == (Listed("policies/first.toml", "targets"), Listed(FIRST, BERLIN))
        assert view.read(FIRST) == OF_FIRST
        assert view.problems(offices.clock.now) == ()
        offices.publish_site_policy("berlin", "second", "bob", version=2)
        assert offices.newest_targets().signed.version == targets, "nobody at the centre signed"
        assert attempt(device, offices.source()).kind == "good"
        assert seen(device).read("policies/berlin/second.toml") == site_policy("berlin", "second", 2)
        source = offices.source()
        assert attempt(device, source).kind == "unchanged"
        assert source.requests == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_a_device_keeps_its_own_site_and_who_serves_others_keeps_all(offices: RepositorySimulator) -> None:
    with device_of(offices, "paris") as device:
        attempt(device, offices.source())
        assert seen(device).roles() == ("targets", PARIS)
        assert FIRST not in seen(device).kept
    shutil.rmtree(offices.folder / "device")
    with offices.client() as collector:
        attempt(collector, offices.source())
        assert seen(collector).roles() == ("targets", BERLIN, PARIS)
    shutil.rmtree(offices.folder / "device")
    with device_of(offices, "rome") as device:
        assert attempt(device, offices.source()).kind == "good"
        assert seen(device).roles() == ("targets",)


def test_a_device_that_moved_to_another_site_takes_its_documents(offices: RepositorySimulator) -> None:
    with device_of(offices, "paris") as device:
        attempt(device, offices.source())
    with device_of(offices, "berlin") as device:
        assert attempt(device, offices.source()).kind == "good"
        assert seen(device).roles() == ("targets", BERLIN)
        assert "policies/paris/first.toml" not in seen(device).kept


def test_peers_of_a_site_serve_each_other_what_the_site_signed(offices: RepositorySimulator, tmp_path: Path) -> None:
    with device_of(offices) as device:
        attempt(device, offices.source())
        assert device.serve("metadata/1.site-berlin.json") == offices.tree()["metadata/1.site-berlin.json"]
        for path in ("metadata/2.site-berlin.json", "metadata/1.site-paris.json", "metadata/site-berlin.json"):
            assert device.serve(path) is None
        tree = {path: data for path in offices.tree() if (data := device.serve(path)) is not None}
        root, fleet_id = offices.fleet.root_bytes(1), offices.fleet.fleet_id
        with TrustClient(
            tmp_path / "other", root, fleet_id, wall_clock=offices.clock, roles=roles_of_device("berlin")
        ) as other:
            assert attempt(other, TreeSource(tree)).kind == "good"
            assert other.digest() == device.digest()
            assert seen(other).problems(offices.clock.now) == ()


def test_a_team_releases_by_its_own_keys(offices: RepositorySimulator, tmp_path: Path) -> None:
    offices.delegate(WEB, "wanda")
    manifest, blob = small_manifest("shop", "2.0")
    path = offices.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob), WEB)
    assert path == "releases/web/shop@2.0.manifest"
    offices.sign("wanda", role=WEB)
    assert offices.publish().segments_added == 1
    with device_of(offices) as device:
        attempt(device, offices.source())
        assert seen(device).listing().releases == (Listed(path, WEB),)
        assert seen(device).read(path) == manifest.encoded


def test_40_sites_are_40_folders(offices: RepositorySimulator) -> None:
    """python-tuf looks into 32 delegations that match a path; here one matches."""
    for number in range(40):
        offices.fleet.delegate(f"site-s{number}", [offices.delegate_key(BERLIN, "bob").key], 1)
    offices.sign()
    offices.publish()
    offices.fleet.stage_policy("last", site_policy("s39", "last"), "site-s39")
    offices.sign("bob", role=BERLIN)
    offices.publish()
    with device_of(offices, "s39") as device:
        assert attempt(device, offices.source()).kind == "good"
        assert seen(device).read("policies/s39/last.toml") == site_policy("s39", "last")


def overlapping(targets: Targets) -> None:
    """40 roles that may all sign everybody's policies: python-tuf would look into the first 32 and find nothing."""
    assert targets.delegations is not None
    roles = targets.delegations.roles
    assert roles is not None
    for number in range(40):
        name = f"site-s{number}"
        roles[name] = DelegatedRole(name, roles[BERLIN].keyids, 1, terminating=False, paths=["policies/*/*"])


def shadowing(targets: Targets) -> None:
    """A role in front of berlin's that speaks for the same folder."""
    assert targets.delegations is not None
    roles = targets.delegations.roles
    assert roles is not None
    first = DelegatedRole("site-aachen", roles[PARIS].keyids, 1, terminating=True, paths=["policies/berlin/*"])
    targets.delegations.roles = {"site-aachen": first, **roles}


@pytest.mark.parametrize("edit", [overlapping, shadowing])
def test_delegations_that_overlap_are_refused_though_the_centre_signed_them(
    offices: RepositorySimulator, edit: Callable[[Targets], None]
) -> None:
    document = offices.signed_targets(edit)
    with offices.client() as device:
        attempt(device, offices.source())
        before = seen(device)
        result = attempt(device, TreeSource(offices.stolen(targets=document)))
        assert (result.kind, "and nothing else" in result.reason) == ("bad", True)
        assert seen(device) == before
    (offices.fleet.path / "proposal" / "targets.json").write_bytes(document.to_bytes())
    with pytest.raises(TrustError, match="and nothing else"):
        offices.sign()
    with pytest.raises(TrustError, match="and nothing else"):
        offices.publish()


# A site that signs what is not its own


@pytest.mark.parametrize(
    "path",
    [
        "releases/main/tool@1.manifest",
        "releases/web/tool@1.manifest",
        "policies/paris/first.toml",
        "policies/paris/new.toml",
        "policies/first.toml",
        "policies/new.toml",
        "fleet/activation.toml",
        "identity/deny.json",
        "fleet/lifted.toml",
        "halts/x.toml",
        "index.json",
    ],
)
def test_what_a_site_signs_outside_its_folder_is_never_used(offices: RepositorySimulator, path: str) -> None:
    forged = offices.signed_delegated(BERLIN, add(path), "bob")
    tree = with_target(offices.stolen(delegated={BERLIN: forged}), forged, path, b"version = 9\n")
    with offices.client() as device:
        attempt(device, offices.source())
        before = {one: seen(device).read(one) for one in seen(device).paths()}
        assert attempt(device, TreeSource(tree)).kind == "good"
        assert {one: seen(device).read(one) for one in seen(device).paths()} == before
        assert seen(device).version_of(BERLIN) == 2, "the document counts; the entry is not looked at"


@pytest.mark.parametrize(
    ("policies", "problem"),
    [
        (("policies/paris/first.toml",), "for which site-paris speaks"),
        (("policies/first.toml",), "for which targets speaks"),
        (("policies/berlin/absent.toml",), "is listed and not signed"),
    ],
)
def test_an_index_of_a_site_that_lists_what_is_not_its_own(
    offices: RepositorySimulator, policies: tuple[str, ...], problem: str
) -> None:
    data = index_of_berlin(offices, *policies)
    forged = offices.signed_delegated(BERLIN, add("policies/berlin/index.json", data), "bob")
    tree = with_target(offices.stolen(delegated={BERLIN: forged}), forged, "policies/berlin/index.json", data)
    keeps_last_good(offices, TreeSource(tree), problem)


def test_a_path_that_climbs_within_the_pattern_of_a_site(offices: RepositorySimulator) -> None:
    """``policies/berlin/..`` matches ``policies/berlin/*``, which python-tuf accepts."""
    forged = offices.signed_delegated(BERLIN, add("policies/berlin/.."), "bob")
    keeps_last_good(offices, TreeSource(offices.stolen(delegated={BERLIN: forged})), "is not a target path")


def test_a_site_that_delegates_further(offices: RepositorySimulator) -> None:
    def edit(targets: Targets) -> None:
        targets.delegations = offices.newest_targets().signed.delegations

    forged = offices.signed_delegated(BERLIN, edit, "bob")
    keeps_last_good(offices, TreeSource(offices.stolen(delegated={BERLIN: forged})), "only targets may")


# Isolation: what is wrong with one site


def keeps_last_good(offices: RepositorySimulator, source: TreeSource, problem: str) -> None:
    """The fleet's news is taken, berlin stays at what it was, and the view says why."""
    with offices.client() as device:
        attempt(device, offices.source())
        before = seen(device).versions.timestamp
        result = attempt(device, source)
        assert (result.kind, problem in result.reason) == ("good", True), result
        view = seen(device)
        assert view.versions.timestamp > before
        assert (view.version_of(BERLIN), view.read(FIRST)) == (1, OF_FIRST)
        assert view.read("policies/paris/first.toml") == site_policy("paris", "first")
        (found,) = view.problems(offices.clock.now)
        assert found.startswith("site berlin: ")
        assert problem in found
        assert not view.settled
    with offices.client() as device:
        assert (seen(device).version_of(BERLIN), seen(device).read(FIRST)) == (1, OF_FIRST)
        assert device.serve("metadata/1.site-berlin.json") is not None


FAULTS: dict[str, tuple[Callable[[RepositorySimulator], Metadata[Targets]], str]] = {
    "signed by nobody": (lambda fleet: fleet.signed_delegated(BERLIN, add(FIRST)), "0/1 keys"),
    "signed by another site": (
        lambda fleet: fleet.signed_delegated(BERLIN, add(FIRST), "pia", "paul", keys_of=PARIS),
        "0/1 keys",
    ),
    "signed by targets": (
        lambda fleet: fleet.signed_delegated(BERLIN, add(FIRST), "alice", keys_of="targets"),
        "0/1 keys",
    ),
    "of another type": (
        lambda fleet: fleet.fleet.snapshot(),  # type: ignore[return-value]
        "targets",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_document_of_a_site(offices: RepositorySimulator, name: str) -> None:
    make, problem = FAULTS[name]
    keeps_last_good(offices, TreeSource(offices.stolen(delegated={BERLIN: make(offices)})), problem)


def test_a_document_with_one_signature_of_two(offices: RepositorySimulator) -> None:
    forged = offices.signed_delegated(PARIS, add("policies/paris/first.toml"), "pia")
    with offices.client() as device:
        attempt(device, offices.source())
        assert "1/2 keys" in attempt(device, TreeSource(offices.stolen(delegated={PARIS: forged}))).reason
        assert seen(device).read("policies/paris/first.toml") == site_policy("paris", "first")


@pytest.mark.parametrize("what", ["metadata/2.site-berlin.json", "second.toml", "policies/berlin/"])
def test_what_a_carrier_withholds_of_a_site_the_next_one_brings(offices: RepositorySimulator, what: str) -> None:
    offices.publish_site_policy("berlin", "second", "bob")
    offices.publish_policy("news")
    tree = offices.tree()
    missing = {path for path in tree if what in path}
    assert missing
    with offices.client() as device:
        attempt(device, TreeSource({path: data for path, data in tree.items() if path not in missing}))
        assert seen(device).read("policies/news.toml") == b"version = 1\n"
        assert BERLIN not in seen(device).roles(), "there was nothing good before"
        assert attempt(device, TreeSource(tree, missing=missing)).kind == "unchanged", "asked again, and to no avail"
        assert attempt(device, TreeSource(tree)).kind == "good"
        assert seen(device).read("policies/berlin/second.toml") == site_policy("berlin", "second")
        assert (seen(device).settled, seen(device).problems(offices.clock.now)) == (True, ())


def test_a_carrier_that_swaps_a_document_of_a_site(offices: RepositorySimulator) -> None:
    first = offices.tree()["metadata/1.site-berlin.json"]
    offices.publish_site_policy("berlin", "second", "bob")
    offices.refresh()
    for lie in (first, b"", b"[" * 10_000, b"x" * 2_000_000):
        shutil.rmtree(offices.folder / "device", ignore_errors=True)
        with offices.client() as device:
            source = offices.source(replaced={"metadata/2.site-berlin.json": lie})
            assert attempt(device, source).kind == "good"
            assert BERLIN not in seen(device).roles()
            assert seen(device).problems(offices.clock.now)[0].startswith("site berlin: ")
            assert attempt(device, offices.source()).kind == "good"
            assert seen(device).version_of(BERLIN) == 2


def test_a_carrier_that_is_slow_with_one_site_costs_one_deadline(offices: RepositorySimulator) -> None:
    offices.publish_site_policy("berlin", "second", "bob")
    offices.publish_site_policy("paris", "second", "pia", "pam")
    asked: list[str] = []

    async def silence(path: str) -> None:
        if "site-" in path:
            asked.append(path)
            raise SourceFailed("no answer")

    with offices.client() as device:
        attempt(device, offices.source(before=silence))
        assert len(asked) == 1, "who does not deliver one is not asked for the next"
        assert [one.partition(":")[0] for one in seen(device).problems(offices.clock.now)] == [
            "site berlin",
            "site paris",
        ]


def test_a_site_that_lets_its_document_expire(offices: RepositorySimulator) -> None:
    with device_of(offices) as device:
        attempt(device, offices.source())
        for _ in range(14):
            offices.clock.advance(days=7)
            offices.refresh()
            assert attempt(device, offices.source()).kind == "good"
        view = seen(device)
        assert view.freshness(offices.clock.now) == "fresh"
        assert view.read(FIRST) == OF_FIRST
        (problem,) = view.problems(offices.clock.now)
        assert "site berlin: what it signed expired on 2026-05-30" in problem
        source = offices.source()
        assert attempt(device, source).kind == "unchanged"
        assert len(source.requests) == 2, "asking again would bring the same"
        offices.publish_site_policy("berlin", "second", "bob")
        assert attempt(device, offices.source()).kind == "good"
        assert seen(device).problems(offices.clock.now) == ()


def test_an_expired_document_is_not_taken_for_new(offices: RepositorySimulator) -> None:
    def edit(targets: Targets) -> None:
        targets.expires = offices.clock.now - timedelta(seconds=1)

    forged = offices.signed_delegated(BERLIN, edit, "bob")
    keeps_last_good(offices, TreeSource(offices.stolen(delegated={BERLIN: forged})), "expired")


# Thieves of the online keys, and forks


def rolled_back(offices: RepositorySimulator) -> Tree:
    """An old document of berlin under a new snapshot and timestamp."""
    old = offices.delegated(BERLIN)
    offices.publish_site_policy("berlin", "second", "bob")
    return offices.stolen(delegated={BERLIN: old})


def dropped_role(offices: RepositorySimulator) -> Tree:
    def edit(snapshot: object) -> None:
        del snapshot.meta["site-berlin.json"]  # type: ignore[attr-defined]

    offices.publish_site_policy("berlin", "second", "bob")
    return offices.stolen(snapshot_edit=edit)


@pytest.mark.parametrize("lie", [rolled_back, dropped_role])
@pytest.mark.parametrize("wiped", [False, True])
def test_who_stole_the_online_keys_takes_no_site_back(
    offices: RepositorySimulator, lie: Callable[[RepositorySimulator], Tree], wiped: bool
) -> None:
    tree = lie(offices)
    with device_of(offices) as device:
        attempt(device, offices.source())
        assert seen(device).version_of(BERLIN) == 2
    if wiped:
        # What python-tuf compares with is gone; the floor is ours.
        for name in ("timestamp", "snapshot", "site-berlin"):
            for file in (offices.folder / "device" / "generations").glob(f"*/metadata/{name}.json"):
                file.write_bytes(b"")
    with device_of(offices) as device:
        result = attempt(device, TreeSource(tree))
        if wiped:
            assert BERLIN not in seen(device).roles()
            (problem,) = seen(device).problems(offices.clock.now)
            assert "below 2" in problem or "names it no longer" in problem
        else:
            assert result.kind == "bad"
            assert seen(device).read("policies/berlin/second.toml") == site_policy("berlin", "second")
        for news in ("one", "two"):
            offices.publish_policy(news)
        assert attempt(device, offices.source()).kind == "good"
        assert seen(device).version_of(BERLIN) == 2


def test_two_documents_of_a_site_with_one_version_are_evidence(offices: RepositorySimulator) -> None:
    forged = offices.signed_delegated(BERLIN, add("policies/berlin/second.toml"), "bob", version_step=0)
    keeps_last_good(offices, TreeSource(offices.stolen(delegated={BERLIN: forged})), "kept as evidence")
    kept = sorted(file.name for file in (offices.folder / "device" / "evidence").iterdir())
    assert len(kept) == 2
    assert all(name.startswith("site-berlin-1-") for name in kept)


# Keys that come and go


def test_a_site_whose_delegation_is_revoked_is_heard_no_longer(offices: RepositorySimulator) -> None:
    with device_of(offices) as device:
        attempt(device, offices.source())
        offices.fleet.revoke(BERLIN)
        offices.sign()
        offices.publish()
        assert attempt(device, offices.source()).kind == "good"
        assert seen(device).roles() == ("targets",)
        assert FIRST not in seen(device).kept
        assert seen(device).problems(offices.clock.now) == ()
        # With another key, later: versions go on where they ended, and nothing else does.
        offices.delegate(BERLIN, "bea")
        offices.publish_site_policy("berlin", "third", "bea")
        assert attempt(device, offices.source()).kind == "good"
        assert (seen(device).version_of(BERLIN), seen(device).read("policies/berlin/third.toml")) == (
            3,
            site_policy("berlin", "third"),
        )


def test_a_stolen_site_key_is_worthless_once_the_centre_took_it_away(offices: RepositorySimulator) -> None:
    with device_of(offices) as device:
        attempt(device, offices.source())
        offices.fleet.delegate(BERLIN, [offices.delegate_key(BERLIN, "bea").key], 1)
        assert [proposal.role for proposal in offices.fleet.proposals()] == ["targets", BERLIN], "to be signed anew"
        offices.sign()
        offices.sign("bea", role=BERLIN)
        offices.publish()
        assert attempt(device, offices.source()).kind == "good"
        assert (seen(device).version_of(BERLIN), seen(device).read(FIRST)) == (2, OF_FIRST)
        forged = offices.signed_delegated(BERLIN, add(FIRST), "bob")
        assert "0/1 keys" in attempt(device, TreeSource(offices.stolen(delegated={BERLIN: forged}))).reason
        assert seen(device).read(FIRST) == OF_FIRST


def test_what_only_a_revoked_key_signed_stays_in_force_nowhere(offices: RepositorySimulator) -> None:
    """The centre's news arrives, the re-signed document is withheld: the thief's is not believed meanwhile."""
    with device_of(offices) as device:
        attempt(device, offices.source())
        offices.fleet.delegate(BERLIN, [offices.delegate_key(BERLIN, "bea").key], 1)
        offices.sign()
        offices.sign("bea", role=BERLIN)
        offices.publish()
        attempt(device, offices.source(missing={"metadata/2.site-berlin.json"}))
        assert seen(device).roles() == ("targets",)
        assert "does not have it" in seen(device).problems(offices.clock.now)[0]


def test_a_site_key_that_leapt_to_the_last_version_heals_with_other_keys(offices: RepositorySimulator) -> None:
    """Site key and online keys stolen together; new keys for all three."""
    forged = offices.signed_delegated(BERLIN, add(FIRST), "bob", version_step=1_000_000)
    with device_of(offices) as device:
        attempt(
            device, TreeSource(with_target(offices.stolen(delegated={BERLIN: forged}), forged, FIRST, b"version = 9\n"))
        )
        assert seen(device).version_of(BERLIN) == 1_000_001
        offices.fleet.delegate(BERLIN, [offices.delegate_key(BERLIN, "bea").key], 1)
        offices.propose_online_keys()
        offices.sign()
        offices.sign("bea", role=BERLIN)
        offices.publish()
        assert attempt(device, offices.source()).kind == "good"
        assert (seen(device).version_of(BERLIN), seen(device).read(FIRST)) == (2, OF_FIRST)


def test_a_cancelled_attempt_leaves_sites_as_they_were(offices: RepositorySimulator) -> None:
    offices.publish_site_policy("berlin", "second", "bob")

    async def work(device: TrustClient) -> None:
        with trio.CancelScope() as scope:

            async def cancel(path: str) -> None:
                if "2.site-berlin" in path:
                    scope.cancel()
                    await trio.lowlevel.checkpoint()

            await device.attempt(offices.source(before=cancel))

    with offices.client() as device:
        trio.run(work, device)
        assert device.view is None
        assert attempt(device, offices.source()).kind == "good"


def test_killed_at_any_step_a_device_has_the_old_documents_of_its_site_or_the_new(offices: RepositorySimulator) -> None:
    with device_of(offices) as device:
        attempt(device, offices.source())
    folder, saved = offices.folder / "device", offices.folder / "saved"
    folder.rename(saved)
    offices.publish_site_policy("berlin", "second", "bob")

    def learn() -> None:
        with device_of(offices) as device:
            assert attempt(device, offices.source()).kind == "good"

    step, killed, versions = 0, True, set()
    while killed:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        killed = killed_before(step, learn)
        with device_of(offices) as device:
            view = seen(device)
            assert all(view.read(path) for path in view.paths())
            assert ("policies/berlin/second.toml" in view.kept) == (view.version_of(BERLIN) == 2), f"step {step}"
            versions.add(view.version_of(BERLIN))
            assert attempt(device, offices.source()).kind in {"good", "unchanged"}, f"step {step}"
            assert (seen(device).version_of(BERLIN), seen(device).settled) == (2, True)
        step += 4
    assert step > 15
    assert versions == {1, 2}
