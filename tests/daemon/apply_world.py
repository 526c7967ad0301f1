"""A fleet, a device's apply service in this process, and daemons that bring it what it asks for, honestly or not.

The service has the real settings, trust client, applier and socket; only its clock is set by hand. ``Liar`` speaks the
dialogue by itself, so that it can say what no daemon would.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from repository_simulator import PASSPHRASE, RepositorySimulator, TreeSource

from pcm_p2p.apply.dialogue import (
    ANSWER_BYTES_MAX,
    Apply,
    AskArtifact,
    AskFile,
    Lack,
    Learned,
    Offer,
    Question,
    Request,
    Said,
    decode_said_untrusted,
)
from pcm_p2p.apply.receipt import digest_of
from pcm_p2p.authority import halting
from pcm_p2p.authority.keys.signing_key import open_signing_key
from pcm_p2p.authority.publish import publish
from pcm_p2p.content.manifest import Manifest
from pcm_p2p.content.publishing.ingest import ingest
from pcm_p2p.daemon.applying.channel import Channel
from pcm_p2p.daemon.applying.client import RemoteApplier
from pcm_p2p.daemon.applying.service import ApplyService
from pcm_p2p.daemon.applying.settings import Apply as ApplyPlace
from pcm_p2p.daemon.applying.settings import ApplySettings, Device
from pcm_p2p.daemon.documents import manifests_to_keep, read_documents
from pcm_p2p.ids import DeviceId
from pcm_p2p.policy.desired import Change, Desired
from pcm_p2p.policy.selector import DeviceFacts
from pcm_p2p.trust.client import TrustClient
from pcm_p2p.trust.delegation import HALT, roles_of_device

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apply"))
from apply_kit import HAS_DPKG, Artifacts, tar_of

__all__ = ["HAS_DPKG", "ApplyWorld", "Liar", "tar_of"]

ME = DeviceId(bytes(range(16)))
FACTS = DeviceFacts(ME, "office", ("desktop",))
ACTIVATION = b'schema = "pcm.activation/1"\nscope = "all"\nnot_before = 2020-01-01T00:00:00Z\n'

Bring = Callable[[Question, Channel], Awaitable[None]]


class ApplyWorld:
    """``root`` is the device; ``staged`` holds the artifacts as the daemon has assembled them."""

    def __init__(self, folder: Path, simulator: RepositorySimulator) -> None:
        self.folder, self.simulator, self.clock = folder, simulator, simulator.clock
        self.root = folder / "root"
        (self.root / "etc").mkdir(parents=True)
        self.staged = Artifacts(folder / "assembled")
        self.socket = folder / "s" / "socket"
        self.edition = 0
        self.counters: dict[str, int] = {}
        self.daemon = TrustClient(
            folder / "daemon-trust",
            simulator.fleet.root_bytes(1),
            simulator.fleet.fleet_id,
            wall_clock=self.clock,
            wanted=manifests_to_keep(FACTS, self.clock),
            roles=roles_of_device("office"),
        )

    # What the fleet publishes

    def release(self, version: str, *artifacts: str, name: str = "tool", counter: int | None = None) -> Manifest:
        """Stage a release of artifacts that are in ``staged`` already."""
        files = [self.staged.folder / artifact for artifact in artifacts]
        self.counters[name] = self.counters.get(name, 0) + 1 if counter is None else counter
        made = ingest(
            files,
            release=name,
            version=version,
            counter=self.counters[name],
            work=self.simulator.fleet.path,
            level=0,
            processes=1,
        )
        for artifact in made.manifest.artifacts:
            stored = self.staged.sha256_of[artifact.name]
            assert artifact.stored_sha256.hex() == stored, "the test's artifacts are in their stored form"
        self.simulator.fleet.stage_release(made.manifest, made.segments_folder)
        return made.manifest

    def publish(
        self,
        *resources: str,
        version: str = "1",
        name: str = "tool",
        mode: str = "enforce",
        to: str = "all = true",
        checks: str = "",
        activate: bool = True,
    ) -> None:
        """A policy that assigns ``name`` with these resources (TOML, one table each), signed and published."""
        self.edition += 1
        text = f'schema = "pcm.policy/1"\nid = "base"\nversion = {self.edition}\nmode = "{mode}"\n'
        if resources:
            text += f'[[assign]]\nrelease = "{name}"\nversion = "{version}"\nto = {{ {to} }}\n'
            text += "".join(f"[[assign.resource]]\n{resource}\n" for resource in resources)
        self.simulator.fleet.stage_policy("base", (text + checks).encode())
        if activate:
            self.simulator.fleet.stage_file("fleet/activation.toml", ACTIVATION)
        self.simulator.sign()
        self.simulator.publish()

    def publish_file(self, version: str, data: bytes, **options: Any) -> None:
        """A release of one file, which goes to /opt/tool."""
        artifact = f"tool-{version}.bin"
        self.staged.put(artifact, data)
        counter = options.pop("counter", None)
        self.release(version, artifact, counter=counter)
        self.publish(f'kind = "file"\nartifact = "{artifact}"\npath = "/opt/tool"', version=version, **options)

    def halt(self, release: str, version: str) -> None:
        """By one key of the fleet, published at once."""
        key = open_signing_key(self.simulator.key_path("targets", "alice"), PASSPHRASE)
        halting.order(self.simulator.fleet, key, release=release, version=version, reason="it breaks")
        publish(self.simulator.fleet, self.simulator.origin, self.simulator.keys, only=(HALT,))

    @property
    def installed(self) -> bytes | None:
        path = self.root / "opt/tool"
        return path.read_bytes() if path.exists() else None

    # The service

    def settings(self, **device: Any) -> ApplySettings:
        facts = {"id": ME.hex(), "fleet": self.simulator.fleet.fleet_id, "site": "office", "labels": ("desktop",)}
        return ApplySettings(
            device=Device(**{**facts, **device}),
            client="0",
            socket=str(self.socket),
            apply=ApplyPlace(str(self.root)),
        )

    @asynccontextmanager
    async def serving(self, **options: Any) -> AsyncIterator[ApplyService]:
        service = ApplyService(
            self.folder / "state",
            self.settings(),
            self.simulator.fleet.root_bytes(1),
            wall_clock=self.clock,
            settle_s=0.0,
            **{"penalty_s": 0.0, **options},
        )
        (self.folder / "state").mkdir(mode=0o700, exist_ok=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            yield service
            nursery.cancel_scope.cancel()

    # An honest daemon

    async def refresh(self) -> Desired:
        """Learn what is published, and what of it is for this device."""
        attempt = await self.daemon.attempt(self.simulator.source())
        assert attempt.kind in ("good", "unchanged"), attempt
        view = self.daemon.view
        assert view is not None
        documents, freshness = read_documents(view, None, self.daemon.now()), self.daemon.freshness()
        return documents.desired(documents.weighed(FACTS, freshness), FACTS, self.daemon.now(), freshness)

    def remote(self, previous: Mapping[str, Path] | None = None) -> RemoteApplier:
        known = previous or {}
        return RemoteApplier(
            self.socket,
            self.daemon,
            lambda: None,
            lambda name, version, _architecture: known.get(f"{name} {version}"),
            lambda: int(self.clock().timestamp() * 1_000),
        )


class Liar:
    """Whoever took the daemon over: every byte that goes to the service is of its choice."""

    def __init__(self, world: ApplyWorld) -> None:
        self.world = world
        self.tree: Path | Mapping[str, bytes] = world.simulator.origin
        self.artifacts: dict[str, bytes] = {}
        self.asked: list[Question] = []

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[Channel, trio.SocketStream]]:
        stream = await trio.open_unix_socket(str(self.world.socket))
        async with stream:
            yield Channel(stream, size_bytes_max=ANSWER_BYTES_MAX), stream

    async def ask(self, request: Request, bring: Bring | None = None) -> Said:
        async with self.connected() as (channel, _):
            await channel.say(request)
            while isinstance(said := await channel.hear(decode_said_untrusted), Question):
                self.asked.append(said)
                await (bring or self.bring)(said, channel)
        return said

    async def bring(self, question: Question, channel: Channel) -> None:
        """The tree for files, ``artifacts`` (or what was assembled) for artifacts."""
        data: bytes | None = None
        if isinstance(question, AskFile):
            try:
                data = await TreeSource(self.tree).fetch(question.path, question.size_bytes_max)
            except Exception:  # a tree that lacks it
                data = None
        elif isinstance(question, AskArtifact):
            data = self.artifacts.get(question.name)
            if data is None:
                data = (self.world.staged.folder / question.name).read_bytes()
        await (channel.say(Lack()) if data is None else channel.give(data))

    async def offer(self, tree: Path | Mapping[str, bytes] | None = None, *, site: bool = False) -> Learned:
        if tree is not None:
            self.tree = tree
        said = await self.ask(Offer(site))
        assert isinstance(said, Learned), said
        return said

    async def apply(self, change: Change, bring: Bring | None = None) -> Said:
        return await self.ask(Apply(change.subject, change.version, digest_of(change)), bring)
