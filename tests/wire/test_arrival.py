"""Through which interface a connection came, as the kernel tells; what it does not tell is None, and never an error."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcm_p2p.wire.arrival import _index_in, interface_of


@contextmanager
def accepted(family: socket.AddressFamily, listen: str, dial: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.socket(family) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((listen, 0))
        listener.listen()
        with socket.create_connection((dial, listener.getsockname()[1]), timeout=60) as near:
            far, _ = listener.accept()
            with far:
                yield near, far


@pytest.mark.parametrize(
    ("family", "listen", "dial"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0", "127.0.0.2"),
        pytest.param(
            *(socket.AF_INET6, "::1", "::1"), marks=pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6")
        ),
        pytest.param(
            *(socket.AF_INET6, "::", "127.0.0.1"), marks=pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
        ),
    ],
)
def test_a_connection_of_this_machine_with_itself_came_through_loopback(
    family: socket.AddressFamily, listen: str, dial: str
) -> None:
    with accepted(family, listen, dial) as (_near, far):
        assert interface_of(far) == "lo"


def test_what_the_system_does_not_tell_is_none() -> None:
    with accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1") as (near, far):
        assert interface_of(near) is None, "it was dialled, not accepted"
    assert interface_of(far) is None, "it is closed"
    with socket.socket(socket.AF_UNIX) as other:
        assert interface_of(other) is None


@given(st.binary(max_size=80))
def test_junk_in_the_list_of_messages_ends(data: bytes) -> None:
    with contextlib.suppress(struct.error):
        assert isinstance(_index_in(data), int)
