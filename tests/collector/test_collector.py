"""The collector for real: mutual TLS on loopback, records that devices sealed, acknowledgements that their outboxes believe."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import nacl.utils
import pytest
import trio
from nacl.public import PrivateKey

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.collector.archive import Archive, Seen
from pcm_p2p.collector.collector import LINKS_EACH_MAX, Collector, CollectorSettings, fleet_document_table
from pcm_p2p.collector.intake import Intake, opener
from pcm_p2p.collector.schema import MIGRATIONS
from pcm_p2p.collector.seal_key import load_or_create_seal_key
from pcm_p2p.collector.supervisor import ConsoleSettings, supervise
from pcm_p2p.compliance.acknowledgement import Ack, AckEntry, Level, head_of, open_ack_untrusted, seal_ack
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
from pcm_p2p.database import open_database
from pcm_p2p.errors import PcmError, StorageError
from pcm_p2p.ids import DeviceId
from pcm_p2p.sidecar import open_sidecar
from pcm_p2p.trust.fleet_document import decode_fleet_document
from pcm_p2p.trust.identity import (
    DeviceIdentity,
    client_context,
    peer_identity_untrusted,
    server_context,
    verified_identity_untrusted,
)
from pcm_p2p.wire.link import LinkFailed, LinkSecurity, dial
from pcm_p2p.wire.messages import PROTOCOL, FileGet, Hello, Message, RecordsPut, RecordsTaken, Roster, RosterEntry
from pcm_p2p.wire.session import PeerRefused, Refuse, Session, SessionClosed

FLEET = "f" * 32
NOW = datetime.now(UTC)
NOW_MS = int(NOW.timestamp() * 1_000)


@dataclass
class Device:
    """An enrolled device that seals reports, without a daemon around it."""

    identity: DeviceIdentity
    collector_key: SealKey
    epoch: int = 7
    seq: int = 0
    previous: bytes = FIRST
    sealed: list[bytes] = field(default_factory=list)

    @property
    def id(self) -> DeviceId:
        return self.identity.device_id

    def report(self, hostname: str = "host", *, device: DeviceId | None = None) -> bytes:
        self.seq += 1
        body = ReportBody(
            schema="pcm.report/1",
            device=str(device or self.id),
            site="office",
            hostname=hostname,
            created_ms=NOW_MS,
            agent_version="1",
        )
        data = seal_record(
            pack(body),
            sign=self.identity.sign,
            certificate=self.identity.certificate_der,
            key=RecordKey(self.id, self.epoch, self.seq),
            previous=self.previous,
            created_ms=NOW_MS,
            collectors=[self.collector_key],
            random_bytes=nacl.utils.random,
        )
        self.previous = record_hash(data)
        self.sealed.append(data)
        return data


@dataclass
class World:
    folder: Path
    authority: FleetCA
    identity: DeviceIdentity
    seal_key: PrivateKey
    archive: Path
    host: str = ""
    port: int = 0
    count: int = 0

    def enrol(self, role: str = "device", authority: FleetCA | None = None) -> Device:
        self.count += 1
        folder = self.folder / f"device-{self.count}"
        identity = DeviceIdentity.create(folder, authority or self.authority, role, now=NOW)
        return Device(identity, SealKey(bytes(self.seal_key.public_key)))

    @asynccontextmanager
    async def session(self, device: Device, *, role: str = "device") -> AsyncIterator[Session]:
        """A session of ``device`` with the collector, as its courier opens it."""
        link = await dial(self.host, self.port, security_of(device.identity))
        assert link.role == "collector"
        hello = Hello(PROTOCOL, FLEET, "office", role, 0, 1, 8, "test")

        async def ignore(_session: Session, _message: Message) -> None:
            pass

        session = Session(
            link.stream, hello, device=link.device, role=link.role, dialled=True, serve={}, on_message=ignore
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(session.run)
            yield session
            await session.close("done")
            nursery.cancel_scope.cancel()

    async def put(self, device: Device, *records: bytes) -> tuple[tuple[bool, ...], list[AckEntry]]:
        async with self.session(device) as session:
            answer = await put(session, *records)
        return answer.taken, [entry for data in answer.acks for entry in self.open_ack(data).entries]

    def open_ack(self, data: bytes) -> Ack:
        ack = open_ack_untrusted(data, {self.identity.device_id: self.identity.public_key})
        assert ack.level is Level.DURABLE
        return ack

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.archive)) as connection:
            return connection.execute(sql).fetchall()


async def put(session: Session, *records: bytes) -> RecordsTaken:
    data = await session.fetch(lambda number: RecordsPut(number, records), TAKEN_SIZE_BYTES_MAX, 10, 0)
    return decode_taken_untrusted(data, len(records))


def security_of(identity: DeviceIdentity) -> LinkSecurity:
    return LinkSecurity(server_context(identity), client_context(identity), peer_identity_untrusted, identity.fleet)


@pytest.fixture(name="world")
def _world(tmp_path: Path) -> World:
    authority = FleetCA.in_memory(FLEET, now=NOW)
    identity = DeviceIdentity.create(tmp_path / "collector", authority, "collector", now=NOW)
    return World(
        tmp_path, authority, identity, load_or_create_seal_key(tmp_path / "seal.key"), tmp_path / "archive.sqlite"
    )


@asynccontextmanager
async def collecting(world: World, *, sealing: trio.Event | None = None) -> AsyncIterator[Collector]:
    """The collector as ``daemon.collect`` wires it, until the block ends; ending it is a crash to everybody else.

    ``sealing``: set when an acknowledgement would be signed, which then fails, so that no answer goes out.
    """
    me = world.identity

    def seal(streams: object, issued_ms: int) -> bytes:
        if sealing is not None:
            sealing.set()
            raise Refuse("error")
        entries = [AckEntry(bytes(one.device), one.epoch, one.seq, head_of(one.head)) for one in streams]  # type: ignore[attr-defined]
        return seal_ack(entries, collector=me.device_id, level=Level.DURABLE, issued_ms=issued_ms, sign=me.sign)

    async with open_sidecar() as sidecar, open_database(sidecar, world.archive, MIGRATIONS) as database:
        archive = Archive(database)
        opened = opener(
            lambda data: open_record_untrusted(
                data, lambda der: verified_identity_untrusted(der, me.authorities_pem, fleet=FLEET)
            ),
            lambda record: unseal_untrusted(record, bytes(world.seal_key)),
        )
        intake = Intake(archive, opened, seal, wall_clock_ms=lambda: NOW_MS)
        settings = CollectorSettings(me.device_id, "office", "test", 1, ("127.0.0.1", 0))
        collector = Collector(settings, security_of(me), archive, intake, wall_clock_ms=lambda: NOW_MS)
        async with trio.open_nursery() as nursery:
            world.host, world.port = await nursery.start(collector.run)
            yield collector
            nursery.cancel_scope.cancel()


async def test_a_report_is_archived_and_acknowledged_with_a_signature(world: World) -> None:
    device = world.enrol()
    async with collecting(world):
        taken, entries = await world.put(device, device.report("one"), device.report("two"))
    assert taken == (True, True)
    assert entries == [AckEntry(bytes(device.id), 7, 2, head_of(device.previous))]
    assert world.rows("SELECT device, hostname, site, carrier FROM device") == [(str(device.id), "two", "office", "")]


async def test_a_neighbour_carries_and_is_named(world: World) -> None:
    author, carrier = world.enrol(), world.enrol()
    async with collecting(world):
        taken, entries = await world.put(carrier, author.report(), carrier.report())
        assert taken == (True, True)
        assert {entry.device for entry in entries} == {bytes(author.id), bytes(carrier.id)}
        # The same record from its author, later: known, acknowledged again, and nothing is counted twice.
        assert (await world.put(author, author.sealed[0]))[0] == (True,)
    assert world.rows("SELECT carrier FROM report ORDER BY carrier") == [("",), (str(carrier.id),)]


async def test_nothing_is_lost_or_doubled_when_the_collector_dies_between_archive_and_answer(world: World) -> None:
    device, archived = world.enrol(), trio.Event()
    first, second = device.report(), device.report()
    async with collecting(world, sealing=archived), world.session(device) as session:
        with pytest.raises(PeerRefused):
            await put(session, first, second)
        await archived.wait()
    assert world.rows("SELECT contiguous FROM stream") == [(2,)]
    async with collecting(world):
        taken, entries = await world.put(device, first, second, device.report())
    assert taken == (True, True, True)
    assert [entry.seq for entry in entries] == [3]
    assert world.rows("SELECT count(*) FROM report") == [(3,)]


async def test_what_is_not_genuine_is_refused_and_does_not_spoil_the_batch(world: World, tmp_path: Path) -> None:
    device, other = world.enrol(), world.enrol()
    stranger = Device(
        DeviceIdentity.create(tmp_path / "s", FleetCA.in_memory(FLEET, now=NOW), now=NOW), device.collector_key
    )
    elsewhere = Device(world.enrol().identity, SealKey(bytes(PrivateKey.generate().public_key)))
    good = device.report()
    bad = bytearray(device.report())
    bad[-1] ^= 1
    lying = other.report(device=device.id)
    async with collecting(world):
        taken, entries = await world.put(
            device, good, bytes(bad), stranger.report(), elsewhere.report(), lying, b"", b"noise" * 40
        )
        assert taken == (True, False, False, False, False, False, False)
        assert [(entry.device, entry.seq) for entry in entries] == [(bytes(device.id), 1)]
        assert await world.put(device, b"noise") == ((False,), [])
    assert world.rows("SELECT count(*) FROM report") == [(1,)]


async def test_a_restored_device_is_told_that_other_reports_have_its_numbers(world: World) -> None:
    device = world.enrol()
    async with collecting(world):
        await world.put(device, device.report("a"), device.report("b"))
        restored = Device(device.identity, device.collector_key)
        taken, (entry,) = await world.put(device, restored.report("c"))
        assert taken == (False,)
        assert (entry.seq, entry.head) == (2, head_of(record_hash(device.sealed[1])))
        assert entry.head != head_of(record_hash(restored.sealed[0]))
        anew = Device(device.identity, device.collector_key, epoch=9)
        assert (await world.put(device, anew.report("c")))[0] == (True,)
    assert world.rows("SELECT hostname FROM device") == [("c",)]
    assert world.rows("SELECT count(*) FROM conflict") == [(1,)]


async def test_a_full_disk_takes_nothing_and_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_args: object) -> list[str]:
        raise StorageError("no room left on the disk")

    device = world.enrol()
    record = device.report()
    async with collecting(world):
        with monkeypatch.context() as patch:
            patch.setattr(Archive, "take", full)
            assert await world.put(device, record) == ((False,), [])
        assert (await world.put(device, record))[0] == (True,)


async def test_strangers_and_other_collectors_get_nothing(world: World, tmp_path: Path) -> None:
    stranger = DeviceIdentity.create(tmp_path / "s", FleetCA.in_memory(FLEET, now=NOW), now=NOW)
    async with collecting(world):
        with pytest.raises((LinkFailed, SessionClosed, ExceptionGroup)):
            async with world.session(Device(stranger, SealKey(bytes(32)))) as session:
                await put(session, b"x")
        twin = world.enrol("collector")
        async with world.session(twin, role="collector") as session:
            with pytest.raises(PeerRefused, match="denied"):
                await put(session, twin.report())
        device = world.enrol()
        async with world.session(device) as session:
            with pytest.raises(PeerRefused):
                await session.fetch(lambda number: FileGet(number, "metadata/timestamp.json"), 1_000, 5, 0)
            assert (await put(session, device.report())).taken == (True,)
    assert world.rows("SELECT count(*) FROM sighting WHERE device = '" + str(twin.id) + "'") == [(0,)]


async def test_one_device_cannot_take_all_links(world: World) -> None:
    device, other = world.enrol(), world.enrol()
    async with collecting(world):
        async with trio.open_nursery() as nursery:
            held = [world.session(device) for _ in range(LINKS_EACH_MAX)]
            for one in held:
                await one.__aenter__()
            with pytest.raises((PcmError, ExceptionGroup)):
                async with world.session(device):
                    pass
            assert (await world.put(other, other.report()))[0] == (True,)
            for one in reversed(held):
                await one.__aexit__(None, None, None)
            nursery.cancel_scope.cancel()
        assert (await world.put(device, device.report()))[0] == (True,)


async def test_who_connects_and_whom_they_name_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    device, silent, noted = world.enrol(), DeviceId(b"s" * 16), trio.Event()
    note = Archive.seen

    async def seen(archive: Archive, sightings: list[Seen], *, by: DeviceId, now_ms: int) -> None:
        await note(archive, sightings, by=by, now_ms=now_ms)
        if any(one.device == silent for one in sightings):
            noted.set()

    monkeypatch.setattr(Archive, "seen", seen)
    async with collecting(world), world.session(device) as session:
        await session.send(Roster((RosterEntry(bytes(silent), "10.0.0.9", 1, 1, 0, "annex", 8),)))
        with trio.fail_after(60):
            await noted.wait()
    assert set(world.rows("SELECT device, site, seen_by FROM sighting")) == {
        (str(device.id), "office", str(device.id)),
        (str(silent), "annex", str(device.id)),
    }


def test_the_seal_key_is_made_once_and_a_damaged_one_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "seal.key"
    made = load_or_create_seal_key(path)
    assert bytes(load_or_create_seal_key(path)) == bytes(made)
    assert path.stat().st_mode & 0o777 == 0o600
    for damage in ("", "zz" * 32, "00" * 31):
        path.write_text(damage)
        with pytest.raises(StorageError, match="is damaged"):
            load_or_create_seal_key(path)
        assert path.read_text() == damage


def test_the_table_for_the_fleet_document_is_one_that_it_accepts(world: World) -> None:
    table = fleet_document_table(
        world.identity.device_id,
        "reports.example:8743",
        seal_key=bytes(world.seal_key.public_key),
        verify_key=world.identity.public_key,
    )
    document = decode_fleet_document(f'[fleet]\nid = "{FLEET}"\nname = "test"\n{table}'.encode(), "fleet.toml")
    (collector,) = document.collector
    assert collector.device_id == world.identity.device_id
    assert collector.endpoint == ("reports.example", 8743)


async def test_a_console_that_ends_is_started_again_and_ends_with_its_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcm_p2p.collector.supervisor.BACK_OFF_S_MIN", 0.01)
    for number, (work, starts) in enumerate((("sys.exit(3)", 3), ("sys.stdin.read()", 1))):
        note = tmp_path / f"processes {number}"
        note.touch()
        script = f"import os, sys; print(os.getpid(), file=open({str(note)!r}, 'a')); {work}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervise, [sys.executable, "-c", script])
            with trio.fail_after(60):
                while len(note.read_text().splitlines()) < starts:  # noqa: ASYNC110 - another process writes it
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        for process in note.read_text().split():
            with pytest.raises(ProcessLookupError):
                os.kill(int(process), 0)


def test_the_command_of_the_console_names_what_is_set() -> None:
    command = ConsoleSettings(Path("/a"), "127.0.0.1:0", Path("/p"), port_file=Path("/f")).command()
    assert command[1:4] == ["-m", "pcm_p2p.collector.console", "--until-stdin-closes"]
    assert command[4:] == ["--archive", "/a", "--listen", "127.0.0.1:0", "--password-file", "/p", "--port-file", "/f"]
