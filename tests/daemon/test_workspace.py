"""A folder to sign in, made from a published tree: what is in it was verified, and it never goes back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trio
from repository_simulator import PASSPHRASE, RepositorySimulator, TreeSource, put_segment, site_policy, small_manifest
from securesystemslib.signer import Signature  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.metadata import Metadata

from pcm_p2p.authority import halting
from pcm_p2p.authority.keys.signing_key import open_signing_key
from pcm_p2p.daemon.workspace import Workspace, bring_workspace, open_tree
from pcm_p2p.errors import InputError, TransferError, TrustError
from pcm_p2p.trust.client import MetadataSource
from pcm_p2p.trust.delegation import HALT

BERLIN = "site-berlin"


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    pass


@pytest.fixture
def offices(fleet: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    fleet.delegate(BERLIN, "bob")
    manifest, blob = small_manifest()
    fleet.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    fleet.sign()
    fleet.publish()
    fleet.publish_site_policy("berlin", "first", "bob")
    return fleet


def bring(
    offices: RepositorySimulator, source: MetadataSource | None = None, *, root: bytes | None = None
) -> Workspace:
    async def work() -> Workspace:
        return await bring_workspace(
            offices.folder / "office", source or offices.source(), root, wall_clock=offices.clock
        )

    return trio.run(work)


def first(offices: RepositorySimulator) -> Workspace:
    return bring(offices, root=offices.fleet.root_bytes(1))


def test_a_site_signs_in_it_what_the_publisher_takes_in(offices: RepositorySimulator) -> None:
    folder = first(offices).folder
    assert (folder.fleet_id, folder.name) == (offices.fleet.fleet_id, "Simulated")
    assert list((folder.path / "keys").iterdir()) == []
    assert folder.roles() == offices.fleet.roles()
    assert folder.read_target("policies/berlin/first.toml") == site_policy("berlin", "first")
    assert [one.version for one in folder.releases()] == ["1.0"]
    folder.stage_policy("second", site_policy("berlin", "second"), BERLIN)
    (result,) = folder.sign(offices.key_path(BERLIN, "bob"), PASSPHRASE)
    assert result.complete
    assert folder.proposals()[0].version_after == 2
    # Carried by hand: the document and the files that it names.
    shutil.copytree(
        folder.path / "repository" / "targets", offices.fleet.path / "repository" / "targets", dirs_exist_ok=True
    )
    shutil.copy(folder.path / "proposal" / f"{BERLIN}.json", offices.fleet.path / "proposal")
    offices.publish()
    brought = bring(offices)
    assert (brought.folder.proposals(), brought.problems) == ((), ())
    assert "policies/berlin/second.toml" in offices.delegated(BERLIN).signed.targets


def test_what_a_mirror_puts_beside_signed_bytes_does_not_keep_people_from_signing(offices: RepositorySimulator) -> None:
    tree = offices.folder / "origin" / "metadata"
    for name in ("timestamp.json", "1.root.json"):
        document = Metadata[Any].from_bytes((tree / name).read_bytes())
        for keyid, one in document.signatures.items():
            document.signatures[keyid] = Signature(keyid, one.signature.upper())
        document.signatures["x"] = Signature("x", "no signature")
        (tree / name).write_bytes(document.to_bytes())
    folder = first(offices).folder
    folder.stage_policy("second", site_policy("berlin", "second"), BERLIN)
    (result,) = folder.sign(offices.key_path(BERLIN, "bob"), PASSPHRASE)
    assert result.complete


def test_one_may_halt_from_it(offices: RepositorySimulator) -> None:
    folder = first(offices).folder
    key = open_signing_key(offices.key_path(BERLIN, "bob"), PASSPHRASE)
    assert halting.order(folder, key, reason="x").reach.sites == {"berlin"}
    assert [proposal.role for proposal in folder.proposals()] == [HALT]


def test_it_is_brought_up_to_date_and_keeps_what_is_proposed(offices: RepositorySimulator) -> None:
    folder = first(offices).folder
    folder.stage_policy("second", site_policy("berlin", "second"), BERLIN)
    offices.publish_root(lambda root: None)
    offices.publish_policy("news")
    brought = bring(offices)
    assert brought.versions.root == 2
    assert brought.folder.read_target("policies/news.toml") == b"version = 1\n"
    assert [proposal.role for proposal in brought.folder.proposals()] == [BERLIN]


def test_it_says_what_of_its_own_was_overtaken(offices: RepositorySimulator) -> None:
    """Two people order a halt; the other one's was published first. The order here must not vanish without a word."""
    folder = first(offices).folder
    halting.order(folder, open_signing_key(offices.key_path(BERLIN, "bob"), PASSPHRASE), reason="here")
    assert bring(offices).overtaken == ()
    halting.order(
        offices.fleet, open_signing_key(offices.key_path("targets", offices.owners[0]), PASSPHRASE), reason="there"
    )
    offices.publish()
    brought = bring(offices)
    assert brought.overtaken == (HALT,)
    assert brought.folder.proposals() == ()
    halting.order(brought.folder, open_signing_key(offices.key_path(BERLIN, "bob"), PASSPHRASE), reason="here")
    assert bring(offices).overtaken == ()


def test_it_never_goes_back(offices: RepositorySimulator) -> None:
    first(offices)
    old = offices.tree()
    offices.publish_policy("news")
    version = bring(offices).versions.timestamp
    with pytest.raises(TrustError, match="cannot be believed"):
        bring(offices, TreeSource(old))
    folder = bring(offices).folder
    timestamp = folder.timestamp()
    assert timestamp is not None
    assert timestamp.signed.version == version


def test_what_was_not_signed_does_not_get_in(offices: RepositorySimulator) -> None:
    root = offices.fleet.root_bytes(1)
    tree = offices.tree()
    policy = next(path for path in tree if path.endswith("first.toml") and "berlin" not in path)
    for path, data in ((policy, b"evil"), ("metadata/timestamp.json", b"{}")):
        with pytest.raises((TrustError, TransferError)):
            bring(offices, TreeSource(tree, replaced={path: data}), root=root)
        assert not (offices.folder / "office" / "fleet.json").exists(), path
    newest = offices.newest_targets().signed.targets["audit/log.jsonl"].hashes["sha256"]
    log = f"targets/audit/{newest}.log.jsonl"
    with pytest.raises(TrustError, match=r"has other bytes for audit/log\.jsonl"):
        bring(offices, TreeSource(tree, replaced={log: bytes(len(tree[log]))}), root=root)
    assert first(offices).problems == ()


def test_roots_and_folders_that_do_not_fit(offices: RepositorySimulator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--root is missing"):
        bring(offices)
    with pytest.raises(InputError, match="is not the root of a fleet"):
        bring(offices, root=b"{}")
    with pytest.raises(InputError, match="is not the root of a fleet"):
        bring(offices, root=offices.tree()["metadata/timestamp.json"])
    other = RepositorySimulator(tmp_path / "other")
    with pytest.raises(TrustError, match="cannot be believed"):
        bring(offices, root=other.fleet.root_bytes(1))
    first(offices)
    with pytest.raises(InputError, match="follows another root"):
        bring(offices, root=other.fleet.root_bytes(1))
    shutil.rmtree(offices.folder / "office")
    (offices.folder / "office").mkdir()
    (offices.folder / "office" / "notes.txt").touch()
    with pytest.raises(InputError, match="is not a workspace"):
        first(offices)


async def test_a_tree_is_a_folder_or_an_address(offices: RepositorySimulator, tmp_path: Path) -> None:
    async with open_tree(str(offices.origin)) as tree:
        assert await tree.fetch("metadata/1.root.json", 100_000) == offices.fleet.root_bytes(1)
    async with open_tree("http://127.0.0.1:9/pcm/") as tree:
        assert tree.name == "origin"
    with pytest.raises(InputError, match="no folder and no http address"):
        async with open_tree(str(tmp_path / "nothing")):
            pass
