"""Handlers: who wants which message, who answers which request, who watches peers come and go; and what their faults may do.

A handler that finds foreign bytes wanting ends the session they came on. A handler with a fault of its own is logged, and nobody
else suffers: one peer must not be able to end the sessions with all others through a fault of ours.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.wire.messages import Message
from pcm_p2p.wire.session import Session, SessionClosed

Handler = Callable[[DeviceId, Any], Awaitable[None]]
Server = Callable[[DeviceId, Any], Awaitable["bytes | memoryview"]]
Watcher = Callable[[Any], Awaitable[None]]

_log = logging.getLogger(__name__)


class Handlers:
    """Filled before sessions run."""

    def __init__(self) -> None:
        self.servers: dict[type[Message], Callable[[Session, Any], Awaitable[bytes | memoryview]]] = {}
        self._handlers: dict[type[Message], list[Handler]] = {}
        self._watchers: list[Watcher] = []

    def register(self, message_type: type[Message], handler: Handler) -> None:
        self._handlers.setdefault(message_type, []).append(handler)

    def serve(self, request_type: type[Message], server: Server) -> None:
        async def answer(session: Session, request: Any) -> bytes | memoryview:
            return await server(session.device, request)

        self.servers[request_type] = answer

    def watch(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)

    async def deliver(self, session: Session, message: Message) -> None:
        """To all that want this type, one after the other. Messages that nobody wants are ignored."""
        for handler in self._handlers.get(type(message), ()):
            try:
                await handler(session.device, message)
            except UntrustedBytes as error:
                _log.warning("%s sent a bad %s: %s", session.device.short, type(message).__name__, error)
                raise
            except SessionClosed:
                continue  # the handler spoke to a session that has just ended
            except Exception:
                _log.exception("a handler of %s from %s failed", type(message).__name__, session.device.short)

    async def announce(self, event: object) -> None:
        """To all watchers, one after the other."""
        for watcher in self._watchers:
            try:
                await watcher(event)
            except SessionClosed:
                continue
            except Exception:
                _log.exception("a watcher of peers failed at %s", event)
