"""From a signed proposal to the origin tree: what is refused, and what a reader sees when the publisher is killed."""

from __future__ import annotations

import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from repository_simulator import (
    PASSPHRASE,
    Clock,
    RepositorySimulator,
    TreeSource,
    attempt,
    killed_before,
    put_segment,
    small_manifest,
)
from tuf.api.metadata import Metadata, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.people.founding import SNAPSHOT_LIFETIME, TIMESTAMP_LIFETIME
from pcm_p2p.authority.publish import OnlineKeys, publish, refresh_online
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.authority.site_policy import fleet_policies
from pcm_p2p.errors import InputError, StorageError, TrustError
from pcm_p2p.trust.floor import Versions


def test_people_who_have_not_signed_are_named(tmp_path: Path) -> None:
    fleet = RepositorySimulator(tmp_path, owners=("alice", "bob", "carol"), targets_threshold=2)
    before = fleet.tree()
    fleet.fleet.stage_policy("second", b"version = 1\n")
    fleet.sign("bob")
    with pytest.raises(TrustError, match="1 more of alice, carol must sign; signed by bob"):
        fleet.publish()
    assert fleet.tree() == before
    fleet.sign("carol")
    assert fleet.publish().versions == Versions(1, 2, 2, 2)


def test_a_release_is_published_with_its_blobs(fleet: RepositorySimulator, tmp_path: Path) -> None:
    manifest, blob = small_manifest()
    fleet.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    fleet.sign()
    published = fleet.publish()
    assert (published.segments_added, published.segment_bytes_added, published.targets_added) == (1, len(blob), 3)
    name = manifest.segments[0].id.hex()
    assert fleet.tree()[f"segments/{name[:2]}/{name}"] == blob
    assert fleet.publish().segments_added == 0
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"
        assert device.view is not None
        assert device.view.read("releases/main/tool@1.0.manifest") == manifest.encoded


def test_a_staged_file_that_is_damaged_is_neither_published_nor_kept(fleet: RepositorySimulator) -> None:
    fleet.fleet.stage_policy("second", b"version = 1\n")
    fleet.sign()
    (file,) = (fleet.fleet.path / "repository" / "targets" / "policies").glob("*.second.toml")
    file.write_bytes(b"")
    before = fleet.tree()
    with pytest.raises(StorageError, match=r"second\.toml is damaged, or was altered"):
        fleet.publish()
    assert fleet.tree() == before
    fleet.fleet.stage_policy("second", b"version = 1\n")
    fleet.publish()
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"


def test_a_policy_of_the_fleet_that_is_damaged_does_not_let_a_site_go_below_it(fleet: RepositorySimulator) -> None:
    """Judged without it, what a site signs would be taken in."""
    (file,) = (fleet.fleet.path / "repository" / "targets" / "policies").glob("*.toml")
    file.write_bytes(b"altered")
    with pytest.raises(StorageError, match="is damaged, or was altered"):
        fleet_policies(fleet.fleet)


def test_a_blob_that_is_gone_is_noticed_before_the_tree_changes(fleet: RepositorySimulator, tmp_path: Path) -> None:
    manifest, blob = small_manifest()
    fleet.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    fleet.sign()
    shutil.rmtree(fleet.fleet.segments)
    timestamp = fleet.tree()["metadata/timestamp.json"]
    with pytest.raises(StorageError, match="1 of its 1 segments are not here"):
        fleet.publish()
    assert fleet.tree()["metadata/timestamp.json"] == timestamp


def test_a_release_that_came_without_its_blobs_does_not_stop_the_publisher(
    fleet: RepositorySimulator, tmp_path: Path
) -> None:
    manifest, blob = small_manifest()
    fleet.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    fleet.sign()
    shutil.rmtree(fleet.fleet.segments)
    before = fleet.fleet.targets()
    with pytest.raises(StorageError, match="are not here"):
        fleet.publish()
    assert fleet.fleet.targets() == before, "nothing is committed"
    assert fleet.fleet.proposed("targets") is not None, "it stays a proposal, so that it can be imported with its blobs"
    others = publish(fleet.fleet, fleet.origin, fleet.keys, only=[])
    assert others.versions.targets == 1, "anything else is published as ever"
    put_segment(fleet.fleet.segments, manifest, blob)
    assert fleet.publish().segments_added == 1


def newest(fleet: RepositorySimulator) -> int:
    return int(fleet.newest_targets().signed.version)


@pytest.mark.parametrize("at", ["the folder", "the tree"])
def test_a_blob_with_other_bytes_is_named_before_devices_meet_it(
    fleet: RepositorySimulator, tmp_path: Path, at: str
) -> None:
    manifest, blob = small_manifest()
    fleet.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    fleet.sign()
    wrong = fleet.fleet.segments if at == "the folder" else fleet.origin / "segments"
    put_segment(wrong, manifest, b"B" + blob[1:])
    before = fleet.tree()
    name = manifest.segments[0].id.hex()
    with pytest.raises(StorageError, match=rf"tool@1\.0\.manifest: .*{name} is damaged"):
        fleet.publish()
    assert (fleet.tree(), newest(fleet)) == (before, 1), "nothing is committed"
    (wrong / name[:2] / name).unlink()
    put_segment(fleet.fleet.segments, manifest, blob)
    assert fleet.publish().segments_added == 1


def test_a_blob_that_rotted_in_the_folder_comes_into_no_new_tree(fleet: RepositorySimulator, tmp_path: Path) -> None:
    manifest, blob = small_manifest()
    fleet.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    fleet.sign()
    fleet.publish()
    name = manifest.segments[0].id.hex()
    put_segment(fleet.fleet.segments, manifest, b"B" + blob[1:])
    other = tmp_path / "other-tree"
    with pytest.raises(StorageError, match=f"{name} is damaged"):
        publish(fleet.fleet, other, fleet.keys)
    assert not (other / "metadata").exists(), "the timestamp comes last"
    put_segment(fleet.fleet.segments, manifest, blob)
    publish(fleet.fleet, other, fleet.keys)
    assert (other / "segments" / name[:2] / name).read_bytes() == blob


def test_a_document_that_rotted_in_the_folder_comes_into_no_new_tree(
    fleet: RepositorySimulator, tmp_path: Path
) -> None:
    (file,) = (fleet.fleet.path / "repository" / "targets" / "policies").glob("*.toml")
    file.unlink()  # the tree's is a second link of it
    file.write_bytes(b"version = 2\n")
    with pytest.raises(StorageError, match="is damaged, or was altered"):
        publish(fleet.fleet, tmp_path / "other-tree", fleet.keys)
    assert not (tmp_path / "other-tree" / "metadata").exists(), "the timestamp comes last"
    fleet.publish()  # where it is placed already it is as it was


def test_what_breaks_a_rule_is_not_published(fleet: RepositorySimulator) -> None:
    def md5(targets: Targets) -> None:
        targets.targets["policies/first.toml"].hashes = {"md5": "0" * 32}

    before = fleet.tree()
    document = fleet.signed_targets(md5)
    (fleet.fleet.path / "proposal" / "targets.json").write_bytes(document.to_bytes())
    with pytest.raises(TrustError, match=r"refused to publish: .* must be named by SHA-256"):
        fleet.publish()
    with pytest.raises(TrustError, match="SHA-256"):
        fleet.sign()
    assert fleet.tree() == before


def test_what_expired_is_not_published(fleet: RepositorySimulator) -> None:
    fleet.fleet.stage_policy("second", b"version = 1\n")
    fleet.sign()
    fleet.clock.advance(days=366)
    with pytest.raises(TrustError, match="targets expired on 2027-03-01"):
        fleet.publish()
    fleet.fleet.renew_targets()
    fleet.sign()
    assert fleet.publish().versions.targets == 2


def test_targets_by_holders_that_left_are_not_published(tmp_path: Path) -> None:
    fleet = RepositorySimulator(tmp_path, owners=("alice", "bob"))
    fleet.fleet.stage_policy("second", b"version = 1\n")
    fleet.sign("alice")
    fleet.publish()
    before = fleet.tree()
    alice = fleet.signer("targets", "alice").public_key.keyid
    fleet.fleet.propose_root(lambda root: root.revoke_key(alice, "targets"))
    fleet.sign(role="root")
    with pytest.raises(TrustError, match="1 more of bob must sign"):
        fleet.publish()
    fleet.fleet.remove_proposal("targets")
    with pytest.raises(TrustError, match="not signed by the holders that root names: targets: 1 more of bob"):
        fleet.publish()
    assert (fleet.tree(), fleet.fleet.root().signed.version) == (before, 1)
    fleet.fleet.renew_targets()
    fleet.sign("bob")
    fleet.publish()
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"


def test_keys_that_root_does_not_name(fleet: RepositorySimulator, tmp_path: Path) -> None:
    other = RepositorySimulator(tmp_path / "other")
    with pytest.raises(TrustError, match="root does not name this snapshot key"):
        publish(fleet.fleet, fleet.origin, other.keys)
    with pytest.raises(TrustError, match="passphrase"):
        OnlineKeys.open(fleet.fleet, "wrong")
    assert OnlineKeys.open(fleet.fleet, lambda stem: PASSPHRASE if stem in {"snapshot", "timestamp"} else "")


def test_nothing_to_publish(tmp_path: Path) -> None:
    clock = Clock()
    folder = FleetFolder.init(tmp_path / "f", name="x", passphrase=PASSPHRASE, preset="lab", wall_clock=clock)
    keys = OnlineKeys.open(folder, PASSPHRASE)
    with pytest.raises(InputError, match="published nothing yet"):
        refresh_online(folder, tmp_path / "origin", keys)
    folder.discard()
    with pytest.raises(InputError, match="nothing to publish"):
        publish(folder, tmp_path / "origin", keys)


# Never backwards


def test_a_restored_backup_is_refused(fleet: RepositorySimulator) -> None:
    backup = fleet.folder / "backup"
    shutil.copytree(fleet.fleet.path, backup)
    fleet.publish_policy("second")
    before = fleet.tree()
    old = FleetFolder.open(backup, wall_clock=fleet.clock)
    for attempt_ in (publish, refresh_online):
        with pytest.raises(TrustError, match="the tree has timestamp 2, this folder 1"):
            attempt_(old, fleet.origin, fleet.keys)
    assert fleet.tree() == before


def test_another_copy_of_the_folder_is_refused(fleet: RepositorySimulator) -> None:
    """Both copies went on: equal and higher versions of the other history must not be mixed into the tree."""
    other = fleet.folder / "copy"
    shutil.copytree(fleet.fleet.path, other)
    fleet.publish_policy("second")
    copy = FleetFolder.open(other, wall_clock=fleet.clock)
    copy.stage_policy("third", b"version = 1\n")
    copy.sign(copy.path / "keys" / "targets-alice.key", PASSPHRASE)
    publish(copy, fleet.folder / "elsewhere", fleet.keys)
    before = fleet.tree()
    for _ in range(2):
        with pytest.raises(TrustError, match="another copy of this folder"):
            publish(copy, fleet.origin, fleet.keys)
        refresh_online(copy, fleet.folder / "elsewhere", fleet.keys)
    assert fleet.tree() == before


def test_the_tree_of_another_fleet_is_refused(fleet: RepositorySimulator, tmp_path: Path) -> None:
    other = RepositorySimulator(tmp_path / "other")
    before = other.tree()
    with pytest.raises(TrustError, match="another fleet"):
        publish(fleet.fleet, other.origin, fleet.keys)
    assert other.tree() == before


def test_a_tree_that_does_not_read_is_refused(fleet: RepositorySimulator) -> None:
    (fleet.origin / "metadata" / "timestamp.json").write_bytes(b"")
    with pytest.raises(TrustError, match="cannot be read"):
        fleet.publish()


def test_a_second_publisher_is_refused(fleet: RepositorySimulator) -> None:
    import fcntl

    with fleet.fleet.locked(), pytest.raises(TrustError, match="another process"):
        fleet.publish()
    with (fleet.origin / ".publish.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TrustError, match="another publisher"):
            fleet.refresh()
    fleet.refresh()


# Refreshing


def test_refresh_signs_what_is_due_and_nothing_else(fleet: RepositorySimulator) -> None:
    fleet.fleet.stage_policy("second", b"version = 1\n")
    assert fleet.refresh().versions == Versions(1, 2, 1, 1)
    fleet.clock.now = fleet.clock.now + SNAPSHOT_LIFETIME / 2
    assert fleet.refresh().versions == Versions(1, 3, 1, 1), "half of the snapshot's life is not past half"
    fleet.clock.advance(seconds=1)
    published = fleet.refresh()
    assert published.versions == Versions(1, 4, 2, 1)
    assert published.expires == fleet.clock.now + TIMESTAMP_LIFETIME
    assert fleet.fleet.proposals()[0].changes, "what is proposed stays proposed"
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"
        assert device.freshness() == "fresh"


def test_refresh_warns_of_what_people_must_sign(fleet: RepositorySimulator) -> None:
    assert fleet.refresh().remarks == ()
    fleet.clock.now = fleet.newest_targets().signed.expires - timedelta(days=89)
    assert [remark.split(",")[0] for remark in fleet.refresh().remarks] == ["targets expires in 89 days"]
    fleet.clock.advance(days=100)
    assert fleet.refresh().remarks[0].startswith("targets expired on 2027-03-01")


def test_refresh_completes_what_a_killed_publisher_left(fleet: RepositorySimulator) -> None:
    """The folder had committed, the tree had nothing yet: a timestamp alone would refer to files that are not there."""
    fleet.fleet.stage_policy("second", b"version = 1\n")
    fleet.sign()
    shutil.copytree(fleet.origin, fleet.folder / "behind")
    fleet.publish()
    refresh_online(fleet.fleet, fleet.folder / "behind", fleet.keys)
    with fleet.client() as device:
        assert attempt(device, TreeSource(fleet.folder / "behind")).kind == "good"
        assert device.digest().targets == 2


# Killed


@pytest.mark.parametrize("change", ["first", "release and online keys"])
def test_killed_at_any_step_the_tree_verifies_and_publishing_completes_it(
    fleet: RepositorySimulator, change: str, tmp_path: Path
) -> None:
    if change == "first":
        shutil.rmtree(fleet.origin)
    else:
        manifest, blob = small_manifest()
        fleet.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
        fleet.propose_online_keys()
    with fleet.client() as device:
        if change != "first":
            assert attempt(device, fleet.source()).kind == "good"
    saved = tmp_path / "saved"
    saved.mkdir()
    parts = ("fleet", "origin", "device")
    for part in parts:
        if (fleet.folder / part).exists():
            os.rename(fleet.folder / part, saved / part)  # noqa: PTH104 - not counted as a step
    step, killed, kinds = 0, True, set()
    while killed:
        for part in parts:
            shutil.rmtree(fleet.folder / part, ignore_errors=True)
            if (saved / part).exists():
                shutil.copytree(saved / part, fleet.folder / part)
        killed = killed_before(step, fleet.publish)
        with fleet.client() as device:
            result = attempt(device, fleet.source())
            kinds.add(result.kind)
            timestamp = fleet.origin / "metadata" / "timestamp.json"
            between = change == "release and online keys" and (fleet.origin / "metadata" / "2.root.json").exists()
            allowed = {"good", "unchanged"} | ({"older"} if between else set())
            assert result.kind in (allowed if timestamp.exists() else {"incomplete"}), f"step {step}: {result.reason}"
            fleet.publish()
            assert attempt(device, fleet.source()).kind == "good", f"step {step}"
            assert device.digest().targets == fleet.newest_targets().signed.version
            assert device.digest().root == fleet.fleet.root().signed.version
        step += 1
    assert step > 15
    assert kinds >= ({"incomplete", "good"} if change == "first" else {"unchanged", "good"})
    assert fleet.fleet.proposals() == ()


def test_a_tree_can_be_made_again_from_the_folder(fleet: RepositorySimulator) -> None:
    fleet.publish_policy("second")
    before = fleet.tree()
    shutil.rmtree(fleet.origin)
    published = fleet.publish()
    assert published.targets_added == 6
    assert fleet.tree().keys() >= {path for path in before if "1.snapshot" not in path and "1.targets" not in path} - {
        path for path in before if path.endswith("index.json") or "/audit/" in path
    }
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"
    assert Metadata.from_bytes(before["metadata/timestamp.json"]).signed.version < published.versions.timestamp
