"""The archive: opened reports in SQLite, and the one way in. What is here is on disk before it is acknowledged.

Except for ``conflict``, ``sighting`` and received times, the rows follow from the set of reports alone, so that two collectors
that got the same reports in another order hold the same: the latest report is the one with the highest (epoch, seq), and what
depends on a report's predecessor (``usage``, ``change``) is worked out again for the successor when one arrives in between.

The records of an epoch are chained by hash (``previous``). A stream counts as contiguous only along a fitting chain, so that a
device which was restored from a backup never reads an acknowledgement of numbers that meant other reports.

Times are milliseconds since 1970. ``reported_ms`` is the earlier of the device's and the collector's clock: a clock that
runs ahead cannot keep a device fresh for ever.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import msgspec
import zstandard

from pcm_p2p.collector.changes import changes
from pcm_p2p.collector.usage import NOTHING, Counters, Sample, differences, was_downloaded
from pcm_p2p.compliance.finding import STATES
from pcm_p2p.compliance.report import BODY_SIZE_BYTES_MAX, ReportBody
from pcm_p2p.ids import DeviceId

if TYPE_CHECKING:
    import sqlite3

    import aiosqlite

T = TypeVar("T")

RETENTION_MS = 90 * 86_400_000  # choice: a quarter of timelines and bodies; counts and byte sums stay
SIGHTINGS_MAX = 200_000  # choice: twice the fleet size that DESIGN.md 10 names; bounds what a lying roster can add
STREAMS_MAX = 16
"""Choice: epochs of one device that are acknowledged, the newest. A device begins one when it lost its state. An acknowledgement
has room for so many of each author of a batch (``RecordsPut``, ``acknowledgement.ENTRIES_MAX``), whatever one of them does."""

Outcome = Literal["new", "known", "conflict"]


class Opened(msgspec.Struct, frozen=True):
    """A record whose signature, certificate and seal were checked. ``carrier`` is who handed it over ("" the device itself);
    ``hash`` and ``previous`` are its place in the chain."""

    device: DeviceId
    epoch: int
    seq: int
    hash: bytes
    previous: bytes
    carrier: str
    received_ms: int
    body: ReportBody


class Acknowledged(msgspec.Struct, frozen=True):
    """All reports of ``device`` in ``epoch`` up to ``seq`` are on disk here; ``head`` is the hash of that record."""

    device: DeviceId
    epoch: int
    seq: int
    head: bytes


class Seen(msgspec.Struct, frozen=True):
    """A device that somebody named, and the site it was said to be at."""

    device: DeviceId
    site: str


class Revocation(msgspec.Struct, frozen=True):
    """A device that is revoked, since when (milliseconds since 1970), and why."""

    device: DeviceId
    since_ms: int
    reason: str


class Database(Protocol):
    """What the archive needs of ``pcm_p2p.database.Database``."""

    async def transaction(self, work: Callable[[aiosqlite.Connection], Awaitable[T]]) -> T: ...


class Archive:
    """The only writer. Each method is one transaction: all of it is on disk when it returns, or none of it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, records: Sequence[Opened]) -> list[Outcome]:
        """Archive opened records; the answer says for each whether it was new here. Repeating is harmless."""

        async def work(connection: aiosqlite.Connection) -> list[Outcome]:
            outcomes = [await _take_one(connection, record) for record in records]
            if any(outcome != "known" for outcome in outcomes):
                await connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")
            return outcomes

        return await self._database.transaction(work)

    async def acknowledged(self, devices: Iterable[DeviceId]) -> list[Acknowledged]:
        """How far the streams of ``devices`` are on disk without a gap: the newest ``STREAMS_MAX`` epochs of each."""

        async def work(connection: aiosqlite.Connection) -> list[Acknowledged]:
            found = []
            for device in sorted(set(devices)):
                rows = await _rows(
                    connection,
                    "SELECT epoch, contiguous, head FROM stream WHERE device = ? AND contiguous > 0 "
                    "ORDER BY epoch DESC LIMIT ?",
                    (str(device), STREAMS_MAX),
                )
                found += [Acknowledged(device, *row) for row in reversed(rows)]
            return found

        return await self._database.transaction(work)

    async def seen(self, sightings: Iterable[Seen], *, by: DeviceId, now_ms: int) -> None:
        """Note devices that ``by`` says are in the fleet, so that one that never reports is drawn and not forgotten."""
        rows = [(str(seen.device), seen.site, now_ms, now_ms, str(by)) for seen in sightings]

        async def work(connection: aiosqlite.Connection) -> None:
            ((count,),) = await _rows(connection, "SELECT count(*) FROM sighting", ())
            ((known,),) = await _rows(
                connection,
                "SELECT count(*) FROM sighting WHERE device IN (SELECT value FROM json_each(?))",
                (msgspec.json.encode([row[0] for row in rows]).decode(),),
            )
            new = len({row[0] for row in rows}) - known
            if count + new > SIGHTINGS_MAX:
                return
            await connection.executemany(
                "INSERT INTO sighting VALUES (?,?,?,?,?) ON CONFLICT (device) DO UPDATE SET "
                "site = excluded.site, last_seen_ms = excluded.last_seen_ms, seen_by = excluded.seen_by",
                rows,
            )
            if new:
                await connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")

        if rows:
            await self._database.transaction(work)

    async def revoke(self, revoked: Iterable[Revocation]) -> None:
        """These devices are revoked, and no others. What was refused of those who stay on the list is counted on."""
        rows = [(str(one.device), one.since_ms, one.reason) for one in revoked]

        async def work(connection: aiosqlite.Connection) -> None:
            before = await _rows(connection, "SELECT device, since_ms, reason FROM revoked", ())
            if {tuple(row) for row in before} == set(rows):
                return
            await connection.execute(
                "DELETE FROM revoked WHERE device NOT IN (SELECT value FROM json_each(?))",
                (msgspec.json.encode([row[0] for row in rows]).decode(),),
            )
            await connection.executemany(
                "INSERT INTO revoked VALUES (?,?,?,0) ON CONFLICT (device) DO UPDATE SET "
                "since_ms = excluded.since_ms, reason = excluded.reason",
                rows,
            )
            await connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")

        await self._database.transaction(work)

    async def refused(self, counts: Mapping[DeviceId, int]) -> None:
        """So many reports more of these revoked devices were refused."""

        async def work(connection: aiosqlite.Connection) -> None:
            await connection.executemany(
                "UPDATE revoked SET refused = refused + ? WHERE device = ?",
                [(count, str(device)) for device, count in sorted(counts.items())],
            )
            await connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")

        if counts:
            await self._database.transaction(work)

    async def sweep(self, now_ms: int) -> int:
        """Drop bodies, timeline rows and idle usage rows older than the retention; the latest report of each device
        stays, and so does everything that is not contiguous yet. Returns the number of reports dropped."""
        older_ms = now_ms - RETENTION_MS

        async def work(connection: aiosqlite.Connection) -> int:
            cursor = await connection.execute(
                "DELETE FROM report WHERE created_ms < ? AND received_ms < ? AND seq < "
                "(SELECT contiguous FROM stream s WHERE s.device = report.device AND s.epoch = report.epoch) AND NOT EXISTS "
                "(SELECT 1 FROM device d WHERE d.device = report.device AND d.epoch = report.epoch AND d.seq = report.seq)",
                (older_ms, older_ms),
            )
            await connection.execute("DELETE FROM change WHERE at_ms < ?", (older_ms,))
            await connection.execute(
                "DELETE FROM usage WHERE at_ms < ? AND new_wan = 0 AND new_lan_in = 0 AND new_lan_out = 0", (older_ms,)
            )
            await connection.execute("DELETE FROM sighting WHERE last_seen_ms < ?", (older_ms,))
            return cursor.rowcount

        return await self._database.transaction(work)


async def _rows(connection: aiosqlite.Connection, sql: str, values: Sequence[object]) -> list[sqlite3.Row]:
    return list(await connection.execute_fetchall(sql, tuple(values)))


async def _take_one(connection: aiosqlite.Connection, record: Opened) -> Outcome:
    device, place = str(record.device), (str(record.device), record.epoch, record.seq)
    held = await _rows(connection, "SELECT hash FROM report WHERE device = ? AND epoch = ? AND seq = ?", place)
    if held:
        if bytes(held[0][0]) == record.hash:
            return "known"
        await connection.execute(
            "INSERT OR IGNORE INTO conflict VALUES (?,?,?,?,?,?)",
            (*place, record.hash, record.received_ms, record.carrier),
        )
        return "conflict"
    stream = await _rows(connection, "SELECT contiguous FROM stream WHERE device = ? AND epoch = ?", place[:2])
    if stream and record.seq <= stream[0][0]:
        return "known"  # archived once and swept since
    await connection.execute(
        "INSERT INTO report VALUES (?,?,?,?,?,?,?,?,?)",
        (
            *place,
            record.body.created_ms,
            record.received_ms,
            record.carrier,
            record.hash,
            record.previous,
            zstandard.ZstdCompressor(level=3).compress(msgspec.json.encode(record.body)),
        ),
    )
    await _advance(connection, device, record.epoch, record.seq)
    await _put_usage(connection, record)
    await _put_changes(connection, record)
    latest = await _rows(connection, "SELECT epoch, seq FROM device WHERE device = ?", (device,))
    if not latest or (record.epoch, record.seq) > tuple(latest[0]):
        await _put_latest(connection, record)
    return "new"


async def _advance(connection: aiosqlite.Connection, device: str, epoch: int, seq: int) -> None:
    stream = (device, epoch)
    await connection.execute(
        "INSERT INTO stream VALUES (?,?,0,?,?) ON CONFLICT DO UPDATE SET highest = max(highest, excluded.highest)",
        (*stream, bytes(32), seq),
    )
    ((contiguous, head),) = await _rows(
        connection, "SELECT contiguous, head FROM stream WHERE device = ? AND epoch = ?", stream
    )
    cursor = await connection.execute(
        "SELECT seq, hash, previous FROM report WHERE device = ? AND epoch = ? AND seq > ? ORDER BY seq",
        (*stream, contiguous),
    )
    async for number, record_hash, previous in cursor:
        if number != contiguous + 1 or previous != head:
            break
        contiguous, head = number, record_hash
    await connection.execute(
        "UPDATE stream SET contiguous = ?, head = ? WHERE device = ? AND epoch = ?", (contiguous, head, *stream)
    )


async def _put_latest(connection: aiosqlite.Connection, record: Opened) -> None:
    device, body = str(record.device), record.body
    count = dict.fromkeys(STATES, 0)
    for finding in body.findings:
        count[finding.state] += 1
    trust, platform = body.trust, body.platform
    row = (
        device, record.epoch, record.seq, body.site, body.hostname, body.agent_version,
        platform.os, platform.version, platform.arch,
        body.created_ms, record.received_ms, min(body.created_ms, record.received_ms), record.carrier,
        trust.state, trust.reason, trust.root, trust.timestamp, trust.snapshot, trust.targets,
        *count.values(),
    )  # fmt: skip
    await connection.execute(f"INSERT OR REPLACE INTO device VALUES ({','.join('?' * len(row))})", row)  # noqa: S608
    for table in ("device_policy", "finding", "release", "fork", "clone", "problem"):
        await connection.execute(f"DELETE FROM {table} WHERE device = ?", (device,))  # noqa: S608
    await connection.executemany(
        "INSERT OR REPLACE INTO device_policy VALUES (?,?,?,?)",
        [(device, policy.id, policy.version, policy.mode) for policy in body.policies],
    )
    await connection.executemany(
        "INSERT OR REPLACE INTO fork VALUES (?,?,?,?,?)",
        [(device, fork.role, fork.version, " ".join(fork.digests), fork.seen_ms) for fork in body.forks],
    )
    await connection.executemany(
        "INSERT INTO problem VALUES (?,?,?)", [(device, place, said) for place, said in enumerate(body.problems)]
    )
    await connection.executemany(
        "INSERT OR REPLACE INTO clone VALUES (?,?)", [(device, subject) for subject in body.clones]
    )
    await connection.executemany(
        "INSERT OR REPLACE INTO finding VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
        [
            (
                device, finding.policy, finding.check, finding.policy_version, finding.state, finding.severity,
                finding.title, finding.expected, finding.actual, finding.message,
                finding.decided, finding.decided_at_ms, finding.last_attempt_ms,
            )
            for finding in body.findings
        ],
    )  # fmt: skip
    await connection.executemany(
        "INSERT OR REPLACE INTO release VALUES (?,?,?,?,?,?,?,?,?,?)",
        [
            (
                device, release.name, release.version, release.state, release.since_ms, release.detail,
                release.size_bytes, release.needed_bytes, release.wan_in_bytes, release.lan_in_bytes,
            )
            for release in body.releases
        ],
    )  # fmt: skip


async def _put_usage(connection: aiosqlite.Connection, record: Opened) -> None:
    body = record.body
    at_ms = min(body.created_ms, record.received_ms)
    transfer = body.transfer
    told = {("", ""): (0, Counters(transfer.wan_in_bytes, transfer.lan_in_bytes, transfer.lan_out_bytes))}
    for release in body.releases:
        told[release.name, release.version] = (
            release.needed_bytes,
            Counters(release.wan_in_bytes, release.lan_in_bytes, 0),
        )
        if was_downloaded(release.state, release.wan_in_bytes + release.lan_in_bytes):
            await connection.execute(
                "INSERT INTO completion VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET epoch = excluded.epoch, "
                "seq = excluded.seq, at_ms = excluded.at_ms, site = excluded.site, size_bytes = excluded.size_bytes "
                "WHERE (excluded.epoch, excluded.seq) < (epoch, seq)",
                (
                    *(str(record.device), release.name, release.version, record.epoch, record.seq),
                    *(at_ms, body.site, release.size_bytes),
                ),
            )
    for (name, version), (needed_bytes, counters) in told.items():
        row = (str(record.device), name, version, record.epoch)
        where = "device = ? AND name = ? AND version = ? AND epoch = ?"
        before = await _rows(
            connection,
            f"SELECT wan, lan_in, lan_out FROM usage WHERE {where} AND seq < ? ORDER BY seq DESC LIMIT 1",  # noqa: S608
            (*row, record.seq),
        )
        after = await _rows(
            connection,
            f"SELECT seq, wan, lan_in, lan_out FROM usage WHERE {where} AND seq > ? ORDER BY seq LIMIT 1",  # noqa: S608
            (*row, record.seq),
        )
        await connection.execute(
            "INSERT INTO usage VALUES (?,?,?,?,?,?,?,?,?,?,?,0,0,0)",
            (*row, record.seq, at_ms, body.site, needed_bytes, counters.wan, counters.lan_in, counters.lan_out),
        )
        samples = [Sample(record.seq, counters), *(Sample(seq, Counters(*rest)) for seq, *rest in after)]
        await connection.executemany(
            f"UPDATE usage SET new_wan = ?, new_lan_in = ?, new_lan_out = ? WHERE {where} AND seq = ?",  # noqa: S608
            [
                (grown.counters.wan, grown.counters.lan_in, grown.counters.lan_out, *row, grown.seq)
                for grown in differences(samples, before=Counters(*before[0]) if before else NOTHING)
            ],
        )


async def _put_changes(connection: aiosqlite.Connection, record: Opened) -> None:
    device, place = str(record.device), (record.epoch, record.seq)
    before = await _rows(
        connection,
        "SELECT body FROM report WHERE device = ? AND (epoch, seq) < (?, ?) ORDER BY epoch DESC, seq DESC LIMIT 1",
        (device, *place),
    )
    after = await _rows(
        connection,
        "SELECT epoch, seq, body FROM report WHERE device = ? AND (epoch, seq) > (?, ?) ORDER BY epoch, seq LIMIT 1",
        (device, *place),
    )
    await _write_changes(connection, device, place, _body(before[0][0]) if before else None, record.body)
    if after:
        epoch, seq, body = after[0]
        await _write_changes(connection, device, (epoch, seq), record.body, _body(body))


async def _write_changes(
    connection: aiosqlite.Connection, device: str, place: tuple[int, int], before: ReportBody | None, after: ReportBody
) -> None:
    await connection.execute("DELETE FROM change WHERE device = ? AND epoch = ? AND seq = ?", (device, *place))
    await connection.executemany(
        "INSERT INTO change VALUES (?,?,?,?,?,?,?,?,?,?)",
        [
            (device, *place, ordinal, *msgspec.structs.astuple(change))
            for ordinal, change in enumerate(changes(before, after))
        ],
    )


def _body(compressed: bytes) -> ReportBody:
    """A body that this archive wrote itself."""
    data = zstandard.ZstdDecompressor().decompress(compressed, max_output_size=BODY_SIZE_BYTES_MAX)
    return msgspec.json.decode(data, type=ReportBody)
