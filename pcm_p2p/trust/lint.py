"""Lint: what a correct signature does not prove. Pure; the same rules for what we sign and for what we load.

python-tuf verifies signatures, versions, hashes and expiry. It accepts, among others, one key under two ids (so that one person
meets a threshold of two), targets whose only hash is MD5, ``..`` in names and the metadata of another fleet that shares keys
(research/trust.md 2: 4e, md5, 5b, 14). Each rule answers with a sentence; no sentence means clean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import (  # type: ignore[attr-defined]
    DelegatedRole,
    Delegations,
    Key,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.trust.certificate import is_held_by_nobody
from pcm_p2p.trust.delegation import DELEGATIONS_MAX, TARGETS, kind_of, pattern_of, role_of_path
from pcm_p2p.trust.index import VERSION_MAX, check_target_path, target_size_bytes_max

FLEET_FIELD = "x-pcm-fleet"
OWNER_FIELD = "x-pcm-owner"
ISSUED_FIELD = "x-pcm-issued"
ROLES = ("root", "timestamp", "snapshot", "targets")
DOCUMENTS_BYTES_MAX = 64 << 20
"""Choice: of one role. A device reads all of them at once, and who signs for a site is not to fill the devices of others."""
MANIFESTS_BYTES_MAX = 256 << 20
"""Choice: of one delegated role, a thousand releases and more. Relays and collectors fetch all of them within one attempt of ten
minutes: more would keep them from everybody else's news."""
KEY_TYPES = {("ed25519", "ed25519"), ("ecdsa", "ecdsa-sha2-nistp256"), ("ecdsa", "ecdsa-sha2-nistp384")}
"""What every daemon of this version can verify (tokens offer P-256 and P-384 only). A key of another type would make the
whole file unreadable to older ones."""


def owner_of(key: Key) -> str:
    """The person that root names for this key; the beginning of the key id where it names nobody."""
    owner = key.unrecognized_fields.get(OWNER_FIELD)
    return owner if isinstance(owner, str) and owner else key.keyid[:8]


def lint_root(root: Root, fleet_id: str) -> tuple[str, ...]:
    """Complaints about a root document of the fleet ``fleet_id``."""
    return tuple(_root(root, fleet_id))


def _root(root: Root, fleet_id: str) -> Iterator[str]:
    fleet = root.unrecognized_fields.get(FLEET_FIELD)
    if fleet != fleet_id:
        named = fleet[:8] if isinstance(fleet, str) else "no fleet"
        yield f"root is of {named}, not of fleet {fleet_id[:8]}"
    if not root.consistent_snapshot:
        yield "root does not use consistent snapshots"
    yield from _keys(root.keys)
    for name in ROLES:
        role = root.roles.get(name)
        if role is None:
            yield f"root names nobody for {name}"
            continue
        yield from _role("root", name, role.threshold, role.keyids, root.keys)


def _keys(keys: dict[str, Key]) -> Iterator[str]:
    seen: dict[bytes, str] = {}
    for keyid, key in sorted(keys.items()):
        if (key.keytype, key.scheme) not in KEY_TYPES:
            yield f"the key of {owner_of(key)} has the unknown type {key.keytype}/{key.scheme}"
            continue
        public = _public_bytes(key)
        if public is None:
            yield f"the key of {owner_of(key)} cannot be read"
            continue
        if public in seen:
            yield f"one key stands under two ids, {seen[public][:8]} and {keyid[:8]}"
        seen[public] = keyid
        if keyid != _key_id(key):
            yield f"the id {keyid[:8]} of the key of {owner_of(key)} does not belong to it"


def _role(delegator: str, name: str, threshold: int, keyids: list[str], keys: dict[str, Key]) -> Iterator[str]:
    if threshold < 1:
        yield f"the threshold of {name} is {threshold}"
    if threshold > len(keyids):
        yield f"the threshold of {name} is {threshold}, with {len(keyids)} keys"
    yield from (f"{name} refers to a key that {delegator} does not hold" for keyid in keyids if keyid not in keys)


def lint_version(document: Signed) -> tuple[str, ...]:
    """Complaints about the version of any document: the tree and our own files can carry so many digits."""
    if 1 <= document.version <= VERSION_MAX:
        return ()
    return (f"{document.type} has a version beyond {VERSION_MAX}",)


def lint_targets(targets: Targets) -> tuple[str, ...]:
    """Complaints about the top-level targets: what is published, and who else may sign what."""
    return tuple(_targets(targets))


def _targets(targets: Targets) -> Iterator[str]:
    roles: dict[str, DelegatedRole] = {}
    if targets.delegations is not None:
        roles = targets.delegations.roles or {}
        yield from _delegations(targets.delegations)
    for path, info in sorted(targets.targets.items()):
        yield from _target(path, info)
        if (role := role_of_path(path)) != TARGETS and role in roles:
            yield f"{path} is for {role} to sign, not for targets"
    yield from _documents(targets)


def lint_delegated(targets: Targets, role: str) -> tuple[str, ...]:
    """Complaints about the document of a delegated role; its own key holders are not those who wrote the rules."""
    return tuple(_delegated(targets, role))


def _delegated(targets: Targets, role: str) -> Iterator[str]:
    if targets.delegations is not None:
        yield f"{role} delegates, which only targets may"
    for path, info in sorted(targets.targets.items()):
        yield from _target(path, info)
    yield from _documents(targets)
    total = sum(info.length for path, info in targets.targets.items() if path.endswith(".manifest"))
    if total > MANIFESTS_BYTES_MAX:
        yield f"the manifests have {total} bytes together; at most {MANIFESTS_BYTES_MAX} are read"


def foreign_paths(targets: Targets, role: str) -> tuple[str, ...]:
    """Entries of a delegated role that others speak for: devices never use them, and we do not sign or publish them."""
    return tuple(path for path in sorted(targets.targets) if role_of_path(path) != role)


def _target(path: str, info: TargetFile) -> Iterator[str]:
    try:
        check_target_path(path)
    except UntrustedBytes as error:
        yield error.message
        return
    if set(info.hashes) != {"sha256"}:
        yield f"{path} must be named by SHA-256 alone, not by {', '.join(sorted(info.hashes)) or 'nothing'}"
    if not 0 <= info.length <= target_size_bytes_max(path):
        yield f"{path} has {info.length} bytes; at most {target_size_bytes_max(path)} are read"
    if _holds_float(info.custom):
        yield f"{path} carries a number with a fraction, which cannot be signed canonically"


def _documents(targets: Targets) -> Iterator[str]:
    """Each of them may be as large as one may be; all together may not fill a device. Manifests are fetched by choice only."""
    total = sum(
        info.length
        for path, info in targets.targets.items()
        if not path.endswith(".manifest") and not path.startswith("audit/")
    )
    if total > DOCUMENTS_BYTES_MAX:
        yield f"the documents have {total} bytes together; at most {DOCUMENTS_BYTES_MAX} are read"


def _delegations(delegations: Delegations) -> Iterator[str]:
    """Only what ``delegation`` knows: each role with its one path, terminating, signed by keys that are what they claim."""
    if delegations.roles is None or delegations.succinct_roles is not None:
        yield "delegations by hash bins are not read"
        return
    if len(delegations.roles) > DELEGATIONS_MAX:
        yield f"{len(delegations.roles)} roles are delegated; at most {DELEGATIONS_MAX} are read"
        return
    yield from _keys(delegations.keys)
    used: set[str] = set()
    for name, role in delegations.roles.items():
        if not isinstance(name, str) or kind_of(name) is None:
            yield f"{str(name)[:80]!r} is not a role that is delegated"
            continue
        if role.paths != [pattern_of(name)] or role.path_hash_prefixes is not None:
            yield f"{name} must be delegated {pattern_of(name)} and nothing else"
        if not role.terminating:
            yield f"the delegation of {name} does not end the search"
        yield from _role("targets", name, role.threshold, role.keyids, delegations.keys)
        used.update(role.keyids)
    yield from (f"the delegated key {keyid[:8]} has no role" for keyid in sorted(delegations.keys.keys() - used))


def lint_snapshot(snapshot: Snapshot) -> tuple[str, ...]:
    """Complaints about a snapshot: it must bind each document by length and hash, or junk could be appended on the way, in a
    version that a document can have."""
    return tuple(_snapshot(snapshot))


def _snapshot(snapshot: Snapshot) -> Iterator[str]:
    for name, meta in sorted(snapshot.meta.items()):
        if not meta.length or "sha256" not in (meta.hashes or {}):
            yield f"snapshot does not bind {name} by length and SHA-256"
        if not 1 <= meta.version <= VERSION_MAX:
            yield f"snapshot lists {name} in a version beyond {VERSION_MAX}"


def lint_timestamp(timestamp: Timestamp) -> tuple[str, ...]:
    """Complaints about a timestamp: it must bind the snapshot by length and hash."""
    meta = timestamp.snapshot_meta
    bound = meta.length and "sha256" in (meta.hashes or {})
    return () if bound else ("timestamp does not bind the snapshot by length and SHA-256",)


def _key_id(key: Key) -> str:
    """As the signing library gives it: owner and other additions are no part of it."""
    described = {"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval}
    try:
        return hashlib.sha256(str(encode_canonical(described)).encode()).hexdigest()
    except FormatError:  # a number with a fraction beside the key: no id belongs to that
        return ""


def _public_bytes(key: Key) -> bytes | None:
    """The key itself, whatever the spelling: hexadecimal and PEM both have several for one key."""
    public = key.keyval.get("public")
    if not isinstance(public, str) or len(public) > 4_096:
        return None
    try:
        if key.keytype == "ed25519":
            raw = bytes.fromhex(public)
            return raw if len(raw) == 32 and not is_held_by_nobody(raw) else None
        loaded = load_pem_public_key(public.encode())
        return loaded.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return None


def _holds_float(value: Any) -> bool:
    if isinstance(value, float):
        return True
    if isinstance(value, dict):
        return any(_holds_float(part) for part in value.values())
    return isinstance(value, list | tuple) and any(_holds_float(part) for part in value)
