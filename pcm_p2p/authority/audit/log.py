"""The audit log: one line for every signing act, each naming the hash of the line before it. Pure.

A line is JSON: number, hash of the line before, time, act, role, version, SHA-256 of the signed bytes, key, person, the signature
itself, and the version of the tool. ``under`` is the version of the document that names the key for the role: of root, or, for a
delegated role, of the top-level targets. ``document`` holds the signed bytes where no file keeps them: timestamps replace each
other, and the challenge of a test signature is nowhere else.

What the chain proves: no line was altered, taken out or moved without altering every line after it. What it cannot prove alone is
that nothing was cut off at its end; that is found by what it is compared with: published documents whose signatures have no
entry, and the log that is embedded in the repository, which has to be the beginning of the folder's.

The log grows by about 500 bytes a signature, and 830 a timestamp (measured): signed anew every 56 hours by a desk
that is 140 kB a year, daily 310 kB. It is embedded in *volumes* of at most ``VOLUME_BYTES_MAX``, of which all but the newest
never change, so that a publication adds one volume to the tree and not the whole log. Devices do not read it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Key, Signature  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets  # type: ignore[attr-defined]

from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.shown_text import cut, shown
from pcm_p2p.trust.lint import owner_of

LOG: Final = "audit/log.jsonl"
"""Target of the newest volume; ``audit/log-1.jsonl`` and so on are those before it."""
_VOLUME = re.compile(r"audit/log(?:-([1-9][0-9]{0,5}))?\.jsonl")
VOLUME_BYTES_MAX = 128 << 10
"""Choice: about 200 entries; what a publication adds to the tree at most."""
LINE_BYTES_MAX = 32_768
LOG_BYTES_MAX = 64 << 20
"""Choice: a hundred years of a desk; a log beyond it is not read."""
DOCUMENT_BYTES_MAX = 16_384
SIGNATURE_LENGTH_MAX = 512
"""In hexadecimal; those of the largest curve that is used have 208."""
FIRST: Final = "0" * 64

Act = Literal["sign", "merge", "online", "ceremony", "halt", "found"]
"""``found``: the signature was there when the log was begun. ``ceremony``: a test signature over a challenge."""

_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One signing act. ``version`` is 0 for what is no document of the tree."""

    number: Annotated[int, msgspec.Meta(ge=1)]
    before: _Hex32
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    act: Act
    role: Annotated[str, msgspec.Meta(min_length=1, max_length=80)]
    version: Annotated[int, msgspec.Meta(ge=0)]
    under: Annotated[int, msgspec.Meta(ge=0)]
    sha256: _Hex32
    keyid: _Hex32
    owner: Annotated[str, msgspec.Meta(max_length=64)]
    signature: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})+\Z", max_length=SIGNATURE_LENGTH_MAX)]
    tool: Annotated[str, msgspec.Meta(max_length=64)]
    document: Annotated[str, msgspec.Meta(max_length=DOCUMENT_BYTES_MAX)] = ""

    @property
    def title(self) -> str:
        return f"{shown(self.role)} {self.version}"


@dataclass(frozen=True)
class SigningAct:
    """What an entry says, before it has its place in the chain. ``document``: the signed bytes, see the module."""

    act: Act
    role: str
    version: int
    under: int
    signed: bytes
    keyid: str
    owner: str
    signature: str
    keep_document: bool = False


_decoder = msgspec.json.Decoder(Entry)


def line_of(act: SigningAct, *, after: bytes | None, time: datetime, tool: str) -> bytes:
    """The next line, line feed included; ``after`` is the line before it without, ``None`` for the first."""
    number = 1 if after is None else 1 + _decoder.decode(after).number
    entry = Entry(
        number,
        FIRST if after is None else hashlib.sha256(after).hexdigest(),
        time,
        act.act,
        act.role,
        act.version,
        act.under,
        hashlib.sha256(act.signed).hexdigest(),
        act.keyid,
        act.owner,
        act.signature,
        tool,
        act.signed.decode() if act.keep_document else "",
    )
    return msgspec.json.encode(entry) + b"\n"


def plain_signature(text: str) -> str:
    """A signature in the one spelling that the log has; empty if it is none. Libraries read blanks and capitals, too, and nothing
    that is signed says how a signature beside it is spelled."""
    try:
        plain = bytes.fromhex(text).hex()
    except (TypeError, ValueError):  # TypeError: nobody has judged that it is text
        return ""
    return plain if len(plain) <= SIGNATURE_LENGTH_MAX else ""


def volumes(log: bytes) -> dict[str, bytes]:
    """Target paths and bytes under which ``log`` is embedded. A volume that is closed stays as it is however the log grows."""
    parts: list[list[bytes]] = [[]]
    filled = 0
    for line in log.splitlines(keepends=True):
        if parts[-1] and filled + len(line) > VOLUME_BYTES_MAX:
            parts.append([])
            filled = 0
        parts[-1].append(line)
        filled += len(line)
    closed = {f"audit/log-{number}.jsonl": b"".join(part) for number, part in enumerate(parts[:-1], start=1)}
    return {**closed, LOG: b"".join(parts[-1])} if log else {}


def joined(embedded: dict[str, bytes]) -> bytes:
    """The log of the volumes of ``volumes``; the bytes by target path."""
    closed = [embedded[path] for path in sorted(embedded, key=_volume_number) if path != LOG]
    return b"".join(closed) + embedded.get(LOG, b"")


def is_volume(path: str) -> bool:
    return _VOLUME.fullmatch(path) is not None


def beyond_a_gap(paths: Iterable[str]) -> tuple[str, ...]:
    """Those that are named as volumes, and cannot be: the one before them is not there. Sorted by number."""
    numbered = sorted((number, path) for path in paths if (number := _volume_number(path)))
    return tuple(path for place, (number, path) in enumerate(numbered, start=1) if number != place)


def _volume_number(path: str) -> int:
    match = _VOLUME.fullmatch(path)
    return int(match[1] or 0) if match is not None else 0


def read_entry_untrusted(line: bytes) -> Entry:
    """One line without its line feed; raises ``UntrustedBytes`` only."""
    if len(line) > LINE_BYTES_MAX:
        raise UntrustedBytes(f"audit log: a line of {len(line)} bytes; at most {LINE_BYTES_MAX} are read")
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedBytes(f"audit log: {error}") from None


def read_chain(log: bytes) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """All entries that can be read, and a complaint for each place where the chain is broken."""
    if len(log) > LOG_BYTES_MAX:
        return (), (f"the log has {len(log)} bytes; at most {LOG_BYTES_MAX} are read",)
    entries: list[Entry] = []
    complaints: list[str] = []
    expected, before = 1, FIRST
    lines = log.split(b"\n")
    if lines.pop():
        complaints.append("the last line is not complete: the log was cut, or its writer was")
    for number, line in enumerate(lines, start=1):
        try:
            entry = read_entry_untrusted(line)
        except UntrustedBytes as error:
            complaints.append(f"line {number} is no entry: {error.message}")
            expected, before = expected + 1, hashlib.sha256(line).hexdigest()
            continue
        if entry.number != expected:
            complaints.append(
                f"line {number} is entry {entry.number} and should be {expected}: one is missing, or was moved"
            )
        if entry.before != before:
            complaints.append(
                f"entry {entry.number} does not follow the line before it: one of the two was altered, moved or put in"
            )
        entries.append(entry)
        expected, before = entry.number + 1, hashlib.sha256(line).hexdigest()
    return tuple(entries), tuple(complaints)


@dataclass
class Evidence:
    """What is at hand to compare the log with.

    ``roots`` by version; ``targets``: every published top-level targets document by version; ``published``: every document whose
    signatures must be in the log; ``payloads``: signed bytes by their SHA-256, of whatever else is kept; ``chain``: the
    published roots, ``None`` before the first; ``current``: what devices read now of the roles that root names.
    """

    roots: dict[int, Metadata[Root]]
    targets: dict[int, Metadata[Targets]] = field(default_factory=dict)
    published: list[tuple[str, Metadata[Any]]] = field(default_factory=list)
    payloads: dict[str, bytes] = field(default_factory=dict)
    chain: dict[int, Metadata[Root]] | None = None
    current: list[tuple[str, Metadata[Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """``verified`` entries of ``entries``; ``unkept`` are over documents that nobody keeps here, so their chain alone holds."""

    entries: int
    verified: int
    unkept: int
    complaints: tuple[str, ...]


def verify(log: bytes, evidence: Evidence, embedded: bytes | None = None) -> Verdict:
    """Judge the whole log; ``embedded`` is the one in the repository, ``None`` if it is this one."""
    entries, broken = read_chain(log)
    complaints = [*_unsigned(evidence), *broken]
    if embedded is not None and not log.startswith(embedded):
        complaints.append(_not_the_beginning(log, embedded))
    payloads = dict(evidence.payloads)
    for _, document in evidence.published:
        payloads[hashlib.sha256(document.signed_bytes).hexdigest()] = document.signed_bytes
    there = {hashlib.sha256(document.signed_bytes).hexdigest() for _, document in evidence.published}
    verified = unkept = in_force = 0
    known: set[tuple[str, str]] = set()
    for entry in entries:
        known.add((entry.sha256, entry.keyid))
        payload = entry.document.encode() or payloads.get(entry.sha256)
        fault = _root_fault(entry, in_force)
        # A proposal that was dropped may have been signed under a root that was dropped as well.
        dropped = entry.act in ("sign", "merge") and entry.sha256 not in there and _key_of(entry, evidence) is None
        if fault is None and (payload is None or dropped):
            unkept += 1
        elif fault is None and payload is not None:
            fault = _fault(entry, payload, evidence)
            verified += fault is None
        if fault is not None:
            complaints.append(f"entry {entry.number}, {entry.title} by {cut(shown(entry.owner), 64)}: {fault}")
        elif entry.act == "online" and entry.role == "timestamp":
            in_force = max(in_force, entry.under)
    complaints += _unlogged(evidence, known)
    return Verdict(len(entries), verified, unkept, tuple(complaints))


def _unsigned(evidence: Evidence) -> Iterator[str]:
    """Roots that do not follow from the one before, and what devices read now without the signatures that root asks for.

    The first root is believed: its digest is what people compare.
    """
    if evidence.chain is None:
        return
    newest = max(evidence.chain, default=0)
    missing = [number for number in range(1, newest + 1) if number not in evidence.chain]
    if missing or not newest:
        yield f"root {missing[0] if missing else 1} is not there: nobody can tell whose keys count"
        return
    for number, root in sorted(evidence.chain.items()):
        for signer in (number - 1, number):
            if signer and not _signed_by(evidence.chain[signer].signed, "root", root):
                yield f"root {number} is not signed by enough holders of root {signer}"
    for role, document in evidence.current:
        if not _signed_by(evidence.chain[newest].signed, role, document):
            yield f"{role} {document.signed.version} is not signed by who may by root {newest}"


def _signed_by(delegator: Root, role: str, document: Metadata[Any]) -> bool:
    try:
        delegator.verify_delegate(role, document.signed_bytes, document.signatures)
    except (RepositoryError, ValueError):
        return False
    return True


def _root_fault(entry: Entry, in_force: int) -> str | None:
    if (
        entry.role in ("targets", "snapshot", "timestamp")
        and entry.act not in ("ceremony", "found")
        and entry.under < in_force
    ):
        return f"signed under root {entry.under} while root {in_force} was in force"
    return None


def _fault(entry: Entry, payload: bytes, evidence: Evidence) -> str | None:
    """Why this entry cannot be believed; ``None`` if all of it verifies."""
    if hashlib.sha256(payload).hexdigest() != entry.sha256:
        return "the document in the entry is not the one that it names"
    key = _key_of(entry, evidence)
    if key is None:
        return f"no root or targets at hand lists the key {entry.keyid[:16]} … for {shown(entry.role)} at that time"
    try:
        key.verify_signature(Signature(entry.keyid, entry.signature), payload)
    except (UnverifiedSignatureError, VerificationError):
        return "the signature does not verify"
    if owner_of(key) != entry.owner:
        return f"the key is of {shown(owner_of(key))}"
    if entry.version:
        try:
            # Canonical JSON, as TUF signs it, holds line feeds as they are, such as those of a key in PEM: not strict.
            signed = msgspec.convert(json.loads(payload, strict=False), _Signed)
        except (ValueError, RecursionError, msgspec.ValidationError):
            return "what was signed is no document"
        kind = entry.role if entry.role in ("root", "snapshot", "timestamp") else "targets"
        if (signed.type, signed.version) != (kind, entry.version):
            return f"what was signed is {shown(signed.type)} {signed.version}"
    return None


class _Signed(msgspec.Struct, frozen=True):
    type: str = msgspec.field(name="_type")
    version: int


def _key_of(entry: Entry, evidence: Evidence) -> Key | None:
    """The key, if the document of that time lists it for the role: the one that the entry names, for root the one before too.

    A test signature counts for whatever role of root the key has.
    """
    if entry.role in ("root", "targets", "snapshot", "timestamp"):
        numbers = (entry.under, entry.under - 1) if entry.role == "root" else (entry.under,)
        for number in numbers:
            root = evidence.roots.get(number)
            if root is not None and entry.keyid in root.signed.roles[entry.role].keyids:
                return root.signed.keys.get(entry.keyid)
        return None
    delegating = evidence.targets.get(entry.under)
    if delegating is None or delegating.signed.delegations is None:
        return None
    role = (delegating.signed.delegations.roles or {}).get(entry.role)
    return (
        delegating.signed.delegations.keys.get(entry.keyid) if role is not None and entry.keyid in role.keyids else None
    )


def _unlogged(evidence: Evidence, known: set[tuple[str, str]]) -> Iterator[str]:
    owners = {keyid: owner_of(key) for root in evidence.roots.values() for keyid, key in root.signed.keys.items()}
    for targets in evidence.targets.values():
        if targets.signed.delegations is not None:
            owners.update((keyid, owner_of(key)) for keyid, key in targets.signed.delegations.keys.items())
    for role, document in evidence.published:
        digest = hashlib.sha256(document.signed_bytes).hexdigest()
        for keyid in document.signatures:
            if (digest, keyid) not in known:
                who = shown(owners.get(keyid, f"the unknown key {keyid[:16]} …"))
                yield f"the signature of {who} on {shown(role)} {document.signed.version} has no entry: an act is missing"


def _not_the_beginning(log: bytes, embedded: bytes) -> str:
    if embedded.startswith(log):
        missing = embedded.count(b"\n") - log.count(b"\n")
        return f"the log embedded in the repository has {missing} entries more: the end of this one was cut off"
    for number, (here, there) in enumerate(zip(log.split(b"\n"), embedded.split(b"\n"), strict=False), start=1):
        if here != there:
            return f"the log embedded in the repository differs from line {number} on: one of the two was altered"
    return "the log embedded in the repository is not the beginning of this one"
