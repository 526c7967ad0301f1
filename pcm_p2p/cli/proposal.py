"""``proposal show``, ``proposal export``, ``proposal import``, ``proposal discard``: what waits for signatures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.next_step import after_signing, can_publish
from pcm_p2p.cli.output import Json, note, out, print_facts, print_json, size
from pcm_p2p.cli.signing import Full, tell

if TYPE_CHECKING:
    from pcm_p2p.authority.document_difference import Contents

app = typer.Typer(help="Proposals: what would be published once it is signed.", no_args_is_help=True)


@app.command()
def show(
    fleet: Annotated[
        Path | None, typer.Option("--fleet", envvar="PCM_P2P_FLEET", help="The fleet folder with the proposal.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--proposal", help="A proposal that was carried here instead.")] = None,
    full: Full = False,
    json: Json = False,
) -> None:
    """Show what is proposed, and whose signatures are missing. Line by line, as 'sign' shows it.

    EXIT STATUS: 0; 2 nothing is proposed; 5 the carried file is not what was signed.
    """
    from pcm_p2p.authority.carry.carried_proposal import proposals_in
    from pcm_p2p.authority.carry.carrying import contents_of, read_bundle
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError

    contents: Contents
    if file is not None:
        bundle = read_bundle(file)
        proposals, contents = proposals_in(bundle), bundle.content
    elif fleet is not None:
        folder = FleetFolder.open(fleet)
        proposals, contents = folder.proposals(), contents_of(folder)
    else:
        raise InputError("nothing is named", remedy="Pass --fleet FOLDER, or --proposal FILE.")
    if json:
        print_json([one.as_json(contents) for one in proposals])
        return
    if not proposals:
        raise InputError("nothing is proposed", path=fleet, remedy="Stage a change first.")
    tell(proposals, contents, full=full)
    for one in proposals:
        for signatures in one.signatures:
            out().print(signatures.line(), markup=False)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="The file to write, such as friday.proposal.")],
    fleet: Fleet,
    with_segments: Annotated[
        bool, typer.Option("--with-segments", help="Put the blobs of new releases in, for another copy of the folder.")
    ] = False,
    role: Annotated[
        list[str] | None, typer.Option(help="Only what is proposed for this role, such as halt; repeat it.")
    ] = None,
    json: Json = False,
) -> None:
    """Write what is proposed into a file, to be signed elsewhere. People can judge and sign it on machines without a
    network.

    Example: pcm-p2p proposal export friday.proposal --fleet fleet

    EXIT STATUS: 0; 2 nothing is proposed (for that role), it cannot be signed without another one, or the file cannot be
    written.
    """
    from pcm_p2p.authority.carry.carrying import export_proposal
    from pcm_p2p.authority.repository import FleetFolder

    folder = FleetFolder.open(fleet)
    bundle = export_proposal(folder, file, with_segments=with_segments, only=role or ())
    facts = {
        "file": str(file),
        "size_bytes": file.stat().st_size,
        "proposed": [f"{role} {one.signed.version}" for role, one in sorted(bundle.proposed.items())],
        "segments": len(bundle.segments),
    }
    if json:
        print_json({"schema": "pcm.exported/1", **facts})
        return
    print_facts({**facts, "size_bytes": size(file.stat().st_size), "proposed": ", ".join(facts["proposed"])})  # type: ignore[arg-type]
    if not with_segments and any(path.endswith(".manifest") for paths in bundle.paths.values() for path in paths):
        note("The segments of its releases are not in it. Where it is published from another folder: --with-segments.")
    waiting = [one for one in folder.proposals() if one.role in bundle.proposed and not one.complete]
    if waiting:
        note(f"Next, on each signer's machine: 'pcm-p2p sign --proposal {file.name} --key KEY --out NAME.sig'.")
    if not waiting or not can_publish(folder):
        note(f"Next, where it is published: 'pcm-p2p proposal import {file.name} --fleet FOLDER'.")


@app.command("import")
def bring(
    file: Annotated[Path, typer.Argument(help="A file that 'pcm-p2p proposal export' wrote.")],
    fleet: Fleet,
    json: Json = False,
) -> None:
    """Bring a carried proposal into this fleet folder. With its documents and whatever blobs are in it.

    Example: pcm-p2p proposal import friday.proposal --fleet fleet

    EXIT STATUS: 0; 2 something else is proposed there; 5 it is of another fleet, outdated, or breaks a rule.
    """
    from pcm_p2p.authority.carry.carrying import import_proposal
    from pcm_p2p.authority.repository import FleetFolder

    folder = FleetFolder.open(fleet)
    roles = import_proposal(folder, file)
    if json:
        print_json({"schema": "pcm.imported/1", "proposed": list(roles)})
        return
    proposals = folder.proposals()
    for proposal in proposals:
        for signatures in proposal.signatures:
            out().print(signatures.line(), markup=False)
    after_signing(folder, proposals)


@app.command()
def discard(
    fleet: Fleet,
    role: Annotated[
        list[str] | None, typer.Option(help="Only what is proposed for this role, such as site-berlin; repeat it.")
    ] = None,
) -> None:
    """Drop what is proposed, with the signatures on it. Nothing that is published changes.

    EXIT STATUS: 0; 2 nothing is proposed for that role.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError

    folder = FleetFolder.open(fleet)
    dropped = [one for one in folder.proposals() if not role or one.role in role]
    absent = sorted(set(role or ()) - {one.role for one in dropped})
    if absent or not dropped:
        what = f"nothing is proposed for {', '.join(absent)}" if absent else "nothing is proposed"
        raise InputError(what, path=fleet, remedy="See 'pcm-p2p proposal show'.")
    folder.discard(*(role or ()))
    for one in dropped:
        out().print(f"dropped {one.role} {one.version_after}", markup=False)
