"""The password form, and the gate in front of everything that asks.

Against cross-site requests: the session cookie is SameSite=Strict and HttpOnly, each form carries a token that only this site's
pages know, and a form that the browser says comes from elsewhere (``Sec-Fetch-Site``) is refused.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import secrets
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urlsplit

import trio
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pcm_p2p.collector.console.access import SESSION_LIFETIME_S, LoginGate, Session, Sessions
from pcm_p2p.collector.console.password import Password
from pcm_p2p.errors import UntrustedBytes

OPEN_PATHS = ("/login", "/healthz")
OPEN_FOLDER = "/static/"
FORM_SIZE_BYTES_MAX = 4_096
FORM_TIMEOUT_S = 10.0


@dataclass
class Gate:
    """All that decides whether a request may pass. ``secure``: the console is reached over HTTPS."""

    password: Password
    secure: bool = False
    sessions: Sessions = field(default_factory=Sessions)
    guesses: LoginGate = field(default_factory=LoginGate)
    _comparing: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    _scripts: Sessions = field(default_factory=Sessions)

    @property
    def session_cookie(self) -> str:
        return "__Host-pcm-session" if self.secure else "pcm-session"

    @property
    def form_cookie(self) -> str:
        return "__Host-pcm-form" if self.secure else "pcm-form"

    def session(self, connection: HTTPConnection) -> Session | None:
        """The session of this request, if it has one."""
        cookie = connection.cookies.get(self.session_cookie, "")
        return self.sessions.find(cookie, now_s=trio.current_time()) if cookie else None

    async def try_password(self, address: str, attempt: str) -> float | None:
        """``None`` if right, else the seconds to wait before the next attempt (0: at once)."""
        now_s = trio.current_time()
        wait_s = self.guesses.wait_s(address, now_s=now_s)
        if wait_s > 0:
            return wait_s
        self.guesses.failed(address, now_s=now_s)
        if await trio.to_thread.run_sync(self.password.is_right, attempt, limiter=self._comparing):
            self.guesses.succeeded(address, at_s=now_s)
            return None
        return self.guesses.wait_s(address, now_s=now_s)

    async def try_script(self, connection: HTTPConnection) -> float | None:
        """As ``try_password``, for HTTP Basic. A header that was right once is known again without the slow comparison."""
        header = connection.headers.get("authorization", "")
        if self._scripts.find(header, now_s=trio.current_time()):
            return None
        try:
            attempt = basic_password_untrusted(header)
        except UntrustedBytes:
            return 0.0
        wait_s = await self.try_password(address_of(connection), attempt)
        if wait_s is None:
            self._scripts.begin(cookie=header, form_token="", now_s=trio.current_time())
        return wait_s


class RequireLogin:
    """ASGI middleware: only ``OPEN_PATHS`` and the static files pass without a session."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            refusal = await self._refusal(Request(scope))
            await (refusal or self._app)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        path = str(request.scope["path"])  # what is routed by; an address also has what the client says of the host
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDER) or self._gate.session(request) is not None:
            return None
        if path.startswith("/api/"):
            wait_s = await self._gate.try_script(request) if "authorization" in request.headers else 0.0
            if wait_s is None:
                return None
            if wait_s > 0:
                return JSONResponse(
                    {"error": "too many wrong passwords"}, 429, headers={"Retry-After": str(int(wait_s) + 1)}
                )
            challenge = {} if "sec-fetch-mode" in request.headers else {"WWW-Authenticate": 'Basic realm="pcm_p2p"'}
            return JSONResponse({"error": "log in, or send the password as HTTP Basic"}, 401, headers=challenge)
        if path == "/events":
            return Response("log in first", 401)
        wanted = path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/login?{urlencode({'next': wanted})}", 303)


class SecurityHeaders:
    """ASGI middleware: what every response says about itself."""

    def __init__(self, app: ASGIApp, *, secure: bool) -> None:
        self._app = app
        self._secure = secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = (
                    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
                    "frame-ancestors 'none'"
                )
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                headers["Cross-Origin-Opener-Policy"] = "same-origin"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["Permissions-Policy"] = "camera=(), geolocation=(), microphone=()"
                if self._secure:
                    headers["Strict-Transport-Security"] = "max-age=31536000"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form body. Raises ``UntrustedBytes``; ``trio.TooSlowError`` if the body does not come."""
    body = b""
    with trio.fail_after(FORM_TIMEOUT_S):
        async with contextlib.aclosing(request.stream()) as parts:
            async for part in parts:
                body += part
                if len(body) > FORM_SIZE_BYTES_MAX:
                    raise UntrustedBytes(f"a form of more than {FORM_SIZE_BYTES_MAX} bytes")
    return form_untrusted(body)


def form_untrusted(body: bytes) -> dict[str, str]:
    """``application/x-www-form-urlencoded`` to its fields, the first of each name. Raises ``UntrustedBytes``."""
    if len(body) > FORM_SIZE_BYTES_MAX:
        raise UntrustedBytes(f"a form of more than {FORM_SIZE_BYTES_MAX} bytes")
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=8, errors="strict")
    except ValueError as error:
        raise UntrustedBytes(f"not a form: {error}") from None
    return {name: values[0] for name, values in fields.items()}


def basic_password_untrusted(header: str) -> str:
    """The password in an ``Authorization: Basic`` header. Raises ``UntrustedBytes``."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic" or len(encoded) > FORM_SIZE_BYTES_MAX:
        raise UntrustedBytes("not HTTP Basic")
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        raise UntrustedBytes("not HTTP Basic") from None


def next_untrusted(text: str) -> str:
    """Where to go after the login: a path on this site, whatever was asked for."""
    if len(text) > 1_000 or not text.isprintable() or "\\" in text or not text.startswith("/") or text.startswith("//"):
        return "/"
    try:
        parts = urlsplit(text)
    except ValueError:
        return "/"
    return "/" if parts.scheme or parts.netloc else text


def new_token() -> str:
    """256 random bits as text."""
    return secrets.token_urlsafe(32)


def is_form_ours(request: Request, sent: str, kept: str) -> bool:
    """Whether the form carries the token that this site gave, and the browser does not say that it comes from elsewhere."""
    same_site = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
    return same_site and bool(kept) and hmac.compare_digest(sent.encode(), kept.encode())


def put_cookie(response: Response, gate: Gate, name: str, value: str, *, lifetime_s: int = SESSION_LIFETIME_S) -> None:
    """Set a cookie that scripts cannot read and other sites cannot send."""
    response.set_cookie(name, value, max_age=lifetime_s, path="/", secure=gate.secure, httponly=True, samesite="strict")


def drop_cookie(response: Response, gate: Gate, name: str) -> None:
    """Tell the browser to forget a cookie of ``put_cookie``."""
    response.delete_cookie(name, path="/", secure=gate.secure, httponly=True, samesite="strict")


def address_of(connection: HTTPConnection) -> str:
    """Who asks, for the limit on guessing."""
    return connection.client.host if connection.client else "?"
