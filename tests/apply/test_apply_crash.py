"""SIGKILL at every event of a change, of its rolling back, and of the restart: done, rolled back or parked, never between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apply_kit import HAS_DPKG


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where possible: a killed process is the matter here, and hundreds of flushes wait for everybody's disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="pcm-crash-") as name:
        yield Path(name)


def crashes(scenario: str, folder: Path) -> list[dict[str, Any]]:
    answer = subprocess.run(
        [sys.executable, Path(__file__).with_name("crash_child.py"), scenario, folder],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr[-4_000:]
    return [json.loads(line) for line in answer.stdout.splitlines()]


def check(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["is_before"] or row["is_after"], f"half made after a crash at: {row}"
        if row["verdict"] == "done":
            assert row["is_after"], row
        if row["verdict"] == "rolled_back":
            assert row["is_before"], row
        assert (row["verdict"] is not None) is row["begun"], row
        assert row["ended"], row
        assert row["left"] == ["tool.json"], "no journal, no back-up, no temporary file stays behind"
        assert row["attempts"] <= 2, row


def test_killed_at_any_event_a_change_of_files_ends_whole(folder: Path) -> None:
    rows = crashes("files", folder)
    check(rows)
    assert {row["verdict"] for row in rows} == {None, "done", "rolled_back"}
    assert {row["again"] for row in rows} == {"done"}
    assert {"before rename", "before symlink", "before fsync", "before unlink"} <= {row["event"] for row in rows}


def test_killed_while_rolling_back_a_restart_rolls_back(folder: Path) -> None:
    rows = crashes("fails", folder)
    check(rows)
    assert {row["verdict"] for row in rows} == {None, "rolled_back"}
    assert {row["again"] for row in rows} == {"rolled_back"}
    assert "before undo" in {row["event"] for row in rows}


def test_killed_again_while_the_restart_cleans_up(folder: Path) -> None:
    rows = crashes("twice", folder)
    check(rows)
    assert {row["verdict"] for row in rows} == {None, "rolled_back"}
    assert "after undo" in {row["event"] for row in rows}


@pytest.mark.debian
@pytest.mark.skipif(not HAS_DPKG, reason="dpkg and dpkg-deb are not here")
def test_killed_at_any_arrow_a_change_with_packages_ends_whole(folder: Path) -> None:
    rows = crashes("packages", folder)
    check(rows)
    assert {row["again"] for row in rows} == {"done"}
    assert {row["event"] for row in rows} >= {"after prepare", "before change", "after change", "before Receipts.put"}
