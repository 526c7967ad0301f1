"""``policy check``, ``policy put``, ``policy remove``: what devices should be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.next_step import after_staging, print_staged
from pcm_p2p.cli.output import Json, counted, note, out, print_json
from pcm_p2p.cli.site_policy import (
    AllowancesFile,
    DeviceState,
    FleetPolicies,
    FolderToJudgeBy,
    Site,
    allow,
    judge,
    judge_alone,
)

if TYPE_CHECKING:
    from pcm_p2p.policy.document import Policy

app = typer.Typer(help="Policies: what devices should be.", no_args_is_help=True)
app.command("allow")(allow)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Policy files.")],
    site: Site = "",
    allowances: AllowancesFile = None,
    fleet_policy: FleetPolicies = None,
    state: DeviceState = None,
    fleet: FolderToJudgeBy = None,
    json: Json = False,
) -> None:
    """Read policies as a device would. Says what is wrong with them: file, line, key and remedy.

    With --site, also whether the site may set all that by itself, and whether it would loosen what the fleet says: as files
    say it, as a device of the site trusts it (--state), or as a fleet folder has it (--fleet). The folder of a site that acts
    alone stands for --site, too.

    Example: pcm-p2p policy check base.toml

    EXIT STATUS: 0 all can be used; 2 the first that cannot, with its error.
    """
    policies = [_read(path)[0] for path in files]
    judge(list(zip(files, policies, strict=True)), site, allowances, fleet_policy, state, fleet)
    facts = [
        {
            "id": policy.id,
            "version": policy.version,
            "mode": policy.mode,
            "assignments": len(policy.assignments),
            "checks": len(policy.checks),
        }
        for policy in policies
    ]
    if json:
        print_json(facts)
        return
    for path, policy in zip(files, policies, strict=True):
        out().print(
            f"{path}: {policy.id} version {policy.version}, mode {policy.mode}, "
            f"{counted(len(policy.assignments), 'assignment')}, {counted(len(policy.checks), 'check')}",
            markup=False,
        )


@app.command()
def put(
    file: Annotated[Path, typer.Argument(help="A policy file.")],
    fleet: Fleet,
    site: Annotated[
        str | None, typer.Option(help="The site whose own policy it is; its own keys sign it ('site delegate').")
    ] = None,
    json: Json = False,
) -> None:
    """Stage a policy for signing. In place of the one with the same id.

    Example: pcm-p2p policy put base.toml --fleet fleet

    EXIT STATUS: 0; 2 the policy is wrong, its version is not above the one before, it assigns an unknown release, it is beyond
    what the site may set, or what the fleet lets the site set is not held ('site floor').
    """
    from pcm_p2p.authority.held_floor import acts_alone, needed_floor
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.authority.site_folder import site_of
    from pcm_p2p.authority.site_judgement import refuse_beyond
    from pcm_p2p.authority.site_policy import allowances_of, fleet_policies
    from pcm_p2p.cli.delegation import role_named
    from pcm_p2p.content.manifest import decode_untrusted
    from pcm_p2p.errors import InputError
    from pcm_p2p.policy.document import decode_policy
    from pcm_p2p.policy.fitness import why_unfit
    from pcm_p2p.trust.delegation import TARGETS
    from pcm_p2p.trust.index import policy_path
    from pcm_p2p.trust.site_root import is_own_release

    folder, role = FleetFolder.open(fleet), role_named("site", site) if site is not None else TARGETS
    policy, document = _read(file)
    try:
        before = folder.read_target(policy_path(policy.id, site))
    except InputError:
        before = None
    if before is not None and before != document:
        version = decode_policy(before, policy.id).version
        if version >= policy.version:
            raise InputError(
                f"is version {policy.version}, and version {version} is staged or published",
                path=file,
                key="version",
                remedy=f"Raise it to {version + 1}.",
            )
    known = {(release.name, release.version): release.path for release in folder.releases()}
    alone = site_of(folder.path)
    for assignment in policy.assignments:
        target = known.get((assignment.release, assignment.version))
        if target is None and alone is not None and not is_own_release(alone.site, assignment.release):
            note(f"{assignment.release} {assignment.version} is looked for among the fleet's releases.")
            continue
        if target is None:
            raise InputError(
                f"assigns {assignment.release} {assignment.version}, which is not a release of this fleet",
                path=file,
                key="assign",
                remedy="Add it first with 'pcm-p2p release add', or correct the version.",
            )
        manifest = decode_untrusted(folder.read_target(target))
        forms = {artifact.name: artifact.form for artifact in manifest.artifacts}
        if unfit := why_unfit(assignment.resources, forms):
            raise InputError(f"assigns {manifest.title}: {unfit}", path=file, key="assign.resource")
    if site is not None:
        refuse_beyond(policy, site, allowances_of(folder), fleet_policies(folder), str(file))
    elif acts_alone(folder):
        judge_alone(needed_floor(folder), policy, file)
    print_staged(folder, folder.stage_policy(policy.id, document, role), json=json)


@app.command()
def remove(
    policy: Annotated[str, typer.Argument(help="The policy's id.")],
    fleet: Fleet,
    site: Annotated[str | None, typer.Option(help="The site whose own policy it is.")] = None,
    json: Json = False,
) -> None:
    """Propose that a policy is published no longer. What it made on devices stays as it is; it is looked after no more.

    EXIT STATUS: 0; 2 there is no such policy.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError, UntrustedBytes
    from pcm_p2p.trust.index import policy_path

    folder = FleetFolder.open(fleet)
    try:
        path = policy_path(policy, site)
    except UntrustedBytes as error:
        raise InputError(error.message) from None
    folder.unstage(path)
    if json:
        proposed = [f"{one.role} {one.version_after}" for one in folder.proposals()]
        print_json({"schema": "pcm.removed/1", "target": path, "proposed": proposed})
        return
    out().print(f"{path} is published no longer, once this is signed and published", markup=False)
    after_staging(folder)


def _read(path: Path) -> tuple[Policy, bytes]:
    from pcm_p2p.errors import InputError
    from pcm_p2p.policy.document import decode_policy

    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path, remedy="Check the path.") from None
    return decode_policy(data, str(path)), data
