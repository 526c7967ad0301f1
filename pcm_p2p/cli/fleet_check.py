"""``fleet check``: what in a fleet comes near its end, for people and for cron."""

from __future__ import annotations

import typer

from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.output import Json, print_json, print_table


def mount(fleet_app: typer.Typer) -> None:
    fleet_app.command()(check)


def check(fleet: Fleet, json: Json = False) -> None:
    """Say what expires when, and whose signatures are missing. And which keys were never tested.

    Levels: warn and critical for root 180/90 and 30 days before its end, for targets 90/30 and 14, for sites and teams 30 and
    14, for what the publisher signs a third and a ninth of its life. In the folder of a site that acts alone, warn also where
    what is held of the fleet ('site floor') is out of date. A note is a choice, such as a threshold that one absent person
    breaks.

    EXIT STATUS: 0 all is well, but for notes; 1 something needs a person soon (warn); 5 it is critical or expired: devices
    install nothing new, or soon will not.
    """
    from pcm_p2p.authority.people.expiry import Level, worst
    from pcm_p2p.authority.people.health import check as look
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import PcmError, TrustError

    folder = FleetFolder.open(fleet)
    findings = look(folder)
    level = worst(findings)
    if json:
        facts = {"fleet": folder.fleet_id, "name": folder.name, "level": level.name}
        print_json({"schema": "pcm.fleet-check/1", **facts, "findings": [one.as_json() for one in findings]})
    else:
        print_table(
            ("WHAT", "LEVEL", "EXPIRES", ""),
            (
                (one.what, one.level.name, f"{one.expires:%Y-%m-%d}" if one.expires else "", one.text)
                for one in findings
            ),
        )
    if level >= Level.critical:
        raise typer.Exit(TrustError.exit_status)
    if level == Level.warn:
        raise typer.Exit(PcmError.exit_status)
