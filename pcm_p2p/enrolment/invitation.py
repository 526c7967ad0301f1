"""Making tokens: what a fleet folder says to a device that is to join, and the record of it for the desk."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, cast

from cryptography.hazmat.primitives.serialization import Encoding

from pcm_p2p.enrolment.token import (
    EnrolledRole,
    Token,
    TokenRecord,
    check_endpoints,
    decode_token_untrusted,
)
from pcm_p2p.enrolment.token_folder import TokenFolder
from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import check_name
from pcm_p2p.trust.fleet_document import decode_fleet_document
from pcm_p2p.trust.identity import load_authority

if TYPE_CHECKING:
    from pcm_p2p.authority.repository import FleetFolder

LIFETIME_MAX = timedelta(days=366)


def named_desk(folder: FleetFolder) -> str:
    """``host:port`` of the first ``[[desk]]`` in the folder's fleet.toml. Raises ``InputError``."""
    path = folder.path / "fleet.toml"
    try:
        document = decode_fleet_document(path.read_bytes(), path)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=path, remedy="Check the path, and who may read it."
        ) from None
    if not document.desk:
        raise InputError(
            "names no desk", path=path, remedy="Say --desk HOST:PORT, or add a [[desk]] table with its address."
        )
    return document.desk[0].address


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
    approval: bool = False,
) -> Token:
    """Make a token and record it for the desk, which may be at work. ``approval``: a person lets each device in.

    Raises ``InputError`` that names the option.
    """
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
        approval=approval,
    )
    TokenFolder(folder.path / "enrolment" / "tokens").put(token.token_id, record)
    return token
