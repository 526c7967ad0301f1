"""The archive: whatever arrives, in whatever order, however often, ends in the same rows; and what is acknowledged is there."""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from random import Random

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcm_p2p.collector.archive import RETENTION_MS, SIGHTINGS_MAX, STREAMS_MAX, Archive, Opened, Revocation, Seen
from pcm_p2p.collector.changes import changes
from pcm_p2p.collector.overview import overview
from pcm_p2p.collector.savings import savings
from pcm_p2p.collector.schema import MIGRATIONS
from pcm_p2p.collector.snapshot import open_snapshot
from pcm_p2p.collector.usage import Counters, Sample, differences
from pcm_p2p.compliance.acknowledgement import ENTRIES_MAX
from pcm_p2p.compliance.finding import Finding
from pcm_p2p.compliance.report import ForkSeen, ReleaseStatus, ReportBody, Transfer, Trust
from pcm_p2p.database import open_database
from pcm_p2p.ids import DeviceId
from pcm_p2p.sidecar import open_sidecar

DEVICE = DeviceId(b"d" * 16)
OTHER = DeviceId(b"o" * 16)
START_MS = 1_790_000_000_000
HOUR_MS = 3_600_000
_TOTAL = "coalesce(sum(wan), 0), coalesce(sum(lan_in), 0), coalesce(sum(plain), 0)"
SUMS = (
    (
        "SELECT site, name, version, device, wan, lan_in, needed_bytes FROM moved",
        """SELECT site, name, version, device, sum(new_wan), sum(new_lan_in), max(needed_bytes) FROM usage
        WHERE name <> '' GROUP BY 1, 2, 3, 4""",
    ),
    (
        "SELECT site, name, version, device, plain FROM moved WHERE plain <> 0",
        "SELECT site, name, version, device, size_bytes FROM completion",
    ),
    (f"SELECT {_TOTAL} FROM moved_in_time", f"SELECT {_TOTAL} FROM moved"),
)
"""Sums that the database keeps, and what they are sums of."""
ORDER_FREE = (
    "report",
    "stream",
    "device",
    "device_policy",
    "problem",
    "finding",
    "release",
    "fork",
    "clone",
    "usage",
    "completion",
    "change",
    "moved",
    "moved_in_time",
)


def opened(seq: int, *, device: DeviceId = DEVICE, epoch: int = 7, twin: bytes = b"", **facts: object) -> Opened:
    """Report ``seq``; ``twin`` makes another one under the same number."""
    rng = Random(f"{device.hex()} {epoch} {seq}")
    created_ms = START_MS + (epoch * 1_000 + seq) * HOUR_MS
    release = ReleaseStatus(
        "app",
        str(1 + seq // 3),
        rng.choice(("fetching", "applied", "parked")),
        since_ms=created_ms,
        size_bytes=1_000,
        needed_bytes=900,
        wan_in_bytes=seq * 10 % 37,
        lan_in_bytes=seq * 20,
    )
    body = ReportBody(
        schema="pcm.report/1",
        device=str(device),
        site=f"site-{seq // 4}",
        hostname="host",
        created_ms=created_ms,
        agent_version="1",
        trust=Trust(state=rng.choice(("fresh", "stale"))),
        releases=(release,),
        findings=(Finding("base", 1, "one", rng.choice(("pass", "fail", "error")), last_attempt_ms=created_ms),),
        transfer=Transfer(seq * 11, seq * 21, seq * 5),
        forks=(ForkSeen("timestamp", seq, ("a" * 64, "b" * 64), created_ms),) if seq % 3 == 0 else (),
        clones=("c" * 32,) if seq % 2 == 0 else (),
        problems=("policy p of site s is set aside: why", "another") if seq % 2 == 1 else (),
    )
    body = type(body)(**{name: facts.get(name, getattr(body, name)) for name in body.__struct_fields__})
    previous = bytes(32) if seq == 1 else chain_hash(device, epoch, seq - 1)
    own = hashlib.sha256(twin).digest() if twin else chain_hash(device, epoch, seq)
    return Opened(device, epoch, seq, own, previous, "", created_ms + 5, body)


def chain_hash(device: DeviceId, epoch: int, seq: int) -> bytes:
    return hashlib.sha256(b"%b %d %d" % (device, epoch, seq)).digest()


def dump(path: Path, tables: tuple[str, ...] = ORDER_FREE) -> dict[str, list[tuple[object, ...]]]:
    connection = sqlite3.connect(path)
    try:
        for sums, rows in SUMS:
            assert set(connection.execute(sums)) == set(connection.execute(rows)), "a trigger lost count"
        only = {"moved_in_time": " WHERE wan <> 0 OR lan_in <> 0 OR plain <> 0"}
        return {
            table: sorted(connection.execute(f"SELECT * FROM {table}{only.get(table, '')}").fetchall(), key=repr)
            for table in tables
        }
    finally:
        connection.close()


async def archive_of(path: Path, batches: list[list[Opened]]) -> dict[str, list[tuple[object, ...]]]:
    async with open_sidecar() as sidecar, open_database(sidecar, path, MIGRATIONS) as database:
        archive = Archive(database)
        for batch in batches:
            await archive.take(batch)
    return dump(path)


RECORDS = [
    *(opened(seq) for seq in (1, 2, 3, 4, 5)),
    *(opened(seq, epoch=9) for seq in (1, 2, 3)),
    *(opened(seq, device=OTHER) for seq in (1, 2)),
]


@given(
    order=st.permutations(range(len(RECORDS))),
    again=st.lists(st.integers(0, len(RECORDS) - 1), max_size=6),
    size=st.integers(1, 8),
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_any_repetition_and_any_batching_ends_in_the_same_rows(
    order: list[int], again: list[int], size: int, tmp_path: Path
) -> None:
    arriving = [RECORDS[index] for index in (*order, *again)]
    batches = [arriving[start : start + size] for start in range(0, len(arriving), size)]
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        in_order = trio.run(archive_of, Path(folder) / "one", [RECORDS])
        assert trio.run(archive_of, Path(folder) / "two", batches) == in_order


async def test_a_record_is_new_once(tmp_path: Path) -> None:
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "a", MIGRATIONS) as database:
        archive = Archive(database)
        assert await archive.take([opened(1), opened(1), opened(2)]) == ["new", "known", "new"]
        assert await archive.take([opened(2)]) == ["known"]
    assert len(dump(tmp_path / "a")["report"]) == 2


async def test_an_acknowledgement_stops_at_a_gap_and_goes_on_when_it_is_filled(tmp_path: Path) -> None:
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "a", MIGRATIONS) as database:
        archive = Archive(database)
        await archive.take([opened(2), opened(4)])
        assert await archive.acknowledged([DEVICE]) == []
        await archive.take([opened(1)])
        (stream,) = await archive.acknowledged([DEVICE, OTHER])
        assert (stream.seq, stream.head) == (2, chain_hash(DEVICE, 7, 2))
        await archive.take([opened(3)])
        (stream,) = await archive.acknowledged([DEVICE])
        assert (stream.seq, stream.head) == (4, chain_hash(DEVICE, 7, 4))


async def test_a_device_of_many_epochs_leaves_room_for_the_others_in_an_acknowledgement(tmp_path: Path) -> None:
    """A batch has 64 records. Without the bound one author could have no acknowledgement made for anybody beside it."""
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "archive", MIGRATIONS) as database:
        archive = Archive(database)
        await archive.take([opened(1, epoch=epoch) for epoch in range(1, 101)] + [opened(1, device=OTHER)])
        streams = await archive.acknowledged([DEVICE, OTHER])
        assert [one.epoch for one in streams if one.device == DEVICE] == list(range(101 - STREAMS_MAX, 101))
        assert [one.seq for one in streams if one.device == OTHER] == [1]
    assert 64 * STREAMS_MAX <= ENTRIES_MAX


async def test_false_figures_of_one_report_end_no_page(tmp_path: Path) -> None:
    most = (1 << 53) - 1
    releases = tuple(
        ReleaseStatus(f"r{number}", "1", "applied", 1, "", most, most, most, most) for number in range(1_024)
    )
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "archive", MIGRATIONS) as database:
        for seq in (1, 2, 3):
            lie = opened(seq, releases=releases if seq % 2 else (), created_ms=START_MS + seq * HOUR_MS)
            assert await Archive(database).take([lie]) == ["new"]
        others = [
            opened(1, device=DeviceId(bytes([number]) * 16), releases=releases, created_ms=START_MS + number * HOUR_MS)
            for number in range(4)
        ]
        assert await Archive(database).take(others) == ["new"] * 4
    with open_snapshot(tmp_path / "archive", START_MS + 10 * HOUR_MS) as snapshot:
        assert overview(snapshot).savings.wan == (1 << 63) - 1
        found = savings(snapshot)
        assert found.total.plain == (1 << 63) - 1
        assert msgspec.json.encode(found)


async def test_another_report_under_a_taken_number_is_kept_as_evidence_and_changes_nothing_else(tmp_path: Path) -> None:
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "a", MIGRATIONS) as database:
        archive = Archive(database)
        await archive.take([opened(1), opened(2)])
        before = dump(tmp_path / "a")
        assert await archive.take([opened(2, twin=b"clone"), opened(2, twin=b"clone")]) == ["conflict", "conflict"]
    assert dump(tmp_path / "a") == before
    assert len(dump(tmp_path / "a", ("conflict",))["conflict"]) == 1


async def test_a_restored_device_that_goes_on_counting_is_not_acknowledged_beyond_the_fork(tmp_path: Path) -> None:
    """Reports 2 and 3 were made before the restore; 2' is refused, and 3's successor 4' must not make 2' and 3' look safe."""
    fork = opened(4, twin=b"fork")
    fork = Opened(DEVICE, 7, 4, fork.hash, hashlib.sha256(b"3'").digest(), "", fork.received_ms, fork.body)
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "a", MIGRATIONS) as database:
        archive = Archive(database)
        await archive.take([opened(1), opened(2), opened(3)])
        await archive.take([opened(2, twin=b"2'"), opened(3, twin=b"3'"), fork])
        (stream,) = await archive.acknowledged([DEVICE])
    assert (stream.seq, stream.head) == (3, chain_hash(DEVICE, 7, 3))


async def test_a_batch_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "a", MIGRATIONS) as database:
        archive = Archive(database)
        await archive.take([opened(1)])
        before = dump(tmp_path / "a", (*ORDER_FREE, "meta"))
        broken = opened(3)
        broken = Opened(DEVICE, 7, 3, broken.hash, broken.previous, "", 1 << 70, broken.body)
        with pytest.raises(OverflowError):
            await archive.take([opened(2), broken])
    assert dump(tmp_path / "a", (*ORDER_FREE, "meta")) == before


async def test_each_change_raises_the_event_count_once_and_a_repetition_does_not(tmp_path: Path) -> None:
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "a", MIGRATIONS) as database:
        archive = Archive(database)
        counts = []
        for batch in ([opened(1), opened(2)], [opened(1)], [opened(2, twin=b"x")]):
            await archive.take(batch)
            counts.append(dump(tmp_path / "a", ("meta",))["meta"][0][1])
        await archive.seen([Seen(OTHER, "s"), Seen(OTHER, "s")], by=DEVICE, now_ms=1)
        counts.append(dump(tmp_path / "a", ("meta",))["meta"][0][1])
        await archive.seen([Seen(OTHER, "s")], by=DEVICE, now_ms=2)
        counts.append(dump(tmp_path / "a", ("meta",))["meta"][0][1])
    assert counts == [1, 1, 2, 3, 3]


async def test_the_list_of_the_revoked_is_the_last_one_and_what_was_refused_is_counted_on(tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"

    def rows() -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute("SELECT device, since_ms, reason, refused FROM revoked ORDER BY 1").fetchall()

    async with open_sidecar() as sidecar, open_database(sidecar, path, MIGRATIONS) as database:
        archive = Archive(database)
        await archive.revoke([Revocation(DEVICE, 7, "lost"), Revocation(OTHER, 8, "sold")])
        await archive.refused({DEVICE: 3, DeviceId(b"n" * 16): 9})
        await archive.refused({DEVICE: 2})
        assert rows() == [(str(DEVICE), 7, "lost", 5), (str(OTHER), 8, "sold", 0)]
        await archive.revoke([Revocation(DEVICE, 7, "stolen")])
        assert rows() == [(str(DEVICE), 7, "stolen", 5)]
        await archive.revoke([])
        assert rows() == []


async def test_a_lying_roster_cannot_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcm_p2p.collector.archive.SIGHTINGS_MAX", 3)
    assert SIGHTINGS_MAX > 100_000
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "a", MIGRATIONS) as database:
        archive = Archive(database)
        await archive.seen([Seen(DeviceId(bytes([n]) * 16), "s") for n in range(3)], by=DEVICE, now_ms=1)
        await archive.seen([Seen(DeviceId(bytes([n]) * 16), "s") for n in range(9)], by=DEVICE, now_ms=2)
        await archive.seen([Seen(DeviceId(bytes([0]) * 16), "s")], by=DEVICE, now_ms=3)
    rows = dump(tmp_path / "a", ("sighting",))["sighting"]
    assert len(rows) == 3
    assert sorted(row[3] for row in rows) == [1, 1, 3]


async def test_a_sweep_keeps_the_latest_report_what_is_not_contiguous_and_all_sums(tmp_path: Path) -> None:
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "a", MIGRATIONS) as database:
        archive = Archive(database)
        await archive.take([opened(1), opened(2), opened(3), opened(5), opened(1, device=OTHER)])
        before = dump(tmp_path / "a")
        assert await archive.sweep(opened(5).received_ms + RETENTION_MS + 1) == 2
        after = dump(tmp_path / "a")
        assert {(row[0], row[2]) for row in after["report"]} == {
            *((str(DEVICE), seq) for seq in (3, 5)),
            (str(OTHER), 1),
        }
        for table in ("device", "finding", "release", "stream", "completion"):
            assert after[table] == before[table]
        assert sum(row[11] for row in after["usage"]) == sum(row[11] for row in before["usage"])
        assert await archive.take([opened(1), opened(4)]) == ["known", "new"]
        assert [(one.device, one.seq) for one in await archive.acknowledged([DEVICE])] == [(DEVICE, 5)]


@pytest.mark.parametrize(
    ("told", "grown"),
    [
        ([], []),
        ([5], [5]),
        ([5, 5, 9], [5, 0, 4]),
        ([5, 9, 2, 3], [5, 4, 2, 1]),
        ([0, 0, 7, 0, 7], [0, 0, 7, 0, 7]),
    ],
)
def test_counters_grow_and_a_reset_counts_from_zero(told: list[int], grown: list[int]) -> None:
    samples = [Sample(seq, Counters(value, 0, value * 2)) for seq, value in enumerate(told)]
    found = list(differences(samples))
    assert [sample.counters.wan for sample in found] == grown
    assert [sample.counters.lan_out for sample in found] == [2 * value for value in grown]


@given(st.lists(st.integers(0, 1 << 40), max_size=30))
def test_growing_counters_sum_to_the_last_one(steps: list[int]) -> None:
    told = [sum(steps[: end + 1]) for end in range(len(steps))]
    found = differences(Sample(seq, Counters(value, 0, 0)) for seq, value in enumerate(told))
    assert sum(sample.counters.wan for sample in found) == (told[-1] if told else 0)


def test_changes_name_what_differs_and_nothing_else() -> None:
    before, after = opened(1).body, opened(2).body
    assert changes(before, before) == []
    (first,) = changes(None, before)
    assert (first.kind, first.detail.startswith("1 releases, 1 checks")) == ("first", True)
    gone = type(after)(
        **{name: () if name in ("releases", "findings") else getattr(before, name) for name in after.__struct_fields__}
    )
    assert [(change.kind, change.after, change.detail) for change in changes(before, gone)] == [
        ("release", "", "no longer assigned"),
        ("finding", "", "no longer checked"),
    ]
