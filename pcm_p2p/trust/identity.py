"""Identity: which key is which device, in which role, of which fleet; and the TLS contexts and signatures that follow from it.

A certificate names its holder in one URI, ``spiffe://<fleet>/<role>/<device id>``, all three written by the fleet's certificate
authority: fleet and role from what the authority decided, the device id from the key itself. A requester brings a key, never a
name. TLS verifies that the authority signed; ``peer_identity_untrusted`` verifies that name and key belong together.

Folder of a device::

    device.key   PEM, PKCS 8, mode 0600; made on the device and never leaves it
    ca.crt       PEM; the authorities whose certificates count
    root.json    the TUF root to start from, pinned by the token
    fleet.json   FleetRecord
    device.crt   PEM; written last: with it the device is enrolled, without it nothing is

Numbers: leaf certificates last 365 days and begin one day early, for clocks that lag; an authority lasts ten years.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, TrustError, UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust.certificate import (
    CERTIFICATE_DAYS,
    CERTIFICATE_SIZE_BYTES_MAX,
    FLEET_ID,
    NAME_URI,
    is_held_by_nobody,
)

AUTHORITIES_SIZE_BYTES_MAX = 64 << 10

_PARSER_COMPLAINTS = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
)


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """What a certificate says. ``public_key`` is raw Ed25519; ``device_id`` follows from it. ``site``: empty if it says none."""

    device_id: DeviceId
    role: str
    fleet: str
    public_key: bytes
    not_before: datetime
    not_after: datetime
    site: str = ""


class FleetRecord(msgspec.Struct, frozen=True):
    """``fleet.json``: what the token said that no certificate holds. ``fleet`` is 32 hex digits; ``desk`` is ``host:port`` of the
    desk that certified this device, empty for devices that were enrolled by an older version."""

    fleet: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    schema: Literal["pcm.fleet/1"] = "pcm.fleet/1"
    name: str = ""
    site: str = "default"
    desk: str = ""


class Issuer(Protocol):
    """Who certifies keys: the fleet's certificate authority (``authority.fleet_ca``)."""

    fleet: str

    @property
    def pem(self) -> bytes: ...

    def issue(
        self, public_key: bytes, role: str, *, now: datetime, days: int = CERTIFICATE_DAYS, site: str = ""
    ) -> bytes: ...


def fleet_of_authority(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    fleet = str(names[0].value) if len(names) == 1 else ""
    if not FLEET_ID.fullmatch(fleet):
        raise UntrustedBytes("this is not the certificate of a fleet's authority")
    return fleet


def raw_public_key(certificate: x509.Certificate) -> bytes:
    public_key = certificate.public_key()
    if not isinstance(public_key, Ed25519PublicKey):
        raise UntrustedBytes("certificate: its key is not Ed25519")
    return public_key.public_bytes_raw()


def load_authority(path: Path) -> x509.Certificate:
    """The one certificate in ``path`` (PEM). Raises ``InputError``, or ``TrustError`` if it is not an authority's."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=path, remedy="Check the path, and who may read it."
        ) from None
    try:
        (certificate,) = authorities_untrusted(data)
    except (UntrustedBytes, ValueError) as error:
        raise TrustError(f"{path}: {error}", remedy="Restore it from a backup.") from None
    return certificate


@lru_cache(maxsize=16)
def authorities_untrusted(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The authorities in ``pem``, each with an Ed25519 key and a fleet's name, at least one. Raises ``UntrustedBytes``.

    Cached: a device checks every record it sees against the same few bytes.
    """
    if len(pem) > AUTHORITIES_SIZE_BYTES_MAX:
        raise UntrustedBytes(f"authorities: {len(pem)} bytes; at most {AUTHORITIES_SIZE_BYTES_MAX} are read")
    try:
        certificates = tuple(x509.load_pem_x509_certificates(pem))
        for certificate in certificates:
            raw_public_key(certificate)
            fleet_of_authority(certificate)
            if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
                raise UntrustedBytes("authorities: one of them is not an authority")
    except _PARSER_COMPLAINTS as error:
        raise UntrustedBytes(f"authorities: {error}") from None
    return certificates


def peer_identity_untrusted(der: bytes) -> PeerIdentity:
    """Whom a certificate names, checked against its own key; who issued it is *not* checked: TLS has done that.

    Raises ``UntrustedBytes``.
    """
    return _identity_in(_parse_untrusted(der))


def verified_identity_untrusted(
    der: bytes, authorities_pem: bytes, *, fleet: str, at: datetime | None = None
) -> PeerIdentity:
    """Whom a certificate names, if one of ``authorities_pem`` issued it for ``fleet``. Raises ``UntrustedBytes``.

    ``at`` is the time for which it must be valid; None takes one that has expired: a signature made in time stays true.
    """
    certificate = _parse_untrusted(der)
    identity = _identity_in(certificate)
    if identity.fleet != fleet:
        raise UntrustedBytes("certificate: of another fleet")
    if not any(_issued_by(certificate, authority) for authority in authorities_untrusted(authorities_pem)):
        raise UntrustedBytes("certificate: not issued by an authority of this fleet")
    if at is not None and not identity.not_before <= at <= identity.not_after:
        raise UntrustedBytes(
            f"certificate: valid from {identity.not_before:%Y-%m-%d %H:%M} to {identity.not_after:%Y-%m-%d %H:%M} UTC, "
            f"and it is {at:%Y-%m-%d %H:%M}"
        )
    return identity


def is_certified_by_first_untrusted(der: bytes, authorities_pem: bytes) -> bool:
    """Whether the first of ``authorities_pem``, the one that certifies at present, issued this certificate. Raises
    ``UntrustedBytes``."""
    first, *_ = authorities_untrusted(authorities_pem)
    return _issued_by(_parse_untrusted(der), first)


def _parse_untrusted(der: bytes) -> x509.Certificate:
    if len(der) > CERTIFICATE_SIZE_BYTES_MAX:
        raise UntrustedBytes(f"certificate: {len(der)} bytes; at most {CERTIFICATE_SIZE_BYTES_MAX} are read")
    try:
        return x509.load_der_x509_certificate(der)
    except _PARSER_COMPLAINTS as error:
        raise UntrustedBytes(f"certificate: {error}") from None


def _identity_in(certificate: x509.Certificate) -> PeerIdentity:
    try:
        extensions = certificate.extensions
        names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        is_authority = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        public_key = raw_public_key(certificate)
        not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except _PARSER_COMPLAINTS as error:
        raise UntrustedBytes(f"certificate: {error}") from None
    if is_authority:
        raise UntrustedBytes("certificate: an authority's, not a member's")
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise UntrustedBytes("certificate: must hold exactly one name, a URI")
    match = NAME_URI.fullmatch(names[0].value)
    if match is None:
        raise UntrustedBytes(f"certificate: {names[0].value[:120]!r} is not the name of a member")
    fleet, role, named, site = match.groups()
    device_id = DeviceId.of_public_key(public_key)
    if device_id.hex() != named:
        raise UntrustedBytes("certificate: the name is of another key than the certificate's")
    return PeerIdentity(device_id, role, fleet, public_key, not_before, not_after, site or "")


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, *_PARSER_COMPLAINTS):
        return False
    return True


def separated(domain: bytes, data: bytes) -> bytes:
    """What a signature covers: no data of one domain reads the same as data of another. ``domain`` is at most 255 bytes."""
    return b"pcm_p2p\0" + bytes([len(domain)]) + domain + data


def verify(public_key: bytes, domain: bytes, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` was made by the holder of ``public_key`` (raw) over ``data`` of ``domain``. Never raises."""
    if is_held_by_nobody(public_key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, separated(domain, data))
    except (InvalidSignature, ValueError):
        return False
    return True


def load_or_create_key(folder: Path) -> Ed25519PrivateKey:
    """The key in ``folder``/device.key; a new one is on disk, mode 0600, before this returns. Raises ``TrustError``."""
    path = folder / "device.key"
    if path.exists():
        return _load_key(path)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    private_key = Ed25519PrivateKey.generate()
    pem = private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomic(path, pem, mode=0o600)
    return private_key


def _load_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), None)
    except _PARSER_COMPLAINTS:
        raise TrustError(
            f"{path}: is not a private key", remedy="Remove the folder it is in and enrol with a new token."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustError(f"{path}: is not an Ed25519 key")
    return key


@dataclass(frozen=True)
class DeviceIdentity:
    """This device as the fleet knows it. ``sign`` is the only use of its key besides TLS."""

    folder: Path
    device_id: DeviceId
    role: str
    fleet: str
    certificate_der: bytes = field(repr=False)
    not_after: datetime
    authorities_pem: bytes = field(repr=False)
    root_json: bytes = field(repr=False)
    record: FleetRecord
    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def create(
        cls,
        folder: Path,
        authority: Issuer,
        role: str = "device",
        *,
        now: datetime,
        site: str = "default",
        days: int = CERTIFICATE_DAYS,
    ) -> Self:
        """Make a key in ``folder`` (or take the one there) and have ``authority`` certify it: for who holds the authority."""
        public_key = load_or_create_key(folder).public_key().public_bytes_raw()
        certificate_der = authority.issue(public_key, role, now=now, days=days)
        cls.install(folder, certificate_der, authority.pem, FleetRecord(authority.fleet, site=site))
        return cls.load(folder)

    @staticmethod
    def install(
        folder: Path, certificate_der: bytes, authorities_pem: bytes, record: FleetRecord, root: bytes = b""
    ) -> None:
        """Write everything but the key, the certificate last. May be repeated after an interruption. Raises ``OSError``."""
        write_atomic(folder / "ca.crt", authorities_pem)
        if root:
            write_atomic(folder / "root.json", root)
        write_atomic(folder / "fleet.json", msgspec.json.encode(record) + b"\n")
        pem = x509.load_der_x509_certificate(certificate_der).public_bytes(serialization.Encoding.PEM)
        write_atomic(folder / "device.crt", pem)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the identity in ``folder``. Raises ``TrustError`` if there is none or its parts do not belong together.

        An expired certificate is loaded: the device still knows who it is, and its peers will say the rest.
        """
        authorities_pem, key = _read(folder / "ca.crt"), _load_key(folder / "device.key")
        try:
            certificate = x509.load_pem_x509_certificate(_read(folder / "device.crt"))
            certificate_der = certificate.public_bytes(serialization.Encoding.DER)
            record = msgspec.json.decode(_read(folder / "fleet.json"), type=FleetRecord)
            identity = verified_identity_untrusted(certificate_der, authorities_pem, fleet=record.fleet)
        except (UntrustedBytes, msgspec.DecodeError, *_PARSER_COMPLAINTS) as error:
            raise TrustError(
                f"{folder}: this identity cannot be used: {error}", remedy="Enrol the device again with a new token."
            ) from None
        if identity.public_key != key.public_key().public_bytes_raw():
            raise TrustError(
                f"{folder}: device.key and device.crt do not belong together",
                remedy="Enrol the device again with a new token.",
            )
        root = folder / "root.json"
        return cls(
            folder=folder,
            device_id=identity.device_id,
            role=identity.role,
            fleet=identity.fleet,
            certificate_der=certificate_der,
            not_after=identity.not_after,
            authorities_pem=authorities_pem,
            root_json=_read(root) if root.exists() else b"",
            record=record,
            _key=key,
        )

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, domain: bytes, data: bytes) -> bytes:
        """An Ed25519 signature (64 bytes) that ``verify`` accepts for the same domain only."""
        return self._key.sign(separated(domain, data))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read((1 << 20) + 1)
    except FileNotFoundError:
        raise TrustError(
            f"{path.parent}: there is no {path.name}: this device is not enrolled",
            remedy="Enrol it with 'pcm-p2p enroll join' and a token.",
        ) from None
    except OSError as error:
        raise TrustError(
            f"{path}: cannot be read: {error.strerror}", remedy="Run as the user that enrolled the device."
        ) from None
    if len(data) > 1 << 20:
        raise TrustError(f"{path}: is not a file of this device's identity: more than 1 MiB")
    return data


def server_context(identity: DeviceIdentity, authorities_pem: bytes | None = None) -> ssl.SSLContext:
    """For accepting members: TLS 1.3 only, the peer's certificate required, no tickets: each connection proves itself.

    ``authorities_pem``: whose certificates count; None: those of the enrolment; empty: nobody's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    return _members_only(context, identity, authorities_pem)


def client_context(identity: DeviceIdentity, authorities_pem: bytes | None = None) -> ssl.SSLContext:
    """For dialling members. Names are not host names here: who answered is read from its certificate afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _members_only(context, identity, authorities_pem)


def _members_only(context: ssl.SSLContext, identity: DeviceIdentity, authorities_pem: bytes | None) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_TICKET
    believed = identity.authorities_pem if authorities_pem is None else authorities_pem
    if believed:
        context.load_verify_locations(cadata=believed.decode("ascii"))
    context.load_cert_chain(os.fspath(identity.folder / "device.crt"), os.fspath(identity.folder / "device.key"))
    return context
