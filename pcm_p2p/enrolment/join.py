"""Joining: a device brings a key and a token to the desk, and writes what it leaves with; the certificate last.

What was written before the certificate has no effect: a join that was interrupted anywhere is repeated with the same command.

Where a person lets devices in, the first errand ends with ``WaitingForApproval``. The same command again, or ``join_and_wait``,
fetches the certificate once that person has said yes. The key is made on the first errand, so an image that many devices start
from holds a token and no key.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from pcm_p2p.enrolment.device_code import device_code
from pcm_p2p.enrolment.errand import Brought, Desk, LookAround, NotTheDesk, ask_desk
from pcm_p2p.enrolment.first_settings import Overrides, check_settings, settings_text, write_settings
from pcm_p2p.enrolment.introduction import joining
from pcm_p2p.enrolment.token import Token, decode_token_untrusted, endpoint_untrusted
from pcm_p2p.errors import InputError, PcmError, StorageError, TransferError, TrustError, UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.lock_file import held
from pcm_p2p.trust.identity import (
    DeviceIdentity,
    FleetRecord,
    authorities_untrusted,
    load_or_create_key,
    separated,
    verified_identity_untrusted,
)

WAIT_S_MIN, WAIT_S_MAX = 10.0, 300.0
"""Choice: between errands while a person has not decided, growing; a desk serves 2,000 that wait with 7 requests a second."""

log = logging.getLogger(__name__)

_REFUSALS = {
    "unknown": ("does not know this token", "Ask for a new token, made in the fleet folder of this desk."),
    "wrong": (
        "refuses this token: its secret is not the right one",
        "Copy the whole line again, or ask for a new token.",
    ),
    "expired": ("says that this token has expired", "Ask for a new token."),
    "used": (
        "says that this token was used as often as it may be",
        "Ask for a new token; if nobody else should have had this one, find out who joined with it.",
    ),
    "revoked": (
        "says that this token, or this device, was revoked",
        "Ask the fleet's owner; a revoked device joins anew with '--new-identity' and a new token.",
    ),
    "denied": ("says that a person refused this device", "Ask the fleet's owner."),
    "full": (
        "has no room for further devices that wait for approval",
        "Have those that wait approved or denied ('pcm-p2p enroll pending' there), then repeat.",
    ),
}


class WaitingForApproval(PcmError):
    """The token is good, and a person must let this device in. ``code`` is what that person sees."""

    meaning = "a person must let this device in"

    def __init__(self, code: str, address: str) -> None:
        super().__init__(
            f"this device waits for approval at the desk {address} as {code}",
            remedy=f"The fleet's owner compares that code and runs 'pcm-p2p enroll approve {code}'; then repeat this command, "
            "or let it wait with --wait.",
        )
        self.code = code


class QueueFull(TrustError):
    """The token is good, a person must let this device in, and too many wait already. It ends by itself when some are decided."""


@dataclass(frozen=True)
class Joined:
    """``config`` is the path of the daemon's settings; ``through`` is the neighbour that relayed, or empty."""

    identity: DeviceIdentity
    token: Token
    config: Path
    through: str = ""


async def join(
    state: Path,
    line: str,
    *,
    wall_clock: Callable[[], datetime],
    overrides: Overrides | None = None,
    look_around: LookAround | None = None,
    folder_name: str = "identity",
) -> Joined:
    """Enrol this device: make its key, go to the token's desk, write ``state``/identity and ``state``/config.toml.

    ``overrides`` are settings above those of the token; a config.toml that is there is kept. ``look_around`` finds members nearby
    that may relay when neither the desk nor the token's seeds answer. May be repeated after any interruption, and by a member of
    the fleet to renew its certificate. Raises ``InputError`` (malformed token, wrong setting, member of another fleet),
    ``TrustError`` (refused, wrong desk or root, wrong clock), ``WaitingForApproval``, ``TransferError`` (desk not reached).
    """
    token = token_of(line)
    now = wall_clock()
    if now >= token.expires:
        raise TrustError(
            f"this token expired at {token.expires:%Y-%m-%d %H:%M} UTC; by this device's clock it is {now:%Y-%m-%d %H:%M}",
            remedy="Set the clock if it is wrong; else ask for a new token.",
        )
    folder, config = state / folder_name, state / "config.toml"
    text = settings_text(token, overrides or {})
    busy = InputError("another join is at work here", path=state, remedy="Wait for it to end.")
    try:
        await trio.to_thread.run_sync(lambda: state.mkdir(mode=0o700, parents=True, exist_ok=True))
        with held(folder / ".lock", busy):
            key = await trio.to_thread.run_sync(_prepare, folder, config, text, token)
            brought = await _go(token, key, now, look_around)
            identity = await trio.to_thread.run_sync(_accept, folder, config, text, token, key, brought, now)
    except OSError as error:
        raise StorageError(
            f"{error.filename or state}: {error.strerror}",
            remedy="Make it writable or make room, then repeat this command.",
        ) from None
    return Joined(identity, token, config, brought.through)


async def join_and_wait(
    attempt: Callable[[], Awaitable[Joined]],
    *,
    rng: Random,
    told: Callable[[PcmError], object],
) -> Joined:
    """``attempt`` a join until a person has decided, or the token is over. ``told`` hears of each new reason to go on waiting.

    Raises what ``join`` raises, but for a desk that cannot be reached, somebody else in its place, a queue that is full and an
    approval that is missing: those are waited for. Anybody in the office can answer as a neighbour, and must not end a join that
    nobody watches.
    """
    delay_s, before = WAIT_S_MIN, ""
    while True:
        try:
            return await attempt()
        except (WaitingForApproval, TransferError, NotTheDesk, QueueFull) as error:
            if error.message != before:
                told(error)
            before = error.message
        await trio.sleep(delay_s * rng.uniform(0.75, 1.25))
        delay_s = min(1.5 * delay_s, WAIT_S_MAX)


def token_of(line: str) -> Token:
    """Raises ``InputError``."""
    try:
        return decode_token_untrusted(line.strip())
    except UntrustedBytes as error:
        raise InputError(error.message, remedy="Copy the whole line, from 'pcm1.' to its end.") from None


async def _go(token: Token, key: Ed25519PrivateKey, now: datetime, look_around: LookAround | None) -> Brought:
    """To the desk and back; what the reply brings is not verified yet."""
    public_key = key.public_key().public_bytes_raw()
    desk = Desk((token.desk,), token.fleet, token.authority_der, "that this token is for")
    brought = await ask_desk(
        desk,
        joining(token, public_key, lambda domain, data: key.sign(separated(domain, data))),
        now,
        neighbours=_seeds(token),
        look_around=look_around,
    )
    answer, at = brought.reply.reason, brought.address
    if answer == "waiting":
        raise WaitingForApproval(device_code(DeviceId.of_public_key(public_key)), at)
    if answer in _REFUSALS:
        what, remedy = _REFUSALS[answer]
        refused = QueueFull if answer == "full" else TrustError
        raise refused(f"the desk at {at} {what}", remedy=remedy)
    if answer:
        raise TransferError(
            f"the desk at {at} could not answer: {answer!r}",
            remedy="Look into the log of the desk, then repeat this command.",
        )
    return brought


def _seeds(token: Token) -> list[tuple[str, int]]:
    found = []
    for seed in token.seeds:
        try:
            found.append(endpoint_untrusted(seed))
        except UntrustedBytes as error:
            log.warning("a seed of the token is passed over: %s", error)
    return found


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
    folder: Path, config: Path, text: str, token: Token, key: Ed25519PrivateKey, brought: Brought, now: datetime
) -> DeviceIdentity:
    """Check what the desk gave against the token, then write it; the certificate last."""
    reply, at = brought.reply, brought.address
    if not hmac.compare_digest(hashlib.sha256(reply.root).digest(), token.root_sha256):
        raise TrustError(
            f"the desk at {at} gave another root than the one this token pins",
            remedy="Ask for a new token by a way you trust; if it happens again, the desk's folder was altered.",
        )
    try:
        authorities = authorities_untrusted(reply.authorities_pem)
        identity = verified_identity_untrusted(reply.certificate_der, reply.authorities_pem, fleet=token.fleet, at=now)
    except UntrustedBytes as error:
        raise TrustError(f"the desk at {at} gave no usable certificate: {error}", remedy="Look at its log.") from None
    if token.authority_der not in [authority.public_bytes(Encoding.DER) for authority in authorities]:
        raise TrustError(f"the desk at {at} gave other authorities than the token's", remedy="Ask for a new token.")
    if identity.public_key != key.public_key().public_bytes_raw() or identity.role != token.role:
        raise TrustError(f"the desk at {at} certified another key or role", remedy="Look at its log.")
    record = FleetRecord(token.fleet, name=token.fleet_name, site=token.site, desk=token.desk)
    write_settings(config, text)
    DeviceIdentity.install(folder, reply.certificate_der, reply.authorities_pem, record, reply.root)
    return DeviceIdentity.load(folder)
