"""A published tree over HTTP: for labs, for tests, and for fleets that have no web server at hand.

Read-only; GET and HEAD; single and multiple ranges (Starlette's ``FileResponse``). A path is a list of plain names: no
dotfiles, no ``..``, no symbolic links on the way, no directory listing. Nothing is logged per request.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio
from anycorn import Config
from anycorn import serve as anycorn_serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError
from pcm_p2p.swarm.pace import Pace

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~:=@-]{0,254}")
DEPTH_MAX = 8
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class OriginCounters:
    """Body bytes handed to connections, in all and of segments, and answers given: ground truth for a lab."""

    body_bytes: int = 0
    segment_bytes: int = 0
    answers: int = 0


def find_file(folder: Path, path: str) -> Path | None:
    """The regular file at ``path`` below ``folder``, if each part of the path is a plain name and no link is on the way."""
    parts = path.strip("/").split("/")
    if len(parts) > DEPTH_MAX or not all(_NAME.fullmatch(part) and ".." not in part for part in parts):
        return None
    place, mode = folder, stat.S_IFDIR
    for part in parts:
        place /= part
        try:
            mode = os.lstat(place).st_mode
        except OSError:
            return None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return None
    return place if stat.S_ISREG(mode) else None


def origin_app(folder: Path, *, rate_bytes_per_s: int = 0, counters: OriginCounters | None = None) -> ASGIApp:
    """The ASGI application; ``rate_bytes_per_s`` is over all connections, 0 without limit."""
    count = counters or OriginCounters()
    pace = Pace(rate_bytes_per_s, burst_bytes=64 << 10)

    async def answer(request: Request) -> Response:
        file = await trio.to_thread.run_sync(find_file, folder, request.path_params["path"])
        if file is None:
            return PlainTextResponse("not found\n", status_code=404)
        return FileResponse(file, media_type="application/octet-stream")

    tree = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "HEAD"])])

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        is_segment = str(scope.get("path", "")).startswith("/segments/")

        async def paced_send(message: Message) -> None:
            size = len(message.get("body", b""))
            if size:
                await pace.take(size)
                count.body_bytes += size
                count.segment_bytes += size if is_segment else 0
            elif message["type"] == "http.response.start":
                count.answers += 1
            await send(message)

        # Without the extensions every byte passes through ``paced_send``.
        await tree({**scope, "extensions": {}}, receive, paced_send)

    return counted


async def _live(receive: Receive, send: Send) -> None:
    """ASGI lifespan with nothing to do. The framework's own reports being cancelled as a failure to shut down."""
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{step}.complete"})


async def serve_origin(
    folder: Path,
    host: str,
    port: int,
    *,
    rate_bytes_per_s: int = 0,
    port_file: Path | None = None,
    counters: OriginCounters | None = None,
    task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, or until SIGTERM or SIGINT when this is the program's main task.

    Reports ``(host, port)`` as started, and writes ``host:port`` to ``port_file``, once it accepts connections. Raises
    ``InputError`` when the address cannot be had.
    """
    listener = _listen(host, port)
    bound = int(listener.getsockname()[1])
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.accesslog = None
    config.errorlog = _log
    config.include_server_header = False
    config.graceful_timeout = 1.0
    config.keep_alive_timeout = 30.0
    app = origin_app(folder, rate_bytes_per_s=rate_bytes_per_s, counters=counters)

    def run(*, task_status: trio.TaskStatus[list[str]]) -> Awaitable[None]:
        return anycorn_serve(app, config, shutdown_trigger=trio.sleep_forever, task_status=task_status)  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        if task_status is trio.TASK_STATUS_IGNORED:
            nursery.start_soon(_end_on_signal, nursery.cancel_scope.cancel)
        await nursery.start(run)
        if port_file is not None:
            await trio.to_thread.run_sync(write_atomic, port_file, f"{host}:{bound}\n".encode())
        _log.info("origin serves %s on http://%s:%d", folder, host, bound)
        task_status.started((host, bound))


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}", remedy="Choose another port, or 0."
        ) from error


async def _end_on_signal(end: Callable[[], None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            _log.info("ends on %s", signal.Signals(number).name)
            end()
            return
