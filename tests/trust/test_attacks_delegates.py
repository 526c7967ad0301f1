"""What who stole the key of a site or team can try against everybody else: fill their disks, their time and their lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from attack_kit import accepted
from repository_simulator import RepositorySimulator, TreeSource, attempt, put_segment, site_policy, small_manifest
from tuf.api.metadata import MetaFile, Snapshot, TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.content.manifest import SIZE_BYTES_MAX as MANIFEST_SIZE_BYTES_MAX
from pcm_p2p.trust.index import VERSION_MAX, Index
from pcm_p2p.trust.lint import DOCUMENTS_BYTES_MAX, MANIFESTS_BYTES_MAX

BERLIN, WEB = "site-berlin", "team-web"


@pytest.fixture(scope="module")
def offices_once(tmp_path_factory: pytest.TempPathFactory) -> RepositorySimulator:
    folder = tmp_path_factory.mktemp("offices")
    fleet = RepositorySimulator(folder)
    fleet.delegate(BERLIN, "bob")
    fleet.delegate(WEB, "wanda")
    fleet.publish_site_policy("berlin", "first", "bob")
    manifest, blob = small_manifest("shop", "2.0")
    fleet.fleet.stage_release(manifest, put_segment(folder / "segments", manifest, blob), WEB)
    fleet.sign("wanda", role=WEB)
    fleet.publish()
    return fleet


@pytest.fixture
def offices(offices_once: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    return offices_once.copied_to(tmp_path)


@pytest.mark.parametrize("version", [VERSION_MAX + 1, 1 << 53, 10**30])
def test_a_thief_of_online_keys_makes_no_view_that_is_gone_after_a_restart(
    offices: RepositorySimulator, version: int
) -> None:
    """A snapshot that lists a version which the device's own record of the view cannot hold; accepted twice, since two
    generations are kept."""

    def edit(document: Snapshot) -> None:
        document.meta[f"{BERLIN}.json"] = MetaFile(version, 100, {"sha256": "0" * 64})

    with offices.client() as device:
        good = attempt(device, offices.source())
        assert good.view is not None
        for further in (1, 2):
            tree = offices.stolen(
                snapshot_edit=edit,
                snapshot_version=good.view.versions.snapshot + further,
                timestamp_version=good.view.versions.timestamp + further,
            )
            attempt(device, TreeSource(tree))
    with offices.client() as device:
        assert device.view is not None
        assert device.view.versions == good.view.versions


@pytest.mark.parametrize(
    ("role", "owner", "pattern", "each", "bound", "said"),
    [
        (BERLIN, "bob", "policies/berlin/p{}.toml", 1 << 20, DOCUMENTS_BYTES_MAX, "documents have"),
        (WEB, "wanda", "releases/web/r@{}.manifest", MANIFEST_SIZE_BYTES_MAX, MANIFESTS_BYTES_MAX, "manifests have"),
    ],
    ids=["policies", "manifests"],
)
def test_a_delegate_that_lists_more_than_anybody_could_fetch_costs_nobody_the_news_of_others(
    offices: RepositorySimulator, role: str, owner: str, pattern: str, each: int, bound: int, said: str
) -> None:
    """Everything listed is signed and served; a device that fetched it would be busy with it for good, and its disk full."""
    paths = sorted(pattern.format(number) for number in range(bound // each + 1))
    index = Index(
        "pcm.index/1",
        offices.fleet.fleet_id,
        policies=tuple(paths) if role == BERLIN else (),
        releases=tuple(paths) if role == WEB else (),
    ).encoded()

    def flood(targets: Targets) -> None:
        targets.targets.clear()
        for path in paths:
            targets.targets[path] = TargetFile(each, {"sha256": "ab" * 32}, path)
        listed = "policies/berlin/index.json" if role == BERLIN else "releases/web/index.json"
        targets.targets[listed] = TargetFile.from_data(listed, index, ["sha256"])

    with offices.client() as relay:
        assert attempt(relay, offices.source()).kind == "good"
        assert relay.view is not None
        offices.publish_policy("news")
        source = TreeSource(offices.stolen(delegated={role: offices.signed_delegated(role, flood, owner)}))
        accepted(relay, source)
        assert relay.view.read("policies/news.toml") == b"version = 1\n", "the fleet's news came all the same"
        assert relay.view.read("policies/berlin/first.toml") == site_policy("berlin", "first"), "what was good stays"
        assert any(said in problem for problem in relay.view.problems(offices.clock.now))
        assert not [path for path in source.requests if "ab" * 32 in path], "not a byte of it is asked for"
