"""``site floor``: what the fleet lets a site that acts alone set, taken over into the site's folder."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.output import Json, counted, note, print_facts, print_json

if TYPE_CHECKING:
    from pcm_p2p.authority.fleet_floor import FleetFloor
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.authority.site_folder import SiteFacts
    from pcm_p2p.policy.allowance import Allowance
    from pcm_p2p.policy.document import Policy

Tree = Annotated[
    str | None, typer.Option("--from", help="The fleet's published tree: a folder, a stick, or the URL of an origin.")
]
DeviceState = Annotated[
    Path | None,
    typer.Option("--state", help="The state folder of a device of the office, whose trusted documents are taken over."),
]
FleetRoot = Annotated[
    Path | None,
    typer.Option(
        "--root",
        help="The fleet's first root, as its authority handed it to you. Without it that of the --state device.",
    ),
]


def floor(
    fleet: Fleet, source: Tree = None, state: DeviceState = None, root: FleetRoot = None, json: Json = False
) -> None:
    """Take over what the fleet lets the site set. Into the folder of a site that acts alone, so that it is known before
    anybody signs.

    All of it is verified as a device verifies it: from the fleet's root on, which is pinned the first time, and never back. From
    then on a policy that devices would set aside is refused in staging, signing and publishing. It works with the WAN down: what
    a device of the office holds will do, also when it is out of date. Without --from and --state it shows what is held.

    Example: pcm-p2p site floor --fleet berlin --state /var/lib/pcm-p2p

    EXIT STATUS: 0; 2 it is not the folder of a site, or nothing is held or pinned; 5 what is there cannot be believed, is of
    another fleet, or older than what is held; 7 it did not deliver.
    """
    from pcm_p2p.authority.held_floor import held_floor, keep_floor, no_floor, site_here
    from pcm_p2p.authority.repository import FleetFolder

    folder = FleetFolder.open(fleet)
    facts, held = site_here(folder), held_floor(folder)
    if source is None and state is None and root is None:
        if held is None:
            raise no_floor(facts.site, folder.path)
        tell(folder, held, json=json, news=False, first=False)
        return
    taken = take(facts, held, source, state, root)
    news = keep_floor(folder, taken)
    tell(folder, taken, json=json, news=news, first=held is None)


def take(
    facts: SiteFacts, held: FleetFloor | None, source: str | None, state: Path | None, root: Path | None
) -> FleetFloor:
    """What is there for the site, verified and kept nowhere yet. Raises as ``daemon.site.floor.bring_floor``."""
    import trio

    from pcm_p2p.authority.staging import system_clock
    from pcm_p2p.daemon.site.floor import StateSource, bring_floor, pinned_by
    from pcm_p2p.daemon.workspace import open_tree
    from pcm_p2p.errors import InputError

    if (source is None) == (state is None):
        raise InputError(
            "one of --from and --state is needed", remedy="Name the fleet's tree, or a device's state folder."
        )
    try:
        pinned = root.read_bytes() if root is not None else None
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=root, key="--root", remedy="Check the path, and who may read it."
        ) from None

    async def bring() -> FleetFloor:
        if state is not None:
            given = StateSource(state)
            first = pinned if pinned is not None or held is not None else pinned_by(state)
            return await bring_floor(facts, held, given, first, wall_clock=system_clock)
        assert source is not None, "asked for above"
        async with open_tree(source) as tree:
            return await bring_floor(facts, held, tree, pinned, wall_clock=system_clock)

    return trio.run(bring)


def for_a_new_site(
    fleet_id: str, site: str, source: str | None, state: Path | None, root: Path | None
) -> FleetFloor | None:
    """For a folder that is not there yet; ``None`` where nothing is to be taken over. Raises as ``take``."""
    from pcm_p2p.authority.site_folder import SiteFacts

    if source is None and state is None and root is None:
        return None
    return take(SiteFacts("pcm.site-folder/1", fleet_id, site, 0), None, source, state, root)


def tell(folder: FleetFolder, floor: FleetFloor, *, json: bool, news: bool, first: bool) -> None:
    """What is held now. ``news``: it was taken over just now; ``first``: and nothing was held before."""
    from pcm_p2p.authority.held_floor import set_aside_alone
    from pcm_p2p.authority.keys.fingerprint import DIGITS, grouped

    aside, remarks = set_aside_alone(folder), list(_remarks(folder, floor))
    digest, versions = floor.pinned_sha256, floor.versions
    if json:
        print_json(
            {
                "schema": "pcm.site-floor/1",
                "site": floor.site,
                "fleet": floor.fleet,
                **versions._asdict(),
                "pinned_root": int(floor.roots[0].signed.version),
                "pinned_root_sha256": digest,
                "held_since": floor.taken.isoformat(),
                "issued": floor.issued.isoformat() if floor.issued is not None else None,
                "expires": floor.expires.isoformat(),
                "news": news,
                "may_set": _allowed(floor.allowance),
                "policies": _named(floor.fleet_policies),
                "role_policies": _named(floor.role_policies),
                "set_aside": list(aside),
                "remarks": remarks,
            }
        )
        return
    print_facts(
        {
            "site": f"{floor.site}, of fleet {floor.fleet}",
            "says": f"targets {versions.targets}{_as_of(floor)}; held since {floor.taken:%Y-%m-%d %H:%M} UTC",
            "may set": "\n".join(may_set(floor)),
            "floor": _floor_line(floor),
            "root": f"{versions.root}, from root {floor.roots[0].signed.version} on: {grouped(digest[:DIGITS])}",
        }
    )
    for sentence in (*remarks, *aside):
        note(f"! {sentence}")
    if first:
        note("Compare the digest of that root with the fleet's key sheet, or with another person.")


def judged_by(floor: FleetFloor) -> list[str]:
    """What a carried proposal of the site is judged by, for who signs it."""
    from pcm_p2p.authority.staging import system_clock

    line = f"its policies are judged by targets {floor.versions.targets} of fleet {floor.fleet[:8]}{_as_of(floor)}"
    return [line, *([old] if (old := floor.overdue(system_clock())) else [])]


def may_set(floor: FleetFloor) -> list[str]:
    """What the site may set by itself, in a few lines for people."""
    allowance = floor.allowance
    if allowance is None:
        names = f"its allowances name neither site {floor.site} nor a default"
        return [f"nothing: {names if floor.allowances is not None else 'the fleet has signed no allowances that read'}"]
    lines = [f"modes {', '.join(allowance.modes) or 'none'}; releases {_some(allowance.releases)}"]
    made = f"makes {', '.join(allowance.resources) or 'nothing'}"
    if allowance.paths:
        made += f", below {_some(allowance.paths)}"
    if allowance.services:
        made += f", services {_some(allowance.services)}"
    lines.append(made)
    remedies = "may remedy" if allowance.remediate else "remedies nothing"
    lines.append(f"checks {', '.join(allowance.checks) or 'nothing'}; {remedies}")
    limits = [f"{kind} of {least} or more" for kind, least in _limits(allowance).items() if least is not None]
    if limits:
        lines.append(f"limits {', '.join(limits)}")
    return lines


def _remarks(folder: FleetFolder, floor: FleetFloor) -> list[str]:
    remarks = [floor.overdue(folder.wall_clock())]
    roots = sorted(folder.metadata.glob("*.root.json"))
    if not any(floor.lists(one.read_bytes()) for one in roots):
        remarks.append(
            f"the fleet does not list a root of this folder for site {floor.site} yet, and devices do not hear it before:"
            " 'pcm-p2p site autonomous' in the fleet's folder"
        )
    return [one for one in remarks if one]


def _as_of(floor: FleetFloor) -> str:
    return f", as of {floor.issued.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if floor.issued is not None else ""


def _floor_line(floor: FleetFloor) -> str:
    def listed(policies: tuple[Policy, ...]) -> str:
        names = [f"{one.id} {one.version}" for one in policies[:12]]
        return ", ".join([*names, "…"] if len(policies) > 12 else names)

    line = counted(len(floor.fleet_policies), "policy", "policies") + " of the fleet"
    line += f": {listed(floor.fleet_policies)}" if floor.fleet_policies else ""
    if floor.role_policies:
        line += f"\n{counted(len(floor.role_policies), 'policy', 'policies')} of the site's delegated role"
        line += f": {listed(floor.role_policies)}"
    return line


def _named(policies: tuple[Policy, ...]) -> list[dict[str, Any]]:
    return [{"id": one.id, "version": one.version, "mode": one.mode} for one in policies]


def _allowed(allowance: Allowance | None) -> dict[str, Any] | None:
    import msgspec

    return None if allowance is None else msgspec.to_builtins(allowance)


def _limits(allowance: Allowance) -> dict[str, int | None]:
    import msgspec

    return msgspec.structs.asdict(allowance.transfer_min)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join([*names[:8], "…"] if len(names) > 8 else names) or "none"
