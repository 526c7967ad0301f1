"""The chain of signing acts: a line that is altered, cut off, moved, put in or missing is found and named (research 10.36)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from repository_simulator import START
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]
from tuf.api.metadata import Metadata, Role, Root, TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.audit.journal import AuditJournal
from pcm_p2p.authority.audit.log import (
    LOG,
    VOLUME_BYTES_MAX,
    Evidence,
    SigningAct,
    Verdict,
    is_volume,
    joined,
    line_of,
    read_chain,
    verify,
    volumes,
)
from pcm_p2p.authority.difference import difference
from pcm_p2p.authority.keys.fingerprint import public_tuf_key
from pcm_p2p.errors import StorageError, TrustError


@dataclass
class History:
    """A fleet's acts: two people who sign root and targets, and a publisher. Keys are made from a number."""

    log: bytes = b""
    evidence: Evidence = field(default_factory=lambda: Evidence({}))

    def key(self, number: int) -> Any:
        names = {1: "alice", 2: "bob", 3: "publisher", 4: "mallory"}
        return public_tuf_key(bytes(SigningKey(bytes([number]) * 32).verify_key), names[number])

    def record(self, number: int, role: str, signed: bytes, version: int, under: int, act: Any = "sign") -> str:
        signature = SigningKey(bytes([number]) * 32).sign(signed).signature.hex()
        made = SigningAct(
            act, role, version, under, signed, self.key(number).keyid, names_of(self.key(number)), signature
        )
        last = self.log.rstrip(b"\n").rpartition(b"\n")[2] or None
        self.log += line_of(made, after=last, time=START, tool="pcm-p2p test")
        return signature

    def publish(self, role: str, signed: Any, numbers: tuple[int, ...], under: int, act: Any = "sign") -> None:
        from securesystemslib.signer import Signature  # type: ignore[attr-defined]

        document = Metadata(signed)
        for number in numbers:
            signature = self.record(number, role, document.signed_bytes, signed.version, under, act)
            keyid = self.key(number).keyid
            document.signatures[keyid] = Signature(keyid, signature)
        self.evidence.published.append((role, document))
        if role == "root":
            self.evidence.roots[signed.version] = document

    def verdict(self, log: bytes | None = None, embedded: bytes | None = None) -> Verdict:
        return verify(self.log if log is None else log, self.evidence, embedded)


def names_of(key: Any) -> str:
    return str(key.unrecognized_fields["x-pcm-owner"])


def root_of(history: History, version: int, people: tuple[int, ...]) -> Root:
    keys = {history.key(number).keyid: history.key(number) for number in (*people, 3)}
    ids = [history.key(number).keyid for number in people]
    roles = {"root": Role(ids, 1), "targets": Role(ids, 1)}
    roles |= {name: Role([history.key(3).keyid], 1) for name in ("snapshot", "timestamp")}
    return Root(version, expires=START, keys=keys, roles=roles, unrecognized_fields={"x-pcm-fleet": "f" * 32})


def a_history() -> History:
    """Two root versions (bob leaves with the second), three targets, and a timestamp under each root."""
    history = History()
    history.publish("root", root_of(history, 1, (1, 2)), (1, 2), under=1)
    history.publish("targets", Targets(1, expires=START), (1, 2), under=1)
    history.record(3, "timestamp", b'{"_type":"timestamp","version":1}', 1, 1, "online")
    history.publish("targets", Targets(2, expires=START), (2,), under=1)
    history.publish("root", root_of(history, 2, (1,)), (1, 2), under=2)
    history.record(3, "timestamp", b'{"_type":"timestamp","version":2}', 2, 2, "online")
    history.publish("targets", Targets(3, expires=START), (1,), under=2)
    return history


def test_a_whole_log_verifies_against_the_keys_of_its_time() -> None:
    verdict = a_history().verdict()
    assert verdict == Verdict(entries=10, verified=8, unkept=2, complaints=())


def test_documents_that_list_keys_of_tokens_verify() -> None:
    """A token's key is PEM: several lines, whose ends canonical JSON does not escape."""
    history = History()
    root = root_of(history, 1, (1,))
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    root.add_key(SSlibKey.from_crypto(public), "targets")
    history.publish("root", root, (1,), under=1)
    assert b"\n" in history.evidence.published[0][1].signed_bytes
    assert history.verdict() == Verdict(entries=1, verified=1, unkept=0, complaints=())


def edit(log: bytes, number: int, change: Callable[[dict[str, Any]], Any]) -> bytes:
    lines = log.splitlines(keepends=True)
    entry = json.loads(lines[number - 1])
    change(entry)
    lines[number - 1] = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
    return b"".join(lines)


def without(log: bytes, *numbers: int) -> bytes:
    return b"".join(line for at, line in enumerate(log.splitlines(keepends=True), start=1) if at not in numbers)


def moved(log: bytes) -> bytes:
    lines = log.splitlines(keepends=True)
    lines[3], lines[4] = lines[4], lines[3]
    return b"".join(lines)


@pytest.mark.parametrize(
    ("attack", "found"),
    [
        (
            lambda log: edit(log, 4, lambda entry: entry.update(owner="alice")),
            "entry 5 does not follow the line before it",
        ),
        (lambda log: edit(log, 4, lambda entry: entry.update(time="2026-01-01T00:00:00Z")), "entry 5 does not follow"),
        (lambda log: without(log, 4), "line 4 is entry 5 and should be 4: one is missing"),
        (moved, "line 4 is entry 5 and should be 4: one is missing, or was moved"),
        (lambda log: without(log, 10), "the signature of alice on targets 3 has no entry: an act is missing"),
        (lambda log: log[:-1], "the last line is not complete"),
        (lambda log: log + log.splitlines(keepends=True)[-1], "line 11 is entry 10 and should be 11"),
        (lambda log: log.replace(b'"act"', b'"act', 1), "line 1 is no entry"),
        (lambda log: b"", "the signature of alice on root 1 has no entry"),
    ],
)
def test_what_is_done_to_a_log_is_found_and_named(attack: Callable[[bytes], bytes], found: str) -> None:
    history = a_history()
    complaints = history.verdict(attack(history.log)).complaints
    assert any(found in complaint for complaint in complaints), complaints


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_altered_byte_goes_unnoticed(data: st.DataObject) -> None:
    """Not even in the last line, which no other line vouches for: with the embedded log, or with what is published."""
    history = a_history()
    at = data.draw(st.integers(0, len(history.log) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != history.log[at]))
    altered = history.log[:at] + bytes([byte]) + history.log[at + 1 :]
    assert history.verdict(altered, embedded=history.log).complaints


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_judged_without_a_crash(log: bytes) -> None:
    assert a_history().verdict(log).complaints


def test_a_document_altered_in_the_last_entry_is_found_although_the_genuine_one_is_published() -> None:
    history = History()
    history.publish("root", root_of(history, 1, (1,)), (1,), under=1)
    history.publish("targets", Targets(1, expires=START), (1,), under=1)
    log = edit(history.log, 2, lambda entry: entry.update(document='{"_type":"targets","version":1}'))
    verdict = history.verdict(log)
    assert [one for one in verdict.complaints if "entry 2" in one and "is not the one that it names" in one]


def test_a_log_that_is_shorter_than_the_embedded_one_was_cut_off() -> None:
    history = a_history()
    complaints = history.verdict(without(history.log, 9, 10), embedded=history.log).complaints
    assert "the log embedded in the repository has 2 entries more: the end of this one was cut off" in complaints
    rewritten = History()
    rewritten.publish("root", root_of(rewritten, 1, (1,)), (1,), under=1)
    assert any("differs from line 1 on" in one for one in rewritten.verdict(embedded=history.log).complaints)


def test_a_rewritten_history_fails_with_its_first_signature_by_another_key() -> None:
    """Whoever can write the folder can make a chain that is whole; what they cannot make are the signatures in it."""
    history = a_history()
    history.record(4, "targets", Metadata(Targets(3, expires=START)).signed_bytes, 3, 2)
    (complaint,) = history.verdict().complaints
    assert complaint.startswith("entry 11, targets 3 by mallory: no root or targets at hand lists the key")
    forged = edit(history.log, 11, lambda entry: entry.update(keyid=history.key(1).keyid, owner="alice"))
    (complaint,) = history.verdict(forged).complaints
    assert complaint == "entry 11, targets 3 by alice: the signature does not verify"


def test_a_key_that_left_with_an_earlier_root_is_found() -> None:
    history = a_history()
    history.record(2, "targets", Metadata(Targets(3, expires=START)).signed_bytes, 3, 1)
    (complaint,) = history.verdict().complaints
    assert complaint == "entry 11, targets 3 by bob: signed under root 1 while root 2 was in force"


def test_an_entry_that_tells_another_version_than_was_signed() -> None:
    history = a_history()
    history.record(1, "targets", Metadata(Targets(3, expires=START)).signed_bytes, 4, 2)
    assert history.verdict().complaints == ("entry 11, targets 4 by alice: what was signed is targets 3",)


def test_dropped_proposals_are_counted_and_no_fault() -> None:
    history = a_history()
    history.record(1, "targets", Metadata(Targets(4, expires=START)).signed_bytes, 4, 2)
    assert history.verdict() == Verdict(11, 8, 3, ())
    history.evidence.payloads = AuditPayload(Metadata(Targets(4, expires=START)).signed_bytes)
    assert history.verdict() == Verdict(11, 9, 2, ())


def AuditPayload(signed: bytes) -> dict[str, bytes]:  # noqa: N802 - reads as the value that it makes
    import hashlib

    return {hashlib.sha256(signed).hexdigest(): signed}


# Volumes


def test_closed_volumes_never_change_and_joined_they_are_the_log() -> None:
    history = a_history()
    line = history.log.splitlines(keepends=True)[0]
    log, before = b"", {}
    for _ in range(3 * VOLUME_BYTES_MAX // len(line)):
        log += line
    for end in range(0, len(log), 40 * len(line)):
        part = volumes(log[:end])
        assert joined(part) == log[:end]
        closed = {path: data for path, data in part.items() if path != LOG}
        assert closed.items() >= before.items()
        before = closed
        assert all(len(data) <= VOLUME_BYTES_MAX for data in part.values())
    assert sorted(before) == ["audit/log-1.jsonl", "audit/log-2.jsonl"]
    assert volumes(b"") == {}


@pytest.mark.parametrize(
    "path", ["audit/log-x.jsonl", "audit/log-0.jsonl", "audit/log-01.jsonl", "audit/log-1.jsonl.jsonl"]
)
def test_what_is_only_named_like_a_volume_is_no_part_of_the_log_and_is_shown_whole(path: str) -> None:
    """Once published, it stood before the log of the folder, which then differed from the published one for ever."""
    assert not is_volume(path)
    data = b"whatever\n"
    after = Targets(1, expires=START)
    after.targets[path] = TargetFile.from_data(path, data, ["sha256"])
    lines = list(difference(None, after, lambda path, sha256: data).lines())
    assert "    +whatever" in lines


# In the folder


def an_act(number: int = 1) -> SigningAct:
    return SigningAct("sign", "targets", number, 1, b"signed %d" % number, "a" * 64, "alice", "ab")


def test_the_journal_continues_its_chain_in_another_process(tmp_path: Path) -> None:
    for number in range(1, 4):
        AuditJournal(tmp_path, lambda: START).append(an_act(number))
    entries, complaints = read_chain(AuditJournal(tmp_path, lambda: START).read())
    assert ([entry.number for entry in entries], complaints) == ([1, 2, 3], ())


def test_a_line_that_a_crash_left_is_cut_off_by_the_next_writer(tmp_path: Path) -> None:
    journal = AuditJournal(tmp_path, lambda: START)
    journal.append(an_act(1))
    whole = journal.read()
    journal.file.write_bytes(whole + b'{"number":2,"bef')
    assert joined(journal.embedded()) == whole
    journal.append(an_act(2))
    entries, complaints = read_chain(journal.read())
    assert ([entry.version for entry in entries], complaints) == ([1, 2], ())
    journal.file.write_bytes(b'{"numb')
    journal.append(an_act(3))
    assert read_chain(journal.read())[1] == ()


def test_a_log_whose_last_line_is_no_entry_is_not_continued(tmp_path: Path) -> None:
    journal = AuditJournal(tmp_path, lambda: START)
    journal.append(an_act())
    journal.file.write_bytes(journal.read() + b"garbage\n")
    with pytest.raises(StorageError, match="cannot be continued") as caught:
        journal.append(an_act())
    assert "audit verify" in caught.value.remedy


@pytest.mark.parametrize(
    "change", [{"signature": "AB"}, {"signature": "a b"}, {"owner": "m" * 65}, {"keyid": "x"}], ids=str
)
def test_what_has_no_place_in_the_log_is_not_written_and_the_log_goes_on(
    tmp_path: Path, change: dict[str, str]
) -> None:
    journal = AuditJournal(tmp_path, lambda: START)
    journal.append(an_act(1))
    with pytest.raises(TrustError, match="has no place in the log"):
        journal.append(replace(an_act(2), **change))  # type: ignore[arg-type]
    journal.append(an_act(3))
    entries, complaints = read_chain(journal.read())
    assert ([entry.version for entry in entries], complaints) == ([1, 3], ())


def test_dropped_documents_are_kept_until_they_are_published(tmp_path: Path) -> None:
    journal = AuditJournal(tmp_path, lambda: START)
    journal.keep_document(b"one")
    journal.keep_document(b"two")
    journal.forget_document(b"one")
    assert list(journal.documents().values()) == [b"two"]


def test_a_log_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "log.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="cannot be opened"):
        AuditJournal(tmp_path, lambda: START).append(an_act())
