"""``key new``, ``key show``, ``key public``, ``key compare``, ``key passphrase``, ``key test``: what authorities sign with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcm_p2p.cli import passphrase
from pcm_p2p.cli.key_choice import Token, chosen, open_key, secret_for
from pcm_p2p.cli.output import Json, note, out, print_facts, print_json

if TYPE_CHECKING:
    from pcm_p2p.authority.keys.key_test import KeyTest
    from pcm_p2p.authority.keys.public_key import PublicKey
    from pcm_p2p.authority.repository import FleetFolder

app = typer.Typer(help="Keys: what authorities sign with.", no_args_is_help=True)

KeyFile = Annotated[Path | None, typer.Argument(help="A key file.")]


class Derivation(StrEnum):
    """Cost of trying a passphrase: memory and time of Argon2id (measured: 0.16 s and 0.74 s a try)."""

    interactive = "interactive"
    moderate = "moderate"


Cost = Annotated[Derivation, typer.Option("--kdf", help="Cost of trying a passphrase.")]


@app.command()
def new(
    path: Annotated[Path | None, typer.Argument(help="The file to write; it must not exist.")] = None,
    token: Token = None,
    role: Annotated[
        str, typer.Option(help="What the key is for: root, targets (releases, policies), team-TEAM, site-SITE.")
    ] = "targets",
    owner: Annotated[str, typer.Option(help="The person or machine that holds it; shown wherever it signs.")] = "",
    kdf: Cost = Derivation.moderate,
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    json: Json = False,
) -> None:
    """Make a key, in a file or in a token. Ed25519 in a file, encrypted under a passphrase; or ECDSA P-256 in a token,
    which it never leaves.

    Example: pcm-p2p key new alice.key --role root --owner alice

    EXIT STATUS: 0; 2 the file exists, the owner or passphrase cannot be used, or the token is not there; 5 wrong PIN.
    """
    from pcm_p2p.authority.keys import hardware_key, keyfile
    from pcm_p2p.authority.keys.public_key import PublicKey
    from pcm_p2p.errors import InputError

    key = chosen(path, token, option="PATH")
    if not owner:
        raise InputError("--owner is missing", remedy="Name the person or machine that will hold the key.")
    if isinstance(key, str):
        hardware_key.TokenAddress.parse(key)
        _show(key, hardware_key.create(key, secret_for(key, passphrase_file, passphrase_fd), role, owner), json)
        note(f"Next: 'pcm-p2p key public --token {key} --out FILE.pub' for whoever makes the fleet.")
        return
    text = passphrase.obtain(passphrase_file, passphrase_fd, what=f"the new {role} key", confirm=True)
    made = keyfile.create(key, text, role, owner, preset=kdf.value)
    _show(key, PublicKey(made.role, made.owner, made.key), json)
    note("Keep the passphrase apart from the file: one without the other signs nothing.")
    note(f"Next: 'pcm-p2p key public {key} --out FILE.pub' for whoever makes the fleet.")


@app.command()
def show(
    path: Annotated[Path | None, typer.Argument(help="A key file or a public file.")] = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Show the public side of a key. Role, owner, key id, and its fingerprint in groups and as words. No passphrase is
    needed.

    EXIT STATUS: 0; 2 the file is absent, damaged, or readable by others, or the token is not there.
    """
    key = chosen(path, token, option="PATH")
    _show(key, _read_public(key), json)


@app.command()
def public(
    to: Annotated[Path, typer.Option("--out", help="The public file to write, such as alice-root.pub.")],
    path: KeyFile = None,
    token: Token = None,
    role: Annotated[str, typer.Option(help="For a key that a token's own tool made: what it is for.")] = "",
    owner: Annotated[str, typer.Option(help="For a key that a token's own tool made: who holds it.")] = "",
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    json: Json = False,
) -> None:
    """Write the public side of a key into a small file. The key itself signs it: proof that its maker holds the key.

    Carry it to whoever makes the fleet or delegates to you, and compare the words over the telephone.

    EXIT STATUS: 0; 2 the file exists, or the key is absent, damaged or of no role; 5 wrong passphrase or PIN.
    """
    from pcm_p2p.authority.keys import hardware_key, keyfile
    from pcm_p2p.authority.keys.public_key import PublicKey, is_owner, is_role
    from pcm_p2p.authority.keys.public_key_file import write_public_key
    from pcm_p2p.errors import InputError

    key = chosen(path, token)
    if isinstance(key, Path):
        if role or owner:
            raise InputError("a key file says role and owner itself", remedy="Leave --role and --owner out.")
        opened = keyfile.load(key, secret_for(key, passphrase_file, passphrase_fd))
        signer: Any = opened.signer()
        found = PublicKey(opened.role, opened.owner, opened.key)
    else:
        signer, found = hardware_key.open_token_key(
            key, secret_for(key, passphrase_file, passphrase_fd), role=role, owner=owner
        )
        if not is_role(found.role) or not is_owner(found.owner):
            raise InputError(
                "the key's label in the token does not say what it is for and whose it is",
                remedy="Pass --role ROLE and --owner NAME.",
            )
    write_public_key(to, found, signer)
    _show(to, found, json)


@app.command()
def compare(
    path: Annotated[Path, typer.Argument(help="A key file or a public file.")],
    words: Annotated[list[str], typer.Argument(help="The twelve words that its owner reads aloud.")],
) -> None:
    """Compare the words that a key's owner reads aloud. With the key in a file, so that no eye skips one.

    EXIT STATUS: 0 they are those of this key; 2 a word was misheard; 5 they are those of another key.
    """
    from pcm_p2p.authority.keys.public_key_file import read_public_key
    from pcm_p2p.authority.keys.words import bytes_of
    from pcm_p2p.errors import TrustError

    key = read_public_key(path)
    said = bytes_of(tuple(word for text in words for word in text.split()))
    if said.hex() != key.keyid[:32]:
        raise TrustError(
            f"{path}: the words are those of another key than this {key.role} key of {key.owner}",
            remedy="Do not use the file: it was exchanged on its way, or its owner read another key's words.",
        )
    out().print(f"the same: the {key.role} key of {key.owner}, {key.fingerprint}", markup=False)


@app.command("passphrase")
def change_passphrase(
    path: Annotated[Path, typer.Argument(help="A key file.")],
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    new_passphrase_file: Annotated[
        Path | None, typer.Option(help="Read the new passphrase from the first line of this file.")
    ] = None,
    new_passphrase_fd: Annotated[
        int | None, typer.Option(help="Read the new passphrase from this open file descriptor.")
    ] = None,
    kdf: Cost = Derivation.moderate,
) -> None:
    """Encrypt a key file under another passphrase. The old file is replaced after the new one was opened.

    Copies and backups of the old file still open with the old passphrase.

    EXIT STATUS: 0; 2 the file is absent, or the new passphrase is empty; 5 wrong passphrase or damaged key file.
    """
    from pcm_p2p.authority.keys import keyfile

    keyfile.read_public(path)
    old = passphrase.obtain(passphrase_file, passphrase_fd, what=f"{path}, as it is")
    text = passphrase.obtain(new_passphrase_file, new_passphrase_fd, what=f"{path}, from now on", confirm=True)
    keyfile.change_passphrase(path, old, text, preset=kdf.value)
    out().print(f"{path} opens with the new passphrase", markup=False, soft_wrap=True)
    note("Remove copies that open with the old one, and make a new copy.")


@app.command("test")
def sign_challenge(
    path: KeyFile = None,
    token: Token = None,
    fleet: Annotated[Path | None, typer.Option("--fleet", envvar="PCM_P2P_FLEET", help="The fleet folder.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Where the fleet folder is not: a root of the fleet that was carried here.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="With --root: the file to carry back.")] = None,
    accept: Annotated[
        list[Path] | None, typer.Option(help="With --fleet, without a key: such a file that came back; repeat it.")
    ] = None,
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    json: Json = False,
) -> None:
    """Let a key sign a challenge, and verify that. Under the key that the fleet lists; says whose keys are still untested.

    What is signed is no document of the fleet and changes nothing. Where the fleet folder is not, test against its root with
    --root and --out, and carry the answer to the folder for --accept.

    EXIT STATUS: 0; 2 the fleet does not list the key; 5 wrong passphrase or PIN, or the signature does not verify.
    """
    from pcm_p2p.authority.keys.key_test_file import accept_tests, prove_elsewhere, prove_key
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.authority.staging import system_clock
    from pcm_p2p.durable import write_atomic
    from pcm_p2p.errors import InputError

    if root is not None:
        if to is None or accept:
            raise InputError("--root goes with --out FILE", remedy="Carry that file to the fleet folder, for --accept.")
        made = prove_elsewhere(root, open_key(chosen(path, token), passphrase_file, passphrase_fd), system_clock())
        write_atomic(to, made.encoded())
        out().print(f"{to}: test signatures for {', '.join(one.challenge.role for one in made.tests)}", markup=False)
        note(f"Next: carry {to} to the fleet folder, and 'pcm-p2p key test --accept {to} --fleet FOLDER'.")
        return
    if fleet is None or to is not None:
        raise InputError("--fleet is missing", remedy="Name the fleet folder, or test with --root ROOT --out FILE.")
    folder = FleetFolder.open(fleet)
    if accept:
        tests = tuple(one for file in accept for one in accept_tests(folder, file))
    else:
        tests = prove_key(folder, open_key(chosen(path, token), passphrase_file, passphrase_fd))
    _show_tests(folder, tests, json)


def _show_tests(folder: FleetFolder, tests: tuple[KeyTest, ...], json: bool) -> None:
    from pcm_p2p.authority.keys.key_test_file import untested
    from pcm_p2p.trust.lint import ROLES as TOP_LEVEL

    left = untested(folder)
    if json:
        print_json(
            {
                "schema": "pcm.key-test/1",
                "tested": [{"role": one.challenge.role, "keyid": one.challenge.keyid} for one in tests],
                "untested": [{"role": one.role, "owner": one.owner, "keyid": one.keyid} for one in left],
            }
        )
        return
    for one in tests:
        by = "root" if one.challenge.role in TOP_LEVEL else "targets"
        out().print(f"{one.challenge.role}: signed, and verified under the key that {by} {one.challenge.under} lists")
    for holder in left:
        note(f"not tested yet: the {holder.role} key of {holder.owner}")


def _read_public(key: Path | str) -> PublicKey:
    from pcm_p2p.authority.keys import hardware_key
    from pcm_p2p.authority.keys.public_key_file import read_public_key

    return read_public_key(key) if isinstance(key, Path) else hardware_key.read_public(key)


def _show(place: Path | str, key: PublicKey, json: bool) -> None:
    facts = {
        "path": str(place),
        "role": key.role,
        "owner": key.owner,
        "algorithm": key.algorithm,
        "keyid": key.keyid,
        "fingerprint": key.fingerprint,
        "words": " ".join(key.words),
    }
    if json:
        print_json(facts)
    else:
        print_facts({**facts, "words": f"{' '.join(key.words[:6])}\n{' '.join(key.words[6:])}"})
