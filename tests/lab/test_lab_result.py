"""Results: which figures come out of which answers, and that nothing is called done that is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pcm_p2p.content.manifest import Base, ChunkerParameters, Manifest, Segment
from pcm_p2p.ids import ChunkId
from pcm_p2p.lab.result import Counted, Picture, Result, RollOut, Totals, megabytes, needed_segments, percentile


def status(**changes: Any) -> dict[str, Any]:
    row = {"name": "web", "version": "2", "state": "applied", "chunks_have": 9, "chunks_total": 9, "detail": ""}
    base: dict[str, Any] = {
        "releases": [row],
        "transfer": {"wan_in_bytes": 10, "wan_metadata_bytes": 2, "lan_in_bytes": 30, "lan_out_bytes": 0},
        "compliance": {"pass": 1, "fail": 0, "error": 0, "not_run": 0, "not_applicable": 0, "manual": 0},
        "reports": {"outbox": 0, "acknowledged": 3, "carried": 0, "route": "direct"},
        "peers": {"sessions": 5, "site": 5},
        "problems": [],
    }
    return base | changes


def picture(**changes: Any) -> Picture:
    return Picture.of(status(**changes), "web", "2")


def release(**changes: Any) -> list[dict[str, Any]]:
    return [status()["releases"][0] | changes]


def test_patched_compliant_and_reported_is_done() -> None:
    assert picture().why_not("2") == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"releases": []}, "no version yet"),
        ({"releases": release(version="1")}, "1 is applied"),
        ({"releases": release(state="fetching", detail="no origin")}, "2 is fetching; no origin"),
        ({"releases": release(state="parked"), "problems": ["disk full"]}, "2 is parked; disk full"),
        ({"compliance": {"pass": 1, "fail": 1}}, "checks: 1 fail"),
        ({"compliance": {"pass": 1, "not_run": 2}}, "checks: 2 not_run"),
        ({"compliance": {"pass": 0, "manual": 1}}, "checks: none was run"),
        ({"reports": {"outbox": 1, "acknowledged": 3}}, "1 reports not acknowledged"),
        ({"reports": {"outbox": 0, "acknowledged": 0}}, "reports not acknowledged"),
    ],
)
def test_anything_less_says_what_is_missing(changes: dict[str, Any], why: str) -> None:
    assert why in picture(**changes).why_not("2")


def test_the_version_that_is_asked_for_is_looked_at() -> None:
    both = [*release(version="2", state="fetching"), *release(version="1")]
    assert picture(releases=both).state == "fetching"


def test_bytes_that_a_killed_device_forgot_are_added() -> None:
    counted = Counted()
    counted.see(Picture(wan_bytes=5, lan_bytes=1))
    counted.see(Picture(wan_bytes=9, lan_bytes=2))
    counted.restarted()
    counted.see(Picture(wan_bytes=6, lan_bytes=2))
    assert (counted.wan, counted.lan) == (9, 2)
    counted.see(Picture(wan_bytes=8, lan_bytes=5))
    assert (counted.wan, counted.lan) == (11, 5)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_a_value_that_occurred(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert found is not None
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6


def test_percentiles_of_six_devices() -> None:
    assert percentile([6, 1, 2, 5, 4, 3], 0.5) == 3
    assert percentile([6, 1, 2, 5, 4, 3], 0.99) == 6
    assert percentile([], 0.5) is None


def manifest(contents: list[bytes]) -> Manifest:
    """Two chunks of one byte a segment; segment ``i`` is ``100 + i`` bytes long."""
    ids = [ChunkId.of(content) for content in contents]
    segments = tuple(
        Segment(bytes([at]) * 32, 100 + at // 2, "full", at, min(2, len(ids) - at)) for at in range(0, len(ids), 2)
    )
    parameters = ChunkerParameters("fastcdc", 1, 1, 1)
    sizes = b"\1\0\0\0" * len(ids)
    return Manifest("pcm.manifest/1", "web", "1", 1, parameters, (), b"".join(ids), sizes, segments)


def test_a_segment_is_needed_if_one_of_its_chunks_is() -> None:
    old, new = manifest([b"a", b"b", b"c", b"d", b"e"]), manifest([b"a", b"b", b"c", b"x", b"y"])
    assert [size for _, size in needed_segments(new)] == [100, 101, 102]
    assert [size for _, size in needed_segments(new, old.chunks)] == [101, 102]
    assert needed_segments(new, new.chunks) == []


def test_a_delta_is_needed_instead_if_the_office_has_its_base() -> None:
    old, new = manifest([b"a", b"b", b"c", b"d"]), manifest([b"a", b"x", b"y", b"z"])
    aids = [ChunkId.of(content) for content in (b"b", b"c", b"d")]
    deltas = (
        Segment(b"p" * 32, 9, "delta", 0, 2, (0, 4)),
        Segment(b"q" * 32, 7, "delta", 0, 2, (4, 6), of=1),
        Segment(b"r" * 32, 8, "delta", 2, 2, (5, 6)),
    )
    new = structs.replace(
        new,
        segments=new.segments + deltas,
        bases=(Base("1", bytes(32)), Base("0", bytes(32))),
        aid_ids=b"".join(aids),
        aid_sizes=b"\1\0\0\0" * 3,
    )
    assert [size for _, size in needed_segments(new, old.chunks)] == [7, 8]
    assert [size for _, size in needed_segments(new, old.chunks[:2])] == [9, 101]
    assert [size for _, size in needed_segments(new)] == [100, 101]


PATCH = RollOut("2", 100, 50, 2, 4, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}, Totals(105, 1, 200))


def test_amplification_is_taken_by_needed_over_all_offices() -> None:
    assert PATCH.amplification == 1.05
    assert PATCH.plain_bytes == 400
    nothing = RollOut("2", 100, 0, 1, 1, {"a": 1.0}, Totals())
    assert nothing.amplification is None


def test_with_kernel_counters_the_yardstick_is_a_plain_download() -> None:
    counted = RollOut("2", 100, 50, 2, 4, {}, Totals(105, 1, 200, links=260), yardstick_bytes=125)
    assert counted.amplification == 1.04


def result(**changes: Any) -> Result:
    facts: dict[str, Any] = {
        "network": "loopback",
        "release": "web",
        "devices": dict.fromkeys("abcd", ""),
        "compliant": 4,
        "first": PATCH,
        "patch": PATCH,
        "console_url": "http://127.0.0.1:1/",
    }
    return Result(**(facts | changes))


def test_the_json_object_has_what_the_specification_names() -> None:
    facts = json.loads(json.dumps(result(faults=[{"kind": "kill", "target": "a", "at_s": 1.0, "for_s": 2.0}]).facts()))
    wanted = "schema network devices artifact_bytes needed_bytes wan_bytes wan_amplification lan_bytes completion_s compliant "
    assert set((wanted + "failed console_url faults").split()) <= facts.keys()
    assert facts["completion_s"] == {"p50": 2.0, "p99": 4.0, "max": 4.0}
    assert facts["needed_bytes"] == 100
    assert (facts["devices"], facts["compliant"], facts["failed"]) == (4, 4, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"devices": {"a": "", "b": "1 is applied"}},
        {"patch": None},
        {"patch": RollOut("2", 100, 50, 2, 4, {"a": 1.0, "b": 2.0, "c": 3.0}, Totals())},
        {"console_differs": "counts 3 devices as patched and compliant, not 4"},
    ],
)
def test_one_device_less_or_another_story_in_the_console_is_not_ok(changes: dict[str, Any]) -> None:
    assert result().ok
    assert not result(**changes).ok
    assert json.dumps(result(**changes).facts())
    assert result(**changes).rows()


def test_bytes_for_people() -> None:
    assert [megabytes(count) for count in (0, 999_400, 28_759_184)] == ["0 kB", "999 kB", "28.8 MB"]
