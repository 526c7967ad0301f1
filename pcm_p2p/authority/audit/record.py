"""From a signature that somebody just made to its entry in the audit log of the fleet folder.

Where a folder has no log yet, its first entries are the signatures that are there, as ``found``: from then on nothing is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.authority.audit.journal import AuditJournal
from pcm_p2p.authority.audit.log import Act, SigningAct, plain_signature
from pcm_p2p.authority.delegating import Delegator, holders
from pcm_p2p.authority.staging import StagingArea
from pcm_p2p.errors import StorageError
from pcm_p2p.trust.lint import owner_of

_KEY_ID = re.compile("[0-9a-f]{64}")
_DOCUMENT = re.compile(r"([1-9][0-9]{0,9})\.([A-Za-z0-9._-]+)\.json")


def record(
    folder: StagingArea, act: Act, role: str, document: Metadata[Any], keyids: Iterable[str], by: Iterable[Delegator]
) -> None:
    """Note the signatures that ``keyids`` made on ``document``; ``by`` are the documents that name its keys.

    Call it before the signature is written where it counts, with the folder's lock held. Raises ``StorageError``.
    """
    begin(folder)
    journal, delegators = AuditJournal(folder.path, folder.wall_clock), tuple(by)
    if act != "online":
        journal.keep_document(document.signed_bytes)
    for keyid in keyids:
        journal.append(_act(act, role, document, keyid, delegators))


def record_test(
    folder: StagingArea, role: str, under: int, signed: bytes, keyid: str, owner: str, signature: str
) -> None:
    """Note a test signature over a challenge, which is no document of the tree. As ``record``."""
    begin(folder)
    act = SigningAct("ceremony", role, 0, under, signed, keyid, owner, signature, keep_document=True)
    AuditJournal(folder.path, folder.wall_clock).append(act)


def begin(folder: StagingArea) -> None:
    """Start the log with the signatures that are there, if there is none yet. The folder's lock is held."""
    journal = AuditJournal(folder.path, folder.wall_clock)
    if journal.begun:
        return
    found = list(published_documents(folder))
    delegators: list[Delegator] = [document.signed for role, document in found if role in ("root", "targets")]
    found += [(role, proposed) for role in folder.roles() if (proposed := folder.proposed(role)) is not None]
    delegators += [document.signed for role, document in found if role in ("root", "targets")]
    for role, document in found:
        named = [one for one in delegators if isinstance(one, Root) or role not in _OF_ROOT]
        for keyid, one in document.signatures.items():
            if _KEY_ID.fullmatch(keyid) and plain_signature(
                one.signature
            ):  # a carrier may have put anything beside them
                journal.append(_act("found", role, document, keyid, named))


def published_documents(folder: StagingArea) -> Iterator[tuple[str, Metadata[Any]]]:
    """Every signed document in ``repository/metadata``, roots first, each role by version. Raises ``StorageError``."""
    return documents_below(folder.metadata)


def documents_below(metadata: Any) -> Iterator[tuple[str, Metadata[Any]]]:
    """The same of the ``metadata`` folder of any tree."""
    named = []
    for file in metadata.glob("*.json"):
        match = _DOCUMENT.fullmatch(file.name)
        if match is not None:
            named.append((match[2] != "root", match[2], int(match[1]), file))
        elif file.name == "timestamp.json":
            named.append((True, "timestamp", 0, file))
    for _, role, version, file in sorted(named):
        try:
            document = Metadata[Any].from_bytes(file.read_bytes())
        except (OSError, RepositoryError, TypeError, ValueError) as error:
            raise StorageError(f"{file} cannot be read: {error}", remedy="Restore it from its backup.") from None
        if version and document.signed.version != version:
            raise StorageError(f"{file} holds version {document.signed.version}", remedy="Restore it from its backup.")
        yield role, document


_OF_ROOT = ("root", "targets", "snapshot", "timestamp")


def _act(act: Act, role: str, document: Metadata[Any], keyid: str, delegators: Iterable[Delegator]) -> SigningAct:
    """``under`` is the oldest version among ``delegators`` that lists the key: it is published, or will be, whatever becomes of a
    proposal. For root it is the root that is signed.
    """
    owner, under = "", 0
    for one in delegators:
        keys = one.keys if isinstance(one, Root) else {key.keyid: key for key in (holders(one, role) or ((), 0))[0]}
        listed = one.roles[role].keyids if isinstance(one, Root) and role in _OF_ROOT else list(keys)
        if keyid in listed and keyid in keys and (not under or one.version < under):
            owner, under = owner_of(keys[keyid]), one.version
    return SigningAct(
        act,
        role,
        document.signed.version,
        document.signed.version if role == "root" else under,
        document.signed_bytes,
        keyid,
        owner,
        plain_signature(document.signatures[keyid].signature),
        keep_document=role == "timestamp",
    )
