"""Machines for the README's walk-through: network, mount, process and host-name namespaces that look like separate computers.

::

    authority  web  collector        dev1  dev2  dev3
         \\      |      /                \\    |    /
        [ wan 203.0.113.0/24 ]--room--[ lan 192.168.50.0/24 ]

Each machine has its own network, its own processes, and its own files: an overlay over this computer's root whose changes live in
memory. So a command may install a package, write ``/etc`` or listen on port 80 as the README says, and nothing of it is left.
The room routes between the two bridges, as an office's router does. Each machine runs an SSH server that takes one key.

Nothing has a name outside: no ``/run/netns``, no interface in this computer's own network. Every machine is a process tree below
this process and dies with it; after SIGKILL one folder in /tmp stays, with a key that opens nothing any more.

    python tests/walkthrough/machine_room.py dev1 'ip address'      # a room for one command, to look around
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

CHECKOUT = Path(__file__).resolve().parents[2]
WAN = {"authority": "203.0.113.10", "web": "203.0.113.20", "collector": "203.0.113.30"}
LAN = {"dev1": "192.168.50.11", "dev2": "192.168.50.12", "dev3": "192.168.50.13"}
NAMES = {"authority": "desk.example.org", "web": "updates.example.org", "collector": "collector.example.org"}
"""What the README calls these machines; every machine's /etc/hosts says so."""
MACHINES = (*WAN, *LAN)
PROGRAMS = (
    "ip",
    "setpriv",
    "unshare",
    "nsenter",
    "mount",
    "chroot",
    "sshd",
    "ssh",
    "ssh-keygen",
    "rsync",
    "nft",
    "dpkg-deb",
)
START_TIMEOUT_S = 180.0

BOOT = r"""
set -e
work=$1 name=$2 checkout=$3 place=$4 python=$5
mount -t tmpfs -o size=2g tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
cd "$work/root"
mount -t tmpfs -o mode=700 tmpfs root
for each in srv run; do mount -t tmpfs -o mode=755 tmpfs "$each"; done
mount -t tmpfs tmpfs tmp
# After the folders above, below one of which the checkout may lie.
mkdir -p opt/pcm_p2p "./$checkout" "./$python"
mount --rbind "$checkout" "./$checkout"
mount --rbind "$checkout" opt/pcm_p2p
mount --rbind "$python" "./$python"
mount --rbind /dev dev
mount -t proc proc proc
mount --rbind /sys sys
hostname "$name"
cp "$place/hosts" etc/hosts
mkdir -m 700 root/.ssh
cp "$place/key" root/.ssh/id_ed25519
cp "$place/key.pub" root/.ssh/authorized_keys
printf 'StrictHostKeyChecking accept-new\nLogLevel ERROR\n' >root/.ssh/config
chmod 600 root/.ssh/id_ed25519
mkdir -p run/sshd
chroot . usermod -p '*' root
chroot . ssh-keygen -q -A
echo ready >"$place/$name.ready"
exec chroot . sh -c 'cd /root; exec sleep infinity'
"""


@dataclass(frozen=True)
class Done:
    """What one command line on a machine came to. ``output`` is both streams as a terminal shows them."""

    status: int
    output: str


class MachineRoom:
    """Use as ``with MachineRoom() as room: room.run("dev1", "pcm-p2p status")``. Needs root; see ``why_not``."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._inits: dict[str, int] = {}

    def __enter__(self) -> MachineRoom:
        self._place = tempfile.TemporaryDirectory(prefix="pcm-machine-room-")
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every machine with all of its processes. What they wrote was in memory and goes with them."""
        for process in self._processes:
            process.kill()  # unshare's --kill-child takes the machine's first process along, and that one all others
        for process in self._processes:
            process.wait()
        self._place.cleanup()

    def run(self, machine: str, script: str, *, timeout_s: float = 300.0) -> Done:
        """Run ``script`` in a shell on ``machine``, as root in its home. Raises ``subprocess.TimeoutExpired``."""
        command = self._enter(machine, "/bin/bash", "-euo", "pipefail", "-c", f"cd ~\n{script}")
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "COLUMNS": "160",
            "NO_COLOR": "1",
        }
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=timeout_s,
            check=False,
        )
        return Done(done.returncode, done.stdout.decode(errors="replace"))

    def received_over_wan(self) -> int:
        """Bytes that came into the office from outside so far, as the kernel counted them on the router's office side."""
        text = subprocess.run(
            [*self._in_room(), "cat", "/sys/class/net/lan/statistics/tx_bytes"], check=True, capture_output=True
        ).stdout
        return int(text)

    def _build(self) -> None:
        place = Path(self._place.name)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "walk-through", "-f", place / "key"], check=True
        )
        hosts = [f"{address} {name} {NAMES.get(name, '')}".rstrip() for name, address in {**WAN, **LAN}.items()]
        (place / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts]) + "\n")
        self._room = self._start(["unshare", "--net", "--mount", "sh", "-c", ROUTER, "sh", str(place / "room.ready")])
        self._wait_for(place / "room.ready")
        for name in MACHINES:
            (place / name).mkdir()
            unshare = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
            words = [str(place / name), name, str(CHECKOUT), str(place), sys.base_prefix]
            outer = self._start([*unshare, "sh", "-c", BOOT, "sh", *words])
            self._wait_for(place / f"{name}.ready")
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            self._inits[name] = int(children[0])
            self._wire(name)
            sshd = self.run(name, "/usr/sbin/sshd -o UsePAM=no -o PasswordAuthentication=no")
            assert sshd.status == 0, sshd.output

    def _wire(self, name: str) -> None:
        bridge, gateway = ("wan", "203.0.113.1") if name in WAN else ("lan", "192.168.50.1")
        address = WAN.get(name) or LAN[name]
        lines = (
            f"ip link add name {name} type veth peer name eth0 netns {self._inits[name]}",
            f"ip link set {name} master {bridge}",
            f"ip link set {name} up",
        )
        subprocess.run([*self._in_room(), "sh", "-ec", "\n".join(lines)], check=True)
        inside = (
            "ip link set lo up",
            f"ip address add {address}/24 broadcast + dev eth0",
            "ip link set eth0 up",
            f"ip route add default via {gateway}",
        )
        done = self.run(name, "\n".join(inside))
        assert done.status == 0, done.output

    def _in_room(self) -> list[str]:
        return ["nsenter", "--target", str(self._room.pid), "--net", "--mount"]

    def _enter(self, machine: str, *command: str) -> list[str]:
        target = str(self._inits[machine])
        spaces = ("--net", "--mount", "--uts", "--ipc", "--pid", "--root", "--wd")
        return ["nsenter", "--target", target, *spaces, *command]

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL)
        self._processes.append(process)
        return process

    def _wait_for(self, path: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not path.exists():
            if self._processes[-1].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{path.stem} did not start")
            time.sleep(0.01)


ROUTER = r"""
set -e
mount -t sysfs sysfs /sys
ip link set lo up
for each in "wan 203.0.113.1/24" "lan 192.168.50.1/24"; do
  set -- "$1" $each
  ip link add name "$2" type bridge
  ip address add "$3" broadcast + dev "$2"
  ip link set "$2" up
done
echo 1 >/proc/sys/net/ipv4/ip_forward
echo ready >"$1"
exec sleep infinity
"""


def why_not() -> str:
    """What keeps this computer from having a machine room; empty if nothing does."""
    if sys.platform != "linux":
        return "namespaces are a matter of Linux"
    if os.geteuid() != 0:
        return "namespaces for whole machines need root"
    missing = [
        name for name in PROGRAMS if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None
    ]
    if missing:
        return f"missing on this computer: {', '.join(missing)}"
    with tempfile.TemporaryDirectory(prefix="pcm-machine-room-") as place:
        script = (
            f"mount -t tmpfs tmpfs {place} && cd {place} && mkdir upper work root && "
            "mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root && "
            "ip link add bridge0 type bridge && nft add table inet trial"
        )
        command = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "sh", "-ec", script]
        tried = subprocess.run(command, capture_output=True, check=False)
    return "" if tried.returncode == 0 else f"no machine can be made here: {tried.stderr.decode().strip()[:200]}"


if __name__ == "__main__":
    reason = why_not()
    if reason:
        sys.exit(reason)
    with MachineRoom() as opened:
        result = opened.run(sys.argv[1], sys.argv[2])
    sys.stdout.write(result.output)
    sys.exit(result.status)
