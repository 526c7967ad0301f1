"""Power cuts and rotten disks: whatever happens to the folder, the device has the old view or the new one, and no older."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from repository_simulator import RepositorySimulator, Tree, TreeSource, attempt, full_disk_from, killed_before

from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.floor import Versions

CHANGES = ("first contact", "new targets and root", "new online keys after a fast-forward")


def prepared(fleet: RepositorySimulator, change: str) -> None:
    """A device as it was, and a tree with ``change`` in it."""
    if change == "first contact":
        return
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"
        if "fast-forward" in change:
            assert attempt(device, TreeSource(fleet.stolen(timestamp_version=999, snapshot_version=888))).kind == "good"
    fleet.publish_policy("second")
    if change == "new targets and root":
        fleet.publish_root(lambda root: None)
    elif "fast-forward" in change:
        fleet.rotate_online_keys()


def trusted(device: TrustClient) -> Versions | None:
    """What is trusted, all of which can be read."""
    if device.view is None:
        return None
    assert all(device.view.read(path) for path in device.view.paths())
    assert device.freshness() == "fresh"
    return device.view.versions


@pytest.mark.parametrize("change", CHANGES)
def test_killed_at_any_step_the_view_is_the_old_or_the_new(fleet: RepositorySimulator, change: str) -> None:
    prepared(fleet, change)
    device = fleet.folder / "device"
    saved = fleet.folder / "saved"
    if device.exists():
        device.rename(saved)
    else:
        saved.mkdir()
    shutil.copytree(saved, device)
    with fleet.client() as client:
        old, seen = trusted(client), set()
        new: Versions | None = None

    def learn() -> None:
        with fleet.client() as client:
            assert attempt(client, fleet.source()).kind == "good"

    step, killed = 0, True
    while killed:
        shutil.rmtree(device)
        shutil.copytree(saved, device)
        killed = killed_before(step, learn)
        with fleet.client() as client:
            seen.add(trusted(client))
            assert attempt(client, fleet.source()).kind in {"good", "unchanged"}, f"step {step}"
            new = trusted(client)
        assert new is not None
        assert new.targets == fleet.newest_targets().signed.version
        step += 1
    assert step > 15, "the steps were counted"
    assert seen == {old, new}
    assert not list(device.rglob("*.tmp")), "a start sweeps what a kill left"
    assert len(list((device / "generations").iterdir())) <= 2


def test_on_a_full_disk_the_view_stays_and_room_is_all_that_it_takes(
    fleet: RepositorySimulator, quick_disk: None
) -> None:
    prepared(fleet, "new targets and root")
    device, saved = fleet.folder / "device", fleet.folder / "saved"
    device.rename(saved)
    step, failed, kinds = 0, ["once"], set()
    while failed:
        shutil.rmtree(device, ignore_errors=True)
        shutil.copytree(saved, device)
        with fleet.client() as client:
            old = trusted(client)
            with full_disk_from(step) as failed:
                result = attempt(client, fleet.source())
            kinds.add(result.kind)
            if result.kind != "good":
                assert trusted(client) == old, f"step {step}: {result.reason}"
                assert "No space left on device" in result.reason
        with fleet.client() as client:
            assert trusted(client) is not None
            assert attempt(client, fleet.source()).kind in {"good", "unchanged"}, f"step {step}"
            assert client.digest().targets == fleet.newest_targets().signed.version
        step += 4
    assert step > 15
    assert kinds == {"incomplete", "good"}
    assert not list(device.rglob("*.tmp"))


def files_of(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("damage", ["zeroed", "truncated", "empty", "removed"])
def test_no_damaged_file_lets_an_old_version_back(fleet: RepositorySimulator, damage: str) -> None:
    first: Tree = fleet.tree()
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"
        fleet.publish_policy("second")
        second: Tree = fleet.tree()
        assert attempt(device, fleet.source()).kind == "good"
        fleet.publish_root(lambda root: None)
        assert attempt(device, fleet.source()).kind == "good"
        assert device.view is not None
        newest = device.view.versions
    folder, saved = fleet.folder / "device", fleet.folder / "saved"
    folder.rename(saved)
    for name in files_of(saved):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        file, data = folder / name, (saved / name).read_bytes()
        if damage == "removed":
            file.unlink()
        else:
            file.write_bytes({"zeroed": bytes(len(data)), "truncated": data[: len(data) // 2], "empty": b""}[damage])
        with fleet.client() as device:
            assert device.view is not None, f"{name}: no view is left"
            assert device.view.versions == newest or device.freshness() == "frozen", (
                f"{name}: an old version may be installed"
            )
            for old in (first, second):
                result = attempt(device, TreeSource(old))
                assert result.kind in {"older", "bad"}, f"{name}: {result.kind} {result.reason}"
            assert attempt(device, fleet.source()).kind in {"good", "unchanged"}, name
            assert device.view.versions == newest, name
            assert device.serve("metadata/2.root.json") == fleet.fleet.root_bytes(2), name
        with fleet.client() as device:
            assert device.view is not None
            assert device.view.versions == newest, f"{name}: not healed"


@pytest.mark.parametrize("lost", ["the newest generation is torn", "the folder without its floor is set back"])
def test_what_is_left_of_an_older_version_stays_and_installs_nothing_until_it_is_healed(
    fleet: RepositorySimulator, lost: str
) -> None:
    folder, before = fleet.folder / "device", fleet.folder / "before"
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"
        old = device.view.versions if device.view else None
    shutil.copytree(folder, before)
    fleet.publish_policy("second")
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"
    if "torn" in lost:
        newest = max((folder / "generations").iterdir(), key=lambda path: int(path.name))
        (newest / "metadata" / "targets.json").write_bytes(b"")
    else:
        for name in ("generations", "current"):
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        shutil.copytree(before / "generations", folder / "generations")
        shutil.copy(before / "current", folder / "current")
    with fleet.client() as device:
        assert device.view is not None
        assert device.view.versions == old
        assert device.freshness() == "frozen"
        assert "which was accepted before" in device.behind
        assert attempt(device, fleet.source()).kind == "good"
        assert (device.freshness(), device.behind) == ("fresh", "")
    with fleet.client() as device:
        assert device.freshness() == "fresh"


def test_a_crash_between_pointer_and_floor_keeps_the_new_keys_floor(fleet: RepositorySimulator) -> None:
    """The saved floor is of the thief's versions and keys; the view is of the new ones: neither locks out nor lets back."""
    prepared(fleet, "new online keys after a fast-forward")
    folder = fleet.folder / "device"
    floor = (folder / "floor.json").read_bytes()
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"
    here = fleet.tree()
    (folder / "floor.json").write_bytes(floor)
    fleet.publish_policy("third")
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"
    (folder / "floor.json").write_bytes(floor)
    for file in (folder / "generations").rglob("timestamp.json"):
        file.write_bytes(b"") if device.view and file.is_relative_to(device.view.folder) else None
    with fleet.client() as device:
        # The newest generation is torn, the floor of before: the one before it is used, and is a floor itself.
        assert device.view is not None
        assert attempt(device, TreeSource(here)).kind == "unchanged"
        assert attempt(device, fleet.source()).kind == "good"
