"""What a person sees while a lab runs: a live picture on a terminal, plain lines elsewhere. Standard error, so JSON stays clean.

``Live`` redraws four times a second: the step, one bar per device with its state, WAN and LAN bytes, and the totals. Beyond
``ROWS_MAX`` devices it shows the ones that are not done yet. ``Lines`` prints each step and a line whenever a device more has the
version. Rich honours ``NO_COLOR`` and the width of the terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pcm_p2p.lab.result import DONE, Counted, Picture, Result, megabytes
from pcm_p2p.lab.scenario import DeviceName

REFRESH_PER_S = 4
ROWS_MAX = 24
STATES = {
    # state of a release on a device: mark, colour; the word itself is always shown beside them
    DONE: ("✔", "green"),
    "fetching": ("↓", "cyan"),
    "staged": ("◆", "cyan"),
    "applying": ("▶", "blue"),
    "waiting": ("…", "yellow"),
    "wanted": ("…", "yellow"),
    "down": ("✘", "yellow"),
    "failed": ("✘", "red"),
    "parked": ("✘", "red"),
    "rolled_back": ("✘", "red"),
}


@dataclass
class View:
    """What is shown: the version that spreads (empty: none yet), and each device's picture and bytes."""

    version: str = ""
    pictures: Mapping[DeviceName, Picture] = field(default_factory=dict)
    bytes: Mapping[DeviceName, Counted] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def done(self) -> int:
        return sum(picture.has(self.version) for picture in self.pictures.values())

    @property
    def sums(self) -> tuple[int, int]:
        """WAN and LAN bytes of all devices since they were started."""
        return sum(each.wan for each in self.bytes.values()), sum(each.lan for each in self.bytes.values())


class Progress(Protocol):
    """Where the story tells how far it is."""

    def step(self, text: str) -> None:
        """Something that takes time begins."""
        ...

    def show(self, view: View) -> None:
        """The fleet at this moment."""
        ...


class Lines:
    """Plain lines, one for each thing that changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: tuple[str, int] = ("", -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def step(self, text: str) -> None:
        self._console.print(text, markup=False)

    def show(self, view: View) -> None:
        now = (view.version, view.done)
        if now == self._last or not view.version:
            return
        self._last = now
        wan, lan = view.sums
        self._console.print(
            f"{view.seconds:5.1f} s  {view.done} of {len(view.pictures)} devices have {view.version}; "
            f"WAN {megabytes(wan)}, LAN {megabytes(lan)}",
            markup=False,
        )


class Live:
    """A live picture; finished steps stay above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._view = View()
        self._step = ""
        self._live = RichLive(
            console=console, refresh_per_second=REFRESH_PER_S, transient=True, get_renderable=self._draw
        )

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.__exit__(kind, error, at)
        if error is None:
            self._finish_step()

    def step(self, text: str) -> None:
        self._finish_step()
        self._step = text

    def show(self, view: View) -> None:
        self._view = view

    def _finish_step(self) -> None:
        if self._step:
            self._console.print(Text.assemble(("✔ ", "green"), self._step.removesuffix(" …")))
        self._step = ""

    def _draw(self) -> RenderableType:
        view, step = self._view, Text.assemble(("● ", "cyan"), self._step)
        if not view.version:
            return step
        wan, lan = view.sums
        after = f" after {view.seconds:.1f} s" if view.seconds else ""
        totals = f"  {view.done} of {len(view.pictures)} devices{after} · WAN {megabytes(wan)} · LAN {megabytes(lan)}"
        return Group(step, Text(totals, style="dim"), _table(view))


def _table(view: View) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    table.add_column("DEVICE", no_wrap=True)
    table.add_column("CHUNKS", width=24)
    table.add_column("", justify="right")
    table.add_column("STATE", no_wrap=True)
    table.add_column("WAN", justify="right", no_wrap=True)
    table.add_column("LAN", justify="right", no_wrap=True)
    for device, picture in _shown(view):
        ours = picture.version == view.version
        have, total = (picture.chunks_have, picture.chunks_total) if ours else (0, 0)
        state = picture.state if ours else "online" if picture.version or picture.site_peers else picture.state
        mark, colour = STATES.get(state, ("·", "dim"))
        counted = view.bytes.get(device, Counted())
        table.add_row(
            str(device),
            ProgressBar(total=max(total, 1), completed=have, width=24),
            f"{100 * have // total}%" if total else "",
            Text(f"{mark} {state}", style=colour),
            megabytes(counted.wan),
            megabytes(counted.lan),
        )
    hidden = len(view.pictures) - table.row_count
    if hidden:
        table.add_row(Text(f"and {hidden} more", style="dim"))
    return table


def _shown(view: View) -> list[tuple[DeviceName, Picture]]:
    rows = sorted(view.pictures.items(), key=lambda row: row[0])
    if len(rows) > ROWS_MAX:
        rows.sort(key=lambda row: row[1].has(view.version))
    return sorted(rows[:ROWS_MAX], key=lambda row: row[0])


@contextmanager
def open_progress(console: Console) -> Iterator[Progress]:
    """The right kind for where ``console`` writes."""
    with (Live if console.is_terminal and not console.is_dumb_terminal else Lines)(console) as progress:
        yield progress


def print_result(console: Console, result: Result) -> None:
    """The end table, and what is wrong with each device that is not done."""
    table = Table.grid(padding=(0, 3))
    for name, value in result.rows():
        table.add_row(Text(name, style="dim"), Text(value))
    mark, colour, word = ("✔", "green", "every device is patched and compliant")
    if not result.ok:
        mark, colour, word = ("✘", "red", "not every device is patched and compliant")
    console.print()
    console.print(Text(f"{mark} {word}", style=f"bold {colour}"))
    console.print(table)
    for device in result.failed:
        console.print(Text.assemble((f"  {device}: ", "bold"), result.why(device)))
    if result.console_differs:
        console.print(Text.assemble(("  console: ", "bold"), result.console_differs))
