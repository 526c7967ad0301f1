"""The daemon as a service: takes its state folder, runs the node, and ends it on SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import trio

from pcm_p2p.config import Config, load_config
from pcm_p2p.daemon.log import configure
from pcm_p2p.daemon.node import run_node
from pcm_p2p.daemon.state_check import check_state
from pcm_p2p.daemon.state_lock import lock_state
from pcm_p2p.errors import InputError
from pcm_p2p.trust.identity import DeviceIdentity

log = logging.getLogger(__name__)


def run_daemon(state: Path, *, json_log: bool = False, verbose: bool = False) -> None:
    """Run the daemon of ``state`` until SIGTERM or SIGINT. Raises ``PcmError`` when it cannot start."""
    configure(json_lines=json_log, verbose=verbose)
    if not (state / "config.toml").exists():
        raise InputError(
            "there is no such file",
            path=state / "config.toml",
            remedy=f"Enrol this device first: 'pcm-p2p enroll join TOKEN --state {state}'.",
        )
    check_state(state)
    config = load_config(state / "config.toml")
    identity = DeviceIdentity.load(state / "identity")
    with lock_state(state):
        trio.run(_run_until_signalled, state, config, identity)


async def _run_until_signalled(state: Path, config: Config, identity: DeviceIdentity) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            ended = trio.Event()
            nursery.start_soon(run_node, state, config, identity, ended)
            async for number in signals:
                log.info("ending on %s", signal.Signals(number).name)
                ended.set()
                break
