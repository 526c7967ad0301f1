"""The collector as a service: the composition root of ``collector``. Enrolled like a device, with the role collector.

State folder: ``identity/``, ``config.toml`` (its [device] site only), ``collector/seal.key`` (opens reports),
``collector/archive.sqlite``, ``collector/incarnation``, ``run/lock``. The console is a process of its own over the same archive,
kept running from here.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import trio
from nacl.public import PrivateKey

from pcm_p2p import __version__
from pcm_p2p.collector.archive import Acknowledged, Archive
from pcm_p2p.collector.collector import Collector, CollectorSettings, fleet_document_table
from pcm_p2p.collector.intake import Intake, opener
from pcm_p2p.collector.schema import MIGRATIONS
from pcm_p2p.collector.seal_key import load_or_create_seal_key
from pcm_p2p.collector.supervisor import ConsoleSettings
from pcm_p2p.compliance.acknowledgement import AckEntry, Level, head_of, seal_ack
from pcm_p2p.compliance.record import Record, open_record_untrusted, unseal_untrusted
from pcm_p2p.compliance.report import ReportBody
from pcm_p2p.config import load_config
from pcm_p2p.daemon.state_lock import lock_state
from pcm_p2p.database import open_database
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import TrustError
from pcm_p2p.gossip.roster_file import next_incarnation
from pcm_p2p.sidecar import open_sidecar
from pcm_p2p.trust.identity import (
    DeviceIdentity,
    PeerIdentity,
    client_context,
    peer_identity_untrusted,
    server_context,
    verified_identity_untrusted,
)
from pcm_p2p.wire.link import LinkSecurity

log = logging.getLogger(__name__)


def load_collector_identity(state: Path) -> DeviceIdentity:
    """The identity of ``state``, which must have been enrolled as a collector. Raises ``TrustError``."""
    identity = DeviceIdentity.load(state / "identity")
    if identity.role != "collector":
        raise TrustError(
            f"{state} is enrolled as {identity.role}, not as collector",
            remedy="Enrol it with a token made with 'pcm-p2p enroll token --role collector'.",
        )
    return identity


def show_table(state: Path, address: str) -> str:
    """The ``[[collector]]`` table of this collector for fleet.toml; makes its seal key if there is none yet."""
    identity = load_collector_identity(state)
    seal_key = load_or_create_seal_key(state / "collector" / "seal.key")
    return fleet_document_table(
        identity.device_id, address, seal_key=bytes(seal_key.public_key), verify_key=identity.public_key
    )


def run_collector(
    state: Path, listen: tuple[str, int], console: ConsoleSettings | None, port_file: Path | None
) -> None:
    """Collect until SIGTERM or SIGINT; ``console`` None: reports are taken and not shown. Raises ``PcmError`` at the start."""
    identity = load_collector_identity(state)
    config = load_config(state / "config.toml")
    seal_key = load_or_create_seal_key(state / "collector" / "seal.key")
    with lock_state(state):
        settings = CollectorSettings(
            device=identity.device_id,
            site=config.device.site,
            agent=__version__,
            incarnation=_grow_incarnation(state / "collector" / "incarnation"),
            listen=listen,
            console=console,
        )
        trio.run(_run, state, identity, seal_key, settings, port_file)


async def _run(
    state: Path, identity: DeviceIdentity, seal_key: PrivateKey, settings: CollectorSettings, port_file: Path | None
) -> None:
    security = LinkSecurity(server_context(identity), client_context(identity), peer_identity_untrusted, identity.fleet)
    database_path = state / "collector" / "archive.sqlite"
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_sidecar() as sidecar, open_database(sidecar, database_path, MIGRATIONS) as database:
            archive = Archive(database)
            intake = Intake(
                archive,
                opener(
                    lambda data: open_record_untrusted(data, lambda der: _verified(identity, der)),
                    lambda record: _unseal(record, seal_key),
                ),
                lambda streams, issued_ms: _seal(identity, streams, issued_ms),
                wall_clock_ms=_wall_ms,
            )
            collector = Collector(settings, security, archive, intake, wall_clock_ms=_wall_ms)
            async with trio.open_nursery() as nursery:
                host, port = await nursery.start(collector.run)
                if port_file is not None:
                    await trio.to_thread.run_sync(write_atomic, port_file, f"{host}:{port}\n".encode())
                log.info("collector %s is up at %s:%d", identity.device_id, host, port)
                async for number in signals:
                    log.info("ending on %s", signal.Signals(number).name)
                    nursery.cancel_scope.cancel()
                    break


def _verified(identity: DeviceIdentity, certificate_der: bytes) -> PeerIdentity:
    """Who signed a record. Dates are not demanded: a report may have been carried for weeks."""
    return verified_identity_untrusted(certificate_der, identity.authorities_pem, fleet=identity.fleet)


def _unseal(record: Record, seal_key: PrivateKey) -> ReportBody:
    return unseal_untrusted(record, bytes(seal_key))


def _seal(identity: DeviceIdentity, streams: Sequence[Acknowledged], issued_ms: int) -> bytes:
    """One collector's fsynced archive is all the durability that a fleet with one collector has: its word frees the author."""
    entries = [AckEntry(bytes(one.device), one.epoch, one.seq, head_of(one.head)) for one in streams]
    return seal_ack(entries, collector=identity.device_id, level=Level.DURABLE, issued_ms=issued_ms, sign=identity.sign)


def _grow_incarnation(path: Path) -> int:
    try:
        before = int(path.read_text("ascii"))
    except (OSError, ValueError):
        before = 0
    incarnation = next_incarnation(before, int(time.time()))
    write_atomic(path, b"%d\n" % incarnation)
    return incarnation


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
