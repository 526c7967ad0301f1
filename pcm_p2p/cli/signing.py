"""``sign``, ``merge``, ``publish``: from a proposal to what devices believe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcm_p2p.cli import passphrase
from pcm_p2p.cli.fleet import Fleet
from pcm_p2p.cli.key_choice import Token, chosen, open_key, public_side, secret_for
from pcm_p2p.cli.next_step import after_signing, refuse_without_keys
from pcm_p2p.cli.output import Json, err, note, out, print_facts, print_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pcm_p2p.authority.carry.signature_file import Signable
    from pcm_p2p.authority.document_difference import Contents
    from pcm_p2p.authority.proposal import Proposal

Full = Annotated[bool, typer.Option("--full", help="Cut nothing, however long it is.")]


def mount(app: typer.Typer) -> None:
    for command in (sign, merge, publish):
        app.command()(command)


def sign(
    fleet: Annotated[
        Path | None, typer.Option("--fleet", envvar="PCM_P2P_FLEET", help="The fleet folder with the proposal.")
    ] = None,
    proposal: Annotated[
        Path | None, typer.Option("--proposal", help="A proposal that was carried here, in place of a fleet folder.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="Key file; without a key the proposal is only shown.")
    ] = None,
    token: Token = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="With --proposal: the signature file to write and carry back.")
    ] = None,
    pin: Annotated[
        Path | None,
        typer.Option("--pin", help="With --proposal: what this machine remembers of fleets; by default KEY.pin."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask after showing what would be signed.")] = False,
    full: Full = False,
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    json: Json = False,
) -> None:
    """Show exactly what would be signed, then sign with one key. In the fleet folder, or a proposal that was carried here.

    With --proposal no fleet folder is needed, and no network. The machine remembers what it saw of the fleet beside the key, and
    refuses a proposal that does not follow from it.

    Example: pcm-p2p sign --fleet fleet --key alice.key

    EXIT STATUS: 0; 2 nothing is proposed, the key has no part in it, the question was answered no, or a site's new policy cannot
    be judged ('site floor'); 5 wrong passphrase, damaged key file, a proposal that breaks a rule, or one that does not follow
    from what this machine has seen.
    """
    from pcm_p2p.errors import InputError

    if proposal is not None:
        if to is None and (key is not None or token is not None):
            raise InputError("--out is missing", remedy="Name the signature file to write, such as alice.sig.")
        _sign_carried(proposal, key, token, to, pin, passphrase_file, passphrase_fd, yes=yes, full=full, json=json)
        return
    if fleet is None:
        raise InputError("there is nothing to sign", remedy="Pass --fleet FOLDER, or --proposal FILE.")
    _sign_here(fleet, key, token, passphrase_file, passphrase_fd, yes=yes, full=full, json=json)


def _sign_here(
    fleet: Path,
    key: Path | None,
    token: str | None,
    passphrase_file: Path | None,
    passphrase_fd: int | None,
    *,
    yes: bool,
    full: bool,
    json: bool,
) -> None:
    from pcm_p2p.authority.carry.carrying import contents_of, signables_of
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.authority.site_policy import set_aside_by_change
    from pcm_p2p.errors import InputError

    folder = FleetFolder.open(fleet)
    proposals, contents = folder.proposals(), contents_of(folder)
    if not proposals:
        raise InputError(
            "nothing is proposed", path=fleet, remedy="Stage a release, a policy or a fleet document first."
        )
    chosen_key = chosen(key, token, option="--key FILE") if key is not None or token is not None else None
    mine = _roles_of(chosen_key, signables_of(folder)) if chosen_key is not None else None
    if not json:
        tell(proposals, contents, full=full, mine=mine)
    for sentence in set_aside_by_change(folder):
        note(f"! {sentence}")
    if chosen_key is not None:
        told = _told(proposals, mine, chosen_key)
        _ask(told if mine is not None else (), yes=yes)
        secret = secret_for(chosen_key, passphrase_file, passphrase_fd)
        folder.sign(chosen_key, secret, shown={one.sha256 for one in told})
        proposals = folder.proposals()
    if json:
        print_json([one.as_json(contents) for one in proposals])
        return
    for one in proposals:
        for signatures in one.signatures:
            out().print(signatures.line(), markup=False)
    if chosen_key is None and not all(one.complete for one in proposals):
        note("Nothing was signed: pass --key FILE or --token.")
        return
    after_signing(folder, proposals)


def _sign_carried(
    file: Path,
    key: Path | None,
    token: str | None,
    to: Path | None,
    pin: Path | None,
    passphrase_file: Path | None,
    passphrase_fd: int | None,
    *,
    yes: bool,
    full: bool,
    json: bool,
) -> None:
    from pcm_p2p.authority.carry import pin_file
    from pcm_p2p.authority.carry.carried_proposal import proposals_in, sign_each, signables_in
    from pcm_p2p.authority.carry.carrying import read_bundle, refuse_what_breaks_rules, write_signature_file
    from pcm_p2p.authority.carry.signature_file import SCHEMA, SignatureFile
    from pcm_p2p.cli.site_floor import judged_by
    from pcm_p2p.errors import InputError

    bundle = read_bundle(file)
    proposals = proposals_in(bundle)
    place = pin or (key.with_name(f"{key.name}.pin") if key is not None else None)
    if place is None and token is not None:
        raise InputError("--pin is missing", remedy="A token has no folder: name the file that remembers the fleets.")
    remarks = pin_file.check(place, bundle) if place is not None else ()
    if bundle.floor is not None:
        remarks = (*remarks, *judged_by(bundle.floor))
    chosen_key = chosen(key, token, option="--key FILE") if key is not None or token is not None else None
    mine = _roles_of(chosen_key, signables_in(bundle)) if chosen_key is not None else None
    if not json:
        err().print(f"fleet {bundle.name!r}  {bundle.fleet}", markup=False)
        for remark in remarks:
            err().print(f"! {remark}", markup=False)
        err().print()
        tell(proposals, bundle.content, full=full, mine=mine)
    facts: dict[str, object] = {
        "schema": "pcm.carried-proposal/1",
        "fleet": bundle.fleet,
        "name": bundle.name,
        "remarks": list(remarks),
        "proposals": [one.as_json(bundle.content) for one in proposals],
    }
    if chosen_key is not None:
        assert to is not None, "asked for above"
        assert place is not None, "asked for above"
        told = _told(proposals, mine, chosen_key)
        refuse_what_breaks_rules(bundle)
        _ask(told if mine is not None else (), yes=yes)
        opened = open_key(chosen_key, passphrase_file, passphrase_fd)
        roles = {one.role for one in told}
        signatures = sign_each((one for one in signables_in(bundle) if one.role in roles), opened.signer, opened.keyid)
        if not signatures:
            raise InputError(
                f"the {opened.role} key of {opened.owner} has no part in what is proposed",
                path=key,
                remedy="Sign with a key of somebody who is named above.",
            )
        # Remembered first: a machine that forgot what it signed could be led to sign something else.
        pin_file.remember(place, bundle, signatures)
        write_signature_file(to, SignatureFile(SCHEMA, bundle.fleet, signatures))
        facts["signed"] = [one.title for one in signatures]
        if not json:
            for one in signatures:
                out().print(f"signed {one.title} for {one.owner}", markup=False)
            note(f"Next: carry {to} back, and 'pcm-p2p merge {to.name} --fleet FOLDER'.")
    if json:
        print_json(facts)


def tell(proposals: Iterable[Proposal], contents: Contents, *, full: bool, mine: Collection[str] | None = None) -> None:
    """On standard error: what is proposed, whole documents apart by a blank line.

    ``mine``: the roles for which the key signs. Each document says whether it is one of these, and they come last, next to the
    question; ``None`` where no key is chosen, or where it does not say which it is.
    """
    for proposal in proposals if mine is None else sorted(proposals, key=lambda one: one.role in mine):
        title = f"{proposal.role} {proposal.version_after}"
        if mine is not None and proposal.role in mine:
            err().print(f"THIS KEY SIGNS {title}:", markup=False)
        elif mine is not None:
            err().print(f"This key does not sign {title}, which is proposed beside it:", markup=False)
        for line in proposal.lines(contents, full=full):
            err().print(line, markup=False, emoji=False)
        err().print()


def _roles_of(key: Path | str, signables: Iterable[Signable]) -> frozenset[str] | None:
    """For which proposed documents ``key`` signs, by what it says of itself; signing opens it, and compares."""
    public = public_side(key)
    return None if public is None else frozenset(one.role for one in signables if public.keyid in one.keys)


def _told(proposals: Iterable[Proposal], mine: Collection[str] | None, key: Path | str) -> tuple[Proposal, ...]:
    """Those that were said to be for this key; nothing else is signed. Raises ``InputError`` if there are none."""
    from pcm_p2p.errors import InputError

    told = tuple(one for one in proposals if mine is None or one.role in mine)
    if not told:
        public = public_side(key)
        whose = f"the {public.role} key of {public.owner}" if public is not None and public.owner else "the key"
        raise InputError(
            f"{whose} has no part in what is proposed",
            path=key if isinstance(key, Path) else None,
            remedy="Sign with a key of somebody who is named above.",
        )
    return told


def _ask(told: Iterable[Proposal], *, yes: bool) -> None:
    from pcm_p2p.errors import InputError

    if not yes and not _agreed(", ".join(f"{one.role} {one.version_after}" for one in told)):
        raise InputError("not signed", remedy="Stage something else, or run it again; --yes asks no question.")


def _agreed(titles: str) -> bool:
    try:
        return typer.confirm(f"Sign {titles} with this key?" if titles else "Sign this?", err=True)
    except typer.Abort:
        return False  # nobody is there to answer


def merge(
    files: Annotated[list[Path], typer.Argument(help="Signature files that were carried back, in any order.")],
    fleet: Fleet,
    json: Json = False,
) -> None:
    """Add signatures that people made elsewhere. Each is verified before it is added to the proposal.

    What is over other bytes, by an unknown person, for another fleet or outdated is refused by name; the others are merged all
    the same. One that is there already is said to be.

    Example: pcm-p2p merge alice.sig bob.sig --fleet fleet

    EXIT STATUS: 0; 2 a file is no signature file (nothing was merged); 5 one or more were refused.
    """
    from pcm_p2p.authority.carry.carrying import merge as bring
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import TrustError

    folder = FleetFolder.open(fleet)
    results = bring(folder, files)
    proposals = folder.proposals()
    refused = [one for one in results if one.refused]
    if json:
        print_json(
            {
                "schema": "pcm.merged/1",
                "merged": [one.title for one in results if not one.refused and not one.there],
                "there": [one.title for one in results if one.there],
                "refused": [{"file": str(one.file), "why": one.refused} for one in refused],
                "signatures": [standing.as_json() for one in proposals for standing in one.signatures],
            }
        )
    else:
        for one in results:
            if not one.refused:
                out().print(f"{'there already:' if one.there else 'merged'} {one.title}", markup=False)
        for proposal in proposals:
            for standing in proposal.signatures:
                out().print(standing.line(), markup=False)
        after_signing(folder, proposals)
    if refused:
        raise TrustError(
            "\n".join(f"refused: {one.refused} ({one.file})" for one in refused),
            remedy="Let who is named sign what is proposed now: 'pcm-p2p proposal export', then 'sign --proposal'.",
        )


def publish(
    fleet: Fleet,
    to: Annotated[Path, typer.Option("--to", help="The origin tree: a folder that a web server serves.")],
    only: Annotated[
        list[str] | None,
        typer.Option(help="Take in the proposal of this role only, such as site-berlin or halt; repeat it."),
    ] = None,
    passphrase_file: passphrase.File = None,
    passphrase_fd: passphrase.Descriptor = None,
    json: Json = False,
) -> None:
    """Bring what is signed into the origin tree. Content first, the timestamp last, so that a reader never sees half.

    What sites, teams or one person's halt signed is taken in with --only while other proposals wait for signatures.

    Example: pcm-p2p publish --fleet fleet --to origin

    EXIT STATUS: 0; 2 the publisher's keys are not in the folder, or a site's new policy cannot be judged ('site floor');
    5 signatures are missing (their owners are named), a rule is broken, or the tree is ahead of this folder.
    """
    from pcm_p2p.authority.publish import OnlineKeys
    from pcm_p2p.authority.publish import publish as bring
    from pcm_p2p.authority.repository import FleetFolder
    from pcm_p2p.errors import InputError

    folder = FleetFolder.open(fleet)
    refuse_without_keys(folder)
    words = passphrase.obtain(passphrase_file, passphrase_fd, what="the publisher's keys")
    if unknown := sorted(set(only or ()) - set(folder.roles())):
        raise InputError(f"there is no role {unknown[0]}", key="--only", remedy=f"Roles: {', '.join(folder.roles())}.")
    # Only with the root that names them do new online keys count.
    keys = OnlineKeys.open(folder, words, proposed=not only or "root" in only)
    absent = [role for role in only or () if folder.proposed(role) is None]
    published = bring(folder, to, keys, only=only)
    facts = {
        "schema": "pcm.published/1",
        "root": published.versions.root,
        "timestamp": published.versions.timestamp,
        "snapshot": published.versions.snapshot,
        "targets": published.versions.targets,
        "delegated": dict(published.delegated),
        "expires": published.expires.isoformat(),
        "segments_added": published.segments_added,
        "segment_bytes_added": published.segment_bytes_added,
        "origin": str(to),
    }
    if json:
        print_json(facts)
    else:
        delegated = ", ".join(f"{role} {version}" for role, version in sorted(published.delegated.items()))
        print_facts(
            {key: value for key, value in {**facts, "delegated": delegated}.items() if value != "" and key != "schema"}
        )
    for role in absent:
        note(f"! nothing was proposed for {role}: nothing of it was taken in")
    for remark in published.remarks:
        note(remark)
