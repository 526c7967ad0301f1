"""``key rotate``, ``key add``, ``key remove``, ``fleet threshold``: people who come and go, and how many must sign."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.output import Json, note, out, print_json

if TYPE_CHECKING:
    from tuf.api.metadata import Key  # type: ignore[attr-defined]

    from pcm_p2p.authority.people.changes import Change
    from pcm_p2p.authority.people.rotation import Holders

Role = Annotated[str, typer.Option(help="root, targets, snapshot, timestamp, team-TEAM or site-SITE.")]
New = Annotated[Path, typer.Option("--new", help="The person's new public file ('key public'), or a key file.")]
Threshold = Annotated[
    int | None, typer.Option("--threshold", min=1, help="How many must sign from then on; as before without it.")
]


def mount(key_app: typer.Typer, fleet_app: typer.Typer) -> None:
    for command in (rotate, add, remove):
        key_app.command()(command)
    fleet_app.command()(threshold)


def rotate(
    role: Role, owner: Annotated[str, typer.Option(help="Whose key.")], new: New, fleet: Fleet, json: Json = False
) -> None:
    """Propose a person's new key in place of the old one. For root and what root names, that is a new root.

    A new root needs the old threshold of old keys and the new threshold of new keys. What loses signatures by it is proposed to
    be signed anew, and who may halt follows.

    EXIT STATUS: 0; 2 the person holds no key for the role, or the new key cannot be used.
    """
    key = _public(new)
    _propose(fleet, role, lambda holders: holders.replaced(owner, key), json=json)


def add(role: Role, new: New, fleet: Fleet, threshold: Threshold = None, json: Json = False) -> None:
    """Propose that one person more may sign.

    EXIT STATUS: 0; 2 the person holds a key for the role already, or the threshold does not fit.
    """
    key = _public(new)
    _propose(fleet, role, lambda holders: _with(holders.with_key(key), threshold), json=json)


def remove(
    role: Role,
    owner: Annotated[str, typer.Option(help="Whose key.")],
    fleet: Fleet,
    threshold: Threshold = None,
    json: Json = False,
) -> None:
    """Propose that a person signs no more.

    EXIT STATUS: 0; 2 the person holds no key for the role, or those who stay are fewer than must sign.
    """
    _propose(fleet, role, lambda holders: _with(holders, threshold).without(owner), json=json)


def threshold(
    number: Annotated[int, typer.Argument(min=1, help="How many must sign.")],
    role: Role,
    fleet: Fleet,
    json: Json = False,
) -> None:
    """Propose how many people must sign for a role.

    EXIT STATUS: 0; 2 there are not so many.
    """
    _propose(fleet, role, lambda holders: holders.with_threshold(number), json=json)


def _with(holders: Holders, threshold: int | None) -> Holders:
    return holders if threshold is None else holders.with_threshold(threshold)


def _public(file: Path) -> Key:
    from pcm_p2p.authority.keys.public_key_file import read_public_key

    return read_public_key(file).key


def _propose(fleet: Path, role: str, change: Change, *, json: bool) -> None:
    from pcm_p2p.authority.people.changes import change_holders
    from pcm_p2p.authority.repository import FleetFolder

    folder = FleetFolder.open(fleet)
    change_holders(folder, [(role, change)])
    proposals = folder.proposals()
    if json:
        print_json([one.as_json() for one in proposals])
        return
    for one in proposals:
        out().print(f"proposed: {one.role} version {one.version_before} → {one.version_after}", markup=False)
        for standing in one.signatures:
            out().print(f"  {standing.line()}", markup=False)
    note("Next: 'pcm-p2p sign' shows all that changes; then 'pcm-p2p publish'.")
