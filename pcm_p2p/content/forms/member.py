"""A member of a stored form, and the name under which it meets its older self. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_VERSIONS = re.compile(r"\d+(?:[.+~:_-]\d+)+")
_NUMBERS = re.compile(r"\d+(?:[.+~:_-]?\d+)*")


@dataclass(frozen=True, slots=True)
class Member:
    """``size`` bytes of a stored form from ``offset``. ``path`` is as in the container, without ``./``; it may be empty."""

    path: str
    offset: int
    size: int


def versionless(path: str) -> str:
    """``path`` with version numbers made equal: ``modules/6.1.0-55/a1.ko`` and ``…-56/a1.ko`` are one file of two versions."""
    return _VERSIONS.sub("#", path)


def normalized(path: str) -> str:
    """``path`` with all numbers made equal."""
    return _NUMBERS.sub("#", path)
