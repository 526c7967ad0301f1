"""The outbox's tables, and how they are asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    import aiosqlite

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


async def rows(connection: aiosqlite.Connection, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
    """All rows of one statement."""
    return list(await connection.execute_fetchall(sql, tuple(values)))
