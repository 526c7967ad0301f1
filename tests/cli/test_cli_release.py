"""``release add --base`` and ``release plan``: which deltas are made, and what an admin is told of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

PLAN_KEYS = {
    *("delivered_bytes", "stored_bytes", "full_segment_bytes", "delta_segment_bytes"),
    *("office_with_base_bytes", "office_without_base_bytes", "seconds", "members", "why_not_gzip"),
}
POLICY = """\
schema = "pcm.policy/1"
id = "base"
version = 1

[[assign]]
release = "app"
version = "{version}"
"""

Command = Callable[..., Any]


def content(version: int) -> bytes:
    """400 kB, of which each version has another kilobyte."""
    data = bytearray(Random(1).randbytes(400_000))
    data[version * 10_000 : version * 10_000 + 1_000] = Random(version).randbytes(1_000)
    data[-1] = version
    data[200_000] = version
    return bytes(data)


@pytest.fixture
def add(cli: Command, fleet: Path, tmp_path: Path) -> Command:
    def added(version: int, *options: object) -> Any:
        path = tmp_path / "app.bin"
        path.write_bytes(content(version))
        return cli("release", "add", "app", version, path, "--fleet", fleet, "--level", "1", *options)

    return added


def bases(cli: Command, fleet: Path, version: int) -> list[str]:
    shown = cli("release", "show", "app", version, "--fleet", fleet, "--json")
    return [base["version"] for base in shown.facts["bases"]]


def test_deltas_start_from_the_last_three_releases(cli: Command, fleet: Path, add: Command) -> None:
    for version in range(1, 6):
        assert add(version).status == 0
    assert [bases(cli, fleet, version) for version in range(1, 6)] == [
        [],
        ["1"],
        ["2", "1"],
        ["3", "2", "1"],
        ["4", "3", "2"],
    ]
    facts = cli("release", "show", "app", "5", "--fleet", fleet, "--json").facts
    assert 0 < facts["bases"][0]["office_with_base_bytes"] < facts["full_segment_bytes"] / 20
    assert facts["delta_segment_bytes"] == sum(base["delta_segment_bytes"] for base in facts["bases"])
    text = cli("release", "show", "app", "5", "--fleet", fleet).out
    assert "AN OFFICE THAT HAS IT FETCHES" in text


def test_the_same_again_changes_nothing_whatever_came_after_it(cli: Command, fleet: Path, add: Command) -> None:
    for version in (1, 2, 3):
        assert add(version).status == 0
    for version in (1, 2, 3):
        again = add(version)
        assert (again.status, again.err.splitlines()[0][:5]) == (0, "Next:")
    assert bases(cli, fleet, 2) == ["1"]


def test_deltas_start_from_what_is_assigned_or_reported_in_use(
    cli: Command, fleet: Path, add: Command, tmp_path: Path
) -> None:
    for version in range(1, 6):
        assert add(version, "--no-delta").status == 0
        assert bases(cli, fleet, version) == []
    (tmp_path / "base.toml").write_text(POLICY.format(version=2))
    assert cli("policy", "put", tmp_path / "base.toml", "--fleet", fleet).status == 0
    assert add(6).status == 0
    assert bases(cli, fleet, 6) == ["2"]
    report = tmp_path / "releases.json"
    rows = [
        {"name": "app", "version": "1", "devices": 3, "size_bytes": 1},
        {"name": "app", "version": "4", "devices": 0},
        {"name": "other", "version": "5", "devices": 9},
    ]
    report.write_text(json.dumps({"as_of_ms": 1, "releases": rows}))
    assert add(7, "--in-use", report).status == 0
    assert bases(cli, fleet, 7) == ["2", "1"]
    report.write_text("[]")
    wrong = add(8, "--in-use", report)
    assert (wrong.status, "is not what the console says" in wrong.err) == (2, True)
    absent = add(8, "--in-use", tmp_path / "absent.json")
    assert (absent.status, "absent.json: cannot be read" in absent.err) == (2, True)


def test_bases_may_be_named(cli: Command, fleet: Path, add: Command) -> None:
    for version in (1, 2, 3):
        assert add(version).status == 0
    assert add(4, "--base", "1", "--base", "3").status == 0
    assert bases(cli, fleet, 4) == ["3", "1"]
    unknown = add(5, "--base", "9")
    assert unknown.status == 2
    assert "--base 9: app 9 is no earlier release of this fleet" in unknown.err
    assert "There is app: 1, 2, 3, 4." in unknown.err
    both = add(5, "--base", "1", "--no-delta")
    assert (both.status, "exclude each other" in both.err) == (2, True)


def test_a_base_whose_segments_are_gone_is_skipped_aloud(fleet: Path, add: Command) -> None:
    assert add(1).status == 0
    for blob in (fleet / "segments").glob("*/*"):
        blob.unlink()
    ended = add(2)
    assert ended.status == 0
    assert "No deltas from app 1: segment" in ended.err
    named = add(3, "--base", "1")
    assert (named.status, "app 1 cannot be a base" in named.err) == (2, True)


def test_plan_of_two_files_needs_no_fleet(cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PCM_P2P_FLEET", raising=False)
    files = []
    for version in (1, 2):
        files.append(tmp_path / f"app-{version}.gz")
        files[-1].write_bytes(gzip.compress(content(version)))
    planned = cli("release", "plan", *files, "--level", "1", "--json")
    assert planned.status == 0, planned.err
    assert planned.facts.keys() == PLAN_KEYS
    assert planned.facts["members"][0].keys() == {"path", "stored_bytes", "full_bytes", "delta_bytes"}
    assert planned.facts["delivered_bytes"] == files[1].stat().st_size
    text = cli("release", "plan", *files, "--level", "1").out
    assert "an office with the old version fetches" in text
    assert "app-2.gz" in text


def test_plan_of_a_release_and_a_file_leaves_the_fleet_alone(
    cli: Command, fleet: Path, add: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for version in (1, 2):
        assert add(version).status == 0
    before = {path: path.stat().st_mtime_ns for path in fleet.rglob("*")}
    (tmp_path / "new.bin").write_bytes(content(3))
    line = ("release", "plan", "app@1", tmp_path / "new.bin", "--fleet", fleet, "--level", "1", "--json")
    planned = cli(*line).facts
    assert 0 < planned["office_with_base_bytes"] < planned["office_without_base_bytes"] / 20
    known = cli("release", "plan", "app@1", "app@2", "--fleet", fleet, "--level", "1", "--json").facts
    shown = cli("release", "show", "app", "2", "--fleet", fleet, "--json").facts
    assert known["office_with_base_bytes"] == shown["bases"][0]["office_with_base_bytes"]
    assert known["delivered_bytes"] == 400_000
    assert {path: path.stat().st_mtime_ns for path in fleet.rglob("*")} == before


def test_plan_names_what_there_is_not(
    cli: Command, fleet: Path, add: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PCM_P2P_FLEET", raising=False)
    assert add(1).status == 0
    file = tmp_path / "app.bin"
    homeless = cli("release", "plan", "app@1", file)
    assert (homeless.status, "Name the folder with --fleet." in homeless.err) == (2, True)
    unknown = cli("release", "plan", "app@9", file, "--fleet", fleet)
    assert (unknown.status, "There is app: 1." in unknown.err) == (2, True)
    absent = cli("release", "plan", tmp_path / "absent", file)
    assert (absent.status, "absent: cannot be read" in absent.err) == (2, True)
