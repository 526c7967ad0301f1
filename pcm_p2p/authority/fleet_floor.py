"""The fleet's floor for one site, in one file: what the fleet lets the site set, and what stands above the site's policies. Pure.

A site that acts alone signs without the fleet, in a folder that holds nothing of the fleet's; so it takes over what its policies
are judged by. The file holds the chain of the fleet's roots from the pinned one on, the newest timestamp, snapshot and targets
that were taken over, the document of the site's delegated role where there is one, and of the files that these name the two
indexes, the allowances and all policies. It is a line that names the format, and a MessagePack document.

Whoever carries or keeps it can alter nothing unseen: each root is verified by the one before it, each document by the keys that
the newest root or the targets name, snapshot and targets also by the hashes above them, and each file by the hash in the document
that is signed. What is missing is an error. Only ``taken_ms`` is nobody's word but the keeper's.

Expiry is no matter here: what the fleet said last goes on while the WAN is down, and ``overdue`` says how old it is. Whether the
fleet says less by now cannot be known offline; devices judge again, by what they hold when they read.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Final

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from pcm_p2p.authority.site_judgement import complaints_anew, complaints_by_path
from pcm_p2p.errors import InputError, UntrustedBytes
from pcm_p2p.policy.allowance import Allowance, Allowances, decode_allowances, why_beyond
from pcm_p2p.policy.document import Policy, decode_policy
from pcm_p2p.policy.precedence import Measure
from pcm_p2p.trust.delegation import TARGETS, index_of, site_role
from pcm_p2p.trust.floor import Floor, Moment, RoleFloor, Versions
from pcm_p2p.trust.index import (
    ALLOWANCES,
    DELEGATED_SIZE_BYTES_MAX,
    INDEX,
    METADATA_SIZE_BYTES_MAX,
    Index,
    decode_index_untrusted,
    site_root_path,
    target_size_bytes_max,
)
from pcm_p2p.trust.lint import (
    ISSUED_FIELD,
    lint_delegated,
    lint_root,
    lint_snapshot,
    lint_targets,
    lint_timestamp,
    lint_version,
)

MAGIC: Final = b"pcm.fleet-floor/1\n"
SIZE_BYTES_MAX = 64 << 20
"""Choice: as a proposal, which brings it to a site's signers."""
ROOTS_MAX = 1_024
"""As in a proposal."""
TARGETS_MAX = 20_003
"""Two indexes of 10,000 policies each, and the allowances."""


class FloorTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: Annotated[str, msgspec.Meta(max_length=200)]
    data: bytes


class FloorDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As it is in the file. ``role``: the document of the site's delegated role, empty where there is none. ``taken_ms``: when
    this version of targets was taken over, ms since 1970."""

    fleet: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    site: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    taken_ms: Moment
    roots: Annotated[tuple[bytes, ...], msgspec.Meta(min_length=1, max_length=ROOTS_MAX)]
    timestamp: bytes
    snapshot: bytes
    targets: bytes
    role: bytes
    files: Annotated[tuple[FloorTarget, ...], msgspec.Meta(max_length=TARGETS_MAX)]

    def encoded(self) -> bytes:
        return MAGIC + msgspec.msgpack.encode(self)


@dataclass(frozen=True)
class FleetFloor:
    """Checked: see the module. ``contents`` by target path; ``role`` is ``None`` where the site has no delegated role."""

    document: FloorDocument
    roots: tuple[Metadata[Root], ...]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]
    role: Metadata[Targets] | None
    contents: Mapping[str, bytes]
    index: Index
    role_index: Index | None

    @property
    def fleet(self) -> str:
        return self.document.fleet

    @property
    def site(self) -> str:
        return self.document.site

    @property
    def root(self) -> Metadata[Root]:
        """The newest root."""
        return self.roots[-1]

    @property
    def pinned_sha256(self) -> str:
        """Of the signed bytes of the root that was pinned, in hexadecimal: its digest on key sheets."""
        return hashlib.sha256(self.roots[0].signed_bytes).hexdigest()

    @property
    def versions(self) -> Versions:
        documents = (self.root, self.timestamp, self.snapshot, self.targets)
        return Versions(*(int(one.signed.version) for one in documents))

    @property
    def expires(self) -> datetime:
        """When the first of the fleet's four documents expires."""
        return min(one.signed.expires for one in (self.root, self.timestamp, self.snapshot, self.targets))

    @property
    def issued(self) -> datetime | None:
        """When the publisher said that this is the newest; ``None`` if it did not say so in a way that reads."""
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            moment = datetime.fromisoformat(self.timestamp.signed.unrecognized_fields.get(ISSUED_FIELD))  # type: ignore[arg-type]
            return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return None

    def overdue(self, now: datetime) -> str:
        """That the fleet's metadata is out of date, in words; empty if it is not."""
        days = (now - self.expires).days
        if days < 0:
            return ""
        ago = f"{days} day{'' if days == 1 else 's'} ago, " if days else ""
        return (
            f"what is held of the fleet expired {ago}on {self.expires:%Y-%m-%d}: it is judged by all the same, and what the"
            " fleet changed since is not known here"
        )

    @property
    def taken(self) -> datetime:
        return datetime.fromtimestamp(self.document.taken_ms / 1_000, UTC)

    @cached_property
    def allowances(self) -> Allowances | None:
        """What the fleet lets sites set; ``None`` if it says nothing, or nothing that this version reads (as for devices)."""
        with contextlib.suppress(InputError, KeyError):
            return decode_allowances(self.contents[ALLOWANCES], ALLOWANCES)
        return None

    @property
    def allowance(self) -> Allowance | None:
        """The table that holds for the site."""
        return self.allowances.of(self.site) if self.allowances is not None else None

    @cached_property
    def fleet_policies(self) -> tuple[Policy, ...]:
        """The fleet's own. One that does not read is passed over, as devices do."""
        return tuple(self._policies(self.index))

    @cached_property
    def role_policies(self) -> tuple[Policy, ...]:
        """Those that the site's delegated role signed, and that count on some device."""
        if self.role_index is None:
            return ()
        policies, measure = sorted(self._policies(self.role_index), key=lambda one: (one.id, one.version)), Measure()
        # What one of them loosens depends on the device; where it does not, the policy stands above what is judged here.
        return tuple(
            one for one in policies if not (measure.why_too_much(one) or why_beyond(one, self.site, self.allowances))
        )

    @property
    def stronger(self) -> tuple[Policy, ...]:
        """All that stands above the policies of the site's own repository."""
        return (*self.fleet_policies, *self.role_policies)

    def complaints(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> tuple[str, ...]:
        """What devices would set aside of the site's policies in ``after`` and do not in ``before``; both by target path."""
        return complaints_anew(self.site, before, after, self.allowances, self.stronger)

    def set_aside(self, policies: Mapping[str, bytes]) -> dict[str, tuple[str, ...]]:
        """What devices would set aside of these policies of the site, by target path, with the sentences."""
        return complaints_by_path(self.site, policies, self.allowances, self.stronger)

    def lists(self, root: bytes) -> bool:
        """Whether the fleet lists this document as the root with which the site acts alone."""
        info = self.targets.signed.targets.get(site_root_path(self.site))
        return info is not None and info.hashes["sha256"] == hashlib.sha256(root).hexdigest()

    def as_trust_floor(self) -> Floor:
        """Below which nothing is taken over again; ``trust.floor`` says when it sinks."""
        root, role = self.root.signed, self.role
        names = site_role(self.site)
        return Floor(
            *self.versions,
            timestamp_signers=_signers(root, "timestamp", self.timestamp),
            snapshot_signers=_signers(root, "snapshot", self.snapshot),
            delegated={}
            if role is None
            else {names: RoleFloor(role.signed.version, _signers(self.targets.signed, names, role))},
        )

    def _policies(self, index: Index) -> Iterator[Policy]:
        for path in index.policies:
            with contextlib.suppress(InputError):
                yield decode_policy(self.contents[path], path)


def is_policy(path: str) -> bool:
    """Whether a target is a policy, of the fleet, of a role or of a site's own repository."""
    return path.startswith("policies/") and path.endswith(".toml")


def policies_in(targets: Targets) -> dict[str, TargetFile]:
    """The policies that a document lists, by target path."""
    return {path: info for path, info in targets.targets.items() if is_policy(path)}


def why_not_after(held: FleetFloor, offered: FleetFloor) -> str:
    """Why ``offered`` cannot take the place of what is held, in words; empty if it goes forward from there."""
    if (held.fleet, held.site) != (offered.fleet, offered.site):
        return f"is of site {offered.site} of fleet {offered.fleet[:8]}, not of site {held.site} of {held.fleet[:8]}"
    newest = held.root
    same = [one for one in offered.roots if one.signed.version == newest.signed.version]
    if not same:
        if offered.root.signed.version < newest.signed.version:
            return f"has root {offered.root.signed.version}, and root {newest.signed.version} is held"
        return f"does not show that its root {offered.root.signed.version} follows from root {newest.signed.version}"
    if same[0].signed_bytes != newest.signed_bytes:
        return f"has another root {newest.signed.version} than the one that is held"
    roles = offered.root.signed.roles
    floor = held.as_trust_floor().under(frozenset(roles["timestamp"].keyids), frozenset(roles["snapshot"].keyids))
    if below := floor.below(offered.versions):
        return below
    version = offered.targets.signed.version
    if floor.targets == version and held.targets.signed_bytes != offered.targets.signed_bytes:
        return f"has another targets {version} than the one that is held"
    role, delegations = site_role(held.site), offered.targets.signed.delegations
    if offered.role is not None and delegations is not None:
        lowest = floor.role(role, frozenset((delegations.roles or {})[role].keyids))
        if (version := offered.role.signed.version) < lowest:
            return f"{role} version {version} is below {lowest}, which was accepted before"
    return ""


_decoder = msgspec.msgpack.Decoder(FloorDocument)


def decode_floor_untrusted(data: bytes) -> FleetFloor:
    """Everything that the module promises, or ``UntrustedBytes``."""
    if len(data) > SIZE_BYTES_MAX:
        raise UntrustedBytes(f"floor: {len(data)} bytes; at most {SIZE_BYTES_MAX} are read")
    if not data.startswith(MAGIC):
        raise UntrustedBytes("is no floor of a fleet that 'pcm-p2p site floor' wrote")
    try:
        document = _decoder.decode(data[len(MAGIC) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"floor: {error}") from None
    role = site_role(document.site)
    roots = _roots(document)
    root = roots[-1].signed
    timestamp = _read(document.timestamp, "timestamp", Timestamp)
    snapshot = _read(document.snapshot, "snapshot", Snapshot)
    targets = _read(document.targets, TARGETS, Targets)
    for name, one in (("timestamp", timestamp), ("snapshot", snapshot), (TARGETS, targets)):
        _verify(root, name, one)
    _refuse((*lint_timestamp(timestamp.signed), *lint_snapshot(snapshot.signed), *lint_targets(targets.signed)))
    _bound(timestamp.signed.snapshot_meta, "snapshot", snapshot, document.snapshot)
    _bound(snapshot.signed.meta.get("targets.json"), TARGETS, targets, document.targets)
    delegations = targets.signed.delegations
    listed = snapshot.signed.meta.get(f"{role}.json")
    if delegations is None or role not in (delegations.roles or {}):
        listed = None  # a snapshot goes on naming what was revoked
    delegated = None
    if listed is not None:
        delegated = _read(document.role, role, Targets)
        _verify(targets.signed, role, delegated)
        _refuse(lint_delegated(delegated.signed, role))
        _bound(listed, role, delegated, document.role)
    elif document.role:
        raise UntrustedBytes(f"floor: there is a document of {role}, to which the fleet delegates nothing")
    contents = _Contents(document, targets.signed, delegated.signed if delegated is not None else None, role)
    index, role_index = contents.check()
    return FleetFloor(document, roots, timestamp, snapshot, targets, delegated, contents.by_path, index, role_index)


def first_root_untrusted(data: bytes, fleet: str) -> Metadata[Root]:
    """A root of ``fleet`` that holds by itself, for who pins it. Raises ``UntrustedBytes`` only."""
    root = _read(data, "root", Root)
    _refuse(lint_root(root.signed, fleet))
    _verify(root.signed, "root", root)
    return root


def _roots(document: FloorDocument) -> tuple[Metadata[Root], ...]:
    roots = [first_root_untrusted(document.roots[0], document.fleet)]
    for data in document.roots[1:]:
        root = first_root_untrusted(data, document.fleet)
        if root.signed.version != roots[-1].signed.version + 1:
            raise UntrustedBytes(f"floor: root {root.signed.version} does not follow root {roots[-1].signed.version}")
        _verify(roots[-1].signed, "root", root)
        roots.append(root)
    return tuple(roots)


def _read(data: bytes, role: str, kind: type[Any]) -> Metadata[Any]:
    """A document of that kind within the bound of its role. Raises ``UntrustedBytes``."""
    bound = METADATA_SIZE_BYTES_MAX.get(role, DELEGATED_SIZE_BYTES_MAX)
    if len(data) > bound:
        raise UntrustedBytes(f"floor: {role} has {len(data)} bytes; at most {bound} are read")
    try:
        found = Metadata[Any].from_bytes(data)
        found.signed_bytes  # noqa: B018 - fails for what cannot be signed
    except (RepositoryError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise UntrustedBytes(f"floor: {role} cannot be read: {error}") from None
    if not isinstance(found.signed, kind):
        raise UntrustedBytes(f"floor: what should be {role} is a {found.signed.type} document")
    _refuse(lint_version(found.signed))
    return found


def _verify(delegator: Root | Targets, role: str, document: Metadata[Any]) -> None:
    try:
        delegator.verify_delegate(role, document.signed_bytes, document.signatures)
    except (RepositoryError, TypeError, ValueError) as error:
        raise UntrustedBytes(f"floor: {role} {document.signed.version} is not signed by who may: {error}") from None


def _bound(meta: MetaFile | None, role: str, document: Metadata[Any], data: bytes) -> None:
    try:
        if meta is None or meta.version != document.signed.version:
            raise UntrustedBytes(f"floor: {role} {document.signed.version} is not the one that is listed")
        meta.verify_length_and_hashes(data)
    except (RepositoryError, TypeError, ValueError) as error:
        raise UntrustedBytes(f"floor: {role} is not the one that is listed: {error}") from None


def _refuse(complaints: tuple[str, ...]) -> None:
    if complaints:
        raise UntrustedBytes(f"floor: {complaints[0]}")


class _Contents:
    """The files beside the documents: exactly those that a site's policies are judged by, each as it was signed."""

    def __init__(self, document: FloorDocument, targets: Targets, delegated: Targets | None, role: str) -> None:
        self._fleet, self._targets, self._delegated, self._role = document.fleet, targets, delegated, role
        self._given = {one.path: one.data for one in document.files}
        if len(self._given) != len(document.files):
            raise UntrustedBytes("floor: a file stands twice")
        self.by_path: dict[str, bytes] = {}

    def check(self) -> tuple[Index, Index | None]:
        """The indexes, once all is there and as it was signed. Raises ``UntrustedBytes``."""
        index, role_index = self._listing(self._targets, TARGETS), None
        if ALLOWANCES in self._targets.targets:
            self._take(ALLOWANCES, self._targets)
        if self._delegated is not None:
            role_index = self._listing(self._delegated, self._role)
        if more := sorted(self._given.keys() - self.by_path.keys()):
            raise UntrustedBytes(f"floor: {more[0]!r} does not belong into it")
        return index, role_index

    def _listing(self, targets: Targets, role: str) -> Index:
        path = INDEX if role == TARGETS else index_of(role)
        index = decode_index_untrusted(self._take(path, targets), role)
        if index.fleet != self._fleet:
            raise UntrustedBytes(f"floor: {path} is of fleet {index.fleet[:8]}, not {self._fleet[:8]}")
        for one in index.policies:
            self._take(one, targets)
        return index

    def _take(self, path: str, targets: Targets) -> bytes:
        info: TargetFile | None = targets.targets.get(path)
        if info is None:
            raise UntrustedBytes(f"floor: {path} is not signed")
        data = self._given.get(path)
        if data is None:
            raise UntrustedBytes(f"floor: {path} is missing")
        if info.length > target_size_bytes_max(path) or len(data) != info.length:
            raise UntrustedBytes(f"floor: {path} has {len(data)} bytes, and {info.length} are signed")
        if hashlib.sha256(data).hexdigest() != info.hashes["sha256"]:
            raise UntrustedBytes(f"floor: the content of {path} is not what is signed")
        self.by_path[path] = data
        return data


def _signers(delegator: Root | Targets, role: str, document: Metadata[Any]) -> tuple[str, ...]:
    result = delegator.get_verification_result(role, document.signed_bytes, document.signatures)
    return tuple(sorted(result.signed))
