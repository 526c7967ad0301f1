"""Resources: what the artifacts of a release become on a device.

==========  ===========================================================================================
kind        what it makes so
==========  ===========================================================================================
package     the Debian package in ``artifact`` is installed in exactly that version
archive     ``artifact`` is unpacked to ``<path>/<name>-<version>`` and ``<path>/<link>`` points at it
file        ``path`` has these bytes (``content`` or ``artifact``), mode, owner and group; with neither, attributes only
service     the systemd unit is enabled, active; restarted when something else in the release changed
==========  ===========================================================================================

Paths are absolute in the document and taken below the apply root of the device.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.ids import RelativePath, check_name
from pcm_p2p.policy.condition import ModeBits

CONTENT_CHARACTERS_MAX = 65_536
"""Choice: a larger file is an artifact of the release, not a paragraph of the policy."""

_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9@_.\\:-]{0,200}\.(service|socket|timer|path|target|mount)")
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_.-]{0,31}\$?|[0-9]{1,10}")

AccountName = Annotated[str, msgspec.Meta(max_length=32)]


class _Resource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", kw_only=True):
    """Base of all kinds. ``key`` names the place on the device: two resources with one key would fight."""

    @property
    def key(self) -> str:
        raise TypeError(f"{type(self).__name__} names no place")


class PackageResource(_Resource, frozen=True, tag="package", kw_only=True):
    artifact: str

    def __post_init__(self) -> None:
        named(self.artifact, "artifact")

    @property
    def key(self) -> str:
        return f"package:{self.artifact}"


class ArchiveResource(_Resource, frozen=True, tag="archive", kw_only=True):
    """``path`` is the folder that holds the versions and the link."""

    artifact: str
    name: str
    path: str
    link: str = "current"

    def __post_init__(self) -> None:
        named(self.artifact, "artifact")
        named(self.name, "name")
        named(self.link, "link")
        below_root(self.path)

    @property
    def key(self) -> str:
        return f"archive:{self.path}/{self.link}"


class FileResource(_Resource, frozen=True, tag="file", kw_only=True):
    """``mode`` not given: 0644 for a new file, unchanged for one that is there. ``owner``/``group``: name or number."""

    path: str
    content: Annotated[str, msgspec.Meta(max_length=CONTENT_CHARACTERS_MAX)] | None = None
    artifact: str | None = None
    mode: ModeBits | None = None
    owner: AccountName | None = None
    group: AccountName | None = None

    def __post_init__(self) -> None:
        below_root(self.path)
        if self.content is not None and self.artifact is not None:
            raise ValueError("content and artifact are given; a file has one of them")
        if self.artifact is not None:
            named(self.artifact, "artifact")
        if self.content is None and self.artifact is None and self.mode is None and not self.owner and not self.group:
            raise ValueError("asks nothing; give content, artifact, mode, owner or group")
        for account in (self.owner, self.group):
            if account is not None and not _ACCOUNT.fullmatch(account):
                raise ValueError(f"{account!r} is neither an account name nor a number")

    @property
    def key(self) -> str:
        return f"file:{self.path}"


class ServiceResource(_Resource, frozen=True, tag="service", kw_only=True):
    """``name`` is the unit with its suffix. ``enabled`` and ``active``: not given means as it is."""

    name: str
    enabled: bool | None = None
    active: bool | None = None
    restart_on_change: bool = False

    def __post_init__(self) -> None:
        check_unit(self.name)
        if self.enabled is None and self.active is None and not self.restart_on_change:
            raise ValueError("asks nothing; give enabled, active or restart_on_change")

    @property
    def key(self) -> str:
        return f"service:{self.name}"


Resource = PackageResource | ArchiveResource | FileResource | ServiceResource


def artifact_of(resource: Resource) -> str | None:
    """The artifact that the resource needs from the release, if any."""
    return None if isinstance(resource, ServiceResource) else resource.artifact


def named(text: str, what: str) -> None:
    """``ids.check_name`` as the ``ValueError`` that schema validation reports with its place."""
    try:
        check_name(text, what)
    except UntrustedBytes as error:
        raise ValueError(error.message) from None


def below_root(path: str) -> RelativePath:
    """The absolute ``path`` of a document as a path below the root. Raises ``ValueError``."""
    if not path.startswith("/"):
        raise ValueError(f"{path[:80]!r} does not start with '/'")
    try:
        return RelativePath(path[1:])
    except UntrustedBytes:
        raise ValueError(f"{path[:80]!r} is not a plain absolute path (no '..', no '//', no '/' at the end)") from None


def check_unit(name: str) -> None:
    if not _UNIT.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is not a systemd unit name with its suffix, such as 'ssh.service'")
