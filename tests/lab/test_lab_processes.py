"""Processes of a lab: ended in every way a lab can end, with their own children, and nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from pcm_p2p.lab.processes import LabError, open_processes

PARENT_OF_A_CHILD = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
open(sys.argv[1], "w").write(f"{child.pid}\\n")
time.sleep(600)
"""
DEAF = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").write("deaf\\n")
time.sleep(600)
"""


@pytest.fixture
def said(tmp_path: Path) -> Callable[[str], Path]:
    """Makes named pipes: a child writes its line there, and reading waits for it."""

    def make(name: str) -> Path:
        os.mkfifo(tmp_path / name)
        return tmp_path / name

    return make


async def heard(pipe: Path) -> str:
    with trio.fail_after(60):
        return await trio.to_thread.run_sync(pipe.read_text, abandon_on_cancel=True)


def exists(pid: int) -> bool:
    """Whether ``pid`` runs: a zombie waiting for init has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def wait_gone(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with trio.fail_after(60):
        await trio.lowlevel.wait_readable(descriptor)
    os.close(descriptor)


async def test_a_command_that_fails_says_what_it_said(tmp_path: Path) -> None:
    async with open_processes(tmp_path) as processes:
        with pytest.raises(LabError, match=r"(?s)step ended with status 3.*no such thing"):
            await processes.run("step", ["sh", "-c", "echo no such thing >&2; exit 3"], timeout_s=120.0)


async def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    async with open_processes(tmp_path) as processes:
        with pytest.raises(LabError, match="did not end within"):
            await processes.run("step", ["sleep", "600"], timeout_s=0.05)
        assert processes.running == ()


async def test_output_is_returned_and_messages_go_to_the_log(tmp_path: Path) -> None:
    async with open_processes(tmp_path) as processes:
        facts = await processes.run("step", ["sh", "-c", "echo facts; echo words >&2"], timeout_s=120.0)
    assert facts == b"facts\n"
    assert (tmp_path / "step.log").read_text() == "words\n"
    assert os.listdir(tmp_path) == ["step.log"]  # noqa: PTH208 - the same thing, and not taken for blocking the loop


async def test_a_missing_program_is_named(tmp_path: Path) -> None:
    async with open_processes(tmp_path) as processes:
        with pytest.raises(LabError, match="no-such-program"):
            await processes.run("step", ["no-such-program"], timeout_s=120.0)


async def test_leaving_ends_children_and_grandchildren(tmp_path: Path, said: Callable[[str], Path]) -> None:
    async with open_processes(tmp_path / "logs") as processes:
        child = processes.start("parent", [sys.executable, "-c", PARENT_OF_A_CHILD, pipe := said("pipe")])
        grandchild = int(await heard(pipe))
        assert exists(grandchild)
    await wait_gone(grandchild)
    assert not exists(child.pid)
    assert child.exit_status == -signal.SIGTERM


async def test_a_deaf_child_is_killed_after_the_grace_period(tmp_path: Path, said: Callable[[str], Path]) -> None:
    async with open_processes(tmp_path / "logs") as processes:
        child = processes.start("deaf", [sys.executable, "-c", DEAF, pipe := said("pipe")])
        await heard(pipe)
        await processes.stop(child, grace_s=0.05)
        assert child.exit_status == -signal.SIGKILL


async def test_cancelling_the_lab_ends_everything(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_processes(tmp_path) as processes:
            children = [processes.start(f"sleep-{n}", ["sleep", "600"]) for n in range(3)]
            scope.cancel()
            await trio.sleep_forever()
    assert not any(exists(child.pid) for child in children)


async def test_a_paused_child_can_be_ended(tmp_path: Path) -> None:
    async with open_processes(tmp_path) as processes:
        child = processes.start("sleeper", ["sleep", "600"])
        child.signal_group(signal.SIGSTOP)
        await processes.stop(child)
    assert child.exit_status == -signal.SIGTERM


LAB = """
import sys, trio
from pathlib import Path
from pcm_p2p.lab.processes import open_processes
async def main():
    async with open_processes(Path(sys.argv[1])) as processes:
        for code, pipe in (sys.argv[2:4], sys.argv[4:6]):
            processes.start("child", [sys.executable, "-c", code, pipe])
        print(*(p.pid for p in processes.running), processes._guard.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_a_lab_killed_with_sigkill_leaves_nobody_behind(tmp_path: Path, said: Callable[[str], Path]) -> None:
    parent, deaf = said("parent"), said("deaf")
    bystander = await trio.lowlevel.open_process(["sleep", "600"], start_new_session=True)
    command = [sys.executable, "-c", LAB, str(tmp_path / "logs"), PARENT_OF_A_CHILD, str(parent), DEAF, str(deaf)]
    lab = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        assert lab.stdout is not None
        pids = [int(word) for word in (await lab.stdout.receive_some()).split()]
        pids.append(int(await heard(parent)))
        await heard(deaf)
        assert all(exists(pid) for pid in pids)
        lab.kill()
        await lab.wait()
        for pid in pids:
            await wait_gone(pid)
        assert exists(bystander.pid)
    finally:
        lab.kill()
        bystander.kill()
        await lab.wait()
        await bystander.wait()
        await lab.stdout.aclose()  # type: ignore[union-attr]
