"""What several rooms' tests stand on: a fleet that was made once and is copied, and a disk that is not waited for."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio.testing
from hypothesis import settings
from repository_simulator import Clock, RepositorySimulator
from virtual_time import clock_that_waits_for_threads

# The same examples in every run, and as long for each as a busy machine takes: whoever changes one thing sees no failure of
# another by chance. ``pytest --hypothesis-profile search`` draws new ones, for whoever looks for what nobody thought of.
settings.register_profile("repeat", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("repeat")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those with a time limit of their own first: they take longest, and one at the end would leave the other workers idle."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@pytest.fixture(autouse=True)
def _turns_as_before() -> None:
    """Tasks that could go on at the same moment take turns by lot; here by the same lot in every run, as for hypothesis."""
    if settings.get_current_profile_name() == "repeat":
        trio._core._run._r.seed(1)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Commands that run for long set up logging for their process, which is also that of every test after them."""
    root, product = logging.getLogger(), logging.getLogger("pcm_p2p")
    handlers, levels = root.handlers[:], (root.level, product.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    product.setLevel(levels[1])


@pytest.fixture
def autojump_clock(monkeypatch: pytest.MonkeyPatch) -> trio.testing.MockClock:
    """Instead of pytest-trio's, which jumps while a thread is at work."""
    return clock_that_waits_for_threads(monkeypatch)


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """``fsync`` costs up to 30 ms on a busy disk, and a test cannot tell: its place is tested by being killed at it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def first_fleet(tmp_path_factory: pytest.TempPathFactory) -> RepositorySimulator:
    return RepositorySimulator(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def fleet(first_fleet: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    """A fleet of one person that published one policy."""
    return first_fleet.copied_to(tmp_path)


@pytest.fixture
def fleet_of_today(first_fleet: RepositorySimulator, tmp_path: Path) -> RepositorySimulator:
    """The same, by the clock of the system, with which TLS compares certificates."""
    copy = first_fleet.copied_to(tmp_path)
    copy.clock = Clock(datetime.now(UTC).replace(microsecond=0))
    copy.fleet.wall_clock = copy.clock
    copy.fleet.renew()
    copy.sign()
    copy.publish()
    return copy
