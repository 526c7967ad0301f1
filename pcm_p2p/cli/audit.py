"""``audit verify``, ``audit show``: who signed what, and whether the record of it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcm_p2p.cli.output import Json, counted, note, out, print_json, print_table

app = typer.Typer(help="The audit log: every act of signing. Each is chained to the one before.", no_args_is_help=True)

OfFleet = Annotated[Path | None, typer.Option("--fleet", envvar="PCM_P2P_FLEET", help="The fleet folder.")]


@app.command()
def verify(
    fleet: OfFleet = None,
    origin: Annotated[
        Path | None, typer.Option("--origin", help="A published tree, or a copy of one, instead.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="A root document that is known to be right, such as one of enrolment.")
    ] = None,
    json: Json = False,
) -> None:
    """Check the whole log, without a network. The chain, every signature in it, and that no published one is missing from
    it.

    A log that was altered, cut off or put in another order, and a signing act without an entry, are named each.

    EXIT STATUS: 0 the log is whole; 2 there is none; 5 it is not, with what is wrong.
    """
    from pcm_p2p.authority.audit.verification import verify_folder, verify_tree
    from pcm_p2p.authority.keys.fingerprint import grouped
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError, TrustError
    from pcm_p2p.shown_text import cut

    if origin is not None:
        audited = verify_tree(origin, root)
    elif fleet is not None:
        audited = verify_folder(FleetFolder.open(fleet), root)
    else:
        raise InputError("nothing is named", remedy="Pass --fleet FOLDER, or --origin TREE.")
    verdict = audited.verdict
    if json:
        print_json(
            {
                "schema": "pcm.audit/1",
                "root": audited.root_version,
                "root_sha256": audited.root_sha256,
                "whole": not verdict.complaints,
                "entries": verdict.entries,
                "verified": verdict.verified,
                "unkept": verdict.unkept,
                "complaints": list(verdict.complaints),
            }
        )
    else:
        out().print(
            f"{counted(verdict.entries, 'entry', 'entries')}, {counted(verdict.verified, 'signature')} verified",
            markup=False,
        )
        if root is None and audited.root_version:
            digest = grouped(audited.root_sha256[:32])
            note(
                f"by the keys of root {audited.root_version}: compare its digest with another person, or pass --root: {digest}"
            )
        if verdict.unkept:
            note(f"{verdict.unkept} are over documents that are not kept here; of these the chain alone was checked.")
    if verdict.complaints:
        said = [cut(complaint, 400) for complaint in verdict.complaints[:20]]
        if len(verdict.complaints) > len(said):
            said.append(f"… and {len(verdict.complaints) - len(said)} faults more; --json lists them")
        raise TrustError(
            "the audit log is not whole:\n" + "\n".join(f"  {line}" for line in said),
            remedy="Compare with a copy of the fleet folder or of the published tree; find out who could write here.",
        )


@app.command()
def show(
    fleet: Annotated[Path, typer.Option("--fleet", envvar="PCM_P2P_FLEET", help="The fleet folder.")],
    role: Annotated[str | None, typer.Option(help="Only acts for this role, such as root.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only acts of this person.")] = None,
    last: Annotated[int, typer.Option(min=1, help="How many of the newest acts.")] = 50,
    json: Json = False,
) -> None:
    """Show the newest acts of signing. As they are written; 'pcm-p2p audit verify' says whether they can be believed.

    EXIT STATUS: 0.
    """
    import msgspec

    from pcm_p2p.authority.audit.journal import AuditJournal
    from pcm_p2p.authority.audit.log import read_chain
    from pcm_p2p.authority.keys.fingerprint import grouped
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.shown_text import shown

    folder = FleetFolder.open(fleet)
    entries, complaints = read_chain(AuditJournal(folder.path, folder.wall_clock).read())
    chosen = [entry for entry in entries if role in (None, entry.role) and owner in (None, entry.owner)][-last:]
    if json:
        print_json([msgspec.to_builtins(entry) for entry in chosen])
    else:
        print_table(
            ("NUMBER", "TIME", "ACT", "DOCUMENT", "BY", "DIGEST"),
            (
                (
                    entry.number,
                    f"{entry.time:%Y-%m-%d %H:%M}",
                    entry.act,
                    entry.title,
                    shown(entry.owner),
                    grouped(entry.sha256[:16]),
                )
                for entry in chosen
            ),
        )
    if complaints:
        note("The chain is broken: see 'pcm-p2p audit verify'.")
