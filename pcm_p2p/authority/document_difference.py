"""What changes inside one target: a release by its manifest, any text by its lines. Pure.

The bytes of both sides were compared with the signed hash by the caller. Each function answers with lines for a person, without
indentation; all foreign text in them has passed ``shown``.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterator

import msgspec

from pcm_p2p.authority.audit.log import read_entry_untrusted
from pcm_p2p.content.manifest import Manifest, decode_untrusted
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.shown_text import LINE_LENGTH_MAX, shown

Contents = Callable[[str, str], bytes | None]
"""From a target path and a SHA-256 in hexadecimal to the bytes of that target; ``None`` where they are not at hand."""

COMPARED_LINES_MAX = 4_000
"""Choice: beyond it the search for the shortest difference takes seconds; the parts that differ are then shown whole."""
CONTEXT_LINES = 2


def manifest_lines(before: bytes | None, after: bytes | None) -> Iterator[str]:
    """A release that is added, removed (``after`` is None) or replaced under its name."""
    old, new = _manifest(before), _manifest(after)
    for mark, data, manifest in (("-", before, old), ("+", after, new)):
        if data is not None and manifest is None:
            yield f"{mark} is no manifest that can be read"
    if new is None:
        if old is not None:
            yield f"- {shown(old.title)}, counter {old.counter}"
        return
    if old is not None and (old.title, old.counter) != (new.title, new.counter):
        yield f"- {shown(old.title)}, counter {old.counter}"
    yield f"+ {shown(new.title)}, counter {new.counter}"
    known = {one.name: one for one in old.artifacts} if old is not None else {}
    for artifact in new.artifacts:
        there = known.pop(artifact.name, None)
        if there == artifact:
            continue
        facts = f"{artifact.delivered_size:,} bytes  sha256 {artifact.delivered_sha256.hex()[:16]}  ({artifact.form})"
        yield f"{'+' if there is None else '~'} artifact {shown(artifact.name)}  {facts}"
    yield from (f"- artifact {shown(name)}" for name in known)
    for kind in ("full", "delta", "layout"):
        sizes = [segment.size for segment in new.segments if segment.kind == kind]
        if sizes:
            yield f"{len(sizes)} {kind} segment{'s' if len(sizes) > 1 else ''}, {sum(sizes):,} bytes"
    if new.bases:
        yield f"deltas from {', '.join(shown(base.version) for base in new.bases)}"


def text_lines(before: bytes | None, after: bytes | None, *, json: bool = False) -> Iterator[str]:
    """Lines that go (``-``), come (``+``) or stay beside them, as ``diff -u`` shows them.

    ``json``: a document whose lines are too long to be read is laid out first.
    """
    old, new = _laid_out(before, json=json), _laid_out(after, json=json)
    if before is not None and after is not None and old == new:
        yield "the same when it is laid out: blanks, or bytes that are no text, change"
        return
    # A line feed alone ends a line: other "line ends" of Unicode are characters, and are shown as such.
    old_lines = old.split("\n") if before is not None else []
    new_lines = new.split("\n") if after is not None else []
    sides = [lines for lines in (old_lines, new_lines) if lines]
    if all(lines[-1] == "" for lines in sides):  # the line feed at the end is shown where one side alone has it
        for lines in sides:
            lines.pop()
    start = 0
    while start < min(len(old_lines), len(new_lines)) and old_lines[start] == new_lines[start]:
        start += 1
    end = 0
    while end < min(len(old_lines), len(new_lines)) - start and old_lines[-1 - end] == new_lines[-1 - end]:
        end += 1
    start, end = max(0, start - CONTEXT_LINES), max(0, end - CONTEXT_LINES)
    old_part, new_part = old_lines[start : len(old_lines) - end], new_lines[start : len(new_lines) - end]
    if max(len(old_part), len(new_part)) > COMPARED_LINES_MAX:
        yield from (f"-{shown(line)}" for line in old_part)
        yield from (f"+{shown(line)}" for line in new_part)
        return
    # The first two lines name files; skipped by their place, since a line of the document could look the same.
    for line in itertools.islice(difflib.unified_diff(old_part, new_part, n=CONTEXT_LINES, lineterm=""), 2, None):
        if line.startswith("@@"):
            if before is None or after is None:
                continue
            numbers = [int(word.split(",")[0][1:]) for word in line.split()[1:3]]
            yield f"@@ line {max(1, numbers[0] + start)} → {max(1, numbers[1] + start)}"
        else:
            yield line[:1] + shown(line[1:])


def log_lines(before: bytes | None, after: bytes | None) -> Iterator[str]:
    """A file that only grows, one entry a line. What is no entry is shown as it is."""
    if after is not None and not _are_entries(after):
        yield from text_lines(before, after, json=False)
        return
    lines_before, lines_after = (before or b"").count(b"\n"), (after or b"").count(b"\n")
    if after is None:
        yield f"- {lines_before} entries"
    elif after.startswith(before or b""):
        yield f"+ {lines_after - lines_before} entries, after {lines_before} that stay"
    else:
        yield f"! {lines_before} entries before, {lines_after} after, and not as a continuation"


def _are_entries(data: bytes) -> bool:
    try:
        return data.endswith(b"\n") and all(read_entry_untrusted(line) for line in data[:-1].split(b"\n"))
    except UntrustedBytes:
        return False


def _manifest(data: bytes | None) -> Manifest | None:
    try:
        return None if data is None else decode_untrusted(data)
    except UntrustedBytes:
        return None


def _laid_out(data: bytes | None, *, json: bool) -> str:
    text = (data or b"").decode("utf-8", "backslashreplace")
    if json and any(len(line) > LINE_LENGTH_MAX for line in text.split("\n")):
        try:
            return msgspec.json.format(text, indent=1)
        except (msgspec.DecodeError, RecursionError):
            return text
    return text
