"""Outbox: what waits for a collector, in SQLite. Own records, records of others, and the acknowledgements that free them.

Every method is one transaction: after SIGKILL all of it happened or none. The rules:

- **Own records** (``own_records``) are numbered and sealed in the transaction that stores them, so there is no number without
  a record. One is deleted when a durable acknowledgement names it *with its hash*. There is no other way out: when
  ``own_bytes_max`` is reached, ``add`` refuses and the next report gets its number once there is room.
- **A rolled-back state** (a restored backup, a cloned machine) shows in an acknowledgement above the own numbers or with
  another hash, or in an own record that comes back from a carrier and is not remembered. Then a new epoch begins, and what
  had not been acknowledged is sealed again in it. The same happens to records that no present collector can open. That is
  what the packed report is kept for beside its record.
- **Records of others** (``carried_records``) leave when a collector has received them or when their lifetime, counted from
  their arrival here, is over. What does not fit is refused, and the author or the previous carrier still has it.
- **Acknowledgements** (``held_acks``) only grow, so they may come in any order and any number of times.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from pcm_p2p.compliance import outbox_tables
from pcm_p2p.compliance.acknowledgement import Ack, Level
from pcm_p2p.compliance.carried_records import CarriedLimits, CarriedRecords
from pcm_p2p.compliance.held_acks import HeldAcks
from pcm_p2p.compliance.outbox_tables import rows
from pcm_p2p.compliance.own_records import OwnRecords, Sealer
from pcm_p2p.compliance.parcel import Changed, Kept, Parcel
from pcm_p2p.compliance.record import Record
from pcm_p2p.errors import Degraded, DiskFull
from pcm_p2p.ids import DeviceId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import aiosqlite

T = TypeVar("T")

MIGRATIONS: tuple[str, ...] = outbox_tables.MIGRATIONS
"""For ``database.open_database``."""


class OutboxFull(DiskFull):
    """Own records reached their ceiling; nothing is lost, the next report waits for an acknowledgement."""

    remedy = (
        "Give the device, or a neighbour at its site, a route to a collector; then reports flow again by themselves."
    )


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """``own_bytes_max`` as for others (research/gossip-scale.md 1.6); ``ack_entries_max`` is eight rosters (choice)."""

    own_bytes_max: int = 64 << 20
    carried: CarriedLimits = field(default_factory=CarriedLimits)
    ack_entries_max: int = 4_096


@dataclass(frozen=True, slots=True)
class OutboxStatistics:
    """``acknowledged``: own records that a collector confirmed since the state folder was made."""

    own_records: int
    own_bytes: int
    oldest_own_ms: int | None
    carried_records: int
    carried_bytes: int
    acknowledged: int
    epoch: int
    seq: int


class Database(Protocol):
    """What the outbox needs of ``pcm_p2p.database.Database``."""

    async def transaction(self, work: Callable[[aiosqlite.Connection], Awaitable[T]]) -> T: ...

    async def read(self, work: Callable[[aiosqlite.Connection], Awaitable[T]]) -> T: ...


class Outbox:
    """The only writer of its tables. Times are milliseconds since 1970 by the device's clock."""

    def __init__(self, database: Database, me: DeviceId, limits: OutboxLimits | None = None) -> None:
        self._database = database
        self._me = me
        self._limits = limits or OutboxLimits()
        self._own = OwnRecords(me)
        self._carried = CarriedRecords(self._limits.carried)
        self._acks = HeldAcks(self._limits.ack_entries_max)
        self._sealer: Sealer | None = None

    async def load(self) -> list[Parcel]:
        """Everything that waits, own records first, each group oldest first: for the courier at start."""

        async def work(connection: aiosqlite.Connection) -> list[Parcel]:
            return await self._own.parcels(connection) + await self._carried.parcels(connection)

        return await self._database.read(work)

    async def seal_with(self, sealer: Sealer, now_ms: int) -> Changed:
        """Use ``sealer`` from now on. Waiting records that none of its collectors can open are sealed again, in a new epoch."""

        async def work(connection: aiosqlite.Connection) -> Changed:
            lost = await self._own.unreadable_epochs(connection, sealer)
            return await self._own.begin_epoch(connection, sealer, lost, now_ms) if lost else Changed()

        changed = await self._database.transaction(work)
        self._sealer = sealer
        return changed

    async def add(self, packed: bytes, created_ms: int) -> Changed:
        """Give a packed report the next number, seal and store it.

        Raises ``OutboxFull``, ``DiskFull``, or ``Degraded`` while no collector is known to seal it to.
        """
        if (sealer := self._sealer) is None:
            raise Degraded(
                "no collector is known yet, so there is nobody to seal a report to",
                remedy="Wait for the fleet document, or add a [[collector]] to it and publish.",
            )

        async def work(connection: aiosqlite.Connection) -> Changed:
            ((used,),) = await rows(connection, "SELECT coalesce(sum(size_bytes), 0) FROM outbox_own")
            if used >= self._limits.own_bytes_max:
                raise OutboxFull(f"{used} bytes of reports wait for an acknowledgement")
            return Changed(added=(await self._own.append(connection, sealer, packed, created_ms),))

        return await self._database.transaction(work)

    async def keep(self, records: Sequence[Record], received_from: DeviceId, now_ms: int) -> tuple[list[Kept], Changed]:
        """Store records of other devices as far as the quotas allow; the answers stand beside ``records``.

        An own record that comes back and is not remembered starts a new epoch.
        """

        async def work(connection: aiosqlite.Connection) -> tuple[list[Kept], Changed]:
            changed = Changed(removed=await self._carried.drop_expired(connection, now_ms))
            answers = []
            for record in records:
                answer, more = await self._keep_one(connection, record, received_from, now_ms)
                answers.append(answer)
                changed = changed.then(more)
            return answers, changed

        return await self._database.transaction(work)

    async def read(self, hashes: Iterable[bytes]) -> dict[bytes, bytes]:
        """The encoded records with these hashes; those that are gone are left out."""
        wanted = list(hashes)

        async def work(connection: aiosqlite.Connection) -> dict[bytes, bytes]:
            found = {}
            for record in wanted:
                stored = await rows(connection, "SELECT data FROM outbox_own WHERE hash = ?", (record,)) or await rows(
                    connection, "SELECT data FROM outbox_carried WHERE hash = ?", (record,)
                )
                if stored:
                    found[record] = bytes(stored[0]["data"])
            return found

        return await self._database.read(work)

    async def acknowledge(self, ack: Ack, now_ms: int) -> Changed:
        """Fold in an acknowledgement whose signature was verified. Older ones, and ones seen before, change nothing."""

        async def work(connection: aiosqlite.Connection) -> Changed:
            removed: list[bytes] = []
            advanced: dict[DeviceId, None] = {}
            rolled_back: set[int] = set()
            for entry in ack.entries:
                device = DeviceId(entry.device)
                fits = await self._own.fits(connection, entry) if device == self._me else True
                if fits is False:
                    rolled_back.add(entry.epoch)
                if not fits or not await self._acks.is_news(connection, entry, ack.level):
                    continue
                advanced[device] = None
                await self._acks.remember(connection, ack, entry, now_ms)
                if device != self._me:
                    removed += await self._carried.drop(connection, entry)
                elif ack.level is Level.DURABLE:
                    removed += await self._own.drop(connection, entry)
            if advanced:
                await self._acks.trim(connection)
            changed = Changed(removed=tuple(removed), advanced=tuple(advanced))
            if not rolled_back or self._sealer is None:
                return changed
            return changed.then(await self._own.begin_epoch(connection, self._sealer, sorted(rolled_back), now_ms))

        return await self._database.transaction(work)

    async def acks_about(self, devices: Collection[DeviceId]) -> list[bytes]:
        """The signed acknowledgements held for these authors, newest first, no more than one message carries."""

        async def work(connection: aiosqlite.Connection) -> list[bytes]:
            return await self._acks.about(connection, devices)

        return await self._database.read(work)

    async def expire(self, now_ms: int) -> Changed:
        """Drop what was carried longer than its author wished."""

        async def work(connection: aiosqlite.Connection) -> Changed:
            return Changed(removed=await self._carried.drop_expired(connection, now_ms))

        return await self._database.transaction(work)

    async def let_go(self, authors: Collection[DeviceId]) -> Changed:
        """Drop what is carried for ``authors``: nobody takes it from them any more."""

        async def work(connection: aiosqlite.Connection) -> Changed:
            return Changed(removed=await self._carried.drop_authors(connection, authors))

        return await self._database.transaction(work)

    async def statistics(self) -> OutboxStatistics:
        async def work(connection: aiosqlite.Connection) -> OutboxStatistics:
            (own,) = await rows(
                connection, "SELECT count(*), coalesce(sum(size_bytes), 0), min(created_ms) FROM outbox_own"
            )
            (carried,) = await rows(connection, "SELECT count(*), coalesce(sum(size_bytes), 0) FROM outbox_carried")
            author = await rows(connection, "SELECT epoch, seq, acknowledged FROM outbox_author")
            epoch, seq, acknowledged = tuple(author[0]) if author else (0, 0, 0)
            return OutboxStatistics(own[0], own[1], own[2], carried[0], carried[1], acknowledged, epoch, seq)

        return await self._database.read(work)

    async def _keep_one(
        self, connection: aiosqlite.Connection, record: Record, received_from: DeviceId, now_ms: int
    ) -> tuple[Kept, Changed]:
        if await self._acks.covers(connection, record.key):
            return Kept.ACKNOWLEDGED, Changed()
        if record.device == self._me:
            if self._sealer is None or not await self._own.forgotten(connection, record, now_ms):
                return Kept.KNOWN, Changed()
            return Kept.KNOWN, await self._own.begin_epoch(connection, self._sealer, [record.key.epoch], now_ms)
        answer, parcel = await self._carried.keep(connection, record, received_from, now_ms)
        return answer, Changed(added=(parcel,)) if parcel is not None else Changed()
