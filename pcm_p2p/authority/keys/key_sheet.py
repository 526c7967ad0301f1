"""The sheet about a fleet's keys that is printed, filled in by hand, signed and put away: facts, and their form as text. Pure.

It holds nothing secret. It is what an auditor reads, and what the people need on the day when a key is lost and the one who
knew is away: who holds what, how to recognise each key, how many must act together, until when, and which commands help.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from textwrap import wrap
from typing import Any

from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from pcm_p2p.authority.keys.fingerprint import grouped
from pcm_p2p.authority.keys.key_test import Holder
from pcm_p2p.shown_text import shown
from pcm_p2p.trust.delegation import kind_of, title_of

WIDTH = 78

DUTIES = (
    "Be available: answer within a working day when a signature is asked for, and say when you are away.",
    "Travel without the key: key file or token stay at the place named here; nobody needs to sign on the road.",
    "Sign only what you have read: 'pcm-p2p sign' shows it; compare the digest with the others aloud.",
    "Keep passphrase or PIN apart from the key, in no chat, mail or picture, and tell it to nobody.",
    "Have a successor named here, and hand over while you are still here: a new key, not a copy of yours.",
    "Test the key every half year with 'pcm-p2p key test', and keep a copy of the key file at a second place.",
    "Report a lost or exposed key at once, and also a doubt. Nobody is blamed for the report.",
)

LOSSES = (
    ("A root key is lost or exposed", "pcm-p2p fleet recover lost-root-key PERSON"),
    ("A laptop with a person's keys is lost", "pcm-p2p fleet recover lost-laptop PERSON"),
    ("The publisher's machine was broken into", "pcm-p2p fleet recover stolen-online-key"),
    ("A site's key is stolen", "pcm-p2p fleet recover stolen-site-key SITE"),
    ("Something bad is being rolled out", "pcm-p2p halt RELEASE --reason TEXT --key KEYFILE"),
    ("Something expires soon", "pcm-p2p fleet check"),
    ("Somebody changes the key", "pcm-p2p key rotate --role ROLE --owner NAME --new FILE.pub"),
    ("Somebody leaves", "pcm-p2p key remove --role ROLE --owner NAME"),
    ("Who has signed what", "pcm-p2p audit verify"),
)
"""What happened, and the command that says and begins what is to be done."""

BLANKS = ("Where the key lies", "Where its copy lies", "Successor", "Place and date", "Witness", "Signature")
"""Lines that are filled in by hand, for each key of a person."""

_SIGNS = {
    "root": "who holds which key, and how many must sign",
    "targets": "releases, policies and fleet documents: what devices do",
    "snapshot": "which documents belong together",
    "timestamp": "which of them are the newest",
}
_ONLINE = ("snapshot", "timestamp")


@dataclass(frozen=True)
class SheetRole:
    """One role: what it signs, how many of its holders must, and who they are."""

    title: str
    signs: str
    threshold: int
    holders: tuple[Holder, ...]

    @property
    def rule(self) -> str:
        return f"{self.threshold} of {len(self.holders)} must sign"


@dataclass(frozen=True)
class KeySheet:
    """All that is printed. ``expiries``: title, last day, and how the new one comes."""

    name: str
    fleet_id: str
    root_version: int
    root_digest: str
    root_signed: bool
    made: datetime
    people: tuple[SheetRole, ...]
    online: tuple[SheetRole, ...]
    expiries: tuple[tuple[str, datetime, str], ...]
    remarks: tuple[str, ...]

    @property
    def fleet(self) -> str:
        """The fleet's id in groups of four digits."""
        return grouped(self.fleet_id)


def key_sheet(
    name: str,
    fleet_id: str,
    root: Metadata[Root],
    expiries: Iterable[tuple[str, datetime]],
    holders: Iterable[Holder],
    thresholds: dict[str, int],
    *,
    made: datetime,
) -> KeySheet:
    """The sheet of a fleet whose newest root is ``root``.

    ``expiries``: role and end of each document that people sign. ``holders`` and ``thresholds`` are by role, delegated ones
    included.
    """
    by_role: dict[str, list[Holder]] = {}
    for holder in holders:
        by_role.setdefault(holder.role, []).append(holder)
    roles = {
        role: SheetRole(_title(role), _signs(role), thresholds[role], tuple(found))
        for role, found in by_role.items()
        if found
    }
    people = tuple(one for role, one in roles.items() if role not in _ONLINE)
    signed = bool(root.signed.get_verification_result("root", root.signed_bytes, root.signatures))
    return KeySheet(
        name,
        fleet_id,
        root.signed.version,
        grouped(hashlib.sha256(root.signed_bytes).hexdigest()[:32]),
        signed,
        made,
        people,
        tuple(one for role, one in roles.items() if role in _ONLINE),
        tuple(
            (title_of(role), expires, f"before, its holders sign anew: 'fleet renew --role {role}'")
            for role, expires in expiries
        ),
        tuple(_remarks(people, signed)),
    )


def _title(role: str) -> str:
    return {"targets": "release (targets)"}.get(role, title_of(role))


def _signs(role: str) -> str:
    kind = kind_of(role)
    if kind is not None:
        return f"releases of team {kind[1]}" if kind[0] == "team" else f"policies of site {kind[1]}"
    return _SIGNS.get(role, "")


def _remarks(people: tuple[SheetRole, ...], signed: bool) -> Iterator[str]:
    if not signed:
        yield "The root is not signed by enough people yet. Print the sheet again when it is."
    for role in people:
        for holder in role.holders:
            if not holder.proven:
                yield f"The {role.title} key of {shown(holder.owner)} has not been tested: 'pcm-p2p key test'."
        if role.threshold == 1:
            yield f"One {role.title} key is enough to sign: whoever steals one decides alone."
        if role.threshold == len(role.holders) > 1:
            yield f"All {role.title} keys must sign: one that is lost or away stops the fleet's people."


def proof_of(holder: Holder) -> str:
    """What shows that a key works, in a person's words."""
    if holder.tested is not None:
        return f"tested {holder.tested:%Y-%m-%d}"
    return "has signed" if holder.signed else "NOT TESTED"


def as_text(sheet: KeySheet) -> str:
    """The sheet for a printer that knows letters only, 78 columns."""
    return "\n".join(_text(sheet)) + "\n"


def _text(sheet: KeySheet) -> Iterator[str]:
    yield f"KEYS OF THE FLEET: {shown(sheet.name)}"
    yield "=" * WIDTH
    yield ""
    yield f"Fleet id      {sheet.fleet}"
    yield f"Root          version {sheet.root_version}, digest {sheet.root_digest}"
    yield f"Printed       {sheet.made:%Y-%m-%d %H:%M} UTC"
    for title, expires, how in sheet.expiries:
        yield from wrap(
            f"{title.capitalize():<13} expires {expires:%Y-%m-%d}; {how}", WIDTH, subsequent_indent=" " * 14
        )
    for remark in sheet.remarks:
        yield ""
        yield from wrap(f"! {remark}", WIDTH, subsequent_indent="  ")
    for role in sheet.people:
        yield ""
        yield f"{role.title.upper()}: {role.rule}"
        yield from wrap(f"signs {role.signs}", WIDTH)
        yield "-" * WIDTH
        for holder in role.holders:
            yield from _person(holder)
    yield ""
    yield "KEYS OF THE PUBLISHER (on its machine, no person's)"
    yield "-" * WIDTH
    for role in sheet.online:
        for holder in role.holders:
            yield f"{role.title:<10} {holder.fingerprint}  {proof_of(holder)}"
    yield ""
    yield "DUTIES OF WHO HOLDS A KEY"
    yield "-" * WIDTH
    for number, duty in enumerate(DUTIES, start=1):
        yield from wrap(f"{number}. {duty}", WIDTH, subsequent_indent="   ")
    yield ""
    yield "WHEN SOMETHING HAPPENS"
    yield "-" * WIDTH
    for what, command in LOSSES:
        yield what
        yield f"    {command}"


def _person(holder: Holder) -> Iterator[str]:
    yield f"{shown(holder.owner)}  ({proof_of(holder)})"
    yield f"  fingerprint  {holder.fingerprint}"
    words = holder.words
    yield f"  words        {' '.join(words[:6])}"
    yield f"               {' '.join(words[6:])}"
    for blank in BLANKS:
        yield f"  {blank:<20}{'_' * (WIDTH - 22)}"
    yield ""


def as_fields(sheet: KeySheet) -> dict[str, Any]:
    """Names for a template of the same sheet."""
    return {"sheet": sheet, "duties": DUTIES, "losses": LOSSES, "blanks": BLANKS, "proof_of": proof_of}
