"""Renewing: a member goes to the desk with the certificate that it has, and comes back with the same one with new dates.

The key stays. Of what the desk says only the certificate is taken: which authorities count is what signed metadata says.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from pcm_p2p.durable import write_atomic
from pcm_p2p.enrolment.admittance import GRACE
from pcm_p2p.enrolment.errand import Brought, Desk, LookAround, ask_desk
from pcm_p2p.enrolment.introduction import renewing
from pcm_p2p.errors import StorageError, TransferError, TrustError, UntrustedBytes
from pcm_p2p.lock_file import held
from pcm_p2p.trust.identity import DeviceIdentity, peer_identity_untrusted, verified_identity_untrusted

log = logging.getLogger(__name__)

_REFUSALS = {
    "revoked": ("says that this device was revoked", "Ask the fleet's owner why."),
    "stranger": (
        "does not know who certified this device, or takes it for no member",
        "Enrol the device again with a new token.",
    ),
    "overdue": (
        f"renews certificates for {GRACE.days} days after their end; this one is older",
        "Enrol the device again with a new token: 'pcm-p2p enroll join'.",
    ),
    "wrong": ("says that this device does not hold the key of its certificate", "Enrol it again with a new token."),
}


async def renew(
    identity: DeviceIdentity,
    desks: Sequence[str],
    authorities_pem: bytes,
    now: datetime,
    *,
    neighbours: Sequence[tuple[str, int]] = (),
    look_around: LookAround | None = None,
) -> tuple[DeviceIdentity, Brought]:
    """Get the same certificate with new dates, write it, and return what this device is from now on, and how it came.

    ``desks`` are ``host:port``; ``authorities_pem`` are those that count at present, at the desk and for what it issues. ``now``
    is the device's time. Raises ``TrustError`` (refused, not the desk, wrong clock), ``TransferError`` (not reached), or
    ``StorageError`` (cannot be written, or a join is at work).
    """
    desk = Desk(tuple(desks), identity.fleet, authorities_pem.decode("ascii"))
    request = renewing(identity.fleet, identity.certificate_der, identity.sign)
    brought = await ask_desk(desk, request, now, neighbours=neighbours, look_around=look_around)
    answer, at = brought.reply.reason, brought.address
    if answer in _REFUSALS:
        what, remedy = _REFUSALS[answer]
        raise TrustError(f"the desk at {at} {what}", remedy=remedy)
    if answer:
        raise TransferError(f"the desk at {at} could not answer: {answer!r}", remedy="Look into the log of the desk.")
    _check(identity, brought.reply.certificate_der, authorities_pem, at, now)
    renewed = await trio.to_thread.run_sync(_install, identity, brought.reply.certificate_der, authorities_pem)
    return renewed, brought


def _check(identity: DeviceIdentity, certificate_der: bytes, authorities_pem: bytes, at: str, now: datetime) -> None:
    try:
        new = verified_identity_untrusted(certificate_der, authorities_pem, fleet=identity.fleet, at=now)
        old = peer_identity_untrusted(identity.certificate_der)
    except UntrustedBytes as error:
        raise TrustError(
            f"the desk at {at} gave no usable certificate: {error}", remedy="Check the clocks here and there."
        ) from None
    if new.public_key != identity.public_key or new.role != identity.role:
        raise TrustError(f"the desk at {at} certified another key or role", remedy="Look at its log.")
    if new.not_after < old.not_after:
        raise TrustError(
            f"the desk at {at} gave a certificate that ends at {new.not_after:%Y-%m-%d}, before the present one",
            remedy="Look at the desk's clock, and at when the fleet's authority ends.",
        )


def _install(identity: DeviceIdentity, certificate_der: bytes, authorities_pem: bytes) -> DeviceIdentity:
    """The certificate may be of another authority than the one before: at every moment the file of authorities has the issuer of
    the certificate that is there."""
    pem = x509.load_der_x509_certificate(certificate_der).public_bytes(serialization.Encoding.PEM)
    busy = StorageError(f"{identity.folder}: a join is at work", remedy="It renews the certificate, too.")
    try:
        with held(identity.folder / ".lock", busy):
            write_atomic(identity.folder / "ca.crt", authorities_pem + identity.authorities_pem)
            write_atomic(identity.folder / "device.crt", pem)
            write_atomic(identity.folder / "ca.crt", authorities_pem)
    except OSError as error:
        raise StorageError(
            f"{identity.folder}: the new certificate cannot be written: {error.strerror}",
            remedy="Make the folder writable, or make room.",
        ) from None
    return DeviceIdentity.load(identity.folder)
