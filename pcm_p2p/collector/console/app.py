"""The ASGI application: routes, the gate in front of them, and what is said when something is wrong."""

from __future__ import annotations

from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from pcm_p2p.collector.console import api, pages
from pcm_p2p.collector.console.events import STREAMS_MAX, seen_untrusted
from pcm_p2p.collector.console.login import RequireLogin, SecurityHeaders
from pcm_p2p.collector.console.state import STATIC, Console
from pcm_p2p.errors import Degraded, PcmError, StorageError, UntrustedBytes

_CAUGHT: tuple[type[Exception], ...] = (HTTPException, StorageError, Degraded, UntrustedBytes, Exception)


def create_app(console: Console) -> Starlette:
    """The whole console as one ASGI application."""

    async def stream_events(request: Request) -> Response:
        if console.watch.streams >= STREAMS_MAX:
            return Response("too many open pages", 503, headers={"Retry-After": "30"})
        seen = seen_untrusted(request.headers.get("last-event-id"))
        return StreamingResponse(
            console.watch.stream(seen, lambda: console.gate.session(request) is not None),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def tell_health(_request: Request) -> Response:
        try:
            await console.read(lambda snapshot: snapshot.changes())
        except PcmError:
            return JSONResponse({"ok": False}, 503)
        return JSONResponse({"ok": True})

    return Starlette(
        routes=[
            *pages.routes(console),
            *api.routes(console),
            Route("/events", stream_events),
            Route("/healthz", tell_health),
            Mount("/static", _Static(directory=STATIC)),
        ],
        middleware=[
            Middleware(SecurityHeaders, secure=console.gate.secure),
            Middleware(RequireLogin, gate=console.gate),
        ],
        exception_handlers={kind: partial(_tell_error, console) for kind in _CAUGHT},
    )


class _Static(StaticFiles):
    """Files whose address holds their hash: the browser may keep them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = (
            "public, max-age=31536000, immutable" if b"v=" in scope.get("query_string", b"") else "no-cache"
        )
        return response


async def _tell_error(console: Console, request: Request, error: Exception) -> Response:
    status, title, text, remedy = _words(error)
    if request.url.path.startswith(("/api/", "/events")):
        return JSONResponse({"error": text, "remedy": remedy}, status)
    return console.page(request, "problem.html", status=status, title=title, text=text, remedy=remedy)


def _words(error: Exception) -> tuple[int, str, str, str]:
    if isinstance(error, HTTPException):
        title = "There is no such page" if error.status_code == 404 else str(error.detail)
        return error.status_code, title, title, "Start from the overview."
    if isinstance(error, UntrustedBytes):
        return 400, "That cannot be asked", error.message, error.remedy
    if isinstance(error, Degraded):
        return 503, "The archive is busy", error.message, error.remedy
    if isinstance(error, StorageError):
        return 503, "No archive to read yet", error.message, error.remedy
    return (
        500,
        "Something went wrong here",
        "The console's log says what. Reports are not affected.",
        "Load the page again.",
    )
