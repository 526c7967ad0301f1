"""``device revoke``, ``device restore``, ``device list``: whose certificates count no longer."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.output import Json, note, out, print_json

app = typer.Typer(
    help="Revoke devices, and take them back. Their certificates count no longer before they end.", no_args_is_help=True
)

Ids = Annotated[list[str], typer.Argument(help="Device ids, 32 hexadecimal digits each, as the console shows them.")]


@app.command()
def revoke(
    devices: Ids,
    reason: Annotated[str, typer.Option(help="Why, in a line; every device of the fleet can read it.")],
    fleet: Fleet,
    json: Json = False,
) -> None:
    """Propose that devices are members no longer. Once signed and published, neighbours and collectors refuse them.

    Each device drops its sessions with them as soon as it learns of it. What a revoked device holds, it keeps.

    Example: pcm-p2p device revoke 90eb2fd73c978d2bb3f50a29a641b9ce --reason stolen --fleet fleet

    EXIT STATUS: 0; 2 an id or the reason cannot be used.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.authority.revocation import change_deny_list

    folder, ids = FleetFolder.open(fleet), _ids(devices)
    now = folder.wall_clock().replace(microsecond=0)
    after = change_deny_list(folder, lambda held: held.with_devices(ids, reason, now))
    _tell("revoked", [device.hex() for device in ids], after.epoch, json=json)


@app.command()
def restore(devices: Ids, fleet: Fleet, json: Json = False) -> None:
    """Propose that revoked devices are members again. With the certificates that they have.

    EXIT STATUS: 0; 2 an id cannot be used, or is not revoked.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.authority.revocation import change_deny_list

    folder, ids = FleetFolder.open(fleet), _ids(devices)
    after = change_deny_list(folder, lambda held: held.without_devices(ids))
    _tell("restored", [device.hex() for device in ids], after.epoch, json=json)


@app.command("list")
def show(fleet: Fleet, json: Json = False) -> None:
    """Show the deny list. What is published, and what is proposed beside it.

    EXIT STATUS: 0.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.authority.revocation import proposed_deny_list, published_deny_list

    folder = FleetFolder.open(fleet)
    published, proposed = published_deny_list(folder), proposed_deny_list(folder)
    told = {one.id for one in published.devices} | {one.sha256 for one in published.authorities}
    wished = {one.id for one in proposed.devices} | {one.sha256 for one in proposed.authorities}
    entries: dict[tuple[str, str], Any] = {}
    for held in (published, proposed):
        entries |= {("device", one.id): one for one in held.devices}
        entries |= {("authority", one.sha256): one for one in held.authorities}
    rows = [
        {
            "kind": kind,
            "id": name,
            "since": entry.since,
            "reason": entry.reason,
            "state": "proposed" if name not in told else "revoked" if name in wished else "restoring",
        }
        for (kind, name), entry in sorted(entries.items())
    ]
    if json:
        print_json(
            {
                "schema": "pcm.deny-list/1",
                "epoch": published.epoch,
                "proposed_epoch": proposed.epoch,
                "entries": [{**row, "since": row["since"].isoformat()} for row in rows],
            }
        )
        return
    if not rows:
        out().print("nobody is revoked")
        return
    for row in rows:  # lines and no table: an id is copied whole, whatever the width
        since = f"{row['since']:%Y-%m-%d %H:%M} UTC"
        out().print(f"{row['kind']:<9} {row['id']}  {since}  {row['state']:<9}  {row['reason']}", markup=False)


def _ids(texts: list[str]) -> list[Any]:
    from pcm_p2p.errors import InputError, UntrustedBytes
    from pcm_p2p.ids import DeviceId

    found = []
    for text in texts:
        try:
            found.append(DeviceId.parse(text.lower()))
        except UntrustedBytes:
            raise InputError(
                f"{text[:80]!r} is not a device id",
                remedy="Give all 32 hexadecimal digits: 'pcm-p2p status' on the device and the console show them.",
            ) from None
    return found


def _tell(what: str, devices: list[str], epoch: int, *, json: bool) -> None:
    if json:
        print_json({"schema": "pcm.deny-change/1", "change": what, "devices": devices, "epoch": epoch})
        return
    for device in devices:
        out().print(f"proposed: {device} is {what}", markup=False)
    note("Next: 'pcm-p2p sign' and 'pcm-p2p publish'. Until then nothing changes.")
