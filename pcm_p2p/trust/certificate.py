"""Certificates of a fleet, as its authority makes them: Ed25519, X.509 v3, strict enough for ``VERIFY_X509_STRICT``.

=========  ========================================================================================
authority  subject CN is the fleet id; basicConstraints CA, path 0; keyUsage keyCertSign; SKI
member     one name, a URI ``spiffe://<fleet>/<role>/<device id>/<site>``; basicConstraints no CA; keyUsage
           digitalSignature; extendedKeyUsage client and server, as every node is both; SKI, AKI. Without a
           site: its holder was certified by hand, and is of the site that it says
=========  ========================================================================================
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pcm_p2p.errors import InputError
from pcm_p2p.ids import DeviceId

CERTIFICATE_SIZE_BYTES_MAX = 4_096
"""Ours are below 700 bytes; what is larger is not ours and is not parsed."""
CERTIFICATE_DAYS = 365
AUTHORITY_DAYS = 3_650
BACKDATED = timedelta(days=1)

NAME_URI = re.compile(
    r"spiffe://([0-9a-f]{32})/(device|collector|relay|desk)/([0-9a-f]{32})(?:/([A-Za-z0-9][A-Za-z0-9._+~:=@-]{0,127}))?"
)
"""Fleet, role, device id, and the site in the alphabet of ``ids.check_name``."""
FLEET_ID = re.compile(r"[0-9a-f]{32}")

_PRIME = 2**255 - 19
_SMALL_ORDER = {
    *(0, 1, _PRIME - 1, _PRIME, _PRIME + 1),
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
}
"""The y of the points of Ed25519 whose order divides eight, in every spelling: libsodium's list."""


def is_held_by_nobody(public_key: bytes) -> bool:
    """Whether a raw Ed25519 key is one of a few under which anybody can make signatures that verify, without a private key."""
    return int.from_bytes(public_key, "little") & ((1 << 255) - 1) in _SMALL_ORDER


def name_uri(fleet: str, role: str, device_id: DeviceId, site: str = "") -> str:
    """The one name in a certificate. Raises ``InputError`` for a fleet, role or site that there cannot be."""
    uri = f"spiffe://{fleet}/{role}/{device_id.hex()}" + (f"/{site}" if site else "")
    if not NAME_URI.fullmatch(uri):
        raise InputError(
            f"{uri!r} cannot be certified",
            remedy="Roles are device, collector, relay and desk; a fleet id is 32 hex digits; a site has a name.",
        )
    return uri


def authority_certificate(private_key: Ed25519PrivateKey, fleet: str, now: datetime, days: int) -> x509.Certificate:
    """The authority's own certificate. Raises ``InputError`` for a fleet id that there cannot be."""
    if not FLEET_ID.fullmatch(fleet):
        raise InputError(f"{fleet[:80]!r} is not a fleet id", remedy="A fleet id is 32 lower-case hexadecimal digits.")
    name, public_key = _common_name(fleet), private_key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .sign(private_key, None)
    )


def _common_name(text: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "pcm_p2p"), x509.NameAttribute(NameOID.COMMON_NAME, text)]
    )


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def member_certificate(
    private_key: Ed25519PrivateKey,
    authority: x509.Certificate,
    fleet: str,
    public_key: bytes,
    role: str,
    now: datetime,
    days: int,
    site: str = "",
) -> x509.Certificate:
    """A leaf for the raw Ed25519 ``public_key``, signed by the authority's ``private_key``. Raises ``InputError``."""
    try:
        holder = Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError as error:
        raise InputError(f"this key cannot be certified: {error}") from None
    device_id = DeviceId.of_public_key(public_key)
    issuer_key = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder()
        .subject_name(_common_name(device_id.hex()))
        .issuer_name(authority.subject)
        .public_key(holder)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(min(now + timedelta(days=days), authority.not_valid_after_utc))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name_uri(fleet, role, device_id, site))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(holder), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False)
        .sign(private_key, None)
    )
