"""``fleet stage``, ``fleet activate``, ``fleet refresh``: an authority's fleet folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pcm_p2p.cli import passphrase
from pcm_p2p.cli.next_step import after_staging, print_staged, refuse_without_keys
from pcm_p2p.cli.output import Json, out, print_facts, print_json

app = typer.Typer(help="The fleet folder: keys, and what is published.", no_args_is_help=True)

Fleet = Annotated[Path, typer.Option("--fleet", envvar="PCM_P2P_FLEET", help="The fleet folder.")]


@app.command()
def stage(fleet: Fleet, json: Json = False) -> None:
    """Stage fleet.toml for signing: origins, collectors, sites.

    EXIT STATUS: 0; 2 fleet.toml is wrong.
    """
    from pcm_p2p.authority.repository import FleetFolder

    folder = FleetFolder.open(fleet)
    print_staged(folder, folder.stage_fleet_document(), json=json)


@app.command()
def activate(
    fleet: Fleet,
    everyone: Annotated[bool, typer.Option("--all", help="Every device.")] = False,
    site: Annotated[list[str] | None, typer.Option(help="Devices of this site; repeat it.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Devices with this label; repeat it.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="This device id; repeat it.")] = None,
    not_before: Annotated[str, typer.Option(help="Moment with offset, such as 2026-03-01T06:00:00+01:00.")] = "",
    json: Json = False,
) -> None:
    """Stage the activation of devices. From then on, once signed and published, policies in mode enforce may change them.

    Example: pcm-p2p fleet activate --site berlin --fleet fleet

    EXIT STATUS: 0; 2 the scope or the moment cannot be used.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError
    from pcm_p2p.policy.activation import TARGET_PATH, decode_activation

    folder = FleetFolder.open(fleet)
    moment = not_before or datetime.now(UTC).replace(microsecond=0).isoformat()
    lines = ['schema = "pcm.activation/1"', f"not_before = {moment}"]
    if everyone:
        lines.append('scope = "all"')
    for key, names in (("sites", site), ("labels", label), ("devices", device)):
        if names:
            lines.append(f"{key} = [{', '.join(_quoted(name) for name in names)}]")
    if len(lines) == 2:
        raise InputError("nobody would be activated", remedy="Pass --all, --site, --label or --device.")
    document = ("\n".join(lines) + "\n").encode()
    decode_activation(document, "the activation")
    print_staged(folder, folder.stage_file(TARGET_PATH, document), json=json)


@app.command()
def renew(
    fleet: Fleet,
    role: Annotated[
        str, typer.Option(help="What to renew: root, targets, or a delegated role such as site-berlin.")
    ] = "targets",
) -> None:
    """Propose what is published with a new lifetime. For signing, before the signatures of people expire.

    'pcm-p2p fleet check' says what comes near its end.

    EXIT STATUS: 0; 2 there is no such role, or nothing of it was published yet.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError

    folder = FleetFolder.open(fleet)
    if role not in folder.roles():
        raise InputError(f"there is no role {role}", path=fleet, remedy=f"There are: {', '.join(folder.roles())}.")
    if role == "root":
        folder.propose_root(lambda _: None)
    else:
        folder.renew(role)
    out().print(f"proposed: {role} with the same content and a new lifetime", markup=False)
    after_staging(folder)


@app.command()
def refresh(
    fleet: Fleet,
    to: Annotated[Path, typer.Option("--to", help="The origin tree.")],
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    json: Json = False,
) -> None:
    """Sign the timestamp anew: daily, where no desk runs. And the snapshot when half of its life is over.

    EXIT STATUS: 0; 2 nothing was published yet; 5 refused, with the reason.
    """
    from pcm_p2p.authority.publish import OnlineKeys, refresh_online
    from pcm_p2p.authority.repository import FleetFolder

    folder = FleetFolder.open(fleet)
    refuse_without_keys(folder)
    words = passphrase.obtain(passphrase_file, passphrase_fd, what="the publisher's keys")
    published = refresh_online(folder, to, OnlineKeys.open(folder, words))
    facts = {"timestamp": published.versions.timestamp, "expires": published.expires.isoformat()}
    print_json(facts) if json else print_facts(facts)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
