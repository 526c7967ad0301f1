"""Which halts a change of ``fleet/lifted.toml`` lets go, or keeps: each as a sentence, since nobody knows an id by heart. Pure.

A sentence is believed only of a halt whose bytes the signed list of halts names by their hash, and the person in it is the one
whom root or targets name for the key that ordered it. Of every other halt the id is all that is said.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tuf.api.metadata import Targets  # type: ignore[attr-defined]

from pcm_p2p.authority.document_difference import Contents
from pcm_p2p.errors import UntrustedBytes
from pcm_p2p.shown_text import shown
from pcm_p2p.trust.halt import (
    NOTHING_LIFTED,
    Halt,
    Holders,
    Lifted,
    Reach,
    decode_halt_untrusted,
    decode_lifted_untrusted,
)
from pcm_p2p.trust.index import LIFTED, halt_path
from pcm_p2p.trust.lint import owner_of


@dataclass(frozen=True)
class HaltsAtHand:
    """Sentences by the id of the halt; ``absent`` is what is said of any other."""

    sentences: Mapping[str, str] = field(default_factory=dict)
    absent: str = "which is not at hand here"

    def said(self, halt: str) -> str:
        return self.sentences.get(halt) or f"halt {shown(halt)}, {self.absent}"


NO_HALTS = HaltsAtHand()


def changed_halts(before: bytes | None, after: bytes | None) -> tuple[str, ...]:
    """Ids of the halts of which two versions of ``fleet/lifted.toml`` say something else; none where one does not read."""
    old, new = _lifted(before), _lifted(after)
    if old is None or new is None:
        return ()
    return tuple(sorted({*old.lifted} ^ {*new.lifted} | {*old.confirmed} ^ {*new.confirmed}))


def lifted_lines(before: bytes | None, after: bytes | None, halts: HaltsAtHand) -> Iterator[str]:
    """One line for each halt that is lifted or confirmed, or no longer; nothing where one of both does not read."""
    old, new = _lifted(before), _lifted(after)
    if old is None or new is None:
        return
    gone, confirmed = {*new.lifted} - {*old.lifted}, {*new.confirmed} - {*old.confirmed}
    for what, ids in (
        ("+ lifts", gone),
        ("- no longer lifts", {*old.lifted} - {*new.lifted}),
        ("+ confirms for the whole fleet", confirmed),
        ("- no longer confirms", {*old.confirmed} - {*new.confirmed} - gone),
    ):
        yield from (f"{what} {halts.said(one)}" for one in sorted(ids))


def named_halts(
    before: Targets | None, after: Targets, lists: Collection[Targets], contents: Contents
) -> Iterator[tuple[str, str]]:
    """Path and SHA-256 of each halt that ``after`` lifts or confirms otherwise than ``before``, as ``lists`` name it.

    Raises ``KeyError`` if a target is not named by SHA-256.
    """
    digests = [
        side.targets[LIFTED].hashes["sha256"] if side and LIFTED in side.targets else None for side in (before, after)
    ]
    if digests[0] == digests[1]:
        return
    sides = [contents(LIFTED, digest) if digest is not None else None for digest in digests]
    if any(digest is not None and side is None for digest, side in zip(digests, sides, strict=True)):
        return
    for path in map(halt_path, changed_halts(*sides)):
        for one in lists:
            if path in one.targets:
                yield path, one.targets[path].hashes["sha256"]


def halts_at_hand(
    named: Iterable[tuple[str, str]], contents: Contents, holders: Holders, fleet: str, absent: str = NO_HALTS.absent
) -> HaltsAtHand:
    """Sentences of the halts that are ``named`` by path and SHA-256; of two with one id the first."""
    found: dict[str, str] = {}
    for path, digest in named:
        data = contents(path, digest)
        if data is not None and hashlib.sha256(data).hexdigest() == digest:
            with contextlib.suppress(UntrustedBytes):
                halt = decode_halt_untrusted(data, path)
                found.setdefault(halt.id, sentence(halt, holders, fleet))
    return HaltsAtHand(found, absent)


def sentence(halt: Halt, holders: Holders, fleet: str) -> str:
    """What is halted, where, by whom, since when and why."""
    reach = holders.reach_of(halt)
    if halt.fleet != fleet:
        who = "for another fleet"
    elif reach == Reach():
        who = f"by a key that may not halt now (it says {shown(halt.by)})"
    else:
        who = f"by {shown(owner_of(holders.keys[halt.keyid]))}"
    where = f" for {shown(reach.sentence())}" if reach != Reach() and not reach.fleet else ""
    reason = f": {shown(halt.reason)}" if halt.reason else ""
    return f"halt {halt.id[:8]} of {shown(halt.what)}{where}, ordered {who}, {halt.since:%Y-%m-%d %H:%M} UTC{reason}"


def _lifted(data: bytes | None) -> Lifted | None:
    try:
        return NOTHING_LIFTED if data is None else decode_lifted_untrusted(data)
    except UntrustedBytes:
        return None
