"""The outbox on real SQLite: numbering, quotas, acknowledgements, rolled-back state, damage."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from compliance_world import START_MS, FakeCollector, FakeDevice, verify_certificate

from pcm_p2p.compliance.acknowledgement import Level
from pcm_p2p.compliance.carried_records import CarriedLimits
from pcm_p2p.compliance.outbox import MIGRATIONS, Outbox, OutboxFull, OutboxLimits
from pcm_p2p.compliance.parcel import Changed, Kept
from pcm_p2p.compliance.record import Record, RecordKey, open_record_untrusted
from pcm_p2p.compliance.report import pack
from pcm_p2p.database import open_database
from pcm_p2p.errors import Degraded
from pcm_p2p.sidecar import open_sidecar

ALICE, BOB, COLLECTOR = FakeDevice("alice"), FakeDevice("bob"), FakeCollector()
HOUR_MS = 3_600_000


@contextlib.asynccontextmanager
async def outbox_at(
    path: Path, device: FakeDevice = ALICE, limits: OutboxLimits | None = None, seed: int = 1
) -> AsyncIterator[Outbox]:
    async with open_sidecar() as sidecar, open_database(sidecar, path, MIGRATIONS) as database:
        outbox = Outbox(database, device.id, limits)
        await outbox.seal_with(device.sealer(COLLECTOR, seed=seed), START_MS)
        yield outbox


async def add(outbox: Outbox, device: FakeDevice = ALICE, at_ms: int = START_MS, count: int = 1) -> list[Record]:
    made = []
    for number in range(count):
        changed = await outbox.add(pack(device.report(at_ms + number)), at_ms + number)
        made += await records_of(outbox, changed)
    return made


async def records_of(outbox: Outbox, changed: Changed) -> list[Record]:
    stored = await outbox.read(parcel.hash for parcel in changed.added)
    return [open_record_untrusted(stored[parcel.hash], verify_certificate) for parcel in changed.added]


async def test_reports_are_numbered_without_gaps_and_chained(tmp_path: Path) -> None:
    async with outbox_at(tmp_path / "node.sqlite") as outbox:
        first = await add(outbox, count=2)
    async with outbox_at(tmp_path / "node.sqlite") as outbox:
        records = first + await add(outbox)
        assert [record.key.seq for record in records] == [1, 2, 3]
        assert len({record.key.epoch for record in records}) == 1
        assert [record.previous for record in records[1:]] == [record.hash for record in records[:-1]]
        assert [parcel.hash for parcel in await outbox.load()] == [record.hash for record in records]


async def test_without_a_collector_a_report_is_not_numbered(tmp_path: Path) -> None:
    async with open_sidecar() as sidecar, open_database(sidecar, tmp_path / "node.sqlite", MIGRATIONS) as database:
        with pytest.raises(Degraded):
            await Outbox(database, ALICE.id).add(b"packed", START_MS)


async def test_an_own_record_leaves_only_on_a_durable_acknowledgement(tmp_path: Path) -> None:
    collector = FakeCollector()
    async with outbox_at(tmp_path / "node.sqlite") as outbox:
        for record in (await add(outbox, count=3))[:2]:
            collector.take(record.data)
        received = await outbox.acknowledge(collector.opened_ack(ALICE.id, level=Level.RECEIVED), START_MS)
        assert received.removed == ()
        durable = await outbox.acknowledge(collector.opened_ack(ALICE.id), START_MS)
        assert len(durable.removed) == 2
        assert durable.advanced == (ALICE.id,)
        again = await outbox.acknowledge(collector.opened_ack(ALICE.id), START_MS)
        assert again == Changed()
        statistics = await outbox.statistics()
        assert (statistics.own_records, statistics.acknowledged, statistics.seq) == (1, 2, 3)


async def test_a_full_outbox_takes_no_report_and_loses_none(tmp_path: Path) -> None:
    collector = FakeCollector()
    async with outbox_at(tmp_path / "node.sqlite", limits=OutboxLimits(own_bytes_max=1_000)) as outbox:
        made = await add(outbox, count=2)
        with pytest.raises(OutboxFull) as caught:
            await add(outbox)
        assert caught.value.remedy
        for record in made:
            collector.take(record.data)
        await outbox.acknowledge(collector.opened_ack(ALICE.id), START_MS)
        after = await add(outbox)
        assert after[0].key.seq == len(made) + 1


async def test_a_restored_backup_numbers_anew_and_keeps_what_was_not_acknowledged(tmp_path: Path) -> None:
    """The device reports 1-4, is restored to a moment after 2, and reports 3' and 4'."""
    collector, live, backup = FakeCollector(), tmp_path / "node.sqlite", tmp_path / "backup.sqlite"
    async with outbox_at(live) as outbox:
        await add(outbox, count=2)
    shutil.copy(live, backup)
    async with outbox_at(live) as outbox:
        await add(outbox, at_ms=START_MS + 100, count=2)
        for parcel in await outbox.load():
            collector.take((await outbox.read([parcel.hash]))[parcel.hash])
    async with outbox_at(backup, seed=2) as outbox:
        forked = await add(outbox, at_ms=START_MS + 200, count=2)
        for record in forked:
            collector.take(record.data)
        assert len(collector.conflicts) == 2
        changed = await outbox.acknowledge(collector.opened_ack(ALICE.id), START_MS + 300)
        assert changed.new_epoch is not None
        assert changed.new_epoch > forked[0].key.epoch
        again = await records_of(outbox, changed)
        assert [record.key.seq for record in again] == [1, 2, 3, 4]
        for record in again:
            collector.take(record.data)
        settled = await outbox.acknowledge(collector.opened_ack(ALICE.id), START_MS + 400)
        assert settled.new_epoch is None
        assert (await outbox.statistics()).own_records == 0
    times = {report.created_ms - START_MS for report in collector.reports_of(ALICE.id)}
    assert times == {0, 1, 100, 101, 200, 201}, "nothing of either history is lost"


async def test_an_acknowledgement_above_the_own_numbers_starts_a_new_epoch(tmp_path: Path) -> None:
    collector, live, backup = FakeCollector(), tmp_path / "node.sqlite", tmp_path / "backup.sqlite"
    async with outbox_at(live) as outbox:
        await add(outbox)
    shutil.copy(live, backup)
    async with outbox_at(live) as outbox:
        await add(outbox, at_ms=START_MS + 100)
        for parcel in await outbox.load():
            collector.take((await outbox.read([parcel.hash]))[parcel.hash])
    async with outbox_at(backup) as outbox:
        changed = await outbox.acknowledge(collector.opened_ack(ALICE.id), START_MS)
        assert changed.new_epoch is not None
        assert (await add(outbox, at_ms=START_MS + 300))[0].key.seq == 2, "record 1 was sealed again before it"


async def test_an_own_record_that_comes_back_unknown_starts_a_new_epoch(tmp_path: Path) -> None:
    live, backup = tmp_path / "node.sqlite", tmp_path / "backup.sqlite"
    async with outbox_at(live) as outbox:
        await add(outbox)
    shutil.copy(live, backup)
    async with outbox_at(live) as outbox:
        (ahead,) = await add(outbox, at_ms=START_MS + 100)
        assert (await outbox.keep([ahead], BOB.id, START_MS))[1] == Changed(), "one that is remembered is nothing new"
    async with outbox_at(backup) as outbox:
        answers, changed = await outbox.keep([ahead], BOB.id, START_MS)
        assert answers == [Kept.KNOWN]
        assert changed.new_epoch is not None


async def test_a_lost_database_starts_a_later_epoch(tmp_path: Path) -> None:
    async with outbox_at(tmp_path / "node.sqlite") as outbox:
        (before,) = await add(outbox)
    (tmp_path / "node.sqlite").write_bytes(b"not a database" * 1_000)
    async with outbox_at(tmp_path / "node.sqlite") as outbox:
        (after,) = await add(outbox, at_ms=START_MS + 5_000)
    assert (after.key.seq, after.key.epoch > before.key.epoch) == (1, True)


async def test_a_clock_that_stands_still_does_not_repeat_an_epoch(tmp_path: Path) -> None:
    collector = FakeCollector()
    async with outbox_at(tmp_path / "a.sqlite", seed=1) as outbox:
        for record in await add(outbox, at_ms=5_000, count=2):
            collector.take(record.data)
    async with outbox_at(tmp_path / "b.sqlite", seed=2) as outbox:
        (twin,) = await add(outbox, at_ms=5_000)
        assert RecordKey(ALICE.id, twin.key.epoch, 1) in collector.kept, "the same number for another record"
        changed = await outbox.acknowledge(collector.opened_ack(ALICE.id), 5_000)
        assert changed.new_epoch == twin.key.epoch + 1


async def test_what_a_retired_collector_alone_could_open_is_sealed_again(tmp_path: Path) -> None:
    new = FakeCollector("new")
    async with outbox_at(tmp_path / "node.sqlite") as outbox:
        old = await add(outbox, count=2)
        assert await outbox.seal_with(ALICE.sealer(COLLECTOR, new), START_MS) == Changed(), "still readable"
        changed = await outbox.seal_with(ALICE.sealer(new), START_MS)
        assert set(changed.removed) == {record.hash for record in old}
        for record in await records_of(outbox, changed):
            assert new.take(record.data)
        assert [report.created_ms for report in new.reports_of(ALICE.id)] == [START_MS, START_MS + 1]


async def foreign(tmp_path: Path, device: FakeDevice, count: int = 1) -> list[Record]:
    async with outbox_at(tmp_path / f"{device.id.short}.sqlite", device) as outbox:
        return await add(outbox, device, count=count)


async def test_carried_records_survive_a_restart_and_leave_when_received(tmp_path: Path) -> None:
    collector = FakeCollector()
    records = await foreign(tmp_path, BOB, 3)
    async with outbox_at(tmp_path / "node.sqlite") as outbox:
        answers, changed = await outbox.keep(records, BOB.id, START_MS)
        assert answers == [Kept.KEPT] * 3
        assert [parcel.received_from for parcel in changed.added] == [BOB.id] * 3
    for record in records[:2]:
        collector.take(record.data)
    async with outbox_at(tmp_path / "node.sqlite") as outbox:
        assert [parcel.hash for parcel in await outbox.load()] == [record.hash for record in records]
        ack = collector.opened_ack(BOB.id, level=Level.RECEIVED)
        assert set((await outbox.acknowledge(ack, START_MS)).removed) == {record.hash for record in records[:2]}
        answers, _ = await outbox.keep(records, BOB.id, START_MS)
        assert answers == [Kept.ACKNOWLEDGED, Kept.ACKNOWLEDGED, Kept.KNOWN]
        assert await outbox.acks_about([BOB.id, ALICE.id]) == [ack.data]


async def test_carried_records_expire_by_the_carriers_own_clock(tmp_path: Path) -> None:
    (record,) = await foreign(tmp_path, BOB)
    async with outbox_at(tmp_path / "node.sqlite") as outbox:
        await outbox.keep([replace(record, lifetime_s=3_600)], BOB.id, START_MS)
        assert await outbox.expire(START_MS + HOUR_MS - 1) == Changed()
        assert (await outbox.expire(START_MS + HOUR_MS)).removed == (record.hash,)


@pytest.mark.parametrize(
    "limits",
    [
        CarriedLimits(author_records_max=3),
        CarriedLimits(author_bytes_max=2_000),
        CarriedLimits(records_max=3),
        CarriedLimits(size_bytes_max=2_000),
    ],
    ids=["author records", "author bytes", "records", "bytes"],
)
async def test_a_flood_is_refused_and_pushes_nothing_out(tmp_path: Path, limits: CarriedLimits) -> None:
    records = await foreign(tmp_path, BOB, 6)
    async with outbox_at(tmp_path / "node.sqlite", limits=OutboxLimits(carried=limits)) as outbox:
        await add(outbox)
        answers, _ = await outbox.keep(records, BOB.id, START_MS)
        kept = [record.hash for record, answer in zip(records, answers, strict=True) if answer is Kept.KEPT]
        assert 0 < len(kept) < len(records)
        assert not Kept.FULL.taken
        stored = [parcel.hash for parcel in await outbox.load()]
        assert stored[1:] == kept, "the first come stay, and the own record too"


async def test_one_author_cannot_take_the_room_of_another(tmp_path: Path) -> None:
    flood, one = await foreign(tmp_path, BOB, 5), await foreign(tmp_path, FakeDevice("carol"))
    async with outbox_at(
        tmp_path / "node.sqlite", limits=OutboxLimits(carried=CarriedLimits(author_records_max=2))
    ) as outbox:
        await outbox.keep(flood, BOB.id, START_MS)
        assert (await outbox.keep(one, BOB.id, START_MS))[0] == [Kept.KEPT]


async def test_acknowledgements_are_bounded_and_the_newest_stay(tmp_path: Path) -> None:
    collector = FakeCollector()
    devices = [FakeDevice(f"device {number}") for number in range(6)]
    async with outbox_at(tmp_path / "node.sqlite", limits=OutboxLimits(ack_entries_max=4)) as outbox:
        for number, device in enumerate(devices):
            for record in await foreign(tmp_path, device):
                collector.take(record.data)
            await outbox.acknowledge(collector.opened_ack(device.id), START_MS + number)
        assert len(await outbox.acks_about([device.id for device in devices])) == 4
        assert await outbox.acks_about([devices[0].id]) == []


async def test_a_kill_between_two_transactions_leaves_a_numbered_record_or_none(tmp_path: Path) -> None:
    """The files as they are at any commit are a state to start from: copies taken while the database is open."""
    copies = []
    async with outbox_at(tmp_path / "node.sqlite") as outbox:
        for step in range(4):
            await add(outbox, at_ms=START_MS + step)
            copy = tmp_path / f"killed-{step}"
            copy.mkdir()
            for suffix in ("", "-wal"):
                shutil.copy(tmp_path / f"node.sqlite{suffix}", copy / f"node.sqlite{suffix}")
            copies.append(copy)
    for step, copy in enumerate(copies):
        async with outbox_at(copy / "node.sqlite") as outbox:
            assert [parcel.key.seq for parcel in await outbox.load()] == [*range(1, step + 2)]
            assert (await add(outbox))[0].key.seq == step + 2


async def test_an_older_acknowledgement_that_arrives_late_changes_nothing(tmp_path: Path) -> None:
    collector = FakeCollector()
    records = await foreign(tmp_path, BOB, 2)
    collector.take(records[0].data)
    older = collector.opened_ack(BOB.id)
    collector.take(records[1].data)
    newer = collector.opened_ack(BOB.id)
    async with outbox_at(tmp_path / "node.sqlite") as outbox:
        assert (await outbox.acknowledge(newer, START_MS)).advanced == (BOB.id,)
        assert await outbox.acknowledge(older, START_MS + 1) == Changed()
        assert await outbox.acks_about([BOB.id]) == [newer.data]
        assert (await outbox.keep(records, BOB.id, START_MS))[0] == [Kept.ACKNOWLEDGED] * 2
