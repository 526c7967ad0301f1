"""Own records: numbered, chained and sealed in the transaction that stores them; gone only by a durable acknowledgement.

Functions of one transaction each take its connection; ``outbox`` opens and commits it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pcm_p2p.compliance.acknowledgement import AckEntry, head_of
from pcm_p2p.compliance.outbox_tables import rows
from pcm_p2p.compliance.parcel import Changed, Parcel
from pcm_p2p.compliance.record import FIRST, Record, RecordKey, record_hash
from pcm_p2p.ids import DeviceId

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    import aiosqlite


class Sealer(Protocol):
    """What makes a record of a packed report (``record.RecordSealer``)."""

    @property
    def key_ids(self) -> frozenset[bytes]: ...

    def seal(self, packed: bytes, key: RecordKey, previous: bytes, created_ms: int) -> bytes: ...


class OwnRecords:
    """The numbering of this device and what waits under it."""

    def __init__(self, me: DeviceId) -> None:
        self._me = me

    async def parcels(self, connection: aiosqlite.Connection) -> list[Parcel]:
        """Oldest first."""
        found = await rows(connection, "SELECT hash, epoch, seq, size_bytes FROM outbox_own ORDER BY epoch, seq")
        return [
            Parcel(bytes(row["hash"]), RecordKey(self._me, row["epoch"], row["seq"]), row["size_bytes"])
            for row in found
        ]

    async def append(self, connection: aiosqlite.Connection, sealer: Sealer, packed: bytes, created_ms: int) -> Parcel:
        """Give a packed report the next number."""
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

    async def begin_epoch(
        self, connection: aiosqlite.Connection, sealer: Sealer, given_up: Sequence[int], now_ms: int
    ) -> Changed:
        """Number anew, and seal again what waits in the epochs that were given up."""
        await self._author(connection, now_ms)
        ((newest,),) = await rows(
            connection,
            "SELECT max(epoch) FROM (SELECT epoch FROM outbox_author UNION SELECT epoch FROM outbox_own "
            "UNION SELECT epoch FROM outbox_ack WHERE device = ?)",
            (self._me,),
        )
        epoch = _epoch_at(now_ms, max(newest, *given_up) + 1)
        await connection.execute("UPDATE outbox_author SET epoch = ?, seq = 0, hash = ?", (epoch, FIRST))
        removed, added = [], []
        for old in given_up:
            waiting = await rows(
                connection, "SELECT hash, created_ms, packed FROM outbox_own WHERE epoch = ? ORDER BY seq", (old,)
            )
            await connection.execute("DELETE FROM outbox_own WHERE epoch = ?", (old,))
            for row in waiting:
                removed.append(bytes(row["hash"]))
                added.append(await self.append(connection, sealer, row["packed"], row["created_ms"]))
        return Changed(added=tuple(added), removed=tuple(removed), new_epoch=epoch)

    async def unreadable_epochs(self, connection: aiosqlite.Connection, sealer: Sealer) -> list[int]:
        """Epochs in which something waits that no collector of ``sealer`` can open."""
        found = await rows(connection, "SELECT DISTINCT epoch, key_ids FROM outbox_own ORDER BY epoch")
        return sorted({row["epoch"] for row in found if not _ids(row["key_ids"]) & sealer.key_ids})

    async def forgotten(self, connection: aiosqlite.Connection, record: Record, now_ms: int) -> bool:
        """Whether an own record that came back from a carrier is not among those that this state remembers."""
        author = await self._author(connection, now_ms)
        waiting = await rows(
            connection, "SELECT hash FROM outbox_own WHERE epoch = ? AND seq = ?", (record.key.epoch, record.key.seq)
        )
        other = bool(waiting) and bytes(waiting[0]["hash"]) != record.hash
        return other or bool(record.key.epoch == author["epoch"] and record.key.seq > author["seq"])

    async def fits(self, connection: aiosqlite.Connection, entry: AckEntry) -> bool | None:
        """Whether the collector's history of this epoch is mine (False: my state was rolled back; None: nothing of mine)."""
        author = await rows(connection, "SELECT epoch, seq, hash FROM outbox_author")
        if not author:
            return None
        epoch, seq, last = tuple(author[0])
        waiting = await rows(
            connection, "SELECT hash FROM outbox_own WHERE epoch = ? AND seq = ?", (entry.epoch, entry.seq)
        )
        if waiting:
            return head_of(bytes(waiting[0]["hash"])) == entry.head
        if entry.epoch == epoch:
            # Below my numbers without a record: acknowledged and deleted before, so an old acknowledgement.
            return None if entry.seq < seq else entry.seq == seq and head_of(bytes(last)) == entry.head
        ((newest,),) = await rows(connection, "SELECT max(seq) FROM outbox_own WHERE epoch = ?", (entry.epoch,))
        return False if newest is not None and newest < entry.seq else None

    async def drop(self, connection: aiosqlite.Connection, entry: AckEntry) -> list[bytes]:
        """Delete what a durable acknowledgement covers."""
        gone = await rows(
            connection, "DELETE FROM outbox_own WHERE epoch = ? AND seq <= ? RETURNING hash", (entry.epoch, entry.seq)
        )
        await connection.execute("UPDATE outbox_author SET acknowledged = acknowledged + ?", (len(gone),))
        return [bytes(row["hash"]) for row in gone]

    async def _author(self, connection: aiosqlite.Connection, now_ms: int) -> sqlite3.Row:
        """Where the numbering stands; begins the first epoch of this state folder."""
        await connection.execute(
            "INSERT OR IGNORE INTO outbox_author VALUES (1, ?, 0, ?, 0)", (_epoch_at(now_ms, 0), FIRST)
        )
        (author,) = await rows(connection, "SELECT epoch, seq, hash FROM outbox_author")
        return author


def _epoch_at(now_ms: int, at_least: int) -> int:
    return min(max(now_ms // 1_000, at_least, 1), (1 << 32) - 1)


def _ids(joined: bytes) -> frozenset[bytes]:
    return frozenset(joined[at : at + 8] for at in range(0, len(joined), 8))
