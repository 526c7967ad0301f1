"""Inspections: each check alone with its deadline; what was decided stays beside what could not be decided."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from pcm_p2p.compliance.facts.observation import Observation, Unknown
from pcm_p2p.compliance.facts.prober import Prober
from pcm_p2p.compliance.inspection import GRACE_S, Inspector
from pcm_p2p.policy.desired import AssignedCheck
from pcm_p2p.policy.document import AnyCheck


def assigned(check: str, path: str = "/a", version: int = 1) -> AssignedCheck:
    made = msgspec.convert({"id": check, "resource": "file", "path": path, "exists": True}, AnyCheck)
    return AssignedCheck("policy", version, "observe", made, None)


class Fakes:
    """``facts`` by check; an event instead of a fact is waited for, as a dead mount is."""

    def __init__(self, **facts: object) -> None:
        self.facts = facts
        self.asked: list[str] = []

    def observe(self, check: AnyCheck, timeout_s: float) -> Observation:
        self.asked.append(check.id)
        fact = self.facts[check.id]
        if isinstance(fact, threading.Event):
            fact.wait(600)
            return {"exists": True}
        return {"exists": fact}  # type: ignore[dict-item]


class Clock:
    now_ms = 100

    def __call__(self) -> int:
        return self.now_ms


async def test_findings_come_in_the_order_of_the_checks_and_others_are_forgotten() -> None:
    inspector = Inspector(Fakes(a=True, b=False, c=True), Clock())
    found = await inspector.inspect([assigned("b"), assigned("a")])
    assert [(finding.check, finding.state) for finding in found] == [("b", "fail"), ("a", "pass")]
    await inspector.inspect([assigned("c")])
    assert [finding.check for finding in inspector.findings] == ["c"]


async def test_what_was_decided_is_remembered_over_a_restart() -> None:
    clock = Clock()
    first = Inspector(Fakes(a=True), clock)
    kept = await first.inspect([assigned("a")])
    clock.now_ms = 200
    second = Inspector(Fakes(a=Unknown("error", "permission denied")), clock)
    second.remember(kept)
    (finding,) = await second.inspect([assigned("a")])
    assert (finding.state, finding.decided, finding.decided_at_ms, finding.last_attempt_ms) == (
        "error",
        "pass",
        100,
        200,
    )


async def test_probes_that_hang_cost_their_own_checks_and_not_the_inspection(
    mock_clock: trio.testing.MockClock,
) -> None:
    """Time passes only for those: the clock jumps when a thread waits for what never comes."""
    hang, found = threading.Event(), []

    async def inspect() -> None:
        found.extend(await inspector.inspect([assigned(check) for check in ("a", "hang", "worse", "later")]))

    try:
        probes = Fakes(a=True, hang=hang, worse=hang, later=True)
        inspector = Inspector(probes, Clock(), check_timeout_s=10.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inspect)
            for check in ("hang", "worse"):
                while check not in probes.asked:
                    await trio.lowlevel.checkpoint()
                mock_clock.jump(10.0 + GRACE_S)
        assert [finding.state for finding in found] == ["pass", "not_run", "not_run", "not_run"]
        assert "hang" in found[-1].message
        assert probes.asked == ["a", "hang", "worse"]
    finally:
        hang.set()


async def test_a_cancelled_inspection_changes_nothing() -> None:
    hang = threading.Event()
    try:
        inspector = Inspector(Fakes(a=True, hang=hang), Clock())
        before = await inspector.inspect([assigned("a")])
        with trio.move_on_after(0.05):
            await inspector.inspect([assigned("a"), assigned("hang")])
            pytest.fail("it did not hang")
        assert inspector.findings == before
    finally:
        hang.set()


async def test_real_probes_are_run(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    found = await Inspector(Prober(tmp_path), Clock()).inspect([assigned("a"), assigned("b", "/b")])
    assert [finding.state for finding in found] == ["pass", "fail"]
