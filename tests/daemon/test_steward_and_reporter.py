"""What a device does about documents and disks that are not as they should be: it says so, and does not end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from pcm_p2p.compliance.facts.observation import Observation
from pcm_p2p.compliance.inspection import Inspector
from pcm_p2p.compliance.report import PROBLEMS_MAX, pack, unpack_untrusted
from pcm_p2p.content.manifest import Manifest, decode_untrusted
from pcm_p2p.content.publishing.ingest import ingest
from pcm_p2p.daemon.meter import Totals
from pcm_p2p.daemon.reporter import RETRY_S, TOGETHER_S, Reporter
from pcm_p2p.daemon.steward import Steward
from pcm_p2p.errors import StorageError
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.desired import Change
from pcm_p2p.policy.document import AnyCheck
from pcm_p2p.policy.selector import DeviceFacts
from pcm_p2p.trust.view import Listed, Listing

ME = DeviceId(bytes(16))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = b"""
schema = "pcm.policy/1"
id = "base"
version = 1
mode = "enforce"
[[assign]]
release = "app"
version = "1"
to = { all = true }
[[assign.resource]]
kind = "file"
artifact = "%s"
path = "/opt/app"
[[check]]
id = "app"
resource = "file"
path = "/opt/app"
exists = true
"""
ACTIVATION = b'schema = "pcm.activation/1"\nscope = "all"\nnot_before = 2020-01-01T00:00:00Z\n'


class View:
    """The trusted documents, without the trust."""

    def __init__(self, manifest: bytes | None, *, artifact: bytes = b"app.bin") -> None:
        self.files = {"policies/base.toml": POLICY % artifact, "fleet/activation.toml": ACTIVATION}
        if manifest is not None:
            self.files["releases/main/app@1.manifest"] = manifest
        self.kept = {path: SimpleNamespace(sha256=path) for path in self.files}

    halts_known = True

    def listing(self) -> Listing:
        return Listing((Listed("policies/base.toml", "targets"),), (Listed("releases/main/app@1.manifest", "targets"),))

    def halts(self) -> tuple[()]:
        return ()

    def problems(self, now: object) -> tuple[str, ...]:
        return ()

    def read(self, path: str) -> bytes:
        return self.files[path]


class Client:
    def __init__(self, view: View) -> None:
        self.view = view

    def freshness(self) -> str:
        return "fresh"

    def digest(self) -> Any:
        return SimpleNamespace(root=1, timestamp=1, snapshot=1, targets=1)


class Applier:
    """Nothing is in place; ``fails`` says how often the disk refuses before it works."""

    def __init__(self, fails: int = 0) -> None:
        self.fails = fails
        self.applied: list[Change] = []

    def _disk(self) -> None:
        if self.fails:
            self.fails -= 1
            raise StorageError("the journal cannot be written")

    async def resume(self) -> None:
        self._disk()

    async def is_in_place(self, change: Change, _sha256_of: object) -> bool:
        return change in self.applied

    def why_wait(self, _change: Change) -> str:
        return ""

    async def apply(self, change: Change, _authorisation: object, _staged: object) -> Any:
        self._disk()
        self.applied.append(change)
        return SimpleNamespace(verdict="done", error="", remedy="", attempts=1)


class Fetcher:
    """Everything that is wanted is here at once."""

    def __init__(self) -> None:
        self.wanted: dict[Any, Manifest] = {}
        self.kept: dict[Any, Manifest] = {}

    async def want(self, manifest: Manifest, *, lan_only: bool = False) -> None:
        self.wanted[manifest.manifest_id] = manifest

    def unwant(self, manifest_id: Any) -> None:
        del self.wanted[manifest_id]

    def progress(self, _manifest_id: Any) -> Any:
        return SimpleNamespace(complete=True, waiting="", wan_bytes=0, lan_bytes=0, needed_bytes=0)

    async def wait_complete(self, _manifest_id: Any) -> None:
        await trio.lowlevel.checkpoint()


class Caretaker:
    """Notes what it is told to tend; ``at_hand`` is whether a package to go back to can be had, after a second."""

    def __init__(self) -> None:
        self.told: list[tuple[list[Any], list[Manifest], list[tuple[Manifest, int]]]] = []
        self.at_hand = True

    async def tend(self, wanted: Any, kept: Any, gather: Any) -> None:
        self.told.append((list(wanted), list(kept), list(gather)))
        await trio.lowlevel.checkpoint()

    async def gathered(self, _release: str) -> bool:
        await trio.sleep(1)
        return self.at_hand


class World:
    def __init__(self, folder: Path, view: View, *, fails: int = 0, floor: int = 0) -> None:
        self.applier, self.fetcher, self.caretaker = Applier(fails), Fetcher(), Caretaker()
        self.remembered: list[Manifest] = []
        self.replaced: tuple[Manifest, int] | None = None
        keepsakes = SimpleNamespace(
            manifests=lambda: self.remembered,
            counter=lambda _name: floor,
            remember=lambda manifest: self.remembered.count(manifest) or self.remembered.append(manifest),
            sweep=lambda: None,
            to_go_back=lambda _release: self.replaced,
        )
        self.steward = Steward(
            cast(Any, Client(view)),
            cast(Any, SimpleNamespace()),
            cast(Any, self.fetcher),
            cast(Any, self.applier),
            cast(Any, keepsakes),
            cast(Any, self.caretaker),
            DeviceFacts(ME, "office", ()),
            folder / "staging",
            interval_s=10,
            now=lambda: NOW,
            on_change=trio.lowlevel.checkpoint,
        )
        self.steward._stage = lambda *_: None  # type: ignore[method-assign]

    @asynccontextmanager
    async def at_work(self, seconds: float) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.steward.run)
            await trio.sleep(seconds)
            yield
            nursery.cancel_scope.cancel()

    @property
    def work(self) -> Any:
        (work,) = self.steward.works.values()
        return work


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time would pass while a thread works."""

    async def at_once(function: Any, *args: Any, **_: object) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr("trio.to_thread.run_sync", at_once)


@pytest.fixture(name="manifest")
def _manifest(tmp_path: Path) -> bytes:
    file = tmp_path / "app.bin"
    file.write_bytes(b"app")
    made = ingest([file], release="app", version="1", counter=4, work=tmp_path, level=0, processes=1)
    return made.manifest.encoded


async def test_a_release_is_fetched_staged_and_applied(
    tmp_path: Path, manifest: bytes, autojump_clock: MockClock
) -> None:
    world = World(tmp_path, View(manifest), floor=4)
    async with world.at_work(0.5):
        assert (world.work.state, world.work.detail.partition(",")[0]) == (
            "staged",
            "waits for the package that it replaces",
        )
        await trio.sleep(1)
        assert (world.work.state, world.work.detail, world.steward.problems) == ("applied", "", ())
    assert [change.title for change in world.applier.applied] == ["app 1"]


async def test_a_release_is_wanted_until_it_is_in_place_and_kept_from_then_on(
    tmp_path: Path, manifest: bytes, autojump_clock: MockClock
) -> None:
    world = World(tmp_path, View(manifest), floor=4)
    made = decode_untrusted(manifest)
    world.replaced = (made, 0b1)
    async with world.at_work(0.5):
        assert world.caretaker.told == 2 * [([made.manifest_id], [], [(made, 0b1)])]
        await trio.sleep(1)
        assert world.caretaker.told[-1] == ([], [made], [])
        world.applier.applied.clear()
        await world.steward._turn()
        assert ([made.manifest_id], [made], [(made, 0b1)]) in world.caretaker.told, "it was removed by hand"


async def test_a_change_is_made_also_when_the_package_before_is_nowhere(
    tmp_path: Path, manifest: bytes, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, View(manifest), floor=4)
    world.caretaker.at_hand = False
    async with world.at_work(2):
        assert world.work.state == "applied"
    assert "app 1: the package that it replaces is not at hand" in caplog.text


@pytest.mark.parametrize("garbage", [b"", b"\x81", b"noise" * 100])
async def test_a_signed_manifest_that_does_not_read_fails_its_release_and_not_the_daemon(
    tmp_path: Path, garbage: bytes, autojump_clock: MockClock
) -> None:
    world = World(tmp_path, View(garbage))
    async with world.at_work(1):
        assert world.work.state == "failed"
        assert "not usable by this version" in world.work.detail
    assert (world.fetcher.wanted, world.applier.applied) == ({}, [])


async def test_a_release_below_the_floor_is_neither_fetched_nor_applied(
    tmp_path: Path, manifest: bytes, autojump_clock: MockClock
) -> None:
    world = World(tmp_path, View(manifest), floor=5)
    async with world.at_work(1):
        assert world.work.state == "failed"
        assert "counter 4 is below 5" in world.work.detail
    assert (world.fetcher.wanted, world.applier.applied) == ({}, [])


async def test_a_policy_that_asks_for_an_absent_artifact_is_told_to_be_corrected(
    tmp_path: Path, manifest: bytes, autojump_clock: MockClock
) -> None:
    world = World(tmp_path, View(manifest, artifact=b"other.bin"))
    async with world.at_work(1):
        assert (world.work.state, "no artifact other.bin" in world.work.detail) == ("failed", True)


async def test_a_manifest_that_has_not_come_yet_is_waited_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    world = World(tmp_path, View(None))
    async with world.at_work(1):
        assert (world.work.state, "has not arrived" in world.work.detail) == ("wanted", True)


async def test_a_disk_that_takes_no_journal_is_a_problem_until_it_does(
    tmp_path: Path, manifest: bytes, autojump_clock: MockClock
) -> None:
    world = World(tmp_path, View(manifest), fails=2)
    async with world.at_work(1):
        assert world.steward.problems == ("the journal cannot be written",)
        assert world.applier.applied == [], "what was interrupted is ended before anything else"
        await trio.sleep(40)
        assert (world.work.state, list(world.steward.problems)) == ("applied", [])
        world.applier.fails = 1
        await world.steward.remedy(Change("app", "1", world.work.assigned.resources))
        assert world.applier.fails == 0, "a remedy that the disk refuses is logged"


async def test_checks_run_on_change_also_while_no_report_can_be_made(
    tmp_path: Path, manifest: bytes, autojump_clock: MockClock
) -> None:
    tried: list[float] = []
    observed: list[float] = []

    class Carrier:
        async def report(self, _body: object) -> None:
            tried.append(trio.current_time() - start)
            raise StorageError("nobody to seal a report to")

    class Prober:
        def observe(self, check: AnyCheck, timeout_s: float) -> Observation:
            observed.append(trio.current_time() - start)
            return {"exists": False}

    async def learn() -> None:
        learnt.append(len(observed))

    learnt: list[int] = []
    world = World(tmp_path, View(manifest))
    reporter = Reporter(
        world.steward,
        cast(Any, world.steward._client),
        cast(Any, Carrier()),
        Inspector(Prober(), lambda: 0),
        cast(Any, SimpleNamespace(totals=Totals)),
        ME,
        "office",
        tmp_path / "findings.json",
        interval_s=7_200,
        now=lambda: NOW,
        remedy=world.steward.remedy,
        learn=learn,
    )
    async with world.at_work(0.5), trio.open_nursery() as nursery:
        start = trio.current_time()
        nursery.start_soon(reporter.run)
        await trio.sleep(5)
        reporter.poke(assess=True)
        await trio.sleep(5)
        assert [round(at) for at in observed] == [round(TOGETHER_S), round(5 + TOGETHER_S)]
        assert reporter.problem == "nobody to seal a report to"
        await trio.sleep(3 * RETRY_S)
        assert len(observed) == 2, "trying to report again asks the device nothing"
        assert len(tried) in (4, 5)
        nursery.cancel_scope.cancel()
    assert learnt == [0, 1], "who looks with the eyes of the apply service has it know the policies first"
    assert [finding.state for finding in reporter.findings] == ["fail"]
    assert (tmp_path / "findings.json").exists()


async def test_what_a_device_does_not_follow_of_signed_documents_is_in_its_report(
    tmp_path: Path, manifest: bytes, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = View(manifest)
    monkeypatch.setattr(view, "problems", lambda _now: ("site berlin: why\x1b[2J", *["more"] * 100))
    world = World(tmp_path, view)
    reporter = Reporter(
        world.steward,
        cast(Any, world.steward._client),
        cast(Any, None),
        Inspector(cast(Any, None), lambda: 0),
        cast(Any, SimpleNamespace(totals=Totals)),
        ME,
        "office",
        tmp_path / "findings.json",
        interval_s=7_200,
        now=lambda: NOW,
        remedy=world.steward.remedy,
    )
    async with world.at_work(0.5):
        problems = unpack_untrusted(pack(reporter.body())).problems
    assert len(problems) == PROBLEMS_MAX
    assert problems[0] == "site berlin: why\N{REPLACEMENT CHARACTER}[2J", "what others signed paints no screen"
