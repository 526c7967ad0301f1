"""Options of the commands that found something: whose keys are made here, whose are brought, how many must sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Owners = Annotated[
    list[str] | None, typer.Option(help="A person whose root and release key are made on this machine; repeat it.")
]
RootKeys = Annotated[
    list[Path] | None, typer.Option(help="The public file of a person's root key ('key public'); repeat it.")
]
ReleaseKeys = Annotated[list[Path] | None, typer.Option(help="The public file of a person's targets key; repeat it.")]
RootThreshold = Annotated[
    int | None, typer.Option(min=1, help="Signatures that a new root needs; 2 where three or more people are.")
]
