"""From observations to findings: the truth tables, every operator, what absence and not knowing mean."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import msgspec
import pytest

from pcm_p2p.compliance.assessment import Logic, assess, combine, conclude
from pcm_p2p.compliance.facts.observation import Fact, Unknown
from pcm_p2p.compliance.finding import Finding, State
from pcm_p2p.policy.desired import AssignedCheck
from pcm_p2p.policy.document import AnyCheck

BROKEN, LATE = Unknown("error", "permission denied"), Unknown("not_run", "time was up")


def check(resource: str, **fields: Any) -> AnyCheck:
    return msgspec.convert({"id": "c", "resource": resource, **fields}, AnyCheck)


def state_of(made: AnyCheck, **facts: Fact) -> State:
    return assess(made, facts).state


@pytest.mark.parametrize(
    ("logic", "states", "joined"),
    [
        ("all", ["pass", "pass"], "pass"),
        ("all", ["pass", "not_run"], "not_run"),
        ("all", ["pass", "not_run", "error"], "error"),
        ("all", ["error", "fail", "not_run"], "fail"),
        ("all", ["not_applicable", "fail"], "fail"),
        ("all", ["not_applicable", "pass"], "pass"),
        ("any", ["fail", "pass"], "pass"),
        ("any", ["error", "pass"], "pass"),
        ("any", ["fail", "error"], "error"),
        ("any", ["fail", "not_run"], "not_run"),
        ("any", ["fail", "fail"], "fail"),
        ("any", ["not_applicable", "fail"], "fail"),
        ("none", ["fail", "fail"], "pass"),
        ("none", ["fail", "pass"], "fail"),
        ("none", ["fail", "error"], "error"),
        ("none", ["not_applicable", "fail"], "pass"),
    ],
)
def test_conditions_join_by_the_table(logic: Logic, states: list[State], joined: State) -> None:
    for order in itertools.permutations(states):
        assert combine(logic, order) == joined


@pytest.mark.parametrize("logic", get_args(Logic))
def test_only_what_does_not_apply_at_all_is_not_applicable(logic: Logic) -> None:
    assert combine(logic, ["not_applicable", "not_applicable"]) == "not_applicable"


@pytest.mark.parametrize("logic", get_args(Logic))
@pytest.mark.parametrize("unknown", ["error", "not_run"])
def test_what_is_not_known_never_makes_a_pass(logic: Logic, unknown: State) -> None:
    """Replacing an unknown by either verdict never turns a joined verdict over: that is what Kleene's logic promises."""
    for others in itertools.product(("pass", "fail", "not_applicable"), repeat=2):
        joined = combine(logic, [unknown, *others])
        if joined in ("pass", "fail"):
            assert {combine(logic, [known, *others]) for known in ("pass", "fail")} == {joined}


@pytest.mark.parametrize(
    ("resource", "fields", "facts", "expected"),
    [
        ("package", {"name": "a", "installed": True}, {"installed": True}, "pass"),
        ("package", {"name": "a", "installed": True}, {"installed": False}, "fail"),
        ("package", {"name": "a", "installed": False}, {"installed": False}, "pass"),
        ("package", {"name": "a", "version": "1.0"}, {"version": "0:1.0-0"}, "pass"),
        ("package", {"name": "a", "version": {"ge": "1.0~rc1"}}, {"version": "1.0"}, "pass"),
        ("package", {"name": "a", "version": {"ge": "1.0"}}, {"version": "1.0~rc1"}, "fail"),
        ("package", {"name": "a", "version": {"lt": "2", "ne": "1.5"}}, {"version": "1.5"}, "fail"),
        ("package", {"name": "a", "version": {"in": ["1", "2"]}}, {"version": "2-0"}, "pass"),
        ("package", {"name": "a", "version": {"between": ["1", "2"]}}, {"version": "2"}, "pass"),
        ("package", {"name": "a", "version": {"between": ["1", "2"]}}, {"version": "2.1"}, "fail"),
        ("package", {"name": "a", "arch": {"in": ["amd64", "all"]}}, {"arch": "all"}, "pass"),
        ("file", {"path": "/a", "exists": False}, {"exists": True}, "fail"),
        ("file", {"path": "/a", "mode": 0o640}, {"mode": 0o644}, "fail"),
        ("file", {"path": "/a", "mode": {"at_most": 0o640}}, {"mode": 0o600}, "pass"),
        ("file", {"path": "/a", "mode": {"at_most": 0o640}}, {"mode": 0o604}, "fail"),
        ("file", {"path": "/a", "mode": {"at_most": 0o777}}, {"mode": 0o4755}, "fail"),
        ("file", {"path": "/a", "owner": {"ne": "root"}}, {"owner": "root"}, "fail"),
        ("file", {"path": "/a", "size_bytes": {"le": 10}}, {"size_bytes": 11}, "fail"),
        ("file", {"path": "/a", "symlink_target": {"matches": "^/etc/"}}, {"symlink_target": "/etc/x"}, "pass"),
        ("file", {"path": "/a", "symlink_target": {"contains": "etc"}}, {"symlink_target": "/usr"}, "fail"),
        ("sysctl", {"key": "a.b", "live": 1}, {"live": "1"}, "pass"),
        ("sysctl", {"key": "a.b", "live": {"ge": 2}}, {"live": "10"}, "pass"),
        ("sysctl", {"key": "a.b", "live": {"ge": 2}}, {"live": "4 4 1 7"}, "fail"),
        ("sysctl", {"key": "a.b", "live": 1, "persisted": 1}, {"live": "1", "persisted": None}, "fail"),
        ("service", {"name": "a.service", "active": True}, {"active": False}, "fail"),
        ("mount", {"path": "/tmp", "options": {"includes": ["nosuid"]}}, {"options": ("rw", "nosuid")}, "pass"),
        ("mount", {"path": "/tmp", "options": {"includes": ["nosuid", "nodev"]}}, {"options": ("nosuid",)}, "fail"),
        ("mount", {"path": "/tmp", "options": {"excludes": ["exec"]}}, {"options": ("exec",)}, "fail"),
        ("mount", {"path": "/tmp", "options": {"subset_of": ["rw", "ro"]}}, {"options": ("rw", "suid")}, "fail"),
    ],
)  # fmt: skip
def test_operators_decide(resource: str, fields: dict[str, Any], facts: dict[str, Fact], expected: State) -> None:
    verdict = assess(check(resource, **fields), facts)
    assert verdict.state == expected
    assert verdict.expected
    assert bool(verdict.message) is (expected == "fail"), "a failure says why"


@pytest.mark.parametrize("absent", ["fail", "pass", "not_applicable"])
def test_absence_is_what_the_check_says_of_it(absent: State) -> None:
    made = check("file", path="/a", mode={"at_most": 0o640}, absent=absent)
    assert state_of(made, exists=False, mode=None) == absent
    both = check("package", name="a", installed=True, version={"ge": "1"}, absent="not_applicable")
    assert state_of(both, installed=False, version=None) == "fail", "an answer by absence itself still counts"


def test_what_a_probe_cannot_tell_is_said_with_the_reason() -> None:
    made = check("file", path="/a", mode=0o600, owner="root")
    assert state_of(made, mode=BROKEN, owner="root") == "error"
    assert state_of(made, mode=LATE, owner=BROKEN) == "error"
    assert state_of(made, mode=LATE, owner="nobody") == "fail", "one that surely fails is enough"
    assert assess(made, {"mode": BROKEN, "owner": "root"}).message == "permission denied"
    assert state_of(made, owner="root") == "error", "an attribute that the probe forgot is not a pass"


@pytest.mark.parametrize(
    ("fields", "hits", "expected"),
    [
        ({}, ("x",), "pass"),
        ({}, (), "fail"),
        ({"existence": "none"}, (), "pass"),
        ({"existence": "none"}, ("x",), "fail"),
        ({"existence": "any"}, (), "pass"),
        ({"value": "no"}, ("no", "no"), "pass"),
        ({"value": "no"}, ("no", "yes"), "fail"),
        ({"value": "no", "quantifier": "any"}, ("no", "yes"), "pass"),
        ({"value": "no", "quantifier": "any"}, ("yes",), "fail"),
        ({"value": "no", "quantifier": "none"}, ("yes",), "pass"),
        ({"value": "no", "quantifier": "none"}, ("no",), "fail"),
        ({"value": "no", "quantifier": "only_one"}, ("no", "yes"), "pass"),
        ({"value": "no", "quantifier": "only_one"}, ("no", "no"), "fail"),
        ({"value": {"le": 90}}, ("90",), "pass"),
        ({"value": {"le": 90}}, ("ninety",), "fail"),
        ({"value": {"ge": 1, "le": 90}}, ("0",), "fail"),
        ({"value": "no", "existence": "any"}, (), "pass"),
        ({"value": "no", "quantifier": "any", "existence": "any"}, (), "pass"),
        ({"absent": "pass"}, None, "pass"),
        ({}, None, "fail"),
    ],
)  # fmt: skip
def test_existence_and_quantifier_are_two_questions(
    fields: dict[str, Any], hits: tuple[str, ...] | None, expected: State
) -> None:
    assert state_of(check("file_content", path="/a", pattern="x", **fields), hits=hits) == expected


def test_people_read_modes_in_octal_and_bools_in_words() -> None:
    verdict = assess(check("file", path="/a", mode={"at_most": 0o640}, exists=True), {"mode": 0o644, "exists": True})
    assert (verdict.expected, verdict.actual) == ("exists yes; mode at most 0640", "exists = yes; mode = 0644")
    assert verdict.message == "mode has 0004 beyond 0640"


def test_what_a_device_says_of_itself_is_clipped() -> None:
    verdict = assess(check("file", path="/a", owner="root"), {"owner": "x\n" * 5_000})
    assert len(verdict.actual) <= 512
    assert "\n" not in verdict.actual


def assigned(version: int = 1) -> AssignedCheck:
    return AssignedCheck("policy", version, "observe", check("file", path="/a", exists=True, severity="high"), None)


def concluded(state: State, previous: Finding | None, now_ms: int, version: int = 1) -> Finding:
    facts: Fact = {"pass": True, "fail": False, "error": BROKEN, "not_run": LATE}[state]
    one = assigned(version)
    return conclude(one, assess(one.check, {"exists": facts}), previous, now_ms)


def test_a_time_out_does_not_overwrite_the_last_verdict() -> None:
    good = concluded("pass", None, 100)
    assert (good.state, good.decided, good.decided_at_ms, good.last_attempt_ms) == ("pass", "pass", 100, 100)
    late = concluded("not_run", good, 200)
    assert (late.state, late.decided, late.decided_at_ms, late.last_attempt_ms) == ("not_run", "pass", 100, 200)
    again = concluded("error", late, 300)
    assert (again.state, again.decided, again.decided_at_ms) == ("error", "pass", 100)
    assert concluded("fail", again, 400).decided == "fail"


def test_a_verdict_on_another_edition_of_the_policy_is_not_taken_over() -> None:
    renewed = concluded("not_run", concluded("pass", None, 100), 200, version=2)
    assert (renewed.decided, renewed.decided_at_ms, renewed.policy_version) == ("", 0, 2)
