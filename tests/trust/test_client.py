"""A device's trust: what it learns from honest sources, what it keeps, how fresh it is, what it hands on."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import trio
from repository_simulator import RepositorySimulator, TreeSource, attempt, put_segment, small_manifest

from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import StorageError, TrustError
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.floor import Floor, Versions
from pcm_p2p.trust.index import Index
from pcm_p2p.trust.updater import SourceFailed
from pcm_p2p.trust.view import GRACE, TrustedView


class PeerSource:
    """Another device: the source is its ``serve``."""

    def __init__(self, peer: TrustClient) -> None:
        self.peer = peer
        self.name = "peer"

    async def fetch(self, path: str, size_bytes_max: int) -> bytes:
        data = self.peer.serve(path)
        if data is None:
            raise SourceFailed(f"{path} is not here")
        return data


def test_first_contact_brings_everything_and_the_second_only_asks(fleet: RepositorySimulator) -> None:
    with fleet.client() as device:
        assert (device.view, device.freshness(), device.digest()[:4]) == (None, "frozen", (0, 0, 0, 0))
        source = fleet.source()
        result = attempt(device, source)
        assert (result.kind, result.reason, result.source) == ("good", "", "carrier")
        view = device.view
        assert view is not None
        assert view.versions == Versions(1, 1, 1, 1)
        assert view.paths() == ("fleet/fleet.toml", "identity/ca.pem", "index.json", "policies/first.toml")
        assert view.read("policies/first.toml") == b"version = 1\n"
        assert view.index().policies == ("policies/first.toml",)
        assert (device.digest().root, device.digest().timestamp_sha256) == (1, view.timestamp_sha256)
        source.requests.clear()
        assert attempt(device, source).kind == "unchanged"
        assert source.requests == ["metadata/2.root.json", "metadata/timestamp.json"]
        assert device.statistics() == {"good": 1, "unchanged": 1}
        with pytest.raises(TrustError, match="not among"):
            view.read("policies/other.toml")


def test_only_what_changed_is_fetched(fleet: RepositorySimulator) -> None:
    with fleet.client() as device:
        attempt(device, fleet.source())
        fleet.publish_policy("second")
        source = fleet.source()
        assert attempt(device, source).kind == "good"
        targets = [path.rpartition("/")[2][65:] for path in source.requests if path.startswith("targets/")]
        assert targets == ["index.json", "second.toml"]
        fleet.refresh()
        source.requests.clear()
        assert attempt(device, source).kind == "good"
        assert source.requests == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_the_view_outlives_the_process(fleet: RepositorySimulator) -> None:
    with fleet.client() as device:
        attempt(device, fleet.source())
        before = device.view
    with fleet.client() as device:
        assert device.view == before
        assert attempt(device, fleet.source()).kind == "unchanged"


@pytest.mark.parametrize(
    ("beyond", "freshness"),
    [
        (timedelta(seconds=-1), "fresh"),
        (timedelta(0), "stale"),
        (GRACE - timedelta(seconds=1), "stale"),
        (GRACE, "frozen"),
        (timedelta(days=4_000), "frozen"),
    ],
)
def test_the_boundaries_of_freshness(fleet: RepositorySimulator, beyond: timedelta, freshness: str) -> None:
    with fleet.client() as device:
        attempt(device, fleet.source())
        assert device.view is not None
        fleet.clock.now = device.view.expires + beyond
        assert device.freshness() == freshness


def test_who_is_stale_accepts_newer_that_is_stale_and_no_more(fleet: RepositorySimulator) -> None:
    with fleet.client() as device:
        attempt(device, fleet.source())
        fleet.clock.advance(days=2)
        fleet.publish_policy("second")
        timestamp = fleet.fleet.timestamp()
        assert timestamp is not None
        end = timestamp.signed.expires
        fleet.clock.now = end + GRACE
        assert attempt(device, fleet.source()).kind == "expired"
        fleet.clock.now = end + GRACE - timedelta(seconds=1)
        assert attempt(device, fleet.source()).kind == "good"
        assert device.freshness() == "stale"


def test_a_peer_serves_all_that_another_device_needs(fleet: RepositorySimulator, tmp_path: Path) -> None:
    fleet.publish_root(lambda root: None)
    fleet.publish_policy("second")
    with fleet.client() as device:
        attempt(device, fleet.source())
        root = fleet.fleet.root_bytes(1)
        with TrustClient(tmp_path / "other", root, fleet.fleet.fleet_id, wall_clock=fleet.clock) as other:
            # A peer that lacks the next root answers "missing" in the daemon; here the fleet's tree says so.
            source = TreeSource({path: data for path in fleet.tree() if (data := device.serve(path)) is not None})
            assert trio.run(other.attempt, source).kind == "good"
            assert other.digest() == device.digest()
            assert trio.run(other.attempt, PeerSource(device)).kind == "incomplete"


def test_serve_knows_only_names_of_the_tree(fleet: RepositorySimulator) -> None:
    with fleet.client() as device:
        assert device.serve("metadata/timestamp.json") is None
        assert device.serve("metadata/1.root.json") == fleet.fleet.root_bytes(1)
        attempt(device, fleet.source())
        served = {path for path in fleet.tree() if device.serve(path) == fleet.tree()[path]}
        # All but the audit log, which is for people.
        assert served == {path for path in fleet.tree() if "/audit/" not in path}
        for path in (
            "metadata/../state.json",
            "state.json",
            "/etc/passwd",
            "metadata/2.targets.json",
            "metadata/targets.json",
            "targets/../../../.lock",
            f"targets/{'0' * 64}.index.json",
            "segments/ab/" + "0" * 64,
            "",
        ):
            assert device.serve(path) is None, path


def test_rotten_files_are_not_served_and_are_fetched_again(fleet: RepositorySimulator) -> None:
    with fleet.client() as device:
        attempt(device, fleet.source())
        view = device.view
        assert view is not None
        name = next(path for path in fleet.tree() if path.endswith("first.toml"))
        view.file_of("policies/first.toml").write_bytes(b"version = 9\n")
        assert device.serve(name) is None
        with pytest.raises(StorageError, match="damaged"):
            view.read("policies/first.toml")
        assert attempt(device, fleet.source()).kind == "good"
        assert device.serve(name) == b"version = 1\n"
        assert device.view is not None
        (device.view.folder / "metadata" / "targets.json").write_bytes(b"")
        assert device.serve("metadata/1.targets.json") is None
        assert attempt(device, fleet.source()).kind == "good"
        assert device.serve("metadata/1.targets.json") is not None


def test_a_device_fetches_the_manifests_that_it_wants(fleet: RepositorySimulator, tmp_path: Path) -> None:
    for name in ("tool", "other"):
        manifest, blob = small_manifest(release=name)
        fleet.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    fleet.sign()
    fleet.publish()
    seen: list[Mapping[str, bytes]] = []
    wanted = {"releases/main/tool@1.0.manifest"}

    def choose(index: Index, documents: Mapping[str, bytes]) -> Collection[str]:
        seen.append(documents)
        assert len(index.releases) == 2
        return [*wanted, "releases/main/unlisted@1.manifest"]

    with fleet.client(wanted=choose) as device:
        assert attempt(device, fleet.source()).kind == "good"
        assert device.view is not None
        assert [path for path in device.view.paths() if path.startswith("releases/")] == sorted(wanted)
        assert seen[0].keys() == {"fleet/fleet.toml", "identity/ca.pem", "policies/first.toml"}
        # Another label: the tree is the same, and another manifest is needed.
        wanted.add("releases/main/other@1.0.manifest")
        assert attempt(device, fleet.source()).kind == "good"
        assert device.view is not None
        assert [path for path in device.view.paths() if path.startswith("releases/")] == sorted(wanted)
        assert attempt(device, fleet.source()).kind == "unchanged"


def test_a_device_that_cannot_choose_blames_nobody(fleet: RepositorySimulator) -> None:
    def choose(index: Index, documents: Mapping[str, bytes]) -> Collection[str]:
        raise StorageError("no facts")

    with fleet.client(wanted=choose) as device:
        result = attempt(device, fleet.source())
        assert (result.kind, result.view) == ("incomplete", None)
        assert "no facts" in result.reason


def test_a_source_that_raises_anything_ends_one_attempt(fleet: RepositorySimulator) -> None:
    class Broken(TreeSource):
        async def fetch(self, path: str, size_bytes_max: int) -> bytes:
            raise trio.BrokenResourceError

    with fleet.client() as device:
        assert attempt(device, Broken(fleet.origin)).kind == "incomplete"


def test_a_full_disk_keeps_the_view_and_leaves_no_rubbish(
    fleet: RepositorySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fleet.client() as device:
        attempt(device, fleet.source())
        before = device.view
        fleet.publish_policy("second")

        def full(path: Path, data: bytes, **_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("pcm_p2p.trust.client.write_atomic", full)
            for _ in range(3):
                result = attempt(device, fleet.source())
                assert (result.kind, result.view) == ("incomplete", before)
        assert [path.name for path in (device.folder / "generations").iterdir()] == ["1"]
        assert attempt(device, fleet.source()).kind == "good"


def test_a_floor_that_cannot_be_saved_does_not_undo_the_swap(
    fleet: RepositorySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sometimes(path: Path, data: bytes) -> None:
        if path.name == "floor.json":
            raise OSError(5, "Input/output error")
        write_atomic(path, data)

    old = fleet.tree()
    fleet.publish_policy("second")
    with fleet.client() as device, monkeypatch.context() as patch:
        patch.setattr("pcm_p2p.trust.client.write_atomic", sometimes)
        assert attempt(device, fleet.source()).kind == "good"
    with fleet.client() as device:
        assert attempt(device, TreeSource(old)).kind == "older"


def test_two_generations_are_kept(fleet: RepositorySimulator) -> None:
    with fleet.client() as device:
        for number in range(5):
            fleet.publish_policy(f"p{number}")
            assert attempt(device, fleet.source()).kind == "good"
        assert sorted(path.name for path in (device.folder / "generations").iterdir()) == ["4", "5"]


async def test_cancellation_changes_nothing(fleet: RepositorySimulator) -> None:
    with fleet.client() as device:
        await device.attempt(fleet.source())
        before = device.view
        fleet.publish_policy("second")
        asked = fleet.source()
        await device.attempt(fleet.source(missing={"metadata/timestamp.json"}))
        assert device.view is before
        for step in range(6):
            with trio.CancelScope() as scope:
                count = 0

                async def stop(path: str, step: int = step, scope: trio.CancelScope = scope) -> None:
                    nonlocal count
                    if count == step:
                        scope.cancel()
                        await trio.sleep_forever()
                    count += 1

                await device.attempt(fleet.source(before=stop))
            assert scope.cancelled_caught
            assert device.view is before
        assert (await device.attempt(asked)).kind == "good"
        assert len(asked.requests) == 6


async def test_attempts_come_one_after_another(fleet: RepositorySimulator) -> None:
    running = 0

    async def alone(path: str) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await trio.lowlevel.checkpoint()
        running -= 1

    with fleet.client() as device:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(device.attempt, fleet.source(before=alone))
        assert device.statistics() == {"good": 1, "unchanged": 2}


def test_a_second_process_is_refused(fleet: RepositorySimulator) -> None:
    with fleet.client() as device:
        with pytest.raises(TrustError, match="in use by another process"):
            fleet.client().open()
        device.close()
        device.close()
        with fleet.client():
            pass


def test_the_pinned_root_must_be_of_this_fleet(fleet: RepositorySimulator) -> None:
    root = fleet.fleet.root_bytes()
    for pinned, name in ((root, "0" * 32), (b"{}", fleet.fleet.fleet_id), (root[:-2], fleet.fleet.fleet_id)):
        client = TrustClient(fleet.folder / "device", pinned, name, wall_clock=fleet.clock)
        with pytest.raises(TrustError, match="pinned root"):
            client.open()
    with fleet.client():  # a refused one gives the folder back
        pass


def test_a_folder_that_cannot_be_used(fleet: RepositorySimulator) -> None:
    (fleet.folder / "device").write_text("a file")
    with pytest.raises(StorageError, match="cannot be used"):
        fleet.client().open()


def test_roots_are_followed_and_kept(fleet: RepositorySimulator) -> None:
    for _ in range(3):
        fleet.publish_root(lambda root: None)
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"
        assert device.digest().root == 4
        assert all(device.serve(f"metadata/{n}.root.json") == fleet.fleet.root_bytes(n) for n in range(1, 5))
        assert device.serve("metadata/5.root.json") is None
    # A device that is enrolled again pins a newer one.
    with TrustClient(
        fleet.folder / "new", fleet.fleet.root_bytes(3), fleet.fleet.fleet_id, wall_clock=fleet.clock
    ) as new:
        source = fleet.source()
        assert attempt(new, source).kind == "good"
        assert source.requests[0] == "metadata/4.root.json"


# The floor by itself


KEYS = (("t1",), ("s1",))


def floor(versions: Versions, time_ms: int = 0, keys: tuple[tuple[str, ...], tuple[str, ...]] = KEYS) -> Floor:
    return Floor().raised(
        versions, timestamp_signers=keys[0], snapshot_signers=keys[1], now_ms=time_ms, issued_ms=0, expires_ms=1 << 50
    )


def test_the_floor_only_rises() -> None:
    here = floor(Versions(2, 9, 5, 4), 1_000)
    assert here.below(Versions(2, 9, 5, 4)) == ""
    assert "timestamp version 8 is below 9" in here.below(Versions(2, 8, 5, 4))
    higher = here.raised(
        Versions(1, 10, 3, 5), timestamp_signers=("t1",), snapshot_signers=("s1",), now_ms=0, issued_ms=0, expires_ms=9
    )
    assert higher.versions == Versions(2, 10, 5, 5)
    assert higher.time_ms == 1_000


def test_the_floor_falls_with_the_keys_that_proved_it() -> None:
    here = floor(Versions(2, 9, 5, 4), 1_000)
    both, one = frozenset({"t1", "t2"}), frozenset({"s1"})
    assert here.under(both, one) == here
    assert here.under(frozenset({"t2"}), one).versions == Versions(2, 0, 5, 4)
    assert here.under(frozenset({"t2"}), one).time_ms == 0
    gone = here.under(both, frozenset({"s2"}))
    assert (gone.versions, gone.time_ms) == (Versions(2, 0, 0, 0), 1_000)


def test_of_two_floors_each_role_keeps_its_own_signers() -> None:
    old, new = floor(Versions(1, 9, 5, 4), 5), floor(Versions(2, 10, 5, 3), 3, (("t2",), ("s2",)))
    joined = old.or_higher(new)
    assert joined.versions == Versions(2, 10, 5, 4)
    assert (joined.timestamp_signers, joined.snapshot_signers, joined.time_ms) == (("t2",), ("s1",), 5)


def test_a_view_knows_a_torn_generation(fleet: RepositorySimulator) -> None:
    with fleet.client() as device:
        attempt(device, fleet.source())
        assert device.view is not None
        folder = device.view.folder
        assert TrustedView.load(folder) == device.view
        digest = hashlib.sha256((folder / "metadata" / "timestamp.json").read_bytes()).hexdigest()
        assert device.view.state.metadata["metadata/timestamp.json"] == digest
        (folder / "metadata" / "timestamp.json").write_bytes(b"{}")
        with pytest.raises(StorageError, match="damaged"):
            TrustedView.load(folder)
