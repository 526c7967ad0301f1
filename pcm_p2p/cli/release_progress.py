"""How the making of a release is shown while it goes on, and the options that ``release add`` and ``release plan`` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli.output import err

if TYPE_CHECKING:
    from pcm_p2p.content.publishing.ingest import IngestProgress

Level = Annotated[
    int,
    typer.Option(
        min=0, max=22, help="How hard to compress: 19 costs the links least, 16 is done in half the time; 0 does not."
    ),
]


class FormChoice(StrEnum):
    auto = "auto"
    deb = "deb"
    tar = "tar"
    zip = "zip"
    exact = "exact"


@contextmanager
def progress_bar(title: str, *, hidden: bool) -> Iterator[Callable[[IngestProgress], None]]:
    """A bar on standard error, if that is a terminal, with the remaining time of the phase."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err(), disable=hidden or not err().is_terminal, transient=True) as bars:
        bar, phase = bars.add_task(title, total=None), ""

        def show(step: IngestProgress) -> None:
            nonlocal phase
            if step.phase != phase:
                # Phases differ in speed: the time that remains is told from this one alone.
                bars.reset(bar)
                phase = step.phase
            text = f"{title}: {step.phase} {step.artifact}".rstrip()
            if step.segments_total:
                text += f" {step.segments_done}/{step.segments_total}"
            bars.update(bar, description=text, total=step.bytes_total or None, completed=step.bytes_done)

        yield show
