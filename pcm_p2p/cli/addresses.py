"""``HOST:PORT`` as people write it, and the file in which a server says which port it got."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcm_p2p.errors import InputError

PortFile = Annotated[
    Path | None,
    typer.Option("--port-file", help="Write HOST:PORT here when ready to serve; for port 0 and for scripts."),
]


def host_and_port(text: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[v6]:port``; raises ``InputError``."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise InputError(f"{text!r} is not HOST:PORT", remedy="Write for example '127.0.0.1:8741' or '[::1]:8741'.")
    return host, int(port)
