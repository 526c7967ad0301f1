"""Test signatures in a fleet folder: making one with an opened key, and the record of those given (``key-tests.json``)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.authority import delegating
from pcm_p2p.authority.audit import record as audit_record
from pcm_p2p.authority.fleet_documents import FleetDocuments
from pcm_p2p.authority.keys.key_test import (
    CHALLENGE_SIZE_BYTES,
    SCHEMA,
    SIZE_BYTES_MAX,
    Challenge,
    Holder,
    KeyTest,
    KeyTests,
    decode_key_tests_untrusted,
    holders,
    make_test,
)
from pcm_p2p.authority.keys.signing_key import SigningKey
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.trust.delegation import HALT
from pcm_p2p.trust.index import METADATA_SIZE_BYTES_MAX
from pcm_p2p.trust.lint import FLEET_FIELD, ROLES, owner_of


def prove_key(folder: FleetFolder, key: SigningKey) -> tuple[KeyTest, ...]:
    """Let an opened key sign a challenge for each role that it is listed for, verify it against the listing, and record it.

    Raises ``InputError`` if the fleet lists this key nowhere, ``TrustError`` if what it signs is not by the listed key.
    """
    tests = _prove(folder.fleet_id, _listings(folder), key, folder.wall_clock(), folder.path)
    with folder.locked():
        for test, listed in tests:
            record(folder, test, owner_of(listed))
    return tuple(test for test, _ in tests)


def prove_elsewhere(root_file: Path, key: SigningKey, now: datetime) -> KeyTests:
    """The same where the fleet folder is not: against a root that was carried there (``metadata/N.root.json`` of the tree).

    The answer is carried back for ``accept_tests``. Raises ``InputError`` if the file is no root or does not list the key, and
    ``TrustError`` as ``prove_key``.
    """
    root = _read_root(root_file).signed
    fleet = root.unrecognized_fields.get(FLEET_FIELD)
    if not isinstance(fleet, str) or not re.fullmatch("[0-9a-f]{32}", fleet):
        raise InputError("names no fleet", path=root_file, remedy="Pass a root of this product's tree.")
    listings = {role: (root.version, tuple(root.keys[keyid] for keyid in root.roles[role].keyids)) for role in ROLES}
    tests = _prove(fleet, listings, key, now, root_file)
    return KeyTests(SCHEMA, tuple(test for test, _ in tests))


def accept_tests(folder: FleetFolder, file: Path) -> tuple[KeyTest, ...]:
    """Record test signatures that were made elsewhere and carried here. Returns those of the file.

    Raises ``InputError`` if it is no such file, ``TrustError`` if a test in it is for another fleet or not by a key that this
    fleet lists; nothing of the file is recorded then.
    """
    try:
        with file.open("rb") as opened:
            carried = decode_key_tests_untrusted(opened.read(SIZE_BYTES_MAX + 1))
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=file, remedy="Check the path, and who may read it."
        ) from None
    except UntrustedBytes as error:
        raise InputError(
            error.message, path=file, remedy="Make it with 'pcm-p2p key test --root FILE --out FILE'."
        ) from None
    listings, owners = _listings(folder), []
    for test in carried.tests:
        challenge = test.challenge
        under, keys = listings.get(challenge.role, (0, ()))
        listed = next((key for key in keys if key.keyid == challenge.keyid), None)
        if challenge.fleet != folder.fleet_id or challenge.under > under or listed is None or not test.is_by(listed):
            raise TrustError(
                f"{file}: holds a test signature that is not by a {challenge.role} key of fleet {folder.name}",
                remedy="Let the key's holder test it against the newest root of this fleet.",
            )
        owners.append(owner_of(listed))
    known = {(one.challenge.role, one.challenge.keyid): one.challenge.time for one in read_tests(folder.path).tests}
    with folder.locked():
        for test, owner in zip(carried.tests, owners, strict=True):
            before = known.get((test.challenge.role, test.challenge.keyid))
            if before is None or before < test.challenge.time:
                record(folder, test, owner)
    return carried.tests


def _prove(
    fleet: str, listings: Mapping[str, tuple[int, tuple[Key, ...]]], key: SigningKey, now: datetime, place: Path
) -> list[tuple[KeyTest, Key]]:
    """A test for each role that lists ``key``, with the key as it is listed."""
    made = []
    for role, (under, keys) in listings.items():
        for listed in keys:
            if listed.keyid != key.keyid:
                continue
            random = secrets.token_hex(CHALLENGE_SIZE_BYTES)
            challenge = Challenge(fleet, role, key.keyid, under, now.replace(microsecond=0), random)
            test = make_test(challenge, key.signer)
            if not test.is_by(listed):
                raise TrustError(
                    f"what the key of {key.owner} signed does not verify under the key that the fleet lists for {role}",
                    remedy="Do not rely on this key: replace it, or restore it from its backup.",
                )
            made.append((test, listed))
    if not made:
        whose = f"the key of {key.owner}" if key.owner else "this key"
        raise InputError(
            f"lists {whose} for nothing",
            path=place,
            remedy="See 'pcm-p2p fleet sheet' for the keys that the fleet lists.",
        )
    return made


def _read_root(file: Path) -> Metadata[Root]:
    try:
        with file.open("rb") as opened:
            data = opened.read(METADATA_SIZE_BYTES_MAX["root"] + 1)
        document = Metadata[Root].from_bytes(data[: METADATA_SIZE_BYTES_MAX["root"]])
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=file, remedy="Check the path, and who may read it."
        ) from None
    except (RepositoryError, TypeError, ValueError, RecursionError):
        document = None
    if document is None or not isinstance(document.signed, Root):
        raise InputError("is not a root document", path=file, remedy="Pass metadata/N.root.json of the fleet's tree.")
    return document


def record(folder: FleetFolder, test: KeyTest, owner: str) -> None:
    """Keep a test signature with the fleet, in the audit log first. The caller holds the folder's lock."""
    challenge = test.challenge
    audit_record.record_test(
        folder, challenge.role, challenge.under, challenge.signed, challenge.keyid, owner, test.signature
    )
    write_atomic(_file(folder.path), read_tests(folder.path).with_test(test).encoded())


def read_tests(folder: Path) -> KeyTests:
    """What was recorded; empty where nothing was. Raises ``StorageError``."""
    file = _file(folder)
    try:
        with file.open("rb") as opened:
            return decode_key_tests_untrusted(opened.read(SIZE_BYTES_MAX + 1))
    except FileNotFoundError:
        return KeyTests(SCHEMA)
    except (OSError, UntrustedBytes) as error:
        raise StorageError(
            f"{file} cannot be read: {error}", remedy="Remove it; every key is then to be tested again."
        ) from None


def holders_of(folder: FleetFolder) -> tuple[Holder, ...]:
    """Every key that the fleet lists, by role, and what shows that it works. Raises ``StorageError``."""
    documents: list[Metadata[Any]] = [
        one for role in ("snapshot", "timestamp") if (one := folder.document(role)) is not None
    ]
    documents += [
        one for role in folder.roles() for one in (folder.document(role), folder.proposed(role)) if one is not None
    ]
    return holders(listed_keys(folder), read_tests(folder.path), documents, folder.fleet_id)


def untested(folder: FleetFolder) -> tuple[Holder, ...]:
    """Keys that have signed nothing since they are listed: nobody knows whether they would."""
    return tuple(holder for holder in holders_of(folder) if not holder.proven)


def listed_keys(folder: FleetDocuments) -> dict[str, tuple[Key, ...]]:
    """The keys of every role but ``halt`` (which lists all of them again), as proposed where a change is proposed."""
    return {role: keys for role, (_, keys) in _listings(folder).items()}


def _listings(folder: FleetDocuments) -> dict[str, tuple[int, tuple[Key, ...]]]:
    """The same, each with the version of the document that lists them."""
    root = folder.delegator("root")
    assert isinstance(root, Root), "root names the keys of root"
    found = {
        role: (root.version, tuple(root.keys[keyid] for keyid in root.roles[role].keyids))
        for role in ("root", "targets", "snapshot", "timestamp")
    }
    for role in folder.roles()[2:]:
        targets = folder.delegator(role)
        if role != HALT and targets is not None and not isinstance(targets, Root):
            given = delegating.holders(targets, role)
            found[role] = (targets.version, given[0] if given is not None else ())
    return found


def _file(folder: Path) -> Path:
    return folder / "key-tests.json"
