"""Doors: where this device can be reached; a listener for each address, opened and closed as network and fleet change.

``addresses()`` says what should be open. It is asked at the start, every ``WATCH_INTERVAL_S`` (the kernel tells nobody of new
addresses without a netlink socket) and after ``look_again``. All doors have one port. A door that closes ends the sessions that
came in through it.

Which addresses: fixed ones of the settings, which must all open at the start, or those that ``exposure`` finds, of which one that
has just gone is no fault.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable, Sequence

import trio

from pcm_p2p.wire.link import Reception, open_listeners, serve_links

WATCH_INTERVAL_S = 30.0
"""Choice: how often the machine's addresses are looked at (about a millisecond of work)."""

_log = logging.getLogger(__name__)


class Doors:
    """``fixed``: every address must open at the start. ``changed`` is called, not awaited, whenever ``listening`` is another."""

    def __init__(
        self, addresses: Callable[[], Sequence[str]], reception: Reception, changed: Callable[[], None], *, fixed: bool
    ) -> None:
        self._addresses = addresses
        self._reception = reception
        self._changed = changed
        self._fixed = fixed
        self._port = 0
        self._open: dict[str, tuple[trio.CancelScope, tuple[tuple[str, int], ...]]] = {}
        self._again = trio.Event()

    @property
    def listening(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each open door, in the order in which they were opened."""
        return tuple(place for _, places in self._open.values() for place in places)

    def look_again(self) -> None:
        """The fleet document or the network changed."""
        self._again.set()

    async def run(
        self, port: int, remembered_port: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep the doors open until cancelled; ``port`` 0: ``remembered_port`` if it is free, else the system's choice.

        Raises ``OSError`` if a fixed address cannot be listened on, or if another program has the port.
        """
        refusal: OSError | None = None  # raised outside of the nursery, which would make a group of it
        async with trio.open_nursery() as nursery:
            try:
                await self._open_first(nursery, port, remembered_port)
            except OSError as error:
                refusal = error
                nursery.cancel_scope.cancel()
            else:
                task_status.started()
            while refusal is None:
                with trio.move_on_after(WATCH_INTERVAL_S):
                    await self._again.wait()
                self._again = trio.Event()
                await self._follow(nursery)
        if refusal is not None:
            raise refusal

    async def _open_first(self, nursery: trio.Nursery, port: int, remembered_port: int) -> None:
        self._port = port or remembered_port
        if self._port != port:
            try:
                await self._follow(nursery, first=True)
            except OSError:
                self._port = 0
            else:
                return
        await self._follow(nursery, first=True)

    async def _follow(self, nursery: trio.Nursery, *, first: bool = False) -> None:
        wanted = tuple(dict.fromkeys(self._addresses()))
        before = self.listening
        for address in [*self._open]:
            if address not in wanted:
                scope, _ = self._open.pop(address)
                scope.cancel()
        try:
            for address in wanted:
                if address not in self._open:
                    await self._open_one(nursery, address, first=first)
        except OSError:
            for scope, _ in self._open.values():
                scope.cancel()
            self._open.clear()
            raise
        if self.listening != before or first:
            if not first:
                where = ", ".join(f"{host}:{port}" for host, port in self.listening) or "no address"
                _log.info("listening at %s from now on", where)
            self._changed()

    async def _open_one(self, nursery: trio.Nursery, address: str, *, first: bool) -> None:
        try:
            listeners = await open_listeners([address], self._port)
        except OSError as error:
            if first and (self._fixed or error.errno == errno.EADDRINUSE):
                raise
            _log.warning("%s port %d cannot be listened on: %s", address, self._port, error.strerror or error)
            return
        places = tuple((str(host), int(port)) for host, port, *_ in (one.socket.getsockname() for one in listeners))
        self._port = self._port or places[0][1]
        scope = trio.CancelScope()
        self._open[address] = scope, places
        nursery.start_soon(self._serve, scope, listeners)

    async def _serve(self, scope: trio.CancelScope, listeners: list[trio.SocketListener]) -> None:
        with scope, contextlib.suppress(trio.ClosedResourceError):
            await serve_links(listeners, self._reception)
