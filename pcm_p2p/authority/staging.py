"""Staging: from a change of targets to the proposed document of the role that signs them, with its index."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.metadata import Key, Metadata, Root, TargetFile, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority import delegating
from pcm_p2p.authority.audit.journal import AuditJournal
from pcm_p2p.authority.audit.log import beyond_a_gap, is_volume
from pcm_p2p.authority.fleet_documents import FleetDocuments
from pcm_p2p.authority.halt_difference import HaltsAtHand, halts_at_hand, named_halts
from pcm_p2p.authority.keys.public_key import is_owner
from pcm_p2p.authority.people.founding import DELEGATED_LIFETIME, HALT_LIFETIME, TARGETS_LIFETIME, whole_seconds
from pcm_p2p.authority.proposal import signatures_of
from pcm_p2p.authority.release_list import COUNTERS, counters_gone
from pcm_p2p.authority.site_folder import site_complaints
from pcm_p2p.authority.target_files import TargetFiles
from pcm_p2p.durable import write_atomic
from pcm_p2p.errors import InputError, StorageError, UntrustedBytes
from pcm_p2p.shown_text import cut, shown
from pcm_p2p.trust.delegation import HALT, TARGETS, index_of, role_of_path, title_of
from pcm_p2p.trust.halt import (
    NOTHING_LIFTED,
    Halt,
    Holders,
    Lifted,
    decode_halt_untrusted,
    decode_lifted_untrusted,
    orphaned,
)
from pcm_p2p.trust.index import LIFTED, Index
from pcm_p2p.trust.lint import foreign_paths, lint_delegated, lint_root, lint_targets, owner_of


def system_clock() -> datetime:
    return datetime.now(UTC)


class StagingArea(FleetDocuments):
    """See the module. ``wall_clock`` decides the expiry of what is staged."""

    def __init__(self, path: Path, fleet_id: str, wall_clock: Callable[[], datetime]) -> None:
        super().__init__(path)
        self.fleet_id = fleet_id
        self.wall_clock = wall_clock
        self.files = TargetFiles(path)

    def working(self, role: str) -> Targets:
        """A copy of what is proposed for a role that lists targets, else of what is published, else empty.

        Of a role that was revoked and is delegated again nothing stays: its new holders begin anew.
        """
        base = self.proposed_of(role)
        if base is None and (role == TARGETS or self._names(role, proposed=False) is not None):
            base = self.document(role)
        if base is not None:
            return Targets.from_dict(base.signed.to_dict())
        return Targets(version=1, expires=whole_seconds(self.wall_clock()))

    def stage(
        self,
        role: str,
        files: dict[str, bytes | None],
        custom: dict[str, dict[str, Any]] | None = None,
        *,
        renew: bool = False,
    ) -> None:
        """Propose targets of ``role`` by path; ``None`` takes one away. The caller has checked paths and bytes.

        Raises ``InputError`` if nobody is delegated to sign for the role.
        """
        with self.locked():
            self.stage_locked(role, files, custom, renew=renew)

    def stage_locked(
        self,
        role: str,
        files: dict[str, bytes | None],
        custom: dict[str, dict[str, Any]] | None = None,
        *,
        renew: bool = False,
        edit: Callable[[Targets], None] | None = None,
    ) -> None:
        if role != TARGETS and self._names(role) is None:
            raise InputError(
                f"{title_of(role)} has no delegation",
                path=self.path,
                remedy="Delegate to it first: 'pcm-p2p site delegate' or 'pcm-p2p team delegate'."
                if role != HALT
                else "Run 'pcm-p2p fleet renew', sign and publish: from then on one key is enough.",
            )
        working, proposed, published = self.working(role), self.proposed_of(role), self.document(role)
        for path, data in files.items():
            if data is None:
                working.targets.pop(path, None)
            else:
                working.targets[path] = self.files.store(path, data, (custom or {}).get(path))
        listed = {
            kind: tuple(
                sorted(path for path in working.targets if path.startswith(f"{kind}/") and path != index_of(role))
            )
            for kind in ("policies", "releases", "halts")
        }
        gone = counters_gone(published.signed if published is not None else None, working)
        index = Index("pcm.index/1", self.fleet_id, **listed).encoded()
        working.targets[index_of(role)] = self.files.store(index_of(role), index, {COUNTERS: gone} if gone else None)
        if edit is not None:
            edit(working)
        if role == TARGETS:
            for path in beyond_a_gap(working.targets):
                del working.targets[path]  # with it among them the published log would never verify
            root = self.delegator("root")
            assert isinstance(root, Root)
            delegating.delegate_halt(root, working)
            self._keep_halts(root, working)
        if proposed is not None and not renew and _says_the_same(working, proposed.signed):
            return  # nothing new: the signatures on it stay
        working.version = 1 + (published.signed.version if published is not None else 0)
        working.expires = whole_seconds(self.wall_clock() + _lifetime(role))
        complaints = (*complaints_about(role, working, self.fleet_id), *site_complaints(self.path, role, working))
        if complaints:
            raise InputError(complaints[0])
        if published is not None and not renew and _says_the_same(working, published.signed):
            self.remove_proposal(role)
            return
        if role == TARGETS:
            embedded = AuditJournal(self.path, self.wall_clock).embedded()
            working.targets.update({path: self.files.store(path, data) for path, data in embedded.items()})
        write_atomic(self.path / "proposal" / f"{role}.json", Metadata(working).to_bytes())

    def _keep_halts(self, root: Root, working: Targets) -> None:
        """Confirm the halts of people whose key is about to go: what they stopped stays stopped until it is lifted."""
        published, halts = self.targets(), self.delegated(HALT)
        if published is None or halts is None:
            return
        lifted = lifted_of(self, working)
        orphans = orphaned(
            halts_of(self, halts.signed),
            Holders.of(self.root().signed, published.signed),
            Holders.of(root, working),
            lifted,
        )
        if orphans:
            confirmed = tuple(sorted({*lifted.confirmed, *orphans}))
            working.targets[LIFTED] = self.files.store(
                LIFTED, Lifted("pcm.lifted/1", lifted.lifted, confirmed).encoded()
            )

    def renew_unsigned(self) -> None:
        """Propose anew what the proposed delegations leave without enough signatures."""
        for role in self.roles()[2:]:
            published, delegator = self.document(role), self._names(role)
            if published is None or delegator is None or self.proposed_of(role) is not None:
                continue
            if not signatures_of(delegator, role, published).complete:
                self.stage_locked(role, {}, renew=True)

    def namers(self, role: str, only: Collection[str] | None = None) -> tuple[delegating.Delegator, ...]:
        """Whose keys have to be behind a proposal: for root the old and the new one, for others their delegator.

        That one as it is proposed, or as it is published where its proposal is not among ``only``.
        """
        if role == "root":
            documents = self.document("root"), self.proposed_root()
            return tuple(one.signed for one in documents if one is not None)
        above = "root" if role == TARGETS else TARGETS
        delegator = self._names(role, proposed=only is None or above in only)
        return (delegator,) if delegator is not None else ()

    def all_namers(self, role: str) -> tuple[delegating.Delegator, ...]:
        """Everybody whose keys have a part in a proposal, whether what it rests on is published with it or before it."""
        return (*self.namers(role), *self.namers(role, ()))

    def _names(self, role: str, *, proposed: bool = True) -> delegating.Delegator | None:
        """The delegator of ``role`` where it names anybody: one whose delegation is to go does not sign any more."""
        delegator = self.delegator(role, proposed=proposed)
        return delegator if delegator is not None and keyids_of(delegator, role) else None


def complaints_about(role: str, signed: Any, fleet_id: str) -> tuple[str, ...]:
    """What a correct signature would not prove of a document that people sign: the same rules when signing and publishing."""
    if role == "root":
        return (*lint_root(signed, fleet_id), *_nameless(signed.keys))
    if role == TARGETS:
        keys = signed.delegations.keys if signed.delegations is not None else {}
        planted = tuple(
            f"{path} is no part of the audit log: what is before it is not there"
            for path in beyond_a_gap(signed.targets)
        )
        return (*lint_targets(signed), *_nameless(keys), *planted[:4])
    foreign = tuple(f"{path} is not for {title_of(role)} to sign" for path in foreign_paths(signed, role))
    return (*lint_delegated(signed, role), *foreign)


def _nameless(keys: Mapping[str, Key]) -> Iterator[str]:
    """Names that no public file could have brought: signature files and the audit log hold no such name."""
    for keyid, key in sorted(keys.items()):
        if not is_owner(owner_of(key)):
            yield f"the owner {cut(shown(owner_of(key)), 64)!r} of the key {keyid[:8]} cannot be used as a name"


def keyids_of(delegator: delegating.Delegator, role: str) -> tuple[str, ...]:
    """Ids of the keys that may sign for ``role``; empty where it is not delegated."""
    if isinstance(delegator, Root):
        return tuple(delegator.roles[role].keyids)
    found = delegating.holders(delegator, role)
    return tuple(key.keyid for key in found[0]) if found is not None else ()


def halts_of(folder: StagingArea, targets: Targets) -> tuple[Halt, ...]:
    """The halts that a document of the role ``halt`` lists; one that does not read is nobody's order."""
    found = []
    for path, info in sorted(targets.targets.items()):
        if role_of_path(path) == HALT and path != index_of(HALT):
            with contextlib.suppress(UntrustedBytes):
                found.append(decode_halt_untrusted(folder.files.read(path, info), path))
    return tuple(found)


def lifted_of(folder: StagingArea, targets: Targets) -> Lifted:
    """What top-level targets lift and confirm. Raises ``InputError`` if the document does not read."""
    info = targets.targets.get(LIFTED)
    if info is None:
        return NOTHING_LIFTED
    try:
        return decode_lifted_untrusted(folder.files.read(LIFTED, info))
    except UntrustedBytes as error:
        raise InputError(error.message) from None


def halts_behind(folder: StagingArea, published: Metadata[Targets] | None, proposed: Metadata[Targets]) -> HaltsAtHand:
    """The halts that proposed top-level targets lift or confirm, from the folder's published and proposed lists of them."""

    def read(path: str, sha256: str) -> bytes | None:
        try:
            return folder.files.read(path, TargetFile(0, {"sha256": sha256}, path))
        except (InputError, StorageError):
            return None

    lists = [one.signed for one in (folder.document(HALT), folder.proposed_of(HALT)) if one is not None]
    before = published.signed if published is not None else None
    named = tuple(named_halts(before, proposed.signed, lists, read))
    holders = Holders.of(folder.root().signed, before or proposed.signed) if named else Holders()
    return halts_at_hand(named, read, holders, folder.fleet_id)


def _says_the_same(one: Targets, other: Targets) -> bool:
    """The audit log is no reason to propose anything: it grows with every signature."""
    listed = [{path: info for path, info in side.targets.items() if not is_volume(path)} for side in (one, other)]
    return bool(listed[0] == listed[1] and one.delegations == other.delegations)


def _lifetime(role: str) -> timedelta:
    return {TARGETS: TARGETS_LIFETIME, HALT: HALT_LIFETIME}.get(role, DELEGATED_LIFETIME)
