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

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from pcm_p2p.policy.expression import Expression

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

Text = Annotated[str, msgspec.Meta(max_length=4_096)]
ModeBits = Annotated[int, msgspec.Meta(ge=0, le=0o7777)]
VersionText = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=r"^[0-9A-Za-z.+:~-]+\Z")]
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
            Expression(self.matches)


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
            Expression(self.matches)
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
