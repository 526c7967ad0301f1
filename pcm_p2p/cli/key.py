"""``key new``, ``key show``: the files that authorities sign with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli import passphrase
from pcm_p2p.cli.output import Json, note, print_facts, print_json

if TYPE_CHECKING:
    from pcm_p2p.authority.keyfile import PublicKeyFile

app = typer.Typer(help="Key files: what authorities sign with.", no_args_is_help=True)


class KeyRole(StrEnum):
    root = "root"
    targets = "targets"
    snapshot = "snapshot"
    timestamp = "timestamp"


class Derivation(StrEnum):
    """Cost of trying a passphrase: memory and time of Argon2id (measured: 0.16 s and 0.74 s a try)."""

    interactive = "interactive"
    moderate = "moderate"


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    role: Annotated[KeyRole, typer.Option(help="What the key is for.")] = KeyRole.targets,
    owner: Annotated[str, typer.Option(help="The person or machine that holds it; shown wherever it signs.")] = "",
    kdf: Annotated[Derivation, typer.Option(help="Cost of trying a passphrase.")] = Derivation.moderate,
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    json: Json = False,
) -> None:
    """Make an Ed25519 key, encrypted under a passphrase, in a file that only its owner can read.

    EXIT STATUS: 0; 2 the file exists, or the owner or passphrase cannot be used.
    """
    from pcm_p2p.authority import keyfile
    from pcm_p2p.errors import InputError

    if not owner:
        raise InputError("--owner is missing", remedy="Name the person or machine that will hold the key.")
    text = passphrase.obtain(passphrase_file, passphrase_fd, what=f"the new {role.value} key", confirm=True)
    _show(keyfile.create(path, text, role.value, owner, preset=kdf.value), json)
    note("Keep the passphrase apart from the file: one without the other signs nothing.")


@app.command()
def show(path: Annotated[Path, typer.Argument(help="A key file.")], json: Json = False) -> None:
    """The public side of a key file: role, owner, key id, fingerprint. No passphrase is needed.

    EXIT STATUS: 0; 2 the file is absent, damaged, or readable by others.
    """
    from pcm_p2p.authority import keyfile

    _show(keyfile.read_public(path), json)


def _show(key: PublicKeyFile, json: bool) -> None:
    facts = {
        "path": str(key.path),
        "role": key.role,
        "owner": key.owner,
        "keyid": key.keyid,
        "fingerprint": key.fingerprint,
    }
    print_json(facts) if json else print_facts(facts)
