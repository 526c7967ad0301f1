"""``enroll desk``, ``enroll token``, ``enroll join``: how a device becomes a member of the fleet."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pcm_p2p.cli import passphrase
from pcm_p2p.cli.addresses import PortFile, host_and_port
from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.node import DEFAULT_STATE, State
from pcm_p2p.cli.output import Json, note, out, print_facts, print_json
from pcm_p2p.errors import InputError

app = typer.Typer(help="Enrolment: tokens, the desk that honours them, joining.", no_args_is_help=True)

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class EnrolledAs(StrEnum):
    device = "device"
    collector = "collector"
    relay = "relay"


@app.command()
def desk(
    fleet: Fleet,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT to listen on; port 0 lets the system choose.")
    ] = "0.0.0.0:8742",
    origin: Annotated[
        Path | None, typer.Option(help="Origin tree whose timestamp this desk keeps signing before it expires.")
    ] = None,
    port_file: PortFile = None,
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
) -> None:
    """Issue certificates to devices that bring a token, until SIGTERM or Ctrl-C. Holds the fleet CA's key while it runs.

    EXIT STATUS: 0 ended on request; 2 the folder or address is wrong; 5 wrong passphrase, or another desk is at work.
    """
    import trio

    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.daemon.desk import run_desk
    from pcm_p2p.daemon.log import configure

    configure(json_lines=False, verbose=False)
    folder = FleetFolder.open(fleet)
    words = passphrase.obtain(passphrase_file, passphrase_fd, what="the fleet CA")
    host, port = host_and_port(listen)
    trio.run(run_desk, folder, words, host, port, origin, port_file)


@app.command()
def token(
    fleet: Fleet,
    desk_address: Annotated[str, typer.Option("--desk", help="HOST:PORT at which devices reach the desk.")],
    site: Annotated[str, typer.Option(help="The site that the device belongs to.")] = "default",
    role: Annotated[EnrolledAs, typer.Option(help="What the certificate is for.")] = EnrolledAs.device,
    uses: Annotated[int, typer.Option(min=1, max=100_000, help="How many devices may use it.")] = 1,
    expires: Annotated[str, typer.Option(help="Lifetime, such as 30m, 24h or 7d.")] = "24h",
    origin: Annotated[list[str] | None, typer.Option(help="URL of the origin or a mirror; repeat it.")] = None,
    seed: Annotated[list[str] | None, typer.Option(help="HOST:PORT of a device to ask first; repeat it.")] = None,
    json: Json = False,
) -> None:
    """Make a token: one line that a device joins with. Treat it like a password until it is used.

    EXIT STATUS: 0; 2 an option cannot be used.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.enrolment.invitation import create_token

    made = create_token(
        FleetFolder.open(fleet),
        desk=desk_address,
        role=role.value,
        site=site,
        uses=uses,
        lifetime=_duration(expires),
        origins=tuple(origin or ()),
        seeds=tuple(seed or ()),
    )
    if json:
        print_json(
            {"token": made.line(), "site": site, "role": role.value, "uses": uses, "expires": made.expires.isoformat()}
        )
        return
    out().print(made.line(), markup=False)
    note(f"For {uses} {role.value}(s) of site {site}, until {made.expires:%Y-%m-%d %H:%M} UTC.")


@app.command()
def join(
    token_line: Annotated[str | None, typer.Argument(metavar="[TOKEN]", help="The token, or use --token-file.")] = None,
    state: State = DEFAULT_STATE,
    token_file: Annotated[Path | None, typer.Option(help="Read the token from this file.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label that policies can select; repeat it.")] = None,
    root: Annotated[Path | None, typer.Option(help="Apply changes below this folder instead of '/'.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting of config.toml, such as listen.port=8741 or 'discovery.seeds=[\"h:1\"]'."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Enrol this device: makes its key, brings the token to the desk, and writes the state folder.

    EXIT STATUS: 0; 2 no token, enrolled already, or a setting is wrong; 5 the desk refuses; 7 the desk cannot be reached.
    """
    import trio

    from pcm_p2p.enrolment.join import join as enrol

    overrides = _settings(settings or [])
    if label:
        overrides.setdefault("device", {})["labels"] = list(label)
    if root is not None:
        overrides.setdefault("apply", {})["root"] = str(root.absolute())
    line = _token(token_line, token_file)
    joined = trio.run(lambda: enrol(state, line, wall_clock=lambda: datetime.now(UTC), overrides=overrides))
    facts = {
        "device": joined.identity.device_id.hex(),
        "role": joined.identity.role,
        "fleet": joined.identity.fleet,
        "site": joined.token.site,
        "state": str(state),
        "config": str(joined.config),
    }
    print_json(facts) if json else print_facts(facts)
    if not json:
        service = "collector" if joined.identity.role == "collector" else "daemon"
        note(f"Next: 'pcm-p2p {service} --state {state}'.")


def _token(line: str | None, file: Path | None) -> str:
    if (line is None) == (file is None):
        raise InputError("one token is needed", remedy="Pass it as an argument, or with --token-file.")
    if line is not None:
        return line
    assert file is not None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", path=file) from None


def _settings(pairs: list[str]) -> dict[str, dict[str, object]]:
    tables: dict[str, dict[str, object]] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        table, dot, key = name.partition(".")
        if not equals or not dot or not key:
            raise InputError(f"--set {pair!r} is not TABLE.KEY=VALUE", remedy="Write for example listen.port=8741.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        tables.setdefault(table, {})[key] = value
    return tables


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None or not int(match.group(1)):
        raise InputError(f"{text!r} is not a lifetime", remedy="Write for example 30m, 24h or 7d.")
    return timedelta(seconds=int(match.group(1)) * _UNITS_S[match.group(2)])
