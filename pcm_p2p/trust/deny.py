"""The deny list: certificates that count no longer before they end. A signed target, ``identity/deny.json``.

::

    {"schema": "pcm.deny/1", "fleet": "<32 hex>", "epoch": 3,
     "devices": [{"id": "<32 hex>", "since": "2026-03-01T06:00:00Z", "reason": "stolen"}],
     "authorities": [{"sha256": "<64 hex>", "since": "…", "reason": "…"}]}

A device is named by its id, which is a hash of its key: whoever holds that key is meant, in every role and with every
certificate. An authority is named by the SHA-256 of its certificate (DER): all certificates that it issued fall with it.

``epoch`` grows with every change. The signed version of targets forbids an older list of the same signers already; the epoch
forbids an old list under a new version, as a fleet folder that was restored from a backup would sign it. Who holds a list
takes no other one of the same or a lower epoch (``newer``).

X.509's own lists (CRL, OCSP) are not used: a CRL needs new TLS contexts for each change and expires by itself, and a responder
must be reached (research/trust.md 8).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from functools import cached_property
from typing import Annotated, Literal, Self

import msgspec

from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import DeviceId

DEVICES_MAX = 10_000
AUTHORITIES_MAX = 64
REASON_LENGTH_MAX = 200
SIZE_BYTES_MAX = 4 << 20
"""10,000 entries with the longest reason in ASCII have 3.2 MB; a longer list is refused when it is made."""

_Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=REASON_LENGTH_MAX)]
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class DeniedDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``id`` in hexadecimal."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    since: _Moment
    reason: _Reason

    @property
    def device_id(self) -> DeviceId:
        return DeviceId.parse(self.id)


class DeniedAuthority(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``sha256`` of the certificate in DER, in hexadecimal."""

    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    since: _Moment
    reason: _Reason


class DenyList(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Who counts no longer. ``epoch`` 0 is the list of a fleet that never revoked anybody."""

    schema: Literal["pcm.deny/1"]
    fleet: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    epoch: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)] = 0
    devices: Annotated[tuple[DeniedDevice, ...], msgspec.Meta(max_length=DEVICES_MAX)] = ()
    authorities: Annotated[tuple[DeniedAuthority, ...], msgspec.Meta(max_length=AUTHORITIES_MAX)] = ()

    @classmethod
    def empty(cls, fleet: str) -> Self:
        return cls("pcm.deny/1", fleet)

    @cached_property
    def _devices(self) -> dict[str, DeniedDevice]:
        return {one.id: one for one in self.devices}

    @cached_property
    def _authorities(self) -> dict[str, DeniedAuthority]:
        return {one.sha256: one for one in self.authorities}

    def device(self, device: DeviceId) -> DeniedDevice | None:
        """The entry of a revoked device; None for all others."""
        return self._devices.get(device.hex())

    def authority(self, certificate_der: bytes) -> DeniedAuthority | None:
        """The entry of a revoked authority; None for all others."""
        return self._authorities.get(authority_sha256(certificate_der))

    # Changes: each is a new list of the next epoch

    def with_devices(self, devices: Iterable[DeviceId], reason: str, now: datetime) -> Self:
        """This list and ``devices``; one that is on it keeps its entry. Raises ``InputError``."""
        _check_reason(reason)
        known = self._devices
        new = [device for device in dict.fromkeys(one.hex() for one in devices) if device not in known]
        if len(known) + len(new) > DEVICES_MAX:
            raise InputError(
                f"the deny list would have {len(known) + len(new)} devices; at most {DEVICES_MAX} fit",
                remedy="Take devices off whose certificates have ended ('pcm-p2p device restore'), or found a new authority.",
            )
        if not new:
            return self
        entries = (*self.devices, *(DeniedDevice(device, now, reason) for device in new))
        grown = self._next(devices=tuple(sorted(entries, key=lambda one: one.id)))
        if len(grown.encoded()) > SIZE_BYTES_MAX:
            raise InputError(f"the deny list would exceed {SIZE_BYTES_MAX} bytes", remedy="Give shorter reasons.")
        return grown

    def without_devices(self, devices: Iterable[DeviceId]) -> Self:
        """This list without ``devices``. Raises ``InputError`` if one of them is not on it."""
        gone = {device.hex() for device in devices}
        for device in sorted(gone - self._devices.keys()):
            raise InputError(f"device {device} is not revoked", remedy="'pcm-p2p device list' shows who is.")
        return self._next(devices=tuple(one for one in self.devices if one.id not in gone)) if gone else self

    def with_authorities(self, certificates_der: Iterable[bytes], reason: str, now: datetime) -> Self:
        """This list and certificate authorities, each in DER; one that is on it keeps its entry. Raises ``InputError``."""
        _check_reason(reason)
        named = dict.fromkeys(authority_sha256(one) for one in certificates_der)
        new = [sha256 for sha256 in named if sha256 not in self._authorities]
        if len(self.authorities) + len(new) > AUTHORITIES_MAX:
            raise InputError(f"the deny list would name more than {AUTHORITIES_MAX} authorities")
        if not new:
            return self
        entries = (*self.authorities, *(DeniedAuthority(sha256, now, reason) for sha256 in new))
        return self._next(authorities=tuple(sorted(entries, key=lambda one: one.sha256)))

    def _next(
        self,
        *,
        devices: tuple[DeniedDevice, ...] | None = None,
        authorities: tuple[DeniedAuthority, ...] | None = None,
    ) -> Self:
        return type(self)(
            self.schema,
            self.fleet,
            self.epoch + 1,
            self.devices if devices is None else devices,
            self.authorities if authorities is None else authorities,
        )

    def encoded(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


class Revoked(UntrustedBytes):
    """The certificate is genuine, and its holder is on the deny list."""

    def __init__(self, device: DeviceId, entry: DeniedDevice) -> None:
        super().__init__(f"device {device.short} is revoked since {entry.since:%Y-%m-%d %H:%M} UTC: {entry.reason}")
        self.device = device


_decoder = msgspec.json.Decoder(DenyList)


def decode_deny_untrusted(data: bytes, fleet: str) -> DenyList:
    """Bytes to a deny list of ``fleet`` that names nobody twice. Raises ``UntrustedBytes``."""
    if len(data) > SIZE_BYTES_MAX:
        raise UntrustedBytes(f"deny list has {len(data)} bytes; at most {SIZE_BYTES_MAX} are read")
    try:
        found = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"deny list does not fit its schema: {error}") from None
    if found.fleet != fleet:
        raise UntrustedBytes(f"deny list is of fleet {found.fleet[:8]}, not {fleet[:8]}")
    if len({one.id for one in found.devices}) != len(found.devices):
        raise UntrustedBytes("deny list names a device twice")
    if len({one.sha256 for one in found.authorities}) != len(found.authorities):
        raise UntrustedBytes("deny list names an authority twice")
    return found


def newer(held: DenyList, offered: DenyList) -> DenyList:
    """Which of two lists counts for one who holds ``held``: ``offered`` only with a higher epoch, or if it is the same."""
    return offered if offered.epoch > held.epoch else held


def authority_sha256(certificate_der: bytes) -> str:
    return hashlib.sha256(certificate_der).hexdigest()


def _check_reason(reason: str) -> None:
    if not 0 < len(reason) <= REASON_LENGTH_MAX or not reason.isprintable():
        raise InputError(
            f"a reason has 1 to {REASON_LENGTH_MAX} printable characters", key="--reason", remedy="Say it in a line."
        )
