"""What to do when something is lost or stolen: each playbook makes the proposal and says the steps that remain, and for whom.

Nothing of it takes effect before the usual signatures. ``why`` says what the thief or the loss could do, so that people can judge
how much it presses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pcm_p2p.authority.keys import keyfile
from pcm_p2p.authority.keys.public_key import PublicKey
from pcm_p2p.authority.people.changes import (
    Change,
    change_holders,
    holders_in,
    holders_of,
    key_for,
    new_online_key_file,
    roles_of,
)
from pcm_p2p.authority.people.founding import Passphrase, ask
from pcm_p2p.authority.people.rotation import Holders
from pcm_p2p.authority.repository import FleetFolder
from pcm_p2p.authority.revocation import change_deny_list
from pcm_p2p.authority.site_policy import targets_set_aside
from pcm_p2p.authority.site_repository import listed_roots
from pcm_p2p.errors import InputError
from pcm_p2p.ids import DeviceId
from pcm_p2p.shown_text import shown
from pcm_p2p.trust.delegation import HALT, site_role, title_of

ONLINE = ("snapshot", "timestamp")


@dataclass(frozen=True)
class Step:
    """One step that remains, for whom."""

    who: str
    what: str


@dataclass(frozen=True)
class Playbook:
    """What was found, what was proposed, and what remains to be done."""

    title: str
    why: tuple[str, ...]
    done: tuple[str, ...]
    steps: tuple[Step, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": "pcm.playbook/1",
            "title": self.title,
            "why": list(self.why),
            "done": list(self.done),
            "steps": [{"who": step.who, "what": step.what} for step in self.steps],
        }


def lost_laptop(
    folder: FleetFolder,
    person: str,
    new: tuple[PublicKey, ...],
    *,
    remove: bool = False,
    thresholds: dict[str, int] | None = None,
) -> Playbook:
    """Every key of a person is lost, and may be in other hands. Raises ``InputError`` naming the keys that are to be replaced."""
    try:
        roles = roles_of(folder, person)
    except InputError as error:
        if elsewhere := [*_alone(folder, person)]:
            raise InputError(error.message, remedy=f"{elsewhere[0].who}: {elsewhere[0].what}") from None
        raise
    return _lost(folder, person, roles, new, remove, thresholds or {}, f"{person}'s laptop is lost")


def lost_root_key(
    folder: FleetFolder,
    person: str,
    new: tuple[PublicKey, ...],
    *,
    remove: bool = False,
    thresholds: dict[str, int] | None = None,
) -> Playbook:
    """The root key of a person is lost. Raises as ``lost_laptop``."""
    holders_of(folder, "root").key_of(person)
    return _lost(folder, person, ("root",), new, remove, thresholds or {}, f"{person}'s root key is lost")


def _lost(
    folder: FleetFolder,
    person: str,
    roles: tuple[str, ...],
    new: tuple[PublicKey, ...],
    remove: bool,
    thresholds: dict[str, int],
    title: str,
) -> Playbook:
    alone = tuple(_alone(folder, person))
    found = {role: key_for(role, new, person) for role in roles}
    absent = [role for role, key in found.items() if key is None]
    if absent and not remove:
        raise InputError(
            f"{person} holds keys for {', '.join(roles)}; there is no new one for {', '.join(absent)}",
            remedy=f"Let {person} make each ('key new', 'key public') and pass them with --new FILE.pub; or pass --remove.",
        )
    named = [
        one for one in (folder.delegator("targets", proposed=False), folder.delegator(HALT, proposed=False)) if one
    ]
    before = {role: there for role in roles for one in named if (there := holders_in(one, role)) is not None}
    change_holders(folder, [(role, _instead(person, key, thresholds.get(role))) for role, key in found.items()])
    done = [
        f"{title_of(role)}: {shown(person)} {'gets a new key' if key else 'signs no more'};"
        f" {(now := holders_of(folder, role)).threshold} of {len(now.keys)} must sign"
        for role, key in found.items()
    ]
    why = [
        f"Whoever has the key and its passphrase can give one of the {holders.threshold} signatures that {title_of(role)} needs."
        for role, holders in before.items()
    ]
    why.append("It counts until devices have the new root: how soon depends on the signatures below, not on the thief.")
    steps = (*_stranded(before, person), *_signing_steps(folder, without=person), *alone)
    return Playbook(title, tuple(why), tuple(done), steps)


def _alone(folder: FleetFolder, person: str) -> Iterable[Step]:
    """Sites that act alone have keys of their own, which nothing in this folder replaces."""
    for one in listed_roots(folder):
        roles = [role for role, people in one.held.items() if person in people]
        if not roles:
            continue
        held = f"{shown(person)} holds keys of its own repository, for {' and '.join(roles)}"
        if "root" in roles and one.threshold == 1:
            what = (
                f"{held}; one root key is enough to give it other keys, so found it anew ('pcm-p2p site found') and"
                f" list that here ('pcm-p2p site autonomous {one.site}')"
            )
        else:
            what = f"{held}: do the same there, with 'pcm-p2p fleet recover lost-laptop {person} --fleet ITS-FOLDER'"
        yield Step(f"site {one.site}", what)


def _instead(person: str, key: PublicKey | None, threshold: int | None) -> Change:
    def change(holders: Holders) -> Holders:
        first = holders if threshold is None else holders.with_threshold(threshold)
        return first.replaced(person, key.key) if key is not None else first.without(person)

    return change


def _stranded(before: dict[str, Holders], person: str) -> Iterable[Step]:
    """A root can be changed by its old threshold alone: without enough other holders the lost key itself is needed once more."""
    root = before.get("root")
    if root is not None and len(root.keys) - 1 < root.threshold:
        needed = f"{root.threshold} of {len(root.keys)} old keys are needed, and the others are too few"
        yield Step(
            person,
            f"sign with the OLD root key, from its backup: {needed}. Without a backup this root cannot be changed any more,"
            " and devices have to be enrolled in a new fleet.",
        )


def stolen_online_keys(
    folder: FleetFolder, passphrase: Passphrase, *, preset: keyfile.Preset = "interactive"
) -> Playbook:
    """Make both online keys anew: replacing one of them alone does not heal a fast-forward (research/trust.md 2: 12h)."""
    made: list[tuple[str, keyfile.KeyFile]] = []
    for role in ONLINE:
        file = new_online_key_file(folder, role)
        made.append((role, keyfile.create(file, ask(passphrase, file.stem), role, "publisher", preset=preset)))
    change_holders(folder, [(role, _only(key)) for role, key in made])
    return Playbook(
        "the publisher's keys are stolen",
        (
            "With both keys a thief can hide newer releases, and raise versions so far that nothing of yours counts any more.",
            "They cannot change or add a release, a policy or a key: those need the signatures of people.",
            "Both keys are replaced: with only one of them new, raised versions would stay in force.",
        ),
        tuple(f"{role}: a new key, {key.fingerprint}, in keys/{key.path.name}" for role, key in made),
        (
            Step(
                "publisher",
                "stop 'enroll desk' and timers that run 'fleet refresh'; take the old machine off the network",
            ),
            Step(
                "publisher",
                "change the password of the web server or bucket of the origin tree, which the thief may have too",
            ),
            *_signing_steps(folder),
            Step(
                "publisher",
                "if the tree says that it is ahead of this folder, the thief wrote there: publish into an empty one",
            ),
            Step("publisher", "start the desk on a clean machine: it takes the key files that the new root names"),
            Step(
                "publisher",
                "keep the old machine for examination; 'pcm-p2p audit verify' shows which signatures were yours",
            ),
        ),
    )


def _only(key: keyfile.KeyFile) -> Change:
    return lambda holders: Holders(holders.role, (key.key,), 1)


def stolen_site_key(folder: FleetFolder, site: str, new: tuple[PublicKey, ...], *, threshold: int = 1) -> Playbook:
    """Give a site other keys, or (without ``new``) none. Raises ``InputError`` if nothing is delegated to it."""
    role = site_role(site)
    before = holders_of(folder, role)
    if new:
        folder.delegate(role, [key.key for key in new], threshold)
        owners = ", ".join(shown(key.owner) for key in new)
        done = [
            f"{title_of(role)}: {threshold} of {owners} must sign, in place of {', '.join(map(shown, before.owners))}"
        ]
        # Devices set them aside, and the tool signs none: left in, what a thief published would hold up the new keys.
        gone = targets_set_aside(folder, role)
        if gone:
            folder.stage(role, dict.fromkeys(gone))
        done += [f"{path} goes out of what is signed anew: {shown(reason)}" for path, reason in gone.items()]
        done += [
            f"{path} is vouched for again: read it before the new key signs"
            for path in sorted(folder.working(role).targets)
            if path.endswith(".toml")
        ]
    else:
        folder.revoke(role)
        done = [f"{title_of(role)}: nobody signs any more; what it published counts no more once this is published"]
    alone = f"sites/{site}/root.json" in folder.working("targets").targets
    return Playbook(
        f"a key of site {site} is stolen",
        (
            f"With {before.threshold} of its keys a thief can sign policies for devices of {site}, as far as the fleet allows.",
            "Nothing for other sites, no policy of the fleet, no key.",
            "Any one of the keys can halt changes at this site: look at 'pcm-p2p halt list'.",
        ),
        tuple(done),
        (
            Step(
                "anybody with a key",
                f"if a bad policy is out already: halt it at once with 'pcm-p2p halt', before {site} has new keys",
            ),
            *_signing_steps(folder),
            *(
                (
                    Step(
                        f"site {site}",
                        "its own repository has keys of its own: 'pcm-p2p site found' anew, then 'pcm-p2p site autonomous'",
                    ),
                )
                if alone
                else ()
            ),
            Step(f"site {site}", "read through its policies, and put what it wants with the new keys"),
        ),
    )


def lost_device(folder: FleetFolder, device: DeviceId, reason: str) -> Playbook:
    """Revoke a device. Raises ``InputError`` as the deny list does."""
    change_deny_list(
        folder, lambda held: held.with_devices([device], reason, folder.wall_clock().replace(microsecond=0))
    )
    return Playbook(
        f"device {device} is lost",
        (
            "Whoever has it can speak with other devices of the fleet, read policies and releases, and report as this device.",
            "It cannot change what others install, nor report as another device.",
        ),
        (f"identity/deny.json: device {device} is revoked",),
        (
            *_signing_steps(folder),
            Step("help desk", "its owner's passwords and other secrets on it are another matter: change them too"),
            Step(
                "help desk",
                "when it is found: enrol it anew with a fresh token; 'pcm-p2p device restore' only if it was never out of sight",
            ),
        ),
    )


def _signing_steps(folder: FleetFolder, *, without: str = "") -> Iterable[Step]:
    """Who has to sign what is proposed now, and the publishing of it. The old key of ``without`` is not counted on."""
    for proposal in folder.proposals():
        for standing in proposal.signatures:
            if not standing.complete:
                others = [owner for owner in standing.could if owner != without or standing.whose != "old keys"]
                more, could = standing.threshold - len(standing.have), ", ".join(map(shown, others or standing.could))
                what = f"{standing.role} {proposal.version_after}" + (f" ({standing.whose})" if standing.whose else "")
                yield Step(
                    f"{more} of {could}",
                    f"sign {what}: 'pcm-p2p sign --key KEY --fleet F', or carried ('proposal export')",
                )
    yield Step(
        "publisher",
        "'pcm-p2p publish --to TREE'; devices follow within minutes, those that are away when they are back",
    )
