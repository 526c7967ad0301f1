"""What the pages are made of: every number equals the rows behind it, and no state is folded into a kinder one."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from console_client import NOW_MS
from seed_archive import RELEASES as DEMO_RELEASES
from seed_archive import SILENT, demo_id, fleet, is_assigned

from pcm_p2p.collector.device import device
from pcm_p2p.collector.fleet import (
    ATTENTION,
    COVERAGE,
    DEVICE_STATES,
    PROGRESS,
    SORTS,
    DeviceFilter,
    count,
    counts_by,
    devices,
)
from pcm_p2p.collector.overview import overview
from pcm_p2p.collector.releases import release, releases
from pcm_p2p.collector.savings import savings, totals
from pcm_p2p.collector.snapshot import STALE_AFTER_MS, Snapshot, open_snapshot
from pcm_p2p.errors import Degraded, StorageError


@pytest.fixture(name="snapshot")
def _snapshot(demo_archive: Path) -> Iterator[Snapshot]:
    with open_snapshot(demo_archive, NOW_MS) as snapshot:
        yield snapshot


def of(behaviour: str) -> str:
    return next(str(one.device) for one in fleet() if one.behaviour == behaviour)


@pytest.mark.parametrize("chosen", [DeviceFilter(), DeviceFilter(site="lis-branch"), DeviceFilter(q="desk")])
def test_states_and_coverage_partition_the_devices(snapshot: Snapshot, chosen: DeviceFilter) -> None:
    total = count(snapshot, chosen)
    assert total > 0
    assert sum(counts_by(snapshot, "state", chosen).values()) == total
    for name, words in (("state", DEVICE_STATES), ("coverage", COVERAGE)):
        narrowed = [msgspec.structs.replace(chosen, **{name: word}) for word in words]
        assert sum(count(snapshot, one) for one in narrowed) == total


@pytest.mark.parametrize("sort", SORTS)
def test_a_count_is_the_length_of_its_list(snapshot: Snapshot, sort: str) -> None:
    for name, words in (
        ("state", DEVICE_STATES),
        ("progress", PROGRESS),
        ("attention", ATTENTION),
        ("result", ("fail", "error", "not_run", "undecided", "asked")),
        ("trust", ("fresh", "frozen")),
        ("q", ("muc", "%", "_", "!", "' OR 1=1")),
    ):
        for word in words:
            chosen = DeviceFilter(**{name: word})
            found = devices(snapshot, chosen, sort=sort, limit=1_000)
            assert found.total == len(found.devices) == len({row.device for row in found.devices})


def test_pages_of_a_list_are_its_parts(snapshot: Snapshot) -> None:
    whole = devices(snapshot, DeviceFilter(), limit=1_000).devices
    parts = [devices(snapshot, DeviceFilter(), limit=7, offset=start).devices for start in range(0, len(whole), 7)]
    assert list(itertools.chain(*parts)) == whole


@pytest.mark.parametrize(
    ("behaviour", "state"),
    [
        ("good", "compliant"),
        ("failing", "failing"),
        ("undecided", "undecided"),
        ("unchecked", "unchecked"),
        ("stale", "stale"),
        ("carried", "compliant"),
    ],
)
def test_each_device_has_the_state_that_its_report_deserves(snapshot: Snapshot, behaviour: str, state: str) -> None:
    found = device(snapshot, of(behaviour))
    assert found is not None
    assert found.state == state
    assert (found.carrier != "") == (behaviour == "carried")


def test_a_failing_device_that_falls_silent_is_stale_and_not_failing(demo_archive: Path) -> None:
    with open_snapshot(demo_archive, NOW_MS + STALE_AFTER_MS) as later:
        found = device(later, of("failing"))
        assert found is not None
        assert found.state == "stale"
        assert counts_by(later, "state", DeviceFilter()) == {"stale": len(fleet()), "unknown": len(SILENT)}
        assert overview(later).checks == []
        assert {one.counts["installed"] for one in overview(later).releases} == {0}


def test_a_device_that_was_only_seen_is_drawn(snapshot: Snapshot) -> None:
    found = device(snapshot, str(demo_id("silent 0")))
    assert found is not None
    assert (found.state, found.site, found.seen_by) == ("unknown", "lis-branch", str(fleet()[0].device))
    assert device(snapshot, "0" * 32) is None


def test_error_and_not_run_are_shown_beside_the_last_verdict(snapshot: Snapshot) -> None:
    found = device(snapshot, of("undecided"))
    assert found is not None
    assert {(one.state, one.decided) for one in found.findings if one.state in ("error", "not_run")} == {
        ("error", "pass"),
        ("not_run", "pass"),
    }
    assert found.counts["error"] == found.counts["not_run"] == 1
    assert sum(found.counts.values()) == len(found.findings)


def test_a_revoked_device_is_shown_as_revoked_and_counts_nowhere_else(demo_archive: Path, tmp_path: Path) -> None:
    """Whatever it last reported: it is neither compliant nor failing, and reports nothing any more."""
    path = tmp_path / "archive.sqlite"
    with closing(sqlite3.connect(demo_archive)) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
        gone = [of("good"), of("failing"), str(demo_id("silent 0"))]
        copy.executemany("INSERT INTO revoked VALUES (?, 1000, 'stolen', 4)", [(one,) for one in gone])
        copy.execute("INSERT INTO fork VALUES (?, 'timestamp', 7, 'aa bb', 1000)", (of("stale"),))
        copy.executemany("INSERT INTO problem VALUES (?, ?, ?)", [(of("stale"), 1, "b"), (of("stale"), 0, "a")])
        copy.executemany("INSERT INTO clone VALUES (?, ?)", [(of("good"), of("stale")), (of("failing"), of("stale"))])
        copy.commit()
    with open_snapshot(path, NOW_MS) as snapshot:
        view = overview(snapshot)
        assert (view.states["revoked"], view.coverage["revoked"], view.attention["fork"]) == (3, 3, 1)
        assert sum(view.states.values()) == sum(view.coverage.values()) == view.devices
        for one in gone:
            shown = device(snapshot, one)
            assert shown is not None
            assert (shown.state, shown.revoked_reason, shown.revoked_refused) == ("revoked", "stolen", 4)
        assert {row.device for row in devices(snapshot, DeviceFilter(state="revoked")).devices} == set(gone)
        assert view.attention["clone"] == 1
        (row,) = devices(snapshot, DeviceFilter(attention="clone")).devices
        cloned = device(snapshot, row.device)
        assert cloned is not None
        assert (cloned.device, cloned.clone_witnesses) == (of("stale"), 2)
        assert cloned.problems == ["a", "b"]
        (row,) = devices(snapshot, DeviceFilter(attention="fork")).devices
        forked = device(snapshot, row.device)
        assert forked is not None
        assert [(fork.role, fork.version, fork.digests) for fork in forked.forks] == [("timestamp", 7, "aa bb")]


def test_what_needs_a_person_is_named(snapshot: Snapshot) -> None:
    for attention, behaviour in (("conflict", "clone"), ("gap", "gap"), ("clock", "clock")):
        (row,) = devices(snapshot, DeviceFilter(attention=attention)).devices
        assert row.device == of(behaviour)
    gap, clock = device(snapshot, of("gap")), device(snapshot, of("clock"))
    assert gap is not None
    assert clock is not None
    assert [one.missing for one in gap.streams] == [1]
    assert clock.skew_ms == 9 * 60_000
    assert devices(snapshot, DeviceFilter(attention="nonsense")).total == 0


def test_every_number_of_the_overview_is_the_length_of_a_list(snapshot: Snapshot) -> None:
    view = overview(snapshot)
    assert view.devices == len(fleet()) + len(SILENT)
    for word, number in view.states.items():
        assert devices(snapshot, DeviceFilter(state=word), limit=999).total == number
    for one in view.releases:
        assert sum(one.counts.values()) == one.devices
        for word, number in one.counts.items():
            chosen = DeviceFilter(release=f"{one.name}@{one.version}", progress=word)
            assert count(snapshot, chosen) == number
    for check in view.checks:
        for result, number in (("fail", check.failed), ("undecided", check.undecided), ("asked", check.asked)):
            chosen = DeviceFilter(check=f"{check.policy}/{check.check}", result=result, coverage="reporting")
            assert count(snapshot, chosen) == number
    for site in view.sites:
        assert site.devices == count(snapshot, DeviceFilter(site=site.site)) == sum(site.states.values())
        assert savings(snapshot, site=site.site).total == site.bytes
    assert view.events
    assert all(0 < len(event.named) <= 3 for event in view.events)
    assert len({(event.kind, event.subject, event.after, event.at_ms // 86_400_000) for event in view.events}) == len(
        view.events
    )


def test_a_release_knows_who_has_it_who_waits_and_why(snapshot: Snapshot) -> None:
    for demo in DEMO_RELEASES:
        found = release(snapshot, demo.name, demo.version)
        assert found is not None
        assert found.progress.devices == len(found.rows)
        assert found.progress.devices + found.elsewhere == len(fleet()) + len(SILENT)
        for word in PROGRESS:
            assert found.progress.counts[word] == sum(row.progress == word for row in found.rows)
            assert found.progress.counts[word] == sum(counts[word] for counts in found.sites.values())
        waiting = [row for row in found.rows if row.progress in ("under_way", "in_trouble")]
        assert sum(reason.devices for reason in found.reasons) == len(waiting)
        for reason in found.reasons:
            narrowed = release(snapshot, demo.name, demo.version, progress=reason.progress, reason=reason.detail)
            assert narrowed is not None
            assert sum(row.state == reason.state for row in narrowed.rows) == reason.devices
    assert release(snapshot, "nothing", "1") is None
    assert len(releases(snapshot).releases) == len(DEMO_RELEASES)


def test_savings_add_up_over_sites_releases_devices_and_time(snapshot: Snapshot) -> None:
    whole = savings(snapshot)
    assert whole.total == totals(snapshot)
    for parts in (whole.by_site, whole.by_release):
        for name in ("wan", "lan_in", "plain", "needed"):
            assert sum(getattr(part.bytes, name) for part in parts) == getattr(whole.total, name)
    assert whole.devices_total == len({(row.device, row.site) for row in whole.devices})
    for name in ("wan", "lan_in", "plain"):
        assert sum(getattr(row, name) for row in whole.devices) == getattr(whole.total, name)
        sums = getattr(whole.series, name)
        assert sums[-1] == getattr(whole.total, name)
        assert sums == sorted(sums)
    assert len(set(whole.series.at_s)) == len(whole.series.at_s) == len(whole.series.wan)
    for site in whole.by_site:
        for one in whole.by_release:
            cell = savings(snapshot, site=site.site, release=f"{one.name}@{one.version}")
            assert cell.total.needed in (0, next(d.needed_bytes for d in DEMO_RELEASES if d.name == one.name))
    assert whole.amplification is not None
    assert 0.9 < whole.amplification < 1.1


def test_a_release_that_was_never_fetched_counts_no_plain_download(snapshot: Snapshot) -> None:
    frozen = next(one for one in fleet() if one.behaviour == "frozen")
    assert any(is_assigned(frozen, demo) for demo in DEMO_RELEASES)
    assert str(frozen.device) not in {row.device for row in savings(snapshot).devices}


def test_an_absent_archive_and_a_foreign_file_are_said_to_be_so(tmp_path: Path) -> None:
    for name, content in (("absent", None), ("foreign", b"not a database" * 100), ("empty", b"")):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StorageError) as caught, open_snapshot(path, NOW_MS) as snapshot:
            overview(snapshot)
        assert caught.value.remedy


def test_a_query_without_end_is_ended(demo_archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcm_p2p.collector.snapshot.TIMEOUT_S", 0.05)
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(Degraded), open_snapshot(demo_archive, NOW_MS) as snapshot:
        snapshot.rows(endless)


def test_the_console_cannot_write(demo_archive: Path) -> None:
    with pytest.raises(StorageError, match="readonly"), open_snapshot(demo_archive, NOW_MS) as snapshot:
        snapshot.rows("DELETE FROM report")
