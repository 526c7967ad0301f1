"""Arrival: through which interface a connection came in. Linux; elsewhere nobody knows.

A socket that is bound to an address of one interface is reached through every other one too: Linux answers for its addresses on
all interfaces. Who wants to be reached on some networks only must look at where the first packet came from. The kernel keeps it
for accepted sockets (``IP_PKTOPTIONS``, ``IPV6_2292PKTOPTIONS``; numbers from linux/in.h and linux/in6.h).
"""

from __future__ import annotations

import socket
import struct

import trio

_IP_PKTINFO, _IP_PKTOPTIONS = 8, 9
_IPV6_2292PKTOPTIONS, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 6, 49, 50
_HEADER = struct.Struct("@Nii")
"""``struct cmsghdr``: length, level, type; the data follows at once, since the header's size is a multiple of its alignment."""


def interface_of(connection: socket.socket | trio.socket.SocketType) -> str | None:
    """The name of the interface, ``lo`` for connections of this machine with itself; None if the system does not say."""
    try:
        if connection.family == socket.AF_INET6:
            connection.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            told = connection.getsockopt(socket.IPPROTO_IPV6, _IPV6_2292PKTOPTIONS, 256)
        else:
            connection.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            told = connection.getsockopt(socket.IPPROTO_IP, _IP_PKTOPTIONS, 256)
        index = _index_in(told)
        return socket.if_indextoname(index) if index else None
    except (OSError, struct.error):
        return None


def _index_in(told: bytes) -> int:
    """The interface's index in a list of control messages; 0: not there."""
    while len(told) >= _HEADER.size:
        length, level, kind = _HEADER.unpack_from(told)
        data = told[_HEADER.size : length]
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return int(struct.unpack_from("@i", data)[0])
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            return int(struct.unpack_from("@16si", data)[1])
        if length < _HEADER.size:
            return 0
        told = told[-(-length // 8) * 8 :]
    return 0
