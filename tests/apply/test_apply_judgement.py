"""What is due follows from what the service trusts, whatever is asked; and what is said fits its schema or is refused."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.apply.dialogue import (
    ANSWER_BYTES_MAX,
    LENGTH_BYTES,
    REQUEST_BYTES_MAX,
    Answer,
    Apply,
    AskArtifact,
    AskFile,
    Bring,
    Ended,
    GetReceipts,
    InPlace,
    Lack,
    Learned,
    Observe,
    Observed,
    Offer,
    ReceiptRow,
    Refused,
    Reset,
    SeenFact,
    decode_brought_untrusted,
    decode_request_untrusted,
    decode_said_untrusted,
    encode,
    length_untrusted,
)
from pcm_p2p.apply.judgement import Due, NotDue, Published, PublishedArtifact, digest_of_check, judge
from pcm_p2p.apply.receipt import Outcome, Receipt, digest_of
from pcm_p2p.apply.step import PackageIdentity
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.activation import Activation
from pcm_p2p.policy.desired import Desired, decide
from pcm_p2p.policy.document import Assignment, FileCheck, Mode, Policy, decode_policy
from pcm_p2p.policy.resource import FileResource, PackageResource, Resource
from pcm_p2p.policy.selector import EVERYONE, DeviceFacts, Selector

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1_000)
ME = DeviceFacts(DeviceId(bytes(16)), "office")
TOOL = FileResource(path="/opt/tool", artifact="tool.bin")
PUBLISHED = Published(5, (PublishedArtifact("tool.bin", "a" * 64, 100, "exact"),))


def desired(
    *resources: Resource,
    mode: Mode = "enforce",
    active: bool = True,
    to: Selector = EVERYONE,
    version: str = "1",
    freshness: Any = "fresh",
) -> Desired:
    policy = Policy(
        "pcm.policy/1",
        "base",
        1,
        mode=mode,
        assignments=(Assignment("tool", version, to=to, resources=resources or (TOOL,)),),
    )
    activation = Activation("pcm.activation/1", NOW, scope="all") if active else None
    return decide([policy], activation, ME, NOW, freshness)


def ask(wanted: Desired, **options: Any) -> Due | NotDue:
    change = wanted.releases[0].change
    arguments: dict[str, Any] = {
        "subject": "tool",
        "version": "1",
        "digest": digest_of(change),
        "published": PUBLISHED,
        "counter_min": 0,
        "receipt": None,
        "now_ms": NOW_MS,
    }
    arguments |= options
    return judge(wanted, arguments.pop("subject"), arguments.pop("version"), arguments.pop("digest"), **arguments)


def receipt(**fields: Any) -> Receipt:
    change = desired().releases[0].change
    known = {"verdict": "rolled_back", "attempts": 1, "at_ms": NOW_MS, "reason": "it failed"}
    return Receipt(**{"subject": "tool", "version": "1", "digest": digest_of(change), **known, **fields})


def test_what_is_due_comes_with_its_artifacts() -> None:
    due = ask(desired())
    assert isinstance(due, Due)
    assert due.change == desired().releases[0].change
    assert due.artifacts == PUBLISHED.artifacts
    assert due.size_bytes == 100


REFUSED: dict[str, tuple[Desired, dict[str, Any], str]] = {
    "another release": (desired(), {"subject": "other"}, "do not assign other 1"),
    "another version": (desired(), {"version": "2"}, "do not assign tool 2 to this device, but version 1"),
    "another change": (desired(), {"digest": "0" * 64}, "say otherwise"),
    "not for this device": (
        desired(),
        {"subject": "check:base/none"},
        "do not assign check:base/none",
    ),
    "no manifest": (desired(), {"published": None}, "manifest of tool 1 is not here"),
    "no such artifact": (desired(), {"published": Published(5, ())}, "no artifact tool.bin"),
    "an unpacked form": (
        desired(),
        {"published": Published(5, (PublishedArtifact("tool.bin", "a" * 64, 100, "deb"),))},
        "kept as unpacked deb",
    ),
    "observed": (desired(mode="observe"), {}, "mode observe"),
    "notified": (desired(mode="notify"), {}, "mode notify"),
    "not activated": (desired(active=False), {}, "no signed activation"),
    "frozen": (desired(freshness="frozen"), {}, "frozen"),
    "older": (desired(), {"counter_min": 6}, "Counter 5 of tool 1 is below 6"),
    "too soon": (desired(), {"receipt": receipt()}, "the next one is in 60 s"),
    "parked": (desired(), {"receipt": receipt(verdict="parked", attempts=5)}, "Parked after 5 attempts"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_is_not_due_has_a_reason(row: str) -> None:
    wanted, options, reason = REFUSED[row]
    verdict = ask(wanted, **options)
    assert isinstance(verdict, NotDue)
    assert reason in verdict.reason


def test_a_receipt_of_another_change_or_of_long_ago_does_not_count() -> None:
    assert isinstance(ask(desired(), receipt=receipt(digest="0" * 64)), Due)
    assert isinstance(ask(desired(), receipt=receipt(at_ms=NOW_MS - 60_001)), Due)
    assert isinstance(ask(desired(), receipt=receipt(verdict="done")), Due)


def test_a_remedy_is_due_without_a_manifest_and_only_under_its_own_name() -> None:
    wanted = _with_check()
    (assigned,) = wanted.checks
    assert assigned.remedy is not None
    subject, digest = assigned.remedy.subject, digest_of(assigned.remedy)
    due = ask(wanted, subject=subject, version=assigned.remedy.version, digest=digest, published=None)
    assert isinstance(due, Due)
    assert due.artifacts == ()
    assert isinstance(ask(wanted, subject=subject, version="7", digest=digest, published=None), NotDue)


def _with_check() -> Desired:
    text = b"""
schema = "pcm.policy/1"
id = "base"
version = 1
mode = "enforce"
[[assign]]
release = "tool"
version = "1"
to = { all = true }
[[assign.resource]]
kind = "file"
path = "/opt/tool"
artifact = "tool.bin"
[[check]]
id = "motd"
resource = "file"
path = "/etc/motd"
mode = { eq = 0o600 }
remediate = true
"""
    return decide(
        [decode_policy(text, "base.toml")], Activation("pcm.activation/1", NOW, scope="all"), ME, NOW, "fresh"
    )


modes = st.sampled_from(["observe", "notify", "enforce"])
names = st.sampled_from(["tool", "other", "check:base/motd"])
versions = st.sampled_from(["1", "2"])


@given(
    mode=modes,
    active=st.booleans(),
    assigned=versions,
    asked=versions,
    subject=names,
    known=st.booleans(),
    counter_min=st.integers(0, 9),
    freshness=st.sampled_from(["fresh", "stale", "frozen"]),
    package=st.booleans(),
    mine=st.booleans(),
    failed=st.integers(0, 6),
    passed_s=st.integers(-100, 7_200),
)
def test_nothing_is_due_that_the_decision_does_not_permit(
    mode: Mode,
    active: bool,
    assigned: str,
    asked: str,
    subject: str,
    known: bool,
    counter_min: int,
    freshness: str,
    package: bool,
    mine: bool,
    failed: int,
    passed_s: int,
) -> None:
    resource: Resource = PackageResource(artifact="tool.bin") if package else TOOL
    to = EVERYONE if mine else Selector(sites=("elsewhere",))
    wanted = desired(resource, mode=mode, active=active, to=to, version=assigned, freshness=freshness)
    change = wanted.releases[0].change if wanted.releases else desired(resource, version=assigned).releases[0].change
    verdict = judge(
        wanted,
        subject,
        asked,
        digest_of(change),
        published=PUBLISHED if known else None,
        counter_min=counter_min,
        receipt=receipt(digest=digest_of(change), attempts=failed, at_ms=NOW_MS) if failed else None,
        now_ms=NOW_MS + 1_000 * passed_s,
    )
    if isinstance(verdict, NotDue):
        assert verdict.reason
        return
    assert wanted.authorisation.permits(verdict.change)
    assert (mode, active, mine, known, asked, subject) == ("enforce", True, True, True, assigned, "tool")
    assert freshness != "frozen"
    assert counter_min <= PUBLISHED.counter
    assert {artifact.name for artifact in verdict.artifacts} == {"tool.bin"}


# The dialogue

SHA = "0" * 64
REQUESTS = (
    Offer(),
    Offer(site=True),
    Apply("a", "1", SHA),
    InPlace("a", "1", SHA),
    GetReceipts(),
    Observe(SHA, 10),
    Reset("a"),
)
BROUGHT = (Bring(0), Bring(1 << 30), Lack("not here"))
SAID = (
    AskFile("metadata/timestamp.json", 10),
    AskArtifact("tool.bin", SHA, 100),
    Learned("good", ""),
    Ended(Outcome("a", "1", "done", ("write /x",), 1)),
    Answer(yes=True),
    ReceiptRow(receipt(packages={SHA: PackageIdentity("a", "1", "all")})),
    Observed((SeenFact("mode", 0o600), SeenFact("hits", ("a", "b")), SeenFact("sha256", None, "error", "no"))),
    Refused("no", "wait", 5),
)


@pytest.mark.parametrize(
    ("decode", "messages"),
    [(decode_request_untrusted, REQUESTS), (decode_brought_untrusted, BROUGHT), (decode_said_untrusted, SAID)],
)
def test_messages_come_back_whole_and_only_to_who_may_hear_them(decode: Any, messages: tuple[Any, ...]) -> None:
    for message in (*REQUESTS, *BROUGHT, *SAID):
        data = encode(message)
        assert length_untrusted(data[:LENGTH_BYTES], ANSWER_BYTES_MAX) == len(data) - LENGTH_BYTES
        if message in messages:
            assert decode(data[LENGTH_BYTES:]) == message
        else:
            with pytest.raises(UntrustedBytes):
                decode(data[LENGTH_BYTES:])


@given(
    st.binary(max_size=300),
    st.sampled_from([decode_request_untrusted, decode_brought_untrusted, decode_said_untrusted]),
)
def test_noise_is_a_message_or_refused(data: bytes, decode: Any) -> None:
    with contextlib.suppress(UntrustedBytes):
        decode(data)


@given(st.binary(min_size=LENGTH_BYTES, max_size=LENGTH_BYTES))
def test_a_length_above_the_bound_is_refused_before_anything_is_read(head: bytes) -> None:
    number = int.from_bytes(head, "big")
    try:
        assert length_untrusted(head, REQUEST_BYTES_MAX) == number
        assert 1 <= number <= REQUEST_BYTES_MAX
    except UntrustedBytes:
        assert not 1 <= number <= REQUEST_BYTES_MAX


def test_a_check_is_named_by_all_that_it_asks() -> None:
    one = FileCheck(id="a", path="/etc/shadow", exists=True)
    assert digest_of_check(one) == digest_of_check(FileCheck(id="a", path="/etc/shadow", exists=True))
    assert digest_of_check(one) != digest_of_check(FileCheck(id="a", path="/etc/gshadow", exists=True))
