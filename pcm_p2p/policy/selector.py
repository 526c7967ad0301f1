"""Selectors: whom a document speaks about.

``{ all = true }`` is everyone. Otherwise ``sites``, ``labels`` and ``devices`` each narrow the choice: a device matches
when every key that is given names it (any of the values within a key). Two keys are "and", since the narrower reading
of a mistake changes fewer devices.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import DeviceId, check_name

Names = Annotated[tuple[str, ...], msgspec.Meta(max_length=10_000)]


class DeviceFacts(msgspec.Struct, frozen=True):
    """What a selector can see of a device."""

    device: DeviceId
    site: str
    labels: tuple[str, ...] = ()


class Selector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Decoded from TOML. Always says something: an empty selector is refused, and ``all`` stands alone."""

    all: bool = False
    sites: Names = ()
    labels: Names = ()
    devices: Names = ()

    def __post_init__(self) -> None:
        narrowed = bool(self.sites or self.labels or self.devices)
        if self.all and narrowed:
            raise ValueError("'all = true' cannot be narrowed; give either all or sites, labels, devices")
        if not self.all and not narrowed:
            raise ValueError("selects nobody; write 'all = true', or name sites, labels or devices")
        try:
            for name in (*self.sites, *self.labels):
                check_name(name)
            for device in self.devices:
                DeviceId.parse(device)
        except UntrustedBytes as error:
            raise ValueError(error.message) from None


EVERYONE = Selector(all=True)


def matches(selector: Selector, device: DeviceFacts) -> bool:
    """Whether ``selector`` names ``device``."""
    return selector.all or (
        (not selector.sites or device.site in selector.sites)
        and (not selector.labels or any(label in selector.labels for label in device.labels))
        and (not selector.devices or str(device.device) in selector.devices)
    )


def sentence(selector: Selector) -> str:
    """The selector in words, for reports and proposals."""
    if selector.all:
        return "all devices"
    parts = []
    if selector.sites:
        parts.append(f"site {' or '.join(selector.sites)}")
    if selector.labels:
        parts.append(f"label {' or '.join(selector.labels)}")
    if selector.devices:
        parts.append(f"{len(selector.devices)} named device{'s' if len(selector.devices) > 1 else ''}")
    return "devices with " + " and ".join(parts)
