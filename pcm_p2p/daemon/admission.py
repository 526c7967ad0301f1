"""Admission: may this certificate speak with us now? One answer for handshakes, live sessions, authors of records and rosters.

What is believed comes from the trusted view:

- **authorities** are those of the signed target ``identity/ca.pem``; before the first view, and where it is absent or names none
  of this fleet, those of the enrolment. An authority on the deny list is out at once, with all certificates it issued. One that
  was only retired still vouches for authors of records, which may have been on their way for weeks; such are remembered in
  ``former-authorities.pem``.
- **the deny list** is the one with the highest epoch that this device ever saw (``trust.deny``). It is kept in ``denied.json`` of
  the state folder as well: damaged files of the view, or a list that went back, set nobody free.

``changed`` reads the view anew and puts fresh TLS contexts into ``security``, so that new connections use them; whoever holds
sessions asks ``security.verify`` again for each (``Overlay.reconsider``). A TLS session cannot outlive that: there are no tickets
to resume one with.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.serialization import Encoding

from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import PcmError, UntrustedBytes
from pcm_p2p.ids import DeviceId
from pcm_p2p.trust.deny import SIZE_BYTES_MAX, DeniedDevice, DenyList, Revoked, decode_deny_untrusted, newer
from pcm_p2p.trust.identity import (
    AUTHORITIES_SIZE_BYTES_MAX,
    DeviceIdentity,
    PeerIdentity,
    authorities_untrusted,
    client_context,
    fleet_of_authority,
    server_context,
    verified_identity_untrusted,
)
from pcm_p2p.trust.index import AUTHORITIES, DENY
from pcm_p2p.trust.view import Kept, TrustedView
from pcm_p2p.wire.link import LinkSecurity

FORMER_MAX = 8
"""Choice: an authority lasts ten years."""

log = logging.getLogger(__name__)


class Trusted(Protocol):
    """What is needed of ``trust.client.TrustClient``."""

    @property
    def view(self) -> TrustedView | None: ...

    def wall_clock(self) -> datetime: ...


class Admission:
    """``path`` is where the newest deny list is kept. Reads files in the constructor and in ``changed``: a few ms each."""

    def __init__(self, identity: DeviceIdentity, client: Trusted, path: Path) -> None:
        self._identity = identity
        self._client = client
        self._path = path
        self._read: dict[str, Kept | None] = {}
        self._from_view: bytes | None = None
        self._former_path = path.with_name("former-authorities.pem")
        self._former = self._remembered_former()
        self._denied = self._remembered()
        self._authorities_pem = self._without_denied(self._enrolled_pem())
        self._refused: Counter[str] = Counter()
        self.problems: tuple[str, ...] = ()
        self.security = LinkSecurity(
            server_context(identity, self._authorities_pem),
            client_context(identity, self._authorities_pem),
            self.verify,
            identity.fleet,
        )
        self.changed()

    # Questions

    def verify(self, certificate_der: bytes) -> PeerIdentity:
        """Whose certificate this is, if it may open or keep a session now. Raises ``UntrustedBytes`` (``Revoked``).

        Now is what the clock says, as in the handshake, and not the moment that metadata proved: a thief of the online keys puts
        that a year ahead, and certificates that ended by it would take away the neighbours who have the root against the thief.
        """
        return self._verified(certificate_der, at=self._client.wall_clock(), counted="sessions")

    def verify_author(self, certificate_der: bytes) -> PeerIdentity:
        """Whose certificate this is, if records that it signed are taken. Raises ``UntrustedBytes`` (``Revoked``).

        One that has expired, or whose authority was retired since, is good enough: a record may travel for weeks, and the
        collector judges its date.
        """
        former = self._without_denied(self._former)
        return self._verified(certificate_der, at=None, counted="records", also=former)

    def is_revoked(self, device: DeviceId) -> bool:
        return self._denied.device(device) is not None

    def revoked(self) -> tuple[DeniedDevice, ...]:
        """All revoked devices, by id."""
        return self._denied.devices

    def own_revocation(self) -> DeniedDevice | None:
        """The entry of this very device: neighbours and collectors have stopped speaking with it."""
        return self._denied.device(self._identity.device_id)

    @property
    def authorities_pem(self) -> bytes:
        """The authorities that are believed now, without those on the deny list; empty if none is left."""
        return self._authorities_pem

    def facts(self) -> Mapping[str, int]:
        """For status: how many are revoked, and what of theirs was turned away since the start."""
        return {
            "epoch": self._denied.epoch,
            "devices": len(self._denied.devices),
            "authorities": len(self._denied.authorities),
            "sessions_refused": self._refused["sessions"],
            "records_refused": self._refused["records"],
        }

    # Changes

    def changed(self) -> bool:
        """The trusted view may be another one; whether that changed who may speak. Never raises for what is in it."""
        view = self._client.view
        if view is None or not self._is_news(view):
            return False
        problems: list[str] = []
        before = self._denied, self._authorities_pem
        self._take_deny_list(view, problems)
        self._take_authorities(view, problems)
        self._look_at_own(problems)
        self.problems = tuple(problems)
        if (self._denied, self._authorities_pem) == before:
            return False
        self._renew()
        return True

    def reload(self, identity: DeviceIdentity) -> None:
        """This device has another certificate now (same key, same fleet): new connections show it."""
        self._identity = identity
        if self._from_view is None:
            self._authorities_pem = self._without_denied(self._enrolled_pem())
        self._renew()

    # Inside

    def _verified(
        self, certificate_der: bytes, *, at: datetime | None, counted: str = "", also: bytes = b""
    ) -> PeerIdentity:
        believed = self._authorities_pem + also
        if not believed:
            raise UntrustedBytes("certificate: every authority of this fleet is revoked")
        identity = verified_identity_untrusted(certificate_der, believed, fleet=self._identity.fleet, at=at)
        entry = self._denied.device(identity.device_id)
        if entry is not None:
            if counted:
                self._refused[counted] += 1
            raise Revoked(identity.device_id, entry)
        return identity

    def _is_news(self, view: TrustedView) -> bool:
        now = {path: view.kept.get(path) for path in (DENY, AUTHORITIES)}
        if now == self._read:
            return False
        self._read = now
        return True

    def _take_deny_list(self, view: TrustedView, problems: list[str]) -> None:
        offered = DenyList.empty(self._identity.fleet)
        try:
            if DENY in view.kept:
                offered = decode_deny_untrusted(view.read(DENY), self._identity.fleet)
        except PcmError as error:
            self._read = {}  # a damaged file is fetched again, and may be whole next time
            problems.append(f"the deny list cannot be used, the one before it stays: {error.message}")
            return
        if offered.epoch < self._denied.epoch:
            problems.append(
                f"the signed deny list went back to epoch {offered.epoch}; the one of epoch {self._denied.epoch} stays in force"
            )
        held, self._denied = self._denied, newer(self._denied, offered)
        if self._denied is held:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._path, self._denied.encoded(), mode=0o600)
        except OSError as error:
            log.error("%s cannot be written; the deny list is taken from the trusted view: %s", self._path, error)
        freed = {one.id for one in held.devices} - {one.id for one in self._denied.devices}
        new = {one.id for one in self._denied.devices} - {one.id for one in held.devices}
        log.warning("deny list of epoch %d: %d devices revoked, %d restored", self._denied.epoch, len(new), len(freed))

    def _take_authorities(self, view: TrustedView, problems: list[str]) -> None:
        enrolled, after = self._enrolled_pem(), b""
        if AUTHORITIES in view.kept:
            try:
                after = _of_fleet(view.read(AUTHORITIES), self._identity.fleet)
            except PcmError as error:
                self._read = {}
                problems.append(f"the signed list of certificate authorities cannot be used: {error.message}")
        before, believed = self._from_view or self._identity.authorities_pem, after or self._from_view or enrolled
        self._from_view = after or self._from_view
        if after and before != after:
            self._remember_former(before, after)
        self._authorities_pem = self._without_denied(believed)
        if not self._authorities_pem:
            problems.append("every certificate authority of this fleet is revoked: no neighbour can be believed")

    def _enrolled_pem(self) -> bytes:
        """The authorities of the enrolment, without those that signed lists have left out since: damaged files of the view bring
        none of them back."""
        former = set(authorities_untrusted(self._former)) if self._former else set()
        enrolled = authorities_untrusted(self._identity.authorities_pem)
        return b"".join(one.public_bytes(Encoding.PEM) for one in enrolled if one not in former)

    def _remember_former(self, before: bytes, now: bytes) -> None:
        present = set(authorities_untrusted(now))
        known = [one for one in authorities_untrusted(self._former + before) if one not in present]
        former = [one.public_bytes(Encoding.PEM) for one in dict.fromkeys(known)][-FORMER_MAX:]
        if b"".join(former) == self._former:
            return
        self._former = b"".join(former)
        try:
            write_atomic(self._former_path, self._former, mode=0o600)
        except OSError as error:
            log.error("%s cannot be written: %s", self._former_path, error)

    def _remembered_former(self) -> bytes:
        with contextlib.suppress(OSError, UntrustedBytes), self._former_path.open("rb") as file:
            return _of_fleet(file.read(AUTHORITIES_SIZE_BYTES_MAX + 1), self._identity.fleet)
        return b""

    def _without_denied(self, pem: bytes) -> bytes:
        return b"".join(
            authority.public_bytes(Encoding.PEM)
            for authority in (authorities_untrusted(pem) if pem else ())
            if self._denied.authority(authority.public_bytes(Encoding.DER)) is None
        )

    def _look_at_own(self, problems: list[str]) -> None:
        entry = self.own_revocation()
        if entry is not None:
            problems.append(
                f"this device was revoked on {entry.since:%Y-%m-%d %H:%M} UTC ({entry.reason}): neighbours and collectors refuse "
                "it, and what it was told last stays in force"
            )
            log.error("%s", problems[-1])
            return
        try:
            self._verified(self._identity.certificate_der, at=None)
        except UntrustedBytes:
            problems.append(
                "the authority that certified this device is believed no longer: renew its certificate "
                "('pcm-p2p enroll join TOKEN')"
            )
            log.error("%s", problems[-1])

    def _renew(self) -> None:
        self.security.server_context = server_context(self._identity, self._authorities_pem)
        self.security.client_context = client_context(self._identity, self._authorities_pem)

    def _remembered(self) -> DenyList:
        with contextlib.suppress(OSError, UntrustedBytes), self._path.open("rb") as file:
            return decode_deny_untrusted(file.read(SIZE_BYTES_MAX + 1), self._identity.fleet)
        return DenyList.empty(self._identity.fleet)


def _of_fleet(pem: bytes, fleet: str) -> bytes:
    """The authorities of ``fleet`` among those in ``pem``. Raises ``UntrustedBytes`` if there is none."""
    own = [authority for authority in authorities_untrusted(pem) if fleet_of_authority(authority) == fleet]
    if not own:
        raise UntrustedBytes("it names no authority of this fleet")
    return b"".join(authority.public_bytes(Encoding.PEM) for authority in own)
