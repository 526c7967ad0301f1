"""Evidence of equivocation: what a device has proof of is told with both digests, and junk in the folder is no proof."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from repository_simulator import RepositorySimulator, TreeSource, attempt
from tuf.api.metadata import Metadata  # type: ignore[attr-defined]

from pcm_p2p.trust.evidence import Evidence


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
