"""Who makes changes on this device: the applier in this process, or the apply service, which is root and asked over its socket.

``[apply] service`` in ``config.toml`` names the socket; empty, the daemon applies itself (the lab, private roots, a daemon that
runs as root). With a service, this side only brings what the service asks for. It names a change that its own policy permits,
serves the metadata that it trusts, and sends the assembled artifacts; whether anything happens is decided over there.

Which checks the service looks at: files, their contents and mounts, since a sandboxed daemon sees other ``/home``, ``/tmp`` and
mounts than the system has, and would not get an error but a wrong answer. Packages, sysctls and services are looked at here:
they read the same for everybody, and the service has no network whose sysctls it could read.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import trio

from pcm_p2p.apply.applier import Applier
from pcm_p2p.apply.device import StagedArtifacts
from pcm_p2p.apply.dialogue import (
    ANSWER_BYTES_MAX,
    LENGTH_BYTES,
    Answer,
    Apply,
    AskArtifact,
    AskFile,
    AskPackage,
    Ended,
    GetReceipts,
    InPlace,
    Lack,
    Learned,
    Observe,
    Observed,
    Offer,
    Question,
    ReceiptRow,
    Refused,
    Request,
    Said,
    decode_said_untrusted,
    encode,
    length_untrusted,
)
from pcm_p2p.apply.judgement import digest_of_check
from pcm_p2p.apply.providers.package import PreviousPackage
from pcm_p2p.apply.receipt import Outcome, Receipt, digest_of
from pcm_p2p.compliance.facts.observation import Observation, Unknown
from pcm_p2p.compliance.facts.prober import CHECK_TIMEOUT_S, Prober
from pcm_p2p.config import Config
from pcm_p2p.daemon.applying.channel import Channel, ChannelClosed
from pcm_p2p.errors import (
    ApplyError,
    DaemonUnreachable,
    Degraded,
    InputError,
    PcmError,
    StorageError,
    TransferError,
    TrustError,
    UntrustedBytes,
)
from pcm_p2p.policy.desired import Authorisation, Change
from pcm_p2p.policy.document import AnyCheck, FileCheck, FileContentCheck, MountCheck
from pcm_p2p.trust.view import TrustedView

T = TypeVar("T", bound=Said)
Bringing = Callable[[Question, Channel], Awaitable[None]]

log = logging.getLogger(__name__)

CONNECT_S = 10.0
ANSWER_S = 0.8
"""What the service has for saying that a probe did not answer; ``compliance.inspection`` gives a probe a second more."""
LOOK_S = 600.0
"""Choice: hashing what is in place of the largest releases, behind a change that is under way for some minutes."""
CHANGE_S = 4 * 3_600.0
"""Choice: dpkg forth and back with its waits for the lock is 70 minutes at most (``apply.providers.package``); unpacking comes on
top. When it is over the service goes on, and the next turn finds the receipt."""

_ERRORS: Mapping[int, type[PcmError]] = {
    error.exit_status: error for error in (InputError, Degraded, TrustError, StorageError, TransferError, ApplyError)
}


class Changer(Protocol):
    """What makes changes: ``apply.applier.Applier``, or ``RemoteApplier``. Methods that wait raise ``PcmError``."""

    async def resume(self) -> Outcome | None: ...
    async def learn(self) -> None: ...
    async def apply(self, change: Change, authorisation: Authorisation, staged: StagedArtifacts) -> Outcome: ...
    async def is_in_place(self, change: Change, sha256_of: Mapping[str, str]) -> bool: ...
    def receipt(self, subject: str) -> Receipt | None: ...
    def receipts(self) -> tuple[Receipt, ...]: ...
    def why_wait(self, change: Change) -> str: ...


class Probes(Protocol):
    """What sees the device. Blocking."""

    def observe(self, check: AnyCheck, timeout_s: float = CHECK_TIMEOUT_S) -> Observation: ...


class Trusted(Protocol):
    """The part of ``trust.client.TrustClient`` that is used here. ``view`` is another one whenever anything came to it: a
    document of a site or a team that was missing changes no version."""

    @property
    def view(self) -> TrustedView | None: ...
    def serve(self, path: str) -> bytes | None: ...


def make_changer(
    state: Path,
    config: Config,
    trusted: Trusted,
    site: Callable[[], Trusted | None],
    previous_package: PreviousPackage,
    now_ms: Callable[[], int],
) -> Changer:
    """As the settings say. ``site`` gives what is trusted of the repository with which the site acts alone."""
    if config.apply.service:
        return RemoteApplier(Path(config.apply.service), trusted, site, previous_package, now_ms)
    return Applier(state / "apply", Path(config.apply.root), previous_package=previous_package, now_ms=now_ms)


def make_probes(config: Config) -> Probes:
    """As the settings say."""
    here = Prober(Path(config.apply.root))
    return RemoteProber(Path(config.apply.service), here) if config.apply.service else here


class ServiceUnreachable(DaemonUnreachable):
    """Nobody answers on the socket of the apply service."""

    remedy = "See 'systemctl status pcm-p2p-apply'; what is in place stays so meanwhile."


class RemoteApplier:
    """The apply service, with the interface of ``Applier``. Receipts are those of the last answer."""

    def __init__(
        self,
        path: Path,
        trusted: Trusted,
        site: Callable[[], Trusted | None],
        previous_package: PreviousPackage,
        now_ms: Callable[[], int],
    ) -> None:
        self._path = path
        self._trusted = trusted
        self._site = site
        self._previous_package = previous_package
        self._now_ms = now_ms
        self._told: dict[str, TrustedView | None] = {}
        self._receipts: dict[str, Receipt] = {}
        self._one_offer = trio.Lock()

    async def resume(self) -> None:
        """The service ends by itself what was interrupted; here its receipts are read."""
        await self._read_receipts()

    async def learn(self) -> None:
        """Let the service have the metadata that is trusted here: it looks at checks of policies that it knows, and at no others.

        Where it does not answer, whatever asks it next says so."""
        with contextlib.suppress(PcmError):
            await self._tell_news()

    async def apply(self, change: Change, authorisation: Authorisation, staged: StagedArtifacts) -> Outcome:
        """Raises ``TrustError`` when either side does not permit it, ``Degraded`` when the service ended meanwhile."""
        if not authorisation.permits(change):
            raise TrustError(f"the signed policy and activation do not permit {change.title} on this device now")
        await self._tell_news()

        async def bring(question: Question, channel: Channel) -> None:
            await self._bring_artifact(question, staged, channel)

        request = Apply(change.subject, change.version, digest_of(change))
        try:
            said = await self._ask(request, bring, CHANGE_S)
        finally:
            with contextlib.suppress(PcmError):
                await self._read_receipts()
        return _expect(said, Ended).outcome

    async def is_in_place(self, change: Change, sha256_of: Mapping[str, str]) -> bool:  # noqa: ARG002 - as Applier
        """False also when the service means something else by the change."""
        await self._tell_news()
        said = await self._ask(InPlace(change.subject, change.version, digest_of(change)), self._bring_nothing, LOOK_S)
        return _expect(said, Answer).yes

    def receipt(self, subject: str) -> Receipt | None:
        return self._receipts.get(subject)

    def receipts(self) -> tuple[Receipt, ...]:
        return tuple(receipt for _, receipt in sorted(self._receipts.items()))

    def why_wait(self, change: Change) -> str:
        receipt = self._receipts.get(change.subject)
        return receipt.why_wait(change, self._now_ms()) if receipt is not None else ""

    # What goes over

    async def _tell_news(self) -> None:
        """Offer the metadata that is trusted here, if it is other than what was offered last."""
        async with self._one_offer:
            await self._offer("the fleet", self._trusted)
            if (site := self._site()) is not None:
                try:
                    await self._offer("the site", site)
                except TrustError as error:  # the service does not know of it (yet): the fleet's word goes on
                    log.warning("the apply service does not follow the site: %s", error)

    async def _offer(self, whose: str, trusted: Trusted) -> None:
        view = trusted.view
        if view is None or view == self._told.get(whose):
            return

        async def bring(question: Question, channel: Channel) -> None:
            data = None
            if isinstance(question, AskFile):
                data = await trio.to_thread.run_sync(trusted.serve, question.path)
            await (channel.say(Lack()) if data is None else channel.give(data))

        learned = _expect(await self._ask(Offer(whose == "the site"), bring, LOOK_S), Learned)
        if learned.kind == "good" and learned.reason:
            log.warning("the apply service lacks something of %s, and is told again: %s", whose, learned.reason)
        elif learned.kind in ("good", "unchanged", "older"):
            self._told[whose] = view
        else:
            log.warning("the apply service does not follow %s: %s: %s", whose, learned.kind, learned.reason)

    async def _read_receipts(self) -> None:
        found: dict[str, Receipt] = {}
        async with self._connected() as channel:
            await channel.say(GetReceipts())
            while isinstance(said := await channel.hear(decode_said_untrusted), ReceiptRow):
                found[said.receipt.subject] = said.receipt
        self._receipts = found

    async def _ask(self, request: Request, bring: Bringing, timeout_s: float) -> Said:
        """One request to its end. ``bring`` answers what the service asks meanwhile."""
        async with self._connected() as channel:
            await channel.say(request)
            while isinstance(said := await channel.hear(decode_said_untrusted, timeout_s=timeout_s), Question):
                with contextlib.suppress(
                    ChannelClosed
                ):  # what it said before it closed is heard next, or that it closed
                    await bring(said, channel)
        if isinstance(said, Refused):
            self._told.clear()  # it may have lost what it was told
            raise _ERRORS.get(said.exit_status, PcmError)(said.message, remedy=said.remedy or None)
        return said

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Channel]:
        try:
            with trio.fail_after(CONNECT_S):
                stream = await trio.open_unix_socket(str(self._path))
        except (OSError, trio.TooSlowError) as error:
            self._told.clear()
            raise ServiceUnreachable(f"the apply service does not answer on {self._path}: {_words(error)}") from None
        try:
            async with stream:
                yield Channel(stream, size_bytes_max=ANSWER_BYTES_MAX)
        except ChannelClosed as error:
            self._told.clear()
            raise Degraded(
                f"the apply service ended the connection: {error.message}",
                remedy="It is asked again; see its log with 'journalctl -u pcm-p2p-apply'.",
            ) from None

    async def _bring_artifact(self, question: Question, staged: StagedArtifacts, channel: Channel) -> None:
        path: Path | None = None
        reason = ""
        try:
            if isinstance(question, AskArtifact):
                path = staged(question.name).path
            elif isinstance(question, AskPackage):
                package = question.name, question.version, question.architecture
                path = await trio.to_thread.run_sync(self._previous_package, *package)
        except (PcmError, KeyError) as error:
            reason = str(error)[:1_000]
        if path is None:
            await channel.say(Lack(reason))
            return
        try:
            await channel.give_file(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from None

    async def _bring_nothing(self, _question: Question, channel: Channel) -> None:
        await channel.say(Lack())


class RemoteProber:
    """What only root sees as the system has it is observed by the apply service, the rest here. Blocking."""

    def __init__(self, path: Path, here: Probes) -> None:
        self._path = path
        self._here = here

    def observe(self, check: AnyCheck, timeout_s: float = CHECK_TIMEOUT_S) -> Observation:
        if not isinstance(check, FileCheck | FileContentCheck | MountCheck):
            return self._here.observe(check, timeout_s)
        try:
            request = Observe(digest_of_check(check), max(1, int(1_000 * timeout_s)))
            seen = _expect(ask_once(self._path, request, timeout_s=timeout_s + ANSWER_S), Observed)
        except PcmError as error:
            unknown = Unknown("error", error.message)
            return dict.fromkeys([*(condition.attribute for condition in check.conditions()), "hits"], unknown)
        return {
            fact.attribute: fact.value if not fact.unknown else Unknown(_state(fact.unknown), fact.reason)
            for fact in seen.facts
        }


def ask_once(path: Path, request: Request, *, timeout_s: float = CONNECT_S) -> Said:
    """One request whose answer takes one message (blocking; for probes, the command line and ``doctor``).

    Raises ``ServiceUnreachable``, ``Degraded`` when it does not answer in time, and the error with which it refused.
    """
    ends = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise ServiceUnreachable(f"the apply service does not answer on {path}: {_words(error)}") from None
        try:
            connection.sendall(encode(request))
            length = length_untrusted(_exactly(connection, LENGTH_BYTES, ends), ANSWER_BYTES_MAX)
            said = decode_said_untrusted(_exactly(connection, length, ends))
        except TimeoutError:
            raise Degraded(f"the apply service on {path} did not answer within {timeout_s:g} s") from None
        except (OSError, EOFError, UntrustedBytes) as error:
            raise Degraded(f"the apply service on {path} gave no answer: {_words(error)}") from None
    if isinstance(said, Refused):
        raise _ERRORS.get(said.exit_status, PcmError)(said.message, remedy=said.remedy or None)
    return said


def _exactly(connection: socket.socket, size_bytes: int, ends: float) -> bytes:
    buffer = bytearray()
    while len(buffer) < size_bytes:
        connection.settimeout(max(0.001, ends - time.monotonic()))
        data = connection.recv(min(1 << 20, size_bytes - len(buffer)))
        if not data:
            raise EOFError("it closed the connection")
        buffer += data
    return bytes(buffer)


def _expect(said: Said, kind: type[T]) -> T:
    if not isinstance(said, kind):
        raise Degraded(f"the apply service answered with {type(said).__name__}, not {kind.__name__}")
    return said


def _state(text: str) -> Literal["error", "not_run"]:
    return "not_run" if text == "not_run" else "error"


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or "no answer in time"
