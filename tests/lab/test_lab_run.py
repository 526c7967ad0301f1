"""The main job, small: a real fleet of real processes takes a real release, and the lab says truly how that went."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pcm_p2p.lab.run import _run_folder, _try_lock

SIZE = 2_100_000
SCENARIO = """
title = "Two devices, one of which is killed on the way"
timeout_s = 200.0

[[site]]
devices = 2
wan_bytes_per_s = 500_000

[release]
old = "{folder}/old.bin"
new = "{folder}/new.bin"

[devices]
settle_s = 1.0

[[fault]]
kind = "kill"
target = "office-1/d02"
at_pct = 1
for_s = 0.5
"""


def children_of(folder: Path) -> list[str]:
    """Processes whose command line names ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found


@pytest.mark.timeout(600)
def test_two_devices_take_a_release_from_ingest_to_the_console(tmp_path: Path) -> None:
    rng = random.Random(5)
    (tmp_path / "old.bin").write_bytes(rng.randbytes(SIZE))
    (tmp_path / "new.bin").write_bytes((tmp_path / "old.bin").read_bytes()[: SIZE // 3] + rng.randbytes(SIZE * 2 // 3))
    (tmp_path / "lab.toml").write_text(SCENARIO.format(folder=tmp_path))
    command = ["-m", "pcm_p2p.cli.main", "lab", "run", tmp_path / "lab.toml", "--json", "--folder", tmp_path / "lab"]
    lab = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=250, check=False)
    assert lab.returncode == 0, lab.stderr
    facts = json.loads(lab.stdout)
    assert (facts["schema"], facts["devices"], facts["compliant"], facts["failed"]) == ("pcm.lab/1", 2, 2, 0)
    assert facts["console"] == "agrees"
    assert facts["artifact_bytes"] == SIZE
    assert 0 < facts["needed_bytes"] < 1.01 * SIZE
    assert [fault["kind"] for fault in facts["faults"]] == ["kill"]
    assert facts["first_version"]["wan_amplification"] <= 1.05
    assert children_of(tmp_path) == []


def test_a_wrong_scenario_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text("[[site]]\ndevcies = 3\n")
    command = ["-m", "pcm_p2p.cli.main", "lab", "run", tmp_path / "lab.toml", "--folder", tmp_path / "lab"]
    lab = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, check=False)
    assert lab.returncode == 2
    assert "lab.toml:2: devcies: unknown key" in lab.stderr
    assert "devices" in lab.stderr
    assert not (tmp_path / "lab").exists()


def test_folders_of_ended_runs_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in ("f1", "f2", "photos"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text("x")
    lock = _try_lock(tmp_path / "f2")
    assert lock is not None
    with _run_folder(tmp_path) as place:
        assert place == tmp_path / "f1"
        assert list(place.iterdir()) == []
        assert (tmp_path / "f2/content").exists()
        assert (tmp_path / "photos/content").exists()
        assert _try_lock(place) is None


def test_a_link_in_the_place_of_a_run_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "fleets").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/content").write_text("x")
    (tmp_path / "fleets/f1").symlink_to(tmp_path / "precious")
    with _run_folder(tmp_path / "fleets") as place:
        assert place == tmp_path / "fleets/f2"
    assert (tmp_path / "precious/content").exists()


if sys.platform != "linux":
    pytestmark = pytest.mark.skip(reason="a lab needs Linux: process file descriptors, parent-death signals")
