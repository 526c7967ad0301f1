"""How fast chunks travel through one session on loopback, and what share of a raw TLS stream that is.

Two processes, as in reality: the server holds one chunk of 256 KiB and serves it to every request, the client keeps
``--pipeline`` requests under way. The ceiling, measured in the same run between the same two processes, is a trio TLS stream
with the same contexts that sends the same bytes with nothing around them.

    .venv/bin/python bench/session.py [--size-mb 1000] [--pipeline 4]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import trio

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.trust.identity import DeviceIdentity, client_context, peer_identity_untrusted, server_context
from pcm_p2p.wire.link import Link, LinkSecurity, Reception, dial, open_listeners, serve_links
from pcm_p2p.wire.messages import PROTOCOL, ChunkGet, Hello, Message
from pcm_p2p.wire.session import Session

CHUNK_BYTES = 256 << 10
FLEET = "0" * 32


def security(identity: DeviceIdentity) -> LinkSecurity:
    return LinkSecurity(server_context(identity), client_context(identity), peer_identity_untrusted, FLEET)


def hello() -> Hello:
    return Hello(PROTOCOL, FLEET, "bench", "device", 0, 1, 0, "bench")


def serve(folder: Path, report: Connection) -> None:
    trio.run(serve_until_killed, DeviceIdentity.load(folder), report)


async def serve_until_killed(identity: DeviceIdentity, report: Connection) -> None:
    chunk = os.urandom(CHUNK_BYTES)

    async def chunk_get(_session: Session, _message: Message) -> bytes:
        return chunk

    async def use(link: Link) -> None:
        session = Session(link.stream, hello(), device=link.device, dialled=False, serve={ChunkGet: chunk_get})
        await session.run()

    async def raw(tcp: trio.SocketStream) -> None:
        tls = trio.SSLStream(tcp, server_context(identity), server_side=True, https_compatible=True)
        for _ in range(int.from_bytes(await tls.receive_some(8), "big")):
            await tls.send_all(chunk)
        await tls.receive_some(1)

    listeners = await open_listeners(["127.0.0.1"], 0)
    raw_listeners = await open_listeners(["127.0.0.1"], 0)
    report.send([found[0].socket.getsockname()[1] for found in (listeners, raw_listeners)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_links, listeners, Reception(security(identity), use))
        nursery.start_soon(trio.serve_listeners, raw, raw_listeners)


async def measure_raw(identity: DeviceIdentity, port: int, count: int) -> float:
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    tls = trio.SSLStream(tcp, client_context(identity), https_compatible=True)
    await tls.send_all(count.to_bytes(8, "big"))
    left, start = count * CHUNK_BYTES, time.perf_counter()
    while left:
        left -= len(await tls.receive_some(CHUNK_BYTES))
    taken = time.perf_counter() - start
    await tls.aclose()
    return count * CHUNK_BYTES / taken


async def measure_session(identity: DeviceIdentity, port: int, count: int, pipeline: int) -> float:
    link = await dial("127.0.0.1", port, security(identity))
    session = Session(link.stream, hello(), device=link.device, dialled=True)
    left = count

    async def fetch() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            data = await session.fetch(lambda number: ChunkGet(number, bytes(32)), CHUNK_BYTES, 30.0)
            assert len(data) == CHUNK_BYTES

    async with trio.open_nursery() as running:
        await running.start(session.run)
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(pipeline):
                nursery.start_soon(fetch)
        taken = time.perf_counter() - start
        await session.close("done")
    return count * CHUNK_BYTES / taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=1_000)
    parser.add_argument("--pipeline", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    count = options.size_mb * 1_000_000 // CHUNK_BYTES
    with tempfile.TemporaryDirectory() as folder:
        now = datetime.now(UTC)
        authority = FleetCA.in_memory(FLEET, now=now)
        own = DeviceIdentity.create(Path(folder) / "client", authority, now=now)
        DeviceIdentity.create(Path(folder) / "server", authority, now=now)
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(Path(folder) / "server", theirs))
        server.start()
        try:
            port, raw_port = ours.recv()
            raw = [trio.run(measure_raw, own, raw_port, count) for _ in range(options.rounds)]
            session = [trio.run(measure_session, own, port, count, options.pipeline) for _ in range(options.rounds)]
        finally:
            server.kill()
            server.join()
    print(
        json.dumps(
            {
                "bench": "session",
                "session_mb_per_s": round(max(session) / 1e6, 1),
                "raw_tls_mb_per_s": round(max(raw) / 1e6, 1),
                "ratio": round(max(session) / max(raw), 3),
                "session_all": [round(value / 1e6, 1) for value in session],
                "raw_all": [round(value / 1e6, 1) for value in raw],
            }
        )
    )


if __name__ == "__main__":
    main()
