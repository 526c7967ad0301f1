"""The processes of a lab by role, each started with the command line that an admin would type.

Folders below the run's folder: ``authority`` (keys, CA, repository), ``origin`` (the published tree), ``collector``, ``devices``
and ``roots`` (one state folder and one private root each), ``logs``, ``ports`` (who listens where).

The lab differs from a real fleet in settings only, all of them in ``_settings``: addresses and interfaces of the lab, port 0,
a private apply root, and intervals that suit somebody who is watching.
"""

from __future__ import annotations

import json
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from pcm_p2p.content import manifest
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import PcmError
from pcm_p2p.lab.network import Network
from pcm_p2p.lab.packages import Pair, Version
from pcm_p2p.lab.processes import LabError, Process, Processes
from pcm_p2p.lab.scenario import DeviceName, Scenario

Words = list[str | Path]
Ask = Callable[..., Any]
"""``ask(state folder, command, timeout_s=…) → result``: the control socket's client, handed in from above."""

COMMAND: tuple[str | Path, ...] = (sys.executable, "-m", "pcm_p2p.cli.main")
COMMAND_TIMEOUT_S = 60.0
INGEST_TIMEOUT_S = 900.0
"""Choice: level 19 of 60 MB takes two minutes on one slow core."""
START_TIMEOUT_S = 30.0
JOINS_AT_ONCE = 2
"""Choice: each is an interpreter start of its own; the least that two cores are assumed."""
ASK_TIMEOUT_S = 5.0
LOOK_S = 0.05


class Fleet:
    """See the module. Methods are called in the order in which they stand here."""

    def __init__(self, folder: Path, scenario: Scenario, processes: Processes, network: Network, ask: Ask) -> None:
        self.folder = folder
        self.scenario = scenario
        self.roster = scenario.roster()
        self.password = secrets.token_urlsafe(12)
        self.console = ("", 0)
        self._processes = processes
        self._network = network
        self._ask = ask
        self._daemons: dict[DeviceName, Process] = {}
        self._services: dict[str, Process] = {}
        self._addresses: dict[str, str] = {}
        self._passphrase = folder / "passphrase"
        for part in ("origin", "devices", "roots", "ports"):
            (folder / part).mkdir(parents=True)

    @property
    def authority(self) -> Path:
        return self.folder / "authority"

    @property
    def origin(self) -> Path:
        return self.folder / "origin"

    # The authority and what stands still

    async def found(self) -> None:
        """Make the fleet, and start desk, origins and collector; nothing is published yet."""
        write_atomic(self._passphrase, f"{secrets.token_urlsafe(16)}\n".encode(), mode=0o600)
        facts: Words = ["--name", "lab", "--owner", "lab", *self._secret, "--kdf", "interactive"]
        await self._run("fleet-init", "fleet", "init", self.authority, *facts)
        desk: Words = ["--fleet", self.authority, "--origin", self.origin, *self._secret]
        await self._serve("desk", ["enroll", "desk", *desk])
        for site in self._origin_sites:
            await self._serve_origin(site)
        await self._found_collector()

    async def _found_collector(self) -> None:
        state = self.folder / "collector"
        await self._join("collector", state, await self._token("collector", role="collector", uses=1))
        write_atomic(self._password_file, f"{self.password}\n".encode(), mode=0o600)
        await self._serve_collector()
        show: Words = ["--state", state, "--listen", self._addresses["collector"], "--show"]
        table = (await self._run("collector-show", "collector", *show)).decode()
        document = self.authority / "fleet.toml"
        sites = "".join(f'\n[[site]]\nname = "{site.name}"\n' for site in self.scenario.site)
        await trio.to_thread.run_sync(
            lambda: write_atomic(document, document.read_bytes() + f"\n{table}{sites}".encode())
        )

    async def _serve_collector(self, address: str = "") -> None:
        """``address``: where it was before, after a fault."""
        ports = self.folder / "ports" / "console"
        ports.unlink(missing_ok=True)
        host, port = self.console
        where: Words = ["--console", f"{host or self._network.centre_address}:{port}", "--console-port-file", ports]
        state: Words = ["--state", self.folder / "collector", "--password-file", self._password_file]
        await self._serve("collector", ["collector", *state, *where], address)
        host, _, text = (await self._port(ports, self._services["collector"])).rpartition(":")
        self.console = host, int(text)

    @property
    def _password_file(self) -> Path:
        return self.folder / "console-password"

    @property
    def _secret(self) -> Words:
        return ["--passphrase-file", self._passphrase]

    @property
    def _origin_sites(self) -> tuple[str, ...]:
        """One origin for all where the network limits the links; else one for each office, with the rate of its link."""
        return ("all",) if self._network.shapes_links else tuple(site.name for site in self.scenario.site)

    def origin_url(self, site: str) -> str:
        return f"http://{self._addresses['origin-' + (site if site in self._origin_sites else self._origin_sites[0])]}/"

    async def _serve_origin(self, site: str, address: str = "") -> None:
        rate = next((each.wan_bytes_per_s for each in self.scenario.site if each.name == site), 0)
        options: Words = ["--rate", str(rate)] if rate else []
        await self._serve(f"origin-{site}", ["origin", "serve", self.origin, *options], address)

    # Releases

    async def publish(self, pair: Pair, version: Version, edition: int) -> None:
        """Ingest ``version``, assign it to everybody, sign and publish. ``edition`` numbers the policy from 1."""
        artifact = await trio.to_thread.run_sync(
            _named, version.file, self.folder / "artifacts" / version.version, pair.artifact
        )
        level: Words = ["--level", str(self.scenario.compression_level)]
        release: Words = [pair.name, version.version, artifact, "--fleet", self.authority, *level]
        await self._run("release-add", "release", "add", *release, timeout_s=INGEST_TIMEOUT_S)
        policy = self.folder / f"lab-{edition}.toml"
        write_atomic(policy, policy_document(pair, version, edition).encode())
        await self._run("policy-put", "policy", "put", policy, "--fleet", self.authority)
        if edition == 1:
            await self._run("fleet-stage", "fleet", "stage", "--fleet", self.authority)
            await self._run("fleet-activate", "fleet", "activate", "--fleet", self.authority, "--all")
        key = next((self.authority / "keys").glob("targets-*.key"))
        await self._run("sign", "sign", "--fleet", self.authority, "--key", key, *self._secret, "--yes")
        await self._run("publish", "publish", "--fleet", self.authority, "--to", self.origin, *self._secret)

    def manifest(self, pair: Pair, version: Version) -> manifest.Manifest:
        """The manifest as it was published."""
        folder = self.origin / "targets" / "releases" / "main"
        for path in folder.glob("*.manifest"):
            if path.name.partition(".")[2] == f"{pair.name}@{version.version}.manifest":
                return manifest.decode_untrusted(path.read_bytes())
        raise LabError(f"{folder} has no manifest of {pair.name} {version.version}")

    # Devices

    async def enrol(self) -> None:
        """Give every device its identity and settings. Starts nothing."""
        limit = trio.CapacityLimiter(JOINS_AT_ONCE)

        async def join(device: DeviceName, token: Path) -> None:
            async with limit:
                await self._join(str(device), self.state_of(device), token, self._settings(device))

        async with trio.open_nursery() as nursery:
            for site in self.scenario.site:
                token = await self._token(site.name, role="device", uses=site.devices)
                for device in self.roster:
                    if device.site == site.name:
                        nursery.start_soon(join, device, token)

    def state_of(self, device: DeviceName) -> Path:
        return self.folder / "devices" / device.site / device.name

    def root_of(self, device: DeviceName) -> Path:
        return self.folder / "roots" / device.site / device.name

    def _settings(self, device: DeviceName) -> Words:
        """Options of ``enroll join``: what differs from a device in a real office."""
        address, wishes = self._network.address_of(device), self.scenario.devices
        root = self.root_of(device)
        root.mkdir(parents=True, exist_ok=True)
        settings = {
            "listen.addresses": (address,),
            "listen.port": 0,
            "discovery.interfaces": (address,),
            "discovery.settle_s": wishes.settle_s,
            "origin.poll_s": 1.0 if device.number <= wishes.pollers else wishes.poll_s,
            "apply.interval_s": 2.0,
            "collectors.interval_s": 2.0,
        }
        return [
            "--root",
            root,
            *(word for key, value in settings.items() for word in ("--set", f"{key}={_toml_value(value)}")),
        ]

    def start_daemon(self, device: DeviceName) -> None:
        command: Words = [*COMMAND, "daemon", "--state", self.state_of(device)]
        place = self._network.place_of(device)
        self._daemons[device] = self._processes.start(str(device), command, namespace=place)

    def start_daemons(self) -> None:
        for device in self.roster:
            self.start_daemon(device)

    async def status(self, device: DeviceName) -> dict[str, Any] | None:
        """What the daemon answers; None while it does not (starting, killed, paused)."""
        state = self.state_of(device)

        def ask() -> Any:
            return self._ask(state, "status", timeout_s=ASK_TIMEOUT_S)

        try:
            answer = await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
        except PcmError:
            return None
        return dict(answer)

    def fallen(self) -> list[Process]:
        """Daemons and services that have ended."""
        return [each for each in (*self._daemons.values(), *self._services.values()) if not each.alive]

    # Faults; each returns when it has happened, ``mend`` when the target has been started again

    async def hurt(self, kind: str, target: str) -> None:
        for process in self.processes_of(target):
            if kind == "kill":
                process.signal(signal.SIGKILL)
                await process.wait_ended()
            elif kind == "pause":
                process.signal_group(signal.SIGSTOP)
            else:
                await self._processes.stop(process)

    async def mend(self, kind: str, target: str) -> None:
        if kind == "pause":
            for process in self.processes_of(target):
                process.signal_group(signal.SIGCONT)
        elif target == "origin":
            for site in self._origin_sites:
                await self._serve_origin(site, self._addresses[f"origin-{site}"])
        elif target == "collector":
            await self._serve_collector(self._addresses["collector"])
        else:
            self.start_daemon(self._device(target))

    def processes_of(self, target: str) -> list[Process]:
        """What a fault's target stands for."""
        if target == "origin":
            return [self._services[f"origin-{site}"] for site in self._origin_sites]
        return [self._services[target] if target in self._services else self._daemons[self._device(target)]]

    def _device(self, target: str) -> DeviceName:
        return next(device for device in self.roster if str(device) == target)

    # Commands

    async def _run(self, name: str, *words: str | Path, timeout_s: float = COMMAND_TIMEOUT_S) -> bytes:
        place = self._network.centre
        return await self._processes.run(name, [*COMMAND, *words], timeout_s=timeout_s, namespace=place)

    async def _serve(self, name: str, words: Sequence[str | Path], address: str = "") -> None:
        """Start a long-running command that listens, and wait until it says where."""
        ports = self.folder / "ports" / name
        ports.unlink(missing_ok=True)
        listen: Words = ["--listen", address or f"{self._network.centre_address}:0", "--port-file", ports]
        process = self._processes.start(name, [*COMMAND, *words, *listen], namespace=self._network.centre)
        self._services[name] = process
        self._addresses[name] = await self._port(ports, process)

    async def _port(self, path: Path, process: Process) -> str:
        with trio.move_on_after(START_TIMEOUT_S):
            while process.alive:
                if await trio.Path(path).exists():
                    return (await trio.Path(path).read_text()).strip()
                await trio.sleep(LOOK_S)
        raise LabError(f"{process.name} did not start; its last words:\n{process.last_lines()}")

    async def _token(self, site: str, *, role: str, uses: int) -> Path:
        facts = ["--site", site, "--role", role, "--uses", str(uses), "--origin", self.origin_url(site)]
        desk: Words = ["--fleet", self.authority, "--desk", self._addresses["desk"]]
        token = await self._run(f"token-{site}", "enroll", "token", *desk, *facts)
        path = self.folder / f"token-{site}"
        write_atomic(path, token, mode=0o600)
        return path

    async def _join(self, name: str, state: Path, token: Path, settings: Sequence[str | Path] = ()) -> None:
        await self._run(f"join-{name}", "enroll", "join", "--token-file", token, "--state", state, *settings)


def policy_document(pair: Pair, version: Version, edition: int) -> str:
    """The policy that puts ``version`` on every device and asks whether it is there."""
    place = "/opt/lab"
    forms: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "package": (
            {"kind": "package", "artifact": pair.artifact},
            {"resource": "package", "name": pair.package, "installed": True, "version": {"eq": version.version}},
        ),
        "archive": (
            {"kind": "archive", "artifact": pair.artifact, "name": pair.name, "path": place},
            {"resource": "file", "path": f"{place}/current", "symlink_target": f"{pair.name}-{version.version}"},
        ),
        "file": (
            {"kind": "file", "artifact": pair.artifact, "path": f"{place}/{pair.artifact}", "mode": 0o644},
            {"resource": "file", "path": f"{place}/{pair.artifact}", "sha256": version.sha256},
        ),
    }
    resource, check = forms[pair.kind]
    title = f"{pair.name} is {version.version}"
    head = {"schema": "pcm.policy/1", "id": "lab", "version": edition, "title": title, "mode": "enforce"}
    assign = {"release": pair.name, "version": version.version, "to": {"all": True}}
    return "\n".join(
        [
            *toml_lines(head),
            *("", "[[assign]]", *toml_lines(assign), "", "[[assign.resource]]", *toml_lines(resource)),
            *("", "[[check]]", *toml_lines({"id": "lab-patched", "title": title, "severity": "high", **check}), ""),
        ]
    )


def toml_lines(values: dict[str, Any]) -> list[str]:
    """``key = value`` lines of a TOML table."""
    return [f"{key} = {_toml_value(value)}" for key, value in values.items()]


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(toml_lines(value)) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(each) for each in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # strings, numbers and booleans are written alike in both


def _named(delivered: Path, folder: Path, artifact: str) -> Path:
    """``delivered`` under the name that it has in the release (a hard link; a copy across file systems)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / artifact
    try:
        path.hardlink_to(delivered)
    except OSError:
        path.write_bytes(delivered.read_bytes())
    return path
