"""The audit log of a real fleet folder and of the tree that it publishes (research 10.36)."""

from __future__ import annotations

import contextlib
import resource
import shutil
from pathlib import Path

import pytest
from repository_simulator import PASSPHRASE, RepositorySimulator, attempt, full_disk_from, killed_before
from tuf.api.metadata import Metadata, Root, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority import halting
from pcm_p2p.authority.audit import log as audit_log
from pcm_p2p.authority.audit.journal import AuditJournal
from pcm_p2p.authority.audit.log import SigningAct
from pcm_p2p.authority.audit.verification import verify_folder, verify_tree
from pcm_p2p.authority.carry.carried_proposal import sign_each, signables_in
from pcm_p2p.authority.carry.carrying import (
    export_proposal,
    merge,
    read_bundle,
    refuse_what_breaks_rules,
    write_signature_file,
)
from pcm_p2p.authority.carry.signature_file import SCHEMA, SignatureFile
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.keys.signing_key import open_signing_key
from pcm_p2p.authority.publish import publish
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.errors import InputError, StorageError, TrustError
from pcm_p2p.trust.delegation import HALT


def log_of(fleet: RepositorySimulator) -> Path:
    return fleet.fleet.path / "audit" / "log.jsonl"


def lines_of(fleet: RepositorySimulator) -> list[bytes]:
    return log_of(fleet).read_bytes().splitlines(keepends=True)


def test_a_fleet_with_a_history_verifies_in_the_folder_and_in_the_tree(fleet: RepositorySimulator) -> None:
    fleet.publish_policy("second")
    fleet.refresh()
    fleet.rotate_online_keys()
    fleet.fleet.stage_policy("dropped", b"version = 1\n")
    fleet.sign()
    fleet.fleet.discard()
    fleet.publish_policy("third")
    folder, tree = verify_folder(fleet.fleet).verdict, verify_tree(fleet.origin).verdict
    assert (folder.complaints, folder.unkept) == ((), 0)
    assert folder.entries == folder.verified == len(lines_of(fleet))
    assert tree.complaints == ()
    assert 0 < tree.entries < folder.entries
    assert tree.unkept > 0, "the proposal that was dropped is in the log, and nowhere in the tree"


def test_a_long_log_is_published_in_volumes_of_which_only_the_newest_changes(
    fleet: RepositorySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "VOLUME_BYTES_MAX", 3_000)
    closed: dict[str, str] = {}
    for number in range(5):
        fleet.publish_policy(f"policy-{number}")
        named = {
            path: info.hashes["sha256"]
            for path, info in fleet.newest_targets().signed.targets.items()
            if path.startswith("audit/log-")
        }
        assert named.items() >= closed.items()
        closed = named
    assert len(closed) > 1
    assert (verify_folder(fleet.fleet).verdict.complaints, verify_tree(fleet.origin).verdict.complaints) == ((), ())
    (fleet.fleet.path / "audit" / "log.jsonl").write_bytes(b"".join(lines_of(fleet)[2:]))
    assert any("differs from line 1 on" in one for one in verify_folder(fleet.fleet).verdict.complaints)


def test_a_volume_after_a_gap_is_neither_signed_nor_published_and_the_next_change_leaves_it_out(
    fleet: RepositorySimulator, tmp_path: Path
) -> None:
    """Published, it stood at the end of the log, which then never verified again; and signers saw a number of entries."""
    fleet.fleet.stage_policy("second", b"version = 1\n")
    file = fleet.fleet.path / "proposal" / "targets.json"
    document = Metadata[Targets].from_bytes(file.read_bytes())
    planted = "audit/log-999.jsonl"
    document.signed.targets[planted] = fleet.fleet.files.store(planted, lines_of(fleet)[0])
    file.write_bytes(document.to_bytes())
    with pytest.raises(TrustError, match=r"audit/log-999\.jsonl is no part of the audit log"):
        fleet.sign()
    export_proposal(fleet.fleet, tmp_path / "file")
    with pytest.raises(TrustError, match=r"audit/log-999\.jsonl is no part"):
        refuse_what_breaks_rules(read_bundle(tmp_path / "file"))
    document.sign(fleet.signer("targets"))
    file.write_bytes(document.to_bytes())
    with pytest.raises(TrustError, match=r"refused to publish: audit/log-999\.jsonl is no part"):
        fleet.publish()
    fleet.publish_policy("third")
    assert planted not in fleet.newest_targets().signed.targets
    assert verify_tree(fleet.origin).verdict.complaints == ()


def test_a_signature_of_a_site_is_judged_by_targets_that_were_published_not_by_a_dropped_proposal(
    fleet: RepositorySimulator, tmp_path: Path
) -> None:
    dave = keyfile.create(tmp_path / "dave.key", PASSPHRASE, "site-hq", "dave", preset="lab")
    fleet.fleet.delegate("site-hq", [dave.key], 1)
    fleet.sign()
    fleet.publish()
    fleet.fleet.stage_policy("dropped", b"version = 1\n")
    fleet.fleet.stage("site-hq", {})
    fleet.fleet.sign(dave.path, PASSPHRASE)
    publish(fleet.fleet, fleet.origin, fleet.keys, only=["site-hq"])
    fleet.fleet.discard()
    fleet.fleet.revoke("site-hq")
    fleet.sign()
    fleet.publish()
    assert verify_folder(fleet.fleet).verdict.complaints == ()


def test_devices_do_not_read_the_log(fleet: RepositorySimulator) -> None:
    fleet.publish_policy("second")
    source = fleet.source()
    with fleet.client() as device:
        assert attempt(device, source).kind == "good"
    assert source.requests
    assert not any("audit" in path for path in source.requests)


def test_an_act_that_was_taken_out_is_named_in_the_folder_and_in_the_next_tree(fleet: RepositorySimulator) -> None:
    fleet.publish_policy("second")
    kept = [line for line in lines_of(fleet) if not (b'"targets"' in line and b'"version":2' in line)]
    log_of(fleet).write_bytes(b"".join(kept))
    missing = "the signature of alice on targets 2 has no entry: an act is missing"
    assert missing in verify_folder(fleet.fleet).verdict.complaints
    fleet.publish_policy("third")
    assert missing in verify_folder(fleet.fleet).verdict.complaints
    assert missing in verify_tree(fleet.origin).verdict.complaints


def test_a_halt_that_is_published_while_a_change_waits_for_signatures_is_no_act_that_is_missing(
    fleet: RepositorySimulator,
) -> None:
    fleet.fleet.stage_policy("second", b"version = 1\n")  # with the log as it stands
    halting.order(
        fleet.fleet, open_signing_key(fleet.key_path("targets", fleet.owners[0]), PASSPHRASE), reason="a look first"
    )
    publish(fleet.fleet, fleet.origin, fleet.keys, only=[HALT])
    fleet.sign()
    fleet.publish()
    assert verify_tree(fleet.origin).verdict.complaints == ()
    assert verify_folder(fleet.fleet).verdict.complaints == ()


def test_a_log_that_was_begun_anew_differs_from_the_embedded_one(fleet: RepositorySimulator) -> None:
    log_of(fleet).unlink()
    fleet.refresh()
    complaints = verify_folder(fleet.fleet).verdict.complaints
    assert any("differs from line 1 on" in one for one in complaints)


def test_a_log_that_was_cut_off_is_found_by_what_is_published(fleet: RepositorySimulator) -> None:
    fleet.publish_policy("second")
    log_of(fleet).write_bytes(b"".join(lines_of(fleet)[:1]))
    complaints = verify_folder(fleet.fleet).verdict.complaints
    assert any("entries more: the end of this one was cut off" in one for one in complaints)
    assert "the signature of publisher on timestamp 2 has no entry: an act is missing" in complaints


def test_a_published_log_that_was_altered_is_not_read(fleet: RepositorySimulator) -> None:
    (file,) = (fleet.origin / "targets" / "audit").iterdir()
    data = file.read_bytes()
    file.unlink()  # the folder's copy is another link of the same file
    file.write_bytes(data.replace(b"alice", b"mally", 1))
    with pytest.raises(StorageError, match="is not what was signed: the published log was altered"):
        verify_tree(fleet.origin)
    file.unlink()
    with pytest.raises(StorageError, match="cannot be read"):
        verify_tree(fleet.origin)


def test_what_holds_no_log_says_so(fleet: RepositorySimulator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no published tree"):
        verify_tree(tmp_path / "nothing")


def test_a_folder_of_before_begins_its_log_with_the_signatures_that_are_there(tmp_path: Path) -> None:
    folder = FleetFolder.init(tmp_path / "f", name="x", passphrase=PASSPHRASE, preset="lab")
    shutil.rmtree(folder.path / "audit")
    folder.discard()
    with pytest.raises(InputError, match="has no audit log yet"):
        verify_folder(folder)
    folder.stage_fleet_document()
    folder.sign(folder.path / "keys" / "targets-admin.key", PASSPHRASE)
    verdict = verify_folder(folder).verdict
    assert (verdict.entries, verdict.verified, verdict.complaints) == (2, 2, ())


def test_an_edited_document_of_the_folder_is_found(fleet: RepositorySimulator) -> None:
    file = fleet.fleet.metadata / "1.targets.json"
    file.write_bytes(file.read_bytes().replace(b"2027-03-01", b"2028-03-01"))
    complaints = verify_folder(fleet.fleet).verdict.complaints
    assert "the signature of alice on targets 1 has no entry: an act is missing" in complaints


@pytest.mark.parametrize("act", ["sign", "merge"])
def test_killed_at_any_step_no_signature_is_without_its_entry_and_the_same_command_completes(
    fleet: RepositorySimulator, tmp_path: Path, act: str
) -> None:
    fleet.fleet.stage_policy("second", b"version = 1\n")
    export_proposal(fleet.fleet, tmp_path / "p")
    key = keyfile.load(fleet.key_path("targets", "alice"), PASSPHRASE)
    bundle = read_bundle(tmp_path / "p")
    signatures = sign_each(signables_in(bundle), key.signer(), key.keyid)
    write_signature_file(tmp_path / "s", SignatureFile(SCHEMA, bundle.fleet, signatures))
    shutil.copytree(fleet.fleet.path, tmp_path / "saved")

    def work() -> None:
        if act == "sign":
            fleet.sign()
        else:
            merge(fleet.fleet, [tmp_path / "s"])

    step, killed = 0, True
    while killed:
        shutil.rmtree(fleet.fleet.path)
        shutil.copytree(tmp_path / "saved", fleet.fleet.path)
        killed = killed_before(step, work)
        unlogged = [one for one in verify_folder(fleet.fleet).verdict.complaints if "has no entry" in one]
        assert not unlogged, f"step {step}"
        work()
        verdict = verify_folder(fleet.fleet).verdict
        assert verdict.complaints == (), f"step {step}"
        assert fleet.fleet.proposals()[0].complete
        step += 1
    assert step > 4


@pytest.mark.parametrize("act", ["sign", "merge", "halt", "publish"])
def test_on_a_full_disk_nothing_is_half_there_and_the_same_command_completes(
    fleet: RepositorySimulator, tmp_path: Path, quick_disk: None, act: str
) -> None:
    fleet.fleet.stage_policy("second", b"version = 1\n")
    export_proposal(fleet.fleet, tmp_path / "p")
    key = open_signing_key(fleet.key_path("targets", "alice"), PASSPHRASE)
    bundle = read_bundle(tmp_path / "p")
    signatures = sign_each(signables_in(bundle), key.signer, key.keyid)
    write_signature_file(tmp_path / "s", SignatureFile(SCHEMA, bundle.fleet, signatures))
    if act == "publish":
        fleet.sign()

    def work() -> None:
        if act == "sign":
            fleet.sign()
        elif act == "merge":
            merge(fleet.fleet, [tmp_path / "s"])
        elif act == "halt":
            halting.order(fleet.fleet, key, reason="x")
        else:
            fleet.publish()

    shutil.copytree(fleet.folder, tmp_path / "saved")
    with fleet.client() as device:
        step, failed = 0, ["once"]
        while failed:
            for part in ("fleet", "origin"):
                shutil.rmtree(fleet.folder / part)
                shutil.copytree(tmp_path / "saved" / part, fleet.folder / part)
            with full_disk_from(step) as failed, contextlib.suppress(OSError, StorageError):
                work()
            assert verify_folder(fleet.fleet).verdict.complaints == (), f"step {step}"
            assert attempt(device, fleet.source()).kind in ("good", "unchanged", "older")
            if act != "publish" or fleet.fleet.proposals():
                work()
            assert verify_folder(fleet.fleet).verdict.complaints == (), f"step {step}"
            assert not list(fleet.folder.rglob(".*.tmp")), f"step {step}"
            step += 3 if act == "publish" else 1
    assert step > 3


def test_a_line_of_the_log_that_does_not_fit_leaves_nothing_of_itself(fleet: RepositorySimulator) -> None:
    before, limits = log_of(fleet).read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = AuditJournal(fleet.fleet.path, fleet.clock)
    act = SigningAct("sign", "targets", 9, 1, b"{}", "a" * 64, "alice", "00" * 64)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))  # the kernel takes 100 bytes of it
    try:
        with pytest.raises(StorageError, match="cannot be written: File too large") as caught:
            journal.append(act)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Nothing was signed" in caught.value.remedy
    assert log_of(fleet).read_bytes() == before
    assert verify_folder(fleet.fleet).verdict.complaints == ()


# Whose keys


def test_a_tree_that_somebody_made_anew_is_told_apart_by_a_root_that_is_known(
    fleet: RepositorySimulator, tmp_path: Path
) -> None:
    """All of it can be made anew by who has other keys: what stands behind it is the root that people compare."""
    known = tmp_path / "root.json"
    known.write_bytes(fleet.fleet.root_bytes(1))
    assert verify_tree(fleet.origin, known).verdict.complaints == ()
    assert verify_folder(fleet.fleet, known).verdict.complaints == ()
    other = RepositorySimulator(tmp_path / "other")
    audited = verify_tree(other.origin)
    assert audited.verdict.complaints == ()
    assert audited.root_sha256 != verify_tree(fleet.origin).root_sha256
    (complaint,) = verify_tree(other.origin, known).verdict.complaints
    assert complaint.startswith("root 1 is not the one in ")
    with pytest.raises(InputError, match="is no root document"):
        verify_tree(fleet.origin, fleet.origin / "metadata" / "timestamp.json")


def test_targets_that_nobody_signed_do_not_make_a_log_believed(fleet: RepositorySimulator) -> None:
    """The newest targets are the only ones whose signatures the embedded log cannot have: root vouches for them."""
    fleet.publish_policy("second")
    file = fleet.origin / "metadata" / "2.targets.json"
    document = Metadata[Targets].from_bytes(file.read_bytes())
    document.signatures.clear()
    file.unlink()
    file.write_bytes(document.to_bytes())
    assert "targets 2 is not signed by who may by root 1" in verify_tree(fleet.origin).verdict.complaints


def test_a_root_that_does_not_follow_from_the_one_before_is_named(fleet: RepositorySimulator) -> None:
    fleet.publish_root(lambda root: None)
    file = fleet.origin / "metadata" / "2.root.json"
    document = Metadata[Root].from_bytes(file.read_bytes())
    document.signatures.clear()
    file.unlink()
    file.write_bytes(document.to_bytes())
    complaints = verify_tree(fleet.origin).verdict.complaints
    assert complaints[:2] == (
        "root 2 is not signed by enough holders of root 1",
        "root 2 is not signed by enough holders of root 2",
    )
    file.with_name("1.root.json").unlink()
    assert "root 1 is not there: nobody can tell whose keys count" in verify_tree(fleet.origin).verdict.complaints
    file.rename(file.with_name("3.root.json"))
    with pytest.raises(StorageError, match=r"3.root.json holds version 2"):
        verify_tree(fleet.origin)
