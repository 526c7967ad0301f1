"""The apply service as a process: takes its state folder, serves, and ends in order on SIGTERM or SIGINT.

A change that is under way when it is told to end is finished first, and so may take as long as dpkg does.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import trio

from pcm_p2p.daemon.applying.service import ApplyService
from pcm_p2p.daemon.applying.settings import ApplySettings, load_settings
from pcm_p2p.daemon.log import configure
from pcm_p2p.daemon.state_lock import lock_state
from pcm_p2p.errors import InputError

log = logging.getLogger(__name__)


def run_apply_service(state: Path, *, json_log: bool = False, verbose: bool = False) -> None:
    """Serve until SIGTERM or SIGINT. Raises ``PcmError`` when it cannot start."""
    settings, root_json = load_settings(state)
    if settings.apply.root == "/" and os.geteuid() != 0:
        raise InputError(
            "changing the system itself takes root",
            path=state,
            remedy="Start it as root, best with 'systemctl start pcm-p2p-apply'.",
        )
    configure(json_lines=json_log, verbose=verbose)
    os.umask(0o022)  # maintainer scripts expect it; files of our own are made with a mode that says so
    with lock_state(state):
        trio.run(_run_until_signalled, state, settings, root_json)


async def _run_until_signalled(state: Path, settings: ApplySettings, root_json: bytes) -> None:
    service = ApplyService(state, settings, root_json)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run)
            async for number in signals:
                log.info("ending on %s", signal.Signals(number).name)
                nursery.cancel_scope.cancel()
                break
