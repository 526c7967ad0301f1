"""Assessment: checks × observations → findings. A core.

Each condition of a check has a result of its own, then ``logic`` joins them. The joining is Kleene's with the bad news
dominant, so that a hidden error cannot become a pass:

=====  ==========================================================  ===================================
logic  the first of these that occurs                              not_applicable
=====  ==========================================================  ===================================
all    fail, error, not_run, pass                                  ignored; only if all of them are
any    pass, error, not_run, fail                                  ignored; only if all of them are
none   as any, with pass and fail exchanged                        ignored; only if all of them are
=====  ==========================================================  ===================================

An attribute of something that is not there gives the check's ``absent`` verdict (fail unless it says otherwise). For lines of a
file, ``existence`` (how many hits) and ``quantifier`` (how many of them must satisfy) are apart, as in OVAL: without
any hit only ``existence`` decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pcm_p2p.compliance.facts.observation import Fact, Observation, Unknown
from pcm_p2p.compliance.finding import DECIDED, Finding, State, clip
from pcm_p2p.compliance.version_order import DebianVersion
from pcm_p2p.policy.condition import Condition
from pcm_p2p.policy.desired import AssignedCheck
from pcm_p2p.policy.document import AnyCheck, FileContentCheck, Quantifier
from pcm_p2p.policy.expression import Expression

Logic = Literal["all", "any", "none"]

_ORDER: dict[Logic, tuple[State, ...]] = {
    "all": ("fail", "error", "not_run", "pass"),
    "any": ("pass", "error", "not_run", "fail"),
    "none": ("fail", "error", "not_run", "pass"),
}
_SHOWN_VALUES_MAX = 8
TEXT_SEARCHED_CHARS_MAX = 4_096
"""As ``facts.file_content``: bounds what an expression runs over."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check decided once. The texts are for people and clipped."""

    state: State
    expected: str
    actual: str
    message: str


@dataclass(frozen=True, slots=True)
class _Result:
    state: State
    message: str = ""


def assess(check: AnyCheck, observation: Observation) -> Verdict:
    """Decide one check on what was observed."""
    conditions = [*check.conditions()]
    if isinstance(check, FileContentCheck):
        results, actual = _content(check, conditions, observation)
    else:
        results = [_result(condition, observation, check.absent) for condition in conditions]
        kinds = {condition.attribute: condition.type for condition in conditions}
        actual = "; ".join(f"{name} = {_shown(kind, observation.get(name, _UNSEEN))}" for name, kind in kinds.items())
    state = combine(check.logic, [result.state for result in results])
    return Verdict(
        state,
        expected=clip(_expected(check, conditions)),
        actual=clip(actual),
        message=clip(_message(check.logic, state, results)),
    )


def combine(logic: Logic, states: Sequence[State]) -> State:
    """Join the states of conditions; the table is in the module's docstring."""
    if logic == "none":
        states = [_EXCHANGED.get(state, state) for state in states]
    return next((state for state in _ORDER[logic] if state in states), "not_applicable")


def conclude(assigned: AssignedCheck, verdict: Verdict, previous: Finding | None, now_ms: int) -> Finding:
    """The finding after an attempt. Where there was no verdict, what had been decided before is kept beside it.

    ``previous`` is the finding of the same policy and check; one of another policy version decided about another text, and
    is not taken over.
    """
    decided: State | Literal[""]
    if verdict.state in DECIDED:
        decided, decided_at_ms = verdict.state, now_ms
    elif previous is not None and previous.policy_version == assigned.policy_version:
        decided, decided_at_ms = previous.decided, previous.decided_at_ms
    else:
        decided, decided_at_ms = "", 0
    check = assigned.check
    return Finding(
        policy=assigned.policy_id,
        policy_version=assigned.policy_version,
        check=check.id,
        state=verdict.state,
        severity=check.severity,
        title=clip(check.title),
        expected=verdict.expected,
        actual=verdict.actual,
        message=verdict.message,
        decided=decided,
        decided_at_ms=decided_at_ms,
        last_attempt_ms=now_ms,
    )


_EXCHANGED: dict[State, State] = {"pass": "fail", "fail": "pass"}
_UNSEEN = Unknown("error", "the probe does not tell")


def _result(condition: Condition, observation: Observation, absent: State) -> _Result:
    fact = observation.get(condition.attribute, _UNSEEN)
    if isinstance(fact, Unknown):
        return _Result(fact.state, fact.reason)
    if fact is None:
        return _Result(absent, f"{condition.attribute}: there is none")
    complaint = _complaint(condition, fact)
    return _Result("fail", f"{condition.attribute} {complaint}") if complaint else _Result("pass")


def _content(
    check: FileContentCheck, conditions: Sequence[Condition], observation: Observation
) -> tuple[list[_Result], str]:
    hits = observation.get("hits", _UNSEEN)
    if isinstance(hits, Unknown):
        return [_Result(hits.state, hits.reason)], ""
    if not isinstance(hits, tuple):
        return [_Result(check.absent, "there is no such file")], "no file"
    actual = f"{len(hits)} matching line{'s' if len(hits) != 1 else ''}"
    if hits:
        actual += ": " + ", ".join(repr(hit) for hit in hits[:_SHOWN_VALUES_MAX])
    if check.existence == "none" and hits:
        results = [_Result("fail", f"{len(hits)} lines match, where none may")]
    elif check.existence == "at_least_one" and not hits:
        results = [_Result("fail", "no line matches")]
    else:
        results = [_Result("pass")]
    values = [condition for condition in conditions if condition.attribute == "value"]
    if values and hits:
        results.append(_quantified(check.quantifier, values, hits))
    return results, actual


def _quantified(quantifier: Quantifier, values: Sequence[Condition], hits: Sequence[str]) -> _Result:
    complaints = [next((text for condition in values if (text := _complaint(condition, hit))), "") for hit in hits]
    right = complaints.count("")
    wrong = next((f"{hit!r} {text}" for hit, text in zip(hits, complaints, strict=True) if text), "")
    match quantifier:
        case "all":
            return _Result("fail", wrong) if right < len(hits) else _Result("pass")
        case "any":
            return _Result("pass") if right else _Result("fail", wrong)
        case "none":
            return _Result("fail", f"{right} lines have that value, where none may") if right else _Result("pass")
        case "only_one":
            return _Result("pass") if right == 1 else _Result("fail", f"{right} lines have that value, where one must")


def _complaint(condition: Condition, fact: Fact) -> str:
    """Why ``fact`` does not satisfy ``condition``, as the end of a sentence; empty if it does."""
    match condition.type:
        case "version":
            return _ordered(condition, DebianVersion(str(fact)), [DebianVersion(str(one)) for one in _many(condition)])
        case "number":
            number = _number(fact)
            return (
                "is not a number"
                if number is None
                else _ordered(condition, number, [int(one) for one in _many(condition)])
            )
        case "mode":
            return _mode(condition, fact)
        case "options":
            return _options(condition, fact)
        case "bool":
            return "" if fact is condition.value else f"is {_shown('', fact)}"
        case "text":
            return _text(condition, str(fact))


class _Ordered(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


def _ordered(condition: Condition, actual: _Ordered, values: Sequence[_Ordered]) -> str:
    first, last = values[0], values[-1]
    less, more, same = actual < first, first < actual, actual == first
    holds = {
        "eq": same,
        "ne": not same,
        "lt": less,
        "le": less or same,
        "gt": more,
        "ge": more or same,
        "in": actual in values,
        "between": not less and not last < actual,
    }
    return "" if holds[condition.operator] else f"is not {_asked(condition)}"


def _text(condition: Condition, actual: str) -> str:
    values = [str(one) for one in _many(condition)]
    holds = {
        "eq": actual == values[0],
        "ne": actual != values[0],
        "in": actual in values,
        "contains": values[0] in actual,
        "matches": condition.operator == "matches"
        and Expression(values[0]).search(actual[:TEXT_SEARCHED_CHARS_MAX]) is not None,
    }
    return "" if holds[condition.operator] else f"is not {_asked(condition)}"


def _mode(condition: Condition, fact: Fact) -> str:
    if not isinstance(fact, int) or not isinstance(condition.value, int):
        return "is not a mode"
    if condition.operator == "at_most":
        beyond = fact & ~condition.value
        return f"has {beyond:04o} beyond {condition.value:04o}" if beyond else ""
    return "" if fact == condition.value else f"is not {_asked(condition)}"


def _options(condition: Condition, fact: Fact) -> str:
    if not isinstance(fact, tuple):
        return "is not a set of options"
    wanted = [str(one) for one in _many(condition)]
    match condition.operator:
        case "includes":
            odd, text = [one for one in wanted if one not in fact], "lacks"
        case "excludes":
            odd, text = [one for one in wanted if one in fact], "has"
        case _:
            odd, text = [one for one in fact if one not in wanted], "also has"
    return f"{text} {', '.join(odd)}" if odd else ""


def _many(condition: Condition) -> tuple[bool | int | str, ...]:
    return condition.value if isinstance(condition.value, tuple) else (condition.value,)


def _number(fact: Fact) -> int | None:
    if isinstance(fact, bool):
        return None
    if isinstance(fact, int):
        return fact
    text = str(fact).strip()
    return int(text) if len(text) <= 40 and re.fullmatch(r"[+-]?[0-9]+", text) else None


_WORDS = {
    "eq": "", "ne": "other than ", "lt": "below ", "le": "at most ", "gt": "above ", "ge": "at least ",
    "in": "one of ", "between": "between ", "matches": "matching ", "contains": "containing ",
    "at_most": "at most ", "includes": "with ", "excludes": "without ", "subset_of": "only of ",
}  # fmt: skip


def _asked(condition: Condition) -> str:
    joined = " and " if condition.operator == "between" else ", "
    values = joined.join(_shown(condition.type, one) for one in _many(condition)[:_SHOWN_VALUES_MAX])
    return f"{_WORDS[condition.operator]}{values}"


def _expected(check: AnyCheck, conditions: Sequence[Condition]) -> str:
    texts = [f"{condition.attribute} {_asked(condition)}".strip() for condition in conditions]
    joined = {"all": "; ", "any": " or ", "none": " or "}[check.logic].join(texts)
    if isinstance(check, FileContentCheck):
        joined += f" (lines matching {check.pattern!r})"
    return f"not: {joined}" if check.logic == "none" else joined


def _message(logic: Logic, state: State, results: Sequence[_Result]) -> str:
    if state == "pass":
        return ""
    if logic == "none" and state == "fail":
        return "a condition holds, where none may"
    texts = [result.message for result in results if result.state == state and result.message]
    return "; ".join(dict.fromkeys(texts))


def _shown(kind: str, fact: Fact) -> str:
    match fact:
        case Unknown(_, reason):
            return f"unknown ({reason})"
        case None:
            return "none"
        case bool():
            return "yes" if fact else "no"
        case int():
            return f"{fact:04o}" if kind == "mode" else str(fact)
        case str():
            return fact
        case _:
            return ",".join(fact)
