"""The tests of this room do not wait for the disk of the machine they run on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository_simulator import RepositorySimulator


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    pass


@pytest.fixture
def fleet_in_memory(first_fleet: RepositorySimulator) -> Iterator[RepositorySimulator]:
    """On a disk that is none, where there is one: for tests that make thousands of folders."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield first_fleet.copied_to(Path(folder))
