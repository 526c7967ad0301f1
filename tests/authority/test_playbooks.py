"""Playbooks driven to their end: afterwards the old key is worthless to a device, and what a thief raised comes down again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from repository_simulator import PASSPHRASE, RepositorySimulator, TreeSource, attempt
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.metadata import Metadata, Root, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.audit.verification import verify_folder
from pcm_p2p.authority.carry.carried_proposal import proposals_in
from pcm_p2p.authority.carry.carrying import contents_of, export_proposal, read_bundle
from pcm_p2p.authority.delegating import delegate
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.keys.fingerprint import owned
from pcm_p2p.authority.keys.public_key import PublicKey
from pcm_p2p.authority.people import playbook
from pcm_p2p.authority.people.changes import change_holders, holders_of, online_key_file
from pcm_p2p.authority.people.founders import Founders
from pcm_p2p.authority.people.health import check
from pcm_p2p.authority.publish import OnlineKeys, publish
from pcm_p2p.authority.site_repository import found_site, list_site_root, signed_root
from pcm_p2p.errors import InputError, TrustError
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust.deny import decode_deny_untrusted

OWNERS = ("alice", "bob", "carol")
SITE_POLICY = b'schema = "pcm.policy/1"\nid = "local"\nversion = 1\nmode = "observe"\n'


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RepositorySimulator:
    folder = tmp_path_factory.mktemp("three")
    return RepositorySimulator(folder, owners=OWNERS, root_threshold=2, targets_threshold=2)


@pytest.fixture
def three(first: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    return first.copied_to(tmp_path)


def new_key(folder: Path, role: str, owner: str) -> tuple[PublicKey, keyfile.KeyFile]:
    key = keyfile.create(folder / f"new-{role}-{owner}.key", PASSPHRASE, role, owner, preset="lab")
    return PublicKey(key.role, key.owner, key.key), key


def steps(book: playbook.Playbook) -> str:
    return "\n".join(f"{step.who}: {step.what}" for step in book.steps)


def sign_with(fleet: RepositorySimulator, *keys: Path) -> None:
    for key in keys:
        fleet.fleet.sign(key, PASSPHRASE)


def by_old_keys(fleet: RepositorySimulator, owners: tuple[str, ...], targets: Targets) -> Metadata[Targets]:
    document = Metadata(targets)
    for owner in owners:
        document.sign(fleet.signer("targets", owner), append=True)
    return document


def test_nobody_holds_two_keys_of_a_site_and_where_somebody_does_both_are_lost(
    three: RepositorySimulator, tmp_path: Path
) -> None:
    keys = [owned(CryptoSigner.generate_ed25519().public_key, owner) for owner in ("dora", "dora", "erik")]
    with pytest.raises(InputError, match="dora would hold two keys of site hq"):
        three.fleet.delegate("site-hq", keys, 2)
    with three.fleet.locked():  # as a folder of before may have it
        three.fleet.stage_locked("targets", {}, edit=lambda targets: delegate(targets, "site-hq", keys, 2))
    with pytest.raises(InputError, match="would need 2 of 1 keys"):
        playbook.lost_laptop(three.fleet, "dora", (), remove=True)
    playbook.lost_laptop(three.fleet, "dora", (), remove=True, thresholds={"site-hq": 1})
    assert holders_of(three.fleet, "site-hq").owners == ("erik",)


def test_a_lost_laptop_ends_with_keys_that_are_worthless(three: RepositorySimulator, tmp_path: Path) -> None:
    root_key, root_file = new_key(tmp_path, "root", "bob")
    targets_key, targets_file = new_key(tmp_path, "targets", "bob")
    with pytest.raises(InputError, match="bob holds keys for root, targets; there is no new one for targets"):
        playbook.lost_laptop(three.fleet, "bob", (root_key,))
    book = playbook.lost_laptop(three.fleet, "bob", (root_key, targets_key))
    assert "2 of alice, carol: sign root 2 (old keys)" in steps(book), "nobody counts on the lost key"
    assert "2 of alice, bob, carol: sign root 2 (new keys)" in steps(book)
    # Alice and carol with old keys, which are new ones too; bob's new key signs the targets.
    sign_with(three, three.key_path("root", "alice"), three.key_path("root", "carol"))
    sign_with(three, three.key_path("targets", "alice"), targets_file.path)
    with three.client() as device:
        attempt(device, three.source())
        three.publish()
        assert attempt(device, three.source()).kind == "good"
        stolen = by_old_keys(three, ("bob", "carol"), _evil(three))
        refused = attempt(device, TreeSource(three.stolen(targets=stolen)))
        assert (refused.kind, "signed by 1/2 keys" in refused.reason) == ("bad", True)
    assert holders_of(three.fleet, "root").key_of("bob").keyid == root_file.keyid
    assert verify_folder(three.fleet).verdict.complaints == ()
    assert [one.text.split(":")[0] for one in check(three.fleet) if "never signed" in one.text] == [
        "the key of bob never signed"
    ]


def test_a_lost_laptop_with_a_key_of_a_site_on_it_is_replaced_there_as_well(
    three: RepositorySimulator, tmp_path: Path
) -> None:
    _, site_key = new_key(tmp_path, "site-hq", "bob")
    three.fleet.delegate("site-hq", [site_key.key], 1)
    three.sign("alice", "bob")
    three.publish()
    (tmp_path / "new").mkdir()
    made = [new_key(tmp_path / "new", role, "bob") for role in ("root", "targets", "site-hq")]
    book = playbook.lost_laptop(three.fleet, "bob", tuple(public for public, _ in made))
    assert book.done[2] == "site hq: bob gets a new key; 1 of 1 must sign"
    three.sign("alice", "carol", role="root")
    three.sign("alice", "carol")
    three.publish()
    assert holders_of(three.fleet, "site-hq", proposed=False).key_of("bob").keyid == made[2][1].keyid
    assert site_key.keyid not in {key.keyid for key in three.fleet.halt_keys()}


def _evil(fleet: RepositorySimulator) -> Targets:
    targets = fleet.newest_targets().signed
    targets.version += 1
    return targets


@pytest.mark.parametrize(
    ("owners", "root_threshold", "said"),
    [
        (("bob",), 1, "one root key is enough to give it other keys, so found it anew"),
        (("bob", "olga"), 2, "do the same there, with 'pcm-p2p fleet recover lost-laptop bob"),
    ],
)
def test_keys_in_the_own_repository_of_a_site_are_named_since_nothing_here_replaces_them(
    three: RepositorySimulator, tmp_path: Path, owners: tuple[str, ...], root_threshold: int, said: str
) -> None:
    founders = Founders(owners, root_threshold=root_threshold)
    site = found_site(
        tmp_path / "hq", three.fleet.fleet_id, "hq", founders, PASSPHRASE, preset="lab", wall_clock=three.clock
    )
    list_site_root(three.fleet, "hq", signed_root(site))
    book = playbook.lost_laptop(three.fleet, "bob", (), remove=True)
    (step,) = [step for step in book.steps if step.who == "site hq"]
    assert "bob holds keys of its own repository, for root and targets" in step.what
    assert said in step.what
    assert "site hq" not in steps(playbook.lost_laptop(three.fleet, "carol", (), remove=True, thresholds=ALONE))
    if "olga" in owners:
        with pytest.raises(InputError, match="olga holds no key of this fleet") as caught:
            playbook.lost_laptop(three.fleet, "olga", (), remove=True)
        assert "lost-laptop olga" in caught.value.remedy
        there = playbook.lost_laptop(site, "bob", (), remove=True, thresholds={"root": 1, "targets": 1})
        assert holders_of(site, "root").owners == ("olga",)
        assert "sign with the OLD root key" in steps(there)


ALONE = {"root": 1, "targets": 1}


def test_a_person_who_is_not_replaced_leaves_and_the_threshold_may_follow(three: RepositorySimulator) -> None:
    playbook.lost_laptop(three.fleet, "bob", (), remove=True)
    three.fleet.discard()
    book = playbook.lost_laptop(three.fleet, "bob", (), remove=True, thresholds={"root": 1})
    assert "root: bob signs no more; 1 of 2 must sign" in book.done
    assert "targets: bob signs no more; 2 of 2 must sign" in book.done
    sign_with(three, *(three.key_path(role, owner) for role in ("root", "targets") for owner in ("alice", "carol")))
    three.publish()
    assert holders_of(three.fleet, "root").owners == ("alice", "carol")
    with pytest.raises(InputError, match="bob holds no key of this fleet; alice, carol, publisher do"):
        playbook.lost_laptop(three.fleet, "bob", (), remove=True)
    with pytest.raises(InputError, match="targets would need 2 of 1 keys"):
        playbook.lost_laptop(three.fleet, "carol", (), remove=True)
    assert three.fleet.proposals() == (), "what cannot work proposes nothing"


def test_a_lost_root_key_that_is_needed_once_more_is_said_plainly(tmp_path: Path) -> None:
    two = RepositorySimulator(tmp_path / "two", owners=("alice", "bob"), root_threshold=2)
    key, file = new_key(tmp_path, "root", "bob")
    book = playbook.lost_root_key(two.fleet, "bob", (key,))
    assert book.steps[0].who == "bob"
    assert "sign with the OLD root key, from its backup: 2 of 2 old keys are needed" in book.steps[0].what
    sign_with(two, two.key_path("root", "alice"), file.path)
    with pytest.raises(TrustError, match="root, old keys: 1 more of bob must sign; signed by alice"):
        two.publish()
    sign_with(two, two.key_path("root", "bob"))
    two.sign("alice")  # who may halt follows, in the targets
    two.publish()
    with two.client() as device:
        assert attempt(device, two.source()).kind == "good"
        assert device.digest().root == 2


def test_two_changes_before_a_publication_are_one_new_root(three: RepositorySimulator, tmp_path: Path) -> None:
    for owner in ("alice", "bob"):
        key, _ = new_key(tmp_path, "root", owner)
        playbook.lost_root_key(three.fleet, owner, (key,))
    changes = [one.headline for one in three.fleet.proposals()[0].difference().changes]
    assert sum(line.startswith("+ root: ") for line in changes) == 2
    assert three.fleet.proposed("root").signed.version == 2


def test_a_fast_forward_by_stolen_online_keys_heals(three: RepositorySimulator) -> None:
    """Research 12d to 12h: the thief raises every version to the last, on the devices and in the tree itself."""
    with three.client() as device:
        attempt(device, three.source())
        raised = three.stolen(timestamp_version=2**31 - 1, snapshot_version=2**31 - 1)
        assert attempt(device, TreeSource(raised)).kind == "good"
        (three.origin / "metadata" / "timestamp.json").write_bytes(raised["metadata/timestamp.json"])
        old = three.keys
        book = playbook.stolen_online_keys(three.fleet, PASSPHRASE, preset="lab")
        assert [line.split(":")[0] for line in book.done] == ["snapshot", "timestamp"]
        assert [file.name for file in sorted((three.fleet.path / "keys").glob("*-2.key"))] == [
            "snapshot-2.key",
            "timestamp-2.key",
        ]
        # Until the new root is published the old keys are those that root names.
        assert online_key_file(three.fleet, "timestamp", proposed=False).name == "timestamp.key"
        three.sign("alice", "carol", role="root")
        keys = OnlineKeys.open(three.fleet, PASSPHRASE, proposed=True)
        with pytest.raises(TrustError, match="the tree has timestamp 2147483647"):
            publish(three.fleet, three.origin, keys)
        assert "publish into an empty one" in steps(book)
        three.origin = three.folder / "clean"
        publish(three.fleet, three.origin, keys)
        assert attempt(device, three.source()).kind == "good"
        assert (device.digest().root, device.digest().timestamp) == (2, 2)
        three.keys = OnlineKeys.open(three.fleet, PASSPHRASE)
        three.publish_policy("after")
        assert attempt(device, three.source()).kind == "good"
        # The stolen keys sign nothing that a device believes any more.
        before = device.digest()
        for tree in (three.stolen(timestamp_version=2**31 - 1, keys=old), raised):
            assert attempt(device, TreeSource(tree)).kind in ("bad", "older")
        assert device.digest() == before
    assert verify_folder(three.fleet).verdict.complaints == ()


def test_one_new_online_key_alone_would_not_heal(three: RepositorySimulator) -> None:
    """Why the playbook replaces both: research 12h."""
    with three.client() as device:
        attempt(device, three.source())
        raised = three.stolen(timestamp_version=2**31 - 1, snapshot_version=2**31 - 1)
        assert attempt(device, TreeSource(raised)).kind == "good"
        key, file = new_key(three.fleet.path / "keys", "timestamp", "publisher")
        change_holders(three.fleet, [("timestamp", lambda holders: holders.replaced("publisher", key.key))])
        three.sign("alice", "bob", role="root")
        publish(three.fleet, three.folder / "clean", OnlineKeys(three.keys.snapshot, file.signer()))
        assert attempt(device, TreeSource(three.folder / "clean")).kind != "good"


def test_a_stolen_site_key_ends_with_other_keys_and_the_old_ones_worthless(
    three: RepositorySimulator, tmp_path: Path
) -> None:
    _, thief = new_key(tmp_path, "site-hq", "dave")
    three.fleet.delegate("site-hq", [thief.key], 1)
    three.fleet.stage_file("fleet/allowances.toml", b'schema = "pcm.allowances/1"\n[default]\nmodes = ["observe"]\n')
    three.fleet.stage_policy("local", SITE_POLICY, "site-hq")
    three.sign("alice", "bob")
    sign_with(three, thief.path)
    three.publish()
    key, file = new_key(tmp_path, "site-hq", "erin")
    book = playbook.stolen_site_key(three.fleet, "hq", (key,))
    assert book.done == (
        "site hq: 1 of erin must sign, in place of dave",
        "policies/hq/local.toml is vouched for again: read it before the new key signs",
    )
    assert "1 of erin: sign site-hq 2" in steps(book)
    export_proposal(three.fleet, file_carried := tmp_path / "carried.proposal")
    carried = read_bundle(file_carried)
    for proposals, contents in (
        (three.fleet.proposals(), contents_of(three.fleet)),
        (proposals_in(carried), carried.content),
    ):
        (of_site,) = (one for one in proposals if one.role == "site-hq")
        read = "\n".join(of_site.lines(contents))
        assert "what stays was signed by other keys, and who signs now vouches for it (2 in all):" in read
        assert "= policies/hq/local.toml" in read
        assert all(f"     {line}" in read for line in SITE_POLICY.decode().splitlines()), (
            "whole, as erin signs it whole"
        )
        assert "1 more of erin must sign" in read
        assert of_site.as_json(contents)["difference"][-1]["field"] == "targets.policies/hq/local.toml"
    three.sign("alice", "carol")
    sign_with(three, file.path)
    three.publish()
    with three.client() as device:
        assert attempt(device, three.source()).kind == "good"
    signers = three.fleet.delegated("site-hq").signatures
    assert list(signers) == [file.keyid]
    three.fleet.stage_policy("local", SITE_POLICY + b"# more\n", "site-hq")
    assert not [one for one in three.fleet.proposals() if one.anew], "from then on these are erin's own words"
    with pytest.raises(InputError, match="has no part in what is proposed"):
        sign_with(three, thief.path)
    forged = three.fleet.proposed("site-hq")
    forged.sign(thief.signer(), append=True)
    (three.fleet.path / "proposal" / "site-hq.json").write_bytes(forged.to_bytes())
    with pytest.raises(TrustError, match="site-hq: 1 more of erin must sign; signed by nobody yet"):
        three.publish()
    assert verify_folder(three.fleet).verdict.complaints == ()


def test_what_devices_set_aside_of_a_thief_does_not_hold_up_the_new_key(
    three: RepositorySimulator, tmp_path: Path
) -> None:
    """The role is proposed anew with what it had; a policy that nobody may sign would keep the deny list waiting, too."""
    _, thief = new_key(tmp_path, "site-hq", "dave")
    three.fleet.delegate("site-hq", [thief.key], 1)
    allowances = b'schema = "pcm.allowances/1"\n[default]\nmodes = ["observe", "notify"]\n'
    three.fleet.stage_file("fleet/allowances.toml", allowances)
    three.fleet.stage_policy(
        "greedy", SITE_POLICY.replace(b'"local"', b'"greedy"').replace(b"observe", b"notify"), "site-hq"
    )
    three.fleet.stage_policy("local", SITE_POLICY, "site-hq")
    three.sign("alice", "bob")
    sign_with(three, thief.path)
    three.publish()
    three.fleet.stage_file("fleet/allowances.toml", allowances.replace(b', "notify"', b""))
    three.sign("alice", "bob")
    three.publish()
    key, file = new_key(tmp_path, "site-hq", "erin")
    book = playbook.stolen_site_key(three.fleet, "hq", (key,))
    assert book.done[1].startswith("policies/hq/greedy.toml goes out of what is signed anew: ")
    assert book.done[2] == "policies/hq/local.toml is vouched for again: read it before the new key signs"
    three.sign("alice", "carol")
    sign_with(three, file.path)
    three.publish()
    listed = three.fleet.delegated("site-hq").signed.targets
    assert "policies/hq/local.toml" in listed
    assert "policies/hq/greedy.toml" not in listed


def test_a_stolen_site_key_without_a_new_one_ends_the_delegation(three: RepositorySimulator, tmp_path: Path) -> None:
    _, thief = new_key(tmp_path, "site-hq", "dave")
    three.fleet.delegate("site-hq", [thief.key], 1)
    three.sign("alice", "bob")
    three.publish()
    book = playbook.stolen_site_key(three.fleet, "hq", ())
    assert "nobody signs any more" in book.done[0]
    three.sign("alice", "bob")
    three.publish()
    with pytest.raises(InputError, match="there is no role site-hq"):
        playbook.stolen_site_key(three.fleet, "hq", ())


def test_a_lost_device_is_on_the_deny_list_that_devices_read(three: RepositorySimulator) -> None:
    lost = DeviceId(b"\x07" * 16)
    book = playbook.lost_device(three.fleet, lost, "left in a train")
    assert "2 of alice, bob, carol: sign targets 2" in steps(book)
    three.sign("bob", "carol")
    three.publish()
    with three.client() as device:
        assert attempt(device, three.source()).kind == "good"
        assert device.view is not None
        listed = decode_deny_untrusted(device.view.read("identity/deny.json"), three.fleet.fleet_id)
        assert [(one.id, one.reason) for one in listed.devices] == [(lost.hex(), "left in a train")]


# Rotations of people, as the commands make them


@pytest.mark.parametrize("role", ["root", "targets"])
def test_any_role_of_people_is_rotated_in_band(three: RepositorySimulator, tmp_path: Path, role: str) -> None:
    key, file = new_key(tmp_path, role, "alice")
    change_holders(three.fleet, [(role, lambda holders: holders.replaced("alice", key.key))])
    three.sign("alice", "bob", role="root")
    if role == "root":
        # The threshold of new keys is met by bob and carol, or by alice's new key.
        sign_with(three, file.path)
    sign_with(three, file.path if role == "targets" else three.key_path("targets", "alice"))
    three.sign("carol")
    with three.client() as device:
        attempt(device, three.source())
        three.publish()
        assert attempt(device, three.source()).kind == "good"
        assert (device.digest().root, device.digest().targets) == (2, 2)
    named = three.fleet.root().signed.roles[role].keyids
    assert file.keyid in named
    assert len(named) == 3
    assert file.keyid in {one.keyid for one in three.fleet.halt_keys()}, "who may halt follows"


def test_who_may_halt_is_not_changed_by_hand(three: RepositorySimulator) -> None:
    with pytest.raises(InputError, match="follows from who signs for the other roles"):
        change_holders(three.fleet, [("halt", lambda holders: holders.with_threshold(2))])
    with pytest.raises(InputError, match="there is no role site-x"):
        change_holders(three.fleet, [("site-x", lambda holders: holders)])


def test_a_root_that_was_changed_by_hand_needs_no_help_of_the_tool_to_be_refused(three: RepositorySimulator) -> None:
    """A proposal edited in the folder to drop the threshold is shown, and needs the threshold all the same."""

    def edit(root: Root) -> None:
        root.roles["root"].threshold = 1

    three.fleet.propose_root(edit)
    three.sign("alice", role="root")
    with pytest.raises(TrustError, match="root, old keys: 1 more of bob, carol must sign"):
        three.publish()
    lines: list[Any] = list(three.fleet.proposals()[0].lines())
    assert "~ threshold of root 2 of 3 → 1 of 3" in lines
