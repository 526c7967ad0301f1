"""The collector as a service: the composition root of ``collector``. Enrolled like a device, with the role collector.

State folder: ``identity/``, ``config.toml`` (of it: [device] site and [origin]), ``trust/`` and ``denied.json`` (what the fleet
signed, see ``collect_trust``), ``collector/seal.key`` (opens reports), ``collector/archive.sqlite``, ``collector/incarnation``,
``run/lock``. The console is a process of its own over the same archive, kept running from here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec
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
from pcm_p2p.config import Config, load_config
from pcm_p2p.daemon.admission import Admission
from pcm_p2p.daemon.collect_trust import CollectorTrust
from pcm_p2p.daemon.neighbours import OriginSource
from pcm_p2p.daemon.renewal import Renewal
from pcm_p2p.daemon.state_check import check_state
from pcm_p2p.daemon.state_lock import lock_state
from pcm_p2p.daemon.surroundings import fleet_document
from pcm_p2p.database import open_database
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import TrustError, UntrustedBytes
from pcm_p2p.gossip.roster_file import next_incarnation
from pcm_p2p.sidecar import open_sidecar
from pcm_p2p.swarm.origin import OriginClient
from pcm_p2p.swarm.pace import Pace
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.identity import DeviceIdentity, PeerIdentity
from pcm_p2p.trust.index import Index

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
    check_state(state)
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
        trio.run(_run, state, config, identity, seal_key, settings, port_file)


async def _run(
    state: Path,
    config: Config,
    identity: DeviceIdentity,
    seal_key: PrivateKey,
    settings: CollectorSettings,
    port_file: Path | None,
) -> None:
    database_path = state / "collector" / "archive.sqlite"
    client = TrustClient(
        state / "trust", identity.root_json, identity.fleet, wall_clock=lambda: datetime.now(UTC), wanted=_no_releases
    )
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals, client:
        async with (
            open_sidecar() as sidecar,
            open_database(sidecar, database_path, MIGRATIONS) as database,
            _open_origin(state, config, client) as origin,
        ):
            archive = Archive(database)
            admission = Admission(identity, client, state / "denied.json")
            trust = CollectorTrust(
                settings.device,
                client,
                admission,
                archive,
                OriginSource(origin) if origin.urls else None,
                config.origin,
            )
            intake = Intake(
                archive,
                opener(
                    lambda data: _open_dated_untrusted(data, trust.verify_author),
                    lambda record: _unseal(record, seal_key),
                ),
                lambda streams, issued_ms: _seal(identity, streams, issued_ms),
                wall_clock_ms=_wall_ms,
            )
            collector = Collector(
                settings, admission.security, archive, intake, wall_clock_ms=_wall_ms, visitors=trust.visitors
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(trust.run, collector.reconsider)
                nursery.start_soon(_renewal(identity, client, admission).run)
                host, port = await nursery.start(collector.run)
                if port_file is not None:
                    await trio.to_thread.run_sync(write_atomic, port_file, f"{host}:{port}\n".encode())
                log.info("collector %s is up at %s:%d", identity.device_id, host, port)
                async for number in signals:
                    log.info("ending on %s", signal.Signals(number).name)
                    nursery.cancel_scope.cancel()
                    break


def _renewal(identity: DeviceIdentity, client: TrustClient, admission: Admission) -> Renewal:
    """At the desks of the fleet document, else where this collector was enrolled; it knows no neighbours to go through."""

    async def installed(renewed: DeviceIdentity) -> None:
        admission.reload(renewed)

    def desks() -> list[str]:
        document = fleet_document(client)
        named = [desk.address for desk in document.desk] if document is not None else []
        return list(dict.fromkeys([*named, *filter(None, [identity.record.desk])]))

    return Renewal(
        identity,
        now=client.wall_clock,
        desks=desks,
        authorities_pem=lambda: admission.authorities_pem,
        neighbours=tuple,
        look_around=None,
        installed=installed,
        rng=Random(secrets.randbits(64)),  # noqa: S311 - jitter
    )


def _open_dated_untrusted(data: bytes, verify_author: Callable[[bytes], PeerIdentity]) -> Record:
    """A record as ``open_record_untrusted`` gives it, if it is not dated after the end of the certificate that it carries.

    Who finds an old key and its ended certificate cannot report with them; what was signed in time may arrive late.
    """
    authors: list[PeerIdentity] = []

    def keep(certificate_der: bytes) -> PeerIdentity:
        authors.append(verify_author(certificate_der))
        return authors[-1]

    record = open_record_untrusted(data, keep)
    if record.created_ms > authors[-1].not_after.timestamp() * 1_000:
        raise UntrustedBytes("record: dated after the end of its author's certificate")
    return dataclasses.replace(record, site=authors[-1].site)


@contextlib.asynccontextmanager
async def _open_origin(state: Path, config: Config, client: TrustClient) -> AsyncIterator[OriginClient]:
    """Mirrors of the settings first, then those of the signed fleet document as it was last known."""
    document = fleet_document(client)
    signed = [origin.url for origin in document.origin] if document is not None else []
    urls = list(dict.fromkeys([*config.origin.urls, *signed]))
    rng = Random(secrets.randbits(64))  # noqa: S311 - jitter
    async with OriginClient(
        urls, config.origin, state / "segments", pace=Pace(0), rng=rng, agent=f"pcm-p2p/{__version__}"
    ) as origin:
        yield origin


def _no_releases(_index: Index, _documents: Mapping[str, bytes]) -> tuple[str, ...]:
    """A collector installs nothing and serves nobody."""
    return ()


def _unseal(record: Record, seal_key: PrivateKey) -> ReportBody:
    """The report; its site is the certified one, where there is one: nobody is counted among the devices of another office."""
    body = unseal_untrusted(record, bytes(seal_key))
    return msgspec.structs.replace(body, site=record.site) if record.site else body


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
