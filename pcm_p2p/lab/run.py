"""The story of a lab: the old version everywhere, then the new one, with faults on the way, and what was measured.

1. obtain two versions; found the fleet; publish the old one; enrol the devices and start all of them at once
2. wait until every device has the old version
3. publish the new version; the clock starts when it is published
4. faults happen as the scenario says; wait until every device has the new version, or time is up
5. in namespaces: one plain download of the same segments, to divide the kernel's counters by
6. wait until every device's reports are acknowledged, and ask the console whether it says the same

Statuses are asked over each device's control socket, ``LOOK_S`` apart: the resolution of the times.
"""

from __future__ import annotations

import base64
import fcntl
import http.client
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import trio
from rich.console import Console

from pcm_p2p.lab import download
from pcm_p2p.lab.doorway import serve_doorway
from pcm_p2p.lab.fleet import Ask, Fleet
from pcm_p2p.lab.network import Network, open_network
from pcm_p2p.lab.packages import Pair, Version, obtain
from pcm_p2p.lab.processes import LabError, Processes, open_processes
from pcm_p2p.lab.progress import Progress, View, open_progress
from pcm_p2p.lab.result import Counted, Picture, Result, RollOut, Totals, needed_segments
from pcm_p2p.lab.scenario import DeviceName, Fault, Scenario

LOOK_S = 0.3
"""Choice: finer than a person sees, coarse enough that 20 devices cost the machine nothing."""
WATCH_S = 2.0
REPORT_TIMEOUT_S = 30.0
CONSOLE_TIMEOUT_S = 10.0
DOWNLOAD_TIMEOUT_S = 600.0


@dataclass
class _Watch:
    """What the lab knows of the devices at present."""

    roster: tuple[DeviceName, ...]
    pictures: dict[DeviceName, Picture] = field(default_factory=dict)
    bytes: dict[DeviceName, Counted] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pictures = dict.fromkeys(self.roster, Picture())
        self.bytes = {device: Counted() for device in self.roster}

    def share_pct(self, version: str) -> float:
        """Chunks of ``version`` that the fleet has, of those that it will have."""
        pictures = [picture for picture in self.pictures.values() if picture.version == version]
        total = max((picture.chunks_total for picture in pictures), default=0)
        have = sum(picture.chunks_have for picture in pictures)
        return 100 * have / (total * len(self.roster)) if total else 0.0


async def run_lab(
    scenario: Scenario,
    folder: Path,
    ask: Ask,
    console: Console,
    finished: Callable[[Result, str], None],
    *,
    keep: bool = False,
    console_port: int = 0,
) -> None:
    """Run the story in a folder of its own below ``folder`` (the lab's); ``console`` shows how far it is.

    ``finished`` gets the result and the console's password while the fleet runs. With ``keep`` it goes on running until this
    is cancelled; then, and in any other case, everything is ended. Raises ``PcmError`` when the lab cannot go on.
    """
    started = trio.current_time()
    with _run_folder(folder / "fleets") as place:
        async with (
            open_processes(place / "logs") as processes,
            open_network(scenario, processes) as network,
            trio.open_nursery() as nursery,
        ):
            with open_progress(console) as progress:
                pair = await obtain(scenario.release, folder, processes.run, progress.step)
                fleet = Fleet(place, scenario, processes, network, ask)
                story = _Story(scenario, pair, fleet, processes, network, progress)
                result = await story.tell(nursery, started, console_port)
            finished(result, fleet.password)
            if keep:
                await story.watch_over()
            await processes.stop_all()
            nursery.cancel_scope.cancel()


class _Story:
    def __init__(
        self, scenario: Scenario, pair: Pair, fleet: Fleet, processes: Processes, network: Network, progress: Progress
    ) -> None:
        self._scenario = scenario
        self._pair = pair
        self._fleet = fleet
        self._processes = processes
        self._network = network
        self._progress = progress
        self._watch = _Watch(fleet.roster)
        self._faults: list[dict[str, Any]] = []
        self._down: set[str] = set()

    async def tell(self, nursery: trio.Nursery, started: float, console_port: int) -> Result:
        """Everything up to the result; the fleet still runs when this returns."""
        pair, fleet = self._pair, self._fleet
        self._progress.step("Founding the fleet: authority, desk, origin, collector …")
        await fleet.found()
        url = await self._console_url(nursery, console_port)
        self._progress.step(f"Publishing {pair.name} {pair.old.version} …")
        await fleet.publish(pair, pair.old, 1)
        self._progress.step(f"Enrolling {len(fleet.roster)} devices …")
        await fleet.enrol()
        self._progress.step(f"Starting all devices; they fetch {pair.old.version} …")
        fleet.start_daemons()
        first = await self._roll_out(pair.old, trio.current_time(), Totals(links=await self._links()), held=None)
        patch = None
        if len(first.seconds) == len(fleet.roster):
            self._progress.step(f"Publishing {pair.new.version} …")
            await fleet.publish(pair, pair.new, 2)
            before = Totals.over(self._watch.bytes.values(), await self._links())
            self._progress.step(f"The new version {pair.new.version} spreads …")
            patch = await self._roll_out(pair.new, trio.current_time(), before, held=pair.old)
            self._progress.step("Reports go to the collector …")
            await self._reported(pair.new)
        version = pair.new.version if patch else pair.old.version
        pictures = self._watch.pictures
        return Result(
            network=self._network.name,
            release=pair.name,
            devices={str(device): picture.why_not(version) for device, picture in pictures.items()},
            compliant=sum(picture.compliant and picture.has(pair.new.version) for picture in pictures.values()),
            first=first,
            patch=patch,
            console_url=url,
            faults=tuple(self._faults),
            duration_s=trio.current_time() - started,
            console_differs=await self._ask_console(url) if patch else "",
        )

    async def watch_over(self) -> None:
        """Until cancelled: nothing may end by itself. Raises ``LabError`` if something does."""
        while True:
            await self._look(self._pair.new.version, 0.0)
            await trio.sleep(WATCH_S)

    async def _console_url(self, nursery: trio.Nursery, port: int) -> str:
        host, inside = self._fleet.console
        if self._network.centre is not None:
            host, inside = "127.0.0.1", await nursery.start(serve_doorway, self._network.centre, host, inside, port)
        return f"http://{host}:{inside}/"

    async def _roll_out(self, version: Version, since: float, before: Totals, held: Version | None) -> RollOut:
        """Watch ``version`` reach the fleet, until everybody has it or time is up."""
        seconds: dict[str, float] = {}
        ahead = []
        if held is not None:
            ahead = [(fault, target) for fault in self._scenario.fault for target in self._scenario.targets(fault)]
        with trio.move_on_after(self._scenario.timeout_s):
            async with trio.open_nursery() as nursery:
                while len(seconds) < len(self._fleet.roster):
                    await self._look(version.version, trio.current_time() - since)
                    for device, picture in self._watch.pictures.items():
                        if picture.has(version.version):
                            seconds.setdefault(str(device), trio.current_time() - since)
                    share_pct = self._watch.share_pct(version.version)
                    for fault, target in [each for each in ahead if each[0].at_pct <= share_pct]:
                        ahead.remove((fault, target))
                        nursery.start_soon(self._happen, fault, target, since)
                    await trio.sleep(LOOK_S)
        self._faults += [_fault_facts(fault, target, None) for fault, target in ahead]
        totals = Totals.over(self._watch.bytes.values(), await self._links())
        segments = await trio.to_thread.run_sync(self._needed, version, held)
        return RollOut(
            version=version.version,
            artifact_bytes=version.file.stat().st_size,
            needed_bytes=sum(size for _, size in segments),
            sites=len(self._scenario.site),
            devices=len(self._fleet.roster),
            seconds=seconds,
            totals=totals.since(before),
            yardstick_bytes=await self._yardstick([segment for segment, _ in segments]) if held is not None else None,
        )

    def _needed(self, version: Version, held: Version | None) -> list[tuple[str, int]]:
        before = self._fleet.manifest(self._pair, held).chunks if held is not None else ()
        return needed_segments(self._fleet.manifest(self._pair, version), before)

    async def _look(self, version: str, seconds: float) -> None:
        """Ask every device once, at the same time, and show what they say."""
        fallen = [process for process in self._fleet.fallen() if process.name not in self._down]
        if fallen:
            raise LabError(
                f"{fallen[0].name} ended by itself with status {fallen[0].exit_status}; "
                f"its last words:\n{fallen[0].last_lines()}"
            )
        async with trio.open_nursery() as nursery:
            for device in self._fleet.roster:
                nursery.start_soon(self._see, device, version)
        self._progress.show(View(version, self._watch.pictures, self._watch.bytes, seconds))

    async def _see(self, device: DeviceName, version: str) -> None:
        if str(device) in self._down:
            return
        status = await self._fleet.status(device)
        if status is not None and str(device) not in self._down:
            picture = Picture.of(status, self._pair.name, version)
            self._watch.pictures[device] = picture
            self._watch.bytes[device].see(picture)

    async def _reported(self, version: Version) -> None:
        with trio.move_on_after(REPORT_TIMEOUT_S):
            while any(picture.why_not(version.version) for picture in self._watch.pictures.values()):
                await self._look(version.version, 0.0)
                await trio.sleep(LOOK_S)

    async def _happen(self, fault: Fault, target: str, since: float) -> None:
        """One fault, from beginning to end."""
        at_s = trio.current_time() - since
        self._progress.step(f"Fault: {fault.kind} {target}, for {fault.for_s:g} s …")
        names = {process.name for process in self._fleet.processes_of(target)}
        device = next((device for device in self._fleet.roster if str(device) == target), None)
        if device is not None:
            await self._see(device, self._pair.new.version)  # the counters of a killed daemon are lost with it
        self._down |= names
        await self._fleet.hurt(fault.kind, target)
        if device is not None:
            self._watch.pictures[device] = Picture(state="down")
            if fault.kind == "kill":
                self._watch.bytes[device].restarted()
        try:
            await trio.sleep(fault.for_s)
        finally:
            with trio.CancelScope(shield=True):
                await self._fleet.mend(fault.kind, target)
            self._down -= names
            self._faults.append(_fault_facts(fault, target, at_s))

    # Measuring

    async def _links(self) -> int | None:
        links = await self._network.link_bytes()
        return None if links is None else sum(links.values())

    async def _yardstick(self, segments: list[str]) -> int | None:
        """What the kernel counts on the first office's link for a plain download of ``segments``."""
        before = await self._network.link_bytes()
        if before is None or not segments:
            return None
        self._progress.step("One plain download of the same segments, as a yardstick …")
        site = self._scenario.site[0].name
        listing = self._fleet.folder / "segments.txt"
        await trio.Path(listing).write_text("\n".join(segments))
        command: list[str | Path] = [
            sys.executable,
            "-I",
            "-S",
            download.__file__,
            self._fleet.origin_url(site),
            listing,
        ]
        place = self._network.office_of(site)
        await self._processes.run("download", command, timeout_s=DOWNLOAD_TIMEOUT_S, namespace=place)
        after = await self._network.link_bytes()
        return None if after is None else after[site] - before[site]

    async def _ask_console(self, url: str) -> str:
        """What the console says otherwise: empty when it counts every device as patched and compliant."""
        pair, wanted, total = self._pair, len(self._fleet.roster), -1
        asked = {"release": f"{pair.name}@{pair.new.version}", "progress": "installed", "state": "compliant"}
        path = f"/api/devices?{urlencode(asked)}"
        with trio.move_on_after(CONSOLE_TIMEOUT_S):
            while True:
                try:
                    answer = await trio.to_thread.run_sync(
                        _get_json, url, path, self._fleet.password, abandon_on_cancel=True
                    )
                    total = int(answer["total"])
                except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
                    return f"does not answer: {error}"
                if total == wanted:
                    return ""
                await trio.sleep(LOOK_S)
        return f"counts {total} devices as patched and compliant, not {wanted}"


def _fault_facts(fault: Fault, target: str, at_s: float | None) -> dict[str, Any]:
    """``at_s`` None: the fleet was done before it was due."""
    return {
        "kind": fault.kind,
        "target": target,
        "at_s": None if at_s is None else round(at_s, 2),
        "for_s": fault.for_s,
    }


def _get_json(url: str, path: str, password: str) -> Any:
    host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=CONSOLE_TIMEOUT_S)
    try:
        credentials = base64.b64encode(f"lab:{password}".encode()).decode()
        connection.request("GET", path, headers={"Authorization": f"Basic {credentials}"})
        response = connection.getresponse()
        body = response.read(1 << 24)
        if response.status != 200:
            raise ValueError(f"status {response.status} for {path}")
        return json.loads(body)
    finally:
        connection.close()


@contextmanager
def _run_folder(parent: Path) -> Iterator[Path]:
    """A new folder for this run, locked while it lasts; folders of runs that have ended are removed first."""
    parent.mkdir(parents=True, exist_ok=True)
    for folder in list(parent.iterdir()):
        # Only what this function names is ever removed: the parent may be any folder that the user gave.
        lock = _try_lock(folder) if re.fullmatch(r"f[0-9]+", folder.name) else None
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    for number in itertools.count(1):
        place = parent / f"f{number}"
        try:
            place.mkdir()
        except FileExistsError:
            continue
        lock = _try_lock(place)
        if lock is not None:
            try:
                yield place
            finally:
                os.close(lock)
            return


def _try_lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of ``folder``; None if another lab holds it, or it is no folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
