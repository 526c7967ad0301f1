"""A door from the machine into a namespace: the console of a ``netns`` lab can be opened in the browser of the machine.

Listens on 127.0.0.1 of the machine and passes bytes to one address inside the namespace, over sockets that were made there.
No interface, route or firewall rule is needed for it. Bounds: ``CONNECTIONS_MAX`` at a time, ``CONNECT_TIMEOUT_S`` to reach
the inside, and a connection on which nothing moves for ``IDLE_TIMEOUT_S`` is closed.
"""

from __future__ import annotations

import trio

from pcm_p2p.lab.network import socket_in

CONNECTIONS_MAX = 64
CONNECT_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 300.0
PIECE_BYTES = 64 << 10


async def serve_doorway(
    namespace: int,
    host: str,
    port: int,
    outer_port: int = 0,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled on ``outer_port`` of 127.0.0.1 (0: any); ``task_status`` gets the port."""
    listeners = await trio.open_tcp_listeners(outer_port, host="127.0.0.1")
    limit = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def pass_through(outside: trio.SocketStream) -> None:
        async with limit, outside:
            inside_socket = trio.socket.from_stdlib_socket(socket_in(namespace))
            with inside_socket:
                with trio.move_on_after(CONNECT_TIMEOUT_S) as scope:
                    try:
                        await inside_socket.connect((host, port))
                    except OSError:
                        return
                if scope.cancelled_caught:
                    return
                inside = trio.SocketStream(inside_socket)
                with trio.CancelScope() as both:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_pump, outside, inside, both)
                        nursery.start_soon(_pump, inside, outside, both)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, pass_through, listeners)
        task_status.started(listeners[0].socket.getsockname()[1])


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
    """Bytes from ``source`` to ``sink`` until one side has had enough; then both directions end."""
    try:
        while True:
            with trio.fail_after(IDLE_TIMEOUT_S):
                data = await source.receive_some(PIECE_BYTES)
                if not data:
                    await sink.send_eof()
                    return
                await sink.send_all(data)
    except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
        both.cancel()
