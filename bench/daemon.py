"""What one daemon costs: resident memory and processor time when idle, and its peak while a large artifact arrives.

Two devices of one office in processes of their own, with a real origin, desk and fleet on loopback; they fetch the artifact
over the WAN between them and swap its chunks. Prints, for each device, the peak resident memory after the artifact was
applied, as a ratio to the 200 MB that a daemon may have, and over an idle minute the resident memory (ratio to 80 MB) and
the processor time (ratio to 0.5 % of a core).

    python bench/daemon.py [--size-mb 400] [--idle-s 60] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pcm_p2p.daemon.control import ask
from pcm_p2p.errors import PcmError

PEAK_BYTES_MAX = 200e6
IDLE_BYTES_MAX = 80e6
IDLE_SHARE_MAX = 0.005
DEADLINE_S = 600.0
SETTLE_S = 45.0
"""Twice the interval at which a daemon gives memory back."""
POLICY = """schema = "pcm.policy/1"
id = "bench"
version = 1
mode = "enforce"
[[assign]]
release = "big"
version = "1"
to = { all = true }
[[assign.resource]]
kind = "file"
path = "/opt/big.bin"
artifact = "big.bin"
"""


def pcm(*words: object) -> str:
    command = [sys.executable, "-m", "pcm_p2p.cli.main", *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command[3:])}: {done.stderr}")
    return done.stdout


@contextmanager
def running(*words: object, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "pcm_p2p.cli.main", *map(str, words)], stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_for(what: str, ready: object, deadline_s: float = DEADLINE_S) -> None:
    assert callable(ready)
    end = time.monotonic() + deadline_s
    while not ready():
        if time.monotonic() > end:
            sys.exit(f"gave up waiting for {what}")
        time.sleep(0.2)


def memory(process: int, field: str) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


def processor_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def applied(state: Path) -> bool:
    try:
        return any(row["state"] == "applied" for row in ask(state, "status", timeout_s=10)["releases"])
    except PcmError:
        return False


def measure(folder: Path, size_bytes: int, idle_s: float) -> dict[str, object]:
    passphrase = folder / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_text("bench\n")
    secret = ("--passphrase-file", passphrase)
    fleet, origin = folder / "fleet", folder / "origin"
    pcm("fleet", "init", fleet, "--name", "bench", "--kdf", "interactive", *secret)
    big = folder / "big.bin"
    with big.open("wb") as file:
        rng = random.Random(1)
        for _ in range(size_bytes >> 20):
            file.write(rng.randbytes(1 << 20))
    pcm("release", "add", "big", "1", big, "--fleet", fleet, "--level", 1)
    (folder / "policy.toml").write_text(POLICY)
    pcm("policy", "put", folder / "policy.toml", "--fleet", fleet)
    pcm("fleet", "activate", "--fleet", fleet, "--all")
    pcm("sign", "--fleet", fleet, "--key", fleet / "keys" / "targets-admin.key", "--yes", *secret)
    pcm("publish", "--fleet", fleet, "--to", origin, *secret)
    with ExitStack() as stack:
        for name, words in {
            "origin": ("origin", "serve", origin, "--listen", "127.0.0.1:0"),
            "desk": ("enroll", "desk", "--fleet", fleet, "--listen", "127.0.0.1:0", *secret),
        }.items():
            port = folder / f"{name}.port"
            stack.enter_context(running(*words, "--port-file", port, log=folder / f"{name}.log"))
            wait_for(name, port.exists)
        url = "http://" + (folder / "origin.port").read_text().strip()
        desk = (folder / "desk.port").read_text().strip()
        token = pcm("enroll", "token", "--fleet", fleet, "--desk", desk, "--uses", 2, "--origin", url).strip()
        devices = {}
        for name in ("one", "two"):
            state, root = folder / name, folder / f"{name}-root"
            root.mkdir()
            settings = ("listen.addresses=['127.0.0.1']", "listen.port=0", "discovery.interfaces=['127.0.0.1']")
            pcm("enroll", "join", token, "--state", state, "--root", root, *(x for s in settings for x in ("--set", s)))
            devices[name] = stack.enter_context(running("daemon", "--state", state, log=folder / f"{name}.log"))
        for name in devices:
            wait_for(f"device {name}", lambda name=name: applied(folder / name))
        peaks = {name: memory(process.pid, "VmHWM") for name, process in devices.items()}
        time.sleep(SETTLE_S)
        before = {name: processor_s(process.pid) for name, process in devices.items()}
        began = time.monotonic()
        time.sleep(idle_s)
        took_s = time.monotonic() - began
        facts: dict[str, object] = {"artifact_bytes": size_bytes, "idle_s": round(took_s, 1)}
        for name, process in devices.items():
            moved = ask(folder / name, "status")["transfer"]
            share = (processor_s(process.pid) - before[name]) / took_s
            resident = memory(process.pid, "VmRSS")
            facts[name] = {
                "wan_in_bytes": moved["wan_in_bytes"],
                "lan_in_bytes": moved["lan_in_bytes"],
                "peak_bytes": peaks[name],
                "peak_ratio": round(peaks[name] / PEAK_BYTES_MAX, 3),
                "idle_resident_bytes": resident,
                "idle_resident_ratio": round(resident / IDLE_BYTES_MAX, 3),
                "idle_core_share": round(share, 5),
                "idle_core_ratio": round(share / IDLE_SHARE_MAX, 3),
            }
        return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=400)
    parser.add_argument("--idle-s", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pcm-bench-") as folder:
        facts = measure(Path(folder), chosen.size_mb << 20, chosen.idle_s)
    if chosen.json:
        print(json.dumps(facts, indent=2))
        return
    for name in ("one", "two"):
        row = facts[name]
        assert isinstance(row, dict)
        print(
            f"device {name}: WAN {row['wan_in_bytes'] / 1e6:.0f} MB, LAN {row['lan_in_bytes'] / 1e6:.0f} MB; "
            f"peak {row['peak_bytes'] / 1e6:.0f} MB ({row['peak_ratio']:.2f} of 200 MB); "
            f"idle {row['idle_resident_bytes'] / 1e6:.0f} MB ({row['idle_resident_ratio']:.2f} of 80 MB), "
            f"{100 * row['idle_core_share']:.2f} % of a core ({row['idle_core_ratio']:.2f} of 0.5 %)"
        )


if __name__ == "__main__":
    main()
