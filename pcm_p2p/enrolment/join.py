"""Joining: a device brings a key and a token to the desk, and writes what it leaves with; the certificate last.

What was written before the certificate has no effect: a join that was interrupted anywhere is repeated with the same command.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from pcm_p2p.enrolment.first_settings import Overrides, check_settings, settings_text, write_settings
from pcm_p2p.enrolment.introduction import (
    Reply,
    ask_desk,
)
from pcm_p2p.enrolment.token import (
    Token,
    decode_token_untrusted,
)
from pcm_p2p.errors import InputError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.lock_file import held
from pcm_p2p.trust.identity import (
    DeviceIdentity,
    FleetRecord,
    authorities_untrusted,
    load_or_create_key,
    verified_identity_untrusted,
)

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

EXCHANGES_MAX = 32
"""Choice: joins at one time; a further one is closed at once and repeats."""
DESK_DAYS = 3_650
"""The desk's own certificate lasts as long as the authority's beside it, so that a desk that is never restarted goes on."""
LIFETIME_MAX = timedelta(days=366)


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
        with held(folder / ".lock", busy):
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
