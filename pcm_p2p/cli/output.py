"""How facts are printed: a table or lines for people, one JSON object for programs.

On a terminal a table keeps to its width and folds what is long. Into a pipe or a file it does not: a line stays one line for
``grep``, and no blanks stand behind it.

Much of what is printed was written by others: names in policies, what a neighbour says of itself, output of programs. None of it
reaches the terminal as anything but text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from pcm_p2p.shown_text import shown

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


class _TextConsole(Console):
    """Prints text and nothing that a terminal would obey; colours come from markup, not from characters."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(_text(one) if isinstance(one, str) else one for one in objects), **options)


def out() -> Console:
    """Standard output; rich itself honours NO_COLOR and pipes."""
    return _TextConsole(highlight=False, soft_wrap=True)


def err() -> Console:
    return _TextConsole(stderr=True, highlight=False, soft_wrap=True)


def print_json(facts: object) -> None:
    text = json.dumps(facts, ensure_ascii=False, indent=2)
    # JSON itself escapes what is below U+0020; a terminal obeys some of what is above, too.
    sys.stdout.write(text if text.isascii() else "".join(map(_json_character, text)))
    sys.stdout.write("\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str | Column], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    if not out().is_terminal:
        heads = [str(column.header) if isinstance(column, Column) else column for column in columns]
        if title is not None:
            out().print(title, markup=False)
        _print_aligned([heads, *([shown(str(cell)) for cell in row] for row in rows)])
        return
    table = Table(*columns, title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(shown(str(cell))) for cell in row))
    out().print(table)


def print_facts(facts: dict[str, Any]) -> None:
    """Aligned ``name  value`` lines."""
    if not out().is_terminal:
        _print_aligned([[name, _text(str(value))] for name, value in facts.items()])
        return
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        grid.add_row(f"[dim]{escape(name)}[/dim]", escape(_text(str(value))))
    out().print(grid)


def _print_aligned(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        *before, last = (f"{cell}{' ' * (width - cell_len(cell))}" for cell, width in zip(row, widths, strict=True))
        lead = "".join(f"{cell}  " for cell in before)
        # A value of several lines goes on below its beginning.
        text = last.rstrip().replace("\n", "\n" + " " * cell_len(lead))
        out().print(f"{lead}{text}".rstrip(), markup=False)


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 device``, ``2 devices``; ``plural`` where it is more than an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def note(text: str) -> None:
    """A line for the person, on standard error."""
    err().print(text, markup=False)


def size(count_bytes: float) -> str:
    """Bytes for people: 3 significant digits, decimal units as network people use them."""
    value = float(count_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _text(text: str) -> str:
    return text if text.isprintable() else "\n".join(map(shown, text.split("\n")))


def _json_character(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    return json.dumps(character)[1:-1]
