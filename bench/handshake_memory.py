"""What strangers cost: memory of connections that sent a ClientHello and then stall, and of such that sent nothing.

Run: ``python bench/handshake_memory.py [--connections 200]``. The doorkeeper is told to let that many in, which a daemon does
not; a daemon's bound is ``wire.doorkeeper.STRANGERS_MAX`` of what is printed for one.
"""

from __future__ import annotations

import argparse
import gc
import ssl
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import trio

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.trust.identity import DeviceIdentity, client_context, peer_identity_untrusted, server_context
from pcm_p2p.wire import link
from pcm_p2p.wire.doorkeeper import STRANGERS_MAX, Doorkeeper
from pcm_p2p.wire.link import Link, LinkSecurity, Reception, open_listeners, serve_links

FLEET = "1" * 32


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1_024
    raise AssertionError("no VmRSS")


def client_hello(context: ssl.SSLContext) -> bytes:
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
    raise AssertionError("a handshake with nobody")


async def measure(connections: int, words: bytes) -> tuple[float, int]:
    """Bytes of resident memory for each of so many connections that said ``words``; how many were let in."""
    with tempfile.TemporaryDirectory() as folder:
        now = datetime.now(UTC)
        identity = DeviceIdentity.create(Path(folder), FleetCA.in_memory(FLEET, now=now), now=now)
        security = LinkSecurity(server_context(identity), client_context(identity), peer_identity_untrusted, FLEET)
    doorkeeper = Doorkeeper(at_once_max=connections)

    async def use(_link: Link) -> None:
        raise AssertionError("nobody finishes")

    listeners = await open_listeners(["127.0.0.1"], 0)
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_links, listeners, Reception(security, use, doorkeeper=doorkeeper))
        first = await trio.open_tcp_stream("127.0.0.1", port)  # what is loaded once is loaded now
        await first.send_all(words or b"\x16")
        await trio.sleep(0.2)
        await first.aclose()
        await trio.sleep(0.2)
        gc.collect()
        before = resident_bytes()
        streams = []
        for _ in range(connections):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            if words:
                await stream.send_all(words)
            streams.append(stream)
        with trio.move_on_after(30):
            while doorkeeper.strangers < connections:  # noqa: ASYNC110 - a count is looked at, once
                await trio.sleep(0.01)
        await trio.sleep(0.3)
        let_in, grown = doorkeeper.strangers, resident_bytes() - before
        for stream in streams:
            await stream.aclose()
        nursery.cancel_scope.cancel()
    return grown / connections, let_in


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=200)
    chosen = parser.parse_args()
    link.HANDSHAKE_TIMEOUT_S = 60.0  # measured, not waited for
    with tempfile.TemporaryDirectory() as folder:
        now = datetime.now(UTC)
        guest = DeviceIdentity.create(Path(folder), FleetCA.in_memory(FLEET, now=now), now=now)
        hello = client_hello(client_context(guest))
    for what, words in (("a ClientHello", hello), ("nothing", b"")):
        each, let_in = trio.run(measure, chosen.connections, words)
        print(
            f"{let_in} connections that sent {what}: {each / 1_024:.0f} KiB each; "
            f"a daemon's {STRANGERS_MAX} of them: {STRANGERS_MAX * each / 1_024:.0f} KiB"
        )


if __name__ == "__main__":
    main()
