"""Allowances: what the fleet lets a site set by itself. The signed document, and the judgement on one policy of a site.

``fleet/allowances.toml`` is signed by the fleet's targets role. A site that it does not name has the ``default`` table; without
that, or without the document, a site sets nothing. What a table does not name is not allowed, observing apart::

    schema = "pcm.allowances/1"

    [[site]]
    name = "berlin"
    modes = ["observe", "notify", "enforce"]
    releases = ["berlin-*", "vlc"]
    resources = ["package", "file", "service"]
    paths = ["/opt/berlin/", "/etc/motd"]
    services = ["berlin-*.service"]
    checks = ["package", "file", "service"]
    remediate = true
    transfer_min = { wan_in_bytes_per_s = 50000 }

This is the **ceiling**. The **floor**, that a site adds and tightens and never loosens, is ``precedence``. Field by field of
``document.Policy``:

======================  =========  ========================================================================================
field                   kind       rule for a policy of a site
======================  =========  ========================================================================================
schema, version, title  free       the version orders the site's own editions only: a policy of the fleet always precedes
id                      floor      not one that a policy of the fleet (or a stronger one of the site) has
mode                    both       one of ``modes``; not milder than the fleet's for a release that both assign
applies_to, assign.to   ceiling    whatever they say, devices of the site itself only
assign.release          both       fits ``releases``; one that the fleet assigns to the device only as the fleet assigns it
assign.version          floor      the fleet's, where the fleet assigns the release to the device
assign.resource kind    ceiling    one of ``resources``
its path, name          both       below ``paths``, or among ``services``; no place that the fleet manages or checks
its content, owner …    free       within such a place
check.resource kind     ceiling    one of ``checks``
check.remediate         both       only with ``remediate``; what it changes is judged as a resource
check.* (the rest)      free       a check only asks; the fleet's checks run beside it, and nothing here can waive them
transfer.*              ceiling    not below ``transfer_min``, where that names the kind; of all limits the lowest counts
======================  =========  ========================================================================================

Windows, rings and waivers are not in schema 1 of the policy, so no site can set them. A package may bring any file and runs its
own scripts as root: who may have ``package`` in ``resources`` is trusted with the devices of the site, and the floor binds what
policies say, not what a package does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import msgspec

from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.ids import check_name
from pcm_p2p.policy.document import Mode, Policy, Transfer
from pcm_p2p.policy.resource import ArchiveResource, FileResource, Resource, ServiceResource, below_root
from pcm_p2p.toml_document import decode_toml

TARGET_PATH = "fleet/allowances.toml"

ResourceKind = Literal["package", "archive", "file", "service"]
CheckKind = Literal["package", "file", "file_content", "sysctl", "service", "mount"]
Patterns = Annotated[
    tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=201)], ...], msgspec.Meta(max_length=1_024)
]

_PATTERN = re.compile(r"[A-Za-z0-9*._+~:=@\\-]+")


class Allowance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one site may set. ``releases`` and ``services`` are names in which ``*`` stands for any run of characters; a path
    that ends in ``/`` is everything below it. ``when_frozen``: whether its own repository may have something new installed
    while the fleet's metadata is frozen."""

    modes: tuple[Mode, ...] = ("observe",)
    releases: Patterns = ()
    resources: tuple[ResourceKind, ...] = ()
    paths: Annotated[tuple[str, ...], msgspec.Meta(max_length=1_024)] = ()
    services: Patterns = ()
    checks: tuple[CheckKind, ...] = ()
    remediate: bool = False
    transfer_min: Transfer = Transfer()
    when_frozen: bool = False  # choice: a fleet that has gone silent is more often cut off by mischief than by weather

    def __post_init__(self) -> None:
        for pattern in (*self.releases, *self.services):
            if not _PATTERN.fullmatch(pattern):
                raise ValueError(f"{pattern!r} is not a name, with '*' for any run of characters")
        for path in self.paths:
            if path != "/":
                below_root(path.removesuffix("/"))


class SiteAllowance(Allowance, frozen=True, kw_only=True):
    name: str

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            check_name(self.name, "site")
        except UntrustedBytes as error:
            raise ValueError(error.message) from None


class Allowances(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole document."""

    schema: Literal["pcm.allowances/1"]
    default: Allowance | None = None
    sites: Annotated[tuple[SiteAllowance, ...], msgspec.Meta(max_length=10_000)] = msgspec.field(
        name="site", default=()
    )

    def of(self, site: str) -> Allowance | None:
        """The table of ``site``, else the default one, else None."""
        return next((one for one in self.sites if one.name == site), self.default)


def decode_allowances(data: bytes, name: str = TARGET_PATH) -> Allowances:
    """Decode the document; ``name`` is the file named in errors. Raises ``InputError``."""
    allowances = decode_toml(data, Allowances, name)
    seen: set[str] = set()
    for site in (one.name for one in allowances.sites):
        if site in seen:
            raise InputError(f"site {site} stands twice", path=name, key="site.name", remedy="Keep one table a site.")
        seen.add(site)
    return allowances


def why_beyond(policy: Policy, site: str, allowances: Allowances | None) -> tuple[str, ...]:
    """Each sentence says what in a policy of ``site`` is beyond what the fleet allows; none: it is within the ceiling."""
    if allowances is None:
        return (f"the fleet has signed no allowances ({TARGET_PATH}), so site {site} may set nothing",)
    allowance = allowances.of(site)
    if allowance is None:
        return (f"the fleet's allowances name neither site {site} nor a default, so it may set nothing",)
    return tuple(_beyond(policy, allowance))


def resources_of(policy: Policy) -> Iterator[tuple[str, Resource]]:
    """Everything that the policy could change, each with who asks for it (``release x``, ``check y``)."""
    for assignment in policy.assignments:
        yield from ((f"release {assignment.release}", resource) for resource in assignment.resources)
    for check in policy.checks:
        if check.remediate:
            yield from ((f"check {check.id}", resource) for resource in check.remedy())


def _beyond(policy: Policy, allowance: Allowance) -> Iterator[str]:
    if policy.mode not in allowance.modes:
        yield f"its mode is {policy.mode}, and the site may {_listed(allowance.modes)}"
    for assignment in policy.assignments:
        if not any(fnmatchcase(assignment.release, pattern) for pattern in allowance.releases):
            yield f"it assigns release {assignment.release}, and the site may assign {_listed(allowance.releases)}"
    for check in policy.checks:
        if check.resource not in allowance.checks:
            yield f"check {check.id} looks at a {check.resource}, and the site may look at {_listed(allowance.checks)}"
        if check.remediate and not allowance.remediate:
            yield f"check {check.id} asks to be remedied, which the site may not"
    for asker, resource in resources_of(policy):
        yield from (f"{asker}: {what}" for what in _beyond_place(resource, allowance))
    least = msgspec.structs.asdict(allowance.transfer_min)
    for kind, limit in msgspec.structs.asdict(policy.transfer).items():
        if limit and (least[kind] is None or limit < least[kind]):
            bound = "none" if least[kind] is None else f"{least[kind]} or more"
            yield f"transfer.{kind} is {limit}, and the site may set {bound}"


def _beyond_place(resource: Resource, allowance: Allowance) -> Iterator[str]:
    kind = str(resource.__struct_config__.tag)
    if kind not in allowance.resources:
        yield f"makes a {kind}, and the site may make {_listed(allowance.resources)}"
    if isinstance(resource, ServiceResource):
        if not any(fnmatchcase(resource.name, pattern) for pattern in allowance.services):
            yield f"manages {resource.name}, and the site may manage {_listed(allowance.services)}"
    elif isinstance(resource, FileResource | ArchiveResource):
        path = f"{resource.path}/" if isinstance(resource, ArchiveResource) else resource.path
        if not any(
            path == allowed or (allowed.endswith("/") and path.startswith(allowed)) for allowed in allowance.paths
        ):
            yield f"writes to {resource.path}, and the site may write to {_listed(allowance.paths)}"


def _listed(words: tuple[str, ...]) -> str:
    shown = ", ".join(words[:8])
    return f"{shown} … only" if len(words) > 8 else f"{shown} only" if words else "nothing of the kind"
