"""``enroll pending``, ``approve``, ``deny``: the devices that joined with a token which asks for a person's word."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column

from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.output import Json, note, print_json, print_table
from pcm_p2p.errors import InputError, UntrustedBytes

if TYPE_CHECKING:
    from pcm_p2p.enrolment.admittance import Decision
    from pcm_p2p.enrolment.token import TokenRecord
    from pcm_p2p.enrolment.waiting_list import Waiting, WaitingList

SITES_MAX = 8
"""Choice: as many lines as one looks at; with --site there is one."""

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Codes as 'enroll pending' shows them.")]
Every = Annotated[bool, typer.Option("--all", help="All that wait; name the site with it.")]
Site = Annotated[str | None, typer.Option(help="Only devices of this site.")]
Shown = Annotated[
    str | None, typer.Option(metavar="CODE", help="With --all: the list that 'enroll pending' showed, by its code.")
]


def mount(app: typer.Typer) -> None:
    for command in (pending, approve, deny):
        app.command()(command)


def pending(fleet: Fleet, site: Site = None, json: Json = False) -> None:
    """The devices that wait to be let in, longest first. Compare a code with what the device shows before you approve it.

    EXIT STATUS: 0; 2 not a fleet folder.
    """
    from pcm_p2p.enrolment.device_code import device_code
    from pcm_p2p.enrolment.waiting_list import list_code

    entries = _entries(_open(fleet), fleet, site)
    rows = [
        {
            "code": device_code(entry.device_id),
            "device": entry.device,
            "site": record.site,
            "role": record.role,
            "token": entry.token,
            "since": _moment(entry.since_ms),
            "heard": _moment(entry.heard_ms),
            "from": entry.source,
            "decision": decision or "",
        }
        for entry, decision, record in entries
    ]
    if json:
        print_json(rows)
        return
    print_table(
        (Column("DEVICE", no_wrap=True, min_width=31), "SITE", "ROLE", "WAITS", "FROM"),
        (
            (
                row["code"],
                row["site"],
                row["role"],
                _age(row["since"]) + (f", {row['decision']}" if row["decision"] else ""),
                row["from"],
            )
            for row in rows
        ),
    )
    for name in sorted({record.site for _, _, record in entries})[:SITES_MAX]:
        code = list_code([entry for entry, _, record in entries if record.site == name])
        note(f"All of {name}: 'pcm-p2p enroll approve --all --site {name} --shown {code}'.")


def approve(fleet: Fleet, ids: Ids = None, every: Every = False, site: Site = None, shown: Shown = None) -> None:
    """Let devices in that wait. Each gets its certificate when it asks the next time, which takes minutes with 'join
    --wait'.

    With --all those that 'enroll pending' showed and that nobody has decided on; who came since is named, and waits.

    EXIT STATUS: 0; 2 no such device waits, or neither ids nor --all --site --shown were given; 6 the folder cannot be written.
    """
    _decide(fleet, ids or [], every, site, "approved", shown)


def deny(fleet: Fleet, ids: Ids = None, every: Every = False, site: Site = None) -> None:
    """Refuse devices. They are told so when they ask; with another token they may ask again.

    EXIT STATUS: as approve.
    """
    _decide(fleet, ids or [], every, site, "denied")


def _decide(
    fleet: Path, ids: list[str], every: bool, site: str | None, decision: Decision, shown: str | None = None
) -> None:
    from pcm_p2p.enrolment.device_code import device_code, device_code_untrusted
    from pcm_p2p.enrolment.waiting_list import shown_by

    if every == bool(ids) or (every and site is None) or (shown is not None and not every):
        raise InputError("which devices?", remedy="Give their codes, or '--all --site SITE'.")
    if every and decision == "approved" and shown is None:
        raise InputError(
            "more may wait by now than you have seen",
            key="--shown",
            remedy="Give the code that 'pcm-p2p enroll pending' prints below the list.",
        )
    waiting = _open(fleet)
    found = _entries(waiting, fleet, site)
    entries = {entry.device: (entry, record) for entry, _, record in found}
    chosen = [entry.device for entry, decided, _ in found if decided is None]
    if shown is not None:
        seen = {entry.device for entry in shown_by(shown, [entry for entry, _, _ in found])}
        for device in [one for one in entries if one not in seen]:
            note(f"came later, and waits: {device_code(entries[device][0].device_id)}")
        chosen = [device for device in chosen if device in seen]
    if ids:
        try:
            chosen = [device_code_untrusted(text).hex() for text in ids]
        except UntrustedBytes as error:
            raise InputError(error.message, remedy="Copy the whole code from 'pcm-p2p enroll pending'.") from None
    for text, device in zip(ids, chosen, strict=False):
        if device not in entries:
            raise InputError(f"{text} does not wait", remedy="'pcm-p2p enroll pending' shows who does.")
    for device in chosen:
        entry, _ = entries[device]
        waiting.decide(entry, decision, int(datetime.now(UTC).timestamp() * 1_000))
        note(f"{decision}: {device_code(entry.device_id)}")
    if decision == "approved":
        _warn_of_uses(entries, waiting)


def _warn_of_uses(entries: dict[str, tuple[Waiting, TokenRecord]], waiting: WaitingList) -> None:
    """More may be approved than the token has uses left: who asks first gets them."""
    approved: dict[str, int] = {}
    for entry, decision in waiting.entries():
        approved[entry.token] = approved.get(entry.token, 0) + (decision == "approved")
    for token, record in {entry.token: record for entry, record in entries.values()}.items():
        if approved.get(token, 0) > record.uses_left:
            note(f"Token {token[:8]} has {record.uses_left} use(s) left for {approved[token]} approved devices.")


def _open(fleet: Path) -> WaitingList:
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.enrolment.waiting_list import WaitingList

    waiting = WaitingList(FleetFolder.open(fleet).path / "enrolment")
    waiting.load()
    return waiting


def _entries(waiting: WaitingList, fleet: Path, site: str | None) -> list[tuple[Waiting, Decision | None, TokenRecord]]:
    from pcm_p2p.enrolment.token_folder import TokenFolder

    tokens, found = TokenFolder(fleet / "enrolment" / "tokens"), []
    for entry, decision in waiting.entries():
        record = tokens.get(bytes.fromhex(entry.token))
        if record is not None and site in (None, record.site):
            found.append((entry, decision, record))
    return found


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(timespec="seconds")


def _age(moment: str) -> str:
    """For people: ``4 min``, ``3 h``, ``2 d``."""
    minutes = int((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()) // 60
    if minutes < 120:
        return f"{max(0, minutes)} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // (24 * 60)} d"
