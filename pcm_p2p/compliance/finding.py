"""Finding: the result of one check on one device. Pure data, shared by assessment (makes), report (carries), archive (keeps).

States, none of which is ever folded into a kinder one:

==============  =========================================================================================
pass            the expectation holds
fail            it does not hold
error           the probe could not decide: permission, damaged file, tool that cannot answer
not_run         the probe did not get to run: time or byte budget used up, switched off
not_applicable  the thing the check speaks of is not here, and the check says that this is fine
manual          only a person can decide
==============  =========================================================================================

A waiver is an overlay on ``fail`` and freshness stands beside the state; neither is a state. ``error`` and ``not_run`` do not
overwrite a verdict: ``decided`` keeps the last state that a probe did decide, ``decided_at_ms`` when, ``last_attempt_ms`` the
latest attempt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

State = Literal["pass", "fail", "error", "not_run", "not_applicable", "manual"]
STATES: tuple[State, ...] = ("pass", "fail", "error", "not_run", "not_applicable", "manual")
DECIDED: frozenset[State] = frozenset({"pass", "fail", "not_applicable", "manual"})
"""States that are a verdict; the others say that there is none."""

TEXT_CHARS_MAX = 512
"""Choice: expected, actual and message are read by people in one table cell."""

Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)]
Name = Annotated[str, msgspec.Meta(max_length=256)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class Finding(msgspec.Struct, frozen=True):
    """``check`` is stable for ever: policy + check name the finding on a device. ``decided`` and ``decided_at_ms`` are empty and
    0 until a probe has decided for the first time; times are milliseconds since 1970 by the device's clock."""

    policy: Name
    policy_version: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    check: Name
    state: State
    severity: Name = ""
    title: Text = ""
    expected: Text = ""
    actual: Text = ""
    message: Text = ""
    decided: State | Literal[""] = ""
    decided_at_ms: Milliseconds = 0
    last_attempt_ms: Milliseconds = 0


def clip(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """``text`` without control characters and at most ``chars_max`` long; what was cut is shown by an ellipsis."""
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[: chars_max + 1])
    return clean if len(clean) <= chars_max else clean[: chars_max - 1] + "…"


def tally(findings: Iterable[Finding]) -> dict[State, int]:
    """How many findings are in each state; every state is named."""
    counted = Counter(finding.state for finding in findings)
    return {state: counted[state] for state in STATES}
