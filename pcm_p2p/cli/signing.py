"""``sign``, ``publish``: from a proposal to what devices believe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcm_p2p.cli import passphrase
from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.key_choice import Token, chosen, secret_for
from pcm_p2p.cli.output import Json, err, note, out, print_facts, print_json


def mount(app: typer.Typer) -> None:
    for command in (sign, publish):
        app.command()(command)


def sign(
    fleet: Fleet,
    key: Annotated[Path | None, typer.Option("--key", help="Key file; without a key the proposal is only shown.")] = None,
    token: Token = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask after showing what would be signed.")] = False,
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    json: Json = False,
) -> None:
    """Show exactly what would be signed, then add the signature of one key.

    EXIT STATUS: 0; 2 nothing is proposed, the key has no part in it, or the question was answered no; 5 wrong passphrase,
    damaged key file, or a proposal that breaks a rule.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError

    folder = FleetFolder.open(fleet)
    proposals = folder.proposals()
    if not proposals:
        raise InputError(
            "nothing is proposed", path=fleet, remedy="Stage a release, a policy or a fleet document first."
        )
    if not json:
        for proposal in proposals:
            for line in proposal.lines():
                err().print(line, markup=False)
            err().print()
    if key is not None or token is not None:
        chosen_key = chosen(key, token, option="--key FILE")
        if not yes and not _agreed():
            raise InputError("not signed", remedy="Stage something else, or run it again; --yes asks no question.")
        folder.sign(chosen_key, secret_for(chosen_key, passphrase_file, passphrase_fd))
        proposals = folder.proposals()
    if json:
        print_json([proposal.as_json() for proposal in proposals])
        return
    for proposal in proposals:
        for signatures in proposal.signatures:
            out().print(signatures.line(), markup=False)
    if all(proposal.complete for proposal in proposals):
        note("Next: 'pcm-p2p publish'.")


def _agreed() -> bool:
    try:
        return typer.confirm("Sign this?", err=True)
    except typer.Abort:
        return False  # nobody is there to answer


def publish(
    fleet: Fleet,
    to: Annotated[Path, typer.Option("--to", help="The origin tree: a folder that a web server serves.")],
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    json: Json = False,
) -> None:
    """Bring a signed proposal into the origin tree: content first, the timestamp last, so that a reader never sees half.

    EXIT STATUS: 0; 5 signatures are missing (their owners are named), a rule is broken, or the tree is ahead of this folder.
    """
    from pcm_p2p.authority.publish import OnlineKeys
    from pcm_p2p.authority.publish import publish as bring
    from pcm_p2p.authority.repository import FleetFolder

    folder = FleetFolder.open(fleet)
    words = passphrase.obtain(passphrase_file, passphrase_fd, what="the publisher's keys")
    published = bring(folder, to, OnlineKeys.open(folder, words))
    facts = {
        "schema": "pcm.published/1",
        "root": published.versions.root,
        "timestamp": published.versions.timestamp,
        "snapshot": published.versions.snapshot,
        "targets": published.versions.targets,
        "expires": published.expires.isoformat(),
        "segments_added": published.segments_added,
        "segment_bytes_added": published.segment_bytes_added,
        "origin": str(to),
    }
    print_json(facts) if json else print_facts(facts)
    for remark in published.remarks:
        note(remark)
