"""Held acknowledgements: per author, epoch and level the highest number, with the signed bytes that prove it to others.

One signed acknowledgement often speaks about many authors, so its bytes are kept once, for as long as an entry needs them. The
functions of a transaction take its connection; ``outbox`` opens and commits it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pcm_p2p.compliance.acknowledgement import Ack, AckEntry, Level
from pcm_p2p.compliance.outbox_tables import rows
from pcm_p2p.compliance.record import RecordKey
from pcm_p2p.ids import DeviceId

if TYPE_CHECKING:
    from collections.abc import Collection

    import aiosqlite

AT_ONCE_MAX = 64
"""``AcksPut`` carries no more."""
AT_ONCE_SIZE_BYTES_MAX = 256 << 10
"""Choice: one acknowledgement for each of 64 devices is below 16 KiB; a quarter of a control frame."""


class HeldAcks:
    """What collectors signed, as far as this device heard of it. ``entries_max`` bounds what is remembered."""

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max

    async def covers(self, connection: aiosqlite.Connection, key: RecordKey) -> bool:
        """Whether a collector has the record with this number."""
        return bool(await rows(connection, "SELECT 1 FROM outbox_ack WHERE device = ? AND epoch = ? AND seq >= ?", key))

    async def is_news(self, connection: aiosqlite.Connection, entry: AckEntry, level: Level) -> bool:
        known = await rows(
            connection,
            "SELECT seq FROM outbox_ack WHERE device = ? AND epoch = ? AND level = ?",
            (entry.device, entry.epoch, int(level)),
        )
        return not known or bool(known[0]["seq"] < entry.seq)

    async def remember(self, connection: aiosqlite.Connection, ack: Ack, entry: AckEntry, now_ms: int) -> None:
        await connection.execute(
            "INSERT OR IGNORE INTO outbox_ack_blob (hash, data) VALUES (?, ?)", (ack.hash, ack.data)
        )
        ((blob,),) = await rows(connection, "SELECT id FROM outbox_ack_blob WHERE hash = ?", (ack.hash,))
        await connection.execute(
            "INSERT OR REPLACE INTO outbox_ack VALUES (?,?,?,?,?,?,?)",
            (entry.device, entry.epoch, int(ack.level), entry.seq, entry.head, now_ms, blob),
        )

    async def trim(self, connection: aiosqlite.Connection) -> None:
        """Forget the oldest entries beyond the bound, and bytes that no entry needs."""
        await connection.execute(
            "DELETE FROM outbox_ack WHERE (device, epoch, level) IN (SELECT device, epoch, level FROM outbox_ack "
            "ORDER BY taken_ms DESC, device, epoch, level LIMIT -1 OFFSET ?)",
            (self._entries_max,),
        )
        await connection.execute("DELETE FROM outbox_ack_blob WHERE id NOT IN (SELECT blob FROM outbox_ack)")

    async def about(self, connection: aiosqlite.Connection, devices: Collection[DeviceId]) -> list[bytes]:
        """The signed bytes held for these authors, newest first, within both limits above."""
        found: dict[int, bytes] = {}
        for device in sorted(set(devices)):
            for row in await rows(
                connection,
                "SELECT b.id, b.data FROM outbox_ack a JOIN outbox_ack_blob b ON b.id = a.blob WHERE a.device = ?",
                (device,),
            ):
                found[row["id"]] = bytes(row["data"])
        chosen: list[bytes] = []
        for key in sorted(found, reverse=True)[:AT_ONCE_MAX]:
            if sum(map(len, chosen)) + len(found[key]) <= AT_ONCE_SIZE_BYTES_MAX:
                chosen.append(found[key])
        return chosen
