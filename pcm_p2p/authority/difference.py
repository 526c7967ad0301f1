"""The difference between two versions of a signed document, as a person reads it before signing. Pure.

**It is empty if and only if the bytes that are signed are equal.** The two documents are compared field by field in their
canonical form. Known fields have sentences of their own (people, thresholds, dates, targets with what is in them, delegations);
whatever else differs is shown raw, as ``field: before → after``. No maker of sentences can keep quiet: when it finds nothing to
say about two values that differ, the raw line stands in its place.

All foreign text passes ``shown``: a document cannot paint the screen of who signs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from securesystemslib.formats import encode_canonical
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.audit.log import is_volume
from pcm_p2p.authority.document_difference import Contents, log_lines, manifest_lines, text_lines
from pcm_p2p.authority.halt_difference import NO_HALTS, HaltsAtHand, lifted_lines
from pcm_p2p.authority.keys.fingerprint import grouped
from pcm_p2p.shown_text import cut, shown
from pcm_p2p.trust.index import LIFTED
from pcm_p2p.trust.lint import OWNER_FIELD

DETAILS_MAX = 60
CHANGES_MAX = 200
"""Choices: what a person reads at a sitting; more is counted, and shown on request."""

_Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """One thing that changes. ``field``: where in the document, for programs; ``details`` are not cut."""

    field: str
    headline: str
    details: tuple[str, ...] = ()

    def lines(self, *, full: bool) -> Iterator[str]:
        """The headline, and the details below it; cut unless ``full``."""
        yield self.headline if full else cut(self.headline, 400)
        shown_details = self.details if full else self.details[:DETAILS_MAX]
        yield from (f"    {line if full else cut(line)}" for line in shown_details)
        if len(shown_details) < len(self.details):
            yield f"    … {len(self.details) - len(shown_details)} lines more; --full shows them"


@dataclass(frozen=True)
class Difference:
    """All that changes, in the order of the document's fields."""

    changes: tuple[Change, ...]

    def lines(self, *, full: bool = False) -> Iterator[str]:
        changes = self.changes if full else self.changes[:CHANGES_MAX]
        for change in changes:
            yield from change.lines(full=full)
        if len(changes) < len(self.changes):
            yield f"… {len(self.changes) - len(changes)} changes more; --full shows them"

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"field": change.field, "headline": change.headline, "details": list(change.details)}
            for change in self.changes
        ]


def nothing_at_hand(path: str, sha256: str) -> bytes | None:  # noqa: ARG001 - a ``Contents``
    """For documents whose targets are not there."""
    return None


def difference(
    before: Signed | None, after: Signed, contents: Contents = nothing_at_hand, halts: HaltsAtHand = NO_HALTS
) -> Difference:
    """What ``after`` changes; ``before`` is ``None`` where nothing was there. ``halts``: those that it lifts or confirms."""
    old: _Tree = before.to_dict() if before is not None else {}
    new: _Tree = after.to_dict()
    makers: dict[str, Callable[[Any, Any], Iterator[Change]]] = {
        "version": lambda left, right: iter((Change("version", f"version {left or 'none'} → {right}"),)),
        "expires": lambda left, right: iter((Change("expires", f"expires {_day(left)} → {_day(right)}"),)),
        "keys": lambda left, right: _keys("keys", left or {}, right or {}),
        "roles": lambda left, right: _root_roles(left or {}, right or {}, _owners(old), _owners(new)),
        "delegations": lambda left, right: _delegations(left or {}, right or {}),
        "targets": lambda left, right: _targets(left or {}, right or {}, contents, halts),
    }
    found: list[Change] = []
    if before is None:
        found.append(
            Change("_type", f"the first {shown(str(new['_type']))} document, TUF {shown(str(new['spec_version']))}")
        )
    for name in _order(old.keys() | new.keys()):
        if before is None and name in ("_type", "spec_version"):
            continue
        left, right = old.get(name), new.get(name)
        if (name in old) == (name in new) and _same(left, right):
            continue
        maker = makers.get(name)
        said = list(maker(left, right)) if maker is not None and isinstance(after, Root | Targets) else []
        found += said or [_raw(name, old, new, name)]
    return Difference(tuple(found))


def kept(before: Targets, after: Targets, contents: Contents = nothing_at_hand) -> Iterator[Change]:
    """What ``after`` takes over as it is, for signers whose keys did not sign ``before`` and who answer for it now."""
    old, new = (side.delegations.to_dict() if side.delegations is not None else {} for side in (before, after))
    stay = [str(role["name"]) for role in new.get("roles", []) if role in old.get("roles", [])]
    if stay:
        yield Change("delegations", f"= delegations {shown(', '.join(stay))}")
    for path, info in sorted(after.targets.items()):
        there, same = before.targets.get(path), info.to_dict()
        if there is None or not _same(there.to_dict(), same):
            continue
        lines = _content_lines(path, None, same, contents) if contents is not nothing_at_hand else ()
        # Nothing of it is added: the mark of what comes goes.
        details = tuple(f" {line[1:]}" if line.startswith("+") else line for line in lines)
        digest = shown(str(info.hashes.get("sha256", "no SHA-256"))[:16])
        yield Change(f"targets.{path}", f"= {shown(path)}  {info.length} bytes  sha256 {digest}", details)


_FIRST = ("version", "expires", "keys", "roles", "delegations", "targets")


def _order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))


def _same(left: Any, right: Any) -> bool:
    """Equal in the bytes that are signed: ``True`` is not ``1`` there."""
    return bool(encode_canonical(left) == encode_canonical(right))


def _raw(field: str, old: _Tree, new: _Tree, name: str) -> Change:
    left = _canonical(old[name]) if name in old else "not there"
    right = _canonical(new[name]) if name in new else "not there"
    return Change(field, f"{shown(field)}: {left} → {right}")


def _canonical(value: Any) -> str:
    return shown(str(encode_canonical(value)))


def _rest(field: str, old: _Tree, new: _Tree, told: Iterable[str]) -> Iterator[Change]:
    """Raw lines for what differs outside of the fields that are ``told`` in words."""
    for name in sorted((old.keys() | new.keys()) - set(told)):
        if (name in old) != (name in new) or not _same(old.get(name), new.get(name)):
            yield _raw(f"{field}.{name}", old, new, name)


def _day(moment: Any) -> str:
    return shown(str(moment)).removesuffix("T00:00:00Z") if moment else "none"


# Keys and people


def _owners(document: _Tree) -> dict[str, str]:
    return {keyid: _owner(key) for keyid, key in document.get("keys", {}).items()}


def _owner(key: _Tree) -> str:
    owner = key.get(OWNER_FIELD)
    return shown(owner) if isinstance(owner, str) and owner else "nobody named"


def fingerprint(keyid: str) -> str:
    """The first 32 digits of a key id in groups of four, as key files and sheets show it."""
    return grouped(shown(str(keyid)[:32]))


def _keys(field: str, old: _Tree, new: _Tree) -> Iterator[Change]:
    for keyid in sorted(old.keys() | new.keys()):
        left, right = old.get(keyid), new.get(keyid)
        place = f"{field}.{keyid}"
        if left is None or right is None:
            key = cast("_Tree", right if left is None else left)
            mark = "+" if left is None else "-"
            details = [
                f"{shown(name)}: {_canonical(value)}"
                for name, value in sorted(key.items())
                if name not in ("keytype", "scheme", "keyval", OWNER_FIELD)
            ]
            kind = shown(str(key.get("keytype")))
            yield Change(place, f"{mark} key of {_owner(key)}  {fingerprint(keyid)}  {kind}", tuple(details))
            continue
        if _owner(left) != _owner(right):
            headline = f"~ key {fingerprint(keyid)} is said to be of {_owner(left)} → {_owner(right)}"
            yield Change(place, headline)
        told = (OWNER_FIELD,) if _owner(left) != _owner(right) else ()
        yield from _rest(place, left, right, told)


def _root_roles(old: _Tree, new: _Tree, owners_old: dict[str, str], owners_new: dict[str, str]) -> Iterator[Change]:
    for role in sorted(old.keys() | new.keys()):
        left, right = old.get(role, {}), new.get(role, {})
        if not _same(left, right) or (role in old) != (role in new):
            yield from _role(f"roles.{role}", role, left, right, owners_old, owners_new)


def _role(
    field: str, role: str, old: _Tree, new: _Tree, owners_old: dict[str, str], owners_new: dict[str, str]
) -> Iterator[Change]:
    """One role whose description differs; at least one change."""
    name, said = shown(str(role)), 0
    before, after = old.get("keyids", []), new.get("keyids", [])
    if not new:
        yield Change(field, f"- role {name}: nobody may sign it any more")
        return
    if not old:
        said += 1
        where = f", for {shown(', '.join(map(str, new['paths'])))}" if "paths" in new else ""
        yield Change(field, f"+ role {name}: {new.get('threshold')} of {len(after)} must sign{where}")
    for mark, keyids, others, owners, verb in (
        ("-", before, after, owners_old, "signs no more"),
        ("+", after, before, owners_new, "may sign"),
    ):
        for keyid in keyids:
            if keyid not in others:
                said += 1
                yield Change(
                    f"{field}.keyids",
                    f"{mark} {name}: {owners.get(keyid, 'an unlisted key')} {verb}  {fingerprint(keyid)}",
                )
    if before != after and sorted(before, key=str) == sorted(after, key=str):
        said += 1
        yield _raw(f"{field}.keyids", old, new, "keyids")
    if old and old.get("threshold") != new.get("threshold"):
        said += 1
        yield Change(
            f"{field}.threshold",
            f"~ threshold of {name} {old.get('threshold')} of {len(before)} → {new.get('threshold')} of {len(after)}",
        )
    # A new delegation tells its paths above, and is expected to be terminating; anything else about it is shown raw.
    told = ("paths", *(("terminating",) if new.get("terminating") is True else ())) if not old else ()
    for change in _rest(field, old, new, ("keyids", "threshold", "name", *told)):
        said += 1
        yield change
    if not said:
        yield Change(field, f"{shown(field)}: {_canonical(old)} → {_canonical(new)}")


def _delegations(old: _Tree, new: _Tree) -> Iterator[Change]:
    yield from _keys("delegations.keys", old.get("keys", {}), new.get("keys", {}))
    listed = [{role["name"]: role for role in side.get("roles", [])} for side in (old, new)]
    owners = [_owners(side) for side in (old, new)]
    for role in sorted(listed[0].keys() | listed[1].keys(), key=str):
        left, right = listed[0].get(role, {}), listed[1].get(role, {})
        if not _same(left, right):
            yield from _role(f"delegations.{role}", role, left, right, *owners)
    stay = [[role for role in side if role in listed[0] and role in listed[1]] for side in listed]
    if stay[0] != stay[1]:
        names = [", ".join(shown(str(role)) for role in side) for side in stay]
        yield Change("delegations.roles", f"~ order of delegations {names[0]} → {names[1]}")
    yield from _rest("delegations", old, new, ("keys", "roles"))


# Targets


def _targets(old: _Tree, new: _Tree, contents: Contents, halts: HaltsAtHand) -> Iterator[Change]:
    for path in sorted(old.keys() | new.keys()):
        left, right = old.get(path), new.get(path)
        if left is not None and right is not None and _same(left, right):
            continue
        yield from _target(path, left, right, contents, halts)


def _target(
    path: str, old: _Tree | None, new: _Tree | None, contents: Contents, halts: HaltsAtHand
) -> Iterator[Change]:
    """One target that is added, removed or changed. What is added has its facts in the details, not raw."""
    field, before, after = f"targets.{path}", old or {}, new or {}
    mark = "+" if old is None else "-" if new is None else "~"
    size = " → ".join(f"{side.get('length')}" for side in (old, new) if side is not None)
    digest = str((after if new is not None else before).get("hashes", {}).get("sha256", "no SHA-256"))
    headline = f"{mark} {shown(path)}  {size} bytes  sha256 {shown(digest[:16])}"
    details: list[str] = []
    if old is None or new is None or not _same(before.get("hashes"), after.get("hashes")):
        details += _content_lines(path, old, new, contents, halts)
    others = [
        {name: value for name, value in side.get("hashes", {}).items() if name != "sha256"} for side in (before, after)
    ]
    if others[0] != others[1]:
        details.append(f"hashes besides SHA-256: {_canonical(others[0])} → {_canonical(others[1])}")
    # Of what is added or removed, everything beyond length and hash is said; of what stays, what differs.
    for name in sorted((before.keys() | after.keys()) - {"length", "hashes"}):
        values = [_canonical(side[name]) if name in side else "not there" for side in (before, after)]
        if old is None or new is None:
            details.append(f"{shown(name)}: {values[0] if new is None else values[1]}")
        elif values[0] != values[1] or not _same(before.get(name), after.get(name)):
            details.append(f"{shown(name)}: {values[0]} → {values[1]}")
    yield Change(field, headline, tuple(details))


def _content_lines(
    path: str, old: _Tree | None, new: _Tree | None, contents: Contents, halts: HaltsAtHand = NO_HALTS
) -> Iterator[str]:
    sides: list[bytes | None] = []
    for side in (old, new):
        if side is None:
            sides.append(None)
            continue
        named = str(side.get("hashes", {}).get("sha256", ""))
        data = contents(path, named)
        if data is None or hashlib.sha256(data).hexdigest() != named or len(data) != side.get("length"):
            what = "what goes" if side is old else "what comes"
            yield f"! {what} is not at hand here; its SHA-256 is {shown(named) or 'not given'}"
            return
        sides.append(data)
    before, after = sides
    if is_volume(path):
        yield from log_lines(before, after)
    elif path.endswith(".manifest"):
        yield from manifest_lines(before, after)
    elif path.startswith("sites/") and path.endswith("/root.json"):
        yield from _root_lines(before, after)
    else:
        if path == LIFTED:  # what its ids stand for, above the lines that are signed
            yield from lifted_lines(before, after, halts)
        yield from text_lines(before, after, json=path.endswith(".json"))


def _root_lines(before: bytes | None, after: bytes | None) -> Iterator[str]:
    """The root of a site's own repository: who may sign there."""
    roots: list[Root | None] = []
    for data in (before, after):
        try:
            document = Metadata[Root].from_bytes(data) if data is not None else None
            if document is not None:
                document.signed_bytes  # noqa: B018 - fails for what cannot be signed, and so cannot be compared either
        except (RepositoryError, TypeError, ValueError):
            document = None
        roots.append(document.signed if document is not None and isinstance(document.signed, Root) else None)
    old, new = roots
    if new is None or (before is not None and old is None):
        yield from text_lines(before, after, json=True)
        return
    said = [line for change in difference(old, new).changes for line in change.lines(full=True)]
    yield from said or ["the same root with other signatures"]
