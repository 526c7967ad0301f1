"""The questions of ``fleet init`` on a terminal, one at a time, each with what is suggested and why."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import typer

from pcm_p2p.authority.keys.public_key import PublicKey
from pcm_p2p.authority.keys.public_key_file import read_public_key
from pcm_p2p.authority.people.founders import TITLES, Founders, suggested_threshold
from pcm_p2p.cli.output import err, note
from pcm_p2p.errors import InputError

PEOPLE_DEFAULT = 3
PEOPLE_MAX = 50
ATTEMPTS_MAX = 5
"""How often one question is asked again before the walk ends; nothing was written until then."""


def walk(name: str, root_threshold: int | None, release_threshold: int | None) -> tuple[str, Founders]:
    """Ask who founds the fleet. Raises ``InputError`` when a question was not answered in a usable way, or at its end with no."""
    note(
        "This makes the keys of a new fleet. Nothing leaves this machine, and nothing is written before the last question."
    )
    name = name or typer.prompt("What do people call the fleet?", err=True)
    note(
        "Three people or more are best: two must sign then, so that no thief decides alone and nobody who is away stops you."
    )
    count = typer.prompt(
        "How many people will hold keys?", value_proc=_number(1, PEOPLE_MAX), default=PEOPLE_DEFAULT, err=True
    )
    here: list[str] = []
    carried: dict[str, list[PublicKey]] = {role: [] for role in TITLES}
    for number in range(1, count + 1):
        _ask_person(number, here, carried)
    thresholds = {
        role: given or _ask_threshold(title, count)
        for (role, title), given in zip(TITLES.items(), (root_threshold, release_threshold), strict=True)
    }
    founders = Founders(
        tuple(here), tuple(carried["root"]), tuple(carried["targets"]), thresholds["root"], thresholds["targets"]
    )
    founders.check()
    for role, title in TITLES.items():
        err().print(f"{title}: {founders.threshold(role)} of {', '.join(founders.names(role))} must sign", markup=False)
    if not typer.confirm("Make this fleet?", err=True, default=True):
        raise InputError("no fleet was made", remedy="Run it again when you are sure.")
    return name, founders


def _number(least: int, most: int) -> Callable[[str], int]:
    """A whole number in bounds; the prompt asks again for anything else."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,4}", str(text).strip()) or not least <= int(text) <= most:
            raise typer.BadParameter(f"a number from {least} to {most} is needed")
        return int(text)

    return read


def _ask_person(number: int, here: list[str], carried: dict[str, list[PublicKey]]) -> None:
    note("")
    note(f"Person {number}")
    where = typer.prompt("  Is their key made here, or brought as public files? here/files", default="here", err=True)
    if where.strip().lower().startswith("f"):
        for role, title in TITLES.items():
            carried[role].append(_ask_file(role, title, here, carried))
        return
    for _ in range(ATTEMPTS_MAX):
        name = typer.prompt("  Name", err=True).strip()
        if _fits([*here, name], carried):
            here.append(name)
            return
    raise InputError(
        "no usable name was given", remedy="Use letters, digits and '-'; everybody has a name of their own."
    )


def _ask_file(role: str, title: str, here: list[str], carried: dict[str, list[PublicKey]]) -> PublicKey:
    for _ in range(ATTEMPTS_MAX):
        path = Path(typer.prompt(f"  Public file of their {title} key", err=True).strip()).expanduser()
        try:
            key = read_public_key(path)
        except InputError as error:
            note(f"  {error.message}")
            continue
        if not _fits(here, {**carried, role: [*carried[role], key]}):
            continue
        note(f"  {key.owner}: {key.fingerprint}")
        note(f"  {' '.join(key.words)}")
        if typer.confirm(f"  Does {key.owner} read the same twelve words?", err=True):
            return key
    raise InputError(
        f"no usable public file of a {title} key was given", remedy="Let its owner run 'pcm-p2p key public'."
    )


def _fits(here: list[str], carried: dict[str, list[PublicKey]]) -> bool:
    """Whether these people can found a fleet, as far as they are known; says why not."""
    try:
        Founders(tuple(here), tuple(carried["root"]), tuple(carried["targets"])).check_people()
    except InputError as error:
        note(f"  {error.message}")
        return False
    return True


def _ask_threshold(title: str, people: int) -> int:
    answer: int = typer.prompt(
        f"How many of the {people} must sign a new root?"
        if title == "root"
        else f"How many of the {people} must sign releases and policies?",
        value_proc=_number(1, people),
        default=suggested_threshold(people),
        err=True,
    )
    return answer
