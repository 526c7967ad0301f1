"""SIGKILL while reporting: a real process, a real file, no warning."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import trio
from compliance_world import START_MS, FakeCollector, FakeDevice, verify_certificate

from pcm_p2p.compliance.outbox import MIGRATIONS, Outbox
from pcm_p2p.compliance.record import Record, open_record_untrusted
from pcm_p2p.database import open_database
from pcm_p2p.sidecar import open_sidecar

ALICE, COLLECTOR = FakeDevice("alice"), FakeCollector()


async def report_for_ever(path: Path) -> None:
    """The victim: says each number once it is committed."""
    async with open_sidecar() as sidecar, open_database(sidecar, path, MIGRATIONS) as database:
        outbox = Outbox(database, ALICE.id)
        await outbox.seal_with(ALICE.sealer(COLLECTOR), START_MS)
        while True:
            (parcel,) = (await outbox.add(b"report", START_MS)).added
            print(parcel.key.seq, flush=True)


async def read_all(path: Path) -> list[Record]:
    async with open_sidecar() as sidecar, open_database(sidecar, path, MIGRATIONS) as database:
        outbox = Outbox(database, ALICE.id)
        parcels = await outbox.load()
        stored = await outbox.read(parcel.hash for parcel in parcels)
        return [open_record_untrusted(stored[parcel.hash], verify_certificate) for parcel in parcels]


def test_what_was_numbered_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    path, told = tmp_path / "node.sqlite", 0
    script = f"import trio, pathlib, test_outbox_killed as t; trio.run(t.report_for_ever, pathlib.Path({str(path)!r}))"
    for lines in (1, 7, 20):
        victim = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parent, text=True
        )
        with victim:
            assert victim.stdout is not None
            for _ in range(lines):
                told = int(victim.stdout.readline())
            victim.kill()
            told = max([told, *(int(line) for line in victim.stdout.read().split("\n")[:-1])])
    records = trio.run(read_all, path)
    assert [record.key.seq for record in records] == [*range(1, len(records) + 1)]
    assert len(records) - told in (0, 1), "at most one was committed and not yet told"
    assert all(record.previous == before.hash for before, record in pairwise(records))
