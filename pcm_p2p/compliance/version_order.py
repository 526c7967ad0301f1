"""The order of Debian versions: ``[epoch:]upstream[-revision]``, as dpkg and Debian policy 5.6.12 define it. A core.

Parts are compared by turns: a run of non-digits, in which ``~`` sorts before the end, letters before everything else; then a
run of digits, as a number. A missing part counts as 0 or empty. Property-tested against ``dpkg --compare-versions``.
"""

from __future__ import annotations

import re
from functools import total_ordering

_RUNS = re.compile(r"([^0-9]*)([0-9]*)")
_END = 0


def _rank(letter: str) -> int:
    if letter == "~":
        return -1
    return ord(letter) if letter.isalpha() else ord(letter) + 256


_NOTHING: tuple[tuple[int, ...], int] = ((_END,), 0)


def _part(text: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Runs as comparable tuples. Each run of non-digits ends with ``_END``, so that ``~`` sorts before the end of the part.

    Behind its end a part goes on as if with empty runs. Only a first run can be empty in the middle, so two of them suffice.
    """
    runs = [
        ((*map(_rank, letters), _END), int(digits or "0"))
        for letters, digits in _RUNS.findall(text)
        if letters or digits
    ]
    while runs and runs[-1] == _NOTHING:
        runs.pop()
    return (*runs, _NOTHING, _NOTHING)


@total_ordering
class DebianVersion:
    """A version that compares in dpkg's order; equal versions may be written differently (``1.0`` and ``0:1.0-0``).

    Any text has a place in the order, so that what stands in a package database can always be compared.
    """

    __slots__ = ("_key", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        epoch, separator, rest = text.strip().partition(":")
        if not separator or not epoch.isdecimal():
            epoch, rest = "0", text.strip()
        upstream, separator, revision = rest.rpartition("-")
        if not separator:
            upstream, revision = rest, ""
        self._key = (int(epoch), _part(upstream), _part(revision))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DebianVersion) and self._key == other._key

    def __lt__(self, other: DebianVersion) -> bool:
        return self._key < other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"DebianVersion({self.text!r})"
