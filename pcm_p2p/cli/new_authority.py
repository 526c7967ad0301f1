"""``fleet new-authority``: replacing the fleet's certificate authority without losing a member."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli import fleet as fleet_commands
from pcm_p2p.cli import passphrase
from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.key import Derivation
from pcm_p2p.cli.output import note, out

if TYPE_CHECKING:
    from pcm_p2p.authority.repository import FleetFolder


def mount() -> None:
    """Add the command to the group ``fleet``."""
    fleet_commands.app.command("new-authority")(new_authority)


def new_authority(
    fleet: Fleet,
    use: Annotated[bool, typer.Option("--use", help="Step 2: the next authority certifies from now on.")] = False,
    retire: Annotated[bool, typer.Option("--retire", help="Step 3: the former ones are believed no longer.")] = False,
    reason: Annotated[
        str,
        typer.Option(help="With --retire: put the former ones on the deny list too, for this reason (a stolen key)."),
    ] = "",
    kdf: Annotated[
        Derivation, typer.Option(help="Cost of trying the passphrase of the new key.")
    ] = Derivation.interactive,
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
) -> None:
    """Replace the certificate authority, in three steps. Make it (no option), --use, --retire.

    After each step: 'pcm-p2p sign', 'pcm-p2p publish', and time for all devices to read of it. Between --use and --retire
    devices renew their certificates; whoever did not is out after --retire and enrols again. Reports on their way are taken
    all the same, unless --reason puts the former authority on the deny list.

    EXIT STATUS: 0; 2 the steps are out of order; 5 wrong passphrase.
    """
    from pcm_p2p.authority import ca_folder
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.authority.revocation import change_deny_list
    from pcm_p2p.errors import InputError
    from pcm_p2p.trust.deny import authority_sha256

    if use and retire:
        raise InputError("--use and --retire are two steps", remedy="Give one of them.")
    if reason and not retire:
        raise InputError("is for --retire", key="--reason", remedy="Leave it out, or retire the former authorities.")
    folder = FleetFolder.open(fleet)
    ca = folder.path / "ca"
    if use:
        if ca_folder.next_authority(ca) is not None or not ca_folder.former(ca):
            _check_told(folder)
            ca_folder.use_next(ca)
        made = ca_folder.certifying(ca)
        folder.stage_fleet_document()
        out().print(f"authority {ca_folder.fingerprint(made)[:16]} certifies from the next start of the desk on")
        note("Restart the desk; tokens that were made before are void. Next: 'pcm-p2p sign' and 'pcm-p2p publish'.")
        return
    if retire:
        if ca_folder.next_authority(ca) is not None:
            raise InputError(
                "the next authority does not certify yet", remedy="'pcm-p2p fleet new-authority --use' first."
            )
        if reason:
            now = folder.wall_clock().replace(microsecond=0)
            change_deny_list(folder, lambda held: held.with_authorities(ca_folder.former_der(ca), reason, now))
        for one in ca_folder.retire(ca):
            out().print(f"proposed: authority {ca_folder.fingerprint(one)[:16]} is believed no longer")
        folder.stage_fleet_document()
        note(
            "Next: 'pcm-p2p sign' and 'pcm-p2p publish'. Members that it certified and that did not renew are out then."
        )
        return
    words = passphrase.obtain(
        passphrase_file, passphrase_fd, what=f"the new certificate authority of fleet {folder.name}", confirm=True
    )
    founded = ca_folder.found_next(ca, folder.fleet_id, words, owner="desk", preset=kdf.value, now=folder.wall_clock())
    folder.stage_fleet_document()
    out().print(f"proposed: devices believe authority {authority_sha256(founded.der)[:16]} too")
    note("Next: 'pcm-p2p sign', 'pcm-p2p publish', and when all devices have read of it: 'fleet new-authority --use'.")


def _check_told(folder: FleetFolder) -> None:
    """Raise ``InputError`` unless what is published names the next authority."""
    from pcm_p2p.authority import ca_folder
    from pcm_p2p.errors import InputError
    from pcm_p2p.trust.identity import authorities_untrusted
    from pcm_p2p.trust.index import AUTHORITIES

    published = folder.targets()
    info = published.signed.targets.get(AUTHORITIES) if published is not None else None
    upcoming = ca_folder.next_authority(folder.path / "ca")
    known = authorities_untrusted(folder.files.read(AUTHORITIES, info)) if info is not None else ()
    if upcoming is None or ca_folder.fingerprint(upcoming) not in map(ca_folder.fingerprint, known):
        raise InputError(
            "devices were not told of the next authority yet",
            remedy="Make it with 'pcm-p2p fleet new-authority', sign, publish, and wait until all devices have read of it.",
        )
