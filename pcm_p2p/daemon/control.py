"""The control socket: questions to a running daemon over a Unix socket that only its owner can open.

One JSON object per line in, one per line out::

    {"command": "status"}                      →  {"ok": true, "result": {…}}
    {"command": "why", "release": "web"}       →  {"ok": false, "error": "…", "remedy": "…", "exit_status": 2}

The socket file is created with mode 0600 in a folder of mode 0700, so file permissions are the authentication. Requests are
at most ``REQUEST_BYTES_MAX``; an answer must come within ``ANSWER_TIMEOUT_S`` or the caller is told that it did not.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import trio

from pcm_p2p.errors import (
    ApplyError,
    DaemonUnreachable,
    Degraded,
    InputError,
    PcmError,
    StorageError,
    TransferError,
    TrustError,
)

REQUEST_BYTES_MAX = 64 << 10
ANSWER_BYTES_MAX = 16 << 20
ANSWER_TIMEOUT_S = 60.0
IDLE_TIMEOUT_S = 300.0
CONNECTIONS_MAX = 16
"""Choice: a console, a lab and a few people; more is a mistake or an attack by the owner on itself."""

_ERRORS: Mapping[object, type[PcmError]] = {
    error.exit_status: error for error in (InputError, Degraded, TrustError, StorageError, TransferError, ApplyError)
}

Command = Callable[[Mapping[str, Any]], Awaitable[object]]


def socket_path(state: Path) -> Path:
    return state / "run" / "control.sock"


@contextlib.contextmanager
def _addressable(path: Path) -> Iterator[str]:
    """A name for ``path`` short enough for ``sockaddr_un`` (108 bytes), by way of the open folder when it is too long."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


async def serve_control(
    state: Path, commands: Mapping[str, Command], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer ``commands`` until cancelled. The socket file is replaced at start and removed at the end."""
    path = socket_path(state)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    with listener:
        mask = os.umask(0o177)
        try:
            with _addressable(path) as name:
                await listener.bind(name)
        finally:
            os.umask(mask)
        listener.listen(CONNECTIONS_MAX)
        limit = trio.CapacityLimiter(CONNECTIONS_MAX)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    await limit.acquire_on_behalf_of(token := object())
                    client, _ = await listener.accept()
                    nursery.start_soon(_serve_connection, client, commands, limit, token)
        finally:
            path.unlink(missing_ok=True)


async def _serve_connection(
    client: trio.socket.SocketType, commands: Mapping[str, Command], limit: trio.CapacityLimiter, token: object
) -> None:
    stream = trio.SocketStream(client)
    try:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                buffer = bytearray()
                while True:
                    with trio.move_on_after(IDLE_TIMEOUT_S):
                        line = await _read_line(stream, buffer)
                        if line is None:
                            return
                        answer = await _answer(line, commands)
                        with trio.fail_after(ANSWER_TIMEOUT_S):
                            await stream.send_all(json.dumps(answer).encode() + b"\n")
                        continue
                    return
    except trio.TooSlowError:
        return
    finally:
        limit.release_on_behalf_of(token)


async def _read_line(stream: trio.SocketStream, buffer: bytearray) -> bytes | None:
    while (end := buffer.find(b"\n")) < 0:
        if len(buffer) > REQUEST_BYTES_MAX:
            return None
        data = await stream.receive_some(65_536)
        if not data:
            return None
        buffer += data
    line = bytes(buffer[:end])
    del buffer[: end + 1]
    return line


async def _answer(line: bytes, commands: Mapping[str, Command]) -> dict[str, object]:
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise TypeError
        name = str(request.get("command", ""))
    except (ValueError, TypeError, RecursionError):
        return {"ok": False, "error": "a request is one JSON object per line", "remedy": "", "exit_status": 2}
    command = commands.get(name)
    if command is None:
        known = ", ".join(sorted(commands))
        return {"ok": False, "error": f"unknown command {name[:40]!r}", "remedy": f"Known: {known}.", "exit_status": 2}
    try:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            return {"ok": True, "result": await command(request)}
    except PcmError as error:
        return {"ok": False, "error": error.message, "remedy": error.remedy, "exit_status": error.exit_status}
    except trio.TooSlowError:
        return {
            "ok": False,
            "error": f"no answer within {ANSWER_TIMEOUT_S:g} s",
            "remedy": "Try again.",
            "exit_status": 4,
        }


def ask(state: Path, command: str, *, timeout_s: float = ANSWER_TIMEOUT_S, **arguments: object) -> Any:
    """Ask the daemon of ``state`` one question and return its result (blocking; for the command line and the lab).

    Raises ``DaemonUnreachable`` when nobody listens, ``Degraded`` when it does not answer in time, and the error the daemon
    gave (as ``PcmError`` with the daemon's message and remedy) when it answered with one.
    """
    path = socket_path(state)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        try:
            with _addressable(path) as name:
                client.connect(name)
        except OSError:
            raise DaemonUnreachable(f"no daemon answers on {path}") from None
        try:
            client.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            buffer = bytearray()
            while not buffer.endswith(b"\n"):
                data = client.recv(1 << 16)
                if not data or len(buffer) > ANSWER_BYTES_MAX:
                    raise DaemonUnreachable(f"the daemon on {path} closed the connection")
                buffer += data
        except TimeoutError:
            raise Degraded(f"the daemon on {path} did not answer within {timeout_s:g} s") from None
        except OSError:
            raise DaemonUnreachable(f"the daemon on {path} closed the connection") from None
    answer = json.loads(buffer)
    if answer.get("ok"):
        return answer["result"]
    error = _ERRORS.get(answer.get("exit_status"), PcmError)
    raise error(str(answer.get("error")), remedy=str(answer.get("remedy") or "") or None)
