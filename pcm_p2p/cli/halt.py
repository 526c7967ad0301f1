"""``halt``, ``halt list``, ``halt lift``: one person stops a release or every change; a threshold lets it go on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pcm_p2p.cli import passphrase
from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.key_choice import Token, chosen, open_key
from pcm_p2p.cli.next_step import after_staging, can_publish, refuse_without_keys
from pcm_p2p.cli.output import Json, note, out, print_facts, print_json, print_table


class _OrderUnlessNamed(TyperGroup):
    """``halt openssl`` is ``halt order openssl``: who has to stop something has no time for a second word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["order", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Stop a release, or every change, with one key. 'halt RELEASE[@VERSION]' and 'halt --all' are short for 'halt order'.",
    no_args_is_help=True,
    cls=_OrderUnlessNamed,
)


@app.command()
def order(
    fleet: Fleet,
    reason: Annotated[str, typer.Option(help="Why, in a sentence: every device shows it.")],
    release: Annotated[str | None, typer.Argument(metavar="RELEASE[@VERSION]", help="What to stop.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Stop every change.")] = False,
    key: Annotated[
        Path | None, typer.Option("--key", help="Key file of a person: root, targets, or a site's or team's.")
    ] = None,
    token: Token = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Publish at once: the origin tree. Needs the publisher's keys.")
    ] = None,
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    publisher_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            help="With --to: the passphrase of the publisher's keys; without it the one of --passphrase-file."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Order a halt and sign it, with one key. Devices that learn of it bring what is halted and do not apply it.

    A root or targets key stops the whole fleet, the key of a site its devices, the key of a team its releases. A change that is
    under way is finished or rolled back. Nothing that is proposed besides is published along.

    Example: pcm-p2p halt openssl@3.0.15-1 --reason 'does not start' --fleet fleet --key alice.key --to origin

    EXIT STATUS: 0; 2 the release is unknown, or the key may not halt; 5 wrong passphrase, or refused by the publisher.
    """
    from pcm_p2p.authority import halting
    from pcm_p2p.authority.publish import OnlineKeys, publish
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError
    from pcm_p2p.trust.delegation import HALT

    if everything == (release is not None):
        raise InputError("what to halt is not clear", remedy="Name a release, or pass --all.")
    folder = FleetFolder.open(fleet)
    opened = open_key(chosen(key, token, option="--key FILE"), passphrase_file, passphrase_fd)
    name, _, version = (release or "").partition("@")
    online = None
    if to is not None:
        refuse_without_keys(folder)
        # Before anything is ordered: who mistypes the second passphrase shall not leave an order behind that is not in force.
        words = passphrase.obtain(
            publisher_passphrase_file or passphrase_file,
            None if publisher_passphrase_file else passphrase_fd,
            what="the publisher's keys",
        )
        online = OnlineKeys.open(folder, words)
    ordered = halting.order(folder, opened, release=name, version=version, reason=reason)
    facts: dict[str, Any] = {
        "schema": "pcm.halt-order/1",
        "id": ordered.halt.id,
        "halts": ordered.halt.what,
        "for": ordered.reach.sentence(),
        "by": ordered.halt.by,
        "published": None,
    }
    if to is not None and online is not None:
        published = publish(folder, to, online, only=[HALT])
        facts["published"] = {"timestamp": published.versions.timestamp, "origin": str(to)}
    if json:
        print_json(facts)
        return
    print_facts({"halts": ordered.halt.what, "for": ordered.reach.sentence(), "id": ordered.halt.id})
    if to is None:
        step = (
            "'pcm-p2p publish --only halt'"
            if can_publish(folder)
            else "'pcm-p2p proposal export FILE --role halt', and carry that file to who publishes"
        )
        note(f"It is signed and NOT in force yet. Next: {step}.")
    else:
        note(
            "Published. Devices hold it as soon as they learn of it; 'pcm-p2p halt lift' takes the threshold of targets."
        )


@app.command(name="list")
def list_(fleet: Fleet, json: Json = False) -> None:
    """Show the halts of this fleet. What they stop, for whom, who ordered them, and whether they are in force.

    EXIT STATUS: 0.
    """
    from pcm_p2p.authority.halting import standings
    from pcm_p2p.authority.repository import FleetFolder

    found = standings(FleetFolder.open(fleet))
    if json:
        print_json(
            [
                {
                    "id": one.halt.id,
                    "halts": one.halt.what,
                    "for": one.reach.sentence(),
                    "by": one.halt.by,
                    "since": one.halt.since.isoformat(),
                    "reason": one.halt.reason,
                    "state": one.state,
                }
                for one in found
            ]
        )
        return
    if not found:
        note("Nothing is halted.")
        return
    print_table(
        ("ID", "HALTS", "FOR", "BY", "SINCE", "STATE", "REASON"),
        (
            (
                one.halt.id[:8],
                one.halt.what,
                one.reach.sentence(),
                one.halt.by,
                f"{one.halt.since:%Y-%m-%d %H:%M}",
                one.state,
                one.halt.reason,
            )
            for one in found
        ),
    )


@app.command()
def lift(
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="As 'halt list' shows them; six digits are enough.")],
    fleet: Fleet,
    same_key: Annotated[
        bool, typer.Option("--same-key", help="And all others that were ordered with the same key, as after a theft.")
    ] = False,
    json: Json = False,
) -> None:
    """Propose that halts count no longer. It takes the threshold of targets, and 'pcm-p2p publish'.

    EXIT STATUS: 0; 2 an id names no halt, or several.
    """
    from pcm_p2p.authority.halting import lift as propose
    from pcm_p2p.authority.repository import FleetFolder

    folder = FleetFolder.open(fleet)
    lifted, missing = propose(folder, ids, same_key=same_key), folder.signatures_missing()
    if json:
        rows = [{"id": one.id, "halts": one.what, "by": one.by, "reason": one.reason} for one in lifted]
        signatures = [one.as_json() for one in missing]
        print_json({"schema": "pcm.halt-lift/1", "lifting": rows, "signatures_missing": signatures})
        return
    for halt in lifted:
        out().print(f"proposed: {halt.what} goes on; halted by {halt.by}: {halt.reason}", markup=False)
    for one in missing:
        note(one.line())
    after_staging(folder)
