"""A proposal in one file: all that a person needs to judge and sign it on a machine that has nothing else. Pure.

It holds the chain of roots, the published documents to compare with, the proposed ones, and the targets that differ between them;
for a site's document also what its policies are judged by (where the site acts alone: ``fleet_floor``), and for what lifts halts
the published list of them with these halts.
The file is a line that names the format, the length of a MessagePack document as 8 bytes, that document, and, where they were
asked for, the blobs of new releases one after the other as the document lists them.

Whoever carries it can alter nothing unseen: each root is verified by the one before it, published documents by the keys of the
newest root, each target by the hash in the document that is signed, and what is missing is an error, not a blank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Role, Root, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.delegating import delegated_roles
from pcm_p2p.authority.document_difference import Contents
from pcm_p2p.authority.fleet_floor import FleetFloor, decode_floor_untrusted, is_policy
from pcm_p2p.authority.halt_difference import named_halts
from pcm_p2p.authority.proposal import is_vouched_anew
from pcm_p2p.content.manifest import decode_untrusted
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.trust.delegation import DELEGATIONS_MAX, HALT, ROLE_PATTERN, TARGETS, kind_of, role_of_path
from pcm_p2p.trust.index import ALLOWANCES, METADATA_SIZE_BYTES_MAX, check_target_path, target_size_bytes_max
from pcm_p2p.trust.lint import lint_root, lint_version
from pcm_p2p.trust.site_root import SITE_FIELD, repository_id

MAGIC: Final = b"pcm.proposal/1\n"
SIZE_BYTES_MAX = 64 << 20
"""Choice: a dozen releases of the largest kind beside hundreds of documents; a larger proposal is published in parts."""
ROOTS_MAX = 1_024
TARGETS_MAX = 10_000

_Role = Annotated[str, msgspec.Meta(pattern=rf"^(root|targets|{ROLE_PATTERN})\Z")]


class BundledDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: _Role
    data: bytes


class BundledTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: Annotated[str, msgspec.Meta(max_length=200)]
    data: bytes


class BundledSegment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A blob behind the document; ``id`` is its BLAKE3, 32 bytes."""

    id: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    size: Annotated[int, msgspec.Meta(ge=1)]


class BundleDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As it is in the file. ``floor``: where a site that acts alone proposes policies, what the fleet lets it set."""

    fleet: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    roots: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=ROOTS_MAX)]
    published: Annotated[tuple[BundledDocument, ...], msgspec.Meta(max_length=DELEGATIONS_MAX)]
    proposed: Annotated[tuple[BundledDocument, ...], msgspec.Meta(min_length=1, max_length=DELEGATIONS_MAX)]
    targets: Annotated[tuple[BundledTarget, ...], msgspec.Meta(max_length=TARGETS_MAX)]
    segments: Annotated[tuple[BundledSegment, ...], msgspec.Meta(max_length=1_000_000)] = ()
    floor: bytes | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True)
class Bundle:
    """Checked. ``roots`` from version 1 on; ``published`` and ``proposed`` by role; ``contents`` by SHA-256."""

    fleet: str
    name: str
    roots: tuple[Metadata[Root], ...]
    published: Mapping[str, Metadata[Any]]
    proposed: Mapping[str, Metadata[Any]]
    contents: Mapping[str, bytes]
    paths: Mapping[str, tuple[str, ...]]
    segments: tuple[BundledSegment, ...]
    floor: FleetFloor | None = None

    @property
    def root(self) -> Metadata[Root] | None:
        """The newest published root; ``None`` while the fleet's first one is proposed."""
        return self.roots[-1] if self.roots else None

    @property
    def site(self) -> str | None:
        """The site that acts alone with this repository, as any of its roots says; ``None`` for a fleet's."""
        proposed = self.proposed.get("root")
        roots = (*self.roots, *((proposed,) if proposed is not None else ()))
        named = (one.signed.unrecognized_fields.get(SITE_FIELD) for one in roots)
        return next((str(one) for one in named if one is not None), None)

    def content(self, path: str, sha256: str) -> bytes | None:  # noqa: ARG002 - a ``difference.Contents``
        return self.contents.get(sha256)


def differing_targets(
    published: Mapping[str, Metadata[Any]], proposed: Mapping[str, Metadata[Any]]
) -> list[tuple[str, str]]:
    """Path and SHA-256 of each target of which the proposed documents say something else than the published ones.

    And of those that a site's or team's new keys vouch for anew, since whoever signs answers for them.
    """
    found: dict[tuple[str, str], None] = {}
    for role, document in proposed.items():
        if not isinstance(document.signed, Targets):
            continue
        before = published.get(role)
        old = before.signed.targets if before is not None else {}
        new, anew = document.signed.targets, _is_vouched_anew(published, proposed, role)
        for path in sorted(old.keys() | new.keys()):
            if anew or old.get(path) != new.get(path):
                found.update(((path, info.hashes["sha256"]), None) for info in (old.get(path), new.get(path)) if info)
    return list(found)


def judging_targets(
    published: Mapping[str, Metadata[Any]], proposed: Mapping[str, Metadata[Any]], *, alone: bool = False
) -> list[tuple[str, str]]:
    """Path and SHA-256 of what tells whether devices would set a site's policy aside, where a site's document is proposed.

    What the fleet lets sites set, the fleet's policies, and all of the site's own; where the site acts ``alone``, its own: the
    rest stands in the floor. Raises ``KeyError`` as ``differing_targets``.
    """
    if alone:
        own = proposed[TARGETS].signed.targets if TARGETS in proposed else {}
        return [(path, info.hashes["sha256"]) for path, info in sorted(own.items()) if is_policy(path)]
    top = proposed.get(TARGETS, published.get(TARGETS))
    known = delegated_roles(top.signed) if top is not None else ()
    sites = [role for role in known if role in proposed and (kind := kind_of(role)) is not None and kind[0] == "site"]
    if not sites or top is None:
        return []
    documents = {TARGETS: top, **{role: proposed[role] for role in sites}}
    return [
        (path, info.hashes["sha256"])
        for role, document in documents.items()
        if isinstance(document.signed, Targets)
        for path, info in sorted(document.signed.targets.items())
        if is_judging(path) and role_of_path(path) == role
    ]


def halts_in_words(
    published: Mapping[str, Metadata[Any]], proposed: Mapping[str, Metadata[Any]], contents: Contents
) -> list[tuple[str, str]]:
    """Path and SHA-256 of each halt that proposed targets lift or confirm, as the lists of halts that are here name them.

    Raises ``KeyError`` as ``differing_targets``.
    """
    after, before = proposed.get(TARGETS), published.get(TARGETS)
    if after is None:
        return []
    lists = [side[HALT].signed for side in (published, proposed) if HALT in side]
    return list(named_halts(before.signed if before is not None else None, after.signed, lists, contents))


def carried_targets(
    published: Mapping[str, Metadata[Any]],
    proposed: Mapping[str, Metadata[Any]],
    contents: Contents,
    *,
    alone: bool = False,
) -> list[tuple[str, str]]:
    """Path and SHA-256 of all that a bundle holds, in its order. Raises ``KeyError`` as ``differing_targets``."""
    found = (*differing_targets(published, proposed), *judging_targets(published, proposed, alone=alone))
    return list(dict.fromkeys((*found, *halts_in_words(published, proposed, contents))))


def is_judging(path: str) -> bool:
    """Whether a target is a policy, or what the fleet lets sites set."""
    return path == ALLOWANCES or is_policy(path)


def _is_vouched_anew(published: Mapping[str, Metadata[Any]], proposed: Mapping[str, Metadata[Any]], role: str) -> bool:
    top, before = proposed.get("targets", published.get("targets")), published.get(role)
    if role == "targets" or top is None or before is None or role not in delegated_roles(top.signed):
        return False
    return is_vouched_anew(top.signed, role, before)


def encode_bundle(document: BundleDocument) -> bytes:
    """The file up to where blobs begin."""
    body = msgspec.msgpack.encode(document)
    return MAGIC + len(body).to_bytes(8, "big") + body


def body_length_untrusted(head: bytes) -> int:
    """The length of the document from the first ``len(MAGIC) + 8`` bytes of the file. Raises ``UntrustedBytes``."""
    if not head.startswith(MAGIC) or len(head) != len(MAGIC) + 8:
        raise UntrustedBytes("is not a proposal that 'pcm-p2p proposal export' wrote")
    length = int.from_bytes(head[len(MAGIC) :], "big")
    if length > SIZE_BYTES_MAX:
        raise UntrustedBytes(f"proposal: {length} bytes; at most {SIZE_BYTES_MAX} are read")
    return length


_decoder = msgspec.msgpack.Decoder(BundleDocument)


def decode_bundle_untrusted(body: bytes) -> Bundle:
    """Everything that the module promises, or ``UntrustedBytes``."""
    if len(body) > SIZE_BYTES_MAX:
        raise UntrustedBytes(f"proposal: {len(body)} bytes; at most {SIZE_BYTES_MAX} are read")
    try:
        document = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"proposal: {error}") from None
    roots = tuple(_read(data, "root") for data in document.roots)
    _check_roots(roots, document.fleet)
    published = _by_role(document.published, "published")
    proposed = _by_role(document.proposed, "proposed")
    root: Root | None = roots[-1].signed if roots else None
    _check_published(root, published)
    for role, one in proposed.items():
        before = root if role == "root" else published[role].signed if role in published else None
        version = before.version if before is not None else 0
        # A role that was delegated before, and is again, goes on from versions that nobody can be shown any more.
        again = before is None and role not in ("root", "targets")
        if one.signed.version != version + 1 and not again:
            raise UntrustedBytes(
                f"proposal: {role} {one.signed.version} does not follow the published version {version}"
            )
    if (first := proposed.get("root")) is not None and (complaints := lint_root(first.signed, document.fleet)):
        raise UntrustedBytes(f"proposal: {complaints[0]}")
    if root is None and first is None:
        raise UntrustedBytes("proposal: there is no root to judge it by")
    floor = _floor(document)
    contents, paths = _check_targets(document, published, proposed, alone=floor is not None)
    return Bundle(document.fleet, document.name, roots, published, proposed, contents, paths, document.segments, floor)


def _floor(document: BundleDocument) -> FleetFloor | None:
    """What the fleet lets the site set whose repository this is. Raises ``UntrustedBytes``."""
    if isinstance(document.floor, msgspec.UnsetType):
        return None
    floor = decode_floor_untrusted(document.floor)
    if repository_id(floor.fleet, floor.site) != document.fleet:
        raise UntrustedBytes(f"proposal: the floor in it is of site {floor.site} of fleet {floor.fleet[:8]}")
    return floor


def _read(data: bytes, role: str) -> Metadata[Any]:
    """A document of the kind that the role has, within its bound. Raises ``UntrustedBytes``."""
    kind = "root" if role == "root" else "targets"
    if len(data) > METADATA_SIZE_BYTES_MAX["root" if kind == "root" else "targets"]:
        raise UntrustedBytes(f"proposal: {role} has {len(data)} bytes")
    try:
        found = Metadata[Any].from_bytes(data)
        found.signed_bytes  # noqa: B018 - fails for what cannot be signed, which everything after this would stumble over
    except (RepositoryError, TypeError, ValueError, RecursionError) as error:
        raise UntrustedBytes(f"proposal: {role} cannot be read: {error}") from None
    if not isinstance(found.signed, Root if kind == "root" else Targets):
        raise UntrustedBytes(f"proposal: what is called {role} is a {found.signed.type} document")
    if complaints := lint_version(found.signed):
        raise UntrustedBytes(f"proposal: {complaints[0]}")
    if not all(isinstance(text, str) for text in _texts(found.signed)):
        raise UntrustedBytes(f"proposal: {role} names a key or a path that is no text")
    return found


def _texts(signed: Root | Targets) -> Iterator[object]:
    """What everything after this takes for text, and the library does not check."""
    roles: Iterable[Role] = ()
    if isinstance(signed, Root):
        roles = signed.roles.values()
    elif signed.delegations is not None:
        roles = (signed.delegations.roles or {}).values()
    for role in roles:
        yield from role.keyids
        yield from getattr(role, "paths", None) or ()
        yield getattr(role, "name", "")
    if isinstance(signed, Targets):
        yield from (digest for info in signed.targets.values() for digest in info.hashes.values())


def _by_role(documents: Iterable[BundledDocument], what: str) -> dict[str, Metadata[Any]]:
    found: dict[str, Metadata[Any]] = {}
    for one in documents:
        if one.role in found:
            raise UntrustedBytes(f"proposal: two {what} documents for {one.role}")
        found[one.role] = _read(one.data, one.role)
    return found


def _check_roots(roots: tuple[Metadata[Root], ...], fleet: str) -> None:
    for number, root in enumerate(roots, start=1):
        if root.signed.version != number:
            raise UntrustedBytes(f"proposal: root {root.signed.version} stands where root {number} belongs")
        if complaints := lint_root(root.signed, fleet):
            raise UntrustedBytes(f"proposal: root {number}: {complaints[0]}")
        _verify(root.signed, "root", root)
        if number > 1:
            _verify(roots[number - 2].signed, "root", root)


def _check_published(root: Root | None, published: Mapping[str, Metadata[Any]]) -> None:
    if "root" in published:
        raise UntrustedBytes("proposal: the published root belongs into the chain of roots")
    if published and (root is None or "targets" not in published):
        raise UntrustedBytes("proposal: published documents without root or targets cannot be judged")
    for role, document in published.items():
        if role == "targets":
            assert root is not None, "checked above"
            _verify(root, role, document)
        else:
            _verify(published["targets"].signed, role, document)


def _verify(delegator: Root | Targets, role: str, document: Metadata[Any]) -> None:
    try:
        delegator.verify_delegate(role, document.signed_bytes, document.signatures)
    except (RepositoryError, ValueError) as error:
        raise UntrustedBytes(f"proposal: {role} {document.signed.version} is not signed by who may: {error}") from None


def _check_targets(
    document: BundleDocument,
    published: Mapping[str, Metadata[Any]],
    proposed: Mapping[str, Metadata[Any]],
    *,
    alone: bool,
) -> tuple[dict[str, bytes], dict[str, tuple[str, ...]]]:
    """The contents by their hash, and the paths of each: exactly those that differ, or that others are judged or read by.

    Raises ``UntrustedBytes``.
    """
    hashed = [(target, hashlib.sha256(target.data).hexdigest()) for target in document.targets]
    by_digest = {digest: target.data for target, digest in hashed}
    try:
        listed = carried_targets(published, proposed, lambda _, digest: by_digest.get(digest), alone=alone)
        wanted = set(listed)
    except KeyError:
        raise UntrustedBytes("proposal: a target is not named by SHA-256") from None
    contents: dict[str, bytes] = {}
    paths: dict[str, tuple[str, ...]] = {}
    for target, digest in hashed:
        check_target_path(target.path)
        if len(target.data) > target_size_bytes_max(target.path):
            raise UntrustedBytes(f"proposal: {target.path} has {len(target.data)} bytes")
        if (target.path, digest) not in wanted:
            raise UntrustedBytes(f"proposal: the content of {target.path} is not what is signed")
        contents[digest], paths[digest] = target.data, (*paths.get(digest, ()), target.path)
    missing = [path for path, digest in listed if path not in paths.get(digest, ())]
    if missing:
        raise UntrustedBytes(f"proposal: the content of {missing[0]} is missing, so that it cannot be shown")
    _check_segments(document, contents, paths)
    return contents, paths


def _check_segments(document: BundleDocument, contents: dict[str, bytes], paths: dict[str, tuple[str, ...]]) -> None:
    if not document.segments:
        return
    named = {
        (segment.id, segment.size)
        for digest, data in contents.items()
        if any(path.endswith(".manifest") for path in paths[digest])
        for segment in decode_untrusted(data).segments
    }
    if any((segment.id, segment.size) not in named for segment in document.segments):
        raise UntrustedBytes("proposal: a blob belongs to no release in it")
