"""The README as a program: its code blocks, and what their info strings say.

````text
```sh machine=dev1,dev2 until=applied        run on these machines (or ``every``), again until the output has this expression
```text shows                               the output of the block before has these lines; … stands for anything
````

A block without ``machine=`` is for people to read.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
_FENCE = re.compile(r"^```(\S*)[ \t]*(.*)$")


@dataclass
class Block:
    """One fenced block: ``line`` is that of its fence, ``section`` the heading above it."""

    language: str
    line: int
    section: str
    text: str = ""
    machines: tuple[str, ...] = ()
    until: str = ""
    words: tuple[str, ...] = ()
    shows: list[str] = field(default_factory=list)


def blocks(readme: str) -> list[Block]:
    """All fenced blocks in order. ``text shows`` blocks are also attached to the block before them."""
    found: list[Block] = []
    section, inside = "", False
    for number, line in enumerate(readme.splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence and not inside:
            inside = True
            found.append(_opened(fence.group(1), fence.group(2), number, section))
        elif fence:
            inside = False
        elif inside:
            found[-1].text += line + "\n"
        elif line.startswith("#"):
            section = line.lstrip("# ")
    for before, block in itertools.pairwise(found):
        if "shows" in block.words:
            before.shows = block.text.splitlines()
    return found


def lacking(shows: list[str], output: str) -> str:
    """The first line of ``shows`` that ``output`` does not have, in order; empty if it has all. Blanks count once."""
    at, text = 0, " ".join(output.split())
    for line in shows:
        pattern = ".*?".join(re.escape(" ".join(part.split())) for part in line.split("…"))
        match = re.compile(pattern).search(text, at)
        if match is None:
            return line
        at = match.end()
    return ""


def _opened(language: str, info: str, line: int, section: str) -> Block:
    block = Block(language, line, section)
    plain = []
    for word in info.split():
        key, equals, value = word.partition("=")
        if equals and key == "machine":
            block.machines = tuple(value.split(","))
        elif equals and key == "until":
            block.until = value
        else:
            plain.append(word)
    block.words = tuple(plain)
    return block
