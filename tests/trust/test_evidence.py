"""Evidence of equivocation: what a device has proof of is told with both digests, and junk in the folder is no proof."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository_simulator import RepositorySimulator, TreeSource, attempt
from tuf.api.metadata import Metadata  # type: ignore[attr-defined]

from pcm_p2p.trust.evidence import FORKS_MAX, Evidence, Place, giving_way


def forked(fleet: RepositorySimulator) -> tuple[Evidence, str, str]:
    """A device that trusts one timestamp and was offered another one of the same version; both digests, ours first."""
    client = fleet.client()
    with client:
        assert attempt(client, fleet.source()).kind == "good"
        tree = fleet.tree()
        document = Metadata[Any].from_bytes(tree["metadata/timestamp.json"])
        ours = hashlib.sha256(document.signed_bytes).hexdigest()
        document.signed.expires = document.signed.expires.replace(year=2027)
        document.sign(fleet.keys.timestamp)
        tree["metadata/timestamp.json"] = document.to_bytes()
        assert "kept as evidence" in attempt(client, TreeSource(tree)).reason
        assert client.view is not None
        assert client.view.timestamp_sha256.hex() == ours, "what was trusted first stays"
    return Evidence(client.folder / "evidence"), ours, hashlib.sha256(document.signed_bytes).hexdigest()


def test_a_fork_is_told_with_both_digests_and_once_in_the_log(
    fleet: RepositorySimulator, caplog: pytest.LogCaptureFixture
) -> None:
    evidence, ours, theirs = forked(fleet)
    (fork,) = evidence.forks()
    assert (fork.role, fork.version, fork.digests) == ("timestamp", 1, tuple(sorted((ours, theirs))))
    assert fork.seen_ms > 1_700_000_000_000
    assert ours[:16] in fork.line()
    assert theirs[:16] in fork.line()
    assert evidence.forks() == (fork,)
    assert caplog.text.count("was signed twice with different contents") == 1


def test_evidence_outlives_a_restart(fleet: RepositorySimulator) -> None:
    evidence, *_ = forked(fleet)
    assert Evidence(evidence._folder).forks() == evidence.forks()


def test_junk_and_single_documents_prove_nothing(fleet: RepositorySimulator, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    assert Evidence(folder).forks() == ()
    folder.mkdir()
    for name in ("timestamp-1-0123456789abcdef.json", "targets-1-0123456789abcdef.json", "note.txt", "a-b-c.json"):
        (folder / name).write_bytes(b"{}")
    (folder / "timestamp-2-0123456789abcdef.json").write_bytes(fleet.tree()["metadata/timestamp.json"])
    assert Evidence(folder).forks() == ()


def test_timestamps_that_name_two_snapshots_of_one_version_are_a_fork_of_the_snapshot(
    fleet: RepositorySimulator, tmp_path: Path
) -> None:
    folder = tmp_path / "evidence"
    folder.mkdir()
    document = Metadata[Any].from_bytes(fleet.tree()["metadata/timestamp.json"])
    for version, digest in ((1, "a" * 64), (2, "b" * 64)):
        document.signed.version = version
        document.signed.snapshot_meta.hashes = {"sha256": digest}
        (folder / f"timestamp-{version}-{digest[:16]}.json").write_bytes(document.to_bytes())
    (fork,) = Evidence(folder).forks()
    assert (fork.role, fork.digests) == ("snapshot", ("a" * 64, "b" * 64))


def kept_after(roles: list[str]) -> list[Place]:
    """What is kept of forks of these roles, in the order of coming."""
    kept: list[Place] = []
    for version, role in enumerate(roles, start=1):
        new = Place(role, version)
        leaving = giving_way(kept, new)
        kept = [place for place in (*kept, new) if place != leaving]
    return kept


def test_of_one_role_the_first_and_the_newest_forks_are_kept() -> None:
    assert [place.version for place in kept_after(["timestamp"] * 100)] == [1, *range(100 - FORKS_MAX + 2, 101)]


@given(st.lists(st.sampled_from(["timestamp", "snapshot", "targets", "halt", "site-berlin"]), max_size=80))
def test_no_number_of_forks_of_one_role_costs_another_its_place(roles: list[str]) -> None:
    kept = kept_after(roles)
    assert len(kept) == min(len(roles), FORKS_MAX)
    for role in set(roles):
        versions = [version for version, one in enumerate(roles, start=1) if one == role]
        mine = [place.version for place in kept if place.role == role]
        share = min(len(versions), FORKS_MAX // 5)
        assert len(mine) >= share
        assert mine[0] == versions[0]
        assert mine[-1] == versions[-1]


def test_seventeen_roles_do_not_push_each_other_out() -> None:
    assert kept_after([f"team-{number:02}" for number in range(20)]) == [
        Place(f"team-{number:02}", number + 1) for number in range(FORKS_MAX)
    ]
