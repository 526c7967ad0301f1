"""The tests of this room do not wait for the disk of the machine they run on."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    pass
