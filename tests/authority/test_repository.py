"""The authorities' folder: making a fleet, staging, proposals as people read them, signatures."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repository_simulator import (
    PASSPHRASE,
    START,
    Clock,
    RepositorySimulator,
    attempt,
    put_segment,
    small_manifest,
)
from tuf.api.metadata import Metadata, Root, TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.keys.keyfile import read_public
from pcm_p2p.authority.people.founding import ROOT_LIFETIME, TARGETS_LIFETIME
from pcm_p2p.authority.proposal import propose_targets
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.errors import InputError, StorageError, TrustError
from pcm_p2p.trust.index import INDEX, decode_index_untrusted


def new_fleet(path: Path, **options: Any) -> FleetFolder:
    return FleetFolder.init(path, name="Example", passphrase=PASSPHRASE, preset="lab", wall_clock=Clock(), **options)


def test_a_new_fleet_proposes_its_first_targets(tmp_path: Path) -> None:
    folder = new_fleet(tmp_path / "fleet", owners=("alice", "bob"), root_threshold=2, targets_threshold=2)
    root = folder.root()
    assert root.signed.unrecognized_fields["x-pcm-fleet"] == folder.fleet_id
    assert root.signed.consistent_snapshot is True
    assert root.signed.expires == START + ROOT_LIFETIME
    assert len(root.signatures) == 2
    assert {role: holder.threshold for role, holder in root.signed.roles.items()} == {
        "root": 2,
        "targets": 2,
        "snapshot": 1,
        "timestamp": 1,
    }
    (proposal,) = folder.proposals()
    assert [change.path for change in proposal.changes] == ["fleet/fleet.toml", "identity/ca.pem", "index.json"]
    assert proposal.expires_after == START + TARGETS_LIFETIME
    assert proposal.signatures[0].line() == "targets: 2 more of alice, bob must sign; signed by nobody yet"
    assert folder.read_target("identity/ca.pem") == FleetCA.load(folder.path / "ca", PASSPHRASE).pem
    for key in (folder.path / "keys").iterdir():
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((folder.path / "keys").stat().st_mode) == 0o700
    again = FleetFolder.open(folder.path)
    assert (again.fleet_id, again.name) == (folder.fleet_id, "Example")


def test_passphrases_can_differ_by_key(tmp_path: Path) -> None:
    asked: list[str] = []

    def passphrase(stem: str) -> str:
        asked.append(stem)
        return f"words of {stem}"

    folder = FleetFolder.init(tmp_path / "fleet", name="x", passphrase=passphrase, preset="lab", wall_clock=Clock())
    assert asked == ["root-admin", "targets-admin", "snapshot", "timestamp", "ca"]
    with pytest.raises(TrustError, match="passphrase"):
        folder.sign(folder.path / "keys" / "targets-admin.key", "words of root-admin")
    folder.sign(folder.path / "keys" / "targets-admin.key", "words of targets-admin")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"owners": ()}, "nobody holds a root key"),
        ({"owners": ("alice", "alice")}, "different"),
        ({"owners": ("../evil",)}, "owner"),
        ({"owners": ("alice",), "targets_threshold": 2}, "needs that many owners"),
        ({"root_threshold": 0}, "needs that many owners"),
    ],
)
def test_a_fleet_that_cannot_work_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        new_fleet(tmp_path / "fleet", **options)
    assert not (tmp_path / "fleet").exists()


def test_a_folder_is_used_once(fleet: RepositorySimulator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a fleet already"):
        new_fleet(fleet.fleet.path)
    with pytest.raises(InputError, match="is not a fleet folder"):
        FleetFolder.open(tmp_path / "nothing")


def test_a_proposal_says_what_changes(fleet: RepositorySimulator) -> None:
    folder = fleet.fleet
    assert folder.proposals() == ()
    folder.stage_policy("first", b"version = 22\n")
    folder.stage_policy("second", b"version = 1\n")
    folder.unstage("identity/ca.pem")
    (proposal,) = folder.proposals()
    assert [(change.path, change.kind) for change in proposal.changes] == [
        ("identity/ca.pem", "removed"),
        ("index.json", "changed"),
        ("policies/first.toml", "changed"),
        ("policies/second.toml", "added"),
    ]
    lines = list(proposal.lines())
    assert lines[0] == "targets version 1 → 2"
    assert lines[1] == "expires 2027-03-01, as before"
    assert any(line.startswith("~ policies/first.toml  12 → 13 bytes  sha256 ") for line in lines)
    assert any(line.startswith("+ policies/second.toml  12 bytes") for line in lines)
    assert any(line.startswith("- identity/ca.pem") for line in lines)
    assert "targets: 1 more of alice must sign; signed by nobody yet" in lines
    assert proposal.as_json()["complete"] is False
    assert len(proposal.digest.split()) == 8
    # Nothing is visible to devices.
    assert "second" not in "".join(fleet.tree())


def test_the_index_follows_what_is_staged(fleet: RepositorySimulator, tmp_path: Path) -> None:
    manifest, blob = small_manifest()
    path = fleet.fleet.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    index = decode_index_untrusted(fleet.fleet.read_target(INDEX))
    assert (index.fleet, index.policies, index.releases) == (fleet.fleet.fleet_id, ("policies/first.toml",), (path,))
    fleet.fleet.unstage("policies/first.toml")
    assert decode_index_untrusted(fleet.fleet.read_target(INDEX)).policies == ()


def test_staging_drops_signatures_unless_nothing_changed(fleet: RepositorySimulator) -> None:
    fleet.fleet.stage_policy("second", b"version = 1\n")
    fleet.sign()
    assert fleet.fleet.proposals()[0].complete
    fleet.fleet.stage_policy("second", b"version = 1\n")
    assert fleet.fleet.proposals()[0].complete, "the same again is no change"
    fleet.fleet.stage_policy("second", b"version = 2\n")
    assert not fleet.fleet.proposals()[0].complete, "people sign what they saw"


def test_taking_a_change_back_leaves_nothing_to_sign(fleet: RepositorySimulator) -> None:
    fleet.fleet.stage_policy("second", b"version = 1\n")
    fleet.fleet.unstage("policies/second.toml")
    assert fleet.fleet.proposals() == ()
    fleet.fleet.stage_policy("second", b"version = 1\n")
    fleet.fleet.discard()
    assert fleet.fleet.proposals() == ()
    with pytest.raises(InputError, match="nothing is proposed"):
        fleet.sign()


def test_signatures_add_up_and_name_people(tmp_path: Path) -> None:
    fleet = RepositorySimulator(tmp_path, owners=("alice", "bob", "carol"), targets_threshold=2)
    fleet.fleet.stage_policy("second", b"version = 1\n")
    (result,) = fleet.fleet.sign(fleet.key_path("targets", "bob"), PASSPHRASE)
    assert (result.role, result.version, result.owner, result.complete) == ("targets", 2, "bob", False)
    assert result.signatures[0].line() == "targets: 1 more of alice, carol must sign; signed by bob"
    fleet.fleet.sign(fleet.key_path("targets", "bob"), PASSPHRASE)
    (missing,) = fleet.fleet.signatures_missing()
    assert (missing.have, missing.could, missing.threshold) == (("bob",), ("alice", "carol"), 2), "once is once"
    (result,) = fleet.fleet.sign(fleet.key_path("targets", "alice"), PASSPHRASE)
    assert result.complete
    assert result.signatures[0].line() == "targets: complete, signed by alice, bob"
    assert fleet.fleet.signatures_missing() == ()


def test_a_key_without_a_part_in_it_is_refused(fleet: RepositorySimulator) -> None:
    fleet.fleet.stage_policy("second", b"version = 1\n")
    with pytest.raises(InputError, match="root key of alice has no part"):
        fleet.sign(role="root")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a//b", "index.json", "releases/main/tool@1.manifest", "ä"])
def test_paths_that_are_not_for_files(fleet: RepositorySimulator, path: str) -> None:
    with pytest.raises(InputError):
        fleet.fleet.stage_file(path, b"x")
    assert fleet.fleet.proposals() == ()


def test_documents_beyond_their_bound(fleet: RepositorySimulator) -> None:
    with pytest.raises(InputError, match="at most 1048576"):
        fleet.fleet.stage_file("policies/big.toml", bytes((1 << 20) + 1))
    with pytest.raises(InputError, match="policy"):
        fleet.fleet.stage_policy("a/b", b"")
    with pytest.raises(InputError, match="not staged or published"):
        fleet.fleet.unstage("policies/unknown.toml")
    with pytest.raises(InputError, match="made by staging"):
        fleet.fleet.unstage(INDEX)


def test_a_release_is_staged_once_and_only_with_its_blobs(fleet: RepositorySimulator, tmp_path: Path) -> None:
    folder = fleet.fleet
    manifest, blob = small_manifest()
    with pytest.raises(InputError, match="cannot be read"):
        folder.stage_release(manifest, tmp_path / "segments")
    segments = put_segment(tmp_path / "segments", manifest, b"other bytes")
    with pytest.raises(InputError, match="is damaged"):
        folder.stage_release(manifest, segments)
    assert folder.releases() == ()
    path = folder.stage_release(manifest, put_segment(segments, manifest, blob))
    assert path == "releases/main/tool@1.0.manifest"
    assert (folder.next_counter("tool"), folder.next_counter("other")) == (2, 1)
    (release,) = folder.releases()
    assert (release.name, release.version, release.counter, release.published) == ("tool", "1.0", 1, False)
    fleet.sign()
    fleet.publish()
    assert folder.releases()[0].published
    again, _ = small_manifest(counter=2)
    assert folder.stage_release(again, segments) == path, "the same content again"
    assert folder.proposals() == ()
    other, other_blob = small_manifest(counter=2, seed=b"y")
    with pytest.raises(InputError, match="exists with other content"):
        folder.stage_release(other, put_segment(segments, other, other_blob))
    late, late_blob = small_manifest(version="1.1", counter=1)
    with pytest.raises(InputError, match="next of this release is 2"):
        folder.stage_release(late, put_segment(segments, late, late_blob))


def test_counters_are_remembered_over_releases_that_were_taken_back(fleet: RepositorySimulator, tmp_path: Path) -> None:
    folder = fleet.fleet
    for counter, version in enumerate(("1.0", "2.0", "3.0"), start=1):
        manifest, blob = small_manifest(version=version, counter=counter)
        folder.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    fleet.sign()
    fleet.publish()
    folder.unstage("releases/main/tool@3.0.manifest")
    folder.unstage("releases/main/tool@2.0.manifest")
    assert folder.next_counter("tool") == 4
    fleet.sign()
    fleet.publish()
    assert folder.next_counter("tool") == 4
    folder.unstage("releases/main/tool@1.0.manifest")
    fleet.sign()
    fleet.publish()
    assert FleetFolder.open(folder.path).next_counter("tool") == 4
    manifest, blob = small_manifest(version="4.0", counter=4)
    folder.stage_release(manifest, put_segment(tmp_path / "segments", manifest, blob))
    assert folder.next_counter("tool") == 5
    with fleet.client() as device:
        fleet.sign()
        fleet.publish()
        assert attempt(device, fleet.source()).kind == "good"


def test_the_fleet_document_is_checked_before_it_is_staged(fleet: RepositorySimulator) -> None:
    file = fleet.fleet.path / "fleet.toml"
    text = file.read_text()
    file.write_text(text.replace(fleet.fleet.fleet_id, "0" * 32))
    with pytest.raises(InputError, match="is not this fleet"):
        fleet.fleet.stage_fleet_document()
    file.write_text(text + "[[orign]]\n")
    with pytest.raises(InputError, match="orign"):
        fleet.fleet.stage_fleet_document()
    file.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        fleet.fleet.stage_fleet_document()
    file.write_text(text + '[[site]]\nname = "office-1"\n')
    fleet.fleet.stage_fleet_document()
    assert fleet.fleet.proposals()[0].changes[0].path == "fleet/fleet.toml"


def test_a_new_root_needs_the_old_and_the_new_holders(tmp_path: Path) -> None:
    fleet = RepositorySimulator(tmp_path, owners=("alice", "bob"))
    fleet.fleet.renew_targets()
    fleet.sign("alice")
    fleet.publish()

    def only_bob(root: Root) -> None:
        root.revoke_key(read_public(fleet.key_path("root", "alice")).keyid, "root")
        root.roles["targets"].threshold = 2

    fleet.fleet.propose_root(only_bob)
    root, targets = fleet.fleet.proposals()
    assert list(root.remarks) == ["- key of alice for root", "~ threshold of targets 1 → 2"]
    assert [one.could for one in root.signatures] == [("alice", "bob"), ("bob",)]
    # One signature was enough before; what is published is proposed again for the second.
    assert (targets.role, targets.changes, targets.version_after) == ("targets", (), 3)
    (result,) = fleet.fleet.sign(fleet.key_path("root", "alice"), PASSPHRASE)
    assert [one.complete for one in result.signatures] == [True, False]
    (result,) = fleet.fleet.sign(fleet.key_path("root", "bob"), PASSPHRASE)
    assert result.complete
    fleet.sign()
    fleet.publish()
    with fleet.client() as device:
        assert attempt(device, fleet.source()).kind == "good"
        assert device.digest().root == 2


def test_a_root_against_the_rules_is_not_proposed(fleet: RepositorySimulator) -> None:
    def too_many(root: Root) -> None:
        root.roles["targets"].threshold = 2

    with pytest.raises(InputError, match="threshold of targets is 2, with 1 keys"):
        fleet.fleet.propose_root(too_many)
    with pytest.raises(InputError, match="no fleet"):
        fleet.fleet.propose_root(lambda root: root.unrecognized_fields.clear())
    assert fleet.fleet.proposals() == ()


def test_what_is_published_can_be_signed_anew(fleet: RepositorySimulator) -> None:
    fleet.clock.advance(days=300)
    fleet.fleet.renew_targets()
    (proposal,) = fleet.fleet.proposals()
    assert (proposal.changes, proposal.expires_after) == ((), fleet.clock.now + TARGETS_LIFETIME)
    fleet.sign()
    fleet.publish()
    assert fleet.newest_targets().signed.expires == fleet.clock.now + TARGETS_LIFETIME


def test_one_writer_at_a_time(fleet: RepositorySimulator) -> None:
    with fleet.fleet.locked(), pytest.raises(TrustError, match="being changed by another process"):
        fleet.fleet.stage_policy("second", b"")
    fleet.fleet.stage_policy("second", b"")


def test_a_damaged_folder_says_so(fleet: RepositorySimulator) -> None:
    (fleet.fleet.metadata / "timestamp.json").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be read"):
        fleet.fleet.proposals()
    (fleet.fleet.metadata / "1.root.json").unlink()
    with pytest.raises(StorageError, match="holds no root"):
        fleet.fleet.root()


PATHS = st.sampled_from(["policies/a.toml", "policies/b.toml", "fleet/fleet.toml", "index.json"])
CONTENTS = st.dictionaries(PATHS, st.tuples(st.binary(max_size=3), st.sampled_from([None, {"counter": 1}])), max_size=4)


def targets_of(contents: dict[str, tuple[bytes, dict[str, int] | None]]) -> Targets:
    targets = Targets(expires=START)
    for path, (data, custom) in contents.items():
        info = TargetFile.from_data(path, data, ["sha256"])
        if custom is not None:
            info.unrecognized_fields["custom"] = custom
        targets.targets[path] = info
    return targets


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=CONTENTS, after=CONTENTS)
def test_the_difference_is_empty_exactly_when_the_signed_targets_are_equal(
    first_fleet: RepositorySimulator,
    before: dict[str, tuple[bytes, dict[str, int] | None]],
    after: dict[str, tuple[bytes, dict[str, int] | None]],
) -> None:
    old, new = targets_of(before), targets_of(after)
    proposal = propose_targets(first_fleet.fleet.root().signed, Metadata(old), Metadata(new))
    equal = Metadata(old).signed_bytes == Metadata(new).signed_bytes
    assert (proposal.changes == ()) == equal
    assert {change.path for change in proposal.changes} == {
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    }
    assert len({change.path for change in proposal.changes}) == len(proposal.changes)
