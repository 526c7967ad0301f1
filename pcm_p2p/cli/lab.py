"""``lab up``, ``lab run``: a whole fleet on this machine, from ingest to the console."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli.one_file import refuse_in_one_file
from pcm_p2p.cli.output import Json, err, note, out, print_json

if TYPE_CHECKING:
    import trio

    from pcm_p2p.lab.result import Result
    from pcm_p2p.lab.scenario import Scenario

app = typer.Typer(
    help="A whole fleet on this machine. For a first look, training, sizing and tests.", no_args_is_help=True
)


class NetworkChoice(StrEnum):
    """Where the devices live: all on 127.0.0.1, or each in a network namespace with shaped links (needs root)."""

    loopback = "loopback"
    netns = "netns"


ScenarioFile = Annotated[
    Path | None,
    typer.Argument(metavar="SCENARIO.toml", help="Sites, devices, link rates, faults; six devices without it."),
]
Network = Annotated[NetworkChoice | None, typer.Option(help="As the scenario says without it; netns needs root.")]
DeviceCount = Annotated[int | None, typer.Option("--devices", min=1, help="Devices in each site.")]
Package = Annotated[str, typer.Option(help="Release two versions of this package of the machine's archive.")]
Old = Annotated[Path | None, typer.Option(help="Release this file first; with --new.")]
New = Annotated[Path | None, typer.Option(help="Release this file then.")]
Level = Annotated[int | None, typer.Option(min=1, max=22, help="zstd level of the segments.")]
Folder = Annotated[Path | None, typer.Option(help="Where the lab keeps everything; .lab of the checkout without it.")]
ConsolePort = Annotated[int, typer.Option(min=0, max=65_535, help="Port of the console on this machine (netns only).")]


@app.command()
def up(
    scenario: ScenarioFile = None,
    once: Annotated[
        bool, typer.Option("--once", help="End when the story is told; without it the fleet keeps running.")
    ] = False,
    json: Json = False,
    network: Network = None,
    devices: DeviceCount = None,
    package: Package = "",
    old: Old = None,
    new: New = None,
    level: Level = None,
    folder: Folder = None,
    console_port: ConsolePort = 0,
) -> None:
    """Bring up a whole fleet, and let a real update spread. An authority, an origin, a collector with its console, and
    devices.

    Two versions of a real package are taken from the machine's package archive (no root needed), else two wheels. The fleet
    keeps running until Ctrl-C, which ends every process that was started and nothing else. No file outside the lab's folder
    is written.

    EXIT STATUS: 0 every device ended patched and compliant; 1 not every one, or the lab cannot go on; 2 the scenario or an
    option is wrong; 130 Ctrl-C before the end.
    """
    chosen = _scenario(scenario, network, devices, package, old, new, level)
    _tell(chosen, folder, keep=not once, json=json, console_port=console_port)


@app.command()
def run(
    scenario: ScenarioFile = None,
    json: Json = False,
    network: Network = None,
    devices: DeviceCount = None,
    package: Package = "",
    old: Old = None,
    new: New = None,
    level: Level = None,
    folder: Folder = None,
) -> None:
    """The same, unattended: ends when the story is told.

    EXIT STATUS: 0 every device ended patched and compliant; 1 not every one, or the lab cannot go on; 2 the scenario or an
    option is wrong.
    """
    chosen = _scenario(scenario, network, devices, package, old, new, level)
    _tell(chosen, folder, keep=False, json=json, console_port=0)


def _scenario(
    file: Path | None,
    network: NetworkChoice | None,
    devices: int | None,
    package: str,
    old: Path | None,
    new: Path | None,
    level: int | None,
) -> Scenario:
    """The file's scenario (or the default one), with what the options say instead."""
    from msgspec.structs import replace

    from pcm_p2p.lab.scenario import Release, Scenario, check_scenario, load_scenario

    refuse_in_one_file("lab")
    chosen = Scenario() if file is None else load_scenario(file)
    if network is not None:
        chosen = replace(chosen, network=network.value)
    if devices is not None:
        chosen = replace(chosen, site=tuple(replace(site, devices=devices) for site in chosen.site))
    if level is not None:
        chosen = replace(chosen, compression_level=level)
    if package or old or new:
        chosen = replace(chosen, release=Release(package, str(old or ""), str(new or "")))
    return check_scenario(chosen, file or "the options")


def _tell(scenario: Scenario, folder: Path | None, *, keep: bool, json: bool, console_port: int) -> None:
    import trio

    from pcm_p2p.daemon.control import ask
    from pcm_p2p.lab.progress import print_result
    from pcm_p2p.lab.run import run_lab

    place = _default_folder() if folder is None else folder.resolve()
    told: list[Result] = []
    stopped: list[int] = []

    def finished(result: Result, password: str) -> None:
        told.append(result)
        if json:
            print_json(result.facts())
        else:
            print_result(out(), result)
        if keep:
            note(f"\nConsole: {result.console_url}  password: {password}")
            note("The fleet keeps running. Ctrl-C ends it.")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_wait_for_signal, nursery.cancel_scope, stopped)
            await run_lab(scenario, place, ask, err(), finished, keep=keep, console_port=console_port)
            nursery.cancel_scope.cancel()

    trio.run(main)
    if not told:
        sys.exit(128 + (stopped[0] if stopped else signal.SIGINT))
    if not told[0].ok:
        raise typer.Exit(1)


async def _wait_for_signal(scope: trio.CancelScope, stopped: list[int]) -> None:
    import trio

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async for number in signals:
            if not stopped:
                note("Ending every process that was started …")
            stopped.append(number)
            scope.cancel()


def _default_folder() -> Path:
    """``.lab`` of the checkout that this package runs from; without one, of the working folder."""
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / ".lab"
