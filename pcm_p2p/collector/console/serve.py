"""The one seam to the ASGI server. The pages are Starlette's; that anycorn carries them on trio is known here only.

anycorn, because Hypercorn on trio ends as a whole on a malformed WebSocket upgrade; ``tests/collector/test_console_server.py``
sends that probe. It is young, so it stays replaceable: everything else speaks ASGI.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anycorn
import trio
from starlette.types import ASGIApp

from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError

BACKLOG = 128


async def serve(
    app: ASGIApp,
    listen: str,
    *,
    port_file: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    ready: Callable[[str], None] = lambda _address: None,
) -> None:
    """Serve ``app`` on ``listen`` (``host:port``, port 0: any) until cancelled.

    When connections are accepted, ``port_file`` gets ``host:port`` and ``ready`` the whole address. With ``certificate`` and
    ``key`` (PEM files) it is HTTPS. Raises ``InputError`` if the address cannot be used.
    """
    config = anycorn.Config()
    config.bind = [listen]
    config.backlog = BACKLOG
    config.include_server_header = False
    config.graceful_timeout = 1.0
    config.read_timeout = 30
    config.keep_alive_timeout = 30
    config.loglevel = "WARNING"
    config.certfile = None if certificate is None else str(certificate)
    config.keyfile = None if key is None else str(key)
    async with trio.open_nursery() as nursery:
        try:
            (address,) = await nursery.start(_run, app, config)
        except OSError as error:
            raise InputError(
                f"cannot listen on {listen}: {error.strerror or error}",
                remedy="Choose another --listen address or port.",
            ) from None
        if port_file is not None:
            write_atomic(port_file, address.partition("//")[2].encode())
        ready(address)


async def _run(app: ASGIApp, config: anycorn.Config, *, task_status: trio.TaskStatus[list[str]]) -> None:
    await anycorn.serve(app, config, task_status=task_status, mode="asgi")  # type: ignore[arg-type]
