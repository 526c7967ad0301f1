"""The fleet's certificate authority: its key certifies members, and rests encrypted where the desk is."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pcm_p2p.authority.keys import keyfile
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import TrustError
from pcm_p2p.trust.certificate import AUTHORITY_DAYS, CERTIFICATE_DAYS, authority_certificate, member_certificate
from pcm_p2p.trust.identity import fleet_of_authority, load_authority, raw_public_key


class FleetCA:
    """The fleet's certificate authority. Holds its private key: keep it where the desk is and nowhere else."""

    def __init__(self, private_key: Ed25519PrivateKey, certificate: x509.Certificate) -> None:
        self._private_key = private_key
        self._certificate = certificate
        self.fleet = fleet_of_authority(certificate)

    @classmethod
    def in_memory(cls, fleet: str, *, now: datetime, days: int = AUTHORITY_DAYS) -> Self:
        """An authority that ends with the process, for tests and labs."""
        private_key = Ed25519PrivateKey.generate()
        return cls(private_key, authority_certificate(private_key, fleet, now, days))

    @classmethod
    def create(
        cls,
        folder: Path,
        fleet: str,
        passphrase: str,
        *,
        now: datetime,
        owner: str = "desk",
        preset: keyfile.Preset = "interactive",
    ) -> Self:
        """Make ``ca.key`` (encrypted) and ``ca.pem`` in ``folder``. Raises ``InputError`` if there is a ``ca.key``."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private_key = keyfile.create(folder / "ca.key", passphrase, "ca", owner, preset=preset).private_key
        authority = cls(private_key, authority_certificate(private_key, fleet, now, AUTHORITY_DAYS))
        write_atomic(folder / "ca.pem", authority.pem)
        return authority

    @classmethod
    def load(cls, folder: Path, passphrase: str) -> Self:
        """Open the authority in ``folder``. Raises ``InputError`` or ``TrustError`` as ``keyfile.load``, or if parts differ."""
        certificate = load_authority(folder / "ca.pem")
        key = keyfile.load(folder / "ca.key", passphrase)
        if key.role != "ca":
            raise TrustError(f"{key.path}: is a {key.role} key, not the key of a certificate authority")
        if raw_public_key(certificate) != key.public_key:
            raise TrustError(
                f"{folder}: ca.key and ca.pem do not belong together", remedy="Restore both from a backup."
            )
        return cls(key.private_key, certificate)

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.DER)

    def issue(
        self, public_key: bytes, role: str, *, now: datetime, days: int = CERTIFICATE_DAYS, site: str = ""
    ) -> bytes:
        """A leaf certificate (DER) for a raw Ed25519 key whose holder was proven. It never outlives the authority.

        ``site``: where its holder belongs, which neighbours go by. Raises ``InputError`` for a key, role or site that cannot be
        certified.
        """
        certificate = member_certificate(
            self._private_key, self._certificate, self.fleet, public_key, role, now, days, site
        )
        return certificate.public_bytes(serialization.Encoding.DER)
