"""``apply-service run``, ``adopt``, ``show``, ``reset``: the process that is root, apart from the network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pcm_p2p.cli.node import DEFAULT_STATE
from pcm_p2p.cli.output import Json, note, print_facts, print_json

ApplyState = Annotated[
    Path,
    typer.Option("--state", envvar="PCM_P2P_APPLY_STATE", help="State folder of the apply service.", show_default=True),
]
DEFAULT_APPLY_STATE = Path("/var/lib/pcm-p2p-apply")
DEFAULT_SOCKET = Path("/run/pcm-p2p-apply/socket")

app = typer.Typer(
    help="The process that makes changes as root. The daemon, which is on the network, need not be root then.",
    no_args_is_help=True,
)


@app.callback()
def _group() -> None:
    pass


@app.command()
def run(
    state: ApplyState = DEFAULT_APPLY_STATE,
    json_log: Annotated[bool, typer.Option("--json-log", help="One JSON object per log line.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log debugging details too.")] = False,
) -> None:
    """Run the apply service. Until SIGTERM or Ctrl-C; a change that is under way is finished first.

    EXIT STATUS: 0 ended on request; 2 apply.toml is missing or wrong; 5 its folder, its root or its socket's folder could have
    been changed by others; 6 the state folder is in use or cannot be written.
    """
    from pcm_p2p.daemon.applying.process import run_apply_service

    run_apply_service(state, json_log=json_log, verbose=verbose)


@app.command()
def adopt(
    source: Annotated[
        Path, typer.Option("--from", help="State folder of the daemon, as 'enroll join' wrote it.", show_default=True)
    ] = DEFAULT_STATE,
    state: ApplyState = DEFAULT_APPLY_STATE,
    client: Annotated[str, typer.Option(help="Account of the daemon on the network.")] = "pcm-p2p",
    socket: Annotated[Path, typer.Option(help="Where the service listens.")] = DEFAULT_SOCKET,
    apply_root: Annotated[str, typer.Option(help="Where packages, archives and files go.")] = "/",
    root_digest: Annotated[
        str | None,
        typer.Option(help="Digest of the fleet's root that must be found, as the key sheet shows it.", metavar="HEX"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Id of this device that must be found.", metavar="HEX")] = None,
    site: Annotated[str | None, typer.Option(help="Site of this device that must be found.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="The token with which this device joined, root's file: it confirms all three.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="With --site or --token-file: a label of this device, may be repeated.")
    ] = None,
) -> None:
    """Take over what a device that was just enrolled trusts. Its pinned root and its place in the fleet; as root.

    Writes apply.toml and root.json, names the socket in the daemon's config.toml, and gives the daemon's folder to its account.
    A folder that others could have changed since is refused, unless --root-digest, --device and --site, or --token-file,
    confirm it.

    EXIT STATUS: 0 adopted; 2 a setting is wrong, or it is adopted as something else; 5 the folder could have been changed, or is
    not what was confirmed; 6 a folder cannot be written.
    """
    from pcm_p2p.authority.keys.fingerprint import grouped
    from pcm_p2p.daemon.applying.adoption import DIGEST_DIGITS_MIN, Confirmed, adopt, confirmed_by

    confirmed = Confirmed(root_digest, device, site, tuple(label or ()))
    if token_file is not None:
        confirmed = replace(confirmed_by(token_file, source), labels=confirmed.labels)
    made = adopt(source, state, client=client, socket=socket, apply_root=apply_root, confirmed=confirmed)
    print_facts(
        {
            "device": made.settings.device.id,
            "fleet": made.settings.device.fleet,
            "site": made.settings.device.site,
            "labels": ", ".join(made.settings.device.labels) or "none",
            "root": grouped(made.root_digest[:DIGEST_DIGITS_MIN]),
            "settings": state / "apply.toml",
        }
    )
    if not made.named:
        note(f'Write service = "{socket}" below [apply] into {source / "config.toml"}, as the daemon\'s account.')
    note("Compare the root with the fleet's key sheet. Then: systemctl enable --now pcm-p2p-apply pcm-p2p")


@app.command()
def show(
    socket: Annotated[Path, typer.Option(help="Where the service listens.")] = DEFAULT_SOCKET, json: Json = False
) -> None:
    """What the service is, trusts, and would do. Asked as root or as the daemon's account.

    EXIT STATUS: 0 it answers; 3 nobody answers; 4 it does not answer in time.
    """
    import msgspec

    from pcm_p2p.apply.dialogue import GetStanding
    from pcm_p2p.daemon.applying.client import ask_once

    facts = msgspec.structs.asdict(ask_once(socket, GetStanding()))
    if json:
        print_json(facts)
        return
    root, timestamp, _, targets = facts["versions"]
    print_facts(
        {
            "device": f"{facts['device']}  (site {facts['site']}, labels {', '.join(facts['labels']) or 'none'})",
            "apply root": facts["root"],
            "trust": f"{facts['freshness']}: root {root}, timestamp {timestamp}, targets {targets}",
            "changes": "allowed" if facts["changes_allowed"] else f"not allowed: {facts['why_not']}",
        }
    )


@app.command()
def reset(
    subject: Annotated[str, typer.Argument(help="A release, or check:POLICY/CHECK.")],
    socket: Annotated[Path, typer.Option(help="Where the service listens.")] = DEFAULT_SOCKET,
) -> None:
    """Let a parked change be tried again. Its failures are forgotten. Root only.

    EXIT STATUS: 0 forgotten; 1 there were none; 3 nobody answers; 5 not root.
    """
    from pcm_p2p.apply.dialogue import Answer, Reset
    from pcm_p2p.daemon.applying.client import ask_once

    said = ask_once(socket, Reset(subject))
    if not (isinstance(said, Answer) and said.yes):
        note(f"{subject} has not failed.")
        raise typer.Exit(1)
    note(f"{subject} is tried again.")
