"""The one seam to the ASGI server. The pages are Starlette's; that anycorn carries them on trio is known here only.

anycorn, because Hypercorn on trio ends as a whole on a malformed WebSocket upgrade; ``tests/collector/test_console_server.py``
sends that probe. It is young, so it stays replaceable: everything else speaks ASGI.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import anycorn
import trio
from starlette.types import ASGIApp, Receive, Scope, Send

from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError

BACKLOG = 128
GRACE_S = 1.0
"""Choice: answers that are under way at the end get this long; event streams would go on for ever."""


async def serve(
    app: ASGIApp,
    listen: str,
    *,
    ended: trio.Event,
    port_file: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    ready: Callable[[str], None] = lambda _address: None,
) -> None:
    """Serve ``app`` on ``listen`` (``host:port``, port 0: any) until ``ended`` is set; then for at most ``GRACE_S``.

    When connections are accepted, ``port_file`` gets ``host:port`` and ``ready`` the whole address. With ``certificate`` and
    ``key`` (PEM files) it is HTTPS. Raises ``InputError`` if the address or the files cannot be used.
    """
    listener = _listen(listen)
    host, port = listener.getsockname()[:2]
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    config = anycorn.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.backlog = BACKLOG
    config.include_server_header = False
    config.graceful_timeout = GRACE_S
    config.read_timeout = 30
    config.keep_alive_timeout = 30
    config.loglevel = "WARNING"
    config.certfile = None if certificate is None else str(certificate)
    config.keyfile = None if key is None else str(key)
    try:
        config.create_ssl_context()
    except OSError as error:
        raise InputError(f"cannot use {certificate} and {key}: {error}") from None
    async with trio.open_nursery() as nursery:
        await nursery.start(_run, _Application(app), config, ended)
        if port_file is not None:
            write_atomic(port_file, where.encode())
        ready(f"http{'s' if certificate else ''}://{where}")


async def _run(
    app: ASGIApp, config: anycorn.Config, ended: trio.Event, *, task_status: trio.TaskStatus[list[str]]
) -> None:
    await anycorn.serve(app, config, shutdown_trigger=ended.wait, task_status=task_status, mode="asgi")  # type: ignore[arg-type]


class _Application:
    """``app`` without a lifespan of its own: it has nothing to start, and a cancelled one would be reported as a failure."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})


def _listen(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise InputError(f"{listen!r} is not HOST:PORT", remedy="Write for example '127.0.0.1:8744' or '[::1]:8743'.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise InputError(
            f"cannot listen on {listen}: {error.strerror or error}", remedy="Choose another --listen address or port."
        ) from None
    return listener
