"""The activation: the signed document without which nothing is changed on any device.

A new fleet observes only. When its authority signs ``fleet/activation.toml``, the devices in its scope may be changed from
``not_before`` on; removing the document, or narrowing its scope, takes the permission back::

    schema = "pcm.activation/1"
    scope = "all"                          # or sites, labels, devices; given together they narrow each other
    not_before = 2026-03-01T06:00:00Z
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from pcm_p2p.policy.selector import EVERYONE, DeviceFacts, Names, Selector, matches, sentence
from pcm_p2p.toml_document import decode_toml

TARGET_PATH = "fleet/activation.toml"


class Activation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Decoded from TOML. ``not_before`` carries its offset from UTC, so that it means one moment everywhere."""

    schema: Literal["pcm.activation/1"]
    not_before: Annotated[datetime, msgspec.Meta(tz=True)]
    scope: Literal["all"] | None = None
    sites: Names = ()
    labels: Names = ()
    devices: Names = ()

    def __post_init__(self) -> None:
        if self.scope and (self.sites or self.labels or self.devices):
            raise ValueError("scope is 'all' and sites, labels or devices are named; give one of them")
        if not (self.scope or self.sites or self.labels or self.devices):
            raise ValueError("activates nobody; write scope = 'all', or name sites, labels or devices")
        Selector(all=self.scope == "all", sites=self.sites, labels=self.labels, devices=self.devices)

    @property
    def selector(self) -> Selector:
        if self.scope == "all":
            return EVERYONE
        return Selector(sites=self.sites, labels=self.labels, devices=self.devices)


def decode_activation(data: bytes, name: str = TARGET_PATH) -> Activation:
    """Decode the activation; ``name`` is the file named in errors. Raises ``InputError``."""
    return decode_toml(data, Activation, name)


def why_inactive(activation: Activation | None, device: DeviceFacts, now: datetime) -> str:
    """One sentence that says why ``device`` must not be changed at ``now``; empty when it may be."""
    if activation is None:
        return "The fleet has no signed activation yet, so nothing is changed."
    if not matches(activation.selector, device):
        return f"The signed activation covers {sentence(activation.selector)}, not this device."
    if now < activation.not_before:
        return f"The signed activation begins at {activation.not_before.isoformat()}."
    return ""
