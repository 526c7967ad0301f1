"""Two real processes with two users: the daemon on the network is nobody in particular, the apply service is root.

The device is adopted with the command's own function; the daemon's user is a number without an account.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from fleet_of_processes import Device, Fleet, noise, open_fleet

from pcm_p2p.apply.dialogue import Answer, Reset
from pcm_p2p.daemon.applying.adoption import adopt
from pcm_p2p.daemon.applying.client import ask_once
from pcm_p2p.lab.processes import Process

DAEMON_UID = 61_234
OTHER_UID = 61_235

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="two users take root"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not here"),
]


@pytest.fixture(name="folder")
def _folder() -> Iterator[Path]:
    """Below /tmp, with a way in for everybody: the daemon's user must reach its own state."""
    folder = Path(tempfile.mkdtemp(prefix="pcm-two-users-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def as_user(uid: int, *words: str | Path) -> list[str | Path]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *words]


@functools.cache
def interpreter() -> str:
    """A Python that the daemon's user can start: this one may lie in a home folder. Skips where there is none."""
    same = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    environment = {**os.environ, **LIBRARIES}
    for path in (sys.executable, same):
        words = as_user(
            DAEMON_UID, path, "-c", "import os, sys, pcm_p2p; sys.exit(not os.access(sys.executable, os.X_OK))"
        )
        if subprocess.run(words, check=False, capture_output=True, env=environment, timeout=120).returncode == 0:
            return path
    pytest.skip("no Python here can be started by another user")


def confined(name: str, python: str) -> list[str | Path]:
    """What puts a process under the filters of its unit, where systemd's tools say what they are."""
    unit = Path(__file__).resolve().parents[2] / "bootstrap" / "units" / f"{name}.service"
    sandbox = Path(__file__).with_name("unit_sandbox.py")
    return [python, sandbox, unit] if shutil.which("systemd-analyze") else []


LIBRARIES = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), *site.getsitepackages()])}


class Split:
    """A device in two processes."""

    def __init__(self, fleet: Fleet, device: Device) -> None:
        self.fleet, self.device = fleet, device
        self.state = device.folder / "apply-state"
        self.socket = device.folder / "socket-folder" / "socket"
        self.service: Process | None = None

    def adopt(self) -> None:
        adopt(
            self.device.state,
            self.state,
            client=str(DAEMON_UID),
            socket=self.socket,
            apply_root=str(self.device.root),
        )

    def start_service(self) -> None:
        words = ["-m", "pcm_p2p.cli.main", "apply-service", "run", "--state", self.state]
        words = [*confined("pcm-p2p-apply", sys.executable), sys.executable, *words]
        self.service = self.fleet.processes.start("apply-service", words)

    def start_daemon(self) -> None:
        words = as_user(
            DAEMON_UID,
            *confined("pcm-p2p", interpreter()),
            interpreter(),
            "-m",
            "pcm_p2p.daemon",
            "--state",
            self.device.state,
        )
        self.device.process = self.fleet.processes.start(self.device.name, words, environment=LIBRARIES)

    async def kill_service(self) -> None:
        assert self.service is not None
        self.service.signal(signal.SIGKILL)
        await self.service.wait_ended()


def kernel_says(process: Process) -> str:
    return Path(f"/proc/{process.pid}/status").read_text()


def users_of(process: Process) -> set[int]:
    line = next(line for line in kernel_says(process).splitlines() if line.startswith("Uid:"))
    return {int(number) for number in line.split()[1:]}


async def ask_as(uid: int, path: Path, *requests: str) -> list[str]:
    """What each of ``requests`` brings when this user asks, a line each."""
    script = (
        "import pathlib\n"
        "from pcm_p2p.apply.dialogue import *\n"
        "from pcm_p2p.daemon.applying.client import ask_once\n"
        f"for request in ({', '.join(requests)},):\n"
        f"  try: print(ask_once(pathlib.Path({str(path)!r}), request))\n"
        "  except Exception as error: print(type(error).__name__, error)\n"
    )
    words = [str(word) for word in as_user(uid, interpreter(), "-c", script)]
    with trio.fail_after(60):
        done = await trio.run_process(words, capture_stdout=True, env={**os.environ, **LIBRARIES})
    return done.stdout.decode().splitlines()


async def test_a_daemon_that_is_nobody_keeps_a_device_of_roots(folder: Path) -> None:
    async with open_fleet(folder) as fleet:
        device = await fleet.enrol("one")
        split = Split(fleet, device)
        split.adopt()
        fleet.release(noise(200_000), version="1")
        fleet.publish()
        split.start_service()
        split.start_daemon()
        await fleet.until_applied(device)
        assert device.process is not None
        assert split.service is not None
        assert (users_of(device.process), users_of(split.service)) == ({DAEMON_UID}, {0})
        if shutil.which("systemd-analyze"):
            assert "Seccomp:\t2\n" in kernel_says(device.process), "as in its unit"
        assert device.installed() == noise(200_000)
        assert (device.root / "opt/app").stat().st_uid == 0
        assert all(path.lstat().st_uid == DAEMON_UID for path in device.state.rglob("*"))
        assert all(path.lstat().st_uid == 0 for path in split.state.rglob("*"))
        await fleet.until(device, lambda status: status["compliance"]["pass"] == 1)

        # Who may speak
        mine = await ask_as(DAEMON_UID, split.socket, "GetStanding()", "Reset('app')")
        assert "site='office'" in mine[0]
        assert "only root may reset" in mine[1]
        (standing,) = await ask_as(OTHER_UID, split.socket, "GetStanding()")
        assert "Permission denied" in standing
        split.socket.chmod(0o666)
        (standing,) = await ask_as(OTHER_UID, split.socket, "GetStanding()")
        assert "gave no answer" in standing, "the kernel says who it is"
        assert await trio.to_thread.run_sync(ask_once, split.socket, Reset("app")) == Answer(yes=False)

        # Either may be killed
        await split.kill_service()
        fleet.release(noise(200_000, 2), version="2")
        fleet.publish()
        await fleet.until(device, lambda status: any("apply service" in problem for problem in status["problems"]))
        assert device.installed() == noise(200_000)
        await fleet.kill(device)
        split.start_daemon()
        split.start_service()
        await fleet.until_applied(device, version="2")
        assert device.installed() == noise(200_000, 2)
        assert await fleet.stop(device) == 0
        split.service.signal(signal.SIGTERM)
        assert await split.service.wait_ended() == 0
        assert not split.socket.exists()
