"""``fleet recover …``: playbooks for what is lost or stolen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli import passphrase
from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.key import Cost, Derivation
from pcm_p2p.cli.output import Json, out, print_json

if TYPE_CHECKING:
    from pcm_p2p.authority.keys.public_key import PublicKey
    from pcm_p2p.authority.people.playbook import Playbook

app = typer.Typer(
    help="What to do when something is lost or stolen. Makes the proposal, and says what remains and for whom.",
    no_args_is_help=True,
)

Person = Annotated[str, typer.Argument(help="The owner's name, as 'pcm-p2p fleet sheet' lists it.")]
New = Annotated[
    list[Path] | None, typer.Option("--new", help="A public file of the person's new key ('key public'); repeat it.")
]
Remove = Annotated[bool, typer.Option("--remove", help="The person signs no more where there is no new key.")]
Threshold = Annotated[
    list[str] | None,
    typer.Option("--threshold", metavar="ROLE=N", help="How many must sign from then on, such as root=1; repeat it."),
]


@app.command("lost-laptop")
def lost_laptop(
    person: Person,
    fleet: Fleet,
    new: New = None,
    remove: Remove = False,
    threshold: Threshold = None,
    json: Json = False,
) -> None:
    """All keys of a person are lost. They may be in other hands.

    EXIT STATUS: 0; 2 a new key is missing (the roles are named), or those who stay are too few.
    """
    from pcm_p2p.authority.people import playbook
    from pcm_p2p.authority.repository import FleetFolder

    thresholds = _thresholds(threshold)
    _tell(
        playbook.lost_laptop(FleetFolder.open(fleet), person, _public(new), remove=remove, thresholds=thresholds), json
    )


@app.command("lost-root-key")
def lost_root_key(
    person: Person,
    fleet: Fleet,
    new: New = None,
    remove: Remove = False,
    threshold: Threshold = None,
    json: Json = False,
) -> None:
    """The root key of a person is lost.

    EXIT STATUS: 0; 2 the new key is missing, or those who stay are too few.
    """
    from pcm_p2p.authority.people import playbook
    from pcm_p2p.authority.repository import FleetFolder

    thresholds = _thresholds(threshold)
    _tell(
        playbook.lost_root_key(FleetFolder.open(fleet), person, _public(new), remove=remove, thresholds=thresholds),
        json,
    )


@app.command("stolen-online-key")
def stolen_online_key(
    fleet: Fleet,
    kdf: Cost = Derivation.interactive,
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    json: Json = False,
) -> None:
    """The publisher's snapshot or timestamp key is stolen. Both are replaced, since one alone would not heal.

    EXIT STATUS: 0.
    """
    from pcm_p2p.authority.people import playbook
    from pcm_p2p.authority.repository import FleetFolder

    folder = FleetFolder.open(fleet)
    words = passphrase.obtain(passphrase_file, passphrase_fd, what="the publisher's new keys", confirm=True)
    _tell(playbook.stolen_online_keys(folder, words, preset=kdf.value), json)


@app.command("stolen-site-key")
def stolen_site_key(
    site: Annotated[str, typer.Argument(help="The site.")],
    fleet: Fleet,
    new: New = None,
    number: Annotated[int, typer.Option("--threshold", min=1, help="How many of the new keys must sign.")] = 1,
    remove: Annotated[bool, typer.Option("--remove", help="Nobody signs for the site any more.")] = False,
    json: Json = False,
) -> None:
    """A key of a site is stolen. The site gets other keys, or none.

    EXIT STATUS: 0; 2 nothing is delegated to the site, or no new key was given.
    """
    from pcm_p2p.authority.people import playbook
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError

    keys = _public(new)
    if bool(keys) == remove:
        raise InputError("it is not said who signs from then on", remedy="Pass either --new FILE.pub or --remove.")
    _tell(playbook.stolen_site_key(FleetFolder.open(fleet), site, keys, threshold=number), json)


@app.command("lost-device")
def lost_device(
    device: Annotated[str, typer.Argument(help="The device's id, 32 hexadecimal digits, as the console shows it.")],
    fleet: Fleet,
    reason: Annotated[str, typer.Option(help="Why, in a line; every device of the fleet can read it.")] = "lost",
    json: Json = False,
) -> None:
    """A device is lost or stolen: it is revoked.

    EXIT STATUS: 0; 2 the id cannot be used.
    """
    from pcm_p2p.authority.people import playbook
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError, UntrustedBytes
    from pcm_p2p.ids import DeviceId

    try:
        found = DeviceId.parse(device)
    except UntrustedBytes as error:
        raise InputError(
            error.message, remedy="Copy the id from the console, or from 'pcm-p2p peers --json' on a neighbour."
        ) from None
    _tell(playbook.lost_device(FleetFolder.open(fleet), found, reason), json)


def _public(files: list[Path] | None) -> tuple[PublicKey, ...]:
    from pcm_p2p.authority.keys.public_key_file import read_public_key

    return tuple(read_public_key(file) for file in files or ())


def _thresholds(said: list[str] | None) -> dict[str, int]:
    from pcm_p2p.errors import InputError

    found = {}
    for text in said or ():
        role, _, number = text.partition("=")
        if not number.isdecimal() or not role:
            raise InputError(f"{text!r} is not ROLE=N", key="--threshold", remedy="Write for example root=2.")
        found[role] = int(number)
    return found


def _tell(book: Playbook, json: bool) -> None:
    if json:
        print_json(book.as_json())
        return
    printed = out()
    printed.print(book.title, markup=False)
    for line in book.why:
        printed.print(f"  {line}", markup=False)
    printed.print("Proposed:")
    for line in book.done:
        printed.print(f"  {line}", markup=False)
    printed.print("What remains:")
    for number, step in enumerate(book.steps, start=1):
        printed.print(f"  {number}. {step.who}: {step.what}", markup=False)
