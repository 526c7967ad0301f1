"""``site delegate|show|revoke``, ``team delegate|show|revoke``: who signs its own policies, or its own releases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.next_step import after_staging
from pcm_p2p.cli.output import Json, note, out, print_json
from pcm_p2p.cli.site_alone import SiteFolder, SiteRoot, alone_listed, print_alone
from pcm_p2p.cli.site_alone import autonomous as make_autonomous

if TYPE_CHECKING:
    from pcm_p2p.authority.repository import FleetFolder

Name = Annotated[str, typer.Argument(help="The site, as devices are enrolled in it.")]
Team = Annotated[str, typer.Argument(help="The team: letters, digits and . _ - only.")]
_KEY = typer.Option("--key", help="A person's public file ('key public') or key file; repeat it for several people.")
Keys = Annotated[list[Path], _KEY]
Threshold = Annotated[int, typer.Option(min=1, help="How many of these people must sign.")]

team_app = typer.Typer(help="Teams: people who sign releases of their own.", no_args_is_help=True)


def mount(site_app: typer.Typer) -> None:
    """The commands of sites into the group ``site``; those of teams are a group of their own."""
    for app, kind in ((site_app, "site"), (team_app, "team")):
        for command in _COMMANDS[kind]:
            app.command(command.__name__.partition("_")[2])(command)


def site_delegate(
    site: Name,
    fleet: Fleet,
    key: Annotated[list[Path] | None, _KEY] = None,
    threshold: Threshold = 1,
    autonomous: Annotated[
        bool, typer.Option("--autonomous", help="To the site's own repository ('site found').")
    ] = False,
    folder: SiteFolder = None,
    root: SiteRoot = None,
) -> None:
    """Propose who signs the site's own policies. These people, in place of those who did. It takes the threshold of
    targets.

    From then on 'policy put FILE --site SITE' needs their signatures only. What the site may set stands in the allowances
    ('policy allow'); without any it may set nothing. With --autonomous and --folder or --root it is the site's own repository
    that devices trust, which needs no publisher of the fleet's: the same as 'site autonomous'.

    Example: pcm-p2p site delegate berlin --key bea.pub --fleet fleet

    EXIT STATUS: 0; 2 the site, a key, a root or the threshold cannot be used; 5 the site's first root lacks signatures.
    """
    from pcm_p2p.errors import InputError

    if autonomous or folder is not None or root is not None:
        if key or not autonomous:
            raise InputError(
                "--autonomous goes with --folder or --root, and --key without it",
                remedy="The keys of a site's own repository are given to 'pcm-p2p site found'.",
            )
        make_autonomous(site, fleet, folder, root)
        return
    if not key:
        raise InputError("--key is missing", remedy="Pass the public file of each person who signs for the site.")
    _delegate("site", site, key, fleet, threshold)


def site_show(
    fleet: Fleet, site: Annotated[str | None, typer.Argument(help="Only this one.")] = None, json: Json = False
) -> None:
    """Show sites that sign or act for themselves. Who signs for them, how many must, and what of them is published or
    proposed; and sites that act alone.

    EXIT STATUS: 0; 2 there is no such delegation.
    """
    _show("site", site, fleet, json=json)


def site_revoke(site: Name, fleet: Fleet) -> None:
    """Propose that nobody signs for the site any more. Its own policies count no longer. It takes the threshold of targets.

    EXIT STATUS: 0; 2 there is no such delegation.
    """
    _revoke("site", site, fleet)


def team_delegate(team: Team, key: Keys, fleet: Fleet, threshold: Threshold = 1) -> None:
    """Propose who signs releases of the team. These people, in place of those who did. It takes the threshold of targets.

    From then on 'release add ... --team TEAM' needs their signatures only. A policy has to assign such a release before any
    device takes it.

    EXIT STATUS: 0; 2 the team, a key or the threshold cannot be used.
    """
    _delegate("team", team, key, fleet, threshold)


def team_show(
    fleet: Fleet, team: Annotated[str | None, typer.Argument(help="Only this one.")] = None, json: Json = False
) -> None:
    """Show teams, and who signs for them. How many must, and what of them is published or proposed.

    EXIT STATUS: 0; 2 there is no such delegation.
    """
    _show("team", team, fleet, json=json)


def team_revoke(team: Team, fleet: Fleet) -> None:
    """Propose that nobody signs for the team any more. Its releases count no longer. It takes the threshold of targets.

    EXIT STATUS: 0; 2 there is no such delegation.
    """
    _revoke("team", team, fleet)


_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "site": (site_delegate, site_show, site_revoke),
    "team": (team_delegate, team_show, team_revoke),
}


def role_named(kind: Literal["site", "team"], name: str) -> str:
    """The role of a site or team. Raises ``InputError``."""
    from pcm_p2p.errors import InputError, UntrustedBytes
    from pcm_p2p.trust.delegation import site_role, team_role

    try:
        return site_role(name) if kind == "site" else team_role(name)
    except UntrustedBytes as error:
        raise InputError(error.message) from None


def _delegate(kind: Literal["site", "team"], name: str, keys: list[Path], fleet: Path, threshold: int) -> None:
    from pcm_p2p.authority.keys.public_key_file import read_public_key
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError

    role, folder = role_named(kind, name), FleetFolder.open(fleet)
    people = [read_public_key(path) for path in keys]
    for path, one in zip(keys, people, strict=True):
        if one.role in ("snapshot", "timestamp", "ca"):
            raise InputError(
                f"is the {one.role} key of a machine, not of a person",
                path=path,
                remedy="Name a key that a person made: 'pcm-p2p key new', then 'key public'.",
            )
        if [other.keyid for other in people].count(one.keyid) > 1:
            raise InputError("stands twice", path=path, remedy="Name each key once.")
    folder.delegate(role, [one.key for one in people], threshold)
    out().print(f"proposed: {threshold} of these sign for {kind} {name}", markup=False)
    for one in people:
        out().print(f"  {one.owner:<16} {one.fingerprint}", markup=False)
    if (signatures := _waiting(folder, role)) is not None:
        note(f"What {kind} {name} published is proposed again, to be signed by its new holders: {signatures}")
    after_staging(folder, before="Compare the fingerprints with their holders by another way. ")
    if kind == "site":
        _note_allowances(folder, name)


def _note_allowances(folder: FleetFolder, site: str) -> None:
    from pcm_p2p.authority.site_policy import allowances_of

    allowances = allowances_of(folder)
    if allowances is None or allowances.of(site) is None:
        note(f"The fleet allows site {site} nothing yet: state what it may set with 'pcm-p2p policy allow'.")


def _waiting(folder: FleetFolder, role: str) -> str | None:
    found = [one for proposal in folder.proposals() if proposal.role == role for one in proposal.signatures]
    return found[0].line() if found and not found[0].complete else None


def _revoke(kind: Literal["site", "team"], name: str, fleet: Path) -> None:
    from pcm_p2p.authority.repository import FleetFolder

    folder = FleetFolder.open(fleet)
    folder.revoke(role_named(kind, name))
    out().print(f"proposed: nobody signs for {kind} {name} any more", markup=False)
    after_staging(folder, more="; devices let go of what it signed when they learn of it.")


def _show(kind: Literal["site", "team"], name: str | None, fleet: Path, *, json: bool) -> None:
    from pcm_p2p.authority.delegating import delegated_roles, holders
    from pcm_p2p.authority.keys.fingerprint import fingerprint_of
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.authority.site_folder import site_of
    from pcm_p2p.errors import InputError
    from pcm_p2p.trust.delegation import TARGETS, index_of, kind_of
    from pcm_p2p.trust.lint import owner_of

    folder = FleetFolder.open(fleet)
    found: list[dict[str, Any]] = []
    working, published = folder.working(TARGETS), folder.targets()
    for role in delegated_roles(working):
        what, given = kind_of(role), holders(working, role)
        if what is None or what[0] != kind or name not in (None, what[1]) or given is None:
            continue
        document, proposed = folder.delegated(role), folder.proposed_of(role)
        known = published is not None and holders(published.signed, role) == given
        found.append(
            {
                kind: what[1],
                "threshold": given[1],
                "people": [{"owner": owner_of(key), "fingerprint": fingerprint_of(key.keyid)} for key in given[0]],
                "delegation": "published" if known else "proposed",
                "version": document.signed.version if document is not None else 0,
                "expires": document.signed.expires.isoformat() if document is not None else None,
                "published": [path for path in document.signed.targets if path != index_of(role)] if document else [],
                "proposed": proposed is not None,
            }
        )
    alone = [one for one in alone_listed(folder) if name in (None, one["site"])] if kind == "site" else []
    found += alone
    if name is not None and not found:
        raise InputError(
            f"{kind} {name} has no delegation", remedy=f"See 'pcm-p2p {kind} show' for those that there are."
        )
    if json:
        print_json(found)
        return
    if not found:
        alone_here = site_of(folder.path) if kind == "site" else None
        note(
            f"Nobody signs for a {kind}. 'pcm-p2p {kind} delegate' proposes it."
            if alone_here is None
            else f"This is the folder of site {alone_here.site}: 'pcm-p2p site floor' shows what the fleet lets it set."
        )
    for one in found:
        if one in alone:
            print_alone(one)
            continue
        people = one["people"]
        version = (
            f"version {one['version']}, expires {str(one['expires'])[:10]}" if one["version"] else "nothing published"
        )
        out().print(
            f"{kind} {one[kind]}: {one['threshold']} of {len(people)} must sign; {one['delegation']}; {version}",
            markup=False,
        )
        for person in people:
            out().print(f"  {person['owner']:<16} {person['fingerprint']}", markup=False)
        for path in one["published"]:
            out().print(f"  {path}", markup=False)
        if one["proposed"]:
            out().print("  a change is proposed: 'pcm-p2p proposal show'", markup=False)
