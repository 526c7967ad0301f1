"""Observation: what a probe saw of one object, attribute by attribute. Pure data.

A value is what is there, ``None`` says that the object (or this side of it) is not there, ``Unknown`` that the probe cannot say.
An attribute that a check asks about and an observation lacks is a mistake of the probe, and assessed as ``error``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Unknown:
    """Why there is no answer. ``state`` error: the probe could not decide; not_run: it did not get to it."""

    state: Literal["error", "not_run"]
    reason: str


Fact = bool | int | str | tuple[str, ...] | None | Unknown
Observation = Mapping[str, Fact]


class OutOfBudget(Exception):
    """A probe used up its bytes or its time. The message says which, and on what."""


class CannotTell(Exception):
    """A probe met something that keeps it from an answer. The message is for people."""
