"""What an office pays over its link for an update, and for the cache that it keeps: twenty real daemons behind one slow link.

Everything is real: processes, TLS, TUF metadata, dpkg into a private root for each device. All WAN traffic of the office goes
through one relay, which counts the bytes of the origin's answers, HTTP headers included; the origin keeps to the office's rate.
Each scenario publishes two versions of a package and measures what crosses the link while the new one reaches everybody:

- ``cache``: one device has the old version, in its cache; the others have nothing.
- ``installed``: the same, but that device has emptied its cache: the package is installed there, and that is all.
- ``crash``: as ``cache``, and a device is killed with SIGKILL while it owns a segment, and comes back three seconds later.
- ``copies``: every device has the old version, and surplus copies were dropped, so that three are kept. The disk use of the
  office is measured, then ``--off`` devices leave one after the other, and the new version is published.

Ratios: WAN bytes ÷ (delta segments + metadata), where metadata is what all devices together took of it; disk ÷ (3 × release
as sealed). Aims: 1.03 for cache, installed and copies; 1.10 for crash; 1.2 for the disk.

    python bench/office.py [--devices 20] [--only cache,installed,crash,copies] [--rate 250000] [--pair OLD.deb NEW.deb] [--json]

The default pair comes from the package archive (``apt-get download``) and is kept in ``.cache/pairs``. A package with maintainer
scripts cannot be used: devices install into private roots.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from pcm_p2p.content.manifest import Manifest, decode_untrusted
from pcm_p2p.daemon.control import ask
from pcm_p2p.errors import PcmError

PACKAGE = "mariadb-server-core"
DEADLINE_S = 600.0
COPIES = 3
AIMS = {"cache": 1.03, "installed": 1.03, "crash": 1.10, "copies": 1.03, "disk": 1.2}
CLI = [sys.executable, "-m", "pcm_p2p.cli.main"]


def pcm(*words: object) -> str:
    done = subprocess.run([*CLI, *map(str, words)], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: {done.stderr}")
    return done.stdout


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


class Relay:
    """The office's link: passes bytes on to the origin and back, and counts what comes back."""

    def __init__(self, origin: str) -> None:
        self._origin = origin.rpartition(":")
        self._server = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._lock = threading.Lock()
        self.bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}/"

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            upstream = socket.create_connection((self._origin[0], int(self._origin[2])))
            threading.Thread(target=self._copy, args=(client, upstream, False), daemon=True).start()
            threading.Thread(target=self._copy, args=(upstream, client, True), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                if counted:
                    with self._lock:
                        self.bytes += len(data)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Office:
    """A fleet with one office, made anew for each scenario from what was prepared once."""

    def __init__(self, folder: Path, old: Path, new: Path, devices: int, rate: int, level: int) -> None:
        self.folder, self.rate = folder, rate
        self.names = [f"d{n:02d}" for n in range(1, devices + 1)]
        self.fleet, self.served = folder / "fleet", folder / "served"
        self.secret = ("--passphrase-file", folder / "passphrase")
        self.level = level
        self.package, *versions = _facts(old, new)
        self.versions = versions
        self.artifact = f"{self.package}.deb"
        self._services = ExitStack()
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._given = old, new

    def prepare(self) -> None:
        """Two published trees, the first with the old version only, and the devices enrolled."""
        self.secret[1].touch(0o600)
        self.secret[1].write_text("bench\n")
        pcm("fleet", "init", self.fleet, "--name", "bench", "--kdf", "interactive", *self.secret)
        pcm("fleet", "activate", "--fleet", self.fleet, "--all")
        for number, (version, file) in enumerate(zip(self.versions, self._given, strict=True), 1):
            given = self.folder / f"v{number}" / self.artifact
            given.parent.mkdir()
            shutil.copyfile(file, given)
            say(f"release add {self.package} {version}")
            pcm("release", "add", self.package, version, given, "--fleet", self.fleet, "--level", self.level)
            if number == 1:
                for who in ("pilot", "all"):
                    self._publish(self.folder / f"origin-old-{who}", version, 1 if who == "pilot" else 2, who)
            else:
                self._publish(self.folder / "origin-new", version, 3, "all")
        shutil.copytree(self.folder / "origin-old-pilot", self.served)
        port = self._serve("origin", "origin", "serve", self.served, "--rate", self.rate)
        self.relay = Relay(port)
        desk = self._serve("desk", "enroll", "desk", "--fleet", self.fleet, *self.secret)
        uses = ("--uses", len(self.names), "--origin", self.relay.url)
        token = pcm("enroll", "token", "--fleet", self.fleet, "--desk", desk, *uses).strip()
        for number, name in enumerate(self.names):
            settings = {
                "listen.addresses": "['127.0.0.1']",
                "listen.port": 0,
                "discovery.interfaces": "['127.0.0.1']",
                "discovery.settle_s": 3,
                "origin.poll_s": 2 if number < 2 else 3600,
                "apply.interval_s": 2,
                "store.surplus_s": 5,
            }
            words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
            label = ("--label", "pilot") if number == 0 else ()
            root = self.folder / "roots" / name
            pcm("enroll", "join", token, "--state", self.folder / "enrolled" / name, "--root", root, *label, *words)

    def _publish(self, origin: Path, version: str, edition: int, who: str) -> None:
        to = "all = true" if who == "all" else 'labels = ["pilot"]'
        policy = self.folder / "policy.toml"
        policy.write_text(
            f'schema = "pcm.policy/1"\nid = "bench"\nversion = {edition}\nmode = "enforce"\n[[assign]]\n'
            f'release = "{self.package}"\nversion = "{version}"\nto = {{ {to} }}\n'
            f'[[assign.resource]]\nkind = "package"\nartifact = "{self.artifact}"\n'
        )
        pcm("policy", "put", policy, "--fleet", self.fleet)
        pcm("sign", "--fleet", self.fleet, "--key", self.fleet / "keys" / "targets-admin.key", "--yes", *self.secret)
        pcm("publish", "--fleet", self.fleet, "--to", origin, *self.secret)

    def _serve(self, name: str, *words: object) -> str:
        port, log = self.folder / f"{name}.port", self.folder / f"{name}.log"
        process = self._start([*words, "--listen", "127.0.0.1:0", "--port-file", port], log)
        self._services.callback(_end, process)
        wait_for(name, port.exists)
        return port.read_text().strip()

    def _start(self, words: list[object], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            return subprocess.Popen([*CLI, *map(str, words)], stdout=out, stderr=out)

    # -- one scenario -----------------------------------------------------------------------------------------------------------

    def reset(self, tree: str) -> None:
        """No daemon runs, no device has anything, and the origin serves ``tree``."""
        self.stop(*self._daemons)
        for part in ("devices", "roots"):
            shutil.rmtree(self.folder / part, ignore_errors=True)
        shutil.copytree(self.folder / "enrolled", self.folder / "devices")
        for name in self.names:
            (self.folder / "roots" / name).mkdir(parents=True)
        shutil.rmtree(self.served)
        shutil.copytree(self.folder / tree, self.served)

    def push(self, tree: str) -> None:
        """Publish: the timestamp last, each file at once."""
        source = self.folder / tree
        files = sorted(path for path in source.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: path.name == "timestamp.json"):
            target = self.served / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = target.with_name(f".{target.name}")
            shutil.copyfile(path, fresh)
            fresh.rename(target)

    def state(self, name: str) -> Path:
        return self.folder / "devices" / name

    def start(self, *names: str) -> None:
        for name in names:
            self._daemons[name] = self._start(["daemon", "--state", self.state(name)], self.folder / f"{name}.log")

    def stop(self, *names: str, how: int = signal.SIGTERM) -> None:
        ended = [self._daemons.pop(name) for name in names]
        for process in ended:
            process.send_signal(how)
        for process in ended:
            process.wait(timeout=60)

    def status(self, name: str) -> dict[str, Any]:
        try:
            answer = ask(self.state(name), "status", timeout_s=20)
        except PcmError:
            return {}
        return dict(answer)

    def applied(self, version: str, *names: str) -> bool:
        return all(
            any(
                row["version"] == version and row["state"] == "applied" for row in self.status(name).get("releases", ())
            )
            for name in names
        )

    def fetching(self) -> str | None:
        """A device, not the pilot, that fetches a segment at present and has part of it."""
        for name in self.names[1:]:
            with suppress(PcmError):
                rows = ask(self.state(name), "why", name=self.package, timeout_s=5).get("segments", ())
                if any(re.search(r"this device fetches .*\(([1-9]|[1-8]\d) %\)", row["reason"]) for row in rows):
                    return name
        return None

    def metadata_bytes(self) -> int:
        return sum(self.status(name).get("transfer", {}).get("wan_metadata_bytes", 0) for name in self._daemons)

    def store_bytes(self) -> int:
        return sum(self.status(name).get("store", {}).get("bytes", 0) for name in self._daemons)

    def manifest(self, version: str) -> Manifest:
        folder = self.folder / "origin-new" / "targets" / "releases" / "main"
        path = next(path for path in folder.iterdir() if path.name.endswith(f".{self.package}@{version}.manifest"))
        return decode_untrusted(path.read_bytes())

    @property
    def delta_bytes(self) -> int:
        """What an office with the base needs of the new version: for each run that is not in the base the cheapest way."""
        manifest, held = self.manifest(self.versions[1]), set(self.manifest(self.versions[0]).chunks)
        total = 0
        for index, segment in manifest.full_segments():
            if any(manifest.chunks[position] not in held for position in segment.positions):
                total += min(manifest.segments[each].size for each in (index, *manifest.deltas.get(index, ())))
        return total

    def roll_out(self, names: list[str], during: Callable[[], None] = lambda: None) -> dict[str, object]:
        """Publish the new version and wait until ``names`` have it; what the link carried meanwhile."""
        link, metadata, began = self.relay.bytes, self.metadata_bytes(), time.monotonic()
        self.push("origin-new")
        during()
        wait_for("the new version everywhere", lambda: self.applied(self.versions[1], *names), pause_s=0.5)
        took_s = time.monotonic() - began
        wan, metadata = self.relay.bytes - link, self.metadata_bytes() - metadata
        return {
            "wan_bytes": wan,
            "delta_segment_bytes": self.delta_bytes,
            "metadata_bytes": metadata,
            "ratio": round(wan / (self.delta_bytes + metadata), 4),
            "seconds": round(took_s, 1),
        }

    def close(self) -> None:
        self.stop(*self._daemons)
        self._services.close()


def _facts(old: Path, new: Path) -> list[str]:
    """Package name, old version, new version (without epochs: they are no file names)."""
    fields = []
    for path in (old, new):
        text = subprocess.run(
            ["dpkg-deb", "-f", path, "Package", "Version"], check=True, capture_output=True, text=True
        ).stdout
        fields.append(dict(re.findall(r"^(Package|Version): (.*)$", text, re.MULTILINE)))
    versions = [field["Version"].rpartition(":")[2] for field in fields]
    return [fields[0]["Package"], *versions]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=30)


def wait_for(what: str, ready: Callable[[], bool], deadline_s: float = DEADLINE_S, pause_s: float = 0.2) -> None:
    end = time.monotonic() + deadline_s
    while not ready():
        if time.monotonic() > end:
            sys.exit(f"gave up waiting for {what}")
        time.sleep(pause_s)


def with_pilot(office: Office, *, emptied: bool = False) -> None:
    """The first device has the old version; all others are up and have nothing."""
    office.reset("origin-old-pilot")
    pilot = office.names[0]
    office.start(pilot)
    wait_for("the old version on the pilot", lambda: office.applied(office.versions[0], pilot))
    if emptied:
        office.stop(pilot)
        shutil.rmtree(office.state(pilot) / "store")
        office.start(pilot)
    office.start(*office.names[1:])
    everybody_meets(office)


def everybody_meets(office: Office) -> None:
    others = len(office.names) - 1
    wait_for("all sessions", lambda: all(office.status(n).get("peers", {}).get("site") == others for n in office.names))


def cache(office: Office) -> dict[str, object]:
    with_pilot(office)
    return office.roll_out(office.names)


def installed(office: Office) -> dict[str, object]:
    with_pilot(office, emptied=True)
    return office.roll_out(office.names)


def crash(office: Office) -> dict[str, object]:
    with_pilot(office)
    killed: list[str] = []

    def kill() -> None:
        wait_for(
            "a device that fetches", lambda: bool((name := office.fetching()) and (killed.append(name) or True)), 120
        )
        office.stop(killed[0], how=signal.SIGKILL)
        time.sleep(3)
        office.start(killed[0])

    return {**office.roll_out(office.names, kill), "killed": killed[0]}


def copies(office: Office, off: int) -> dict[str, object]:
    office.reset("origin-old-all")
    office.start(*office.names)
    full, looks = 0, [0]

    def everywhere() -> bool:
        nonlocal full
        full = max(full, *(office.status(name).get("store", {}).get("bytes", 0) for name in office.names))
        return office.applied(office.versions[0], *office.names)

    wait_for("the old version everywhere", everywhere, pause_s=1)

    def settled() -> bool:
        """Less than it was, and the same for three looks."""
        looks.append(office.store_bytes())
        return len(set(looks[-3:])) == 1 and looks[-1] < 0.95 * len(office.names) * full

    wait_for("surplus copies to be dropped", settled, pause_s=10)
    used = looks[-1]
    leaving = random.Random(1).sample(office.names[2:], off)
    for name in leaving:
        office.stop(name)
        time.sleep(2)
    rest = [name for name in office.names if name not in leaving]
    facts = office.roll_out(rest)
    return {
        **facts,
        "release_bytes": full,
        "office_disk_bytes": used,
        "disk_ratio": round(used / (COPIES * full), 3),
        "left": leaving,
    }


def default_pair(folder: Path) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    listing = subprocess.run(["apt-cache", "madison", PACKAGE], check=False, capture_output=True, text=True).stdout
    versions = list(dict.fromkeys(line.split("|")[1].strip() for line in listing.splitlines() if line.count("|") >= 2))[
        :2
    ]
    if len(versions) < 2:
        sys.exit(f"the package archive has no two versions of {PACKAGE}; give a pair with --pair OLD.deb NEW.deb")
    paths = []
    for version in reversed(versions):
        pattern = f"{PACKAGE}_{version.replace(':', '%3a')}_*.deb"
        if not list(folder.glob(pattern)):
            subprocess.run(["apt-get", "download", "-qq", f"{PACKAGE}={version}"], check=True, cwd=folder)
        paths.append(next(folder.glob(pattern)))
    return paths[0], paths[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--off", type=int, default=5, help="how many devices leave in 'copies'")
    parser.add_argument("--only", default="cache,installed,crash,copies")
    parser.add_argument("--rate", type=int, default=250_000, help="bytes a second of the office's link")
    parser.add_argument("--level", type=int, default=12, help="of the full segments")
    parser.add_argument("--pair", type=Path, nargs=2, metavar=("OLD", "NEW"))
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it there")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    old, new = chosen.pair or default_pair(Path(__file__).parent.parent / ".cache" / "pairs")
    scenarios: dict[str, Callable[[Office], dict[str, object]]] = {
        "cache": cache,
        "installed": installed,
        "crash": crash,
        "copies": lambda office: copies(office, chosen.off),
    }
    facts: dict[str, dict[str, object]] = {}
    with ExitStack() as stack:
        if chosen.keep:
            shutil.rmtree(chosen.keep, ignore_errors=True)
            chosen.keep.mkdir(parents=True)
        folder = chosen.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pcm-office-")))
        office = Office(folder.absolute(), old, new, chosen.devices, chosen.rate, chosen.level)
        stack.callback(office.close)
        office.prepare()
        for name in chosen.only.split(","):
            say(f"scenario {name}")
            facts[name] = scenarios[name](office)
            say(json.dumps(facts[name]))
    if chosen.json:
        print(
            json.dumps(
                {"devices": chosen.devices, "package": office.package, "versions": office.versions, **facts}, indent=2
            )
        )
        return
    print(f"{office.package} {' → '.join(office.versions)}, {chosen.devices} devices, {chosen.rate / 1e3:.0f} kB/s")
    for name, row in facts.items():
        wan, deltas, metadata = (int(str(row[f"{key}_bytes"])) / 1e6 for key in ("wan", "delta_segment", "metadata"))
        paid = f"WAN {wan:.3f} MB ÷ (deltas {deltas:.3f} MB + metadata {metadata:.3f} MB)"
        print(f"{name:10} {paid} = {row['ratio']} (aim {AIMS[name]}), {row['seconds']} s")
        if "disk_ratio" in row:
            print(f"{'':10} disk ÷ ({COPIES} × release) = {row['disk_ratio']} (aim {AIMS['disk']})")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
