"""``policy allow``, and judging a policy as a site's: what the fleet lets its sites set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.next_step import after_staging
from pcm_p2p.cli.output import note, out

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pcm_p2p.authority.fleet_floor import FleetFloor
    from pcm_p2p.policy.allowance import Allowances
    from pcm_p2p.policy.document import Policy

Site = Annotated[str, typer.Option("--site", help="Judge them as policies of this site, too.")]
AllowancesFile = Annotated[Path | None, typer.Option("--allowances", help="The fleet's allowances, for --site.")]
FleetPolicies = Annotated[
    list[Path] | None, typer.Option("--fleet-policy", help="A policy of the fleet, for --site; repeat it.")
]
DeviceState = Annotated[
    Path | None,
    typer.Option("--state", help="The state folder of a device of the site, whose trusted documents are judged by."),
]


FolderToJudgeBy = Annotated[
    Path | None,
    typer.Option(
        "--fleet", envvar="PCM_P2P_FLEET", help="A fleet folder, for --site; or the folder of a site that acts alone."
    ),
]


def allow(file: Annotated[Path, typer.Argument(help="The allowances, TOML.")], fleet: Fleet) -> None:
    """Stage what sites may set by themselves. Releases, modes, kinds of resources and checks, paths, limits.

    The fleet's targets keys sign it. A site that it does not name has the table 'default', and without that sets nothing.

    EXIT STATUS: 0; 2 the document is wrong.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.authority.site_policy import set_aside_by_change
    from pcm_p2p.policy.allowance import decode_allowances
    from pcm_p2p.trust.index import ALLOWANCES

    data = _read(file)
    allowances = decode_allowances(data, str(file))
    folder = FleetFolder.open(fleet)
    out().print(f"staged {folder.stage_file(ALLOWANCES, data)}")
    sites = ", ".join(one.name for one in allowances.sites) or "no site"
    out().print(
        f"it names {sites}; others {'have the default' if allowances.default else 'may set nothing'}", markup=False
    )
    for sentence in set_aside_by_change(folder):
        note(sentence)
    after_staging(folder)


def judge(
    policies: Iterable[tuple[Path, Policy]],
    site: str,
    allowances: Path | None,
    fleet_policies: list[Path] | None,
    state: Path | None,
    fleet: Path | None,
) -> None:
    """Refuse (``InputError``) the first policy that devices of ``site`` would set aside. Files and state come before a folder."""
    from pcm_p2p.authority.site_folder import site_of
    from pcm_p2p.authority.site_judgement import refuse_beyond
    from pcm_p2p.errors import InputError
    from pcm_p2p.policy.allowance import decode_allowances
    from pcm_p2p.policy.document import decode_policy

    given = allowances is not None or fleet_policies or state is not None
    alone = site_of(fleet) if fleet is not None and not given else None
    if fleet is not None and alone is not None and site in ("", alone.site):
        _by_floor(policies, fleet)
        return
    if not site:
        if allowances is not None or fleet_policies or state is not None:
            raise InputError(
                "--allowances, --fleet-policy and --state go with --site",
                remedy="Name the site whose policies these are.",
            )
        return
    if state is not None:
        allowed, floor = _trusted(state)
    elif fleet is not None and not given:
        allowed, floor = _in_folder(fleet, site)
    else:
        allowed = decode_allowances(_read(allowances), str(allowances)) if allowances is not None else None
        floor = [decode_policy(_read(path), str(path)) for path in fleet_policies or ()]
    for path, policy in policies:
        refuse_beyond(policy, site, allowed, floor, str(path))


def judge_alone(floor: FleetFloor, policy: Policy, file: Path) -> None:
    """Refuse (``InputError``) a policy of a site that acts alone which its devices would set aside; says what it is judged by
    where that is out of date."""
    from pcm_p2p.authority.site_judgement import refuse_beyond
    from pcm_p2p.authority.staging import system_clock

    if old := floor.overdue(system_clock()):
        note(f"! {old}")
    refuse_beyond(
        policy,
        floor.site,
        floor.allowances,
        floor.stronger,
        str(file),
        remedy="Change the policy. What the fleet allows since is known here after 'pcm-p2p site floor'.",
    )


def _by_floor(policies: Iterable[tuple[Path, Policy]], fleet: Path) -> None:
    from pcm_p2p.authority.held_floor import needed_floor
    from pcm_p2p.authority.repository import FleetFolder

    floor = needed_floor(FleetFolder.open(fleet))
    for path, policy in policies:
        judge_alone(floor, policy, path)


def _in_folder(fleet: Path, site: str) -> tuple[Allowances | None, list[Policy]]:
    """What a fleet folder says, as proposed, else as published. Raises ``InputError``."""
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.authority.site_folder import site_of
    from pcm_p2p.authority.site_policy import allowances_of, fleet_policies
    from pcm_p2p.errors import InputError

    if (alone := site_of(fleet)) is not None:
        raise InputError(f"is the folder of site {alone.site}, not of {site}", path=fleet, remedy="Check --site.")
    folder = FleetFolder.open(fleet)
    return allowances_of(folder), list(fleet_policies(folder))


def _trusted(state: Path) -> tuple[Allowances | None, list[Policy]]:
    """What the device with this state folder trusts of the fleet: allowances and policies. Its daemon may be running."""
    from pcm_p2p.daemon.documents import read_documents
    from pcm_p2p.errors import InputError
    from pcm_p2p.trust.view import trusted_view

    view = trusted_view(state / "trust")
    if view is None:
        raise InputError("trusts nothing yet", path=state, remedy="Wait until it has read the fleet's metadata.")
    documents = read_documents(view)
    return documents.allowances, list(documents.policies)


def _read(path: Path) -> bytes:
    from pcm_p2p.errors import InputError

    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path, remedy="Check the path.") from None
