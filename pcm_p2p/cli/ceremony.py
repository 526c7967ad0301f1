"""``fleet init``, ``fleet sheet``: how a fleet's keys begin, and the sheet about them that is printed and signed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcm_p2p.cli import passphrase
from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.founder_options import Owners, ReleaseKeys, RootKeys, RootThreshold
from pcm_p2p.cli.key import Cost, Derivation
from pcm_p2p.cli.output import Json, note, out, print_facts, print_json

if TYPE_CHECKING:
    from pcm_p2p.authority.keys.key_test import Holder
    from pcm_p2p.authority.people.founders import Founders
    from pcm_p2p.authority.people.founding import Passphrase
    from pcm_p2p.authority.repository import FleetFolder

PUBLISHER = "the publisher's keys and the certificate authority"


def mount(app: typer.Typer) -> None:
    """Into the group ``fleet``."""
    for command in (init, sheet):
        app.command()(command)


def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make.")],
    name: Annotated[str, typer.Option(help="What people call the fleet.")] = "",
    owner: Owners = None,
    root_key: RootKeys = None,
    release_key: ReleaseKeys = None,
    root_threshold: RootThreshold = None,
    release_threshold: Annotated[
        int | None,
        typer.Option(
            "--release-threshold",
            "--targets-threshold",
            min=1,
            help="Signatures that a release or policy needs; 2 where three or more people are.",
        ),
    ] = None,
    kdf: Cost = Derivation.moderate,
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    json: Json = False,
) -> None:
    """Make a fleet: keys, certificate authority, first root. The keys of its people and of its publisher are made, or
    named.

    Without --owner, --root-key and --release-key, a terminal is asked everything. People whose keys were made elsewhere bring
    public files; they sign the first root, and nothing can be published before enough of them have. Each key that is made here
    gives a test signature at the end. Where a passphrase is given by an option, all keys made here get the same.

    EXIT STATUS: 0; 2 the folder holds a fleet already, or people, keys and thresholds do not fit.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError

    FleetFolder.refuse_existing(folder)
    given = passphrase_file is not None or passphrase_fd is not None
    words: Passphrase
    if owner or root_key or release_key or given or not sys.stdin.isatty():
        if not name:
            raise InputError("--name is missing", remedy="Name the fleet, or run this on a terminal, which is asked.")
        founders = _founders(owner or [], root_key or [], release_key or [], root_threshold, release_threshold)
        founders.check()
        words = (
            passphrase.obtain(passphrase_file, passphrase_fd, what=f"the keys of fleet {name}", confirm=True)
            if given
            else ask_each(founders.owners, f"fleet {name}")
        )
    else:
        from pcm_p2p.cli.ceremony_walk import walk

        name, founders = walk(name, root_threshold, release_threshold)
        words = ask_each(founders.owners, f"fleet {name}")
    for remark in founders.remarks():
        note(remark)
    fleet = FleetFolder.init(
        folder,
        name=name,
        passphrase=words,
        owners=founders.owners,
        root_keys=founders.root_keys,
        targets_keys=founders.targets_keys,
        root_threshold=founders.root_threshold,
        targets_threshold=founders.targets_threshold,
        preset=kdf.value,
    )
    _test_keys(fleet, words)
    _show(fleet, founders, json)


def sheet(
    fleet: Fleet,
    to: Annotated[Path, typer.Option("--out", help="The file to write, ending in .html or .txt.")],
) -> None:
    """Write the printable sheet about the fleet's keys. Who holds what, fingerprints, thresholds, dates, duties, what to do
    on a loss.

    Print it, fill it in, let witnesses sign it, and put it away. It holds nothing secret.

    EXIT STATUS: 0; 2 the file cannot be written, or its ending tells no form.
    """
    from pcm_p2p.authority.keys.key_sheet_file import write_sheet
    from pcm_p2p.authority.repository import FleetFolder

    made = write_sheet(FleetFolder.open(fleet), to)
    out().print(f"{to}: the keys of fleet {made.name} at root version {made.root_version}", markup=False)
    for remark in made.remarks:
        note(remark)


def ask_each(owners: tuple[str, ...], fleet: str) -> Callable[[str], str]:
    """Ask each person for a passphrase of their own, and one for the publisher; answers by the stem of a key file.

    Raises ``InputError`` where nobody can be asked.
    """
    asked = {name: passphrase.obtain(None, None, what=f"the keys of {name}", confirm=True) for name in owners}
    publisher = passphrase.obtain(None, None, what=f"{PUBLISHER} of {fleet}", confirm=True)

    def of_stem(stem: str) -> str:
        return asked.get(stem.partition("-")[2], publisher)

    return of_stem


def _founders(
    owners: list[str], root_keys: list[Path], release_keys: list[Path], root: int | None, release: int | None
) -> Founders:
    """From options. One owner called admin where nobody is named: a fleet for trying things out."""
    from pcm_p2p.authority.keys.public_key_file import read_public_key
    from pcm_p2p.authority.people.founders import Founders, suggested_threshold

    here = tuple(owners) or (() if root_keys or release_keys else ("admin",))
    return Founders(
        owners=here,
        root_keys=tuple(read_public_key(path) for path in root_keys),
        targets_keys=tuple(read_public_key(path) for path in release_keys),
        root_threshold=root or suggested_threshold(len(here) + len(root_keys)),
        targets_threshold=release or suggested_threshold(len(here) + len(release_keys)),
    )


def _test_keys(fleet: FleetFolder, words: Passphrase) -> None:
    """Open every key that was just made from its file, and let it sign: what cannot be opened today is no key tomorrow."""
    from pcm_p2p.authority.keys.key_test_file import prove_key
    from pcm_p2p.authority.keys.signing_key import open_signing_key
    from pcm_p2p.authority.people.founding import ask

    for path in sorted((fleet.path / "keys").glob("*.key")):
        prove_key(fleet, open_signing_key(path, ask(words, path.stem)))


def _show(fleet: FleetFolder, founders: Founders, json: bool) -> None:
    from pcm_p2p.authority.keys.key_test_file import holders_of
    from pcm_p2p.authority.proposal import signatures_of

    files = {path.stem: path for path in (fleet.path / "keys").glob("*.key")}
    holders = [(holder, files.get(_stem(holder))) for holder in holders_of(fleet)]
    root = signatures_of(fleet.root().signed, "root", fleet.root())
    if json:
        print_json(
            {
                "schema": "pcm.fleet-init/1",
                "fleet": fleet.fleet_id,
                "name": fleet.name,
                "folder": str(fleet.path),
                "root": {
                    "threshold": root.threshold,
                    "have": list(root.have),
                    "could": list(root.could),
                    "complete": root.complete,
                },
                "keys": [_key_facts(holder, path) for holder, path in holders],
            }
        )
        return
    print_facts({"fleet": f"{fleet.name}  ({fleet.fleet_id})", "folder": fleet.path})
    for holder, path in holders:
        place = path.name if path is not None else "elsewhere"
        out().print(f"  {holder.role:<10} {holder.owner:<16} {holder.fingerprint}  {place}", markup=False)
        out().print(f"  {'':<27} {' '.join(holder.words)}", markup=False)
    tested = [holder for holder, _ in holders if holder.proven]
    out().print(f"{len(tested)} of {len(holders)} keys gave a test signature", markup=False)
    out().print(root.line(), markup=False)
    _note_next(fleet, founders, root.complete)


def _note_next(fleet: FleetFolder, founders: Founders, complete: bool) -> None:
    elsewhere = sorted({key.owner for key in (*founders.root_keys, *founders.targets_keys)})
    if elsewhere:
        note(f"Compare the words with {', '.join(elsewhere)} over the telephone: 'pcm-p2p key compare FILE WORDS'.")
    if not complete:
        note("Next: the holders of root keys sign the first root:")
        note(f"  'pcm-p2p sign --fleet {fleet.path} --key KEYFILE' where the folder is; elsewhere carry it to them:")
        note(
            f"  'pcm-p2p proposal export FILE --fleet {fleet.path}', 'sign --proposal FILE --key KEYFILE --out SIG', 'merge SIG'."
        )
    if elsewhere:
        note(f"Who has signed nothing tries the key out: 'pcm-p2p key test --fleet {fleet.path} KEYFILE'.")
    note(f"Print the sheet: 'pcm-p2p fleet sheet --fleet {fleet.path} --out sheet.html'.")
    note("Next: edit fleet.toml (origins, sites), then 'pcm-p2p fleet stage', 'sign' and 'publish'.")
    note(
        "Move root keys to an offline place. Nothing is changed on any device before 'pcm-p2p fleet activate' is signed."
    )


def _key_facts(holder: Holder, path: Path | None) -> dict[str, Any]:
    return {
        "path": str(path) if path is not None else None,
        "role": holder.role,
        "owner": holder.owner,
        "fingerprint": holder.fingerprint,
        "words": " ".join(holder.words),
        "tested": holder.proven,
    }


def _stem(holder: Holder) -> str:
    return holder.role if holder.role in ("snapshot", "timestamp") else f"{holder.role}-{holder.owner}"
