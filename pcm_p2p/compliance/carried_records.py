"""Carried records: those of others, within quotas, until a collector has them or their lifetime here is over.

Nothing else makes room: a flood cannot push out what was promised earlier, and what does not fit stays where it is. The functions
of a transaction take its connection; ``outbox`` opens and commits it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pcm_p2p.compliance.acknowledgement import AckEntry
from pcm_p2p.compliance.outbox_tables import rows
from pcm_p2p.compliance.parcel import Kept, Parcel
from pcm_p2p.compliance.record import LIFETIME_S_MAX, Record, RecordKey
from pcm_p2p.ids import DeviceId

if TYPE_CHECKING:
    import aiosqlite


@dataclass(frozen=True, slots=True)
class CarriedLimits:
    """research/gossip-scale.md 1.6: 64 MiB, 20,000 records, 1 % per author."""

    size_bytes_max: int = 64 << 20
    records_max: int = 20_000
    author_bytes_max: int = (64 << 20) // 100
    author_records_max: int = 200


class CarriedRecords:
    """What this device carries for others."""

    def __init__(self, limits: CarriedLimits) -> None:
        self._limits = limits

    async def parcels(self, connection: aiosqlite.Connection) -> list[Parcel]:
        """In the order of their arrival."""
        found = await rows(
            connection,
            "SELECT hash, device, epoch, seq, size_bytes, received_from FROM outbox_carried ORDER BY received_ms, seq",
        )
        return [
            Parcel(
                bytes(row["hash"]),
                RecordKey(DeviceId(row["device"]), row["epoch"], row["seq"]),
                row["size_bytes"],
                DeviceId(row["received_from"]),
            )
            for row in found
        ]

    async def keep(
        self, connection: aiosqlite.Connection, record: Record, received_from: DeviceId, now_ms: int
    ) -> tuple[Kept, Parcel | None]:
        """Store a record if it is new and fits; the parcel is the one added."""
        if await rows(connection, "SELECT 1 FROM outbox_carried WHERE hash = ?", (record.hash,)):
            return Kept.KNOWN, None
        if not await self._has_room(connection, record):
            return Kept.FULL, None
        size_bytes, lifetime_ms = len(record.data), min(record.lifetime_s, LIFETIME_S_MAX) * 1_000
        await connection.execute(
            "INSERT INTO outbox_carried VALUES (?,?,?,?,?,?,?,?,?)",
            (record.hash, *record.key, size_bytes, received_from, now_ms, now_ms + lifetime_ms, record.data),
        )
        return Kept.KEPT, Parcel(record.hash, record.key, size_bytes, received_from)

    async def drop_expired(self, connection: aiosqlite.Connection, now_ms: int) -> tuple[bytes, ...]:
        gone = await rows(connection, "DELETE FROM outbox_carried WHERE expires_ms <= ? RETURNING hash", (now_ms,))
        return tuple(bytes(row["hash"]) for row in gone)

    async def drop(self, connection: aiosqlite.Connection, entry: AckEntry) -> list[bytes]:
        """Delete what a collector has received."""
        gone = await rows(
            connection,
            "DELETE FROM outbox_carried WHERE device = ? AND epoch = ? AND seq <= ? RETURNING hash",
            (entry.device, entry.epoch, entry.seq),
        )
        return [bytes(row["hash"]) for row in gone]

    async def drop_authors(self, connection: aiosqlite.Connection, authors: Collection[DeviceId]) -> tuple[bytes, ...]:
        """Delete what certain devices wrote."""
        gone: list[bytes] = []
        for author in authors:
            found = await rows(connection, "DELETE FROM outbox_carried WHERE device = ? RETURNING hash", (author,))
            gone += [bytes(row["hash"]) for row in found]
        return tuple(gone)

    async def _has_room(self, connection: aiosqlite.Connection, record: Record) -> bool:
        counted = "SELECT count(*), coalesce(sum(size_bytes), 0) FROM outbox_carried"
        ((records, size_bytes),) = await rows(connection, counted)
        ((of_author, bytes_of_author),) = await rows(connection, f"{counted} WHERE device = ?", (record.device,))
        size, limits = len(record.data), self._limits
        return bool(
            records < limits.records_max
            and size_bytes + size <= limits.size_bytes_max
            and of_author < limits.author_records_max
            and bytes_of_author + size <= limits.author_bytes_max
        )
