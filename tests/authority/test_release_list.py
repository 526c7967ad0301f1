"""Releases in a targets document, also in one that another tool made: named by paths, and no fact beside them stops the tool."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tuf.api.metadata import TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.release_list import COUNTERS, counters_gone, highest_counters, releases_of


def document(custom: Any, *, index: Any = None) -> Targets:
    targets = Targets(version=1, expires=datetime(2030, 1, 1, tzinfo=UTC))
    for path, facts in (("releases/web/shop@1.2.manifest", custom), ("releases/web/index.json", index)):
        info = TargetFile.from_data(path, b"x", ["sha256"])
        if facts is not None:
            info.unrecognized_fields["custom"] = facts
        targets.targets[path] = info
    return targets


@pytest.mark.parametrize(
    ("custom", "counter"),
    [
        ({"release": "shop", "version": "1.2", "counter": 7}, 7),
        ({"release": "tool", "version": "9", "counter": 7}, 7),
        (None, 0),
        ({}, 0),
        ([1], 0),
        ({"counter": "7"}, 0),
        ({"counter": True}, 0),
        ({"counter": -1}, 0),
    ],
)
def test_a_release_is_named_by_its_path_whatever_stands_beside_it(custom: Any, counter: int) -> None:
    (release,) = releases_of(document(custom), None)
    assert (release.name, release.version, release.counter) == ("shop", "1.2", counter)
    assert highest_counters(document(custom)) == {"shop": counter}


@pytest.mark.parametrize("index", [None, {}, {COUNTERS: [1]}, {COUNTERS: {"old": "3"}}, "text"])
def test_what_an_index_remembers_is_read_where_it_can_be(index: Any) -> None:
    assert highest_counters(document(None, index=index)) == {"shop": 0}
    assert highest_counters(document(None, index={COUNTERS: {"old": 3}})) == {"shop": 0, "old": 3}
    assert counters_gone(document(None, index={COUNTERS: {"old": 3}}), Targets(version=2)) == {"old": 3}
