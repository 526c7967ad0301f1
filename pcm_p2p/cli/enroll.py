"""``enroll desk``, ``token``, ``list``, ``revoke``, ``join``: how a device becomes a member of the fleet."""

from __future__ import annotations

import re
import tomllib
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli import enroll_queue, passphrase
from pcm_p2p.cli.addresses import PortFile, host_and_port
from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.node import DEFAULT_STATE, State
from pcm_p2p.cli.output import Json, note, out, print_facts, print_json, print_table
from pcm_p2p.errors import InputError

if TYPE_CHECKING:
    from pcm_p2p.enrolment.join import Joined

app = typer.Typer(help="Enrolment: tokens, the desk that honours them, joining.", no_args_is_help=True)
enroll_queue.mount(app)

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
    """Run the desk: it certifies devices that bring a token. And it renews certificates of members, until SIGTERM or Ctrl-C.
    It holds the fleet CA's key while it runs. Name its address in fleet.toml ([[desk]]): that is where devices renew, and where
    they relay others.

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
    desk_address: Annotated[
        str | None,
        typer.Option("--desk", help="HOST:PORT at which devices reach the desk; else that of [[desk]] in fleet.toml."),
    ] = None,
    site: Annotated[str, typer.Option(help="The site that the device belongs to.")] = "default",
    role: Annotated[EnrolledAs, typer.Option(help="What the certificate is for.")] = EnrolledAs.device,
    uses: Annotated[int, typer.Option(min=1, max=100_000, help="How many devices may use it.")] = 1,
    expires: Annotated[
        str | None, typer.Option(help="Lifetime, such as 30m, 24h or 7d.", show_default="24h; 30d with --approval")
    ] = None,
    approval: Annotated[
        bool, typer.Option("--approval", help="A person lets each device in ('enroll pending'); for images.")
    ] = False,
    origin: Annotated[list[str] | None, typer.Option(help="URL of the origin or a mirror; repeat it.")] = None,
    seed: Annotated[list[str] | None, typer.Option(help="HOST:PORT of a device to ask first; repeat it.")] = None,
    json: Json = False,
) -> None:
    """Make a token: one line that a device joins with. Treat it like a password until it is used.

    With --approval it may lie in an image that many devices start from: what it is worth is a place in the queue of those whom
    'pcm-p2p enroll approve' lets in.

    Example: pcm-p2p enroll token --site berlin --uses 3 --desk desk.example.org:8742 --fleet fleet

    EXIT STATUS: 0; 2 an option cannot be used.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.enrolment.invitation import create_token, named_desk

    folder = FleetFolder.open(fleet)
    made = create_token(
        folder,
        desk=desk_address or named_desk(folder),
        role=role.value,
        site=site,
        uses=uses,
        lifetime=_duration(expires or ("30d" if approval else "24h")),
        origins=tuple(origin or ()),
        seeds=tuple(seed or ()),
        approval=approval,
    )
    if json:
        print_json(
            {
                "token": made.line(),
                "id": made.token_id.hex(),
                "site": site,
                "role": role.value,
                "uses": uses,
                "approval": approval,
                "expires": made.expires.isoformat(),
            }
        )
        return
    out().print(made.line(), markup=False)
    asks = " Each must be let in: 'pcm-p2p enroll pending'." if approval else ""
    note(
        f"Token {made.token_id.hex()[:8]} for {uses} {role.value}(s) of site {site}, "
        f"until {made.expires:%Y-%m-%d %H:%M} UTC.{asks}"
    )


@app.command("list")
def list_tokens(
    fleet: Fleet,
    every: Annotated[bool, typer.Option("--all", help="Also those that are worth nothing any more.")] = False,
    json: Json = False,
) -> None:
    """Show the tokens that were made. What they are for, how often they were used, and whether they are still worth
    something.

    EXIT STATUS: 0; 2 not a fleet folder; 6 a record cannot be read.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.enrolment.token_folder import TokenFolder
    from pcm_p2p.enrolment.waiting_list import WaitingList

    folder = FleetFolder.open(fleet)
    tokens, waiting = TokenFolder(folder.path / "enrolment" / "tokens"), WaitingList(folder.path / "enrolment")
    waiting.load()
    pending = [entry.token for entry, decision in waiting.entries() if decision is None]
    now_ms = int(folder.wall_clock().timestamp() * 1_000)
    rows = []
    for token_id in tokens.ids():
        record = tokens.get(token_id)
        if record is None:
            continue
        state = record.state(now_ms, revoked=tokens.is_revoked(token_id))
        if state == "open" or every:
            rows.append(
                {
                    "id": token_id.hex(),
                    "state": state,
                    "role": record.role,
                    "site": record.site,
                    "uses": len(record.spent),
                    "uses_max": record.uses_max,
                    "approval": record.approval,
                    "waiting": pending.count(token_id.hex()),
                    "expires": datetime.fromtimestamp(record.expires_ms / 1_000, UTC).isoformat(timespec="seconds"),
                }
            )
    rows.sort(key=lambda row: str(row["expires"]))
    if json:
        print_json(rows)
        return
    print_table(
        ("TOKEN", "STATE", "ROLE", "SITE", "USED", "WAITING", "EXPIRES"),
        (
            (
                str(row["id"])[:8],
                row["state"],
                row["role"],
                row["site"],
                f"{row['uses']} of {row['uses_max']}",
                row["waiting"] if row["approval"] else "-",
                str(row["expires"])[:16].replace("T", " "),
            )
            for row in rows
        ),
    )


@app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(metavar="TOKENID", help="Its first digits, as 'enroll list' shows them.")],
    fleet: Fleet,
) -> None:
    """Make a token worth nothing from now on. Who joined with it stays a member ('pcm-p2p device revoke' is for members).

    EXIT STATUS: 0; 2 there is no such token.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.enrolment.token_folder import TokenFolder

    tokens = TokenFolder(FleetFolder.open(fleet).path / "enrolment" / "tokens")
    found = tokens.find(token_id)
    tokens.revoke(found)
    record = tokens.get(found)
    used = len(record.spent) if record is not None else 0
    note(f"Token {found.hex()[:8]} is revoked. {used} device(s) joined with it before and stay members.")


@app.command()
def join(
    token_line: Annotated[str | None, typer.Argument(metavar="TOKEN", help="The token, or use --token-file.")] = None,
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
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Wait for approval, and for a desk that is away, as long as the token is good."),
    ] = False,
    new_identity: Annotated[
        bool, typer.Option("--new-identity", help="Make a fresh key: when another device uses this one's identity.")
    ] = False,
    mdns: Annotated[
        bool, typer.Option("--mdns/--no-mdns", help="Look for neighbours that may relay when the desk does not answer.")
    ] = True,
    json: Json = False,
) -> None:
    """Enrol this device, with a token. Makes its key, brings the token to the desk, and writes the state folder.

    A desk that cannot be reached is asked through neighbours: the seeds of the token, then members found by mDNS.

    Example: pcm-p2p enroll join pcm1.AAAA --state /var/lib/pcm-p2p

    EXIT STATUS: 0; 1 a person must let this device in first; 2 no token, enrolled already, or a setting is wrong; 5 the desk
    refuses; 6 a daemon is at work, or the folder cannot be written; 7 the desk cannot be reached.
    """
    import trio

    from pcm_p2p.config import load_config
    from pcm_p2p.daemon.log import configure
    from pcm_p2p.daemon.state_lock import lock_state
    from pcm_p2p.enrolment.new_identity import NEXT, take_place, unfinished
    from pcm_p2p.trust.identity import DeviceIdentity

    overrides = _settings(settings or [])
    if label:
        overrides.setdefault("device", {})["labels"] = list(label)
    if root is not None:
        overrides.setdefault("apply", {})["root"] = str(root.absolute())
    line = _token(token_line, token_file)
    if wait:
        configure(json_lines=False, verbose=False)
    through = ""
    with lock_state(state) if new_identity else nullcontext():
        if not (new_identity and unfinished(state)):
            through = trio.run(_enrol, state, line, overrides, mdns, wait, NEXT if new_identity else "identity").through
        retired = take_place(state, datetime.now(UTC)) if new_identity else None
    if retired is not None:
        note(f"The old identity is in {retired}; remove it once nobody needs it as evidence.")
    identity = DeviceIdentity.load(state / "identity")
    if retired is not None and load_config(state / "config.toml").apply.service:
        note(
            "The apply service here knows the old identity: remove its apply.toml, then, as root, "
            f"'pcm-p2p apply-service adopt --device {identity.device_id.hex()}' with --root-digest and --site."
        )
    facts = {
        "device": identity.device_id.hex(),
        "role": identity.role,
        "fleet": identity.fleet,
        "site": identity.record.site,
        "state": str(state),
        "config": str(state / "config.toml"),
    }
    if through:
        facts["through"] = through
    print_json(facts) if json else print_facts(facts)
    if not json:
        service = "collector" if identity.role == "collector" else "daemon"
        note(f"Next: 'pcm-p2p {service} --state {state}'.")


async def _enrol(
    state: Path, line: str, overrides: dict[str, dict[str, object]], mdns: bool, wait: bool, folder_name: str
) -> Joined:
    from random import SystemRandom

    from pcm_p2p.daemon.vicinity import look_around
    from pcm_p2p.enrolment.join import join as enrol
    from pcm_p2p.enrolment.join import join_and_wait, token_of

    fleet = token_of(line).fleet
    interfaces = tuple(map(str, _strings(overrides.get("discovery", {}).get("interfaces"))))

    async def attempt() -> Joined:
        return await enrol(
            state,
            line,
            wall_clock=lambda: datetime.now(UTC),
            overrides=overrides,
            look_around=(lambda: look_around(fleet, interfaces)) if mdns else None,
            folder_name=folder_name,
        )

    if not wait:
        return await attempt()
    return await join_and_wait(attempt, rng=SystemRandom(), told=lambda error: note(f"{error.message}. Waiting."))


def _strings(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


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
