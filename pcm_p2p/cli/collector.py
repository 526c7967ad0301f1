"""``collector``: takes reports, and keeps a console running that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcm_p2p.cli.addresses import PortFile, host_and_port
from pcm_p2p.cli.node import DEFAULT_STATE, State
from pcm_p2p.cli.one_file import refuse_in_one_file
from pcm_p2p.cli.output import note, out


def mount(app: typer.Typer) -> None:
    app.command()(collector)


def collector(
    state: State = DEFAULT_STATE,
    listen: Annotated[str, typer.Option(help="HOST:PORT for devices.")] = "0.0.0.0:8743",
    console: Annotated[str, typer.Option(help="HOST:PORT for browsers.")] = "127.0.0.1:8744",
    show: Annotated[
        bool,
        typer.Option(
            "--show", help="Print the [[collector]] table for fleet.toml, with --listen as address, and exit."
        ),
    ] = False,
    password_file: Annotated[
        Path | None,
        typer.Option(help="The console's password file; made, and the password shown once, if absent."),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM certificate: the console speaks HTTPS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM key of that certificate.")] = None,
    port_file: PortFile = None,
    console_port_file: Annotated[Path | None, typer.Option(help="As --port-file, for the console.")] = None,
) -> None:
    """Take reports, and show them in a web console. From devices and neighbours, each acknowledged, until SIGTERM or
    Ctrl-C.

    EXIT STATUS: 0 ended on request; 2 an address is wrong; 5 the state folder is not enrolled as a collector; 6 it is in use.
    """
    from pcm_p2p.collector.supervisor import ConsoleSettings
    from pcm_p2p.daemon.collect import run_collector, show_table
    from pcm_p2p.daemon.log import configure

    address = host_and_port(listen)
    if show:
        out().print(show_table(state, listen), end="", markup=False)
        note("Append it to fleet.toml with the address that devices reach, then 'pcm-p2p fleet stage', sign, publish.")
        return
    refuse_in_one_file("collector")
    configure(json_lines=False, verbose=False)
    host_and_port(console)
    run_collector(
        state,
        address,
        ConsoleSettings(
            archive=state / "collector" / "archive.sqlite",
            listen=console,
            password_file=password_file or state / "collector" / "console-password",
            port_file=console_port_file,
            certificate=certificate,
            key=key,
        ),
        port_file,
    )
