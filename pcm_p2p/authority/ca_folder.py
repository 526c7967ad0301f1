"""The certificate authorities in the fleet folder: the one that certifies, the one that will, and those that did.

::

    ca/ca.key, ca/ca.pem               certifies members at present
    ca/next/ca.key, ca/next/ca.pem     believed as soon as devices have read of it; certifies nobody yet
    ca/former/<16 hex>.pem, .key       certifies nobody any more; believed until it is retired
    ca/former/<16 hex>.retired.pem     believed no longer

An authority is replaced in three steps, each of which is signed, published and read by all devices before the next, so that no
two members ever disagree about each other:

1. ``found_next``: devices learn to believe the next authority beside the present one.
2. ``use_next``: it certifies from now on, and devices see it listed first, whereupon they renew their certificates.
3. ``retire``: the former ones leave the list, and with them every certificate that was not renewed.

What devices believe is ``believed_pem``: the target ``identity/ca.pem``, the certifying one first.
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pcm_p2p.authority.fleet_ca import FleetCA
from pcm_p2p.authority.keys import keyfile
from pcm_p2p.durable import fsync_folder, write_atomic
from pcm_p2p.errors import InputError
from pcm_p2p.trust.deny import authority_sha256
from pcm_p2p.trust.identity import load_authority

RETIRED = ".retired.pem"


def certifying(ca: Path) -> x509.Certificate:
    """The authority that certifies at present. Raises ``InputError`` or ``TrustError``."""
    return load_authority(ca / "ca.pem")


def next_authority(ca: Path) -> x509.Certificate | None:
    """The one that is to certify, if it was made."""
    path = ca / "next" / "ca.pem"
    return load_authority(path) if path.exists() else None


def former(ca: Path) -> list[x509.Certificate]:
    """Those that certified before and are still believed."""
    paths = sorted(path for path in (ca / "former").glob("*.pem") if not path.name.endswith(RETIRED))
    present = fingerprint(certifying(ca))
    return [one for one in map(load_authority, paths) if fingerprint(one) != present]


def former_der(ca: Path) -> list[bytes]:
    """The certificates of the former ones in DER."""
    return [one.public_bytes(Encoding.DER) for one in former(ca)]


def believed_pem(ca: Path) -> bytes:
    """What devices are told to believe: the certifying authority, then the next, then the former ones."""
    upcoming = next_authority(ca)
    ordered = [certifying(ca), *([upcoming] if upcoming is not None else []), *former(ca)]
    return b"".join(one.public_bytes(Encoding.PEM) for one in ordered)


def found_next(ca: Path, fleet: str, passphrase: str, *, owner: str, preset: keyfile.Preset, now: datetime) -> FleetCA:
    """Make the next authority. Raises ``InputError`` if there is one already."""
    if next_authority(ca) is not None:
        raise InputError(
            "the next authority was made already",
            path=ca / "next",
            remedy="Sign and publish, then let it certify: 'pcm-p2p fleet new-authority --use'.",
        )
    (ca / "next" / "ca.key").unlink(missing_ok=True)  # of a call that was interrupted: nobody knows its certificate
    return FleetCA.create(ca / "next", fleet, passphrase, now=now, owner=owner, preset=preset)


def use_next(ca: Path) -> x509.Certificate:
    """Let the next authority certify; the present one becomes a former one. May be repeated after an interruption.

    Raises ``InputError`` if there is none.
    """
    upcoming = next_authority(ca)
    if upcoming is None:
        raise InputError(
            "there is no next authority", path=ca / "next", remedy="Make one with 'pcm-p2p fleet new-authority'."
        )
    present, folder = certifying(ca), ca / "former"
    folder.mkdir(mode=0o700, exist_ok=True)
    if fingerprint(present) != fingerprint(upcoming):
        name = fingerprint(present)[:16]
        write_atomic(folder / f"{name}.pem", present.public_bytes(Encoding.PEM))
        if not (folder / f"{name}.key").exists():
            os.link(ca / "ca.key", folder / f"{name}.key")
    if (ca / "next" / "ca.key").exists():
        (ca / "next" / "ca.key").replace(ca / "ca.key")
    (ca / "next" / "ca.pem").replace(ca / "ca.pem")
    fsync_folder(ca)
    with contextlib.suppress(OSError):
        (ca / "next").rmdir()
    return upcoming


def retire(ca: Path) -> list[x509.Certificate]:
    """Take the former authorities off the list; which they were. Raises ``InputError`` if there is none."""
    gone = former(ca)
    if not gone:
        raise InputError("there is no former authority to retire", path=ca / "former")
    for one in gone:
        path = ca / "former" / f"{fingerprint(one)[:16]}.pem"
        path.rename(path.with_name(path.stem + RETIRED))
    fsync_folder(ca / "former")
    return gone


def fingerprint(authority: x509.Certificate) -> str:
    """SHA-256 of the certificate (DER), in hexadecimal: its name on the deny list."""
    return authority_sha256(authority.public_bytes(Encoding.DER))
