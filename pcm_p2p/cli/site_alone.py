"""``site found``, ``site autonomous``, and ``site floor`` beside them: a site that acts alone while the WAN is down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcm_p2p.cli import passphrase
from pcm_p2p.cli.ceremony import ask_each
from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.founder_options import Owners, ReleaseKeys, RootKeys, RootThreshold
from pcm_p2p.cli.key import Cost, Derivation
from pcm_p2p.cli.next_step import after_staging
from pcm_p2p.cli.output import Json, note, out, print_facts, print_json
from pcm_p2p.cli.site_floor import DeviceState, FleetRoot, Tree, floor

if TYPE_CHECKING:
    from pcm_p2p.authority.people.founders import Founders
    from pcm_p2p.authority.people.founding import Passphrase
    from pcm_p2p.authority.repository import FleetFolder

SiteFolder = Annotated[Path | None, typer.Option(help="The site's folder ('site found'), if it is at hand.")]
SiteRoot = Annotated[Path | None, typer.Option(help="The site's newest root, where only that was carried here.")]
Name = Annotated[str, typer.Argument(help="The site, as devices are enrolled in it.")]


app = typer.Typer(help="Sites: offices that set something themselves, or act alone.", no_args_is_help=True)
app.command()(floor)


@app.command()
def found(
    site: Name,
    folder: Annotated[Path, typer.Option(help="The folder to make; it stays in the office.")],
    fleet_id: Annotated[str, typer.Option(help="The fleet's id: 32 hexadecimal digits, in its fleet.toml.")],
    owner: Owners = None,
    root_key: RootKeys = None,
    release_key: ReleaseKeys = None,
    root_threshold: RootThreshold = None,
    release_threshold: Annotated[
        int | None, typer.Option(min=1, help="Signatures that a policy needs; 2 where three or more people are.")
    ] = None,
    source: Tree = None,
    state: DeviceState = None,
    root: FleetRoot = None,
    kdf: Cost = Derivation.moderate,
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    json: Json = False,
) -> None:
    """Make the repository with which a site acts alone. Its people's keys, its publisher's keys, its first root.

    It is worked with like a fleet's folder ('policy put', 'release add', 'sign', 'publish --to' a folder on a device of the
    office). Its releases have names that begin with the site's name and '-'. Nothing of it counts before the fleet lists its
    root: carry that file to the fleet's folder, for 'site autonomous --root'. With --from or --state it also takes over what the
    fleet lets the site set, as 'site floor' does later; before, no policy is staged in it.

    EXIT STATUS: 0; 2 the folder holds a fleet or site already, or people, keys and thresholds do not fit; 5 and 7 as for
    'site floor'.
    """
    from pcm_p2p.authority.held_floor import keep_floor
    from pcm_p2p.authority.keys.public_key_file import read_public_key
    from pcm_p2p.authority.people.founders import Founders, suggested_threshold
    from pcm_p2p.authority.site_repository import found_site, refuse_taken
    from pcm_p2p.cli.site_floor import for_a_new_site
    from pcm_p2p.errors import InputError

    if len(fleet_id) != 32 or set(fleet_id) - set("0123456789abcdef"):
        raise InputError("is not a fleet's id", key="--fleet-id", remedy="Copy it from [fleet] id in fleet.toml.")
    root_keys = tuple(map(read_public_key, root_key or ()))
    release_keys = tuple(map(read_public_key, release_key or ()))
    owners = tuple(owner or (() if root_keys and release_keys else ("admin",)))
    founders = Founders(
        owners,
        root_keys,
        release_keys,
        root_threshold or suggested_threshold(len(owners) + len(root_keys)),
        release_threshold or suggested_threshold(len(owners) + len(release_keys)),
    )
    founders.check()
    for remark in founders.remarks():
        note(remark)
    refuse_taken(folder)
    taken = for_a_new_site(fleet_id, site, source, state, root)  # before anything is made
    made = found_site(
        folder, fleet_id, site, founders, _words(founders, site, passphrase_file, passphrase_fd), preset=kdf.value
    )
    if taken is not None:
        keep_floor(made, taken)
    own_root = made.metadata / "1.root.json"
    waiting = [line.line() for line in made.signatures_missing(["root"])]
    facts = {"site": site, "folder": str(folder), "root": str(own_root)}
    if json:
        floor_held = taken.versions.targets if taken is not None else None
        print_json({"schema": "pcm.site-found/1", **facts, "waiting": waiting, "fleet_targets": floor_held})
        return
    print_facts(facts)
    for line in waiting:
        note(line)
    note(f"Next: carry the root to the fleet: 'pcm-p2p site autonomous {site} --root FILE --fleet FOLDER'.")
    if taken is None:
        note(
            "Before a policy is staged here, take over what the fleet lets the site set:"
            f" 'pcm-p2p site floor --fleet {folder} --state STATE' of a device of the office, or '--from TREE --root ROOT'."
        )
    else:
        note(f"Held of the fleet: targets {taken.versions.targets} ('pcm-p2p site floor --fleet {folder}' shows it).")


@app.command()
def autonomous(
    site: Name,
    fleet: Fleet,
    folder: SiteFolder = None,
    root: SiteRoot = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="The site acts alone no longer.")] = False,
) -> None:
    """Propose that devices trust a site's own repository. Those of the site, beside the fleet's and below it.

    What it may set stands in the allowances ('policy allow'). Listing another root later drops what devices trusted of the
    site before: that is how the fleet takes a site out of wrong hands.

    EXIT STATUS: 0; 2 it is not a root of this site of this fleet; 5 its first root lacks signatures.
    """
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.authority.site_policy import allowances_of
    from pcm_p2p.authority.site_repository import list_site_root
    from pcm_p2p.errors import InputError
    from pcm_p2p.trust.index import site_root_path

    given = FleetFolder.open(fleet)
    if [folder is not None, root is not None, withdraw].count(True) != 1:
        raise InputError("one of --folder, --root and --withdraw is needed", remedy="Give one of them.")
    if withdraw:
        given.unstage(site_root_path(site))
        out().print(f"site {site} acts alone no longer, once this is signed and published", markup=False)
    else:
        out().print(f"staged {list_site_root(given, site, _root_bytes(folder, root))}", markup=False)
        allowances = allowances_of(given)
        if allowances is None or allowances.of(site) is None:
            note(f"The fleet allows site {site} nothing yet: 'pcm-p2p policy allow FILE'.")
    after_staging(given)


def alone_listed(folder: FleetFolder) -> list[dict[str, Any]]:
    """Sites that act alone, as facts for ``site show``."""
    from pcm_p2p.authority.site_repository import listed_roots

    return [
        {
            "site": one.site,
            "own_repository": "published" if one.published else "proposed",
            "root_version": one.version,
            "root_sha256": one.sha256,
            "people": list(one.people),
        }
        for one in listed_roots(folder)
    ]


def print_alone(facts: dict[str, Any]) -> None:
    out().print(
        f"site {facts['site']} acts alone: root version {facts['root_version']} of {', '.join(facts['people'])}; "
        f"{facts['own_repository']}; sha256 {facts['root_sha256'][:16]}",
        markup=False,
    )


def _root_bytes(folder: Path | None, root: Path | None) -> bytes:
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.authority.site_repository import signed_root
    from pcm_p2p.errors import InputError

    if folder is not None:
        return signed_root(FleetFolder.open(folder))
    assert root is not None
    try:
        return root.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=root, remedy="Check the path.") from None


def _words(founders: Founders, site: str, file: Path | None, descriptor: int | None) -> Passphrase:
    if file is not None or descriptor is not None:
        return passphrase.obtain(file, descriptor, what=f"the keys of site {site}", confirm=True)
    return ask_each(founders.owners, f"site {site}")
