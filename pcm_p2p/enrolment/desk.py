"""The desk: certifies devices that bring a key and a token, and renews the certificates of members.

It answers over TLS 1.3 with a certificate in role ``desk`` that the fleet's authority issued; who comes has none that counts
here: a device that joins has none yet, and one that renews may have an expired one. What is said is in ``introduction``, whom to
certify is decided in ``admittance``.

A use is on the desk's disk before the reply leaves. A key that comes again for the same token is the same use: a join that was
interrupted anywhere is repeated with the same command and costs nothing. A renewal leaves no trace at the desk but a log line.
"""

from __future__ import annotations

import hmac
import logging
import os
import ssl
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.enrolment import admittance
from pcm_p2p.enrolment.admittance import Answer
from pcm_p2p.enrolment.device_code import device_code
from pcm_p2p.enrolment.errand import EXCHANGE_TIMEOUT_S, receive, send
from pcm_p2p.enrolment.introduction import (
    PROOF_DOMAIN,
    RENEWAL_DOMAIN,
    REQUEST_SIZE_BYTES_MAX,
    Renewal,
    Reply,
    Request,
    decode_request_untrusted,
    mac,
    renewed,
    statement,
)
from pcm_p2p.enrolment.published import PublishedIdentities
from pcm_p2p.enrolment.token_folder import TokenFolder
from pcm_p2p.enrolment.waiting_list import WaitingList
from pcm_p2p.errors import PcmError, TransferError, TrustError, UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.lock_file import held
from pcm_p2p.trust.identity import DeviceIdentity, verified_identity_untrusted, verify
from pcm_p2p.wire.doorkeeper import Doorkeeper

if TYPE_CHECKING:
    from pcm_p2p.authority.repository import FleetFolder

log = logging.getLogger(__name__)

EXCHANGES_MAX = 32
"""Choice: at one time; a further one is closed at once and repeats."""
EXCHANGES_EACH_MAX = 8
"""Choice: from one address, of which a relaying neighbour or a NAT may have many devices behind it."""
BURST, RATE_PER_S = 60, 2.0
"""Choice: 60 devices of an office that are imaged together are let in at once; then two a second from one address."""
SWEEP_INTERVAL_MS = 10_000
"""Choice: a full queue is looked through for room this often at most: a read of a small file for each that waits."""
DESK_DAYS = 3_650
"""The desk's own certificate lasts as long as the authority's beside it, so that a desk that is never restarted goes on."""


class Desk:
    """Honours the tokens of one fleet folder. Holds the authority's key in memory from ``open`` to ``close``."""

    def __init__(self, folder: FleetFolder, authority: FleetCA, context: ssl.SSLContext, lock: ExitStack) -> None:
        self._folder = folder
        self._authority = authority
        self._context = context
        self._lock = lock
        self._tokens = TokenFolder(folder.path / "enrolment" / "tokens")
        self._waiting = WaitingList(folder.path / "enrolment")
        self._identities = PublishedIdentities(folder)
        self._one_at_a_time = threading.Lock()
        self._swept_ms = 0
        self._doorkeeper = Doorkeeper(
            at_once_max=EXCHANGES_MAX, each_at_once_max=EXCHANGES_EACH_MAX, burst=BURST, rate_per_s=RATE_PER_S
        )

    @classmethod
    def open(cls, folder: FleetFolder, passphrase: str) -> Desk:
        """Raises ``TrustError`` for a wrong passphrase, or if another desk is at work on this folder."""
        busy = TrustError(
            f"{folder.path}: another desk is at work on this fleet", remedy="Stop it first; two would count uses twice."
        )
        with ExitStack() as opened:
            opened.enter_context(held(folder.path / "enrolment" / ".lock", busy))
            authority = FleetCA.load(folder.path / "ca", passphrase)
            if authority.fleet != folder.fleet_id:
                raise TrustError(f"{folder.path}: the authority in ca/ is of another fleet")
            home = folder.path / "enrolment" / "desk"
            DeviceIdentity.create(home, authority, "desk", now=folder.wall_clock(), days=DESK_DAYS)
            desk = cls(folder, authority, _desk_context(home), opened.pop_all())
            desk._tidy()
            return desk

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
        try:
            source = str(tcp.socket.getpeername()[0])
        except OSError:  # gone already
            source = ""
        if self._doorkeeper.enter(source, trio.current_time()):
            await trio.aclose_forcefully(tcp)
            return
        tls = trio.SSLStream(tcp, self._context, server_side=True, https_compatible=True)
        try:
            with trio.fail_after(EXCHANGE_TIMEOUT_S):
                data = await receive(tls, REQUEST_SIZE_BYTES_MAX)
                reply = await trio.to_thread.run_sync(self.answer, data, source)
                await send(tls, msgspec.msgpack.encode(reply))
                await tls.aclose()
        except (trio.TooSlowError, trio.BrokenResourceError, TransferError, OSError) as error:
            log.info("a device that came to enrol went away: %s", error or type(error).__name__)
        finally:
            self._doorkeeper.leave(source, proved=False)
            await trio.aclose_forcefully(tls)

    def answer(self, data: bytes, source: str = "") -> Reply:
        """The reply to one request; blocks for a write to disk. Never raises for what the device or the disk does.

        ``source`` is the address it came from, for the people who look at the queue.
        """
        try:
            with self._one_at_a_time:
                request = decode_request_untrusted(data)
                return self._renew(request) if isinstance(request, Renewal) else self._admit(request, source)
        except UntrustedBytes as error:
            log.warning("enrolment refused: %s", error)
            return Reply("malformed")
        except (PcmError, OSError) as error:
            log.error("an enrolment failed at the desk: %s", error)
            return Reply("failed")

    def _admit(self, request: Request, source: str) -> Reply:
        record = self._tokens.get(request.token_id)
        if record is None:
            return _refuse(request, "unknown")
        stated = statement(request.token_id, self._authority.fleet, request.public_key)
        if not hmac.compare_digest(request.mac, mac(bytes.fromhex(record.secret), stated, request.proof)):
            return _refuse(request, "wrong")
        if not verify(request.public_key, PROOF_DOMAIN, stated, request.proof):
            return _refuse(request, "wrong")
        now = self._folder.wall_clock()
        now_ms = int(now.timestamp() * 1_000)
        device, public_key = DeviceId.of_public_key(request.public_key), request.public_key.hex()
        if self._identities.deny_list().device(device) is not None:
            return _refuse(request, "revoked")
        queue = self._waiting.standing(device, request.token_id)
        crowded = record.approval and not queue.waits and not admittance.has_room(record, queue)
        if crowded and now_ms - self._swept_ms >= SWEEP_INTERVAL_MS:
            self._waiting.sweep(now_ms)
            self._swept_ms = now_ms
            queue = self._waiting.standing(device, request.token_id)
        answer = admittance.admit(
            record, public_key, revoked=self._tokens.is_revoked(request.token_id), queue=queue, now_ms=now_ms
        )
        if answer == "waiting":
            if not queue.waits:
                log.info("%s of site %s waits for approval", device_code(device), record.site)
            self._waiting.put(device, request.token_id, source, now_ms)
            return Reply(answer)
        if answer:
            if answer == "denied":
                self._waiting.drop(device)
            return _refuse(request, answer)
        reply = Reply(
            reason="",
            certificate_der=self._authority.issue(request.public_key, record.role, now=now, site=record.site),
            authorities_pem=self._identities.authorities(self._authority.pem),
            root=self._folder.root_bytes(record.root_version),
        )
        if public_key not in record.spent:
            self._tokens.put(request.token_id, msgspec.structs.replace(record, spent=(*record.spent, public_key)))
        if queue.waits or queue.decision is not None:
            self._waiting.remove(device)
        log.info("%s %s of site %s enrolled with token %s", record.role, device, record.site, _short(request))
        return reply

    def _renew(self, request: Renewal) -> Reply:
        fleet, now = self._authority.fleet, self._folder.wall_clock()
        authorities = self._identities.authorities(self._authority.pem)
        try:
            member = verified_identity_untrusted(request.certificate_der, authorities, fleet=fleet)
        except UntrustedBytes as error:
            log.warning("a renewal was refused: %s", error)
            return Reply("stranger")
        covered = renewed(fleet, request.certificate_der)
        if not verify(member.public_key, RENEWAL_DOMAIN, covered, request.proof):
            log.warning("a renewal for %s was refused: who asked does not hold its key", member.device_id)
            return Reply("wrong")
        denied = self._identities.deny_list().device(member.device_id) is not None
        answer = admittance.renew(member.role, member.not_after, denied=denied, now=now)
        if answer:
            log.warning("a renewal for %s was refused: %s", member.device_id, answer)
            return Reply(answer)
        log.info("the certificate of %s %s was renewed", member.role, member.device_id)
        return Reply(
            reason="",
            certificate_der=self._authority.issue(member.public_key, member.role, now=now, site=member.site),
            authorities_pem=authorities,
        )

    def _tidy(self) -> None:
        """At the start: forget who has given up waiting, and what was decided for tokens that are over."""
        now_ms = int(self._folder.wall_clock().timestamp() * 1_000)
        try:
            self._waiting.load()
            self._waiting.sweep(now_ms)
            self._waiting.forget_decisions({token.hex() for token in self._tokens.ids()})
        except OSError as error:
            log.warning("the queue of devices that wait was not tidied: %s", error)


def _refuse(request: Request, answer: Answer) -> Reply:
    log.warning("enrolment with token %s refused: %s", _short(request), answer)
    return Reply(answer)


def _short(request: Request) -> str:
    return request.token_id.hex()[:8]


def _desk_context(home: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_NONE  # who joins has no certificate yet; the token and the proof stand in for it
    context.num_tickets = 0
    context.load_cert_chain(os.fspath(home / "device.crt"), os.fspath(home / "device.key"))
    return context
