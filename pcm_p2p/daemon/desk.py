"""The desk as a service: honours tokens, and keeps the online metadata of an origin tree from expiring.

The timestamp is signed anew when a third of its life is over (7 days: every 56 hours), so that a desk that is off for a weekend
does no harm; the snapshot in the second half of its life. A refused or failed refresh is tried again soon and said each time.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import trio

from pcm_p2p.authority.people.founding import TIMESTAMP_LIFETIME
from pcm_p2p.authority.publish import OnlineKeys, refresh_online
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.daemon.state_check import FLEET_PRIVATE, check_state
from pcm_p2p.durable import write_atomic
from pcm_p2p.enrolment.desk import Desk
from pcm_p2p.errors import InputError, PcmError

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 600.0
"""Choice: how often the age of the timestamp is looked at."""


async def run_desk(
    folder: FleetFolder, passphrase: str, host: str, port: int, origin: Path | None, port_file: Path | None
) -> None:
    """Serve until SIGTERM or SIGINT. Raises ``PcmError`` when it cannot start."""
    check_state(folder.path, FLEET_PRIVATE)
    desk = Desk.open(folder, passphrase)
    try:
        keys = OnlineKeys.open(folder, passphrase) if origin is not None else None
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                try:
                    listeners: list[trio.SocketListener] = await nursery.start(desk.serve, host, port)
                except OSError as error:
                    raise InputError(
                        f"{host}:{port} cannot be listened on: {error.strerror}", remedy="Choose another port, or 0."
                    ) from None
                bound = listeners[0].socket.getsockname()[1]
                if port_file is not None:
                    await trio.to_thread.run_sync(write_atomic, port_file, f"{host}:{bound}\n".encode())
                if origin is not None and keys is not None:
                    reopen = partial(OnlineKeys.open, folder, passphrase)
                    nursery.start_soon(_keep_fresh, folder, origin, keys, reopen)
                log.info("the desk of fleet %s is open at %s:%d", folder.name, host, bound)
                async for number in signals:
                    log.info("ending on %s", signal.Signals(number).name)
                    nursery.cancel_scope.cancel()
                    break
    finally:
        desk.close()


async def _keep_fresh(
    folder: FleetFolder, origin: Path, keys: OnlineKeys, reopen: Callable[[], OnlineKeys] | None = None
) -> None:
    """``reopen`` gives the keys that root names by then, when a new root no longer names these."""
    while True:
        try:
            if await trio.to_thread.run_sync(_is_due, folder):
                if reopen is not None and not await trio.to_thread.run_sync(_are_named, folder, keys):
                    keys = await trio.to_thread.run_sync(reopen)
                    log.info("root names other online keys; their files are used from now on")
                published = await trio.to_thread.run_sync(refresh_online, folder, origin, keys)
                log.info("timestamp %d signed, good until %s", published.versions.timestamp, published.expires)
                for remark in published.remarks:
                    log.warning("%s", remark)
        except (PcmError, OSError) as error:
            log.error("the timestamp could not be signed anew: %s", error)
        await trio.sleep(LOOK_INTERVAL_S)


def _are_named(folder: FleetFolder, keys: OnlineKeys) -> bool:
    roles = folder.root().signed.roles
    return all(
        signer.public_key.keyid in roles[role].keyids
        for role, signer in (("snapshot", keys.snapshot), ("timestamp", keys.timestamp))
    )


def _is_due(folder: FleetFolder) -> bool:
    timestamp = folder.timestamp()
    if timestamp is None:
        return False  # nothing was published yet
    left: timedelta = timestamp.signed.expires - folder.wall_clock()
    return left < TIMESTAMP_LIFETIME * 2 / 3
