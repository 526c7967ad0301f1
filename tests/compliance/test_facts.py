"""The probes on fixture trees, on hostile ones, and once on the machine itself."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pcm_p2p.compliance.assessment import assess
from pcm_p2p.compliance.facts.below_root import Below
from pcm_p2p.compliance.facts.observation import CannotTell, Observation, OutOfBudget, Unknown
from pcm_p2p.compliance.facts.prober import Prober
from pcm_p2p.policy.document import AnyCheck

STATUS = """Package: openssl
Status: install ok installed
Architecture: amd64
Version: 3.0.15-1~deb12u1
Description: text
 Package: not-a-field

Package: telnetd
Status: deinstall ok config-files
Architecture: amd64
Version: 0.17

Package: linux-image-amd64
Status: hold ok installed
Architecture: amd64
Version: 6.1.1

Package: half
Status: install ok half-configured
Architecture: amd64
Version: 1
"""


def check(resource: str, **fields: Any) -> AnyCheck:
    return msgspec.convert({"id": "c", "resource": resource, **fields}, AnyCheck)


def put(root: Path, path: str, text: str | bytes) -> Path:
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text.encode() if isinstance(text, str) else text)
    return place


def observe(root: Path, made: AnyCheck, **seams: Any) -> Observation:
    return Prober(root, **seams).observe(made)


# Packages


def test_packages_are_read_from_dpkgs_database(tmp_path: Path) -> None:
    put(tmp_path, "/var/lib/dpkg/status", STATUS)
    prober = Prober(tmp_path)

    def of(name: str) -> Observation:
        return prober.observe(check("package", name=name, installed=True))

    assert of("openssl") == {"installed": True, "version": "3.0.15-1~deb12u1", "arch": "amd64", "held": False}
    assert of("telnetd")["installed"] is False, "configuration files are not the package"
    assert of("half")["installed"] is False, "unpacked is not installed"
    assert of("linux-image-amd64")["held"] is True
    assert of("absent") == {"installed": False, "version": None, "arch": None, "held": None}
    assert of("not-a-field")["installed"] is False


def test_a_changed_database_and_dpkgs_journal_are_noticed(tmp_path: Path) -> None:
    put(tmp_path, "/var/lib/dpkg/status", STATUS)
    prober, asked = Prober(tmp_path), check("package", name="openssl", installed=True)
    assert prober.observe(asked)["installed"] is True
    put(
        tmp_path,
        "/var/lib/dpkg/updates/0001",
        STATUS.split("\n\n", maxsplit=1)[0].replace("ok installed", "ok unpacked"),
    )
    assert prober.observe(asked)["installed"] is False
    put(tmp_path, "/var/lib/dpkg/status", "")
    (tmp_path / "var/lib/dpkg/updates/0001").unlink()
    assert prober.observe(asked)["installed"] is False


def test_a_private_root_without_a_database_has_no_packages(tmp_path: Path) -> None:
    assert observe(tmp_path, check("package", name="openssl", installed=True))["installed"] is False
    assert isinstance(observe(tmp_path / "absent", check("package", name="a", installed=True))["installed"], Unknown)


@pytest.mark.debian
@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="there is no dpkg on this machine")
def test_the_machines_own_packages_are_those_dpkg_tells() -> None:
    told = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Status}\n"],
        capture_output=True, check=True, text=True, timeout=120,
    ).stdout.splitlines()  # fmt: skip
    prober = Prober(Path("/"))
    for line in told[:: max(1, len(told) // 50)]:
        name, version, state = line.split(" ")
        seen = prober.observe(check("package", name=name, installed=True))
        assert seen["installed"] is (state == "installed")
        if state == "installed":
            assert assess(check("package", name=name, version=version), seen).state == "pass"


# Files


def test_a_file_is_described_without_following_it(tmp_path: Path) -> None:
    put(tmp_path, "/etc/passwd", f"root:x:0:0::/:/bin/sh\nme:x:{os.getuid()}:{os.getgid()}::/:/bin/sh\n")
    put(tmp_path, "/etc/group", f"ours:x:{os.getgid()}:\n")
    place = put(tmp_path, "/etc/shadow", "secret")
    place.chmod(0o640)
    (tmp_path / "etc/link").symlink_to("/etc/shadow")
    wanted = hashlib.sha256(b"secret").hexdigest()
    seen = observe(tmp_path, check("file", path="/etc/shadow", sha256=wanted))
    assert seen == {
        "exists": True, "type": "file", "owner": "root" if os.getuid() == 0 else "me", "group": "ours", "mode": 0o640,
        "sha256": wanted, "size_bytes": 6, "symlink_target": None,
    }  # fmt: skip
    link = observe(tmp_path, check("file", path="/etc/link", type="link"))
    assert (link["type"], link["symlink_target"], link["size_bytes"]) == ("link", "/etc/shadow", None)
    assert observe(tmp_path, check("file", path="/etc/none", exists=True))["exists"] is False
    assert observe(tmp_path, check("file", path="/etc/shadow/below", exists=True))["exists"] is False


def test_an_account_without_a_name_is_its_number(tmp_path: Path) -> None:
    put(tmp_path, "/a", "")
    assert observe(tmp_path, check("file", path="/a", exists=True))["owner"] == str(os.getuid())


def test_links_on_the_way_are_followed_inside_the_root_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    put(root, "/usr/etc/conf", "inside")
    put(outside, "/conf", "outside")
    (root / "etc").symlink_to("/usr/etc")
    (root / "up").symlink_to("../../../../../../usr/etc")
    (root / "escape").symlink_to(outside)
    (root / "loop").symlink_to("loop")
    below = Below(root)
    assert below.read("/etc/conf", 100) == b"inside"
    assert below.read("/up/conf", 100) == b"inside"
    assert below.read("/escape/conf", 100) is None, "an absolute link starts at the root, where there is no such folder"
    with pytest.raises(CannotTell, match="too many links"):
        below.read("/loop/conf", 100)
    with pytest.raises(CannotTell, match="parts"):
        below.read("/a" * 600, 100)


def test_a_folder_that_becomes_a_link_while_walking_gains_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root, "/home/user/conf", "inside")
    put(tmp_path, "/secret/conf", "outside")
    below = Below(root)
    with below.place("/home/user", follow=False) as place:
        assert place is not None
        (root / "home/user").rename(root / "home/gone")
        (root / "home/user").symlink_to(tmp_path / "secret")
        assert sorted(found.name for found in Path(f"/proc/self/fd/{place}").iterdir()) == ["conf"]
    assert below.read("/home/user/conf", 100) is None


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(tmp_path, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{folder}/socket")  # a path within the 108 bytes of an address
        finally:
            os.close(folder)
    for name, kind in (("pipe", "pipe"), ("folder", "folder"), ("socket", "socket")):
        assert observe(tmp_path, check("file", path=f"/{name}", type="file"))["type"] == kind
        seen = observe(tmp_path, check("file_content", path=f"/{name}", pattern="x"))
        assert seen["hits"] == Unknown("error", f"/{name} is not a regular file")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "/a", "x").chmod(0)
    assert isinstance(observe(tmp_path, check("file_content", path="/a", pattern="x"))["hits"], Unknown)


# Contents


def test_hits_are_the_first_group_or_the_whole_match(tmp_path: Path) -> None:
    put(tmp_path, "/a", "PASS_MAX 90\n# PASS_MAX 1\n  PASS_MAX 30 \nelse\n")
    grouped = observe(tmp_path, check("file_content", path="/a", pattern=r"^\s*PASS_MAX\s+(\S+)"))
    assert grouped == {"hits": ("90", "30")}
    assert observe(tmp_path, check("file_content", path="/a", pattern="el.e"))["hits"] == ("else",)
    assert observe(tmp_path, check("file_content", path="/a", pattern="(z)?else"))["hits"] == ("",)
    assert observe(tmp_path, check("file_content", path="/none", pattern="x"))["hits"] is None


@pytest.mark.parametrize(
    ("data", "state"),
    [(b"x" * 5_000, "error"), (b"\0binary", "error"), (b"x\n" * 10_001, "error"), (b"y\n" * (5 << 20), "not_run")],
    ids=["long line", "binary", "too many hits", "too large"],
)
def test_contents_out_of_bounds_are_not_judged(tmp_path: Path, data: bytes, state: str) -> None:
    put(tmp_path, "/a", data)
    hits = observe(tmp_path, check("file_content", path="/a", pattern="x"))["hits"]
    assert isinstance(hits, Unknown)
    assert hits.state == state


def test_a_probe_out_of_time_says_so(tmp_path: Path) -> None:
    put(tmp_path, "/a", "x\n")
    seen = Prober(tmp_path).observe(check("file_content", path="/a", pattern="x"), timeout_s=-1.0)
    assert isinstance(seen["hits"], Unknown)
    assert seen["hits"].state == "not_run"
    with pytest.raises(OutOfBudget):
        Below(tmp_path, time.monotonic() - 1).read("/a", 10)


# Kernel settings


def sysctl(root: Path, key: str) -> Observation:
    return observe(root, check("sysctl", key=key, live=1), procfs=root / "proc")


def test_live_and_persisted_are_told_apart(tmp_path: Path) -> None:
    put(tmp_path, "/proc/sys/kernel/printk", "4\t4\t1\t7\n")
    put(tmp_path, "/etc/sysctl.d/10.conf", "# note\n; note\n\nkernel.printk = 3   4 1\t3\n")
    assert sysctl(tmp_path, "kernel.printk") == {"live": "4 4 1 7", "persisted": "3 4 1 3"}
    assert sysctl(tmp_path, "kernel.absent") == {"live": None, "persisted": None}


def test_the_first_separator_decides_which_one_separates(tmp_path: Path) -> None:
    put(tmp_path, "/proc/sys/net/ipv4/conf/eth0.1/forwarding", "1")
    assert sysctl(tmp_path, "net/ipv4/conf/eth0.1/forwarding")["live"] == "1"
    assert sysctl(tmp_path, "net.ipv4.conf.eth0/1.forwarding")["live"] == "1"


@pytest.mark.parametrize(
    ("files", "persisted"),
    [
        ({"/etc/sysctl.d/a.conf": "k.a=1", "/usr/lib/sysctl.d/b.conf": "k.a=2"}, "2"),
        ({"/etc/sysctl.d/a.conf": "k.a=1", "/usr/lib/sysctl.d/a.conf": "k.a=2"}, "1"),
        ({"/etc/sysctl.d/a.conf": "", "/usr/lib/sysctl.d/a.conf": "k.a=2"}, None),
        ({"/run/sysctl.d/a.conf": "k.a=1", "/lib/sysctl.d/a.conf": "k.a=2"}, "1"),
        ({"/etc/sysctl.d/a.conf": "k.a=1\nk/a = 3"}, "3"),
        ({"/etc/sysctl.d/a.conf": "-k.a=1"}, "1"),
        ({"/etc/sysctl.d/a.txt": "k.a=1"}, None),
        ({"/etc/sysctl.conf": "k.a=1"}, None),
        ({"/etc/sysctl.d/a.conf": "k.a=1", "/etc/sysctl.d/b.conf": "k.*=2"}, "1"),
        ({"/etc/sysctl.d/b.conf": "k.*=2"}, "2"),
        ({"/etc/sysctl.d/b.conf": "*=2"}, None),
        ({"/etc/sysctl.d/b.conf": "k.*=2\n-k.a"}, None),
    ],
)  # fmt: skip
def test_persisted_settings_merge_in_systemds_order(
    tmp_path: Path, files: dict[str, str], persisted: str | None
) -> None:
    for path, text in files.items():
        put(tmp_path, path, text)
    assert sysctl(tmp_path, "k.a")["persisted"] == persisted


def test_a_file_linked_to_nothing_is_masked_and_one_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "/usr/lib/sysctl.d/a.conf", "k.a=2")
    put(tmp_path, "/etc/sysctl.d/b.conf", "k.a=1")
    (tmp_path / "usr/lib/sysctl.d/c.conf").mkdir()
    seen = sysctl(tmp_path, "k.a")
    assert isinstance(seen["persisted"], Unknown)
    assert seen["live"] is None


def test_the_machines_own_kernel_answers() -> None:
    made = check("sysctl", key="kernel.ostype", live="Linux")
    assert assess(made, Prober(Path("/")).observe(made)).state == "pass"


# Mounts

MOUNTINFO = """22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
30 22 0:40 / /tmp rw,nosuid,nodev - tmpfs tmpfs rw,size=1024k
31 22 0:41 / /tmp rw,nosuid,noexec shared:2 master:3 - tmpfs tmpfs\\040two rw
32 22 0:42 / /mnt/a\\040b ro - ext4 /dev/sdb1 ro
garbage
"""


def mounted(root: Path, path: str) -> Observation:
    return observe(root, check("mount", path=path, mounted=True), procfs=root / "proc")


def test_mounts_are_those_on_top_below_the_root(tmp_path: Path) -> None:
    lines = MOUNTINFO.replace(" /tmp ", f" {tmp_path}/tmp ").replace(" /mnt", f" {tmp_path}/mnt")
    put(tmp_path, "/proc/self/mountinfo", lines.replace(" / / ", f" / {tmp_path} "))
    put(
        tmp_path,
        "/etc/fstab",
        "# note\ntmpfs /tmp/ tmpfs nosuid,nodev 0 0\n/dev/sda1 / ext4\n/dev/sdb1 /mnt/a\\040b ext4 ro\n",
    )
    top = mounted(tmp_path, "/tmp")
    assert top == {
        "mounted": True, "fstype": "tmpfs", "device": "tmpfs two", "options": ("rw", "nosuid", "noexec"),
        "fstab_options": ("nosuid", "nodev"),
    }  # fmt: skip
    assert mounted(tmp_path, "/mnt/a b")["options"] == ("ro",)
    assert mounted(tmp_path, "/mnt/a b")["fstab_options"] == ("ro",)
    assert mounted(tmp_path, "/")["fstype"] == "ext4"
    assert mounted(tmp_path, "/")["fstab_options"] == ("defaults",)
    assert mounted(tmp_path, "/home") == {
        "mounted": False, "fstype": None, "device": None, "options": None, "fstab_options": None
    }  # fmt: skip


def test_without_mountinfo_the_mount_is_unknown_and_fstab_is_still_told(tmp_path: Path) -> None:
    put(tmp_path, "/etc/fstab", "tmpfs /tmp tmpfs nosuid 0 0\n")
    seen = mounted(tmp_path, "/tmp")
    assert isinstance(seen["mounted"], Unknown)
    assert seen["fstab_options"] == ("nosuid",)


def test_the_machines_own_proc_is_mounted() -> None:
    made = check("mount", path="/proc", mounted=True, fstype="proc")
    assert assess(made, Prober(Path("/")).observe(made)).state == "pass"


# Services


def service(answer: str, status: int = 0, complaint: str = "", **asked: Any) -> tuple[str, str]:
    made = check("service", name="ssh.service", **asked)
    prober = Prober(Path("/"), run=lambda argv, timeout_s: (status, answer, complaint))
    verdict = assess(made, prober.observe(made))
    return verdict.state, verdict.message


@pytest.mark.parametrize(
    ("answer", "asked", "state"),
    [
        ("LoadState=loaded\nUnitFileState=enabled\nActiveState=active\n", {"enabled": True, "active": True}, "pass"),
        ("LoadState=loaded\nUnitFileState=static\nActiveState=inactive\n", {"enabled": True}, "pass"),
        ("LoadState=loaded\nUnitFileState=disabled\nActiveState=failed\n", {"active": False}, "pass"),
        ("LoadState=loaded\nUnitFileState=enabled\nActiveState=activating\n", {"active": True}, "fail"),
        ("LoadState=masked\nUnitFileState=masked\nActiveState=inactive\n", {"masked": True}, "pass"),
        ("LoadState=not-found\nUnitFileState=\nActiveState=inactive\n", {"exists": False}, "pass"),
        ("LoadState=not-found\nUnitFileState=\nActiveState=inactive\n", {"active": False}, "fail"),
        ("LoadState=bad-setting\nUnitFileState=enabled\nActiveState=inactive\n", {"active": False}, "error"),
        ("", {"active": False}, "error"),
    ],
)  # fmt: skip
def test_a_unit_is_what_systemd_says(answer: str, asked: dict[str, Any], state: str) -> None:
    assert service(answer, **asked)[0] == state


def test_where_systemctl_cannot_answer_the_state_is_error_with_its_words() -> None:
    words = "System has not been booted with systemd as init system (PID 1). Can't operate.\nFailed to connect to bus"
    state, message = service("", 1, words, active=True)
    assert state == "error"
    assert "has not been booted with systemd" in message


def test_a_private_root_has_no_running_services(tmp_path: Path) -> None:
    made = check("service", name="ssh.service", active=True)
    verdict = assess(made, Prober(tmp_path).observe(made))
    assert (verdict.state, verdict.message) == ("error", "a private root has no running services")


def test_the_machines_own_systemctl_answers_or_says_why_not() -> None:
    """The real one, whatever this machine is: a verdict with systemd, an error with a reason without."""
    made = check("service", name="pcm-p2p-no-such-unit.service", exists=False)
    verdict = assess(made, Prober(Path("/")).observe(made))
    if Path("/run/systemd/system").is_dir():
        assert verdict.state == "pass"
    else:
        assert verdict.state == "error"
        assert verdict.message


@pytest.mark.systemd
@pytest.mark.skipif(not Path("/run/systemd/system").is_dir(), reason="systemd is not running on this machine")
def test_a_running_systemd_tells_of_its_own_unit() -> None:
    made = check("service", name="dbus.socket", exists=True, masked=False)
    assert assess(made, Prober(Path("/")).observe(made)).state == "pass"


def test_a_probe_that_breaks_costs_its_own_check_only(tmp_path: Path) -> None:
    def broken(argv: object, timeout_s: float) -> tuple[int, str, str]:
        raise RuntimeError("a mistake of ours")

    seen = Prober(Path("/"), run=broken).observe(check("service", name="a.service", active=True))
    assert seen["active"] == Unknown("error", "the probe broke: RuntimeError: a mistake of ours")
