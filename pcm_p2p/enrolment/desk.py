"""Enrolment: a device brings a key and a token to the desk, and leaves with a certificate, the authorities and the TUF root.

The desk answers over TLS 1.3 with a certificate in role ``desk`` that the authority in the token issued; the device has none
yet. What is said is in ``introduction``.

A use is on the desk's disk before the reply leaves. A key that comes again for the same token is the same use: a join that was
interrupted anywhere is repeated with the same command and costs nothing. On the device the certificate is written last; what
was written before it has no effect.
"""

from __future__ import annotations

import hmac
import logging
import os
import ssl
import threading
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.enrolment.introduction import (
    EXCHANGE_TIMEOUT_S,
    PROOF_DOMAIN,
    REQUEST_SIZE_BYTES_MAX,
    Reply,
    Request,
    decode_request_untrusted,
    mac,
    receive,
    send,
    statement,
)
from pcm_p2p.enrolment.token import (
    TokenFolder,
)
from pcm_p2p.errors import PcmError, TransferError, TrustError, UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.lock_file import held
from pcm_p2p.trust.identity import (
    DeviceIdentity,
    verify,
)

if TYPE_CHECKING:
    from pcm_p2p.authority.repository import FleetFolder

log = logging.getLogger(__name__)

EXCHANGES_MAX = 32
"""Choice: joins at one time; a further one is closed at once and repeats."""
DESK_DAYS = 3_650
"""The desk's own certificate lasts as long as the authority's beside it, so that a desk that is never restarted goes on."""
LIFETIME_MAX = timedelta(days=366)


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
            opened.enter_context(held(folder.path / "enrolment" / ".lock", busy))
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
