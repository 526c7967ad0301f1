"""The transaction: nothing without permission, everything or nothing, parked after five attempts, and never crashed on."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import msgspec
import pytest
import trio
from apply_kit import (
    NOW,
    NOW_MS,
    Artifacts,
    FakeSystemctl,
    SystemRoot,
    authorised,
    make_applier,
    make_device,
    make_transaction,
    picture,
)

from pcm_p2p.apply.journal import Entry, Journal
from pcm_p2p.apply.receipt import ATTEMPTS_MAX, Receipt
from pcm_p2p.apply.receipt_folder import Receipts
from pcm_p2p.apply.root import Root
from pcm_p2p.apply.step import Staged
from pcm_p2p.apply.transaction import Transaction
from pcm_p2p.errors import StorageError, TrustError
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.desired import decide
from pcm_p2p.policy.resource import ArchiveResource, FileResource, ServiceResource
from pcm_p2p.policy.selector import DeviceFacts

GOOD = FileResource(path="/etc/a.conf", content="a\n")
BAD = FileResource(path="/etc/tool", artifact="tool")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    """With a ``tool`` that was changed after it was verified, so that every change with ``BAD`` fails."""
    artifacts = Artifacts(tmp_path / "staged")
    artifacts.put("tool", b"good").write_bytes(b"evil")
    return artifacts


@pytest.fixture
def transaction(tmp_path: Path, root: Path) -> Transaction:
    return make_transaction(tmp_path / "apply", make_device(Root(root), tmp_path / "work"))


def not_asked(name: str) -> Staged:
    raise AssertionError(f"{name} was looked at")


def test_without_a_permission_nothing_is_even_looked_at(transaction: Transaction, root: Path) -> None:
    change, _ = authorised(GOOD)
    _, other = authorised(GOOD, version="2")
    nothing = decide([], None, DeviceFacts(DeviceId(bytes(16)), "here"), NOW, "fresh").authorisation
    for permission in (other, nothing, None, True):
        with pytest.raises(TrustError, match="do not permit tool 1"):
            transaction.run(change, permission, not_asked)  # type: ignore[arg-type]
    assert list((root / "etc").iterdir()) == []


def test_a_change_that_is_in_place_is_done_without_a_step(transaction: Transaction, artifacts: Artifacts) -> None:
    assert transaction.run(*authorised(GOOD), artifacts).steps == ("write /etc/a.conf",)
    again = transaction.run(*authorised(GOOD), artifacts)
    assert (again.verdict, again.steps) == ("done", ())


def test_a_failing_step_takes_the_others_back(transaction: Transaction, artifacts: Artifacts, root: Path) -> None:
    (root / "etc/a.conf").write_text("before")
    before = picture(root)
    outcome = transaction.run(*authorised(GOOD, BAD), artifacts)
    assert outcome.verdict == "rolled_back"
    assert "has changed since it was verified" in outcome.error
    assert outcome.remedy
    assert picture(root) == before


def test_after_five_attempts_the_change_is_parked_until_it_differs(
    transaction: Transaction, artifacts: Artifacts, root: Path
) -> None:
    verdicts = [transaction.run(*authorised(GOOD, BAD), artifacts).verdict for _ in range(ATTEMPTS_MAX)]
    assert verdicts == ["rolled_back"] * (ATTEMPTS_MAX - 1) + ["parked"]
    parked = transaction.run(*authorised(GOOD, BAD), not_asked)
    assert (parked.verdict, parked.attempts) == ("parked", ATTEMPTS_MAX)
    assert transaction.run(*authorised(GOOD, version="2"), artifacts).verdict == "done"


def test_a_service_that_dies_at_once_takes_the_change_back(tmp_path: Path, root: Path, artifacts: Artifacts) -> None:
    systemctl = FakeSystemctl(app=True)
    (root / "etc/a.conf").write_text("before")
    device = make_device(SystemRoot(root), tmp_path / "work", runner=systemctl)
    transaction = make_transaction(tmp_path / "apply", device)
    service = ServiceResource(name="app.service", active=True, restart_on_change=True)
    systemctl.dying.add("app.service")
    outcome = transaction.run(*authorised(GOOD, service), artifacts)
    assert "did not hold: start app.service would be needed again" in outcome.error
    assert outcome.verdict == "rolled_back"
    assert (root / "etc/a.conf").read_text() == "before"
    assert systemctl.said == ["restart app.service", "restart app.service"], "the second one reads what was restored"


def test_an_undo_that_fails_parks_loudly_and_still_undoes_the_rest(
    tmp_path: Path, root: Path, artifacts: Artifacts
) -> None:
    device = make_device(Root(root), tmp_path / "work")
    transaction = make_transaction(tmp_path / "apply", device)
    (root / "etc/b.conf").write_text("before")
    undo = device.files.undo

    def broken(step: object, backups: Path) -> None:
        if getattr(step, "path", "") == "etc/b.conf":
            raise OSError(errno.EIO, "the disk is dying")
        undo(step, backups)  # type: ignore[arg-type]

    device.files.undo = broken  # type: ignore[method-assign]
    outcome = transaction.run(*authorised(GOOD, FileResource(path="/etc/b.conf", content="b"), BAD), artifacts)
    assert (outcome.verdict, outcome.attempts) == ("parked", 1)
    assert "'write /etc/b.conf' could not be undone" in outcome.error
    assert not (root / "etc/a.conf").exists()
    kept = tmp_path / "apply/backup.kept/1.file"
    assert kept.read_text() == "before"
    assert str(kept.parent) in outcome.remedy


def test_a_full_disk_for_the_journal_leaves_the_device_as_it_was(
    tmp_path: Path, root: Path, artifacts: Artifacts
) -> None:
    class FullJournal(Journal):
        left = 2

        def write(self, entry: Entry) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write(entry)

    device = make_device(Root(root), tmp_path / "work")
    (tmp_path / "apply").mkdir()
    transaction = make_transaction(tmp_path / "apply", device, journal=FullJournal(tmp_path / "apply"))
    outcome = transaction.run(*authorised(GOOD, FileResource(path="/etc/b.conf", content="b")), artifacts)
    assert outcome.verdict == "rolled_back"
    assert "No space left" in outcome.error
    assert list((root / "etc").iterdir()) == []
    assert Journal(tmp_path / "apply").read() is None


def test_an_end_that_cannot_be_recorded_is_a_storage_error_and_is_recorded_later(
    tmp_path: Path, root: Path, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction = make_transaction(tmp_path / "apply", make_device(Root(root), tmp_path / "work"))

    def full(_self: Receipts, _receipt: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Receipts, "put", full)
        with pytest.raises(StorageError, match="cannot be recorded"):
            transaction.run(*authorised(GOOD), artifacts)
    outcome = transaction.resume()
    assert outcome is not None
    assert outcome.verdict == "done"


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b'{"state": "applying"}', b"\x00" * 4096, b"\xff"])
def test_a_journal_that_cannot_be_read_is_moved_aside_and_said(
    tmp_path: Path, transaction: Transaction, rubbish: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "apply/journal.json").write_bytes(rubbish)
    with caplog.at_level(logging.CRITICAL):
        assert transaction.resume() is None
    assert "look at the device" in caplog.text
    assert (tmp_path / "apply/journal.damaged").read_bytes() == rubbish
    assert transaction.resume() is None


def test_a_receipt_that_cannot_be_read_is_made_anew(
    tmp_path: Path, transaction: Transaction, artifacts: Artifacts
) -> None:
    transaction.run(*authorised(GOOD), artifacts)
    (tmp_path / "apply/receipts/tool.json").write_bytes(b"\x00\x00")
    assert transaction.run(*authorised(GOOD), artifacts).verdict == "done"
    assert [receipt.applied_version for receipt in Receipts(tmp_path / "apply/receipts").all()] == ["1"]


def test_the_journal_reads_back_what_was_written(tmp_path: Path) -> None:
    change, _ = authorised(GOOD, ServiceResource(name="a.service", active=True), BAD)
    entry = Entry(change, (), "applying", 0, 1, NOW_MS)
    journal = Journal(tmp_path)
    journal.write(entry)
    assert journal.read() == entry
    journal.remove()
    assert journal.read() is None


def test_two_versions_of_an_archive_are_kept_and_older_ones_go(
    transaction: Transaction, root: Path, artifacts: Artifacts
) -> None:
    resource = ArchiveResource(artifact="app.tar", name="app", path="/opt/app")
    for version in ("1", "2", "3", "4"):
        artifacts.put_tar("app.tar", {"app": version.encode()})
        assert transaction.run(*authorised(resource, version=version), artifacts).verdict == "done"
    assert sorted(path.name for path in (root / "opt/app").iterdir()) == ["app-3", "app-4", "current"]
    again = transaction.run(*authorised(resource, version="4"), artifacts)
    assert again.steps == ()
    assert (root / "opt/app/app-3").is_dir()


def test_long_and_odd_subjects_have_receipts_of_their_own(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    subjects = ["check:a/b", "check:a%2Fb", "x" * 128, "check:" + "y" * 120 + "/" + "z" * 120]
    for subject in subjects:
        receipts.put(Receipt(subject, "1", "", "done", 1, NOW_MS))
    assert sorted(receipt.subject for receipt in receipts.all()) == sorted(subjects)
    assert all(receipts.get(subject) for subject in subjects)


async def test_the_applier_applies_resumes_and_knows_what_is_in_place(
    tmp_path: Path, root: Path, artifacts: Artifacts
) -> None:
    artifacts.put("tool", b"good")
    applier = make_applier(tmp_path / "apply", root)
    assert await applier.resume() is None
    change, permission = authorised(GOOD, BAD)
    assert not await applier.is_in_place(change, artifacts.sha256_of)
    outcome = await applier.apply(change, permission, artifacts)
    assert outcome.verdict == "done"
    assert await applier.is_in_place(change, artifacts.sha256_of)
    assert not await applier.is_in_place(change, {"tool": "0" * 64})
    assert not await applier.is_in_place(change, {})
    (root / "etc/tool").write_text("drifted")
    assert not await applier.is_in_place(change, artifacts.sha256_of)
    receipt = applier.receipt("tool")
    assert receipt is not None
    assert (receipt.applied_version, receipt.verdict) == ("1", "done")
    assert (tmp_path / "apply").stat().st_mode & 0o777 == 0o700


async def test_the_applier_says_why_it_waits_and_an_operator_resets(
    tmp_path: Path, root: Path, artifacts: Artifacts
) -> None:
    clock_ms = [NOW_MS]
    applier = make_applier(tmp_path / "apply", root, clock_ms=clock_ms)
    change, permission = authorised(GOOD, BAD)
    assert applier.why_wait(change) == ""
    pauses = []
    for _ in range(ATTEMPTS_MAX - 1):
        assert (await applier.apply(change, permission, artifacts)).verdict == "rolled_back"
        why = applier.why_wait(change)
        pauses.append(int(why.rsplit(" ", 2)[1]))
        clock_ms[0] += 1_000 * pauses[-1]
        assert applier.why_wait(change) == ""
    assert pauses == [60, 120, 240, 480]
    clock_ms[0] -= 10**9
    assert (await applier.apply(change, permission, artifacts)).verdict == "parked"
    assert applier.why_wait(change).startswith("Parked after 5 attempts: the staged artifact tool has changed")
    assert applier.why_wait(authorised(GOOD)[0]) == ""
    assert await applier.reset("tool")
    assert applier.why_wait(change) == ""
    artifacts.put("tool", b"good")
    assert (await applier.apply(change, permission, artifacts)).verdict == "done"
    assert not await applier.reset("tool")
    assert not await applier.reset("unknown")


async def test_a_daemon_that_stops_finishes_the_change_under_way(
    tmp_path: Path, root: Path, artifacts: Artifacts
) -> None:
    applier = make_applier(tmp_path / "apply", root)
    change, permission = authorised(GOOD, FileResource(path="/etc/b.conf", content="b"), BAD)
    artifacts.put("tool", b"good")
    with trio.CancelScope() as scope:

        def staged(name: str) -> Staged:
            trio.from_thread.run_sync(scope.cancel)
            return artifacts(name)

        await applier.apply(change, permission, staged)
    assert {path.name for path in (root / "etc").iterdir()} == {"a.conf", "b.conf", "tool"}
    assert Journal(tmp_path / "apply").read() is None


def test_steps_and_changes_travel_through_the_journal_unchanged(
    tmp_path: Path, root: Path, artifacts: Artifacts
) -> None:
    artifacts.put_tar("app.tar", {"app": b"1"})
    written: list[Entry] = []

    class WatchedJournal(Journal):
        def write(self, entry: Entry) -> None:
            super().write(entry)
            assert self.read() == entry
            written.append(entry)

    (tmp_path / "apply").mkdir()
    device = make_device(SystemRoot(root), tmp_path / "work", runner=FakeSystemctl(app=True))
    transaction = make_transaction(tmp_path / "apply", device, journal=WatchedJournal(tmp_path / "apply"))
    resources = (
        ArchiveResource(artifact="app.tar", name="app", path="/opt/app"),
        GOOD,
        ServiceResource(name="app.service", restart_on_change=True, enabled=True),
    )
    assert transaction.run(*authorised(*resources), artifacts).verdict == "done"
    assert [(entry.state, entry.reached) for entry in written] == [
        ("applying", 0),
        ("applying", 1),
        ("applying", 2),
        ("applying", 3),
        ("done", 3),
    ]
    assert len(msgspec.json.encode(written[-1])) < 4_096
