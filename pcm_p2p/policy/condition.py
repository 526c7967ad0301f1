"""Conditions: what a check asks of one attribute. The attribute's type decides which operators there are.

=========  ==================================================  ==============================================
type       operators                                           written for short
=========  ==================================================  ==============================================
bool       eq                                                  ``installed = true``
text       eq ne in matches contains                           ``owner = "root"``
version    eq ne lt le gt ge in between (dpkg order)           ``version = "1.2-3"``
number     eq ne lt le gt ge in between                        ``size_bytes = 0``
scalar     as number for integers, as text for strings         ``live = 0`` (sysctl keeps both)
mode       eq at_most (no bit set beyond these)                ``mode = 0o640``
options    includes excludes subset_of                         ``options = { includes = ["nosuid"] }``
=========  ==================================================  ==============================================

Several operators in one table must all hold. ``rows()`` gives them as ``Condition`` rows, the form in which
``compliance.assessment`` takes them. Operators and names follow OVAL and InSpec (research/compliance.md 2).
"""

from __future__ import annotations

import enum
import re
import warnings
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

Type = Literal["bool", "text", "version", "number", "mode", "options"]
Operator = Literal[
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "in",
    "between",
    "matches",
    "contains",
    "at_most",
    "includes",
    "excludes",
    "subset_of",
]
Value = bool | int | str | tuple[int | str, ...]

PATTERN_CHARACTERS_MAX = 512
"""Choice: longer expressions are programs; a check that needs one is written as two checks."""

Text = Annotated[str, msgspec.Meta(max_length=4_096)]
ModeBits = Annotated[int, msgspec.Meta(ge=0, le=0o7777)]
VersionText = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=r"^[0-9A-Za-z.+:~-]+$")]
Some = msgspec.Meta(min_length=1, max_length=256)


class Condition(msgspec.Struct, frozen=True):
    """One question: does ``attribute`` ``operator`` ``value`` hold? ``type`` says how the two sides are compared."""

    attribute: str
    type: Type
    operator: Operator
    value: Value


class _Operators(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the operator tables: at least one operator, each with its value."""

    def __post_init__(self) -> None:
        if not any(value is not None for _, value in self.given()):
            names = ", ".join(field.encode_name for field in msgspec.structs.fields(self))
            raise ValueError(f"asks nothing; use one of: {names}")

    def given(self) -> Iterator[tuple[Operator, Value]]:
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                yield field.encode_name, value  # type: ignore[misc]  # the field names are the operators


class TextOperators(_Operators, frozen=True):
    eq: Text | None = None
    ne: Text | None = None
    any_of: Annotated[tuple[Text, ...], Some] | None = msgspec.field(default=None, name="in")
    matches: Text | None = None
    contains: Text | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.matches is not None:
            check_pattern(self.matches)


class VersionOperators(_Operators, frozen=True):
    """Versions in dpkg order, ``epoch:upstream-revision`` with ``~`` before everything."""

    eq: VersionText | None = None
    ne: VersionText | None = None
    lt: VersionText | None = None
    le: VersionText | None = None
    gt: VersionText | None = None
    ge: VersionText | None = None
    any_of: Annotated[tuple[VersionText, ...], Some] | None = msgspec.field(default=None, name="in")
    between: tuple[VersionText, VersionText] | None = None


class NumberOperators(_Operators, frozen=True):
    """Integers; ``between`` includes both ends."""

    eq: int | None = None
    ne: int | None = None
    lt: int | None = None
    le: int | None = None
    gt: int | None = None
    ge: int | None = None
    any_of: Annotated[tuple[int, ...], Some] | None = msgspec.field(default=None, name="in")
    between: tuple[int, int] | None = None


class ScalarOperators(_Operators, frozen=True):
    """For values that are numbers or text: the type of what stands in the policy decides how they are compared."""

    eq: int | Text | None = None
    ne: int | Text | None = None
    lt: int | None = None
    le: int | None = None
    gt: int | None = None
    ge: int | None = None
    any_of: Annotated[tuple[int | Text, ...], Some] | None = msgspec.field(default=None, name="in")
    between: tuple[int, int] | None = None
    matches: Text | None = None
    contains: Text | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.matches is not None:
            check_pattern(self.matches)
        if self.any_of is not None and len({type(value) for value in self.any_of}) > 1:
            raise ValueError("'in' lists numbers or texts, not both")


class ModeOperators(_Operators, frozen=True):
    """Permission bits as TOML octal (``0o640``). ``at_most``: no bit is set that is not set here."""

    eq: ModeBits | None = None
    at_most: ModeBits | None = None


class OptionsOperators(_Operators, frozen=True):
    """Sets of words, such as mount options."""

    includes: Annotated[tuple[Text, ...], Some] | None = None
    excludes: Annotated[tuple[Text, ...], Some] | None = None
    subset_of: Annotated[tuple[Text, ...], Some] | None = None


AnyOperators = TextOperators | VersionOperators | NumberOperators | ScalarOperators | ModeOperators | OptionsOperators

_TYPE_OF: dict[type[_Operators], Type] = {
    TextOperators: "text",
    VersionOperators: "version",
    NumberOperators: "number",
    ModeOperators: "mode",
    OptionsOperators: "options",
}


def rows(attribute: str, asked: AnyOperators | bool | int | str | None, short: Type = "text") -> Iterator[Condition]:
    """The rows for one attribute; none when it is not asked. ``short`` is the type of a value without operators."""
    if asked is None:
        return
    if isinstance(asked, bool):
        yield Condition(attribute, "bool", "eq", asked)
    elif isinstance(asked, int | str):
        yield Condition(attribute, short, "eq", asked)
    else:
        for operator, value in asked.given():
            yield Condition(attribute, _TYPE_OF.get(type(asked)) or _type_of(value), operator, value)


def scalar_type(value: int | str | None) -> Type:
    return "number" if isinstance(value, int) else "text"


def _type_of(value: Value) -> Type:
    first = value[0] if isinstance(value, tuple) else value
    return "number" if isinstance(first, int) else "text"


def check_pattern(pattern: str) -> None:
    """Refuse (``ValueError``) an expression that is no Python regular expression or whose search time can explode.

    The text it runs over may be written by any user of the device, so a repeated group that itself repeats or chooses, a
    back reference or a look-around is refused: those are what makes a backtracking engine exponential.
    """
    if len(pattern) > PATTERN_CHARACTERS_MAX:
        raise ValueError(f"the expression has {len(pattern)} characters; at most {PATTERN_CHARACTERS_MAX} are read")
    try:
        with warnings.catch_warnings(action="error"):  # an expression that will soon mean something else
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError, Warning) as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    bare = re.sub(r"\[\^?\]?(?:\\.|[^\]\\])*\]", "x", re.sub(r"\\[^1-9]", "x", pattern))
    if re.search(r"\\[1-9]|\(\?(P=|=|!|<=|<!|\()", bare):
        raise ValueError("back references and look-around are refused, since their search time has no bound")
    groups: list[_Repeats] = []
    for at, character in enumerate(bare):
        if character == "(":
            groups.append(_Repeats.NONE)
        elif groups and character != ")":
            groups[-1] = max(groups[-1], _repeats(bare, at))
        elif groups:
            inner, outer = groups.pop(), _repeats(bare, at + 1)
            if inner + outer > _Repeats.WITHOUT_END and min(inner, outer) > _Repeats.NONE:
                raise ValueError("repeats a group that itself repeats or chooses: its search time has no bound")
            if groups:
                groups[-1] = max(groups[-1], inner, outer)


class _Repeats(enum.IntEnum):
    NONE = 0
    BOUNDED = 1
    WITHOUT_END = 2


def _repeats(pattern: str, at: int) -> _Repeats:
    """What the character at ``at`` repeats: nothing, a few times (``?``, ``{1,3}``, a choice), or without end."""
    if pattern[at : at + 1] in ("*", "+") and at:
        return _Repeats.WITHOUT_END
    if brace := re.match(r"\{\d*(,?)(\d*)\}", pattern[at:]):
        return _Repeats.WITHOUT_END if brace.group(1) and not brace.group(2) else _Repeats.BOUNDED
    optional = pattern[at : at + 1] == "?" and pattern[at - 1 : at] != "("
    return _Repeats.BOUNDED if optional or pattern[at : at + 1] == "|" else _Repeats.NONE
