"""Sites and teams in the fleet folder: what each stages, who signs it, and what the publisher takes in and refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from repository_simulator import (
    PASSPHRASE,
    RepositorySimulator,
    attempt,
    killed_before,
    put_segment,
    site_policy,
    small_manifest,
)
from tuf.api.metadata import Key, Metadata, Root, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority import delegating, halting
from pcm_p2p.authority.audit.verification import verify_folder
from pcm_p2p.authority.keys.keyfile import read_public
from pcm_p2p.authority.keys.signing_key import open_signing_key
from pcm_p2p.authority.people.founding import DELEGATED_LIFETIME, HALT_LIFETIME
from pcm_p2p.authority.publish import publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.errors import InputError, TrustError
from pcm_p2p.trust.delegation import HALT
from pcm_p2p.trust.index import Index
from pcm_p2p.trust.lint import lint_targets, owner_of

BERLIN, PARIS, WEB = "site-berlin", "site-paris", "team-web"


@pytest.fixture(scope="module")
def offices_once(tmp_path_factory: pytest.TempPathFactory) -> RepositorySimulator:
    fleet = RepositorySimulator(tmp_path_factory.mktemp("offices"), owners=("alice", "adam"), targets_threshold=2)
    fleet.delegate(BERLIN, "bob")
    fleet.delegate(PARIS, "pia", "paul", threshold=2)
    fleet.delegate(WEB, "wanda")
    fleet.publish_site_policy("berlin", "first", "bob")
    return fleet


@pytest.fixture
def offices(offices_once: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    return offices_once.copied_to(tmp_path)


def only(fleet: RepositorySimulator, *roles: str) -> None:
    publish(fleet.fleet, fleet.origin, fleet.keys, only=roles)


def names_of(keys: tuple[Key, ...]) -> set[str]:
    return {owner_of(key) for key in keys}


# Staging


def test_what_a_site_stages_is_its_own_document(offices: RepositorySimulator) -> None:
    assert offices.fleet.roles() == ("root", "targets", HALT, BERLIN, PARIS, WEB)
    path = offices.fleet.stage_policy("base", site_policy("paris", "base"), PARIS)
    assert path == "policies/paris/base.toml"
    (proposal,) = offices.fleet.proposals()
    assert (proposal.role, proposal.version_before, proposal.version_after) == (PARIS, 0, 1)
    assert proposal.expires_after == offices.clock.now + DELEGATED_LIFETIME
    assert proposal.signatures[0].line() == f"{PARIS}: 2 more of paul, pia must sign; signed by nobody yet"
    assert offices.fleet.proposed_targets() is None, "the centre has nothing to sign"
    assert offices.fleet.read_target(path) == site_policy("paris", "base")
    offices.fleet.unstage(path)
    assert offices.fleet.proposals()[0].role == PARIS, "an empty first document"
    offices.fleet.discard(PARIS)
    assert offices.fleet.proposals() == ()


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("policies/paris/x.toml", BERLIN),
        ("policies/x.toml", BERLIN),
        ("policies/berlin/x.toml", "targets"),
        ("fleet/activation.toml", BERLIN),
        ("policies/berlin/index.json", BERLIN),
        ("halts/x.toml", "targets"),
    ],
)
def test_nobody_stages_for_another(offices: RepositorySimulator, path: str, role: str) -> None:
    with pytest.raises(InputError):
        offices.fleet.stage_file(path, b"x", role)
    assert offices.fleet.proposals() == ()


def test_who_is_not_delegated_stages_nothing(offices: RepositorySimulator) -> None:
    with pytest.raises(InputError, match="site rome has no delegation"):
        offices.fleet.stage_policy("x", b"", "site-rome")
    offices.fleet.revoke(BERLIN)
    with pytest.raises(InputError, match="site berlin has no delegation"):
        offices.fleet.stage_policy("x", b"", BERLIN)
    with pytest.raises(InputError, match="site rome has no delegation"):
        offices.fleet.revoke("site-rome")


def test_a_release_has_one_name_in_the_whole_fleet(offices: RepositorySimulator, tmp_path: Path) -> None:
    manifest, blob = small_manifest("shop")
    segments = put_segment(tmp_path / "segments", manifest, blob)
    path = offices.fleet.stage_release(manifest, segments, WEB)
    with pytest.raises(InputError, match="shop is released by team web"):
        offices.fleet.stage_release(small_manifest("shop", "2.0", 2)[0], segments)
    assert offices.fleet.next_counter("shop") == 2
    assert [one.path for one in offices.fleet.releases()] == [path]
    offices.sign("wanda", role=WEB)
    offices.publish()
    offices.fleet.unstage(path)
    offices.sign("wanda", role=WEB)
    offices.publish()
    assert FleetFolder.open(offices.fleet.path).next_counter("shop") == 2, "remembered by the team's own index"


def test_a_key_signs_what_it_has_a_part_in_and_is_not_stopped_by_the_rest(offices: RepositorySimulator) -> None:
    offices.fleet.stage_policy("base", site_policy("paris", "base"), PARIS)
    offices.fleet.stage_policy("beyond", b'schema = "pcm.policy/1"\nid = "x"\nversion = 1\nmode = "enforce"\n', BERLIN)
    offices.fleet.stage_policy("second", b"version = 1\n")
    (result,) = offices.fleet.sign(offices.key_path("targets", "alice"), PASSPHRASE)
    assert (result.role, result.complete) == ("targets", False)
    (result,) = offices.fleet.sign(offices.key_path(PARIS, "pia"), PASSPHRASE)
    assert (result.role, result.signatures[0].line()) == (PARIS, f"{PARIS}: 1 more of paul must sign; signed by pia")
    with pytest.raises(TrustError, match="its mode is enforce"):
        offices.fleet.sign(offices.key_path(BERLIN, "bob"), PASSPHRASE)


# Who may halt follows


def test_who_may_halt_is_everybody_who_signs_for_people(offices: RepositorySimulator) -> None:
    assert names_of(offices.fleet.halt_keys()) == {"alice", "adam", "bob", "pia", "paul", "wanda"}
    offices.fleet.revoke(PARIS)
    assert names_of(offices.fleet.halt_keys()) == {"alice", "adam", "bob", "wanda"}
    eve = offices.delegate_key("root", "eve").key
    alice = {read_public(offices.key_path(role, "alice")).keyid: role for role in ("root", "targets")}

    def edit(root: Root) -> None:
        root.add_key(eve, "root")
        root.add_key(eve, "targets")
        for keyid, role in alice.items():
            root.revoke_key(keyid, role)

    offices.fleet.propose_root(edit)
    assert names_of(offices.fleet.halt_keys()) == {"adam", "eve", "bob", "wanda"}
    proposed = offices.fleet.proposed_targets()
    assert proposed is not None
    assert delegating.holders(proposed.signed, HALT) == (offices.fleet.halt_keys(), 1)
    assert lint_targets(proposed.signed) == ()


def test_keys_and_thresholds_that_cannot_be(offices: RepositorySimulator) -> None:
    key = offices.delegate_key(BERLIN, "bea").key
    for keys, threshold in (((), 1), ((key,), 2), ((key, key), 2), ((key,), 0)):
        with pytest.raises(InputError, match="threshold"):
            offices.fleet.delegate("site-rome", keys, threshold)
    assert offices.fleet.proposals() == ()


# Publishing


def test_a_site_is_published_while_others_wait_for_signatures(offices: RepositorySimulator) -> None:
    offices.fleet.stage_policy("second", b"version = 1\n")
    offices.fleet.stage_policy("base", site_policy("paris", "base"), PARIS)
    offices.fleet.stage_policy("second", site_policy("berlin", "second"), BERLIN)
    offices.sign("bob", role=BERLIN)
    with pytest.raises(TrustError) as waiting:
        offices.publish()
    assert waiting.value.message.split("\n") == [
        "signatures are missing:",
        "  targets: 2 more of adam, alice must sign; signed by nobody yet",
        "  site-paris: 2 more of paul, pia must sign; signed by nobody yet",
    ]
    assert waiting.value.remedy.endswith("What is complete waits for nobody: 'pcm-p2p publish --only site-berlin'.")
    only(offices, BERLIN)
    assert [proposal.role for proposal in offices.fleet.proposals()] == ["targets", PARIS]
    assert offices.delegated(BERLIN).signed.version == 2
    with pytest.raises(TrustError, match="site-paris: 2 more"):
        only(offices, PARIS)
    with offices.client() as device:
        attempt(device, offices.source())
        assert device.view is not None
        assert "policies/berlin/second.toml" in device.view.kept


def test_a_site_that_the_centre_has_not_delegated_to_yet(offices: RepositorySimulator) -> None:
    offices.fleet.delegate("site-rome", [offices.delegate_key("site-rome", "rita").key], 1)
    offices.fleet.stage_policy("base", site_policy("rome", "base"), "site-rome")
    offices.sign("rita", role="site-rome")
    assert offices.fleet.ready_alone() == (), "signed, and resting on targets that are not"
    with pytest.raises(TrustError, match="nobody is delegated to sign for site-rome yet"):
        only(offices, "site-rome")
    offices.sign()
    assert offices.fleet.ready_alone() == ("targets",)
    offices.publish()
    assert offices.delegated("site-rome").signed.version == 1


def test_the_publisher_takes_the_next_version_and_no_other(offices: RepositorySimulator) -> None:
    """Who leaps to the last version that a file name can carry would end the role for ever."""
    for step in (2, 1_000_000):
        document = offices.signed_delegated(BERLIN, lambda _: None, "bob", version_step=step)
        (offices.fleet.path / "proposal" / f"{BERLIN}.json").write_bytes(document.to_bytes())
        with pytest.raises(TrustError, match="does not follow 1"):
            only(offices, BERLIN)


def test_what_breaks_a_rule_is_not_published(offices: RepositorySimulator) -> None:
    def foreign(targets: Targets) -> None:
        targets.targets["policies/paris/x.toml"] = targets.targets["policies/berlin/first.toml"]

    def further(targets: Targets) -> None:
        targets.delegations = offices.newest_targets().signed.delegations

    faults: dict[str, Callable[[Targets], None]] = {"is not for site berlin to sign": foreign, "delegates": further}
    for complaint, edit in faults.items():
        document = offices.signed_delegated(BERLIN, edit, "bob")
        (offices.fleet.path / "proposal" / f"{BERLIN}.json").write_bytes(document.to_bytes())
        with pytest.raises(TrustError, match=f"refused to publish: .*{complaint}"):
            offices.publish()
        with pytest.raises(TrustError, match=complaint):
            offices.sign("bob", role=BERLIN)


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        (None, "index.json is missing"),
        (b"{}", "does not fit its schema"),
        ({"policies": ("policies/paris/x.toml",)}, "for which site-paris speaks"),
        ({"policies": ("policies/berlin/x.toml",)}, "lists policies/berlin/x.toml, which is not signed"),
        ({"fleet": "e" * 32}, "is of fleet eeeeeeee"),
    ],
)
def test_an_index_that_devices_could_not_use_is_not_published(
    offices: RepositorySimulator, index: dict[str, Any] | bytes | None, complaint: str
) -> None:
    path = "policies/berlin/index.json"

    def edit(targets: Targets) -> None:
        if index is None:
            del targets.targets[path]
            return
        data = index if isinstance(index, bytes) else Index(**{**plain, **index}).encoded()
        targets.targets[path] = offices.fleet.files.store(path, data)

    plain: dict[str, Any] = {"schema": "pcm.index/1", "fleet": offices.fleet.fleet_id}
    document = offices.signed_delegated(BERLIN, edit, "bob")
    (offices.fleet.path / "proposal" / f"{BERLIN}.json").write_bytes(document.to_bytes())
    with pytest.raises(TrustError, match=f"refused to publish: site-berlin: .*{complaint}"):
        offices.publish()


def test_new_holders_sign_anew_before_the_change_is_published(offices: RepositorySimulator) -> None:
    offices.fleet.delegate(BERLIN, [offices.delegate_key(BERLIN, "bea").key], 1)
    assert [proposal.role for proposal in offices.fleet.proposals()] == ["targets", BERLIN]
    offices.sign()
    with pytest.raises(TrustError, match="site-berlin: 1 more of bea must sign"):
        offices.publish()
    with pytest.raises(TrustError, match="site-berlin is not signed by the holders that targets names"):
        only(offices, "targets")
    offices.sign("bea", role=BERLIN)
    offices.publish()
    # One more holder takes nothing away: what is published stays good.
    people = [offices.delegate_key(BERLIN, owner).key for owner in ("bea", "ben")]
    offices.fleet.delegate(BERLIN, people, 1)
    assert [proposal.role for proposal in offices.fleet.proposals()] == ["targets"]


def test_a_snapshot_goes_on_naming_who_was_revoked(offices: RepositorySimulator) -> None:
    offices.fleet.revoke(BERLIN)
    offices.sign()
    published = offices.publish()
    assert dict(published.delegated) == {}
    snapshot = offices.fleet.snapshot()
    assert snapshot is not None
    assert snapshot.signed.meta[f"{BERLIN}.json"].version == 1
    with offices.client() as device:
        assert attempt(device, offices.source()).kind == "good"
    # Whoever is delegated again begins with nothing, one version on.
    offices.delegate(BERLIN, "bea")
    assert offices.delegated(BERLIN).signed.version == 2
    assert list(offices.delegated(BERLIN).signed.targets) == ["policies/berlin/index.json"]


def test_refreshing_keeps_to_what_is_published(offices: RepositorySimulator) -> None:
    offices.fleet.stage_policy("second", site_policy("berlin", "second"), BERLIN)
    offices.sign("bob", role=BERLIN)
    offices.clock.advance(days=20)
    offices.refresh()
    assert offices.delegated(BERLIN).signed.version == 1
    with offices.client() as device:
        assert attempt(device, offices.source()).kind == "good"
        assert device.view is not None
        assert device.view.version_of(BERLIN) == 1


def test_the_end_of_a_sites_document_is_told_and_stops_nobody_else(offices: RepositorySimulator) -> None:
    offices.clock.advance(days=65)
    assert [one for one in offices.publish().remarks if one.startswith("site-berlin expires in 25 days")]
    offices.clock.advance(days=30)
    remarks = offices.publish_policy("second").remarks
    assert [one for one in remarks if one.startswith("site-berlin expired on 2026-05-30: devices keep to its last")]
    assert HALT_LIFETIME.days == 730
    offices.fleet.renew(BERLIN)
    offices.sign("bob", role=BERLIN)
    assert not offices.publish().remarks


def test_a_folder_from_a_backup_takes_no_site_back(offices: RepositorySimulator, tmp_path: Path) -> None:
    shutil.copytree(offices.fleet.path, tmp_path / "backup")
    offices.publish_site_policy("berlin", "second", "bob")
    restored = FleetFolder.open(tmp_path / "backup", wall_clock=offices.clock)
    restored.stage_policy("third", site_policy("berlin", "third"), BERLIN)
    restored.sign(offices.key_path(BERLIN, "bob"), PASSPHRASE)
    with pytest.raises(TrustError, match="older than what was published"):
        publish(restored, offices.origin, offices.keys)
    # Also into another tree, where a later snapshot of its own names the role higher.
    snapshot = offices.fleet.snapshot()
    assert snapshot is not None
    old = Metadata[Targets].from_bytes(offices.tree()["metadata/1.site-berlin.json"])
    (offices.fleet.metadata / "2.site-berlin.json").write_bytes(old.to_bytes())
    with pytest.raises(TrustError, match="refused to publish site-berlin version 1: version 2 was published before"):
        publish(offices.fleet, tmp_path / "other", offices.keys)


@pytest.mark.parametrize("act", ["order", "publish", "lift"])
def test_killed_while_something_is_halted_or_lifted_no_device_sees_a_halt_go_by_itself(
    offices: RepositorySimulator, tmp_path: Path, quick_disk: None, act: str
) -> None:
    key = open_signing_key(offices.key_path("targets", "alice"), PASSPHRASE)

    def order() -> None:
        halting.order(offices.fleet, key, reason="it breaks")

    def publish_halts() -> None:
        publish(offices.fleet, offices.origin, offices.keys, only=(HALT,))

    def publish_lifted() -> None:
        halting.lift(offices.fleet, [halting.standings(offices.fleet)[0].halt.id])
        if offices.fleet.proposed_targets() is not None:
            offices.sign()
        offices.publish()

    order()
    publish_halts()
    with offices.client() as device:
        attempt(device, offices.source())
    if act == "publish":
        order()
    work = {"order": order, "publish": publish_halts, "lift": publish_lifted}[act]
    saved, parts = tmp_path / "saved", ("fleet", "origin", "device")
    for part in parts:
        shutil.copytree(offices.folder / part, saved / part)
    step, killed, counts = 0, True, set()
    while killed:
        for part in parts:
            shutil.rmtree(offices.folder / part)
            shutil.copytree(saved / part, offices.folder / part)
        killed = killed_before(step, work)
        with offices.client() as device:
            view = attempt(device, offices.source()).view
            assert view is not None
            assert (view.problems(offices.clock.now), view.halts_known) == ((), True), f"step {step}"
            counts.add(len(view.halts()))
            work()  # the same command again
            publish_halts()
            view = attempt(device, offices.source()).view
            assert view is not None
            assert view.halts_known, f"step {step}"
            # An order that was begun twice is two orders, of which each is lifted by itself.
            assert len(view.halts()) in {"order": (2, 3), "publish": (2,), "lift": (0,)}[act], f"step {step}"
        assert verify_folder(offices.fleet).verdict.complaints == (), f"step {step}"
        step += {"order": 2, "publish": 7, "lift": 9}[act]  # the order of files is what is looked at
    assert step > 8
    assert counts == {"order": {1}, "publish": {1, 2}, "lift": {0, 1}}[act]


def test_killed_while_a_site_is_published_the_tree_is_whole(offices: RepositorySimulator, tmp_path: Path) -> None:
    offices.fleet.stage_policy("second", site_policy("berlin", "second"), BERLIN)
    offices.sign("bob", role=BERLIN)
    saved = tmp_path / "saved"
    with offices.client() as device:
        attempt(device, offices.source())
    parts = ("fleet", "origin", "device")
    for part in parts:
        shutil.copytree(offices.folder / part, saved / part)
    step, killed, kinds = 0, True, set()
    while killed:
        for part in parts:
            shutil.rmtree(offices.folder / part)
            shutil.copytree(saved / part, offices.folder / part)
        killed = killed_before(step, offices.publish)
        with offices.client() as device:
            result = attempt(device, offices.source())
            kinds.add(result.kind)
            assert result.view is not None
            assert (result.view.problems(offices.clock.now), result.view.settled) == ((), True), f"step {step}"
            offices.publish()
            attempt(device, offices.source())
            assert device.view is not None
            assert device.view.version_of(BERLIN) == 2
        step += 5  # every fifth operation: the order of files is what is looked at
    assert kinds == {"good", "unchanged"}
