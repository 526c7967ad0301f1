"""The policy document: signed TOML to a frozen ``Policy``. What decodes is meaningful; the rest is refused by name.

A check names one object on the device (a package, a path, a key …) and asks conditions of its attributes::

    [[check]]
    id = "shadow-perms"
    title = "Nobody else reads the password hashes"
    severity = "high"
    resource = "file"
    path = "/etc/shadow"
    mode = { at_most = 0o640 }
    group = { in = ["shadow", "root"] }

``logic`` joins the conditions (all, any, none). ``absent`` is the verdict when the object is not there and a condition needs it;
``installed``, ``exists`` and ``mounted`` are answered by absence itself. The other tables are described on the classes below.

``decode_policy`` is for bytes that trust has verified (or an author's own file): a bad document is the author's mistake, so the
errors are ``InputError`` with file, line, key and remedy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import msgspec

from pcm_p2p.errors import InputError
from pcm_p2p.policy.condition import (
    Condition,
    ModeBits,
    ModeOperators,
    NumberOperators,
    OptionsOperators,
    ScalarOperators,
    Text,
    TextOperators,
    VersionOperators,
    VersionText,
    rows,
    scalar_type,
)
from pcm_p2p.policy.expression import Expression
from pcm_p2p.policy.resource import FileResource, Resource, ServiceResource, below_root, check_unit, named
from pcm_p2p.policy.selector import EVERYONE, Selector
from pcm_p2p.toml_document import decode_toml

SCHEMA = "pcm.policy/1"

Severity = Literal["info", "low", "medium", "high", "critical"]
Mode = Literal["observe", "notify", "enforce"]
Absent = Literal["fail", "pass", "not_applicable"]
Logic = Literal["all", "any", "none"]
Quantifier = Literal["all", "any", "none", "only_one"]
Existence = Literal["at_least_one", "none", "any"]
FileType = Literal["file", "folder", "link", "socket", "pipe", "block", "character"]

PackageName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9+.-]{0,127}\Z")]
SysctlKey = Annotated[str, msgspec.Meta(max_length=256, pattern=r"^[a-zA-Z0-9_]+([./][a-zA-Z0-9_:@-]+)*\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="resource", kw_only=True):
    """An assertion about a device; base of the six kinds. ``id`` is stable for ever: findings are keyed by it.

    ``remediate`` asks for ``remedy()`` where the policy enforces; a check without a remedy may not ask for it.
    """

    id: str
    title: str = ""
    severity: Severity = "medium"
    absent: Absent = "fail"
    logic: Logic = "all"
    remediate: bool = False

    def __post_init__(self) -> None:
        named(self.id, "id")
        self.validate()
        if next(self.conditions(), None) is None:
            raise ValueError(f"check {self.id!r} asks nothing; name an attribute of the {self.resource}")
        if self.remediate:
            if self.logic != "all":
                raise ValueError("remediate is for checks whose conditions must all hold; remove it, or logic")
            self.remedy()

    def validate(self) -> None:
        """More that a kind asks of its fields; raises ``ValueError``."""

    @property
    def resource(self) -> str:
        """The kind of object: package, file, file_content, sysctl, service or mount."""
        return str(self.__struct_config__.tag)

    @property
    def target(self) -> str:
        """The object on the device, as a person would say it."""
        raise TypeError(f"{type(self).__name__} names no object")

    def conditions(self) -> Iterator[Condition]:
        """What is asked, one row per attribute and operator, in the order of the fields."""
        raise TypeError(f"{type(self).__name__} asks nothing")

    def remedy(self) -> tuple[Resource, ...]:
        """The resources that make the check pass. Raises ``ValueError`` where no change is known to do so."""
        raise ValueError(f"there is no remedy for a {self.resource} check; remove remediate, or assign a release")

    def _only(self, *attributes: str) -> None:
        for condition in self.conditions():
            if condition.attribute not in attributes or condition.operator not in ("eq", "in", "at_most"):
                asked = f"{condition.attribute} {condition.operator}"
                raise ValueError(f"there is no remedy for '{asked}'; remove remediate, or ask it in another check")


class PackageCheck(Check, frozen=True, tag="package", kw_only=True):
    """A Debian package. ``installed``: unpacked and configured (``ii``). Versions compare in dpkg order."""

    name: PackageName
    installed: bool | None = None
    version: VersionText | VersionOperators | None = None
    arch: Text | TextOperators | None = None
    held: bool | None = None

    @property
    def target(self) -> str:
        return self.name

    def conditions(self) -> Iterator[Condition]:
        yield from rows("installed", self.installed)
        yield from rows("version", self.version, "version")
        yield from rows("arch", self.arch)
        yield from rows("held", self.held)


class FileCheck(Check, frozen=True, tag="file", kw_only=True):
    """A path, not following a link at its end. ``owner`` and ``group`` are names, or numbers where there is no name."""

    path: str
    exists: bool | None = None
    type: FileType | None = None
    owner: Text | TextOperators | None = None
    group: Text | TextOperators | None = None
    mode: ModeBits | ModeOperators | None = None
    sha256: Sha256 | None = None
    size_bytes: int | NumberOperators | None = None
    symlink_target: Text | TextOperators | None = None

    def validate(self) -> None:
        below_root(self.path)

    @property
    def target(self) -> str:
        return self.path

    def conditions(self) -> Iterator[Condition]:
        for attribute in ("exists", "type", "owner", "group"):
            yield from rows(attribute, getattr(self, attribute))
        yield from rows("mode", self.mode, "mode")
        yield from rows("sha256", self.sha256)
        yield from rows("size_bytes", self.size_bytes, "number")
        yield from rows("symlink_target", self.symlink_target)

    def remedy(self) -> tuple[Resource, ...]:
        """Sets mode (to ``at_most`` itself where that is asked), owner and group (the first one allowed)."""
        self._only("mode", "owner", "group")
        wanted = {
            row.attribute: row.value[0] if isinstance(row.value, tuple) else row.value for row in self.conditions()
        }
        return (msgspec.convert({"kind": "file", "path": self.path, **wanted}, FileResource),)


class FileContentCheck(Check, frozen=True, tag="file_content", kw_only=True):
    """Lines of a text file. ``pattern`` is searched in each line; a line that matches is a hit.

    ``existence`` asks how many hits there are; ``value`` is asked of each hit: of the first group of ``pattern``, or of
    the whole match where it has no group; ``quantifier`` says how many hits must satisfy it. The two are apart on
    purpose (OVAL): "no such line" and "every such line is right" are different questions. A file that is not there is
    ``absent``'s.
    """

    path: str
    pattern: Text
    existence: Existence = "at_least_one"
    value: int | Text | ScalarOperators | None = None
    quantifier: Quantifier = "all"

    def validate(self) -> None:
        below_root(self.path)
        Expression(self.pattern)
        if self.existence == "none" and self.value is not None:
            raise ValueError("existence is 'none', so there is no value to ask about; remove value")

    @property
    def target(self) -> str:
        return self.path

    def conditions(self) -> Iterator[Condition]:
        yield Condition("existence", "text", "eq", self.existence)
        short = self.value if isinstance(self.value, int | str) else None
        yield from rows("value", self.value, scalar_type(short))


class SysctlCheck(Check, frozen=True, tag="sysctl", kw_only=True):
    """A kernel setting: ``live`` from procfs, ``persisted`` from sysctl.d in its merge order. ``key`` with dots or slashes."""

    key: SysctlKey
    live: int | Text | ScalarOperators | None = None
    persisted: int | Text | ScalarOperators | None = None

    @property
    def target(self) -> str:
        return self.key

    def conditions(self) -> Iterator[Condition]:
        for attribute, asked in (("live", self.live), ("persisted", self.persisted)):
            short = asked if isinstance(asked, int | str) else None
            yield from rows(attribute, asked, scalar_type(short))

    def remedy(self) -> tuple[Resource, ...]:
        """Persists the value in a file of its own below ``/etc/sysctl.d`` and has systemd load it."""
        self._only("live", "persisted")
        values = {row.value for row in self.conditions() if row.operator == "eq"}
        if self.persisted is None or len(values) != 1:
            raise ValueError(
                "a sysctl is remedied by persisting one value; ask 'persisted' for exactly one, or remove remediate"
            )
        key = self.key.replace("/", ".")
        drop_in = f"/etc/sysctl.d/90-pcm_p2p-{key}.conf"
        return (
            FileResource(path=drop_in, content=f"# Managed by pcm_p2p: check {self.id}\n{key} = {values.pop()}\n"),
            ServiceResource(name="systemd-sysctl.service", restart_on_change=True),
        )


class ServiceCheck(Check, frozen=True, tag="service", kw_only=True):
    """A systemd unit, named with its suffix."""

    name: str
    exists: bool | None = None
    enabled: bool | None = None
    active: bool | None = None
    masked: bool | None = None

    def validate(self) -> None:
        check_unit(self.name)

    @property
    def target(self) -> str:
        return self.name

    def conditions(self) -> Iterator[Condition]:
        for attribute in ("exists", "enabled", "active", "masked"):
            yield from rows(attribute, getattr(self, attribute))

    def remedy(self) -> tuple[Resource, ...]:
        """Enables or disables, starts or stops the unit."""
        self._only("enabled", "active")
        return (ServiceResource(name=self.name, enabled=self.enabled, active=self.active),)


class MountCheck(Check, frozen=True, tag="mount", kw_only=True):
    """A mount point: ``mounted``, ``fstype``, ``device`` and ``options`` as they are; ``fstab_options`` as they will be."""

    path: str
    mounted: bool | None = None
    fstype: Text | TextOperators | None = None
    device: Text | TextOperators | None = None
    options: OptionsOperators | None = None
    fstab_options: OptionsOperators | None = None

    def validate(self) -> None:
        if self.path != "/":
            below_root(self.path)

    @property
    def target(self) -> str:
        return self.path

    def conditions(self) -> Iterator[Condition]:
        yield from rows("mounted", self.mounted)
        yield from rows("fstype", self.fstype)
        yield from rows("device", self.device)
        yield from rows("options", self.options)
        yield from rows("fstab_options", self.fstab_options)


AnyCheck = PackageCheck | FileCheck | FileContentCheck | SysctlCheck | ServiceCheck | MountCheck


class Assignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``release`` in ``version`` belongs on the devices in ``to``; ``resources`` say what its artifacts become there."""

    release: str
    version: str
    to: Selector = EVERYONE
    resources: Annotated[tuple[Resource, ...], msgspec.Meta(max_length=1_024)] = msgspec.field(
        name="resource", default=()
    )

    def __post_init__(self) -> None:
        named(self.release, "release")
        named(self.version, "version")


NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class Transfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits in bytes a second that apply on top of the device's own; not given: no limit from this policy."""

    wan_in_bytes_per_s: NotNegative | None = None
    lan_in_bytes_per_s: NotNegative | None = None
    lan_out_bytes_per_s: NotNegative | None = None


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One policy document. ``version`` grows with each edition; ``mode`` starts as observe for anything new."""

    schema: Literal["pcm.policy/1"]
    id: str
    version: Annotated[int, msgspec.Meta(ge=1, le=(1 << 62))]
    title: str = ""
    mode: Mode = "observe"
    applies_to: Selector = EVERYONE
    assignments: Annotated[tuple[Assignment, ...], msgspec.Meta(max_length=4_096)] = msgspec.field(
        name="assign", default=()
    )
    checks: Annotated[tuple[AnyCheck, ...], msgspec.Meta(max_length=10_000)] = msgspec.field(name="check", default=())
    transfer: Transfer = Transfer()

    def __post_init__(self) -> None:
        named(self.id, "id")


def decode_policy(data: bytes, name: str) -> Policy:
    """Decode a policy document; ``name`` is the file named in errors. Raises ``InputError``."""
    policy = decode_toml(data, Policy, name)

    def refuse(message: str, key: str, remedy: str) -> InputError:
        return InputError(message, path=name, line=_line_that_says(key, data), key=key, remedy=remedy)

    _refuse_twice((check.id for check in policy.checks), "check", refuse)
    for assignment in policy.assignments:
        _refuse_twice((resource.key for resource in assignment.resources), "resource", refuse)
    return policy


def _refuse_twice(keys: Iterator[str], what: str, refuse: Callable[[str, str, str], InputError]) -> None:
    for key, count in Counter(keys).items():
        if count > 1:
            raise refuse(f"stands {count} times as a {what}", key, f"Keep one {what} of this name.")


def _line_that_says(key: str, data: bytes) -> int | None:
    """The last line on which the value stands: of two with one name, the second is the mistake."""
    value = key.partition(":")[2] or key
    lines = data.decode().splitlines()
    return next((number for number in range(len(lines), 0, -1) if f'"{value}"' in lines[number - 1]), None)
