"""A proposal: what would change if it were signed, readable before anyone signs it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from tuf.api.metadata import Metadata, Role, Root, TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.audit.log import is_volume
from pcm_p2p.authority.delegating import Delegator
from pcm_p2p.authority.difference import Change, Difference, difference, kept, nothing_at_hand
from pcm_p2p.authority.document_difference import Contents
from pcm_p2p.authority.halt_difference import NO_HALTS, HaltsAtHand
from pcm_p2p.authority.keys.fingerprint import grouped
from pcm_p2p.shown_text import shown
from pcm_p2p.trust.delegation import HALT, TARGETS
from pcm_p2p.trust.lint import owner_of


@dataclass(frozen=True)
class TargetChange:
    """One target that is added, removed or changed. Sizes in bytes, hashes in hexadecimal; ``None``: not there."""

    path: str
    kind: Literal["added", "removed", "changed"]
    size_before: int | None
    size_after: int | None
    sha256_before: str | None
    sha256_after: str | None


@dataclass(frozen=True)
class Signatures:
    """Who has signed, who could, and how many are needed. People, by the owner that root has signed for their key."""

    role: str
    threshold: int
    have: tuple[str, ...]
    could: tuple[str, ...]
    whose: str = ""
    """``old keys`` or ``new keys`` where a root needs both; else empty."""

    @property
    def complete(self) -> bool:
        return len(self.have) >= self.threshold

    def line(self) -> str:
        what = f"{self.role}, {self.whose}" if self.whose else self.role
        have = ", ".join(map(shown, self.have)) or "nobody yet"
        if self.complete:
            return f"{what}: complete, signed by {have}"
        more, could = self.threshold - len(self.have), ", ".join(map(shown, self.could))
        return f"{what}: {more} more of {could} must sign; signed by {have}"

    def as_json(self) -> dict[str, Any]:
        facts = {"role": self.role, "threshold": self.threshold, "have": list(self.have), "could": list(self.could)}
        return {**facts, "whose": self.whose} if self.whose else facts


@dataclass(frozen=True)
class Proposal:
    """A change of one document. ``sha256`` is over the bytes that are signed: equal for all who see the same."""

    role: str
    version_before: int
    version_after: int
    expires_before: datetime | None
    expires_after: datetime
    changes: tuple[TargetChange, ...]
    remarks: tuple[str, ...]
    signatures: tuple[Signatures, ...]
    sha256: str
    before: Root | Targets | None
    after: Root | Targets
    anew: bool = False
    """The keys that sign now did not sign ``before``: they answer for what stays of it, too."""
    halts: HaltsAtHand = NO_HALTS
    """Those that it lifts or confirms, in words."""

    def difference(self, contents: Contents = nothing_at_hand) -> Difference:
        """All that signing changes or vouches for anew; ``contents`` gives the bytes of targets, to show what is in them."""
        found = difference(self.before, self.after, contents, self.halts)
        if not self.anew or not isinstance(self.before, Targets) or not isinstance(self.after, Targets):
            return found
        # Releases of the whole fleet would drown what changes: of these, their names.
        stays = tuple(kept(self.before, self.after, contents if self.role != TARGETS else nothing_at_hand))
        if not stays:
            return found
        said = f"what stays was signed by other keys, and who signs now vouches for it ({len(stays)} in all):"
        return Difference((*found.changes, Change("targets", said), *stays))

    @property
    def digest(self) -> str:
        """The first half of the SHA-256 of what is signed, in groups of four, to read aloud."""
        return grouped(self.sha256[:32])

    @property
    def complete(self) -> bool:
        return all(signatures.complete for signatures in self.signatures)

    def lines(self, contents: Contents = nothing_at_hand, *, full: bool = False) -> Iterator[str]:
        """For a person: one fact a line, cut where it is long unless ``full``."""
        yield f"{self.role} version {self.version_before} → {self.version_after}"
        if self.expires_before == self.expires_after:
            yield f"expires {self.expires_after:%Y-%m-%d}, as before"
        changes = self.difference(contents).changes
        yield from Difference(tuple(one for one in changes if one.field != "version")).lines(full=full)
        for signatures in self.signatures:
            yield signatures.line()
        yield f"digest {self.digest}"

    def as_json(self, contents: Contents = nothing_at_hand) -> dict[str, Any]:
        """Builtin types only, for ``--json``."""
        return {
            "schema": "pcm.proposal/1",
            "role": self.role,
            "version": [self.version_before, self.version_after],
            "expires": [
                self.expires_before.isoformat() if self.expires_before else None,
                self.expires_after.isoformat(),
            ],
            "changes": [vars(change) for change in self.changes],
            "remarks": list(self.remarks),
            "difference": self.difference(contents).as_json(),
            "signatures": [one.as_json() for one in self.signatures],
            "complete": self.complete,
            "sha256": self.sha256,
        }


def propose_targets(
    delegator: Delegator,
    published: Metadata[Targets] | None,
    after: Metadata[Targets],
    role: str = "targets",
    halts: HaltsAtHand = NO_HALTS,
) -> Proposal:
    """The difference between published and proposed targets of a role, and who of its ``delegator`` signed it."""
    before = published.signed if published is not None else None
    old: dict[str, TargetFile] = dict(before.targets) if before is not None else {}
    new: dict[str, TargetFile] = dict(after.signed.targets)
    return Proposal(
        role,
        before.version if before is not None else 0,
        after.signed.version,
        before.expires if before is not None else None,
        after.signed.expires,
        tuple(_changes(old, new)),
        (),
        (signatures_of(delegator, role, after),),
        sha256_of(after),
        before,
        after.signed,
        published is not None and is_vouched_anew(delegator, role, published),
        halts,
    )


def is_vouched_anew(delegator: Delegator, role: str, published: Metadata[Targets]) -> bool:
    """Whether the keys that ``delegator`` names for ``role`` are not the ones that signed what is published."""
    return not delegator.get_verification_result(role, published.signed_bytes, published.signatures).verified


def propose_root(before: Root | None, after: Metadata[Root]) -> Proposal:
    """The difference between two roots; both the old and the new keys must sign. Before the first there is none."""
    remarks = []
    for role in sorted(after.signed.roles):
        new = after.signed.roles[role]
        old = before.roles[role] if before is not None else Role([], 1)
        if old.threshold != new.threshold:
            remarks.append(f"~ threshold of {role} {old.threshold} → {new.threshold}")
        remarks += [
            f"+ key of {owner_of(after.signed.keys[keyid])} for {role}"
            for keyid in new.keyids
            if keyid not in old.keyids
        ]
        remarks += [
            f"- key of {owner_of(before.keys[keyid])} for {role}"
            for keyid in old.keyids
            if before is not None and keyid not in new.keyids
        ]
    return Proposal(
        "root",
        before.version if before is not None else 0,
        after.signed.version,
        before.expires if before is not None else None,
        after.signed.expires,
        (),
        tuple(remarks),
        tuple(signatures_of(one, "root", after) for one in (before, after.signed) if one is not None),
        sha256_of(after),
        before,
        after.signed,
    )


def sha256_of(document: Metadata[Any]) -> str:
    """Of the bytes that are signed, in hexadecimal."""
    return hashlib.sha256(document.signed_bytes).hexdigest()


def signatures_of(delegator: Delegator, role: str, document: Metadata[Any]) -> Signatures:
    """How ``document`` stands against the keys and threshold that ``delegator`` names for ``role``."""
    result = delegator.get_verification_result(role, document.signed_bytes, document.signatures)
    have = tuple(sorted(owner_of(key) for key in result.signed.values()))
    could = tuple(sorted(owner_of(key) for key in result.unsigned.values()))
    if role == HALT:  # one of many keys is enough, and some people hold several
        could = tuple(dict.fromkeys(could))
    whose = ""
    if role == "root" and document.signed.version > 1:
        whose = "new keys" if delegator.version == document.signed.version else "old keys"
    return Signatures(role, result.threshold, have, could, whose)


def _changes(old: dict[str, TargetFile], new: dict[str, TargetFile]) -> Iterator[TargetChange]:
    for path in sorted(old.keys() | new.keys()):
        before, after = old.get(path), new.get(path)
        if before == after or is_volume(path):  # the log grows with every proposal
            continue
        kind: Literal["added", "removed", "changed"] = (
            "added" if before is None else "removed" if after is None else "changed"
        )
        yield TargetChange(
            path,
            kind,
            before.length if before else None,
            after.length if after else None,
            before.hashes.get("sha256") if before else None,
            after.hashes.get("sha256") if after else None,
        )
