"""A process that kills itself: makes one change again and again, each time with SIGKILL one event later; says what was found.

Usage: ``crash_child.py SCENARIO FOLDER``; one JSON object per crash on standard output. Scenarios: ``files`` (every rename,
link, unlink, mkdir and fsync is an event), ``packages`` (every arrow of the transaction is one, with the real dpkg),
``fails`` (as files, but the last step fails, so the crashes hit the rolling back), ``twice`` (killed at the
same place each time, and then while the restart cleans up, at each event of that).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apply_kit import Artifacts, authorised, make_device, make_transaction, picture

from pcm_p2p.apply.command import run
from pcm_p2p.apply.root import Root
from pcm_p2p.apply.transaction import Transaction
from pcm_p2p.policy.desired import Authorisation, Change
from pcm_p2p.policy.resource import ArchiveResource, FileResource, PackageResource, Resource

SYSTEM_CALLS = ("rename", "replace", "symlink", "unlink", "mkdir", "rmdir", "fsync", "link")


class Fuse:
    """Counts events, tells each to ``told``, and ends the process at one of them."""

    def __init__(self, at: int, told: int) -> None:
        self._left = at
        self._told = told

    def event(self, name: str) -> None:
        os.write(self._told, f"{name}\n".encode())
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, label: str, *, after: bool = False) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            self.event(f"before {label}")
            answer = original(*arguments, **keywords)
            if after:  # elsewhere the next event comes before anything else happens
                self.event(f"after {label}")
            return answer

        setattr(owner, name, watched)


class Scenario:
    def __init__(self, name: str, base: Path) -> None:
        self.packages = name == "packages"
        self.base = base
        self.artifacts = Artifacts(base / "staged")
        self.template = base / "template"
        for version in ("1", "2"):
            self.artifacts.put_tar(f"app-{version}.tar", {"bin/app": version.encode(), "doc": b"text"})
            self.artifacts.put(f"tool-{version}", f"tool {version}".encode())
            if self.packages:
                self.artifacts.put_deb(f"a-{version}.deb", "pcm-test-a", version, {"usr/share/a/x": version})
                self.artifacts.put_deb(f"b-{version}.deb", "pcm-test-b", version, {f"usr/share/b/{version}": version})
        (self.template / "root").mkdir(parents=True)
        outcome = self.transaction(self.template).run(*self.change("1"), self.artifacts)
        assert outcome.verdict == "done", outcome
        self.before = self.state(self.template)
        if name == "fails":
            (self.artifacts.folder / "tool-2").write_bytes(b"tampered")
            self.after = self.before
        else:
            done = self.copy("after")
            assert self.transaction(done).run(*self.change("2"), self.artifacts).verdict == "done"
            self.after = self.state(done)
            assert self.after != self.before

    def copy(self, name: str) -> Path:
        shutil.rmtree(self.base / name, ignore_errors=True)
        shutil.copytree(self.template, self.base / name, symlinks=True)
        return self.base / name

    def change(self, version: str) -> tuple[Change, Authorisation]:
        resources: list[Resource] = [
            ArchiveResource(artifact=f"app-{version}.tar", name="app", path="/opt/app"),
            FileResource(
                path="/etc/app.conf", content=f"version = {version}\n", mode=0o600 if version == "2" else None
            ),
            FileResource(path=f"/usr/lib/new-{version}/note", content="new\n"),
            FileResource(path="/usr/bin/tool", artifact=f"tool-{version}", mode=0o755),
        ]
        if self.packages:
            resources[:0] = [PackageResource(artifact=f"a-{version}.deb")]
            resources += [PackageResource(artifact="b-2.deb")] if version == "2" else []
        return authorised(*resources, version=version)

    def previous(self, name: str, version: str, _architecture: str) -> Path:
        return self.artifacts.folder / f"{name[-1]}-{version}.deb"

    def transaction(self, place: Path, fuse: Fuse | None = None) -> Transaction:
        device = make_device(Root(place / "root"), place / "work", previous=self.previous)
        made = make_transaction(place / "apply", device)
        if fuse is not None:
            for verb in ("prepare", "change", "undo", "commit"):
                fuse.around(device, verb, verb, after=True)
            for owner, verb in ((made._journal, "write"), (made._journal, "remove"), (made._receipts, "put")):
                fuse.around(owner, verb, f"{type(owner).__name__}.{verb}")
            if not self.packages:
                for call in SYSTEM_CALLS:
                    fuse.around(os, call, call)
        return made

    def state(self, place: Path) -> dict[str, str]:
        seen = {name: what for name, what in picture(place / "root").items() if not name.startswith("var")}
        if self.packages:
            listing = (
                "dpkg-query",
                f"--admindir={place}/root/var/lib/dpkg",
                "-W",
                "-f",
                "${Package} ${Version} ${Status}\n",
            )
            seen["dpkg"] = run(listing, 20.0).text
        return seen

    def crash(self, place: Path, act: Callable[[Transaction], object], at: int) -> tuple[bool, list[str]]:
        """Run ``act`` in a process that dies at event ``at``: whether it did, and the events until then."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            act(self.transaction(place, Fuse(at, writer)))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as told:
            events = told.read().splitlines()
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or status == 0, f"the child failed after {events[-3:]}"
        return os.WIFSIGNALED(status), events

    def report(self, place: Path, event: str) -> None:
        """Restart, and say what was found; then try the change once more."""
        begun = (place / "apply/journal.json").exists()
        outcome = self.transaction(place).resume()
        now = self.state(place)
        again = self.transaction(place).run(*self.change("2"), self.artifacts)
        row = {
            "event": event,
            "begun": begun,
            "verdict": outcome.verdict if outcome else None,
            "is_before": now == self.before,
            "is_after": now == self.after,
            "again": again.verdict,
            "attempts": again.attempts,
            "ended": self.state(place) == self.after,
            "left": sorted(path.name for path in (place / "apply").rglob("*") if path.is_file()),
        }
        print(json.dumps(row), flush=True)


def main() -> None:
    name, base = sys.argv[1], Path(sys.argv[2])
    scenario = Scenario(name, base)

    def forward(transaction: Transaction) -> object:
        return transaction.run(*scenario.change("2"), scenario.artifacts)

    def restart(transaction: Transaction) -> object:
        return transaction.resume()

    never = 1_000_000
    _, events = scenario.crash(scenario.copy("place"), forward, never)
    if name == "twice":
        half_made = len(events) - events[::-1].index("after change")  # the last step is made, and not yet recorded
        for at in range(1, never):
            place = scenario.copy("place")
            scenario.crash(place, forward, half_made)
            died, events = scenario.crash(place, restart, at)
            if not died:
                return
            scenario.report(place, events[-1])
    for at in range(1, len(events) + 1):
        place = scenario.copy("place")
        died, _ = scenario.crash(place, forward, at)
        assert died
        scenario.report(place, events[at - 1])


if __name__ == "__main__":
    main()
