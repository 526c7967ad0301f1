"""Test signatures in a fleet folder: making one with an opened key, and the record of those given (``key-tests.json``)."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.authority import audit_record, delegating
from pcm_p2p.authority.fleet_documents import FleetDocuments
from pcm_p2p.authority.key_test import (
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
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.authority.signing_key import SigningKey
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, StorageError, TrustError, UntrustedBytes
from pcm_p2p.trust.delegation import HALT
from pcm_p2p.trust.lint import owner_of


def prove_key(folder: FleetFolder, key: SigningKey) -> tuple[KeyTest, ...]:
    """Let an opened key sign a challenge for each role that it is listed for, verify it against the listing, and record it.

    Raises ``InputError`` if the fleet lists this key nowhere, ``TrustError`` if what it signs is not by the listed key.
    """
    found = [(role, one) for role, keys in listed_keys(folder).items() for one in keys if one.keyid == key.keyid]
    if not found:
        whose = f"the key of {key.owner}" if key.owner else "this key"
        raise InputError(
            f"fleet {folder.name} lists {whose} for nothing",
            path=folder.path,
            remedy="See 'pcm-p2p fleet sheet' for the keys that it lists.",
        )
    made = []
    for role, listed in found:
        delegator = folder.delegator(role)
        assert delegator is not None, "it lists the key"
        challenge = Challenge(
            fleet=folder.fleet_id,
            role=role,
            keyid=key.keyid,
            under=delegator.version,
            time=folder.wall_clock().replace(microsecond=0),
            random=secrets.token_hex(CHALLENGE_SIZE_BYTES),
        )
        test = make_test(challenge, key.signer)
        if not test.is_by(listed):
            raise TrustError(
                f"what the key of {key.owner} signed does not verify under the key that the fleet lists for {role}",
                remedy="Do not rely on this key: replace it, or restore it from its backup.",
            )
        made.append((test, owner_of(listed)))
    with folder.locked():
        for test, owner in made:
            record(folder, test, owner)
    return tuple(test for test, _ in made)


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
    root = folder.delegator("root")
    assert isinstance(root, Root), "root names the keys of root"
    found = {
        role: tuple(root.keys[keyid] for keyid in root.roles[role].keyids)
        for role in ("root", "targets", "snapshot", "timestamp")
    }
    for role in folder.roles()[2:]:
        targets = folder.delegator(role)
        if role != HALT and targets is not None and not isinstance(targets, Root):
            given = delegating.holders(targets, role)
            found[role] = given[0] if given is not None else ()
    return found


def _file(folder: Path) -> Path:
    return folder / "key-tests.json"
