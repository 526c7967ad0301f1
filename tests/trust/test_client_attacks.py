"""What carriers and thieves of keys can try, each with the verdict and with a last known good view that stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from repository_simulator import (
    PASSPHRASE,
    START,
    Clock,
    RepositorySimulator,
    Tree,
    TreeSource,
    attempt,
    with_target,
)
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp  # type: ignore[attr-defined]

from pcm_p2p.authority.keys import keyfile
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.evidence import FILES_MAX, Evidence
from pcm_p2p.trust.index import VERSION_MAX, Index

TIMESTAMP = "metadata/timestamp.json"


@pytest.fixture
def device(fleet: RepositorySimulator) -> Iterator[TrustClient]:
    """A device that trusts what the fleet published first."""
    with fleet.client() as client:
        assert attempt(client, fleet.source()).kind == "good"
        yield client


def refused(device: TrustClient, source: TreeSource | Tree, kind: str, reason: str = "") -> str:
    """``source`` gets the verdict ``kind``, and nothing that is trusted has changed. Returns the reason given."""
    before, read = device.view, None
    assert before is not None
    read = {path: before.read(path) for path in before.paths()}
    result = attempt(device, source if isinstance(source, TreeSource) else TreeSource(source))
    assert (result.kind, result.view) == (kind, before), result.reason
    assert reason in result.reason
    assert {path: before.read(path) for path in before.paths()} == read
    return result.reason


# Replay


def test_an_older_timestamp_is_no_news_and_no_crime(fleet: RepositorySimulator, device: TrustClient) -> None:
    old = fleet.tree()
    fleet.publish_policy("second")
    assert attempt(device, fleet.source()).kind == "good"
    refused(device, old, "older")


def test_freeze_is_noticed_by_the_clock(fleet: RepositorySimulator, device: TrustClient) -> None:
    fleet.clock.advance(days=8)
    refused(device, fleet.source(), "unchanged")
    assert device.freshness() == "stale"
    fleet.clock.advance(days=21)
    refused(device, fleet.source(), "expired")
    assert device.freshness() == "frozen"


def test_a_new_device_takes_nothing_that_expired(fleet: RepositorySimulator) -> None:
    fleet.clock.advance(days=8)
    with fleet.client() as client:
        assert attempt(client, fleet.source()).kind == "expired"
        assert client.view is None


def test_stolen_online_keys_cannot_roll_back_to_older_targets(fleet: RepositorySimulator, device: TrustClient) -> None:
    old = fleet.newest_targets().to_bytes()
    fleet.publish_policy("second")
    assert attempt(device, fleet.source()).kind == "good"
    refused(device, fleet.stolen(targets=old), "bad", "targets.json")


def test_stolen_online_keys_cannot_lower_the_snapshot(fleet: RepositorySimulator, device: TrustClient) -> None:
    fleet.publish_policy("second")
    assert attempt(device, fleet.source()).kind == "good"
    refused(device, fleet.stolen(snapshot_version=1), "bad", "snapshot version")


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_mix_and_match(fleet: RepositorySimulator, device: TrustClient, role: str) -> None:
    old = fleet.tree()[f"metadata/1.{role}.json"]
    fleet.publish_policy("second")
    refused(device, fleet.source(replaced={f"metadata/2.{role}.json": old}), "bad")


def test_a_target_of_another_release(fleet: RepositorySimulator, device: TrustClient) -> None:
    fleet.publish_policy("second", "version = 2\n")
    path = next(path for path in fleet.tree() if path.endswith("second.toml"))
    refused(device, fleet.source(replaced={path: b"version = 1\n"}), "bad")


# Signatures


def resigned(tree: Tree, path: str, edit: Callable[[dict[str, Any]], None]) -> Tree:
    document = json.loads(tree[path])
    edit(document)
    return {**tree, path: json.dumps(document).encode()}


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_unsigned(fleet: RepositorySimulator, device: TrustClient, role: str) -> None:
    if role == "targets":
        refused(device, fleet.stolen(targets=fleet.signed_targets(lambda _: None, owners=())), "bad")
        return
    fleet.publish_policy("second")
    path = TIMESTAMP if role == "timestamp" else f"metadata/2.{role}.json"
    refused(device, resigned(fleet.tree(), path, lambda document: document.update(signatures=[])), "bad")


def test_wrong_signers(fleet: RepositorySimulator, device: TrustClient) -> None:
    document = fleet.signed_targets(lambda _: None, owners=())
    document.sign(fleet.signer("root"))
    refused(device, fleet.stolen(targets=document), "bad")
    document.sign(fleet.keys.timestamp)
    refused(device, fleet.stolen(targets=document), "bad")


def test_a_timestamp_by_an_unknown_key(fleet: RepositorySimulator, device: TrustClient, tmp_path: Path) -> None:
    other = RepositorySimulator(tmp_path / "other", clock=fleet.clock)
    refused(device, fleet.stolen(keys=other.keys), "bad")


def test_one_of_two_signatures_and_one_twice(tmp_path: Path) -> None:
    fleet = RepositorySimulator(tmp_path, owners=("alice", "bob"), targets_threshold=2)
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"
        half = fleet.signed_targets(lambda _: None, owners=("alice",))
        refused(device, fleet.stolen(targets=half), "bad", "1/2")
        twice = json.loads(half.to_bytes())
        twice["signatures"] *= 2
        refused(device, fleet.stolen(targets=json.dumps(twice).encode()), "bad")
        whole = fleet.signed_targets(lambda _: None)
        assert attempt(device, TreeSource(fleet.stolen(targets=whole))).kind == "good"


# Delivery


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_endless_data_is_cut_off_at_what_was_signed(fleet: RepositorySimulator, device: TrustClient, role: str) -> None:
    fleet.publish_policy("second")
    path = TIMESTAMP if role == "timestamp" else f"metadata/2.{role}.json"
    asked: dict[str, int] = {}

    class Endless(TreeSource):
        async def fetch(self, path: str, size_bytes_max: int) -> bytes:
            asked[path] = size_bytes_max
            data = await super().fetch(path, size_bytes_max)
            return data + bytes(size_bytes_max) if path == victim else data

    victim = path
    refused(device, Endless(fleet.origin), "incomplete", "at most")
    if role != "timestamp":
        assert asked[path] == len(fleet.tree()[path])


async def test_slow_drip_ends_at_the_deadline(fleet: RepositorySimulator, mock_clock: trio.testing.MockClock) -> None:
    with fleet.client(file_timeout_s=60, attempt_timeout_s=600) as device:
        assert (await device.attempt(fleet.source())).kind == "good"
        before, waited = device.view, []

        async def never(path: str) -> None:
            waited.append(path)
            mock_clock.jump(59.9)
            await trio.lowlevel.checkpoint()
            mock_clock.jump(0.2)
            await trio.sleep_forever()

        fleet.publish_policy("second")
        result = await device.attempt(fleet.source(before=never))
        assert (result.kind, result.view) == ("incomplete", before)
        assert "within 60 s" in result.reason
        assert waited == ["metadata/2.root.json"]


async def test_each_file_just_in_time_ends_at_the_deadline_of_the_attempt(
    fleet: RepositorySimulator, mock_clock: trio.testing.MockClock
) -> None:
    async def slow(path: str) -> None:
        mock_clock.jump(59)
        await trio.lowlevel.checkpoint()

    with fleet.client(file_timeout_s=60, attempt_timeout_s=150) as device:
        result = await device.attempt(fleet.source(before=slow))
        assert (result.kind, result.view) == ("incomplete", None)
        assert "within 150 s" in result.reason


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\x00" * 100,
        b"null",
        b"{}",
        b"[" * 10_000,
        b'{"a":' * 2_000,
        b'{"signed": {"_type": "timestamp", "version": ' + b"9" * 5_000 + b"}}",
        b'{"signatures": [], "signed": {"_type": "root"}}',
        b"\xff\xfe{}",
    ],
    ids=["empty", "zeros", "null", "object", "brackets", "nesting", "number", "other type", "no utf-8"],
)
@pytest.mark.parametrize("path", ["metadata/2.root.json", TIMESTAMP, "metadata/2.snapshot.json"])
def test_junk(fleet: RepositorySimulator, device: TrustClient, path: str, junk: bytes) -> None:
    fleet.publish_policy("second")
    # What cannot have the signed length is not even taken for an answer.
    length = len(fleet.tree().get(path, b"")) if "snapshot" in path else 16_384
    refused(device, fleet.source(replaced={path: junk}), "incomplete" if len(junk) > length else "bad")


def test_truncated_files(fleet: RepositorySimulator, device: TrustClient) -> None:
    before = fleet.tree()
    fleet.publish_policy("second")
    tree = fleet.tree()
    for path in (TIMESTAMP, *(path for path in tree.keys() - before.keys() if "/audit/" not in path)):
        refused(device, TreeSource(tree, replaced={path: tree[path][:-3]}), "bad")
    assert attempt(device, TreeSource(tree)).kind == "good"


def test_missing_files_are_nobodys_fault(fleet: RepositorySimulator, device: TrustClient) -> None:
    fleet.publish_policy("second")
    tree = fleet.tree()
    for path in (TIMESTAMP, "metadata/2.snapshot.json", "metadata/2.targets.json"):
        refused(device, TreeSource(tree, missing={path}), "incomplete")
    assert attempt(device, TreeSource(tree)).kind == "good"


# Roots


def next_root(fleet: RepositorySimulator, edit: Callable[[Root], None], version: int = 2) -> Root:
    root = fleet.fleet.root().signed
    root.version = version
    edit(root)
    return root


def signed_root(fleet: RepositorySimulator, root: Root, *more: Any) -> bytes:
    document = Metadata(root)
    document.sign(fleet.signer("root"))
    for signer in more:
        document.sign(signer, append=True)
    return document.to_bytes()


def test_a_skipped_root_version(fleet: RepositorySimulator, device: TrustClient) -> None:
    third = signed_root(fleet, next_root(fleet, lambda _: None, version=3))
    refused(device, fleet.source(replaced={"metadata/2.root.json": third}), "bad", "version 2")


def test_a_root_signed_only_by_new_keys(fleet: RepositorySimulator, device: TrustClient, tmp_path: Path) -> None:
    thief = keyfile.create(tmp_path / "thief.key", PASSPHRASE, "root", "mallory", preset="lab")

    def edit(root: Root) -> None:
        root.revoke_key(root.roles["root"].keyids[0], "root")
        root.add_key(thief.key, "root")

    document = Metadata(next_root(fleet, edit))
    document.sign(thief.signer())
    refused(device, fleet.source(replaced={"metadata/2.root.json": document.to_bytes()}), "bad")
    assert device.serve("metadata/2.root.json") is None


def test_a_foreign_fleet_with_the_same_keys_shuts_nobody_out(fleet: RepositorySimulator, device: TrustClient) -> None:
    foreign = "f" * 32
    root = signed_root(fleet, next_root(fleet, lambda root: root.unrecognized_fields.update({"x-pcm-fleet": foreign})))
    refused(device, fleet.source(replaced={"metadata/2.root.json": root}), "bad", "ffffffff")
    assert device.serve("metadata/2.root.json") is None, "a foreign root was kept"
    fleet.publish_policy("second")
    assert attempt(device, fleet.source()).kind == "good"


def test_targets_of_a_foreign_fleet_with_the_same_keys(fleet: RepositorySimulator, device: TrustClient) -> None:
    index = Index("pcm.index/1", "f" * 32).encoded()

    def edit(targets: Targets) -> None:
        targets.targets["index.json"] = TargetFile.from_data("index.json", index, ["sha256"])

    document = fleet.signed_targets(edit)
    refused(device, with_target(fleet.stolen(targets=document), document, "index.json", index), "bad", "ffffffff")


def test_one_key_under_two_ids_does_not_make_two_people(tmp_path: Path) -> None:
    fleet = RepositorySimulator(tmp_path, owners=("alice", "bob"), targets_threshold=2)
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"

        def edit(root: Root) -> None:
            role = root.roles["targets"]
            alice = fleet.signer("targets", "alice").public_key.keyid
            twin = type(root.keys[alice]).from_dict("e" * 64, root.keys[alice].to_dict())
            root.keys["e" * 64] = twin
            role.keyids[:] = [alice, "e" * 64]

        root = signed_root(fleet, next_root(fleet, edit))
        refused(device, fleet.source(replaced={"metadata/2.root.json": root}), "bad")
        document = fleet.signed_targets(lambda _: None, owners=("alice",))
        document.signatures["e" * 64] = type(next(iter(document.signatures.values())))(
            "e" * 64, next(iter(document.signatures.values())).signature
        )
        tree = {**fleet.stolen(targets=document), "metadata/2.root.json": root}
        refused(device, tree, "bad", "one key stands under two ids")
        assert device.serve("metadata/2.root.json") is None


# What a correct signature does not prove


def test_a_target_by_md5_alone(fleet: RepositorySimulator, device: TrustClient) -> None:
    def edit(targets: Targets) -> None:
        targets.targets["policies/weak.toml"] = TargetFile.from_data("policies/weak.toml", b"x", ["md5"])

    document = fleet.signed_targets(edit)
    refused(device, with_target(fleet.stolen(targets=document), document, "policies/weak.toml", b"x"), "bad", "SHA-256")


@pytest.mark.parametrize("path", ["../etc/passwd", "policies/../../x.toml", "/etc/passwd", "policies//x", "a b", ""])
def test_a_target_that_leaves_its_folder(
    fleet: RepositorySimulator, device: TrustClient, path: str, tmp_path: Path
) -> None:
    def edit(targets: Targets) -> None:
        targets.targets[path] = TargetFile.from_data(path, b"x", ["sha256"])

    document = fleet.signed_targets(edit)
    before = {file for file in tmp_path.rglob("*") if "device" not in file.parts}
    refused(device, fleet.stolen(targets=document), "bad", "not a target path")
    assert {file for file in tmp_path.rglob("*") if "device" not in file.parts} == before


def test_an_index_that_lists_what_is_not_signed(fleet: RepositorySimulator, device: TrustClient) -> None:
    index = Index("pcm.index/1", fleet.fleet.fleet_id, policies=("policies/ghost.toml",)).encoded()

    def edit(targets: Targets) -> None:
        targets.targets["index.json"] = TargetFile.from_data("index.json", index, ["sha256"])

    document = fleet.signed_targets(edit)
    tree = with_target(fleet.stolen(targets=document), document, "index.json", index)
    refused(device, tree, "bad", "ghost.toml is listed and not signed")


def test_targets_without_an_index(fleet: RepositorySimulator, device: TrustClient) -> None:
    document = fleet.signed_targets(lambda targets: targets.targets.__delitem__("index.json"))
    refused(device, fleet.stolen(targets=document), "bad", "index.json")


def test_a_snapshot_that_binds_nothing(fleet: RepositorySimulator, device: TrustClient) -> None:
    def unbind(document: Any) -> None:
        meta = document.meta["targets.json"] if isinstance(document, Snapshot) else document.snapshot_meta
        meta.hashes = None

    refused(device, fleet.stolen(snapshot_edit=unbind), "bad", "bind")
    refused(device, fleet.stolen(timestamp_edit=unbind), "bad", "bind")


@pytest.mark.parametrize("version", [VERSION_MAX + 1, 1 << 63, 10**300])
def test_versions_that_no_file_can_hold(fleet: RepositorySimulator, device: TrustClient, version: int) -> None:
    refused(device, fleet.stolen(timestamp_version=version), "bad", "beyond")


# Forks


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_equal_version_with_another_digest_is_kept_as_evidence(
    fleet: RepositorySimulator, device: TrustClient, role: str
) -> None:
    assert device.view is not None
    here = device.view.versions
    if role == "timestamp":
        tree = fleet.stolen(timestamp_version=here.timestamp, snapshot_version=here.snapshot + 1)
    elif role == "snapshot":
        tree = fleet.stolen(snapshot_version=here.snapshot, lifetime=timedelta(days=9))
    else:
        document = fleet.signed_targets(
            lambda targets: setattr(targets, "expires", targets.expires + timedelta(days=1)), version_step=0
        )
        tree = fleet.stolen(targets=document)
    refused(device, tree, "bad", "kept as evidence")
    names = {file.name for file in (device.folder / "evidence").iterdir()}
    assert len(names) >= 1
    refused(device, tree, "bad", "kept as evidence")
    assert {file.name for file in (device.folder / "evidence").iterdir()} == names, "the same fork is kept once"
    assert attempt(device, fleet.source()).kind == "unchanged"


def test_whoever_has_a_key_cannot_use_up_the_place_of_other_evidence(
    fleet: RepositorySimulator, device: TrustClient
) -> None:
    assert device.view is not None
    for _ in range(20):  # the thief of the online keys forks one version after the other
        here = device.view.versions.timestamp
        accepted = attempt(device, TreeSource(fleet.stolen(timestamp_version=here + 1, snapshot_version=here + 1)))
        assert accepted.kind == "good", accepted.reason
        for days in (1, 2):
            tree = fleet.stolen(timestamp_version=here + 1, snapshot_version=here + 2, lifetime=timedelta(days=days))
            refused(device, tree, "bad", "kept as evidence")
    document = fleet.signed_targets(
        lambda targets: setattr(targets, "expires", targets.expires + timedelta(days=1)), version_step=0
    )
    here = device.view.versions.timestamp
    refused(device, fleet.stolen(targets=document, timestamp_version=here + 1, snapshot_version=here + 1), "bad")
    folder = device.folder / "evidence"
    told = Evidence(folder).forks()
    assert len(list(folder.iterdir())) <= FILES_MAX
    assert {fork.role for fork in told} == {"timestamp", "snapshot", "targets"}, "what people signed twice is told, too"
    versions = [fork.version for fork in told if fork.role == "timestamp"]
    assert (versions[0], versions[-1]) == (2, here), "the first proof stays, and the newest: it may be by another key"


# Healing


def test_new_online_keys_heal_a_fast_forward(fleet: RepositorySimulator, device: TrustClient) -> None:
    thief = fleet.stolen(timestamp_version=999_999, snapshot_version=888_888)
    assert attempt(device, TreeSource(thief)).kind == "good"
    fleet.publish_policy("second")
    refused(device, fleet.source(), "older")
    fleet.rotate_online_keys()
    healed = attempt(device, fleet.source())
    assert healed.kind == "good", healed.reason
    assert healed.view is not None
    assert healed.view.versions.timestamp < 100
    refused(
        device, TreeSource({**thief, **{k: v for k, v in fleet.tree().items() if k.endswith("2.root.json")}}), "older"
    )


@pytest.mark.parametrize("interrupted", [False, True])
def test_new_online_keys_heal_a_stolen_future(
    fleet: RepositorySimulator, device: TrustClient, interrupted: bool
) -> None:
    far = START + timedelta(days=9_000)
    thief = fleet.stolen(lifetime=timedelta(days=9_999), issued=far)
    assert attempt(device, TreeSource(thief)).kind == "good"
    assert device.view is not None
    assert START < device.now() == device.view.expires < far, (
        "a signed moment is believed, to the end of what came with it"
    )
    assert device.freshness() == "stale", "what is in force stays so, and newer things are installed"
    fleet.publish_policy("second")
    fleet.rotate_online_keys()
    if interrupted:
        # Root arrives, the rest does not, and the device is started again.
        refused(device, fleet.source(missing={TIMESTAMP}), "incomplete")
        device.close()
        device.open()
    assert attempt(device, fleet.source()).kind == "good"
    assert device.now() == fleet.clock.now
    assert device.freshness() == "fresh"


def test_a_peer_between_two_roots_is_not_blamed(fleet: RepositorySimulator, device: TrustClient) -> None:
    old = fleet.tree()
    fleet.rotate_online_keys()
    between = {**old, "metadata/2.root.json": fleet.tree()["metadata/2.root.json"]}
    refused(device, between, "older")
    assert attempt(device, fleet.source()).kind == "good"


def test_incomplete_newest_then_older_then_newest(fleet: RepositorySimulator, device: TrustClient) -> None:
    fleet.publish_policy("second")
    second = fleet.tree()
    fleet.publish_policy("third")
    third = fleet.tree()
    missing = {path for path in third if path.endswith("third.toml")}
    refused(device, TreeSource(third, missing=missing), "incomplete")
    step = attempt(device, TreeSource(second))
    assert step.kind == "good"
    assert step.view is not None
    assert step.view.versions.targets == 2
    last = attempt(device, TreeSource(third))
    assert last.kind == "good"
    assert last.view is not None
    assert "policies/third.toml" in last.view.paths()


# Clocks


def test_a_clock_of_1970_learns_the_time_and_does_not_fall_for_the_past(fleet: RepositorySimulator) -> None:
    wrong = Clock(START.replace(year=1970))
    old = fleet.tree()
    fleet.clock.advance(days=20)
    fleet.publish_policy("second")
    with fleet.client(wall_clock=wrong) as device:
        assert attempt(device, fleet.source()).kind == "good"
        assert device.now() == fleet.clock.now, "the signed moment of issue"
        refused(device, old, "older")
    with fleet.client(wall_clock=wrong) as device:
        assert device.now() == fleet.clock.now, "after a restart, too"
        assert device.freshness() == "fresh"


def test_a_clock_two_years_ahead_accepts_nothing_and_recovers(fleet: RepositorySimulator, device: TrustClient) -> None:
    fleet.publish_policy("second")
    tree = fleet.tree()
    fleet.clock.advance(days=730)
    assert device.freshness() == "frozen"
    refused(device, tree, "expired")
    fleet.clock.now = START
    assert device.freshness() == "fresh"
    assert attempt(device, TreeSource(tree)).kind == "good"


def test_a_timestamp_cannot_lift_time_beyond_its_own_end(fleet: RepositorySimulator, device: TrustClient) -> None:
    tree = fleet.stolen(lifetime=timedelta(days=2), issued=START + timedelta(days=4_000))
    assert attempt(device, TreeSource(tree)).kind == "good"
    assert device.now() == START + timedelta(days=2)


def test_the_timestamp_document_reads_back(fleet: RepositorySimulator) -> None:
    """The simulator itself: what it calls stolen is well-formed."""
    tree = fleet.stolen(timestamp_version=77)
    assert Metadata[Timestamp].from_bytes(tree[TIMESTAMP]).signed.version == 77
