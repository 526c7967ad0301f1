"""A port for whoever listens on it more than once, or later than now."""

from __future__ import annotations

import errno
import socket
from random import SystemRandom

PORTS = range(15_000, 32_000)
"""Below those that Linux gives to whoever asks for any (32768 and up): else another test's connection or listener could have it
while the process that it was meant for starts, or starts again."""

_given: set[int] = set()


def free_port() -> int:
    """A port of loopback on which nobody listens; each is given once. Chosen at random, since there are tests beside this one."""
    while True:
        port = SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        if port not in _given:
            _given.add(port)
            return port
