"""Attacks with documents that were true once: rollback, freeze, mix-and-match, fast-forward, hidden and forged roots.

Each by the name that the catalogue (``attacks``) gives it. Unless a test says otherwise the device is left with what it had.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from attack_kit import TIMESTAMP, accepted, device_of, next_root, refused
from repository_simulator import (
    PASSPHRASE,
    RepositorySimulator,
    Tree,
    TreeSource,
    attempt,
    killed_before,
)
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Timestamp  # type: ignore[attr-defined]

from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.publish import OnlineKeys
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.index import VERSION_MAX
from pcm_p2p.trust.updater import SourceFailed


@pytest.fixture
def device(fleet: RepositorySimulator) -> Iterator[TrustClient]:
    with device_of(fleet) as device:
        yield device


# 1: rollback, by a carrier and by thieves of online keys; again after a restart, and after a crash at every step of a swap


def pointing_back(fleet: RepositorySimulator, old: Tree) -> Tree:
    """1b: who holds the timestamp key alone makes a newer timestamp that names the older, genuine snapshot."""
    timestamp = Metadata[Timestamp].from_bytes(fleet.tree()[TIMESTAMP])
    snapshot = old["metadata/1.snapshot.json"]
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile.from_data(1, snapshot, ["sha256"])
    timestamp.sign(fleet.keys.timestamp)
    return {**fleet.tree(), TIMESTAMP: timestamp.to_bytes()}


def without_targets(fleet: RepositorySimulator, old: Tree) -> Tree:
    def drop(snapshot: Snapshot) -> None:
        snapshot.meta = {"team-none.json": snapshot.meta["targets.json"]}

    return fleet.stolen(snapshot_edit=drop)


ROLLBACKS: dict[str, tuple[Callable[[RepositorySimulator, Tree], Tree], str]] = {
    "1a older timestamp": (lambda fleet, old: old, "older"),
    "1b newer timestamp, older snapshot": (pointing_back, "bad"),
    "1c newer snapshot, older targets": (
        lambda fleet, old: fleet.stolen(targets=old["metadata/1.targets.json"]),
        "bad",
    ),
    "1d newer snapshot without targets": (without_targets, "bad"),
}
rollbacks = pytest.mark.parametrize("name", ROLLBACKS)


@rollbacks
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_rollback_is_refused(fleet: RepositorySimulator, device: TrustClient, name: str, restarted: bool) -> None:
    old = fleet.tree()
    fleet.publish_policy("second")
    accepted(device, fleet.source())
    attack, kind = ROLLBACKS[name]
    tree = attack(fleet, old)
    if restarted:
        device.close()
        device.open()
    refused(device, tree, kind)


def test_rollback_is_refused_after_a_kill_at_any_step_of_the_swap(fleet_in_memory: RepositorySimulator) -> None:
    """Old or new, whatever was on the disk when the power went: none of the four ways back below it is taken."""
    fleet = fleet_in_memory
    old = fleet.tree()
    fleet.publish_policy("second")
    middle = fleet.tree()
    with device_of(fleet):
        pass
    fleet.publish_policy("third")
    attacks = {name: attack(fleet, old) for name, (attack, _) in ROLLBACKS.items()}
    folder, saved = fleet.folder / "device", fleet.folder / "saved"
    shutil.copytree(folder, saved)

    def learn() -> None:
        with fleet.client() as client:
            assert attempt(client, fleet.source()).kind == "good"

    step, killed, seen = 0, True, set()
    while killed:
        shutil.rmtree(folder)
        shutil.copytree(saved, folder)
        killed = killed_before(step, learn)
        step += 1
        with fleet.client() as client:
            assert client.view is not None
            seen.add(client.view.versions.targets)
            for name, tree in attacks.items():
                refused(client, tree, "older", "bad"), name
            if client.view.versions.targets == 3:
                refused(client, middle, "older")
    assert seen == {2, 3}
    assert step > 15, "the steps were counted"


# 2: freeze


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_an_expired_document_is_refused_even_when_all_else_is_fresh(
    fleet: RepositorySimulator, device: TrustClient, role: str
) -> None:
    def end(document: Timestamp | Snapshot) -> None:
        document.expires = fleet.clock.now - timedelta(seconds=1)

    refused(device, fleet.stolen(**{f"{role}_edit": end}), "expired")


def test_an_expired_root_is_refused_and_a_renewed_one_heals_without_a_visit(
    fleet: RepositorySimulator, device: TrustClient
) -> None:
    def end(root: Root) -> None:
        root.expires = fleet.clock.now - timedelta(seconds=1)

    fleet.publish_policy("second")
    ended = next_root(fleet, [fleet.signer("root")], end)
    refused(device, fleet.source(replaced={"metadata/2.root.json": ended}), "expired")
    renewed = next_root(fleet, [fleet.signer("root")], version=3)
    accepted(device, fleet.source(replaced={"metadata/2.root.json": ended, "metadata/3.root.json": renewed}))
    assert device.digest().root == 3


# 3: mix and match


@pytest.mark.parametrize("place", ["timestamp", "2.snapshot", "2.targets", "2.root"])
@pytest.mark.parametrize("other", ["timestamp", "1.snapshot", "1.targets", "1.root"])
def test_a_genuine_document_in_the_place_of_another(
    fleet: RepositorySimulator, device: TrustClient, place: str, other: str
) -> None:
    old = fleet.tree()
    fleet.publish_policy("second")
    fleet.publish_root(lambda root: None)
    swapped = old[f"metadata/{other}.json"]
    source = fleet.source(replaced={f"metadata/{place}.json": swapped})
    if place == other == "timestamp":
        # Both halves are true: the newer root, and the timestamp of before. Nothing older is believed for that.
        assert attempt(device, source).kind == "good"
        assert device.digest()[1:4] == (1, 1, 1)
        return
    longer = len(swapped) > len(fleet.tree()[f"metadata/{place}.json"])
    refused(device, source, *(["incomplete", "bad"] if longer else ["bad"]))  # longer than signed: not read to its end


# 4: thresholds


def test_one_good_signature_and_one_of_a_stranger_are_one(tmp_path: Path) -> None:
    fleet = RepositorySimulator(tmp_path, owners=("alice", "bob"), targets_threshold=2)
    stranger = keyfile.create(tmp_path / "stranger.key", PASSPHRASE, "targets", "mallory", preset="lab")
    with device_of(fleet) as device:
        half = fleet.signed_targets(lambda _: None, owners=("alice",))
        half.sign(stranger.signer(), append=True)
        refused(device, fleet.stolen(targets=half), "bad", reason="1/2")


def test_a_signature_under_the_name_of_another_key_counts_for_nobody(tmp_path: Path) -> None:
    fleet = RepositorySimulator(tmp_path, owners=("alice", "bob"), targets_threshold=2)
    with device_of(fleet) as device:
        half = json.loads(fleet.signed_targets(lambda _: None, owners=("alice",)).to_bytes())
        bob = fleet.signer("targets", "bob").public_key.keyid
        half["signatures"].append({**half["signatures"][0], "keyid": bob})
        refused(device, fleet.stolen(targets=json.dumps(half).encode()), "bad", reason="1/2")


# 9: roots


@pytest.fixture(scope="module")
def three_people(tmp_path_factory: pytest.TempPathFactory) -> RepositorySimulator:
    return RepositorySimulator(
        tmp_path_factory.mktemp("three"), owners=("alice", "bob", "carol"), root_threshold=2, targets_threshold=1
    )


@pytest.fixture
def trio_of_owners(three_people: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    return three_people.copied_to(tmp_path)


ROOT_SIGNERS = {
    # Root 2 replaces bob and carol by dave and erin; the threshold is two before and after.
    "two old, two new": (("alice", "bob", "dave"), True),
    "one old": (("alice", "dave", "erin"), False),
    "one new": (("alice", "bob"), False),
    "only new": (("dave", "erin"), False),
    "only old": (("bob", "carol"), False),
    "nobody": ((), False),
}


@pytest.mark.parametrize("name", ROOT_SIGNERS)
def test_a_root_needs_the_old_threshold_and_the_new(
    trio_of_owners: RepositorySimulator, tmp_path: Path, name: str
) -> None:
    fleet, (signers, good) = trio_of_owners, ROOT_SIGNERS[name]
    new = {
        who: keyfile.create(tmp_path / f"{who}.key", PASSPHRASE, "root", who, preset="lab") for who in ("dave", "erin")
    }

    def replace(root: Root) -> None:
        for who in ("bob", "carol"):
            root.revoke_key(fleet.signer("root", who).public_key.keyid, "root")
        for key in new.values():
            root.add_key(key.key, "root")

    made = [new[who].signer() if who in new else fleet.signer("root", who) for who in signers]
    source = fleet.source(replaced={"metadata/2.root.json": next_root(fleet, made, replace)})
    with device_of(fleet) as device:
        if good:
            attempt(device, source)
            assert device.serve("metadata/2.root.json") is not None
        else:
            refused(device, source, "bad")
            assert device.serve("metadata/2.root.json") is None
            assert attempt(device, fleet.source()).kind == "unchanged"


@pytest.mark.parametrize("version", [1, 3, 2**31])
def test_a_root_of_another_version_in_the_place_of_the_next(
    fleet: RepositorySimulator, device: TrustClient, version: int
) -> None:
    root = next_root(fleet, [fleet.signer("root")], version=version)
    refused(device, fleet.source(replaced={"metadata/2.root.json": root}), "bad")
    assert device.serve("metadata/2.root.json") is None


def test_a_targets_key_that_was_taken_away_signs_nothing_any_more(
    fleet: RepositorySimulator, device: TrustClient, tmp_path: Path
) -> None:
    """9g: the laptop is stolen, root takes its key away; neither what it signs now nor what it signed once counts."""
    fresh = keyfile.create(tmp_path / "fresh.key", PASSPHRASE, "targets", "alice", preset="lab")

    def replace(root: Root) -> None:
        root.revoke_key(root.roles["targets"].keyids[0], "targets")
        root.add_key(fresh.key, "targets")

    root = next_root(fleet, [fleet.signer("root")], replace)
    stolen = fleet.signed_targets(lambda targets: targets.targets.pop("policies/first.toml"))
    for tree in (fleet.stolen(targets=stolen), fleet.stolen()):
        refused(device, {**tree, "metadata/2.root.json": root}, "bad", reason="0/1")
    assert device.view is not None
    assert "policies/first.toml" in device.view.paths(), "what was in force stays in force"


@pytest.mark.parametrize("answer", ["missing", "forbidden", "broken", "silence"])
def test_a_hidden_root_costs_time_and_any_other_source_heals(
    fleet: RepositorySimulator, device: TrustClient, answer: str
) -> None:
    """9h and 10.10: the carrier keeps the root that took the stolen online keys away, and goes on with their timestamps."""
    old = fleet.tree()
    fleet.rotate_online_keys()
    fleet.publish_policy("second")

    class Hiding(TreeSource):
        async def fetch(self, path: str, size_bytes_max: int) -> bytes:
            if path == "metadata/2.root.json" and answer != "missing":
                raise SourceFailed(
                    {"forbidden": "HTTP 403", "broken": "HTTP 500", "silence": "did not deliver"}[answer]
                )
            return await super().fetch(path, size_bytes_max)

    refused(device, Hiding(old), "unchanged" if answer == "missing" else "incomplete")
    # The new documents without the root that names their keys: refused, not believed.
    refused(
        device,
        Hiding({**fleet.tree(), "metadata/2.root.json": b""}, missing={"metadata/2.root.json"}),
        "bad",
        "incomplete",
    )
    fleet.clock.advance(days=8)
    assert device.freshness() == "stale", "what is hidden is noticed at the latest when the timestamp ends"
    fleet.refresh()
    accepted(device, fleet.source())
    assert device.freshness() == "fresh"
    refused(device, old, "older")


def test_more_roots_than_one_attempt_follows_arrive_with_the_next(
    fleet: RepositorySimulator, device: TrustClient
) -> None:
    """10.11: 300 roots; the walk is bounded, what it brought is kept, and nothing is accepted under a root in the middle."""
    signer = fleet.signer("root")
    roots = {f"metadata/{number}.root.json": next_root(fleet, [signer], version=number) for number in range(2, 301)}
    fleet.publish_policy("second")
    tree = {**fleet.tree(), **roots}
    first = attempt(device, TreeSource(tree))
    assert device.digest().root <= 257
    last = attempt(device, TreeSource(tree))
    assert {first.kind, last.kind} <= {"good", "unchanged", "older", "bad"}
    assert device.view is not None
    assert "policies/second.toml" in device.view.paths()
    assert device.serve("metadata/300.root.json") is not None


# 12: fast-forward


def rotate(fleet: RepositorySimulator, *roles: str) -> OnlineKeys:
    """Root takes the keys of ``roles`` away and names new ones; the other online key stays."""
    made: dict[Any, Any] = {role: fleet._new_online_key(role) for role in roles}

    def edit(root: Root) -> None:
        for role, key in made.items():
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
            root.add_key(key.key, role)

    before = fleet.keys
    fleet.keys = OnlineKeys(
        made["snapshot"].signer() if "snapshot" in made else before.snapshot,
        made["timestamp"].signer() if "timestamp" in made else before.timestamp,
    )
    fleet.publish_root(edit)
    return fleet.keys


@pytest.mark.parametrize("version", [2**31 - 1, VERSION_MAX])
def test_a_fast_forward_of_the_timestamp_alone_is_healed_by_its_new_key(
    fleet: RepositorySimulator, device: TrustClient, version: int
) -> None:
    accepted(device, fleet.stolen(timestamp_version=version))
    fleet.publish_policy("second")
    refused(device, fleet.source(), "older")
    rotate(fleet, "timestamp")
    accepted(device, {**fleet.stolen(snapshot_version=3)})
    assert device.digest().timestamp < 100


@pytest.mark.parametrize("roles", [("timestamp",), ("snapshot",), ("snapshot", "timestamp")], ids="+".join)
def test_a_fast_forward_of_both_is_healed_by_both_new_keys_and_not_by_one(
    fleet: RepositorySimulator, device: TrustClient, roles: tuple[str, ...]
) -> None:
    accepted(device, fleet.stolen(timestamp_version=2**31 - 1, snapshot_version=2**31 - 1))
    fleet.publish_policy("second")
    rotate(fleet, *roles)
    if len(roles) == 2:
        accepted(device, fleet.source())
        assert device.digest().snapshot < 100
    else:
        refused(device, fleet.source(), "older", "bad")


# 16: pins


def test_a_pin_of_the_beginning_over_a_chain_that_went_on_walks_from_the_chain(fleet: RepositorySimulator) -> None:
    for _ in range(2):
        fleet.publish_root(lambda root: None)
    with device_of(fleet) as device:
        assert device.digest().root == 3
    with fleet.client() as device:
        source = fleet.source()
        assert attempt(device, source).kind == "unchanged"
        assert source.requests[0] == "metadata/4.root.json", "the roots before are not asked for again"


def test_a_pin_of_an_unrelated_fleet_over_an_old_folder_starts_clean(
    fleet: RepositorySimulator, tmp_path: Path
) -> None:
    """The disk was enrolled elsewhere before: nothing of that fleet counts, and nothing of it is in the way."""
    for _ in range(2):
        fleet.publish_root(lambda root: None)
    with device_of(fleet):
        pass
    other = RepositorySimulator(tmp_path / "other", clock=fleet.clock)
    folder = fleet.folder / "device"
    with TrustClient(folder, other.fleet.root_bytes(1), other.fleet.fleet_id, wall_clock=fleet.clock) as device:
        assert device.view is None
        assert device.serve("metadata/3.root.json") is None
        assert attempt(device, fleet.source()).kind in {"bad", "older"}
        assert device.view is None
        accepted(device, other.source())
        assert device.digest()[:2] == (1, 1)


# 10.7: clocks


def test_a_clock_that_jumps_back_in_the_middle_of_an_attempt_unlocks_nothing(
    fleet: RepositorySimulator, device: TrustClient
) -> None:
    """Expiry is compared with one moment for a whole attempt, and with no moment that is before what was proved."""
    old = fleet.tree()
    fleet.clock.advance(days=3)
    fleet.publish_policy("second")
    accepted(device, fleet.source())
    proved = device.now()
    ended = fleet.stolen(lifetime=timedelta(hours=1))
    fleet.clock.advance(hours=2)

    async def jump(path: str) -> None:
        if path == TIMESTAMP:
            fleet.clock.now -= timedelta(days=20_000)

    refused(device, TreeSource(ended, before=jump), "expired")
    assert device.now() == proved, "the clock is believed no further back than what was signed"
    assert device.freshness() == "fresh", "nothing is given up because a clock is wrong"
    refused(device, old, "older")


@pytest.mark.parametrize("file", ["floor.json", "generations/1/state.json"])
def test_a_moment_beyond_all_calendars_on_the_own_disk_is_damage_and_ends_nothing(
    fleet: RepositorySimulator, device: TrustClient, file: str
) -> None:
    device.close()
    path = fleet.folder / "device" / file
    stored = json.loads(path.read_bytes())
    for name in stored:
        if name in ("time_ms", "expires_ms", "accepted_ms"):
            stored[name] = 2**53 - 1
    path.write_text(json.dumps(stored))
    device.open()
    assert device.now().year < 9999
    assert device.freshness() in {"fresh", "frozen"}
    assert attempt(device, fleet.source()).kind in {"good", "unchanged"}
    assert device.freshness() == "fresh"
