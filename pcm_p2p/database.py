"""SQLite through the side-car: whole transactions, migrations, and a damaged file that never stops the daemon.

One connection writes, one reads; both belong to aiosqlite threads behind the asyncio side-car. A caller passes a coroutine
function that takes the connection; it runs to its end, between ``BEGIN IMMEDIATE`` and ``COMMIT``, and nobody else writes
meanwhile. If it raises, everything is rolled back and the error goes to the caller.

Settings: WAL, so that readers never wait for a writer; ``synchronous=FULL``, since journal and outbox rest on a commit being
durable (0.5–4 ms per commit, research/gossip-scale.md 6.4).

Migrations: a sequence of SQL scripts, each applied once, in order, in a transaction of its own. What was applied is
remembered by the script's SHA-256, not by its position: the rooms' scripts are concatenated, and one that is appended in
the middle must not shift the others. An applied script is therefore never edited; a change is a further script.

Damage: a file that is not a database, or fails its check, is moved aside as ``NAME.damaged-N`` and a new one is started; what it
held is re-established by the rooms (the outbox starts a new epoch, the journal parks). The check reads the whole file, so
it runs at each start only below ``CHECKED_SIZE_BYTES_MAX``, and above that after an error was seen in use.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
from asyncio import Lock
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import aiosqlite
import trio

from pcm_p2p.errors import DiskFull, StorageError
from pcm_p2p.sidecar import Sidecar

T = TypeVar("T")
Work = Callable[[aiosqlite.Connection], Awaitable[T]]

BUSY_TIMEOUT_MS = 5_000
"""Choice: another process (the console, an admin's shell) may hold the file this long before a call fails."""
CHECKED_SIZE_BYTES_MAX = 64 << 20
"""Choice: about half a second of ``quick_check``; a device's file stays far below, a collector's archive does not."""

_ITERATION_ROWS = 64
"""The library's own default: so many rows are fetched at once where a cursor is iterated."""

_log = logging.getLogger(__name__)


class DatabaseReader:
    """A database that can be asked. Rows are ``sqlite3.Row``: by name and by position."""

    def __init__(self, sidecar: Sidecar, path: Path, reader: aiosqlite.Connection) -> None:
        self._sidecar = sidecar
        self.path = path
        self._reader = reader
        self._reading = Lock()

    async def read(self, work: Work[T]) -> T:
        """Run ``work(connection)`` on one consistent snapshot and return its result. Nothing can be written.

        Raises ``StorageError`` if the file is damaged or locked beyond the busy time-out.
        """
        return await self._run(self._reader, self._reading, "BEGIN", "ROLLBACK", work)

    async def _run(self, connection: aiosqlite.Connection, lock: Lock, begin: str, end: str, work: Work[T]) -> T:
        try:
            return await self._sidecar.run(_perform, connection, lock, begin, end, work)
        except sqlite3.DatabaseError as error:
            translated = _translate(error, self.path)
            if translated is None:
                raise
            raise translated from error


class Database(DatabaseReader):
    """A database that this process owns and may change."""

    def __init__(
        self, sidecar: Sidecar, path: Path, reader: aiosqlite.Connection, writer: aiosqlite.Connection
    ) -> None:
        super().__init__(sidecar, path, reader)
        self._writer = writer
        self._writing = Lock()

    async def transaction(self, work: Work[T]) -> T:
        """Run ``work(connection)`` as one transaction, durable when this returns. Transactions run one after the other.

        The wait is not cut short by cancellation, so the outcome is always known. Raises what ``work`` raises (after
        rolling back), ``DiskFull``, or ``StorageError``; constraint violations stay ``sqlite3.IntegrityError``.
        """
        return await self._run(self._writer, self._writing, "BEGIN IMMEDIATE", "COMMIT", work)


async def _perform(connection: aiosqlite.Connection, lock: Lock, begin: str, end: str, work: Work[T]) -> T:
    async with lock:
        await connection.execute(begin)
        try:
            result = await work(connection)
            await connection.execute(end)
        except BaseException:
            # Some errors (a full disk) end the transaction inside SQLite; then there is nothing to roll back.
            with contextlib.suppress(sqlite3.OperationalError):
                await connection.execute("ROLLBACK")
            raise
    return result


@contextlib.asynccontextmanager
async def open_database(sidecar: Sidecar, path: Path, migrations: Sequence[str]) -> AsyncIterator[Database]:
    """Open ``path`` (made with mode 0600 if absent), bring it up to ``migrations``, and close it at the end.

    A damaged file is moved aside and a new one started. Raises ``StorageError`` if the file was written by a newer version of
    the program, or cannot be written at all.
    """
    try:
        await sidecar.run(_prepare, path, tuple(migrations))
    except sqlite3.DatabaseError as error:
        translated = _translate(error, path)
        if translated is None:
            raise  # a migration that does not fit: ours to repair, nobody else's
        raise translated from error
    except OSError as error:
        raise StorageError(
            f"{path}: {error}", remedy="Check that the state folder exists and is writable for this user."
        ) from error
    writer = await sidecar.run(_connect, path, False)
    try:
        reader = await sidecar.run(_connect, path, True)
        try:
            yield Database(sidecar, path, reader, writer)
        finally:
            await _close(sidecar, reader)
    finally:
        await _close(sidecar, writer)


@contextlib.asynccontextmanager
async def open_database_read_only(sidecar: Sidecar, path: Path) -> AsyncIterator[DatabaseReader]:
    """Open a database that another process owns, to ask it. Raises ``StorageError`` if it is absent or damaged."""
    try:
        reader = await sidecar.run(_connect, path, True)
    except sqlite3.DatabaseError as error:
        raise _translate(error, path) or StorageError(f"{path}: {error}") from error
    try:
        yield DatabaseReader(sidecar, path, reader)
    finally:
        await _close(sidecar, reader)


async def _close(sidecar: Sidecar, connection: aiosqlite.Connection) -> None:
    # An unclosed aiosqlite connection keeps the interpreter from exiting, so this is not left to a cancelled task.
    with trio.CancelScope(shield=True):
        await sidecar.run(connection.close)


async def _connect(path: Path, read_only: bool) -> aiosqlite.Connection:
    address, failed = _address(path, read_only), list[sqlite3.Error]()

    def connector() -> sqlite3.Connection:
        try:
            return sqlite3.connect(address, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1_000)
        except sqlite3.Error as error:
            # A connector that raises leaves its thread to itself, which then answers to a loop that may be closed by then.
            failed.append(error)
            return sqlite3.connect(":memory:")

    connection = await aiosqlite.Connection(connector, _ITERATION_ROWS)
    try:
        if failed:
            raise failed[0]
        connection.row_factory = sqlite3.Row
        if not read_only:
            await connection.execute("PRAGMA journal_mode=WAL")
        await connection.execute("PRAGMA synchronous=FULL")
        await connection.execute("PRAGMA foreign_keys=ON")
    except BaseException:
        await connection.close()
        raise
    return connection


async def _prepare(path: Path, migrations: tuple[str, ...]) -> None:
    _make_private(path)
    try:
        await _migrate(path, migrations)
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
        aside = _move_aside(path)
        _log.error("%s is damaged (%s): moved to %s and started anew", path, error, aside.name)
        _make_private(path)
        await _migrate(path, migrations)


async def _migrate(path: Path, migrations: tuple[str, ...]) -> None:
    connection = await _connect(path, read_only=False)
    try:
        if _must_be_checked(path):
            found = await (await connection.execute("PRAGMA quick_check(1)")).fetchone()
            if found is None or found[0] != "ok":
                raise _Damaged(str(found[0]) if found else "no answer to quick_check")
        _suspect_mark(path).unlink(missing_ok=True)
        await connection.execute("CREATE TABLE IF NOT EXISTS migration (sha256 TEXT PRIMARY KEY) WITHOUT ROWID")
        rows = await connection.execute_fetchall("SELECT sha256 FROM migration")
        applied = {str(row[0]) for row in rows}
        digests = [hashlib.sha256(script.encode()).hexdigest() for script in migrations]
        if not applied <= set(digests):
            raise StorageError(
                f"{path} was written by a newer version of this program",
                remedy="Install that version again, or move the file away and start with an empty one.",
            )
        for digest, script in zip(digests, migrations, strict=True):
            if digest not in applied:
                await _apply(connection, digest, script)
    finally:
        await connection.close()


async def _apply(connection: aiosqlite.Connection, digest: str, script: str) -> None:
    try:
        # executescript commits before it starts, hence the BEGIN inside; it leaves the transaction open for the mark.
        await connection.executescript(f"BEGIN IMMEDIATE;\n{script}")
        await connection.execute("INSERT INTO migration (sha256) VALUES (?)", (digest,))
        await connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.OperationalError):
            await connection.execute("ROLLBACK")
        raise


class _Damaged(sqlite3.DatabaseError):
    """``quick_check`` found something."""


def _is_damage(error: BaseException) -> bool:
    return isinstance(error, _Damaged) or getattr(error, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    )


def _translate(error: BaseException, path: Path) -> StorageError | None:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if _is_damage(error):
        with contextlib.suppress(OSError):
            _suspect_mark(path).touch()
        return StorageError(f"{path} is damaged: {error}", remedy="Restart the daemon: it moves the file aside.")
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"{path}: no room left on the disk")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return StorageError(f"{path}: {error}", remedy="Check the disk, and that no other program holds the file.")
    return None


def _address(path: Path, read_only: bool) -> str:
    return f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"


def _make_private(path: Path) -> None:
    path.touch(mode=0o600, exist_ok=True)


def _must_be_checked(path: Path) -> bool:
    return _suspect_mark(path).exists() or path.stat().st_size <= CHECKED_SIZE_BYTES_MAX


def _suspect_mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.suspect")


def _move_aside(path: Path) -> Path:
    """Rename the file and what belongs to it to the first free ``.damaged-N``; the old bytes are kept for a look."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):  # the file itself last: a crash in between leaves a file that is still damaged
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(path.with_name(aside.name + suffix))
    _suspect_mark(path).unlink(missing_ok=True)
    return aside
