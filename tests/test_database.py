"""The database: transactions with known outcomes, migrations in any order of growth, damage that stops nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiosqlite
import pytest
import trio

from pcm_p2p.database import Database, open_database, open_database_read_only
from pcm_p2p.errors import DiskFull, StorageError
from pcm_p2p.sidecar import Sidecar, open_sidecar

ITEMS = "CREATE TABLE item (name TEXT PRIMARY KEY, size INTEGER NOT NULL)"
INDEX = "CREATE INDEX item_size ON item (size)"
OTHER = "CREATE TABLE other (id INTEGER PRIMARY KEY); INSERT INTO other VALUES (1); INSERT INTO other VALUES (2)"


@pytest.fixture
async def sidecar() -> AsyncIterator[Sidecar]:
    async with open_sidecar() as running:
        yield running


async def insert(connection: aiosqlite.Connection) -> None:
    await connection.execute("INSERT INTO item VALUES ('a', 1)")


async def names(connection: aiosqlite.Connection) -> list[str]:
    return [row["name"] for row in await connection.execute_fetchall("SELECT name FROM item ORDER BY name")]


async def test_a_transaction_is_seen_by_readers_and_after_reopening(sidecar: Sidecar, tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    async with open_database(sidecar, path, [ITEMS]) as database:
        await database.transaction(insert)
        assert await database.read(names) == ["a"]
    async with open_database(sidecar, path, [ITEMS]) as database:
        assert await database.read(names) == ["a"]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_an_exception_rolls_everything_back_and_leaves_the_connection_usable(
    sidecar: Sidecar, tmp_path: Path
) -> None:
    async def insert_and_fail(connection: aiosqlite.Connection) -> None:
        await insert(connection)
        raise LookupError("after the insert")

    async with open_database(sidecar, tmp_path / "d", [ITEMS]) as database:
        with pytest.raises(LookupError):
            await database.transaction(insert_and_fail)
        assert await database.read(names) == []
        await database.transaction(insert)
        with pytest.raises(sqlite3.IntegrityError):
            await database.transaction(insert)
        assert await database.read(names) == ["a"]


async def test_transactions_do_not_interleave(sidecar: Sidecar, tmp_path: Path) -> None:
    async def increment(connection: aiosqlite.Connection) -> None:
        [row] = list(await connection.execute_fetchall("SELECT size FROM item"))
        await connection.execute("UPDATE item SET size = ?", (row["size"] + 1,))

    async def size(connection: aiosqlite.Connection) -> int:
        [row] = list(await connection.execute_fetchall("SELECT size FROM item"))
        return int(row["size"])

    async with open_database(sidecar, tmp_path / "d", [ITEMS]) as database:
        await database.transaction(insert)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(database.transaction, increment)
        assert await database.read(size) == 21


async def test_a_reader_cannot_write(sidecar: Sidecar, tmp_path: Path) -> None:
    async with open_database(sidecar, tmp_path / "d", [ITEMS]) as database:
        with pytest.raises(StorageError, match="readonly"):
            await database.read(insert)


async def test_another_reader_sees_what_was_committed_before(sidecar: Sidecar, tmp_path: Path) -> None:
    path = tmp_path / "d"
    async with open_database(sidecar, path, [ITEMS]) as database, open_database_read_only(sidecar, path) as reader:
        await database.transaction(insert)
        assert await reader.read(names) == ["a"]
    with pytest.raises(StorageError):
        async with open_database_read_only(sidecar, tmp_path / "absent"):
            pass


@pytest.mark.parametrize("grown", [[ITEMS, INDEX, OTHER], [ITEMS, OTHER, INDEX], [OTHER, ITEMS, INDEX]])
async def test_migrations_may_grow_anywhere_in_the_list(sidecar: Sidecar, tmp_path: Path, grown: list[str]) -> None:
    async with open_database(sidecar, tmp_path / "d", [ITEMS]) as database:
        await database.transaction(insert)
    for _ in range(2):
        async with open_database(sidecar, tmp_path / "d", grown) as database:
            assert await database.read(names) == ["a"]
            others = await database.read(lambda connection: connection.execute_fetchall("SELECT id FROM other"))
            assert len(list(others)) == 2


async def test_a_migration_that_fails_halfway_leaves_nothing_of_itself(sidecar: Sidecar, tmp_path: Path) -> None:
    path = tmp_path / "d"
    with pytest.raises(sqlite3.OperationalError):
        async with open_database(sidecar, path, [ITEMS, "CREATE TABLE half (a); CREATE TABLE broken ("]):
            pass
    async with open_database(sidecar, path, [ITEMS, "CREATE TABLE half (a)"]) as database:
        await database.transaction(insert)


async def test_a_file_of_a_newer_version_is_refused_and_kept(sidecar: Sidecar, tmp_path: Path) -> None:
    async with open_database(sidecar, tmp_path / "d", [ITEMS, INDEX]):
        pass
    with pytest.raises(StorageError, match="newer version"):
        async with open_database(sidecar, tmp_path / "d", [ITEMS]):
            pass
    assert not (tmp_path / "d.damaged-1").exists()


def damage_header(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 500)


def damage_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 + 8 : 4096 + 200] = bytes(range(192))
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("damage", [damage_header, damage_page, truncate])
async def test_a_damaged_file_is_moved_aside_and_a_new_one_started(
    sidecar: Sidecar, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "d"
    async with open_database(sidecar, path, [ITEMS]) as database:
        await database.transaction(insert)
    damage(path)
    for _ in range(2):
        async with open_database(sidecar, path, [ITEMS]) as database:
            assert await database.read(names) == []
    assert (tmp_path / "d.damaged-1").exists()
    assert not (tmp_path / "d.damaged-2").exists()


async def test_damage_seen_in_use_is_found_at_the_next_start_even_in_a_large_file(
    sidecar: Sidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcm_p2p.database.CHECKED_SIZE_BYTES_MAX", 0)
    path = tmp_path / "d"

    async def fill(connection: aiosqlite.Connection) -> None:
        await connection.executemany("INSERT INTO item VALUES (?, 1)", [(f"{n:05}" * 50,) for n in range(500)])

    async with open_database(sidecar, path, [ITEMS]) as database:
        await database.transaction(fill)
    data = bytearray(path.read_bytes())
    for page in range(3, len(data) // 4096):  # all but the pages that opening reads
        data[page * 4096 : page * 4096 + 2000] = bytes(2000)
    path.write_bytes(data)
    async with open_database(sidecar, path, [ITEMS]) as database:
        with pytest.raises(StorageError, match="damaged"):
            await database.read(names)
    async with open_database(sidecar, path, [ITEMS]) as database:
        assert await database.read(names) == []
    assert (tmp_path / "d.damaged-1").exists()


async def test_a_full_disk_is_disk_full_and_nothing_is_half_done(sidecar: Sidecar, tmp_path: Path) -> None:
    async def bounded(connection: aiosqlite.Connection) -> None:
        await connection.execute("INSERT INTO item VALUES (?, 1)", ("x" * 100_000,))

    async with open_database(sidecar, tmp_path / "d", [ITEMS]) as database:
        await database.transaction(insert)
        await sidecar.run(_limit_pages, database, 8)
        with pytest.raises(DiskFull):
            await database.transaction(bounded)
        assert await database.read(names) == ["a"]


async def _limit_pages(database: Database, pages: int) -> None:
    await database._writer.execute(f"PRAGMA max_page_count={pages}")


async def test_a_folder_in_place_of_the_file_is_a_storage_error(sidecar: Sidecar, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(StorageError):
        async with open_database(sidecar, tmp_path / "d", [ITEMS]):
            pass


KILLED = """
import sys, trio
from pathlib import Path
from pcm_p2p.database import open_database
from pcm_p2p.sidecar import open_sidecar

async def main():
    async with open_sidecar() as sidecar, open_database(sidecar, Path(sys.argv[1]), [sys.argv[2]]) as database:
        number = 0
        while True:
            async def insert(connection):
                await connection.execute("INSERT INTO item VALUES (?, 1)", (f"{number:06}",))
                await connection.execute("INSERT INTO item VALUES (?, 2)", (f"{number:06}-twin",))
            await database.transaction(insert)
            print(number, flush=True)
            number += 1

trio.run(main)
"""


async def test_sigkill_loses_nothing_that_was_committed_and_keeps_no_half(sidecar: Sidecar, tmp_path: Path) -> None:
    path = tmp_path / "d"
    child = subprocess.Popen(  # noqa: ASYNC220 - read line by line until it has done enough, then killed
        [sys.executable, "-c", KILLED, str(path), ITEMS], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 20:
            break
    child.send_signal(signal.SIGKILL)
    acknowledged = [int(line), *map(int, child.stdout.read().split())]
    child.stdout.close()
    child.wait()
    async with open_database(sidecar, path, [ITEMS]) as database:
        found = await database.read(names)
    singles = {name for name in found if "twin" not in name}
    assert {f"{number:06}" for number in range(acknowledged[-1] + 1)} <= singles
    assert {f"{name}-twin" for name in singles} == set(found) - singles
