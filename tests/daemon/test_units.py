"""The units of systemd: they are right, as tight as they say, and what they take away is not missed.

systemd itself does not run where tests run; its own tools judge the files, and the kernel does to a real process what the unit
would have it do.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from unit_sandbox import settings, system_calls

UNITS = Path(__file__).resolve().parents[2] / "bootstrap" / "units"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
EXPOSURE_MAX = {
    # Of systemd 252, times ten. Below 20 is its own "OK"; what must be root is judged apart, see the unit's comments.
    "pcm-p2p.service": 14,
    "pcm-p2p-desk.service": 14,
    "pcm-p2p-join.service": 14,
    "pcm-p2p-collector.service": 14,
    "pcm-p2p-apply.service": 55,
    "pcm-p2p-adopt.service": 12,
}
ROOTS = ("pcm-p2p-apply.service", "pcm-p2p-adopt.service")
"""Those that are root, without network."""

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here"),
]


@pytest.fixture(name="installed")
def _installed(tmp_path: Path) -> Path:
    """The units as they would be installed, with a program where they look for it."""
    program = tmp_path / "pcm-p2p"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in UNITS.glob("*.service"):
        (tmp_path / path.name).write_text(path.read_text().replace("/usr/bin/pcm-p2p", str(program)))
    return tmp_path


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *map(str, words)], check=False, capture_output=True, text=True, timeout=120
    )


def test_the_list_of_units_is_whole() -> None:
    assert set(EXPOSURE_MAX) == set(SERVICES)


def test_systemd_finds_no_fault(installed: Path) -> None:
    done = analyze("verify", *(installed / name for name in SERVICES))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", SERVICES)
def test_exposure_is_not_above_what_was_reached(installed: Path, name: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX[name]}", installed / name)
    level = re.search(r"Overall exposure level for \S+: (\S+)", done.stdout)
    assert done.returncode == 0, level and level[0]


@pytest.mark.parametrize("name", [name for name in SERVICES if name not in ROOTS])
def test_what_speaks_with_the_network_is_nobody_and_stays_so(name: str) -> None:
    said = settings(UNITS / name)
    assert said["User"] not in ([], ["root"])
    for key, value in {
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "PrivateDevices": "yes",
        "MemoryDenyWriteExecute": "yes",
        "RestrictNamespaces": "yes",
        "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX AF_NETLINK",
        "LockPersonality": "yes",
    }.items():
        assert said[key] == [value], key
    allows, calls = system_calls(said["SystemCallFilter"])
    assert allows
    assert {"read", "sendmsg", "execve"} <= calls
    assert not {"setuid", "chroot", "mount", "ptrace", "bpf", "kexec_load", "chown"} & calls


def test_what_is_root_has_no_way_to_the_network() -> None:
    said = settings(UNITS / "pcm-p2p-apply.service")
    assert "User" not in said
    assert (said["IPAddressDeny"], said["IPAddressAllow"]) == (["any"], ["localhost"])
    kept = set(" ".join(said["CapabilityBoundingSet"]).split())
    assert not {"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_SYS_PTRACE", "CAP_BPF"} & kept


def test_the_sandbox_bites(tmp_path: Path) -> None:
    """So that a daemon which runs in it says something."""
    tried = (
        "import mmap, os, socket\n"
        "for name, act in (\n"
        "  ('writable code', lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)),\n"
        "  ('packet socket', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),\n"
        "  ('chroot', lambda: os.chroot('/')),\n"
        "  ('file', lambda: open('/etc/hostname').read()),\n"
        "):\n"
        "  try: act(); print(name, 'allowed')\n"
        "  except OSError as error: print(name, error.errno)\n"
    )
    sandbox = Path(__file__).with_name("unit_sandbox.py")
    words = [sys.executable, sandbox, UNITS / "pcm-p2p.service", sys.executable, "-c", tried]
    done = subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["writable code 1", "packet socket 97", "chroot 1", "file allowed"]


needs_installing = pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None or shutil.which("systemd-tmpfiles") is None or os.geteuid() != 0,
    reason="systemd-sysusers and systemd-tmpfiles as root are not here",
)


def install(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(UNITS / "install"), *map(str, words)], check=False, capture_output=True, text=True, timeout=120
    )


def test_installing_explains_itself() -> None:
    done = install("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "bash bootstrap/units/install collector" in done.stdout
    for option in ("--program PATH", "--root DIR"):
        assert option in done.stdout
    assert not [line for line in done.stdout.splitlines() if line.startswith(("#", "set "))]


@needs_installing
def test_units_accounts_and_folders_are_installed(tmp_path: Path) -> None:
    program = tmp_path / "opt/pcm-p2p/bin/pcm-p2p"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    (tmp_path / "etc").mkdir()
    for _ in range(2):
        done = install(
            "device", "image", "desk", "collector", "--root", tmp_path, "--program", "/opt/pcm-p2p/bin/pcm-p2p"
        )
        assert done.returncode == 0, done.stderr
    assert "apply-service adopt" in done.stderr
    placed = tmp_path / "etc/systemd/system"
    assert sorted(path.name for path in placed.iterdir()) == SERVICES
    assert all("ExecStart=/opt/pcm-p2p/bin/pcm-p2p " in path.read_text() for path in placed.iterdir())
    made = {line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    assert made == {settings(UNITS / name)["User"][0] for name in SERVICES if name not in ROOTS}
    assert (tmp_path / "etc/pcm-p2p").stat().st_mode & 0o777 == 0o755


@needs_installing
def test_a_device_gets_its_two_units_and_a_wrong_word_is_named(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    assert install("device", "--root", tmp_path).returncode == 0
    placed = tmp_path / "etc/systemd/system"
    assert sorted(path.name for path in placed.iterdir()) == ["pcm-p2p-apply.service", "pcm-p2p.service"]
    for words, complaint in (
        (("devise",), "what is 'devise'?"),
        ((), "nothing to install"),
        (("--program", "pcm"), "nothing"),
        (("device", "--root"), "--root needs a folder"),
        (("device", "--program"), "--program needs a path"),
    ):
        done = install(*words)
        assert (done.returncode, complaint in done.stderr) == (2, True)
