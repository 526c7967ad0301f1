"""Outbox: what waits for a collector, in SQLite. Own records, records of others, and the acknowledgements that free them.

Every method is one transaction: after SIGKILL all of it happened or none. The rules:

- **Own records** are numbered and sealed in the transaction that stores them, so there is no number without a record. One is
  deleted when a durable acknowledgement names it *with its hash*. There is no other way out: when ``own_bytes_max`` is
  reached, ``add`` refuses and the next report gets its number once there is room.
- **A rolled-back state** (a restored backup, a cloned machine) shows in an acknowledgement above the own numbers or with
  another hash, or in an own record that comes back from a carrier and is not remembered. Then a new epoch begins, and what
  had not been acknowledged is sealed again in it. The same happens to records that no present collector can open. That is
  what the packed report is kept for beside its record.
- **Records of others** are dropped when a collector has received them or when their lifetime, counted from their arrival here,
  is over; nothing else makes room, so a flood cannot push out what was promised. What does not fit is refused, and the
  author or the previous carrier still has it.
- **Acknowledgements** only grow: per author, epoch and level the highest number is kept, with the signed bytes that prove it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeVar

from pcm_p2p.compliance.acknowledgement import Ack, AckEntry, Level, head_of
from pcm_p2p.compliance.record import FIRST, LIFETIME_S_MAX, Record, RecordKey, record_hash
from pcm_p2p.errors import Degraded, DiskFull
from pcm_p2p.ids import DeviceId

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Callable, Sequence

    import aiosqlite

T = TypeVar("T")

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE outbox_author (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        epoch INTEGER NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL, acknowledged INTEGER NOT NULL
    );
    CREATE TABLE outbox_own (
        epoch INTEGER NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL UNIQUE, created_ms INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL, key_ids BLOB NOT NULL, packed BLOB NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY (epoch, seq)
    );
    CREATE TABLE outbox_carried (
        hash BLOB PRIMARY KEY, device BLOB NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL, received_from BLOB NOT NULL, received_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
        data BLOB NOT NULL
    );
    CREATE INDEX outbox_carried_by_author ON outbox_carried (device, epoch, seq);
    CREATE INDEX outbox_carried_by_age ON outbox_carried (expires_ms);
    CREATE TABLE outbox_ack (
        device BLOB NOT NULL, epoch INTEGER NOT NULL, level INTEGER NOT NULL,
        seq INTEGER NOT NULL, head BLOB NOT NULL, taken_ms INTEGER NOT NULL, blob INTEGER NOT NULL,
        PRIMARY KEY (device, epoch, level)
    ) WITHOUT ROWID;
    CREATE INDEX outbox_ack_by_blob ON outbox_ack (blob);
    CREATE TABLE outbox_ack_blob (id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, data BLOB NOT NULL);
    """,
)

ACKS_AT_ONCE_MAX = 64
"""``AcksPut`` carries no more."""
ACKS_SIZE_BYTES_MAX = 256 << 10
"""Choice: one acknowledgement for each of 64 devices is below 16 KiB; a quarter of a control frame."""


class OutboxFull(DiskFull):
    """Own records reached their ceiling; nothing is lost, the next report waits for an acknowledgement."""

    remedy = (
        "Give the device, or a neighbour at its site, a route to a collector; then reports flow again by themselves."
    )


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """research/gossip-scale.md 1.6: 64 MiB, 20,000 records, 1 % per author."""

    own_bytes_max: int = 64 << 20
    carried_bytes_max: int = 64 << 20
    carried_records_max: int = 20_000
    author_bytes_max: int = (64 << 20) // 100
    author_records_max: int = 200
    ack_entries_max: int = 4_096


class Kept(Enum):
    """What became of a record that somebody handed over."""

    KEPT = "kept"
    KNOWN = "known"
    ACKNOWLEDGED = "acknowledged"
    FULL = "full"

    @property
    def taken(self) -> bool:
        """Whether whoever handed it over may count it as safe here (or beyond)."""
        return self is not Kept.FULL


@dataclass(frozen=True, slots=True)
class Parcel:
    """A stored record as the courier sees it. ``received_from`` is None for own ones."""

    hash: bytes
    key: RecordKey
    size_bytes: int
    received_from: DeviceId | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """What a transaction did to the stored records. ``advanced``: authors of whom more is acknowledged than before."""

    added: tuple[Parcel, ...] = ()
    removed: tuple[bytes, ...] = ()
    advanced: tuple[DeviceId, ...] = ()
    new_epoch: int | None = None


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


class Sealer(Protocol):
    """What makes a record of a packed report (``record.RecordSealer``)."""

    @property
    def key_ids(self) -> frozenset[bytes]: ...

    def seal(self, packed: bytes, key: RecordKey, previous: bytes, created_ms: int) -> bytes: ...


class Outbox:
    """The only writer of the tables above. Times are milliseconds since 1970 by the device's clock."""

    def __init__(self, database: Database, me: DeviceId, limits: OutboxLimits | None = None) -> None:
        self._database = database
        self._me = me
        self._limits = limits or OutboxLimits()
        self._sealer: Sealer | None = None

    async def load(self) -> list[Parcel]:
        """Everything that waits, own records first, each group oldest first: for the courier at start."""

        async def work(connection: aiosqlite.Connection) -> list[Parcel]:
            own = await _rows(connection, "SELECT hash, epoch, seq, size_bytes FROM outbox_own ORDER BY epoch, seq")
            carried = await _rows(
                connection,
                "SELECT hash, device, epoch, seq, size_bytes, received_from FROM outbox_carried ORDER BY received_ms, seq",
            )
            return [self._parcel(row) for row in own] + [
                Parcel(
                    bytes(row["hash"]),
                    RecordKey(DeviceId(row["device"]), row["epoch"], row["seq"]),
                    row["size_bytes"],
                    DeviceId(row["received_from"]),
                )
                for row in carried
            ]

        return await self._database.read(work)

    async def seal_with(self, sealer: Sealer, now_ms: int) -> Changed:
        """Use ``sealer`` from now on. Waiting records that none of its collectors can open are sealed again, in a new epoch."""

        async def work(connection: aiosqlite.Connection) -> Changed:
            rows = await _rows(connection, "SELECT DISTINCT epoch, key_ids FROM outbox_own ORDER BY epoch")
            lost = sorted({row["epoch"] for row in rows if not _ids(row["key_ids"]) & sealer.key_ids})
            return await self._begin_epoch(connection, sealer, lost, now_ms) if lost else Changed()

        changed = await self._database.transaction(work)
        self._sealer = sealer
        return changed

    async def add(self, packed: bytes, created_ms: int) -> Changed:
        """Give a packed report the next number, seal and store it. Raises ``OutboxFull``, ``DiskFull``, or ``Degraded`` while no
        collector is known to seal it to."""
        sealer = self._sealer_needed()

        async def work(connection: aiosqlite.Connection) -> Changed:
            ((used,),) = await _rows(connection, "SELECT coalesce(sum(size_bytes), 0) FROM outbox_own")
            if used >= self._limits.own_bytes_max:
                raise OutboxFull(f"{used} bytes of reports wait for an acknowledgement")
            await self._author(connection, created_ms)
            return Changed(added=(await self._append(connection, sealer, packed, created_ms),))

        return await self._database.transaction(work)

    async def keep(self, records: Sequence[Record], received_from: DeviceId, now_ms: int) -> tuple[list[Kept], Changed]:
        """Store records of other devices as far as the quotas allow; the answers stand beside ``records``.

        An own record that comes back and is not remembered starts a new epoch.
        """

        async def work(connection: aiosqlite.Connection) -> tuple[list[Kept], Changed]:
            changed = Changed(removed=await self._drop_expired(connection, now_ms))
            answers = []
            for record in records:
                answer, more = await self._keep_one(connection, record, received_from, now_ms)
                answers.append(answer)
                changed = _both(changed, more)
            return answers, changed

        return await self._database.transaction(work)

    async def read(self, hashes: Iterable[bytes]) -> dict[bytes, bytes]:
        """The encoded records with these hashes; those that are gone are left out."""
        wanted = list(hashes)

        async def work(connection: aiosqlite.Connection) -> dict[bytes, bytes]:
            found = {}
            for record in wanted:
                rows = await _rows(connection, "SELECT data FROM outbox_own WHERE hash = ?", (record,)) or await _rows(
                    connection, "SELECT data FROM outbox_carried WHERE hash = ?", (record,)
                )
                if rows:
                    found[record] = bytes(rows[0]["data"])
            return found

        return await self._database.read(work)

    async def acknowledge(self, ack: Ack, now_ms: int) -> Changed:
        """Fold in an acknowledgement whose signature was verified. Older ones, and ones seen before, change nothing."""

        async def work(connection: aiosqlite.Connection) -> Changed:
            removed: list[bytes] = []
            advanced: list[DeviceId] = []
            rolled_back: list[int] = []
            blob: int | None = None
            for entry in ack.entries:
                device = DeviceId(entry.device)
                if device == self._me:
                    fits = await self._fits(connection, entry)
                    if fits is False:
                        rolled_back.append(entry.epoch)
                    if fits is not True:
                        continue
                if not await _is_news(connection, entry, ack.level):
                    continue
                advanced.append(device)
                blob = await _blob(connection, ack) if blob is None else blob
                await connection.execute(
                    "INSERT OR REPLACE INTO outbox_ack VALUES (?,?,?,?,?,?,?)",
                    (entry.device, entry.epoch, int(ack.level), entry.seq, entry.head, now_ms, blob),
                )
                if device != self._me:
                    removed += await self._drop_carried(connection, entry)
                elif ack.level is Level.DURABLE:
                    removed += await self._drop_own(connection, entry)
            if blob is not None:
                await self._trim_acks(connection)
            changed = Changed(removed=tuple(removed), advanced=tuple(dict.fromkeys(advanced)))
            if not rolled_back or self._sealer is None:
                return changed
            return _both(changed, await self._begin_epoch(connection, self._sealer, sorted(set(rolled_back)), now_ms))

        return await self._database.transaction(work)

    async def acks_about(self, devices: Collection[DeviceId]) -> list[bytes]:
        """The signed acknowledgements held for these authors, newest first, within both limits above."""

        async def work(connection: aiosqlite.Connection) -> list[bytes]:
            found: dict[int, bytes] = {}
            for device in sorted(set(devices)):
                for row in await _rows(
                    connection,
                    "SELECT b.id, b.data FROM outbox_ack a JOIN outbox_ack_blob b ON b.id = a.blob WHERE a.device = ?",
                    (device,),
                ):
                    found[row["id"]] = bytes(row["data"])
            chosen: list[bytes] = []
            for key in sorted(found, reverse=True)[:ACKS_AT_ONCE_MAX]:
                if sum(map(len, chosen)) + len(found[key]) <= ACKS_SIZE_BYTES_MAX:
                    chosen.append(found[key])
            return chosen

        return await self._database.read(work)

    async def expire(self, now_ms: int) -> Changed:
        """Drop what was carried longer than its author wished."""

        async def work(connection: aiosqlite.Connection) -> Changed:
            return Changed(removed=await self._drop_expired(connection, now_ms))

        return await self._database.transaction(work)

    async def statistics(self) -> OutboxStatistics:
        async def work(connection: aiosqlite.Connection) -> OutboxStatistics:
            (own,) = await _rows(
                connection, "SELECT count(*), coalesce(sum(size_bytes), 0), min(created_ms) FROM outbox_own"
            )
            (carried,) = await _rows(connection, "SELECT count(*), coalesce(sum(size_bytes), 0) FROM outbox_carried")
            author = await _rows(connection, "SELECT epoch, seq, acknowledged FROM outbox_author")
            epoch, seq, acknowledged = tuple(author[0]) if author else (0, 0, 0)
            return OutboxStatistics(own[0], own[1], own[2], carried[0], carried[1], acknowledged, epoch, seq)

        return await self._database.read(work)

    def _sealer_needed(self) -> Sealer:
        if self._sealer is None:
            raise Degraded(
                "no collector is known yet, so there is nobody to seal a report to",
                remedy="Wait for the fleet document, or add a [[collector]] to it and publish.",
            )
        return self._sealer

    def _parcel(self, row: sqlite3.Row) -> Parcel:
        return Parcel(bytes(row["hash"]), RecordKey(self._me, row["epoch"], row["seq"]), row["size_bytes"])

    async def _author(self, connection: aiosqlite.Connection, now_ms: int) -> sqlite3.Row:
        """Where the numbering stands; begins the first epoch of this state folder."""
        await connection.execute(
            "INSERT OR IGNORE INTO outbox_author VALUES (1, ?, 0, ?, 0)", (_epoch_at(now_ms, 0), FIRST)
        )
        (author,) = await _rows(connection, "SELECT epoch, seq, hash FROM outbox_author")
        return author

    async def _append(self, connection: aiosqlite.Connection, sealer: Sealer, packed: bytes, created_ms: int) -> Parcel:
        author = await self._author(connection, created_ms)
        key = RecordKey(self._me, author["epoch"], author["seq"] + 1)
        data = sealer.seal(packed, key, bytes(author["hash"]), created_ms)
        parcel = Parcel(record_hash(data), key, len(data))
        await connection.execute(
            "INSERT INTO outbox_own VALUES (?,?,?,?,?,?,?,?)",
            (key.epoch, key.seq, parcel.hash, created_ms, len(data), b"".join(sorted(sealer.key_ids)), packed, data),
        )
        await connection.execute("UPDATE outbox_author SET seq = ?, hash = ?", (key.seq, parcel.hash))
        return parcel

    async def _begin_epoch(
        self, connection: aiosqlite.Connection, sealer: Sealer, given_up: Sequence[int], now_ms: int
    ) -> Changed:
        """Number anew, and seal again what waits in the epochs that were given up."""
        await self._author(connection, now_ms)
        ((newest,),) = await _rows(
            connection,
            "SELECT max(epoch) FROM (SELECT epoch FROM outbox_author UNION SELECT epoch FROM outbox_own "
            "UNION SELECT epoch FROM outbox_ack WHERE device = ?)",
            (self._me,),
        )
        epoch = _epoch_at(now_ms, max(newest, *given_up) + 1)
        await connection.execute("UPDATE outbox_author SET epoch = ?, seq = 0, hash = ?", (epoch, FIRST))
        removed, added = [], []
        for old in given_up:
            rows = await _rows(
                connection, "SELECT hash, created_ms, packed FROM outbox_own WHERE epoch = ? ORDER BY seq", (old,)
            )
            await connection.execute("DELETE FROM outbox_own WHERE epoch = ?", (old,))
            for row in rows:
                removed.append(bytes(row["hash"]))
                added.append(await self._append(connection, sealer, row["packed"], row["created_ms"]))
        return Changed(added=tuple(added), removed=tuple(removed), new_epoch=epoch)

    async def _keep_one(
        self, connection: aiosqlite.Connection, record: Record, received_from: DeviceId, now_ms: int
    ) -> tuple[Kept, Changed]:
        if await _rows(
            connection,
            "SELECT 1 FROM outbox_ack WHERE device = ? AND epoch = ? AND seq >= ?",
            record.key,
        ):
            return Kept.ACKNOWLEDGED, Changed()
        if record.device == self._me:
            return Kept.KNOWN, await self._own_came_back(connection, record, now_ms)
        if await _rows(connection, "SELECT 1 FROM outbox_carried WHERE hash = ?", (record.hash,)):
            return Kept.KNOWN, Changed()
        if not await self._has_room(connection, record):
            return Kept.FULL, Changed()
        lifetime_ms = min(record.lifetime_s, LIFETIME_S_MAX) * 1_000
        await connection.execute(
            "INSERT INTO outbox_carried VALUES (?,?,?,?,?,?,?,?,?)",
            (record.hash, *record.key, len(record.data), received_from, now_ms, now_ms + lifetime_ms, record.data),
        )
        return Kept.KEPT, Changed(added=(Parcel(record.hash, record.key, len(record.data), received_from),))

    async def _own_came_back(self, connection: aiosqlite.Connection, record: Record, now_ms: int) -> Changed:
        author = await self._author(connection, now_ms)
        rows = await _rows(
            connection, "SELECT hash FROM outbox_own WHERE epoch = ? AND seq = ?", (record.key.epoch, record.key.seq)
        )
        other = bool(rows) and bytes(rows[0]["hash"]) != record.hash
        ahead = record.key.epoch == author["epoch"] and record.key.seq > author["seq"]
        if self._sealer is None or not (other or ahead):
            return Changed()
        return await self._begin_epoch(connection, self._sealer, [record.key.epoch], now_ms)

    async def _fits(self, connection: aiosqlite.Connection, entry: AckEntry) -> bool | None:
        """Whether the collector's history of this epoch is mine (False: my state was rolled back; None: nothing of mine)."""
        author = await _rows(connection, "SELECT epoch, seq, hash FROM outbox_author")
        if not author:
            return None
        epoch, seq, last = tuple(author[0])
        waiting = await _rows(
            connection, "SELECT hash FROM outbox_own WHERE epoch = ? AND seq = ?", (entry.epoch, entry.seq)
        )
        if waiting:
            return head_of(bytes(waiting[0]["hash"])) == entry.head
        if entry.epoch == epoch:
            # Below my numbers without a record: acknowledged and deleted before, so an old acknowledgement.
            return None if entry.seq < seq else entry.seq == seq and head_of(bytes(last)) == entry.head
        ((newest,),) = await _rows(connection, "SELECT max(seq) FROM outbox_own WHERE epoch = ?", (entry.epoch,))
        return False if newest is not None and newest < entry.seq else None

    async def _has_room(self, connection: aiosqlite.Connection, record: Record) -> bool:
        counted = "SELECT count(*), coalesce(sum(size_bytes), 0) FROM outbox_carried"
        ((records, size_bytes),) = await _rows(connection, counted)
        ((of_author, bytes_of_author),) = await _rows(connection, f"{counted} WHERE device = ?", (record.device,))
        size, limits = len(record.data), self._limits
        return bool(
            records < limits.carried_records_max
            and size_bytes + size <= limits.carried_bytes_max
            and of_author < limits.author_records_max
            and bytes_of_author + size <= limits.author_bytes_max
        )

    async def _drop_expired(self, connection: aiosqlite.Connection, now_ms: int) -> tuple[bytes, ...]:
        rows = await _rows(connection, "DELETE FROM outbox_carried WHERE expires_ms <= ? RETURNING hash", (now_ms,))
        return tuple(bytes(row["hash"]) for row in rows)

    async def _drop_carried(self, connection: aiosqlite.Connection, entry: AckEntry) -> list[bytes]:
        rows = await _rows(
            connection,
            "DELETE FROM outbox_carried WHERE device = ? AND epoch = ? AND seq <= ? RETURNING hash",
            (entry.device, entry.epoch, entry.seq),
        )
        return [bytes(row["hash"]) for row in rows]

    async def _drop_own(self, connection: aiosqlite.Connection, entry: AckEntry) -> list[bytes]:
        rows = await _rows(
            connection, "DELETE FROM outbox_own WHERE epoch = ? AND seq <= ? RETURNING hash", (entry.epoch, entry.seq)
        )
        await connection.execute("UPDATE outbox_author SET acknowledged = acknowledged + ?", (len(rows),))
        return [bytes(row["hash"]) for row in rows]

    async def _trim_acks(self, connection: aiosqlite.Connection) -> None:
        await connection.execute(
            "DELETE FROM outbox_ack WHERE (device, epoch, level) IN (SELECT device, epoch, level FROM outbox_ack "
            "ORDER BY taken_ms DESC, device, epoch, level LIMIT -1 OFFSET ?)",
            (self._limits.ack_entries_max,),
        )
        await connection.execute("DELETE FROM outbox_ack_blob WHERE id NOT IN (SELECT blob FROM outbox_ack)")


async def _rows(connection: aiosqlite.Connection, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
    return list(await connection.execute_fetchall(sql, tuple(values)))


async def _is_news(connection: aiosqlite.Connection, entry: AckEntry, level: Level) -> bool:
    rows = await _rows(
        connection,
        "SELECT seq FROM outbox_ack WHERE device = ? AND epoch = ? AND level = ?",
        (entry.device, entry.epoch, int(level)),
    )
    return not rows or bool(rows[0]["seq"] < entry.seq)


async def _blob(connection: aiosqlite.Connection, ack: Ack) -> int:
    await connection.execute("INSERT OR IGNORE INTO outbox_ack_blob (hash, data) VALUES (?, ?)", (ack.hash, ack.data))
    ((number,),) = await _rows(connection, "SELECT id FROM outbox_ack_blob WHERE hash = ?", (ack.hash,))
    return int(number)


def _epoch_at(now_ms: int, at_least: int) -> int:
    return min(max(now_ms // 1_000, at_least, 1), (1 << 32) - 1)


def _ids(joined: bytes) -> frozenset[bytes]:
    return frozenset(joined[at : at + 8] for at in range(0, len(joined), 8))


def _both(first: Changed, second: Changed) -> Changed:
    return Changed(
        added=first.added + second.added,
        removed=first.removed + second.removed,
        advanced=first.advanced + second.advanced,
        new_epoch=second.new_epoch or first.new_epoch,
    )
