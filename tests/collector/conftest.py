"""One demonstration archive for all tests that only read it, and a console over it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from console_client import NOW_MS
from seed_archive import seed


@pytest.fixture(scope="session")
def demo_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "archive.sqlite"

    async def work() -> None:
        await seed(path, now_ms=NOW_MS, reports_each=2)

    trio.run(work)
    return path
