"""The apply service: what must be root, in a small process without network, which believes nobody.

The network's daemon may be taken over without this changing: the service has a pinned root, a floor, a journal and a ledger of
its own in a folder of root's, learns metadata through trust clients of its own (which verify all of it again), decides with
``policy.desired`` and ``apply.judgement`` what is due, and copies artifacts into a folder of its own while it hashes them against
the manifest that it verified. What a hostile daemon can do is nothing, something late, or what is signed for this device now.

State folder (of root, mode 0700)::

    apply.toml, root.json   see ``apply_settings``; written by adoption, never by the service
    trust/, site-trust/     what it trusts, see ``apply_trust``
    apply/                  journal, receipts, back-ups
    releases/               the ledger: floor of release counters
    staging/                bytes of the change under way

Bounds: one change at a time, ``CONNECTIONS_MAX`` connections, one request each, messages of 16 KiB, bytes only in the size that
was signed, and a rest of ``PENALTY_S`` after each connection that breaks the rules. A change that was begun is finished or
taken back, whether or not the daemon is still there.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import trio

from pcm_p2p.apply.applier import SETTLE_S, Applier
from pcm_p2p.apply.command import Runner, run
from pcm_p2p.apply.dialogue import (
    REQUEST_BYTES_MAX,
    Answer,
    Apply,
    AskArtifact,
    AskFile,
    AskPackage,
    Bring,
    Ended,
    GetReceipts,
    GetStanding,
    InPlace,
    Lack,
    Learned,
    NoMore,
    Observe,
    Observed,
    Offer,
    Question,
    ReceiptRow,
    Refused,
    Request,
    Reset,
    SeenFact,
    Standing,
    decode_brought_untrusted,
    decode_request_untrusted,
)
from pcm_p2p.apply.judgement import Due, NotDue, Published, PublishedArtifact, digest_of_check, find, judge
from pcm_p2p.apply.step import PackageIdentity, Staged
from pcm_p2p.compliance.facts.observation import Observation, Unknown
from pcm_p2p.compliance.facts.prober import Prober
from pcm_p2p.content.manifest import Manifest
from pcm_p2p.daemon.applying.belief import ApplyTrust
from pcm_p2p.daemon.applying.channel import STALL_S, Channel, ChannelClosed, uid_of_peer
from pcm_p2p.daemon.applying.settings import ApplySettings, account, require_ours, require_ours_above
from pcm_p2p.daemon.ledger import Ledger
from pcm_p2p.errors import DiskFull, PcmError, StorageError, TrustError
from pcm_p2p.policy.desired import Change, Desired
from pcm_p2p.policy.document import AnyCheck
from pcm_p2p.trust.updater import SourceFailed, SourceMissing

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 4
"""Choice: a change, an assessment, an operator, and one to spare."""
PENALTY_S = 1.0
"""Choice: what a connection that says nonsense costs the next one, and ten times what one costs that is refused."""
SPARE_BYTES = 256 << 20
"""Choice: what must be left on the disk beside the staged bytes, for unpacking and the journal."""
PROBES_MAX = 2
"""As ``compliance.inspection``: one that works and one that may hang."""
PROBE_GRACE_S = 0.5
"""A probe notices its own deadline; this much later its thread is given up. Below what the daemon adds for itself."""
TEXT_CHARACTERS_MAX = 2_000
HITS_BYTES_MAX = 4 << 20
"""Of the values of one observation; ``dialogue.ANSWER_BYTES_MAX`` has room for their names and lengths, too."""


class Unwilling(TrustError):
    """The service does not do what was asked. The message is the reason."""


class ApplyService:
    """``run`` serves until cancelled. ``wall_clock`` gives aware UTC time; ``runner`` is the seam to programs."""

    def __init__(
        self,
        state: Path,
        settings: ApplySettings,
        root_json: bytes,
        *,
        wall_clock: Callable[[], datetime] | None = None,
        runner: Runner = run,
        settle_s: float = SETTLE_S,
        penalty_s: float = PENALTY_S,
        stall_s: float = STALL_S,
    ) -> None:
        self._state = state
        self._settings = settings
        self._facts = settings.facts
        self._client_uid, _ = account(settings.client, state)
        self._root_path = Path(settings.apply.root)
        clock = wall_clock or _wall_clock
        self._trust = ApplyTrust(state, root_json, settings.device.fleet, self._facts, clock)
        self._clock = clock
        self._previous: dict[PackageIdentity, Path] = {}
        self._applier = Applier(
            state / "apply",
            self._root_path,
            previous_package=lambda *package: self._previous.get(PackageIdentity(*package)),
            now_ms=self._now_ms,
            runner=runner,
            settle_s=settle_s,
        )
        self._ledger = Ledger(state / "releases")
        self._staging = state / "staging"
        self._prober = Prober(self._root_path)
        self._one_change = trio.Lock()
        self._probes = trio.CapacityLimiter(PROBES_MAX)
        self._penalty_s, self._stall_s = penalty_s, stall_s
        self._rest_until_s = 0.0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End what a crash left half made, then answer the daemon until cancelled."""
        require_ours(self._root_path)
        require_ours_above(self._root_path)
        with self._trust:
            shutil.rmtree(self._staging, ignore_errors=True)
            if (outcome := await self._applier.resume()) is not None:
                log.warning("a change was interrupted: %s %s is %s", outcome.subject, outcome.version, outcome.verdict)
            with _listening(Path(self._settings.socket), self._client_uid) as listener:
                log.info("device %s: listening at %s", self._facts.device, self._settings.socket)
                task_status.started()
                await self._accept(listener)

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        limit = trio.Semaphore(CONNECTIONS_MAX)
        async with trio.open_nursery() as nursery:
            while True:
                await limit.acquire()
                connection, _ = await listener.accept()
                await trio.sleep_until(self._rest_until_s)
                nursery.start_soon(self._serve, connection, limit)

    async def _serve(self, connection: trio.socket.SocketType, limit: trio.Semaphore) -> None:
        try:
            uid = uid_of_peer(connection)
            async with trio.SocketStream(connection) as stream:
                if uid not in (0, self._client_uid):
                    log.warning("user %d may not speak here", uid)
                    return
                channel = Channel(stream, size_bytes_max=REQUEST_BYTES_MAX, stall_s=self._stall_s)
                await self._answer(channel, uid)
        except ChannelClosed as error:
            log.info("a connection ended early: %s", error.message)
            self._rest(self._penalty_s)
        except Exception as error:  # whatever it is, it must not end the others, nor a change that is under way
            log.error("a connection ended for a reason that nobody thought of", exc_info=error)
            self._rest(self._penalty_s)
        finally:
            limit.release()

    def _rest(self, seconds: float) -> None:
        """Take no other connection meanwhile: what is asked in vain must cost the asker more than the service."""
        self._rest_until_s = max(self._rest_until_s, trio.current_time() + seconds)

    async def _answer(self, channel: Channel, uid: int) -> None:
        request = await channel.hear(decode_request_untrusted)
        try:
            await self._do(request, channel, uid)
        except ChannelClosed:
            raise
        except (PcmError, OSError) as error:
            known = error if isinstance(error, PcmError) else StorageError(str(error))
            log.warning("%s was refused: %s", type(request).__name__, known)
            self._rest(self._penalty_s / 10)
            await channel.say(Refused(_clip(known.message), _clip(known.remedy), known.exit_status))

    async def _do(self, request: Request, channel: Channel, uid: int) -> None:
        match request:
            case Offer():
                attempt = await self._trust.attempt(_DaemonSource(channel), site=request.site)
                await channel.say(Learned(attempt.kind, _clip(attempt.reason)))
            case Apply():
                await self._apply(request, channel)
            case InPlace():
                await channel.say(Answer(await self._is_in_place(request)))
            case GetReceipts():
                for receipt in await trio.to_thread.run_sync(self._applier.receipts):
                    await channel.say(ReceiptRow(receipt))
                await channel.say(NoMore())
            case Observe():
                await channel.say(await self._observe(request))
            case Reset():
                if uid != 0:
                    raise Unwilling("only root may reset a change", remedy="As root: 'pcm-p2p apply-service reset'.")
                await channel.say(Answer(await self._applier.reset(request.subject)))
            case GetStanding():
                await channel.say(await trio.to_thread.run_sync(self._standing))

    def _now_ms(self) -> int:
        return int(self._clock().timestamp() * 1_000)

    # Changes

    async def _apply(self, request: Apply, channel: Channel) -> None:
        try:
            self._one_change.acquire_nowait()
        except trio.WouldBlock:
            raise Unwilling("another change is being made", remedy="It is tried again.") from None
        try:
            manifest = await trio.to_thread.run_sync(self._trust.manifest, request.subject, request.version)
            due, _ = await trio.to_thread.run_sync(self._judge, request, manifest)
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir(mode=0o700)
            staged = await self._stage(due, channel)
            await self._fetch_previous(due.change, staged, channel)
            # Time went by while the bytes came, and the metadata may have become other.
            due, desired = await trio.to_thread.run_sync(self._judge, request, manifest)
            if manifest != await trio.to_thread.run_sync(self._trust.manifest, request.subject, request.version):
                raise Unwilling(
                    f"the manifest of {due.change.title} was replaced or withdrawn meanwhile",
                    remedy="It is tried again.",
                )
            log.info("%s: due, and all of it is here", due.change.title)
            outcome = await self._applier.apply(due.change, desired.authorisation, staged.__getitem__)
            if outcome.verdict == "done" and manifest is not None:
                await trio.to_thread.run_sync(self._ledger.remember, manifest)
        finally:
            self._previous.clear()
            shutil.rmtree(self._staging, ignore_errors=True)
            self._one_change.release()
        await channel.say(Ended(outcome))

    def _judge(self, request: Apply, manifest: Manifest | None) -> tuple[Due, Desired]:
        desired = self._trust.desired()
        verdict = judge(
            desired,
            request.subject,
            request.version,
            request.digest,
            published=_published(manifest),
            counter_min=self._ledger.counter(request.subject) if manifest is not None else 0,
            receipt=self._applier.receipt(request.subject),
            now_ms=self._now_ms(),
        )
        if isinstance(verdict, NotDue):
            raise Unwilling(
                f"the apply service does not make {request.subject} {request.version}: {verdict.reason}",
                remedy=f"It is for {self._whom()}; see 'pcm-p2p apply-service show'.",
            )
        return verdict, desired

    async def _stage(self, due: Due, channel: Channel) -> dict[str, Staged]:
        """Copies of all artifacts in a folder of our own, each hashed while it came, by name."""
        free_bytes = shutil.disk_usage(self._state).free
        if due.size_bytes + SPARE_BYTES > free_bytes:
            raise DiskFull(
                f"{due.change.title} takes {due.size_bytes} bytes, and {free_bytes} are free in {self._state}"
            )
        staged = {}
        for number, artifact in enumerate(due.artifacts):
            # The number keeps names apart that some file system thinks alike.
            path = self._staging / f"{number}-{artifact.name}"
            question = AskArtifact(artifact.name, artifact.sha256, artifact.size_bytes)
            await self._copy(question, artifact.sha256, artifact.size_bytes, path, channel)
            staged[artifact.name] = Staged(path, artifact.sha256)
        return staged

    async def _fetch_previous(self, change: Change, staged: dict[str, Staged], channel: Channel) -> None:
        """The packages that the change replaces, as far as the ledger knows which bytes they were and the daemon has them."""
        packages = await self._applier.replaced_packages(change, staged.__getitem__)
        for number, package in enumerate(packages):
            known = await trio.to_thread.run_sync(self._known_bytes, package)
            if known is None:
                continue
            path = self._staging / f"previous-{number}.deb"
            question = AskPackage(package.name, package.version, package.architecture, known.sha256, known.size_bytes)
            try:
                await self._copy(question, known.sha256, known.size_bytes, path, channel)
            except TrustError as error:
                log.warning("%s %s cannot be gone back to: %s", package.name, package.version, error)
            else:
                self._previous[package] = path

    def _known_bytes(self, package: PackageIdentity) -> PublishedArtifact | None:
        """Which artifact of what was applied before turned out to be ``package``."""
        shas = {
            sha256 for receipt in self._applier.receipts() for sha256, one in receipt.packages.items() if one == package
        }
        for manifest in reversed(self._ledger.manifests()):
            for artifact in _artifacts(manifest):
                if artifact.sha256 in shas:
                    return artifact
        return None

    async def _copy(self, question: Question, sha256: str, size_bytes: int, path: Path, channel: Channel) -> None:
        """Ask for bytes and keep them in ``path``, a new file. Raises ``Unwilling`` unless they are the signed ones."""
        await channel.say(question)
        answer = await channel.hear(decode_brought_untrusted)
        if isinstance(answer, Lack):
            raise Unwilling(f"the daemon does not have {path.name}: {answer.reason}")
        if answer.size_bytes != size_bytes:
            raise Unwilling(f"the daemon offers {answer.size_bytes} bytes for {path.name}; {size_bytes} were signed")
        digest = hashlib.sha256()
        with open(path, "xb", buffering=0, opener=_private) as file:  # noqa: ASYNC230 - opening does not wait

            def keep(piece: bytes) -> None:
                digest.update(piece)
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]

            await channel.take(size_bytes, keep)
        if digest.hexdigest() != sha256:
            path.unlink()  # noqa: ASYNC240 - of our own disk
            raise Unwilling(
                f"the bytes that the daemon brought for {path.name} are not the signed ones",
                remedy="Look at the daemon: an honest one verifies them before.",
            )

    async def _is_in_place(self, request: InPlace) -> bool:
        def look() -> tuple[Change, Manifest | None] | None:
            found = find(self._trust.desired(), request.subject, request.version, request.digest)
            if isinstance(found, NotDue):
                return None
            return found[0], self._trust.manifest(request.subject, request.version)

        found = await trio.to_thread.run_sync(look)
        if found is None:
            return False
        change, manifest = found
        published = _published(manifest)
        there = await self._applier.is_in_place(change, published.sha256_of if published is not None else {})
        if there and manifest is not None:
            await trio.to_thread.run_sync(self._ledger.remember, manifest)
        return there

    # Checks

    async def _observe(self, request: Observe) -> Observed:
        """Look at what one check of the signed policies is about; nothing else is looked at."""
        desired = await trio.to_thread.run_sync(self._trust.desired)
        check = next((one.check for one in desired.checks if digest_of_check(one.check) == request.check), None)
        if check is None:
            raise Unwilling("no signed policy for this device has that check")
        return Observed(_seen(await self._look(check, request.timeout_ms / 1_000)))

    async def _look(self, check: AnyCheck, timeout_s: float) -> Observation:
        """A probe that hangs (a dead network mount) costs its own check, and not the connections for changes."""
        reason = "earlier probes hang, so this one was not started"
        if self._probes.available_tokens:
            with trio.move_on_after(timeout_s + PROBE_GRACE_S):
                return await trio.to_thread.run_sync(
                    self._prober.observe, check, timeout_s, abandon_on_cancel=True, limiter=self._probes
                )
            reason = f"the probe did not answer within {timeout_s:g} s"
        unknown = Unknown("not_run", reason)
        return dict.fromkeys([*(condition.attribute for condition in check.conditions()), "hits"], unknown)

    def _standing(self) -> Standing:
        device, (root, timestamp, snapshot, targets) = self._settings.device, self._trust.versions
        try:
            desired: Desired | None = self._trust.desired()
        except PcmError:
            desired = None
        return Standing(
            device=device.id,
            fleet=device.fleet,
            site=device.site,
            labels=device.labels,
            root=self._settings.apply.root,
            freshness=self._trust.freshness,
            versions=(root, timestamp, snapshot, targets),
            changes_allowed=desired is not None and desired.changes_allowed,
            why_not=_clip(desired.why_not if desired is not None else "There is no signed metadata yet."),
        )

    def _whom(self) -> str:
        labels = f" with labels {', '.join(self._facts.labels)}" if self._facts.labels else ""
        return f"device {self._facts.device.short} of site {self._facts.site}{labels}"


class _DaemonSource:
    """The network's daemon as a source of metadata and targets, believed in nothing."""

    name = "the network's daemon"

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def fetch(self, path: str, size_bytes_max: int) -> bytes:
        await self._channel.say(AskFile(path, size_bytes_max))
        answer = await self._channel.hear(decode_brought_untrusted)
        if not isinstance(answer, Bring):
            raise SourceMissing(f"the daemon has no {path}")
        if answer.size_bytes > size_bytes_max:
            raise SourceFailed(f"the daemon offers {answer.size_bytes} bytes for {path}; {size_bytes_max} are read")
        pieces: list[bytes] = []
        await self._channel.take(answer.size_bytes, pieces.append)
        return b"".join(pieces)


@contextlib.contextmanager
def _listening(path: Path, client_uid: int) -> Iterator[trio.socket.SocketType]:
    """The socket, which only the client (and root) can open. Raises ``TrustError`` if its folder is somebody else's."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    require_ours(path.parent)
    require_ours_above(path.parent)
    path.unlink(missing_ok=True)
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with plain:
        mask = os.umask(0o177)
        try:
            plain.bind(str(path))
        except OSError as error:
            raise StorageError(f"{path} cannot be listened at: {error.strerror or error}") from None
        finally:
            os.umask(mask)
        if os.geteuid() == 0:
            os.chown(path, client_uid, -1)
        plain.listen(CONNECTIONS_MAX)
        plain.setblocking(False)
        try:
            yield trio.socket.from_stdlib_socket(plain)
        finally:
            path.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _artifacts(manifest: Manifest) -> tuple[PublishedArtifact, ...]:
    return tuple(
        PublishedArtifact(one.name, one.stored_sha256.hex(), one.stored_size, one.form) for one in manifest.artifacts
    )


def _published(manifest: Manifest | None) -> Published | None:
    return Published(manifest.counter, _artifacts(manifest)) if manifest is not None else None


def _seen(observation: Observation) -> tuple[SeenFact, ...]:
    facts, left = [], HITS_BYTES_MAX
    for attribute, value in observation.items():
        if isinstance(value, Unknown):
            facts.append(SeenFact(attribute, None, value.state, _clip(value.reason)))
            continue
        left -= len(repr(value).encode("utf-8", "replace")) if isinstance(value, str | tuple) else 16
        if left < 0:
            facts.append(SeenFact(attribute, None, "not_run", f"it is longer than {HITS_BYTES_MAX} bytes"))
        else:
            facts.append(SeenFact(attribute, value))
    return tuple(facts)


def _clip(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS_MAX else text[: TEXT_CHARACTERS_MAX - 1] + "…"


def _wall_clock() -> datetime:
    return datetime.now(UTC)
