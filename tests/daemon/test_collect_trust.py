"""A collector learns who is revoked, from the origin or from its visitors, and takes nothing of theirs then: over sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nacl.utils
import pytest
import trio
from nacl.public import PrivateKey
from repository_simulator import PASSPHRASE, RepositorySimulator, TreeSource

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.revocation import change_deny_list
from pcm_p2p.collector.archive import Archive
from pcm_p2p.collector.collector import Collector, CollectorSettings
from pcm_p2p.collector.device import device as device_view
from pcm_p2p.collector.fleet import DeviceFilter, counts_by
from pcm_p2p.collector.intake import Intake, opener
from pcm_p2p.collector.schema import MIGRATIONS
from pcm_p2p.collector.snapshot import open_snapshot
from pcm_p2p.compliance.handover import TAKEN_SIZE_BYTES_MAX, decode_taken_untrusted
from pcm_p2p.compliance.record import (
    FIRST,
    RecordKey,
    SealKey,
    open_record_untrusted,
    record_hash,
    seal_record,
    unseal_untrusted,
)
from pcm_p2p.compliance.report import ReportBody, pack
from pcm_p2p.config import Origin
from pcm_p2p.daemon import collect_trust
from pcm_p2p.daemon.admission import Admission
from pcm_p2p.daemon.collect_trust import CollectorTrust
from pcm_p2p.database import open_database
from pcm_p2p.errors import PcmError
from pcm_p2p.ids import DeviceId
from pcm_p2p.sidecar import open_sidecar
from pcm_p2p.trust.client import MetadataSource, TrustClient
from pcm_p2p.trust.identity import DeviceIdentity, client_context, peer_identity_untrusted, server_context
from pcm_p2p.wire.link import LinkSecurity, dial
from pcm_p2p.wire.messages import PROTOCOL, Digest, FileGet, Hello, Message, RecordsPut
from pcm_p2p.wire.session import Refuse, Session

Fleet = RepositorySimulator
NOW_MS = 1_800_000_000_000


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_trust, "COUNT_INTERVAL_S", 0.05)


@pytest.fixture(name="fleet")
def _fleet(fleet_of_today: Fleet) -> Fleet:
    return fleet_of_today


class Device:
    """A member that seals reports, and serves the metadata that it trusts to the collector it dials."""

    def __init__(self, fleet: Fleet, name: str, seal_key: SealKey) -> None:
        issuer = FleetCA.load(fleet.fleet.path / "ca", PASSPHRASE)
        self.identity = DeviceIdentity.create(fleet.folder / name, issuer, now=fleet.clock.now)
        self.fleet, self.seal_key = fleet, seal_key
        self.seq, self.previous = 0, FIRST
        self.client = TrustClient(
            fleet.folder / f"{name}-trust", fleet.fleet.root_bytes(1), fleet.fleet.fleet_id, wall_clock=fleet.clock
        )

    @property
    def id(self) -> DeviceId:
        return self.identity.device_id

    def report(self) -> bytes:
        self.seq += 1
        body = ReportBody("pcm.report/1", self.id.hex(), "office", "host", NOW_MS, "test")
        data = seal_record(
            pack(body),
            sign=self.identity.sign,
            certificate=self.identity.certificate_der,
            key=RecordKey(self.id, 7, self.seq),
            previous=self.previous,
            created_ms=NOW_MS,
            collectors=[self.seal_key],
            random_bytes=nacl.utils.random,
        )
        self.previous = record_hash(data)
        return data

    @asynccontextmanager
    async def session(self, place: tuple[str, int]) -> AsyncIterator[Session]:
        security = LinkSecurity(
            server_context(self.identity), client_context(self.identity), peer_identity_untrusted, self.identity.fleet
        )
        link = await dial(*place, security)

        async def file(_session: Session, request: FileGet) -> bytes:
            data = self.client.serve(request.path)
            if data is None:
                raise Refuse("missing")
            return data

        async def ignore(_session: Session, _message: Message) -> None:
            pass

        hello = Hello(PROTOCOL, self.identity.fleet, "office", "device", 0, 1, 8, "test")
        session = Session(
            link.stream,
            hello,
            device=link.device,
            role=link.role,
            dialled=True,
            serve={FileGet: file},
            on_message=ignore,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(session.run)
            session.post(Digest(*self.client.digest()))
            yield session
            await session.close("done")
            nursery.cancel_scope.cancel()


async def put(session: Session, *records: bytes) -> tuple[bool, ...]:
    data = await session.fetch(lambda number: RecordsPut(number, records), TAKEN_SIZE_BYTES_MAX, 10, 0)
    return decode_taken_untrusted(data, len(records)).taken


@dataclass
class Running:
    place: tuple[str, int]
    trust: CollectorTrust
    admission: Admission
    archive: Path

    def view(self, device: DeviceId) -> Any:
        with open_snapshot(self.archive, NOW_MS) as snapshot:
            return device_view(snapshot, device.hex())

    def states(self) -> dict[str, int]:
        with open_snapshot(self.archive, NOW_MS) as snapshot:
            return counts_by(snapshot, "state", DeviceFilter())


async def until(condition: Any) -> None:
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - a file is looked at
            await trio.sleep(0.01)


@asynccontextmanager
async def collecting(
    fleet: Fleet, seal_key: PrivateKey, origin: MetadataSource | None = None
) -> AsyncIterator[Running]:
    """The collector as ``daemon.collect`` wires it."""
    issuer = FleetCA.load(fleet.fleet.path / "ca", PASSPHRASE)
    identity = DeviceIdentity.create(fleet.folder / "collector", issuer, "collector", now=fleet.clock.now)
    archive_path = fleet.folder / "archive.sqlite"
    client = TrustClient(
        fleet.folder / "collector-trust", fleet.fleet.root_bytes(1), fleet.fleet.fleet_id, wall_clock=fleet.clock
    )
    async with open_sidecar() as sidecar, open_database(sidecar, archive_path, MIGRATIONS) as database:
        with client:
            archive = Archive(database)
            admission = Admission(identity, client, fleet.folder / "collector-denied.json")
            trust = CollectorTrust(identity.device_id, client, admission, archive, origin, Origin(poll_s=0.2))
            intake = Intake(
                archive,
                opener(
                    lambda data: open_record_untrusted(data, trust.verify_author),
                    lambda record: unseal_untrusted(record, bytes(seal_key)),
                ),
                lambda _streams, _issued_ms: b"",
                wall_clock_ms=lambda: NOW_MS,
            )
            settings = CollectorSettings(identity.device_id, "office", "test", 1, ("127.0.0.1", 0))
            collector = Collector(
                settings, admission.security, archive, intake, wall_clock_ms=lambda: NOW_MS, visitors=trust.visitors
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(trust.run, collector.reconsider)
                place = await nursery.start(collector.run)
                yield Running(place, trust, admission, archive_path)
                nursery.cancel_scope.cancel()


def revoke(fleet: Fleet, *devices: DeviceId) -> None:
    change_deny_list(fleet.fleet, lambda held: held.with_devices(devices, "stolen", fleet.clock.now))
    fleet.sign()
    fleet.publish()


async def test_a_visitor_brings_the_news_and_the_revoked_device_is_out_at_once(fleet: Fleet) -> None:
    """No origin: the collector hears of it from a device that came to report."""
    key = PrivateKey.generate()
    good, bad = (Device(fleet, name, SealKey(bytes(key.public_key))) for name in ("good", "bad"))
    with good.client, bad.client:
        async with collecting(fleet, key) as running, bad.session(running.place) as lost:
            assert await put(lost, bad.report()) == (True,)
            revoke(fleet, bad.id)
            assert (await good.client.attempt(TreeSource(fleet.origin))).kind == "good"
            async with good.session(running.place) as session:
                with trio.fail_after(60):
                    await lost.closed.wait()
                assert "revoked" in lost.closed_reason
                # Its reports are refused whoever brings them; those of the carrier are taken.
                assert await put(session, bad.report(), good.report(), bad.report()) == (False, True, False)
            with pytest.raises((PcmError, ExceptionGroup)):
                async with bad.session(running.place) as again:
                    await put(again, bad.report())
            await until(lambda: running.view(bad.id).revoked_refused == 2)
            shown = running.view(bad.id)
            assert (shown.state, shown.revoked_reason) == ("revoked", "stolen")
            assert shown.revoked_ms == int(fleet.clock.now.timestamp() * 1_000)
            assert running.states() == {"revoked": 1, "unchecked": 1}


async def test_the_origin_brings_the_news_where_nobody_visits(fleet: Fleet) -> None:
    key = PrivateKey.generate()
    bad = Device(fleet, "bad", SealKey(bytes(key.public_key)))
    async with collecting(fleet, key, TreeSource(fleet.origin)) as running, bad.session(running.place) as lost:
        assert await put(lost, bad.report()) == (True,)
        revoke(fleet, bad.id)
        with trio.fail_after(60):
            await lost.closed.wait()
        assert running.admission.is_revoked(bad.id)


async def test_a_restart_without_any_way_out_remembers_who_is_revoked(fleet: Fleet) -> None:
    key = PrivateKey.generate()
    bad = Device(fleet, "bad", SealKey(bytes(key.public_key)))
    revoke(fleet, bad.id)
    async with collecting(fleet, key, TreeSource(fleet.origin)) as running:
        await until(lambda: running.admission.is_revoked(bad.id))
    async with collecting(fleet, key) as running:
        assert running.admission.is_revoked(bad.id)
        with pytest.raises((PcmError, ExceptionGroup)):
            async with bad.session(running.place) as session:
                await put(session, bad.report())


async def test_a_visitor_that_lies_about_versions_costs_one_attempt(fleet: Fleet) -> None:
    key = PrivateKey.generate()
    liar = Device(fleet, "liar", SealKey(bytes(key.public_key)))
    with liar.client:
        async with collecting(fleet, key) as running, liar.session(running.place) as session:
            for version in range(50):
                session.post(Digest(1, 2**31 - 100 + version, 1, 1, bytes(32)))
            assert await put(session, liar.report()) == (True,)
            await until(lambda: running.trust._spreader._core.attempting is None)
            assert sum(running.trust.follower._client.statistics().values()) <= 2
