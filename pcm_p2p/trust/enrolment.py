"""Enrolment: a device brings a key and a token to the desk, and leaves with a certificate, the authorities and the TUF root.

The desk answers over TLS 1.3 with a certificate in role ``desk`` that the authority in the token issued; the device has none
yet. What is said is in ``introduction``.

A use is on the desk's disk before the reply leaves. A key that comes again for the same token is the same use: a join that was
interrupted anywhere is repeated with the same command and costs nothing. On the device the certificate is written last; what
was written before it has no effect.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from pcm_p2p.errors import InputError, PcmError, StorageError, TransferError, TrustError, UntrustedBytes
from pcm_p2p.ids import DeviceId, check_name
from pcm_p2p.trust.first_settings import Overrides, check_settings, settings_text, write_settings
from pcm_p2p.trust.identity import (
    DeviceIdentity,
    FleetCA,
    FleetRecord,
    authorities_untrusted,
    load_authority,
    load_or_create_key,
    verified_identity_untrusted,
    verify,
)
from pcm_p2p.trust.introduction import (
    EXCHANGE_TIMEOUT_S,
    PROOF_DOMAIN,
    REQUEST_SIZE_BYTES_MAX,
    Reply,
    Request,
    ask_desk,
    decode_request_untrusted,
    mac,
    receive,
    send,
    statement,
)
from pcm_p2p.trust.token import (
    EnrolledRole,
    Token,
    TokenFolder,
    TokenRecord,
    check_endpoints,
    decode_token_untrusted,
)

if TYPE_CHECKING:
    from pcm_p2p.trust.repository import FleetFolder

log = logging.getLogger(__name__)

EXCHANGES_MAX = 32
"""Choice: joins at one time; a further one is closed at once and repeats."""
DESK_DAYS = 3_650
"""The desk's own certificate lasts as long as the authority's beside it, so that a desk that is never restarted goes on."""
LIFETIME_MAX = timedelta(days=366)


def create_token(
    folder: FleetFolder,
    *,
    desk: str,
    role: str = "device",
    site: str = "default",
    uses: int = 1,
    lifetime: timedelta = timedelta(hours=24),
    origins: Sequence[str] = (),
    seeds: Sequence[str] = (),
) -> Token:
    """Make a token and record it for the desk, which may be at work. Raises ``InputError`` that names the option."""
    check_endpoints((desk,), "desk")
    check_endpoints(seeds, "seed")
    for url in origins:
        if not url.startswith(("https://", "http://")):
            raise InputError(f"{url!r} is not an http or https address", key="origin", remedy="Start it with https://.")
    try:
        check_name(site, "site")
    except UntrustedBytes as error:
        raise InputError(error.message, key="site") from None
    if uses < 1:
        raise InputError("a token is for one use or more", key="uses")
    if not timedelta(0) < lifetime <= LIFETIME_MAX:
        raise InputError("a token lasts from a second to a year", key="expires")
    root_version = folder.root().signed.version
    expires_ms = int((folder.wall_clock() + lifetime).timestamp() * 1_000)
    token = Token(
        desk=desk,
        token_id=secrets.token_bytes(16),
        secret=secrets.token_bytes(16),
        root_sha256=hashlib.sha256(folder.root_bytes(root_version)).digest(),
        authority_der=load_authority(folder.path / "ca" / "ca.pem").public_bytes(Encoding.DER),
        fleet=folder.fleet_id,
        fleet_name=folder.name,
        expires_ms=expires_ms,
        role=cast(EnrolledRole, role),
        site=site,
        origins=tuple(origins),
        seeds=tuple(seeds),
    )
    try:
        decode_token_untrusted(token.line())
    except UntrustedBytes:
        raise InputError(
            "a token cannot be made of this: too many or too long origins and seeds, or an unknown role",
            remedy="Name fewer: devices learn the others from the fleet document.",
        ) from None
    record = TokenRecord(
        secret=token.secret.hex(),
        expires_ms=expires_ms,
        uses_max=uses,
        role=token.role,
        site=site,
        root_version=root_version,
    )
    TokenFolder(folder.path / "enrolment" / "tokens").put(token.token_id, record)
    return token


@contextmanager
def _held(path: Path, refusal: PcmError) -> Iterator[None]:
    """Hold the lock file ``path``; the lock ends with the process. Raises ``refusal`` if another has it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        yield
    finally:
        os.close(descriptor)


class Desk:
    """Honours the tokens of one fleet folder. Holds the authority's key in memory from ``open`` to ``close``."""

    def __init__(self, folder: FleetFolder, authority: FleetCA, context: ssl.SSLContext, lock: ExitStack) -> None:
        self._folder = folder
        self._authority = authority
        self._context = context
        self._lock = lock
        self._tokens = TokenFolder(folder.path / "enrolment" / "tokens")
        self._one_at_a_time = threading.Lock()
        self._exchanges = 0

    @classmethod
    def open(cls, folder: FleetFolder, passphrase: str) -> Desk:
        """Raises ``TrustError`` for a wrong passphrase, or if another desk is at work on this folder."""
        busy = TrustError(
            f"{folder.path}: another desk is at work on this fleet", remedy="Stop it first; two would count uses twice."
        )
        with ExitStack() as opened:
            opened.enter_context(_held(folder.path / "enrolment" / ".lock", busy))
            authority = FleetCA.load(folder.path / "ca", passphrase)
            if authority.fleet != folder.fleet_id:
                raise TrustError(f"{folder.path}: the authority in ca/ is of another fleet")
            home = folder.path / "enrolment" / "desk"
            DeviceIdentity.create(home, authority, "desk", now=folder.wall_clock(), days=DESK_DAYS)
            return cls(folder, authority, _desk_context(home), opened.pop_all())

    def close(self) -> None:
        """Let another desk have the folder."""
        self._lock.close()

    async def serve(
        self,
        host: str,
        port: int,
        *,
        task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer for ever. Reports its listeners; raises ``OSError`` if the address cannot be listened on."""
        listeners = await trio.open_tcp_listeners(port, host=host)
        await trio.serve_listeners(self._attend, listeners, task_status=task_status)

    async def _attend(self, tcp: trio.SocketStream) -> None:
        if self._exchanges >= EXCHANGES_MAX:
            await trio.aclose_forcefully(tcp)
            return
        self._exchanges += 1
        tls = trio.SSLStream(tcp, self._context, server_side=True, https_compatible=True)
        try:
            with trio.fail_after(EXCHANGE_TIMEOUT_S):
                data = await receive(tls, REQUEST_SIZE_BYTES_MAX)
                reply = await trio.to_thread.run_sync(self.answer, data)
                await send(tls, msgspec.msgpack.encode(reply))
                await tls.aclose()
        except (trio.TooSlowError, trio.BrokenResourceError, TransferError, OSError) as error:
            log.info("a device that came to enrol went away: %s", error or type(error).__name__)
        finally:
            self._exchanges -= 1
            await trio.aclose_forcefully(tls)

    def answer(self, data: bytes) -> Reply:
        """The reply to one request; blocks for a write to disk. Never raises for what the device or the disk does."""
        try:
            with self._one_at_a_time:
                return self._decide(decode_request_untrusted(data))
        except UntrustedBytes as error:
            log.warning("enrolment refused: %s", error)
            return Reply("malformed")
        except (PcmError, OSError) as error:
            log.error("an enrolment failed at the desk: %s", error)
            return Reply("failed")

    def _decide(self, request: Request) -> Reply:
        record = self._tokens.get(request.token_id)
        if record is None:
            return self._refuse(request, "unknown")
        stated = statement(request.token_id, self._authority.fleet, request.public_key)
        if not hmac.compare_digest(request.mac, mac(bytes.fromhex(record.secret), stated, request.proof)):
            return self._refuse(request, "wrong")
        if not verify(request.public_key, PROOF_DOMAIN, stated, request.proof):
            return self._refuse(request, "wrong")
        now = self._folder.wall_clock()
        if now.timestamp() * 1_000 >= record.expires_ms:
            return self._refuse(request, "expired")
        public_key = request.public_key.hex()
        if public_key not in record.spent and len(record.spent) >= record.uses_max:
            return self._refuse(request, "used")
        reply = Reply(
            reason="",
            certificate_der=self._authority.issue(request.public_key, record.role, now=now),
            authorities_pem=self._authority.pem,
            root=self._folder.root_bytes(record.root_version),
        )
        if public_key not in record.spent:
            self._tokens.put(request.token_id, msgspec.structs.replace(record, spent=(*record.spent, public_key)))
        device_id = DeviceId.of_public_key(request.public_key)
        log.info("%s %s of site %s enrolled with token %s", record.role, device_id, record.site, _short(request))
        return reply

    def _refuse(self, request: Request, reason: str) -> Reply:
        log.warning("enrolment with token %s refused: %s", _short(request), reason)
        return Reply(reason)


def _short(request: Request) -> str:
    return request.token_id.hex()[:8]


def _desk_context(home: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_NONE  # who joins has no certificate yet; the token and the proof stand in for it
    context.num_tickets = 0
    context.load_cert_chain(os.fspath(home / "device.crt"), os.fspath(home / "device.key"))
    return context


@dataclass(frozen=True)
class Joined:
    """``config`` is the path of the daemon's settings."""

    identity: DeviceIdentity
    token: Token
    config: Path


async def join(
    state: Path, line: str, *, wall_clock: Callable[[], datetime], overrides: Overrides | None = None
) -> Joined:
    """Enrol this device: make its key, go to the token's desk, write ``state``/identity and ``state``/config.toml.

    ``overrides`` are settings above those of the token; a config.toml that is there is kept. May be repeated after any
    interruption, and by a member of the fleet to renew its certificate. Raises ``InputError`` (malformed token, wrong setting,
    member of another fleet), ``TrustError`` (refused, wrong desk or root, wrong clock), ``TransferError`` (desk not reached).
    """
    try:
        token = decode_token_untrusted(line.strip())
    except UntrustedBytes as error:
        raise InputError(error.message, remedy="Copy the whole line, from 'pcm1.' to its end.") from None
    now = wall_clock()
    if now >= token.expires:
        raise TrustError(
            f"this token expired at {token.expires:%Y-%m-%d %H:%M} UTC; by this device's clock it is {now:%Y-%m-%d %H:%M}",
            remedy="Set the clock if it is wrong; else ask for a new token.",
        )
    folder, config = state / "identity", state / "config.toml"
    text = settings_text(token, overrides or {})
    busy = InputError("another join is at work here", path=state, remedy="Wait for it to end.")
    try:
        with _held(folder / ".lock", busy):
            key = await trio.to_thread.run_sync(_prepare, folder, config, text, token)
            reply = await ask_desk(token, key, now)
            identity = await trio.to_thread.run_sync(_accept, folder, config, text, token, key, reply, now)
    except OSError as error:
        raise StorageError(
            f"{error.filename or state}: {error.strerror}",
            remedy="Make it writable or make room, then repeat this command.",
        ) from None
    return Joined(identity, token, config)


def _prepare(folder: Path, config: Path, text: str, token: Token) -> Ed25519PrivateKey:
    """All that can be refused without the desk, and the key. Nothing of it makes this device a member."""
    try:
        enrolled = DeviceIdentity.load(folder)
    except TrustError:
        enrolled = None
    if enrolled is not None and enrolled.fleet != token.fleet:
        raise InputError(
            f"this device is enrolled in another fleet, {enrolled.record.name or enrolled.fleet}",
            path=folder,
            remedy="Choose another --state, or remove this one first.",
        )
    check_settings(config, text)
    return load_or_create_key(folder)


def _accept(
    folder: Path, config: Path, text: str, token: Token, key: Ed25519PrivateKey, reply: Reply, now: datetime
) -> DeviceIdentity:
    """Check what the desk gave against the token, then write it; the certificate last."""
    if not hmac.compare_digest(hashlib.sha256(reply.root).digest(), token.root_sha256):
        raise TrustError(
            f"the desk at {token.desk} gave another root than the one this token pins",
            remedy="Ask for a new token by a way you trust; if it happens again, the desk's folder was altered.",
        )
    try:
        authorities = authorities_untrusted(reply.authorities_pem)
        identity = verified_identity_untrusted(reply.certificate_der, reply.authorities_pem, fleet=token.fleet, at=now)
    except UntrustedBytes as error:
        raise TrustError(
            f"the desk at {token.desk} gave no usable certificate: {error}", remedy="Look at its log."
        ) from None
    if token.authority_der not in [authority.public_bytes(Encoding.DER) for authority in authorities]:
        raise TrustError(
            f"the desk at {token.desk} gave other authorities than the token's", remedy="Ask for a new token."
        )
    if identity.public_key != key.public_key().public_bytes_raw() or identity.role != token.role:
        raise TrustError(f"the desk at {token.desk} certified another key or role", remedy="Look at its log.")
    record = FleetRecord(token.fleet, name=token.fleet_name, site=token.site)
    write_settings(config, text)
    DeviceIdentity.install(folder, reply.certificate_der, reply.authorities_pem, record, reply.root)
    return DeviceIdentity.load(folder)
